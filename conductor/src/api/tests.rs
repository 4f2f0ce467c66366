//! The API as callers meet it, over a real store and a BMC that always obeys.

#[cfg(test)]
mod canaries;
#[cfg(test)]
mod seeing;

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Body as HttpBody;
use axum::http::{Request, StatusCode};
use ferrite_proto::api::Timeline;
use ferrite_proto::host::{HostState, Power};
use ferrite_proto::inventory::BootMode;
use ferrite_proto::step::{ImageWritten, Outcome};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use super::{App, router};
use crate::bmc::{Bmc, BmcFuture, BmcIdentity, BootDevice, PowerAction};
use crate::boots::Boots;
use crate::hosts::Hosts;
use crate::lifecycle::driver::Driver;
use crate::lifecycle::execute::World;
use crate::lifecycle::order::Reach;
use crate::lifecycle::record::Limits;
use crate::seal::Sealer;
use crate::store::database::Database;
use crate::{tls, token};

pub(super) const ADMIN: &str = "the-operators-token-of-this-very-test";
const UUID: &str = "00000000-0000-4000-8000-000000000001";
pub(super) const MAC: &str = "52:54:00:77:00:01";

#[derive(Debug)]
struct Obedient(Arc<Mutex<Power>>);

impl Bmc for Obedient {
    fn identity(&self) -> BmcFuture<'_, BmcIdentity> {
        let identity = BmcIdentity {
            uuid: Some(UUID.to_owned()),
            ..BmcIdentity::default()
        };
        Box::pin(async { Ok(identity) })
    }
    fn power(&self) -> BmcFuture<'_, Power> {
        let power = *self.0.lock().unwrap();
        Box::pin(async move { Ok(power) })
    }
    fn set_power(&self, action: PowerAction) -> BmcFuture<'_, ()> {
        *self.0.lock().unwrap() = match action {
            PowerAction::On | PowerAction::ForceRestart => Power::On,
            PowerAction::ForceOff => Power::Off,
        };
        Box::pin(async { Ok(()) })
    }
    fn set_boot_once(&self, _: BootDevice, _: BootMode) -> BmcFuture<'_, ()> {
        Box::pin(async { Ok(()) })
    }
    fn clear_boot_override(&self) -> BmcFuture<'_, ()> {
        Box::pin(async { Ok(()) })
    }
    fn insert_media<'a>(&'a self, _: &'a str) -> BmcFuture<'a, ()> {
        Box::pin(async { Ok(()) })
    }
    fn eject_media(&self) -> BmcFuture<'_, ()> {
        Box::pin(async { Ok(()) })
    }
}

/// A conductor without sockets.
pub(super) struct Conductor {
    pub(super) app: Arc<App>,
}

impl Conductor {
    pub(super) async fn start(dir: &Path) -> Self {
        let reach = Reach {
            url: "https://c:7443".into(),
            ca: ferrite_proto::boot::CaPin([7; 32]),
            ca_pem: "".into(),
            servers: [].into(),
        };
        let sealer = Sealer::load_or_create(&dir.join("key")).unwrap();
        let store = Database::sqlite(&dir.join("db"), sealer).await.unwrap();
        let (boots, _) = Boots::new(reach.clone());
        let boots = Arc::new(boots);
        let hosts = Hosts::load(Arc::new(store), Arc::clone(&boots)).await;
        let hosts = Arc::new(hosts.unwrap());
        let power = Arc::new(Mutex::new(Power::Off));
        let world = Arc::new(World {
            hosts: Arc::clone(&hosts),
            limits: Limits::default(),
            reach,
            iso_url: Box::new(|_| None),
            clusters: Arc::new(crate::cluster::Clusters::new(
                hosts.documents(),
                ferrite_proto::address::Policy::Others,
            )),
            connect: Box::new(move |_, _| Ok(Box::new(Obedient(Arc::clone(&power))))),
        });
        let stop = CancellationToken::new();
        let driver = Arc::new(Driver::start(Arc::clone(&world), stop.clone()));
        let app = App {
            hosts,
            images: crate::images::Images::for_tests(),
            boots,
            world,
            driver,
            admin_sha256: token::sha256(ADMIN),
            oidc: None,
            refusals: crate::access::refusals::Refusals::default(),
            authority: tls::load_or_create(&dir.join("tls"), &[])
                .unwrap()
                .authority,
            poll_seconds: 1,
            check_in_seconds: 30,
            stop,
        };
        Self { app: Arc::new(app) }
    }

