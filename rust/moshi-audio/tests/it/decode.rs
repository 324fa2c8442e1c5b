//! Decoding: every fixture against the recording it was made from.

use std::fs;
use std::path::Path;

use moshi_audio::{AudioError, AudioReader, MonoReader, Resampler, read_mono};

use super::{correlation, fixture, snr_db};

/// One fixture and what must come out of it.
struct Case {
    name: &'static str,
    rate_hz: u32,
    channels: usize,
    /// Length of the recording in the fixture.
    frames: usize,
    /// Frames of encoder delay and padding that the demuxer cannot tell from the signal.
    delay: usize,
    padding: usize,
    /// Against the recording in mono at 24 kHz.
    min_snr_db: f64,
    min_correlation: f64,
}

const fn case(
    name: &'static str,
    (rate_hz, channels, frames): (u32, usize, usize),
    (delay, padding): (usize, usize),
    (min_snr_db, min_correlation): (f64, f64),
) -> Case {
    Case { name, rate_hz, channels, frames, delay, padding, min_snr_db, min_correlation }
}

const CASES: [Case; 11] = [
    case("wav_s16_44100_stereo.wav", (44_100, 2, 22_050), (0, 0), (55.0, 0.9999)),
    case("wav_s24_48000_mono.wav", (48_000, 1, 24_000), (0, 0), (55.0, 0.9999)),
    case("wav_f32_16000_mono.wav", (16_000, 1, 8_000), (0, 0), (45.0, 0.9999)),
    // Half of the band and 8 bits.
    case("wav_u8_8000_mono.wav", (8_000, 1, 8_000), (0, 0), (20.0, 0.99)),
    case("flac_22050_mono.flac", (22_050, 1, 22_050), (0, 0), (55.0, 0.9999)),
    case("mp3_44100_stereo.mp3", (44_100, 2, 44_100), (0, 0), (23.0, 0.99)),
    case("vorbis_32000_mono.ogg", (32_000, 1, 32_000), (0, 0), (28.0, 0.99)),
    case("opus_48000_mono.opus", (48_000, 1, 48_000), (0, 0), (17.0, 0.99)),
    case("opus_48000_stereo.ogg", (48_000, 2, 48_000), (0, 0), (25.0, 0.99)),
    case("opus_48000_mono.webm", (48_000, 1, 48_000), (0, 648), (17.0, 0.99)),
    case("aac_44100_stereo.m4a", (44_100, 2, 44_100), (1_024, 956), (15.0, 0.99)),
];

#[test]
fn every_fixture_matches_the_recording() {
    let hello = read_mono(&fixture("hello.wav"), 24_000).unwrap();
    for case in CASES {
        let name = case.name;
        let reader = AudioReader::open(&fixture(name)).unwrap();
        assert_eq!(reader.sample_rate_hz(), case.rate_hz, "{name}");
        assert_eq!(reader.channels(), case.channels, "{name}");

        let native = read_mono(&fixture(name), case.rate_hz).unwrap();
        assert_eq!(native.len(), case.delay + case.frames + case.padding, "{name}");
        let (mut resampler, mut actual) = (Resampler::new(case.rate_hz, 24_000).unwrap(), vec![]);
        resampler.process(&native[case.delay..][..case.frames], &mut actual);
        resampler.finish(&mut actual);

        // In stereo fixtures the right channel is half the left: the mean is 0.75.
        let gain = if case.channels == 2 { 0.75 } else { 1.0 };
        let expected: Vec<f32> = hello[..actual.len()].iter().map(|x| x * gain).collect();
        let snr = snr_db(&expected, &actual);
        let correlation = correlation(&expected, &actual);
        assert!(snr > case.min_snr_db, "{name}: {snr:.1} dB");
        assert!(correlation > case.min_correlation, "{name}: {correlation}");
    }
}

#[test]
fn durations_are_stated_before_decoding() {
    for case in CASES {
        let mut reader = MonoReader::open(&fixture(case.name), 24_000).unwrap();
        let total = reader.total_samples().unwrap();
        let mut samples = Vec::new();
        while reader.read(&mut samples).unwrap() {}
        assert!(!reader.read(&mut samples).unwrap());
        assert_eq!(reader.skipped_packets(), 0);
        // Containers that do not mark the end state a length within one packet.
        let slack = if case.padding == 0 { 0 } else { 600 };
        let off = total.abs_diff(samples.len() as u64);
        assert!(off <= slack, "{}: stated {total}, read {}", case.name, samples.len());
    }
}

