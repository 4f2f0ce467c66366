//! The folder of packed images: one file for each content, named by the digest of its index.
//!
//! A file appears there whole and synced, or not at all. What is half done lies in `tmp`, and is
//! removed at the next start; what people gave lies in `uploads` until it is packed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ferrite_proto::digest::{Digest, to_hex};
use ferrite_proto::problem::{Code, Problem};

/// How long nobody must have named a file before it is removed: a host that begins with it now
/// may not be stored yet.
const GRACE: Duration = Duration::from_secs(10);
/// What the names of packed images end in.
const ENDING: &str = ".zst";

/// The folder.
#[derive(Debug)]
pub(crate) struct Shelf {
    dir: PathBuf,
    keep_free: u64,
}

impl Shelf {
    /// Opens the folder; what was half done is removed. `keep_free` bytes are left to others.
    pub(crate) fn open(dir: &Path, keep_free: u64) -> Result<Self, Problem> {
        let shelf = Self {
            dir: dir.to_owned(),
            keep_free,
        };
        let swept = match fs::remove_dir_all(shelf.folder("tmp")) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        };
        swept.map_err(|error| shelf.problem(&shelf.folder("tmp"), &error))?;
        for folder in [shelf.folder("tmp"), shelf.folder("uploads")] {
            crate::serve::make_private_dir(&folder)
                .map_err(|error| shelf.problem(&folder, &error))?;
        }
        Ok(shelf)
    }

    fn folder(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Where a file is in the making.
    pub(crate) fn temporary(&self, name: &str) -> PathBuf {
        self.folder("tmp").join(name)
    }

    /// Where the file lies that people gave for the image of this uid.
    pub(crate) fn uploaded(&self, uid: &str) -> PathBuf {
        self.folder("uploads").join(uid)
    }

    /// Where a packed image lies, if it does.
    pub(crate) fn packed(&self, digest: &Digest) -> PathBuf {
        self.dir.join(name_of(digest))
    }

    /// Gives a file that is whole and synced its name, durably.
    pub(crate) fn put(&self, from: &Path, to: &Path) -> Result<(), Problem> {
        let folder = to.parent().unwrap_or(&self.dir);
        let named = fs::rename(from, to);
        let named = named.and_then(|()| File::open(folder)?.sync_all());
        named.map_err(|error| self.problem(to, &error))
    }

    /// Whether so many more bytes fit.
    pub(crate) fn check_room(&self, more: u64) -> Result<(), Problem> {
        let stat = nix::sys::statvfs::statvfs(&self.dir);
        let stat = stat.map_err(|errno| self.problem(&self.dir, &io::Error::from(errno)))?;
        let free = stat.blocks_available().saturating_mul(stat.fragment_size());
        if free >= more.saturating_add(self.keep_free) {
            return Ok(());
        }
        Err(full(format!(
            "{} has {} MiB left; {} MiB are needed, and images.keep_free_mib leaves {} MiB to \
             others",
            self.dir.display(),
            free >> 20,
            more.div_ceil(1 << 20),
            self.keep_free >> 20
        )))
    }

    /// What it means that a file of ours cannot be read or written.
    pub(crate) fn problem(&self, path: &Path, error: &io::Error) -> Problem {
        let what = format!("{}: {error}", path.display());
        match error.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => full(what),
            _ => Problem::new(
                Code::ImageStoreIo,
                what,
                format!(
                    "look at the disk of {}; it is tried again by itself",
                    self.dir.display()
                ),
            ),
        }
    }

    /// Removes the files that nobody names, once nobody has for a while. `unnamed` is what was
    /// found so before.
    pub(crate) fn clear(
        &self,
        named: &BTreeSet<String>,
        unnamed: &mut BTreeMap<PathBuf, Instant>,
    ) -> io::Result<()> {
        let mut found = BTreeMap::new();
        for folder in [self.dir.clone(), self.folder("uploads")] {
            for entry in fs::read_dir(&folder)? {
                let path = entry?.path();
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                if path.is_file() && !named.contains(&*name) {
                    let since = unnamed.get(&path).copied();
                    found.insert(path, since.unwrap_or_else(Instant::now));
                }
            }
        }
        for (path, since) in &found {
            if since.elapsed() >= GRACE {
                fs::remove_file(path)?;
                tracing::info!(file = %path.display(), "nobody names this image any more: removed");
            }
        }
        found.retain(|path, _| path.exists());
        *unnamed = found;
        Ok(())
    }
}

/// The name of a packed image's file.
pub(crate) fn name_of(digest: &Digest) -> String {
    format!("{}{ENDING}", to_hex(digest.as_bytes()))
}

/// The digest in a file's name.
pub(crate) fn digest_of(name: &str) -> Option<Digest> {
    let hex = name.strip_suffix(ENDING)?;
    let lower = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    let digest = hex.bytes().all(lower).then(|| format!("sha256:{hex}"))?;
    digest.parse().ok()
}

fn full(what: String) -> Problem {
    Problem::new(
        Code::ImageStoreFull,
        what,
        "free space there, or remove images (`ferrite image remove`); it is tried again by itself",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest() -> Digest {
        format!("sha256:{}", "ab".repeat(32)).parse().unwrap()
    }

    impl Shelf {
        /// A folder that is not there.
        pub(crate) fn closed(dir: &Path) -> Self {
            let dir = dir.to_owned();
            let keep_free = 0;
            Self { dir, keep_free }
        }
    }

    #[test]
    fn a_name_is_a_digest_and_nothing_else() {
        let name = name_of(&digest());
        assert_eq!(digest_of(&name), Some(digest()));
        for odd in [
            "",
            ".zst",
            "../secrets.key",
            &name.to_uppercase(),
            &name[1..],
            &format!("{name}.zst"),
            &name.replace(".zst", ""),
        ] {
            assert_eq!(digest_of(odd), None, "{odd}");
        }
    }

    #[test]
    fn what_nobody_names_goes_after_a_while() {
        let folder = tempfile::tempdir().unwrap();
        let shelf = Shelf::open(folder.path(), 0).unwrap();
        let (kept, dropped) = (shelf.packed(&digest()), folder.path().join("x.zst"));
        for path in [&kept, &dropped, &shelf.uploaded("uid")] {
            fs::write(path, "x").unwrap();
        }
        let named = BTreeSet::from([name_of(&digest())]);
        let mut unnamed = BTreeMap::new();
        shelf.clear(&named, &mut unnamed).unwrap();
        assert!(unnamed.len() == 2 && dropped.exists(), "{unnamed:?}");
        let long_ago = Instant::now().checked_sub(GRACE).unwrap();
        for since in unnamed.values_mut() {
            *since = long_ago;
        }
        shelf.clear(&named, &mut unnamed).unwrap();
        assert!(unnamed.is_empty() && !dropped.exists() && kept.exists());
        assert!(!shelf.uploaded("uid").exists());
    }

    #[test]
    fn what_is_half_done_is_gone_at_the_next_start() {
        let folder = tempfile::tempdir().unwrap();
        let shelf = Shelf::open(folder.path(), 0).unwrap();
        fs::write(shelf.temporary("a"), "x").unwrap();
        fs::write(shelf.uploaded("b"), "x").unwrap();
        let shelf = Shelf::open(folder.path(), u64::MAX).unwrap();
        assert!(!shelf.temporary("a").exists() && shelf.uploaded("b").exists());
        let full = shelf.check_room(1).unwrap_err();
        assert_eq!(full.code, Code::ImageStoreFull);
        assert!(
            full.message.contains(&*folder.path().to_string_lossy()),
            "{full}"
        );
    }
}
