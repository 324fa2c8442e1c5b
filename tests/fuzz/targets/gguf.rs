//! Bytes as a GGUF file: opened, read, taken for a language model and for a codec.
#![no_main]

libfuzzer_sys::fuzz_target!(init: moshi_fuzz::seeds::write(), |bytes: &[u8]| {
    moshi_fuzz::weights(&[b"GGUF", bytes].concat());
});
