//! `mbr`: see `ferrite_fuzz::mbr`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| ferrite_fuzz::mbr(bytes));
