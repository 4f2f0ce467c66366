//! Operations on the pure core: a script goes in, a transcript comes out, compared as text.

use std::fmt::Write as _;

use ferrite_proto::agent_api::{CheckIn, CloudInit, CloudInitStage, Report};
use ferrite_proto::host::{BmcSpec, HostManifest, HostSecrets, HostSpec, Power};
use ferrite_proto::image::ImageRef;
use ferrite_proto::inventory::{Disk, Inventory};
use ferrite_proto::operation::{Approval, Clean, Hold, Service};
use ferrite_proto::problem::Problem;
use ferrite_proto::secret::Secret;
use ferrite_proto::step::{BootMethod, Outcome};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, from_value, json};

use super::change::{Change, NewTicket};
use super::image::Wanted;
use super::plan::{Action, Decision, plan};
use super::record::{BootPhase, HelloFacts, Kept, Limits, Observed, Record, RescueSecret};
use super::{StepName, intent};

/// A host, its BMC that obeys, and what was decided.
struct Bench {
    record: Record,
    kept: Kept,
    now: Timestamp,
    limits: Limits,
    transcript: String,
    is_on: bool,
}

fn spec() -> HostSpec {
    let mut spec = HostSpec::new(BmcSpec {
        address: "redfish://b".to_owned(),
        username: "u".to_owned(),
        insecure_tls: false,
    });
    spec.boot_mac = Some("52:54:00:00:00:01".parse().unwrap());
    spec
}

