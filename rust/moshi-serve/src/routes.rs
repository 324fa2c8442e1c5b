//! Addresses of the daemon, who may ask for them, and the answers that need no conversation.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::http::header::{ACCEPT, CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderMap, HeaderValue, Response, StatusCode, Uri};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::IntoResponse;
use axum::routing::{get, post};
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::auth::{Admission, Auth, Origins, TICKET_LIFE};
use crate::hub::{Hub, Readiness};
use crate::{chat, metrics, realtime, web};

/// Begins the media types of the newer form of metrics.
const OPEN_METRICS: &str = "application/openmetrics-text";

/// What every request may need.
pub(crate) struct App {
    pub(crate) hub: Hub,
    pub(crate) auth: Auth,
    pub(crate) origins: Origins,
    /// Set when the daemon shuts down: the time that is left.
    pub(crate) drain: watch::Receiver<Option<Duration>>,
    pub(crate) started: SystemTime,
}

/// All addresses.
pub(crate) fn router(app: Arc<App>) -> Router {
    let open = Router::new()
        .route("/healthz", get(alive))
        .route("/ping", get(alive))
        .route("/v2/health/live", get(alive))
        .route("/readyz", get(ready))
        .route("/health", get(ready))
        .route("/v2/health/ready", get(ready))
        .merge(web::routes());
    let keyed = Router::new()
        .route("/api/chat", get(chat::handler))
        .route("/api/build_info", get(build_info))
        .route("/api/modules_info", get(modules_info))
        .route("/metrics", get(metrics_text))
        .route("/v1/realtime", get(realtime::handler))
        .route("/realtime", get(realtime::handler))
        .route("/v1/live/sessions", get(realtime::live::handler))
        .route("/v1/models", get(models))
        .route("/v1/models/{model}", get(model))
        .layer(from_fn_with_state(Arc::clone(&app), keys));
    Router::new()
        .merge(open)
        .merge(keyed)
        .route("/api/ticket", post(ticket))
        .route("/v1/realtime/client_secrets", post(realtime::secrets::handler))
        .fallback(unknown)
        .layer(from_fn_with_state(Arc::clone(&app), origins))
        .with_state(app)
}

/// An error as JSON, in the form that clients of OpenAI's interface read.
pub(crate) fn refusal(status: StatusCode, code: &str, message: &str) -> Response<Body> {
    let kind = match status.as_u16() {
        429 => "rate_limit_error",
        500.. => "server_error",
        _ => "invalid_request_error",
    };
    let body =
        json!({ "error": { "message": message, "type": kind, "param": null, "code": code } });
    let mut response = (status, axum::Json(body)).into_response();
    if status == StatusCode::SERVICE_UNAVAILABLE || status == StatusCode::TOO_MANY_REQUESTS {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("5"));
    }
    if status == StatusCode::UNAUTHORIZED {
        response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    response
}

/// The answer to pages and names that may not connect.
pub(crate) fn foreign() -> Response<Body> {
    let message = "this page or host name may not connect; the operator can allow it with \
                   --allow-origin";
    refusal(StatusCode::FORBIDDEN, "origin_not_allowed", message)
}

async fn origins(State(app): State<Arc<App>>, request: Request, next: Next) -> Response<Body> {
    if !app.origins.allow(request.headers()) {
        app.reject("origin");
        return foreign();
    }
    next.run(request).await
}

async fn keys(State(app): State<Arc<App>>, mut request: Request, next: Next) -> Response<Body> {
    let admission = app.auth.admit(request.headers(), request.uri(), Instant::now());
    let Some(Admission { ticket }) = admission else {
        return app.unauthorised();
    };
    if let Some(ticket) = ticket {
        request.extensions_mut().insert(ticket);
    }
    next.run(request).await
}

impl App {
    fn reject(&self, reason: &str) {
        let rejected = &self.hub.metrics().rejected;
        rejected.get_or_create(&metrics::label("reason", reason)).inc();
    }

    pub(crate) fn unauthorised(&self) -> Response<Body> {
        self.reject("auth");
        let message = "no valid API key; send one as `Authorization: Bearer KEY`";
        refusal(StatusCode::UNAUTHORIZED, "invalid_api_key", message)
    }
}

