//! Passes on what only cargo knows, for `build_info()`.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=MOSHI_RS_COMMIT");
    let target = std::env::var("TARGET").expect("cargo sets TARGET for build scripts");
    let profile = std::env::var("PROFILE").expect("cargo sets PROFILE for build scripts");
    println!("cargo:rustc-env=MOSHI_RS_TARGET={target}");
    println!("cargo:rustc-env=MOSHI_RS_PROFILE={profile}");
    // Python's symbols are in the interpreter that loads the module; only this linker minds.
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("macos") {
        println!("cargo:rustc-cdylib-link-arg=-undefined");
        println!("cargo:rustc-cdylib-link-arg=dynamic_lookup");
    }
}
