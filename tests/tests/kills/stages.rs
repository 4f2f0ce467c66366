//! The workflows, each from one rest of a host to the next, as a person goes through them. They
//! know nothing of conductors that die: whoever asks does so until it is taken.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ferrite_proto::host::{Host, HostState};
use ferrite_proto::join::JoinPhase;
use ferrite_proto::problem::Code;
use ferrite_tests::swarm::{Deeds, Machine, PASSWORD, USER};
use reqwest::Method;
use serde_json::{Value, json};

use crate::lane::Lane;
use crate::office;
use crate::person::Wish;

/// Longer than anybody waits: such a write is always cut off.
const NEVER: Duration = Duration::from_mins(5);

/// Where a host rests between two workflows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Rest {
    #[default]
    Absent,
    Available,
    Provisioned,
}

/// A workflow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Stage {
    Enrol,
    EnrolByMedia,
    TakeOver,
    Provision,
    Approve,
    Mend,
    Abort,
    Outage,
    Reprovision,
    Deprovision,
    Clean,
    LoseAgent,
    Service,
    Rescue,
    Office,
    Join,
    JoinByCloudInit,
    Delete,
}

impl Stage {
    pub(crate) const ALL: [Self; 18] = [
        Self::Enrol,
        Self::Provision,
        Self::Deprovision,
        Self::Delete,
        Self::EnrolByMedia,
        Self::Clean,
        Self::LoseAgent,
        Self::Mend,
        Self::Reprovision,
        Self::Service,
        Self::Rescue,
        Self::Office,
        Self::Join,
        Self::JoinByCloudInit,
        Self::TakeOver,
        Self::Approve,
        Self::Abort,
        Self::Outage,
    ];

    pub(crate) fn name(self) -> String {
        format!("{self:?}").to_lowercase()
    }

    pub(crate) const fn from(self) -> Rest {
        match self {
            Self::Enrol | Self::EnrolByMedia | Self::TakeOver => Rest::Absent,
            Self::Provision
            | Self::Approve
            | Self::Mend
            | Self::Abort
            | Self::Outage
            | Self::Clean
            | Self::LoseAgent
            | Self::Join
            | Self::JoinByCloudInit
            | Self::Delete => Rest::Available,
            Self::Reprovision | Self::Deprovision | Self::Service | Self::Rescue | Self::Office => {
                Rest::Provisioned
            }
        }
    }

    pub(crate) const fn to(self) -> Rest {
        match self {
            Self::Enrol
            | Self::EnrolByMedia
            | Self::TakeOver
            | Self::Deprovision
            | Self::Clean
            | Self::Join
            | Self::JoinByCloudInit
            | Self::LoseAgent => Rest::Available,
            Self::Provision
            | Self::Approve
            | Self::Mend
            | Self::Abort
            | Self::Outage
            | Self::Reprovision
            | Self::Service
            | Self::Rescue
            | Self::Office => Rest::Provisioned,
            Self::Delete => Rest::Absent,
        }
    }

    /// Erasures, images begun, images written, config drives, daemons let in.
    pub(crate) const fn deeds(self) -> [u32; 5] {
        match self {
            Self::Enrol | Self::EnrolByMedia | Self::TakeOver | Self::Deprovision | Self::Clean => {
                [1, 0, 0, 0, 0]
            }
            Self::Provision | Self::Approve | Self::Mend => [0, 1, 1, 1, 1],
            // The first write is cut off.
            Self::Abort | Self::Outage => [0, 2, 1, 1, 1],
            Self::Reprovision | Self::Join | Self::JoinByCloudInit => [1, 1, 1, 1, 1],
            Self::LoseAgent | Self::Service | Self::Rescue | Self::Office | Self::Delete => [0; 5],
        }
    }

    /// Goes through it, to the rest at its end.
    pub(crate) async fn run(self, lane: &Lane, machine: &Machine) -> Result<()> {
        match self {
            Self::Enrol => enrol(lane, machine, json!({})).await?,
            Self::EnrolByMedia => {
                enrol(lane, machine, json!({"boot_via": "virtual-media"})).await?;
            }
            Self::TakeOver => take_over(lane, machine).await?,
            Self::Provision | Self::Reprovision => provision(lane, machine).await?,
            Self::Approve => approve(lane, machine).await?,
            Self::Mend => mend(lane, machine).await?,
            Self::Abort => abort(lane, machine).await?,
            Self::Outage => outage(lane, machine).await?,
            Self::Deprovision => ask(lane, machine, "deprovision", &Value::Null).await?,
            Self::Clean => {
                let steps = json!({"steps": [{"step": "erase"}]});
                ask(lane, machine, "clean", &steps).await?;
            }
            Self::LoseAgent => lose_agent(lane, machine).await?,
            Self::Service => {
                let steps = json!({"steps": [{"step": "inspect"}]});
                ask(lane, machine, "service", &steps).await?;
            }
            Self::Rescue => rescue(lane, machine).await?,
            Self::Office => office::visit(lane).await?,
            Self::Join => join(lane, machine, "daemon").await?,
            Self::JoinByCloudInit => join(lane, machine, "cloud-init").await?,
            Self::Delete => delete(lane, machine).await?,
        }
        self.settled(lane, machine).await
    }

