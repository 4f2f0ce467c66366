//! The figures of `/metrics`: what is counted as it happens, and what is counted when somebody
//! asks.
//!
//! No label carries a host's name, an address or anything else that grows with the fleet: ten
//! thousand hosts make as many series as ten.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use ferrite_proto::host::{HostState, HostStatus, Run, Stage};
use ferrite_proto::operation::Work;
use jiff::Timestamp;
use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

use super::{process, replica};
use crate::lifecycle::record::{Limits, Record};
use crate::ownership::Facts;
use crate::roll::Seen;

/// What `/metrics` is answered as.
pub(crate) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

type Seconds<L> = Family<L, Histogram, fn() -> Histogram>;
type Level = Gauge<f64, AtomicU64>;

/// A millisecond to half a minute.
fn quick() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 2.0, 16))
}

/// A second to nine hours.
fn slow() -> Histogram {
    Histogram::new(exponential_buckets(1.0, 2.0, 16))
}

/// One to a thousand.
fn sizes() -> Histogram {
    Histogram::new(exponential_buckets(1.0, 2.0, 11))
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabel {
    state: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct HealthLabel {
    state: &'static str,
    health: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CodeLabel {
    code: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PhaseLabel {
    phase: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabel {
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BmcLabel {
    call: &'static str,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CallLabel {
    method: String,
    path: String,
    status: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct QueueLabel {
    group: String,
    work: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LagLabel {
    webhook: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct WebhookLabel {
    webhook: String,
    outcome: &'static str,
}

/// What is counted of a host.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tally {
    state: HostState,
    health: &'static str,
    code: Option<&'static str>,
    agent: Option<Timestamp>,
    daemon: Option<Timestamp>,
}

impl Tally {
    /// Of a host; contacts in memory are newer than those of its status.
    pub(crate) fn of(status: &HostStatus, seen: Seen) -> Self {
        let agent = status.agent.as_ref().map(|agent| agent.seen_at);
        let daemon = status.daemon.as_ref().map(|daemon| daemon.seen_at);
        let error = status.error.as_ref();
        Self {
            state: status.state,
            health: health(status),
            code: error.map(|error| error.problem.code.as_str()),
            agent: agent.map(|at| seen.agent.map_or(at, |seen| seen.max(at))),
            daemon: daemon.map(|at| seen.daemon.map_or(at, |seen| seen.max(at))),
        }
    }
}

/// All figures.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    counted: Counted,
    asked: Mutex<Asked>,
    replica: replica::Figures,
    waits: Mutex<BTreeMap<String, Option<Timestamp>>>,
}

/// Counted as it happens.
#[derive(Debug)]
struct Counted {
    state_seconds: Seconds<StateLabel>,
    phase_seconds: Seconds<PhaseLabel>,
    phase_bytes: Family<PhaseLabel, Counter>,
    deployments: Family<OutcomeLabel, Counter>,
    errors: Family<CodeLabel, Counter>,
    bmc_seconds: Seconds<BmcLabel>,
    api_seconds: Seconds<CallLabel>,
    commit_seconds: Histogram,
    commit_writes: Histogram,
    webhooks: Family<WebhookLabel, Counter>,
    watchers: Gauge,
    traces_dropped: Counter,
}

/// Counted when somebody asks.
#[derive(Debug, Default)]
struct Asked {
    hosts: Family<HealthLabel, Gauge>,
    problems: Family<CodeLabel, Gauge>,
    agents: Gauge,
    daemons: Gauge,
    queues: Family<QueueLabel, Gauge>,
    webhook_lag: Family<LagLabel, Level>,
    memory: Gauge,
    files: Gauge,
    cpu: Counter<f64, AtomicU64>,
    started: Level,
}

impl Default for Counted {
    fn default() -> Self {
        Self {
            state_seconds: Family::new_with_constructor(slow),
            phase_seconds: Family::new_with_constructor(slow),
            phase_bytes: Family::default(),
            deployments: Family::default(),
            errors: Family::default(),
            bmc_seconds: Family::new_with_constructor(quick),
            api_seconds: Family::new_with_constructor(quick),
            commit_seconds: quick(),
            commit_writes: sizes(),
            webhooks: Family::default(),
            watchers: Gauge::default(),
            traces_dropped: Counter::default(),
        }
    }
}

impl Default for Metrics {
    fn default() -> Self {
        let (counted, asked) = (Counted::default(), Asked::default());
        let mut registry = Registry::default();
        counted.register(registry.sub_registry_with_prefix("ferrite"));
        asked.register(registry.sub_registry_with_prefix("ferrite"));
        asked.register_process(&mut registry);
        let replica = replica::Figures::default();
        replica.register(registry.sub_registry_with_prefix("ferrite"));
        Self {
            registry,
            counted,
            asked: Mutex::new(asked),
            replica,
            waits: Mutex::default(),
        }
    }
}

impl Counted {
    fn register(&self, to: &mut Registry) {
        let build = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        to.register("build", "The conductor's version", build);
        let help = "Time that hosts were in a state, counted when they leave it";
        to.register_with_unit(
            "host_state",
            help,
            Unit::Seconds,
            self.state_seconds.clone(),
        );
        let help = "Time of the phases of a host's way: firmware, netboot, steps, start of the OS";
        to.register_with_unit("phase", help, Unit::Seconds, self.phase_seconds.clone());
        let help = "Bytes that were moved in a phase";
        to.register_with_unit("phase", help, Unit::Bytes, self.phase_bytes.clone());
        let help = "Deployments that ended, or that wait for a person";
        to.register("deployments", help, self.deployments.clone());
        let help = "Errors that hosts met, by code";
        to.register("host_errors", help, self.errors.clone());
        let help = "Calls to BMCs, by what was asked and how it ended";
        to.register_with_unit("bmc_call", help, Unit::Seconds, self.bmc_seconds.clone());
        let help = "Calls of the API, held ones included";
        to.register_with_unit("api_call", help, Unit::Seconds, self.api_seconds.clone());
        let help = "Time of a commit of the store";
        to.register_with_unit(
            "store_commit",
            help,
            Unit::Seconds,
            self.commit_seconds.clone(),
        );
        let help = "Writes that went into one commit";
        to.register("store_commit_writes", help, self.commit_writes.clone());
        let help = "Attempts to deliver to webhooks";
        to.register("webhook_deliveries", help, self.webhooks.clone());
        let help = "Traces that were dropped because the collector was too slow";
        to.register("traces_dropped", help, self.traces_dropped.clone());
        to.register("watchers", "Watches that are open", self.watchers.clone());
    }
}

impl Asked {
    fn register(&self, to: &mut Registry) {
        let help = "Hosts by state; health is ok, retrying, or waiting for a person";
        to.register("hosts", help, self.hosts.clone());
        let help = "Hosts that have an error now, by its code";
        to.register("hosts_in_error", help, self.problems.clone());
        let help = "Agents in ramdisks that are in touch";
        to.register("agents_connected", help, self.agents.clone());
        let help = "Host daemons that are in touch";
        to.register("daemons_connected", help, self.daemons.clone());
        let help = "Hosts that wait for their turn, by group and work";
        to.register("queue_depth", help, self.queues.clone());
        let help = "Age of the oldest event that a webhook has not taken";
        to.register_with_unit("webhook_lag", help, Unit::Seconds, self.webhook_lag.clone());
    }

    /// The names that every Prometheus client has for these.
    fn register_process(&self, to: &mut Registry) {
        let help = "Resident memory size";
        to.register_with_unit(
            "process_resident_memory",
            help,
            Unit::Bytes,
            self.memory.clone(),
        );
        let help = "Number of open file descriptors";
        to.register("process_open_fds", help, self.files.clone());
        let help = "User and system CPU time spent";
        to.register_with_unit("process_cpu", help, Unit::Seconds, self.cpu.clone());
        let help = "Start time since the Unix epoch";
        to.register_with_unit(
            "process_start_time",
            help,
            Unit::Seconds,
            self.started.clone(),
        );
    }

    /// Whoever has no host now keeps its series, at zero.
    fn count(&self, hosts: impl Iterator<Item = Tally>, limits: &Limits, now: Timestamp) {
        self.hosts.clear();
        self.problems.clear();
        for state in HostState::ALL {
            for health in HEALTHS {
                self.hosts.get_or_create(&label(state, health)).set(0);
            }
        }
        let recent = |at: Timestamp, silence: Duration| {
            Duration::try_from(now.duration_since(at)).is_ok_and(|since| since <= silence)
        };
        let (mut agents, mut daemons) = (0, 0);
        for host in hosts {
            let label = label(host.state, host.health);
            self.hosts.get_or_create(&label).inc();
            if let Some(code) = host.code {
                self.problems.get_or_create(&CodeLabel { code }).inc();
            }
            let agent = host
                .agent
                .is_some_and(|at| recent(at, limits.agent_silence));
            let daemon = host
                .daemon
                .is_some_and(|at| recent(at, limits.daemon_silence));
            agents += i64::from(agent);
            daemons += i64::from(daemon);
        }
        self.agents.set(agents);
        self.daemons.set(daemons);
    }

    fn count_process(&self) {
        let seen = process::look();
        self.memory.set(seen.resident_bytes);
        self.files.set(seen.open_files);
        self.cpu
            .inner()
            .store(seen.cpu_seconds.to_bits(), Ordering::Relaxed);
        self.started.set(seen.started);
    }
}

const HEALTHS: [&str; 3] = ["ok", "retrying", "waiting"];

fn health(status: &HostStatus) -> &'static str {
    let error = status.error.as_ref();
    error.map_or("ok", |error| match error.retry_at {
        Some(_) => "retrying",
        None => "waiting",
    })
}

fn label(state: HostState, health: &'static str) -> HealthLabel {
    HealthLabel {
        state: word(state),
        health,
    }
}

/// A state as a label: one word.
const fn word(state: HostState) -> &'static str {
    match state {
        HostState::ExternallyProvisioned => "externally-provisioned",
        state => state.as_str(),
    }
}

fn since(from: Timestamp, to: Timestamp) -> f64 {
    to.duration_since(from).as_secs_f64().max(0.0)
}

impl Metrics {
    /// What this replica is and has, of several.
    pub(super) fn replica(&self, facts: &Facts, now: Timestamp) {
        self.replica.set(facts, now);
    }

    /// Everything, as Prometheus reads it.
    pub(crate) fn text(
        &self,
        hosts: impl Iterator<Item = Tally>,
        limits: &Limits,
        now: Timestamp,
    ) -> String {
        let asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        asked.count(hosts, limits, now);
        asked.count_process();
        let waits = self.waits.lock().unwrap_or_else(PoisonError::into_inner);
        for (webhook, oldest) in &*waits {
            let webhook = webhook.clone();
            let lag = oldest.map_or(0.0, |at| since(at, now));
            asked
                .webhook_lag
                .get_or_create(&LagLabel { webhook })
                .set(lag);
        }
        drop(waits);
        let mut out = String::new();
        if text::encode(&mut out, &self.registry).is_err() {
            tracing::error!("the figures cannot be written");
        }
        out
    }

    /// What a stored change tells.
    pub(super) fn changed(&self, before: &Record, after: &Record, runs: &[Run], now: Timestamp) {
        let (was, is) = (&before.host.status, &after.host.status);
        if was.state != is.state {
            let state = word(was.state);
            let time = self
                .counted
                .state_seconds
                .get_or_create(&StateLabel { state });
            time.observe(since(was.since, now));
        }
        let known = before.run.doing.as_slice();
        for stage in ended(known, runs.iter().chain(&after.run.doing)) {
            self.phase(stage);
        }
        let new = is.error.as_ref().filter(|_| is.error != was.error);
        if let Some(error) = new {
            let code = error.problem.code.as_str();
            self.counted.errors.get_or_create(&CodeLabel { code }).inc();
        }
        let stuck = new.is_some_and(|error| error.retry_at.is_none());
        match (was.state, is.state) {
            (HostState::Provisioning, HostState::Provisioned) => self.deployment("done"),
            (HostState::Provisioning, HostState::Provisioning) if stuck => {
                self.deployment("failed");
            }
            (HostState::Provisioning, to) if to != HostState::Provisioning => {
                self.deployment("aborted");
            }
            (_, _) => {}
        }
    }

    fn phase(&self, stage: &Stage) {
        let phase = PhaseLabel {
            phase: stage.name.clone(),
        };
        if let Some(seconds) = stage.seconds {
            self.counted
                .phase_seconds
                .get_or_create(&phase)
                .observe(seconds);
        }
        if let Some(bytes) = stage.bytes {
            self.counted.phase_bytes.get_or_create(&phase).inc_by(bytes);
        }
    }

    fn deployment(&self, outcome: &'static str) {
        let label = OutcomeLabel { outcome };
        self.counted.deployments.get_or_create(&label).inc();
    }

    /// A call to a BMC ended; `outcome` is `ok` or the problem's code.
    pub(super) fn bmc_call(&self, call: &'static str, outcome: &'static str, took: Duration) {
        let label = BmcLabel { call, outcome };
        let time = self.counted.bmc_seconds.get_or_create(&label);
        time.observe(took.as_secs_f64());
    }

    /// A call of the API ended; `path` is the route's, not the caller's.
    pub(super) fn api_call(&self, method: &str, path: &str, status: u16, took: Duration) {
        let label = CallLabel {
            method: method.to_owned(),
            path: path.to_owned(),
            status: CLASSES[usize::from(status / 100).min(CLASSES.len() - 1)],
        };
        let time = self.counted.api_seconds.get_or_create(&label);
        time.observe(took.as_secs_f64());
    }

    /// How many hosts wait for their turn.
    pub(crate) fn queues(&self, waiting: &[(String, Work, usize)]) {
        let asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        for (group, work, depth) in waiting {
            let label = QueueLabel {
                group: group.clone(),
                work: work.as_str(),
            };
            let depth = i64::try_from(*depth).unwrap_or(i64::MAX);
            asked.queues.get_or_create(&label).set(depth);
        }
    }

    /// A watch is open for as long as this is held.
    pub(crate) fn watching(&self) -> Watching {
        self.counted.watchers.inc();
        Watching(self.counted.watchers.clone())
    }

    /// A trace was dropped.
    pub(super) fn trace_dropped(&self) {
        self.counted.traces_dropped.inc();
    }

    /// An attempt to deliver ended.
    pub(super) fn webhook(&self, webhook: &str, outcome: &'static str) {
        let label = WebhookLabel {
            webhook: webhook.to_owned(),
            outcome,
        };
        self.counted.webhooks.get_or_create(&label).inc();
    }

    /// The oldest event that a webhook has not taken is of then; none waits when absent.
    pub(super) fn webhook_waits(&self, webhook: &str, oldest: Option<Timestamp>) {
        let mut waits = self.waits.lock().unwrap_or_else(PoisonError::into_inner);
        waits.insert(webhook.to_owned(), oldest);
    }

    /// The store committed so many writes at once.
    pub(crate) fn commit(&self, writes: usize, took: Duration) {
        self.counted.commit_seconds.observe(took.as_secs_f64());
        let writes = u32::try_from(writes).unwrap_or(u32::MAX);
        self.counted.commit_writes.observe(writes.into());
    }
}

/// An open watch.
#[derive(Debug)]
pub(crate) struct Watching(Gauge);

impl Drop for Watching {
    fn drop(&mut self) {
        self.0.dec();
    }
}

const CLASSES: [&str; 6] = ["0xx", "1xx", "2xx", "3xx", "4xx", "5xx"];

/// Stages that have an end now and had none before. Both lists are of one host, oldest first.
fn ended<'a>(was: &[Run], is: impl Iterator<Item = &'a Run>) -> impl Iterator<Item = &'a Stage> {
    let known: Vec<_> = was
        .iter()
        .flat_map(|run| &run.stages)
        .filter(|stage| stage.seconds.is_some())
        .map(|stage| (stage.name.clone(), stage.started))
        .collect();
    is.flat_map(|run| &run.stages)
        .filter(|stage| stage.seconds.is_some())
        .filter(move |stage| {
            !known
                .iter()
                .any(|(name, at)| *name == stage.name && *at == stage.started)
        })
}
