//! What a machine can do at best, measured one thing at a time: how fast data come over the link,
//! go to the disk and come back, and are decoded and hashed on one core. From that, what bounds a
//! case: no contender can be faster than its slowest part, nor than all its work over the cores.

use std::fs::OpenOptions;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result};
use ferrite_imaging::Hasher;
use ferrite_proto::digest::Algorithm;
use nix::fcntl::{FallocateFlags, fallocate};
use serde::{Deserialize, Serialize};

use super::disk::Device;
use super::measure::children_seconds;
use super::rivals::pipeline;
use super::text;

/// How much is hashed at a time, and in all.
const HASHED: (usize, usize) = (2 << 20, 256);

/// So many bytes in so many seconds: of one core where a core does it.
#[derive(Debug, Default, Clone, Copy, Serialize, Deserialize)]
pub(super) struct Rate {
    bytes: f64,
    seconds: f64,
}

impl Rate {
    /// Bytes; 0 of what was not measured.
    pub(super) fn a_second(self) -> f64 {
        self.bytes / self.seconds.max(1e-9)
    }

    /// Seconds for other bytes of the kind. What was not measured bounds nothing.
    fn of(self, bytes: f64) -> f64 {
        if self.bytes > 0.0 {
            bytes / self.a_second()
        } else {
            0.0
        }
    }
}

/// What a machine does, one thing at a time.
#[derive(Debug, Default, Clone, Serialize, Deserialize)]
pub(super) struct Rates {
    /// With the dense image's compressed file.
    pub(super) link: Rate,
    /// `dd` of zeros with `O_DIRECT`, 4 MiB each, and back.
    pub(super) disk: Rate,
    pub(super) read: Rate,
    /// Made zeros by the disk's own command, where data were.
    pub(super) zero: Rate,
    /// Raw bytes by `zstd -dc`; the sparse image's are mostly zeros.
    pub(super) zstd_dense: Rate,
    pub(super) zstd_sparse: Rate,
    /// Raw bytes by `gzip -dc`.
    pub(super) gzip_dense: Rate,
    /// What is not zeros in a compressed qcow2, by `qemu-img convert` to nowhere.
    pub(super) zlib: Rate,
    /// By `sha256sum`, and by OpenSSL, which uses the processor's own instructions.
    pub(super) sha256sum: Rate,
    pub(super) sha256: Rate,
    pub(super) blake3: Rate,
}

/// What it is measured with. Files that are not there are not measured.
#[derive(Debug, Default, Clone, Serialize, Deserialize)]
pub(super) struct Probe {
    /// A URL of `dense_zst`.
    pub(super) url: String,
    pub(super) dense_zst: PathBuf,
    pub(super) sparse_zst: PathBuf,
    pub(super) dense_gz: Option<PathBuf>,
    pub(super) zlib_qcow2: Option<PathBuf>,
    /// Of the raw images.
    pub(super) dense_bytes: u64,
    pub(super) sparse_bytes: u64,
    pub(super) sparse_data: u64,
    /// Of `dense_zst`.
    pub(super) packed_bytes: u64,
}