    /// Waits for the rest at its end.
    pub(crate) async fn settled(self, lane: &Lane, machine: &Machine) -> Result<()> {
        let name = machine.name.as_str();
        let state = match self.to() {
            Rest::Absent => return lane.until_gone(name).await,
            Rest::Available => HostState::Available,
            Rest::Provisioned => HostState::Provisioned,
        };
        let rests = |host: &Host| {
            let status = &host.status;
            status.state == state
                && status.observed_generation == host.generation
                && status.operation.is_none()
                && status.error.is_none()
                && status.step.is_none()
        };
        let what = format!("at rest, {state}");
        lane.person.until(name, &what, rests).await
    }
}

/// What changed between two looks at a machine.
pub(crate) fn done(before: &Deeds, after: &Deeds) -> [u32; 5] {
    [
        after.erased - before.erased,
        after.images_begun - before.images_begun,
        after.images_written - before.images_written,
        after.config_drives - before.config_drives,
        after.enrolled - before.enrolled,
    ]
}

async fn ask(lane: &Lane, machine: &Machine, verb: &str, body: &Value) -> Result<()> {
    let name = machine.name.as_str();
    let wish = Wish {
        method: Method::POST,
        path: format!("/v1/hosts/{name}/{verb}"),
        body: Some(body).filter(|body| !body.is_null()),
        host: name,
        mark: ("request", if verb == "approve" { "plan" } else { verb }),
    };
    lane.person.ask(wish).await
}

async fn patch(lane: &Lane, machine: &Machine, spec: Value) -> Result<()> {
    let name = machine.name.as_str();
    let body = json!({ "spec": spec });
    let wish = Wish {
        method: Method::PATCH,
        path: format!("/v1/hosts/{name}"),
        body: Some(&body),
        host: name,
        mark: ("request", "changed"),
    };
    lane.person.ask(wish).await
}

async fn enrol(lane: &Lane, machine: &Machine, more: Value) -> Result<()> {
    let mut spec = json!({
        "bmc": {"address": lane.swarm.bmc_address(machine), "username": USER},
        "boot_mac": machine.mac,
    });
    ferrite_proto::merge::apply(&mut spec, &more);
    let body = json!({
        "apiVersion": "ferrite/v1",
        "kind": "Host",
        "metadata": {"name": machine.name},
        "spec": spec,
        "secrets": {"bmc_password": PASSWORD},
    });
    let wish = Wish {
        method: Method::POST,
        path: "/v1/hosts".to_owned(),
        body: Some(&body),
        host: &machine.name,
        mark: ("state", "added"),
    };
    lane.person.ask(wish).await
}

async fn take_over(lane: &Lane, machine: &Machine) -> Result<()> {
    enrol(lane, machine, json!({"externally_provisioned": true})).await?;
    let theirs = |host: &Host| host.status.state == HostState::ExternallyProvisioned;
    let what = "externally provisioned";
    lane.person.until(&machine.name, what, theirs).await?;
    patch(lane, machine, json!({"externally_provisioned": false})).await
}

/// With another image than it has.
async fn provision(lane: &Lane, machine: &Machine) -> Result<()> {
    let host = lane.person.host(&machine.name).await?;
    let image = host.and_then(|host| host.spec.image);
    let image = match image {
        Some(image) if image.url.ends_with("a.raw") => 'b',
        Some(_) | None => 'a',
    };
    let body = json!({"image": {
        "url": format!("http://192.0.2.1/images/{image}.raw"),
        "digest": format!("sha256:{}", image.to_string().repeat(64)),
    }});
    ask(lane, machine, "provision", &body).await
}

