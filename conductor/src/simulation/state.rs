//! The simulated world: what is true of machines, disks and the store, whatever anybody believes.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ferrite_proto::api::HostEvent;
use ferrite_proto::mac::Mac;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::cluster::Cluster;
use super::conductor::Incarnation;
use super::{Plan, Run};
use crate::bmc::BootDevice;
use crate::store::{Contact, Document, Removed, Revision, Stored};
use crate::token;

/// The world.
#[derive(Debug)]
pub(super) struct Sim {
    pub(super) plan: Plan,
    state: Mutex<State>,
}

/// All that is true.
#[derive(Debug)]
pub(super) struct State {
    rng: ChaCha8Rng,
    began: Instant,
    pub(super) transcript: Vec<String>,
    pub(super) violation: Option<String>,
    /// Things may go wrong.
    pub(super) trouble: bool,
    pub(super) machines: BTreeMap<String, Machine>,
    /// What the store holds, durably.
    pub(super) stored: BTreeMap<String, Stored>,
    pub(super) events: BTreeMap<String, Vec<HostEvent>>,
    pub(super) documents: BTreeMap<(String, String), Document>,
    pub(super) contacts: BTreeMap<String, Contact>,
    pub(super) removed: Vec<Removed>,
    pub(super) revision: Revision,
    /// The store is slow until then.
    pub(super) slow_until: Option<Instant>,
    /// The conductor that runs, if one does.
    pub(super) conductor: Option<Arc<Incarnation>>,
    pub(super) incarnations: u32,
    pub(super) points: BTreeSet<String>,
    /// The point of the plan has killed.
    pub(super) killed: bool,
    /// When the clock last jumped.
    pub(super) jumped_at: Option<Instant>,
    /// The cluster that hosts join.
    pub(super) cluster: Cluster,
    /// What thieves have copied: whose, what, and when.
    pub(super) loot: Vec<Loot>,
    /// Machines that nobody gave us.
    pub(super) stranger: String,
}

/// A secret that somebody has copied on its way.
#[derive(Debug, Clone)]
pub(super) struct Loot {
    pub(super) host: String,
    pub(super) kind: LootKind,
    pub(super) secret: String,
}

/// What was copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LootKind {
    Ticket,
    AgentToken,
    Credential,
    DaemonKey,
}

/// A server.
#[derive(Debug)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is one thing that can be so"
)]
pub(super) struct Machine {
    pub(super) name: String,
    pub(super) uuid: String,
    pub(super) mac: Mac,
    pub(super) media: bool,
    /// Its firmware tries the network first at every boot.
    pub(super) network_first: bool,
    pub(super) power: bool,
    pub(super) running: Running,
    /// What runs on it; ended when power goes.
    pub(super) software: Option<AbortHandle>,
    pub(super) boot_once: Option<BootDevice>,
    pub(super) drive: Option<String>,
    pub(super) disk: Disk,
    /// Order numbers that an agent has begun.
    pub(super) begun: BTreeSet<u64>,
    /// The order that an agent is at.
    pub(super) at_work: Option<(u64, &'static str)>,
    /// Deployments whose image was written, and the conductor knows.
    pub(super) written: BTreeSet<u64>,
    /// The deployment whose OS came up, and the conductor knows.
    pub(super) up: Option<u64>,
    /// The boot of the OS that runs, or ran last.
    pub(super) boot_id: String,
    /// When a conductor last answered its agent well.
    pub(super) agent_heard: Option<Instant>,
    /// When its BMC last told or did something else than it should.
    pub(super) bmc_lied: Option<Instant>,
    /// When its BMC last told its power.
    pub(super) power_told: Option<Instant>,
    /// The ticket of the last boot that was armed, and when that was stored.
    pub(super) armed: Option<(String, Instant)>,
    /// It is not heard until then.
    pub(super) cut_off_until: Option<Instant>,
    /// Its BMC tells that it is on until then, whatever is true.
    pub(super) tells_on_until: Option<Instant>,
    /// Its BMC refuses the password until then.
    pub(super) locked_until: Option<Instant>,
    /// It was told to switch off, and did, since somebody asked for its deletion.
    pub(super) let_go: bool,
    /// The ticket that it was switched on for.
    pub(super) switched_for: Option<String>,
    /// Since when nobody but people may switch it.
    pub(super) held_since: Option<Instant>,
    /// How often it was stored since then.
    pub(super) stored: (Instant, u32),
}

/// What runs on a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Running {
    Nothing,
    Firmware,
    Ramdisk,
    Os,
}

/// What is really on a disk.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Disk {
    /// Something of before that nobody has erased.
    pub(super) foreign: bool,
    pub(super) image: Option<String>,
    /// A write was cut off, and what is on it cannot be relied on.
    pub(super) broken: bool,
    pub(super) drive: Option<ConfigDrive>,
    /// The daemon's key.
    pub(super) key: Option<String>,
    /// What its kubelet registers with: the Node's provider ID.
    pub(super) kubelet: Option<String>,
}

