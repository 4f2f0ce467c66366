//! Images that the conductor fetches once, packs, and keeps for hosts.
//!
//! A named image with `pack: true` is a wish; [`work`] fulfils it and notes in its status how far
//! it is. What is packed lies in a folder of this conductor ([`shelf`]), named by the digest of its
//! index, so that images with the same content are one file. A file goes when no image and no host
//! names it any more.
//!
//! **Several conductors** on one database each have a folder of their own. The one that fulfils a
//! wish says so in the status, with the URL that hosts reach it by; others leave it alone unless
//! nothing was heard of it for half a minute, and send whoever asks them for the file there. A
//! conductor that is gone takes its files with it: its images are packed anew when they are written
//! anew.
//!
//! Not here: what a packed image is (`ferrite-imaging`), and which host is given which
//! (`lifecycle/image.rs`).

mod fetch;
mod pack;
mod progress;
mod reach;
pub(crate) mod shelf;
mod work;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context as _;
use ferrite_imaging::packed::SigningKey;
use ferrite_proto::address::Policy;
use ferrite_proto::digest::Digest;
use ferrite_proto::image_server::ImageServer;
use serde_json::Value;
use tokio::sync::{Notify, Semaphore};

use self::shelf::Shelf;
pub(crate) use self::work::{note, start};
use crate::lifecycle::image::Named;
use crate::store::Document;

/// Files that people give at once.
const UPLOADS: usize = 4;

/// How images are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ImagesConfig {
    /// The folder.
    pub(crate) dir: PathBuf,
    /// What hosts reach this very conductor by.
    pub(crate) url: String,
    /// What packed images are signed with.
    pub(crate) signing_key: Option<PathBuf>,
    /// Bytes of the disk that are left to others.
    pub(crate) keep_free: u64,
    /// Servers on the conductor's own machine may be fetched from.
    pub(crate) from_loopback: bool,
}

/// What is needed to keep them.
pub(crate) struct Images {
    /// Where they lie.
    pub(crate) shelf: Shelf,
    /// What hosts reach this conductor by.
    pub(crate) me: String,
    /// Those who give a file now.
    pub(crate) uploads: Semaphore,
    key: Option<SigningKey>,
    policy: Policy,
    servers: Arc<[ImageServer]>,
    wake: Notify,
}

impl fmt::Debug for Images {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Images")
            .field("shelf", &self.shelf)
            .finish_non_exhaustive()
    }
}

impl Images {
    /// Opens the folder, and reads the key.
    pub(crate) fn open(config: &ImagesConfig, servers: Arc<[ImageServer]>) -> anyhow::Result<Self> {
        let shelf = Shelf::open(&config.dir, config.keep_free);
        let shelf = shelf.map_err(|problem| anyhow::anyhow!("images.dir: {problem}"))?;
        let key = config.signing_key.as_ref().map(|path| {
            let shown = path.display();
            let text = std::fs::read_to_string(path);
            let text = text.with_context(|| format!("reading images.signing_key {shown}"))?;
            SigningKey::parse(&text).with_context(|| format!("images.signing_key {shown}"))
        });
        let policy = if config.from_loopback {
            Policy::OthersAndLoopback
        } else {
            Policy::Others
        };
        Ok(Self {
            shelf,
            me: config.url.clone(),
            uploads: Semaphore::new(UPLOADS),
            key: key.transpose()?,
            policy,
            servers,
            wake: Notify::new(),
        })
    }

    /// Somebody wants something: it is looked at now.
    pub(crate) fn wake(&self) {
        self.wake.notify_one();
    }

    /// Where hosts fetch a packed image.
    fn url_of(&self, digest: &Digest) -> String {
        format!("{}/images/{}", self.me, shelf::name_of(digest))
    }
}

/// A named image out of its document.
pub(crate) fn named(document: &Document) -> Option<Named> {
    let read = |field: &str| document.body.get(field).cloned().unwrap_or(Value::Null);
    Some(Named {
        spec: serde_json::from_value(read("spec")).ok()?,
        status: serde_json::from_value(read("status")).ok()?,
    })
}

#[cfg(test)]
impl Images {
    /// With a folder that is not there until it is needed.
    pub(crate) fn for_tests() -> Arc<Self> {
        let dir = std::env::temp_dir().join(format!("ferrite-images-{}", uuid::Uuid::new_v4()));
        Arc::new(Self {
            shelf: Shelf::closed(&dir),
            me: "https://conductor".to_owned(),
            uploads: Semaphore::new(UPLOADS),
            key: None,
            policy: Policy::Others,
            servers: Arc::default(),
            wake: Notify::new(),
        })
    }
}
