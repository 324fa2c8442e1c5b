//! A caller while it waits for a slot: its connection is kept alive and watched, and what it says
//! is heard.

use std::pin::pin;
use std::time::Duration;

use tokio::time::{Instant, interval};

use crate::hub::{Hub, OpenError, SessionHandle, SessionRequest};
use crate::websocket::{Received, Socket};

/// Bytes of messages that are kept until there is a slot. The message that passes them is the last
/// one that is read.
const MAX_EARLY_BYTES: usize = 1 << 20;

/// How the connection of a protocol is watched.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Watch {
    /// Pause between pings.
    pub(crate) ping_every: Duration,
    /// A peer that sends nothing, not even answers to pings, for so long is gone.
    pub(crate) dead_after: Duration,
}

/// Messages of a caller that has no session yet, for later.
#[derive(Debug, Default)]
pub(crate) struct Early {
    messages: Vec<Vec<u8>>,
    bytes: usize,
}

impl Early {
    /// Keeps a message; false when no more fit.
    pub(crate) fn keep(&mut self, message: Received) -> bool {
        let message = match message {
            Received::Text(text) => text.into_bytes(),
            Received::Binary(bytes) => bytes.to_vec(),
            _ => return true,
        };
        self.bytes += message.len();
        self.messages.push(message);
        self.bytes < MAX_EARLY_BYTES
    }

    pub(crate) fn into_messages(self) -> Vec<Vec<u8>> {
        self.messages
    }
}

/// Opens a conversation. Messages that come meanwhile go to `hear`, until it says that it takes no
/// more. `None` when the client left, or was told to.
pub(crate) async fn wait_for_slot(
    hub: &Hub,
    socket: &mut Socket,
    request: SessionRequest,
    watch: Watch,
    mut hear: impl FnMut(Received) -> bool,
) -> Option<Result<SessionHandle, OpenError>> {
    let left = {
        let mut opening = pin!(hub.open(request));
        let mut ping = interval(watch.ping_every);
        ping.reset();
        let mut alive = Instant::now();
        let mut listens = true;
        loop {
            tokio::select! {
                biased;
                opened = &mut opening => return Some(opened),
                received = socket.receive(), if listens => {
                    alive = Instant::now();
                    match received {
                        Received::Lost => return None,
                        Received::Closed => break None,
                        Received::Misuse(misuse) => break Some(misuse),
                        Received::Pong => {}
                        message => listens = hear(message),
                    }
                }
                _ = ping.tick() => {
                    // Who is not listened to is not heard.
                    let dead = listens && alive.elapsed() > watch.dead_after;
                    if dead || !socket.ping().await {
                        return None;
                    }
                }
            }
        }
    };
    // The place in the line is given up by now.
    match left {
        Some(misuse) => socket.refuse(misuse).await,
        None => socket.answer_goodbye().await,
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn early_messages_are_bounded_and_keep_their_order() {
        let mut early = Early::default();
        assert!(early.keep(Received::Text("one".into())));
        assert!(early.keep(Received::Binary(b"two"[..].into())));
        assert!(!early.keep(Received::Binary(vec![0; MAX_EARLY_BYTES].into())));
        let messages = early.into_messages();
        assert_eq!((messages.len(), &messages[..2]), (3, &[b"one".to_vec(), b"two".to_vec()][..]));
    }
}
