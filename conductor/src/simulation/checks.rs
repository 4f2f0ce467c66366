//! What must never happen, looked for wherever it could.
//!
//! What is true is known here: what is on a disk, what an agent has begun, what people were told.
//! What the conductor believes is taken from what it stored.

use std::sync::Arc;
use std::time::Duration;

use ferrite_proto::agent_api::{CHECK_IN, POLL, PollReply};
use ferrite_proto::api::HostEvent;
use ferrite_proto::host::HostState;
use ferrite_proto::operation::{Approval, OperationKind};
use ferrite_proto::problem::Code;
use ferrite_proto::step::{Outcome, Step};
use serde_json::Value;
use tokio::time::Instant;

use super::network::Call;
use super::state::{Disk, Machine, Running, Sim, State};
use super::{cluster, people, thieves};
use crate::bmc::PowerAction;
use crate::lifecycle::record::BootFlavour;
use crate::lifecycle::record::{BootPhase, Record};
use crate::lifecycle::{Kind, StepName, StepState, Workflow};
use crate::store::Stored;
use crate::token;

/// An agent that was answered so lately is in touch, whoever asks.
const IN_TOUCH: Duration = Duration::from_mins(1);
/// A call to a BMC takes no longer.
const ON_ITS_WAY: Duration = Duration::from_mins(2);

/// A transaction is about to be durable.
pub(super) fn committed(sim: &Arc<Sim>, before: &Stored, after: &Stored) {
    let name = &after.record.host.name;
    at_the_worst_moment(sim, &before.record, &after.record);
    let mut state = sim.lock();
    let untrue = cluster::not_true(&state, &before.record, &after.record);
    let Some(machine) = state.machines.get_mut(name) else {
        return;
    };
    let armed = after.record.run.boot.as_ref();
    if let Some(boot) = armed
        && machine
            .armed
            .as_ref()
            .is_none_or(|(sha256, _)| *sha256 != boot.ticket_sha256)
    {
        let since = crate::clock::now().duration_since(boot.armed_at);
        let since = Duration::try_from(since)
            .unwrap_or_default()
            .min(ON_ITS_WAY);
        let at = Instant::now().checked_sub(since);
        machine.armed = Some((boot.ticket_sha256.clone(), at.unwrap_or_else(Instant::now)));
    }
    if before.record.run.deletion.is_none() {
        machine.let_go = false;
    }
    let rescuer = before.record.run.session.as_ref();
    let rescuer = rescuer.is_some_and(|session| session.flavour == BootFlavour::Rescue);
    if rescuer && after.record.run.session.is_none() {
        // It is not the ramdisk that is wanted.
        machine.agent_heard = None;
    }
    let spec = &after.record.host.spec;
    let held = spec.paused || spec.detached || spec.externally_provisioned;
    machine.held_since = held.then(|| machine.held_since.unwrap_or_else(Instant::now));
    let error = after.record.host.status.error.as_ref();
    if error.is_some_and(|error| error.problem.code == Code::StepTimeout) {
        machine.agent_heard = None;
    }
    let mut wrong = Vec::new();
    if !machine.is_stored_again(Instant::now()) {
        wrong.push("it is stored again and again, and nothing comes of it".to_owned());
    }
    if after.record.run.last_order < before.record.run.last_order {
        wrong.push("order numbers go back".to_owned());
    }
    wrong.extend(entered(machine, &before.record, &after.record));
    wrong.extend(session_opened(&before.record, &after.record));
    wrong.extend(secrets_left(after));
    wrong.extend(image_shown(machine, &after.record));
    wrong.extend(untrue);
    for what in wrong {
        state.violate(format!("{name}: {what}"));
    }
}