    /// As `kill -9` leaves it, as far as tasks can be killed.
    async fn kill(self) {
        self.app.stop.cancel();
        self.app.driver.join().await;
    }

    pub(super) async fn call(
        &self,
        method: &str,
        path: &str,
        token: &str,
        body: &Value,
    ) -> (u16, Value) {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("content-type", "application/json")
            .header("authorization", format!("Bearer {token}"))
            .body(HttpBody::from(body.to_string()))
            .unwrap();
        let reply = router(Arc::clone(&self.app))
            .oneshot(request)
            .await
            .unwrap();
        let status = reply.status();
        if !status.is_success() {
            let kind = reply.headers()["content-type"].to_str().unwrap();
            assert_eq!(kind, "application/problem+json", "{method} {path}");
        }
        let bytes = axum::body::to_bytes(reply.into_body(), 1 << 20)
            .await
            .unwrap();
        let body = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
        (status.as_u16(), body)
    }

    pub(super) async fn admin(&self, method: &str, path: &str, body: Value) -> Value {
        let (status, reply) = self.call(method, path, ADMIN, &body).await;
        assert!((200..300).contains(&status), "{method} {path}: {reply}");
        reply
    }

    pub(super) async fn add(&self) {
        let host = json!({
            "apiVersion": "ferrite/v1", "kind": "Host",
            "metadata": {"name": "n", "labels": {"rack": "r1"}},
            "secrets": {"bmc_password": "hunter2"},
            "spec": {"bmc": {"address": "redfish://b", "username": "u"}, "boot_mac": MAC},
        });
        self.admin("POST", "/v1/hosts", host).await;
    }

