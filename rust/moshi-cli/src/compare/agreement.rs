//! How close predictions come to those of a reference.

/// Sums over compared predictions.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Agreement {
    /// Predictions compared.
    pub count: usize,
    same_top: usize,
    total_divergence: f64,
    largest_divergence: f64,
}

impl Agreement {
    /// Compares the logits of a prediction with those of the reference.
    pub(super) fn add(&mut self, reference: &[f32], logits: &[f32]) {
        self.count += 1;
        self.same_top += usize::from(top(reference) == top(logits));
        let divergence = divergence(reference, logits);
        self.total_divergence += divergence;
        self.largest_divergence = self.largest_divergence.max(divergence);
    }

    /// Share of predictions with the same most probable token; 1 of nothing.
    pub fn same_top(&self) -> f64 {
        if self.count == 0 { 1.0 } else { self.same_top as f64 / self.count as f64 }
    }

    /// Mean Kullback-Leibler divergence from the reference, in nats; 0 of nothing.
    pub fn mean_divergence(&self) -> f64 {
        if self.count == 0 { 0.0 } else { self.total_divergence / self.count as f64 }
    }

    /// Largest Kullback-Leibler divergence, in nats.
    pub fn largest_divergence(&self) -> f64 {
        self.largest_divergence
    }
}

/// The first of the largest.
fn top(logits: &[f32]) -> Option<usize> {
    let best = logits.iter().enumerate().reduce(|a, b| if b.1 > a.1 { b } else { a });
    best.map(|(index, _)| index)
}

/// `sum p (log p - log q)` of the distributions that logits stand for, in nats.
fn divergence(p: &[f32], q: &[f32]) -> f64 {
    let (log_p, log_q) = (log_probabilities(p), log_probabilities(q));
    // Rounding may leave less than nothing.
    log_p.zip(log_q).map(|(p, q)| p.exp() * (p - q)).sum::<f64>().max(0.0)
}

fn log_probabilities(logits: &[f32]) -> impl Iterator<Item = f64> {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let shifted = move |logit: f32| f64::from(logit) - f64::from(largest);
    let total = logits.iter().map(|&logit| shifted(logit).exp()).sum::<f64>().ln();
    logits.iter().map(move |&logit| shifted(logit) - total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_predictions_agree_whatever_is_added_to_their_logits() {
        let mut agreement = Agreement::default();
        agreement.add(&[1.0, 3.0, -2.0], &[101.0, 103.0, 98.0]);
        assert_eq!((agreement.count, agreement.same_top()), (1, 1.0));
        assert!(agreement.mean_divergence() < 1e-12);
    }

    #[test]
    fn divergence_is_that_of_the_definition() {
        // Probabilities 3/4, 1/4 against 1/2, 1/2.
        let p = [3f32.ln(), 0.0];
        let expected = 0.75 * 1.5f64.ln() + 0.25 * 0.5f64.ln();
        let mut agreement = Agreement::default();
        agreement.add(&p, &[0.0, 0.0]);
        assert!((agreement.mean_divergence() - expected).abs() < 1e-7);
        agreement.add(&p, &p);
        assert!((agreement.mean_divergence() - expected / 2.0).abs() < 1e-7);
        assert!((agreement.largest_divergence() - expected).abs() < 1e-7);
    }

    #[test]
    fn another_top_is_counted_and_ties_go_to_the_first() {
        let mut agreement = Agreement::default();
        agreement.add(&[0.0, 1.0], &[1.0, 0.0]);
        agreement.add(&[1.0, 1.0], &[1.0, 0.5]);
        assert_eq!(agreement.same_top(), 0.5);
        assert_eq!(Agreement::default().same_top(), 1.0);
        assert_eq!(Agreement::default().mean_divergence(), 0.0);
    }
}
