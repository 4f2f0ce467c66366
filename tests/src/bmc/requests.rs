//! What a Redfish request does: who may ask, what changes, what is answered.

use std::hash::{DefaultHasher, Hash, Hasher};

use axum::body::Body;
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::Response;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::documents::{BOOT_TARGETS, RESET_TYPES, document, session};
use super::{Bmc, USER, mode};
use crate::machine::BootDevice;
use crate::vm::{BootOverride, Power};

const SYSTEM: &str = "/redfish/v1/Systems/1";
const SESSIONS: &str = "/redfish/v1/SessionService/Sessions";
const MEDIA: &str = "/redfish/v1/Managers/1/VirtualMedia/Cd/Actions";

#[derive(Debug)]
pub(super) struct Reply {
    pub(super) status: u16,
    pub(super) body: Value,
    headers: Vec<(&'static str, String)>,
}

impl Reply {
    fn new(status: u16, body: Value) -> Self {
        Self {
            status,
            body,
            headers: Vec::new(),
        }
    }

    fn nothing() -> Self {
        Self::new(204, Value::Null)
    }

    /// Redfish's own error body: clients show its messages to people.
    fn refusal(status: u16, id: &str, message: &str) -> Self {
        let id = format!("Base.1.8.{id}");
        let info = json!([{
            "@odata.type": "#Message.v1_1_1.Message", "MessageId": id, "Message": message,
            "Severity": "Critical", "Resolution": "Correct the request and send it again.",
        }]);
        let error = json!({ "code": id, "message": message, "@Message.ExtendedInfo": info });
        Self::new(status, json!({ "error": error }))
    }