/// What a config drive gives a host.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct ConfigDrive {
    pub(super) credential: String,
    pub(super) user_data: Option<String>,
}

impl Sim {
    pub(super) fn new(plan: Plan) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(plan.seed);
        let count = if plan.calm {
            2
        } else {
            rng.random_range(2..=4)
        };
        let machines = (1..=count).map(|number| {
            let machine = Machine::new(number, &mut rng);
            (machine.name.clone(), machine)
        });
        let machines = machines.collect();
        let state = State {
            rng,
            began: Instant::now(),
            transcript: Vec::new(),
            violation: None,
            trouble: !plan.calm,
            machines,
            stored: BTreeMap::new(),
            events: BTreeMap::new(),
            documents: BTreeMap::new(),
            contacts: BTreeMap::new(),
            removed: Vec::new(),
            revision: 0,
            slow_until: None,
            conductor: None,
            incarnations: 0,
            points: BTreeSet::new(),
            killed: false,
            jumped_at: None,
            cluster: Cluster::default(),
            loot: Vec::new(),
            stranger: "00000000-0000-4000-8000-00000000ffff".to_owned(),
        };
        Self {
            plan,
            state: Mutex::new(state),
        }
    }

    /// The world, for a moment: nothing waits while it is held.
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether hosts join a cluster in this run: in every third, so that the others stay as they
    /// are.
    pub(super) fn joins(&self) -> bool {
        self.plan.seed.is_multiple_of(3)
    }

    /// A machine, for a moment.
    pub(super) fn machine<R>(&self, name: &str, with: impl FnOnce(&mut Machine) -> R) -> R {
        let mut state = self.lock();
        let machine = state.machines.get_mut(name);
        with(machine.expect("machines stay as long as the world"))
    }

    /// A line of the transcript.
    pub(super) fn say(&self, host: &str, who: &str, what: impl AsRef<str>) {
        self.lock().say(host, who, what.as_ref());
    }

    /// Something that must never happen.
    pub(super) fn violate(&self, what: impl Into<String>) {
        self.lock().violate(what);
    }

    pub(super) fn is_violated(&self) -> bool {
        self.lock().violation.is_some()
    }

    /// So many times in a hundred, while things go wrong.
    pub(super) fn mishap(&self, percent: u32) -> bool {
        let mut state = self.lock();
        let hit = state.rng.random_range(0..1000) < percent * 10;
        hit && state.trouble
    }

    /// So many times in a hundred.
    pub(super) fn chance(&self, percent: u32) -> bool {
        self.lock().rng.random_range(0..100) < percent
    }

    /// Below a bound.
    pub(super) fn below(&self, bound: u64) -> u64 {
        self.lock().rng.random_range(0..bound)
    }

    /// A time between two.
    pub(super) fn between(&self, least: Duration, most: Duration) -> Duration {
        self.lock().rng.random_range(least..=most)
    }

    /// Waits for a time between two, in milliseconds.
    pub(super) async fn pause(&self, least: u64, most: u64) {
        let time = self.between(Duration::from_millis(least), Duration::from_millis(most));
        tokio::time::sleep(time).await;
    }

    /// Nothing goes wrong from here on.
    pub(super) fn calm_down(&self) {
        let mut state = self.lock();
        state.trouble = false;
        state.slow_until = None;
        state.cluster.down_until = None;
        state.cluster.slow_until = None;
        for machine in state.machines.values_mut() {
            machine.cut_off_until = None;
            machine.tells_on_until = None;
            machine.locked_until = None;
        }
        state.say("", "world", "nothing goes wrong any more");
    }

    /// A secret was seen by somebody that it is not for.
    pub(super) fn copied(&self, host: &str, kind: LootKind, secret: &str) {
        let mut state = self.lock();
        let known = |loot: &Loot| loot.kind == kind && loot.secret == secret;
        if !state.loot.iter().any(known) {
            let (host, secret) = (host.to_owned(), secret.to_owned());
            state.loot.push(Loot { host, kind, secret });
        }
    }

    /// What came of the run.
    pub(super) fn ended(&self, passed: Duration) -> Run {
        let mut state = self.lock();
        Run {
            transcript: std::mem::take(&mut state.transcript),
            violation: state.violation.clone(),
            points: state.points.clone(),
            passed,
            hosts: u32::try_from(state.machines.len()).unwrap_or(u32::MAX),
        }
    }
}

impl State {
    pub(super) fn say(&mut self, host: &str, who: &str, what: &str) {
        let mut line = String::with_capacity(80);
        let passed = self.began.elapsed().as_secs_f64();
        let _ = write!(line, "{passed:>10.3}s {host:<3} {who:<9} {what}");
        self.transcript.push(line);
    }

