//! An image file of any form, read as the disk's bytes in order. What it is compressed with is
//! told by its content; that it is qcow2 has to be said, as everywhere.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use ferrite_imaging::content;
use ferrite_imaging::decompress::MORE_MEMORY;
use ferrite_imaging::qcow2::Qcow2;
use ferrite_imaging::{Digested, Hasher, ReadAt};
use ferrite_proto::digest::Digest;

/// What an image file holds once decompressed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// The bytes of the disk, one after the other; compressed or not
    #[default]
    Raw,
    /// QEMU's disk image
    Qcow2,
}

/// An image file and what is demanded of it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Source<'a> {
    pub(crate) path: &'a Path,
    pub(crate) format: Format,
    pub(crate) digest: Option<&'a Digest>,
}

impl Source<'_> {
    /// Has the image read by `take`, and checks that it was the right file.
    pub(crate) fn read<T>(&self, take: impl FnOnce(&mut dyn Read) -> Result<T>) -> Result<T> {
        let shown = self.path.display();
        let file = File::open(self.path).with_context(|| format!("opening {shown}"))?;
        match self.format {
            Format::Raw => self.read_stream(file, take),
            Format::Qcow2 => self.read_qcow2(&file, take),
        }
    }

    fn read_stream<T>(
        &self,
        file: File,
        take: impl FnOnce(&mut dyn Read) -> Result<T>,
    ) -> Result<T> {
        let shown = self.path.display();
        let algorithm = self.digest.map(Digest::algorithm);
        let mut source = Digested::new(BufReader::with_capacity(1 << 20, file), algorithm);
        let taken = {
            let mut image = content::raw(&mut source, None, MORE_MEMORY)
                .with_context(|| format!("{shown} cannot be read"))?;
            let compression = image.compression;
            take(&mut image).with_context(|| format!("reading {shown} ({compression:?})"))?
        };
        let (_, found) = source
            .finish()
            .with_context(|| format!("reading {shown}"))?;
        self.compare(found)?;
        Ok(taken)
    }

    fn read_qcow2<T>(
        &self,
        file: &File,
        take: impl FnOnce(&mut dyn Read) -> Result<T>,
    ) -> Result<T> {
        let shown = self.path.display();
        let found = self
            .digest
            .map(|digest| hash(file, digest))
            .transpose()
            .with_context(|| format!("reading {shown}"))?;
        self.compare(found)?;
        let image = Qcow2::open(file).with_context(|| format!("{shown} cannot be read"))?;
        take(&mut image.content(file)?).with_context(|| format!("reading {shown}"))
    }

    fn compare(&self, found: Option<Digest>) -> Result<()> {
        if let (Some(wanted), Some(found)) = (self.digest, found)
            && *wanted != found
        {
            let shown = self.path.display();
            bail!("{shown} has the digest {found}, but {wanted} was demanded");
        }
        Ok(())
    }
}

/// The digest of a whole file.
fn hash(file: &File, like: &Digest) -> std::io::Result<Digest> {
    let mut hasher = Hasher::new(like.algorithm());
    let mut buffer = vec![0; 1 << 20];
    let (mut at, end) = (0, file.size()?);
    while at < end {
        let length = usize::try_from(end - at).map_or(buffer.len(), |left| left.min(buffer.len()));
        let part = &mut buffer[..length];
        file.read_exact_at(part, at)?;
        hasher.update(part);
        at += length as u64;
    }
    Ok(hasher.finish())
}
