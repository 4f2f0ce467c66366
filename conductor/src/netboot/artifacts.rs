//! The boot files that `ferrite-image` made, checked against their manifest at start.
//!
//! Only files that the manifest names are ever served. They are opened at each request, not held
//! in memory; a folder that is built anew needs a restart of the conductor.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use ferrite_proto::boot::BOOT_CFG_BYTES;
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::Flavour;

/// A checked boot file.
#[derive(Debug, Clone)]
pub(super) struct Artifact {
    /// Name in URLs.
    pub(super) name: &'static str,
    /// Where it is.
    pub(super) path: PathBuf,
    /// How long it is.
    pub(super) bytes: u64,
}

/// All that is served.
#[derive(Debug, Clone)]
pub(super) struct Artifacts {
    /// Served under their names.
    pub(super) files: Vec<Artifact>,
    /// The ISO, and where its `BOOT.CFG` lies.
    pub(super) iso: Option<Iso>,
    /// Likewise, of the ramdisk for rescue.
    pub(super) rescue_iso: Option<Iso>,
}

impl Artifacts {
    /// The ISO with this ramdisk, if one was built.
    pub(super) fn iso_of(&self, flavour: Flavour) -> Option<&Iso> {
        match flavour {
            Flavour::Ordinary => self.iso.as_ref(),
            Flavour::Rescue => self.rescue_iso.as_ref(),
        }
    }
}

/// The ISO for virtual media.
#[derive(Debug, Clone)]
pub(super) struct Iso {
    /// The file.
    pub(super) file: Artifact,
    /// First byte of the extent that is replaced for each host.
    pub(super) config_at: u64,
}

/// Why the boot files cannot be served.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ArtifactError {
    /// A file cannot be read.
    #[error(
        "cannot read the boot file {}; build them with `ferrite-image ramdisk`",
        path.display()
    )]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The manifest is not one.
    #[error("{} is no manifest of boot files", path.display())]
    Manifest {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// The manifest says something that cannot be.
    #[error("{}: {reason}", path.display())]
    Invalid {
        /// Which.
        path: PathBuf,
        /// What.
        reason: String,
    },
    /// A file is not the one that was built.
    #[error(
        "the boot file {} is not the one in manifest.json ({reason}); build them again",
        path.display()
    )]
    Changed {
        /// Which.
        path: PathBuf,
        /// Length or digest.
        reason: String,
    },
}

#[derive(Debug, Deserialize)]
struct Manifest {
    version: u32,
    files: Files,
    #[serde(default)]
    iso_config: Option<Extent>,
    #[serde(default)]
    rescue_iso_config: Option<Extent>,
}

#[derive(Debug, Deserialize)]
struct Files {
    kernel: Entry,
    initramfs: Entry,
    #[serde(default)]
    uki: Option<Entry>,
    #[serde(default)]
    iso: Option<Entry>,
    #[serde(default)]
    rescue: Option<Entry>,
    #[serde(default)]
    rescue_iso: Option<Entry>,
}

#[derive(Debug, Deserialize)]
struct Entry {
    path: String,
    bytes: u64,
    sha256: String,
}

#[derive(Debug, Deserialize)]
struct Extent {
    offset: u64,
    length: u64,
}

/// Reads `dir/manifest.json` and checks every file it names. Blocks: it hashes them all.
pub(super) fn load(dir: &Path) -> Result<Artifacts, ArtifactError> {
    let path = dir.join("manifest.json");
    let bytes = std::fs::read(&path).map_err(|source| ArtifactError::Read {
        path: path.clone(),
        source,
    })?;
    let manifest: Manifest =
        serde_json::from_slice(&bytes).map_err(|source| ArtifactError::Manifest {
            path: path.clone(),
            source,
        })?;
    if manifest.version != 1 {
        let reason = format!("version {} is not 1", manifest.version);
        return Err(ArtifactError::Invalid { path, reason });
    }
    let Files {
        kernel,
        initramfs,
        uki,
        iso,
        rescue,
        rescue_iso,
    } = manifest.files;
    let mut files = vec![
        check(dir, "vmlinuz", &kernel)?,
        check(dir, "initramfs.img", &initramfs)?,
    ];
    if let Some(uki) = uki {
        files.push(check(dir, "ramdisk.efi", &uki)?);
    }
    if let Some(rescue) = rescue {
        files.push(check(dir, "rescue.img", &rescue)?);
    }
    let iso = iso.map(|file| check_iso(dir, "ramdisk.iso", &file, manifest.iso_config));
    let rescue_iso =
        rescue_iso.map(|file| check_iso(dir, "rescue.iso", &file, manifest.rescue_iso_config));
    Ok(Artifacts {
        files,
        iso: iso.transpose()?,
        rescue_iso: rescue_iso.transpose()?,
    })
}

