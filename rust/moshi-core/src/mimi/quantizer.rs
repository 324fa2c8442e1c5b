//! Split residual vector quantiser: one semantic codebook beside a chain of acoustic ones, both
//! applied to the same latent through projections of their own.

use super::load::Loader;
use crate::error::Result;
use crate::exec::{Activation, Executor, HostMatrix};
use crate::scratch::Scratch;

/// Below this usage a codebook entry's embedding is divided by this value instead.
const MIN_USAGE: f32 = 1e-5;

/// One chain of codebooks with its projections. A side that is not loaded has none.
struct Branch<E: Executor> {
    input_proj: Option<E::Weight>,
    output_proj: Option<E::Weight>,
    codebooks: Vec<E::Table>,
}

/// All codebooks, the semantic one first.
pub(super) struct Quantizer<E: Executor> {
    branches: Vec<Branch<E>>,
}

impl<E: Executor> Quantizer<E> {
    pub(super) fn load(
        loader: &Loader<'_, E>,
        num_codebooks: usize,
        (encode, decode): (bool, bool),
    ) -> Result<Self> {
        let mut branches = Vec::new();
        for (branch, levels) in [("rvq_first", 1), ("rvq_rest", num_codebooks - 1)] {
            if levels == 0 {
                continue;
            }
            let prefix = format!("quantizer.{branch}");
            let projection = |name: &str, wanted: bool| {
                wanted.then(|| loader.weight(&format!("{prefix}.{name}.weight"))).transpose()
            };
            let codebooks = (0..levels)
                .map(|level| codebook(loader, &format!("{prefix}.vq.layers.{level}._codebook")))
                .collect::<Result<_>>()?;
            branches.push(Branch {
                input_proj: projection("input_proj", encode)?,
                output_proj: projection("output_proj", decode)?,
                codebooks,
            });
        }
        Ok(Self { branches })
    }

    /// Latents `[frame, dimension]` to codes `[frame][codebook]`, the first `count` codebooks.
    pub(super) fn encode(
        &self,
        (exec, scratch): (&E, &Scratch),
        latent: &E::Buffer,
        count: usize,
        codes: &mut [u32],
    ) -> Result<()> {
        let frames = codes.len() / count;
        let column = scratch.list(frames, std::iter::repeat(0));
        let mut done = 0;
        for branch in &self.branches {
            let wanted = branch.codebooks.len().min(count - done);
            if wanted == 0 {
                break;
            }
            let input_proj = branch.input_proj.as_ref().expect("the encoder is loaded");
            let mut residual = exec.linear(latent, input_proj, Activation::Identity)?;
            for codebook in &branch.codebooks[..wanted] {
                exec.quantise(&mut residual, codebook, column)?;
                for (frame, &code) in codes.chunks_exact_mut(count).zip(&*column) {
                    frame[done] = code;
                }
                done += 1;
            }
        }
        Ok(())
    }

    /// Codes `[frame][codebook]` of the first `count` codebooks to latents.
    pub(super) fn decode(
        &self,
        (exec, scratch): (&E, &Scratch),
        codes: &[u32],
        count: usize,
    ) -> Result<E::Buffer> {
        let mut latent: Option<E::Buffer> = None;
        let mut done = 0;
        for branch in &self.branches {
            let wanted = branch.codebooks.len().min(count - done);
            if wanted == 0 {
                break;
            }
            let tables = scratch.list(wanted, &branch.codebooks[..wanted]);
            let ids = codes
                .chunks_exact(count)
                .flat_map(|frame| frame[done..done + wanted].iter().map(|&code| Some(code)));
            let sum = exec.embed(tables, scratch.list(codes.len() / count * wanted, ids))?;
            let output_proj = branch.output_proj.as_ref().expect("the decoder is loaded");
            match &mut latent {
                None => latent = Some(exec.linear(&sum, output_proj, Activation::Identity)?),
                Some(latent) => exec.linear_add(latent, &sum, output_proj, None)?,
            }
            done += wanted;
        }
        Ok(latent.expect("at least one codebook"))
    }
}

/// Entries are stored as sums over the vectors assigned to them in training, and their count.
fn codebook<E: Executor>(loader: &Loader<'_, E>, name: &str) -> Result<E::Table> {
    let sums = loader.catalog.matrix(&format!("{name}.embedding_sum"))?;
    let usage = loader.catalog.read(&format!("{name}.cluster_usage"))?;
    let (rows, cols) = (sums.rows, sums.cols);
    let mut data = sums.into_floats();
    for (entry, usage) in data.chunks_exact_mut(cols).zip(usage) {
        for value in entry {
            *value /= usage.max(MIN_USAGE);
        }
    }
    loader.exec.table(HostMatrix::floats(rows, cols, data))
}
