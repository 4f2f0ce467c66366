//! The digest of the file as fetched, on a thread of its own, so that it costs no wall time where
//! there is a second processor.

use std::sync::Arc;
use std::sync::mpsc::{self, SyncSender};
use std::thread::JoinHandle;

use ferrite_imaging::Hasher;
use ferrite_proto::digest::{Algorithm, Digest};
use ferrite_proto::problem::Problem;

use super::{CHUNKS, Chunk, spawn};

/// Adds an outlet that computes a digest of all that comes out of it.
pub(super) fn start(
    algorithm: Algorithm,
    outlets: &mut Vec<SyncSender<Arc<Chunk>>>,
) -> Result<JoinHandle<Digest>, Problem> {
    let (outlet, chunks) = mpsc::sync_channel::<Arc<Chunk>>(CHUNKS);
    outlets.push(outlet);
    spawn("digest", move || {
        let mut hasher = Hasher::new(algorithm);
        for chunk in chunks {
            hasher.update(&chunk.bytes);
        }
        hasher.finish()
    })
}
