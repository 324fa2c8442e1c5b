//! The header of a GGUF file: where its tensors lie, and its metadata.
//!
//! The container of the ggml project, versions 2 and 3, little-endian: `GGUF`, version, number of
//! tensors, number of metadata entries, the entries, one record for each tensor, padding to the
//! alignment, data. Every count and length of the header is checked against what the file can
//! hold before anything is reserved for it.

use std::collections::BTreeMap;

use moshi_kernels::scalar::BlockFormat;
use safetensors::Dtype;

use super::header::{Header, check_count, check_tensor, impossible};
use super::tensor_file::{Encoding, TensorInfo};

pub(super) const MAGIC: &[u8] = b"GGUF";

/// Parses and checks a header; the error says what is wrong.
pub(super) fn parse(file: &[u8]) -> Result<Header, String> {
    let mut reader = Reader { bytes: file, at: MAGIC.len() };
    let version = reader.u32()?;
    match version {
        2 | 3 => {}
        1 => return Err("version 1 is not read; convert it with a current tool".into()),
        _ if matches!(version.swap_bytes(), 1..=3) => {
            return Err("it is big-endian".into());
        }
        _ => return Err(format!("version {version} is not known; 2 and 3 are read")),
    }
    let tensor_count = reader.u64()?;
    let entry_count = reader.u64()?;
    let metadata = read_metadata(&mut reader, entry_count)?;
    let alignment = alignment(&metadata)?;
    reader.check_count("tensors", tensor_count, MIN_TENSOR_BYTES)?;
    check_count(tensor_count as usize)?;
    let records =
        (0..tensor_count).map(|_| read_record(&mut reader)).collect::<Result<Vec<_>, _>>()?;
    let start = reader.at.next_multiple_of(alignment);
    let mut tensors = BTreeMap::new();
    for record in records {
        let name = record.name.clone();
        let info = record.place(start, alignment, file.len())?;
        if tensors.insert(name.clone(), info).is_some() {
            return Err(format!("two tensors are called {name}"));
        }
    }
    refuse_overlaps(&tensors)?;
    let metadata = metadata.into_iter().map(|(key, value)| (key, value.to_string())).collect();
    Ok(Header { tensors, metadata, bytes: 0..start.min(file.len()) })
}

/// A metadata value; the items of lists are skipped.
enum Value {
    Whole(i128),
    Number(f64),
    Flag(bool),
    Text(String),
    List(u64),
}

impl std::fmt::Display for Value {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Whole(value) => write!(f, "{value}"),
            Self::Number(value) => write!(f, "{value}"),
            Self::Flag(value) => write!(f, "{value}"),
            Self::Text(value) => f.write_str(value),
            Self::List(count) => write!(f, "a list of {count}"),
        }
    }
}

fn read_metadata(reader: &mut Reader<'_>, count: u64) -> Result<BTreeMap<String, Value>, String> {
    reader.check_count("metadata entries", count, MIN_ENTRY_BYTES)?;
    let mut metadata = BTreeMap::new();
    for _ in 0..count {
        let key = reader.text("a metadata key")?;
        let kind = reader.u32()?;
        let value = read_value(reader, &key, kind, MAX_NESTING)?;
        if metadata.insert(key.clone(), value).is_some() {
            return Err(format!("two metadata entries are called {key}"));
        }
    }
    Ok(metadata)
}

