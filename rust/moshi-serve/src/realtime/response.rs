//! What the model says, as responses of the Realtime protocol.

use serde_json::{Value, json};

use super::events::{Dialect, Response};
use super::{Sent, Session};
use crate::hub::OutputFrame;

impl Session<'_> {
    pub(super) async fn open_response(&mut self, metadata: Value) -> Sent {
        let response = Response::new(metadata);
        let object =
            response.json(&self.settings, self.dialect, &self.conversation, "in_progress", None);
        let item = response.item_json(&self.settings, self.dialect, "in_progress");
        let previous = self.items.insert(item.clone(), &Value::Null);
        let ids = ids(&response);
        let response_id = response.id.clone();
        self.response = Some(response);
        self.send("response.created", json!({ "response": object })).await?;
        let body = json!({ "response_id": response_id, "output_index": 0, "item": item });
        self.send("response.output_item.added", body).await?;
        let name = match self.dialect {
            Dialect::Current => "conversation.item.added",
            Dialect::Beta => "conversation.item.created",
        };
        self.send(name, json!({ "item": item, "previous_item_id": previous })).await?;
        let part = if self.settings.text_only {
            json!({ "type": "text", "text": "" })
        } else {
            json!({ "type": "audio", "transcript": "" })
        };
        self.send("response.content_part.added", with(&ids, "part", part)).await
    }

    pub(super) async fn speak_frame(&mut self, frame: OutputFrame) -> Sent {
        let limit = self.settings.max_output_tokens.as_u64().unwrap_or(u64::MAX);
        let text_only = self.settings.text_only;
        let Some(response) = self.response.as_mut().filter(|response| !response.muted) else {
            return Ok(());
        };
        response.frames += 1;
        response.words += u64::from(!frame.text.is_empty());
        response.transcript.push_str(&frame.text);
        let (ids, full) = (ids(response), response.words >= limit);
        if !text_only {
            let delta = self.mouth.encode(&frame.pcm);
            if !delta.is_empty() {
                let body = with(&ids, "delta", delta.into());
                self.send("response.output_audio.delta", body).await?;
            }
        }
        if !frame.text.is_empty() {
            let name = if text_only {
                "response.output_text.delta"
            } else {
                "response.output_audio_transcript.delta"
            };
            self.send(name, with(&ids, "delta", frame.text.into())).await?;
        }
        if full {
            self.close_response("incomplete", Some("max_output_tokens")).await?;
        }
        Ok(())
    }

    /// Tells the end of the response. The model may go on; what it says until its next silence
    /// belongs to nothing then.
    pub(super) async fn close_response(
        &mut self,
        status: &'static str,
        reason: Option<&str>,
    ) -> Sent {
        let Some(mut response) = self.response.take() else { return Ok(()) };
        if response.muted {
            return Ok(());
        }
        response.frames_heard = std::mem::take(&mut self.frames_heard);
        if self.turns.is_open() {
            self.response = Some(Response { muted: true, ..response.clone() });
        }
        let ids = ids(&response);
        let transcript = Value::from(response.transcript.clone());
        let part = if self.settings.text_only {
            let body = with(&ids, "text", transcript.clone());
            self.send("response.output_text.done", body).await?;
            json!({ "type": "text", "text": transcript })
        } else {
            self.send("response.output_audio.done", ids.clone()).await?;
            let body = with(&ids, "transcript", transcript.clone());
            self.send("response.output_audio_transcript.done", body).await?;
            json!({ "type": "audio", "transcript": transcript })
        };
        self.send("response.content_part.done", with(&ids, "part", part)).await?;
        let item = response.item_json(&self.settings, self.dialect, status);
        let body = json!({ "response_id": response.id, "output_index": 0, "item": item });
        self.send("response.output_item.done", body).await?;
        let previous = self.items.replace(item.clone());
        if self.dialect == Dialect::Current {
            let body = json!({ "item": item, "previous_item_id": previous });
            self.send("conversation.item.done", body).await?;
        }
        let object =
            response.json(&self.settings, self.dialect, &self.conversation, status, reason);
        self.send("response.done", json!({ "response": object })).await
    }
}

fn ids(response: &Response) -> Value {
    json!({
        "response_id": response.id,
        "item_id": response.item,
        "output_index": 0,
        "content_index": 0,
    })
}

fn with(ids: &Value, name: &str, value: Value) -> Value {
    let mut body = ids.clone();
    body[name] = value;
    body
}