impl Probe {
    /// Measures all; what lies on the disk is lost.
    pub(super) fn rates(&self, disk: &Device) -> Result<Rates> {
        let (dense, packed) = (self.dense_bytes, self.packed_bytes);
        let zst = text(&self.dense_zst)?;
        let count = format!("count={}", dense >> 22);
        let (to, from) = (format!("of={}", disk.name()), format!("if={}", disk.name()));
        let write = ["dd", "if=/dev/zero", &to, "bs=4M", "oflag=direct"];
        let read = ["dd", &from, "of=/dev/null", "bs=4M", "iflag=direct"];
        let end = [&*count, "status=none"];
        let gzip_dense = match &self.dense_gz {
            Some(gz) => by_cpu(dense, &["gzip", "-dc", text(gz)?])?,
            None => Rate::default(),
        };
        let zlib = match &self.zlib_qcow2 {
            Some(qcow2) => {
                let sink = format!("driver=null-co,size={}", self.sparse_bytes);
                let how = ["qemu-img", "convert", "-n", "--target-image-opts"];
                by_cpu(
                    self.sparse_data,
                    &[&how[..], &[text(qcow2)?, &sink]].concat(),
                )?
            }
            None => Rate::default(),
        };
        Ok(Rates {
            link: by_wall(packed, &["curl", "-s", "-o", "/dev/null", &self.url])?,
            disk: by_wall(dense, &[&write[..], &end].concat())?,
            read: by_wall(dense, &[&read[..], &end].concat())?,
            zero: zeroing(dense, disk)?,
            zstd_dense: by_cpu(dense, &["zstd", "-dc", zst])?,
            zstd_sparse: by_cpu(self.sparse_bytes, &["zstd", "-dc", text(&self.sparse_zst)?])?,
            gzip_dense,
            zlib,
            sha256sum: by_cpu(packed, &["sha256sum", zst])?,
            sha256: by_cpu(packed, &["openssl", "dgst", "-sha256", zst])?,
            blake3: blake3(),
        })
    }
}

/// A case's bytes beside the machine's rates: seconds of one core for parts of the work.
#[derive(Debug)]
pub(super) struct Load<'a> {
    pub(super) rates: &'a Rates,
    /// Of the raw image, and of what is not holes in it.
    pub(super) bytes: f64,
    pub(super) data: f64,
    pub(super) fetched: f64,
    /// To the disk, as data and as a command.
    pub(super) written: f64,
    pub(super) zeroed: f64,
}

impl Load<'_> {
    pub(super) fn zstd(&self, raw: f64) -> f64 {
        self.rates.zstd_dense.of(raw)
    }

    /// The whole image as one stream: data at the dense image's rate when there are no holes.
    pub(super) fn zstd_stream(&self) -> f64 {
        let mostly_zeros = self.data < 0.5 * self.bytes;
        let rate = if mostly_zeros {
            self.rates.zstd_sparse
        } else {
            self.rates.zstd_dense
        };
        rate.of(self.bytes)
    }

    pub(super) fn gzip(&self, raw: f64) -> f64 {
        self.rates.gzip_dense.of(raw)
    }

    pub(super) fn zlib(&self, raw: f64) -> f64 {
        self.rates.zlib.of(raw)
    }

    /// By the faster of the two: an emulated processor has slow vector instructions.
    pub(super) fn sha256(&self, bytes: f64) -> f64 {
        let both = [self.rates.sha256.of(bytes), self.rates.sha256sum.of(bytes)];
        both[0].min(both[1])
    }

    pub(super) fn blake3(&self, bytes: f64) -> f64 {
        self.rates.blake3.of(bytes)
    }

    pub(super) fn read(&self, bytes: f64) -> f64 {
        self.rates.read.of(bytes)
    }
}

/// A part of the work, and how many seconds it takes for itself.
pub(super) type Part = (&'static str, f64);

/// No part.
pub(super) const NOTHING: Part = ("", 0.0);

/// What bounds a case, beside link and disk: work that all cores share, and decoding and hashing
/// that one core has to do for itself.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limit {
    pub(super) shared: fn(&Load) -> [Part; 2],
    pub(super) alone: fn(&Load) -> [Part; 2],
}

/// What nobody could be faster than.
#[derive(Debug)]
pub(super) struct Bound {
    pub(super) seconds: f64,
    pub(super) why: &'static str,
    /// All the work there is.
    pub(super) parts: Vec<Part>,
}

