//! Tokenizers against what SentencePiece itself gives, and text that comes a token at a time.

use std::path::Path;

use moshi_core::text::{Detokenizer, Piece, Tokenizer};
use proptest::prelude::*;
use serde_json::Value;

use crate::support::{golden, property};

/// One word in a language of its own, so that most characters need byte pieces.
const ODD_TEXT: &str = "naïve 🙂 café — 日本 👩\u{200d}👧 z\u{10ffff}";

struct Reference {
    tokenizer: Tokenizer,
    json: Value,
}

fn references() -> [Reference; 2] {
    ["unigram", "bpe"].map(|kind| {
        let path = golden(&format!("tokenizers/{kind}.model"));
        let json = std::fs::read_to_string(path.with_extension("json")).unwrap();
        Reference {
            tokenizer: Tokenizer::load(&path).unwrap(),
            json: serde_json::from_str(&json).unwrap(),
        }
    })
}

fn ids(value: &Value) -> Vec<i64> {
    value.as_array().unwrap().iter().map(|id| id.as_i64().unwrap()).collect()
}

/// Everything that a token stream says, checked to come in whole characters.
fn spoken(tokenizer: &Tokenizer, tokens: &[i64]) -> String {
    let mut detokenizer = Detokenizer::default();
    let mut text = String::new();
    for &token in tokens {
        text.push_str(&detokenizer.push(tokenizer.piece(token)));
        assert!(detokenizer.pending().len() <= 3);
    }
    text.push_str(&detokenizer.finish());
    text
}

#[test]
fn tokens_equal_those_of_sentencepiece() {
    for Reference { tokenizer, json } in references() {
        assert_eq!(tokenizer.vocab_size() as u64, json["vocab_size"].as_u64().unwrap());
        let texts = json["texts"].as_array().unwrap();
        assert!(texts.len() >= 15);
        for case in texts {
            let text = case["text"].as_str().unwrap();
            let expected = ids(&case["ids"]);
            assert_eq!(tokenizer.encode(text).unwrap(), expected, "{text:?}");
            for (&id, piece) in expected.iter().zip(case["pieces"].as_array().unwrap()) {
                let piece = piece.as_str().unwrap();
                match tokenizer.piece(id) {
                    Piece::Text(text) => assert_eq!(*text, piece.replace('▁', " ")),
                    Piece::Byte(byte) => assert_eq!(format!("<0x{byte:02X}>"), piece),
                    Piece::Control => panic!("{piece} of {text:?} is no marker"),
                }
            }
            let said = spoken(&tokenizer, &expected);
            let decoded = case["decoded"].as_str().unwrap();
            assert_eq!(said.strip_prefix(' ').unwrap_or(&said), decoded);
        }
    }
}

#[test]
fn incremental_text_never_splits_a_character() {
    for Reference { tokenizer, .. } in references() {
        let tokens = tokenizer.encode(ODD_TEXT).unwrap();
        let bytes = tokens.iter().filter(|&&t| matches!(tokenizer.piece(t), Piece::Byte(_)));
        assert!(bytes.count() > 20, "most characters are spelled in bytes");
        let mut detokenizer = Detokenizer::default();
        let parts: Vec<String> =
            tokens.iter().map(|&token| detokenizer.push(tokenizer.piece(token))).collect();
        assert!(parts.iter().all(|part| !part.contains(char::REPLACEMENT_CHARACTER)));
        assert!(parts.contains(&"🙂".to_owned()), "an emoji comes whole: {parts:?}");
        assert_eq!(detokenizer.finish(), "");
        assert_eq!(parts.concat().trim_start(), ODD_TEXT);
    }
}

#[test]
fn any_byte_tokens_decode_as_their_bytes_do() {
    let [Reference { tokenizer, .. }, _] = references();
    let token_of = |byte: u8| {
        let is_it = |&token: &i64| *tokenizer.piece(token) == Piece::Byte(byte);
        (0..tokenizer.vocab_size() as i64).find(is_it).unwrap()
    };
    let tokens: Vec<i64> = (0..=255).map(token_of).collect();
    let lead = prop_oneof![any::<u8>(), 0xc0u8..=0xf4, 0x80u8..=0xbf];
    property(64, &prop::collection::vec(lead, 0..24), |bytes| {
        let sequence: Vec<i64> = bytes.iter().map(|&byte| tokens[byte as usize]).collect();
        assert_eq!(spoken(&tokenizer, &sequence), String::from_utf8_lossy(&bytes));
    });
}

#[test]
fn random_text_survives() {
    for Reference { tokenizer, .. } in references() {
        property(64, &"[a-z0-9 éß🙂日]{0,30}", |text| {
            let said = spoken(&tokenizer, &tokenizer.encode(&text).unwrap());
            let words: Vec<&str> = text.split(' ').filter(|word| !word.is_empty()).collect();
            assert_eq!(said.trim_start(), words.join(" "));
        });
    }
}

#[test]
fn the_dialogue_tokenizer_round_trips_its_alphabet() {
    let tokenizer = Tokenizer::load(&golden("dialogue_repo/tokenizer.model")).unwrap();
    assert_eq!(tokenizer.vocab_size(), 50);
    for text in ["hello world", "the quick brown fox jumps over the lazy dog", "a"] {
        let tokens = tokenizer.encode(text).unwrap();
        assert_eq!(spoken(&tokenizer, &tokens).trim_start(), text);
    }
    for marker in [0, 1, 2, 3, -1, 50, i64::MIN, i64::MAX] {
        assert_eq!(*tokenizer.piece(marker), Piece::Control, "{marker}");
    }
    assert_eq!(tokenizer.encode("hello").unwrap(), [4, 12, 15, 15, 6]);
    assert!(Path::new(tokenizer.path()).ends_with("dialogue_repo/tokenizer.model"));
}

#[test]
fn pending_bytes_survive_by_value() {
    let mut detokenizer = Detokenizer::default();
    for byte in &"🙂".as_bytes()[..3] {
        assert_eq!(detokenizer.push(&Piece::Byte(*byte)), "");
    }
    let mut copy = Detokenizer::from_pending(detokenizer.pending());
    assert_eq!(copy, detokenizer);
    assert_eq!(copy.push(&Piece::Byte("🙂".as_bytes()[3])), "🙂");
    let forged = Detokenizer::from_pending(b"ab\xff");
    assert!(forged.pending().is_empty(), "bytes that cannot wait are dropped");
}
