//! Bytes as a safetensors file: opened, read, taken for a language model and for a codec.
#![no_main]

libfuzzer_sys::fuzz_target!(init: moshi_fuzz::seeds::write(), |bytes: &[u8]| {
    // The length of the header is two bytes here: with eight, most inputs end at it.
    let [low, high, rest @ ..] = bytes else { return };
    let length = u64::from(u16::from_le_bytes([*low, *high]));
    moshi_fuzz::weights(&[&length.to_le_bytes(), rest].concat());
});
