//! What each call takes and answers. Whoever adds a line to `access::table::TABLE` adds one here.

use ferrite_proto::agent_api::{
    CheckIn, CheckInReply, Enroll, EnrollReply, Hello, HelloReply, Poll, PollReply,
};
use ferrite_proto::api::{EventList, Explanation, HostList, LogLines, Provision, Version};
use ferrite_proto::host::{Host, HostManifest};
use ferrite_proto::operation::{Approve, Clean, Rescue, RescuePassword, Service};
use serde_json::{Value, json};

use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{ObjectBuilder, Schema};
use utoipa::{PartialSchema, ToSchema};

use super::Document;

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

/// What calls are grouped by.
pub(super) const TAGS: [(&str, &str); 3] = [
    (
        "hosts",
        "Servers: what is wanted of them, what is seen of them.",
    ),
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
        Some("hosts") => "hosts",
        _ => "conductor",
    }
}

/// What a part of a path may be.
pub(super) fn path_parameter(name: &str) -> Value {
    match name {
        "subject" => json!({"type": "string", "maxLength": 212,
            "pattern": "^(user|group|token|certificate):[^/\\x00-\\x1f\\x7f]{1,200}$"}),
        _ => name_schema(),
    }
}

fn name_schema() -> Value {
    json!({"type": "string", "minLength": 1, "maxLength": 63,
        "pattern": "^[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?$"})
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
    conductor(all);
    agents(all);
}

fn hosts(all: &mut Document) {
    all.call("GET", "/v1/hosts", "listHosts", "Hosts, by name.")
        .answers::<HostList>(200, "The hosts that the caller may see.");
    all.call("POST", "/v1/hosts", "createHost", "Enrols a host.")
        .body::<HostManifest>()
        .answers::<Host>(201, "The host.")
        .or(&[409]);
}

fn one_host(all: &mut Document) {
    const PATH: &str = "/v1/hosts/{name}";
    const WAIT: &str = "Seconds to wait for a version above `after`.";
    all.call("GET", PATH, "readHost", "A host.")
        .query(
            "after",
            &count(0, i64::MAX as u64),
            "Answer once its version is above this one.",
        )
        .query("wait", &count(0, 60), WAIT)
        .answers::<Host>(200, "The host.");
    let summary = "What is wanted of a host, whole: enrols or changes it.";
    all.call("PUT", PATH, "replaceHost", summary)
        .body::<HostManifest>()
        .answers::<Host>(200, "The host as changed.")
        .answers::<Host>(201, "The host, enrolled.")
        .or(&[409]);
    let summary = "Changes a host by a JSON merge patch (RFC 7386).";
    all.call("PATCH", PATH, "patchHost", summary)
        .body_as::<AnyObject>(&["application/merge-patch+json", "application/json"])
        .answers::<Host>(200, "The host as changed.")
        .or(&[409]);
    all.call("DELETE", PATH, "deleteHost", "Lets a host go.")
        .answers_otherwise(202, None, "It is on its way.");
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
}

/// What is told by those who look on.
fn seeing(all: &mut Document) {
    let path = "/v1/hosts/{name}/logs";
    let summary = "The last lines of a host's agent; as a stream with `follow`.";
    all.call("GET", path, "readAgentLogs", summary)
        .query("tail", &count(0, u64::from(u32::MAX)), "At most so many.")
        .query("follow", &json!({"type": "boolean"}), "Go on as they come.")
        .answers::<LogLines>(200, "Newest last.");
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
    .answers::<CheckInReply>(200, "When to call again.");
}
