//! `ferrite-image`: builds what hosts boot, and packs what they are given. This file is the command
//! line and nothing else.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::str::FromStr as _;

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};
use ferrite_imaging::packed::{self, PublicKey, SigningKey};
use ferrite_proto::digest::Digest;
use ferrite_proto::size::ByteSize;

mod artifacts;
mod command;
mod esp;
mod firmware;
mod info;
mod initramfs;
mod iso;
mod kernel;
mod modules;
mod os;
mod pack;
mod profile;
mod ramdisk;
mod rescue;
mod source;
mod uki;

#[derive(Debug, Parser)]
#[command(name = "ferrite-image", version, about)]
struct Cli {
    /// Print a summary as JSON on standard output
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Build all boot files (kernel, initramfs, UKI, ISO) into a directory that the conductor
    /// serves
    Ramdisk(RamdiskArgs),
    /// Build a unified kernel image from a kernel and an initramfs
    Uki(UkiArgs),
    /// Build a UEFI-bootable ISO for virtual media from a UKI
    Iso(IsoArgs),
    /// Build the small Debian image that the demo and the tests deploy (needs root)
    Os(OsArgs),
    /// Pack a disk image, so that hosts fetch it in parts, check each, and write it on all cores;
    /// `zstd -d` still gives the image
    Pack(PackArgs),
    /// Say what an image file is, and what to give as its digest
    Info(InfoArgs),
}

#[derive(Debug, Args)]
struct RamdiskArgs {
    /// The static agent binary, which becomes /init
    #[arg(long)]
    agent: PathBuf,
    /// Directory for the results
    #[arg(long)]
    out: PathBuf,
    /// A kernel package to use instead of Debian's current one
    #[arg(long)]
    kernel_deb: Option<PathBuf>,
    /// Directory that keeps downloads and what was made of them
    #[arg(long, default_value = "target/cache")]
    cache: PathBuf,
    /// Directories with firmware in the layout of linux-firmware
    #[arg(long)]
    firmware: Vec<PathBuf>,
    /// Leave out the rescue ramdisk (shell, SSH server, tools for disks)
    #[arg(long)]
    no_rescue: bool,
}

#[derive(Debug, Args)]
struct UkiArgs {
    #[arg(long)]
    kernel: PathBuf,
    #[arg(long)]
    initramfs: PathBuf,
    /// The kernel's arguments, sealed into the image
    #[arg(long, default_value = profile::UKI_COMMAND_LINE)]
    cmdline: String,
    /// What the image says its kernel is
    #[arg(long, default_value = "unknown")]
    release: String,
    #[arg(long)]
    out: PathBuf,
}

#[derive(Debug, Args)]
struct IsoArgs {
    #[arg(long)]
    uki: PathBuf,
    /// The ISO; a manifest.json beside it learns of it
    #[arg(long)]
    out: PathBuf,
}

#[derive(Debug, Args)]
struct OsArgs {
    /// The raw image; its variants and FILE.json are written beside it
    #[arg(long)]
    out: PathBuf,
    /// Size of the raw image, such as 1536MiB
    #[arg(long, default_value = "1536MiB", value_parser = ByteSize::from_str)]
    size: ByteSize,
    /// Fill the root file system up to this much data, for measurements
    #[arg(long, value_parser = ByteSize::from_str)]
    data: Option<ByteSize>,
    /// kubeadm, which makes the image a Kubernetes node's, with containerd and a kubelet's unit
    #[arg(long, value_name = "FILE", requires = "kubelet")]
    kubeadm: Option<PathBuf>,
    /// The kubelet of such an image
    #[arg(long, value_name = "FILE", requires = "kubeadm")]
    kubelet: Option<PathBuf>,
    /// Directory that keeps downloads and what was made of them
    #[arg(long, default_value = "target/cache")]
    cache: PathBuf,
    /// Also write a compressed variant; may be given several times
    #[arg(long, value_enum)]
    compress: Vec<os::Compression>,
}

