//! Ferrite's own figures: one conductor, one swarm that grows from size to size.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use ferrite_proto::agent_api::{CHECK_IN, CheckIn, CloudInit, CloudInitStage};
use jiff::Timestamp;
use reqwest::Method;
use serde::Serialize;

use super::measure::{Flood, Latency, flood, mib, millis, rate, repeat, share};
use super::{Times, watch};
use crate::swarm::{Machine, Operator, Pace, Served, Settings, Swarm, Usage};

/// Callers of the flood of check-ins.
const CALLERS: usize = 32;
/// How long a wave of hosts may take.
const PATIENCE: Duration = Duration::from_mins(10);

/// After how long without a further host nothing more is expected after a restart.
const STANDSTILL: Duration = Duration::from_mins(1);

/// What it came to.
#[derive(Debug, Default, Serialize)]
pub(super) struct Figures {
    /// Resident without a host, MiB.
    pub(super) idle_rss_mib: f64,
    /// Percent of a processor without a host.
    pub(super) idle_cpu_percent: f64,
    /// Hosts a second, one client, stored and left alone, as the peer's nodes are.
    pub(super) creates_stored: f64,
    /// Hosts a second, one client.
    pub(super) creates_1: f64,
    /// Hosts a second, 16 clients.
    pub(super) creates_16: f64,
    /// Processor time of one, and of what begins with it, milliseconds; one client.
    pub(super) create_cpu_ms: f64,
    /// Percent of the machine that others used meanwhile: neither conductor nor swarm.
    pub(super) others_percent: f64,
    /// Figures of each size.
    pub(super) sizes: Vec<Size>,
    /// The deployments.
    pub(super) deployments: Deployments,
    /// Check-ins at full rate.
    pub(super) heartbeats: Flood,
    /// Processor time of a check-in, TLS and all, milliseconds.
    pub(super) heartbeat_cpu_ms: f64,
    /// After a kill during the check-ins: how much older the last contact is that the conductor
    /// has on its disk than the last one it answered, of the worst host, seconds.
    pub(super) heartbeat_lost_seconds: f64,
}

/// A size's figures.
#[derive(Debug, Default, Serialize)]
pub(super) struct Size {
    /// Hosts.
    pub(super) hosts: usize,
    /// Hosts a second at this wave's enrolment, 16 clients, with all of them being taken in.
    pub(super) enrols: f64,
    /// From the first enrolment of the wave until all hosts are available, seconds.
    pub(super) available_seconds: f64,
    /// Processor time of one host's way from enrolment to available, milliseconds.
    pub(super) available_cpu_ms: f64,
    /// Resident, MiB.
    pub(super) rss_mib: f64,
    /// Above the empty conductor's, KiB a host.
    pub(super) rss_kib_per_host: f64,
    /// Percent of a processor with every agent and daemon in touch and power polled.
    pub(super) rest_cpu_percent: f64,
    /// Calls of agents and daemons answered a second meanwhile.
    pub(super) rest_calls: f64,
    /// `GET /v1/hosts?limit=1000`.
    pub(super) list: Latency,
    /// Processor time of one such list.
    pub(super) list_cpu_ms: f64,
    /// Change to watcher.
    pub(super) event: Option<Latency>,
    /// `kill -9`, start, to the first good answer.
    pub(super) restart_ms: f64,
    /// Processor time until then, milliseconds.
    pub(super) restart_cpu_ms: f64,
    /// And until every host's agent or daemon has had an answer, but for the silent ones.
    pub(super) restart_all_seconds: f64,
    /// Hosts of which none has had one.
    pub(super) restart_silent: usize,
}

/// Many deployments at once.
#[derive(Debug, Default, Serialize)]
pub(super) struct Deployments {
    /// How many.
    pub(super) hosts: usize,
    /// From the first request until the last host is provisioned, seconds.
    pub(super) seconds: f64,
    /// What the simulated disk and OS alone take, seconds.
    pub(super) simulated_seconds: f64,
    /// Processor time, seconds.
    pub(super) cpu_seconds: f64,
    /// Resident at the end, MiB.
    pub(super) rss_mib: f64,
    /// Orders that ran twice; must be none.
    pub(super) doubled: usize,
}

