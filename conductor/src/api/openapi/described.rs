//! What each call takes and answers. Whoever adds a line to `access::table::TABLE` adds one here.

use ferrite_proto::agent_api::{
    CheckIn, CheckInReply, Enroll, EnrollReply, Hello, HelloReply, Poll, PollReply,
};
use ferrite_proto::api::{
    EventList, Explanation, FleetEvents, FleetTimeline, HostList, LogLines, Provision, Timeline,
    Version,
};
use ferrite_proto::catalog::{Image, ImageList, Profile, ProfileList};
use ferrite_proto::cluster::{Cluster, ClusterList, ClusterReport};
use ferrite_proto::host::{Host, HostManifest};
use ferrite_proto::inventory::Inventory;
use ferrite_proto::join::{JoinMaterial, JoinReport, JoinReportReply, JoinRequest};
use ferrite_proto::operation::{Approve, Clean, Rescue, RescuePassword, Service};
use ferrite_proto::rolling::{ClusterRoll, RollRequest};
use ferrite_proto::task::TaskList;
use serde_json::{Value, json};

use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{ObjectBuilder, Schema};
use utoipa::{PartialSchema, ToSchema};

use super::{Call, Document, rules};
use crate::api::clusters;

/// Any JSON object: a merge patch may lack everything.
struct AnyObject;

impl PartialSchema for AnyObject {
    fn schema() -> RefOr<Schema> {
        let text = "A JSON object. In a merge patch, `null` removes.";
        let object = ObjectBuilder::new().description(Some(text));
        RefOr::T(Schema::Object(object.build()))
    }
}

impl ToSchema for AnyObject {}

/// A manifest with what a host that is not there yet needs.
struct NewHost;

impl PartialSchema for NewHost {
    fn schema() -> RefOr<Schema> {
        HostManifest::schema()
    }
}

impl ToSchema for NewHost {
    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        HostManifest::schemas(schemas);
    }
}

/// An image as it is given: what is seen of it may be sent back.
struct NewImage;

impl PartialSchema for NewImage {
    fn schema() -> RefOr<Schema> {
        Image::schema()
    }
}

impl ToSchema for NewImage {
    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        Image::schemas(schemas);
    }
}

/// What calls are grouped by.
pub(super) const TAGS: [(&str, &str); 4] = [
    (
        "hosts",
        "Servers: what is wanted of them, what is seen of them.",
    ),
    ("catalog", "What hosts are given by name."),
    ("conductor", "The conductor itself."),
    (
        "agent",
        "Calls of the agent and the host daemon; not for people.",
    ),
];

/// The group of a path.
pub(super) fn tag(path: &str) -> &'static str {
    match path.split('/').nth(2) {
        Some("agent" | "daemon") => "agent",
        Some("hosts" | "events" | "tasks") => "hosts",
        Some("images" | "profiles" | "clusters") => "catalog",
        _ => "conductor",
    }
}

/// What a part of a path may be.
pub(super) fn path_parameter(name: &str) -> Value {
    match name {
        "subject" => json!({"type": "string", "maxLength": 212,
            "pattern": r"^(user|group|token|certificate):[^/\x00-\x1f\x7f-\x9f]{1,200}$"}),
        "file" => json!({"type": "string", "pattern": r"^[0-9a-f]{64}\.zst$"}),
        _ => json!({"type": "string", "minLength": 1, "maxLength": 63, "pattern": rules::NAME}),
    }
}

fn count(least: u64, most: u64) -> Value {
    json!({"type": "integer", "minimum": least, "maximum": most})
}

/// Why a call is refused with this status.
pub(super) const fn refusal(status: u16) -> &'static str {
    match status {
        400 => "The query or the JSON cannot be read.",
        401 => "No token, or one that is unknown, revoked or expired.",
        403 => "The caller may not do this.",
        404 => "There is none of this name, or it is not for the caller to see.",
        408 => "The body did not arrive in time.",
        409 => "It does not fit what is there now.",
        410 => "The version is too old to go on from: list again.",
        412 => "`If-Match` or `If-None-Match` does not hold.",
        413 => "The body is too long.",
        415 => "The body is no JSON by its `Content-Type`.",
        422 => "The body is JSON, but not what the call takes.",
        429 => "Too many calls: wait for as long as `Retry-After` says.",
        507 => "The conductor's disk is full.",
        503 => "The conductor cannot serve this now.",
        _ => "An error.",
    }
}

