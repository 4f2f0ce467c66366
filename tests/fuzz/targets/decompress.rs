//! `decompress`: see `ferrite_fuzz::decompress`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| ferrite_fuzz::decompress(bytes));
