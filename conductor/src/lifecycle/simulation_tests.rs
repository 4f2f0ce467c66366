//! The plan against a small model of the world: a BMC, a machine, an agent, a disk, a person, and
//! a conductor that is killed between doing something and noting it. Seeded, without a clock.

use std::collections::BTreeSet;

use ferrite_proto::agent_api::{CheckIn, CloudInit, CloudInitStage, Report};
use ferrite_proto::api::Provision;
use ferrite_proto::host::{BootVia, HostState, Power};
use ferrite_proto::image::{Format, ImageRef};
use ferrite_proto::inventory::Inventory;
use ferrite_proto::problem::{Code, Problem};
use ferrite_proto::secret::Secret;
use ferrite_proto::step::{BootMethod, ImageWritten, Outcome, Progress};
use jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;

use super::change::{Change, NewTicket};
use super::image::Wanted;
use super::plan::{Action, Decision, plan};
use super::record::{BootPhase, HelloFacts, Kept, Limits, Observed, Record};
use super::{Kind, StepName, Workflow, intent};

#[derive(Debug, Clone, Copy, PartialEq)]
enum Event {
    Seconds(u8),
    PowerLost,
    /// So many requests to the BMC fail.
    BmcFails(u8),
    /// The conductor dies after the next effect and before noting it.
    KilledAfterEffect,
    /// The next step fails, for a person to see to.
    StepFails,
    /// The reply to the next poll is lost: the poll comes again.
    ReplyLost,
    /// The agent is not heard for so many rounds.
    Partition(u8),
    Provision(u8),
    Deprovision,
    Retry,
    Delete,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        8 => (1..100_u8).prop_map(Event::Seconds),
        2 => Just(Event::PowerLost),
        2 => (1..4_u8).prop_map(Event::BmcFails),
        3 => Just(Event::KilledAfterEffect),
        2 => Just(Event::StepFails),
        2 => Just(Event::ReplyLost),
        2 => (1..30_u8).prop_map(Event::Partition),
        4 => (0..3_u8).prop_map(Event::Provision),
        2 => Just(Event::Deprovision),
        2 => Just(Event::Retry),
        1 => Just(Event::Delete),
    ]
}

/// What the machine is at.
#[derive(Debug, Clone, PartialEq)]
enum Machine {
    Off,
    /// Nothing to boot.
    Idle,
    Ramdisk(Agent),
    Os {
        credential: String,
    },
}

#[derive(Debug, Clone, PartialEq)]
struct Agent {
    ticket: String,
    token: Option<String>,
    order: Option<(u64, StepName)>,
    reports: Vec<Report>,
}

#[derive(Debug, Clone, Default, PartialEq)]
struct Disk {
    image: Option<String>,
    credential: Option<String>,
}

#[expect(
    clippy::struct_excessive_bools,
    reason = "each is one fault that is due"
)]
struct Sim {
    record: Record,
    kept: Kept,
    gone: bool,
    now: Timestamp,
    started: Timestamp,
    heard: Option<Timestamp>,
    machine: Machine,
    disk: Disk,
    override_set: bool,
    bmc_fails: u8,
    killed: bool,
    step_fails: bool,
    reply_lost: bool,
    partition: u8,
    executed: BTreeSet<u64>,
    tokens: u64,
    transcript: Vec<String>,
    runs: Vec<ferrite_proto::host::Run>,
    limits: Limits,
}

fn image(number: u8) -> ImageRef {
    ImageRef {
        url: format!("http://images/{number}.raw"),
        mirrors: Vec::new(),
        digest: None,
        digest_url: None,
        raw_digest: None,
        signed_by: None,
        format: Format::Raw,
        compression: None,
        allow_unverified: true,
    }
}

