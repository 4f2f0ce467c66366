//! `write-image`: chooses the root disk and has the image written to it. How that is done so that
//! no half-written disk boots is in [`crate::image`].

use ferrite_proto::image::ImageRef;
use ferrite_proto::problem::Problem;
use ferrite_proto::step::{Outcome, RootDisk};

use super::{Context, root_disk, write_config_drive};
use crate::image::{Demand, write};
use crate::stream::terms::Terms;

/// Chooses the disk and writes the image to it; with `verify` all of it is read back.
pub(super) fn run(
    image: &ImageRef,
    root: &RootDisk,
    verify: bool,
    terms: &Terms,
    context: &Context<'_>,
) -> Result<Outcome, Problem> {
    let disk = root_disk::find(context.root, root)?;
    let demand = Demand {
        room: write_config_drive::room(context)?,
        verify,
    };
    let written = write(image, &disk, demand, terms, context)?;
    Ok(Outcome::ImageWritten(written))
}

#[cfg(test)]
#[path = "write_image_tests.rs"]
mod tests;
