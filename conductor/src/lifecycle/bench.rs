//! A workbench for tests of the pure core: a host, its BMC that obeys, its cluster, and a
//! transcript of what was decided. A script goes in, a transcript comes out, compared as text.

use std::fmt::Write as _;

use ferrite_proto::agent_api::{CheckIn, CloudInit, CloudInitStage, Report};
use ferrite_proto::host::{BmcSpec, HostManifest, HostSecrets, HostSpec, Power};
use ferrite_proto::image::ImageRef;
use ferrite_proto::inventory::{Disk, Inventory};
use ferrite_proto::problem::Problem;
use ferrite_proto::secret::Secret;
use ferrite_proto::step::{BootMethod, Outcome};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, from_value, json};

use super::at_cluster::{self, Told};
use super::change::{Change, NewTicket};
use super::image::Wanted;
use super::intent;
use super::joining::{Draining, JoinAction, JoinFiles, Look};
use super::plan::{Action, Decision, plan};
use super::record::{BootPhase, HelloFacts, Kept, Limits, Observed, Record};

/// A host, its BMC that obeys, and what was decided.
pub(super) struct Bench {
    pub(super) record: Record,
    pub(super) kept: Kept,
    pub(super) now: Timestamp,
    pub(super) limits: Limits,
    transcript: String,
    is_on: bool,
    /// What its cluster says of it, or why it does not.
    pub(super) cluster: Result<Look, Problem>,
    pub(super) draining: Draining,
}

pub(super) fn spec() -> HostSpec {
    let mut spec = HostSpec::new(BmcSpec {
        address: "redfish://b".to_owned(),
        username: "u".to_owned(),
        insecure_tls: false,
    });
    spec.boot_mac = Some("52:54:00:00:00:01".parse().unwrap());
    spec
}

impl Bench {
    pub(super) fn new(spec: HostSpec) -> Self {
        let secrets = HostSecrets {
            bmc_password: Some(Secret::new("p".to_owned())),
            ..HostSecrets::default()
        };
        let now = "2026-11-21T12:00:00Z".parse().unwrap();
        let added = HostManifest::new("n", spec, secrets);
        let change = intent::enrol(added, "uid".to_owned(), now).unwrap();
        Self {
            record: change.record,
            kept: change.kept,
            now,
            limits: Limits::default(),
            transcript: String::new(),
            is_on: false,
            cluster: Ok(Look::default()),
            draining: Draining::Done,
        }
    }

    /// Enrolled, inspected, erased: available, with its ramdisk in touch.
    pub(super) fn available(spec: HostSpec) -> Self {
        let mut bench = Self::new(spec);
        bench.settle();
        bench.hello();
        bench.inspected("S1");
        bench.done(erased());
        bench
    }

    /// An OS on it, whose daemon is in touch.
    pub(super) fn provisioned(spec: HostSpec) -> Self {
        let mut bench = Self::available(spec);
        bench.set(&json!({"image": image("a")}));
        bench.deploy();
        bench.check_in("boot-1");
        bench
    }

    pub(super) fn deploy(&mut self) {
        self.done(Outcome::ImageWritten(
            ferrite_proto::step::ImageWritten::default(),
        ));
        self.done(Outcome::ConfigDriveWritten {
            partition: "/dev/sda2".to_owned(),
            bytes: 1,
        });
        self.entry_set();
        self.booting();
    }

    pub(super) fn say(&mut self, line: &str) {
        let _ = writeln!(self.transcript, "{line}");
    }

    pub(super) fn change<T>(&mut self, change: impl FnOnce(&mut Change) -> T) -> T {
        let (record, kept) = (self.record.clone(), self.kept.clone());
        let mut draft = Change::new(record, kept, self.now);
        let answer = change(&mut draft);
        (self.record, self.kept) = (draft.record, draft.kept);
        answer
    }

    /// A person asks; the answer is written down.
    pub(super) fn ask(
        &mut self,
        what: &str,
        change: impl FnOnce(&mut Change) -> Result<(), Problem>,
    ) -> &mut Self {
        let line = match self.change(change) {
            Ok(()) => format!("> {what}"),
            Err(problem) => format!("> {what}: refused: {problem}"),
        };
        self.say(&line);
        self.settle()
    }

