//! `ferrite-image`: builds what hosts boot. This file is the command line and nothing else.

use std::io::Write as _;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};

mod artifacts;
mod command;
mod firmware;
mod initramfs;
mod kernel;
mod modules;
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
