//! The disk that everybody writes: a loop device, or a guest's virtio disk, over a file in a tmpfs
//! of its own. Every run begins with the same disk: each block was written and holds old data, as
//! on a machine that is deployed again. The file's pages are there and were touched, so nobody pays
//! for getting them.
//!
//! That start costs us most: to make a range zeros, a tmpfs gives its pages back one by one (0.16 s
//! of a core for each GiB, whatever the pages held), while one who writes zeros finds them there. A
//! file of holes would be the opposite: zeroing costs nothing, and a page written first 0.27 s a
//! GiB. Pages that are only allocated vary from run to run: whoever touches them first may wait for
//! the machine below this one to find memory.
//!
//! Not for figures: `measure` asks the device what went to it.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use nix::unistd::{Whence, lseek64};
use serde::Serialize;

use super::text;
use crate::command::run;

/// How much is compared at a time.
const PIECE: usize = 4 << 20;
const SECTOR: u64 = 512;
/// The old data.
const OLD: u8 = 0xa5;

/// What lies on the disk when a run begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(super) enum Before {
    /// Old data in every block: no byte of it is as in an image.
    Used,
    /// Another image.
    Holds(&'static str),
}

/// How a run begins, for the table's head.
pub(super) const START: &str = "every run begins with a disk whose every block was written before, \
     with other data";

/// The file behind a disk. It is looked at when nobody writes the disk.
#[derive(Debug)]
pub(super) struct Backing {
    path: PathBuf,
    bytes: u64,
}

impl Backing {
    /// Exactly so long, in a [`Ram`].
    pub(super) fn new(path: PathBuf, bytes: u64) -> Result<Self> {
        File::create(&path)?.set_len(bytes)?;
        Ok(Self { path, bytes })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Makes it what it is to be before a run: all of it is written. `raw` is the image that
    /// `Before::Holds` names.
    pub(super) fn prepare(&self, raw: Option<&Path>) -> Result<()> {
        let file = OpenOptions::new().read(true).write(true).open(&self.path)?;
        let piece = vec![if raw.is_some() { 0 } else { OLD }; PIECE];
        let mut at = 0;
        while at < self.bytes {
            let size = (self.bytes - at).min(PIECE as u64);
            file.write_all_at(&piece[..usize::try_from(size)?], at)
                .context("filling the disk")?;
            at += size;
        }
        raw.map_or(Ok(()), |raw| copy_data(raw, &file))
    }

    /// Fails at the first byte that is not as in `raw`: every byte is looked at, holes too.
    pub(super) fn check(&self, raw: &Path) -> Result<()> {
        let (image, disk) = (File::open(raw)?, File::open(&self.path)?);
        let bytes = image.metadata()?.len();
        if bytes != self.bytes {
            bail!("the disk has {} bytes, the image {bytes}", self.bytes);
        }
        let (mut left, mut right) = (vec![0; PIECE], vec![0; PIECE]);
        let zeros = vec![0; PIECE];
        let mut at = 0;
        while at < bytes {
            let next_image = next_data(&image, at)?.unwrap_or(bytes);
            let next_disk = next_data(&disk, at)?.unwrap_or(bytes);
            at = next_image.min(next_disk);
            let end = bytes.min((at / PIECE as u64 + 1) * PIECE as u64);
            let size = usize::try_from(end.saturating_sub(at))?;
            disk.read_exact_at(&mut right[..size], at)?;
            let same = if next_image >= end {
                right[..size] == zeros[..size]
            } else {
                image.read_exact_at(&mut left[..size], at)?;
                right[..size] == left[..size]
            };
            if !same {
                let disk = self.path.display();
                bail!("wrong bytes between {at} and {end} of {disk}");
            }
            at = end;
        }
        Ok(())
    }
}

impl Drop for Backing {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(%error, "removing the disk's backing file");
        }
    }
}

/// A block device, as those who write it see it.
#[derive(Debug)]
pub(super) struct Device(String);

impl Device {
    pub(super) fn named(name: &str) -> Self {
        Self(name.to_owned())
    }

    /// Such as `/dev/loop0`.
    pub(super) fn name(&self) -> &str {
        &self.0
    }

    /// Ends what is under way: all of it is in the backing file afterwards.
    pub(super) fn settle(&self) -> Result<()> {
        let device = OpenOptions::new().write(true).open(&self.0)?;
        device.sync_all().context("flushing the disk")
    }

    /// Drops the pages that the kernel keeps of it.
    pub(super) fn forget(&self) -> Result<()> {
        run(&["blockdev", "--flushbufs", &self.0]).map(drop)
    }

    /// Bytes that went to it since it was made, zeroing by command included.
    pub(super) fn written(&self) -> Result<u64> {
        let name = self.0.trim_start_matches("/dev/");
        let stat = fs::read_to_string(format!("/sys/block/{name}/stat"))?;
        let sectors = stat.split_whitespace().nth(6);
        let sectors: u64 = sectors.context("no write figures")?.parse()?;
        Ok(sectors * SECTOR)
    }
}