    pub(super) fn set(&mut self, patch: &Value) -> &mut Self {
        let mut whole = serde_json::to_value(&self.record.host.spec).unwrap();
        ferrite_proto::merge::apply(&mut whole, patch);
        let wanted: HostSpec = from_value(whole).unwrap();
        let manifest = HostManifest::new("n", wanted, HostSecrets::default());
        self.ask(&format!("set {patch}"), |change| change.apply(manifest))
    }

    pub(super) fn report(&mut self, report: Report) -> &mut Self {
        let limits = self.limits.clone();
        self.change(|change| {
            change.report(report, &limits);
            change.polled();
        });
        self.settle()
    }

    pub(super) fn order(&self) -> u64 {
        let flow = self.record.run.workflow.as_ref().expect("no workflow");
        flow.outstanding().expect("no order is out").0
    }

    pub(super) fn done(&mut self, outcome: Outcome) -> &mut Self {
        let order = self.order();
        self.say("< done");
        self.report(Report::Done {
            order,
            outcome,
            seconds: 1.0,
        })
    }

    pub(super) fn inspected(&mut self, serial: &str) -> &mut Self {
        let disk = Disk {
            name: "/dev/sda".to_owned(),
            serial: Some(serial.to_owned()),
            size_bytes: 8 << 30,
            logical_sector: 512,
            ..Disk::default()
        };
        let inventory = Inventory {
            disks: vec![disk],
            ..Inventory::default()
        };
        self.done(Outcome::Inspected {
            inventory: Box::new(inventory),
        })
    }

    pub(super) fn entry_set(&mut self) -> &mut Self {
        self.done(Outcome::BootEntrySet {
            detail: "Boot0001".to_owned(),
        })
    }

    pub(super) fn booting(&mut self) -> &mut Self {
        self.done(Outcome::Booting {
            method: BootMethod::Kexec,
            detail: "6.1".to_owned(),
        })
    }

    pub(super) fn hello(&mut self) -> &mut Self {
        self.say("< hello");
        let ticket_sha256 = self.record.run.boot.clone().expect("no boot").ticket_sha256;
        let facts = HelloFacts {
            ticket_sha256,
            nonce: "n".to_owned(),
            token_sha256: "t".to_owned(),
            version: "1".to_owned(),
            kernel: "6.1".to_owned(),
            uptime_seconds: 3.0,
            memory_bytes: 1,
            netboot_bytes: 1,
        };
        self.change(|change| change.hello(facts, Secret::new("t".to_owned())));
        self.settle()
    }

    pub(super) fn check_in(&mut self, boot: &str) -> &mut Self {
        self.say(&format!("< the daemon of {boot} checks in"));
        let report = CheckIn {
            boot_id: boot.to_owned(),
            booted_at: self.now,
            uptime_seconds: 1.0,
            os: "debian".to_owned(),
            kernel: "6.1".to_owned(),
            agent_version: "1".to_owned(),
            cloud_init: CloudInit {
                stage: CloudInitStage::Done,
                ..CloudInit::default()
            },
        };
        self.change(|change| change.checked_in(report));
        self.settle()
    }

    /// Goes on until nothing is to be done.
    pub(super) fn settle(&mut self) -> &mut Self {
        for _ in 0..50 {
            let limits = self.limits.clone();
            let seen = Observed {
                agent_seen: Some(self.now),
                daemon_seen: Some(self.now),
                steady_since: None,
                image: Wanted::default(),
                limits: &limits,
            };
            match plan(&self.record, &seen, self.now) {
                Decision::Wait { reason, .. } => {
                    self.say(&format!("waits for {reason}"));
                    return self;
                }
                Decision::Go(state) => {
                    self.say(&format!("→ {state}"));
                    self.change(|change| change.enter(state));
                }
                Decision::Fail(problem) => {
                    self.say(&format!("fails: {problem}"));
                    self.change(|change| change.fail(problem, &limits));
                }
                Decision::Do(action) => {
                    self.say(&format!("{action:?}"));
                    if action == Action::Remove {
                        return self;
                    }
                    self.act(action);
                }
            }
        }
        panic!("goes in circles:\n{}", self.transcript);
    }

