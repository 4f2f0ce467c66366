//! `qcow2`: see `ferrite_fuzz::qcow2`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| ferrite_fuzz::qcow2(bytes));
