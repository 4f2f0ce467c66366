//! `ferrite-image info`: what an image file is. It believes nothing unless asked to verify.

use std::fmt::Write as _;
use std::fs::File;
use std::io::Read as _;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, bail};
use ferrite_imaging::packed::{BadIndex, Opened, PublicKey, Unopened, Unpacker, signature_text};
use ferrite_imaging::qcow2::{self, Qcow2};
use ferrite_imaging::{Hasher, ReadAt as _};
use ferrite_proto::digest::{Algorithm, Digest};
use ferrite_proto::image::{Compression, Format};
use ferrite_proto::size::ByteSize;
use serde::Serialize;

/// What is known of an image file.
#[derive(Debug, Serialize)]
pub(crate) struct Info {
    format: Format,
    file_bytes: u64,
    /// Length of the disk that it holds, where the file says so.
    #[serde(skip_serializing_if = "Option::is_none")]
    image_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    compression: Option<Compression>,
    #[serde(skip_serializing_if = "Option::is_none")]
    packed: Option<PackedInfo>,
}

/// What is known of a packed image.
#[derive(Debug, Serialize)]
pub(crate) struct PackedInfo {
    /// What to give as the image's digest: that of its index.
    pub(crate) digest: Digest,
    pub(crate) chunk_bytes: u32,
    pub(crate) chunks: usize,
    pub(crate) chunks_zero: usize,
    /// The signature's trusted comment.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) signature: Option<String>,
    /// All chunks, and the signature if a key was given, have been checked.
    pub(crate) verified: bool,
}

/// Looks at a file; `verify` reads all of a packed one.
pub(crate) fn info(path: &Path, verify: bool, key: Option<&PublicKey>) -> Result<Info> {
    let shown = path.display();
    let mut file = File::open(path).with_context(|| format!("opening {shown}"))?;
    let file_bytes = file.size().with_context(|| format!("reading {shown}"))?;
    let opened = match Opened::open(&file) {
        Ok(opened) => opened,
        Err(Unopened::Index(BadIndex::NotPacked)) if !verify && key.is_none() => {
            let mut first = Vec::new();
            let head = file.by_ref().take(512).read_to_end(&mut first);
            head.with_context(|| format!("reading {shown}"))?;
            return plain(&file, &first, file_bytes).with_context(|| format!("reading {shown}"));
        }
        Err(error) => return Err(error).with_context(|| format!("{shown} cannot be opened")),
    };
    if let Some(key) = key {
        check_signature(&opened, key).with_context(|| format!("{shown} is not to be trusted"))?;
    }
    if verify {
        check_chunks(&opened, &file).with_context(|| format!("{shown} cannot be used"))?;
    }
    let packed = PackedInfo::of(&opened, verify)?;
    Ok(Info {
        format: Format::Packed,
        file_bytes,
        image_bytes: Some(opened.index.image_bytes),
        compression: None,
        packed: Some(packed),
    })
}

/// A file that nobody packed.
fn plain(file: &File, first: &[u8], file_bytes: u64) -> Result<Info> {
    let compression = Compression::of(first);
    let is_qcow2 = first.starts_with(&qcow2::MAGIC);
    let image_bytes = match compression {
        Compression::None if is_qcow2 => Some(Qcow2::open(file)?.size()),
        Compression::None => Some(file_bytes),
        _ => None,
    };
    let format = if is_qcow2 { Format::Qcow2 } else { Format::Raw };
    Ok(Info {
        format,
        file_bytes,
        image_bytes,
        compression: Some(compression),
        packed: None,
    })
}

impl PackedInfo {
    pub(crate) fn of(opened: &Opened, verified: bool) -> Result<Self> {
        let index = &opened.index;
        let frame = opened.signature.as_deref();
        let text = frame.map(signature_text).transpose()?;
        let comment = |text: &str| {
            let mut lines = text.lines();
            let said = lines.find_map(|line| line.strip_prefix("trusted comment: "));
            said.unwrap_or("without a comment").to_owned()
        };
        Ok(Self {
            digest: Hasher::of(Algorithm::Sha256, &opened.frame),
            chunk_bytes: index.chunk_bytes,
            chunks: index.chunks.len(),
            chunks_zero: index.chunks.iter().filter(|chunk| chunk.zero).count(),
            signature: text.map(comment),
            verified,
        })
    }
}

fn check_signature(opened: &Opened, key: &PublicKey) -> Result<()> {
    let Some(signature) = &opened.signature else {
        bail!("it has no signature");
    };
    Ok(key.vouches(&opened.frame, signature)?)
}

/// Unpacks all chunks on all processors.
fn check_chunks(opened: &Opened, file: &File) -> Result<()> {
    let next = AtomicUsize::new(0);
    let failure = Mutex::new(None);
    let count = opened.index.chunks.len();
    let work = || -> Result<()> {
        let mut unpacker = Unpacker::new()?;
        let (mut packed, mut raw) = (Vec::new(), Vec::new());
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= count {
                return Ok(());
            }
            opened.read_chunk(file, number, &mut unpacker, &mut packed, &mut raw)?;
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..threads() {
            scope.spawn(|| {
                if let Err(error) = work() {
                    next.store(count, Ordering::Relaxed);
                    let mut failure = failure.lock().unwrap_or_else(PoisonError::into_inner);
                    failure.get_or_insert(error);
                }
            });
        }
    });
    let failure = failure.into_inner().unwrap_or_else(PoisonError::into_inner);
    failure.map_or(Ok(()), Err)
}

/// As many as there are processors for us.
pub(crate) fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

impl std::fmt::Display for Info {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut text = String::new();
        let size = |bytes: u64| format!("{} ({bytes} bytes)", ByteSize(bytes));
        let format = match self.format {
            Format::Raw => "raw",
            Format::Qcow2 => "qcow2",
            Format::Packed => "packed",
        };
        writeln!(text, "format     {format}")?;
        if let Some(bytes) = self.image_bytes {
            writeln!(text, "image      {}", size(bytes))?;
        }
        writeln!(text, "file       {}", size(self.file_bytes))?;
        if let Some(compression) = self.compression.filter(|&how| how != Compression::None) {
            writeln!(
                text,
                "compressed {}",
                format!("{compression:?}").to_lowercase()
            )?;
        }
        if let Some(packed) = &self.packed {
            writeln!(
                text,
                "chunks     {} of {}, {} of them zeros\ndigest     {}",
                packed.chunks,
                ByteSize(packed.chunk_bytes.into()),
                packed.chunks_zero,
                packed.digest
            )?;
            if let Some(comment) = &packed.signature {
                writeln!(text, "signed     {comment}")?;
            }
            let verified = if packed.verified {
                "every chunk"
            } else {
                "no (--verify)"
            };
            writeln!(text, "verified   {verified}")?;
        }
        f.write_str(text.trim_end())
    }
}
