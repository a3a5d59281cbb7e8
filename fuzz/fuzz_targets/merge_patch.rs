#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    portcullis_fuzz::vmm::mmds::MERGE_PATCH.run(bytes);
});
