//! Token embeddings: plain, factored (low rank), or of two text tokens muxed into one.

use super::delays::ZERO_TOKEN;
use super::load::Loader;
use crate::error::{Error, Result};
use crate::exec::{Activation, Executor};
use crate::scratch::Scratch;

/// Embedding of one stream's tokens.
pub(super) struct Embedding<E: Executor> {
    table: E::Table,
    rows: i64,
    projection: Projection<E>,
}

enum Projection<E: Executor> {
    Plain,
    LowRank(E::Weight),
    /// Projections of the first and of the second token of a muxed one.
    Demux(E::Weight, E::Weight),
}

impl<E: Executor> Embedding<E> {
    /// Loads `{name}.weight` and whatever projections the checkpoint has beside it.
    pub(super) fn load(
        loader: &Loader<'_, E>,
        name: &str,
        replace_row: Option<(usize, usize)>,
    ) -> Result<Self> {
        let mut matrix = loader.matrix(&format!("{name}.weight"))?;
        if let Some((from, to)) = replace_row {
            matrix.copy_row(from, to);
        }
        let has = |part: &str| loader.catalog.shape(&format!("{name}.{part}.weight")).is_some();
        let weight = |part: &str| loader.weight(&format!("{name}.{part}.weight"));
        let projection = if has("out1") {
            Projection::Demux(weight("out1")?, weight("out2")?)
        } else if has("low_rank") {
            Projection::LowRank(weight("low_rank")?)
        } else {
            Projection::Plain
        };
        let rows = matrix.rows as i64;
        Ok(Self { table: loader.exec.table(matrix)?, rows, projection })
    }

    /// Largest valid token.
    pub(super) fn max_token(&self) -> i64 {
        match self.projection {
            Projection::Demux(..) => self.rows * (self.rows + 1) - 1,
            _ => self.rows - 1,
        }
    }

    /// The table, when tokens need nothing but a look-up.
    pub(super) fn plain(&self) -> Option<&E::Table> {
        matches!(self.projection, Projection::Plain).then_some(&self.table)
    }

    /// `[rows, dim]` of one token per row.
    pub(super) fn embed(
        &self,
        (exec, scratch): (&E, &Scratch),
        tokens: &[i64],
    ) -> Result<E::Buffer> {
        let ids = |id: &dyn Fn(i64) -> Option<u32>| {
            scratch.list(tokens.len(), tokens.iter().map(|&token| id(token)))
        };
        let look_up = |ids: &[Option<u32>]| exec.embed(&[&self.table], ids);
        match &self.projection {
            Projection::Plain => look_up(ids(&as_id)),
            Projection::LowRank(weight) => {
                exec.linear(&look_up(ids(&as_id))?, weight, Activation::Identity)
            }
            Projection::Demux(first, second) => {
                let left = ids(&|t| (t != ZERO_TOKEN).then(|| (t % self.rows) as u32));
                let right = ids(&|t| as_id(t.max(0) / self.rows - 1));
                let mut sum = exec.linear(&look_up(left)?, first, Activation::Identity)?;
                if right.iter().any(Option::is_some) {
                    exec.linear_add(&mut sum, &look_up(right)?, second, None)?;
                }
                Ok(sum)
            }
        }
    }
}

/// Table row of a checked token: none for [`ZERO_TOKEN`].
pub(super) fn as_id(token: i64) -> Option<u32> {
    u32::try_from(token).ok()
}

/// Refuses tokens outside `-1..=max`.
pub(super) fn check_token(what: &'static str, token: i64, max: i64) -> Result<()> {
    if (ZERO_TOKEN..=max).contains(&token) {
        return Ok(());
    }
    Err(Error::input(what, format!("token {token} is not between {ZERO_TOKEN} and {max}")))
}
