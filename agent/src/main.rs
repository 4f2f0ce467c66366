//! Ferrite's agent: one static binary with several lives. Here it is only chosen which one.
//!
//! PID 1 of the ramdisk and its worker (`ramdisk/`), the host daemon (`daemon/`), and a tool at a
//! shell (`cli.rs`).

mod boot;
mod cli;
mod conductor;
mod daemon;
mod disk;
mod efi;
mod inspect;
mod kernel;
mod ramdisk;
mod root;
mod steps;
mod stream;
mod tls;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Ferrite's agent. As PID 1 it is the ramdisk's init; at a shell it inspects and writes disks.
#[derive(Debug, Parser)]
#[command(name = "ferrite-agent", version, arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    life: Life,
}

#[derive(Debug, Subcommand)]
enum Life {
    /// The child of PID 1 in the ramdisk; started by it alone.
    #[command(hide = true)]
    Worker,
    /// The host daemon on a deployed OS
    Daemon(daemon::DaemonArgs),
    Inspect(cli::InspectArgs),
    WriteImage(cli::WriteImageArgs),
    Erase(cli::EraseArgs),
}

fn main() -> ExitCode {
    // Before anything that could fail: PID 1 must not end, and its arguments are the kernel's.
    if std::process::id() == 1 {
        ramdisk::init::run();
    }
    log_to_stderr();
    let result = match Arguments::parse().life {
        Life::Worker => ramdisk::worker::run(),
        Life::Daemon(args) => daemon::run(&args),
        Life::Inspect(args) => cli::inspect(&args),
        Life::WriteImage(args) => cli::write_image(args),
        Life::Erase(args) => cli::erase(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Messages for people go to standard error; `FERRITE_LOG=debug` shows more.
fn log_to_stderr() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("FERRITE_LOG");
    tracing_subscriber::fmt()
        .with_env_filter(filter.unwrap_or_else(|_| "warn,ferrite_agent=info".into()))
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .with_target(false)
        .without_time()
        .init();
}
