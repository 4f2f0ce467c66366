//! The rule alone, and a whole roll of hosts that do as they are told, or do not.

use ferrite_proto::image::ImageRef;
use ferrite_proto::problem::{Code, Problem};
use ferrite_proto::rolling::{
    ClusterRoll, MaxUnavailable, RollPhase, RollSpec, RollStatus, RollingHost,
};
use jiff::Timestamp;
use proptest::prelude::*;
use serde_json::json;

use super::member::Member;
use super::rule;

const NOW: Timestamp = Timestamp::UNIX_EPOCH;

fn rolling(most: MaxUnavailable, canary: u32) -> ClusterRoll {
    let image: ImageRef =
        serde_json::from_value(json!({"url": "http://h/b", "allow_unverified": true})).unwrap();
    ClusterRoll {
        cluster: "prod".to_owned(),
        uid: "r".to_owned(),
        by: "ann".to_owned(),
        spec: RollSpec {
            image,
            image_name: None,
            max_unavailable: most,
            canary,
        },
        status: RollStatus {
            phase: RollPhase::Progressing,
            since: NOW,
            started: NOW,
            message: String::new(),
            total: 0,
            updated: 0,
            unavailable: 0,
            current: Vec::new(),
            skipped: Vec::new(),
            failure: None,
            conditions: Vec::new(),
        },
    }
}

/// A worker with another image.
fn old(name: &str) -> Member {
    Member {
        name: name.to_owned(),
        uid: format!("uid-{name}"),
        is_told: false,
        has_settled: true,
        is_ready: true,
        hold: None,
        failure: None,
    }
}

fn cluster(count: usize) -> Vec<Member> {
    (0..count)
        .map(|number| old(&format!("h{number}")))
        .collect()
}

/// One round; those that are begun are told.
fn go(roll: &mut ClusterRoll, members: &mut [Member]) -> Vec<String> {
    roll.status = rule::next(roll, members, None, NOW);
    let mut begun = Vec::new();
    if roll.status.phase == RollPhase::Progressing {
        for entry in roll
            .status
            .current
            .iter_mut()
            .filter(|entry| !entry.ordered)
        {
            let member = members.iter_mut().find(|m| m.uid == entry.uid).unwrap();
            (member.is_told, member.has_settled, member.is_ready) = (true, false, false);
            entry.ordered = true;
            begun.push(entry.host.clone());
        }
    }
    begun
}

fn finish(members: &mut [Member], name: &str) {
    let member = members.iter_mut().find(|m| m.name == name).unwrap();
    (member.has_settled, member.is_ready) = (true, true);
}

fn current(roll: &ClusterRoll) -> Vec<&str> {
    let current = roll.status.current.iter();
    current.map(|entry| entry.host.as_str()).collect()
}

#[test]
fn hosts_are_rolled_a_few_at_a_time_until_all_are_ready() {
    let (mut roll, mut hosts) = (rolling(MaxUnavailable::Hosts(2), 0), cluster(5));
    assert_eq!(go(&mut roll, &mut hosts), ["h0", "h1"]);
    assert!(go(&mut roll, &mut hosts).is_empty());
    assert_eq!((roll.status.unavailable, roll.status.total), (2, 5));
    finish(&mut hosts, "h1");
    assert_eq!(go(&mut roll, &mut hosts), ["h2"]);
    assert_eq!(current(&roll), ["h0", "h2"]);
    for name in ["h0", "h2"] {
        finish(&mut hosts, name);
    }
    assert_eq!(go(&mut roll, &mut hosts), ["h3", "h4"]);
    for name in ["h3", "h4"] {
        finish(&mut hosts, name);
    }
    go(&mut roll, &mut hosts);
    assert_eq!(roll.status.phase, RollPhase::Complete);
    assert_eq!(
        roll.status.message,
        "all 5 hosts have the image and are ready"
    );
    assert_eq!((roll.status.updated, roll.status.unavailable), (5, 0));
}

#[test]
fn nothing_is_left_to_do_where_all_have_the_image_or_nobody_is() {
    for count in [0, 3] {
        let (mut roll, mut hosts) = (rolling(MaxUnavailable::Hosts(1), 2), cluster(count));
        for host in &mut hosts {
            host.is_told = true;
        }
        assert!(go(&mut roll, &mut hosts).is_empty());
        assert_eq!(roll.status.phase, RollPhase::Complete);
    }
}

#[test]
fn others_follow_only_when_every_canary_is_ready() {
    let (mut roll, mut hosts) = (rolling(MaxUnavailable::Hosts(4), 2), cluster(6));
    assert_eq!(go(&mut roll, &mut hosts), ["h0", "h1"]);
    assert_eq!(roll.status.message, "rolling the canaries h0, h1");
    finish(&mut hosts, "h0");
    assert!(go(&mut roll, &mut hosts).is_empty());
    finish(&mut hosts, "h1");
    assert_eq!(go(&mut roll, &mut hosts), ["h2", "h3", "h4", "h5"]);
}

