//! Calls of the host daemon while its host joins a cluster. Material is made for one request, for
//! a host in the right state alone, and is told to nobody else.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use ferrite_proto::join::{
    JoinMaterial, JoinOrder, JoinReport, JoinReportReply, JoinRequest, LINE_CHARS, LINES,
};
use ferrite_proto::problem::{Code, Problem};
use jiff::SignedDuration;

use super::agent::void;
use super::{Answer, App, Body};
use crate::access::caller::{DaemonOf, Presented};
use crate::actor::Actor;
use crate::clock;
use crate::cluster::{HostRun, Material};
use crate::crash::{self, Moment, Work};
use crate::guard::{self, Guard};
use crate::joining::configuration::{self, Facts, Version, may_serve};
use crate::lifecycle::change::Change;
use crate::lifecycle::joining::provider_id;
use crate::lifecycle::record::{Limits, Record};
use crate::lifecycle::reports::harmless;
use crate::store::Stored;

/// How long a token may be used; the sweep removes what nobody revoked.
const TOKEN_LIFE: Duration = Duration::from_mins(10);
/// When kubeadm is stopped.
const DEADLINE: u32 = 9 * 60;
/// Certificates are back-dated by five minutes.
const SKEW: SignedDuration = SignedDuration::from_mins(4);

/// `POST /v1/daemon/join`
pub(crate) async fn material(
    State(app): State<Arc<App>>,
    DaemonOf(daemon): DaemonOf,
    Body(request): Body<JoinRequest>,
) -> Answer<JoinMaterial> {
    app.hosts.heard_daemon(&daemon.host);
    let stored = app
        .hosts
        .update(&daemon.host, &Actor::Daemon, |change| {
            wanted(change, &daemon, &request)?;
            change.found(&request.findings, request.system_uuid.as_deref());
            Ok(())
        })
        .await?
        .0;
    // A daemon that does not wait for the answer must not keep the cause from being noted.
    let at_work = tokio::spawn(mint(Arc::clone(&app), daemon, stored, request));
    let made = at_work.await.map_err(|error| {
        let text = format!("making what it takes to join broke off: {error}");
        Problem::new(Code::Internal, text, "report this; the daemon asks again")
    })?;
    Ok(Json(made?))
}

/// Makes material, and notes that it was given, or why it could not be made.
async fn mint(
    app: Arc<App>,
    daemon: Presented,
    stored: Arc<Stored>,
    request: JoinRequest,
) -> Result<JoinMaterial, Problem> {
    crash::point(Work::MintToken, Moment::Before);
    let (material, minted) = match make(&app, &stored, &request).await {
        Ok(made) => made,
        Err(problem) => {
            let limits = &app.world.limits;
            failed(&app, &daemon, &request, &problem, limits).await?;
            return Err(problem);
        }
    };
    crash::point(Work::MintToken, Moment::Acted);
    let (token, cluster) = (minted.token_id.as_str(), cluster_of(&stored));
    let clusters = &app.world.clusters;
    let given = app.hosts.update(&daemon.host, &Actor::Daemon, |change| {
        wanted(change, &daemon, &request)?;
        change.given(token, &minted.ca_hashes);
        change.audit(
            "join",
            serde_json::json!({"attempt": request.attempt, "token": token}),
        );
        Ok(())
    });
    if let Err(problem) = given.await {
        // Nobody was told of it: the host is wanted elsewhere by now.
        if let Err(problem) = clusters.revoke(&cluster, token).await {
            tracing::warn!(%cluster, token, %problem, "a bootstrap token is removed later");
        }
        return Err(problem);
    }
    if let Err(problem) = clusters.given(&cluster, token, minted.expires).await {
        tracing::warn!(%cluster, token, %problem, "a bootstrap token is removed too soon");
    }
    crash::point(Work::MintToken, Moment::After);
    Ok(material)
}

/// Whether this daemon, in this boot, is to join now.
fn wanted(change: &Change, daemon: &Presented, request: &JoinRequest) -> Result<(), Problem> {
    let known = change.record.run.daemon.as_ref();
    let same = known.is_some_and(|known| known.key_sha256.as_ref() == Some(&daemon.sha256));
    if !same {
        return Err(void());
    }
    let status = change.record.host.status.daemon.as_ref();
    let boot = status.is_some_and(|status| status.boot_id == request.boot_id);
    let spec = &change.record.host.spec;
    let free = !spec.paused && !spec.detached;
    let joins = change.record.is_joining(request.attempt);
    if guard::holds(Guard::MaterialForTheAttempt, joins) && boot && free {
        return Ok(());
    }
    Err(Problem::new(
        Code::Conflict,
        format!(
            "{} is not to join now (attempt {})",
            change.record.host.name, request.attempt
        ),
        "the daemon asks again when it is told to",
    ))
}

fn cluster_of(stored: &Stored) -> String {
    let status = stored.record.host.status.join.as_ref();
    status
        .map(|status| status.cluster.clone())
        .unwrap_or_default()
}

/// The attempt came to nothing before it began.
async fn failed(
    app: &App,
    daemon: &Presented,
    request: &JoinRequest,
    problem: &Problem,
    limits: &Limits,
) -> Result<(), Problem> {
    let noted = app.hosts.update(&daemon.host, &Actor::Daemon, |change| {
        wanted(change, daemon, request)?;
        change.join_failed(problem.clone(), limits);
        Ok(())
    });
    noted.await.map(|_| ())
}

