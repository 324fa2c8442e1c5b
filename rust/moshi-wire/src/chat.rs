//! Messages of the Moshi WebSocket `/api/chat`: one binary message is a kind byte and a payload.
//!
//! A server discards kinds that it does not know. It never sends a kind that the web client of the
//! original does not know, nor text that is cut inside a character.

use crate::WireError;

/// What one byte of a [`ChatMessage::Control`] asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Control {
    /// Start.
    Start,
    /// End of the turn.
    EndTurn,
    /// Pause.
    Pause,
    /// Restart.
    Restart,
}

impl Control {
    const ALL: [Self; 4] = [Self::Start, Self::EndTurn, Self::Pause, Self::Restart];

    fn from_byte(byte: u8) -> Option<Self> {
        Self::ALL.get(usize::from(byte)).copied()
    }

    fn byte(self) -> u8 {
        match self {
            Self::Start => 0,
            Self::EndTurn => 1,
            Self::Pause => 2,
            Self::Restart => 3,
        }
    }
}

/// One message, borrowing its payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChatMessage<'a> {
    /// The first message of a server: the model listens now. Versions of protocol and model.
    Handshake {
        /// Version of the protocol, 0.
        protocol: u32,
        /// Version of the model, 0.
        model: u32,
    },
    /// A part of an Ogg stream with Opus in it, mono.
    Audio(&'a [u8]),
    /// Text that follows the text before; a word begins with a space.
    Text(&'a str),
    /// A request of the client.
    Control(Control),
    /// A JSON object about the session.
    Metadata(&'a str),
    /// What went wrong, for people.
    Error(&'a str),
    /// Keeps the connection alive; no answer expected.
    Ping,
    /// Text with a colour index from 0 to 10.
    ColoredText(u8, &'a str),
    /// An image file, for models that see.
    Image(&'a [u8]),
    /// The user's rating from 1 to 5.
    Rating(u8),
}

const HANDSHAKE: u8 = 0x00;
const AUDIO: u8 = 0x01;
const TEXT: u8 = 0x02;
const CONTROL: u8 = 0x03;
const METADATA: u8 = 0x04;
const ERROR: u8 = 0x05;
const PING: u8 = 0x06;
const COLORED_TEXT: u8 = 0x07;
const IMAGE: u8 = 0x08;
const RATING: u8 = 0x0a;

impl<'a> ChatMessage<'a> {
    /// Reads a message. A handshake may come without its versions, as the PyTorch server sends it.
    ///
    /// # Errors
    /// [`WireError::Empty`], [`WireError::UnknownKind`] or [`WireError::Payload`].
    pub fn decode(message: &'a [u8]) -> Result<Self, WireError> {
        let (&kind, payload) = message.split_first().ok_or(WireError::Empty)?;
        let wrong = |reason| WireError::Payload { kind, reason };
        let text = |bytes| std::str::from_utf8(bytes).map_err(|_| wrong("text is not UTF-8"));
        Ok(match kind {
            HANDSHAKE => match payload {
                [] => Self::Handshake { protocol: 0, model: 0 },
                _ => {
                    let versions: [u8; 8] =
                        payload.try_into().map_err(|_| wrong("neither 0 nor 8 bytes"))?;
                    let [a, b, c, d, e, f, g, h] = versions;
                    Self::Handshake {
                        protocol: u32::from_le_bytes([a, b, c, d]),
                        model: u32::from_le_bytes([e, f, g, h]),
                    }
                }
            },
            AUDIO => Self::Audio(payload),
            TEXT => Self::Text(text(payload)?),
            CONTROL => match payload {
                [byte] => Self::Control(
                    Control::from_byte(*byte).ok_or_else(|| wrong("unknown control"))?,
                ),
                _ => return Err(wrong("not exactly one byte")),
            },
            METADATA => Self::Metadata(text(payload)?),
            ERROR => Self::Error(text(payload)?),
            PING => Self::Ping,
            COLORED_TEXT => {
                let (&color, rest) = payload.split_first().ok_or_else(|| wrong("no colour"))?;
                Self::ColoredText(color, text(rest)?)
            }
            IMAGE => Self::Image(payload),
            RATING => match payload {
                [stars @ 1..=5] => Self::Rating(*stars),
                _ => return Err(wrong("not one byte from 1 to 5")),
            },
            kind => return Err(WireError::UnknownKind { kind }),
        })
    }

    /// The bytes of the message. Of a handshake, the long form that every known client takes.
    pub fn encode(&self) -> Vec<u8> {
        let with = |kind: u8, payload: &[u8]| {
            let mut bytes = Vec::with_capacity(1 + payload.len());
            bytes.push(kind);
            bytes.extend_from_slice(payload);
            bytes
        };
        match *self {
            Self::Handshake { protocol, model } => {
                with(HANDSHAKE, &[protocol.to_le_bytes(), model.to_le_bytes()].concat())
            }
            Self::Audio(payload) => with(AUDIO, payload),
            Self::Text(text) => with(TEXT, text.as_bytes()),
            Self::Control(control) => with(CONTROL, &[control.byte()]),
            Self::Metadata(json) => with(METADATA, json.as_bytes()),
            Self::Error(text) => with(ERROR, text.as_bytes()),
            Self::Ping => vec![PING],
            Self::ColoredText(color, text) => {
                let mut bytes = vec![COLORED_TEXT, color];
                bytes.extend_from_slice(text.as_bytes());
                bytes
            }
            Self::Image(payload) => with(IMAGE, payload),
            Self::Rating(stars) => with(RATING, &[stars]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn bytes_are_those_of_the_protocol() {
        for (message, bytes) in [
            (ChatMessage::Handshake { protocol: 0, model: 0 }, &[0; 9][..]),
            (ChatMessage::Audio(b"OggS"), b"\x01OggS"),
            (ChatMessage::Text(" hi"), b"\x02 hi"),
            (ChatMessage::Control(Control::EndTurn), b"\x03\x01"),
            (ChatMessage::Metadata("{}"), b"\x04{}"),
            (ChatMessage::Error("full"), b"\x05full"),
            (ChatMessage::Ping, b"\x06"),
            (ChatMessage::ColoredText(4, "a"), b"\x07\x04a"),
            (ChatMessage::Image(b"\xff\xd8"), b"\x08\xff\xd8"),
            (ChatMessage::Rating(5), b"\x0a\x05"),
        ] {
            assert_eq!(message.encode(), bytes);
            assert_eq!(ChatMessage::decode(bytes), Ok(message));
        }
        let short = ChatMessage::decode(&[0]);
        assert_eq!(short, Ok(ChatMessage::Handshake { protocol: 0, model: 0 }));
    }

    #[test]
    fn what_is_no_message_says_why() {
        assert_eq!(ChatMessage::decode(&[]), Err(WireError::Empty));
        assert_eq!(ChatMessage::decode(&[9]), Err(WireError::UnknownKind { kind: 9 }));
        for bad in [
            &[0, 1][..],
            &[2, 0xff],
            &[3],
            &[3, 4],
            &[3, 0, 0],
            &[4, 0xc3],
            &[7],
            &[7, 0, 0xff],
            &[10],
            &[10, 0],
            &[10, 6],
        ] {
            let error = ChatMessage::decode(bad).unwrap_err();
            assert!(matches!(error, WireError::Payload { kind, .. } if kind == bad[0]), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_message_or_an_error(bytes: Vec<u8>) {
            if let Ok(message) = ChatMessage::decode(&bytes) {
                let again = message.encode();
                prop_assert_eq!(ChatMessage::decode(&again), Ok(message));
            }
        }
    }
}
