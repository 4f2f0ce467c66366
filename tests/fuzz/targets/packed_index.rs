//! `packed_index`: see `ferrite_fuzz::packed_index`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| ferrite_fuzz::packed_index(bytes));
