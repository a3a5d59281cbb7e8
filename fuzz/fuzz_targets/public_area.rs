#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    portcullis_fuzz::keys::PUBLIC_AREA.run(bytes);
});
