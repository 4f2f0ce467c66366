//! `ferrite-lab swarm`: a swarm for people, against conductors that run already.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use clap::{Args, ValueEnum};

use super::{Operator, Pace, Rates, Settings, Swarm};

/// Plays servers: BMCs, firmware, agents and daemons.
#[derive(Debug, Args)]
pub struct SwarmArgs {
    /// How many.
    #[arg(long, default_value_t = 100)]
    hosts: u32,
    /// A conductor, https://HOST:PORT. Several: machines go on to the next when one is away.
    #[arg(long = "server", required = true)]
    servers: Vec<String>,
    /// Its netboot server, http://HOST:PORT.
    #[arg(long = "netboot", required = true)]
    netboot: Vec<String>,
    /// The conductor's state folder, with admin.token and ca.pem: enrols the machines.
    #[arg(long, value_name = "STATE_DIR")]
    enrol: Option<PathBuf>,
    /// Deploy them once they are available.
    #[arg(long, requires = "enrol")]
    deploy: bool,
    #[arg(long, default_value = "swarm-")]
    prefix: String,
    /// How fast they are.
    #[arg(long, value_enum, default_value = "server")]
    pace: PaceName,
    /// Of 1,000 BMC requests, how many fail.
    #[arg(long, default_value_t = 0)]
    bmc_faults: u32,
    /// Of 1,000 steps, how many fail.
    #[arg(long, default_value_t = 0)]
    step_faults: u32,
    /// Of 1,000 replies to agents, how many are lost.
    #[arg(long, default_value_t = 0)]
    lost_replies: u32,
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum PaceName {
    /// No waiting at all.
    Instant,
    /// 20 s of POST, 2 GiB at 200 MiB/s.
    Server,
}

/// Runs until it is interrupted, and says every few seconds how things are.
pub async fn run(args: &SwarmArgs) -> Result<()> {
    super::raise_file_limit()?;
    let swarm = Swarm::start(Settings {
        hosts: args.hosts,
        prefix: args.prefix.clone(),
        servers: args.servers.clone(),
        netboot: args.netboot.clone(),
        pace: match args.pace {
            PaceName::Instant => Pace::instant(),
            PaceName::Server => Pace::server(),
        },
        rates: Rates {
            bmc: args.bmc_faults,
            step: args.step_faults,
            reply: args.lost_replies,
        },
        seed: args.seed,
    })
    .await?;
    if let Some(state) = &args.enrol {
        let (token, ca) = (state.join("admin.token"), state.join("ca.pem"));
        let operator = Operator::new(&args.servers[0], &token, &ca)?;
        operator.add_all(&swarm, swarm.machines(), 16).await?;
        tracing::info!(hosts = args.hosts, "enrolled");
        if args.deploy {
            let patience = Duration::from_hours(1);
            let count = swarm.machines().len();
            operator.until_state("available", count, patience).await?;
            operator.provision_all(swarm.machines(), 16).await?;
            tracing::info!("every machine is to be deployed");
        }
    } else {
        for machine in swarm.machines() {
            let (name, address) = (&machine.name, swarm.bmc_address(machine));
            tracing::info!("{name} {address} {}", machine.mac);
        }
    }
    tokio::select! {
        () = report(&swarm) => {}
        stopped = tokio::signal::ctrl_c() => stopped?,
    }
    swarm.stop().await;
    Ok(())
}

async fn report(swarm: &Swarm) {
    loop {
        tokio::time::sleep(Duration::from_secs(5)).await;
        let deeds: Vec<_> = swarm.machines().iter().map(|m| m.deeds()).collect();
        let sum = |of: fn(&super::Deeds) -> u32| deeds.iter().map(of).sum::<u32>();
        let on = swarm.machines().iter().filter(|m| m.is_on()).count();
        tracing::info!(
            on,
            boots = sum(|d| d.firmware_boots),
            hellos = sum(|d| d.hellos),
            images = sum(|d| d.images_written),
            daemons = sum(|d| d.enrolled),
            doubled = swarm.doubled().len(),
            calls = ?swarm.calls(),
        );
    }
}
