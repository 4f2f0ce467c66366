//! Objects by their paths: made, read, listed, changed and removed, as every kind of Kubernetes'.

use axum::http::StatusCode;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Map, Value, json};

use super::{Approval, CLUSTER_INFO, State, signer};

/// An answer: a status, and an object.
pub(super) type Answer = (StatusCode, Value);

/// A refusal, as Kubernetes writes one.
pub(super) fn refusal(status: StatusCode, reason: &str, message: &str) -> Answer {
    let body = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure",
        "message": message, "reason": reason, "code": status.as_u16()});
    (status, body)
}

fn not_found(path: &str) -> Answer {
    let message = format!("{path} not found");
    refusal(StatusCode::NOT_FOUND, "NotFound", &message)
}

/// Puts an object at its path, with what the server adds.
pub(super) fn store(state: &mut State, path: &str, mut object: Value) {
    state.version += 1;
    let now = state.now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let version = state.version.to_string();
    if !object["metadata"].is_object() {
        object["metadata"] = json!({});
    }
    let metadata = &mut object["metadata"];
    let parts: Vec<_> = path.split('/').collect();
    metadata["name"] = json!(parts.last());
    if let Some(at) = parts.iter().position(|part| *part == "namespaces")
        && parts.len() > at + 3
    {
        metadata["namespace"] = json!(parts[at + 1]);
    }
    if metadata["uid"].is_null() {
        metadata["uid"] = json!(uuid::Uuid::new_v4().to_string());
        metadata["creationTimestamp"] = json!(now);
    }
    metadata["resourceVersion"] = json!(version);
    state.objects.insert(path.to_owned(), object);
}

/// `GET` of one object, or of a collection.
pub(super) fn get(state: &mut State, path: &str, query: &str) -> Answer {
    if path == CLUSTER_INFO && state.faults.is_restless {
        state.version += 1;
        let comment = format!("# {}\n", state.version);
        if let Some(info) = state.objects.get_mut(path) {
            let text = info["data"]["kubeconfig"].as_str().unwrap_or_default();
            let text = text.split("# ").next().unwrap_or_default();
            info["data"]["kubeconfig"] = json!(format!("{text}{comment}"));
        }
    }
    signer::sign(state);
    if let Some(object) = state.objects.get(path) {
        return (StatusCode::OK, object.clone());
    }
    if is_item(path) {
        return not_found(path);
    }
    let items = list(state, path, query);
    let version = state.version.to_string();
    let body = json!({"kind": "List", "apiVersion": "v1",
        "metadata": {"resourceVersion": version}, "items": items});
    (StatusCode::OK, body)
}

/// Whether a path is that of an object rather than of a collection.
fn is_item(path: &str) -> bool {
    let parts: Vec<_> = path.trim_start_matches('/').split('/').collect();
    let base = if parts.first() == Some(&"api") { 2 } else { 3 };
    let rest = parts.get(base..).unwrap_or_default();
    match rest.first() {
        Some(&"namespaces") => rest.len() == 2 || rest.len() > 3,
        Some(_) => rest.len() > 1,
        None => false,
    }
}

/// The objects of a collection that the selectors take; without a namespace, those of all.
pub(super) fn list(state: &State, path: &str, query: &str) -> Vec<Value> {
    let (base, kind) = path.rsplit_once('/').unwrap_or_default();
    let of_collection = |at: &str| {
        let Some((folder, _)) = at.rsplit_once('/') else {
            return false;
        };
        let within = folder
            .strip_prefix(base)
            .and_then(|rest| rest.strip_suffix(kind));
        folder == path
            || within.is_some_and(|rest| {
                rest.starts_with("/namespaces/") && rest.matches('/').count() == 3
            })
    };
    let all = state.objects.iter().filter(|(at, _)| of_collection(at));
    let selected = all.filter(|(_, object)| is_selected(object, query));
    selected.map(|(_, object)| object.clone()).collect()
}

fn is_selected(object: &Value, query: &str) -> bool {
    query
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .all(|(key, value)| {
            let value = value
                .replace("%3D", "=")
                .replace("%2F", "/")
                .replace("%2E", ".");
            let Some((field, wanted)) = value.split_once('=') else {
                return true;
            };
            let found = match key {
                "fieldSelector" => object.pointer(&format!("/{}", field.replace('.', "/"))),
                "labelSelector" => object["metadata"]["labels"].get(field),
                _ => return true,
            };
            found.and_then(Value::as_str).unwrap_or_default() == wanted
        })
}

