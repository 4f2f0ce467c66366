//! People: what they want changes, and what they do to machines is not always wise.

use std::sync::Arc;
use std::time::Duration;

use ferrite_proto::host::{HostState, Power};
use ferrite_proto::operation::OperationKind;
use ferrite_proto::problem::Code;
use jiff::SignedDuration;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::checks;
use super::cluster;
use super::conductor::{self, ADMIN};
use super::network::{self, Call};
use super::state::{self, Running, Sim};
use crate::clock;
use crate::store::Stored;

/// Between looks while everything comes to rest.
const LOOK: Duration = Duration::from_secs(30);

async fn ask(
    sim: &Arc<Sim>,
    method: &'static str,
    path: &str,
    body: Value,
) -> Option<(u16, Value)> {
    let call = Call {
        from: String::new(),
        method,
        path: path.to_owned(),
        token: ADMIN.to_owned(),
        body,
    };
    network::call(sim, call).await
}

/// Adds every machine.
pub(super) async fn enrol_all(sim: &Arc<Sim>) {
    let names: Vec<_> = sim.lock().machines.keys().cloned().collect();
    for name in names {
        enrol(sim, &name).await;
    }
}

/// Adds the cluster that hosts join.
pub(super) async fn add_cluster(sim: &Arc<Sim>) {
    let body = json!({
        "apiVersion": "ferrite/v1", "kind": "Cluster", "metadata": {"name": cluster::NAME},
        "spec": {}, "secrets": {"kubeconfig": cluster::kubeconfig("admin")},
    });
    for _ in 0..1000 {
        match ask(sim, "POST", "/v1/clusters", body.clone()).await {
            Some((201 | 409, _)) => return sim.say("", "person", "adds the cluster"),
            Some((status, reply)) if status < 500 => {
                return sim.violate(format!("the cluster cannot be added: {status} {reply}"));
            }
            Some(_) | None => sim.pause(1_000, 5_000).await,
        }
    }
}

async fn enrol(sim: &Arc<Sim>, name: &str) {
    let body = json!({
        "apiVersion": "ferrite/v1", "kind": "Host", "metadata": {"name": name},
        "spec": spec(sim, name, name), "secrets": {"bmc_password": "p"},
    });
    for _ in 0..1000 {
        match ask(sim, "POST", "/v1/hosts", body.clone()).await {
            Some((201 | 409, _)) => return sim.say(name, "person", "adds it"),
            Some((status, reply)) if status < 500 => {
                return sim.violate(format!("{name} cannot be added: {status} {reply}"));
            }
            Some(_) | None => sim.pause(1_000, 5_000).await,
        }
    }
}

fn spec(sim: &Sim, name: &str, bmc: &str) -> Value {
    let (mac, media) = sim.machine(name, |machine| (machine.mac, machine.media));
    json!({
        "bmc": {"address": format!("redfish://{bmc}"), "username": "u"},
        "boot_mac": mac, "boot_via": if media { "virtual-media" } else { "pxe" },
    })
}

/// Asks for this and that.
pub(super) async fn want(sim: Arc<Sim>) {
    loop {
        sim.pause(10_000, 240_000).await;
        let name = any_machine(&sim);
        match sim.below(32) {
            0..=10 => provision(&sim, &name).await,
            11..=14 => simply(&sim, &name, "deprovision").await,
            15..=16 => simply(&sim, &name, "retry").await,
            17..=18 => wrong_bmc(&sim, &name).await,
            19 => delete(&sim, &name).await,
            20..=23 => operate(&sim, &name).await,
            24 => simply(&sim, &name, "abort").await,
            _ => hold(&sim, &name).await,
        }
    }
}

pub(super) fn any_machine(sim: &Sim) -> String {
    let names: Vec<_> = sim.lock().machines.keys().cloned().collect();
    let count = u64::try_from(names.len()).unwrap_or(1);
    let index = usize::try_from(sim.below(count)).unwrap_or(0);
    names[index].clone()
}

