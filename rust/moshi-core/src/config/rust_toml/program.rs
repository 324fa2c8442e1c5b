//! What the program's table says beside the shape: files, tokens, delays, sampling, conditions.

use crate::config::conditioning::{ConditionerConfig, ConditionerKind};
use crate::config::lm::{DEFAULT_MIMI_NAME, DEFAULT_TOKENIZER_NAME, MAX_DELAY};
use crate::config::{Fields, GenerationConfig, MAX_TEMPERATURE, ModelFiles, ModelType};
use crate::error::Result;

/// Fields that steer a server, or date the words of a transcript, and change no step.
pub(super) fn check_unused(program: &Fields<'_>) -> Result<()> {
    program.size_or("asr_delay_in_tokens", 0)?;
    for unused in ["path", "batch_size", "log_frequency_s", "dtype_override"] {
        program.get(unused);
    }
    Ok(())
}

/// The delay that a server asks of a model which was trained with several: its condition `delay`
/// is the negative of it in seconds, or has no value.
pub(super) fn set_delay(
    program: &Fields<'_>,
    conditioners: &mut [ConditionerConfig],
) -> Result<()> {
    let (name, learnt) = ("conditioning_delay", "conditioning_learnt_padding");
    let without_value = program.flag_or(learnt, false)?;
    if !program.has(name) {
        return Ok(());
    }
    let seconds = program.number_or(name, 0.0)?;
    if without_value {
        return Err(program.error(name, seconds, format!("excludes {learnt} = true")));
    }
    let delay = conditioners.iter_mut().find(|c| c.name == "delay").map(|c| &mut c.kind);
    let Some(ConditionerKind::Number { default, .. }) = delay else {
        let reason = "the model has no number `delay` among its conditions: leave it out";
        return Err(program.error(name, seconds, reason));
    };
    *default = Some(-seconds);
    Ok(())
}

pub(super) fn text_tokens(table: Option<&Fields<'_>>, text_card: usize) -> Result<(usize, usize)> {
    let Some(g) = table else { return Ok((3, 0)) };
    let below = |name: &str, default| g.at_most(name, g.size_or(name, default)?, text_card);
    g.get("text_start_token");
    Ok((below("text_pad_token", 3)?, below("text_eop_token", 0)?))
}

/// Delay of every stream: text, own audio, the user's.
pub(super) fn delays(
    table: Option<&Fields<'_>>,
    num_codebooks: usize,
    num_generated: usize,
) -> Result<Vec<usize>> {
    if num_generated == 0 {
        return Ok(vec![0; num_codebooks + 1]);
    }
    let user = num_codebooks - num_generated;
    let acoustic = match table {
        None => {
            log::info!("config.toml has no [gen]: acoustic delay of {RUST_ACOUSTIC_DELAY} frames");
            RUST_ACOUSTIC_DELAY
        }
        Some(g) => {
            for (name, expected) in
                [("generated_audio_codebooks", num_generated), ("input_audio_codebooks", user)]
            {
                let value = g.size_or(name, expected)?;
                if value != expected {
                    let reason = format!("the model has {expected}");
                    return Err(g.error(name, value, reason));
                }
            }
            g.get("audio_vocab_size");
            let name = "acoustic_delay";
            g.at_most(name, g.size_or(name, RUST_ACOUSTIC_DELAY)?, MAX_DELAY)?
        }
    };
    // The first codebook of either side is on time.
    let side = |count: usize| (0..count).map(|k| if k == 0 { 0 } else { acoustic });
    Ok(std::iter::once(0).chain(side(num_generated)).chain(side(user)).collect())
}

/// What Kyutai's Rust programs take for the acoustic delay when they are not told.
const RUST_ACOUSTIC_DELAY: usize = 2;

pub(super) fn model_type(
    program: &Fields<'_>,
    num_generated: usize,
    conditioners: &[ConditionerConfig],
) -> Result<ModelType> {
    let module = program.text_or("type", "")?;
    Ok(match module.as_str() {
        "Tts" => ModelType::Tts,
        _ if num_generated == 0 => ModelType::Stt,
        // The translation models are the ones that are told how good a speaker to sound like.
        _ if conditioners.iter().any(|c| c.name == "description") => ModelType::Hibiki,
        _ => ModelType::Moshi,
    })
}

/// The names that the translation programs and the server use.
pub(super) fn files(program: &Fields<'_>) -> Result<ModelFiles> {
    let first_of = |names: &[&str]| -> Result<Option<String>> {
        let name = names.iter().find(|name| program.has(name));
        name.map(|name| program.text_or(name, "")).transpose()
    };
    Ok(ModelFiles {
        moshi_name: first_of(&["moshi_name", "lm_model_file"])?,
        mimi_name: first_of(&["mimi_name", "audio_tokenizer_file"])?
            .unwrap_or_else(|| DEFAULT_MIMI_NAME.into()),
        mimi_config_name: first_of(&["mimi_config_name"])?,
        tokenizer_name: first_of(&["tokenizer_name", "text_tokenizer_file"])?
            .unwrap_or_else(|| DEFAULT_TOKENIZER_NAME.into()),
        lora_name: first_of(&["lora_name"])?,
    })
}

/// Transcription is greedy unless the server's config has a temperature.
pub(super) fn generation(program: &Fields<'_>, model_type: ModelType) -> Result<GenerationConfig> {
    let default = GenerationConfig { text_temperature: 0.8, ..GenerationConfig::default() };
    if model_type != ModelType::Stt {
        return Ok(default);
    }
    let temperature = program.number_or("temperature", 0.0)?;
    if !(0.0..=MAX_TEMPERATURE).contains(&temperature) {
        let reason = format!("must be from 0 to {MAX_TEMPERATURE}");
        return Err(program.error("temperature", temperature, reason));
    }
    Ok(GenerationConfig { text_temperature: temperature, temperature, ..default })
}