impl Bench {
    fn new(spec: HostSpec) -> Self {
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
        }
    }

    /// Enrolled, inspected, erased: available, with its ramdisk in touch.
    fn available(spec: HostSpec) -> Self {
        let mut bench = Self::new(spec);
        bench.settle();
        bench.hello();
        bench.inspected("S1");
        bench.done(erased());
        bench
    }

    /// An OS on it, whose daemon is in touch.
    fn provisioned(spec: HostSpec) -> Self {
        let mut bench = Self::available(spec);
        bench.set(&json!({"image": image("a")}));
        bench.deploy();
        bench.check_in("boot-1");
        bench
    }

    fn deploy(&mut self) {
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

    fn say(&mut self, line: &str) {
        let _ = writeln!(self.transcript, "{line}");
    }

    fn change<T>(&mut self, change: impl FnOnce(&mut Change) -> T) -> T {
        let (record, kept) = (self.record.clone(), self.kept.clone());
        let mut draft = Change::new(record, kept, self.now);
        let answer = change(&mut draft);
        (self.record, self.kept) = (draft.record, draft.kept);
        answer
    }

    /// A person asks; the answer is written down.
    fn ask(
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

    fn set(&mut self, patch: &Value) -> &mut Self {
        let mut whole = serde_json::to_value(&self.record.host.spec).unwrap();
        ferrite_proto::merge::apply(&mut whole, patch);
        let wanted: HostSpec = from_value(whole).unwrap();
        let manifest = HostManifest::new("n", wanted, HostSecrets::default());
        self.ask(&format!("set {patch}"), |change| change.apply(manifest))
    }

    fn report(&mut self, report: Report) -> &mut Self {
        let limits = self.limits.clone();
        self.change(|change| {
            change.report(report, &limits);
            change.polled();
        });
        self.settle()
    }

    fn order(&self) -> u64 {
        let flow = self.record.run.workflow.as_ref().expect("no workflow");
        flow.outstanding().expect("no order is out").0
    }

    fn done(&mut self, outcome: Outcome) -> &mut Self {
        let order = self.order();
        self.say("< done");
        self.report(Report::Done {
            order,
            outcome,
            seconds: 1.0,
        })
    }

    fn inspected(&mut self, serial: &str) -> &mut Self {
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

    fn entry_set(&mut self) -> &mut Self {
        self.done(Outcome::BootEntrySet {
            detail: "Boot0001".to_owned(),
        })
    }

    fn booting(&mut self) -> &mut Self {
        self.done(Outcome::Booting {
            method: BootMethod::Kexec,
            detail: "6.1".to_owned(),
        })
    }

    fn hello(&mut self) -> &mut Self {
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

    fn check_in(&mut self, boot: &str) -> &mut Self {
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
    fn settle(&mut self) -> &mut Self {
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

    fn act(&mut self, action: Action) {
        let (now, limits) = (self.now, self.limits.clone());
        let power = if self.is_on { Power::On } else { Power::Off };
        match action {
            Action::PowerOn | Action::ForceRestart => self.is_on = true,
            Action::PowerOff => self.is_on = false,
            _ => {}
        }
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
            Action::Remove => {}
        });
        self.now += SignedDuration::from_secs(1);
    }

    /// What was said since the last time, without times, ids of plans made the same.
    fn told(&mut self) -> String {
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
    fn tells(&mut self, expected: &str) {
        let lines = |text: &str| -> Vec<String> {
            let lines = text.lines().map(|line| line.trim().to_owned());
            lines.filter(|line| !line.is_empty()).collect()
        };
        let told = self.told();
        assert_eq!(lines(&told), lines(expected), "told:\n{told}");
    }
}

fn ticket() -> NewTicket {
    NewTicket {
        ticket: Secret::new("t".to_owned()),
        sha256: "t".to_owned(),
        iso_token: Secret::new("i".to_owned()),
    }
}

fn image(name: &str) -> ImageRef {
    from_value(json!({
        "url": format!("http://images/{name}"),
        "digest": format!("sha256:{}", "a".repeat(64)),
        "format": "raw",
    }))
    .unwrap()
}

fn erased() -> Outcome {
    Outcome::Erased { disks: Vec::new() }
}

fn service() -> Service {
    from_value(json!({"steps": [{"step": "inspect"}]})).unwrap()
}

#[test]
fn a_manual_clean_runs_its_steps_and_ends_available() {
    let mut bench = Bench::available(spec());
    bench.told();
    let clean: Clean =
        from_value(json!({"steps": [{"step": "inspect"}, {"step": "erase"}]})).unwrap();
    bench.ask("clean", |change| change.clean(&clean));
    bench.inspected("S1").done(erased());
    bench.tells(
        "> clean
        BeginSteps(ManualClean)
        Admit(Clean)
        Order(Inspect)
        waits for the agent to take inspect
        < done
        Order(Erase)
        waits for the agent to take erase
        < done
        EndOperation
        waits for an image to be set",
    );
    assert_eq!(bench.record.host.status.operation, None);
}

#[test]
fn a_service_keeps_the_disks_and_the_daemon_key_and_ends_with_the_os() {
    let mut bench = Bench::provisioned(spec());
    bench.change(|change| change.enrolled("key".to_owned()));
    let before = bench.record.run.daemon.clone();
    bench.told();
    bench.ask("service", |change| change.service(&service()));
    bench.hello().check_in("boot-1").inspected("S1").booting();
    bench.check_in("boot-1").check_in("boot-2");
    bench.tells(
        "> service
        BeginSteps(Service)
        Admit(Deploy)
        Arm
        SetBootOnce
        ReadPower
        ForceRestart
        ReadPower
        waits for the ramdisk to say hello
        < hello
        Order(Inspect)
        waits for the agent to take inspect
        < the daemon of boot-1 checks in
        waits for the agent to take inspect
        < done
        ReleaseBoot
        Order(Boot)
        waits for the agent to take boot
        < done
        waits for the host daemon's first contact
        < the daemon of boot-1 checks in
        waits for the host daemon's first contact
        < the daemon of boot-2 checks in
        OsIsUp
        EndOperation
        waits for nothing: it runs",
    );
    let run = &bench.record.run;
    assert_eq!(run.daemon, before, "the same key checks in again");
    assert_eq!(run.workflow, None);
}

#[test]
fn no_order_that_wipes_leaves_in_a_service_whatever_is_stored() {
    let mut bench = Bench::provisioned(spec());
    bench.ask("service", |change| change.service(&service()));
    bench.hello();
    let flow = bench.record.run.workflow.as_mut().unwrap();
    assert!(flow.to_hand_out().is_some());
    for wipes in [StepName::Erase, StepName::WriteImage] {
        bench.record.run.workflow.as_mut().unwrap().steps[0].name = wipes;
        assert_eq!(bench.record.to_hand_out(), None);
    }
}

#[test]
fn a_service_whose_ramdisk_is_gone_starts_the_os_through_the_firmware() {
    let mut bench = Bench::provisioned(spec());
    bench.ask("service", |change| change.service(&service()));
    bench.hello();
    bench.told();
    bench.ask("abort", Change::abort);
    let order = bench.order();
    bench.report(Report::Failed {
        order,
        problem: Problem::new(ferrite_proto::problem::Code::StepCancelled, "cancelled", ""),
    });
    let order = bench.order();
    bench.change(|change| change.drop_agent("test"));
    assert_eq!(bench.record.run.last_order, order);
    bench.settle().check_in("boot-2");
    bench.tells(
        "> abort
        Cancel
        waits for the agent to stop inspect
        Rest
        ReleaseBoot
        Order(Boot)
        waits for the agent to take boot
        ReadPower
        ForceRestart
        waits for the host daemon's first contact
        < the daemon of boot-2 checks in
        OsIsUp
        EndOperation
        waits for nothing: it runs",
    );
}

#[test]
fn a_service_that_was_not_begun_is_aborted_without_a_reset() {
    let mut bench = Bench::provisioned(spec());
    bench.set(&json!({"paused": true}));
    bench.told();
    bench.ask("service", |change| change.service(&service()));
    bench.ask("abort", Change::abort);
    bench.set(&json!({"paused": null}));
    bench.tells(
        r#"> service
        waits for spec.paused to be cleared: `ferrite host resume n`
        > abort
        waits for spec.paused to be cleared: `ferrite host resume n`
        > set {"paused":null}
        Rest
        ReleaseBoot
        EndOperation
        waits for nothing: it runs"#,
    );
}

#[test]
fn a_rescue_stays_until_unrescue_and_boots_its_own_ramdisk() {
    let mut bench = Bench::provisioned(spec());
    bench.told();
    let secret = RescueSecret {
        password_hash: Secret::new("$6$".to_owned()),
        authorized_keys: Vec::new(),
    };
    bench.ask("rescue", |change| change.rescue(secret.clone()));
    let flavour = bench.record.run.boot.as_ref().map(|boot| boot.flavour);
    assert_eq!(flavour, Some(super::record::BootFlavour::Rescue));
    bench.hello().done(Outcome::RescueReady {
        addresses: vec!["10.0.0.1".to_owned()],
        host_keys: vec!["SHA256:x".to_owned()],
    });
    let access = bench.record.operation().unwrap().access.clone().unwrap();
    assert_eq!(access.addresses, ["10.0.0.1"]);
    // The machine is reset by whoever is logged in: the rescue comes back.
    bench.change(|change| change.drop_agent("reset"));
    bench.settle().hello().done(Outcome::RescueReady {
        addresses: vec!["10.0.0.1".to_owned()],
        host_keys: Vec::new(),
    });
    bench.ask("unrescue", Change::unrescue);
    assert_eq!(bench.kept.rescue, None, "the password is forgotten");
    bench.booting().check_in("boot-2");
    bench.tells(
        "> rescue
        BeginSteps(Rescue)
        Arm
        SetBootOnce
        ReadPower
        ForceRestart
        ReadPower
        waits for the ramdisk to say hello
        < hello
        Order(Rescue)
        waits for the agent to take rescue
        < done
        waits for a person: it is in rescue; `ferrite host unrescue n` starts its OS
        BeginSteps(Rescue)
        Arm
        SetBootOnce
        ReadPower
        ForceRestart
        ReadPower
        waits for the ramdisk to say hello
        < hello
        Order(Rescue)
        waits for the agent to take rescue
        < done
        waits for a person: it is in rescue; `ferrite host unrescue n` starts its OS
        > unrescue
        ReleaseBoot
        Order(Boot)
        waits for the agent to take boot
        < done
        waits for the host daemon's first contact
        < the daemon of boot-2 checks in
        OsIsUp
        EndOperation
        waits for nothing: it runs",
    );
}

#[test]
fn a_host_is_adopted_without_a_boot_and_taken_back() {
    let mut adopted = spec();
    adopted.externally_provisioned = true;
    let mut bench = Bench::new(adopted);
    bench.settle();
    bench.set(&json!({"externally_provisioned": null, "paused": true}));
    bench.set(&json!({"paused": null}));
    bench.tells(
        r#"Identify
        → externally provisioned
        waits for nothing: somebody else provisioned it
        > set {"externally_provisioned":null,"paused":true}
        waits for spec.paused to be cleared: `ferrite host resume n`
        > set {"paused":null}
        → inspecting
        BeginSteps(Inspect)
        Admit(Inspect)
        Arm
        SetBootOnce
        ReadPower
        PowerOn
        ReadPower
        waits for the ramdisk to say hello"#,
    );
}

#[test]
fn a_detached_host_is_left_alone_and_deleted_without_its_bmc() {
    let mut bench = Bench::provisioned(spec());
    bench.told();
    bench.set(&json!({"detached": true}));
    bench.ask("delete", Change::delete);
    bench.tells(
        r#"> set {"detached":true}
        Yield
        waits for nothing: it is detached; `ferrite host attach n` takes it back
        > delete
        → deleting
        Remove"#
            .replace("Yield\n", "\n")
            .as_str(),
    );
}

#[test]
fn maintenance_lets_a_step_end_and_begins_none() {
    let mut bench = Bench::available(spec());
    bench.set(&json!({"image": image("a")}));
    bench.told();
    let hold = serde_json::to_value(Hold {
        reason: "new fan".to_owned(),
    });
    bench.set(&json!({"maintenance": hold.unwrap()}));
    bench.done(Outcome::ImageWritten(
        ferrite_proto::step::ImageWritten::default(),
    ));
    bench.set(&json!({"maintenance": null}));
    bench.tells(
        r#"> set {"maintenance":{"reason":"new fan"}}
        waits for the agent to take write-image
        < done
        Yield
        waits for maintenance to end (new fan): `ferrite host maintenance off n`
        > set {"maintenance":null}
        Admit(Deploy)
        Order(WriteConfigDrive)
        waits for the agent to take write-config-drive"#,
    );
}

#[test]
fn a_retired_host_is_cleaned_and_never_provisioned_again() {
    let mut kept = spec();
    kept.automated_cleaning = ferrite_proto::host::AutomatedCleaning::Disabled;
    let mut bench = Bench::new(kept);
    bench.settle();
    bench.hello();
    bench.inspected("S1");
    bench.set(&json!({"image": image("a")}));
    bench.deploy();
    bench.check_in("boot-1");
    bench.told();
    bench.set(&json!({"retired": {"reason": "old"}}));
    bench.ask("deprovision", Change::deprovision);
    bench.hello().done(erased());
    bench.set(&json!({"image": image("b")}));
    bench.tells(
        r#"> set {"retired":{"reason":"old"}}
        waits for nothing: it runs
        > deprovision
        → deprovisioning
        BeginSteps(Clean)
        Admit(Clean)
        Arm
        SetBootOnce
        ReadPower
        ForceRestart
        ReadPower
        waits for the ramdisk to say hello
        < hello
        Order(Erase)
        waits for the agent to take erase
        < done
        → preparing
        → available
        waits for nothing: it is retired (old)
        > set {"image":"B"}: refused: n is retired (old) and is not provisioned any more [conflict]
        waits for nothing: it is retired (old)"#
            .replace("\"B\"", &serde_json::to_string(&json!(image("b"))).unwrap())
            .as_str(),
    );
}

#[test]
fn a_protected_host_keeps_what_it_has() {
    let mut bench = Bench::provisioned(spec());
    bench.set(&json!({"protected": true}));
    bench.told();
    bench.ask("deprovision", Change::deprovision);
    bench.ask("delete", Change::delete);
    bench.set(&json!({"image": null, "protected": null}));
    let runs = "waits for nothing: it runs";
    let refusal = "n is protected: no change of what it runs [protected]";
    bench.tells(&format!(
        r#"> deprovision: refused: {refusal}
        {runs}
        > delete: refused: n is protected: no deletion [protected]
        {runs}
        > set {{"image":null,"protected":null}}: refused: {refusal}
        {runs}"#
    ));
    assert!(bench.record.host.spec.image.is_some());
}

#[test]
fn abort_rests_by_name_and_retry_goes_on() {
    let mut bench = Bench::available(spec());
    bench.set(&json!({"image": image("a")}));
    bench.told();
    bench.ask("abort", Change::abort);
    bench.change(Change::polled);
    bench.settle();
    bench.ask("retry", |change| {
        change.retry();
        Ok(())
    });
    bench.tells(
        "> abort
        Cancel
        waits for the agent to stop write-image
        Rest
        waits for a person: (conductor) aborted it while provisioning, before write-image [aborted]
        > retry
        Admit(Deploy)
        Order(WriteImage)
        waits for the agent to take write-image",
    );
}

#[test]
fn exactly_the_plan_that_was_approved_goes() {
    let mut careful = spec();
    careful.approval = Approval::Required;
    let mut bench = Bench::new(careful);
    bench.settle();
    bench.hello();
    bench.told();
    bench.inspected("S1");
    let first = bench.record.host.status.plan.clone().unwrap();
    assert_eq!(first.destruction.disks[0].serial.as_deref(), Some("S1"));
    assert_eq!(bench.record.to_hand_out(), None);
    bench.tells(
        "< done
        → preparing
        BeginSteps(Clean)
        Propose(Erase)
        waits for approval of plan PLAN (erase): `ferrite host approve n PLAN`",
    );
    // A disk is swapped: the approval of the old plan is worth nothing.
    bench.record.run.disks[0].serial = Some("S2".to_owned());
    bench.settle();
    let id = first.id.clone();
    bench.ask("approve the first", |change| change.approve(&id));
    let id = bench.record.host.status.plan.clone().unwrap().id;
    assert_ne!(id, first.id);
    bench.ask("approve", |change| change.approve(&id));
    let told = bench.told();
    assert!(told.contains("refused: the plan of n is PLAN"), "{told}");
    assert!(
        told.contains("> approve\nAdmit(Clean)\nOrder(Erase)\n"),
        "{told}"
    );
}

#[test]
fn what_an_older_conductor_stored_still_reads() {
    let bench = Bench::provisioned(spec());
    let mut run = serde_json::to_value(&bench.record.run).unwrap();
    let mut status = serde_json::to_value(&bench.record.host.status).unwrap();
    for new in ["chosen", "boot_before", "abort", "disks"] {
        run.as_object_mut().unwrap().remove(new).unwrap();
    }
    for new in ["operation", "plan", "turn"] {
        status.as_object_mut().unwrap().remove(new);
    }
    let run: super::record::Runtime = from_value(run).unwrap();
    assert_eq!(run.deployment, bench.record.run.deployment);
    from_value::<ferrite_proto::host::HostStatus>(status).unwrap();
    let old = json!({"ticket_sha256": "t", "armed_at": "2026-11-21T12:00:00Z",
        "expires_at": "2026-11-21T12:00:00Z", "phase": {"phase": "armed"}});
    from_value::<super::record::RamdiskBoot>(old).unwrap();
}
