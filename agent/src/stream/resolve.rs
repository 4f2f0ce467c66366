//! Before an image is fetched: what it really is, and what vouches for it. Digests are looked up
//! where they stand, and the name of an artifact becomes that of its one layer.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};

use ferrite_proto::digest::Digest;
use ferrite_proto::image::{Format, ImageRef};
use ferrite_proto::oci::OciRef;
use ferrite_proto::problem::{Code, Problem};

use super::oci::{self, BadArtifact, Leads};
use super::source::{FetchError, Source, Stop};
use super::sums::{self, BadSums};
use super::terms::Terms;
use super::{GLANCE, cancelled_problem};

/// Longest file of digests.
const SUMS: usize = 1 << 20;

/// Why it is not known what to fetch.
#[derive(Debug, thiserror::Error)]
enum ResolveError {
    #[error(transparent)]
    Fetch(#[from] FetchError),
    #[error("{url} is longer than {limit} bytes")]
    TooLong { url: String, limit: usize },
    #[error("{url} vouches for nothing: {why}")]
    Sums { url: String, why: BadSums },
    #[error("{url} is no image: {why}")]
    Artifact { url: String, why: BadArtifact },
}

impl From<ResolveError> for Problem {
    fn from(error: ResolveError) -> Self {
        match error {
            ResolveError::Fetch(error) => error.into(),
            other => Self::new(
                Code::ImageInvalid,
                other.to_string(),
                "correct what was published, or the image's description; nothing was written",
            ),
        }
    }
}

/// The image with a digest, if anything says one, and with a URL that bytes can be had of.
pub(crate) fn resolve(
    image: &ImageRef,
    terms: &Terms,
    cancelled: &AtomicBool,
) -> Result<ImageRef, Problem> {
    let artifact = OciRef::parse(&image.url).ok();
    if artifact.is_none() && image.digest_url.is_none() {
        return Ok(image.clone());
    }
    let found = while_wanted(cancelled, |stop| {
        let mut image = image.clone();
        if let Some(url) = image.digest_url.take() {
            image.digest = Some(look_up(&image.url, &url, terms, &stop)?);
        }
        match artifact {
            Some(named) => follow(&image, &named, terms, &stop),
            None => Ok(image),
        }
    });
    match found {
        Err(ResolveError::Fetch(FetchError::Stopped)) => Err(cancelled_problem()),
        found => Ok(found?),
    }
}

/// Does something on a thread of its own, and tells it when it is not wanted any more: whatever
/// waits for a server there ends within a second.
pub(crate) fn while_wanted<T: Send>(
    cancelled: &AtomicBool,
    work: impl FnOnce(Stop) -> T + Send,
) -> T {
    let stop = Stop::default();
    let (done, waiting) = mpsc::channel();
    std::thread::scope(|scope| {
        let (theirs, ours) = (Stop::clone(&stop), &stop);
        let worker = scope.spawn(move || {
            // Closed when the work is done, and when it panics.
            let _done: mpsc::Sender<()> = done;
            work(theirs)
        });
        while let Err(RecvTimeoutError::Timeout) = waiting.recv_timeout(GLANCE) {
            if cancelled.load(Ordering::Relaxed) {
                ours.store(true, Ordering::Relaxed);
            }
        }
        worker
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// The digest of an image's file, from a file of digests.
fn look_up(image: &str, url: &str, terms: &Terms, stop: &Stop) -> Result<Digest, ResolveError> {
    let source = Source::of_url(url, terms, Stop::clone(stop))?;
    let text = all(&source, url, SUMS)?;
    let path = image.split(['?', '#']).next().unwrap_or(image);
    let name = path.rsplit('/').next().unwrap_or(path);
    let digest = sums::digest_of(name, &text).map_err(|why| ResolveError::Sums {
        url: url.to_owned(),
        why,
    })?;
    tracing::info!(%digest, name, "digest found");
    Ok(digest)
}

/// From an artifact's name to its one layer. What a person demands of the file goes before what
/// the registry says.
fn follow(
    image: &ImageRef,
    named: &OciRef,
    terms: &Terms,
    stop: &Stop,
) -> Result<ImageRef, ResolveError> {
    let bad = |why| ResolveError::Artifact {
        url: image.url.clone(),
        why,
    };
    let mut asked = named.clone();
    for _ in 0..2 {
        let url = asked.manifest();
        let stop = Stop::clone(stop);
        let source = Source::of_registry(&url, &image.url, oci::MANIFESTS, terms, stop)?;
        let text = all(&source, &url, oci::LONGEST)?;
        match oci::read(&text, asked.digest.as_ref()).map_err(bad)? {
            Leads::ToManifest(digest) => asked.digest = Some(digest),
            Leads::ToFile(layer) => {
                let mut found = oci::image_of(image, named, &layer);
                // Of a packed image the digest is that of its index, which no registry knows.
                let vouched = named.digest.is_some() && image.format != Format::Packed;
                found.digest = found.digest.or(vouched.then_some(layer));
                return Ok(found);
            }
        }
    }
    Err(bad(BadArtifact::TooDeep))
}

fn all(source: &Source, url: &str, limit: usize) -> Result<Vec<u8>, ResolveError> {
    let (mut bytes, mut from) = (Vec::new(), source.whole());
    let mut buffer = [0; 8192];
    loop {
        match from.next(&mut buffer)? {
            0 => return Ok(bytes),
            count => bytes.extend_from_slice(&buffer[..count]),
        }
        if bytes.len() > limit {
            return Err(ResolveError::TooLong {
                url: url.to_owned(),
                limit,
            });
        }
    }
}

#[cfg(test)]
#[path = "resolve_tests.rs"]
mod tests;
