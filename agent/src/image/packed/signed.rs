//! Whether a packed image is signed by whom it shall be.

use std::ops::Range;

use ferrite_imaging::packed::PublicKey;
use ferrite_proto::image::ImageRef;
use ferrite_proto::problem::{Code, Problem};

use super::file::File;

/// Checks the signature of the index's frame, where one is demanded.
pub(super) fn check(
    image: &ImageRef,
    file: &File,
    index: &[u8],
    signature: Option<Range<u64>>,
) -> Result<(), Problem> {
    let Some(key) = &image.signed_by else {
        return Ok(());
    };
    let key: PublicKey = key.parse().map_err(|error| {
        let what = format!("signed_by of {}: {error}", image.url);
        Problem::new(Code::ImageInvalid, what, "correct the image's description")
    })?;
    let range = signature.ok_or_else(|| unsigned(image, "it has no signature"))?;
    let frame = file.bytes(range)?;
    key.vouches(index, &frame)
        .map_err(|error| unsigned(image, &error.to_string()))
}

fn unsigned(image: &ImageRef, why: &str) -> Problem {
    Problem::new(
        Code::ImageDigestMismatch,
        format!("{} is not to be trusted: {why}", image.url),
        "sign it (`ferrite-image pack --sign`), or correct signed_by, or find out who changed it; \
         nothing was written",
    )
}