fn read_value(
    reader: &mut Reader<'_>,
    key: &str,
    kind: u32,
    nesting: usize,
) -> Result<Value, String> {
    Ok(match kind {
        0 => Value::Whole(reader.array::<1>()?[0].into()),
        1 => Value::Whole(i8::from_le_bytes(reader.array()?).into()),
        2 => Value::Whole(u16::from_le_bytes(reader.array()?).into()),
        3 => Value::Whole(i16::from_le_bytes(reader.array()?).into()),
        4 => Value::Whole(reader.u32()?.into()),
        5 => Value::Whole(i32::from_le_bytes(reader.array()?).into()),
        6 => Value::Number(f32::from_le_bytes(reader.array()?).into()),
        7 => Value::Flag(reader.array::<1>()?[0] != 0),
        8 => Value::Text(reader.text(key)?),
        10 => Value::Whole(reader.u64()?.into()),
        11 => Value::Whole(i64::from_le_bytes(reader.array()?).into()),
        12 => Value::Number(f64::from_le_bytes(reader.array()?)),
        LIST => {
            if nesting == 0 {
                return Err(format!("metadata {key} nests lists too deeply"));
            }
            let item = reader.u32()?;
            let count = reader.u64()?;
            let size = match item {
                0 | 1 | 7 => 1,
                2 | 3 => 2,
                4..=6 => 4,
                10..=12 => 8,
                _ => 0,
            };
            let what = format!("items of metadata {key}");
            if size > 0 {
                reader.check_count(&what, count, size)?;
                reader.take(count as usize * size)?;
            } else {
                // A text or a list has a length of its own.
                reader.check_count(&what, count, size_of::<u64>())?;
                for _ in 0..count {
                    read_value(reader, key, item, nesting - 1)?;
                }
            }
            Value::List(count)
        }
        _ => return Err(format!("metadata {key} has the unknown type {kind}")),
    })
}

fn alignment(metadata: &BTreeMap<String, Value>) -> Result<usize, String> {
    match metadata.get("general.alignment") {
        None => Ok(DEFAULT_ALIGNMENT),
        Some(Value::Whole(value)) => usize::try_from(*value)
            .ok()
            .filter(|value| value.is_power_of_two() && *value <= MAX_ALIGNMENT)
            .ok_or_else(|| {
                format!(
                    "general.alignment is {value}; expected a power of two up to {MAX_ALIGNMENT}"
                )
            }),
        Some(_) => Err("general.alignment is not a whole number".into()),
    }
}

/// A tensor as its record describes it.
struct Record {
    name: String,
    shape: Vec<usize>,
    kind: u32,
    offset: u64,
}

fn read_record(reader: &mut Reader<'_>) -> Result<Record, String> {
    let name = reader.text("a tensor name")?;
    let axes = reader.u32()?;
    if axes > MAX_AXES {
        return Err(format!("tensor {name} has {axes} axes; at most {MAX_AXES} are read"));
    }
    let mut shape = Vec::with_capacity(axes as usize);
    for _ in 0..axes {
        let size = reader.u64()?;
        shape.push(usize::try_from(size).map_err(|_| format!("tensor {name}: size {size}"))?);
    }
    // Innermost first in the file, outermost first here.
    shape.reverse();
    check_tensor(&name, &shape)?;
    Ok(Record { name, shape, kind: reader.u32()?, offset: reader.u64()? })
}

impl Record {
    /// Checks type, size and place of a tensor in a file whose data begins at `start`.
    fn place(self, start: usize, alignment: usize, file_len: usize) -> Result<TensorInfo, String> {
        let Self { name, shape, kind, offset } = self;
        let encoding = encoding(kind).ok_or_else(|| {
            let known = ggml_name(kind);
            format!(
                "tensor {name} is stored as {known}; F32, F16, BF16, Q8_0, Q4_0, Q4_1 and Q4_K \
                 are read"
            )
        })?;
        let count = shape.iter().try_fold(1usize, |count, &size| count.checked_mul(size));
        let size = count.and_then(|count| match encoding {
            Encoding::Plain(dtype) => count.checked_mul(dtype.bitsize() / 8),
            Encoding::Blocks(format) => count
                .checked_mul(format.bytes())
                .filter(|_| shape.last().is_some_and(|n| n.is_multiple_of(format.weights())))
                .map(|bytes| bytes / format.weights()),
        });
        let Some(size) = size else {
            return Err(match encoding {
                Encoding::Blocks(format) if count.is_some() => format!(
                    "tensor {name} has the shape {shape:?}, whose rows are no whole blocks of {} \
                     values",
                    format.weights()
                ),
                _ => impossible(&name, &shape),
            });
        };
        if matches!(encoding, Encoding::Blocks(_)) && shape.len() < 2 {
            return Err(format!("tensor {name} has one axis; those are read as floats only"));
        }
        if !offset.is_multiple_of(alignment as u64) {
            return Err(format!(
                "tensor {name} begins at offset {offset}, which is no multiple of {alignment}"
            ));
        }
        let from = usize::try_from(offset).ok().and_then(|offset| start.checked_add(offset));
        let bytes = from.and_then(|from| Some(from..from.checked_add(size)?));
        match bytes {
            Some(bytes) if bytes.end <= file_len => Ok(TensorInfo { encoding, shape, bytes }),
            _ => Err(format!(
                "tensor {name} has {size} bytes from offset {offset} on, the file has {file_len} \
                 with its header: truncated download?"
            )),
        }
    }
}

