//! Secrets at rest: XChaCha20-Poly1305 under a key that lies in the state folder, for its owner.
//!
//! What this guards is a copy of the database without the key file. Whoever has both has all.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};

use crate::config::KeySource;
use crate::crash::{self, Moment, Work};
use crate::token;

const NONCE: usize = 24;

/// Seals and opens.
pub(crate) struct Sealer {
    cipher: XChaCha20Poly1305,
    /// Keys of before: they open, and seal nothing any more.
    older: Vec<XChaCha20Poly1305>,
}

impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sealer")
    }
}

/// Why secrets cannot be sealed or opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SealError {
    /// The key file.
    #[error("cannot {verb} the key of the secrets, {}", path.display())]
    KeyFile {
        /// `read` or `write`.
        verb: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The key file holds something else.
    #[error("{} is not a key of 32 bytes; put it back from a backup", path.display())]
    KeyLength {
        /// The file.
        path: PathBuf,
    },
    /// The program that gives the key.
    #[error("{program} gave no key for the secrets: {why}")]
    Command {
        /// Which.
        program: String,
        /// Why.
        why: String,
    },
    /// The key fits no secret of this host.
    #[error("the secrets of {owner} cannot be opened: sealed under another key, or damaged")]
    Open {
        /// Whose.
        owner: String,
    },
    /// Sealing failed.
    #[error("the secrets of {owner} cannot be sealed")]
    Seal {
        /// Whose.
        owner: String,
    },
}

impl Sealer {
    /// Reads the key, or makes one at the first start.
    pub(crate) fn load_or_create(path: &Path) -> Result<Self, SealError> {
        let file = |verb| {
            move |source| SealError::KeyFile {
                verb,
                path: path.to_owned(),
                source,
            }
        };
        let key = match std::fs::read(path) {
            Ok(key) => key,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let key: [u8; 32] = rand::random();
                crash::point(Work::MakeKey, Moment::Before);
                token::write_private(path, &key).map_err(file("write"))?;
                crash::point(Work::MakeKey, Moment::After);
                key.to_vec()
            }
            Err(error) => return Err(file("read")(error)),
        };
        let cipher = XChaCha20Poly1305::new_from_slice(&key).map_err(|_| SealError::KeyLength {
            path: path.to_owned(),
        })?;
        Ok(Self {
            cipher,
            older: Vec::new(),
        })
    }

    /// The key that a source gives. A file is made at the first start, if that is allowed.
    pub(crate) fn from_source(source: &KeySource, may_create: bool) -> Result<Self, SealError> {
        match source {
            KeySource::File(path) if may_create => Self::load_or_create(path),
            KeySource::File(path) => Self::load(path),
            KeySource::Command(command) => Self::ask(command),
        }
    }

    /// Reads the key.
    pub(crate) fn load(path: &Path) -> Result<Self, SealError> {
        let key = std::fs::read(path).map_err(|source| SealError::KeyFile {
            verb: "read",
            path: path.to_owned(),
            source,
        })?;
        Self::of_bytes(&key).ok_or_else(|| SealError::KeyLength {
            path: path.to_owned(),
        })
    }

    /// Asks a program for the key.
    fn ask(command: &[String]) -> Result<Self, SealError> {
        let failed = |why: String| SealError::Command {
            program: command.first().cloned().unwrap_or_default(),
            why,
        };
        let (program, arguments) = command
            .split_first()
            .ok_or_else(|| failed("it has no name".to_owned()))?;
        let output = std::process::Command::new(program)
            .args(arguments)
            .stdin(std::process::Stdio::null())
            .output()
            .map_err(|error| failed(error.to_string()))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            return Err(failed(format!("{}: {}", output.status, said.trim())));
        }
        Self::of_bytes(&output.stdout)
            .ok_or_else(|| failed("it did not print 32 bytes, raw or in hex".to_owned()))
    }

    /// 32 bytes, as they are or in hex.
    fn of_bytes(bytes: &[u8]) -> Option<Self> {
        let key = if bytes.len() == 32 {
            bytes.to_vec()
        } else {
            let text = std::str::from_utf8(bytes).ok()?.trim();
            let digits = |at| u8::from_str_radix(text.get(at..at + 2)?, 16).ok();
            let parsed: Option<Vec<u8>> = (0..text.len()).step_by(2).map(digits).collect();
            parsed.filter(|key| key.len() == 32)?
        };
        let cipher = XChaCha20Poly1305::new_from_slice(&key).ok()?;
        Some(Self {
            cipher,
            older: Vec::new(),
        })
    }

    /// Opens what was sealed under an earlier key, too.
    pub(crate) fn and_older(mut self, older: Self) -> Self {
        self.older.push(older.cipher);
        self
    }

    /// Seals for an owner; it opens for the same owner only.
    pub(crate) fn seal(&self, owner: &str, clear: &[u8]) -> Result<Vec<u8>, SealError> {
        let nonce: [u8; NONCE] = rand::random();
        let payload = Payload {
            msg: clear,
            aad: owner.as_bytes(),
        };
        let sealed = self
            .cipher
            .encrypt(&XNonce::from(nonce), payload)
            .map_err(|_| SealError::Seal {
                owner: owner.to_owned(),
            })?;
        Ok([nonce.as_slice(), &sealed].concat())
    }

    /// Opens what was sealed for the owner.
    pub(crate) fn open(&self, owner: &str, sealed: &[u8]) -> Result<Vec<u8>, SealError> {
        let error = || SealError::Open {
            owner: owner.to_owned(),
        };
        let (nonce, sealed) = sealed.split_first_chunk::<NONCE>().ok_or_else(error)?;
        let payload = || Payload {
            msg: sealed,
            aad: owner.as_bytes(),
        };
        // A wrong key opens nothing: which one it was need not be written down.
        std::iter::once(&self.cipher)
            .chain(&self.older)
            .find_map(|key| key.decrypt(&XNonce::from(*nonce), payload()).ok())
            .ok_or_else(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_owner_and_key_open() {
        let dir = tempfile::tempdir().unwrap();
        let key = dir.path().join("key");
        let sealer = Sealer::load_or_create(&key).unwrap();
        let closed = sealer.seal("a", b"hunter2").unwrap();
        assert!(!closed.windows(7).any(|w| w == b"hunter2"));
        assert_ne!(closed, sealer.seal("a", b"hunter2").unwrap());
        let again = Sealer::load_or_create(&key).unwrap();
        assert_eq!(again.open("a", &closed).unwrap(), b"hunter2");
        assert!(again.open("b", &closed).is_err());
        assert!(again.open("a", &closed[..20]).is_err());
        let other = Sealer::load_or_create(&dir.path().join("other")).unwrap();
        assert!(other.open("a", &closed).is_err());
    }
}
