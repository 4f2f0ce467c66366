//! Who gets through the door: every call by every kind of caller, against a list that is checked
//! in, and what happens when a line of the table is weakened.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body as HttpBody;
use axum::http::{Request, StatusCode};
use axum::middleware;
use axum::routing::{MethodFilter, on};
use serde_json::{Value, json};
use tower::ServiceExt;

use super::arrival::Bodies;
use super::tests::{ADMIN, Conductor, MAC};
use super::{App, router};
use crate::access::caller::Role;
use crate::access::door::{Door, guard};
use crate::access::table::{Line, Scope, TABLE, Who};

/// What the door says to whom; `make` has no part in it: the test below writes it.
const MATRIX: &str = include_str!("../access/matrix.txt");
const MATRIX_FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/access/matrix.txt");

const CALLERS: [&str; 13] = [
    "none",
    "wrong",
    "viewer",
    "operator",
    "admin-of-one",
    "viewer-all",
    "operator-all",
    "admin",
    "other",
    "agent",
    "daemon",
    "revoked",
    "expired",
];

/// A conductor with a host in the project `default`, and one caller of each kind.
struct World {
    conductor: Conductor,
    tokens: BTreeMap<&'static str, String>,
    _dir: tempfile::TempDir,
}

impl World {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let conductor = Conductor::start(dir.path()).await;
        conductor.add().await;
        let mut tokens = BTreeMap::new();
        tokens.insert("none", String::new());
        tokens.insert("wrong", "frt_viewer_wrong".to_owned());
        tokens.insert("admin", ADMIN.to_owned());
        for (name, role, project) in [
            ("viewer", "viewer", "default"),
            ("operator", "operator", "default"),
            ("admin-of-one", "admin", "default"),
            ("other", "admin", "other"),
            ("revoked", "operator", "default"),
        ] {
            let token = new_token(&conductor, name, role, Some(project), None).await;
            tokens.insert(name, token);
        }
        let gone = conductor.admin("DELETE", "/v1/tokens/revoked", Value::Null);
        gone.await;
        for role in ["viewer", "operator"] {
            let name = if role == "viewer" {
                "viewer-all"
            } else {
                "operator-all"
            };
            let token = new_token(&conductor, name, role, None, None).await;
            tokens.insert(name, token);
        }
        let expired = new_token(&conductor, "expired", "admin", None, Some(1)).await;
        tokens.insert("expired", expired);
        tokio::time::sleep(Duration::from_millis(1100)).await;
        for (name, kind) in [("agent", true), ("daemon", false)] {
            tokens.insert(name, plant(&conductor, kind).await);
        }
        Self {
            conductor,
            tokens,
            _dir: dir,
        }
    }

    fn app(&self) -> Arc<App> {
        Arc::clone(&self.conductor.app)
    }

    fn request(&self, line: Line, caller: &str) -> Request<HttpBody> {
        let path = line.path.replace("{name}", "n");
        let path = path.replace("{token}", "t").replace("{subject}", "user:u");
        let path = path.replace(['{', '}'], "");
        let body = json!({"metadata": {"name": "n", "project": "default"}});
        let mut request = Request::builder()
            .method(line.method)
            .uri(path)
            .header("content-type", "application/json");
        if caller != "none" {
            let token = &self.tokens[caller];
            request = request.header("authorization", format!("Bearer {token}"));
        }
        request.body(HttpBody::from(body.to_string())).unwrap()
    }

    /// What the door says: `yes`, or the status of its refusal.
    async fn ask(&self, table: &'static [Line], line: Line, caller: &str) -> String {
        let reply = stub(self.app(), table, line)
            .oneshot(self.request(line, caller))
            .await
            .unwrap();
        match reply.status() {
            StatusCode::IM_A_TEAPOT => "yes".to_owned(),
            refused => refused.as_u16().to_string(),
        }
    }

    async fn row(&self, table: &'static [Line], line: Line) -> String {
        let mut row = format!("{:<7}{:<40}", line.method, line.path);
        for caller in CALLERS {
            let said = self.ask(table, line, caller).await;
            write!(row, "{said:<13}").unwrap();
        }
        row.trim_end().to_owned()
    }
}

