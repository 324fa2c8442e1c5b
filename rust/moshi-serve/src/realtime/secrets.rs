//! Ephemeral keys: a server of the operator's exchanges its key for one that a browser may see.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::header::CACHE_CONTROL;
use axum::http::{HeaderMap, Response, StatusCode, Uri};
use axum::response::IntoResponse;
use serde_json::{Value, json};

use super::events::{BadSetting, Dialect, Settings};
use super::since_1970;
use crate::auth::{EPHEMERAL_KEY, Promise, TICKET_LIFE};
use crate::routes::{App, refusal};

/// The shortest life that clients may ask for, in seconds.
const MIN_LIFE_S: u64 = 10;

/// `POST /v1/realtime/client_secrets`. The key that it gives is a ticket: it opens one connection,
/// within a minute at most, whose session begins with the settings that are sent for it.
pub(crate) async fn handler(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    uri: Uri,
    body: Bytes,
) -> Response<Body> {
    if app.auth.is_required() && !app.auth.has_key(&headers, &uri) {
        return app.unauthorised();
    }
    let asked: Value = match serde_json::from_slice(&body) {
        Ok(asked) => asked,
        Err(_) if body.is_empty() => Value::Null,
        Err(_) => return refusal(StatusCode::BAD_REQUEST, "invalid_json", "the body is not JSON"),
    };
    let mut settings = Settings::new(&app.hub.card().name);
    if let Some(session) = asked.get("session")
        && let Err(BadSetting(param, reason)) = settings.update(session)
    {
        let message = format!("{param}: {reason}");
        return refusal(StatusCode::BAD_REQUEST, "invalid_value", &message);
    }
    let life = Duration::from_secs(match &asked["expires_after"]["seconds"] {
        Value::Null => TICKET_LIFE.as_secs(),
        seconds => match seconds.as_u64() {
            Some(seconds) => seconds.clamp(MIN_LIFE_S, TICKET_LIFE.as_secs()),
            None => {
                let message = "expires_after.seconds is not a whole number";
                return refusal(StatusCode::BAD_REQUEST, "invalid_value", message);
            }
        },
    });
    // As they were understood: nothing else of what was sent is kept.
    let told = settings.json(Dialect::Current);
    let promise = asked.get("session").is_some().then(|| Promise(told.to_string()));
    let Some(ticket) = app.auth.issue_ticket_for(life, promise, Instant::now()) else {
        let message = "too many ephemeral keys are out; try again in a minute";
        return refusal(StatusCode::TOO_MANY_REQUESTS, "rate_limit_exceeded", message);
    };
    let body = json!({
        "value": format!("{EPHEMERAL_KEY}{ticket}"),
        "expires_at": (since_1970() + life).as_secs(),
        "session": told,
    });
    ([(CACHE_CONTROL, "no-store")], axum::Json(body)).into_response()
}
