//! `ferrite-image`: builds what hosts boot. This file is the command line and nothing else.

use std::io::Write as _;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};

mod artifacts;
mod command;
mod esp;
mod firmware;
mod initramfs;
mod kernel;
mod modules;
mod os;
mod profile;
mod ramdisk;

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
    /// Build kernel and initramfs into a directory that the conductor serves
    Ramdisk(RamdiskArgs),
    /// Build the small Debian image that the demo and the tests deploy (needs root)
    Os(OsArgs),
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
}

#[derive(Debug, Args)]
struct OsArgs {
    /// The raw image; its variants and FILE.json are written beside it
    #[arg(long)]
    out: PathBuf,
    /// Size of the raw image, such as 1536MiB
    #[arg(long, default_value = "1536MiB", value_parser = parse_size)]
    size: u64,
    /// Directory that keeps downloads and what was made of them
    #[arg(long, default_value = "target/cache")]
    cache: PathBuf,
    /// Also write a compressed variant; may be given several times
    #[arg(long, value_enum)]
    compress: Vec<os::Compression>,
}

fn main() -> Result<()> {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .init();
    let cli = Cli::parse();
    let summary = match &cli.command {
        Command::Ramdisk(args) => ramdisk(args)?,
        Command::Os(args) => os_image(args)?,
    };
    if cli.json {
        writeln!(std::io::stdout().lock(), "{summary}").context("writing the summary")?;
    }
    Ok(())
}

fn ramdisk(args: &RamdiskArgs) -> Result<serde_json::Value> {
    let manifest = ramdisk::build(&ramdisk::Request {
        agent: &args.agent,
        out: &args.out,
        kernel_deb: args.kernel_deb.as_deref(),
        cache: &args.cache,
        firmware: &args.firmware,
    })?;
    manifest.write(&args.out)?;
    for missing in &manifest.drivers_missing_firmware {
        tracing::info!(driver = missing.driver, files = ?missing.files, "firmware not there");
    }
    let (kernel, initramfs) = (&manifest.files.kernel, &manifest.files.initramfs);
    tracing::info!(out = %args.out.display(), ?kernel, ?initramfs, "ramdisk built");
    serde_json::to_value(&manifest).context("summarising")
}

fn os_image(args: &OsArgs) -> Result<serde_json::Value> {
    let info = os::build(&os::Request {
        out: &args.out,
        size: args.size,
        cache: &args.cache,
        compress: &args.compress,
    })?;
    tracing::info!(image = ?info.image, variants = ?info.variants, "image built");
    serde_json::to_value(&info).context("summarising")
}

/// Reads `1536MiB`, `2GiB` or plain bytes.
fn parse_size(text: &str) -> Result<u64, String> {
    let (number, unit) = match text.find(|c: char| !c.is_ascii_digit()) {
        Some(at) => text.split_at(at),
        None => (text, ""),
    };
    let shift = match unit {
        "" => 0,
        "KiB" => 10,
        "MiB" => 20,
        "GiB" => 30,
        _ => return Err(format!("`{unit}` is no unit: use KiB, MiB or GiB")),
    };
    let number: u64 = number.parse().map_err(|_| format!("`{text}` is no size"))?;
    number
        .checked_mul(1 << shift)
        .ok_or_else(|| format!("`{text}` is too large"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_binary_units() {
        assert_eq!(parse_size("2500MiB"), Ok(2500 << 20));
        assert_eq!(parse_size("1GiB"), Ok(1 << 30));
        assert_eq!(parse_size("512"), Ok(512));
        assert!(parse_size("1GB").is_err() && parse_size("MiB").is_err());
        assert!(parse_size("99999999999GiB").is_err());
    }
}
