//! Damaged files: an error or a shorter decode, never a panic.

use std::fs;
use std::path::{Path, PathBuf};

use moshi_audio::{AudioError, MonoReader, read_mono};

use super::{Random, fixture};

/// All formats: name, and whether a cut-off file plays up to the cut.
const FILES: [(&str, bool); 11] = [
    ("wav_s16_44100_stereo.wav", false),
    ("wav_s24_48000_mono.wav", false),
    ("wav_f32_16000_mono.wav", false),
    ("wav_u8_8000_mono.wav", false),
    ("flac_22050_mono.flac", false),
    ("mp3_44100_stereo.mp3", true),
    ("vorbis_32000_mono.ogg", true),
    ("opus_48000_mono.opus", true),
    ("opus_48000_stereo.ogg", true),
    ("opus_48000_mono.webm", false),
    ("aac_44100_stereo.m4a", false),
];

struct Bench {
    _dir: tempfile::TempDir,
    path: PathBuf,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("damaged");
        Self { _dir: dir, path }
    }

    /// Decodes `data` as a file; checks what holds for any input.
    fn decode(&self, data: &[u8]) -> Result<Vec<f32>, AudioError> {
        fs::write(&self.path, data).unwrap();
        let result = read_mono(&self.path, 24_000);
        match &result {
            Ok(samples) => assert!(samples.iter().all(|sample| sample.is_finite())),
            Err(AudioError::Open { .. } | AudioError::Read { .. } | AudioError::Write { .. }) => {
                panic!("damage taken for a failure of the storage: {:?}", result.err())
            }
            Err(error) => assert!(!error.to_string().is_empty()),
        }
        result
    }
}

#[test]
fn truncated_files() {
    let bench = Bench::new();
    for (name, plays_to_the_cut) in FILES {
        let data = fs::read(fixture(name)).unwrap();
        let whole = read_mono(&fixture(name), 24_000).unwrap();
        let step = data.len() / 60 + 1;
        for len in (0..200.min(data.len())).chain((200..data.len()).step_by(step)) {
            let result = bench.decode(&data[..len]);
            if let Ok(samples) = &result {
                assert!(samples.len() <= whole.len() + 2_400, "{name} cut to {len}");
            }
            if plays_to_the_cut && len > data.len() * 7 / 10 {
                let samples = result.unwrap();
                assert!(samples.len() > whole.len() / 4, "{name} cut to {len}");
                // The last block meets silence instead of what follows in the whole file.
                let same = samples.len().min(whole.len()) - 4_000;
                let close = whole[..same].iter().zip(&samples).all(|(a, b)| (a - b).abs() < 1e-4);
                assert!(close, "{name} cut to {len}");
            }
        }
    }
}

#[test]
fn flipped_bytes() {
    let bench = Bench::new();
    let mut random = Random(0x5eed);
    for (name, _) in FILES {
        let data = fs::read(fixture(name)).unwrap();
        for round in 0..150 {
            let mut damaged = data.clone();
            // Every other round in the headers, where most of the parsing is.
            let span = if round % 2 == 0 { damaged.len() } else { 300 };
            for _ in 0..=random.below(10) {
                damaged[random.below(span)] = random.next() as u8;
            }
            let _ = bench.decode(&damaged);
        }
    }
}

#[test]
fn missing_and_repeated_parts() {
    let bench = Bench::new();
    let mut random = Random(0xcafe);
    for (name, _) in FILES {
        let data = fs::read(fixture(name)).unwrap();
        for round in 0..60 {
            let start = random.below(data.len());
            let end = (start + random.below(2_000)).min(data.len());
            let mut damaged = data.clone();
            if round % 2 == 0 {
                damaged.drain(start..end);
            } else {
                damaged.splice(start..start, data[start..end].iter().copied());
            }
            let _ = bench.decode(&damaged);
        }
    }
}

#[test]
fn random_bytes() {
    let bench = Bench::new();
    let mut random = Random(0xbad);
    let heads: [&[u8]; 8] = [
        b"",
        b"RIFF\xff\x0f\0\0WAVEfmt ",
        b"fLaC\0\0\0\x22",
        b"OggS\0\x02",
        b"\xff\xfb\x90\x44",
        b"ID3\x04\0\0\0\0\x02\0",
        b"\x1a\x45\xdf\xa3",
        b"\0\0\0\x20ftypM4A ",
    ];
    for head in heads {
        for len in [0, 1, 50, 3_000, 20_000, 20_001, 20_002] {
            let mut data = head.to_vec();
            data.extend((0..len).map(|_| random.next() as u8));
            let _ = bench.decode(&data);
        }
    }
}

fn read_counting(path: &Path) -> (usize, u64) {
    let mut reader = MonoReader::open(path, 24_000).unwrap();
    let mut samples = Vec::new();
    while reader.read(&mut samples).unwrap() {}
    (samples.len(), reader.skipped_packets())
}

#[test]
fn a_damaged_page_of_a_lossy_stream_is_skipped_and_counted() {
    let bench = Bench::new();
    for name in ["vorbis_32000_mono.ogg", "opus_48000_mono.opus"] {
        let mut data = fs::read(fixture(name)).unwrap();
        let middle = data.len() * 6 / 10;
        data[middle] ^= 0x55;
        fs::write(&bench.path, &data).unwrap();
        let (samples, skipped) = read_counting(&bench.path);
        assert!(skipped > 0, "{name}");
        assert!((18_000..24_000).contains(&samples), "{name}: {samples}");
    }
}

#[test]
fn damage_in_lossless_data_is_an_error() {
    let bench = Bench::new();
    let mut data = fs::read(fixture("flac_22050_mono.flac")).unwrap();
    let middle = data.len() * 6 / 10;
    data[middle] ^= 0x55;
    let error = bench.decode(&data).unwrap_err();
    assert!(matches!(error, AudioError::Corrupt { frame: 1.., .. }), "{error}");
    let data = fs::read(fixture("wav_s16_44100_stereo.wav")).unwrap();
    let error = bench.decode(&data[..data.len() / 2]).unwrap_err();
    assert!(matches!(error, AudioError::Corrupt { frame: 10_000.., .. }), "{error}");
}

#[test]
fn a_wav_from_a_pipe_has_no_length_and_is_read_to_its_end() {
    let bench = Bench::new();
    let whole = read_mono(&fixture("hello.wav"), 24_000).unwrap();
    let data = fs::read(fixture("hello.wav")).unwrap();
    let at = data.windows(4).position(|window| window == b"data").unwrap() + 4;
    for size in [u32::MAX, 0x7fff_f000_u32] {
        let mut piped = data.clone();
        piped[4..8].copy_from_slice(&size.saturating_add(at as u32 - 4).to_le_bytes());
        piped[at..at + 4].copy_from_slice(&size.to_le_bytes());
        assert_eq!(bench.decode(&piped).unwrap(), whole);
        assert_eq!(MonoReader::open(&bench.path, 24_000).unwrap().total_samples(), None);
    }
}