/// People and thieves do things just then.
fn at_the_worst_moment(sim: &Arc<Sim>, before: &Record, after: &Record) {
    let name = &after.host.name;
    if after.run.last_order > before.run.last_order && sim.mishap(8) {
        people::change_of_mind(sim, name);
    }
    let ticket = |record: &Record| {
        record
            .run
            .boot
            .as_ref()
            .map(|boot| boot.ticket_sha256.clone())
    };
    if ticket(after) != ticket(before) && sim.mishap(10) {
        thieves::asks_for_a_ticket(sim, name);
    }
    let asked = |record: &Record| record.run.power_asked_at;
    if asked(after) != asked(before) && sim.mishap(4) {
        people::given_up(sim, name, 10_000, 110_000);
    }
    thieves::uses_what_ends(sim, before, after);
    let used = |record: &Record| record.run.boot.as_ref().is_some_and(|boot| boot.used);
    if used(after) && !used(before) && sim.mishap(15) {
        thieves::asks_after_the_hello(sim, name);
    }
}

/// Why a session should not have been opened.
fn session_opened(before: &Record, after: &Record) -> Option<String> {
    let token = |record: &Record| {
        let session = record.run.session.as_ref();
        session.map(|session| session.token_sha256.clone())
    };
    let opened = token(after).is_some() && token(after) != token(before);
    let leaves = opened && after.run.deletion.is_some();
    leaves.then(|| "a ramdisk is let in while its host is being deleted".to_owned())
}

/// A medium with a ticket was given out.
pub(super) fn served(sim: &Sim, name: &str, ticket: &str) {
    let Some(conductor) = sim.lock().conductor.clone() else {
        return;
    };
    // What was committed is not always known at once.
    let (digest, known) = (token::sha256(ticket), conductor.hosts.stored(name).ok());
    let mut state = sim.lock();
    let boot = known
        .as_ref()
        .and_then(|stored| stored.record.run.boot.as_ref());
    if boot.is_some_and(|boot| boot.ticket_sha256 == digest && boot.used) {
        state.violate(format!(
            "{name}: a ticket that was used is served to firmware"
        ));
    }
}

fn entered(machine: &mut Machine, before: &Record, after: &Record) -> Option<String> {
    if before.state() == after.state() {
        return None;
    }
    match after.state() {
        HostState::Available if machine.disk != Disk::default() => {
            Some(format!("available, and on its disk is {:?}", machine.disk))
        }
        HostState::Provisioned => {
            let deployment = after.run.deployment.as_ref()?;
            machine.up = Some(deployment.request);
            not_deployed(machine, after)
        }
        _ => None,
    }
}

/// Why what is on the disk is not the deployment that the conductor believes in.
pub(super) fn not_deployed(machine: &Machine, record: &Record) -> Option<String> {
    let deployment = record.run.deployment.as_ref()?;
    let disk = &machine.disk;
    if disk.broken || disk.image.as_ref() != Some(&deployment.image.url) {
        return Some(format!(
            "{} is wanted, and on its disk is {disk:?}",
            deployment.image.url
        ));
    }
    let known = record
        .run
        .daemon
        .as_ref()
        .map(|daemon| &daemon.credential_sha256);
    let given = disk
        .drive
        .as_ref()
        .map(|drive| token::sha256(&drive.credential));
    (known != given.as_ref()).then(|| "its config drive is of another deployment".to_owned())
}

fn secrets_left(after: &Stored) -> Option<String> {
    let (run, kept) = (&after.record.run, &after.kept);
    if run.session.as_ref().is_some_and(|session| session.polled) && kept.ticket.is_some() {
        return Some("the ticket is kept after it was used".into());
    }
    if run.daemon.as_ref().is_some_and(|daemon| daemon.used) && kept.credential.is_some() {
        return Some("the daemon's credential is kept after it was used".into());
    }
    let kind = after.record.operation().map(|operation| operation.kind);
    if kept.rescue.is_some() && kind != Some(OperationKind::Rescue) {
        return Some("the rescue's password is kept after it".into());
    }
    let released = after.record.host.spec.image.is_none() && run.deployment.is_none();
    if released && kept.host.user_data.is_some() {
        return Some("user data is kept after the host was released".into());
    }
    None
}

