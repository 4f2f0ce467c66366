//! Why an image cannot be written, in words that are the same for every form of image.

use ferrite_proto::image::ImageRef;
use ferrite_proto::problem::{Code, Problem};
use ferrite_proto::size::ByteSize;

/// A size as people read it, and exactly.
pub(super) fn shown(bytes: u64) -> String {
    format!("{} ({bytes} bytes)", ByteSize(bytes))
}

/// What an image and the config drive behind it need.
pub(super) fn needed(image: u64, room: u64) -> String {
    match room {
        0 => shown(image),
        _ => format!(
            "{}, and the config drive {} more",
            shown(image),
            shown(room)
        ),
    }
}

pub(super) fn too_large(image: &ImageRef, needs: &str, has: u64) -> Problem {
    Problem::new(
        Code::ImageTooLarge,
        format!(
            "the image {} needs {needs}, but the disk has {}",
            image.url,
            shown(has)
        ),
        "choose a larger disk or a smaller image",
    )
}

pub(super) fn truncated(image: &ImageRef, length: u64, wanted: u64) -> Problem {
    Problem::new(
        Code::ImageTruncated,
        format!(
            "the image {} ends at byte {length}, but its partition table is that of a disk of \
             {wanted} bytes",
            image.url
        ),
        "publish the whole image, and its digest with it",
    )
}

pub(super) fn format_problem(image: &ImageRef, what: &str) -> Problem {
    Problem::new(
        Code::ImageFormat,
        format!("the image {} cannot be written: {what}", image.url),
        "use a raw disk image, made for this kind of disk; nothing was written",
    )
}

/// What cannot be.
pub(super) fn internal(what: &str) -> Problem {
    Problem::new(Code::Internal, what, "report this, with the host's log")
}

/// A file declared raw whose content is an image of another form.
pub(super) fn foreign_problem(image: &ImageRef, form: &str) -> Problem {
    let advice = match form {
        "qcow2" => "say format qcow2; nothing was written",
        _ => "convert it: `qemu-img convert -O raw` or `-O qcow2`; nothing was written",
    };
    Problem::new(
        Code::ImageFormat,
        format!(
            "the image {} is declared raw, but its content is {form}",
            image.url
        ),
        advice,
    )
}
