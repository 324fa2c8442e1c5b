//! What fewer bits do to the predictions of a model: the same steps in several formats.
//!
//! The model in the reference format hears a recording and draws its tokens. In every other format
//! it hears the same codes and is given the same tokens, codebook by codebook, so that both predict
//! the same thing at every step, and what differs is due to the weights of that one step and to
//! the keys and values of the steps before, never to another course of the conversation.

mod agreement;

use moshi_core::Result;
use moshi_core::checkpoint::{Catalog, Repo};
use moshi_core::engine::default_conditions;
use moshi_core::exec::{Executor, KeyStorage};
use moshi_core::lm::{
    LanguageModel, LmFiles, LmMemory, LmOptions, LmOutput, LmSlot, LmState, LmStreamOptions,
    NoHooks, Sampling, StepHooks, WeightType, ZERO_TOKEN,
};
use moshi_core::mimi::{Mimi, MimiOptions, MimiParts};

pub use agreement::Agreement;

/// What a model predicts while it hears a recording.
pub struct Course {
    /// Codes of the user's frames, `[frame][codebook]`; the first is the silence before them.
    heard: Vec<Vec<i64>>,
    steps: Vec<Step>,
    seed: u64,
}

/// One step of the reference.
struct Step {
    text_logits: Vec<f32>,
    text_token: i64,
    /// `[codebook][card]`.
    audio_logits: Vec<Vec<f32>>,
    audio_tokens: Vec<i64>,
}

/// How close a format comes to the reference.
#[derive(Clone, Debug)]
pub struct Comparison {
    /// The format.
    pub dtype: WeightType,
    /// Storage of keys and values.
    pub kv_dtype: KeyStorage,
    /// Bytes of the language model's weights.
    pub weight_bytes: u64,
    /// Predictions of text.
    pub text: Agreement,
    /// Predictions of the first own codebook; of nothing for models without own audio.
    pub first_codebook: Agreement,
    /// Predictions of all own codebooks.
    pub codebooks: Agreement,
}

impl Course {
    /// Loads the language model as `dtype` and lets it hear `pcm`, whole frames at the codec's rate,
    /// with the sampling that the checkpoint recommends.
    ///
    /// # Errors
    /// As the loading of codec and model.
    pub fn of<E: Executor>(
        exec: &E,
        repo: &Repo,
        pcm: &[f32],
        dtype: WeightType,
        seed: u64,
    ) -> Result<Self> {
        let heard = heard(exec, repo, pcm)?;
        let mut steps = Vec::with_capacity(heard.len());
        with_model(exec, repo, (dtype, None), |lm, mut state, _| {
            for codes in &heard {
                let (sampling, hooks) = (Sampling::from(&lm.config().generation), &mut NoHooks);
                let output = step(&lm, &mut state, codes, (&sampling, seed), hooks)?;
                steps.push(Step {
                    text_token: output.text_token,
                    audio_logits: audio_logits(&output),
                    text_logits: output.text_logits,
                    audio_tokens: output.audio_tokens,
                });
            }
            Ok(())
        })?;
        Ok(Self { heard, steps, seed })
    }

    /// Steps compared.
    pub fn len(&self) -> usize {
        self.steps.len()
    }

    /// True when nothing was heard.
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// Takes the same course in another format, with keys and values as [`LmOptions`] says.
    ///
    /// # Errors
    /// As the loading of the model.
    pub fn follow<E: Executor>(
        &self,
        exec: &E,
        repo: &Repo,
        dtype: WeightType,
        kv_dtype: Option<KeyStorage>,
    ) -> Result<Comparison> {
        with_model(exec, repo, (dtype, kv_dtype), |lm, mut state, weight_bytes| {
            let mut comparison = Comparison {
                dtype,
                kv_dtype: lm.kv_dtype(),
                weight_bytes,
                text: Agreement::default(),
                first_codebook: Agreement::default(),
                codebooks: Agreement::default(),
            };
            let sampling = Sampling::from(&lm.config().generation);
            for (codes, reference) in self.heard.iter().zip(&self.steps) {
                let mut forced = Forced(reference);
                let on = (&sampling, self.seed);
                let output = step(&lm, &mut state, codes, on, &mut forced)?;
                comparison.text.add(&reference.text_logits, &output.text_logits);
                let both = reference.audio_logits.iter().zip(audio_logits(&output));
                for (codebook, (reference, logits)) in both.enumerate() {
                    if codebook == 0 {
                        comparison.first_codebook.add(reference, &logits);
                    }
                    comparison.codebooks.add(reference, &logits);
                }
            }
            Ok(comparison)
        })
    }
}

/// Gives a step the tokens of the reference.
struct Forced<'a>(&'a Step);

impl StepHooks for Forced<'_> {
    fn text_token(&mut self, _sampled: i64) -> i64 {
        self.0.text_token
    }

    fn audio_token(&mut self, codebook: usize, _sampled: i64) -> i64 {
        self.0.audio_tokens[codebook]
    }
}

/// Codes of a recording, after the step of silence that begins every conversation.
fn heard<E: Executor>(exec: &E, repo: &Repo, pcm: &[f32]) -> Result<Vec<Vec<i64>>> {
    let config = &repo.config;
    let options = MimiOptions {
        num_codebooks: config.codec_codebooks(),
        parts: MimiParts::Encoder,
        ..MimiOptions::default()
    };
    let mimi = Mimi::load(exec, repo.mimi_file()?, &repo.mimi_config, &options)?;
    let mut state = mimi.encoder_state()?;
    let mut heard = vec![vec![ZERO_TOKEN; config.num_user_codebooks()]];
    for frame in pcm.chunks_exact(repo.mimi_config.frame_samples) {
        let codes = mimi.encode_step(&mut [&mut state], frame)?;
        heard.push(codes.into_iter().map(i64::from).collect());
    }
    Ok(heard)
}

/// Calls `with` with the language model, a fresh stream and the bytes of its weights.
fn with_model<E: Executor, T>(
    exec: &E,
    repo: &Repo,
    (dtype, kv_dtype): (WeightType, Option<KeyStorage>),
    with: impl FnOnce(LanguageModel<E>, LmState<E>, u64) -> Result<T>,
) -> Result<T> {
    let config = &repo.config;
    let files = LmFiles::open(repo.moshi_file()?, config, repo.lora_file()?.as_ref())?;
    let catalog: Catalog<'_> = files.catalog(config)?;
    let weight_bytes = LmMemory::of(exec, &catalog, config, Some(dtype), kv_dtype)?.weight_bytes;
    let options = LmOptions { dtype: Some(dtype), kv_dtype, ..LmOptions::default() };
    let lm = LanguageModel::from_catalog(exec, &catalog, config, &options)?;
    let conditions = default_conditions(config);
    let state = lm.new_state(&LmStreamOptions { conditions, guidance: None })?;
    with(lm, state, weight_bytes)
}

fn step<E: Executor>(
    lm: &LanguageModel<E>,
    state: &mut LmState<E>,
    user_tokens: &[i64],
    (sampling, seed): (&Sampling, u64),
    hooks: &mut (dyn StepHooks + Send),
) -> Result<LmOutput> {
    let mut slots = [LmSlot { state, user_tokens, sampling, seed, hooks, trace: true }];
    Ok(lm.step(&mut slots)?.pop().expect("one output per slot"))
}

/// Logits of the own codebooks, of the only branch.
fn audio_logits(output: &LmOutput) -> Vec<Vec<f32>> {
    let branches = output.trace.iter().flat_map(|trace| &trace.depth_logits);
    branches.filter_map(|branches| branches.first().cloned()).collect()
}
