//! Packed weights that an earlier load kept give the same model.

use std::fs;
use std::path::{Path, PathBuf};

use moshi_core::exec::Cpu;
use moshi_core::lm::WeightType;
use moshi_core::{LoadOptions, Model, NoObserver, Session, SessionOptions, StepOutput};

use crate::support::audio;

const FRAMES: usize = 12;

fn speech(cache: Option<&Path>, dtype: WeightType) -> Vec<StepOutput> {
    let repo = moshi_box::open_repo(None, &moshi_hub::HubOptions::default()).unwrap();
    let packed_cache = cache.map(PathBuf::from);
    let options = LoadOptions { dtype: Some(dtype), packed_cache, ..LoadOptions::default() };
    let exec = Cpu::new(Some(2)).unwrap();
    let model = Model::from_repo(&exec, &repo, &options, &NoObserver).unwrap();
    let options = SessionOptions { seed: Some(4), ..SessionOptions::default() };
    let mut session = Session::new(&model, &options).unwrap();
    let frame = model.info().frame_samples;
    let pcm = audio(7, FRAMES * frame);
    pcm.chunks_exact(frame).map(|frame| session.step(frame).unwrap()).collect()
}

fn files(folder: &Path) -> Vec<PathBuf> {
    fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect()
}

#[test]
fn a_second_load_takes_what_the_first_has_packed() {
    let folder = tempfile::tempdir().unwrap();
    for (count, dtype) in [WeightType::Q8, WeightType::Q4, WeightType::F32].into_iter().enumerate()
    {
        let expected = speech(None, dtype);
        assert!(speech(Some(folder.path()), dtype) == expected, "{} packs", dtype.name());
        let made = files(folder.path());
        assert_eq!(made.len(), count + 1, "one file for each type");
        assert!(speech(Some(folder.path()), dtype) == expected, "{} again", dtype.name());
        assert_eq!(files(folder.path()).len(), count + 1);
    }
}

#[test]
fn what_is_in_the_file_is_what_is_used() {
    let folder = tempfile::tempdir().unwrap();
    let expected = speech(Some(folder.path()), WeightType::Q8);
    let [path] = &files(folder.path())[..] else { panic!("one file") };
    let mut bytes = fs::read(path).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    bytes[8 + header..].fill(0);
    fs::write(path, bytes).unwrap();
    assert!(speech(Some(folder.path()), WeightType::Q8) != expected, "the file was read");

    // Damage that is seen is repaired.
    fs::write(path, b"no weights").unwrap();
    assert!(speech(Some(folder.path()), WeightType::Q8) == expected);
    assert!(speech(Some(folder.path()), WeightType::Q8) == expected);
    assert!(fs::metadata(path).unwrap().len() > 1_000_000);
}