/// Somebody changes their mind just when something has been ordered.
pub(super) fn change_of_mind(sim: &Arc<Sim>, name: &str) {
    let (sim, name) = (Arc::clone(sim), name.to_owned());
    tokio::spawn(async move {
        let now = Instant::now();
        let until = Some(now + Duration::from_secs(2));
        sim.machine(&name, |machine| machine.cut_off_until = until);
        if sim.chance(80) {
            sim.lock().slow_until = Some(now + Duration::from_secs(15));
        }
        sim.pause(0, 6_000).await;
        match sim.below(4) {
            0 => delete(&sim, &name).await,
            1 => simply(&sim, &name, "deprovision").await,
            _ => provision(&sim, &name).await,
        }
    });
}

/// Sets an image; what was confirmed must be what is wanted.
pub(super) async fn provision(sim: &Arc<Sim>, name: &str) {
    let url = format!("http://i/{}.raw", sim.below(3));
    let mut body = json!({
        "image": {"url": url, "format": "raw", "allow_unverified": true},
        "secrets": {"user_data": format!("#cloud-config {}", state::fresh())},
    });
    if sim.joins() && sim.chance(80) {
        body["join"] = json!({"cluster": cluster::NAME});
    }
    sim.say(name, "person", format!("wants {url}"));
    let path = format!("/v1/hosts/{name}/provision");
    if let Some((200, _)) = ask(sim, "POST", &path, body).await {
        let state = sim.lock();
        let stored = state.stored.get(name);
        let wanted = stored.and_then(|stored| stored.record.host.spec.image.clone());
        drop(state);
        if wanted.is_none_or(|image| image.url != url) {
            sim.violate(format!("{name}: {url} was confirmed and is not wanted"));
        }
    }
}

async fn simply(sim: &Arc<Sim>, name: &str, verb: &str) {
    sim.say(name, "person", verb);
    let path = format!("/v1/hosts/{name}/{verb}");
    let answer = ask(sim, "POST", &path, json!({})).await;
    if verb == "deprovision" && answer.is_some_and(|(status, _)| status == 200) {
        let state = sim.lock();
        let stored = state.stored.get(name);
        let wanted = stored.is_some_and(|stored| stored.record.host.spec.image.is_some());
        drop(state);
        if wanted {
            sim.violate(format!(
                "{name}: its deprovisioning was confirmed and is not wanted"
            ));
        }
    }
}

/// What can be asked beside the state, as the host is.
async fn operate(sim: &Arc<Sim>, name: &str) {
    let Some(stored) = stored(sim, name) else {
        return;
    };
    let in_rescue = stored
        .record
        .operation()
        .is_some_and(|operation| operation.kind == OperationKind::Rescue);
    let verb = match stored.record.state() {
        _ if in_rescue => "unrescue",
        HostState::Provisioned if sim.chance(50) => "rescue",
        HostState::Provisioned => "service",
        _ => "clean",
    };
    let body = match verb {
        "clean" => json!({"steps": [{"step": "inspect"}, {"step": "erase"}]}),
        "service" => json!({"steps": [{"step": "inspect"}, {"step": "set-boot-entry"}]}),
        _ => json!({}),
    };
    sim.say(name, "person", verb);
    let path = format!("/v1/hosts/{name}/{verb}");
    ask(sim, "POST", &path, body).await;
    if verb == "rescue" && sim.chance(60) {
        sim.pause(60_000, 300_000).await;
        simply(sim, name, "unrescue").await;
    }
}

/// What holds a host back, for a while or until somebody looks.
async fn hold(sim: &Arc<Sim>, name: &str) {
    let (on, off) = match sim.below(8) {
        0..=1 => (json!({"paused": true}), json!({"paused": null})),
        2 => (json!({"detached": true}), json!({"detached": null})),
        3 => (json!({"protected": true}), json!({"protected": null})),
        4 => (json!({"maintenance": {}}), json!({"maintenance": null})),
        5 => (
            json!({"externally_provisioned": true}),
            json!({"externally_provisioned": null}),
        ),
        _ => (json!({"approval": "required"}), json!({})),
    };
    patch(sim, name, on).await;
    if sim.chance(60) {
        sim.pause(10_000, 300_000).await;
        patch(sim, name, off).await;
        approve(sim, name).await;
    }
}

