//! The codec with weights in bf16: nearly the codes of the one in f32, in half the memory.

use std::path::{Path, PathBuf};

use moshi_audio::read_mono;
use moshi_core::checkpoint::CodecFiles;
use moshi_core::exec::{Cpu, Executor, Scalar};
use moshi_core::mimi::{Mimi, MimiMemory, MimiMode, MimiOptions};
use moshi_hub::HubOptions;
use safetensors::Dtype;
use tempfile::TempDir;

use crate::support::tensors::Tensors;
use crate::support::{Dice, repository};

executors!(speech_keeps_its_codes_in_bf16);

/// Recorded speech.
const SPEECH: [&str; 4] = ["hello", "box_france", "box_joke", "box_sky"];

/// The codec in the box is stored in bf16. This one has weights anywhere between such numbers, as
/// far as rounding brings them back.
fn unrounded() -> (TempDir, PathBuf) {
    let mut weights = Tensors::read(&repository("rust/moshi-box/checkpoint/mimi.safetensors"));
    let mut dice = Dice(8);
    for tensor in weights.0.values_mut() {
        let noise = dice.units(tensor.data.len());
        for (weight, noise) in tensor.data.iter_mut().zip(noise) {
            *weight *= 1.0 + noise / 512.0;
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mimi.safetensors");
    weights.write(&path, Dtype::F32);
    (folder, path)
}

fn load<E: Executor>(exec: &E, path: &Path, mode: MimiMode) -> Mimi<E> {
    let CodecFiles { config, .. } =
        moshi_box::open_codec(None::<&Path>, &HubOptions::default()).unwrap();
    let num_codebooks = config.total_codebooks.min(8);
    let options = MimiOptions { num_codebooks, mode, ..MimiOptions::default() };
    Mimi::load(exec, path, &config, &options).unwrap()
}

fn speech_keeps_its_codes_in_bf16<E: Executor>(exec: &E) {
    let (_folder, path) = unrounded();
    let (exact, fast) = (load(exec, &path, MimiMode::Exact), load(exec, &path, MimiMode::Fast));
    assert_ne!(exact.fingerprint(), fast.fingerprint(), "a snapshot of one is none of the other");
    let (mut equal, mut all, mut any_differs) = (0, 0, false);
    for name in SPEECH {
        let path = repository("tests/audio").join(name).with_extension("wav");
        let pcm = read_mono(&path, exact.config().sample_rate_hz as u32).unwrap();
        let codes = [&exact, &fast].map(|codec| codec.encode(&pcm).unwrap());
        let [codes, rounded] = &codes;
        assert_eq!(codes.len(), rounded.len());
        any_differs |= codes != rounded;
        let count = exact.num_codebooks();
        for (frame, other) in codes.chunks_exact(count).zip(rounded.chunks_exact(count)) {
            all += 1;
            equal += usize::from(frame[0] == other[0]);
        }
        let frames = codes.len() / count;
        let (pcm, rounded) =
            (exact.decode(codes, frames).unwrap(), fast.decode(codes, frames).unwrap());
        let energy = |samples: &mut dyn Iterator<Item = f32>| samples.map(|v| v * v).sum::<f32>();
        let error = energy(&mut pcm.iter().zip(&rounded).map(|(a, b)| a - b));
        let signal = energy(&mut pcm.iter().copied());
        assert!(error < 1e-3 * signal, "{name}: {error} of {signal}");
    }
    assert!(any_differs, "weights are rounded");
    assert!(100 * equal >= 99 * all, "{equal} of {all} codes of the first codebook");
}

#[test]
fn half_the_memory_is_announced() {
    let exact = MimiOptions::default();
    let fast = MimiOptions { mode: MimiMode::Fast, ..exact };
    let config = moshi_core::config::MimiConfig::default();
    let [exact, fast] =
        [exact, fast].map(|options| MimiMemory::of(&Cpu::new(Some(1)).unwrap(), &config, &options));
    assert!(fast.weight_bytes * 10 < exact.weight_bytes * 6, "{fast:?} of {exact:?}");
    let plain = MimiMemory::of(&Scalar, &config, &MimiOptions::default());
    // 8 bits, and a scale of 16 for every 32 values.
    let copies = 8 * 2048 * 256 / 32 * 34;
    assert_eq!(exact.weight_bytes, plain.weight_bytes + copies, "codebooks to search in");
    assert_eq!(2 * fast.stream_bytes, exact.stream_bytes);
}
