//! The digest of the file as fetched, on a thread of its own, so that it costs no wall time where
//! there is a second processor.

use std::sync::Arc;
use std::sync::mpsc::{self, SyncSender};
use std::thread::JoinHandle;

use ferrite_proto::digest::{Algorithm, Digest};
use ferrite_proto::problem::Problem;
use sha2::{Digest as _, Sha256, Sha512};

use super::{CHUNKS, Chunk, spawn};

/// A digest of bytes as they come.
pub(crate) enum Hasher {
    Sha256(Sha256),
    Sha512(Sha512),
    Blake3(Box<blake3::Hasher>),
}

impl Hasher {
    pub(crate) fn new(algorithm: Algorithm) -> Self {
        match algorithm {
            Algorithm::Sha256 => Self::Sha256(Sha256::default()),
            Algorithm::Sha512 => Self::Sha512(Sha512::default()),
            Algorithm::Blake3 => Self::Blake3(Box::default()),
        }
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hasher) => hasher.update(bytes),
            Self::Sha512(hasher) => hasher.update(bytes),
            Self::Blake3(hasher) => {
                hasher.update(bytes);
            }
        }
    }

    /// The digest of all that came.
    pub(crate) fn end(self) -> Option<Digest> {
        let (algorithm, bytes) = match self {
            Self::Sha256(hasher) => (Algorithm::Sha256, hasher.finalize().to_vec()),
            Self::Sha512(hasher) => (Algorithm::Sha512, hasher.finalize().to_vec()),
            Self::Blake3(hasher) => {
                let digest = hasher.finalize();
                (Algorithm::Blake3, digest.as_bytes().to_vec())
            }
        };
        Digest::new(algorithm, bytes).ok()
    }
}

/// The digest of bytes that are all there.
pub(crate) fn digest_of(algorithm: Algorithm, bytes: &[u8]) -> Option<Digest> {
    let mut hasher = Hasher::new(algorithm);
    hasher.update(bytes);
    hasher.end()
}

/// Adds an outlet that computes a digest of all that comes out of it.
pub(super) fn start(
    algorithm: Algorithm,
    outlets: &mut Vec<SyncSender<Arc<Chunk>>>,
) -> Result<JoinHandle<Option<Digest>>, Problem> {
    let (outlet, chunks) = mpsc::sync_channel::<Arc<Chunk>>(CHUNKS);
    outlets.push(outlet);
    spawn("digest", move || {
        let mut hasher = Hasher::new(algorithm);
        for chunk in chunks {
            hasher.update(&chunk.bytes);
        }
        hasher.end()
    })
}
