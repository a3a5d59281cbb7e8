#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    portcullis_fuzz::attest::endorsement::REVOCATION_LIST.run(bytes);
});