fn check_iso(
    dir: &Path,
    name: &'static str,
    entry: &Entry,
    extent: Option<Extent>,
) -> Result<Iso, ArtifactError> {
    let file = check(dir, name, entry)?;
    let fits = |extent: &Extent| {
        let end = extent.offset.checked_add(extent.length);
        extent.length == BOOT_CFG_BYTES as u64 && end.is_some_and(|end| end <= file.bytes)
    };
    let Some(extent) = extent.filter(fits) else {
        return Err(ArtifactError::Invalid {
            path: file.path,
            reason: format!("the manifest has no {BOOT_CFG_BYTES} bytes of it for each host"),
        });
    };
    Ok(Iso {
        file,
        config_at: extent.offset,
    })
}

fn check(dir: &Path, name: &'static str, entry: &Entry) -> Result<Artifact, ArtifactError> {
    let path = dir.join(&entry.path);
    if entry.path.contains('/') || entry.path.starts_with('.') {
        return Err(ArtifactError::Invalid {
            path,
            reason: "a boot file must lie beside its manifest".to_owned(),
        });
    }
    let (bytes, sha256) = digest(&path).map_err(|source| ArtifactError::Read {
        path: path.clone(),
        source,
    })?;
    let reason = if bytes != entry.bytes {
        format!("{bytes} bytes instead of {}", entry.bytes)
    } else if !sha256.eq_ignore_ascii_case(&entry.sha256) {
        "another SHA-256".to_owned()
    } else {
        return Ok(Artifact { name, path, bytes });
    };
    Err(ArtifactError::Changed { path, reason })
}

fn digest(path: &Path) -> io::Result<(u64, String)> {
    let mut file = File::open(path)?;
    let (mut hash, mut length) = (Sha256::new(), 0);
    let mut buffer = vec![0; 1 << 18];
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            n => {
                hash.update(&buffer[..n]);
                length += n as u64;
            }
        }
    }
    Ok((length, ferrite_proto::digest::to_hex(&hash.finalize())))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use serde_json::{Value, json};

    /// A folder of boot files of a few KiB, as `ferrite-image` makes them.
    pub(in crate::netboot) fn folder(dir: &Path) {
        write_manifest(dir, |_| {});
    }

    fn write_manifest(dir: &Path, change: impl FnOnce(&mut Value)) {
        let file = |name: &str, byte: u8, length: usize| {
            let bytes: Vec<u8> = (0..length)
                .map(|i| byte.wrapping_add(u8::try_from(i / 7 % 251).unwrap()))
                .collect();
            std::fs::write(dir.join(name), &bytes).unwrap();
            let sha256 = ferrite_proto::digest::to_hex(&Sha256::digest(&bytes));
            json!({ "path": name, "bytes": length, "sha256": sha256 })
        };
        let mut manifest = json!({
            "version": 1,
            "kernel_release": "6.1.0",
            "files": {
                "kernel": file("vmlinuz", 1, 5000),
                "initramfs": file("initramfs.img", 2, 70_000),
                "iso": file("ramdisk.iso", 3, 20_000),
                "rescue": file("rescue.img", 4, 9_000),
                "rescue_iso": file("rescue.iso", 5, 30_000),
            },
            "iso_config": { "offset": 6144, "length": 4096 },
            "rescue_iso_config": { "offset": 8192, "length": 4096 },
        });
        change(&mut manifest);
        std::fs::write(dir.join("manifest.json"), manifest.to_string()).unwrap();
    }

    #[test]
    fn a_folder_as_it_was_built_is_served() {
        let dir = tempfile::tempdir().unwrap();
        folder(dir.path());
        let artifacts = load(dir.path()).unwrap();
        let names: Vec<_> = artifacts.files.iter().map(|f| f.name).collect();
        assert_eq!(names, ["vmlinuz", "initramfs.img", "rescue.img"]);
        assert_eq!(artifacts.iso_of(Flavour::Ordinary).unwrap().config_at, 6144);
        assert_eq!(artifacts.iso_of(Flavour::Rescue).unwrap().config_at, 8192);
    }

    #[test]
    fn a_file_that_changed_is_named() {
        let dir = tempfile::tempdir().unwrap();
        folder(dir.path());
        let path = dir.path().join("initramfs.img");
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[69_999] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        let error = load(dir.path()).unwrap_err().to_string();
        assert!(
            error.contains("initramfs.img") && error.contains("SHA-256"),
            "{error}"
        );
        std::fs::write(&path, &bytes[..100]).unwrap();
        let error = load(dir.path()).unwrap_err().to_string();
        assert!(error.contains("100 bytes instead of 70000"), "{error}");
    }

    #[test]
    fn paths_and_extents_that_lead_elsewhere_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        write_manifest(dir.path(), |m| {
            m["files"]["kernel"]["path"] = json!("../../etc/passwd");
        });
        assert!(matches!(
            load(dir.path()),
            Err(ArtifactError::Invalid { .. })
        ));
        write_manifest(dir.path(), |m| m["iso_config"]["offset"] = json!(16_000));
        assert!(matches!(
            load(dir.path()),
            Err(ArtifactError::Invalid { .. })
        ));
        write_manifest(dir.path(), |m| m["iso_config"]["offset"] = json!(u64::MAX));
        assert!(matches!(
            load(dir.path()),
            Err(ArtifactError::Invalid { .. })
        ));
    }
}
