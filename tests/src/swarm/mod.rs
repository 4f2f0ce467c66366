//! A swarm: any number of simulated servers in one process, each with a BMC, firmware, a disk, the
//! real agent's protocol in its ramdisk, and the real daemon's on its OS.
//!
//! What is simulated takes its time ([`Pace`]) and fails as often as is said ([`Rates`]). Tickets
//! and orders are honest: a machine knows only what its firmware, its agent or its config drive
//! was told. It is no proof about hardware: for that there is the lab.

mod bmc;
pub mod command;
mod daemon;
mod dial;
mod kubeadm;
mod machine;
mod operator;
mod pace;
mod ramdisk;
mod served;
mod steps;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use ferrite_agent::protocol::CallError;
use tokio::task::JoinSet;

pub use bmc::{PASSWORD, USER};
pub use machine::{Deeds, Machine};
pub use operator::Operator;
pub use pace::{Pace, Rates};
pub use served::{Served, Usage, free_port};

/// What a swarm is made of.
#[derive(Debug, Clone)]
pub struct Settings {
    /// How many machines.
    pub hosts: u32,
    /// Their names begin with this; a number follows.
    pub prefix: String,
    /// `https://host:port` of conductors to try when the one that a boot medium names is away.
    pub servers: Vec<String>,
    /// `http://host:port` of their netboot servers, in the order in which firmware tries them.
    pub netboot: Vec<String>,
    /// How long things take.
    pub pace: Pace,
    /// How often things fail.
    pub rates: Rates,
    /// Of the chances.
    pub seed: u64,
}

impl Settings {
    /// Machines of a conductor, as fast as they can be and without faults.
    pub fn of(served: &Served, hosts: u32) -> Self {
        Self {
            hosts,
            prefix: "swarm-".to_owned(),
            servers: Vec::new(),
            netboot: vec![served.netboot.clone()],
            pace: Pace::instant(),
            rates: Rates::default(),
            seed: 1,
        }
    }
}

/// What all machines share.
#[derive(Debug)]
struct Shared {
    settings: Settings,
    machines: Vec<Arc<Machine>>,
    exchange: dial::Exchange,
    /// What firmware fetches with.
    firmware: reqwest::Client,
    counts: Counts,
}

/// Calls of all agents and daemons.
#[derive(Debug, Default)]
struct Counts {
    answered: AtomicU64,
    refused: AtomicU64,
    failed: AtomicU64,
}

impl Counts {
    fn call<R>(&self, machine: &Machine, answer: &Result<R, CallError>) {
        let count = match answer {
            Ok(_) => {
                machine.count_answer();
                &self.answered
            }
            Err(CallError::Unauthorized { .. }) => &self.refused,
            Err(_) => &self.failed,
        };
        count.fetch_add(1, Ordering::Relaxed);
    }
}

/// Calls so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Calls {
    /// Answered.
    pub answered: u64,
    /// Refused by 401 or 403.
    pub refused: u64,
    /// Without a usable answer.
    pub failed: u64,
}

/// The machines; they end with it.
#[derive(Debug)]
pub struct Swarm {
    shared: Arc<Shared>,
    bmc_port: u16,
    tasks: JoinSet<()>,
}

impl Swarm {
    /// Racks the machines. They are switched off, and nobody knows them yet.
    pub async fn start(settings: Settings) -> Result<Self> {
        let names = (0..settings.hosts).map(|n| (n, format!("{}{n}", settings.prefix)));
        let seed = settings.seed;
        let machines: Vec<_> = names
            .map(|(number, name)| Arc::new(Machine::new(number, name, seed)))
            .collect();
        let firmware = crate::http_client()?;
        let shared = Arc::new(Shared {
            settings,
            machines,
            exchange: dial::Exchange::default(),
            firmware,
            counts: Counts::default(),
        });
        let listener = tokio::net::TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0))
            .await
            .context("listening for the BMCs")?;
        let bmc_port = listener.local_addr()?.port();
        let mut tasks = JoinSet::new();
        let router = bmc::router(Arc::clone(&shared));
        tasks.spawn(async move {
            if let Err(error) = axum::serve(listener, router).await {
                tracing::error!(%error, "the BMCs ended");
            }
        });
        for machine in &shared.machines {
            tasks.spawn(Arc::clone(machine).run(Arc::clone(&shared)));
        }
        Ok(Self {
            shared,
            bmc_port,
            tasks,
        })
    }

    /// The machines, by number.
    pub fn machines(&self) -> &[Arc<Machine>] {
        &self.shared.machines
    }

    /// Where a machine's BMC is, in the form that hosts are enrolled with.
    pub fn bmc_address(&self, machine: &Machine) -> String {
        let at = SocketAddr::from((bmc::address(machine.number), self.bmc_port));
        format!("redfish+http://{at}/redfish/v1/Systems/{}", machine.number)
    }

    /// Calls of all agents and daemons so far.
    pub fn calls(&self) -> Calls {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let counts = &self.shared.counts;
        Calls {
            answered: read(&counts.answered),
            refused: read(&counts.refused),
            failed: read(&counts.failed),
        }
    }

    /// Calls of each machine that were answered so far.
    pub fn answered(&self) -> Vec<u64> {
        self.machines().iter().map(|m| m.answered()).collect()
    }

    /// What happened twice and must not: orders that were begun again.
    pub fn doubled(&self) -> Vec<String> {
        let mut found = Vec::new();
        for machine in self.machines() {
            let mut orders = machine.deeds().orders;
            orders.sort_unstable();
            for pair in orders.windows(2).filter(|pair| pair[0] == pair[1]) {
                found.push(format!("{} ran order {} twice", machine.name, pair[0]));
            }
        }
        found
    }

    /// Waits until `count` machines are as wanted; says how far it came when it takes too long.
    pub async fn until(
        &self,
        what: &str,
        count: usize,
        patience: Duration,
        is_so: impl Fn(&Machine) -> bool,
    ) -> Result<Duration> {
        let started = std::time::Instant::now();
        loop {
            let so = self.machines().iter().filter(|m| is_so(m)).count();
            if so >= count {
                return Ok(started.elapsed());
            }
            anyhow::ensure!(
                started.elapsed() < patience,
                "only {so} of {count} machines {what} within {patience:?}"
            );
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Ends every machine at once.
    pub async fn stop(mut self) {
        self.tasks.shutdown().await;
    }
}

/// Allows this process as many open files as it may have: a machine needs two.
pub fn raise_file_limit() -> Result<()> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).context("raising the number of open files")
}

/// The conductor's program that tests start: `FERRITE_BIN`, else what cargo built last.
pub fn ferrite() -> Result<std::path::PathBuf> {
    let default = crate::conductor::target_dir()?.join("debug/ferrite");
    let path = std::env::var_os("FERRITE_BIN").map_or(default, Into::into);
    anyhow::ensure!(path.exists(), "{} is not there", path.display());
    Ok(path)
}
