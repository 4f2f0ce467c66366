//! What a person runs at a shell: `inspect`, `write-image`, `erase`. The same code as in the
//! ramdisk, on a disk that the person names; thin, because the steps decide and do.

use std::io::{self, IsTerminal, Write};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use anyhow::{Context as _, anyhow, bail, ensure};
use clap::Args;
use ferrite_proto::image::{Compression, Format, ImageRef};
use ferrite_proto::inventory::Disk;
use ferrite_proto::problem::Problem;
use ferrite_proto::size::ByteSize;
use ferrite_proto::step::Progress;
use serde::Serialize;

use crate::image::{self, Demand};
use crate::inspect::{self, block};
use crate::kernel::Linux;
use crate::root::Root;
use crate::source_args::SourceArgs;
use crate::steps::{Context, erase as erase_step};

/// Says what this machine is; changes nothing.
#[derive(Debug, Args)]
pub(crate) struct InspectArgs {
    /// Print the inventory as JSON.
    #[arg(long)]
    json: bool,
    /// Read another file tree than the machine's own.
    #[arg(long, value_name = "DIR", default_value = "/")]
    root: PathBuf,
}

/// Writes an image to a disk; everything on the disk is lost.
#[derive(Debug, Args)]
pub(crate) struct WriteImageArgs {
    #[command(flatten)]
    source: SourceArgs,
    /// The disk, such as /dev/sdb, or a plain file that is large enough.
    #[arg(long, value_name = "DEVICE")]
    disk: PathBuf,
    /// What the file holds once decompressed: the disk's bytes, qcow2, or what `ferrite-image
    /// pack` writes.
    #[arg(long, value_name = "raw|qcow2|packed", default_value = "raw", value_parser = format)]
    format: Format,
    /// Read all of it back before the disk becomes bootable.
    #[arg(long)]
    verify: bool,
    /// How the file is compressed; told from its bytes if not said.
    #[arg(long, value_name = "none|gzip|zstd|xz|bzip2|lz4", value_parser = compression)]
    compression: Option<Compression>,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    consent: Consent,
}

/// Makes a disk forget its tables and signatures; its data is not overwritten.
#[derive(Debug, Args)]
pub(crate) struct EraseArgs {
    /// The disk, such as /dev/sdb.
    #[arg(long, value_name = "DEVICE")]
    disk: PathBuf,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    consent: Consent,
}

#[derive(Debug, Args)]
struct Consent {
    /// Say what would be touched, and touch nothing.
    #[arg(long, conflicts_with = "yes")]
    dry_run: bool,
    /// Go on: what is on the disk may be lost.
    #[arg(long)]
    yes: bool,
}

impl Consent {
    /// Says what will be touched. Whether to go on; an error when nobody has said so.
    fn given(&self, what: &str) -> anyhow::Result<bool> {
        if self.dry_run {
            writeln!(io::stdout().lock(), "would {what}")?;
            return Ok(false);
        }
        ensure!(self.yes, "this would {what}; add --yes to go on");
        writeln!(io::stderr().lock(), "{what}")?;
        Ok(true)
    }
}

/// `inspect`.
pub(crate) fn inspect(args: &InspectArgs) -> anyhow::Result<()> {
    let inventory = inspect::inspect(&Root::at(&args.root));
    if args.json {
        return print_json(&inventory);
    }
    io::stdout()
        .lock()
        .write_all(inspect::table(&inventory).as_bytes())
        .or_else(closed)
}

/// `write-image`.
pub(crate) fn write_image(args: &WriteImageArgs) -> anyhow::Result<()> {
    let root = Root::system();
    let disk = chosen(&root, &args.disk)?;
    let (image, terms) = args.source.read()?;
    let image = ImageRef {
        format: args.format,
        compression: args.compression,
        ..image
    };
    terms.check(&image)?;
    let what = format!("overwrite {} with {}", describe(&disk), image.url);
    if !args.consent.given(&what)? {
        return Ok(());
    }
    let demand = Demand {
        room: 0,
        verify: args.verify,
    };
    let shown = Shown::new("write-image");
    let context = shown.context(&root);
    let written = image::write(&image, &disk, demand, &terms, &context);
    shown.end()?;
    let written = written.map_err(explained)?;
    if args.json {
        return print_json(&written);
    }
    writeln!(
        io::stdout().lock(),
        "{}: {} of image in {:.1} s ({} fetched, {} sent, {} zeroed, {} right already)",
        written.disk,
        ByteSize(written.bytes_image),
        written.seconds,
        ByteSize(written.bytes_read),
        ByteSize(written.bytes_written),
        ByteSize(written.bytes_zeroed),
        ByteSize(written.bytes_skipped)
    )
    .or_else(closed)
}

/// `erase`.
pub(crate) fn erase(args: &EraseArgs) -> anyhow::Result<()> {
    let root = Root::system();
    let disk = chosen(&root, &args.disk)?;
    let shown = Shown::new("erase");
    let context = shown.context(&root);
    let plan = erase_step::Plan::new(&disk, &context).map_err(explained)?;
    let what = format!(
        "overwrite {} at {} places of {}: tables, signatures and boot code",
        ByteSize(plan.bytes()),
        plan.places(),
        describe(&disk)
    );
    if !args.consent.given(&what)? {
        return Ok(());
    }
    let erased = erase_step::carry_out(vec![plan], &context);
    shown.end()?;
    let erased = erased.map_err(explained)?;
    let erased = erased.first().context("no disk was erased")?;
    if args.json {
        return print_json(erased);
    }
    let bytes = ByteSize(erased.bytes);
    writeln!(io::stdout().lock(), "{}: {bytes} erased", erased.name).or_else(closed)
}

