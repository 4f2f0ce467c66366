//! The checks that the targets run; the same file is part of `ferrite-tests`, for stable Rust.

#[path = "../../src/parsers.rs"]
mod parsers;

pub use parsers::{CHECKS, Check, decompress, gpt, mbr, packed_file, packed_index, qcow2};
