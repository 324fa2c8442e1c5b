//! Who may depend on whom, and what no source file may contain.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::repository;

/// Names of all packages that a crate is built from, itself first.
fn dependencies(package: &str) -> Vec<String> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| env!("CARGO").into());
    let output = Command::new(cargo)
        .args(["tree", "--offline", "-e", "normal", "--prefix", "none", "-p", package])
        .current_dir(repository(""))
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "cargo tree -p {package}: {errors}");
    let text = String::from_utf8(output.stdout).unwrap();
    let names = text.lines().filter_map(|line| line.split(' ').next()).map(String::from);
    names.filter(|name| !name.is_empty()).collect()
}

#[test]
fn crates_stay_below_their_layer() {
    for (package, forbidden) in [
        ("moshi-kernels", &["candle-core", "candle-nn", "tokio", "pyo3", "clap"][..]),
        ("moshi-audio", &["candle-core", "candle-nn", "moshi-core", "tokio", "pyo3", "clap"]),
        (
            "moshi-wire",
            &["candle-core", "candle-nn", "moshi-core", "tokio", "axum", "pyo3", "clap"],
        ),
        (
            "moshi-core",
            &[
                "pyo3",
                "numpy",
                "tokio",
                "axum",
                "clap",
                "ureq",
                "moshi-hub",
                "moshi-box",
                "moshi-audio",
                "moshi-wire",
                "moshi-serve",
                "moshi-cli",
            ],
        ),
        ("moshi-serve", &["pyo3", "numpy", "clap", "ureq", "moshi-hub", "moshi-box", "moshi-cli"]),
        (
            "moshi-hub",
            &["pyo3", "numpy", "tokio", "axum", "clap", "moshi-box", "moshi-audio", "moshi-cli"],
        ),
        ("moshi-box", &["pyo3", "numpy", "tokio", "axum", "clap", "moshi-audio", "moshi-cli"]),
        ("moshi-cli", &["pyo3", "numpy", "moshi-py"]),
    ] {
        let names = dependencies(package);
        assert!(names.len() >= 3, "{package} has dependencies: {names:?}");
        assert_eq!(names[0], package);
        for name in forbidden {
            assert!(!names.iter().any(|n| n == name), "{package} must not depend on {name}");
        }
    }
    assert!(dependencies("moshi-core").iter().any(|name| name == "candle-core"));
}

#[test]
fn only_the_hub_and_the_daemon_open_sockets() {
    let mut sockets = Vec::new();
    for (name, files) in crates() {
        let opens = |text: &str| {
            has_word(text, "ureq") || has_word(text, "TcpStream") || has_word(text, "UdpSocket")
        };
        if files.iter().any(|path| opens(&code(path))) {
            sockets.push(name);
        }
    }
    assert_eq!(sockets, ["moshi-hub", "moshi-serve"]);
}

/// All Rust files below a folder of the repository.
fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files
}

/// Every `src` folder of the crates with its files.
fn crates() -> Vec<(String, Vec<PathBuf>)> {
    let mut crates: Vec<(String, Vec<PathBuf>)> = std::fs::read_dir(repository("rust"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.join("Cargo.toml").exists())
        .map(|path| {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            (name, sources(&path.join("src")))
        })
        .collect();
    crates.sort();
    assert!(crates.len() >= 4 && crates.iter().all(|(_, files)| !files.is_empty()));
    crates
}

/// A file's text without line comments and without what lines quote.
fn code(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap();
    let unquoted = |line: &str| line.split('"').step_by(2).collect::<Vec<_>>().join("\"\"");
    let lines = text.lines().map(|line| unquoted(line.split("//").next().unwrap()));
    lines.collect::<Vec<_>>().join("\n")
}

/// True when a word occurs on its own, not as a part of another.
fn has_word(text: &str, word: &str) -> bool {
    let inside = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
    text.match_indices(word).any(|(at, _)| {
        !inside(text[..at].chars().next_back()) && !inside(text[at + word.len()..].chars().next())
    })
}

#[test]
fn only_the_kernels_may_be_unsafe() {
    for (name, files) in crates() {
        let root = files.iter().find(|path| path.ends_with("src/lib.rs")).unwrap();
        let forbids = std::fs::read_to_string(root).unwrap().contains("#![forbid(unsafe_code)]");
        if name == "moshi-kernels" {
            let any = files.iter().any(|path| has_word(&code(path), "unsafe"));
            assert!(any, "the scan finds what is there");
            continue;
        }
        assert!(forbids, "{} forbids unsafe code", root.display());
        for path in files {
            assert!(!has_word(&code(&path), "unsafe"), "{}", path.display());
        }
    }
}

#[test]
fn files_stay_readable() {
    let mut seen = 0;
    for (_, files) in crates() {
        for path in files {
            let lines = std::fs::read_to_string(&path).unwrap().lines().count();
            assert!(lines <= 800, "{} has {lines} lines", path.display());
            seen += 1;
        }
    }
    assert!(seen > 40, "{seen} files");
}

#[test]
fn candle_stays_behind_the_executor() {
    let mut inside = 0;
    for (name, files) in crates() {
        for path in files {
            let text = code(&path);
            if !has_word(&text, "candle_core") && !has_word(&text, "candle_nn") {
                continue;
            }
            let allowed = name == "moshi-core"
                && (path.parent().unwrap().ends_with("src/exec") || path.ends_with("src/error.rs"));
            assert!(allowed, "{} names candle's types", path.display());
            inside += 1;
        }
    }
    assert!(inside >= 2, "the scan finds the executor and the error");
}
