//! Random tokens, and comparing what a caller sent with what we know of one.
//!
//! Not here: where tokens are kept. A token that was given out is known only by its digest.

use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use ferrite_proto::digest::to_hex;
use ferrite_proto::secret::Secret;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

/// 32 random bytes in base64url: 43 characters of `A-Za-z0-9-_`.
pub(crate) fn random() -> Secret<String> {
    Secret::new(BASE64_URL_SAFE_NO_PAD.encode(bytes()))
}

/// A new UUID of version 4 (RFC 9562): what tells a thing from another of its name.
pub(crate) fn uid() -> String {
    let mut half = [0; 16];
    half.copy_from_slice(&bytes()[..16]);
    uuid::Builder::from_random_bytes(half)
        .into_uuid()
        .to_string()
}

#[cfg(not(test))]
fn bytes() -> [u8; 32] {
    rand::random()
}

#[cfg(test)]
use simulated::bytes;

/// A test's own tokens, for the thread that the test runs on: the same seed gives the same ones.
#[cfg(test)]
pub(crate) mod simulated {
    use std::cell::RefCell;

    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    thread_local! {
        static SEEDED: RefCell<Option<ChaCha8Rng>> = const { RefCell::new(None) };
    }

    /// Random bytes: the system's, unless this thread was given a seed.
    pub(super) fn bytes() -> [u8; 32] {
        SEEDED.with_borrow_mut(|seeded| {
            seeded.as_mut().map_or_else(rand::random, |seeded| {
                let mut bytes = [0; 32];
                seeded.fill_bytes(&mut bytes);
                bytes
            })
        })
    }

    /// From here on this thread's tokens follow from the seed.
    pub(crate) fn seed(seed: u64) {
        SEEDED.set(Some(ChaCha8Rng::seed_from_u64(seed)));
    }
}

/// Lower-case hex SHA-256.
pub(crate) fn sha256(text: &str) -> String {
    to_hex(&Sha256::digest(text.as_bytes()))
}

/// Whether `text` is what `digest` was made of, in a time that tells nothing.
pub(crate) fn is(text: &str, digest: &str) -> bool {
    sha256(text).as_bytes().ct_eq(digest.as_bytes()).into()
}

/// Writes a file that only its owner reads, whole or not at all.
pub(crate) fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&beside)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&beside, path)?;
    match path.parent() {
        // A bare name lies in the present folder.
        Some(dir) if dir.as_os_str().is_empty() => std::fs::File::open(".")?.sync_all(),
        Some(dir) => std::fs::File::open(dir)?.sync_all(),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_known_by_its_digest_only() {
        let (one, two) = (random(), random());
        assert_ne!(one, two);
        assert_eq!(one.expose().len(), 43);
        assert!(is(one.expose(), &sha256(one.expose())));
        assert!(!is(two.expose(), &sha256(one.expose())));
        assert!(!is("", ""));
    }
}