/// `POST` to a collection.
pub(super) fn create(state: &mut State, path: &str, mut object: Value, by: &str) -> Answer {
    if let Some(name) = object["metadata"]["generateName"].as_str()
        && object["metadata"]["name"].is_null()
    {
        let random = uuid::Uuid::new_v4().simple().to_string();
        object["metadata"]["name"] = json!(format!("{name}{}", &random[..5]));
    }
    let Some(name) = object["metadata"]["name"].as_str().map(str::to_owned) else {
        let message = "name or generateName is required";
        return refusal(StatusCode::UNPROCESSABLE_ENTITY, "Invalid", message);
    };
    let at = format!("{path}/{name}");
    if state.objects.contains_key(&at) {
        let message = format!("{at} already exists");
        return refusal(StatusCode::CONFLICT, "AlreadyExists", &message);
    }
    take_strings(&mut object);
    if path.ends_with("/certificatesigningrequests") {
        object["spec"]["username"] = json!(by);
        signer::decide(state, &mut object);
    }
    store(state, &at, object);
    (StatusCode::CREATED, state.objects[&at].clone())
}

/// A Secret's `stringData` is written into its `data`.
fn take_strings(object: &mut Value) {
    let strings = object
        .as_object_mut()
        .and_then(|all| all.remove("stringData"));
    for (key, text) in strings
        .as_ref()
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
    {
        let text = text.as_str().unwrap_or_default();
        object["data"][key] = json!(BASE64_STANDARD.encode(text));
    }
}

/// `PATCH` as a merge patch, or `PUT`.
pub(super) fn change(state: &mut State, path: &str, body: Value, whole: bool) -> Answer {
    let (path, is_status) = match path.strip_suffix("/status") {
        Some(path) => (path, true),
        None => (path, false),
    };
    let Some(before) = state.objects.get(path) else {
        return not_found(path);
    };
    let expected = body["metadata"]["resourceVersion"].as_str();
    if expected.is_some_and(|expected| before["metadata"]["resourceVersion"] != expected) {
        let message = format!("{path}: the object has been modified");
        return refusal(StatusCode::CONFLICT, "Conflict", &message);
    }
    let mut after = before.clone();
    if whole && !is_status {
        let uid = after["metadata"]["uid"].clone();
        let created = after["metadata"]["creationTimestamp"].clone();
        after = body;
        after["metadata"]["uid"] = uid;
        after["metadata"]["creationTimestamp"] = created;
    } else {
        merge(&mut after, &body);
    }
    store(state, path, after);
    (StatusCode::OK, state.objects[path].clone())
}

fn merge(into: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        into.clone_from(patch);
        return;
    };
    if !into.is_object() {
        *into = Value::Object(Map::new());
    }
    for (key, value) in patch {
        if value.is_null() {
            into.as_object_mut().and_then(|into| into.remove(key));
        } else {
            merge(&mut into[key.as_str()], value);
        }
    }
}

/// `DELETE`, with its preconditions.
pub(super) fn delete(state: &mut State, path: &str, body: &Value) -> Answer {
    let Some(object) = state.objects.get(path) else {
        return not_found(path);
    };
    let wanted = body["preconditions"]["uid"].as_str();
    if wanted.is_some_and(|wanted| object["metadata"]["uid"] != wanted) {
        let message = format!("{path}: Precondition failed: UID");
        return refusal(StatusCode::CONFLICT, "Conflict", &message);
    }
    state.version += 1;
    state.objects.remove(path);
    let body = json!({"kind": "Status", "status": "Success"});
    (StatusCode::OK, body)
}

/// `POST …/pods/NAME/eviction`.
pub(super) fn evict(state: &mut State, pod: &str, body: &Value) -> Answer {
    let parts: Vec<_> = pod.split('/').collect();
    let title = match parts.as_slice() {
        [.., namespace, "pods", name] => format!("{namespace}/{name}"),
        _ => return not_found(pod),
    };
    if state.faults.kept.contains(&title) {
        let message = "Cannot evict pod as it would violate the pod's disruption budget.";
        let status = StatusCode::TOO_MANY_REQUESTS;
        return refusal(status, "TooManyRequests", message);
    }
    match delete(state, pod, &body["deleteOptions"]) {
        (StatusCode::OK, body) => (StatusCode::CREATED, body),
        refused => refused,
    }
}

/// Requests that nobody looked at are looked at when that fault ends.
pub(super) fn approve_pending(state: &mut State) {
    if state.faults.approval == Approval::Pending {
        return;
    }
    let pending: Vec<_> = state
        .objects
        .iter()
        .filter(|(path, csr)| {
            path.contains("/certificatesigningrequests/") && csr["status"] == json!({})
        })
        .map(|(path, csr)| (path.clone(), csr.clone()))
        .collect();
    for (path, mut csr) in pending {
        signer::decide(state, &mut csr);
        store(state, &path, csr);
    }
}
