//! How the bench's images come to be: dense and sparse ones of this machine's own programs and
//! noise, a sparse Debian, and that Debian after an upgrade. The same each time on one machine.

use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::command::run;

/// The tables' places at both ends.
const MARGIN: u64 = 1 << 20;
/// Of each five pieces four are programs and the last is noise.
const PIECE: usize = 2 << 20;
/// Smaller programs have little to compress.
const PROGRAM_AT_LEAST: u64 = 64 << 10;
const PROGRAM_DIRS: [&str; 4] = ["/usr/bin", "/usr/lib", "/usr/libexec", "/usr/local"];
/// One file of so many is another after the upgrade.
const UPGRADE_EVERY: u64 = 10;
/// How far apart the changed bytes of an upgraded file are.
const CHANGE_EVERY: usize = 97;

/// A GPT with three partitions, four fifths programs, one fifth noise. Of so many pieces only one
/// is there: with 1 the image has no hole.
pub(super) fn filled(bytes: u64, one_of: usize, out: &Path) -> Result<()> {
    let file = OpenOptions::new()
        .create(true)
        .write(true)
        .truncate(true)
        .open(out)?;
    file.set_len(bytes)?;
    let mut programs = Programs::new()?;
    let mut noise = Noise(1);
    let mut buffer = vec![0; PIECE];
    let mut at = MARGIN;
    let end = bytes - MARGIN;
    for number in 1_usize.. {
        let size = usize::try_from((end - at).min(PIECE as u64))?;
        if size == 0 {
            break;
        }
        let (piece, place) = (&mut buffer[..size], at);
        at += size as u64;
        if !number.is_multiple_of(one_of) {
            continue;
        }
        if (number / one_of).is_multiple_of(5) {
            noise.fill(piece);
        } else {
            programs.fill(piece)?;
        }
        file.write_all_at(piece, place)?;
    }
    drop(file);
    let out = out.to_str().context("the path is not UTF-8")?;
    let guid = |number: u8| format!("FE771E00-0000-4000-9000-{number:012X}");
    let (disk, first, second, third) = (
        guid(0),
        format!("1:{}", guid(1)),
        format!("2:{}", guid(2)),
        format!("3:{}", guid(3)),
    );
    let second_size = format!("2:0:+{}M", bytes >> 22);
    let partitions = ["-n", "1:2048:+64M", "-n", &second_size, "-n", "3:0:0"];
    let guids = ["-U", &disk, "-u", &first, "-u", &second, "-u", &third];
    let argv = [&["sgdisk", "--clear"], &partitions[..], &guids, &[out]].concat();
    run(&argv).map(drop)
}

/// The lab's Debian on a disk of a size, with so much data besides.
pub(super) fn debian(image_tool: &Path, out: &Path) -> Result<()> {
    let (tool, out) = (image_tool.to_string_lossy(), out.to_string_lossy());
    let sizes = ["--size", "8GiB", "--data", "1GiB"];
    run(&[&[&*tool, "os", "--out", &*out], &sizes[..]].concat())?;
    // Its description is not of use here.
    Ok(fs::remove_file(format!("{out}.json"))?)
}

/// The image with every tenth file written anew, as a package manager does it.
pub(super) fn upgraded(image: &Path, out: &Path) -> Result<()> {
    let (from, to) = (image.to_string_lossy(), out.to_string_lossy());
    run(&["cp", "--sparse=always", &from, &to])?;
    let root = largest_partition(&to)?;
    let mounted = Mounted::new(&to, root)?;
    let mut files = Vec::new();
    collect(&mounted.0, &mut files)?;
    files.sort();
    for file in files {
        let name = file.strip_prefix(&mounted.0)?.to_string_lossy();
        if fnv(name.as_bytes()).is_multiple_of(UPGRADE_EVERY) {
            rewrite(&file).with_context(|| format!("upgrading /{name}"))?;
        }
    }
    mounted.end()
}

/// Programs one after the other, from their first bytes to their last.
struct Programs {
    files: std::vec::IntoIter<PathBuf>,
    current: Option<File>,
}

impl Programs {
    fn new() -> Result<Self> {
        let rust = PathBuf::from(run(&["rustc", "--print", "sysroot"])?.trim());
        let toolchains = rust.parent().map(Path::to_owned);
        let dirs = PROGRAM_DIRS.iter().map(PathBuf::from).chain(toolchains);
        let mut files = Vec::new();
        for dir in dirs.filter(|dir| dir.is_dir()) {
            collect(&dir, &mut files)?;
        }
        files.sort();
        files.dedup();
        Ok(Self {
            files: files.into_iter(),
            current: None,
        })
    }

