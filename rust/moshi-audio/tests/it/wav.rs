//! Wav output: round trip, clamping, and what is left on the disk when.

use std::fs;
use std::path::Path;

use moshi_audio::{AudioError, AudioReader, WavWriter, read_mono};

fn entries(dir: &Path) -> Vec<String> {
    let names = fs::read_dir(dir).unwrap();
    names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn samples_survive_a_round_trip() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("out.wav");
    let samples: Vec<f32> = (0..30_000).map(|n| (n as f32 * 0.05).sin() * 1.2).collect();
    let mut writer = WavWriter::create(&path, 24_000, 1).unwrap();
    for chunk in samples.chunks(1_920) {
        writer.write(chunk).unwrap();
    }
    writer.finish().unwrap();
    let expected: Vec<f32> = samples
        .iter()
        .map(|x| f32::from((x.clamp(-1.0, 1.0) * 32_767.0) as i16) / 32_768.0)
        .collect();
    assert_eq!(read_mono(&path, 24_000).unwrap(), expected);
}

#[test]
fn values_are_clamped_and_truncated() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("out.wav");
    let mut writer = WavWriter::create(&path, 8_000, 1).unwrap();
    writer.write(&[0.0, 1.0, -1.0, 1.7, -30.0, 0.5, -0.5, 0.000_06]).unwrap();
    writer.finish().unwrap();
    let written: Vec<i16> =
        hound::WavReader::open(&path).unwrap().into_samples().map(Result::unwrap).collect();
    assert_eq!(written, [0, 32_767, -32_767, 32_767, -32_767, 16_383, -16_383, 1]);
}

#[test]
fn channels_are_written_and_mixed_on_reading() {
    let dir = tempfile::tempdir().unwrap();
    for channels in [2, 3, 6] {
        let path = dir.path().join(format!("{channels}.wav"));
        let mut writer = WavWriter::create(&path, 48_000, channels).unwrap();
        let frame: Vec<f32> = (0..channels).map(|channel| 0.125 * channel as f32).collect();
        writer.write(&frame.repeat(500)).unwrap();
        writer.finish().unwrap();
        let mut reader = AudioReader::open(&path).unwrap();
        assert_eq!((reader.channels(), reader.duration_frames()), (channels, Some(500)));
        let mean = frame.iter().sum::<f32>() / channels as f32;
        let block = reader.read_block().unwrap().unwrap();
        assert!(block.iter().all(|x| (x - mean).abs() < 1e-4));
    }
}

#[test]
fn the_file_appears_only_when_finished() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("out.wav");
    fs::write(&path, b"old").unwrap();

    let mut writer = WavWriter::create(&path, 24_000, 1).unwrap();
    writer.write(&vec![0.1; 100_000]).unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"old");
    assert_eq!(entries(dir.path()).len(), 2);
    drop(writer);
    assert_eq!(fs::read(&path).unwrap(), b"old");
    assert_eq!(entries(dir.path()), ["out.wav"]);

    let mut writer = WavWriter::create(&path, 24_000, 1).unwrap();
    let second = WavWriter::create(&path, 24_000, 1).unwrap();
    writer.write(&[0.1; 100]).unwrap();
    writer.finish().unwrap();
    drop(second);
    assert_eq!(entries(dir.path()), ["out.wav"]);
    assert_eq!(read_mono(&path, 24_000).unwrap().len(), 100);
}

#[test]
fn a_failed_rename_is_an_error_and_cleans_up() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("out.wav");
    let writer = WavWriter::create(&path, 24_000, 1).unwrap();
    fs::create_dir_all(path.join("in the way")).unwrap();
    assert!(matches!(writer.finish(), Err(AudioError::Write { .. })));
    assert_eq!(entries(dir.path()), ["out.wav"]);
}

#[test]
fn bad_targets_and_data_are_errors() {
    let dir = tempfile::tempdir().unwrap();
    for path in [dir.path().join("no such folder/out.wav"), dir.path().to_path_buf()] {
        assert!(matches!(WavWriter::create(&path, 24_000, 1), Err(AudioError::Write { .. })));
    }
    let path = dir.path().join("out.wav");
    for channels in [0, 19, 100_000] {
        assert!(matches!(
            WavWriter::create(&path, 24_000, channels),
            Err(AudioError::Channels { .. })
        ));
    }
    let mut writer = WavWriter::create(&path, 24_000, 2).unwrap();
    writer.write(&[0.0; 8]).unwrap();
    assert!(matches!(writer.write(&[0.0; 3]), Err(AudioError::PartialFrame { samples: 3, .. })));
    assert!(matches!(
        writer.write(&[0.0, 0.0, 0.0, f32::NAN]),
        Err(AudioError::NonFinite { frame: 5, channel: 1, .. })
    ));
    writer.finish().unwrap();
    assert_eq!(read_mono(&path, 24_000).unwrap().len(), 4);
}
