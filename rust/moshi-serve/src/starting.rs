//! Answers before there is an engine: a large model takes minutes to load, and whoever watches the
//! process wants to know meanwhile that it lives.
//!
//! Health is told and everything else refused, from a thread of its own: the caller's is loading.

use std::net::TcpListener as StdListener;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header::CONNECTION;
use axum::http::{HeaderValue, Response, StatusCode};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::IntoResponse;
use axum::routing::get;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};

use crate::auth::Origins;
use crate::error::ServeError;
use crate::routes::{alive, foreign, refusal};
use crate::server::Accepting;

/// Time for answers that are under way when the engine is there.
const LAST_ANSWERS: Duration = Duration::from_millis(500);

/// Answers until it is dropped; then connections wait for who accepts next.
pub(crate) struct Starting {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Starting {
    pub(crate) fn begin(listener: &StdListener, accepting: Accepting) -> Result<Self, ServeError> {
        let listener = listener.try_clone().map_err(ServeError::Runtime)?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(ServeError::Runtime)?;
        let (stop, stopped) = oneshot::channel();
        let answer = move || runtime.block_on(run(listener, accepting, stopped));
        let thread = std::thread::Builder::new()
            .name("moshi-starting".into())
            .spawn(answer)
            .map_err(ServeError::Runtime)?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Starting {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic in there has cost answers only.
            let _ = thread.join();
        }
    }
}

async fn run(listener: StdListener, accepting: Accepting, stopped: oneshot::Receiver<()>) {
    let listener = match TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return log::warn!("nothing is answered while the model loads: {error}"),
    };
    let connections = Arc::clone(&accepting.connections);
    let accept = tokio::spawn(accepting.run(listener));
    // Dropping the sender is the signal.
    let _ = stopped.await;
    accept.abort();
    // Its end gives the listener back.
    let _ = accept.await;
    let over = async {
        while connections.count() > 0 {
            sleep(Duration::from_millis(5)).await;
        }
    };
    let _ = timeout(LAST_ANSWERS, over).await;
}

/// The addresses while the model loads.
pub(crate) fn router(origins: Origins) -> Router {
    Router::new()
        .route("/healthz", get(alive))
        .route("/ping", get(alive))
        .route("/v2/health/live", get(alive))
        .route("/readyz", get(loading))
        .route("/health", get(loading))
        .route("/v2/health/ready", get(loading))
        .fallback(unready)
        .layer(from_fn_with_state(Arc::new(origins), guard))
}

async fn guard(
    State(origins): State<Arc<Origins>>,
    request: Request,
    next: Next,
) -> Response<Body> {
    let mut response =
        if origins.allow(request.headers()) { next.run(request).await } else { foreign() };
    // The next request is for who comes after.
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    response
}

async fn loading() -> Response<Body> {
    let body = json!({ "status": "loading", "models": [] });
    (StatusCode::SERVICE_UNAVAILABLE, axum::Json(body)).into_response()
}

async fn unready() -> Response<Body> {
    let message = "the server is loading its model; try again in a moment";
    refusal(StatusCode::SERVICE_UNAVAILABLE, "loading", message)
}
