#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| chaos::fuzz::one("backup_log", bytes));