fn image_shown(machine: &Machine, after: &Record) -> Option<String> {
    let shown = after.host.status.image.as_ref()?;
    let disk = &machine.disk;
    let good = disk.image.as_ref() == Some(&shown.url);
    let under_way = machine.at_work.is_some() && after.state() != HostState::Provisioning;
    (!good && !under_way).then(|| format!("{} is shown, and on its disk is {disk:?}", shown.url))
}

/// A host is about to be known, as if it never was before.
pub(super) fn added(sim: &Sim, name: &str) {
    if let Some(machine) = sim.lock().machines.get_mut(name) {
        machine.begun.clear();
        machine.written.clear();
        machine.up = None;
        machine.armed = None;
        machine.agent_heard = None;
    }
}

/// A host is about to be forgotten.
pub(super) fn removed(sim: &Sim, before: &Stored) {
    let name = &before.record.host.name;
    let mut state = sim.lock();
    let gave_up = |event: &HostEvent| event.text.contains("without the BMC's consent");
    let by_force = state
        .events
        .get(name)
        .is_some_and(|all| all.iter().any(gave_up));
    let spec = &before.record.host.spec;
    let not_ours = spec.detached || spec.externally_provisioned;
    let never_ours = not_ours || before.record.run.power_at.is_none();
    let Some(machine) = state.machines.get_mut(name) else {
        return;
    };
    let excused = by_force || never_ours || machine.lied_lately();
    let (on, drive) = (machine.power && !machine.let_go, machine.drive.is_some());
    machine.up = None;
    if before.record.run.deletion.is_none() {
        state.violate(format!("{name} is forgotten, and nobody asked for it"));
    } else if on && !excused {
        state.violate(format!("{name} is forgotten while it is on"));
    } else if drive && !excused {
        state.violate(format!(
            "{name} is forgotten with something in its virtual drive"
        ));
    }
}

/// A conductor has answered a call, and lives.
pub(super) fn answered(sim: &Sim, call: &Call, status: u16, body: &Value) {
    // What was asked of the cluster before may come to nothing after.
    let of_cluster = call.path == ferrite_proto::join::JOIN;
    if status >= 500 && !of_cluster && !sim.lock().trouble {
        sim.violate(format!("{} is answered {status}: {body}", call.path));
    }
    if status != 200 || call.from.is_empty() {
        return;
    }
    match call.path.as_str() {
        POLL => polled(sim, call, body),
        CHECK_IN => checked_in(sim, call),
        _ => {}
    }
}

fn polled(sim: &Sim, call: &Call, body: &Value) {
    let digest = token::sha256(&call.token);
    let reply: PollReply = serde_json::from_value(body.clone()).unwrap_or_default();
    let known = sim.lock().conductor.clone();
    let known = known.and_then(|conductor| conductor.hosts.stored(&call.from).ok());
    let is_its = |record: &Record| {
        let session = record.run.session.as_ref();
        session.is_some_and(|session| session.token_sha256 == digest)
    };
    if reply.order.is_some() && known.as_ref().is_some_and(|known| !is_its(&known.record)) {
        sim.violate(format!("{}: an order is told to a void token", call.from));
    }
    if let Some(known) = &known
        && let Some(late) = called_off(&known.record, call)
        && reply.cancel != Some(late)
    {
        sim.violate(format!(
            "{}: order {late} was called off and is let begin",
            call.from
        ));
    }
    let mut state = sim.lock();
    let its = state.stored.values().find(|stored| is_its(&stored.record));
    let Some(record) = its.map(|stored| stored.record.clone()) else {
        return;
    };
    let session = record.run.session.as_ref();
    let leaves = session.is_some_and(|session| session.leaving);
    if let Some(machine) = state.machines.get_mut(&call.from) {
        machine.agent_heard = (!leaves).then(Instant::now);
    }
    let Some(order) = reply.order else { return };
    if let Some(what) = not_meant(&state, &record, &call.from, order.number, &order.step) {
        let (number, step) = (order.number, order.step.name());
        state.violate(format!("{}: order {number}, {step}: {what}", call.from));
    }
}

