#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    portcullis_fuzz::attest::ima::IMA_BINARY.run(bytes);
});