#[test]
fn whoever_is_not_ready_counts_and_comes_last() {
    let (mut roll, mut hosts) = (rolling(MaxUnavailable::Hosts(1), 0), cluster(3));
    hosts[0].is_ready = false;
    // There is no room for one that is ready; the other costs nothing.
    assert_eq!(go(&mut roll, &mut hosts), ["h0"]);
    finish(&mut hosts, "h0");
    assert_eq!(go(&mut roll, &mut hosts), ["h1"]);
    // Somebody unplugs another: nothing is begun until it is back.
    hosts[2].is_ready = false;
    finish(&mut hosts, "h1");
    hosts[0].is_ready = false;
    assert!(go(&mut roll, &mut hosts).is_empty());
    let waits = "waits for hosts to be ready, at most 1 may be unavailable: h0, h2";
    assert_eq!(roll.status.message, waits);
    hosts[0].is_ready = true;
    assert_eq!(go(&mut roll, &mut hosts), ["h2"]);
}

#[test]
fn the_first_failure_stops_it_and_what_runs_is_let_finish() {
    let (mut roll, mut hosts) = (rolling(MaxUnavailable::Hosts(2), 0), cluster(4));
    go(&mut roll, &mut hosts);
    hosts[0].failure = Some(Problem::new(Code::JoinNotReady, "not ready", "look"));
    finish(&mut hosts, "h1");
    assert!(go(&mut roll, &mut hosts).is_empty());
    assert_eq!(roll.status.phase, RollPhase::Stopped);
    assert_eq!(roll.status.message, "host h0: not ready [join-not-ready]");
    assert_eq!(current(&roll), ["h0"]);
    // It comes to its end all the same; nothing else is begun before a person says so.
    hosts[0].failure = None;
    finish(&mut hosts, "h0");
    assert!(go(&mut roll, &mut hosts).is_empty());
    assert_eq!(roll.status.updated, 2);
    roll.status.phase = RollPhase::Progressing;
    roll.status.failure = None;
    assert_eq!(go(&mut roll, &mut hosts), ["h2", "h3"]);
}

#[test]
fn a_host_that_a_person_holds_is_left_out_and_named() {
    let (mut roll, mut hosts) = (rolling(MaxUnavailable::Hosts(1), 1), cluster(2));
    hosts[0].hold = Some("it is protected".to_owned());
    assert_eq!(go(&mut roll, &mut hosts), ["h1"]);
    assert_eq!(roll.status.skipped[0].host, "h0");
    finish(&mut hosts, "h1");
    go(&mut roll, &mut hosts);
    assert_eq!(roll.status.phase, RollPhase::Complete);
    assert_eq!(
        roll.status.message,
        "1 of 2 hosts have the image; left out: h0"
    );
}

#[test]
fn a_host_that_is_taken_away_in_the_middle_is_not_fought_over() {
    let (mut roll, mut hosts) = (rolling(MaxUnavailable::Hosts(1), 0), cluster(2));
    go(&mut roll, &mut hosts);
    hosts[0].is_told = false;
    assert!(go(&mut roll, &mut hosts).is_empty());
    let failure = roll.status.failure.clone().unwrap();
    assert_eq!(
        (failure.host.as_str(), failure.problem.code),
        ("h0", Code::Conflict)
    );
    // One that left the cluster is none of its hosts.
    let (mut roll, mut hosts) = (rolling(MaxUnavailable::Hosts(1), 0), cluster(2));
    go(&mut roll, &mut hosts);
    hosts.remove(0);
    assert_eq!(go(&mut roll, &mut hosts), ["h1"]);
    assert_eq!(current(&roll), ["h1"]);
}

#[test]
fn what_the_conductor_before_was_about_to_tell_is_told() {
    let (mut roll, hosts) = (rolling(MaxUnavailable::Hosts(1), 0), cluster(2));
    let noted = rule::next(&roll, &hosts, None, NOW);
    assert!(!noted.current[0].ordered);
    roll.status = noted.clone();
    assert_eq!(
        rule::next(&roll, &hosts, None, NOW),
        noted,
        "it waits to be told"
    );
    // It was told, and killed before it could write that down.
    let mut told = hosts;
    (told[0].is_told, told[0].has_settled) = (true, false);
    assert_eq!(rule::next(&roll, &told, None, NOW).current, noted.current);
    // A person paused it first: it is not begun.
    roll.status.phase = RollPhase::Paused;
    assert!(rule::next(&roll, &cluster(2), None, NOW).current.is_empty());
}

#[test]
fn what_is_on_its_way_to_the_image_is_watched_as_if_it_had_been_told() {
    let (mut roll, mut hosts) = (rolling(MaxUnavailable::Hosts(1), 0), cluster(2));
    (hosts[1].is_told, hosts[1].has_settled) = (true, false);
    assert!(go(&mut roll, &mut hosts).is_empty());
    assert_eq!(current(&roll), ["h1"]);
    hosts[1].failure = Some(Problem::new(Code::CloudInit, "no", ""));
    go(&mut roll, &mut hosts);
    assert_eq!(roll.status.phase, RollPhase::Stopped);
}

