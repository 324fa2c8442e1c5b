//! The Moshi WebSocket `/api/chat`, as the clients of the original speak it.
//!
//! Nothing of the protocol is sent before the handshake, which says that the model listens from now
//! on; metadata follow. Every step is one audio message of whole Ogg pages, then the text if there
//! is some. Audio is decoded and encoded here, never on the worker.

mod audio;
mod conversation;
mod parameters;

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::http::{Request, Response, StatusCode};
use tokio::time::interval;

use self::audio::{Ears, codec};
use self::conversation::Conversation;
use self::parameters::Parameters;
use crate::auth::parameters;
use crate::hub::{OpenError, SessionHandle, SessionRequest};
use crate::routes::{App, refusal};
use crate::server::Counted;
use crate::websocket::{Received, Socket, upgrade};

/// Largest message of a client.
const MAX_MESSAGE_BYTES: usize = 1 << 20;
/// Pause between WebSocket pings.
const PING_EVERY: Duration = Duration::from_secs(5);

/// `GET /api/chat`.
pub(crate) async fn handler(
    State(app): State<Arc<App>>,
    axum::Extension(counted): axum::Extension<Counted>,
    mut request: Request<Body>,
) -> Response<Body> {
    let parameters = match Parameters::parse(&parameters(request.uri())) {
        Ok(parameters) => parameters,
        Err(reason) => return refusal(StatusCode::BAD_REQUEST, "invalid_value", &reason),
    };
    if app.drain.borrow().is_some() {
        let reason = OpenError::Draining.to_string();
        return refusal(StatusCode::SERVICE_UNAVAILABLE, "draining", &reason);
    }
    upgrade(&mut request, "moshi", MAX_MESSAGE_BYTES, move |socket| async move {
        run(&app, socket, &parameters).await;
        drop(counted);
    })
}

async fn run(app: &App, mut socket: Socket, parameters: &Parameters) {
    let (listener, mouth) = match codec(app.hub.card().sample_rate_hz, parameters.plain) {
        Ok(codec) => codec,
        Err(error) => return socket.close(1011, &error.to_string()).await,
    };
    let mut ears = Ears::new(listener, app.hub.card().sample_rate_hz);
    let request = parameters.request(app.hub.card().sampling);
    let handle = match wait_for_slot(app, &mut socket, request, &mut ears).await {
        Some(Ok(handle)) => handle,
        Some(Err(error)) => return socket.close(error.close_code(), &error.to_string()).await,
        None => return,
    };
    let conversation = Conversation {
        app,
        socket,
        handle,
        ears,
        mouth,
        parameters,
        drain: app.drain.clone(),
        lag: Duration::ZERO,
        dropped: 0,
        said: None,
    };
    conversation.run().await;
}

/// Opens the conversation, and keeps the connection alive while it waits in the line. `None` when
/// the client left.
async fn wait_for_slot(
    app: &App,
    socket: &mut Socket,
    request: SessionRequest,
    ears: &mut Ears,
) -> Option<Result<SessionHandle, OpenError>> {
    let mut opening = pin!(app.hub.open(request));
    let mut ping = interval(PING_EVERY);
    ping.reset();
    loop {
        tokio::select! {
            biased;
            opened = &mut opening => return Some(opened),
            received = socket.receive() => match received {
                // Clients may talk before the handshake: only the newest frame is of interest.
                Received::Binary(bytes) => {
                    let _ = ears.hear(&bytes);
                    let excess = ears.samples.len().saturating_sub(app.hub.card().frame_samples);
                    ears.samples.drain(..excess);
                }
                Received::Text(_) | Received::Pong => {}
                Received::Closed | Received::Lost | Received::TooLarge => return None,
            },
            _ = ping.tick() => if !socket.ping().await { return None },
        }
    }
}