    fn fill(&mut self, mut piece: &mut [u8]) -> Result<()> {
        while !piece.is_empty() {
            let read = match &mut self.current {
                Some(file) => file.read(piece)?,
                None => 0,
            };
            if read == 0 {
                self.current = Some(self.next()?);
            }
            piece = &mut piece[read..];
        }
        Ok(())
    }

    fn next(&mut self) -> Result<File> {
        let program = |path: PathBuf| {
            let file = File::open(path).ok()?;
            let mut magic = [0; 4];
            file.read_exact_at(&mut magic, 0).ok()?;
            let large = file.metadata().ok()?.len() >= PROGRAM_AT_LEAST;
            (large && matches!(&magic, b"\x7fELF" | b"!<ar")).then_some(file)
        };
        self.files
            .find_map(program)
            .context("this machine has too few programs for a dense image")
    }
}

/// A small generator with a fixed start (splitmix64).
struct Noise(u64);

impl Noise {
    fn fill(&mut self, piece: &mut [u8]) {
        for word in piece.chunks_mut(8) {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut mixed = self.0;
            mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            mixed ^= mixed >> 31;
            word.copy_from_slice(&mixed.to_le_bytes()[..word.len()]);
        }
    }
}

/// Regular files below a folder, on its own file system; links are not followed.
fn collect(dir: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let device = fs::metadata(dir)?.dev();
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir).with_context(|| format!("reading {}", dir.display()))? {
            let path = entry?.path();
            let metadata = fs::symlink_metadata(&path)?;
            if metadata.is_dir() && metadata.dev() == device {
                dirs.push(path);
            } else if metadata.is_file() {
                files.push(path);
            }
        }
    }
    Ok(())
}

/// A new file takes the old one's name.
fn rewrite(path: &Path) -> Result<()> {
    let mut bytes = fs::read(path)?;
    for byte in bytes.iter_mut().step_by(CHANGE_EVERY) {
        *byte ^= 1;
    }
    let fresh = path.with_extension("upgrade-new");
    fs::write(&fresh, bytes)?;
    fs::set_permissions(&fresh, fs::metadata(path)?.permissions())?;
    Ok(fs::rename(&fresh, path)?)
}

fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[derive(Debug, Deserialize)]
struct Sfdisk {
    partitiontable: PartitionTable,
}

#[derive(Debug, Deserialize)]
struct PartitionTable {
    partitions: Vec<Partition>,
}

#[derive(Debug, Deserialize)]
struct Partition {
    start: u64,
    size: u64,
}

/// Its first byte.
fn largest_partition(image: &str) -> Result<u64> {
    let table: Sfdisk = serde_json::from_str(&run(&["sfdisk", "--json", image])?)?;
    let partitions = table.partitiontable.partitions;
    let largest = partitions.iter().max_by_key(|partition| partition.size);
    Ok(largest.context("the image has no partition")?.start * 512)
}

/// A partition of an image, mounted beside it.
struct Mounted(PathBuf);

impl Mounted {
    fn new(image: &str, offset: u64) -> Result<Self> {
        let dir = PathBuf::from(format!("{image}.mnt"));
        fs::create_dir_all(&dir)?;
        let options = format!("loop,offset={offset}");
        let point = dir.to_string_lossy();
        run(&["mount", "-o", &options, image, &point])?;
        Ok(Self(dir))
    }

    /// Only an unmounted file system is whole.
    fn end(self) -> Result<()> {
        run(&["umount", &self.0.to_string_lossy()])?;
        Ok(fs::remove_dir(&self.0)?)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // Nothing is mounted there any more unless something failed.
        if self.0.exists() {
            let _ = run(&["umount", &self.0.to_string_lossy()]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn noise_is_the_same_each_time_and_does_not_repeat() {
        let (mut one, mut two) = (vec![0; 4099], vec![0; 4099]);
        Noise(1).fill(&mut one);
        Noise(1).fill(&mut two);
        assert_eq!(one, two);
        assert_ne!(one[..2048], one[2048..4096]);
    }

    #[test]
    fn an_upgraded_file_has_its_old_name_and_length_and_other_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tool");
        fs::write(&path, vec![7; 1000]).unwrap();
        rewrite(&path).unwrap();
        let bytes = fs::read(&path).unwrap();
        assert_eq!(bytes.len(), 1000);
        assert_eq!(bytes.iter().filter(|byte| **byte != 7).count(), 11);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
