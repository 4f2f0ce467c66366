//! Joining a cluster and leaving it, on the pure core: scripts and their transcripts.

use ferrite_proto::join::{JoinEnd, JoinPhase};
use ferrite_proto::problem::{Code, Problem};
use ferrite_proto::step::Outcome;
use jiff::SignedDuration;
use serde_json::json;

use super::bench::{Bench, erased, image, spec};
use super::joining::{Csr, Draining, Look, SeenNode};

/// A host that is to join, whose OS is up.
fn os_is_up() -> Bench {
    os_is_up_to_join(&json!({"cluster": "prod"}), Ok(Look::default()))
}

fn os_is_up_to_join(join: &serde_json::Value, cluster: Result<Look, Problem>) -> Bench {
    let mut bench = Bench::available(spec());
    bench.told();
    bench.cluster = cluster;
    bench.set(&json!({"image": image("a"), "join": join}));
    bench.deploy();
    bench.check_in("boot-1");
    bench
}

/// The daemon asks, and is given material.
fn given(bench: &mut Bench) {
    let attempt = bench.record.host.status.join.as_ref().unwrap().attempt;
    assert!(bench.record.is_joining(attempt));
    bench.say("< material is asked for");
    bench.change(|change| {
        change.found(&[], Some("UUID-1"));
        change.given("abcdef", &["sha256:a".to_owned()]);
    });
    bench.settle();
}

/// Some seconds later.
fn later(bench: &mut Bench, seconds: i64) {
    bench.now += SignedDuration::from_secs(seconds);
    bench.settle();
}

fn node(bench: &Bench) -> SeenNode {
    SeenNode {
        uid: "node-1".to_owned(),
        provider_id: Some("ferrite://uid".to_owned()),
        system_uuid: "uuid-1".to_owned(),
        boot_id: "boot-1".to_owned(),
        ready: true,
        waits_for_cni: false,
        message: "kubelet is posting ready status".to_owned(),
        lease_renewed: Some(bench.now),
    }
}

fn issued(node: Option<SeenNode>) -> Look {
    Look {
        csr: Csr::Issued,
        node,
        ca_hashes: vec!["sha256:a".to_owned(), "sha256:b".to_owned()],
        ..Look::default()
    }
}

fn phase(bench: &Bench) -> JoinPhase {
    bench.record.host.status.join.as_ref().unwrap().phase
}

fn joined() -> Bench {
    let mut bench = os_is_up();
    bench.cluster = Ok(issued(Some(node(&bench))));
    given(&mut bench);
    assert_eq!(phase(&bench), JoinPhase::Joined);
    bench.told();
    bench
}

#[test]
fn a_host_joins_proof_by_proof_and_its_token_goes() {
    let mut bench = os_is_up();
    let told = bench.told();
    assert!(told.contains("Join(Check)\nOrder(WriteImage)"), "{told}");
    assert!(told.ends_with(
        "OsIsUp\nJoin(Begin)\nwaits for the host daemon to ask for what it takes to join\n"
    ));
    given(&mut bench);
    bench.cluster = Ok(issued(None));
    later(&mut bench, 3);
    let mut node = node(&bench);
    node.ready = false;
    bench.cluster = Ok(issued(Some(node.clone())));
    later(&mut bench, 3);
    node.ready = true;
    node.lease_renewed = Some(bench.now);
    bench.cluster = Ok(issued(Some(node)));
    later(&mut bench, 3);
    bench.tells(
        "< material is asked for
        Join(Look)
        waits for the kubelet's certificate
        Join(Look)
        waits for the Node to appear
        Join(Look)
        waits for the Node to be ready
        Join(Look)
        Join(Settle)
        Join(Revoke)
        → provisioned
        waits for nothing: it runs",
    );
    let run = bench.record.run.joining.as_ref().unwrap();
    assert_eq!(
        (run.token.as_ref(), run.node_uid.as_deref()),
        (None, Some("node-1"))
    );
}

#[test]
fn a_node_of_another_machine_or_boot_proves_nothing() {
    type Change = fn(&mut SeenNode);
    let others: [Change; 3] = [
        |node| node.system_uuid = "uuid-2".to_owned(),
        |node| node.boot_id = "boot-0".to_owned(),
        |node| node.provider_id = Some("ferrite://other".to_owned()),
    ];
    for change in others {
        let mut bench = os_is_up();
        let mut other = node(&bench);
        change(&mut other);
        bench.cluster = Ok(issued(Some(other)));
        given(&mut bench);
        assert_eq!(phase(&bench), JoinPhase::Identity);
        later(&mut bench, 61);
        let error = bench.record.host.status.error.clone().unwrap();
        assert_eq!(error.problem.code, Code::JoinNodeOther);
        assert!(error.retry_at.is_some());
    }
}

