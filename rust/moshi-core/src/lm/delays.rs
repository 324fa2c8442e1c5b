//! Book-keeping of the acoustic delays: which token of which stream enters at which step.
//!
//! Stream `k` is shifted by `delays[k]` frames. The cache is a ring of `max_delay + 2` frames.

use crate::error::{Error, Result};
use crate::snapshot::{Reader, Writer};

/// Token that embeds to the zero vector: "nothing on this stream".
pub const ZERO_TOKEN: i64 = -1;
/// Token that has not been generated yet; never reaches a model.
pub const UNGENERATED_TOKEN: i64 = -2;

/// Tokens of one stream of frames, waiting for their step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DelayCache {
    /// Delay of every stream in frames; text first.
    delays: Vec<usize>,
    /// Token that stands for "before the start", per stream.
    initial: Vec<i64>,
    /// `[stream, slot]`.
    tokens: Vec<i64>,
    slots: usize,
    /// Steps done.
    offset: u64,
}

impl DelayCache {
    /// An empty cache.
    pub fn new(delays: Vec<usize>, initial: Vec<i64>) -> Self {
        assert_eq!(delays.len(), initial.len(), "one initial token per stream");
        let slots = delays.iter().max().copied().unwrap_or(0) + 2;
        let tokens = vec![UNGENERATED_TOKEN; delays.len() * slots];
        Self { delays, initial, tokens, slots, offset: 0 }
    }

    /// Steps done.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Forgets everything.
    pub fn reset(&mut self) {
        let Self { delays: _, initial: _, tokens, slots: _, offset } = self;
        tokens.fill(UNGENERATED_TOKEN);
        *offset = 0;
    }

    /// Pretends that `offset` steps are done and that all their tokens were 0.
    pub(super) fn fill(&mut self, offset: u64) {
        self.tokens.fill(0);
        self.offset = offset;
    }

    /// Stores a token that the caller gives for the current frame of a stream.
    pub fn provide(&mut self, stream: usize, token: i64) {
        let at = self.slot(stream, self.offset + self.delays[stream] as u64);
        self.tokens[at] = token;
    }

    /// The model's input of a stream at this step.
    ///
    /// # Errors
    /// [`Error::Session`] when it has not been generated: a hook returned no real token.
    pub fn input(&self, stream: usize) -> Result<i64> {
        if self.before_start(stream, 0) {
            return Ok(self.initial[stream]);
        }
        match self.tokens[self.slot(stream, self.offset)] {
            UNGENERATED_TOKEN => Err(Error::Session {
                reason: format!("stream {stream} has no token for step {}", self.offset),
            }),
            token => Ok(token),
        }
    }

    /// True while the stream's input is the initial token, or would be within `extra` more frames.
    pub fn before_start(&self, stream: usize, extra: u64) -> bool {
        self.offset <= (self.delays[stream] as u64).saturating_add(extra)
    }

    /// Ends the step: stores the tokens generated in it (streams from the first on) and returns
    /// the newest frame of which all these streams are known, if there is one.
    pub fn finish(
        &mut self,
        tokens: impl ExactSizeIterator<Item = i64>,
    ) -> Option<impl ExactSizeIterator<Item = i64>> {
        let streams = tokens.len();
        self.offset += 1;
        for (stream, token) in tokens.enumerate() {
            let at = self.slot(stream, self.offset);
            self.tokens[at] = token;
        }
        let max_delay = (self.slots - 2) as u64;
        let frame = self.offset.checked_sub(max_delay).filter(|&frame| frame > 0)?;
        let token =
            move |stream: usize| self.tokens[self.slot(stream, frame + self.delays[stream] as u64)];
        Some((0..streams).map(token))
    }

    pub(super) fn write(&self, writer: &mut Writer) {
        writer.u64(self.offset);
        for &token in &self.tokens {
            writer.i64(token);
        }
    }

    /// `limits` is the largest token of every stream.
    pub(super) fn read(&mut self, reader: &mut Reader<'_>, limits: &[i64]) -> Result<()> {
        self.offset = reader.position()?;
        for (i, token) in self.tokens.iter_mut().enumerate() {
            let value = reader.i64()?;
            if !(UNGENERATED_TOKEN..=limits[i / self.slots]).contains(&value) {
                return Err(Error::snapshot(format!("holds the token {value}")));
            }
            *token = value;
        }
        Ok(())
    }

    fn slot(&self, stream: usize, frame: u64) -> usize {
        stream * self.slots + (frame % self.slots as u64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The table of a model with one frame of acoustic delay: text, own codebooks 0 and 1, user
    /// codebooks 0 and 1. Tokens are numbered by the call that made them.
    #[test]
    fn streams_enter_and_leave_with_their_delays() {
        let mut cache = DelayCache::new(vec![0, 0, 1, 0, 1], vec![900, 901, 902, 903, 904]);
        let mut rows: Vec<Option<Vec<i64>>> = Vec::new();
        let mut inputs = Vec::new();
        for call in 0..4 {
            cache.provide(3, 300 + call);
            cache.provide(4, 400 + call);
            inputs.push((0..5).map(|s| cache.input(s).unwrap()).collect::<Vec<_>>());
            let row = cache.finish([call, 100 + call, 200 + call].into_iter());
            rows.push(row.map(Iterator::collect));
        }
        assert_eq!(inputs[0], [900, 901, 902, 903, 904]);
        assert_eq!(inputs[1], [0, 100, 902, 301, 904]);
        assert_eq!(inputs[2], [1, 101, 201, 302, 401]);
        assert_eq!(rows[0], None);
        assert_eq!(rows[1], Some(vec![0, 100, 201]));
        assert_eq!(rows[3], Some(vec![2, 102, 203]));
    }

    #[test]
    fn without_delay_every_call_returns_its_own_row() {
        let mut cache = DelayCache::new(vec![0, 0], vec![9, 9]);
        cache.provide(1, 5);
        assert!(cache.finish([4].into_iter()).unwrap().eq([4]));
    }

    #[test]
    fn a_missing_token_is_an_error_not_a_token() {
        let mut cache = DelayCache::new(vec![0, 0], vec![9, 9]);
        cache.finish([UNGENERATED_TOKEN].into_iter());
        assert!(cache.input(0).is_err());
    }
}
