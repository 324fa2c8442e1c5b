//! Every variant against decoding and multiplying in 64-bit floats.

use super::*;
use half::bf16;

fn noise(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    (0..n)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        })
        .collect()
}

/// A matrix in each storage, with the values that it stands for.
fn stored(rows: usize, cols: usize, test: impl Fn(&str, MatrixRef<'_>, &[f32])) {
    let w = noise(rows * cols, 7);
    test("f32", MatrixRef::F32(&w), &w);
    let narrow: Vec<bf16> = w.iter().map(|&v| bf16::from_f32(v)).collect();
    let wide: Vec<f32> = narrow.iter().map(|v| v.to_f32()).collect();
    test("bf16", MatrixRef::Bf16(&narrow), &wide);
    if cols.is_multiple_of(BLOCK) {
        for format in [BlockFormat::Q8_0, BlockFormat::Q4_0, BlockFormat::Q4_1] {
            let bytes = format.encode(&w).unwrap();
            let mut decoded = vec![0.0; w.len()];
            format.decode(&bytes, &mut decoded);
            test(&format!("{format:?}"), MatrixRef::Blocks(format, &bytes), &decoded);
        }
    }
    let format = BlockFormat::Q4K;
    if cols.is_multiple_of(format.weights()) {
        let bytes = blocks_of_256(rows * cols);
        let mut decoded = vec![0.0; rows * cols];
        format.decode(&bytes, &mut decoded);
        test("Q4K", MatrixRef::Blocks(format, &bytes), &decoded);
    }
}

/// Random blocks, with scales that keep weights below 1.
fn blocks_of_256(weights: usize) -> Vec<u8> {
    let format = BlockFormat::Q4K;
    let count = format.bytes_of(weights).unwrap();
    let mut bytes: Vec<u8> = noise(count, 4).iter().map(|v| (v * 127.0) as i8 as u8).collect();
    for (block, scale) in bytes.chunks_exact_mut(format.bytes()).zip(noise(count, 5)) {
        block[..2].copy_from_slice(&half::f16::from_f32(1e-3 * scale).to_le_bytes());
        block[2..4].copy_from_slice(&half::f16::from_f32(5e-3 * scale).to_le_bytes());
    }
    bytes
}

/// The product of a packed matrix, and the activations that it saw.
fn product(
    packed: &PackedMatrix,
    on: (Kernels, &Pool),
    x: &[f32],
    store: Store<'_>,
    y: &mut [f32],
) -> Vec<f32> {
    if packed.packing().rounds_activations() {
        let mut rounded = Quantised::default();
        rounded.set(on.0, x, packed.cols());
        packed.multiply_rounded(on, &rounded, store, y);
        rounded.values()
    } else {
        packed.multiply(on, FloatRows::adjacent(x, packed.cols()), store, y);
        x.to_vec()
    }
}

fn variants() -> impl Iterator<Item = Kernels> {
    Isa::available().filter_map(Kernels::new)
}

#[test]
fn products_equal_decoding_and_multiplying() {
    let arena = Arena::default();
    let pool = Pool::new(1);
    for (rows, cols) in [(1, 32), (16, 64), (33, 96), (100, 320), (18, 512), (7, 45)] {
        stored(rows, cols, |name, matrix, values| {
            let packed = PackedMatrix::pack(&arena, rows, cols, matrix).unwrap();
            for m in [1, 2, 3, 8, 13] {
                let x = noise(m * cols, m as u64);
                for kernels in variants() {
                    let mut y = vec![f32::NAN; m * rows];
                    let seen = product(&packed, (kernels, &pool), &x, Store::Set(None), &mut y);
                    for (r, y) in y.chunks(rows).enumerate() {
                        for (o, y) in y.iter().enumerate() {
                            let pairs = seen[r * cols..(r + 1) * cols]
                                .iter()
                                .zip(&values[o * cols..(o + 1) * cols]);
                            let terms = pairs.map(|(&x, &w)| f64::from(x) * f64::from(w));
                            let (exact, size) =
                                terms.fold((0.0, 0.0), |(s, a), t| (s + t, a + t.abs()));
                            let off = (exact - f64::from(*y)).abs() / size.max(1.0);
                            assert!(
                                off < 1e-5,
                                "{name} {rows}x{cols} on {kernels:?}, {m} rows: {y} is not {exact}"
                            );
                        }
                    }
                }
            }
        });
    }
}

#[test]
fn few_bits_give_the_same_bits_on_every_instruction_set() {
    let (arena, pool) = (Arena::default(), Pool::new(1));
    let (rows, cols, m) = (48, 256, 5);
    let x = noise(m * cols, 3);
    stored(rows, cols, |name, matrix, _| {
        let packed = PackedMatrix::pack(&arena, rows, cols, matrix).unwrap();
        if !packed.packing().rounds_activations() {
            return;
        }
        let results = variants().map(|kernels| {
            let mut y = vec![0.0; m * rows];
            product(&packed, (kernels, &pool), &x, Store::Set(None), &mut y);
            y
        });
        let results: Vec<Vec<f32>> = results.collect();
        assert!(results.windows(2).all(|two| two[0] == two[1]), "{name}");
    });
}

#[test]
fn a_row_does_not_depend_on_its_neighbours_nor_on_threads() {
    let arena = Arena::default();
    // Many outputs for some rows, few outputs for many rows.
    for (rows, cols, m) in [(2048, 96, 11), (40, 96, 203), (528, 256, 11)] {
        let x = noise(m * cols, 5);
        stored(rows, cols, |name, matrix, _| {
            let packed = PackedMatrix::pack(&arena, rows, cols, matrix).unwrap();
            let (one, three) = (Pool::new(1), Pool::new(3));
            for kernels in variants() {
                let mut together = vec![f32::NAN; m * rows];
                product(&packed, (kernels, &three), &x, Store::Set(None), &mut together);
                for (x, together) in x.chunks(cols).zip(together.chunks(rows)) {
                    let mut alone = vec![0.0; rows];
                    product(&packed, (kernels, &one), x, Store::Set(None), &mut alone);
                    assert!(alone == together, "{name} on {kernels:?}, {rows} x {m}");
                }
            }
        });
    }
}

#[test]
fn packed_bytes_are_the_matrix_again() {
    let (arena, pool) = (Arena::default(), Pool::new(2));
    let (rows, cols) = (37, 512);
    stored(rows, cols, |name, matrix, _| {
        let packed = PackedMatrix::pack(&arena, rows, cols, matrix).unwrap();
        let again = |bytes| {
            PackedMatrix::from_packed((&arena, &pool), rows, cols, packed.packing(), bytes).unwrap()
        };
        assert_eq!(again(packed.packed()).unwrap().packed(), packed.packed(), "{name}");
        assert!(again(&packed.packed()[1..]).is_none(), "{name}");
    });
}

#[test]
fn stores_add_bias_and_scale() {
    let (arena, pool) = (Arena::default(), Pool::new(1));
    let w = [1.0f32, 2.0, 3.0];
    let packed = PackedMatrix::pack(&arena, 3, 1, MatrixRef::F32(&w)).unwrap();
    for kernels in variants() {
        let mut y = [10.0f32; 3];
        let mut store = |store| {
            packed.multiply((kernels, &pool), FloatRows::adjacent(&[2.0], 1), store, &mut y);
            y
        };
        assert_eq!(store(Store::Add(None)), [12.0, 14.0, 16.0]);
        assert_eq!(store(Store::Add(Some(&[1.0, 0.0, 0.5]))), [14.0, 14.0, 19.0]);
        assert_eq!(store(Store::Set(Some(&[0.5, 0.0, 0.0]))), [2.5, 4.0, 6.0]);
    }
}

#[test]
fn overlapping_rows_in_groups_are_windows_of_several_streams() {
    let (arena, pool) = (Arena::default(), Pool::new(1));
    let x: Vec<f32> = (0..12u8).map(f32::from).collect();
    let packed = PackedMatrix::pack(&arena, 1, 4, MatrixRef::F32(&[1.0; 4])).unwrap();
    for kernels in variants() {
        let mut y = [0.0; 4];
        let rows = FloatRows { x: &x, stride: 2, rows_per_group: 2, group_stride: 6 };
        packed.multiply((kernels, &pool), rows, Store::Set(None), &mut y);
        assert_eq!(y, [6.0, 14.0, 30.0, 38.0]);
    }
}

#[test]
fn rows_of_floats_are_found_again() {
    let arena = Arena::default();
    let w = noise(20 * 5, 9);
    let packed = PackedMatrix::pack(&arena, 20, 5, MatrixRef::F32(&w)).unwrap();
    for (row, values) in w.chunks(5).enumerate() {
        let mut out = [1.0; 5];
        packed.add_row(row, &mut out);
        assert!(out.iter().zip(values).all(|(out, value)| *out == 1.0 + value));
    }
}

/// Relative error against the product of floats: of rounded activations alone for 8 bits, whose
/// weights a checkpoint may hold as they are, and of rounded weights too for 4.
#[test]
fn few_bits_stay_near_the_product_of_floats() {
    let (arena, pool) = (Arena::default(), Pool::new(1));
    let (rows, cols) = (256, 1024);
    let (w, x) = (noise(rows * cols, 11), noise(cols, 12));
    for kernels in variants() {
        let on = (kernels, &pool);
        for (format, limit) in
            [(BlockFormat::Q8_0, 0.005), (BlockFormat::Q4_0, 0.07), (BlockFormat::Q4_1, 0.07)]
        {
            let bytes = format.encode(&w).unwrap();
            let mut reference = w.clone();
            if format == BlockFormat::Q8_0 {
                format.decode(&bytes, &mut reference);
            }
            let floats =
                PackedMatrix::pack(&arena, rows, cols, MatrixRef::F32(&reference)).unwrap();
            let mut exact = vec![0.0; rows];
            product(&floats, on, &x, Store::Set(None), &mut exact);
            let matrix = MatrixRef::Blocks(format, &bytes);
            let packed = PackedMatrix::pack(&arena, rows, cols, matrix).unwrap();
            let mut y = vec![0.0; rows];
            product(&packed, on, &x, Store::Set(None), &mut y);
            let square = |values: &mut dyn Iterator<Item = f32>| values.map(|v| v * v).sum::<f32>();
            let off = square(&mut y.iter().zip(&exact).map(|(a, b)| a - b));
            let error = (off / square(&mut exact.iter().copied())).sqrt();
            assert!(error < limit, "{format:?} on {kernels:?}: {error}");
        }
    }
}

#[test]
fn rounding_while_packing_equals_packing_what_was_rounded() {
    let (arena, pool, kernels) =
        (Arena::default(), Pool::new(3), Kernels::new(Isa::Scalar).unwrap());
    let (rows, cols) = (37, 64);
    let values = noise(rows * cols, 5);
    let halves: Vec<bf16> = values.iter().copied().map(bf16::from_f32).collect();
    let widened: Vec<f32> = halves.iter().copied().map(bf16::to_f32).collect();
    let mut x = Quantised::default();
    x.set(kernels, &noise(cols, 6), cols);
    let product = |matrix: &PackedMatrix| {
        let mut y = vec![0.0; rows];
        matrix.multiply_rounded((kernels, &pool), &x, Store::Set(None), &mut y);
        y
    };
    for format in [BlockFormat::Q8_0, BlockFormat::Q4_0, BlockFormat::Q4_1] {
        for (matrix, floats) in
            [(MatrixRef::F32(&values), &values), (MatrixRef::Bf16(&halves), &widened)]
        {
            let blocks = format.encode(floats).unwrap();
            let rounded = MatrixRef::Blocks(format, &blocks);
            let expected = PackedMatrix::pack(&arena, rows, cols, rounded).unwrap();
            let packed =
                PackedMatrix::pack_rounded((&arena, &pool), rows, cols, matrix, format).unwrap();
            assert_eq!(product(&packed.unwrap()), product(&expected), "{format:?}");
        }
        let large = vec![1e30; rows * cols];
        let large = MatrixRef::F32(&large);
        let packed = PackedMatrix::pack_rounded((&arena, &pool), rows, cols, large, format);
        assert!(packed.unwrap().is_none());
    }
}

#[test]
fn parts_cover_all_units_in_order() {
    for (units, threads) in [(1, 1), (7, 2), (32, 2), (100, 3), (1408, 4)] {
        for parts in 1..=(8 * threads).min(units) {
            let starts: Vec<_> =
                (0..=parts).map(|part| start_of(part, (parts, threads), units)).collect();
            assert_eq!((starts[0], starts[parts]), (0, units), "{parts} parts");
            assert!(starts.is_sorted(), "{starts:?}");
        }
    }
    assert_eq!([0, 1, 2, 3, 4, 5].map(|part| start_of(part, (5, 2), 16)), [0, 5, 10, 12, 14, 16]);
}