impl Limit {
    /// Where link and disk are memory, they are work of the cores, too.
    #[expect(clippy::cast_precision_loss, reason = "seconds for a table")]
    pub(super) fn of(self, load: &Load, cores: usize) -> Bound {
        let [decoding, hashing] = (self.alone)(load);
        let link = ("link", load.rates.link.of(load.fetched));
        let sent = ("disk", load.rates.disk.of(load.written));
        let zeroed = ("zeroing", load.rates.zero.of(load.zeroed));
        let shared = (self.shared)(load);
        let mut parts = [&shared[..], &[decoding, hashing, link, sent, zeroed]].concat();
        parts.retain(|(_, seconds)| *seconds > 0.0);
        let work: f64 = parts.iter().map(|(_, seconds)| seconds).sum();
        let bounds = [
            (
                work / cores as f64,
                "decoding, hashing and copying on all cores",
            ),
            (decoding.1, "one stream, decoded by one core"),
            (hashing.1, "one SHA-256, by one core"),
            (link.1, "the link"),
            (sent.1 + zeroed.1, "the disk"),
        ];
        let slowest = bounds
            .into_iter()
            .max_by(|one, other| one.0.total_cmp(&other.0));
        let (seconds, why) = slowest.unwrap_or_default();
        Bound {
            seconds,
            why,
            parts,
        }
    }
}

/// In this process: its inner loop is assembler, whatever this program was built for.
#[expect(clippy::cast_precision_loss, reason = "a rate for a table")]
fn blake3() -> Rate {
    let (piece, times) = HASHED;
    let bytes = vec![0x5a; piece];
    let started = Instant::now();
    for _ in 0..times {
        std::hint::black_box(Hasher::of(Algorithm::Blake3, &bytes));
    }
    Rate {
        bytes: (piece * times) as f64,
        seconds: started.elapsed().as_secs_f64(),
    }
}

/// Has a disk that was written make all of it zeros.
#[expect(clippy::cast_precision_loss, reason = "a rate for a table")]
fn zeroing(bytes: u64, disk: &Device) -> Result<Rate> {
    let file = OpenOptions::new().write(true).open(disk.name())?;
    let hole = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    let started = Instant::now();
    fallocate(&file, hole, 0, i64::try_from(bytes)?).context("making the disk zeros")?;
    Ok(Rate {
        bytes: bytes as f64,
        seconds: started.elapsed().as_secs_f64(),
    })
}

#[expect(clippy::cast_precision_loss, reason = "a rate for a table")]
fn by_wall(bytes: u64, argv: &[&str]) -> Result<Rate> {
    let started = Instant::now();
    pipeline(&[argv])?;
    Ok(Rate {
        bytes: bytes as f64,
        seconds: started.elapsed().as_secs_f64(),
    })
}

#[expect(clippy::cast_precision_loss, reason = "a rate for a table")]
fn by_cpu(bytes: u64, argv: &[&str]) -> Result<Rate> {
    let before = children_seconds()?;
    pipeline(&[argv])?;
    Ok(Rate {
        bytes: bytes as f64,
        seconds: (children_seconds()? - before).max(0.01),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slowest_part_is_the_limit_and_is_named() {
        let rate = |seconds| Rate {
            bytes: 10.0,
            seconds,
        };
        let rates = Rates {
            link: rate(1.0),
            disk: rate(2.0),
            zero: rate(3.0),
            gzip_dense: rate(8.0),
            ..Rates::default()
        };
        let load = |written, zeroed| Load {
            rates: &rates,
            bytes: 10.0,
            data: 10.0,
            fetched: 10.0,
            written,
            zeroed,
        };
        let is = |bound: &Bound, seconds: f64, why: &str| {
            let near = (bound.seconds - seconds).abs() < 1e-9;
            assert!(near && bound.why.contains(why), "{bound:?}");
        };
        let shared = Limit {
            shared: |load| [("gzip", load.gzip(load.data)), NOTHING],
            alone: |_| [NOTHING; 2],
        };
        let bound = shared.of(&load(5.0, 0.0), 2);
        is(&bound, 5.0, "all cores");
        assert_eq!(bound.parts, [("gzip", 8.0), ("link", 1.0), ("disk", 1.0)]);
        let alone = Limit {
            shared: |_| [NOTHING; 2],
            alone: |load| {
                [
                    ("gzip", load.gzip(load.data)),
                    ("SHA-256", load.sha256(load.fetched)),
                ]
            },
        };
        is(&alone.of(&load(5.0, 0.0), 2), 8.0, "decoded by one");
        is(&alone.of(&load(90.0, 0.0), 4), 18.0, "the disk");
        is(&alone.of(&load(30.0, 40.0), 4), 18.0, "the disk");
    }
}