pub(crate) async fn alive() -> &'static str {
    "ok\n"
}

async fn ready(State(app): State<Arc<App>>) -> Response<Body> {
    let readiness = app.hub.readiness();
    let (status, name) = match readiness {
        Readiness::Ready => (StatusCode::OK, "ok"),
        Readiness::Draining => (StatusCode::SERVICE_UNAVAILABLE, "draining"),
        Readiness::Failed => (StatusCode::SERVICE_UNAVAILABLE, "unhealthy"),
    };
    let slots = app.hub.slots();
    let card = app.hub.card();
    let models = json!([{
        "name": card.name,
        "kind": "dialogue",
        "slots_total": slots.capacity,
        "slots_used": slots.used,
    }]);
    (status, axum::Json(json!({ "status": name, "models": models }))).into_response()
}

async fn metrics_text(State(app): State<Arc<App>>, headers: HeaderMap) -> Response<Body> {
    let accepted = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let mut accepted = accepted.flat_map(|value| value.split(','));
    let (kind, text) = if accepted.any(|kind| kind.trim().starts_with(OPEN_METRICS)) {
        (metrics::CONTENT_TYPE, app.hub.metrics_text())
    } else {
        (metrics::CLASSIC_CONTENT_TYPE, app.hub.classic_metrics_text())
    };
    ([(CONTENT_TYPE, kind)], text).into_response()
}

async fn build_info() -> axum::Json<Value> {
    axum::Json(build_facts())
}

/// The ten fields that the original's clients check, all strings.
pub(crate) fn build_facts() -> Value {
    let unknown = "unknown";
    let commit = option_env!("MOSHI_RS_COMMIT").unwrap_or(unknown);
    let triple = format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS);
    json!({
        "build_timestamp": unknown,
        "build_date": unknown,
        "git_branch": unknown,
        "git_timestamp": unknown,
        "git_date": unknown,
        "git_hash": commit,
        "git_describe": concat!("moshi-rs ", env!("CARGO_PKG_VERSION")),
        "rustc_host_triple": triple,
        "rustc_version": unknown,
        "cargo_target_triple": triple,
    })
}

/// Numbers of slots are texts, as the original has them.
async fn modules_info(State(app): State<Arc<App>>) -> axum::Json<Value> {
    let slots = app.hub.slots();
    axum::Json(json!([{
        "type": "lm",
        "path": "/api/chat",
        "lm": app.hub.card().name,
        "used_slots": slots.used.to_string(),
        "total_slots": slots.capacity.to_string(),
    }]))
}

fn model_object(app: &App) -> Value {
    let created = app.started.duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
    json!({
        "id": app.hub.card().name,
        "object": "model",
        "created": created,
        "owned_by": "moshi-rs",
    })
}

async fn models(State(app): State<Arc<App>>) -> axum::Json<Value> {
    axum::Json(json!({ "object": "list", "data": [model_object(&app)] }))
}

async fn model(State(app): State<Arc<App>>, Path(name): Path<String>) -> Response<Body> {
    if name == app.hub.card().name {
        return axum::Json(model_object(&app)).into_response();
    }
    let message = format!("no such model; this server has {}", app.hub.card().name);
    refusal(StatusCode::NOT_FOUND, "model_not_found", &message)
}

/// Exchanges a key for a ticket: a page cannot set headers of a WebSocket.
async fn ticket(State(app): State<Arc<App>>, headers: HeaderMap, uri: Uri) -> Response<Body> {
    if app.auth.is_required() && !app.auth.has_key(&headers, &uri) {
        return app.unauthorised();
    }
    match app.auth.issue_ticket(Instant::now()) {
        Some(ticket) => {
            let body = json!({ "ticket": ticket, "expires_in": TICKET_LIFE.as_secs() });
            ([(CACHE_CONTROL, "no-store")], axum::Json(body)).into_response()
        }
        None => {
            let message = "too many tickets are out; try again in a minute";
            refusal(StatusCode::TOO_MANY_REQUESTS, "rate_limit_exceeded", message)
        }
    }
}

async fn unknown() -> Response<Body> {
    refusal(StatusCode::NOT_FOUND, "not_found", "no such address; see the documentation")
}