/// An order that the call says is taken, and that is not out.
fn called_off(record: &Record, call: &Call) -> Option<u64> {
    let out = record.run.workflow.as_ref().and_then(Workflow::outstanding);
    let reports = call.body["reports"].as_array()?;
    let taken = reports
        .iter()
        .filter(|report| report["report"] == "accepted");
    let mut taken = taken.filter_map(|report| report["order"].as_u64());
    taken.find(|order| out.is_none_or(|(number, _)| number != *order))
}

/// Why an order should not have been handed out, by what people want at this very moment.
fn not_meant(state: &State, record: &Record, to: &str, number: u64, step: &Step) -> Option<String> {
    let name = &record.host.name;
    let machine = state.machines.get(to)?;
    if name != to {
        return Some(format!("it is for {name}"));
    }
    if machine.begun.contains(&number) {
        return Some("it was begun before".into());
    }
    if record.run.deletion.is_some() {
        return Some("the host is being deleted".into());
    }
    let spec = &record.host.spec;
    if spec.paused || spec.detached {
        return Some("it is paused, or detached".into());
    }
    let destroys = matches!(step, Step::Erase { .. } | Step::WriteImage { .. });
    let plan = record.host.status.plan.as_ref();
    let approved = plan.is_some_and(|plan| plan.approved_by.is_some());
    if destroys && spec.approval == Approval::Required && !approved {
        return Some("nobody has approved it".into());
    }
    let wanted = spec.image.as_ref().map(|image| &image.url);
    match step {
        Step::Erase { .. } if spec.protected => Some("it is protected".into()),
        Step::WriteImage { image, .. } if wanted != Some(&image.url) => {
            Some(format!("{wanted:?} is wanted"))
        }
        Step::WriteConfigDrive { .. } | Step::Boot { .. } if wanted.is_none() => {
            Some("no image is wanted".into())
        }
        Step::WriteImage { .. } | Step::WriteConfigDrive { .. } | Step::Erase { .. }
            if machine.up.is_some() && machine.up == Some(record.run.request) =>
        {
            Some("what is wanted is there and runs".into())
        }
        _ => None,
    }
}

fn checked_in(sim: &Sim, call: &Call) {
    let digest = token::sha256(&call.token);
    let mut state = sim.lock();
    let Some(stored) = state.stored.get(&call.from) else {
        return;
    };
    let now = stored.record.state();
    let daemon = stored.record.run.daemon.as_ref();
    let known = daemon.is_some_and(|daemon| daemon.key_sha256.as_ref() == Some(&digest));
    let has_word = matches!(
        now,
        HostState::Provisioning | HostState::Provisioned | HostState::Deleting
    );
    if !known || !has_word {
        let from = &call.from;
        state.violate(format!(
            "{from}: the daemon of an OS of before is heard while {now}"
        ));
    }
}

