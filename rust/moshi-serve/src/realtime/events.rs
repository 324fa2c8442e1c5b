//! Names and shapes of OpenAI's Realtime events, in today's spelling and in that of the beta.

use serde_json::{Value, json};

use crate::realtime::audio::Format;
use crate::tokens::random_text;

/// Which spelling a client knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dialect {
    Current,
    Beta,
}

impl Dialect {
    /// An event's name in this spelling.
    pub(crate) fn name(self, current: &'static str) -> &'static str {
        if self == Self::Current {
            return current;
        }
        match current {
            "response.output_audio.delta" => "response.audio.delta",
            "response.output_audio.done" => "response.audio.done",
            "response.output_audio_transcript.delta" => "response.audio_transcript.delta",
            "response.output_audio_transcript.done" => "response.audio_transcript.done",
            "response.output_text.delta" => "response.text.delta",
            "response.output_text.done" => "response.text.done",
            other => other,
        }
    }
}

/// An identifier as `resp_` and random characters.
pub(crate) fn id(prefix: &str) -> String {
    format!("{prefix}_{}", random_text().replace(['-', '_'], "0"))
}

/// Settings beside those with a meaning here that clients read back.
const KEPT: [&str; 10] = [
    "include",
    "instructions",
    "parallel_tool_calls",
    "prompt",
    "reasoning",
    "temperature",
    "tool_choice",
    "tools",
    "tracing",
    "truncation",
];
/// Bytes of JSON that the settings of a session may take.
const MAX_SETTINGS_BYTES: usize = 256 << 10;

/// What a session is set to. Settings that mean nothing to the model are kept and told back.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) id: String,
    pub(crate) model: String,
    pub(crate) input: Format,
    pub(crate) output: Format,
    pub(crate) text_only: bool,
    pub(crate) turn_detection: Value,
    pub(crate) max_output_tokens: Value,
    /// When the session ends, in seconds since 1970, where that is known.
    pub(crate) expires_at: Option<u64>,
    /// Those of [`KEPT`].
    other: serde_json::Map<String, Value>,
    transcription: Value,
    noise_reduction: Value,
    voice: Value,
    speed: Value,
}

/// A setting that cannot be taken: its path and why.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct BadSetting(pub(crate) &'static str, pub(crate) &'static str);

impl Settings {
    pub(crate) fn new(model: &str) -> Self {
        let mut other = serde_json::Map::new();
        other.insert("instructions".into(), "".into());
        other.insert("tools".into(), json!([]));
        other.insert("tool_choice".into(), "auto".into());
        Self {
            id: id("sess"),
            model: model.to_owned(),
            input: Format::default(),
            output: Format::default(),
            text_only: false,
            turn_detection: Value::Null,
            max_output_tokens: "inf".into(),
            expires_at: None,
            other,
            transcription: Value::Null,
            noise_reduction: Value::Null,
            voice: "moshi".into(),
            speed: json!(1.0),
        }
    }

    /// Takes what is given and leaves the rest, in either spelling.
    pub(crate) fn update(&mut self, given: &Value) -> Result<(), BadSetting> {
        let Some(given) = given.as_object() else {
            return Err(BadSetting("session", "an object is needed"));
        };
        let mut new = self.clone();
        for (name, value) in given {
            match name.as_str() {
                "type" if value != "realtime" => {
                    return Err(BadSetting(
                        "session.type",
                        "this model has sessions of type realtime",
                    ));
                }
                "type" | "id" | "object" | "model" | "expires_at" => {}
                "audio" => {
                    if let Some(input) = value["input"].as_object() {
                        for (name, value) in input {
                            new.audio_input(name, value)?;
                        }
                    }
                    if let Some(output) = value["output"].as_object() {
                        for (name, value) in output {
                            match name.as_str() {
                                "format" => new.output = output_format(value)?,
                                "voice" => new.voice = value.clone(),
                                "speed" => new.speed = value.clone(),
                                _ => {}
                            }
                        }
                    }
                }
                "input_audio_format" => new.audio_input("format", value)?,
                "input_audio_transcription" => new.audio_input("transcription", value)?,
                "input_audio_noise_reduction" => new.audio_input("noise_reduction", value)?,
                "turn_detection" => new.audio_input("turn_detection", value)?,
                "output_audio_format" => new.output = output_format(value)?,
                "voice" => new.voice = value.clone(),
                "speed" => new.speed = value.clone(),
                "output_modalities" | "modalities" => {
                    new.text_only = value.as_array().is_some_and(|list| {
                        list.iter().any(|m| m == "text") && !list.iter().any(|m| m == "audio")
                    });
                }
                "max_output_tokens" | "max_response_output_tokens" => {
                    new.max_output_tokens = value.clone();
                }
                kept if KEPT.contains(&kept) => {
                    new.other.insert(kept.to_owned(), value.clone());
                }
                _ => {}
            }
        }
        if new.json(Dialect::Current).to_string().len() > MAX_SETTINGS_BYTES {
            return Err(BadSetting("session", "settings have at most 256 KiB"));
        }
        *self = new;
        Ok(())
    }

