//! `packed_file`: see `ferrite_fuzz::packed_file`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| ferrite_fuzz::packed_file(bytes));
