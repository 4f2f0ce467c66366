//! A file system of the deployed image, mounted read-only: the files that booting needs, and no
//! way out of it. Links are followed inside the volume only, as its own system would.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};

/// Largest configuration file.
const TEXT_LIMIT: u64 = 1 << 20;

/// A mounted volume.
#[derive(Debug)]
pub(crate) struct Volume {
    folder: File,
    path: PathBuf,
    /// Its device, for messages.
    pub(crate) name: String,
}

impl Volume {
    /// The volume mounted at a folder.
    pub(crate) fn at(path: &Path, name: &str) -> io::Result<Self> {
        let folder = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_DIRECTORY)
            .open(path)?;
        Ok(Self {
            folder,
            path: path.to_owned(),
            name: name.to_owned(),
        })
    }

    /// Opens a regular file.
    pub(crate) fn open(&self, path: &str) -> io::Result<File> {
        // A pipe in an image must not hold us: without a writer its open would wait.
        let file = self.resolve(path, OFlag::O_RDONLY | OFlag::O_NONBLOCK)?;
        if file.metadata()?.is_file() {
            Ok(file)
        } else {
            Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "not a regular file",
            ))
        }
    }

    fn resolve(&self, path: &str, flags: OFlag) -> io::Result<File> {
        let how = OpenHow::new()
            .flags(flags | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        let fd = openat2(&self.folder, path, how)?;
        Ok(File::from(fd))
    }

    /// Whether there is such a file.
    pub(crate) fn has(&self, path: &str) -> bool {
        self.open(path).is_ok()
    }

    /// The text of a configuration file.
    pub(crate) fn text(&self, path: &str) -> io::Result<String> {
        let mut bytes = Vec::new();
        self.open(path)?
            .take(TEXT_LIMIT + 1)
            .read_to_end(&mut bytes)?;
        if bytes.len() as u64 > TEXT_LIMIT {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "larger than a mebibyte",
            ));
        }
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// The names in a folder, sorted; none when there is no such folder.
    pub(crate) fn names(&self, folder: &str) -> Vec<String> {
        let list = || -> io::Result<Vec<String>> {
            let opened = self.resolve(folder, OFlag::O_RDONLY | OFlag::O_DIRECTORY)?;
            // Through the open folder, so that no link in its path is followed a second time.
            let path = format!("/proc/self/fd/{}", opened.as_raw_fd());
            let mut names = Vec::new();
            for entry in std::fs::read_dir(path)? {
                names.push(entry?.file_name().to_string_lossy().into_owned());
            }
            names.sort();
            Ok(names)
        };
        list().unwrap_or_default()
    }

    /// Where it is mounted.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_lead_nowhere_but_into_the_volume() {
        let folder = tempfile::tempdir().unwrap();
        let outside = folder.path().join("secret");
        std::fs::write(&outside, "secret").unwrap();
        let base = folder.path().join("volume");
        std::fs::create_dir_all(base.join("boot")).unwrap();
        std::fs::write(base.join("boot/vmlinuz-6"), "kernel").unwrap();
        std::os::unix::fs::symlink("/boot/vmlinuz-6", base.join("vmlinuz")).unwrap();
        std::os::unix::fs::symlink(&outside, base.join("away")).unwrap();
        std::os::unix::fs::symlink("../../secret", base.join("up")).unwrap();
        let volume = Volume::at(&base, "test").unwrap();
        assert_eq!(volume.text("/vmlinuz").unwrap(), "kernel");
        for path in ["/away", "up", "../secret", "/boot/../../secret"] {
            assert!(volume.open(path).is_err(), "{path}");
        }
        assert_eq!(volume.names("/boot"), ["vmlinuz-6"]);
        assert!(volume.names("/none").is_empty());
    }

    #[test]
    fn a_pipe_is_refused_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("grub.cfg");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(
            Volume::at(folder.path(), "test")
                .unwrap()
                .text("grub.cfg")
                .is_err()
        );
    }
}