#[test]
fn a_lease_of_the_past_is_not_ready() {
    let mut bench = os_is_up();
    let mut stale = node(&bench);
    stale.lease_renewed = Some(bench.now - SignedDuration::from_mins(10));
    bench.cluster = Ok(issued(Some(stale)));
    given(&mut bench);
    assert_eq!(phase(&bench), JoinPhase::Ready);
    later(&mut bench, 301);
    let error = bench.record.host.status.error.clone().unwrap();
    assert_eq!(error.problem.code, Code::JoinNotReady);
}

#[test]
fn what_waits_for_a_cni_has_joined_and_is_looked_at_until_it_is_ready() {
    let mut bench = os_is_up();
    let mut bare = node(&bench);
    (bare.ready, bare.waits_for_cni) = (false, true);
    bench.cluster = Ok(issued(Some(bare)));
    given(&mut bench);
    assert_eq!(phase(&bench), JoinPhase::WaitingForCni);
    let told = bench.told();
    assert!(told.contains("→ provisioned"), "{told}");
    assert!(
        told.ends_with("it has joined, and the cluster has no CNI yet\n"),
        "{told}"
    );
    assert_eq!(bench.record.host.status.error, None);
    bench.cluster = Ok(issued(Some(node(&bench))));
    later(&mut bench, 16);
    assert_eq!(phase(&bench), JoinPhase::Joined);
    assert_eq!(bench.record.host.status.join.as_ref().unwrap().hint, None);
}

#[test]
fn a_failed_attempt_says_why_gives_its_token_up_and_is_followed_by_another() {
    let mut bench = os_is_up();
    given(&mut bench);
    let line = "tls: failed to verify certificate: x509: certificate has expired or is not yet \
                valid: current time 2026";
    bench.change(|change| change.kubeadm_said(1, &[line.to_owned()]));
    bench.settle();
    let hint = bench.record.host.status.join.clone().unwrap().hint.unwrap();
    assert_eq!(hint.code, Code::JoinClock, "known before the end");
    let limits = bench.limits.clone();
    let end = JoinEnd::Failed { status: Some(1) };
    bench.change(|change| change.kubeadm_ended(1, &end, None, &limits));
    bench.told();
    bench.settle();
    assert!(!bench.record.is_joining(1));
    let told = bench.told();
    assert!(
        told.starts_with("Join(Revoke)\nwaits for the next attempt"),
        "{told}"
    );
    later(&mut bench, 6);
    bench.tells(
        "Join(Begin)
        waits for the host daemon to ask for what it takes to join",
    );
    assert!(bench.record.is_joining(2));
    bench.cluster = Ok(issued(Some(node(&bench))));
    given(&mut bench);
    assert_eq!(phase(&bench), JoinPhase::Joined);
    assert_eq!(bench.record.host.status.error, None);
}

#[test]
fn a_cluster_that_is_away_is_waited_for_as_long_as_it_takes() {
    let mut bench = os_is_up();
    given(&mut bench);
    let away = Problem::new(Code::ClusterUnreachable, "no answer", "");
    bench.cluster = Err(away);
    for _ in 0..30 {
        later(&mut bench, 20);
    }
    let error = bench.record.host.status.error.clone().unwrap();
    assert_eq!(error.problem.code, Code::ClusterUnreachable);
    let pause = error.retry_at.unwrap().duration_since(error.at);
    assert!(pause <= SignedDuration::from_secs(20), "{pause}");
    // It is back: what was missed in the meantime is not held against the host.
    bench.cluster = Ok(issued(None));
    later(&mut bench, 20);
    assert_eq!(
        (phase(&bench), bench.record.is_joining(1)),
        (JoinPhase::Node, true)
    );
    bench.cluster = Ok(issued(Some(node(&bench))));
    later(&mut bench, 3);
    assert_eq!(phase(&bench), JoinPhase::Joined);
}

