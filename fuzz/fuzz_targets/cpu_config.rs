#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    portcullis_fuzz::vmm::config::CPU_CONFIG.run(bytes);
});
