//! Texts as configs of language models and codecs, in every dialect.
#![no_main]

use moshi_core::Error;
use moshi_core::checkpoint::layout::{self, GatedWidths};
use moshi_core::config::{LmConfig, MimiConfig};
use moshi_core::exec::Scalar;
use moshi_core::mimi::{MimiMemory, MimiOptions};

libfuzzer_sys::fuzz_target!(init: moshi_fuzz::seeds::write(), |text: &str| {
    for parse in [LmConfig::from_json, LmConfig::from_toml] {
        match parse("config.any", text) {
            Ok(config) => accepted(&config),
            Err(error) => refused(&error),
        }
    }
    match MimiConfig::from_json("mimi.json", text) {
        Ok(config) => {
            assert!(config.frame_samples > 0 && config.frame_rate_hz() > 0.0);
            assert!(!layout::mimi(&config).is_empty());
            MimiMemory::of(&Scalar, &config, &MimiOptions::default());
        }
        Err(error) => refused(&error),
    }
});

/// Everything that follows from a config alone stays within reason.
fn accepted(config: &LmConfig) {
    let widths = GatedWidths { temporal: config.temporal.shape.gated_widths()[0], depth: 1 };
    let tensors = layout::language_model(config, widths);
    assert!(tensors.len() < 200_000, "{} tensors", tensors.len());
    assert!(config.num_user_codebooks() < config.num_streams());
    assert!(config.codec_codebooks() <= config.num_codebooks);
    assert!(config.delays.len() == config.num_streams() && config.max_delay() < 1000);
}

/// The error names the file and is no essay.
fn refused(error: &Error) {
    let (Error::Config { file, .. } | Error::ConfigFile { file, .. }) = error else {
        panic!("not an error of a config: {error}")
    };
    let text = error.to_string();
    assert!(text.contains(file.as_str()) && text.len() < 100_000, "{} bytes", text.len());
}