    pub(super) fn violate(&mut self, what: impl Into<String>) {
        let what = what.into();
        self.say("", "VIOLATION", &what);
        self.violation.get_or_insert(what);
    }

    /// Whether the conductor gave up on a host's BMC, or on its cluster, and said so.
    pub(super) fn gave_up(&self, name: &str) -> bool {
        let said = |event: &HostEvent| event.text.starts_with("let go ");
        let events = self.events.get(name);
        events.is_some_and(|all| all.iter().any(said))
    }

    /// Whether the clock jumped lately.
    pub(super) fn jumped_lately(&self) -> bool {
        let lately = Duration::from_mins(5);
        self.jumped_at.is_some_and(|at| at.elapsed() < lately)
    }
}

impl Machine {
    /// It is stored once more; whether that is not more often than anything could happen.
    pub(super) fn is_stored_again(&mut self, now: Instant) -> bool {
        if now.duration_since(self.stored.0) > Duration::from_mins(1) {
            self.stored = (now, 0);
        }
        self.stored.1 += 1;
        self.stored.1 <= 200
    }

    fn new(number: u64, rng: &mut ChaCha8Rng) -> Self {
        Self {
            name: format!("n{number}"),
            uuid: format!("00000000-0000-4000-8000-{number:012}"),
            mac: format!("52:54:00:77:00:{number:02}")
                .parse()
                .expect("a MAC"),
            media: rng.random_range(0..3) == 0,
            network_first: rng.random_range(0..4) == 0,
            power: rng.random_range(0..2) == 0,
            running: Running::Nothing,
            software: None,
            boot_once: None,
            drive: None,
            disk: Disk {
                foreign: true,
                ..Disk::default()
            },
            begun: BTreeSet::new(),
            at_work: None,
            written: BTreeSet::new(),
            up: None,
            boot_id: String::new(),
            agent_heard: None,
            bmc_lied: None,
            power_told: None,
            armed: None,
            cut_off_until: None,
            tells_on_until: None,
            locked_until: None,
            let_go: false,
            switched_for: None,
            held_since: None,
            stored: (Instant::now(), 0),
        }
    }

    /// Something happened to it that may have an image written again.
    pub(super) fn disturbed(&mut self) {
        self.written.clear();
    }

    /// It is not heard on the network.
    pub(super) fn cut_off(&self) -> bool {
        self.cut_off_until
            .is_some_and(|until| until > Instant::now())
    }

    /// Its BMC lied, or did something of its own, not long ago.
    pub(super) fn lied_lately(&self) -> bool {
        let lately = Duration::from_mins(15);
        self.bmc_lied.is_some_and(|at| at.elapsed() < lately)
    }

    /// Whether an OS can start from the disk: it does where the image is whole, and also where
    /// it only looks so.
    pub(super) fn boots_from_disk(&self) -> bool {
        self.disk.image.is_some() && self.disk.drive.is_some()
    }
}

/// Ends what runs on a machine. A write that is cut off leaves a disk that is good for nothing.
pub(super) fn cut(machine: &mut Machine) {
    if let Some(software) = machine.software.take() {
        software.abort();
    }
    if matches!(
        machine.at_work.take(),
        Some((_, "write-image" | "write-config-drive" | "erase"))
    ) {
        machine.disk.broken = true;
    }
    machine.running = Running::Nothing;
    machine.agent_heard = None;
    machine.disturbed();
}

/// Switches a machine off.
pub(super) fn off(sim: &Sim, name: &str) {
    sim.machine(name, |machine| {
        machine.power = false;
        cut(machine);
    });
    sim.say(name, "machine", "is off");
}

/// A machine goes through its firmware.
pub(super) fn firmware(sim: &Arc<Sim>, name: &str) {
    let task = tokio::spawn(boot(Arc::clone(sim), name.to_owned()));
    sim.machine(name, |machine| {
        cut(machine);
        machine.power = true;
        machine.running = Running::Firmware;
        machine.software = Some(task.abort_handle());
    });
    sim.say(name, "machine", "is on: firmware");
}

async fn boot(sim: Arc<Sim>, name: String) {
    let most = if sim.mishap(3) { 1_500_000 } else { 60_000 };
    sim.pause(2_000, most).await;
    let (once, network_first) = sim.machine(&name, |machine| {
        (machine.boot_once.take(), machine.network_first)
    });
    let device = once.or(network_first.then_some(BootDevice::Pxe));
    let ticket = super::network::boot_medium(&sim, &name, device);
    if let Some(ticket) = ticket {
        sim.pause(1_000, 15_000).await;
        sim.machine(&name, |machine| machine.running = Running::Ramdisk);
        sim.say(&name, "machine", "runs the ramdisk");
        return super::agent::run(&sim, &name, ticket).await;
    }
    super::os::run(&sim, &name).await;
}

/// A fresh name for something, from the run's own chance.
pub(super) fn fresh() -> String {
    token::random().into_inner()
}
