#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    portcullis_fuzz::eventlog::EVENT_LOG.run(bytes);
});
