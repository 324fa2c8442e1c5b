//! From rows of a checkpoint's storage to panels.

use half::f16;

use super::products::{BLOCK, K_BLOCKS, K_PARTS, PANEL, Tile4, Tile4Affine, Tile4K, Tile8};
use crate::scalar::{BlockFormat, MatrixRef, q4_k_group};

/// Writes row `row` of a matrix into a panel as its output number `lane`.
pub(super) fn pack_row(
    panel: &mut [u8],
    lane: usize,
    matrix: MatrixRef<'_>,
    row: usize,
    cols: usize,
) {
    let range = row * cols..(row + 1) * cols;
    match matrix {
        MatrixRef::F32(values) => {
            let cells = panel.as_chunks_mut::<4>().0;
            for (i, value) in values[range].iter().enumerate() {
                cells[i * PANEL + lane] = value.to_le_bytes();
            }
        }
        MatrixRef::Bf16(values) => {
            let cells = panel.as_chunks_mut::<2>().0;
            for (i, value) in values[range].iter().enumerate() {
                cells[i * PANEL + lane] = value.to_le_bytes();
            }
        }
        MatrixRef::Blocks(format, bytes) => {
            let row_bytes = format.bytes_of(cols).expect("rows are whole blocks");
            let blocks = &bytes[row * row_bytes..(row + 1) * row_bytes];
            pack_blocks(panel, lane, format, blocks);
        }
    }
}

fn pack_blocks(panel: &mut [u8], lane: usize, format: BlockFormat, blocks: &[u8]) {
    let blocks = blocks.chunks_exact(format.bytes());
    match format {
        BlockFormat::Q8_0 => {
            for (tile, block) in panel.chunks_exact_mut(size_of::<Tile8>()).zip(blocks) {
                put_cells(tile, lane, &block[2..], 128);
                put_half(tile, 512, lane, [block[0], block[1]]);
            }
        }
        BlockFormat::Q4_0 => {
            for (tile, block) in panel.chunks_exact_mut(size_of::<Tile4>()).zip(blocks) {
                put_cells(tile, lane, &block[2..], 0);
                put_half(tile, 256, lane, [block[0], block[1]]);
            }
        }
        BlockFormat::Q4_1 => {
            for (tile, block) in panel.chunks_exact_mut(size_of::<Tile4Affine>()).zip(blocks) {
                put_cells(tile, lane, &block[4..], 0);
                put_half(tile, 256, lane, [block[0], block[1]]);
                put_half(tile, 288, lane, [block[2], block[3]]);
            }
        }
        BlockFormat::Q4K => {
            let [scales, offsets, small_scales, small_offsets] = K_PARTS;
            for (tile, block) in panel.chunks_exact_mut(size_of::<Tile4K>()).zip(blocks) {
                put_half(tile, scales, lane, [block[0], block[1]]);
                // Offsets are added, the minima of the file taken off.
                let minimum = f16::from_le_bytes([block[2], block[3]]);
                put_half(tile, offsets, lane, (-minimum).to_le_bytes());
                for group in 0..K_BLOCKS {
                    let (scale, minimum, q) = q4_k_group(block, group);
                    let nibbles: [u8; BLOCK / 2] = std::array::from_fn(|i| q[i] | q[16 + i] << 4);
                    put_cells(&mut tile[4 * 64 * group..], lane, &nibbles, 0);
                    tile[small_scales + PANEL * group + lane] = scale;
                    tile[small_offsets + PANEL * group + lane] = minimum;
                }
            }
        }
    }
}

/// Weights of one output: four bytes of every group of 64.
fn put_cells(tile: &mut [u8], lane: usize, bytes: &[u8], offset: u8) {
    for (group, bytes) in bytes.as_chunks::<4>().0.iter().enumerate() {
        let at = 4 * (PANEL * group + lane);
        tile[at..at + 4].copy_from_slice(&bytes.map(|byte| byte.wrapping_add(offset)));
    }
}

fn put_half(tile: &mut [u8], start: usize, lane: usize, bytes: [u8; 2]) {
    tile[start + 2 * lane..start + 2 * lane + 2].copy_from_slice(&bytes);
}
