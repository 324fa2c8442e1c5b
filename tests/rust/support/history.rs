//! The temporal transformer once more, in f64, over the full history and without rings: what the
//! engine's incremental steps must agree with.

use moshi_core::exec::Heads;

use super::scenarios::{DIM, Scenario};
use super::tensors::Tensors;

/// Text logits of every step, given the model's input tokens of all steps (text first).
pub(crate) fn text_logits(
    scenario: &Scenario,
    weights: &Tensors,
    inputs: &[Vec<i64>],
) -> Vec<Vec<f64>> {
    let mut layers: Vec<Past> = (0..scenario.layers).map(|_| Past::default()).collect();
    inputs
        .iter()
        .enumerate()
        .map(|(position, input)| {
            let mut x = embedded(weights, input);
            for (layer, past) in layers.iter_mut().enumerate() {
                let prefix = format!("transformer.layers.{layer}");
                attend(scenario, weights, &prefix, past, position, &mut x);
                feed_forward(scenario, weights, &prefix, &mut x);
            }
            let h = rms_norm(weights, "out_norm.alpha", &x);
            weights.get("text_linear.weight").times(&h)
        })
        .collect()
}

/// Rotated keys, and values, of every position so far.
#[derive(Default)]
struct Past {
    keys: Vec<Vec<f64>>,
    values: Vec<Vec<f64>>,
}

fn embedded(weights: &Tensors, input: &[i64]) -> Vec<f64> {
    let mut x = vec![0.0; DIM];
    for (stream, &token) in input.iter().enumerate() {
        let table = match stream {
            0 => weights.get("text_emb.weight"),
            k => weights.get(&format!("emb.{}.weight", k - 1)),
        };
        if let Ok(row) = usize::try_from(token) {
            for (x, w) in x.iter_mut().zip(&table.data[row * DIM..]) {
                *x += f64::from(*w);
            }
        }
    }
    x
}

fn attend(
    scenario: &Scenario,
    weights: &Tensors,
    prefix: &str,
    past: &mut Past,
    position: usize,
    x: &mut [f64],
) {
    let number = |field: &str, absent: u64| scenario.config[field].as_u64().unwrap_or(absent);
    let heads = number("num_heads", 0) as usize;
    let context = number("context", 0) as usize;
    let width = DIM / heads;
    let repeat = number("kv_repeat", 1) as usize;
    let h = rms_norm(weights, &format!("{prefix}.norm1.alpha"), x);
    let qkv = weights.get(&format!("{prefix}.self_attn.in_proj_weight")).times(&h);
    let (queries, keys_and_values) = qkv.split_at(DIM);
    let (keys, values) = keys_and_values.split_at(DIM / repeat);
    let period = scenario.config["max_period"].as_f64().unwrap();
    let interleaved = scenario.config["positional_embedding"] == "rope";
    let rotate = |heads: &[f64]| -> Vec<f64> {
        heads
            .chunks_exact(width)
            .flat_map(|head| rotated(head, position, period, interleaved))
            .collect()
    };
    let queries = rotate(queries);
    past.keys.push(rotate(keys));
    past.values.push(values.to_vec());

    let first = (position + 1).saturating_sub(context);
    let shape = Heads { query: heads, key: heads / repeat, width };
    let out = attention(&queries, shape, &past.keys[first..], &past.values[first..]);
    let projected = weights.get(&format!("{prefix}.self_attn.out_proj.weight")).times(&out);
    x.iter_mut().zip(projected).for_each(|(x, y)| *x += y);
}

/// Attention of one position's queries over all given keys and values.
pub(crate) fn attention(
    queries: &[f64],
    heads: Heads,
    keys: &[Vec<f64>],
    values: &[Vec<f64>],
) -> Vec<f64> {
    let mut out = Vec::with_capacity(queries.len());
    for (head, query) in queries.chunks_exact(heads.width).enumerate() {
        let group = head / (heads.query / heads.key) * heads.width;
        let group = group..group + heads.width;
        let weight = |key: &Vec<f64>| {
            let dot: f64 = query.iter().zip(&key[group.clone()]).map(|(q, k)| q * k).sum();
            (dot / (heads.width as f64).sqrt()).exp()
        };
        let weights: Vec<f64> = keys.iter().map(weight).collect();
        let total: f64 = weights.iter().sum();
        for i in group.clone() {
            let sum: f64 = weights.iter().zip(values).map(|(w, value)| w * value[i]).sum();
            out.push(sum / total);
        }
    }
    out
}

/// One head rotated to a position.
pub(crate) fn rotated(head: &[f64], position: usize, period: f64, interleaved: bool) -> Vec<f64> {
    let half = head.len() / 2;
    let mut out = vec![0.0; head.len()];
    for i in 0..half {
        let (a, b) = if interleaved { (2 * i, 2 * i + 1) } else { (i, i + half) };
        let angle = position as f64 * period.powf(-(i as f64) / half as f64);
        out[a] = head[a] * angle.cos() - head[b] * angle.sin();
        out[b] = head[a] * angle.sin() + head[b] * angle.cos();
    }
    out
}

fn feed_forward(scenario: &Scenario, weights: &Tensors, prefix: &str, x: &mut [f64]) {
    let h = rms_norm(weights, &format!("{prefix}.norm2.alpha"), x);
    let both = weights.get(&format!("{prefix}.gating.linear_in.weight")).times(&h);
    let (gate, value) = both.split_at(scenario.gate);
    let gated: Vec<f64> = gate.iter().zip(value).map(|(g, v)| g / (1.0 + (-g).exp()) * v).collect();
    let projected = weights.get(&format!("{prefix}.gating.linear_out.weight")).times(&gated);
    x.iter_mut().zip(projected).for_each(|(x, y)| *x += y);
}

fn rms_norm(weights: &Tensors, name: &str, x: &[f64]) -> Vec<f64> {
    let mean_square = x.iter().map(|v| v * v).sum::<f64>() / x.len() as f64;
    let scale = 1.0 / (mean_square + 1e-8).sqrt();
    x.iter().zip(&weights.get(name).data).map(|(x, a)| x * scale * f64::from(*a)).collect()
}