/// The bench's own firmware: short, so that the conductor is what is measured.
fn pace() -> Pace {
    Pace {
        post: Duration::from_secs(5),
        netboot: Duration::from_secs(2),
        inspect: Duration::from_secs(1),
        erase: Duration::from_secs(1),
        ..Pace::server()
    }
}

/// Measures with the conductor at `binary`, its state below `dir`.
pub(super) async fn measure(binary: &Path, dir: &Path, times: &Times) -> Result<Figures> {
    let served = Served::start(binary, &dir.join("driven"), "").await?;
    let most = times.sizes.iter().copied().max().unwrap_or(0);
    let swarm = Swarm::start(Settings {
        pace: pace(),
        ..Settings::of(&served, u32::try_from(most)?)
    })
    .await?;
    let mut bench = Bench {
        operator: served.operator()?,
        served,
        swarm,
        times,
        figures: Figures::default(),
    };
    let (started, everybody, own) = (Instant::now(), Usage::of_everybody()?, bench.own()?);
    bench.idle().await?;
    bench.stored(binary, &dir.join("stored")).await?;
    let mut enrolled = 0;
    for (turn, &hosts) in times.sizes.iter().enumerate() {
        bench.size(enrolled, hosts).await?;
        enrolled = hosts;
        if turn == 0 {
            bench.deploy(hosts).await?;
            bench.heartbeats(hosts).await?;
        }
    }
    let own = bench.own()?.saturating_sub(own);
    let others = Usage::of_everybody()?
        .saturating_sub(everybody)
        .saturating_sub(own);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    bench.figures.others_percent =
        share(Duration::ZERO, others, started.elapsed()) / f64::from(u32::try_from(cores)?);
    let Bench { swarm, figures, .. } = bench;
    swarm.stop().await;
    Ok(figures)
}

struct Bench<'a> {
    served: Served,
    swarm: Swarm,
    operator: Operator,
    times: &'a Times,
    figures: Figures,
}

