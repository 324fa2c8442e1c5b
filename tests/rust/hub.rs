//! Models from a hub, against a fake one on this machine.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use moshi_core::checkpoint::{CodecFiles, FileSource, TensorFile};
use moshi_core::exec::Scalar;
use moshi_core::{Error, LoadOptions, Model, NoObserver, Session, SessionOptions};
use moshi_hub::{HubOptions, HubRepo, Progress, open_codec, open_repo, open_source};
use tempfile::TempDir;

use crate::support::fake_hub::{Answer, COMMIT, FakeHub, REPO, Request, TOKEN, sha256};
use crate::support::golden;

const WEIGHTS: &str = "big.safetensors";
const TEXT: &str = "folder/notes.txt";

fn weights() -> Vec<u8> {
    (0..1_000_003u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

/// A hub with one large and one small file.
fn hub() -> FakeHub {
    FakeHub::new(BTreeMap::from([
        (WEIGHTS.to_owned(), weights()),
        (TEXT.to_owned(), b"a note".to_vec()),
    ]))
}

fn options(hub: &FakeHub, cache: &TempDir) -> HubOptions {
    HubOptions {
        endpoint: hub.address(),
        cache: cache.path().into(),
        retry_pause: Duration::from_millis(1),
        timeout: Duration::from_secs(5),
        ..HubOptions::default()
    }
}

fn cache() -> TempDir {
    tempfile::tempdir().unwrap()
}

fn repo(options: &HubOptions) -> HubRepo {
    HubRepo::new(REPO, options).unwrap()
}

fn found(source: &HubRepo, name: &str) -> PathBuf {
    let file = source.find(name).unwrap().unwrap_or_else(|| panic!("{name} is there"));
    file.path().to_owned()
}

fn failure(source: &HubRepo, name: &str) -> Error {
    source.find(name).unwrap_err()
}

fn blobs(cache: &TempDir) -> PathBuf {
    cache.path().join("models--tiny--dialogue/blobs")
}

fn partial(cache: &TempDir) -> PathBuf {
    blobs(cache).join(format!("{}.incomplete", sha256(&weights())))
}

fn is_content(request: &Request) -> bool {
    request.method == "GET" && request.path.starts_with("/storage/")
}

/// Texts and audio of some frames.
fn speak(model: &Arc<Model>) -> (String, Vec<f32>) {
    let options = SessionOptions { seed: Some(7), ..SessionOptions::default() };
    let mut session = Session::new(model, &options).unwrap();
    let expected = TensorFile::open(&golden("dialogue_repo").join("expected.safetensors")).unwrap();
    let pcm = expected.read_f32("pcm").unwrap();
    let mut said = (String::new(), Vec::new());
    for frame in pcm.chunks_exact(model.info().frame_samples).take(20) {
        let output = session.step(frame).unwrap();
        said.0.push_str(&output.text);
        said.1.extend(output.pcm);
    }
    said
}

#[test]
fn a_model_speaks_as_from_its_folder_and_the_token_stays_with_the_hub() {
    let (hub, storage) = (FakeHub::of_folder(&golden("dialogue_repo")), hub());
    hub.store_at(&storage);
    let cache = cache();
    let options = HubOptions { token: Some(TOKEN.into()), ..options(&hub, &cache) };

    let folder = Model::load(&golden("dialogue_repo"), &LoadOptions::default()).unwrap();
    let opened = open_repo(Path::new(REPO), &options).unwrap();
    assert_eq!(
        (opened.label(), opened.config_file()),
        (REPO.into(), format!("{REPO}/config.json"))
    );
    let model = Model::open(&opened, &LoadOptions::default(), &NoObserver).unwrap();
    assert_eq!(model.fingerprint(), folder.fingerprint());
    assert_eq!(speak(&model), speak(&folder));

    let requests = hub.take_requests();
    let with_token = |request: &Request| {
        request.headers.get("authorization").is_some_and(|value| value == "Bearer hf_secret")
    };
    assert!(requests.iter().all(with_token), "{requests:?}");
    let lists = requests.iter().filter(|request| request.path.starts_with("/api/")).count();
    assert_eq!(lists, 1);
    let unneeded = |request: &Request| {
        request.path.ends_with("case.json") || request.path.ends_with("expected.safetensors")
    };
    assert!(!requests.iter().any(unneeded), "{requests:?}");
    let stored = storage.take_requests();
    assert_eq!(stored.len(), 2, "both weights: {stored:?}");
    assert!(!stored.iter().any(|request| request.headers.contains_key("authorization")));

    // The second time, only the branch is looked up.
    let again = open_repo(Path::new(REPO), &options).unwrap();
    Model::from_repo(&Scalar, &again, &LoadOptions::default(), &NoObserver).unwrap();
    assert_eq!((hub.take_requests().len(), storage.take_requests().len()), (1, 0));

    let CodecFiles { weights, config } = open_codec(Path::new(REPO), &options).unwrap();
    assert_eq!(weights, again.mimi_file().unwrap());
    assert_eq!(config.frame_samples, again.mimi_config.frame_samples);
}

#[test]
fn files_have_the_layout_of_python_and_their_content() {
    let (hub, cache) = (hub(), cache());
    let source = repo(&options(&hub, &cache));
    assert_eq!(source.label(), REPO);
    assert_eq!(source.list().unwrap(), [WEIGHTS, TEXT]);
    let folder = cache.path().join("models--tiny--dialogue");
    for (name, content) in [(WEIGHTS, weights()), (TEXT, b"a note".to_vec())] {
        let path = found(&source, name);
        assert_eq!(path, folder.join("snapshots").join(COMMIT).join(name));
        assert_eq!(std::fs::read(&path).unwrap(), content);
        let blob = path.canonicalize().unwrap();
        assert_eq!(blob.parent().unwrap(), blobs(&cache).canonicalize().unwrap());
    }
    assert_eq!(std::fs::read_to_string(folder.join("refs/main")).unwrap(), COMMIT);
    assert_eq!(source.find("nothing.json").unwrap(), None);
    assert!(source.hint("nothing.json").contains("no such file at revision \"main\""));
}

#[test]
fn a_cut_connection_is_resumed() {
    let (hub, cache) = (hub(), cache());
    hub.fail(|request, usual, _| {
        let first = is_content(request) && !request.headers.contains_key("range");
        first.then(|| Answer { cut: Some(400_000), ..usual.clone() })
    });
    assert_eq!(std::fs::read(found(&repo(&options(&hub, &cache)), WEIGHTS)).unwrap(), weights());
    let requests = hub.take_requests();
    let ranges: Vec<_> = requests.iter().filter(|r| is_content(r)).collect();
    assert_eq!(ranges.len(), 2);
    assert_eq!(ranges[1].headers["range"], "bytes=400000-");
    assert!(!partial(&cache).exists());
}

#[test]
fn a_later_run_resumes_what_an_earlier_one_left() {
    let (hub, cache) = (hub(), cache());
    let options = options(&hub, &cache);
    hub.fail(|request, usual, _| {
        is_content(request).then(|| {
            if request.headers.contains_key("range") {
                Answer::new(503, "")
            } else {
                Answer { cut: Some(300_000), ..usual.clone() }
            }
        })
    });
    let error = failure(&repo(&options), WEIGHTS).to_string();
    assert!(error.contains("status 503") && error.contains("try again later"), "{error}");
    assert_eq!(std::fs::metadata(partial(&cache)).unwrap().len(), 300_000);

    hub.recover();
    hub.take_requests();
    assert_eq!(std::fs::read(found(&repo(&options), WEIGHTS)).unwrap(), weights());
    let content: Vec<_> = hub.take_requests().into_iter().filter(is_content).collect();
    assert_eq!(content.len(), 1);
    assert_eq!(content[0].headers["range"], "bytes=300000-");
}

#[test]
fn servers_without_ranges_start_anew() {
    for status in [200, 416] {
        let (hub, cache) = (hub(), cache());
        std::fs::create_dir_all(blobs(&cache)).unwrap();
        std::fs::write(partial(&cache), &weights()[..1000]).unwrap();
        hub.fail(move |request, _, _| {
            let resumes = is_content(request) && request.headers.contains_key("range");
            let body = if status == 200 { weights() } else { Vec::new() };
            resumes.then(|| Answer::new(status, body))
        });
        let path = found(&repo(&options(&hub, &cache)), WEIGHTS);
        assert_eq!(std::fs::read(path).unwrap(), weights(), "{status}");
    }
}

#[test]
fn what_an_earlier_run_left_damaged_is_fetched_anew() {
    for left in [vec![0x55; 1000], vec![0x55; 1_000_003], vec![0x55; 1_000_004]] {
        let (hub, cache) = (hub(), cache());
        std::fs::create_dir_all(blobs(&cache)).unwrap();
        std::fs::write(partial(&cache), left).unwrap();
        let path = found(&repo(&options(&hub, &cache)), WEIGHTS);
        assert_eq!(std::fs::read(path).unwrap(), weights());
    }
}

#[test]
fn a_wrong_checksum_is_an_error_and_leaves_nothing() {
    let (hub, cache) = (hub(), cache());
    hub.fail(|request, usual, _| {
        let mut body = usual.body.clone();
        *body.last_mut()? ^= 1;
        let content = is_content(request) || request.path.ends_with(TEXT);
        content.then(|| Answer { body, ..usual.clone() })
    });
    let source = repo(&options(&hub, &cache));
    for name in [WEIGHTS, TEXT] {
        let error = failure(&source, name);
        assert!(matches!(error, Error::Hub { .. }), "{error}");
        let text = error.to_string();
        assert!(text.contains("checksum") && text.contains("deleted"), "{text}");
    }
    assert_eq!(std::fs::read_dir(blobs(&cache)).unwrap().count(), 0);
    hub.recover();
    assert_eq!(std::fs::read(found(&source, TEXT)).unwrap(), b"a note");
}

#[test]
fn more_bytes_than_promised_are_refused() {
    let (hub, cache) = (hub(), cache());
    hub.fail(|request, _, _| {
        is_content(request).then(|| Answer::new(200, [weights(), vec![0; 9]].concat()))
    });
    let error = failure(&repo(&options(&hub, &cache)), WEIGHTS).to_string();
    assert!(error.contains("more bytes"), "{error}");
}

/// The device `/dev/full` refuses every byte as a full disk does.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_an_error_that_leaves_no_broken_file() {
    let (hub, cache) = (hub(), cache());
    std::fs::create_dir_all(blobs(&cache)).unwrap();
    std::os::unix::fs::symlink("/dev/full", partial(&cache)).unwrap();
    let source = repo(&options(&hub, &cache));
    let error = failure(&source, WEIGHTS);
    assert!(matches!(error, Error::Hub { .. }), "{error}");
    let text = error.to_string();
    for part in ["is full", "1.0 MB more are needed for big.safetensors", "HF_HUB_CACHE"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let left: Vec<_> =
        std::fs::read_dir(blobs(&cache)).unwrap().map(|e| e.unwrap().path()).collect();
    assert_eq!(left, [partial(&cache)]);
    // Room again.
    std::fs::remove_file(partial(&cache)).unwrap();
    assert_eq!(std::fs::read(found(&source, WEIGHTS)).unwrap(), weights());
}

#[test]
fn refusals_say_what_to_do() {
    for (status, code, token, is_missing, expected) in [
        (401, "", None, false, "hf auth login"),
        (401, "", Some(TOKEN), false, "wrong or expired"),
        (401, "RepoNotFound", None, true, "private"),
        (403, "GatedRepo", Some(TOKEN), false, "accept its conditions"),
        (404, "RepoNotFound", None, true, "no repository of this name"),
        (404, "RevisionNotFound", None, true, "no branch, tag or commit"),
        (500, "", None, false, "try again later"),
        (429, "", None, false, "wait some minutes"),
    ] {
        let (hub, cache) = (hub(), cache());
        hub.fail(move |_, _, _| Some(Answer::new(status, "no").with("x-error-code", code)));
        let options = HubOptions { token: token.map(Into::into), ..options(&hub, &cache) };
        let error = open_repo(Path::new(REPO), &options).unwrap_err();
        let text = error.to_string();
        assert_eq!(matches!(error, Error::NotFound { .. }), is_missing, "{text}");
        assert!(text.contains(expected) && text.contains(REPO), "{status} {code}: {text}");
        assert!(!text.contains(TOKEN), "{text}");
    }
}

#[test]
fn a_missing_repository_revision_or_file_is_named() {
    let (hub, cache) = (hub(), cache());
    let options = options(&hub, &cache);
    let other = open_repo(Path::new("tiny/other"), &options).unwrap_err();
    assert!(matches!(other, Error::NotFound { .. }));
    assert!(other.to_string().contains("no such folder here"), "{other}");
    let v2 = HubOptions { revision: Some("v2".into()), ..options.clone() };
    let error = open_repo(Path::new(REPO), &v2).unwrap_err().to_string();
    assert!(error.contains("tiny/dialogue@v2"), "{error}");
    // Listed, and gone when it is fetched.
    hub.list_also(&["gone.json"]);
    let error = failure(&repo(&options), "gone.json").to_string();
    assert!(error.contains("tiny/dialogue/gone.json"), "{error}");
}

#[test]
fn a_busy_hub_is_asked_again() {
    let (hub, cache) = (hub(), cache());
    let source = repo(&options(&hub, &cache));
    source.list().unwrap();
    hub.fail(|_, _, before| {
        (before < 3).then(|| Answer::new([429, 500, 503][before], "").with("retry-after", 0))
    });
    hub.take_requests();
    assert_eq!(std::fs::read(found(&source, WEIGHTS)).unwrap(), weights());
    assert!(hub.take_requests().len() > 3);
}

#[test]
fn answers_that_are_no_hubs_are_refused() {
    let bodies =
        ["<html>", "{}", "{\"sha\": \"../../..\", \"siblings\": []}", "[1]", "{\"sha\": 1}"];
    for body in bodies {
        let (hub, cache) = (hub(), cache());
        hub.fail(move |_, _, _| Some(Answer::new(200, body)));
        let error = open_repo(Path::new(REPO), &options(&hub, &cache)).unwrap_err();
        assert!(matches!(error, Error::Hub { .. }), "{body}: {error}");
        assert!(error.to_string().contains("not a hub's"), "{body}: {error}");
    }
    for etag in ["../../../evil", "", "\"\"", "a/b", "..", "W/\"x y\"", &"a".repeat(200)] {
        let (hub, cache) = (hub(), cache());
        let value = etag.to_owned();
        hub.fail(move |request, usual, _| {
            let answer = usual.clone().with("etag", &value).with("x-linked-etag", &value);
            (request.method == "HEAD").then_some(answer)
        });
        let error = failure(&repo(&options(&hub, &cache)), WEIGHTS);
        assert!(matches!(error, Error::Hub { .. }), "{etag}: {error}");
    }
    for location in ["", "file:///etc/passwd", "storage/x", "ftp://x/y"] {
        let (hub, cache) = (hub(), cache());
        hub.fail(move |_, _, _| Some(Answer::new(302, "").with("location", location)));
        let error = open_repo(Path::new(REPO), &options(&hub, &cache)).unwrap_err();
        assert!(matches!(error, Error::Hub { .. }), "{location}: {error}");
    }
    let (hub, cache) = (hub(), cache());
    hub.fail(|request, _, _| Some(Answer::new(307, "").with("location", &request.path)));
    let error = open_repo(Path::new(REPO), &options(&hub, &cache)).unwrap_err().to_string();
    assert!(error.contains("redirects"), "{error}");
}

#[test]
fn hostile_names_reach_nothing() {
    let (hub, cache) = (hub(), cache());
    let hostile =
        ["../../../../up.json", "/etc/passwd", "a/../../b", "..", "a\\b", "C:x", "a\nb", ""];
    hub.list_also(&hostile);
    let source = repo(&options(&hub, &cache));
    assert_eq!(source.list().unwrap(), [WEIGHTS, TEXT]);
    hub.take_requests();
    for name in hostile {
        assert_eq!(source.find(name).unwrap(), None, "{name:?}");
    }
    assert!(hub.take_requests().is_empty(), "they are not even asked for");
    for revision in ["../x", "", "a/../../b", "/main", "a:b"] {
        let options = HubOptions { revision: Some(revision.into()), ..options(&hub, &cache) };
        let error = HubRepo::new(REPO, &options).unwrap_err();
        assert!(matches!(error, Error::Input { what: "revision", .. }), "{revision}: {error}");
    }
}

#[test]
fn a_config_from_a_hub_names_no_file_of_this_machine() {
    let folder = golden("dialogue_repo");
    let (text, tokenizer) = (
        std::fs::read_to_string(folder.join("config.json")).unwrap(),
        folder.join("tokenizer.model"),
    );
    for field in ["moshi_name", "mimi_name", "tokenizer_name", "mimi_config_name", "lora_name"] {
        for path in [tokenizer.to_str().unwrap(), r"\\server\share\x", "//server/share/x", ""] {
            let mut config: serde_json::Value = serde_json::from_str(&text).unwrap();
            config[field] = format!("file://{path}").into();
            let (hub, cache) = (FakeHub::of_folder(&folder), cache());
            hub.put("config.json", config.to_string());
            let error = open_repo(Path::new(REPO), &options(&hub, &cache))
                .and_then(|repo| {
                    Model::from_repo(&Scalar, &repo, &LoadOptions::default(), &NoObserver)
                })
                .map(drop)
                .unwrap_err();
            assert!(matches!(&error, Error::Config { field: f, .. } if f == field), "{error}");
            assert!(error.to_string().contains("only a model folder"), "{error}");
        }
    }
}

#[test]
fn odd_but_legal_names_are_escaped() {
    let name = "Größe #1 50%?.txt";
    let escaped = "Gr%C3%B6%C3%9Fe%20%231%2050%25%3F.txt";
    let (hub, cache) = (FakeHub::new(BTreeMap::from([(escaped.into(), b"x".to_vec())])), cache());
    hub.list_also(&[name]);
    assert_eq!(std::fs::read(found(&repo(&options(&hub, &cache)), name)).unwrap(), b"x");
}

#[test]
fn offline_uses_the_cache_alone() {
    let (hub, cache) = (hub(), cache());
    let online = options(&hub, &cache);
    let offline = HubOptions { offline: true, ..online.clone() };
    let error = repo(&offline).list().unwrap_err();
    assert!(matches!(error, Error::NotFound { .. }), "{error}");
    assert!(error.to_string().contains("HF_HUB_OFFLINE"), "{error}");

    found(&repo(&online), TEXT);
    hub.take_requests();
    let source = repo(&offline);
    assert_eq!(source.list().unwrap(), [TEXT]);
    assert_eq!(std::fs::read(found(&source, TEXT)).unwrap(), b"a note");
    assert_eq!(source.find(WEIGHTS).unwrap(), None);
    assert!(source.hint(WEIGHTS).contains("while offline"), "{}", source.hint(WEIGHTS));
    assert!(hub.take_requests().is_empty());
}

#[test]
fn the_cache_stands_in_for_a_hub_that_is_down() {
    let (mut hub, cache) = (FakeHub::of_folder(&golden("dialogue_repo")), cache());
    let options = options(&hub, &cache);
    let load = || {
        let opened = open_repo(Path::new(REPO), &options)?;
        Model::from_repo(&Scalar, &opened, &LoadOptions::default(), &NoObserver)
    };
    let before = load().unwrap();
    hub.fail(|_, _, _| Some(Answer::new(502, "")));
    assert_eq!(load().unwrap().fingerprint(), before.fingerprint());
    hub.close();
    assert_eq!(load().unwrap().fingerprint(), before.fingerprint());

    let empty = HubOptions { cache: cache.path().join("empty"), ..options.clone() };
    let error = open_repo(Path::new(REPO), &empty).unwrap_err();
    assert!(matches!(error, Error::Hub { .. }), "{error}");
    assert!(error.to_string().contains("check the connection"), "{error}");
}

#[test]
fn a_silent_hub_times_out() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let cache = cache();
    let options = HubOptions {
        endpoint: format!("http://{}", listener.local_addr().unwrap()),
        cache: cache.path().into(),
        timeout: Duration::from_millis(200),
        ..HubOptions::default()
    };
    let error = open_repo(Path::new(REPO), &options).unwrap_err().to_string();
    assert!(error.contains("cannot reach"), "{error}");
}

#[test]
fn revisions_are_branches_tags_and_commits() {
    let (hub, cache) = (hub(), cache());
    for revision in ["v1", "refs/pr/1"] {
        let options = HubOptions { revision: Some(revision.into()), ..options(&hub, &cache) };
        found(&repo(&options), TEXT);
        let note = cache.path().join("models--tiny--dialogue/refs").join(revision);
        assert_eq!(std::fs::read_to_string(note).unwrap(), COMMIT);
    }
    hub.take_requests();
    let options = HubOptions { revision: Some(COMMIT.into()), ..options(&hub, &cache) };
    found(&repo(&options), TEXT);
    assert!(hub.take_requests().is_empty(), "a commit that is there needs no request");
    assert!(!cache.path().join("models--tiny--dialogue/refs").join(COMMIT).exists());
}

#[test]
fn downloads_at_the_same_time_happen_once() {
    let (hub, cache) = (hub(), cache());
    let options = options(&hub, &cache);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let path = found(&repo(&options), WEIGHTS);
                assert_eq!(std::fs::read(path).unwrap(), weights());
            });
        }
    });
    assert_eq!(hub.take_requests().iter().filter(|request| is_content(request)).count(), 1);
}

