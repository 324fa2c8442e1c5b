//! Samples as plain numbers: 16 bits little-endian, and the 8 bits of G.711 for telephones.

/// A coding of mono samples.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Coding {
    /// Two bytes, little-endian.
    Pcm16,
    /// One byte, µ-law.
    MuLaw,
    /// One byte, A-law.
    ALaw,
}

/// Bytes to samples; a sample may be cut between two calls.
#[derive(Debug, Clone)]
pub struct SampleReader {
    coding: Coding,
    half: Option<u8>,
}

impl SampleReader {
    /// A reader of this coding.
    pub fn new(coding: Coding) -> Self {
        Self { coding, half: None }
    }

    /// Takes bytes and appends the samples that they complete, in -1..1.
    pub fn push(&mut self, bytes: &[u8], samples: &mut Vec<f32>) {
        let unit = |value: i16| f32::from(value) / 32_768.0;
        match self.coding {
            Coding::MuLaw => samples.extend(bytes.iter().map(|&byte| unit(mu_law_decode(byte)))),
            Coding::ALaw => samples.extend(bytes.iter().map(|&byte| unit(a_law_decode(byte)))),
            Coding::Pcm16 => {
                for &byte in bytes {
                    match self.half.take() {
                        None => self.half = Some(byte),
                        Some(low) => samples.push(unit(i16::from_le_bytes([low, byte]))),
                    }
                }
            }
        }
    }
}

/// Samples in -1..1 to bytes.
pub fn encode(coding: Coding, samples: &[f32]) -> Vec<u8> {
    let quantised = samples.iter().map(|&sample| (sample * 32_768.0).round() as i16);
    match coding {
        Coding::Pcm16 => quantised.flat_map(i16::to_le_bytes).collect(),
        Coding::MuLaw => quantised.map(mu_law_encode).collect(),
        Coding::ALaw => quantised.map(a_law_encode).collect(),
    }
}

/// Added before the logarithm of µ-law.
const MU_BIAS: i32 = 0x84;

fn mu_law_decode(byte: u8) -> i16 {
    let code = !byte;
    let exponent = (code >> 4) & 7;
    let magnitude = (((i32::from(code & 0xf) << 3) + MU_BIAS) << exponent) - MU_BIAS;
    (if code & 0x80 == 0 { magnitude } else { -magnitude }) as i16
}

fn mu_law_encode(sample: i16) -> u8 {
    let magnitude = i32::from(sample).abs().min(32_635) + MU_BIAS;
    let exponent = 24 - magnitude.leading_zeros() as i32;
    let mantissa = (magnitude >> (exponent + 3)) & 0xf;
    let sign = if sample < 0 { 0x80 } else { 0 };
    !(sign | (exponent << 4) | mantissa) as u8
}

/// Every second bit of A-law is inverted on the line.
const A_INVERTED: u8 = 0x55;

fn a_law_decode(byte: u8) -> i16 {
    let code = byte ^ A_INVERTED;
    let exponent = (code >> 4) & 7;
    let step = (i32::from(code & 0xf) << 4) + 8;
    let magnitude = if exponent == 0 { step } else { (step + 0x100) << (exponent - 1) };
    (if code & 0x80 == 0 { -magnitude } else { magnitude }) as i16
}

fn a_law_encode(sample: i16) -> u8 {
    let (sign, magnitude) =
        if sample < 0 { (0, !i32::from(sample)) } else { (0x80, i32::from(sample)) };
    let exponent = (24 - (magnitude | 0xff).leading_zeros() as i32).max(0);
    let mantissa = (magnitude >> if exponent == 0 { 4 } else { exponent + 3 }) & 0xf;
    (sign | (exponent << 4) | mantissa) as u8 ^ A_INVERTED
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(coding: Coding, bytes: &[u8]) -> Vec<f32> {
        let mut samples = Vec::new();
        SampleReader::new(coding).push(bytes, &mut samples);
        samples
    }

    #[test]
    fn known_values() {
        assert_eq!(
            encode(Coding::Pcm16, &[0.0, 1.0, -1.0, 0.5]),
            [0, 0, 0xff, 0x7f, 0, 0x80, 0, 0x40]
        );
        assert_eq!([0xff, 0x7f, 0x00, 0x80].map(mu_law_decode), [0, 0, -32_124, 32_124]);
        assert_eq!([0xd5, 0x55, 0x2a, 0xaa].map(a_law_decode), [8, -8, -32_256, 32_256]);
        assert_eq!((mu_law_encode(0), a_law_encode(0)), (0xff, 0xd5));
    }

    #[test]
    fn every_code_of_a_telephone_comes_back() {
        for byte in 0..=255u8 {
            let again = mu_law_encode(mu_law_decode(byte));
            // There are two zeros.
            assert!(again == byte || byte == 0x7f, "{byte:#x} became {again:#x}");
            assert_eq!(a_law_encode(a_law_decode(byte)), byte);
        }
    }

    proptest! {
        #[test]
        fn samples_come_back_closely(samples in prop::collection::vec(-1.0f32..1.0, 0..300)) {
            for (coding, relative, absolute) in
                [(Coding::Pcm16, 0.0, 1e-4), (Coding::MuLaw, 0.04, 1e-3), (Coding::ALaw, 0.04, 1e-3)]
            {
                let again = read(coding, &encode(coding, &samples));
                prop_assert_eq!(again.len(), samples.len());
                for (a, b) in again.iter().zip(&samples) {
                    let near = (a - b).abs() <= relative * b.abs() + absolute;
                    prop_assert!(near, "{:?}: {} for {}", coding, a, b);
                }
            }
        }

        #[test]
        fn cuts_do_not_matter(bytes: Vec<u8>, cut: prop::sample::Index) {
            let (head, tail) = bytes.split_at(cut.index(bytes.len() + 1));
            let mut reader = SampleReader::new(Coding::Pcm16);
            let mut samples = Vec::new();
            reader.push(head, &mut samples);
            reader.push(tail, &mut samples);
            prop_assert_eq!(samples, read(Coding::Pcm16, &bytes));
        }
    }
}
