//! The digest of the file as fetched, on a thread of its own, so that it costs no wall time where
//! there is a second processor.

use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::thread::JoinHandle;

use ferrite_proto::digest::{Algorithm, Digest};
use ferrite_proto::problem::Problem;
use sha2::{Sha256, Sha512};

use super::{CHUNKS, Chunk, spawn};

/// The digest of bytes that are all there.
pub(crate) fn digest_of(algorithm: Algorithm, bytes: &[u8]) -> Option<Digest> {
    use sha2::Digest as _;
    let found = match algorithm {
        Algorithm::Sha256 => Sha256::digest(bytes).to_vec(),
        Algorithm::Sha512 => Sha512::digest(bytes).to_vec(),
        Algorithm::Blake3 => blake3::hash(bytes).as_bytes().to_vec(),
    };
    Digest::new(algorithm, found).ok()
}

/// Adds an outlet that computes a digest of all that comes out of it.
pub(super) fn start(
    algorithm: Algorithm,
    outlets: &mut Vec<SyncSender<Arc<Chunk>>>,
) -> Result<JoinHandle<Option<Digest>>, Problem> {
    let (outlet, chunks) = mpsc::sync_channel(CHUNKS);
    outlets.push(outlet);
    spawn("digest", move || {
        let bytes = match algorithm {
            Algorithm::Sha256 => hash::<Sha256>(&chunks),
            Algorithm::Sha512 => hash::<Sha512>(&chunks),
            Algorithm::Blake3 => blake3(&chunks),
        };
        Digest::new(algorithm, bytes).ok()
    })
}

fn blake3(chunks: &Receiver<Arc<Chunk>>) -> Vec<u8> {
    let mut hasher = blake3::Hasher::new();
    for chunk in chunks {
        hasher.update(&chunk.bytes);
    }
    hasher.finalize().as_bytes().to_vec()
}

fn hash<D: sha2::Digest>(chunks: &Receiver<Arc<Chunk>>) -> Vec<u8> {
    let mut hasher = D::new();
    for chunk in chunks {
        hasher.update(&chunk.bytes);
    }
    hasher.finalize().to_vec()
}
