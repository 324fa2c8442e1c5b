//! The Moshi WebSocket `/api/chat`, as the clients of the original speak it.
//!
//! Nothing of the protocol is sent before the handshake, which says that the model listens from now
//! on; metadata follow. Every step is one audio message of whole Ogg pages, then the text if there
//! is some. Audio is decoded and encoded here, never on the worker.

mod audio;
mod conversation;
mod parameters;

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::http::{Request, Response, StatusCode};

use self::audio::{Ears, codec};
use self::conversation::Conversation;
use self::parameters::Parameters;
use crate::auth::parameters;
use crate::hub::OpenError;
use crate::line::{Watch, wait_for_slot};
use crate::routes::{App, refusal};
use crate::server::Counted;
use crate::websocket::{Received, Socket, upgrade};

/// Largest message of a client.
const MAX_MESSAGE_BYTES: usize = 1 << 20;
/// Pause between WebSocket pings.
const PING_EVERY: Duration = Duration::from_secs(5);
/// A peer that sends nothing, not even answers to pings, for so long is gone.
const DEAD_AFTER: Duration = Duration::from_secs(20);

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
    let watch = Watch { ping_every: PING_EVERY, dead_after: DEAD_AFTER };
    let frame_samples = app.hub.card().frame_samples;
    // Clients may talk before the handshake: only the newest frame is of interest.
    let hear = |message| {
        if let Received::Binary(bytes) = message {
            let _ = ears.hear(&bytes);
            let excess = ears.samples.len().saturating_sub(frame_samples);
            ears.samples.drain(..excess);
        }
        true
    };
    let handle = match wait_for_slot(&app.hub, &mut socket, request, watch, hear).await {
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
        took: Duration::ZERO,
        said: None,
    };
    conversation.run().await;
}
