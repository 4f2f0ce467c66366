//! `docs/lifecycle.md`, made from the tables that the code goes by; a test compares.

use std::fmt::Write as _;
use std::path::Path;

use ferrite_proto::host::HostState;
use ferrite_proto::problem::{Class, Code};

use super::Kind;
use super::gate::work_of;
use super::state::{EDGES, OPERATIONS, POLICIES};

const HOLDS: &[(&str, &str, &str)] = &[
    (
        "spec.paused",
        "no new action of any kind",
        "`ferrite host resume NAME`",
    ),
    (
        "spec.maintenance",
        "nothing is begun; what is under way ends at the end of its step",
        "`ferrite host maintenance off NAME`",
    ),
    (
        "spec.detached",
        "neither BMC nor boot; deleted without touching its power",
        "`ferrite host attach NAME`",
    ),
    (
        "spec.protected",
        "not deprovisioned, erased, deleted or provisioned anew",
        "`ferrite host unprotect NAME`",
    ),
    (
        "spec.retired",
        "cleaned once it is deprovisioned, then not provisioned any more",
        "`ferrite host retire NAME --undo`",
    ),
    (
        "spec.approval: required",
        "each erasure and each write waits with a plan in `status.plan`",
        "`ferrite host approve NAME PLAN`",
    ),
    (
        "status.turn",
        "so much is done at once in `spec.group`; a point of `spec.priority` is worth a minute",
        "comes by itself",
    ),
    (
        "an abort",
        "the order that is out is stopped; the host rests where it is, by name",
        "`ferrite host retry NAME`",
    ),
];

/// The page.
fn page() -> String {
    let mut text = String::from(
        "# The life of a host\n\nMade from the code by `make lifecycle`; do not edit. Durations \
         are those of `[lifecycle]` in the configuration (`ferrite config defaults`).\n\n\
         ```mermaid\nstateDiagram-v2\n",
    );
    for edge in EDGES {
        let name = |state: Option<HostState>| {
            state.map_or("[*]".to_owned(), |state| state.as_str().replace(' ', "_"))
        };
        let _ = writeln!(
            text,
            "    {} --> {}: {}",
            name(edge.from),
            name(edge.to),
            edge.when
        );
    }
    text.push_str("```\n\nFrom every state a host can go to `deleting`.\n\n## States\n\n");
    text.push_str("| state | what comes next | deadline | when that fails |\n|---|---|---|---|\n");
    for policy in POLICIES {
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} |",
            policy.state, policy.next, policy.deadline, policy.retry
        );
    }
    operations(&mut text);
    holds(&mut text);
    problems(&mut text);
    text
}

fn operations(text: &mut String) {
    text.push_str(
        "\n## Operations\n\nThey lie beside the state, in `status.operation`.\n\n\
         | operation | on | what comes next | deadline | after an abort |\n|---|---|---|---|---|\n",
    );
    for policy in OPERATIONS {
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {} |",
            policy.kind.as_str(),
            policy.on,
            policy.next,
            policy.deadline,
            policy.abort
        );
    }
    text.push_str("\n| workflow | steps | counts as |\n|---|---|---|\n");
    for kind in Kind::ALL {
        let chosen = matches!(kind, Kind::ManualClean | Kind::Service).then_some("*chosen*");
        let steps = kind.steps().iter().map(|step| step.as_str());
        let steps: Vec<_> = chosen.into_iter().chain(steps).collect();
        let work = work_of(kind).map_or("-", |work| work.as_str());
        let _ = writeln!(
            text,
            "| {} | {} | {work} |",
            kind.as_str(),
            steps.join(", ")
        );
    }
}

fn holds(text: &mut String) {
    text.push_str("\n## What holds a host\n\n| what | meaning | ends by |\n|---|---|---|\n");
    for (what, meaning, ends) in HOLDS {
        let _ = writeln!(text, "| `{what}` | {meaning} | {ends} |");
    }
}

fn problems(text: &mut String) {
    text.push_str(
        "\n## Problems\n\nA problem never changes the state: it lies beside it, in \
         `status.error`.\n\n| code | what is done |\n|---|---|\n",
    );
    for code in Code::ALL {
        let done = match code.class() {
            Class::Retry => "tried again by itself",
            Class::Operator => "waits for a person",
            Class::Bug => "ours: report it; a person may try again",
        };
        let _ = writeln!(text, "| `{code}` | {done} |");
    }
}

#[test]
fn the_checked_in_page_is_of_this_code() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/lifecycle.md");
    let page = page();
    if std::env::var_os("WRITE_LIFECYCLE").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, &page).unwrap();
    }
    let kept = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        kept == page,
        "docs/lifecycle.md is of other code: run `make lifecycle` and look at the difference"
    );
}

#[test]
fn every_state_and_operation_has_its_policy() {
    for (state, policy) in HostState::ALL.into_iter().zip(POLICIES) {
        assert_eq!(super::state::policy(state).state, state);
        assert!(!policy.deadline.is_empty() && !policy.retry.is_empty());
    }
    for kind in ferrite_proto::operation::OperationKind::ALL {
        assert_eq!(super::state::operation_policy(kind).kind, kind);
    }
}
