#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    portcullis_fuzz::attest::statements::VERIFIER_KEYS.run(bytes);
});