/// Into the cluster and out of it: one Node, and no token after a minute.
async fn join(lane: &Lane, machine: &Machine, by: &str) -> Result<()> {
    const TOKENS: &str = "/api/v1/namespaces/kube-system/secrets/bootstrap-token-";
    const NODES: &str = "/api/v1/nodes/";
    let name = machine.name.as_str();
    let body = json!({
        "image": {
            "url": "http://192.0.2.1/images/j.raw",
            "digest": format!("sha256:{}", "c".repeat(64)),
        },
        "join": {"cluster": "kills", "by": by},
    });
    ask(lane, machine, "provision", &body).await?;
    let joined = |host: &Host| {
        let join = host.status.join.as_ref();
        let joined = join.is_some_and(|join| join.phase == JoinPhase::Joined);
        joined && host.status.state == HostState::Provisioned
    };
    lane.person.until(name, "a worker", joined).await?;
    let nodes = lane.api.paths(NODES);
    ensure!(nodes == [format!("{NODES}{name}")], "Nodes: {nodes:?}");
    let since = Instant::now();
    while !lane.api.paths(TOKENS).is_empty() {
        ensure!(since.elapsed() < Duration::from_mins(1), "a token stays");
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
    ask(lane, machine, "deprovision", &Value::Null).await?;
    lane.person
        .until(name, "no worker", |host| {
            host.status.state == HostState::Available && host.status.join.is_none()
        })
        .await?;
    let nodes = lane.api.paths(NODES);
    ensure!(nodes.is_empty(), "it has left, and there are {nodes:?}");
    // What is wanted next is no worker.
    patch(lane, machine, json!({"join": null})).await
}

/// A person lets the destructive step go.
async fn approve(lane: &Lane, machine: &Machine) -> Result<()> {
    let name = machine.name.as_str();
    patch(lane, machine, json!({"approval": "required"})).await?;
    provision(lane, machine).await?;
    let waits = |host: &Host| host.status.plan.is_some();
    lane.person
        .until(name, "waiting for approval", waits)
        .await?;
    let host = lane.person.host(name).await?.context("it is gone")?;
    let plan = host.status.plan.context("it has no plan any more")?;
    ask(lane, machine, "approve", &json!({"plan": plan.id})).await?;
    lane.person
        .until(name, "provisioned", |host| {
            host.status.state == HostState::Provisioned
        })
        .await?;
    patch(lane, machine, json!({"approval": "automatic"})).await
}

/// A step fails in a way that only a person can mend.
async fn mend(lane: &Lane, machine: &Machine) -> Result<()> {
    machine.fail_next(Code::DiskIo);
    provision(lane, machine).await?;
    waits_for_a_person(lane, machine, Code::DiskIo).await?;
    ask(lane, machine, "retry", &Value::Null).await
}

/// A write is aborted, and taken up again later.
async fn abort(lane: &Lane, machine: &Machine) -> Result<()> {
    writing_for_ever(lane, machine).await?;
    ask(lane, machine, "abort", &Value::Null).await?;
    waits_for_a_person(lane, machine, Code::Aborted).await?;
    ask(lane, machine, "retry", &Value::Null).await
}

/// The power goes in the middle of a write. Nobody does anything.
async fn outage(lane: &Lane, machine: &Machine) -> Result<()> {
    writing_for_ever(lane, machine).await?;
    machine.power_off();
    Ok(())
}

async fn writing_for_ever(lane: &Lane, machine: &Machine) -> Result<()> {
    machine.write_next_in(NEVER);
    let before = machine.deeds().images_begun;
    provision(lane, machine).await?;
    let begun = |m: &Machine| m.name == machine.name && m.deeds().images_begun > before;
    let patience = crate::person::PATIENCE;
    lane.swarm.until("write", 1, patience, begun).await?;
    let taken = |host: &Host| host.status.step.is_some();
    lane.person.until(&machine.name, "writing", taken).await
}

async fn waits_for_a_person(lane: &Lane, machine: &Machine, code: Code) -> Result<()> {
    let waits = |host: &Host| {
        let error = host.status.error.as_ref();
        let hers = error.is_some_and(|e| e.retry_at.is_none() && e.problem.code == code);
        hers && host.status.turn.is_none()
    };
    let what = format!("waiting for a person because of {code}");
    lane.person.until(&machine.name, &what, waits).await
}

/// Power goes while the host waits in its ramdisk.
async fn lose_agent(lane: &Lane, machine: &Machine) -> Result<()> {
    machine.power_off();
    let alone = |host: &Host| host.status.agent.is_none();
    lane.person
        .until(&machine.name, "without agent", alone)
        .await
}

async fn rescue(lane: &Lane, machine: &Machine) -> Result<()> {
    let key = json!({"authorized_keys": ["ssh-ed25519 AAAA somebody"]});
    ask(lane, machine, "rescue", &key).await?;
    let ready = |host: &Host| {
        let operation = host.status.operation.as_ref();
        operation.is_some_and(|operation| operation.access.is_some())
    };
    lane.person.until(&machine.name, "in rescue", ready).await?;
    ask(lane, machine, "unrescue", &Value::Null).await
}

async fn delete(lane: &Lane, machine: &Machine) -> Result<()> {
    let path = format!("/v1/hosts/{}", machine.name);
    let (status, json) = lane.person.insist(Method::DELETE, &path, None).await?;
    // An answer that was lost may have been the answer: it is gone already.
    let gone = status == reqwest::StatusCode::NOT_FOUND;
    ensure!(status.is_success() || gone, "{path}: {status}: {json}");
    lane.until_gone(&machine.name).await?;
    ensure!(!machine.is_on(), "{} is gone and still on", machine.name);
    Ok(())
}
