//! SentencePiece ids to text and back, incrementally.

mod detokenizer;
mod tokenizer;

pub use detokenizer::Detokenizer;
pub use tokenizer::{Piece, Tokenizer};
