//! Fills the tree up to a given amount of data, for measurements: what compresses and what does
//! not, as on real disks. Four fifths are pages of the tree's own binaries with a few bytes
//! changed, one fifth is noise; the same each time.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

const DIRECTORY: &str = "var/lib/filler";
const PAGE: usize = 4096;
const FILE_BYTES: u64 = 8 << 20;
/// Smaller files have little to copy from.
const SOURCE_AT_LEAST: u64 = 256 << 10;
/// Enough variety, and it stays in memory.
const SOURCE_BYTES: usize = 128 << 20;
/// Every how many bytes a copied page differs from its source.
const CHANGE_EVERY: usize = 97;

/// A small generator with a fixed start (splitmix64): noise that is the same in every build.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound as u64).unwrap_or(0)
    }
}

/// Adds files until the tree holds `total` bytes of data.
pub(crate) fn fill(root: &Path, total: u64) -> Result<()> {
    let there = data_bytes(root)?;
    if there > total {
        bail!("the tree has {there} bytes already, more than the {total} asked for");
    }
    let source = collect_source(root)?;
    let dir = root.join(DIRECTORY);
    fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
    let mut noise = Noise(1);
    let mut missing = total - there;
    for number in 0.. {
        if missing < PAGE as u64 {
            break;
        }
        let pages = missing.min(FILE_BYTES) / PAGE as u64;
        let path = dir.join(format!("{number:05}.bin"));
        write_file(&path, pages, &source, &mut noise)
            .with_context(|| format!("writing {}", path.display()))?;
        missing -= pages * PAGE as u64;
    }
    Ok(())
}

fn write_file(path: &Path, pages: u64, source: &[u8], noise: &mut Noise) -> Result<()> {
    let mut out = BufWriter::new(File::create(path)?);
    for _ in 0..pages {
        out.write_all(&page(source, noise))?;
    }
    out.into_inner()?.sync_all()?;
    Ok(())
}

fn page(source: &[u8], noise: &mut Noise) -> [u8; PAGE] {
    let mut page = [0; PAGE];
    if noise.next().is_multiple_of(5) {
        for word in page.chunks_exact_mut(8) {
            word.copy_from_slice(&noise.next().to_le_bytes());
        }
        return page;
    }
    let at = noise.below(source.len() / PAGE) * PAGE;
    page.copy_from_slice(&source[at..at + PAGE]);
    for byte in page.iter_mut().step_by(CHANGE_EVERY) {
        *byte = noise.next().to_le_bytes()[0];
    }
    page
}

/// The content of the tree's larger files, in the order of their names.
fn collect_source(root: &Path) -> Result<Vec<u8>> {
    let mut source = Vec::new();
    for path in files_below(&root.join("usr"))? {
        if source.len() >= SOURCE_BYTES {
            break;
        }
        if fs::symlink_metadata(&path)?.len() >= SOURCE_AT_LEAST {
            let bytes = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
            source.extend_from_slice(&bytes[..bytes.len() / PAGE * PAGE]);
        }
    }
    if source.is_empty() {
        bail!(
            "{} has no file of {SOURCE_AT_LEAST} bytes to copy from",
            root.display()
        );
    }
    Ok(source)
}

/// What the files take on a file system with 4096-byte blocks.
fn data_bytes(root: &Path) -> Result<u64> {
    let mut total = 0;
    for path in files_below(root)? {
        let length = fs::symlink_metadata(&path)
            .with_context(|| format!("looking at {}", path.display()))?
            .len();
        total += length.next_multiple_of(PAGE as u64);
    }
    Ok(total)
}

/// Regular files below a directory, sorted; links are not followed, other file systems not entered.
fn files_below(dir: &Path) -> Result<Vec<PathBuf>> {
    let device = fs::metadata(dir)
        .with_context(|| format!("looking at {}", dir.display()))?
        .dev();
    let mut files = Vec::new();
    let mut open = vec![dir.to_owned()];
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(&dir).with_context(|| format!("listing {}", dir.display()))? {
            let entry = entry?;
            let kind = entry.file_type()?;
            if kind.is_dir() && entry.metadata()?.dev() == device {
                open.push(entry.path());
            } else if kind.is_file() {
                files.push(entry.path());
            }
        }
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("usr/bin")).unwrap();
        let text = b"some words that repeat. ".repeat(30_000);
        fs::write(dir.path().join("usr/bin/tool"), text).unwrap();
        dir
    }

    #[test]
    fn the_tree_holds_what_was_asked_for_and_is_the_same_each_time() {
        let (one, two) = (tree(), tree());
        for dir in [&one, &two] {
            fill(dir.path(), 20 << 20).unwrap();
            assert_eq!(data_bytes(dir.path()).unwrap(), 20 << 20);
        }
        let read = |dir: &tempfile::TempDir| fs::read(dir.path().join("var/lib/filler/00000.bin"));
        assert_eq!(read(&one).unwrap(), read(&two).unwrap());
    }

    #[test]
    fn a_fifth_is_noise_and_the_rest_compresses() {
        let dir = tree();
        fill(dir.path(), 12 << 20).unwrap();
        let bytes = fs::read(dir.path().join("var/lib/filler/00000.bin")).unwrap();
        let packed = zstd::bulk::compress(&bytes, 3).unwrap();
        let share = packed.len() * 100 / bytes.len();
        assert!((20..45).contains(&share), "compressed to {share} %");
    }

    #[test]
    fn a_tree_that_is_too_large_already_is_an_error() {
        let dir = tree();
        assert!(
            fill(dir.path(), 4096)
                .unwrap_err()
                .to_string()
                .contains("already")
        );
    }
}
