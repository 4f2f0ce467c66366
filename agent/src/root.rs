//! The only door to `/sys`, `/proc`, `/dev`, `/run` and the rest of the file tree.
//!
//! Production opens `/`; tests open a fixture or a temporary folder. Reads are bounded: a file of
//! sysfs or procfs that is larger than a mebibyte is not one that Ferrite reads.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// Most bytes that [`Root::read`] takes.
pub(crate) const READ_LIMIT: u64 = 1 << 20;

/// A file tree that looks like a machine's root.
#[derive(Debug, Clone)]
pub(crate) struct Root {
    base: PathBuf,
}

impl Root {
    /// The machine itself.
    pub(crate) fn system() -> Self {
        Self::at("/")
    }

    /// Another tree, for fixtures.
    pub(crate) fn at(base: impl Into<PathBuf>) -> Self {
        Self { base: base.into() }
    }

    /// Whether this is the machine itself: only then do system calls tell of the same machine.
    pub(crate) fn is_system(&self) -> bool {
        self.base == Path::new("/")
    }

    /// Where a path lies in the tree. A leading `/` is ignored.
    pub(crate) fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        self.base.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// The bytes of a small file.
    pub(crate) fn read(&self, path: impl AsRef<Path>) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        File::open(self.path(path))?
            .take(READ_LIMIT)
            .read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// The text of a small file, without white space around it; invalid UTF-8 is replaced.
    pub(crate) fn text(&self, path: impl AsRef<Path>) -> io::Result<String> {
        Ok(String::from_utf8_lossy(&self.read(path)?).trim().to_owned())
    }

    /// The names in a folder, sorted.
    pub(crate) fn names(&self, path: impl AsRef<Path>) -> io::Result<Vec<String>> {
        let entries = std::fs::read_dir(self.path(path))?;
        let mut names = entries
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect::<io::Result<Vec<_>>>()?;
        names.sort();
        Ok(names)
    }
}
