//! A Redfish service in memory, for tests: a tree of JSON, and rules for what goes wrong.
//!
//! It is not a BMC: nothing is behind it. The lab has one with a machine behind.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::{Json, Router};
use base64::Engine;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

/// What goes wrong, and how often.
#[derive(Debug, Clone)]
pub(super) struct Rule {
    call: String,
    status: u16,
    body: Value,
    times: usize,
}

impl Rule {
    /// One answer with `status` to `METHOD /path`.
    pub(super) fn new(call: &str, status: u16) -> Self {
        Self {
            call: call.to_owned(),
            status,
            body: Value::Null,
            times: 1,
        }
    }

    pub(super) fn times(mut self, times: usize) -> Self {
        self.times = times;
        self
    }

    pub(super) fn always(self) -> Self {
        self.times(usize::MAX)
    }

    pub(super) fn says(mut self, id: &str, message: &str) -> Self {
        self.body = said(id, message);
        self
    }
}

fn said(id: &str, message: &str) -> Value {
    let info = json!([{ "MessageId": id, "Message": message }]);
    json!({ "error": { "code": id, "message": "see below", "@Message.ExtendedInfo": info } })
}

#[derive(Debug, Default)]
struct Inside {
    documents: BTreeMap<String, Value>,
    rules: Vec<Rule>,
    calls: Vec<Asked>,
    sessions: Vec<String>,
}

#[derive(Debug)]
struct Asked {
    call: String,
    etag: String,
    body: Value,
}

/// The service, running.
#[derive(Debug)]
pub(super) struct Mock {
    at: SocketAddr,
    inside: Arc<Mutex<Inside>>,
    stop: CancellationToken,
    serving: tokio_util::task::TaskTracker,
}

impl Mock {
    /// One system, off; one manager with a CD drive.
    pub(super) async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let inside = Arc::new(Mutex::new(Inside {
            documents: documents(),
            ..Inside::default()
        }));
        let router = Router::new()
            .fallback(handle)
            .with_state(Arc::clone(&inside));
        let (stop, serving) = (
            CancellationToken::new(),
            tokio_util::task::TaskTracker::new(),
        );
        let stopped = stop.clone().cancelled_owned();
        serving.spawn(async move {
            let served = axum::serve(listener, router).with_graceful_shutdown(stopped);
            served.await.unwrap();
        });
        serving.close();
        Self {
            at,
            inside,
            stop,
            serving,
        }
    }

    pub(super) async fn stop(&self) {
        self.stop.cancel();
        self.serving.wait().await;
    }

    pub(super) fn base(&self) -> String {
        format!("http://{}", self.at)
    }

    pub(super) fn address(&self) -> String {
        format!("redfish+http://{}", self.at)
    }

    pub(super) fn rule(&self, rule: Rule) {
        self.inside.lock().unwrap().rules.push(rule);
    }

    pub(super) fn forget_sessions(&self) {
        self.inside.lock().unwrap().sessions.clear();
    }

    /// Sets `/path/of/document/Field/…`, adding to an array where the index is its length.
    pub(super) fn set(&self, path: &str, value: &Value) {
        let mut inside = self.inside.lock().unwrap();
        let (document, pointer) = split(&inside.documents, path);
        let document = inside.documents.get_mut(&document).unwrap();
        let (mut at, mut rest) = (document, pointer.split('/').skip(1).peekable());
        while let Some(key) = rest.next() {
            if let (Some(array), Ok(index)) = (at.as_array(), key.parse::<usize>())
                && array.len() == index
            {
                at.as_array_mut().unwrap().push(json!({}));
            }
            at = match key.parse::<usize>() {
                Ok(index) => &mut at[index],
                Err(_) => &mut at[key],
            };
            if rest.peek().is_none() {
                *at = value.clone();
            }
        }
    }

    /// A document, or a part of one.
    pub(super) fn get(&self, path: &str) -> Value {
        let inside = self.inside.lock().unwrap();
        let (document, pointer) = split(&inside.documents, path);
        inside.documents[&document]
            .pointer(&pointer)
            .cloned()
            .unwrap_or_default()
    }

    pub(super) fn count(&self, call: &str) -> usize {
        self.bodies(call).len()
    }

    pub(super) fn bodies(&self, call: &str) -> Vec<Value> {
        let inside = self.inside.lock().unwrap();
        let calls = inside.calls.iter().filter(|c| c.call == call);
        calls.map(|c| c.body.clone()).collect()
    }

    pub(super) fn etags(&self, call: &str) -> Vec<String> {
        let inside = self.inside.lock().unwrap();
        let calls = inside.calls.iter().filter(|c| c.call == call);
        calls.map(|c| c.etag.clone()).collect()
    }

    pub(super) fn resets(&self) -> Vec<String> {
        let reset = "POST /redfish/v1/Systems/1/Actions/ComputerSystem.Reset";
        let kind = |body: &Value| body["ResetType"].as_str().unwrap().to_owned();
        self.bodies(reset).iter().map(kind).collect()
    }
}

/// The longest path that is a document, and the pointer into it.
fn split(documents: &BTreeMap<String, Value>, path: &str) -> (String, String) {
    let fits = |d: &&String| path == *d || path.starts_with(&format!("{d}/"));
    let document = documents
        .keys()
        .filter(fits)
        .max_by_key(|d| d.len())
        .unwrap();
    (document.clone(), path[document.len()..].to_owned())
}

