//! Cases of kind `dialogue`: a repository folder, audio in, audio and text out, unprimed.

use moshi_core::checkpoint::{Repo, TensorFile};
use moshi_core::exec::Executor;
use moshi_core::lm::{Sampling, WeightType};
use moshi_core::{Error, LoadOptions, Model, NoObserver, Result, Session, SessionOptions};

use super::compare::{Check, Measure};
use super::mimi::{audio, by_codebook};
use super::{Case, Computed, Results, Values};

pub(super) fn compute<E: Executor>(
    exec: &E,
    case: &Case,
    file: &TensorFile,
    checks: &mut Vec<Check>,
) -> Result<Results> {
    let repo = Repo::open(&case.folder)?;
    let options = LoadOptions { dtype: Some(WeightType::F32), ..LoadOptions::default() };
    let model = Model::from_repo(exec, &repo, &options, &NoObserver)?;
    let options = SessionOptions {
        sampling: Some(Sampling::greedy()),
        unprimed: true,
        ..SessionOptions::default()
    };
    let mut session = Session::new(&model, &options)?;
    let frame = model.info().frame_samples;
    let (mut codes, mut rows, mut pcm, mut texts) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for input in file.read_f32("pcm")?.chunks_exact(frame) {
        let output = session.step(input)?;
        codes.extend(&output.user_codes);
        texts.push(output.tokens.is_some().then_some(output.text));
        if let Some(row) = output.tokens {
            rows.push(row);
            pcm.extend(output.pcm);
        }
    }
    checks.push(compare_texts(case, &texts)?);

    let count = codes.len() / texts.len().max(1);
    let width = rows.first().map_or(0, Vec::len);
    let tokens = |name: &str, shape, values| Computed {
        name: name.into(),
        shape,
        values: Values::Tokens(values),
        step_axis: 2,
        ignore: None,
    };
    let row_tokens = (0..width).flat_map(|k| rows.iter().map(move |row| row[k])).collect();
    let computed = vec![
        tokens("user_codes", vec![1, count, texts.len()], by_codebook(&codes, count.max(1))),
        tokens("tokens", vec![1, width, rows.len()], row_tokens),
        audio("pcm_out", vec![1, 1, pcm.len()], pcm),
    ];
    Ok(Results { inputs: vec!["pcm"], computed })
}

/// The list `text` of `case.json`: one entry per step, null while delays fill.
fn compare_texts(case: &Case, texts: &[Option<String>]) -> Result<Check> {
    let wrong = || -> Error { case.field_error("text", "expected a list of texts and nulls") };
    let expected = case.json["text"].as_array().ok_or_else(wrong)?;
    let equal = |i: usize| match (expected.get(i), texts.get(i)) {
        (Some(expected), Some(got)) => expected.as_str() == got.as_deref(),
        _ => false,
    };
    let total = expected.len().max(texts.len());
    let count = (0..total).filter(|&i| equal(i)).count();
    Ok(Check {
        file: "case.json".into(),
        tensor: "text".into(),
        measure: Measure::Equal { equal: count, total },
        first_differing_step: (0..total).find(|&i| !equal(i)),
        passed: count == total && total > 0,
    })
}