    /// Waits until the host is as it should be, or the test has waited long enough.
    pub(super) async fn until(&self, what: &str, is: impl Fn(&Value) -> bool) -> Value {
        let mut host = Value::Null;
        for _ in 0..500 {
            host = self.admin("GET", "/v1/hosts/n", Value::Null).await;
            if is(&host) {
                return host;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("never {what}: {host:#}");
    }

    /// The ticket that the firmware would be given.
    async fn ticket(&self) -> String {
        self.until("waits for hello", |host| {
            let waits = host["status"]["waiting_for"].as_str().unwrap_or("");
            waits.contains("say hello")
        })
        .await;
        let stored = self.app.hosts.stored("n").unwrap();
        stored.kept.ticket.clone().unwrap().into_inner()
    }

    async fn hello(&self, ticket: &str, nonce: &str, mac: &str) -> (u16, Value) {
        let hello = json!({
            "ticket": ticket, "nonce": nonce, "identity": {"macs": [mac]},
            "agent_version": "0", "kernel": "6", "uptime_seconds": 1.0,
            "boot_mode": "uefi", "memory_bytes": 1,
        });
        self.call("POST", "/v1/agent/hello", "", &hello).await
    }

    async fn poll(&self, token: &str, sequence: u64, reports: Value) -> (u16, Value) {
        let poll = json!({"sequence": sequence, "reports": reports});
        self.call("POST", "/v1/agent/poll", token, &poll).await
    }

    async fn alarms(&self) -> usize {
        let log = self.admin("GET", "/v1/hosts/n/events", Value::Null).await;
        let events = log["events"].as_array().unwrap();
        events.iter().filter(|e| e["kind"] == "alarm").count()
    }
}

#[tokio::test]
async fn everything_is_denied_without_the_right_token_and_every_error_is_a_problem() {
    let dir = tempfile::tempdir().unwrap();
    let conductor = Conductor::start(dir.path()).await;
    for (method, path) in [
        ("GET", "/v1/hosts"),
        ("POST", "/v1/hosts"),
        ("GET", "/v1/hosts/n"),
        ("PUT", "/v1/hosts/n"),
        ("PATCH", "/v1/hosts/n"),
        ("DELETE", "/v1/hosts/n"),
        ("POST", "/v1/hosts/n/provision"),
        ("POST", "/v1/hosts/n/deprovision"),
        ("POST", "/v1/hosts/n/retry"),
        ("GET", "/v1/hosts/n/explain"),
        ("GET", "/v1/hosts/n/events"),
        ("GET", "/v1/version"),
        ("POST", "/v1/agent/poll"),
        ("POST", "/v1/daemon/check-in"),
        ("POST", "/v1/daemon/join"),
        ("POST", "/v1/daemon/join-report"),
    ] {
        let body = json!({"sequence": 1, "reports": []});
        for token in ["", "wrong"] {
            let (status, _) = conductor.call(method, path, token, &body).await;
            assert_eq!(status, 401, "{method} {path}");
        }
    }
    for (method, path, wanted) in [
        ("GET", "/nothing", StatusCode::NOT_FOUND),
        ("PUT", "/v1/hosts", StatusCode::METHOD_NOT_ALLOWED),
        ("GET", "/v1/agent/hello", StatusCode::METHOD_NOT_ALLOWED),
        ("GET", "/v1/hosts/n", StatusCode::NOT_FOUND),
        ("GET", "/v1/hosts/n?colour=red", StatusCode::BAD_REQUEST),
        ("POST", "/v1/hosts", StatusCode::UNPROCESSABLE_ENTITY),
    ] {
        let (status, body) = conductor.call(method, path, ADMIN, &json!({})).await;
        assert_eq!(status, wanted.as_u16(), "{method} {path}: {body}");
        assert_eq!(body["status"], status);
    }
}

#[tokio::test]
async fn a_ticket_lets_in_one_machine_once() {
    let dir = tempfile::tempdir().unwrap();
    let conductor = Conductor::start(dir.path()).await;
    conductor.add().await;
    let ticket = conductor.ticket().await;
    assert_eq!(conductor.hello("no-such-ticket", "a", MAC).await.0, 403);
    let stranger = conductor.hello(&ticket, "a", "52:54:00:77:00:99").await;
    assert_eq!((stranger.0, conductor.alarms().await), (403, 1));
    let (status, first) = conductor.hello(&ticket, "a", MAC).await;
    assert_eq!(status, 200, "{first}");
    // A lost reply costs nothing.
    let (_, again) = conductor.hello(&ticket, "a", MAC).await;
    assert_eq!(first, again);
    // Another machine, or another boot, with the same ticket.
    assert_eq!(conductor.hello(&ticket, "b", MAC).await.0, 403);
    assert_eq!(conductor.alarms().await, 2);
    let token = first["token"].as_str().unwrap();
    assert_eq!(conductor.poll(token, 1, json!([])).await.0, 200);
    assert_eq!(conductor.hello(&ticket, "a", MAC).await.0, 403);
    // The agent's token opens nothing but its own call, and the operators' not that one.
    assert_eq!(
        conductor
            .call("GET", "/v1/hosts", token, &Value::Null)
            .await
            .0,
        401
    );
    assert_eq!(conductor.poll(ADMIN, 1, json!([])).await.0, 401);
}

#[tokio::test]
async fn an_order_outlives_the_conductor_and_its_result_is_taken_once() {
    let dir = tempfile::tempdir().unwrap();
    let conductor = Conductor::start(dir.path()).await;
    conductor.add().await;
    let ticket = conductor.ticket().await;
    let (_, hello) = conductor.hello(&ticket, "a", MAC).await;
    let token = hello["token"].as_str().unwrap();
    let (_, offered) = conductor.poll(token, 1, json!([])).await;
    assert_eq!(
        offered["order"],
        json!({"number": 1, "step": {"step": "inspect"}})
    );
    // Until it is accepted it comes again.
    assert_eq!(conductor.poll(token, 2, json!([])).await.1, offered);
    let accepted = json!([{"report": "accepted", "order": 1}]);
    assert_eq!(conductor.poll(token, 3, accepted).await.1, json!({}));
    conductor.kill().await;

    let conductor = Conductor::start(dir.path()).await;
    let outcome = json!({"outcome": "inspected", "inventory": {"version": 1}});
    let done = json!([{"report": "done", "order": 1, "outcome": outcome, "seconds": 1.0}]);
    for _ in 0..2 {
        let (status, reply) = conductor.poll(token, 4, done.clone()).await;
        assert_eq!(status, 200, "{reply}");
    }
    let host = conductor
        .until("preparing", |host| {
            host["status"]["step"]["name"] == "erase"
        })
        .await;
    assert_eq!(host["status"]["state"], HostState::Preparing.as_str());
    assert_eq!(host["status"]["step"]["order"], 2);
    let inventory = conductor.admin("GET", "/v1/hosts/n/inventory", Value::Null);
    assert_eq!(inventory.await["version"], 1);
    assert!(!host.to_string().contains("hunter2"));
    let timeline = conductor.admin("GET", "/v1/hosts/n/timeline", Value::Null);
    let timeline: Timeline = serde_json::from_value(timeline.await).unwrap();
    let inspects = timeline.stages().filter(|s| s.name == "inspect").count();
    assert_eq!(inspects, 1);
}

#[tokio::test]
async fn a_delete_switches_off_and_forgets() {
    let dir = tempfile::tempdir().unwrap();
    let conductor = Conductor::start(dir.path()).await;
    conductor.add().await;
    conductor.ticket().await;
    conductor.admin("DELETE", "/v1/hosts/n", Value::Null).await;
    for _ in 0..500 {
        let (status, _) = conductor
            .call("GET", "/v1/hosts/n", ADMIN, &Value::Null)
            .await;
        if status == 404 {
            // The name is free again.
            return conductor.add().await;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the host never went");
}

/// Keeps what is logged.
#[derive(Debug, Clone, Default)]
struct Logged(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Logged {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

const USER_DATA: &str = "#cloud-config planted-user-data";
const DAEMON_KEY: &str = "planted-daemon-key-0123456789";

impl Conductor {
    /// The agent takes the next order and says what came of it.
    async fn step(&self, token: &str, sequence: &mut u64, outcome: Outcome) -> Value {
        for _ in 0..200 {
            *sequence += 1;
            let (_, reply) = self.poll(token, *sequence, json!([])).await;
            let Some(number) = reply["order"]["number"].as_u64() else {
                continue;
            };
            let reports = json!([
                {"report": "accepted", "order": number},
                {"report": "done", "order": number, "outcome": outcome, "seconds": 1.0},
            ]);
            *sequence += 1;
            assert_eq!(self.poll(token, *sequence, reports).await.0, 200);
            return reply;
        }
        panic!("no order");
    }

    /// Everything that people can read of the host, in one text.
    async fn readable(&self) -> String {
        let mut all = String::new();
        for path in ["", "/n", "/n/explain", "/n/events?limit=2000"] {
            let path = format!("/v1/hosts{path}");
            all += &self.admin("GET", &path, Value::Null).await.to_string();
        }
        all
    }
}

/// From the first password to the daemon's key: what is planted comes out where it is meant to,
/// and in no reply to people, no line of the log and no file.
#[tokio::test]
async fn secrets_are_in_no_reply_no_log_and_no_file() {
    let logged = Logged::default();
    let sink = logged.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_writer(move || sink.clone())
        .finish();
    // With two that listen, a line that another test's thread meets first is not off for all.
    let _second = tracing::Dispatch::new(tracing_subscriber::registry());
    let _guard = tracing::subscriber::set_default(subscriber);
    let dir = tempfile::tempdir().unwrap();
    let conductor = Conductor::start(dir.path()).await;
    conductor.add().await;
    let ticket = conductor.ticket().await;
    let stored = conductor.app.hosts.stored("n").unwrap();
    let iso_token = stored.kept.iso_token.clone().unwrap().into_inner();
    let mut seen = conductor.readable().await;
    let (_, hello) = conductor.hello(&ticket, "nonce", MAC).await;
    let token = hello["token"].as_str().unwrap();
    let mut sequence = 0;
    let outcome = json!({"outcome": "inspected", "inventory": {"version": 1}});
    let inspected = serde_json::from_value(outcome).unwrap();
    conductor.step(token, &mut sequence, inspected).await;
    let erased = Outcome::Erased { disks: Vec::new() };
    conductor.step(token, &mut sequence, erased).await;
    conductor
        .admin("POST", "/v1/hosts/n/provision", wish())
        .await;
    let written = Outcome::ImageWritten(ImageWritten::default());
    conductor.step(token, &mut sequence, written).await;
    let drive = Outcome::ConfigDriveWritten {
        partition: "p".into(),
        bytes: 1,
    };
    seen += &conductor.readable().await;
    let order = conductor.step(token, &mut sequence, drive).await;
    assert!(order.to_string().contains(USER_DATA), "{order}");
    let stored = conductor.app.hosts.stored("n").unwrap();
    let credential = stored.kept.credential.clone().unwrap().into_inner();
    assert!(order.to_string().contains(&credential), "{order}");
    let enroll = json!({
        "credential": credential, "key_sha256": token::sha256(DAEMON_KEY),
        "identity": {"macs": [MAC]},
    });
    let enroll = conductor.call("POST", "/v1/daemon/enroll", "", &enroll);
    assert_eq!(enroll.await.0, 200);
    seen += &conductor.readable().await;
    conductor.kill().await;

    let planted = [
        "hunter2",
        "planted",
        &ticket,
        &iso_token,
        token,
        &credential,
        ADMIN,
    ];
    let log = String::from_utf8_lossy(&logged.0.lock().unwrap()).into_owned();
    assert!(
        log.contains("the host daemon enrolled"),
        "nothing is logged: {log}"
    );
    for secret in planted {
        assert!(!seen.contains(secret), "{secret} in a reply");
        assert!(!log.contains(secret), "{secret} in the log");
    }
    not_in_files(dir.path(), &planted);
}

fn wish() -> Value {
    json!({
        "image": {"url": "http://i/1.raw", "format": "raw", "allow_unverified": true},
        "secrets": {
            "user_data": USER_DATA, "vendor_data": "#!planted-vendor-data",
            "network_data": "{\"planted-network-data\": 1}",
            "meta_data": {"key": "planted-meta-data"},
        },
    })
}

fn files(dir: &Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(dir).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    let (dirs, mut files): (Vec<_>, Vec<_>) = paths.partition(|path| path.is_dir());
    files.extend(dirs.iter().flat_map(|dir| self::files(dir)));
    files
}

fn not_in_files(dir: &Path, planted: &[&str]) {
    let mut databases = 0;
    for path in files(dir) {
        // SQLite removes its log and index as the last connection closes, perhaps just now.
        let Ok(bytes) = std::fs::read(&path) else {
            assert!(!path.exists(), "{} cannot be read", path.display());
            continue;
        };
        databases += usize::from(bytes.starts_with(b"SQLite format 3"));
        for secret in planted {
            let is_it = |w: &[u8]| w == secret.as_bytes();
            let found = bytes.windows(secret.len()).any(is_it);
            assert!(!found, "{secret} in {}", path.display());
        }
    }
    assert_eq!(databases, 1, "no database was looked at");
}

/// A stranger's body is small and comes in time, or the call ends.
#[tokio::test]
async fn strangers_are_not_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let conductor = Conductor::start(dir.path()).await;
    let long = json!({"ticket": "x".repeat(100_000)});
    let (status, _) = conductor.call("POST", "/v1/agent/hello", "", &long).await;
    assert_eq!(status, 413);
    let never = futures_util::stream::pending::<std::io::Result<bytes::Bytes>>();
    let request = Request::post("/v1/daemon/enroll")
        .header("content-type", "application/json")
        .body(HttpBody::from_stream(never))
        .unwrap();
    let reply = router(Arc::clone(&conductor.app)).oneshot(request).await;
    assert_eq!(reply.unwrap().status(), StatusCode::REQUEST_TIMEOUT);
}

/// While a host goes, what others do with it and a new one of its name get in nobody's way.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_host_that_goes_does_not_come_back_by_itself() {
    let dir = tempfile::tempdir().unwrap();
    let conductor = Conductor::start(dir.path()).await;
    let hosts = Arc::clone(&conductor.app.hosts);
    for _ in 0..30 {
        conductor.add().await;
        let other = Arc::clone(&hosts);
        let touching = tokio::spawn(async move {
            let actor = crate::actor::Actor::Agent;
            let touch = |change: &mut crate::lifecycle::change::Change| {
                change.event("log", "touched");
                Ok(())
            };
            while other.update("n", &actor, touch).await.is_ok() {}
        });
        let _ = hosts.remove("n", &crate::actor::Actor::Conductor).await;
        touching.await.unwrap();
        assert!(hosts.live("n").is_none() && hosts.stored("n").is_err());
    }
}
