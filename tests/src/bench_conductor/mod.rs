//! `ferrite-lab bench-conductor`: what a conductor does and costs with a thousand and with ten
//! thousand hosts, and the same calls to Ironic in the same run. Conductor, hosts and callers share
//! the machine's processors, so rates are what is left beside them.
//!
//! Figures go to `target/bench-conductor.json` as well.

mod ironic;
mod measure;
mod ours;
mod table;
mod watch;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Args;
use serde::Serialize;

use crate::conductor::target_dir;
use crate::swarm;

/// Prints what the conductor does and costs, and Ironic beside it.
#[derive(Debug, Args)]
pub struct BenchArgs {
    /// Fewer seconds and hosts: for a look, not for a figure.
    #[arg(long)]
    quick: bool,
    /// Sizes to grow through, in place of 1000, 2500, 5000, 10000.
    #[arg(long, value_delimiter = ',')]
    sizes: Vec<usize>,
    /// Leave the peer out.
    #[arg(long, conflicts_with = "only_peer")]
    no_peer: bool,
    /// The peer alone.
    #[arg(long)]
    only_peer: bool,
    /// The conductor's program; the one beside this program by default.
    #[arg(long, env = "FERRITE_BIN")]
    ferrite: Option<PathBuf>,
}

/// How long and how much.
#[derive(Debug, Clone)]
struct Times {
    sizes: Vec<usize>,
    /// Before something is measured that must be at rest.
    settle: Duration,
    /// Of the measuring at rest.
    rest: Duration,
    /// Of calls at full rate.
    flood: Duration,
    lists: usize,
    changes: usize,
    peer_nodes: usize,
    peer_lists: usize,
}

impl Times {
    fn new(args: &BenchArgs) -> Self {
        let mut times = if args.quick {
            Self {
                sizes: vec![200, 400],
                settle: Duration::from_secs(2),
                rest: Duration::from_secs(5),
                flood: Duration::from_secs(3),
                lists: 20,
                changes: 50,
                peer_nodes: 200,
                peer_lists: 5,
            }
        } else {
            Self {
                sizes: vec![1000, 2500, 5000, 10_000],
                settle: Duration::from_secs(5),
                // As long as the power of every host is asked for once, wherever the wave stood.
                rest: Duration::from_mins(1),
                flood: Duration::from_secs(10),
                lists: 100,
                changes: 200,
                peer_nodes: 1000,
                peer_lists: 20,
            }
        };
        if !args.sizes.is_empty() {
            times.sizes.clone_from(&args.sizes);
        }
        times
    }
}

/// Everything that was measured.
#[derive(Debug, Serialize)]
struct Report {
    cores: usize,
    ours: Option<ours::Figures>,
    peer: Option<ironic::Figures>,
}

/// Measures and prints.
pub async fn run(args: &BenchArgs) -> Result<()> {
    swarm::raise_file_limit()?;
    // An error says that it is installed already.
    drop(rustls::crypto::ring::default_provider().install_default());
    let times = Times::new(args);
    let target = target_dir()?;
    let ferrite = match &args.ferrite {
        Some(path) => path.clone(),
        None => std::env::current_exe()?.with_file_name("ferrite"),
    };
    let ours = if args.only_peer {
        None
    } else {
        let shown = ferrite.display();
        ensure!(ferrite.exists(), "{shown} is not there: build it first");
        let dir = tempfile::tempdir_in(&target).context("making a folder for the state")?;
        Some(ours::measure(&ferrite, dir.path(), &times).await?)
    };
    // What was measured is printed, whatever becomes of the peer.
    let (peer, failure) = if args.no_peer {
        (None, None)
    } else {
        match ironic::measure(&target.join("ironic"), &times).await {
            Ok(figures) => (Some(figures), None),
            Err(error) => (None, Some(error)),
        }
    };
    let report = Report {
        cores: std::thread::available_parallelism().map_or(1, usize::from),
        ours,
        peer,
    };
    let file = target.join("bench-conductor.json");
    std::fs::write(&file, serde_json::to_vec_pretty(&report)?)?;
    table::print(&report, &mut std::io::stdout().lock())?;
    tracing::info!("the figures lie in {}", file.display());
    failure.map_or(Ok(()), |error| Err(error.context("measuring Ironic")))
}