async fn patch(sim: &Arc<Sim>, name: &str, spec: Value) {
    sim.say(name, "person", format!("sets {spec}"));
    let path = format!("/v1/hosts/{name}");
    ask(sim, "PATCH", &path, json!({"spec": spec})).await;
}

/// Lets a plan go that waits for it.
async fn approve(sim: &Arc<Sim>, name: &str) {
    let plan = stored(sim, name).and_then(|stored| stored.record.host.status.plan);
    let Some(plan) = plan.filter(|plan| plan.approved_by.is_none()) else {
        return;
    };
    sim.say(name, "person", format!("approves plan {}", plan.id));
    let path = format!("/v1/hosts/{name}/approve");
    ask(sim, "POST", &path, json!({"plan": plan.id})).await;
}

/// A typing error in the BMC's address, corrected sooner or later.
async fn wrong_bmc(sim: &Arc<Sim>, name: &str) {
    let known = stored(sim, name).filter(|stored| stored.record.run.bmc_uuid.is_some());
    let Some(stored) = known else { return };
    set_bmc(sim, &stored, "nobody").await;
    sim.pause(10_000, 120_000).await;
    if sim.chance(15) {
        delete(sim, name).await;
    }
}

async fn set_bmc(sim: &Arc<Sim>, stored: &Stored, to: &str) {
    let name = &stored.record.host.name;
    sim.say(name, "person", format!("says that its BMC is at {to}"));
    let path = format!("/v1/hosts/{name}");
    let address = format!("redfish://{to}");
    let patch = json!({"spec": {"bmc": {"address": address}}});
    ask(sim, "PATCH", &path, patch).await;
}

fn stored(sim: &Sim, name: &str) -> Option<Stored> {
    sim.lock().stored.get(name).cloned()
}

/// Somebody gives a host up while it boots.
pub(super) fn given_up(sim: &Arc<Sim>, name: &str, least: u64, most: u64) {
    let (sim, name) = (Arc::clone(sim), name.to_owned());
    tokio::spawn(async move {
        sim.pause(least, most).await;
        delete(&sim, &name).await;
    });
}

async fn delete(sim: &Arc<Sim>, name: &str) {
    sim.say(name, "person", "deletes it");
    let path = format!("/v1/hosts/{name}");
    ask(sim, "DELETE", &path, Value::Null).await;
    sim.pause(30_000, 120_000).await;
    if stored(sim, name).is_none() && sim.chance(60) {
        enrol(sim, name).await;
    }
}

/// What happens to machines, to the network, to the clock and to the conductor.
pub(super) async fn accidents(sim: Arc<Sim>) {
    loop {
        sim.pause(10_000, 200_000).await;
        let name = any_machine(&sim);
        match sim.below(20) {
            0..=5 => power_cut(&sim, &name),
            6..=8 => {
                let pause = sim.between(Duration::from_secs(5), Duration::from_mins(5));
                sim.say(&name, "network", format!("is cut off for {pause:?}"));
                let until = Some(Instant::now() + pause);
                sim.machine(&name, |machine| machine.cut_off_until = until);
            }
            9..=10 => {
                let pause = sim.between(Duration::from_secs(30), Duration::from_secs(200));
                let until = Some(Instant::now() + pause);
                sim.say(&name, "bmc", "tells that it is on, whatever is true");
                sim.machine(&name, |machine| machine.tells_on_until = until);
            }
            11..=12 => state::firmware(&sim, &name),
            14 => {
                let pause = sim.between(Duration::from_secs(30), Duration::from_mins(40));
                sim.say(&name, "bmc", format!("refuses the password for {pause:?}"));
                let until = Some(Instant::now() + pause);
                sim.machine(&name, |machine| machine.locked_until = until);
            }
            13 => jump(&sim),
            _ => conductor::kill(&sim, "by an accident"),
        }
    }
}

fn power_cut(sim: &Arc<Sim>, name: &str) {
    state::off(sim, name);
    if sim.chance(50) {
        let (sim, name) = (Arc::clone(sim), name.to_owned());
        tokio::spawn(async move {
            sim.pause(1_000, 30_000).await;
            if !sim.machine(&name, |machine| machine.power) {
                state::firmware(&sim, &name);
            }
        });
    }
}