impl Sim {
    fn new(via: BootVia) -> Self {
        let add = serde_json::json!({
            "apiVersion": "ferrite/v1", "kind": "Host", "metadata": {"name": "n"},
            "secrets": {"bmc_password": "p"},
            "spec": {"bmc": {"address": "redfish://b", "username": "u"},
                     "boot_mac": "52:54:00:00:00:01", "boot_via": via},
        });
        let add: ferrite_proto::host::HostManifest = serde_json::from_value(add).unwrap();
        let now = Timestamp::from_second(1_795_000_000).unwrap();
        let change = intent::enrol(add, "u".into(), now).unwrap();
        Self {
            record: change.record,
            kept: change.kept,
            gone: false,
            now,
            started: now,
            heard: None,
            machine: Machine::Off,
            disk: Disk::default(),
            override_set: false,
            bmc_fails: 0,
            killed: false,
            step_fails: false,
            reply_lost: false,
            partition: 0,
            executed: BTreeSet::new(),
            tokens: 0,
            transcript: Vec::new(),
            runs: Vec::new(),
            limits: Limits::default(),
        }
    }

    /// One transaction.
    fn change<R>(&mut self, with: impl FnOnce(&mut Change) -> R) -> R {
        let mut change = Change::new(self.record.clone(), self.kept.clone(), self.now);
        let answer = with(&mut change);
        for event in &change.events {
            self.transcript
                .push(format!("{}: {}", event.kind, event.text));
        }
        self.runs.extend(change.runs);
        (self.record, self.kept) = (change.record, change.kept);
        answer
    }

