//! Files in which every length is right but for what a few edits make wrong: past the headers,
//! where plain bytes seldom come.
#![no_main]

use arbitrary::Arbitrary;
use moshi_fuzz::build::{self, Kind, Tensors};

#[derive(Arbitrary, Debug)]
struct Input {
    base: Base,
    gguf: bool,
    edits: Vec<(u8, Edit)>,
}

#[derive(Arbitrary, Debug)]
enum Base {
    LanguageModel,
    Wide,
    Scaled,
    Grouped(bool),
    Codec,
    Adapter,
    Nothing,
}

/// A change of one tensor.
#[derive(Arbitrary, Debug)]
enum Edit {
    Drop,
    Copy,
    Rename(Name),
    /// Puts another ending in the place of the last `cut` parts of a name.
    Ending {
        cut: u8,
        ending: Ending,
    },
    Number(u8),
    Shape(Vec<Size>),
    Kind(u8),
    Shift(u64),
    Bytes(Vec<u8>),
    /// Keeps type and shape, repeats the bytes of a value.
    Value([u8; 4]),
    Grow(u16),
}

#[derive(Arbitrary, Debug)]
enum Size {
    Small(u8),
    Large(u64),
}

#[derive(Arbitrary, Debug)]
enum Name {
    Text(String),
    Candle,
    HuggingFace,
    Mlx,
    Slice,
    Query,
    Others,
}

#[derive(Arbitrary, Debug)]
enum Ending {
    InProj,
    InProjDot,
    OutProj,
    Split,
    Gain,
    Direction,
    LoraA,
    LoraB,
    Projection(u8),
    Scb,
    Scales,
    Offsets,
    Inited,
}

libfuzzer_sys::fuzz_target!(init: moshi_fuzz::seeds::write(), |input: Input| {
    let mut tensors = match input.base {
        Base::LanguageModel => build::language_model(&moshi_fuzz::LM),
        Base::Wide => build::language_model(&moshi_fuzz::WIDE_LM),
        Base::Scaled => build::scaled(),
        Base::Grouped(few) => build::grouped(if few { 4 } else { 8 }),
        Base::Codec => build::codec(),
        Base::Adapter => build::adapter(),
        Base::Nothing => Tensors::default(),
    };
    for (at, edit) in input.edits.into_iter().take(64) {
        if tensors.0.is_empty() {
            tensors.push("x.self_attn.in_proj_weight", &[4, 4]);
        }
        let at = usize::from(at) % tensors.0.len();
        apply(&mut tensors, at, edit);
    }
    let bytes = if input.gguf { tensors.gguf() } else { tensors.safetensors() };
    match input.base {
        Base::Adapter => moshi_fuzz::adapter(&bytes),
        _ => moshi_fuzz::weights(&bytes),
    };
});

fn apply(tensors: &mut Tensors, at: usize, edit: Edit) {
    let tensor = &mut tensors.0[at];
    match edit {
        Edit::Drop => drop(tensors.0.remove(at)),
        Edit::Copy => {
            let copy = tensor.clone();
            tensors.0.push(copy);
        }
        Edit::Rename(name) => {
            tensor.name = match name {
                Name::Text(text) => text,
                Name::Candle => "depformer.0.linear_in.weight".into(),
                Name::HuggingFace => "encoder.layers.0.conv.weight".into(),
                Name::Mlx => "audio_embs.0.weight".into(),
                Name::Slice => "depformer.1.transformer.layers.0.self_attn.in_proj_weight".into(),
                Name::Query => "transformer.layers.0.cross_attention.in_proj_weight_q".into(),
                Name::Others => "transformer.layers.0.cross_attention.in_proj_weight_kv".into(),
            }
        }
        Edit::Ending { cut, ending } => {
            let mut parts: Vec<&str> = tensor.name.split('.').collect();
            parts.truncate(parts.len().saturating_sub(cut.into()));
            let ending = match ending {
                Ending::InProj => "self_attn.in_proj_weight",
                Ending::InProjDot => "self_attn.in_proj.weight",
                Ending::OutProj => "self_attn.out_proj.weight",
                Ending::Split => "self_attn.in_projs.0.weight",
                Ending::Gain => "weight_g",
                Ending::Direction => "weight_v",
                Ending::LoraA => "lora_A.weight",
                Ending::LoraB => "lora_B.weight",
                Ending::Projection(n) => [
                    "self_attn.q_proj.weight",
                    "self_attn.k_proj.weight",
                    "self_attn.v_proj.weight",
                ][usize::from(n) % 3],
                Ending::Scb => "weight_scb",
                Ending::Scales => "scales",
                Ending::Offsets => "biases",
                Ending::Inited => "_codebook.inited",
            };
            parts.push(ending);
            tensor.name = parts.join(".");
        }
        Edit::Number(number) => tensor.name = tensor.name.replace('0', &number.to_string()),
        Edit::Shape(sizes) => {
            let size = |size: &Size| match *size {
                Size::Small(n) => n.into(),
                Size::Large(n) => n,
            };
            tensor.shape = sizes.iter().take(6).map(size).collect();
        }
        Edit::Kind(kind) => {
            tensor.kind = match kind {
                255 => Kind::F32,
                254 => Kind::Bf16,
                253 => Kind::I64,
                252 => Kind::I8,
                251 => Kind::U32,
                number => Kind::Number(number.into()),
            }
        }
        Edit::Shift(shift) => tensor.shift = shift,
        Edit::Bytes(bytes) => tensor.bytes = bytes,
        Edit::Value(value) => {
            tensor.bytes.chunks_mut(4).for_each(|b| b.copy_from_slice(&value[..b.len()]));
        }
        Edit::Grow(len) => tensor.bytes.resize(len.into(), 0),
    }
}
