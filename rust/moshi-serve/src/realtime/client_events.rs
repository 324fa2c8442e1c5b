//! What a Realtime client asks for, and the answers.

use serde_json::{Value, json};

use super::audio::{AudioIn, AudioOut};
use super::events::{BadSetting, id};
use super::{Sent, Session};

/// The shortest commit, in milliseconds.
const MIN_COMMIT_MS: u64 = 100;
/// Longest identifier of a client that is kept.
const MAX_ID_BYTES: usize = 256;
/// What an item can be.
const ITEM_TYPES: [&str; 7] = [
    "message",
    "function_call",
    "function_call_output",
    "mcp_approval_request",
    "mcp_approval_response",
    "mcp_call",
    "mcp_list_tools",
];
const BAD_REQUEST: &str = "invalid_request_error";

impl Session<'_> {
    pub(super) async fn obey(&mut self, message: &[u8]) -> Sent {
        self.handle.touch();
        let Ok(event) = serde_json::from_slice::<Value>(message) else {
            return self.error(BAD_REQUEST, "invalid_json", None, "not JSON", None).await;
        };
        let cause = event.get("event_id").cloned();
        let cause = cause.as_ref();
        match event["type"].as_str().unwrap_or_default() {
            "session.update" => self.update(&event["session"], cause).await,
            "input_audio_buffer.append" => match self.ears.take(&event["audio"]) {
                Ok(samples) => self.hear(&samples).await,
                Err(bad) => {
                    let text = bad.to_string();
                    self.error(BAD_REQUEST, "invalid_value", Some("audio"), &text, cause).await
                }
            },
            "input_audio_buffer.commit" => {
                let rate = u64::from(self.app.hub.card().sample_rate_hz);
                if self.heard.uncommitted * 1000 < MIN_COMMIT_MS * rate {
                    let text = "less than 100 ms of audio came since the last commit";
                    let code = "input_audio_buffer_commit_empty";
                    return self.error(BAD_REQUEST, code, None, text, cause).await;
                }
                let item = self.heard.take_item();
                self.commit(item).await
            }
            "input_audio_buffer.clear" => {
                self.handle.clear_input();
                self.heard.uncommitted = 0;
                self.heard.detector.restart();
                self.send("input_audio_buffer.cleared", json!({})).await
            }
            "response.create" => self.request_response(&event["response"], cause).await,
            "response.cancel" => {
                let open = self.response.as_ref().is_some_and(|response| !response.muted);
                if !open {
                    let text = "Cancellation failed: no active response found";
                    let code = "response_cancel_not_active";
                    return self.error(BAD_REQUEST, code, None, text, cause).await;
                }
                self.close_response("cancelled", Some("client_cancelled")).await
            }
            "conversation.item.create" => self.create_item(&event).await,
            "conversation.item.retrieve" => match self.items.get(&event["item_id"]).cloned() {
                Some(item) => {
                    self.send("conversation.item.retrieved", json!({ "item": item })).await
                }
                None => self.no_item("item_retrieve_invalid_item_id", cause).await,
            },
            "conversation.item.delete" => {
                if !self.items.remove(&event["item_id"]) {
                    return self.no_item("item_delete_invalid_item_id", cause).await;
                }
                let body = json!({ "item_id": event["item_id"] });
                self.send("conversation.item.deleted", body).await
            }
            "conversation.item.truncate" => {
                let body = json!({
                    "item_id": event["item_id"],
                    "content_index": event["content_index"].as_u64().unwrap_or(0),
                    "audio_end_ms": event["audio_end_ms"].as_u64().unwrap_or(0),
                });
                self.send("conversation.item.truncated", body).await
            }
            // For other transports.
            "output_audio_buffer.clear" => Ok(()),
            _ => {
                let text = "no such event";
                self.error(BAD_REQUEST, "invalid_value", Some("type"), text, cause).await
            }
        }
    }

    async fn update(&mut self, given: &Value, cause: Option<&Value>) -> Sent {
        let before = (self.settings.input, self.settings.output);
        if let Err(BadSetting(param, reason)) = self.settings.update(given) {
            return self.error(BAD_REQUEST, "invalid_value", Some(param), reason, cause).await;
        }
        let model_hz = self.app.hub.card().sample_rate_hz;
        if self.settings.input != before.0 {
            self.ears = AudioIn::new(self.settings.input, model_hz);
        }
        if self.settings.output != before.1 {
            self.mouth = AudioOut::new(self.settings.output, model_hz);
        }
        let session = self.settings.json(self.dialect);
        self.send("session.updated", json!({ "session": session })).await
    }

    async fn request_response(&mut self, asked: &Value, cause: Option<&Value>) -> Sent {
        if !self.turns.request() {
            // One that was cancelled is over for the client; what the model says now is the next.
            let muted = self.response.as_ref().is_some_and(|response| response.muted);
            if !muted {
                let text = "the model is speaking already; wait for response.done";
                let code = "conversation_already_has_active_response";
                return self.error(BAD_REQUEST, code, None, text, cause).await;
            }
        }
        let metadata = asked.get("metadata").cloned().unwrap_or_default();
        self.open_response(metadata).await
    }

    /// The model reads no text; clients wait for the answer all the same.
    async fn create_item(&mut self, event: &Value) -> Sent {
        let mut item = event["item"].clone();
        if !item["type"].as_str().is_some_and(|kind| ITEM_TYPES.contains(&kind)) {
            let text = format!("item.type must be one of {}", ITEM_TYPES.join(", "));
            let missing = item["type"].is_null();
            let code = if missing { "missing_required_parameter" } else { "invalid_value" };
            let cause = event.get("event_id");
            return self.error(BAD_REQUEST, code, Some("item.type"), &text, cause).await;
        }
        if item["id"].as_str().is_none_or(|id| id.is_empty() || id.len() > MAX_ID_BYTES) {
            item["id"] = id("item").into();
        }
        item["object"] = "realtime.item".into();
        item["status"] = "completed".into();
        self.add_item(item, &event["previous_item_id"]).await
    }

    /// Clients know the code of each request.
    async fn no_item(&mut self, code: &str, cause: Option<&Value>) -> Sent {
        self.error(BAD_REQUEST, code, Some("item_id"), "no such item", cause).await
    }
}