impl Bench<'_> {
    /// Processor time of the swarm and of every conductor so far.
    fn own(&self) -> Result<Duration> {
        Ok(Usage::own_and_of_ended_children()? + self.served.usage()?.cpu)
    }

    async fn idle(&mut self) -> Result<()> {
        tokio::time::sleep(self.times.settle).await;
        let before = self.served.usage()?;
        tokio::time::sleep(self.times.settle).await;
        let after = self.served.usage()?;
        self.figures.idle_rss_mib = mib(after.rss);
        self.figures.idle_cpu_percent = share(before.cpu, after.cpu, self.times.settle);
        tracing::info!(rss_mib = self.figures.idle_rss_mib, "idle");
        Ok(())
    }

    /// Creates alone, at a conductor of their own: driving a host takes more than storing it.
    async fn stored(&mut self, binary: &Path, dir: &Path) -> Result<()> {
        let served = Served::start(binary, dir, "").await?;
        let operator = served.operator()?;
        let half = self.times.sizes.first().map_or(0, |hosts| hosts / 2);
        let machines = &self.swarm.machines()[..half];
        let started = Instant::now();
        for machine in machines {
            operator.add_paused(&self.swarm, machine).await?;
        }
        self.figures.creates_stored = rate(machines.len(), started.elapsed());
        served.kill()
    }

    /// Grows to `hosts` hosts and measures there.
    async fn size(&mut self, enrolled: usize, hosts: usize) -> Result<()> {
        let mut size = Size {
            hosts,
            ..Size::default()
        };
        let (started, before) = (Instant::now(), self.served.usage()?.cpu);
        size.enrols = self.enrol(enrolled, hosts).await?;
        tracing::info!(hosts, per_second = size.enrols, "enrolled");
        // A host with a daemon has been available long ago.
        let deployed = self.figures.deployments.hosts;
        self.operator
            .until_state("available", hosts - deployed, PATIENCE)
            .await?;
        size.available_seconds = started.elapsed().as_secs_f64();
        let spent = self.served.usage()?.cpu.saturating_sub(before);
        size.available_cpu_ms = millis(spent / u32::try_from(hosts - enrolled)?);
        tracing::info!(
            hosts,
            seconds = size.available_seconds,
            cpu_ms_a_host = size.available_cpu_ms,
            "all are available"
        );
        tokio::time::sleep(self.times.settle).await;
        self.at_rest(&mut size).await?;
        self.lists(&mut size).await?;
        self.events(&mut size).await;
        self.restart(&mut size).await?;
        self.figures.sizes.push(size);
        Ok(())
    }

    async fn enrol(&mut self, enrolled: usize, hosts: usize) -> Result<f64> {
        let machines = &self.swarm.machines()[enrolled..hosts];
        let (first, rest) = if enrolled == 0 {
            machines.split_at(machines.len() / 2)
        } else {
            machines.split_at(0)
        };
        if !first.is_empty() {
            let (started, before) = (Instant::now(), self.served.usage()?.cpu);
            self.operator.add_all(&self.swarm, first, 1).await?;
            self.figures.creates_1 = rate(first.len(), started.elapsed());
            let spent = self.served.usage()?.cpu.saturating_sub(before);
            self.figures.create_cpu_ms = millis(spent / u32::try_from(first.len())?);
        }
        let started = Instant::now();
        self.operator.add_all(&self.swarm, rest, 16).await?;
        let enrols = rate(rest.len(), started.elapsed());
        if enrolled == 0 {
            self.figures.creates_16 = enrols;
        }
        Ok(enrols)
    }

    async fn at_rest(&self, size: &mut Size) -> Result<()> {
        let (before, calls) = (self.served.usage()?, self.swarm.calls().answered);
        let started = Instant::now();
        tokio::time::sleep(self.times.rest).await;
        let (after, long) = (self.served.usage()?, started.elapsed());
        size.rss_mib = mib(after.rss);
        let hosts = u32::try_from(size.hosts)?;
        size.rss_kib_per_host =
            (size.rss_mib - self.figures.idle_rss_mib) * 1024.0 / f64::from(hosts);
        size.rest_cpu_percent = share(before.cpu, after.cpu, long);
        let calls = self.swarm.calls().answered - calls;
        size.rest_calls = rate(usize::try_from(calls)?, long);
        tracing::info!(
            hosts,
            rss_mib = size.rss_mib,
            cpu_percent = size.rest_cpu_percent,
            calls = size.rest_calls,
            "at rest"
        );
        Ok(())
    }

    async fn lists(&self, size: &mut Size) -> Result<()> {
        let list = || async {
            let request = self.operator.request(Method::GET, "/v1/hosts?limit=1000");
            let response = request.send().await?.error_for_status()?;
            response.bytes().await?;
            Ok(())
        };
        repeat(3, list).await?;
        let before = self.served.usage()?.cpu;
        size.list = repeat(self.times.lists, list).await?;
        let spent = self.served.usage()?.cpu.saturating_sub(before);
        size.list_cpu_ms = millis(spent / u32::try_from(self.times.lists)?);
        tracing::info!(hosts = size.hosts, list = ?size.list, cpu_ms = size.list_cpu_ms, "lists");
        Ok(())
    }

    /// A figure that cannot be had is missed, not the end of the others.
    async fn events(&self, size: &mut Size) {
        let machines = &self.swarm.machines()[..size.hosts.min(200)];
        match watch::latency(&self.operator, machines, self.times.changes).await {
            Ok(latency) => {
                tracing::info!(hosts = size.hosts, ?latency, "change to watcher");
                size.event = Some(latency);
            }
            Err(error) => tracing::error!("events: {error:#}"),
        }
    }

    async fn restart(&self, size: &mut Size) -> Result<()> {
        let before = self.swarm.answered();
        self.served.kill()?;
        let started = Instant::now();
        self.served.launch()?;
        let ready = self.served.until_ready(PATIENCE).await?;
        size.restart_ms = millis(ready);
        size.restart_cpu_ms = millis(self.served.usage()?.cpu);
        let machines = &self.swarm.machines()[..size.hosts];
        let heard = |machine: &Arc<Machine>| {
            let at = usize::try_from(machine.number).unwrap_or(usize::MAX);
            before.get(at).is_some_and(|n| machine.answered() > *n)
        };
        // An agent that was silent for too long is forgotten, and heard again only after a boot.
        let silent = || machines.iter().filter(|m| !heard(m)).count();
        let (mut left, mut since) = (silent(), Instant::now());
        while left > 0 && since.elapsed() < STANDSTILL {
            tokio::time::sleep(Duration::from_millis(100)).await;
            let now = silent();
            if now < left {
                (left, since) = (now, Instant::now());
                size.restart_all_seconds = started.elapsed().as_secs_f64();
            }
        }
        size.restart_silent = left;
        tracing::info!(
            hosts = size.hosts,
            ready_ms = size.restart_ms,
            cpu_ms = size.restart_cpu_ms,
            all_in_touch_seconds = size.restart_all_seconds,
            silent = size.restart_silent,
            "restarted"
        );
        Ok(())
    }

    async fn deploy(&mut self, hosts: usize) -> Result<()> {
        let machines = &self.swarm.machines()[..hosts];
        let pace = pace();
        let simulated = pace.write() + pace.step * 3 + pace.os + pace.cloud_init;
        let (started, before) = (Instant::now(), self.served.usage()?);
        self.operator.provision_all(machines, 16).await?;
        self.operator
            .until_state("provisioned", hosts, PATIENCE)
            .await?;
        let after = self.served.usage()?;
        self.figures.deployments = Deployments {
            hosts,
            seconds: started.elapsed().as_secs_f64(),
            simulated_seconds: simulated.as_secs_f64(),
            cpu_seconds: after.cpu.saturating_sub(before.cpu).as_secs_f64(),
            rss_mib: mib(after.rss),
            doubled: self.swarm.doubled().len(),
        };
        tracing::info!(deployments = ?self.figures.deployments, "deployed");
        Ok(())
    }

    /// Check-ins in the hosts' names as fast as they are answered, then a kill: what was answered
    /// must be on the disk.
    async fn heartbeats(&mut self, hosts: usize) -> Result<()> {
        let machines = &self.swarm.machines()[..hosts];
        let clients = (0..CALLERS).map(|_| self.served.operator());
        let clients = clients.collect::<Result<Vec<_>>>()?;
        let before = self.served.usage()?.cpu;
        let beats = flood(CALLERS, self.times.flood, |caller, turn| {
            let machine = &machines[(turn * CALLERS + caller) % machines.len()];
            check_in(&clients[caller], machine, turn)
        })
        .await;
        let last = Timestamp::now();
        let spent = self.served.usage()?.cpu.saturating_sub(before);
        let count = u32::try_from(beats.latency.calls.max(1))?;
        self.figures.heartbeats = beats;
        self.figures.heartbeat_cpu_ms = millis(spent / count);
        tracing::info!(?beats, "check-ins");
        self.served.kill()?;
        self.served.launch()?;
        self.served.until_ready(PATIENCE).await?;
        // Each host was heard once in so many calls: that much older its last contact may be.
        let round = rate(machines.len(), Duration::from_secs(1)) / beats.per_second.max(1.0);
        let mut oldest: f64 = 0.0;
        for machine in machines.iter().step_by((hosts / 50).max(1)) {
            let host = self.operator.host(&machine.name).await?;
            let daemon = host.status.daemon.context("a host without its daemon")?;
            let age = last.duration_since(daemon.seen_at).as_secs_f64();
            oldest = oldest.max(age - round);
        }
        self.figures.heartbeat_lost_seconds = oldest.max(0.0);
        Ok(())
    }
}

async fn check_in(client: &Operator, machine: &Machine, turn: usize) -> Result<()> {
    let key = machine.daemon_key().context("a host without a daemon")?;
    let report = CheckIn {
        boot_id: format!("00000000-0000-4000-8000-{:012}", machine.number),
        booted_at: Timestamp::UNIX_EPOCH,
        uptime_seconds: f64::from(u32::try_from(turn)?),
        os: "Debian GNU/Linux 13 (simulated)".to_owned(),
        kernel: "6.12.0-amd64".to_owned(),
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        cloud_init: CloudInit {
            stage: CloudInitStage::Done,
            ..CloudInit::default()
        },
    };
    let request = client.as_daemon(CHECK_IN, key.expose()).json(&report);
    let response = request.send().await?.error_for_status()?;
    response.bytes().await?;
    Ok(())
}