/// Stops a download after some bytes.
#[derive(Debug, Default)]
struct Stop(AtomicU64);

impl Progress for Stop {
    fn start(&self, file: &str, total_bytes: Option<u64>) {
        assert_eq!((file, total_bytes), (WEIGHTS, Some(1_000_003)));
    }

    fn at(&self, bytes: u64) -> ControlFlow<()> {
        self.0.fetch_max(bytes, Ordering::SeqCst);
        if bytes > 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    fn finish(&self) {}
}

#[test]
fn a_stopped_download_is_resumed() {
    let (hub, cache) = (hub(), cache());
    let stop = Arc::new(Stop::default());
    let stopped = HubOptions { progress: stop.clone(), ..options(&hub, &cache) };
    let error = failure(&repo(&stopped), WEIGHTS).to_string();
    assert!(error.contains("stopped"), "{error}");
    let bytes = std::fs::metadata(partial(&cache)).unwrap().len();
    assert!(bytes > 0 && bytes == stop.0.load(Ordering::SeqCst));

    hub.take_requests();
    assert_eq!(std::fs::read(found(&repo(&options(&hub, &cache)), WEIGHTS)).unwrap(), weights());
    let content: Vec<_> = hub.take_requests().into_iter().filter(is_content).collect();
    assert_eq!(content[0].headers["range"], format!("bytes={bytes}-"));
}

/// Every position that is shown.
#[derive(Debug, Default)]
struct Positions(Mutex<Vec<u64>>);

impl Progress for Positions {
    fn start(&self, _: &str, _: Option<u64>) {}