#[derive(Debug, Args)]
struct PackArgs {
    /// The image: raw, or raw compressed with gzip, zstd, xz, bzip2 or lz4 (told by its content)
    image: PathBuf,
    /// The packed image; by custom its name ends in .zst
    out: PathBuf,
    /// What the image holds once decompressed
    #[arg(long, value_enum, default_value_t)]
    format: source::Format,
    /// What the image's file must be: sha256:…, sha512:… or blake3:…
    #[arg(long)]
    digest: Option<Digest>,
    /// How hard to compress: 1 is fast, 19 is small
    #[arg(long, default_value_t = packed::LEVEL, value_parser = level())]
    level: i32,
    /// How many threads compress; one for each processor unless said
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=256))]
    threads: Option<u16>,
    /// Sign the index with this key: of `openssl genpkey -algorithm ed25519` or `minisign -G -W`
    #[arg(long, value_name = "KEYFILE")]
    sign: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct InfoArgs {
    /// The image
    image: PathBuf,
    /// Read all of a packed image and check each chunk
    #[arg(long)]
    verify: bool,
    /// Check that this key signed it: minisign's public key, the line that begins with RW
    #[arg(long, value_name = "KEY")]
    public_key: Option<PublicKey>,
}

fn main() -> Result<()> {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .with_writer(std::io::stderr)
        .init();
    let cli = Cli::parse();
    let summary = match &cli.command {
        Command::Ramdisk(args) => ramdisk(args)?,
        Command::Uki(args) => uki_file(args)?,
        Command::Iso(args) => iso_file(args)?,
        Command::Os(args) => os_image(args)?,
        Command::Pack(args) => return pack_image(args, cli.json),
        Command::Info(args) => {
            let info = info::info(&args.image, args.verify, args.public_key.as_ref())?;
            return print(&info, cli.json);
        }
    };
    if cli.json {
        writeln!(std::io::stdout().lock(), "{summary}").context("writing the summary")?;
    }
    Ok(())
}

fn ramdisk(args: &RamdiskArgs) -> Result<serde_json::Value> {
    let mut manifest = ramdisk::build(&ramdisk::Request {
        agent: &args.agent,
        out: &args.out,
        kernel_deb: args.kernel_deb.as_deref(),
        cache: &args.cache,
        firmware: &args.firmware,
    })?;
    let (uki, iso) = (args.out.join("ramdisk.efi"), args.out.join("ramdisk.iso"));
    let image = build_uki(
        &args.out.join("vmlinuz"),
        &[&args.out.join("initramfs.img")],
        profile::UKI_COMMAND_LINE,
        &manifest.kernel_release,
    )?;
    artifacts::write_whole(&uki, &image)?;
    manifest.files.uki = Some(artifacts::describe(&uki)?);
    let built = iso::build(&image)?;
    artifacts::write_whole(&iso, &built.bytes)?;
    manifest.set_iso(artifacts::describe(&iso)?, built.config);
    if !args.no_rescue {
        add_rescue(&args.out, &mut manifest)?;
    }
    manifest.write(&args.out)?;
    let missing = &manifest.drivers_missing_firmware;
    let drivers: Vec<&str> = missing.iter().map(|one| one.driver.as_str()).collect();
    if !drivers.is_empty() {
        let (count, names) = (drivers.len(), drivers.join(" "));
        tracing::info!(
            count,
            "drivers without their firmware (see --firmware): {names}"
        );
    }
    tracing::info!(out = %args.out.display(), "boot files built");
    serde_json::to_value(&manifest).context("summarising")
}

/// The archive for the network, and an ISO that has it all.
fn add_rescue(out: &Path, manifest: &mut artifacts::Manifest) -> Result<()> {
    let (archive, iso) = (out.join("rescue.img"), out.join("rescue.iso"));
    artifacts::write_whole(&archive, &rescue::build()?)?;
    manifest.files.rescue = Some(artifacts::describe(&archive)?);
    let image = build_uki(
        &out.join("vmlinuz"),
        &[&out.join("initramfs.img"), &archive],
        profile::UKI_COMMAND_LINE,
        &manifest.kernel_release,
    )?;
    let built = iso::build(&image)?;
    artifacts::write_whole(&iso, &built.bytes)?;
    manifest.set_rescue_iso(artifacts::describe(&iso)?, built.config);
    Ok(())
}