#[test]
fn nothing_is_begun_while_the_cluster_does_not_answer() {
    let (mut roll, hosts) = (rolling(MaxUnavailable::Percent(100), 0), cluster(3));
    let trouble = Problem::new(Code::ClusterUnreachable, "no answer", "");
    roll.status = rule::next(&roll, &hosts, Some(&trouble), NOW);
    assert_eq!(roll.status.phase, RollPhase::Progressing);
    assert!(roll.status.current.is_empty());
    assert!(
        roll.status
            .message
            .contains("no answer [cluster-unreachable]")
    );
}

/// What happens between two rounds.
#[derive(Debug, Clone)]
enum Event {
    /// The current host of this number comes to its end.
    Finish(usize),
    /// It fails for a moment; a person resumes.
    Fail(usize),
    /// A host's kubelet dies, and is back.
    Silence(usize),
    Back(usize),
    /// A person holds a host, and lets it go.
    Hold(usize),
    Free(usize),
    Pause,
    Resume,
}

fn event() -> impl Strategy<Value = Event> {
    let host = 0..8_usize;
    prop_oneof![
        6 => host.clone().prop_map(Event::Finish),
        1 => host.clone().prop_map(Event::Fail),
        1 => host.clone().prop_map(Event::Silence),
        2 => host.clone().prop_map(Event::Back),
        1 => host.clone().prop_map(Event::Hold),
        2 => host.prop_map(Event::Free),
        1 => Just(Event::Pause),
        2 => Just(Event::Resume),
    ]
}

fn happen(event: &Event, roll: &mut ClusterRoll, members: &mut [Member]) {
    let count = members.len();
    let problem = || Problem::new(Code::DiskIo, "broken", "");
    match event {
        Event::Finish(number) => {
            let nth = roll
                .status
                .current
                .get(*number % roll.status.current.len().max(1));
            if let Some(RollingHost { host, .. }) = nth.cloned() {
                finish(members, &host);
                for member in members.iter_mut() {
                    member.failure = None;
                }
            }
        }
        Event::Fail(number) => members[number % count].failure = Some(problem()),
        Event::Silence(number) => members[number % count].is_ready = false,
        Event::Back(number) => {
            let member = &mut members[number % count];
            member.is_ready = member.has_settled;
            member.failure = None;
        }
        Event::Hold(number) => members[number % count].hold = Some("it is paused".to_owned()),
        Event::Free(number) => members[number % count].hold = None,
        Event::Pause if roll.status.phase == RollPhase::Progressing => {
            roll.status.phase = RollPhase::Paused;
        }
        Event::Resume if !roll.status.phase.has_ended() => {
            roll.status.phase = RollPhase::Progressing;
            roll.status.failure = None;
        }
        Event::Pause | Event::Resume => {}
    }
}

proptest! {
    /// Whatever happens: what is begun never makes more unavailable than may be, canaries come
    /// first, and in the end everything has the image.
    #[test]
    fn never_more_are_unavailable_than_may_be(
        count in 1..8_usize,
        most in prop_oneof![
            (1..4_u32).prop_map(MaxUnavailable::Hosts),
            (1..=100_u32).prop_map(MaxUnavailable::Percent),
        ],
        canary in 0..4_u32,
        events in proptest::collection::vec(event(), 0..60),
    ) {
        let (mut roll, mut members) = (rolling(most, canary), cluster(count));
        let allowed = most.of(count);
        for event in &events {
            happen(event, &mut roll, &mut members);
            let before = roll.status.phase;
            let canaries = members.iter().filter(|m| m.hold.is_none()).count().min(canary as usize);
            let ready = members.iter().filter(|m| m.is_updated()).count();
            let begun = go(&mut roll, &mut members);
            if begun.is_empty() {
                continue;
            }
            prop_assert_eq!(before, RollPhase::Progressing);
            let is_held = |name: &String| {
                members.iter().any(|member| member.name == *name && member.hold.is_some())
            };
            prop_assert!(!begun.iter().any(is_held));
            let out = members.iter().filter(|m| !m.is_available()).count();
            prop_assert!(out <= allowed, "{out} of at most {allowed}");
            let under_way = roll.status.current.len();
            prop_assert!(ready >= canaries || ready + under_way <= canaries);
        }
        // The next one, undisturbed, does what is left.
        let mut next = rolling(most, canary);
        for _ in 0..=2 * count + 1 {
            for member in &mut members {
                (member.hold, member.failure) = (None, None);
                (member.has_settled, member.is_ready) = (true, true);
            }
            go(&mut next, &mut members);
        }
        prop_assert_eq!(next.status.phase, RollPhase::Complete);
        prop_assert!(members.iter().all(Member::is_updated));
    }
}
