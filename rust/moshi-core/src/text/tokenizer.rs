//! SentencePiece models (`.model`, unigram or BPE), over the `sentencepiece-rs` crate.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use sentencepiece_rs::{PieceType, SentencePieceProcessor};

use crate::checkpoint::SourceFile;
use crate::error::{Error, Result};

/// What a token stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// Text, spaces already spaces.
    Text(String),
    /// One byte of a character outside the vocabulary.
    Byte(u8),
    /// A marker that is never shown: begin, end, padding, unknown.
    Control,
}

/// A SentencePiece model.
pub struct Tokenizer {
    file: SourceFile,
    processor: SentencePieceProcessor,
    pieces: Vec<Piece>,
    longest_text: usize,
}

impl Tokenizer {
    /// Loads a `.model` file.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Io`], or [`Error::Checkpoint`] when the file is no
    /// SentencePiece model.
    pub fn load(file: impl Into<SourceFile>) -> Result<Self> {
        let file = file.into();
        let bytes = file.bytes()?;
        let bad = |reason: String| Error::Checkpoint {
            path: file.path().into(),
            reason: format!("is not a SentencePiece model: {reason}"),
        };
        // The parser is a dependency and the file is untrusted: a panic is bad input here.
        let parse = || SentencePieceProcessor::from_serialized_model(&bytes);
        let processor = catch_unwind(AssertUnwindSafe(parse))
            .map_err(|_| bad("the parser gave up".into()))?
            .map_err(|e| bad(e.to_string()))?;
        let to_piece = |piece: &sentencepiece_rs::Piece| match piece.kind {
            PieceType::Control | PieceType::Unknown | PieceType::Unused => Ok(Piece::Control),
            PieceType::Byte => parse_byte(&piece.piece)
                .map(Piece::Byte)
                .ok_or_else(|| bad(format!("byte piece {:?}", piece.piece))),
            _ => Ok(Piece::Text(piece.piece.replace(SPACE, " "))),
        };
        let pieces = processor.model().pieces().iter().map(to_piece).collect::<Result<Vec<_>>>()?;
        if pieces.is_empty() {
            return Err(bad("it has no pieces".into()));
        }
        let text_bytes = |piece: &Piece| match piece {
            Piece::Text(text) => text.len(),
            Piece::Byte(_) | Piece::Control => 0,
        };
        let longest_text = pieces.iter().map(text_bytes).max().unwrap_or(0);
        Ok(Self { file, processor, pieces, longest_text })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// Number of tokens.
    pub fn vocab_size(&self) -> usize {
        self.pieces.len()
    }

    /// Bytes of the longest text that one token stands for.
    pub fn longest_text(&self) -> usize {
        self.longest_text
    }

    /// What a token stands for; tokens beyond the vocabulary are markers.
    pub fn piece(&self, token: i64) -> &Piece {
        usize::try_from(token).ok().and_then(|i| self.pieces.get(i)).unwrap_or(&Piece::Control)
    }

    /// Tokens of a text.
    ///
    /// # Errors
    /// [`Error::Input`] when the model cannot express it.
    pub fn encode(&self, text: &str) -> Result<Vec<i64>> {
        let ids = self.processor.encode_to_ids(text);
        let ids = ids.map_err(|e| Error::input("text", e.to_string()))?;
        Ok(ids.into_iter().map(|id| id as i64).collect())
    }
}

/// SentencePiece's mark for a space.
const SPACE: char = '\u{2581}';

/// `<0xAB>` to its byte.
fn parse_byte(piece: &str) -> Option<u8> {
    u8::from_str_radix(piece.strip_prefix("<0x")?.strip_suffix('>')?, 16).ok()
}
