//! Snapshots: the state of a session as bytes, and back from bytes that nobody vouches for.
//!
//! Layout, little-endian: magic, format version (u32), fingerprint of the model (32 bytes),
//! payload length (u64), payload, SHA-256 of everything before it. Keys and values are stored by
//! absolute position, so a snapshot does not depend on ring sizes or on the executor.

use sha2::{Digest, Sha256};

use crate::checkpoint::Fingerprint;
use crate::error::{Error, Result};

const MAGIC: &[u8; 8] = b"MOSHISNP";
const VERSION: u32 = 1;
const HEADER_LEN: usize = 8 + 4 + 32 + 8;
const CHECKSUM_LEN: usize = 32;
/// No position beyond this is accepted from outside: a hundred thousand years of frames, and no
/// sum of positions overflows.
const MAX_POSITION: u64 = 1 << 48;

/// Collects a payload.
#[derive(Default)]
pub struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    /// Appends a number.
    pub fn u64(&mut self, value: u64) {
        self.bytes.extend(value.to_le_bytes());
    }

    /// Appends a signed number.
    pub fn i64(&mut self, value: i64) {
        self.bytes.extend(value.to_le_bytes());
    }

    /// Appends a 64-bit float.
    pub fn f64(&mut self, value: f64) {
        self.u64(value.to_bits());
    }

    /// Appends a flag.
    pub fn flag(&mut self, value: bool) {
        self.bytes.push(value.into());
    }

    /// Appends floats without their number.
    pub fn floats(&mut self, values: &[f32]) {
        self.bytes.reserve(values.len() * 4);
        for value in values {
            self.bytes.extend(value.to_le_bytes());
        }
    }

    /// Appends bytes with their number.
    pub fn bytes(&mut self, bytes: &[u8]) {
        self.u64(bytes.len() as u64);
        self.bytes.extend(bytes);
    }

    /// The payload alone.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// The payload sealed with header and checksum.
    pub fn seal(self, model: &Fingerprint) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEADER_LEN + self.bytes.len() + CHECKSUM_LEN);
        out.extend(MAGIC);
        out.extend(VERSION.to_le_bytes());
        out.extend(model.bytes());
        out.extend((self.bytes.len() as u64).to_le_bytes());
        out.extend(self.bytes);
        let checksum = Sha256::digest(&out);
        out.extend(checksum);
        out
    }
}

/// Takes a payload apart; every read is checked.
pub struct Reader<'a> {
    bytes: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Over a bare payload.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes }
    }

    /// Checks header and checksum of a sealed snapshot of `model`.
    ///
    /// # Errors
    /// [`Error::Snapshot`] saying which check failed.
    pub fn open(blob: &'a [u8], model: &Fingerprint) -> Result<Self> {
        let fail = |reason: &str| Err(Error::snapshot(reason));
        if blob.len() < HEADER_LEN + CHECKSUM_LEN || !blob.starts_with(MAGIC) {
            return fail("is not a moshi-rs snapshot (too short, or other magic bytes)");
        }
        let mut header = Self::new(&blob[MAGIC.len()..HEADER_LEN]);
        let version = u32::from_le_bytes(header.array()?);
        if version != VERSION {
            let reason = format!("has format version {version}, this build reads {VERSION}");
            return Err(Error::snapshot(reason));
        }
        if header.array::<32>()? != *model.bytes() {
            return fail("was taken from another model, or with other load options");
        }
        let len = header.u64()?;
        let (body, checksum) = blob.split_at(blob.len() - CHECKSUM_LEN);
        if len != (body.len() - HEADER_LEN) as u64 {
            let have = body.len() - HEADER_LEN;
            return Err(Error::snapshot(format!("declares {len} bytes of state, has {have}")));
        }
        if Sha256::digest(body).as_slice() != checksum {
            return fail("is damaged: the checksum does not match");
        }
        Ok(Self::new(&body[HEADER_LEN..]))
    }

    /// Bytes left.
    pub fn remaining(&self) -> usize {
        self.bytes.len()
    }

    /// The next number.
    pub fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// The next signed number.
    pub fn i64(&mut self) -> Result<i64> {
        Ok(i64::from_le_bytes(self.array()?))
    }

    /// The next number, at most `max`.
    pub fn bounded(&mut self, max: u64) -> Result<u64> {
        match self.u64()? {
            value if value <= max => Ok(value),
            value => Err(Error::snapshot(format!("has the value {value} where {max} is the most"))),
        }
    }

    /// The next position of a stream.
    pub fn position(&mut self) -> Result<u64> {
        self.bounded(MAX_POSITION)
    }

    /// The next 64-bit float, finite.
    pub fn f64(&mut self) -> Result<f64> {
        match f64::from_bits(self.u64()?) {
            value if value.is_finite() => Ok(value),
            value => Err(Error::snapshot(format!("has the setting {value}"))),
        }
    }

    /// The next flag.
    pub fn flag(&mut self) -> Result<bool> {
        match self.array::<1>()?[0] {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(Error::snapshot(format!("has the byte {other} for a flag"))),
        }
    }

    /// The next `count` floats, all finite.
    pub fn floats(&mut self, count: usize) -> Result<Vec<f32>> {
        let bytes = self.take(count.saturating_mul(4))?;
        let values: Vec<f32> =
            bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        if values.iter().all(|v| v.is_finite()) {
            return Ok(values);
        }
        Err(Error::snapshot("holds values that are not finite"))
    }

    /// The next bytes with their number, at most `max`.
    pub fn bytes(&mut self, max: usize) -> Result<&'a [u8]> {
        let len = self.bounded(max as u64)? as usize;
        self.take(len)
    }

    /// Checks that nothing is left.
    pub fn finish(self) -> Result<()> {
        match self.remaining() {
            0 => Ok(()),
            left => Err(Error::snapshot(format!("has {left} bytes too many"))),
        }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        Ok(self.take(N)?.try_into().expect("taken N bytes"))
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8]> {
        if count > self.bytes.len() {
            let have = self.bytes.len();
            return Err(Error::snapshot(format!("ends early: {count} bytes wanted, {have} left")));
        }
        let (head, tail) = self.bytes.split_at(count);
        self.bytes = tail;
        Ok(head)
    }
}