/// Ten minutes without an API server after the token was given; kubeadm gives up meanwhile, and
/// no attempt that is begun meanwhile comes to anything.
#[test]
fn ten_minutes_without_an_api_server_in_the_middle_of_a_join() {
    let mut bench = os_is_up();
    given(&mut bench);
    let away = Problem::new(Code::ClusterUnreachable, "no answer", "");
    bench.cluster = Err(away.clone());
    let began = bench.now;
    later(&mut bench, 5);
    let told = bench.record.host.status.error.clone().unwrap();
    assert_eq!(told.problem.code, Code::ClusterUnreachable);
    assert!(told.at.duration_since(began) < SignedDuration::from_secs(30));
    let limits = bench.limits.clone();
    let mut attempts = 0;
    while bench.now.duration_since(began) < SignedDuration::from_mins(10) {
        later(&mut bench, 5);
        let attempt = bench.record.host.status.join.as_ref().unwrap().attempt;
        if !bench.record.is_joining(attempt) {
            continue;
        }
        attempts += 1;
        let refused = ["connect: connection refused".to_owned()];
        let end = JoinEnd::Failed { status: Some(1) };
        bench.change(|change| {
            change.kubeadm_said(attempt, &refused);
            match attempt {
                1 => change.kubeadm_ended(attempt, &end, None, &limits),
                // The daemon asks, and no token can be made.
                _ => change.join_failed(away.clone(), &limits),
            }
        });
    }
    assert!(attempts > 10, "{attempts}");
    let error = bench.record.host.status.error.clone().unwrap();
    assert!(error.retry_at.is_some(), "nobody has to do anything");
    bench.cluster = Ok(issued(Some(node(&bench))));
    let back = bench.now;
    let joined = std::iter::repeat_n((), 120).any(|()| {
        later(&mut bench, 1);
        let attempt = bench.record.host.status.join.as_ref().unwrap().attempt;
        if phase(&bench) == JoinPhase::Ordered && bench.record.is_joining(attempt) {
            bench.cluster = Ok(issued(Some(node(&bench))));
            given(&mut bench);
        }
        phase(&bench) == JoinPhase::Joined
    });
    assert!(joined, "{}", bench.now.duration_since(back));
    assert_eq!(bench.record.host.status.error, None);
}

fn error_of(bench: &Bench) -> Option<Code> {
    let error = bench.record.host.status.error.as_ref();
    error.map(|error| error.problem.code)
}

#[test]
fn a_token_that_goes_in_the_middle_ends_the_attempt_long_before_kubeadm_does() {
    let mut bench = os_is_up();
    given(&mut bench);
    let unsigned = Look {
        is_unsigned: true,
        ..Look::default()
    };
    // As Kamaji writes cluster-info anew: signed again before long.
    bench.cluster = Ok(unsigned.clone());
    later(&mut bench, 4);
    bench.cluster = Ok(Look::default());
    later(&mut bench, 4);
    bench.cluster = Ok(unsigned);
    let began = bench.now;
    while error_of(&bench).is_none() {
        assert!(bench.record.is_joining(1));
        later(&mut bench, 4);
    }
    let took = bench.now.duration_since(began);
    assert!(
        (10..20).contains(&took.as_secs()),
        "after {took}: not at a glance, and soon"
    );
    assert_eq!(error_of(&bench), Some(Code::JoinTokenRefused));
    assert!(!bench.record.is_joining(1), "the daemon is told to stop");
}

#[test]
fn a_request_that_nobody_approves_is_told_soon_and_made_anew() {
    let mut bench = os_is_up();
    given(&mut bench);
    bench.cluster = Ok(Look {
        csr: Csr::Pending,
        ..Look::default()
    });
    for _ in 0..6 {
        later(&mut bench, 4);
    }
    let hint = bench.record.host.status.join.clone().unwrap().hint;
    assert_eq!(hint.map(|hint| hint.code), Some(Code::JoinCsrPending));
    assert!(bench.record.is_joining(1));
    for _ in 0..15 {
        later(&mut bench, 4);
    }
    assert_eq!(error_of(&bench), Some(Code::JoinCsrPending));
}