#[test]
fn blocks_are_small_and_never_empty() {
    for case in CASES {
        let mut reader = AudioReader::open(&fixture(case.name)).unwrap();
        let mut frames = 0;
        while let Some(block) = reader.read_block().unwrap() {
            assert!((1..=8_192).contains(&block.len()), "{}: {}", case.name, block.len());
            frames += block.len();
        }
        assert!(reader.read_block().unwrap().is_none());
        assert_eq!(frames, case.delay + case.frames + case.padding, "{}", case.name);
    }
}

/// A wav file of 32-bit floats.
fn float_wav(path: &Path, channels: u16, samples: &[f32]) {
    let spec = hound::WavSpec {
        channels,
        sample_rate: 24_000,
        bits_per_sample: 32,
        sample_format: hound::SampleFormat::Float,
    };
    let mut writer = hound::WavWriter::create(path, spec).unwrap();
    for &sample in samples {
        writer.write_sample(sample).unwrap();
    }
    writer.finalize().unwrap();
}

#[test]
fn integer_formats_are_scaled_alike() {
    let dir = tempfile::tempdir().unwrap();
    for bits in [8, 16, 24, 32] {
        let path = dir.path().join(format!("{bits}.wav"));
        let spec = hound::WavSpec {
            channels: 1,
            sample_rate: 24_000,
            bits_per_sample: bits,
            sample_format: hound::SampleFormat::Int,
        };
        let mut writer = hound::WavWriter::create(&path, spec).unwrap();
        for quarter in [-4_i32, -2, 0, 1, 3] {
            writer.write_sample((1 << (bits - 3)) * quarter).unwrap();
        }
        writer.finalize().unwrap();
        let samples = read_mono(&path, 24_000).unwrap();
        assert_eq!(samples, [-1.0, -0.5, 0.0, 0.25, 0.75], "{bits} bits");
    }
}

#[test]
fn loud_float_samples_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("loud.wav");
    float_wav(&path, 2, &[3.0, 1.0, 1e6, 1e6]);
    assert_eq!(read_mono(&path, 24_000).unwrap(), [2.0, 1e6]);
}

#[test]
fn samples_that_are_no_usable_numbers_are_errors() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("nan.wav");
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -1e20] {
        let mut samples = vec![0.25; 20_000];
        samples[12_345] = bad;
        float_wav(&path, 2, &samples);
        let error = read_mono(&path, 24_000).unwrap_err();
        assert!(matches!(error, AudioError::NonFinite { frame: 6_172, channel: 1, .. }), "{error}");
    }
}

#[test]
fn an_empty_wav_is_empty_audio() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("empty.wav");
    float_wav(&path, 1, &[]);
    assert_eq!(read_mono(&path, 24_000).unwrap(), []);
}

#[test]
fn the_extension_does_not_matter() {
    let dir = tempfile::tempdir().unwrap();
    for case in CASES {
        let path = dir.path().join("recording.wav");
        fs::copy(fixture(case.name), &path).unwrap();
        assert_eq!(AudioReader::open(&path).unwrap().sample_rate_hz(), case.rate_hz);
    }
}

#[test]
fn missing_and_foreign_files_are_typed_errors() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("no such file.wav");
    let error = AudioReader::open(&path).unwrap_err();
    assert!(matches!(&error, AudioError::Open { path: named, .. } if *named == path), "{error}");
    assert!(error.to_string().contains("no such file.wav"));

    for (name, contents) in [
        ("empty.wav", String::new()),
        ("notes.txt", "what is the capital of france? ".repeat(500)),
        ("page.mp3", "<html><body>not found</body></html>".to_owned()),
    ] {
        let path = dir.path().join(name);
        fs::write(&path, contents).unwrap();
        let error = AudioReader::open(&path).unwrap_err();
        assert!(matches!(error, AudioError::UnknownFormat { .. }), "{name}: {error}");
    }

    let error = AudioReader::open(dir.path()).unwrap_err();
    assert!(matches!(error, AudioError::Open { .. }), "{error}");
}

#[test]
fn an_unknown_codec_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ac3.webm");
    // The codec string of the track, changed to one of the same length without a decoder.
    let mut data = fs::read(fixture("opus_48000_mono.webm")).unwrap();
    let at = data.windows(6).position(|window| window == b"A_OPUS").unwrap();
    data[at..at + 6].copy_from_slice(b"A_AC3\0");
    fs::write(&path, data).unwrap();
    let error = AudioReader::open(&path).unwrap_err();
    assert!(
        matches!(&error, AudioError::UnsupportedCodec { codec, .. } if codec == "ac-3"),
        "{error}"
    );
}
