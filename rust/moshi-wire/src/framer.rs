//! Any chunks of samples to frames of a fixed size.

/// Collects samples to frames.
#[derive(Debug, Clone)]
pub struct Framer {
    frame_samples: usize,
    partial: Vec<f32>,
}

impl Framer {
    /// Frames of `frame_samples` samples, at least 1.
    pub fn new(frame_samples: usize) -> Self {
        let frame_samples = frame_samples.max(1);
        Self { frame_samples, partial: Vec::with_capacity(frame_samples) }
    }

    /// Takes samples and gives every frame that they complete. Samples that are not finite become
    /// silence, and all are limited to -1..1: one bad value would stay in a model's memory.
    pub fn push(&mut self, samples: &[f32]) -> Vec<Vec<f32>> {
        let mut frames = Vec::new();
        for &sample in samples {
            self.partial.push(if sample.is_nan() { 0.0 } else { sample.clamp(-1.0, 1.0) });
            if self.partial.len() == self.frame_samples {
                let next = Vec::with_capacity(self.frame_samples);
                frames.push(std::mem::replace(&mut self.partial, next));
            }
        }
        frames
    }

    /// Samples of the incomplete frame.
    pub fn pending(&self) -> usize {
        self.partial.len()
    }

    /// Completes the incomplete frame with silence; `None` when there is none.
    pub fn flush(&mut self) -> Option<Vec<f32>> {
        if self.partial.is_empty() {
            return None;
        }
        self.partial.resize(self.frame_samples, 0.0);
        let next = Vec::with_capacity(self.frame_samples);
        Some(std::mem::replace(&mut self.partial, next))
    }

    /// Forgets the incomplete frame.
    pub fn clear(&mut self) {
        self.partial.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn chunks_do_not_matter(
            samples in prop::collection::vec(-1.0f32..1.0, 0..200),
            cuts in prop::collection::vec(0usize..40, 0..20),
            size in 1usize..30,
        ) {
            let whole = Framer::new(size).push(&samples);
            let mut framer = Framer::new(size);
            let mut frames = Vec::new();
            let mut rest = &samples[..];
            for cut in cuts {
                let (head, tail) = rest.split_at(cut.min(rest.len()));
                frames.extend(framer.push(head));
                rest = tail;
            }
            frames.extend(framer.push(rest));
            prop_assert_eq!(framer.pending(), samples.len() % size);
            prop_assert_eq!(frames, whole);
        }
    }

    #[test]
    fn bad_samples_become_harmless() {
        let mut framer = Framer::new(4);
        let frames = framer.push(&[f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 0.5]);
        assert_eq!(frames, [[0.0, 1.0, -1.0, 0.5]]);
        assert_eq!(framer.flush(), None);
        framer.push(&[0.25]);
        assert_eq!(framer.flush().unwrap(), [0.25, 0.0, 0.0, 0.0]);
        framer.push(&[0.25]);
        framer.clear();
        assert_eq!(framer.pending(), 0);
    }
}