/// A loop device and what is behind it; gone when dropped.
#[derive(Debug)]
pub(super) struct Disk {
    pub(super) device: Device,
    pub(super) backing: Backing,
}

impl Disk {
    /// A disk of exactly `bytes` with its backing file in `dir`, which is a [`Ram`].
    pub(super) fn new(dir: &Path, bytes: u64) -> Result<Self> {
        let backing = Backing::new(dir.join("disk"), bytes)?;
        let path = text(&backing.path)?;
        let device = run(&["losetup", "--find", "--show", "--direct-io=on", path])?;
        let device = Device(device.trim().to_owned());
        Ok(Self { device, backing })
    }

    pub(super) fn prepare(&self, raw: Option<&Path>) -> Result<()> {
        self.backing.prepare(raw)?;
        self.device.forget()
    }

    pub(super) fn check(&self, raw: &Path) -> Result<()> {
        self.device.forget()?;
        self.backing.check(raw)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if let Err(error) = run(&["losetup", "--detach", self.device.name()]) {
            tracing::warn!("{error:#}");
        }
    }
}

/// A tmpfs for the disk and for what peers stage; unmounted when dropped.
#[derive(Debug)]
pub(super) struct Ram(PathBuf);

impl Ram {
    pub(super) fn mount(dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir)?;
        let path = dir.to_str().context("the path is not UTF-8")?;
        take_down(path)?;
        run(&[
            "mount",
            "-t",
            "tmpfs",
            "-o",
            "size=90%",
            "ferrite-bench",
            path,
        ])?;
        Ok(Self(dir.to_owned()))
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Ram {
    fn drop(&mut self) {
        let path = self.0.to_string_lossy();
        if let Err(error) = run(&["umount", path.as_ref()]) {
            tracing::warn!("{error:#}");
        }
    }
}

/// Ends what a run that was killed left there: its memory would be missing to this one.
fn take_down(dir: &str) -> Result<()> {
    let loops = ["--list", "--noheadings", "--output", "NAME,BACK-FILE"];
    let listed = run(&[&["losetup"], &loops[..]].concat())?;
    let pairs = listed.lines().filter_map(|line| line.split_once(' '));
    for (name, _) in pairs.filter(|(_, file)| file.trim().starts_with(dir)) {
        run(&["losetup", "--detach", name])?;
    }
    let mounts = fs::read_to_string("/proc/mounts")?;
    let left = mounts
        .lines()
        .filter(|line| line.split(' ').nth(1) == Some(dir));
    for _ in left {
        run(&["umount", dir])?;
    }
    Ok(())
}

/// How much of a file is not holes.
pub(super) fn data_bytes(path: &Path) -> Result<u64> {
    let file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
    let (mut at, mut data) = (0, 0);
    while let Some(start) = next_data(&file, at)? {
        let end = lseek64(&file, i64::try_from(start)?, Whence::SeekHole)?;
        at = u64::try_from(end)?;
        data += at - start;
    }
    Ok(data)
}

/// Copies what is not a hole.
fn copy_data(from: &Path, to: &File) -> Result<()> {
    let from = File::open(from).with_context(|| format!("opening {}", from.display()))?;
    let bytes = from.metadata()?.len();
    let mut buffer = vec![0; PIECE];
    let mut at = 0;
    while let Some(start) = next_data(&from, at)? {
        let end = bytes.min((start / PIECE as u64 + 1) * PIECE as u64);
        let size = usize::try_from(end - start)?;
        from.read_exact_at(&mut buffer[..size], start)?;
        to.write_all_at(&buffer[..size], start)?;
        at = end;
    }
    Ok(())
}

/// Where the next data lie, at or after a byte; `None`: only holes follow.
fn next_data(file: &File, at: u64) -> Result<Option<u64>> {
    match lseek64(file, i64::try_from(at)?, Whence::SeekData) {
        Ok(found) => Ok(Some(u64::try_from(found)?)),
        Err(nix::errno::Errno::ENXIO) => Ok(None),
        Err(error) => Err(error).context("looking for data"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_run_begins_with_the_same_disk() {
        let folder = tempfile::tempdir().unwrap();
        let (length, raw) = (PIECE as u64 + 4096, folder.path().join("raw"));
        let image = File::create(&raw).unwrap();
        image.set_len(length).unwrap();
        image.write_all_at(&[7; 4096], PIECE as u64).unwrap();
        let disk = Backing::new(folder.path().join("disk"), length).unwrap();
        for _ in 0..2 {
            disk.prepare(None).unwrap();
            let held = fs::read(disk.path()).unwrap();
            assert!(held.len() as u64 == length && held.iter().all(|byte| *byte == OLD));
            assert!(disk.check(&raw).is_err());
            disk.prepare(Some(&raw)).unwrap();
            disk.check(&raw).unwrap();
            assert_eq!(
                data_bytes(disk.path()).unwrap(),
                length,
                "no block is missing"
            );
        }
    }
}
