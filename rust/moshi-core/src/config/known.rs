//! Shapes of the public models by name, for measurements and predictions without their files.

use std::collections::BTreeMap;

use serde_json::Value;

use super::LmConfig;

impl LmConfig {
    /// Names that [`LmConfig::known`] knows.
    pub const KNOWN: [&'static str; 8] = [
        "moshi-7b",
        "hibiki-zero-3b",
        "hibiki-2b",
        "hibiki-1b",
        "stt-2.6b",
        "stt-1b",
        "tts-1.6b",
        "tts-0.75b",
    ];

    /// The config of a public model, with the values that its repository publishes.
    pub fn known(name: &str) -> Option<Self> {
        if name == "moshi-7b" {
            return Some(Self::moshi_7b());
        }
        let all: BTreeMap<String, Value> =
            serde_json::from_str(include_str!("presets/known.json")).expect("valid JSON");
        let config = all.get(name)?.to_string();
        Some(Self::from_json(name, &config).expect("the built-in configs are valid"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_known_name_has_a_config() {
        for name in LmConfig::KNOWN {
            let config = LmConfig::known(name).expect(name);
            assert!(config.temporal.shape.dim >= 1024, "{name}");
        }
        assert_eq!(LmConfig::known("stt-1b").map(|c| c.temporal.context), Some(750));
        assert!(LmConfig::known("gpt").is_none());
    }
}
