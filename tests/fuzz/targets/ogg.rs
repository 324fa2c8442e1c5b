//! Bytes as pages of an Ogg stream, in any cutting.
#![no_main]

libfuzzer_sys::fuzz_target!(init: moshi_fuzz::wire::write_seeds(), |bytes: &[u8]| {
    moshi_fuzz::wire::pages(bytes);
});
