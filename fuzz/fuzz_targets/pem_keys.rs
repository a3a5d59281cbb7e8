#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    portcullis_fuzz::attest::keys::PEM_KEYS.run(bytes);
});
