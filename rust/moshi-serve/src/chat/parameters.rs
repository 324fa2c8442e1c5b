//! What the address of a connection asks for.

use moshi_core::lm::Sampling;

use crate::backend::StreamOptions;
use crate::hub::SessionRequest;
use crate::scheduler::Overflow;

/// The hottest that the engine takes.
const MAX_TEMPERATURE: f64 = 100.0;

/// What the address asks for.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Parameters {
    temperature: Option<f64>,
    text_temperature: Option<f64>,
    top_k: Option<usize>,
    top_k_text: Option<usize>,
    seed: Option<u64>,
    pub(super) max_steps: Option<u64>,
    resume: Option<String>,
    /// Audio as samples of 16 bits, for pages without an Opus encoder.
    pub(super) plain: bool,
    /// Metadata every second, not only when something is wrong.
    pub(super) stats: bool,
}

impl Parameters {
    /// Unknown names are passed over, malformed numbers are not; values out of range are limited.
    pub(super) fn parse(pairs: &[(String, String)]) -> Result<Self, String> {
        fn number<T: std::str::FromStr>(name: &str, value: &str) -> Result<Option<T>, String> {
            let wrong = |_| format!("parameter {name} is not a number in range");
            value.parse().map(Some).map_err(wrong)
        }
        let temperature = |name: &str, value: &str| {
            let parsed: Option<f64> = number(name, value)?;
            match parsed {
                Some(value) if value.is_nan() => Err(format!("parameter {name} is not a number")),
                parsed => Ok(parsed.map(|value| value.clamp(0.0, MAX_TEMPERATURE))),
            }
        };
        let plain = |value: &str| match value {
            "opus" => Ok(false),
            "pcm16" => Ok(true),
            _ => Err("parameter audio is neither opus nor pcm16".to_owned()),
        };
        let mut parameters = Self::default();
        for (name, value) in pairs {
            match name.as_str() {
                "text_temperature" => parameters.text_temperature = temperature(name, value)?,
                "audio_temperature" => parameters.temperature = temperature(name, value)?,
                "text_topk" => parameters.top_k_text = number(name, value)?,
                "audio_topk" => parameters.top_k = number(name, value)?,
                "seed" | "audio_seed" => parameters.seed = number(name, value)?,
                "max_steps" => parameters.max_steps = number(name, value)?,
                "resume" => parameters.resume = Some(value.clone()),
                "audio" => parameters.plain = plain(value)?,
                "stats" => parameters.stats = value == "1",
                _ => {}
            }
        }
        Ok(parameters)
    }

    pub(super) fn request(&self, default: Sampling) -> SessionRequest {
        let sampling = Sampling {
            temperature: self.temperature.unwrap_or(default.temperature),
            text_temperature: self.text_temperature.unwrap_or(default.text_temperature),
            top_k: self.top_k.unwrap_or(default.top_k),
            top_k_text: self.top_k_text.unwrap_or(default.top_k_text),
        };
        SessionRequest {
            stream: StreamOptions { seed: self.seed, sampling: Some(sampling) },
            overflow: Overflow::DropOldest,
            resume: self.resume.clone(),
            protocol: "chat",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(query: &str) -> Result<Parameters, String> {
        let pairs: Vec<(String, String)> = query
            .split('&')
            .filter_map(|pair| pair.split_once('='))
            .map(|(name, value)| (name.into(), value.into()))
            .collect();
        Parameters::parse(&pairs)
    }

    #[test]
    fn the_web_clients_parameters_are_understood() {
        let query = "text_temperature=0.7&text_topk=25&audio_temperature=0.8&audio_topk=250\
                     &pad_mult=0&text_seed=3&audio_seed=4&repetition_penalty_context=64\
                     &repetition_penalty=1&email=a@b.c&max_steps=9&stats=1";
        let expected = Parameters {
            temperature: Some(0.8),
            text_temperature: Some(0.7),
            top_k: Some(250),
            top_k_text: Some(25),
            seed: Some(4),
            max_steps: Some(9),
            resume: None,
            plain: false,
            stats: true,
        };
        assert_eq!(parse(query), Ok(expected));
    }

    #[test]
    fn numbers_are_limited_or_refused() {
        assert_eq!(parse("audio_temperature=-1").unwrap().temperature, Some(0.0));
        let hot = parse("audio_temperature=1e300").unwrap().temperature;
        assert_eq!(hot, Some(MAX_TEMPERATURE));
        for bad in ["audio=mp3", "audio_topk=-1", "text_topk=x", "text_temperature=NaN", "seed=1.5"]
        {
            let reason = parse(bad).unwrap_err();
            assert!(reason.contains(bad.split('=').next().unwrap()), "{reason}");
        }
    }
}