fn build_uki(kernel: &Path, archives: &[&Path], cmdline: &str, release: &str) -> Result<Vec<u8>> {
    let read =
        |path: &Path| std::fs::read(path).with_context(|| format!("reading {}", path.display()));
    let archives: Vec<_> = archives
        .iter()
        .map(|path| read(path))
        .collect::<Result<_>>()?;
    uki::build(&uki::Parts {
        stub: &uki::read_stub()?,
        kernel: &read(kernel)?,
        initramfs: &archives.concat(),
        command_line: cmdline,
        kernel_release: release,
    })
}

fn uki_file(args: &UkiArgs) -> Result<serde_json::Value> {
    let image = build_uki(
        &args.kernel,
        &[&args.initramfs],
        &args.cmdline,
        &args.release,
    )?;
    artifacts::write_whole(&args.out, &image)?;
    let entry = artifacts::describe(&args.out)?;
    tracing::info!(?entry, "UKI built");
    serde_json::to_value(&entry).context("summarising")
}

fn iso_file(args: &IsoArgs) -> Result<serde_json::Value> {
    let uki =
        std::fs::read(&args.uki).with_context(|| format!("reading {}", args.uki.display()))?;
    let iso = iso::build(&uki)?;
    artifacts::write_whole(&args.out, &iso.bytes)?;
    let entry = artifacts::describe(&args.out)?;
    let dir = args.out.parent().unwrap_or(Path::new("."));
    if let Some(mut manifest) = artifacts::Manifest::read(dir)? {
        manifest.set_iso(entry.clone(), iso.config);
        manifest.write(dir)?;
    }
    tracing::info!(?entry, config = ?iso.config, "ISO built");
    serde_json::to_value((&entry, iso.config)).context("summarising")
}

fn os_image(args: &OsArgs) -> Result<serde_json::Value> {
    let info = os::build(&os::Request {
        out: &args.out,
        size: args.size.0,
        data: args.data.map(|data| data.0),
        node: node_programs(args),
        cache: &args.cache,
        compress: &args.compress,
    })?;
    tracing::info!(image = ?info.image, variants = ?info.variants, "image built");
    serde_json::to_value(&info).context("summarising")
}

/// The command line has both or none.
fn node_programs(args: &OsArgs) -> Option<os::Node<'_>> {
    Some(os::Node {
        kubeadm: args.kubeadm.as_deref()?,
        kubelet: args.kubelet.as_deref()?,
    })
}

fn level() -> clap::builder::RangedI64ValueParser<i32> {
    clap::value_parser!(i32).range(1..=19)
}

fn pack_image(args: &PackArgs, json: bool) -> Result<()> {
    let key = args.sign.as_ref().map(signing_key);
    let key = key.transpose()?;
    pack::pack(&pack::Request {
        source: source::Source {
            path: &args.image,
            format: args.format,
            digest: args.digest.as_ref(),
        },
        out: &args.out,
        level: args.level,
        threads: args.threads.map_or_else(info::threads, usize::from),
        key: key.as_ref(),
    })?;
    // What is said is what a reader finds.
    let info = info::info(&args.out, false, None)?;
    print(&info, json)?;
    if let Some(key) = &key {
        tracing::info!(public_key = key.public(), "signed");
    }
    Ok(())
}

fn signing_key(path: &PathBuf) -> Result<SigningKey> {
    let shown = path.display();
    let text = std::fs::read_to_string(path).with_context(|| format!("reading {shown}"))?;
    SigningKey::parse(&text).with_context(|| format!("{shown} is no key to sign with"))
}

fn print(info: &info::Info, json: bool) -> Result<()> {
    let mut out = std::io::stdout().lock();
    if json {
        serde_json::to_writer(&mut out, info)?;
        return writeln!(out).context("writing the summary");
    }
    writeln!(out, "{info}").context("writing the summary")
}