    fn token(&mut self) -> String {
        self.tokens += 1;
        format!("token-{}", self.tokens)
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Seconds(seconds) => self.now += SignedDuration::from_secs(seconds.into()),
            Event::PowerLost => self.power_lost(),
            Event::BmcFails(times) => self.bmc_fails = times,
            Event::KilledAfterEffect => self.killed = true,
            Event::StepFails => self.step_fails = true,
            Event::ReplyLost => self.reply_lost = true,
            Event::Partition(rounds) => self.partition = rounds,
            Event::Provision(number) => {
                let asked = Provision {
                    image: image(number),
                    secrets: ferrite_proto::host::HostSecrets::default(),
                    root_device_hints: None,
                    boot_method: None,
                    verify_image: None,
                    join: None,
                };
                let _ = self.change(|change| change.provision(asked));
            }
            Event::Deprovision => {
                let _ = self.change(Change::deprovision);
            }
            Event::Retry => self.change(Change::retry),
            Event::Delete => {
                let _ = self.change(Change::delete);
            }
        }
    }

    fn power_lost(&mut self) {
        if let Machine::Ramdisk(agent) = &self.machine
            && agent
                .order
                .is_some_and(|(_, name)| name == StepName::WriteImage)
        {
            self.disk = Disk::default();
        }
        self.machine = Machine::Off;
    }

    /// The conductor goes round until it waits, then the machine does something.
    fn round(&mut self) {
        for turn in 0.. {
            assert!(turn < 60, "goes in circles: {:#?}", self.transcript);
            if self.gone || self.turn() {
                break;
            }
        }
        self.check();
        match self.partition {
            0 => self.machine_turn(),
            _ => self.partition -= 1,
        }
    }

    /// One turn of the conductor; true when it waits.
    fn turn(&mut self) -> bool {
        let limits = self.limits.clone();
        let seen = Observed {
            agent_seen: self.heard.or(Some(self.started)),
            daemon_seen: Some(self.now),
            steady_since: None,
            image: Wanted::default(),
            limits: &limits,
        };
        match plan(&self.record, &seen, self.now) {
            Decision::Wait { reason, until } => {
                assert!(!reason.is_empty());
                assert!(until.is_none_or(|until| until > self.now), "{reason}");
                return true;
            }
            Decision::Go(state) => self.change(|change| change.enter(state)),
            Decision::Fail(problem) => self.change(|change| change.fail(problem, &limits)),
            Decision::Do(action) => self.act(action, &limits),
        }
        self.now += SignedDuration::from_millis(1);
        false
    }

    fn act(&mut self, action: Action, limits: &Limits) {
        let fresh = self.token();
        match action {
            Action::Arm => {
                let new = NewTicket {
                    ticket: Secret::new(fresh.clone()),
                    sha256: fresh.clone(),
                    iso_token: Secret::new(fresh),
                };
                self.change(|change| change.armed(new, limits));
            }
            Action::OpenDeployment => {
                self.change(|c| c.open_deployment(None, Secret::new(fresh.clone()), fresh.clone()));
            }
            Action::BeginSteps(kind) => self.change(|change| change.begin_steps(kind)),
            Action::Order(name) => self.change(|change| change.order(name)),
            Action::Cancel => self.change(Change::cancel),
            Action::ForgetAgent => self.change(|change| change.drop_agent("gone")),
            Action::OsIsUp => self.change(Change::os_is_up),
            Action::Admit(work) => self.change(|change| change.admit(work)),
            Action::Yield => self.change(Change::yield_turn),
            Action::Propose(step) => self.change(|change| change.propose(step)),
            Action::Rest => self.change(|change| change.rest(limits)),
            Action::EndOperation => self.change(Change::end_operation),
            Action::Remove => self.gone = true,
            Action::Identify
            | Action::ReadPower
            | Action::InsertMedia
            | Action::SetBootOnce
            | Action::PowerOn
            | Action::ForceRestart
            | Action::PowerOff
            | Action::ReleaseBoot => self.bmc(action, limits),
            Action::Join(_) => panic!("no cluster is here"),
        }
    }

    fn bmc(&mut self, action: Action, limits: &Limits) {
        if self.bmc_fails > 0 {
            self.bmc_fails -= 1;
            let problem = Problem::new(Code::BmcUnreachable, "no answer", "");
            return self.change(|change| change.fail(problem, limits));
        }
        self.effect(action);
        if std::mem::take(&mut self.killed) {
            // Restarted: nothing was noted, and nobody was heard before now.
            self.transcript.push(format!("killed after {action:?}"));
            (self.started, self.heard) = (self.now, None);
            return;
        }
        let power = if self.machine == Machine::Off {
            Power::Off
        } else {
            Power::On
        };
        let now = self.now;
        self.change(|change| match action {
            Action::Identify => change.identified(Some("uuid"), power, limits),
            Action::ReadPower => change.power_read(power),
            Action::InsertMedia => change.boot_phase(BootPhase::MediaIn),
            Action::SetBootOnce => change.boot_phase(BootPhase::OverrideSet),
            Action::PowerOn | Action::ForceRestart => change.power_asked(now),
            Action::PowerOff => change.powered_off(),
            Action::ReleaseBoot => change.released(),
            other => panic!("{other:?} is not the BMC's"),
        });
    }

    fn effect(&mut self, action: Action) {
        match action {
            Action::SetBootOnce => self.override_set = true,
            Action::ReleaseBoot => self.override_set = false,
            Action::PowerOn if self.machine == Machine::Off => self.firmware(),
            Action::ForceRestart => {
                self.assert_not_in_touch();
                self.power_lost();
                self.firmware();
            }
            Action::PowerOff => self.power_lost(),
            _ => {}
        }
    }

    /// A ramdisk that is in touch is never reset.
    fn assert_not_in_touch(&self) {
        let Machine::Ramdisk(agent) = &self.machine else {
            return;
        };
        let session = self.record.run.session.as_ref();
        let known = session.is_some_and(|s| agent.token.as_ref() == Some(&s.token_sha256));
        let silence = SignedDuration::try_from(self.limits.agent_silence).unwrap();
        let recent = self.heard.is_some_and(|at| at + silence > self.now);
        assert!(!(known && recent), "reset in touch: {:#?}", self.transcript);
    }

    fn firmware(&mut self) {
        let armed = self.record.run.boot.as_ref().filter(|boot| !boot.used);
        let once = std::mem::take(&mut self.override_set);
        self.machine = match (armed, &self.disk.credential) {
            (Some(boot), _) if once => Machine::Ramdisk(Agent {
                ticket: boot.ticket_sha256.clone(),
                token: None,
                order: None,
                reports: Vec::new(),
            }),
            (_, Some(credential)) if self.disk.image.is_some() => Machine::Os {
                credential: credential.clone(),
            },
            _ => Machine::Idle,
        };
    }

    fn machine_turn(&mut self) {
        if self.gone {
            return;
        }
        match self.machine.clone() {
            Machine::Off | Machine::Idle => {}
            Machine::Ramdisk(agent) => self.agent_turn(agent),
            Machine::Os { credential } => self.daemon_turn(&credential),
        }
    }

    fn agent_turn(&mut self, mut agent: Agent) {
        let Some(token) = agent.token.clone() else {
            let boot = self.record.run.boot.as_ref();
            let armed = boot.is_some_and(|b| b.ticket_sha256 == agent.ticket && !b.used);
            if armed && self.record.run.deletion.is_none() {
                agent.token = Some(self.hello(&agent.ticket));
                self.machine = Machine::Ramdisk(agent);
            }
            return;
        };
        let session = self.record.run.session.as_ref();
        if session.is_none_or(|session| session.token_sha256 != token) {
            return; // refused: it is not this host's agent any more
        }
        if let Some((order, name)) = agent.order.take() {
            let report = self.execute(order, name);
            agent.reports.push(report);
        }
        self.poll(&mut agent);
        let boots = |report: &Report| match report {
            Report::Done { outcome, .. } => matches!(outcome, Outcome::Booting { .. }),
            _ => false,
        };
        let left = agent.reports.iter().any(boots);
        agent.reports.clear();
        self.machine = Machine::Ramdisk(agent);
        if left {
            self.firmware();
        }
    }

    fn hello(&mut self, ticket: &str) -> String {
        let token = self.token();
        let facts = HelloFacts {
            ticket_sha256: ticket.to_owned(),
            nonce: "n".into(),
            token_sha256: token.clone(),
            version: "0".into(),
            kernel: "6".into(),
            uptime_seconds: 1.0,
            memory_bytes: 1,
            netboot_bytes: 1,
        };
        self.heard = Some(self.now);
        self.change(|change| change.hello(facts, Secret::new(token.clone())));
        token
    }

    fn poll(&mut self, agent: &mut Agent) {
        self.heard = Some(self.now);
        let times = if std::mem::take(&mut self.reply_lost) {
            2
        } else {
            1
        };
        let limits = self.limits.clone();
        for _ in 0..times {
            let reports = agent.reports.clone();
            self.change(|change| {
                for report in reports {
                    change.report(report, &limits);
                }
                change.polled();
            });
        }
        if let Some((order, name)) = self.record.to_hand_out() {
            self.assert_meant(name);
            agent.order = Some((order, name));
            let accepted = Report::Accepted { order };
            self.change(|change| change.report(accepted, &limits));
        }
    }

    /// Nothing destructive is handed out unless state and wish say so.
    fn assert_meant(&self, name: StepName) {
        let state = self.record.state();
        let meant = match name {
            StepName::Erase => matches!(state, HostState::Preparing | HostState::Deprovisioning),
            StepName::WriteImage | StepName::WriteConfigDrive => {
                state == HostState::Provisioning && self.record.deployed_as_wanted()
            }
            _ => true,
        };
        assert!(meant, "{} handed out while {state}", name.as_str());
    }

    /// The agent runs a step: here is what must never go wrong.
    fn execute(&mut self, order: u64, name: StepName) -> Report {
        assert!(self.executed.insert(order), "order {order} ran twice");
        if std::mem::take(&mut self.step_fails) {
            let problem = Problem::new(Code::ImageNotFound, "404", "");
            return Report::Failed { order, problem };
        }
        let flow = self.record.run.workflow.as_ref();
        // Some agents are in time to stop, some have just ended.
        if flow.is_some_and(|flow| flow.cancelling) && order.is_multiple_of(2) {
            let problem = Problem::new(Code::StepCancelled, "stopped", "");
            return Report::Failed { order, problem };
        }
        let outcome = match name {
            StepName::Rescue => Outcome::RescueReady {
                addresses: Vec::new(),
                host_keys: Vec::new(),
            },
            StepName::Inspect => Outcome::Inspected {
                inventory: Box::<Inventory>::default(),
            },
            StepName::Erase => {
                self.disk = Disk::default();
                Outcome::Erased { disks: Vec::new() }
            }
            StepName::WriteImage => {
                let deployment = self.record.run.deployment.as_ref().unwrap();
                self.disk = Disk {
                    image: Some(deployment.image.url.clone()),
                    credential: None,
                };
                Outcome::ImageWritten(ImageWritten::default())
            }
            StepName::WriteConfigDrive => {
                assert!(self.disk.image.is_some(), "a config drive on half an image");
                let credential = self.kept.credential.as_ref();
                self.disk.credential = credential.map(|c| c.expose().clone());
                Outcome::ConfigDriveWritten {
                    partition: "p".into(),
                    bytes: 1,
                }
            }
            StepName::SetBootEntry => Outcome::BootEntrySet { detail: "b".into() },
            StepName::Boot => {
                assert!(
                    self.disk.credential.is_some(),
                    "booted without config drive"
                );
                Outcome::Booting {
                    method: BootMethod::Kexec,
                    detail: "k".into(),
                }
            }
            StepName::ReleaseBoot
            | StepName::AwaitOs
            | StepName::CheckCluster
            | StepName::MintToken
            | StepName::Join => {
                panic!("not the agent's")
            }
        };
        Report::Done {
            order,
            outcome,
            seconds: 1.0,
        }
    }

    fn daemon_turn(&mut self, credential: &str) {
        let access = self.record.run.daemon.as_ref();
        if access.is_none_or(|access| access.credential_sha256 != credential) {
            return;
        }
        let report = CheckIn {
            boot_id: "b".into(),
            booted_at: self.now,
            uptime_seconds: 1.0,
            os: "os".into(),
            kernel: "6".into(),
            agent_version: "0".into(),
            cloud_init: CloudInit {
                stage: CloudInitStage::Done,
                ..CloudInit::default()
            },
        };
        let enrolled = access.is_some_and(|access| access.key_sha256.is_some());
        self.change(|change| {
            if !enrolled {
                change.enrolled("key".into());
            }
            change.checked_in(report);
        });
    }

    /// What always holds.
    fn check(&self) {
        let status = &self.record.host.status;
        if let Some(image) = &status.image {
            let on_disk = self.disk.image.as_ref();
            let under_way = self.record.run.workflow.is_some();
            assert!(on_disk == Some(&image.url) || under_way, "{status:#?}");
        }
        if status.state == HostState::Available {
            assert!(self.record.run.clean, "available and not clean");
        }
    }

    fn as_wanted(&self) -> bool {
        let deleted = self.record.run.deletion.is_some();
        match (&self.record.host.spec.image, self.record.state()) {
            _ if deleted => self.gone,
            (None, HostState::Available) => true,
            (Some(wanted), HostState::Provisioned) => {
                self.record.deployed_as_wanted() && self.disk.image.as_ref() == Some(&wanted.url)
            }
            _ => false,
        }
    }

    /// No more faults, and a person who retries what waits for one.
    fn settle(&mut self) -> bool {
        (self.bmc_fails, self.killed, self.step_fails) = (0, false, false);
        (self.reply_lost, self.partition) = (false, 0);
        for _ in 0..600 {
            self.round();
            if self.gone || self.as_wanted() {
                return true;
            }
            let error = self.record.host.status.error.as_ref();
            if error.is_some_and(|error| error.retry_at.is_none()) {
                self.change(Change::retry);
            }
            self.now += SignedDuration::from_secs(10);
        }
        false
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 2000,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    /// No order of events and no kill loses a host, runs an order twice, or writes unasked.
    #[test]
    fn every_run_ends_as_wanted(
        events in prop::collection::vec((event(), 1..6_u8), 0..60),
        media in any::<bool>(),
    ) {
        let via = if media { BootVia::VirtualMedia } else { BootVia::Pxe };
        let mut sim = Sim::new(via);
        for (event, rounds) in events {
            sim.happen(event);
            for _ in 0..rounds {
                if !sim.gone {
                    sim.round();
                }
            }
            if sim.gone {
                break;
            }
        }
        prop_assert!(
            sim.settle(),
            "stuck in {} ({:?}): {:#?}",
            sim.record.state(),
            sim.record.host.status.error,
            sim.transcript
        );
    }
}