/// Makes material for a host, of what its cluster gave.
async fn make(
    app: &App,
    stored: &Stored,
    request: &JoinRequest,
) -> Result<(JoinMaterial, Material), Problem> {
    let kubeadm = ready(request)?;
    let record = &stored.record;
    let joining = record.run.joining.as_ref();
    let joining = joining.ok_or_else(|| {
        Problem::new(
            Code::Internal,
            "nothing is known of the attempt",
            "report this",
        )
    })?;
    let cluster = &joining.spec.cluster;
    let host = HostRun {
        name: record.host.name.clone(),
        uid: record.host.uid.clone(),
        run: format!("{}.{}", record.run.request, request.attempt),
    };
    let clusters = &app.world.clusters;
    let minted = clusters.mint_to_give(cluster, &host, TOKEN_LIFE).await?;
    if let Err(problem) = fits(request, &minted) {
        app.world.clusters.revoke(cluster, &minted.token_id).await?;
        return Err(problem);
    }
    let kubelet = request.kubelet.as_deref().and_then(Version::parse);
    let patches = configuration::patches(kubelet, &minted.kubelet_config);
    let configuration = configuration::render(&Facts {
        kubeadm,
        endpoint: &minted.endpoint,
        token: &minted.token,
        ca_hashes: &minted.ca_hashes,
        node: &record.host.name,
        provider_id: &provider_id(record),
        cri_socket: request.cri_socket.as_deref(),
        spec: &joining.spec,
        patched: !patches.is_empty(),
    });
    let material = JoinMaterial {
        attempt: request.attempt,
        configuration,
        token: minted.token.clone(),
        patches,
        deadline_seconds: DEADLINE,
    };
    Ok((material, minted))
}

/// Whether the host is as a join needs it. The version of its kubeadm.
fn ready(request: &JoinRequest) -> Result<Version, Problem> {
    if let Some(finding) = request.findings.iter().find(|finding| finding.fatal) {
        return Err(Problem::new(
            Code::JoinPrerequisites,
            format!(
                "{}: {}",
                harmless(&finding.code, 60),
                harmless(&finding.what, 500)
            ),
            harmless(&finding.fix, 500),
        ));
    }
    let skew = request.clock.duration_since(clock::now());
    if skew.abs() > SKEW {
        let (seconds, way) = (
            skew.as_secs().abs(),
            if skew.is_negative() {
                "behind"
            } else {
                "ahead"
            },
        );
        return Err(Problem::new(
            Code::JoinClock,
            format!("the host's clock is {seconds} s {way} of the conductor's"),
            "give the image an NTP server that it reaches, or set the hardware clock in the \
             firmware",
        ));
    }
    let told = request.kubeadm.as_deref();
    told.and_then(Version::parse).ok_or_else(|| {
        Problem::new(
            Code::JoinPrerequisites,
            format!(
                "kubeadm does not tell its version (it says {:?})",
                harmless(told.unwrap_or("nothing"), 60)
            ),
            "use an image with kubeadm in the cluster's version",
        )
    })
}

/// Whether kubelet and cluster go together.
fn fits(request: &JoinRequest, minted: &Material) -> Result<(), Problem> {
    let kubelet = request.kubelet.as_deref().and_then(Version::parse);
    let server = Version::parse(&minted.kubernetes_version);
    let (Some(kubelet), Some(server)) = (kubelet, server) else {
        // What tells no version is for the cluster to judge.
        return Ok(());
    };
    if may_serve(kubelet, server) {
        return Ok(());
    }
    Err(Problem::new(
        Code::JoinVersionSkew,
        format!("the image's kubelet is {kubelet}, and the cluster {server}"),
        "use an image whose kubelet is not newer than the cluster, and at most three minor \
         versions older",
    ))
}

/// `POST /v1/daemon/join-report`
pub(crate) async fn report(
    State(app): State<Arc<App>>,
    DaemonOf(daemon): DaemonOf,
    Body(report): Body<JoinReport>,
) -> Answer<JoinReportReply> {
    app.hosts.heard_daemon(&daemon.host);
    let lines: Vec<_> = report
        .lines
        .iter()
        .take(LINES)
        .map(|line| harmless(line, LINE_CHARS))
        .collect();
    for line in &lines {
        let known = &app.hosts.seeing().agent_lines;
        known.add(&daemon.host, clock::now(), line.clone());
    }
    let limits = &app.world.limits;
    let taken = app.hosts.update(&daemon.host, &Actor::Daemon, |change| {
        let known = change.record.run.daemon.as_ref();
        let same = known.is_some_and(|known| known.key_sha256.as_ref() == Some(&daemon.sha256));
        if !same {
            return Err(void());
        }
        let stop = !change.record.is_joining(report.attempt);
        change.kubeadm_said(report.attempt, &lines);
        if let Some(end) = &report.ended {
            let last = lines.last().map(String::as_str);
            change.kubeadm_ended(report.attempt, end, last, limits);
        }
        crash::point(Work::JoinReport, Moment::Before);
        Ok(stop)
    });
    let (_, stop) = taken.await?;
    crash::point(Work::JoinReport, Moment::After);
    Ok(Json(JoinReportReply { stop }))
}

/// What a check-in is answered: the attempt that is out, if there is one.
pub(crate) fn order(record: &Record) -> Option<JoinOrder> {
    let status = record.host.status.join.as_ref()?;
    let attempt = status.attempt;
    let spec = &record.host.spec;
    let free = !spec.paused && !spec.detached;
    (free && record.is_joining(attempt)).then_some(JoinOrder { attempt })
}
