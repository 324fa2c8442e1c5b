//! Writers of both containers for tensors that need not make sense.

use moshi_core::checkpoint::Expected;
use moshi_core::checkpoint::layout::{self, GatedWidths};
use moshi_core::config::LmConfig;

/// A tensor: what its header says, and its bytes.
#[derive(Clone)]
pub struct Tensor {
    pub name: String,
    /// Outermost first.
    pub shape: Vec<u64>,
    pub kind: Kind,
    /// Added to the offset at which the bytes are.
    pub shift: u64,
    pub bytes: Vec<u8>,
}

/// Types of both containers.
#[derive(Clone, Copy)]
pub enum Kind {
    F32,
    Bf16,
    I64,
    I8,
    U32,
    /// The number that GGUF has for a type; safetensors files say `F16`.
    Number(u32),
}

/// Tensors in the order in which they are written.
#[derive(Clone, Default)]
pub struct Tensors(pub Vec<Tensor>);

/// A language model of this config.
pub fn language_model(config: &LmConfig) -> Tensors {
    let temporal = config.temporal.shape.gated_widths()[0];
    filled(&layout::language_model(config, GatedWidths { temporal, depth: 2 }))
}

/// The wide language model in integers of 8 bits with a scale for every row.
pub fn scaled() -> Tensors {
    quantised(|all, name, rows, cols| {
        all.push(&format!("{name}_scb"), &[rows]);
        all.push_bytes(name, &[rows, cols], Kind::I8, vec![1; (rows * cols) as usize]);
    })
}

/// The wide language model in words of integers with scales and offsets for every group.
pub fn grouped(bits: u64) -> Tensors {
    quantised(|all, name, rows, cols| {
        let base = name.trim_end_matches(".weight");
        all.push(&format!("{base}.scales"), &[rows, cols / GROUP]);
        all.push(&format!("{base}.biases"), &[rows, cols / GROUP]);
        let words = cols * bits / 32;
        all.push_bytes(name, &[rows, words], Kind::U32, vec![0x11; (rows * words * 4) as usize]);
    })
}

fn quantised(replace: impl Fn(&mut Tensors, &str, u64, u64)) -> Tensors {
    let mut all = Tensors::default();
    for tensor in language_model(&crate::WIDE_LM).0 {
        match tensor.shape.as_slice() {
            &[rows, cols] if cols.is_multiple_of(GROUP) => {
                replace(&mut all, &tensor.name, rows, cols);
            }
            _ => all.0.push(tensor),
        }
    }
    all
}

const GROUP: u64 = 32;

/// The tiny codec.
pub fn codec() -> Tensors {
    filled(&layout::mimi(&crate::CODEC))
}

/// An adapter of rank 1 for some layers of the tiny language model, packed and split.
pub fn adapter() -> Tensors {
    let mut all = Tensors::default();
    for (base, rows, cols) in [
        ("text_linear", 4, 4),
        ("transformer.layers.0.self_attn.in_proj", 12, 4),
        ("depformer.layers.0.self_attn.in_projs.0", 6, 2),
        ("depformer.layers.0.self_attn.out_proj", 4, 2),
    ] {
        let sets = if base.ends_with("self_attn.out_proj") { 2 } else { 1 };
        all.push(&format!("{base}.lora_A.weight"), &[sets, cols]);
        all.push(&format!("{base}.lora_B.weight"), &[rows, 1]);
    }
    all.push("emb.0.weight", &[4, 4]);
    all
}

fn filled(expected: &[Expected]) -> Tensors {
    let mut all = Tensors::default();
    for Expected { name, shapes, .. } in expected {
        let shape: Vec<u64> = shapes[0].iter().map(|&n| n as u64).collect();
        all.push(name, &shape);
    }
    all
}

impl Tensors {
    /// Adds a tensor of 0.5 everywhere.
    pub fn push(&mut self, name: &str, shape: &[u64]) {
        let count = shape.iter().product::<u64>() as usize;
        self.push_bytes(name, shape, Kind::F32, 0.5f32.to_le_bytes().repeat(count));
    }

    fn push_bytes(&mut self, name: &str, shape: &[u64], kind: Kind, bytes: Vec<u8>) {
        self.0.push(Tensor { name: name.into(), shape: shape.to_vec(), kind, shift: 0, bytes });
    }

    /// As a safetensors file.
    pub fn safetensors(&self) -> Vec<u8> {
        let mut header = serde_json::Map::new();
        let mut body = Vec::new();
        for tensor in &self.0 {
            let from = (body.len() as u64).wrapping_add(tensor.shift);
            body.extend(&tensor.bytes);
            let entry = serde_json::json!({
                "dtype": match tensor.kind {
                    Kind::F32 => "F32",
                    Kind::Bf16 => "BF16",
                    Kind::I64 => "I64",
                    Kind::I8 => "I8",
                    Kind::U32 => "U32",
                    Kind::Number(_) => "F16",
                },
                "shape": tensor.shape,
                "data_offsets": [from, from.wrapping_add(tensor.bytes.len() as u64)],
            });
            header.insert(tensor.name.clone(), entry);
        }
        let header = serde_json::Value::Object(header).to_string();
        [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &body].concat()
    }

    /// As a GGUF file.
    pub fn gguf(&self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(3u32.to_le_bytes());
        out.extend((self.0.len() as u64).to_le_bytes());
        out.extend(1u64.to_le_bytes());
        let text = |out: &mut Vec<u8>, text: &str| {
            out.extend((text.len() as u64).to_le_bytes());
            out.extend(text.as_bytes());
        };
        text(&mut out, "general.alignment");
        out.extend(4u32.to_le_bytes());
        out.extend((ALIGNMENT as u32).to_le_bytes());
        let mut offset = 0u64;
        for tensor in &self.0 {
            text(&mut out, &tensor.name);
            out.extend((tensor.shape.len() as u32).to_le_bytes());
            tensor.shape.iter().rev().for_each(|n| out.extend(n.to_le_bytes()));
            let kind = match tensor.kind {
                Kind::F32 => 0,
                Kind::Bf16 => 30,
                Kind::I64 => 27,
                Kind::U32 => 26,
                Kind::I8 => 24,
                Kind::Number(number) => number,
            };
            out.extend(kind.to_le_bytes());
            out.extend(offset.wrapping_add(tensor.shift).to_le_bytes());
            offset += tensor.bytes.len().next_multiple_of(ALIGNMENT) as u64;
        }
        for tensor in &self.0 {
            out.resize(out.len().next_multiple_of(ALIGNMENT), 0);
            out.extend(&tensor.bytes);
        }
        out
    }
}

/// The smallest that keeps the tiny tensors apart; files say it in their metadata.
const ALIGNMENT: usize = 8;
