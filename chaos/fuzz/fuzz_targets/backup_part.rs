#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    meridian::fuzz::backup_part(bytes);
});
