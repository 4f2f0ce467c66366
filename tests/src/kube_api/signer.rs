//! The controllers: bootstrapsigner, tokencleaner, and the approver and signer of kubelets' client
//! certificates. They run when somebody looks, which nobody can tell from running all the time.

use base64::Engine;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use hmac::{Hmac, KeyInit, Mac};
use jiff::Timestamp;
use serde_json::{Value, json};
use sha2::Sha256;

use super::{Approval, CLUSTER_INFO, Signing, State};

const TOKENS: &str = "/api/v1/namespaces/kube-system/secrets/bootstrap-token-";

/// A bootstrap token, as its Secret has it.
#[derive(Debug, Clone)]
pub(super) struct Token {
    pub(super) id: String,
    pub(super) secret: String,
    pub(super) authenticates: bool,
    signs: bool,
    created: Option<Timestamp>,
}

/// Removes expired tokens, and gives the others.
pub(super) fn tokens(state: &mut State) -> Vec<Token> {
    let now = state.now();
    let is_over = |object: &Value| {
        let expires = field(object, "expiration").parse::<Timestamp>();
        expires.is_ok_and(|expires| expires <= now)
    };
    state
        .objects
        .retain(|path, object| !(path.starts_with(TOKENS) && is_over(object)));
    let all = state.objects.range(TOKENS.to_owned()..);
    let all = all.take_while(|(path, _)| path.starts_with(TOKENS));
    all.filter(|(_, object)| object["type"] == "bootstrap.kubernetes.io/token")
        .map(|(_, object)| Token {
            id: field(object, "token-id"),
            secret: field(object, "token-secret"),
            authenticates: field(object, "usage-bootstrap-authentication") == "true",
            signs: field(object, "usage-bootstrap-signing") == "true",
            created: object["metadata"]["creationTimestamp"]
                .as_str()
                .and_then(|at| at.parse().ok()),
        })
        .collect()
}

/// Of a Secret; stored as `data`, as the real one does.
fn field(object: &Value, key: &str) -> String {
    let text = object["data"][key].as_str().unwrap_or_default();
    let bytes = BASE64_STANDARD.decode(text).unwrap_or_default();
    String::from_utf8(bytes).unwrap_or_default()
}

/// `cluster-info`, signed with every token that signs.
pub(super) fn sign(state: &mut State) {
    let tokens = tokens(state);
    let (now, signing) = (state.now(), state.faults.signing);
    let Some(info) = state.objects.get_mut(CLUSTER_INFO) else {
        return;
    };
    let Some(data) = info["data"].as_object_mut() else {
        return;
    };
    data.retain(|key, _| !key.starts_with("jws-kubeconfig-"));
    let kubeconfig = data["kubeconfig"].as_str().unwrap_or_default().to_owned();
    for token in tokens.iter().filter(|token| token.signs) {
        let age = token.created.map(|created| now.duration_since(created));
        let is_due = match signing {
            Signing::Prompt | Signing::Wrong => true,
            Signing::After(wait) => age.is_some_and(|age| age.unsigned_abs() >= wait),
            Signing::Never => false,
        };
        if is_due {
            let wrong = signing == Signing::Wrong;
            let secret = if wrong { "another" } else { &token.secret };
            let key = format!("jws-kubeconfig-{}", token.id);
            data.insert(key, json!(jws(&token.id, secret, &kubeconfig)));
        }
    }
}

fn jws(id: &str, secret: &str, text: &str) -> String {
    let header = json!({"alg": "HS256", "kid": id}).to_string();
    let header = BASE64_URL_SAFE_NO_PAD.encode(header);
    let payload = BASE64_URL_SAFE_NO_PAD.encode(text);
    let mut mac =
        Hmac::<Sha256>::new_from_slice(secret.as_bytes()).expect("HMAC takes a key of any length");
    mac.update(format!("{header}.{payload}").as_bytes());
    let mac = BASE64_URL_SAFE_NO_PAD.encode(mac.finalize().into_bytes());
    format!("{header}..{mac}")
}

/// What becomes of a new request for a certificate.
pub(super) fn decide(state: &State, csr: &mut Value) {
    let condition = |kind: &str, reason: &str| {
        json!({"conditions": [{"type": kind, "status": "True", "reason": reason,
            "message": "by the tests' API server"}]})
    };
    match state.faults.approval {
        Approval::Pending => csr["status"] = json!({}),
        Approval::Denied => csr["status"] = condition("Denied", "TestDenies"),
        Approval::Prompt => {
            csr["status"] = condition("Approved", "AutoApproved");
            let request = csr["spec"]["request"].as_str().unwrap_or_default();
            let request = BASE64_STANDARD.decode(request).unwrap_or_default();
            let request = String::from_utf8(request).unwrap_or_default();
            if let Ok(certificate) = state.pki.sign(&request) {
                csr["status"]["certificate"] = json!(BASE64_STANDARD.encode(certificate));
            }
        }
    }
}
