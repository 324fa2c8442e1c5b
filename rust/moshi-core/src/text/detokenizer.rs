//! Tokens to text as they come, never half a character.

use super::Piece;

/// Bytes of a character that is not complete yet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Detokenizer {
    /// The first `count` are pending, the others 0.
    bytes: [u8; LONGEST_CHARACTER],
    count: usize,
}

/// Bytes of the longest character in UTF-8.
const LONGEST_CHARACTER: usize = 4;

impl Detokenizer {
    /// From pending bytes of a snapshot; anything that cannot begin a character is dropped.
    pub fn from_pending(pending: &[u8]) -> Self {
        let mut detokenizer = Self::default();
        for &byte in pending {
            detokenizer.push(&Piece::Byte(byte));
        }
        detokenizer
    }

    /// Bytes waiting for the rest of their character: at most three.
    pub fn pending(&self) -> &[u8] {
        &self.bytes[..self.count]
    }

    /// Adds a token and returns the text that is now certain. Bytes that cannot become a
    /// character turn into U+FFFD.
    pub fn push(&mut self, piece: &Piece) -> String {
        let mut out = String::new();
        self.push_into(piece, &mut out);
        out
    }

    /// As [`Detokenizer::push`], appending to `out`.
    pub fn push_into(&mut self, piece: &Piece, out: &mut String) {
        match piece {
            Piece::Control => {}
            Piece::Text(text) => {
                self.give_up(out);
                out.push_str(text);
            }
            Piece::Byte(byte) => {
                self.bytes[self.count] = *byte;
                self.count += 1;
                self.complete(out);
            }
        }
    }

    /// Gives up on an incomplete character: U+FFFD if there is one, else nothing.
    pub fn finish(&mut self) -> String {
        let mut out = String::new();
        self.give_up(&mut out);
        out
    }

    fn give_up(&mut self, out: &mut String) {
        if self.count > 0 {
            self.drop_first(self.count);
            out.push(char::REPLACEMENT_CHARACTER);
        }
    }

    fn complete(&mut self, out: &mut String) {
        loop {
            let (valid, invalid) = match std::str::from_utf8(self.pending()) {
                Ok(text) => (text.len(), None),
                Err(error) => (error.valid_up_to(), error.error_len()),
            };
            let text = std::str::from_utf8(&self.pending()[..valid]).expect("checked above");
            out.push_str(text);
            self.drop_first(valid);
            let Some(invalid) = invalid else { return };
            out.push(char::REPLACEMENT_CHARACTER);
            self.drop_first(invalid);
        }
    }

    fn drop_first(&mut self, count: usize) {
        self.bytes.copy_within(count..self.count, 0);
        self.count -= count;
        self.bytes[self.count..].fill(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn feed(bytes: &[u8]) -> Vec<String> {
        let mut detokenizer = Detokenizer::default();
        bytes.iter().map(|&b| detokenizer.push(&Piece::Byte(b))).collect()
    }

    #[test]
    fn characters_come_whole() {
        assert_eq!(feed("é".as_bytes()), ["", "é"]);
        assert_eq!(feed("🙂".as_bytes()), ["", "", "", "🙂"]);
        assert_eq!(feed(b"a"), ["a"]);
    }

    #[test]
    fn broken_bytes_become_replacement_characters() {
        assert_eq!(feed(&[0xff, b'a']), ["\u{fffd}", "a"]);
        assert_eq!(feed(&[0xe2, 0x82, b'a']), ["", "", "\u{fffd}a"]);
        let mut detokenizer = Detokenizer::default();
        detokenizer.push(&Piece::Byte(0xc3));
        assert_eq!(detokenizer.push(&Piece::Text(" b".into())), "\u{fffd} b");
        detokenizer.push(&Piece::Byte(0xc3));
        assert_eq!(detokenizer.finish(), "\u{fffd}");
        assert_eq!(detokenizer.finish(), "");
    }

    #[test]
    fn markers_leave_pending_bytes_alone() {
        let mut detokenizer = Detokenizer::default();
        detokenizer.push(&Piece::Byte(0xc3));
        assert_eq!(detokenizer.push(&Piece::Control), "");
        assert_eq!(detokenizer.push(&Piece::Byte(0xa9)), "é");
    }
}
