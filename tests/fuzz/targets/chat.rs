//! Bytes as messages of the Moshi WebSocket.
#![no_main]

libfuzzer_sys::fuzz_target!(init: moshi_fuzz::wire::write_seeds(), |bytes: &[u8]| {
    moshi_fuzz::wire::message(bytes);
});
