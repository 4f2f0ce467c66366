//! `gpt`: see `ferrite_fuzz::gpt`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| ferrite_fuzz::gpt(bytes));