/// An agent begins with an order.
pub(super) fn begins(sim: &Sim, name: &str, number: u64, step: &Step) {
    let mut state = sim.lock();
    let record = state.stored.get(name).map(|stored| stored.record.clone());
    let Some(machine) = state.machines.get_mut(name) else {
        return;
    };
    let again = !machine.begun.insert(number);
    let deployment = record
        .as_ref()
        .and_then(|record| record.run.deployment.as_ref());
    let operation = record.as_ref().and_then(Record::operation);
    let keeps = operation.is_some_and(|operation| operation.kind != OperationKind::Clean);
    let written = deployment.is_some_and(|now| machine.written.contains(&now.request));
    let disk = &machine.disk;
    let bad_disk = disk.broken || disk.image.is_none();
    let what = match step {
        _ if again => Some("it ran before"),
        _ if machine.at_work.is_some() => Some("two writers for a disk"),
        Step::Erase { .. } | Step::WriteImage { .. } | Step::WriteConfigDrive { .. } if keeps => {
            Some("its disk is to be kept")
        }
        Step::WriteImage { .. } if written => Some("the image was written and nothing happened"),
        Step::WriteConfigDrive { .. } if bad_disk => Some("a config drive on half an image"),
        Step::Boot { .. } if bad_disk || disk.drive.is_none() => Some("half an image is started"),
        _ => None,
    };
    if let Some(what) = what {
        let (name_of_step, disk) = (step.name(), format!("{disk:?}"));
        state.violate(format!(
            "{name}: order {number}, {name_of_step}: {what} ({disk})"
        ));
    }
}

/// The conductor was told that a step is done, and has answered.
pub(super) fn done_is_known(sim: &Sim, name: &str, _order: u64, outcome: &Outcome) {
    if !matches!(outcome, Outcome::ImageWritten(_)) {
        return;
    }
    let mut state = sim.lock();
    let Some(run) = state
        .stored
        .get(name)
        .map(|stored| stored.record.run.clone())
    else {
        return;
    };
    let flow = run.workflow.filter(|flow| flow.kind == Kind::Deploy);
    let is_done = flow.is_some_and(|flow| {
        flow.steps.iter().any(|step| {
            step.name == StepName::WriteImage && matches!(step.state, StepState::Done { .. })
        })
    });
    if let (Some(deployment), true, Some(machine)) =
        (run.deployment, is_done, state.machines.get_mut(name))
    {
        machine.written.insert(deployment.request);
    }
}

/// A conductor asks for power.
pub(super) fn switched(sim: &Sim, name: &str, action: PowerAction) {
    let mut state = sim.lock();
    if state.jumped_lately() {
        return;
    }
    let record = state.stored.get(name).map(|stored| stored.record.clone());
    // A reading of tomorrow, once tomorrow has come after all, looks fresh.
    let jumped = state.jumped_at.is_some();
    let (Some(record), Some(machine)) = (record, state.machines.get_mut(name)) else {
        return;
    };
    let heard = machine
        .agent_heard
        .is_some_and(|at| at.elapsed() < IN_TOUCH);
    let in_touch = machine.running == Running::Ramdisk && heard;
    let boot = record.run.boot.as_ref().filter(|boot| !boot.used);
    let for_ramdisk = boot.is_some_and(|boot| boot.phase == BootPhase::OverrideSet);
    let armed_at = machine.armed.as_ref().map(|(_, at)| *at);
    let stale = machine
        .power_told
        .is_none_or(|told| armed_at.is_some_and(|at| told < at));
    let stale = stale && !jumped;
    let held = machine
        .held_since
        .is_some_and(|at| at.elapsed() > ON_ITS_WAY);
    let ticket = boot.map(|boot| boot.ticket_sha256.clone());
    let boots = ticket.is_some() && machine.switched_for == ticket;
    if action == PowerAction::On && for_ramdisk {
        machine.switched_for = ticket;
    }
    let what = match action {
        _ if machine.lied_lately() => None,
        _ if held && record.run.deletion.is_none() => Some("switched while it is held"),
        PowerAction::ForceRestart if for_ramdisk && boots => {
            Some("reset in the boot that it was switched on for")
        }
        PowerAction::ForceRestart if in_touch => Some("reset while its agent is in touch"),
        PowerAction::On | PowerAction::ForceRestart if for_ramdisk && stale => {
            Some("switched by an old reading of its power")
        }
        PowerAction::ForceOff if record.run.deletion.is_none() => {
            Some("switched off, and nobody asked for it")
        }
        _ => None,
    };
    if let Some(what) = what {
        state.violate(format!("{name} is {what}"));
    }
}
