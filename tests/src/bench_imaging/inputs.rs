//! The images and their forms, made once and kept under `target/bench-imaging`. Each is known by
//! its SHA-256 and by that of what it was made of: when a source changes, its forms are made anew.
//!
//! How the images themselves are made is in `make`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use ferrite_imaging::packed::{Index, TAIL_BYTES, locate};
use ferrite_proto::digest::Digest;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::make;
use crate::command::run;

pub(super) const DENSE: &str = "dense.raw";
pub(super) const SPARSE: &str = "debian.raw";
pub(super) const UPGRADED: &str = "upgraded.raw";
/// Smaller ones: a guest may be emulated.
pub(super) const GUEST_DENSE: &str = "guest-dense.raw";
pub(super) const GUEST_SPARSE: &str = "guest-sparse.raw";
/// In the order of the table.
pub(super) const IMAGES: [&str; 3] = [DENSE, SPARSE, UPGRADED];
pub(super) const GUEST_IMAGES: [&str; 2] = [GUEST_DENSE, GUEST_SPARSE];

const GIB: u64 = 1 << 30;
const MANIFEST: &str = "manifest.json";

/// A file that is served or compared with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Input {
    pub(super) bytes: u64,
    pub(super) sha256: String,
    modified: i64,
    /// SHA-256 of what it was made of, and how.
    source: Option<String>,
    recipe: String,
}

/// All of them, by name.
#[derive(Debug)]
pub(super) struct Inputs {
    dir: PathBuf,
    known: BTreeMap<String, Input>,
}

/// How a form is made of an image.
struct Form {
    name: &'static str,
    of: &'static str,
    /// `IN` and `OUT` stand for the files, `TOOL` for `ferrite-image`; what it prints is no part
    /// of the form.
    argv: &'static [&'static str],
}

const ZSTD: &[&str] = &["zstd", "-q", "-f", "-3", "-T0", "IN", "-o", "OUT"];
/// `ferrite-image` is the one that was built.
const PACK: &[&str] = &["TOOL", "pack", "IN", "OUT"];
const QCOW2: &[&str] = &["qemu-img", "convert", "-O", "qcow2", "IN", "OUT"];
const QCOW2_ZLIB: &[&str] = &["qemu-img", "convert", "-c", "-O", "qcow2", "IN", "OUT"];
const GZIP: &[&str] = &["gzip", "-6", "-k", "-f", "-S", ".partial", "IN"];
const MAP: &[&str] = &["bmaptool", "-q", "create", "-o", "OUT", "IN"];
const FORMS: [Form; 14] = [
    form("dense.raw.zst", DENSE, ZSTD),
    form("dense.raw.gz", DENSE, GZIP),
    form("debian.raw.zst", SPARSE, ZSTD),
    form("debian.bmap", SPARSE, MAP),
    form("debian.qcow2", SPARSE, QCOW2),
    form("debian-zlib.qcow2", SPARSE, QCOW2_ZLIB),
    form("dense.packed.zst", DENSE, PACK),
    form("debian.packed.zst", SPARSE, PACK),
    form("upgraded.packed.zst", UPGRADED, PACK),
    form("guest-dense.raw.zst", GUEST_DENSE, ZSTD),
    form("guest-dense.packed.zst", GUEST_DENSE, PACK),
    form("guest-sparse.raw.zst", GUEST_SPARSE, ZSTD),
    form("guest-sparse.packed.zst", GUEST_SPARSE, PACK),
    form("guest-sparse.qcow2", GUEST_SPARSE, QCOW2),
];

const fn form(name: &'static str, of: &'static str, argv: &'static [&'static str]) -> Form {
    Form { name, of, argv }
}