    fn audio_input(&mut self, name: &str, value: &Value) -> Result<(), BadSetting> {
        match name {
            "format" => {
                let bad = BadSetting("session.audio.input.format", "unknown audio format");
                self.input = Format::parse(value).filter(|f| f.rate_hz != 16_000).ok_or(bad)?;
            }
            "transcription" => self.transcription = value.clone(),
            "noise_reduction" => self.noise_reduction = value.clone(),
            "turn_detection" => self.turn_detection = value.clone(),
            _ => {}
        }
        Ok(())
    }

    pub(crate) fn json(&self, dialect: Dialect) -> Value {
        let mut all = self.other.clone();
        let mut set = |name: &str, value: Value| drop(all.insert(name.to_owned(), value));
        set("id", self.id.clone().into());
        set("object", "realtime.session".into());
        set("model", self.model.clone().into());
        if let Some(end) = self.expires_at {
            set("expires_at", end.into());
        }
        let modalities = match (dialect, self.text_only) {
            (_, true) => json!(["text"]),
            (Dialect::Current, false) => json!(["audio"]),
            (Dialect::Beta, false) => json!(["text", "audio"]),
        };
        if dialect == Dialect::Current {
            set("type", "realtime".into());
            set("output_modalities", modalities);
            set("max_output_tokens", self.max_output_tokens.clone());
            let audio = json!({
                "input": {
                    "format": self.input.json(),
                    "transcription": self.transcription,
                    "noise_reduction": self.noise_reduction,
                    "turn_detection": self.turn_detection,
                },
                "output": {
                    "format": self.output.json(),
                    "voice": self.voice,
                    "speed": self.speed,
                },
            });
            set("audio", audio);
        } else {
            set("modalities", modalities);
            set("max_response_output_tokens", self.max_output_tokens.clone());
            set("input_audio_format", self.input.beta_name().into());
            set("output_audio_format", self.output.beta_name().into());
            set("input_audio_transcription", self.transcription.clone());
            set("input_audio_noise_reduction", self.noise_reduction.clone());
            set("turn_detection", self.turn_detection.clone());
            set("voice", self.voice.clone());
            set("speed", self.speed.clone());
        }
        Value::Object(all)
    }
}

fn output_format(value: &Value) -> Result<Format, BadSetting> {
    let bad = BadSetting("session.audio.output.format", "unknown audio format");
    Format::parse(value).filter(|format| format.rate_hz != 16_000).ok_or(bad)
}

/// Of audio, each way.
const TOKENS_OF_A_FRAME: u64 = 8;

/// One answer of the model.
#[derive(Debug, Clone)]
pub(crate) struct Response {
    pub(crate) id: String,
    pub(crate) item: String,
    pub(crate) metadata: Value,
    pub(crate) transcript: String,
    pub(crate) frames: u64,
    /// By the model, since the response before this one.
    pub(crate) frames_heard: u64,
    pub(crate) words: u64,
    /// Cancelled or cut: told no more of.
    pub(crate) muted: bool,
}

impl Response {
    pub(crate) fn new(metadata: Value) -> Self {
        Self {
            id: id("resp"),
            item: id("item"),
            metadata,
            transcript: String::new(),
            frames: 0,
            frames_heard: 0,
            words: 0,
            muted: false,
        }
    }

    /// The response as an object; `reason` says why it is not complete.
    pub(crate) fn json(
        &self,
        settings: &Settings,
        dialect: Dialect,
        conversation: &str,
        status: &str,
        reason: Option<&str>,
    ) -> Value {
        let finished = status != "in_progress";
        let details =
            reason.map_or(Value::Null, |reason| json!({ "type": status, "reason": reason }));
        let audio = if settings.text_only { 0 } else { TOKENS_OF_A_FRAME * self.frames };
        let heard = TOKENS_OF_A_FRAME * self.frames_heard;
        let usage = json!({
            "total_tokens": heard + audio + self.words,
            "input_tokens": heard,
            "output_tokens": audio + self.words,
            "input_token_details": { "text_tokens": 0, "audio_tokens": heard, "cached_tokens": 0 },
            "output_token_details": { "text_tokens": self.words, "audio_tokens": audio },
        });
        let mut object = json!({
            "object": "realtime.response",
            "id": self.id,
            "status": status,
            "status_details": details,
            "output": if finished { json!([self.item_json(settings, dialect, status)]) } else { json!([]) },
            "conversation_id": conversation,
            "metadata": self.metadata,
            "usage": if finished { usage } else { Value::Null },
        });
        let session = settings.json(dialect);
        let (modalities, tokens) = match dialect {
            Dialect::Current => ("output_modalities", "max_output_tokens"),
            Dialect::Beta => ("modalities", "max_output_tokens"),
        };
        object[modalities] = session[modalities].clone();
        object[tokens] = settings.max_output_tokens.clone();
        object
    }