/// The door, and behind it one call that does nothing.
fn stub(app: Arc<App>, table: &'static [Line], line: Line) -> Router {
    let method = line.method.parse::<axum::http::Method>().unwrap();
    let filter = MethodFilter::try_from(method).unwrap();
    Router::new()
        .route(line.path, on(filter, || async { StatusCode::IM_A_TEAPOT }))
        .layer(middleware::from_fn_with_state(
            Door {
                app,
                table,
                bodies: Bodies::default(),
            },
            guard,
        ))
}

async fn new_token(
    conductor: &Conductor,
    name: &str,
    role: &str,
    project: Option<&str>,
    seconds: Option<u64>,
) -> String {
    let mut asked = json!({"name": name, "grants": [{"role": role}]});
    if let Some(project) = project {
        asked["grants"][0]["project"] = json!(project);
    }
    if let Some(seconds) = seconds {
        asked["expires_seconds"] = json!(seconds);
    }
    let made = conductor.admin("POST", "/v1/tokens", asked).await;
    made["secret"].as_str().unwrap().to_owned()
}

/// A host of its own that has an agent's token, or a daemon's key.
async fn plant(conductor: &Conductor, agent: bool) -> String {
    use crate::actor::Actor;
    use crate::lifecycle::record::{DaemonAccess, HelloFacts};
    let name = if agent { "with-agent" } else { "with-daemon" };
    let mac = MAC.replace("01", if agent { "08" } else { "09" });
    let host = json!({
        "apiVersion": "ferrite/v1", "kind": "Host",
        "metadata": {"name": name},
        "secrets": {"bmc_password": "hunter2"},
        "spec": {"bmc": {"address": format!("redfish://{name}"), "username": "u"},
                 "boot_mac": mac},
    });
    conductor.admin("POST", "/v1/hosts", host).await;
    let token = format!("planted-{name}-0123456789abcdef0123");
    let sha256 = crate::token::sha256(&token);
    let planted = conductor
        .app
        .hosts
        .update(name, &Actor::Conductor, |change| {
            if agent {
                let facts = HelloFacts {
                    ticket_sha256: "t".into(),
                    nonce: "n".into(),
                    token_sha256: sha256.clone(),
                    version: "0".into(),
                    kernel: "6".into(),
                    uptime_seconds: 1.0,
                    memory_bytes: 1,
                    netboot_bytes: 0,
                };
                change.hello(facts, ferrite_proto::secret::Secret::new(token.clone()));
            } else {
                change.record.run.daemon = Some(DaemonAccess {
                    credential_sha256: "c".into(),
                    key_sha256: Some(sha256.clone()),
                    used: true,
                });
            }
            Ok(())
        });
    planted.await.unwrap();
    token
}

#[tokio::test]
async fn every_call_of_openapi_by_every_caller_is_as_written() {
    let world = World::new().await;
    let mut found = format!("{:<47}", "");
    for caller in CALLERS {
        write!(found, "{caller:<13}").unwrap();
    }
    found = format!("{}\n", found.trim_end());
    for line in TABLE {
        found += &world.row(TABLE, *line).await;
        found.push('\n');
    }
    if std::env::var_os("WRITE_OPENAPI").is_some() {
        std::fs::write(MATRIX_FILE, &found).unwrap();
        return;
    }
    assert_eq!(
        found, MATRIX,
        "if this is meant: run `make openapi` and look at the difference"
    );
}

/// Lines that let in more people, one step each.
fn weaker(line: Line) -> Vec<Line> {
    let with = |who| Line { who, ..line };
    match line.who {
        Who::Anyone => Vec::new(),
        Who::Agent => vec![with(Who::Anyone), with(Who::Daemon)],
        Who::Daemon => vec![with(Who::Anyone), with(Who::Agent)],
        Who::Person(role, scope) => {
            let mut all = vec![with(Who::Anyone)];
            all.extend(match role {
                Role::Admin => Some(with(Who::Person(Role::Operator, scope))),
                Role::Operator => Some(with(Who::Person(Role::Viewer, scope))),
                Role::Viewer => None,
            });
            let wider = match scope {
                Scope::Global | Scope::Host | Scope::Body => Some(Scope::Any),
                Scope::HostAndBody => Some(Scope::Body),
                Scope::Any => None,
            };
            all.extend(wider.map(|scope| with(Who::Person(role, scope))));
            all
        }
    }
}

