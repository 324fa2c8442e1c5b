//! Packets of Opus on good pages, some of them lost.
#![no_main]

libfuzzer_sys::fuzz_target!(init: moshi_fuzz::wire::write_seeds(), |given: Vec<(bool, Vec<u8>)>| {
    moshi_fuzz::wire::packets(&given);
});