fn jump(sim: &Sim) {
    let far = match sim.below(4) {
        0 => SignedDuration::from_hours(24),
        1 => SignedDuration::from_mins(7),
        2 => SignedDuration::from_hours(-24),
        _ => SignedDuration::from_mins(-7),
    };
    let to = clock::now().checked_add(far).unwrap_or(clock::now());
    clock::simulated::set(to);
    let mut state = sim.lock();
    state.jumped_at = Some(Instant::now());
    state.say("", "clock", &format!("jumps by {far:?}"));
}

/// Waits until every host is as it is wanted; people do what they are told that they can do.
pub(super) async fn settle(sim: &Arc<Sim>, patience: Duration) {
    let until = Instant::now() + patience;
    while !sim.is_violated() {
        tokio::time::sleep(LOOK).await;
        let names: Vec<_> = sim.lock().machines.keys().cloned().collect();
        let mut waits = Vec::new();
        for name in &names {
            if let Some(why) = not_as_wanted(sim, name) {
                waits.push(format!("{name}: {why}"));
                see_to(sim, name).await;
            }
        }
        if waits.is_empty() {
            return sim.say("", "world", "every host is as wanted");
        }
        if Instant::now() > until {
            return sim.violate(format!("not as wanted: {}", waits.join("; ")));
        }
    }
}

/// What a person does who looks at a host.
async fn see_to(sim: &Arc<Sim>, name: &str) {
    let Some(stored) = stored(sim, name) else {
        return;
    };
    if sim.joins() {
        cluster::stranger_leaves(sim, name);
    }
    let host = &stored.record.host;
    if host.spec.bmc.address != format!("redfish://{name}") {
        return set_bmc(sim, &stored, name).await;
    }
    let spec = &host.spec;
    if spec.paused || spec.detached || spec.maintenance.is_some() || spec.protected {
        let all = json!({"paused": null, "detached": null, "maintenance": null, "protected": null});
        return patch(sim, name, all).await;
    }
    if spec.externally_provisioned {
        return patch(sim, name, json!({"externally_provisioned": null})).await;
    }
    let rescued = host.status.operation.as_ref();
    if rescued.is_some_and(|operation| operation.kind == OperationKind::Rescue) {
        return simply(sim, name, "unrescue").await;
    }
    approve(sim, name).await;
    let off = sim.machine(name, |machine| machine.running == Running::Nothing);
    let error = host.status.error.as_ref();
    let is_missed = error.is_some_and(|error| error.problem.code == Code::JoinNotAsked);
    if (host.status.state == HostState::Provisioned || is_missed) && off {
        sim.say(name, "person", "presses its button");
        return state::firmware(sim, name);
    }
    if error.is_some_and(|error| error.retry_at.is_none()) {
        simply(sim, name, "retry").await;
    }
}

fn not_as_wanted(sim: &Sim, name: &str) -> Option<String> {
    let state = sim.lock();
    let stored = state.stored.get(name)?;
    let (record, machine) = (&stored.record, state.machines.get(name)?);
    let status = &record.host.status;
    let told = || {
        let (now, error, waits) = (status.state, &status.error, &status.waiting_for);
        let flow = record
            .run
            .workflow
            .as_ref()
            .and_then(crate::lifecycle::Workflow::current);
        format!("{now}, error {error:?}, waits for {waits:?}, at {flow:?}")
    };
    match (&record.host.spec.image, status.state) {
        _ if record.run.deletion.is_some() || status.operation.is_some() => Some(told()),
        (None, HostState::Available) if status.error.is_none() => None,
        (Some(_), HostState::Provisioned) if record.deployed_as_wanted() => {
            let heard = status.error.is_none() || is_cloud_init(status);
            let runs = machine.running == Running::Os && status.power == Some(Power::On);
            if let Some(wrong) = checks::not_deployed(machine, record) {
                return Some(wrong);
            }
            (!heard || !runs).then(told)
        }
        _ => Some(told()),
    }
}

/// cloud-init's errors stay to be seen.
fn is_cloud_init(status: &ferrite_proto::host::HostStatus) -> bool {
    let error = status.error.as_ref();
    error.is_some_and(|error| error.problem.code == Code::CloudInit)
}
