//! The digest of what an image file holds, where a person demanded one besides the file's.

use ferrite_imaging::Hasher;
use ferrite_proto::digest::Digest;
use ferrite_proto::image::ImageRef;
use ferrite_proto::problem::{Code, Problem};

/// Takes the image's bytes in order; costs nothing where no digest of them is demanded.
#[derive(Default)]
pub(super) struct Content(Option<Hasher>);

impl Content {
    pub(super) fn of(image: &ImageRef) -> Self {
        let algorithm = image.raw_digest.as_ref().map(Digest::algorithm);
        Self(algorithm.map(Hasher::new))
    }

    pub(super) fn update(&mut self, bytes: &[u8]) {
        if let Some(hasher) = &mut self.0 {
            hasher.update(bytes);
        }
    }

    /// After the last byte: was it what was demanded?
    pub(super) fn check(self, image: &ImageRef) -> Result<(), Problem> {
        let found = self.0.map(Hasher::finish);
        if found == image.raw_digest {
            return Ok(());
        }
        let shown = |digest: &Option<_>| digest.as_ref().map(ToString::to_string);
        let found = shown(&found).unwrap_or_default();
        let wanted = shown(&image.raw_digest).unwrap_or_default();
        let url = &image.url;
        Err(Problem::new(
            Code::ImageDigestMismatch,
            format!("the content of {url} has the digest {found}, but {wanted} was demanded"),
            "correct the digest of the content, or find out who changed it; the disk does not \
             boot until an image has been written whole",
        ))
    }
}