/// The straight way, as a person would read it in the host's log.
#[test]
fn the_straight_way_has_one_firmware_boot() {
    let mut sim = Sim::new(BootVia::Pxe);
    assert!(sim.settle());
    sim.happen(Event::Provision(1));
    assert!(sim.settle());
    let wanted = "\
bmc: system uuid, power Off
state: registering → inspecting
power: the BMC took the request to switch on
agent: the ramdisk said hello
step: order 1: inspect
step: order 1: inspect done: 0 disks
state: inspecting → preparing
step: order 2: erase
step: order 2: erase done
state: preparing → available
request: provision
state: available → provisioning
step: deploying http://images/1.raw
step: order 3: write-image
step: order 3: write-image done
step: order 4: write-config-drive
step: order 4: write-config-drive done: p
step: order 5: set-boot-entry
step: order 5: set-boot-entry done: b
step: order 6: boot
step: order 6: boot done: kexec: k
daemon: the host daemon enrolled
agent: the agent is given up: the deployed OS runs
daemon: first contact: os
state: provisioning → provisioned";
    assert_eq!(sim.transcript.join("\n"), wanted);
    let kinds: Vec<_> = sim.runs.iter().map(|run| run.kind.as_str()).collect();
    assert_eq!(kinds, ["enrol", "deploy"]);
    assert!(sim.record.run.doing.is_none());
    let stages = sim.runs.iter().flat_map(|run| &run.stages);
    let boots = stages.filter(|stage| stage.name == "firmware").count();
    assert_eq!(boots, 1);
}