/// The disk that a person names. In use and read-only is refused; one that can be taken out is
/// not, because here somebody chose it by name.
fn chosen(root: &Root, path: &Path) -> anyhow::Result<Disk> {
    let shown = path.display();
    let path = std::fs::canonicalize(path).with_context(|| format!("finding {shown}"))?;
    let name = path
        .to_str()
        .with_context(|| format!("{shown} is not UTF-8"))?;
    let kind = std::fs::metadata(&path)?.file_type();
    if kind.is_file() {
        return Ok(Disk {
            name: name.to_owned(),
            size_bytes: std::fs::metadata(&path)?.len(),
            ..Disk::default()
        });
    }
    ensure!(
        kind.is_block_device(),
        "{shown} is neither a disk nor a file"
    );
    let Some(disk) = block::one(root, &block::kernel_name(name)) else {
        bail!("{shown} is a partition or not a disk: name the whole disk");
    };
    if let Some(why) = &disk.in_use {
        bail!("{shown} is in use: {why}");
    }
    ensure!(!disk.read_only, "{shown} is read-only");
    ensure!(disk.size_bytes > 0, "{shown} has no medium");
    Ok(disk)
}

fn describe(disk: &Disk) -> String {
    let serial = disk.serial.as_deref().unwrap_or("none");
    let size = ByteSize(disk.size_bytes);
    format!("{} ({size}, serial {serial})", disk.name)
}

/// Progress on a terminal: one line that is written again and again.
struct Shown {
    live: bool,
    tell: Box<dyn Fn(Progress) + Sync>,
    cancelled: AtomicBool,
}

impl Shown {
    fn new(step: &'static str) -> Self {
        let live = io::stderr().is_terminal();
        let tell = move |progress: Progress| {
            if live {
                let text = crate::ramdisk::message::progress(step, &progress);
                let _ = write!(io::stderr().lock(), "\r\x1b[K{text}");
            }
        };
        Self {
            live,
            tell: Box::new(tell),
            // A person ends the process instead; the disk then does not boot, as after any break.
            cancelled: AtomicBool::new(false),
        }
    }

    fn context<'a>(&'a self, root: &'a Root) -> Context<'a> {
        Context {
            root,
            kernel: &Linux,
            progress: &*self.tell,
            cancelled: &self.cancelled,
        }
    }

    fn end(&self) -> io::Result<()> {
        if self.live {
            writeln!(io::stderr().lock())?;
        }
        Ok(())
    }
}

fn print_json(value: &impl Serialize) -> anyhow::Result<()> {
    let mut text = serde_json::to_string_pretty(value)?;
    text.push('\n');
    io::stdout()
        .lock()
        .write_all(text.as_bytes())
        .or_else(closed)
}

/// Whoever pipes into `head` has seen enough; that is no failure.
fn closed(error: io::Error) -> anyhow::Result<()> {
    if error.kind() == io::ErrorKind::BrokenPipe {
        Ok(())
    } else {
        Err(error.into())
    }
}

fn explained(problem: Problem) -> anyhow::Error {
    if problem.advice.is_empty() {
        return anyhow!(problem);
    }
    anyhow!("{problem}; {}", problem.advice)
}

fn format(text: &str) -> Result<Format, String> {
    match text {
        "raw" => Ok(Format::Raw),
        "qcow2" => Ok(Format::Qcow2),
        "packed" => Ok(Format::Packed),
        other => Err(format!("{other:?} is none of raw, qcow2, packed")),
    }
}

fn compression(text: &str) -> Result<Compression, String> {
    match text {
        "none" => Ok(Compression::None),
        "gzip" => Ok(Compression::Gzip),
        "zstd" => Ok(Compression::Zstd),
        "xz" => Ok(Compression::Xz),
        "bzip2" => Ok(Compression::Bzip2),
        "lz4" => Ok(Compression::Lz4),
        other => Err(format!(
            "{other:?} is none of none, gzip, zstd, xz, bzip2, lz4"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_touched_without_consent() {
        let none = Consent {
            dry_run: false,
            yes: false,
        };
        let error = none.given("overwrite /dev/sdb").unwrap_err().to_string();
        assert!(
            error.contains("overwrite /dev/sdb") && error.contains("--yes"),
            "{error}"
        );
        let dry = Consent {
            dry_run: true,
            yes: false,
        };
        assert!(!dry.given("overwrite /dev/sdb").unwrap());
    }

    #[test]
    fn folders_devices_and_missing_files_are_no_disks() {
        let root = Root::system();
        let refused = |path: &str| chosen(&root, Path::new(path)).unwrap_err().to_string();
        assert!(refused("/").contains("neither"), "{}", refused("/"));
        assert!(refused("/dev/null").contains("neither"));
        assert!(refused("/nonexistent").contains("/nonexistent"));
    }
}
