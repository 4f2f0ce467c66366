//! What the daemon keeps: its key, and its configuration. Both are for root alone, and reach the
//! disk before anything depends on them.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ferrite_proto::agent_api::DaemonConfig;
use ferrite_proto::secret::Secret;

/// Largest file that is read here.
const LIMIT: u64 = 64 * 1024;
/// Characters of a key: 32 bytes as base64url.
const KEY_CHARS: usize = 43;

/// Reads the configuration.
pub(crate) fn read_config(path: &Path) -> io::Result<DaemonConfig> {
    serde_json::from_slice(&read(path)?).map_err(io::Error::from)
}

/// Writes the configuration, whole or not at all.
pub(crate) fn write_config(path: &Path, config: &DaemonConfig) -> io::Result<()> {
    write(path, &serde_json::to_vec_pretty(config)?, 0o600)
}

/// The key in a folder; made when there is none. It is on the disk when this returns, so that a
/// power loss after the enrolment does not lock the daemon out.
pub(crate) fn key(folder: &Path) -> io::Result<Secret<String>> {
    std::fs::create_dir_all(folder)?;
    let path = folder.join("key");
    match read(&path) {
        Ok(bytes) => {
            let text = String::from_utf8_lossy(&bytes).trim().to_owned();
            let plain = text
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "-_".contains(c));
            if text.len() == KEY_CHARS && plain {
                return Ok(Secret::new(text));
            }
            let message = format!(
                "{} holds no key; remove it and deploy again",
                path.display()
            );
            Err(io::Error::new(io::ErrorKind::InvalidData, message))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let key = URL_SAFE_NO_PAD.encode(rand::random::<[u8; 32]>());
            write(&path, key.as_bytes(), 0o600)?;
            Ok(Secret::new(key))
        }
        Err(error) => Err(error),
    }
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(LIMIT).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Writes a file beside its name, flushes it, and moves it there.
pub(crate) fn write(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let folder = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    std::fs::create_dir_all(folder)?;
    let mut name = path
        .file_name()
        .ok_or(io::ErrorKind::InvalidInput)?
        .to_owned();
    name.push(".new");
    let beside = folder.join(name);
    // What an earlier attempt left may have other permissions.
    match std::fs::remove_file(&beside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&beside)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&beside, path)?;
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn the_key_is_made_once_and_only_root_reads_it() {
        let folder = tempfile::tempdir().unwrap();
        let first = key(folder.path()).unwrap();
        assert_eq!(first, key(folder.path()).unwrap());
        let mode = std::fs::metadata(folder.path().join("key"))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
        let other = tempfile::tempdir().unwrap();
        assert_ne!(first, key(other.path()).unwrap());
    }

    #[test]
    fn a_key_file_with_something_else_is_not_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("key"), "short").unwrap();
        let error = key(folder.path()).unwrap_err();
        assert!(error.to_string().contains("holds no key"), "{error}");
        assert_eq!(std::fs::read(folder.path().join("key")).unwrap(), b"short");
    }

    #[test]
    fn writing_replaces_whole_files_and_their_permissions() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/b.json");
        write(&path, b"one", 0o644).unwrap();
        std::fs::write(folder.path().join("a/b.json.new"), "left over").unwrap();
        write(&path, b"two", 0o600).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        assert_eq!(
            std::fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        assert!(!folder.path().join("a/b.json.new").exists());
    }
}