/// An image that is not there: the state stays, the ramdisk stays, another image goes on at once.
#[test]
fn a_failed_image_is_corrected_without_a_boot() {
    let mut sim = Sim::new(BootVia::Pxe);
    assert!(sim.settle());
    sim.happen(Event::Provision(1));
    sim.happen(Event::StepFails);
    for _ in 0..5 {
        sim.round();
    }
    assert_eq!(sim.record.state(), HostState::Provisioning);
    let error = sim.record.host.status.error.clone().unwrap();
    assert_eq!(
        (error.problem.code, error.retry_at),
        (Code::ImageNotFound, None)
    );
    sim.transcript.clear();
    sim.happen(Event::Provision(2));
    assert!(sim.settle());
    assert_eq!(sim.disk.image.as_deref(), Some("http://images/2.raw"));
    assert!(!sim.transcript.iter().any(|line| line.starts_with("power")));
}

/// Power lost in the middle of `write-image`: the same order never comes again, the disk is
/// written from the start by a new one.
#[test]
fn power_lost_while_writing_is_made_good() {
    let mut sim = Sim::new(BootVia::VirtualMedia);
    assert!(sim.settle());
    sim.happen(Event::Provision(1));
    sim.round();
    let out = |sim: &Sim| {
        sim.record
            .run
            .workflow
            .as_ref()
            .and_then(Workflow::outstanding)
    };
    assert_eq!(out(&sim), Some((3, StepName::WriteImage)));
    sim.happen(Event::PowerLost);
    assert!(sim.settle());
    assert!(!sim.executed.contains(&3));
    assert_eq!(sim.record.state(), HostState::Provisioned);
}