fn refuse_overlaps(tensors: &BTreeMap<String, TensorInfo>) -> Result<(), String> {
    let mut places: Vec<(&String, &TensorInfo)> =
        tensors.iter().filter(|(_, info)| !info.bytes.is_empty()).collect();
    places.sort_by_key(|(_, info)| info.bytes.start);
    for pair in places.windows(2) {
        let [(first, a), (second, b)] = pair else { continue };
        if a.bytes.end > b.bytes.start {
            return Err(format!("tensors {first} and {second} overlap"));
        }
    }
    Ok(())
}

/// Types of the container that can be read.
fn encoding(kind: u32) -> Option<Encoding> {
    Some(match kind {
        0 => Encoding::Plain(Dtype::F32),
        1 => Encoding::Plain(Dtype::F16),
        2 => Encoding::Blocks(BlockFormat::Q4_0),
        3 => Encoding::Blocks(BlockFormat::Q4_1),
        8 => Encoding::Blocks(BlockFormat::Q8_0),
        12 => Encoding::Blocks(BlockFormat::Q4K),
        30 => Encoding::Plain(Dtype::BF16),
        _ => return None,
    })
}

/// Names of types that cannot, for messages.
fn ggml_name(kind: u32) -> String {
    let name = match kind {
        6 => "Q5_0",
        7 => "Q5_1",
        9 => "Q8_1",
        10 => "Q2_K",
        11 => "Q3_K",
        13 => "Q5_K",
        14 => "Q6_K",
        15 => "Q8_K",
        24..=27 => "an integer type",
        28 => "F64",
        _ => return format!("type {kind}"),
    };
    name.into()
}

/// Reads little-endian values, never beyond the end.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], String> {
        let end = self.at.checked_add(count).filter(|&end| end <= self.bytes.len());
        let end = end.ok_or_else(|| {
            format!("the header ends after {} bytes: truncated download?", self.bytes.len())
        })?;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        Ok(self.take(N)?.try_into().expect("of this length"))
    }

    fn u32(&mut self) -> Result<u32, String> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64, String> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    fn text(&mut self, what: &str) -> Result<String, String> {
        let len = self.u64()?;
        let len = usize::try_from(len).map_err(|_| format!("{what} has {len} bytes"))?;
        let bytes = self.take(len).map_err(|error| format!("{what} has {len} bytes: {error}"))?;
        String::from_utf8(bytes.to_vec()).map_err(|_| format!("{what} is not UTF-8"))
    }

    /// Refuses a count of items that the rest of the file cannot hold.
    fn check_count(&self, what: &str, count: u64, item_bytes: usize) -> Result<(), String> {
        let room = ((self.bytes.len() - self.at) / item_bytes) as u64;
        if count <= room {
            return Ok(());
        }
        let len = self.bytes.len();
        Err(format!("{count} {what} do not fit into a file of {len} bytes: truncated download?"))
    }
}

const LIST: u32 = 9;
/// Lists in lists: no known file has any.
const MAX_NESTING: usize = 4;
const DEFAULT_ALIGNMENT: usize = 32;
const MAX_ALIGNMENT: usize = 1 << 20;
/// Of the container.
const MAX_AXES: u32 = 4;
/// Length of a key, type and a value of one byte.
const MIN_ENTRY_BYTES: usize = 8 + 4 + 1;
/// Length of a name, number of axes, type, offset.
const MIN_TENSOR_BYTES: usize = 8 + 4 + 4 + 8;
