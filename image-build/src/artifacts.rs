//! The directory of boot files and its `manifest.json`, which the conductor reads.
//! It describes files that are there; it makes none.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

pub(crate) const MANIFEST: &str = "manifest.json";

/// What `manifest.json` says.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Manifest {
    pub(crate) version: u32,
    pub(crate) kernel_release: String,
    pub(crate) files: Files,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) iso_config: Option<Extent>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) rescue_iso_config: Option<Extent>,
    /// Drivers that ask for firmware which the build did not have, with the files' names.
    #[serde(default)]
    pub(crate) drivers_missing_firmware: Vec<MissingFirmware>,
    /// Modules the profile names and this kernel does not have.
    #[serde(default)]
    pub(crate) modules_absent: Vec<String>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Files {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) kernel: Option<FileEntry>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) initramfs: Option<FileEntry>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) uki: Option<FileEntry>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) iso: Option<FileEntry>,
    /// Follows the initramfs on hosts in rescue.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) rescue: Option<FileEntry>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) rescue_iso: Option<FileEntry>,
}

/// One file, by its name relative to the manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FileEntry {
    pub(crate) path: PathBuf,
    pub(crate) bytes: u64,
    pub(crate) sha256: String,
}

/// A run of bytes in the ISO that the conductor replaces for each host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Extent {
    pub(crate) offset: u64,
    pub(crate) length: u64,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct MissingFirmware {
    pub(crate) driver: String,
    pub(crate) files: Vec<String>,
}

impl Manifest {
    pub(crate) fn new(kernel_release: &str) -> Self {
        Self {
            version: 1,
            kernel_release: kernel_release.to_owned(),
            ..Self::default()
        }
    }

    /// Reads the manifest of a directory that has one.
    pub(crate) fn read(dir: &Path) -> Result<Option<Self>> {
        let path = dir.join(MANIFEST);
        if !path.exists() {
            return Ok(None);
        }
        let text = std::fs::read_to_string(&path)
            .with_context(|| format!("reading {}", path.display()))?;
        let manifest = serde_json::from_str(&text)
            .with_context(|| format!("{} is not a manifest", path.display()))?;
        Ok(Some(manifest))
    }

    pub(crate) fn write(&self, dir: &Path) -> Result<()> {
        let mut text = serde_json::to_string_pretty(self).context("writing the manifest")?;
        text.push('\n');
        write_whole(&dir.join(MANIFEST), text.as_bytes())
    }

    pub(crate) fn set_iso(&mut self, iso: FileEntry, config: Extent) {
        self.files.iso = Some(iso);
        self.iso_config = Some(config);
    }

    pub(crate) fn set_rescue_iso(&mut self, iso: FileEntry, config: Extent) {
        self.files.rescue_iso = Some(iso);
        self.rescue_iso_config = Some(config);
    }

    pub(crate) fn set_missing_firmware(&mut self, missing: &BTreeMap<String, Vec<String>>) {
        let entry = |(driver, files): (&String, &Vec<String>)| MissingFirmware {
            driver: driver.clone(),
            files: files.clone(),
        };
        self.drivers_missing_firmware = missing.iter().map(entry).collect();
    }
}

/// Writes beside and renames: a conductor that serves the directory never sees half a file.
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(".partial");
    let partial = PathBuf::from(name);
    std::fs::write(&partial, bytes).with_context(|| format!("writing {}", partial.display()))?;
    std::fs::rename(&partial, path).with_context(|| format!("naming {}", path.display()))
}

/// Measures a file by reading it.
pub(crate) fn describe(path: &Path) -> Result<FileEntry> {
    let mut file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
    let (bytes, sha256) =
        digest(&mut file).with_context(|| format!("reading {}", path.display()))?;
    let name = path
        .file_name()
        .with_context(|| format!("{} has no name", path.display()))?;
    Ok(FileEntry {
        path: PathBuf::from(name),
        bytes,
        sha256,
    })
}

fn digest(file: &mut File) -> std::io::Result<(u64, String)> {
    file.seek(SeekFrom::Start(0))?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    let mut total = 0;
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            return Ok((total, hex(&hash.finalize())));
        }
        hash.update(&buffer[..read]);
        total += read as u64;
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_described_as_sha256sum_would() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("abc");
        write_whole(&path, b"abc").unwrap();
        let entry = describe(&path).unwrap();
        assert_eq!((entry.bytes, entry.path), (3, PathBuf::from("abc")));
        assert_eq!(
            entry.sha256,
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
        assert!(!dir.path().join("abc.partial").exists());
    }

    #[test]
    fn a_manifest_comes_back_as_written() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Manifest::read(dir.path()).unwrap().is_none());
        let mut manifest = Manifest::new("6.1.0-1-amd64");
        manifest.iso_config = Some(Extent {
            offset: 65_536,
            length: 4096,
        });
        manifest.write(dir.path()).unwrap();
        let again = Manifest::read(dir.path()).unwrap().unwrap();
        assert_eq!((again.version, again.iso_config), (1, manifest.iso_config));
    }
}
