//! A file becomes a packed image: on one thread, behind everything else that the machine does, with
//! the same memory whatever its size.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, ErrorKind, Read, Write};
use std::path::Path;

use ferrite_imaging::content::{self, NotRaw};
use ferrite_imaging::decompress::MORE_MEMORY;
use ferrite_imaging::packed::{Chunks, LEVEL, Packed, Packer, Sign, SigningKey, Writer};
use ferrite_imaging::qcow2::Qcow2;
use ferrite_imaging::{Digested, Hasher};
use ferrite_proto::digest::{Algorithm, Digest};
use ferrite_proto::image::Format;
use ferrite_proto::named_image::ImageSpec;
use ferrite_proto::problem::{Code, Problem};

use super::fetch::wrong_digest;
use super::progress::Progress;
use super::shelf::Shelf;

/// Least urgent of all.
const NICE: i32 = 19;
/// Chunks between two looks at the room that is left.
const LOOK: usize = 32;

/// A file to be packed.
pub(super) struct Pack<'a> {
    pub(super) shelf: &'a Shelf,
    pub(super) spec: &'a ImageSpec,
    pub(super) name: &'a str,
    pub(super) from: &'a Path,
    pub(super) into: &'a Path,
    pub(super) key: Option<&'a SigningKey>,
    pub(super) progress: &'a Progress,
}

/// What came of it.
#[derive(Debug)]
pub(super) struct Done {
    pub(super) digest: Digest,
    pub(super) image_bytes: u64,
    pub(super) packed_bytes: u64,
}

impl Pack<'_> {
    /// Packs, and syncs what was written.
    pub(super) fn run(&self) -> Result<Done, Problem> {
        if let Err(error) = rustix::process::nice(NICE) {
            tracing::debug!(%error, "packing is as urgent as everything else");
        }
        let file = File::open(self.from).map_err(|e| self.shelf.problem(self.from, &e))?;
        let packed = match self.spec.format {
            Format::Qcow2 => self.qcow2(&file)?,
            Format::Raw | Format::Packed => self.raw(&file)?,
        };
        Ok(Done {
            digest: Hasher::of(Algorithm::Sha256, &packed.frame),
            image_bytes: packed.index.image_bytes,
            packed_bytes: packed.file_bytes,
        })
    }

    fn raw(&self, file: &File) -> Result<Packed, Problem> {
        let length = file.metadata().map(|metadata| metadata.len());
        let length = length.map_err(|error| self.shelf.problem(self.from, &error))?;
        let read = Counted {
            file: BufReader::with_capacity(1 << 20, file),
            progress: self.progress,
            at: 0,
            length,
        };
        let source = BufReader::with_capacity(1 << 20, read);
        let image = content::raw(source, self.spec.compression, MORE_MEMORY);
        let image = image.map_err(|error| match error {
            NotRaw::Read(_, error) => self.unreadable(&error),
            other => self.format(&other.to_string()),
        })?;
        self.checked(image)
    }

    fn qcow2(&self, file: &File) -> Result<Packed, Problem> {
        let image = Qcow2::open(file).map_err(|error| self.format(&error.to_string()))?;
        let length = image.size();
        let content = image.content(file);
        let content = content.map_err(|error| self.unreadable(&error))?;
        self.checked(Counted {
            file: content,
            progress: self.progress,
            at: 0,
            length,
        })
    }

    /// Packs the disk's bytes, and checks that they are those that were demanded.
    fn checked(&self, image: impl Read) -> Result<Packed, Problem> {
        let Some(wanted) = &self.spec.raw_digest else {
            return self.write(image);
        };
        let image = BufReader::with_capacity(1 << 20, image);
        let mut image = Digested::new(image, Some(wanted.algorithm()));
        let packed = self.write(&mut image)?;
        let (bytes, found) = image.finish().map_err(|error| self.unreadable(&error))?;
        match found {
            Some(found) if found != *wanted => Err(wrong_digest(
                &format!("the disk in {} ({bytes} bytes)", self.spec.url),
                wanted,
                &found,
            )),
            _ => Ok(packed),
        }
    }

    fn write(&self, image: impl Read) -> Result<Packed, Problem> {
        let full = |error: io::Error| self.shelf.problem(self.into, &error);
        let file = File::create(self.into).map_err(full)?;
        let mut writer = Writer::new(BufWriter::with_capacity(1 << 20, file));
        let mut packer = Packer::new(LEVEL).map_err(full)?;
        let (mut chunks, mut raw) = (Chunks::new(image), Vec::new());
        for number in 0.. {
            if self.progress.is_stopped() {
                return Err(self.stopped());
            }
            let more = chunks.next(&mut raw);
            if !more.map_err(|error| self.unreadable(&error))? {
                break;
            }
            if number % LOOK == 0 {
                self.shelf.check_room(0)?;
            }
            let (frame, chunk) = packer.pack(&raw).map_err(full)?;
            writer.push(raw.len(), &frame, chunk).map_err(|error| {
                if error.kind() == ErrorKind::FileTooLarge {
                    return self.format(&error.to_string());
                }
                full(error)
            })?;
        }
        self.end(writer)
    }

    fn end(&self, writer: Writer<BufWriter<File>>) -> Result<Packed, Problem> {
        let about = format!("image:{}", self.name);
        let sign = self.key.map(|key| {
            let about = about.as_str();
            move |frame: &[u8]| key.sign(frame, about)
        });
        let ended = writer.finish(sign.as_ref().map(|sign| sign as &Sign<'_>));
        let (out, packed) = ended.map_err(|error| match error.kind() {
            ErrorKind::UnexpectedEof => self.format(&error.to_string()),
            _ => self.shelf.problem(self.into, &error),
        })?;
        let synced = out.into_inner().map_err(io::IntoInnerError::into_error);
        let synced = synced.and_then(|mut file| {
            file.flush()?;
            file.sync_all()
        });
        synced.map_err(|error| self.shelf.problem(self.into, &error))?;
        Ok(packed)
    }

    fn unreadable(&self, error: &io::Error) -> Problem {
        match error.kind() {
            ErrorKind::UnexpectedEof => Problem::new(
                Code::ImageTruncated,
                format!("{} ends too early: {error}", self.spec.url),
                "put the whole file there",
            ),
            _ => self.format(&error.to_string()),
        }
    }

    fn format(&self, why: &str) -> Problem {
        Problem::new(
            Code::ImageFormat,
            format!("{} is no such image: {why}", self.spec.url),
            "correct spec.format or spec.compression, or the file",
        )
    }

    fn stopped(&self) -> Problem {
        Problem::new(
            Code::StepCancelled,
            format!("image {} is not wanted any more", self.name),
            "",
        )
    }
}

/// Tells how far it has been read.
struct Counted<'a, R> {
    file: R,
    progress: &'a Progress,
    at: u64,
    length: u64,
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read(buffer)?;
        self.at += count as u64;
        self.progress.set(self.at, Some(self.length));
        Ok(count)
    }
}