impl Inputs {
    /// Makes what is missing.
    pub(super) fn ready(dir: &Path, image_tool: &Path) -> Result<Self> {
        fs::create_dir_all(dir)?;
        let known = match fs::read(dir.join(MANIFEST)) {
            Ok(text) => serde_json::from_slice(&text).context("reading the inputs' manifest")?,
            Err(_) => BTreeMap::new(),
        };
        let mut inputs = Self {
            dir: dir.to_owned(),
            known,
        };
        inputs.ensure(DENSE, None, "dense 1", |out| make::filled(2 * GIB, 1, out))?;
        inputs.ensure(SPARSE, None, "debian 8GiB 1GiB", |out| {
            make::debian(image_tool, out)
        })?;
        inputs.ensure(GUEST_DENSE, None, "dense 128MiB", |out| {
            make::filled(GIB / 8, 1, out)
        })?;
        inputs.ensure(GUEST_SPARSE, None, "an eighth of 1GiB", |out| {
            make::filled(GIB, 8, out)
        })?;
        let sparse = inputs.path(SPARSE);
        inputs.ensure(UPGRADED, Some(SPARSE), "every tenth file 1", |out| {
            make::upgraded(&sparse, out)
        })?;
        for form in &FORMS {
            let source = inputs.path(form.of);
            let recipe = form.argv.join(" ");
            let made = inputs.ensure(form.name, Some(form.of), &recipe, |out| {
                convert(form.argv, image_tool, &source, out)
            });
            if let Err(error) = made {
                // Whoever needs it has failed, and the table says so.
                tracing::warn!("{error:#}");
                inputs.known.remove(form.name);
            }
        }
        Ok(inputs)
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    pub(super) fn get(&self, name: &str) -> Result<&Input> {
        self.known
            .get(name)
            .with_context(|| format!("there is no input {name}"))
    }

    /// What vouches for a file: of a packed one, the digest of its index.
    pub(super) fn digest(&self, name: &str) -> Result<String> {
        if name.ends_with(".packed.zst") {
            return Ok(self.index(name)?.1.to_string());
        }
        Ok(format!("sha256:{}", self.get(name)?.sha256))
    }

    /// A packed image's index, and the digest that vouches for it.
    pub(super) fn index(&self, name: &str) -> Result<(Index, Digest)> {
        let mut file = fs::File::open(self.path(name))?;
        let length = file.metadata()?.len();
        let mut tail = Vec::new();
        file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES as u64)))?;
        file.read_to_end(&mut tail)?;
        let place = locate(&tail, length)?.index;
        let mut frame = vec![0; usize::try_from(place.end - place.start)?];
        file.read_exact_at(&mut frame, place.start)?;
        let digest = of_frame(&frame)?;
        let index = Index::parse(&frame).with_context(|| format!("reading {name}"))?;
        Ok((index, digest))
    }

    /// Bytes in the file of the chunks that another packed image has not at the same place.
    pub(super) fn changed(&self, from: &str, to: &str) -> Result<u64> {
        let ((old, _), (new, _)) = (self.index(from)?, self.index(to)?);
        let pairs = old.chunks.iter().zip(&new.chunks);
        let fresh = pairs.filter(|(old, new)| old.digest != new.digest && !new.zero);
        Ok(fresh.map(|(_, new)| u64::from(new.packed)).sum())
    }

    /// Reads a file through, so that it is served from memory.
    pub(super) fn warm(&self, name: &str) -> Result<()> {
        let mut file = fs::File::open(self.path(name))?;
        std::io::copy(&mut file, &mut std::io::sink())?;
        Ok(())
    }

    fn ensure(
        &mut self,
        name: &str,
        of: Option<&str>,
        recipe: &str,
        make: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<()> {
        let source = of.map(|of| self.get(of).map(|input| input.sha256.clone()));
        let source = source.transpose()?;
        let path = self.path(name);
        let fresh = |input: &&Input| input.source == source && input.recipe == recipe;
        if let Some(input) = self.known.get(name).filter(fresh) {
            let same = fs::metadata(&path).is_ok_and(|now| input.is(&now));
            if same || (path.exists() && input.sha256 == sha256(&path)?) {
                return Ok(());
            }
        }
        tracing::info!("making {}", path.display());
        let partial = self.dir.join(format!("{}.partial", of.unwrap_or(name)));
        let made = make(&partial).and_then(|()| Ok(fs::rename(&partial, &path)?));
        if made.is_err() {
            let _ = fs::remove_file(&partial);
        }
        made.with_context(|| format!("making {}", path.display()))?;
        let metadata = fs::metadata(&path)?;
        let input = Input {
            bytes: metadata.len(),
            sha256: sha256(&path)?,
            modified: metadata.mtime(),
            source,
            recipe: recipe.to_owned(),
        };
        self.known.insert(name.to_owned(), input);
        let text = serde_json::to_string_pretty(&self.known)?;
        Ok(fs::write(self.dir.join(MANIFEST), text)?)
    }
}

impl Input {
    fn is(&self, now: &fs::Metadata) -> bool {
        (self.bytes, self.modified) == (now.len(), now.mtime())
    }
}

/// Runs a converter. `gzip` chooses its output's name itself: `IN.partial`.
fn convert(argv: &[&str], tool: &Path, source: &Path, out: &Path) -> Result<()> {
    let (source, out) = (source.to_string_lossy(), out.to_string_lossy());
    let tool = tool.to_string_lossy();
    let argv: Vec<_> = argv
        .iter()
        .map(|word| match *word {
            "IN" => &*source,
            "OUT" => &*out,
            "TOOL" => &*tool,
            word => word,
        })
        .collect();
    run(&argv).map(drop)
}

fn of_frame(frame: &[u8]) -> Result<Digest> {
    let mut text = "sha256:".to_owned();
    for byte in Sha256::digest(frame) {
        write!(text, "{byte:02x}")?;
    }
    text.parse().context("naming a digest")
}

/// What `sha256sum` prints of a file.
pub(super) fn sha256(path: &Path) -> Result<String> {
    let path = path.to_string_lossy();
    let printed = run(&["sha256sum", &path])?;
    let digest = printed.split(' ').next().unwrap_or_default();
    ensure!(digest.len() == 64, "no digest in {printed:?}");
    Ok(digest.to_owned())
}