    pub(super) fn into_response(self) -> Response {
        let body = if self.body.is_null() {
            String::new()
        } else {
            self.body.to_string()
        };
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = Response::builder()
            .status(status)
            .header("OData-Version", "4.0");
        if !body.is_empty() {
            response = response.header(header::CONTENT_TYPE, "application/json");
        }
        for (name, value) in self.headers {
            response = response.header(name, value);
        }
        response.body(Body::from(body)).unwrap_or_default()
    }
}

pub(super) fn faulty_status(status: u16) -> Reply {
    if status == 204 {
        return Reply::nothing();
    }
    Reply::refusal(
        status,
        "GeneralError",
        "A fault that the lab was asked for.",
    )
}

pub(super) fn answer(bmc: &Bmc, head: &Parts, body: &[u8]) -> Reply {
    let path = head.uri.path().trim_end_matches('/');
    let method = head.method.as_str();
    let open = path == "/redfish" || path == "/redfish/v1" || (method, path) == ("POST", SESSIONS);
    if !open && !may_enter(bmc, &head.headers) {
        let message = "The credentials that were given are not valid for this BMC.";
        return Reply::refusal(401, "InsufficientPrivilege", message);
    }
    match method {
        "GET" | "HEAD" => read(bmc, path),
        "PATCH" if path == SYSTEM => with_json(body, |body| patch_system(bmc, &head.headers, body)),
        "POST" => with_json(body, |body| post(bmc, path, body)),
        "DELETE" => end_session(bmc, path),
        _ => Reply::refusal(
            405,
            "ActionNotSupported",
            "This method is not supported here.",
        ),
    }
}

fn may_enter(bmc: &Bmc, headers: &HeaderMap) -> bool {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let inner = bmc.lock();
    if let Some(token) = text("x-auth-token") {
        return inner.sessions.iter().any(|(_, known)| known == token);
    }
    let encoded = text("authorization").and_then(|value| value.strip_prefix("Basic "));
    let decoded = encoded.and_then(|encoded| STANDARD.decode(encoded).ok());
    decoded.is_some_and(|given| given == format!("{USER}:{}", inner.password).as_bytes())
}

fn read(bmc: &Bmc, path: &str) -> Reply {
    if path == "/redfish" {
        return Reply::new(200, json!({ "v1": "/redfish/v1/" }));
    }
    match document(bmc, path) {
        None => Reply::refusal(
            404,
            "ResourceMissingAtURI",
            &format!("There is nothing at {path}."),
        ),
        Some(body) => {
            let etag = etag(&body);
            let headers = vec![("ETag", etag)];
            Reply {
                status: 200,
                body,
                headers,
            }
        }
    }
}

fn etag(body: &Value) -> String {
    let mut hasher = DefaultHasher::new();
    body.to_string().hash(&mut hasher);
    format!("W/\"{:016x}\"", hasher.finish())
}

fn with_json(body: &[u8], go: impl FnOnce(&Value) -> Reply) -> Reply {
    if body.is_empty() {
        return go(&json!({}));
    }
    match serde_json::from_slice::<Value>(body) {
        Ok(value) if value.is_object() => go(&value),
        _ => Reply::refusal(
            400,
            "MalformedJSON",
            "The request body is not a JSON object.",
        ),
    }
}

fn post(bmc: &Bmc, path: &str, body: &Value) -> Reply {
    if path == SESSIONS {
        return begin_session(bmc, body);
    }
    if path.strip_prefix(SYSTEM) == Some("/Actions/ComputerSystem.Reset") {
        return reset(bmc, body);
    }
    match path.strip_prefix(MEDIA) {
        Some("/VirtualMedia.InsertMedia") => insert_media(bmc, body),
        Some("/VirtualMedia.EjectMedia") => done(bmc.eject_media()),
        _ => Reply::refusal(
            404,
            "ActionNotSupported",
            &format!("There is no action at {path}."),
        ),
    }
}

fn begin_session(bmc: &Bmc, body: &Value) -> Reply {
    let mut inner = bmc.lock();
    if body["UserName"] != USER || body["Password"] != inner.password.as_str() {
        let message = "The user name or password is wrong.";
        return Reply::refusal(401, "InsufficientPrivilege", message);
    }
    let (id, token) = (
        uuid::Uuid::new_v4().to_string(),
        uuid::Uuid::new_v4().to_string(),
    );
    inner.sessions.push((id.clone(), token.clone()));
    let headers = vec![
        ("X-Auth-Token", token),
        ("Location", format!("{SESSIONS}/{id}")),
    ];
    Reply {
        status: 201,
        body: session(&id),
        headers,
    }
}

fn end_session(bmc: &Bmc, path: &str) -> Reply {
    let id = path
        .strip_prefix(SESSIONS)
        .and_then(|rest| rest.strip_prefix('/'))
        .unwrap_or("");
    let mut inner = bmc.lock();
    let before = inner.sessions.len();
    inner.sessions.retain(|(known, _)| known != id);
    if inner.sessions.len() < before {
        return Reply::nothing();
    }
    Reply::refusal(
        404,
        "ResourceMissingAtURI",
        &format!("There is no session at {path}."),
    )
}

fn patch_system(bmc: &Bmc, headers: &HeaderMap, body: &Value) -> Reply {
    let current = document(bmc, SYSTEM).unwrap_or_default();
    let wanted = headers
        .get(header::IF_MATCH)
        .and_then(|value| value.to_str().ok());
    if wanted.is_some_and(|wanted| wanted != "*" && wanted != etag(&current)) {
        let message = "The resource has changed since it was read.";
        return Reply::refusal(412, "PreconditionFailed", message);
    }
    match boot_from(&current["Boot"], &body["Boot"]) {
        Err(refusal) => *refusal,
        Ok(boot) => {
            let mode = mode(bmc.hardware.machine().firmware);
            match body["Boot"]["BootSourceOverrideMode"].as_str() {
                Some(other) if other != mode => not_in_list("BootSourceOverrideMode", other),
                _ => done(bmc.hardware.set_boot(boot)),
            }
        }
    }
}

/// What is not given stays as it is.
fn boot_from(current: &Value, change: &Value) -> Result<BootOverride, Box<Reply>> {
    let pick = |key: &str| {
        change[key]
            .as_str()
            .or(current[key].as_str())
            .unwrap_or("")
            .to_owned()
    };
    let target = pick("BootSourceOverrideTarget");
    let enabled = pick("BootSourceOverrideEnabled");
    let device = match target.as_str() {
        "None" => None,
        "Pxe" => Some(BootDevice::Network),
        "Cd" => Some(BootDevice::Cd),
        "Hdd" => Some(BootDevice::Disk),
        other => return Err(Box::new(not_in_list("BootSourceOverrideTarget", other))),
    };
    debug_assert!(BOOT_TARGETS.contains(&target.as_str()));
    match (enabled.as_str(), device) {
        ("Disabled", _) | ("Once" | "Continuous", None) => Ok(BootOverride::None),
        ("Once", Some(device)) => Ok(BootOverride::Once(device)),
        ("Continuous", Some(device)) => Ok(BootOverride::Always(device)),
        (other, _) => Err(Box::new(not_in_list("BootSourceOverrideEnabled", other))),
    }
}

fn not_in_list(property: &str, value: &str) -> Reply {
    let message =
        format!("The value '{value}' of {property} is not in the list of acceptable values.");
    Reply::refusal(400, "PropertyValueNotInList", &message)
}

fn reset(bmc: &Bmc, body: &Value) -> Reply {
    let hardware = &bmc.hardware;
    let kind = body["ResetType"].as_str().unwrap_or("On");
    let on = hardware.power() == Power::On;
    if !on && matches!(kind, "ForceRestart" | "GracefulShutdown" | "Nmi") {
        let message = format!("{kind} needs a system that is on; this one is off.");
        return Reply::refusal(409, "ResourceInUse", &message);
    }
    done(match kind {
        "On" => hardware.power_on(),
        "ForceOff" => hardware.power_off(),
        "GracefulShutdown" => hardware.press_button(),
        "ForceRestart" => hardware.reset(),
        "PowerCycle" => hardware.power_off().and_then(|()| hardware.power_on()),
        "Nmi" => hardware.nmi(),
        other => {
            debug_assert!(!RESET_TYPES.contains(&other));
            return not_in_list("ResetType", other);
        }
    })
}

fn insert_media(bmc: &Bmc, body: &Value) -> Reply {
    let Some(url) = body["Image"].as_str() else {
        return Reply::refusal(400, "ActionParameterMissing", "InsertMedia needs Image.");
    };
    if bmc.media_url().is_some() {
        let message = "Media is inserted already; eject it first.";
        return Reply::refusal(409, "ResourceInUse", message);
    }
    done(bmc.load_media(url))
}

fn done(result: anyhow::Result<()>) -> Reply {
    match result {
        Ok(()) => Reply::nothing(),
        Err(error) => Reply::refusal(500, "InternalError", &format!("{error:#}")),
    }
}