/// Describes all calls.
pub(super) fn describe(all: &mut Document) {
    hosts(all);
    one_host(all);
    operations(all);
    seeing(all);
    work_on_a_host(all);
    fleet(all);
    resources::<Image, ImageList, NewImage>(all, "images", "Image");
    contents(all);
    resources::<Profile, ProfileList, Profile>(all, "profiles", "Profile");
    resources::<Cluster, ClusterList, Cluster>(all, "clusters", "Cluster");
    checks(all);
    rolls(all);
    conductor(all);
    agents(all);
}

/// What every list takes.
fn listed(call: Call<'_>) -> Call<'_> {
    const WATCH: &str = "Follow changes as server-sent events instead of listing.";
    const VERSION: &str = "Where a watch goes on: the `resourceVersion` of a list. Without it the \
                           watch begins with everything.";
    let text = json!({"type": "string"});
    let place = json!({"type": "string", "maxLength": 63, "pattern": rules::PLACE});
    let labels = json!({"type": "string", "format": "label-selector", "pattern": rules::LABELS});
    let fields = json!({"type": "string", "format": "field-selector", "pattern": rules::FIELDS});
    let version = json!({"type": "string", "pattern": "^[0-9]{0,18}$"});
    call.query(
        "limit",
        &count(1, 1000),
        "Things on a page; 1000 when absent.",
    )
    .query("continue", &place, "From the page before.")
    .query("label_selector", &labels, "`a=b,c!=d,e in (x,y),!f`")
    .query("field_selector", &fields, "`status.state=available`")
    .query("project", &text, "Only of this project.")
    .query("watch", &json!({"type": "boolean"}), WATCH)
    .query("resource_version", &version, VERSION)
    .header(
        "Last-Event-ID",
        &json!({"type": "string"}),
        "Of the last event heard, when a watch goes on.",
    )
    .streams()
}

fn dry_run(call: Call<'_>) -> Call<'_> {
    const WHAT: &str = "Answer what would be stored, and store nothing.";
    call.query("dry_run", &json!({"type": "boolean"}), WHAT)
}

/// A change of what the caller has seen.
fn conditional(call: Call<'_>) -> Call<'_> {
    let tag = json!({"type": "string"});
    dry_run(call)
        .header(
            "If-Match",
            &tag,
            "The `ETag` of what was read; `*` for whatever is there.",
        )
        .or(&[409, 412])
}

fn hosts(all: &mut Document) {
    let call = all.call("GET", "/v1/hosts", "listHosts", "Hosts, by name.");
    listed(call.answers::<HostList>(200, "The hosts that the caller may see."));
    let call = all.call("POST", "/v1/hosts", "createHost", "Enrols a host.");
    dry_run(call)
        .body::<NewHost>()
        .answers::<Host>(200, "The host as it would be: a dry run.")
        .answers::<Host>(201, "The host.")
        .or(&[409]);
}

fn one_host(all: &mut Document) {
    const PATH: &str = "/v1/hosts/{name}";
    const WAIT: &str = "Seconds to wait for a version above `after`.";
    const NONE: &str = "`*`: only when there is none yet.";
    const AFTER: &str = "Answer once its version is above this one.";
    all.call("GET", PATH, "readHost", "A host.")
        .query("after", &count(0, u64::MAX), AFTER)
        .query("wait", &count(0, 60), WAIT)
        .answers::<Host>(200, "The host.");
    let summary = "What is wanted of a host, whole: enrols or changes it.";
    conditional(all.call("PUT", PATH, "replaceHost", summary))
        .header(
            "If-None-Match",
            &json!({"type": "string", "enum": ["*"]}),
            NONE,
        )
        .body::<HostManifest>()
        .answers::<Host>(200, "The host as changed.")
        .answers::<Host>(201, "The host, enrolled.");
    let summary = "Changes a host by a JSON merge patch (RFC 7386).";
    conditional(all.call("PATCH", PATH, "patchHost", summary))
        .body_as::<AnyObject>(&["application/merge-patch+json", "application/json"])
        .answers::<Host>(200, "The host as changed.");
    conditional(all.call("DELETE", PATH, "deleteHost", "Lets a host go.")).answers_otherwise(
        202,
        None,
        "It is on its way.",
    );
}

fn work_on_a_host(all: &mut Document) {
    let of = |rest: &str| format!("/v1/hosts/{{name}}/{rest}");
    let summary = "Runs chosen clean steps on an available host.";
    all.call("POST", &of("clean"), "cleanHost", summary)
        .body::<Clean>()
        .answers::<Host>(200, "The host.")
        .or(&[409]);
    let summary = "Runs chosen steps on a provisioned host, which keeps its disks.";
    all.call("POST", &of("service"), "serviceHost", summary)
        .body::<Service>()
        .answers::<Host>(200, "The host.")
        .or(&[409]);
    let summary = "Boots a provisioned host into the rescue ramdisk.";
    all.call("POST", &of("rescue"), "rescueHost", summary)
        .body::<Rescue>()
        .answers::<RescuePassword>(200, "How to log in. The password is told only here.")
        .or(&[409]);
    let summary = "Starts the OS of a host that is in rescue.";
    all.call("POST", &of("unrescue"), "unrescueHost", summary)
        .answers::<Host>(200, "The host.")
        .or(&[409]);
    let summary = "Stops what is under way at the next safe point.";
    all.call("POST", &of("abort"), "abortHost", summary)
        .answers::<Host>(200, "The host.")
        .or(&[409]);
    let summary = "Lets the destructive plan of this id go.";
    all.call("POST", &of("approve"), "approveHost", summary)
        .body::<Approve>()
        .answers::<Host>(200, "The host.")
        .or(&[409]);
}

fn operations(all: &mut Document) {
    let of = |rest: &str| format!("/v1/hosts/{{name}}/{rest}");
    let summary = "Sets the image and the cloud-init data.";
    all.call("POST", &of("provision"), "provisionHost", summary)
        .body::<Provision>()
        .answers::<Host>(200, "The host.")
        .or(&[409]);
    all.call(
        "POST",
        &of("deprovision"),
        "deprovisionHost",
        "Removes the image.",
    )
    .answers::<Host>(200, "The host.")
    .or(&[409]);
    all.call("POST", &of("retry"), "retryHost", "Tries now what failed.")
        .answers::<Host>(200, "The host.");
    all.call(
        "GET",
        &of("explain"),
        "explainHost",
        "What a host is doing, in words.",
    )
    .answers::<Explanation>(200, "In words.");
    all.call("GET", &of("events"), "listEventsOfHost", "A host's log.")
        .query("limit", &count(0, u64::from(u32::MAX)), "At most so many.")
        .answers::<EventList>(200, "Newest last.");
    let summary = "What the last inspection found.";
    all.call("GET", &of("inventory"), "readInventory", summary)
        .answers::<Inventory>(200, "The hardware.");
    let summary = "Where the seconds went.";
    all.call("GET", &of("timeline"), "readTimeline", summary)
        .answers::<Timeline>(200, "Runs, newest last.");
}

/// A kind of document: `one` is how its operations are named.
fn resources<R: ToSchema, L: ToSchema, N: ToSchema>(all: &mut Document, plural: &str, one: &str) {
    let path = format!("/v1/{plural}");
    let summary = format!("{one}s, by name.");
    let call = all.call("GET", &path, &format!("list{one}s"), &summary);
    listed(call.answers::<L>(200, "They are for all projects."));
    let summary = format!("Makes a new {one}.");
    dry_run(all.call("POST", &path, &format!("create{one}"), &summary))
        .body::<N>()
        .answers::<R>(200, "As it would be: a dry run.")
        .answers::<R>(201, "As it is.")
        .or(&[409]);
    let path = format!("{path}/{{name}}");
    all.call("GET", &path, &format!("read{one}"), &format!("One {one}."))
        .answers::<R>(200, "As it is.");
    let summary = format!("Makes or changes the {one}, whole.");
    conditional(all.call("PUT", &path, &format!("replace{one}"), &summary))
        .body::<N>()
        .answers::<R>(200, "As changed.")
        .answers::<R>(201, "As made.");
    let summary = format!("Changes the {one} by a JSON merge patch (RFC 7386).");
    conditional(all.call("PATCH", &path, &format!("patch{one}"), &summary))
        .body_as::<AnyObject>(&["application/merge-patch+json", "application/json"])
        .answers::<R>(200, "As changed.");
    let summary = format!("Removes the {one}; hosts keep what it stood for.");
    conditional(all.call("DELETE", &path, &format!("delete{one}"), &summary)).answers_otherwise(
        204,
        None,
        "It is gone.",
    );
}

fn checks(all: &mut Document) {
    const PATH: &str = "/v1/clusters/{name}/check";
    let summary = "The last check of a cluster by this conductor.";
    all.call("GET", PATH, "readClusterCheck", summary)
        .answers::<ClusterReport>(200, "What was found.");
    let summary = "Proves what a join needs. Makes a bootstrap token and removes it.";
    let version = json!({"type": "string", "maxLength": clusters::LONGEST});
    all.call("POST", PATH, "checkCluster", summary)
        .query("kubelet_version", &version, "Of the image's kubelet.")
        .answers::<ClusterReport>(200, "What was found.");
}

fn rolls(all: &mut Document) {
    const PATH: &str = "/v1/clusters/{name}/roll";
    let summary = "The roll of a cluster's hosts to another image: the one under way, or the last.";
    all.call("GET", PATH, "readClusterRoll", summary)
        .answers::<ClusterRoll>(200, "How far it is.");
    let summary = "Rolls a cluster's hosts to another image, a few at a time.";
    all.call("POST", PATH, "rollCluster", summary)
        .body::<RollRequest>()
        .answers::<ClusterRoll>(201, "It is begun.")
        .or(&[404, 409]);
    for (ask, id, summary) in [
        (
            "pause",
            "pauseClusterRoll",
            "Begins no more hosts for now; those under way go on.",
        ),
        (
            "resume",
            "resumeClusterRoll",
            "Goes on with what was paused, or stopped by a failure.",
        ),
        (
            "abort",
            "abortClusterRoll",
            "Begins no more hosts; those under way go on.",
        ),
    ] {
        all.call("POST", &format!("{PATH}/{ask}"), id, summary)
            .answers::<ClusterRoll>(200, "How far it is.")
            .or(&[409]);
    }
}

/// The bytes of images.
fn contents(all: &mut Document) {
    let range = json!({"type": "string"});
    let path = "/v1/images/{name}/content";
    let summary = "Gives the file of an image whose `spec.url` is `upload://NAME`.";
    all.call("PUT", path, "giveImageContent", summary)
        .takes_bytes()
        .answers::<Image>(202, "The file is here, and will be packed.")
        .or(&[400, 408, 409, 422, 507]);
    let summary = "A packed image, or a part of it. Whoever knows the digest may have it.";
    all.call("GET", "/images/{file}", "readPackedImage", summary)
        .header("Range", &range, "Bytes, as of RFC 9110.")
        .header("If-Range", &range, "The `ETag` of the parts before.")
        .answers_otherwise(200, Some("application/zstd"), "All of it.")
        .answers_otherwise(206, Some("application/zstd"), "The part.")
        .answers_otherwise(307, None, "Another conductor has it.")
        .answers_otherwise(416, None, "It ends before.");
}

fn fleet(all: &mut Document) {
    let text = json!({"type": "string"});
    let place = json!({"type": "string", "pattern": "^[0-9]{0,18}$"});
    let time = json!({"type": "string", "format": "date-time"});
    let call = all.call(
        "GET",
        "/v1/tasks",
        "listTasks",
        "What is under way on hosts.",
    );
    listed(call.answers::<TaskList>(200, "A task has its host's name."));
    let summary = "Stops what is under way on this host at the next safe point.";
    all.call("DELETE", "/v1/tasks/{name}", "abortTask", summary)
        .answers::<Host>(200, "The host.")
        .or(&[409]);
    let summary = "Where the seconds of all hosts went: percentiles of each stage.";
    all.call("GET", "/v1/timeline", "readFleetTimeline", summary)
        .query(
            "since",
            &time,
            "Runs that ended since then; 24 hours when absent.",
        )
        .answers::<FleetTimeline>(200, "By kind of run.");
    all.call("GET", "/v1/events", "listEvents", "The log of all hosts.")
        .query(
            "limit",
            &count(1, 1000),
            "At most so many; 200 when absent.",
        )
        .query(
            "continue",
            &place,
            "From the page before, which is of newer lines.",
        )
        .query("host", &text, "Only of this host.")
        .query("kind", &text, "Only of this kind.")
        .query("project", &text, "Only of this project.")
        .query("since", &time, "Not older than this.")
        .query(
            "watch",
            &json!({"type": "boolean"}),
            "Follow the log instead.",
        )
        .query(
            "resource_version",
            &place,
            "Where a watch goes on; without it, from now.",
        )
        .header(
            "Last-Event-ID",
            &json!({"type": "string"}),
            "Of the last line heard, when a watch goes on.",
        )
        .answers::<FleetEvents>(200, "Newest last.")
        .streams();
}

/// What is told by those who look on.
fn seeing(all: &mut Document) {
    const LINES: &str = "A line as it comes; or how many were missed by a reader too slow.";
    let path = "/v1/hosts/{name}/logs";
    let summary = "The last lines of a host's agent; as a stream with `follow`.";
    all.call("GET", path, "readAgentLogs", summary)
        .query("tail", &count(0, u64::MAX), "At most so many.")
        .query("follow", &json!({"type": "boolean"}), "Go on as they come.")
        .answers::<LogLines>(200, "Newest last.")
        .or_stream(&["line", "missed"], LINES);
    let summary = "What help needs, in one file, without secrets.";
    all.call("GET", "/v1/support-bundle", "supportBundle", summary)
        .answers_otherwise(200, Some("application/gzip"), "A tar.gz.");
}

fn conductor(all: &mut Document) {
    all.call("GET", "/v1/version", "readVersion", "Versions.")
        .answers::<Version>(200, "Versions.");
    all.call("GET", "/openapi.json", "readOpenapi", "This document.")
        .answers::<AnyObject>(200, "This document.");
    all.call(
        "GET",
        "/metrics",
        "readMetrics",
        "Figures, as Prometheus reads them.",
    )
    .answers_otherwise(200, Some("application/openmetrics-text"), "Figures.");
    all.call(
        "GET",
        "/healthz",
        "isAlive",
        "Whether the process is alive.",
    )
    .answers_otherwise(200, Some("text/plain"), "It is.");
    all.call("GET", "/readyz", "isReady", "Whether it can serve.")
        .answers_otherwise(200, Some("text/plain"), "It can.")
        .or(&[503]);
}

fn agents(all: &mut Document) {
    all.call(
        "POST",
        "/v1/agent/hello",
        "agentHello",
        "The first contact of a ramdisk.",
    )
    .body::<Hello>()
    .answers::<HelloReply>(200, "The agent's token.")
    .or(&[403, 408]);
    all.call(
        "POST",
        "/v1/agent/poll",
        "agentPoll",
        "Reports, and asks for an order.",
    )
    .body::<Poll>()
    .answers::<PollReply>(200, "An order, or none.")
    .or(&[409]);
    all.call(
        "POST",
        "/v1/daemon/enroll",
        "daemonEnroll",
        "Exchanges the credential for a key.",
    )
    .body::<Enroll>()
    .answers::<EnrollReply>(200, "It is let in.")
    .or(&[403, 408, 409]);
    all.call(
        "POST",
        "/v1/daemon/check-in",
        "daemonCheckIn",
        "How the OS is.",
    )
    .body::<CheckIn>()
    .answers::<CheckInReply>(200, "When to call again, and whether to join a cluster.");
    all.call(
        "POST",
        "/v1/daemon/join",
        "daemonJoin",
        "Asks for what it takes to join the host's cluster.",
    )
    .body::<JoinRequest>()
    .answers::<JoinMaterial>(
        200,
        "A token for this attempt alone, and what goes with it.",
    )
    .or(&[409]);
    all.call(
        "POST",
        "/v1/daemon/join-report",
        "daemonJoinReport",
        "How kubeadm gets on.",
    )
    .body::<JoinReport>()
    .answers::<JoinReportReply>(200, "Whether it is to be stopped.");
}