#[test]
fn a_ca_that_is_rotated_in_the_middle_has_the_join_begun_anew() {
    let rotated = |node| Look {
        ca_hashes: vec!["sha256:b".to_owned()],
        ..issued(node)
    };
    let mut bench = os_is_up();
    given(&mut bench);
    bench.cluster = Ok(rotated(None));
    later(&mut bench, 4);
    assert_eq!(error_of(&bench), Some(Code::JoinCaMismatch));
    // A worker that is proved is one, whatever its kubelet trusts.
    let mut bench = os_is_up();
    given(&mut bench);
    let mut unready = node(&bench);
    unready.ready = false;
    bench.cluster = Ok(issued(Some(unready.clone())));
    later(&mut bench, 4);
    assert_eq!(phase(&bench), JoinPhase::Ready);
    bench.cluster = Ok(rotated(Some(unready)));
    later(&mut bench, 4);
    assert_eq!(error_of(&bench), None);
}

#[test]
fn a_lease_that_is_renewed_is_fresh_though_the_hosts_clock_is_behind() {
    let mut bench = os_is_up();
    let mut slow = node(&bench);
    let behind = bench.now - SignedDuration::from_mins(3);
    slow.lease_renewed = Some(behind);
    bench.cluster = Ok(issued(Some(slow.clone())));
    given(&mut bench);
    assert_eq!(phase(&bench), JoinPhase::Ready);
    slow.lease_renewed = Some(behind + SignedDuration::from_secs(10));
    bench.cluster = Ok(issued(Some(slow)));
    later(&mut bench, 10);
    assert_eq!(phase(&bench), JoinPhase::Joined);
}

#[test]
fn a_proof_that_does_not_come_in_time_ends_the_attempt() {
    let mut bench = os_is_up();
    given(&mut bench);
    later(&mut bench, 481);
    let error = bench.record.host.status.error.clone().unwrap();
    assert_eq!(error.problem.code, Code::JoinCsrPending);
    later(&mut bench, 20);
    assert!(bench.record.is_joining(2));
}

#[test]
fn no_disk_is_written_for_a_cluster_that_cannot_be_joined() {
    let mut bench = Bench::available(spec());
    bench.told();
    bench.cluster = Err(Problem::new(
        Code::ClusterNotJoinable,
        "it sleeps",
        "wake it",
    ));
    bench.set(&json!({"image": image("a"), "join": {"cluster": "prod"}}));
    let told = bench.told();
    assert!(
        told.contains("Join(Check)\nwaits for the next attempt"),
        "{told}"
    );
    assert!(!told.contains("WriteImage"), "{told}");
    bench.cluster = Ok(Look::default());
    later(&mut bench, 10);
    let told = bench.told();
    assert!(told.contains("Order(WriteImage)"), "{told}");
}

#[test]
fn a_worker_leaves_in_the_order_that_brings_nothing_back() {
    let mut bench = joined();
    bench.draining = Draining::Left(vec!["default/web-1".to_owned()]);
    bench.ask("deprovision", super::change::Change::deprovision);
    bench.tells(
        "> deprovision
        → deprovisioning
        Join(Drain)
        waits for the pods to leave the Node: default/web-1",
    );
    bench.draining = Draining::Done;
    later(&mut bench, 16);
    let told = bench.told();
    assert!(
        told.starts_with("Join(Drain)\nBeginSteps(Clean)\n"),
        "{told}"
    );
    bench.hello();
    bench.told();
    bench.done(erased());
    let told = bench.told();
    assert!(
        told.contains("< done\nJoin(DeleteNode)\n→ preparing\n→ available"),
        "{told}"
    );
    assert_eq!(bench.record.host.status.join, None);
}

#[test]
fn pods_that_do_not_leave_are_named_and_a_person_may_go_on_without_them() {
    let mut bench = joined();
    bench.draining = Draining::Left(vec!["default/web-1".to_owned()]);
    bench.ask("deprovision", super::change::Change::deprovision);
    later(&mut bench, 601);
    let error = bench.record.host.status.error.clone().unwrap();
    assert_eq!(error.problem.code, Code::DrainBlocked);
    assert!(
        error.problem.message.contains("default/web-1"),
        "{}",
        error.problem
    );
    bench.told();
    bench.set(&json!({"join": {"drain": false}}));
    let told = bench.told();
    assert!(told.contains("BeginSteps(Clean)"), "{told}");
}

#[test]
fn who_is_deleted_is_off_before_its_node_goes() {
    let mut bench = joined();
    bench.ask("delete", super::change::Change::delete);
    let told = bench.told();
    let order = ["PowerOff", "ReleaseBoot", "Join(DeleteNode)", "Remove"];
    let places: Vec<_> = order.iter().map(|step| told.find(step).unwrap()).collect();
    assert!(places.is_sorted(), "{told}");
}

