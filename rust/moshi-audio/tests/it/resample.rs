//! Resampler: quality, length, alignment, independence of chunking.

use std::f64::consts::TAU;

use moshi_audio::{AudioError, Resampler};

use super::{Random, snr_db};

const RATES: [u32; 8] = [8_000, 11_025, 16_000, 22_050, 32_000, 44_100, 48_000, 96_000];

fn sine(len: usize, rate_hz: u32, hz: f64) -> Vec<f32> {
    (0..len).map(|n| (0.5 * (TAU * hz * n as f64 / f64::from(rate_hz)).sin()) as f32).collect()
}

fn resample(input: &[f32], from_hz: u32, to_hz: u32) -> Vec<f32> {
    let mut output = Vec::new();
    let mut resampler = Resampler::new(from_hz, to_hz).unwrap();
    resampler.process(input, &mut output);
    resampler.finish(&mut output);
    output
}

#[test]
fn a_sine_stays_a_sine() {
    for from in RATES {
        for to in [24_000, 16_000] {
            let nyquist = f64::from(from.min(to)) / 2.0;
            for hz in [100.0, 0.31 * nyquist, 0.9 * nyquist] {
                let output = resample(&sine(from as usize, from, hz), from, to);
                let expected = sine(to as usize, to, hz);
                // Away from the ends, where the signal starts and stops abruptly.
                let inner = to as usize / 4..to as usize * 3 / 4;
                let snr = snr_db(&expected[inner.clone()], &output[inner]);
                assert!(snr > 100.0, "{from} to {to}, {hz} Hz: {snr:.1} dB");
            }
        }
    }
}

#[test]
fn what_is_above_nyquist_is_removed() {
    for hz in [12_600.0, 15_000.0, 20_000.0] {
        let output = resample(&sine(48_000, 48_000, hz), 48_000, 24_000);
        let inner = &output[6_000..18_000];
        let peak = inner.iter().fold(0.0_f32, |peak, x| peak.max(x.abs()));
        assert!(peak < 1e-5, "{hz} Hz: {peak}");
    }
}

#[test]
fn lengths_are_exact() {
    for from in RATES.into_iter().chain([44_101, 1_000, 192_000]) {
        for len in [0, 1, 2, 79, 1_023, 1_024, 1_025, 10_007] {
            let output = resample(&vec![0.1; len], from, 24_000);
            let expected = (len as f64 * 24_000.0 / f64::from(from)).round() as usize;
            assert_eq!(output.len(), expected, "{len} samples from {from}");
        }
    }
}

#[test]
fn chunking_does_not_matter() {
    let mut random = Random(7);
    let input: Vec<f32> = (0..20_000).map(|_| random.below(2_000) as f32 / 1e3 - 1.0).collect();
    for from in [8_000, 24_000, 44_100, 48_000] {
        let whole = resample(&input, from, 24_000);
        let mut resampler = Resampler::new(from, 24_000).unwrap();
        // The same resampler again: finishing must reset it.
        for largest in [1, 100, 5_000] {
            let (mut output, mut rest) = (Vec::new(), input.as_slice());
            while !rest.is_empty() {
                let (chunk, tail) = rest.split_at(random.below(largest + 1).min(rest.len()));
                resampler.process(chunk, &mut output);
                rest = tail;
            }
            resampler.finish(&mut output);
            let same = whole.iter().zip(&output).all(|(a, b)| a.to_bits() == b.to_bits());
            assert!(same && whole.len() == output.len(), "{from}, chunks up to {largest}");
        }
    }
}

#[test]
fn an_impulse_stays_in_its_place() {
    for from in [8_000, 16_000, 48_000, 44_100, 96_000] {
        let at = from as usize / 5;
        let mut input = vec![0.0; from as usize / 2];
        input[at] = 1.0;
        let output = resample(&input, from, 24_000);
        let peak = (0..output.len()).max_by(|&a, &b| output[a].total_cmp(&output[b])).unwrap();
        assert_eq!(peak, 24_000 / 5, "from {from}");
        for n in 1..100 {
            let (left, right) = (output[peak - n], output[peak + n]);
            assert!((left - right).abs() < 1e-5, "from {from}, {n}: {left} {right}");
        }
    }
}

#[test]
fn output_is_appended() {
    let mut output = vec![9.0; 3];
    let mut resampler = Resampler::new(48_000, 24_000).unwrap();
    resampler.process(&[0.0; 100], &mut output);
    resampler.finish(&mut output);
    assert_eq!(output.len(), 53);
    assert_eq!(output[..3], [9.0; 3]);
}

#[test]
fn equal_rates_pass_through() {
    let input = sine(1_000, 24_000, 440.0);
    assert_eq!(resample(&input, 24_000, 24_000), input);
}

#[test]
fn absurd_rates_are_errors() {
    for (from, to) in [(0, 24_000), (24_000, 0), (999, 24_000), (u32::MAX, 24_000)] {
        assert!(matches!(Resampler::new(from, to), Err(AudioError::SampleRate { .. })));
    }
}
