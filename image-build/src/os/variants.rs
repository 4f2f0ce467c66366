//! The compressed variants of a raw image and the JSON file with their sizes and digests.
//! Sizes and digests are of the files as fetched: what `sha256sum` prints.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::ValueEnum;
use flate2::write::GzEncoder;
use lzma_rust2::{XzOptions, XzWriter};
use serde::Serialize;

use crate::artifacts::{self, FileEntry};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Compression {
    Zstd,
    Gzip,
    Xz,
}

impl Compression {
    fn suffix(self) -> &'static str {
        match self {
            Self::Zstd => "zst",
            Self::Gzip => "gz",
            Self::Xz => "xz",
        }
    }
}

/// What `FILE.json` says.
#[derive(Debug, Serialize)]
pub(crate) struct ImageInfo {
    #[serde(flatten)]
    pub(crate) image: FileEntry,
    pub(crate) variants: BTreeMap<Compression, FileEntry>,
}

/// Compresses the image in each way asked for and writes `FILE.json`.
pub(crate) fn finish(image: &Path, ways: &[Compression]) -> Result<ImageInfo> {
    let mut info = ImageInfo {
        image: artifacts::describe(image)?,
        variants: BTreeMap::new(),
    };
    for way in ways {
        let out = with_suffix(image, way.suffix());
        tracing::info!(out = %out.display(), "compressing");
        compress(*way, image, &out)
            .with_context(|| format!("compressing {} to {}", image.display(), out.display()))?;
        info.variants.insert(*way, artifacts::describe(&out)?);
    }
    let text = serde_json::to_string_pretty(&info).context("describing the image")?;
    artifacts::write_whole(&with_suffix(image, "json"), format!("{text}\n").as_bytes())?;
    Ok(info)
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(suffix);
    PathBuf::from(name)
}

fn compress(way: Compression, from: &Path, to: &Path) -> Result<()> {
    let partial = with_suffix(to, "partial");
    let mut input = BufReader::with_capacity(1 << 20, File::open(from)?);
    let mut output = BufWriter::with_capacity(1 << 20, File::create(&partial)?);
    match way {
        Compression::Zstd => {
            let size = input.get_ref().metadata()?.len();
            zstd_copy(&mut input, &mut output, size)?;
        }
        Compression::Gzip => {
            let mut encoder = GzEncoder::new(&mut output, flate2::Compression::new(6));
            io::copy(&mut input, &mut encoder)?;
            encoder.finish()?;
        }
        Compression::Xz => {
            let mut encoder = XzWriter::new(&mut output, XzOptions::with_preset(1))?;
            io::copy(&mut input, &mut encoder)?;
            encoder.finish()?;
        }
    }
    output.flush()?;
    std::fs::rename(&partial, to)?;
    Ok(())
}

/// Level 10 is where more time stops buying much; the window stays one that any decoder takes.
/// The frame says how large the image is, so that a reader can tell before it writes.
fn zstd_copy(from: &mut impl io::Read, to: &mut impl io::Write, size: u64) -> io::Result<()> {
    let mut encoder = zstd::stream::Encoder::new(to, 10)?;
    encoder.set_pledged_src_size(Some(size))?;
    encoder.include_checksum(true)?;
    io::copy(from, &mut encoder)?;
    encoder.finish().map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read as _;

    #[test]
    fn variants_decompress_to_the_image_and_are_described() {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("os.raw");
        let content: Vec<u8> = (0..300_000_u32).flat_map(u32::to_le_bytes).collect();
        std::fs::write(&image, &content).unwrap();
        let ways = [Compression::Zstd, Compression::Gzip, Compression::Xz];
        let info = finish(&image, &ways).unwrap();
        assert_eq!(info.image.bytes, content.len() as u64);

        let file = |suffix| File::open(with_suffix(&image, suffix)).unwrap();
        let (mut gz, mut xz) = (Vec::new(), Vec::new());
        assert_eq!(zstd::stream::decode_all(file("zst")).unwrap(), content);
        flate2::read::GzDecoder::new(file("gz"))
            .read_to_end(&mut gz)
            .unwrap();
        lzma_rust2::XzReader::new(file("xz"), false)
            .read_to_end(&mut xz)
            .unwrap();
        assert!(gz == content && xz == content);

        let text = std::fs::read_to_string(with_suffix(&image, "json")).unwrap();
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(json["path"], "os.raw");
        assert_eq!(json["variants"]["zstd"]["path"], "os.raw.zst");
        assert_eq!(
            json["variants"]["xz"]["bytes"],
            file("xz").metadata().unwrap().len()
        );
    }
}