/// A progress report of an order that is not out changes nothing.
#[test]
fn reports_of_the_past_change_nothing() {
    let mut sim = Sim::new(BootVia::Pxe);
    sim.change(|change| change.begin_steps(Kind::Clean));
    let before = (sim.record.clone(), sim.kept.clone());
    let limits = sim.limits.clone();
    for report in [
        Report::Accepted { order: 9 },
        Report::Progress {
            order: 9,
            progress: Progress::default(),
        },
        Report::Done {
            order: 9,
            outcome: Outcome::Unknown,
            seconds: f64::NAN,
        },
    ] {
        sim.change(|change| change.report(report, &limits));
    }
    assert_eq!((sim.record, sim.kept), before);
}

/// Power that is lost in the middle of a step is noticed long before the agent counts as silent.
#[test]
fn lost_power_is_noticed_by_a_look_at_the_bmc() {
    let mut sim = Sim::new(BootVia::Pxe);
    assert!(sim.settle());
    sim.happen(Event::Provision(1));
    sim.round();
    sim.change(|change| {
        let number = change.record.run.last_order;
        let limits = Limits::default();
        change.report(Report::Accepted { order: number }, &limits);
    });
    sim.happen(Event::PowerLost);
    sim.happen(Event::Seconds(14));
    sim.round();
    assert_eq!(sim.record.host.status.error, None);
    sim.happen(Event::Seconds(2));
    sim.round();
    let error = sim.record.host.status.error.clone().unwrap();
    assert_eq!(error.problem.code, Code::AgentLost);
    assert!(error.problem.message.starts_with("the host is off"));
    // And it is not waited for either.
    sim.happen(Event::Seconds(6));
    sim.round();
    assert!(sim.transcript.iter().any(|line| line.contains("given up")));
}

