//! Drawing tokens, reproducibly: a draw depends on seed, step and stream and on nothing else.

use crate::config::{GenerationConfig, MAX_TEMPERATURE};
use crate::error::{Error, Result};
use crate::snapshot::{Reader, Writer};

/// Sampling settings of a session.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Temperature of audio tokens; 0 takes the most probable one.
    pub temperature: f64,
    /// Temperature of text tokens; 0 takes the most probable one.
    pub text_temperature: f64,
    /// Audio tokens are drawn from this many most probable ones; 0 is all.
    pub top_k: usize,
    /// As `top_k`, for text.
    pub top_k_text: usize,
}

impl Sampling {
    /// Always the most probable token.
    pub fn greedy() -> Self {
        Self { temperature: 0.0, text_temperature: 0.0, top_k: 0, top_k_text: 0 }
    }

    /// Refuses temperatures that are negative or not finite.
    ///
    /// # Errors
    /// [`Error::Input`] naming the setting.
    pub fn check(&self) -> Result<()> {
        for (what, value) in
            [("temperature", self.temperature), ("text_temperature", self.text_temperature)]
        {
            if !(value.is_finite() && (0.0..=MAX_TEMPERATURE).contains(&value)) {
                let reason = format!("{value} is not between 0 and {MAX_TEMPERATURE}");
                return Err(Error::input(what, reason));
            }
        }
        Ok(())
    }

    /// Appends the settings to a snapshot.
    pub fn write(&self, writer: &mut Writer) {
        let Self { temperature, text_temperature, top_k, top_k_text } = *self;
        writer.f64(temperature);
        writer.f64(text_temperature);
        writer.u64(top_k as u64);
        writer.u64(top_k_text as u64);
    }

    /// Takes the settings from a snapshot.
    ///
    /// # Errors
    /// [`Error::Snapshot`] for values out of range.
    pub fn read(reader: &mut Reader<'_>) -> Result<Self> {
        let sampling = Self {
            temperature: reader.f64()?,
            text_temperature: reader.f64()?,
            top_k: reader.u64()? as usize,
            top_k_text: reader.u64()? as usize,
        };
        sampling.check().map_err(|e| Error::snapshot(e.to_string()))?;
        Ok(sampling)
    }
}

impl From<&GenerationConfig> for Sampling {
    fn from(config: &GenerationConfig) -> Self {
        if !config.use_sampling {
            return Self::greedy();
        }
        Self {
            temperature: config.temperature,
            text_temperature: config.text_temperature,
            top_k: config.top_k,
            top_k_text: config.top_k_text,
        }
    }
}

/// Philox 4x32-10 (Salmon et al. 2011): random numbers as a function of key and counter.
#[derive(Clone, Copy, Debug)]
pub struct CounterRng {
    key: [u32; 2],
}

impl CounterRng {
    /// Keyed by a session's seed.
    pub fn new(seed: u64) -> Self {
        Self { key: [seed as u32, (seed >> 32) as u32] }
    }

    /// A number in `[0, 1)` for the step and stream.
    pub fn uniform(&self, step: u64, stream: u32) -> f64 {
        let block = self.block([step as u32, (step >> 32) as u32, stream, 0]);
        let bits = u64::from(block[0]) << 32 | u64::from(block[1]);
        (bits >> 11) as f64 / (1u64 << 53) as f64
    }

    fn block(&self, mut counter: [u32; 4]) -> [u32; 4] {
        let mut key = self.key;
        for _ in 0..10 {
            let a = u64::from(counter[0]) * 0xD251_1F53;
            let b = u64::from(counter[2]) * 0xCD9E_8D57;
            counter = [
                (b >> 32) as u32 ^ counter[1] ^ key[0],
                b as u32,
                (a >> 32) as u32 ^ counter[3] ^ key[1],
                a as u32,
            ];
            key = [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)];
        }
        counter
    }
}

/// Draws a token from `softmax(logits / temperature)` restricted to the `top_k` most probable
/// ones (0: all), by inverting the cumulative distribution at `uniform`. Tokens are ordered by
/// falling probability, then by index. Temperature 0 gives the first most probable token.
///
/// `order` is memory for as many tokens as there are logits.
///
/// # Panics
/// If there is less memory: a bug of the caller.
pub fn sample(
    logits: &[f32],
    temperature: f64,
    top_k: usize,
    uniform: f64,
    order: &mut [u32],
) -> usize {
    let best = argmax(logits);
    if temperature <= 0.0 {
        return best;
    }
    let mut order = &mut order[..logits.len()];
    order.iter_mut().zip(0..).for_each(|(place, token)| *place = token);
    let logit = |token: u32| logits[token as usize];
    let by_probability = |a: &u32, b: &u32| logit(*b).total_cmp(&logit(*a)).then(a.cmp(b));
    if top_k > 0 && top_k < order.len() {
        order.select_nth_unstable_by(top_k - 1, by_probability);
        order = &mut order[..top_k];
    }
    order.sort_unstable_by(by_probability);
    let top = f64::from(logits[best]);
    let weight = |token: u32| ((f64::from(logit(token)) - top) / temperature).exp();
    let total: f64 = order.iter().map(|&i| weight(i)).sum();
    let mut left = uniform * total;
    for &token in &*order {
        left -= weight(token);
        if left < 0.0 {
            return token as usize;
        }
    }
    best
}

fn argmax(logits: &[f32]) -> usize {
    let mut best = 0;
    for (i, &logit) in logits.iter().enumerate() {
        if logit > logits[best] {
            best = i;
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generator_gives_the_published_vectors() {
        let zero = CounterRng { key: [0, 0] }.block([0; 4]);
        assert_eq!(zero, [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        let ones = CounterRng { key: [u32::MAX; 2] }.block([u32::MAX; 4]);
        assert_eq!(ones, [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        let pi = CounterRng { key: [0xa409_3822, 0x299f_31d0] }.block([
            0x243f_6a88,
            0x85a3_08d3,
            0x1319_8a2e,
            0x0370_7344,
        ]);
        assert_eq!(pi, [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]);
    }

    #[test]
    fn frequencies_follow_the_restricted_softmax() {
        let logits = [0.0, 1.0, 2.0, -1.0, 2.0f32];
        let rng = CounterRng::new(7);
        let mut counts = [0u32; 5];
        let draws = 100_000;
        for step in 0..draws {
            counts[sample(&logits, 0.5, 3, rng.uniform(step, 0), &mut [0; 5])] += 1;
        }
        let weights = [0.0, (2.0f64).exp(), (4.0f64).exp(), 0.0, (4.0f64).exp()];
        let total: f64 = weights.iter().sum();
        for (count, weight) in counts.iter().zip(weights) {
            let expected = weight / total;
            let got = f64::from(*count) / draws as f64;
            assert!((got - expected).abs() < 0.006, "{counts:?}");
        }
    }

    #[test]
    fn greedy_takes_the_first_of_equals() {
        assert_eq!(sample(&[1.0, 3.0, 3.0], 0.0, 0, 0.9, &mut []), 1);
        assert_eq!(sample(&[1.0, 3.0, 3.0], 1.0, 1, 0.999, &mut [0; 3]), 1);
    }

    #[test]
    fn extreme_draws_stay_inside_the_kept_tokens() {
        let logits = [5.0, -80.0, 4.0];
        for uniform in [0.0, 0.5, 1.0 - f64::EPSILON] {
            assert_ne!(sample(&logits, 0.8, 2, uniform, &mut [0; 3]), 1);
        }
    }
}