fn documents() -> BTreeMap<String, Value> {
    let link = |path: &str| json!({ "@odata.id": path });
    let media = "/redfish/v1/Managers/1/VirtualMedia/Cd";
    let collection = |member: &str| json!({ "Members": [link(member)] });
    [
        (
            "/redfish/v1/",
            json!({
                "Systems": link("/redfish/v1/Systems"),
                "Managers": link("/redfish/v1/Managers"),
            }),
        ),
        ("/redfish/v1/Systems", collection("/redfish/v1/Systems/1")),
        (
            "/redfish/v1/Systems/1",
            json!({
                "UUID": "00000000-0000-4000-8000-00000000AB01",
                "SerialNumber": "lab-1",
                "PowerState": "Off",
                "Boot": {
                    "BootSourceOverrideEnabled": "Disabled",
                    "BootSourceOverrideTarget": "None",
                    "BootSourceOverrideMode": "UEFI",
                },
                "Links": { "ManagedBy": [link("/redfish/v1/Managers/1")] },
                "Actions": { "#ComputerSystem.Reset": {
                    "target": "/redfish/v1/Systems/1/Actions/ComputerSystem.Reset",
                    "ResetType@Redfish.AllowableValues": ["On", "ForceOff", "PowerCycle"],
                } },
            }),
        ),
        ("/redfish/v1/Managers", collection("/redfish/v1/Managers/1")),
        (
            "/redfish/v1/Managers/1",
            json!({
                "VirtualMedia": link("/redfish/v1/Managers/1/VirtualMedia"),
            }),
        ),
        ("/redfish/v1/Managers/1/VirtualMedia", collection(media)),
        (
            media,
            json!({
                "MediaTypes": ["CD"],
                "Inserted": false,
                "Actions": {
                    "#VirtualMedia.InsertMedia": {
                        "target": format!("{media}/Actions/VirtualMedia.InsertMedia"),
                    },
                    "#VirtualMedia.EjectMedia": {
                        "target": format!("{media}/Actions/VirtualMedia.EjectMedia"),
                    },
                },
            }),
        ),
    ]
    .into_iter()
    .map(|(path, document)| (path.to_owned(), document))
    .collect()
}

async fn handle(State(inside): State<Arc<Mutex<Inside>>>, request: Request) -> Response {
    let (head, body) = request.into_parts();
    let body = axum::body::to_bytes(body, 1 << 20).await.unwrap();
    let body: Value = serde_json::from_slice(&body).unwrap_or_default();
    let (method, path) = (head.method.as_str(), head.uri.path());
    let call = format!("{method} {path}");
    let mut inside = inside.lock().unwrap();
    let header = |name: &str| head.headers.get(name).map_or("", |v| v.to_str().unwrap());
    inside.calls.push(Asked {
        call: call.clone(),
        etag: header("If-Match").to_owned(),
        body: body.clone(),
    });
    let rule = inside
        .rules
        .iter_mut()
        .find(|r| r.call == call && r.times > 0);
    if let Some(rule) = rule {
        rule.times -= 1;
        let status = StatusCode::from_u16(rule.status).unwrap();
        return (status, Json(rule.body.clone())).into_response();
    }
    if call == "POST /redfish/v1/SessionService/Sessions" {
        return log_in(&mut inside, &body);
    }
    if !authorized(&inside, &head.headers) {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    match method {
        "GET" => match inside.documents.get(path) {
            Some(document) => ([("ETag", "W/\"1\"")], Json(document.clone())).into_response(),
            None => StatusCode::NOT_FOUND.into_response(),
        },
        "PATCH" => {
            merge(inside.documents.get_mut(path).unwrap(), &body);
            StatusCode::NO_CONTENT.into_response()
        }
        _ => act(&mut inside, path, &body),
    }
}

fn log_in(inside: &mut Inside, body: &Value) -> Response {
    if body["UserName"] != "admin" || body["Password"] != "secret" {
        let refusal = said("Base.1.8.NoValidSession", "no such account");
        return (StatusCode::UNAUTHORIZED, Json(refusal)).into_response();
    }
    let token = format!("session-{}", inside.calls.len());
    inside.sessions.push(token.clone());
    (
        StatusCode::CREATED,
        [("X-Auth-Token", token)],
        Json(json!({})),
    )
        .into_response()
}

fn authorized(inside: &Inside, headers: &HeaderMap) -> bool {
    let text = |name: &str| headers.get(name).and_then(|v| v.to_str().ok());
    let basic = base64::engine::general_purpose::STANDARD.encode("admin:secret");
    text("X-Auth-Token").is_some_and(|token| inside.sessions.iter().any(|s| s == token))
        || text("Authorization") == Some(&format!("Basic {basic}"))
}

fn act(inside: &mut Inside, path: &str, body: &Value) -> Response {
    let (document, action) = path.split_once("/Actions/").unwrap();
    let document = inside.documents.get_mut(document).unwrap();
    match action {
        "ComputerSystem.Reset" => {
            let off = body["ResetType"] == "ForceOff";
            document["PowerState"] = json!(if off { "Off" } else { "On" });
        }
        "VirtualMedia.InsertMedia" => {
            document["Image"] = body["Image"].clone();
            document["Inserted"] = json!(true);
        }
        "VirtualMedia.EjectMedia" => {
            document["Image"] = Value::Null;
            document["Inserted"] = json!(false);
        }
        other => panic!("{other}"),
    }
    StatusCode::NO_CONTENT.into_response()
}

fn merge(document: &mut Value, change: &Value) {
    match change.as_object() {
        Some(fields) => fields
            .iter()
            .for_each(|(key, value)| merge(&mut document[key], value)),
        None => *document = change.clone(),
    }
}
