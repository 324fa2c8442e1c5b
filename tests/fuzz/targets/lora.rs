//! Bytes as an adapter, in either container, for a tiny language model.
#![no_main]

libfuzzer_sys::fuzz_target!(init: moshi_fuzz::seeds::write(), |bytes: &[u8]| {
    moshi_fuzz::adapter(bytes);
});
