#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    portcullis_fuzz::vmm::mmds::MMDS_HTTP.run(bytes);
});
