#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| chaos::fuzz::one("repair_ask", bytes));