    fn at(&self, bytes: u64) -> ControlFlow<()> {
        self.0.lock().unwrap().push(bytes);
        ControlFlow::Continue(())
    }

    fn finish(&self) {}
}

#[test]
fn progress_never_goes_back_while_a_download_is_resumed() {
    let (hub, cache) = (hub(), cache());
    let attempts = AtomicU64::default();
    hub.fail(move |request, usual, _| {
        is_content(request).then(|| match attempts.fetch_add(1, Ordering::SeqCst) % 2 {
            0 => Answer { cut: Some(200_000), ..usual.clone() },
            _ => Answer::new(503, ""),
        })
    });
    let positions = Arc::new(Positions::default());
    let options = HubOptions { progress: positions.clone(), ..options(&hub, &cache) };
    assert_eq!(std::fs::read(found(&repo(&options), WEIGHTS)).unwrap(), weights());
    let shown = positions.0.lock().unwrap();
    assert!(shown.is_sorted() && shown.last() == Some(&1_000_003), "{shown:?}");
    assert!(hub.take_requests().iter().filter(|request| is_content(request)).count() > 5);
}

#[test]
fn files_of_other_repositories_are_found() {
    let (hub, cache) = (hub(), cache());
    // A repository that exists nowhere, whose config names a file of one that does.
    let source = HubRepo::new("tiny/borrower", &options(&hub, &cache)).unwrap();
    let file = source.find_elsewhere(REPO, TEXT).unwrap();
    assert_eq!(&*file.bytes().unwrap(), b"a note");
    let error = source.find_elsewhere(REPO, "none.json").unwrap_err();
    assert!(
        matches!(&error, Error::NotFound { path, .. } if path.ends_with("none.json")),
        "{error}"
    );
    let error = source.find_elsewhere("tiny/a?b=c", TEXT).unwrap_err();
    assert!(matches!(error, Error::Input { .. }), "{error}");
}

#[test]
fn weights_can_stay_on_the_hub() {
    let (hub, cache) = (hub(), cache());
    let options = HubOptions { skip_weights: true, ..options(&hub, &cache) };
    let source = repo(&options);
    assert_eq!(source.find(WEIGHTS).unwrap(), None);
    assert!(source.hint(WEIGHTS).contains("not in the cache"));
    found(&source, TEXT);
    assert!(!hub.take_requests().iter().any(is_content));
}

#[test]
fn an_existing_folder_wins_over_a_repository() {
    let (hub, cache) = (hub(), cache());
    let options = options(&hub, &cache);
    let folder = golden("dialogue_repo");
    let source = open_source(&folder, &options).unwrap();
    assert_eq!(source.label(), folder.display().to_string());
    assert_eq!(open_source(Path::new(REPO), &options).unwrap().label(), REPO);
    assert!(hub.take_requests().is_empty(), "opening asks nobody");
}