/// A host that is lost at each attempt does not go on for ever, though it says hello in between.
#[test]
fn a_step_that_loses_its_agent_each_time_asks_a_person() {
    let mut sim = Sim::new(BootVia::Pxe);
    assert!(sim.settle());
    sim.happen(Event::Provision(1));
    let needs_person = |sim: &Sim| {
        let error = sim.record.host.status.error.as_ref();
        error.is_some_and(|error| error.retry_at.is_none())
    };
    for _ in 0..2000 {
        sim.round();
        let flow = sim.record.run.workflow.as_ref();
        if flow.is_some_and(|flow| flow.outstanding().is_some()) {
            sim.happen(Event::PowerLost);
        }
        sim.happen(Event::Seconds(10));
        if needs_person(&sim) {
            let error = sim.record.host.status.error.as_ref().unwrap();
            assert_eq!(error.problem.code, Code::AgentLost);
            assert_eq!(error.attempts, sim.limits.max_attempts);
            return;
        }
    }
    panic!("goes on for ever: {:#?}", sim.record.host.status);
}

/// A person may take their time: a ticket that would not outlive the boot is made anew.
#[test]
fn no_machine_is_switched_on_with_an_old_ticket() {
    let mut sim = Sim::new(BootVia::VirtualMedia);
    sim.limits.max_attempts = 1;
    for _ in 0..20 {
        if sim.record.run.boot.is_some() {
            break;
        }
        sim.turn();
    }
    sim.happen(Event::BmcFails(1));
    sim.round();
    let error = sim.record.host.status.error.as_ref();
    assert!(error.is_some_and(|error| error.retry_at.is_none()));
    let ticket = |sim: &Sim| sim.record.run.boot.as_ref().unwrap().ticket_sha256.clone();
    let before = ticket(&sim);
    sim.now += SignedDuration::from_hours(3);
    sim.change(Change::retry);
    while sim.record.run.power_asked_at.is_none() {
        assert!(!sim.turn());
    }
    assert_ne!(ticket(&sim), before);
}

/// A BMC that is away for an hour must not leave a hundred hosts for a person to retry.
#[test]
fn a_host_at_rest_goes_on_trying_and_a_deletion_ends() {
    let mut sim = Sim::new(BootVia::Pxe);
    assert!(sim.settle());
    let limits = sim.limits.clone();
    for _ in 0..20 {
        let problem = Problem::new(Code::BmcUnreachable, "no answer", "");
        sim.change(|change| change.fail(problem, &limits));
    }
    let error = sim.record.host.status.error.clone().unwrap();
    assert!(error.retry_at.is_some());
    // The password is wrong by now, and was given anew: the host is still ours to switch off.
    sim.record.run.registered = false;
    sim.happen(Event::Delete);
    sim.turn();
    for attempt in 0..12 {
        assert!(!sim.gone, "removed without being switched off");
        let problem = Problem::new(Code::BmcCredentialsRefused, "401", "");
        sim.change(|change| change.fail(problem, &limits));
        let deletion = sim.record.run.deletion.clone().unwrap();
        assert_eq!(deletion.powered_off, attempt >= 2);
        let error = sim.record.host.status.error.clone().unwrap();
        assert!(error.retry_at.is_some());
        if deletion.released {
            return;
        }
    }
    panic!("never let go");
}

/// Times and texts of a host cannot break ours.
#[test]
fn reports_with_hostile_values_do_no_harm() {
    let mut sim = Sim::new(BootVia::Pxe);
    let limits = sim.limits.clone();
    let line = format!("\u{1b}[2J{}\n", "x".repeat(5000));
    sim.change(|change| change.report(Report::Log { line }, &limits));
    let told = sim.transcript.last().unwrap();
    assert!(told.chars().count() <= 1010 && !told.contains(char::is_control));
    for (booted_at, finished_at) in [
        (Timestamp::MIN, Timestamp::MAX),
        (Timestamp::MAX, Timestamp::MIN),
    ] {
        let report = CheckIn {
            boot_id: "b".into(),
            booted_at,
            uptime_seconds: f64::MAX,
            os: "os".into(),
            kernel: "6".into(),
            agent_version: "0".into(),
            cloud_init: CloudInit {
                stage: CloudInitStage::Done,
                finished_at: Some(finished_at),
                ..CloudInit::default()
            },
        };
        sim.change(|change| change.checked_in(report));
    }
}