/// Each line of the table holds something up: without it as it is, the list above is another.
#[tokio::test]
async fn no_line_can_be_weakened_unseen() {
    let world = World::new().await;
    let mut tried = 0;
    for (line, written) in TABLE.iter().zip(MATRIX.lines().skip(1)) {
        for weak in weaker(*line) {
            let table: &'static [Line] = Box::leak(Box::new([weak]));
            let row = world.row(table, weak).await;
            assert_ne!(row, written, "{weak:?} changes nothing");
            tried += 1;
        }
    }
    assert!(tried >= TABLE.len(), "{tried}");
    // Without its line a call is closed for everybody.
    for line in TABLE {
        for caller in CALLERS {
            assert_eq!(world.ask(&[], *line, caller).await, "403", "{line:?}");
        }
    }
}

/// The same door stands in front of the real calls.
#[tokio::test]
async fn the_router_has_the_calls_of_the_table_and_the_door() {
    let world = World::new().await;
    for line in TABLE {
        for caller in ["none", "wrong", "revoked", "expired", "agent", "daemon"] {
            let open = match (line.who, caller) {
                (Who::Anyone, _) | (Who::Agent, "agent") | (Who::Daemon, "daemon") => continue,
                _ => false,
            };
            let reply = router(world.app()).oneshot(world.request(*line, caller));
            let status = reply.await.unwrap().status();
            let through = status != StatusCode::UNAUTHORIZED;
            assert_eq!(
                through, open,
                "{} {} {caller}: {status}",
                line.method, line.path
            );
        }
        // There is such a call: an unknown one would not be found, and have no method.
        let nobody = Request::builder()
            .method("TRACE")
            .uri(world.request(*line, "none").uri())
            .body(HttpBody::empty());
        let reply = router(world.app()).oneshot(nobody.unwrap()).await.unwrap();
        let status = reply.status();
        assert_eq!(status, StatusCode::METHOD_NOT_ALLOWED, "{}", line.path);
        assert!(
            reply.headers()["allow"]
                .to_str()
                .unwrap()
                .contains(line.method)
        );
    }
}

#[tokio::test]
async fn projects_do_not_see_each_other() {
    let world = World::new().await;
    let conductor = &world.conductor;
    let other = &world.tokens["other"];
    let mine = json!({
        "apiVersion": "ferrite/v1", "kind": "Host",
        "metadata": {"name": "mine", "project": "other"},
        "secrets": {"bmc_password": "hunter2"},
        "spec": {"bmc": {"address": "redfish://mine", "username": "u"},
                 "boot_mac": MAC.replace("01", "11")},
    });
    assert_eq!(
        conductor.call("POST", "/v1/hosts", other, &mine).await.0,
        201
    );
    let (_, list) = conductor
        .call("GET", "/v1/hosts", other, &Value::Null)
        .await;
    let names: Vec<_> = list["items"].as_array().unwrap().iter().collect();
    assert_eq!(names.len(), 1);
    assert_eq!(names[0]["metadata"]["name"], "mine");
    // The host of others is as good as none.
    let hidden = conductor
        .call("GET", "/v1/hosts/n", other, &Value::Null)
        .await;
    let none = conductor
        .call("GET", "/v1/hosts/x", other, &Value::Null)
        .await;
    assert_eq!((hidden.0, none.0), (404, 404));
    assert_eq!(hidden.1["code"], none.1["code"]);
    // Nor can one's own be moved to others, in any way of writing it.
    for patch in [
        r#"{"metadata":{"project":"default"}}"#,
        r#"{"metadata":{"project":null}}"#,
        r#"{"metadata":{"project":"other","project":"default"}}"#,
        r#"{"metadata":{"project":"other"},"metadata":{"project":"default"}}"#,
        r#"{"metadata":{"pro\u006aect":"default"}}"#,
    ] {
        let request = Request::builder()
            .method("PATCH")
            .uri("/v1/hosts/mine")
            .header("content-type", "application/json")
            .header("authorization", format!("Bearer {other}"))
            .body(HttpBody::from(patch))
            .unwrap();
        let reply = router(world.app()).oneshot(request).await.unwrap();
        assert!(
            reply.status().is_client_error(),
            "{patch}: {}",
            reply.status()
        );
        let project = &conductor
            .app
            .hosts
            .stored("mine")
            .unwrap()
            .record
            .host
            .project;
        assert_eq!(project, "other", "{patch}");
    }
}

