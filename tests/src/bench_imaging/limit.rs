//! What this machine can do at best, measured one thing at a time: how fast data come over
//! loopback, go to the disk, and are decoded and hashed on one core. No contender can beat the sum
//! of its work divided by the cores.

use std::time::Instant;

use anyhow::Result;
use serde::Serialize;

use super::disk::Disk;
use super::inputs::{DENSE, Inputs, SPARSE};
use super::measure::children_seconds;
use super::rivals::pipeline;
use super::serve::Server;
use super::text;

/// So many bytes in so many seconds: of one core where a core does it.
#[derive(Debug, Default, Clone, Copy, Serialize)]
pub(super) struct Rate {
    bytes: f64,
    pub(super) seconds: f64,
}

impl Rate {
    pub(super) fn a_second(self) -> f64 {
        self.bytes / self.seconds
    }

    /// Seconds for other bytes of the kind.
    pub(super) fn of(self, bytes: f64) -> f64 {
        bytes / self.a_second()
    }
}

/// What this machine does, one thing at a time.
#[derive(Debug, Default, Clone, Serialize)]
pub(super) struct Rates {
    /// Loopback, with the dense image's compressed file.
    pub(super) link: Rate,
    /// `dd` of zeros with `O_DIRECT`, 4 MiB each: a copy by the kernel, so a core's work too.
    pub(super) disk: Rate,
    /// Raw bytes by `zstd -dc`; the sparse image's are mostly zeros.
    pub(super) zstd_dense: Rate,
    pub(super) zstd_sparse: Rate,
    /// Raw bytes by `gzip -dc`.
    pub(super) gzip_dense: Rate,
    /// By `sha256sum`, and by OpenSSL, which uses the processor's own instructions.
    pub(super) sha256sum: Rate,
    pub(super) sha256: Rate,
}

/// What bounds a case. The link and the disk are memory here, so they take their share of the
/// cores: the sum of all work over the cores is a bound, and so is what one core must do alone.
#[derive(Debug, Clone, Copy)]
pub(super) enum Limit {
    /// Seconds of decoding that all cores share, and bytes for the disk.
    AllCores(fn(&Rates) -> f64, f64),
    /// Seconds of decoding or hashing that only one core can do.
    OneCore(fn(&Rates) -> f64, f64),
}

impl Limit {
    /// In seconds, when `fetched` bytes come.
    #[expect(clippy::cast_precision_loss, reason = "seconds for a table")]
    pub(super) fn seconds(self, rates: &Rates, fetched: u64, cores: usize) -> f64 {
        let (Self::AllCores(work, bytes) | Self::OneCore(work, bytes)) = self;
        let work = work(rates);
        let shared = work + rates.disk.of(bytes) + rates.link.of(fetched as f64);
        let shared = shared / cores as f64;
        match self {
            Self::AllCores(..) => shared,
            Self::OneCore(..) => shared.max(work),
        }
    }

    pub(super) fn why(self) -> &'static str {
        match self {
            Self::AllCores(..) => "decoding and copying on all cores",
            Self::OneCore(..) => "one stream, one core",
        }
    }
}

impl Rates {
    pub(super) fn measure(inputs: &Inputs, server: &Server, disk: &Disk) -> Result<Self> {
        let (zst, gz) = ("dense.raw.zst", "dense.raw.gz");
        let (dense, sparse) = (inputs.get(DENSE)?.bytes, inputs.get(SPARSE)?.bytes);
        let packed = inputs.get(zst)?.bytes;
        let path = inputs.path(zst);
        let path = text(&path)?;
        let gz = inputs.path(gz);
        let sparse_zst = inputs.path("debian.raw.zst");
        inputs.warm(zst)?;
        let url = server.url(zst);
        let count = (dense >> 22).to_string();
        let of = format!("of={}", disk.device());
        let dd = ["dd", "if=/dev/zero", &of, "bs=4M", "oflag=direct"];
        let count = format!("count={count}");
        Ok(Self {
            link: by_wall(packed, &["curl", "-s", "-o", "/dev/null", &url])?,
            disk: by_wall(dense, &[&dd[..], &[&count, "status=none"]].concat())?,
            zstd_dense: by_cpu(dense, &["zstd", "-dc", path])?,
            zstd_sparse: by_cpu(sparse, &["zstd", "-dc", text(&sparse_zst)?])?,
            gzip_dense: by_cpu(dense, &["gzip", "-dc", text(&gz)?])?,
            sha256sum: by_cpu(packed, &["sha256sum", path])?,
            sha256: by_cpu(packed, &["openssl", "dgst", "-sha256", path])?,
        })
    }
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
    fn one_stream_is_bound_by_one_core() {
        let rate = |seconds| Rate {
            bytes: 10.0,
            seconds,
        };
        let rates = Rates {
            link: rate(1.0),
            disk: rate(2.0),
            gzip_dense: rate(8.0),
            ..Rates::default()
        };
        let shared = Limit::AllCores(|rates| rates.gzip_dense.seconds, 5.0);
        assert!((shared.seconds(&rates, 10, 2) - 5.0).abs() < 1e-9);
        let alone = Limit::OneCore(|rates| rates.gzip_dense.seconds, 5.0);
        assert!((alone.seconds(&rates, 10, 2) - 8.0).abs() < 1e-9);
    }
}
