//! Disk images as bytes: what they are compressed with, qcow2, and the packed image.
//!
//! The agent writes images, `ferrite-image` packs them, tests and fuzz targets attack the parsers:
//! what the three need of an image's form is here. Deliberately no network, no disk, no threads:
//! callers bring the bytes ([`ReadAt`], [`std::io::Read`]) and take them away.

pub mod content;
pub mod decompress;
mod digest;
mod foreign;
pub mod packed;
pub mod qcow2;
mod read_at;
mod zero;

pub use digest::{Digested, Hasher};
pub use foreign::foreign;
pub use read_at::ReadAt;
pub use zero::is_zero;