#[tokio::test]
async fn a_binding_gives_and_its_end_takes() {
    let world = World::new().await;
    let conductor = &world.conductor;
    let viewer = &world.tokens["viewer"];
    let retry = || conductor.call("POST", "/v1/hosts/n/retry", viewer, &Value::Null);
    assert_eq!(retry().await.0, 403);
    let grants = json!({"grants": [{"role": "operator", "project": "default"}]});
    conductor
        .admin("PUT", "/v1/roles/token:viewer", grants)
        .await;
    assert_eq!(retry().await.0, 200);
    let (_, me) = conductor
        .call("GET", "/v1/whoami", viewer, &Value::Null)
        .await;
    assert_eq!(me["grants"].as_array().unwrap().len(), 2);
    let path = "/v1/roles/token:viewer";
    conductor.admin("DELETE", path, Value::Null).await;
    assert_eq!(retry().await.0, 403);
    // A token is never shown again, and a second one of the name is not made.
    let list = conductor.admin("GET", "/v1/tokens", Value::Null).await;
    assert!(!list.to_string().contains("frt_") && !list.to_string().contains("sha256"));
    let again = json!({"name": "viewer", "grants": [{"role": "admin"}]});
    assert_eq!(
        conductor.call("POST", "/v1/tokens", ADMIN, &again).await.0,
        409
    );
}

#[tokio::test]
async fn the_audit_log_says_who_did_what_and_no_secret() {
    let world = World::new().await;
    let conductor = &world.conductor;
    let operator = &world.tokens["operator"];
    let patch = json!({"secrets": {"bmc_password": "hunter3"}, "spec": {"boot_mode": "bios"}});
    let (status, reply) = conductor
        .call("PATCH", "/v1/hosts/n", operator, &patch)
        .await;
    assert_eq!(status, 200, "{reply}");
    let log = conductor
        .admin("GET", "/v1/audit?limit=1000", Value::Null)
        .await;
    assert!(!log.to_string().contains("hunter"), "{log}");
    let log: ferrite_proto::access::AuditList = serde_json::from_value(log).unwrap();
    let mut check = crate::audit::Check::default();
    for line in &log.items {
        check.take(line).unwrap();
    }
    check.end(log.head.as_ref()).unwrap();
    let last: Value = serde_json::from_str(&log.items.last().unwrap().body).unwrap();
    assert_eq!(last["actor"]["who"], "operator");
    assert_eq!(last["actor"]["via"]["via"], "token");
    assert_eq!(last["actor"]["via"]["call"], "PATCH /v1/hosts/{name}");
    assert!(last["actor"]["via"]["request"].is_string());
    assert_eq!(last["action"], "change");
    assert_eq!(last["target"]["name"], "n");
    assert_eq!(last["detail"]["secrets"], json!(["bmc_password"]));
    assert_eq!(last["detail"]["spec"], json!(["boot_mode"]));
    let all = |action: &str| {
        let of = |line: &&ferrite_proto::access::AuditLine| {
            line.body.contains(&format!("\"action\":\"{action}\""))
        };
        log.items.iter().filter(of).count()
    };
    assert_eq!((all("create"), all("revoke")), (11, 1));
}
