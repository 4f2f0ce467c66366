//! The agent as a library: all of its lives, behind [`run`], and of the protocol the part that
//! knows no network and no thread ([`protocol`]).
//!
//! Not an interface for others to build on: it is there so that the lab's swarm says, word for
//! word, what the real agent says.

mod boot;
mod cli;
mod conductor;
mod daemon;
mod disk;
mod efi;
mod image;
mod inspect;
mod kernel;
mod listeners;
mod ramdisk;
mod root;
mod source_args;
mod steps;
mod stream;
mod tls;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// What is said to the conductor and what its answers mean, without the saying.
pub mod protocol {
    pub use crate::conductor::{CallError, read_reply};
    pub use crate::daemon::contact::{Call, Contact};
    pub use crate::ramdisk::poll::{Departure, backoff, departure_of};
    pub use crate::ramdisk::session::{Answer, Deed, Saved, Session};
    pub use crate::tls::pinned;
}

/// What must hold of the parsers of partition tables, whatever the bytes; for the fuzz targets.
pub mod parsers {
    pub use crate::disk::any::{gpt, mbr};
}

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
    WriteImage(Box<cli::WriteImageArgs>),
    Erase(cli::EraseArgs),
}

/// The program.
pub fn run() -> ExitCode {
    // Before anything that could fail: PID 1 must not end, and its arguments are the kernel's.
    if std::process::id() == 1 {
        ramdisk::init::run();
    }
    log_to_stderr();
    let result = match Arguments::parse().life {
        Life::Worker => ramdisk::worker::run(),
        Life::Daemon(args) => daemon::run(&args),
        Life::Inspect(args) => cli::inspect(&args),
        Life::WriteImage(args) => cli::write_image(&args),
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