#[test]
fn an_attempt_that_is_no_longer_wanted_gives_its_token_up() {
    let mut bench = os_is_up();
    given(&mut bench);
    bench.ask("deprovision", super::change::Change::deprovision);
    let told = bench.told();
    assert!(told.contains("Join(Revoke)"), "{told}");
    assert!(!bench.record.is_joining(1));
}

#[test]
fn a_token_for_cloud_init_is_made_for_the_config_drive_and_goes_when_the_node_is_there() {
    let mut bench = Bench::available(spec());
    bench.told();
    bench.set(&json!({"image": image("a"), "join": {"cluster": "prod", "by": "cloud-init"}}));
    bench.done(image_written());
    let told = bench.told();
    assert!(
        told.contains("Join(Mint)\nOrder(WriteConfigDrive)"),
        "{told}"
    );
    assert!(bench.kept.join.is_some(), "the config drive needs it");
    assert_eq!(
        bench.record.run.joining.as_ref().unwrap().token.as_deref(),
        Some("abcdef")
    );
    bench.done(Outcome::ConfigDriveWritten {
        partition: "/dev/sda2".to_owned(),
        bytes: 1,
    });
    bench.entry_set();
    bench.booting();
    assert!(!bench.told().contains("Revoke"), "it is still needed");
    bench.check_in("boot-1");
    assert!(!bench.record.is_joining(1), "the daemon is not asked");
    assert_eq!(
        (phase(&bench), &bench.kept.join),
        (JoinPhase::Certificate, &None)
    );
    let mut starting = node(&bench);
    starting.ready = false;
    bench.cluster = Ok(issued(Some(starting)));
    later(&mut bench, 3);
    let told = bench.told();
    assert!(
        told.ends_with("Join(Look)\nJoin(Revoke)\nwaits for the Node to be ready\n"),
        "{told}"
    );
    let mut ready = node(&bench);
    ready.system_uuid = "UUID-1".to_owned();
    bench.cluster = Ok(issued(Some(ready)));
    later(&mut bench, 3);
    assert_eq!(phase(&bench), JoinPhase::Joined);
}

#[test]
fn a_host_that_does_not_join_by_cloud_init_is_an_error_without_a_token_and_watched_on() {
    let mut bench = os_is_up_to_join(
        &json!({"cluster": "prod", "by": "cloud-init"}),
        Ok(Look::default()),
    );
    later(&mut bench, 481);
    let error = bench.record.host.status.error.clone().unwrap();
    assert_eq!(error.problem.code, Code::JoinCsrPending);
    assert!(error.problem.advice.contains("ferrite host provision"));
    assert_eq!(bench.record.run.joining.as_ref().unwrap().token, None);
    later(&mut bench, 20);
    assert_eq!(
        bench
            .record
            .host
            .status
            .error
            .as_ref()
            .map(|error| error.problem.code),
        Some(Code::JoinCsrPending),
        "it is not taken back while nothing has changed"
    );
    bench.cluster = Ok(issued(Some(node(&bench))));
    later(&mut bench, 20);
    assert_eq!(
        (phase(&bench), &bench.record.host.status.error),
        (JoinPhase::Joined, &None)
    );
}

#[test]
fn a_host_whose_user_data_joins_is_watched_and_gets_no_token() {
    let mut bench = os_is_up_to_join(
        &json!({"cluster": "prod", "by": "user-data"}),
        Ok(Look::default()),
    );
    let told = bench.told();
    assert!(
        told.contains("Join(Check)") && !told.contains("Mint"),
        "{told}"
    );
    assert!(told.ends_with("Join(Begin)\nJoin(Look)\nwaits for the kubelet's certificate\n"));
    let mut theirs = node(&bench);
    theirs.provider_id = Some("metal3://default/host-1/uuid".to_owned());
    bench.cluster = Ok(issued(Some(theirs)));
    later(&mut bench, 3);
    assert_eq!(phase(&bench), JoinPhase::Joined);
    assert!(!bench.told().contains("Revoke"));
    bench.ask("deprovision", super::change::Change::deprovision);
    bench.hello();
    bench.done(erased());
    assert!(bench.told().contains("Join(DeleteNode)"));
}

fn image_written() -> Outcome {
    Outcome::ImageWritten(ferrite_proto::step::ImageWritten::default())
}