    pub(crate) fn item_json(&self, settings: &Settings, dialect: Dialect, status: &str) -> Value {
        let content = match (status, settings.text_only, dialect) {
            ("in_progress", _, _) => json!([]),
            (_, true, Dialect::Current) => {
                json!([{ "type": "output_text", "text": self.transcript }])
            }
            (_, true, Dialect::Beta) => json!([{ "type": "text", "text": self.transcript }]),
            (_, false, Dialect::Current) => {
                json!([{ "type": "output_audio", "transcript": self.transcript }])
            }
            (_, false, Dialect::Beta) => {
                json!([{ "type": "audio", "transcript": self.transcript }])
            }
        };
        let status =
            if ["in_progress", "completed"].contains(&status) { status } else { "incomplete" };
        json!({
            "id": self.item,
            "object": "realtime.item",
            "type": "message",
            "status": status,
            "role": "assistant",
            "content": content,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn settings_are_merged_and_told_in_both_spellings() {
        let mut settings = Settings::new("box");
        settings
            .update(&json!({
                "type": "realtime",
                "instructions": "be kind",
                "audio": { "input": { "turn_detection": { "type": "server_vad" } } },
            }))
            .unwrap();
        settings.update(&json!({ "output_modalities": ["text"], "tracing": "auto" })).unwrap();
        let current = settings.json(Dialect::Current);
        assert_eq!(current["instructions"], "be kind");
        assert_eq!(current["tracing"], "auto");
        assert_eq!(current["output_modalities"], json!(["text"]));
        assert_eq!(current["audio"]["input"]["turn_detection"]["type"], "server_vad");
        assert_eq!(current["audio"]["output"]["format"]["rate"], 24_000);
        settings.update(&json!({ "turn_detection": null, "voice": "x" })).unwrap();
        let beta = settings.json(Dialect::Beta);
        assert_eq!((&beta["turn_detection"], &beta["voice"]), (&Value::Null, &"x".into()));
        assert_eq!(beta["input_audio_format"], "pcm16");
        assert!(beta.get("audio").is_none());

        let bad = json!({ "instructions": "lost", "audio": { "input": { "format": { "type": "mp3" } } } });
        assert_eq!(settings.update(&bad).unwrap_err().0, "session.audio.input.format");
        assert_eq!(settings.json(Dialect::Current)["instructions"], "be kind", "all or nothing");
        assert!(settings.update(&json!({ "type": "transcription" })).is_err());
        settings.update(&json!({ "instructions": "x".repeat(200 << 10), "other": 1 })).unwrap();
        assert!(settings.json(Dialect::Current).get("other").is_none());
        let too_much = json!({ "turn_detection": { "type": "x".repeat(60 << 10) } });
        assert_eq!(settings.update(&too_much).unwrap_err().0, "session");
        assert_eq!(settings.turn_detection, Value::Null);
    }

    /// Any JSON, with the names that mean something more often than not.
    fn any_json() -> impl Strategy<Value = Value> {
        const NAMES: &[&str] = &[
            "type",
            "audio",
            "input",
            "output",
            "format",
            "rate",
            "voice",
            "speed",
            "transcription",
            "turn_detection",
            "output_modalities",
            "modalities",
            "max_output_tokens",
            "input_audio_format",
            "output_audio_format",
            "instructions",
            "other",
        ];
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            prop::sample::select(vec![
                "realtime",
                "audio",
                "text",
                "audio/pcm",
                "g711_alaw",
                "inf"
            ])
            .prop_map(Value::from),
            ".*".prop_map(Value::from),
        ];
        leaf.prop_recursive(5, 48, 8, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::vec((prop::sample::select(NAMES), inner), 0..8)
                    .prop_map(|pairs| pairs.into_iter().map(|(k, v)| (k.to_owned(), v)).collect()),
            ]
        })
    }

    proptest! {
        #[test]
        fn any_settings_are_taken_or_change_nothing(updates in prop::collection::vec(any_json(), 1..6)) {
            let mut settings = Settings::new("box");
            for update in &updates {
                let before = settings.json(Dialect::Current);
                if settings.update(update).is_err() {
                    prop_assert_eq!(settings.json(Dialect::Current), before);
                }
                let current = settings.json(Dialect::Current);
                prop_assert!(Format::parse(&current["audio"]["input"]["format"]).is_some());
                prop_assert!(Format::parse(&current["audio"]["output"]["format"]).is_some());
                prop_assert!(settings.json(Dialect::Beta)["input_audio_format"].is_string());
            }
        }
    }

    #[test]
    fn identifiers_are_plain() {
        let id = id("item");
        assert!(id.starts_with("item_") && id.len() >= 25);
        assert!(id[5..].bytes().all(|byte| byte.is_ascii_alphanumeric()), "{id}");
    }
}
