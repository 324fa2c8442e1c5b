//! Which past positions the codec's transformers see.

use crate::exec::{AttentionPlan, Rotary};
use crate::scratch::Scratch;

/// Which past positions the transformers of the codec see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Window {
    /// The last `context` positions before the end of the query's frame, the rule of the
    /// original's streaming mode: the first position of a frame sees one key less than the last.
    Moshi {
        /// Positions.
        context: usize,
    },
    /// This many positions up to and including the query, the rule of the original's offline mode.
    Last(usize),
}

impl Window {
    /// Lowest visible position of a query.
    fn lowest(self, position: u64, positions_per_frame: u64) -> u64 {
        match self {
            Self::Last(count) => (position + 1).saturating_sub(count as u64),
            Self::Moshi { context } => {
                let end = position - position % positions_per_frame + positions_per_frame;
                // A window shorter than a frame would hide a query from itself.
                end.saturating_sub(context as u64).min(position)
            }
        }
    }
}

/// How positions of the transformers turn into what attention sees.
pub(super) struct Positions<'a> {
    pub(super) window: Window,
    pub(super) rotary: &'a Rotary,
    pub(super) scratch: &'a Scratch,
    /// Positions per code frame.
    pub(super) per_frame: usize,
}

impl<'a> Positions<'a> {
    /// Plans `time` new positions of `streams` streams that stand at `starts`.
    pub(super) fn plan(
        &self,
        streams: usize,
        starts: impl Iterator<Item = u64>,
        time: usize,
    ) -> AttentionPlan<'a> {
        let lowest = |position| self.window.lowest(position, self.per_frame as u64);
        let starts = self.scratch.list(streams, starts);
        AttentionPlan::new(self.scratch, starts, time, Some(self.rotary), lowest)
    }
}