    pub(super) fn act(&mut self, action: Action) {
        let (now, limits) = (self.now, self.limits.clone());
        let power = if self.is_on { Power::On } else { Power::Off };
        match action {
            Action::PowerOn | Action::ForceRestart => self.is_on = true,
            Action::PowerOff => self.is_on = false,
            _ => {}
        }
        let (cluster, draining) = (self.cluster.clone(), self.draining.clone());
        self.change(|change| match action {
            Action::Identify => change.identified(Some("u"), power, &limits),
            Action::ReadPower => change.power_read(power),
            Action::Arm => change.armed(ticket(), &limits),
            Action::InsertMedia => change.boot_phase(BootPhase::MediaIn),
            Action::SetBootOnce => change.boot_phase(BootPhase::OverrideSet),
            Action::PowerOn | Action::ForceRestart => change.power_asked(now),
            Action::PowerOff => change.powered_off(),
            Action::ReleaseBoot => change.released(),
            Action::OpenDeployment => {
                change.open_deployment(None, Secret::new("c".to_owned()), "c".to_owned());
            }
            Action::BeginSteps(kind) => change.begin_steps(kind),
            Action::Order(name) => change.order(name),
            Action::Cancel => change.cancel(),
            Action::ForgetAgent => change.drop_agent("gone"),
            Action::OsIsUp => change.os_is_up(),
            Action::Admit(work) => change.admit(work),
            Action::Yield => change.yield_turn(),
            Action::Propose(step) => change.propose(step),
            Action::Rest => change.rest(&limits),
            Action::EndOperation => change.end_operation(),
            Action::Join(action) => at_cluster(change, action, cluster, draining, &limits),
            Action::Remove => {}
        });
        self.now += SignedDuration::from_secs(1);
    }

    /// What was said since the last time, without times, ids of plans made the same.
    pub(super) fn told(&mut self) -> String {
        let told = std::mem::take(&mut self.transcript);
        let untimed = told
            .lines()
            .filter_map(|line| line.split(", until ").next());
        let told = untimed.fold(String::new(), |told, line| told + line + "\n");
        match &self.record.host.status.plan {
            Some(plan) => told.replace(&plan.id, "PLAN"),
            None => told,
        }
    }

    #[track_caller]
    pub(super) fn tells(&mut self, expected: &str) {
        let lines = |text: &str| -> Vec<String> {
            let lines = text.lines().map(|line| line.trim().to_owned());
            lines.filter(|line| !line.is_empty()).collect()
        };
        let told = self.told();
        assert_eq!(lines(&told), lines(expected), "told:\n{told}");
    }
}

pub(super) fn ticket() -> NewTicket {
    NewTicket {
        ticket: Secret::new("t".to_owned()),
        sha256: "t".to_owned(),
        iso_token: Secret::new("i".to_owned()),
    }
}

pub(super) fn image(name: &str) -> ImageRef {
    from_value(json!({
        "url": format!("http://images/{name}"),
        "digest": format!("sha256:{}", "a".repeat(64)),
        "format": "raw",
    }))
    .unwrap()
}

pub(super) fn erased() -> Outcome {
    Outcome::Erased { disks: Vec::new() }
}

/// What the driver does at a cluster, with what this one says.
fn at_cluster(
    change: &mut Change,
    action: JoinAction,
    cluster: Result<Look, Problem>,
    draining: Draining,
    limits: &Limits,
) {
    let told = match (action, cluster) {
        // What cannot be revoked is removed later.
        (JoinAction::Begin | JoinAction::Revoke, _) => Told::Nothing,
        (_, Err(problem)) => return change.fail(problem, limits),
        (JoinAction::Look, Ok(look)) => Told::Look(look),
        (JoinAction::Drain, Ok(_)) => Told::Drained(draining),
        (JoinAction::Mint, Ok(_)) => {
            let file = || Secret::new("token".to_owned());
            let files = JoinFiles {
                v1beta3: file(),
                v1beta4: file(),
            };
            Told::Minted("abcdef".to_owned(), files)
        }
        (_, Ok(_)) => Told::Nothing,
    };
    at_cluster::note(change, action, &told, limits);
}
