//! Operations on the pure core: a script goes in, a transcript comes out, compared as text.

use ferrite_proto::agent_api::Report;
use ferrite_proto::operation::{Approval, Clean, Hold, Service};
use ferrite_proto::problem::Problem;
use ferrite_proto::secret::Secret;
use ferrite_proto::step::Outcome;
use serde_json::{from_value, json};

use super::StepName;
use super::bench::{Bench, erased, image, spec};
use super::change::Change;
use super::record::RescueSecret;

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
