//! Who calls, and what they may: the few roles that `kubeadm init` makes, as a list.

use serde_json::Value;

use super::{CLUSTER_INFO, CONFIG_MAPS, State, signer};

/// Who calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum User {
    Anonymous,
    /// By the administrator's token.
    Admin,
    /// By a bootstrap token of this id.
    Bootstrap(String),
    /// By a certificate that we signed: `system:node:…`.
    Node(String),
}

impl User {
    pub(super) fn name(&self) -> String {
        match self {
            Self::Anonymous => "system:anonymous".to_owned(),
            Self::Admin => "kubernetes-admin".to_owned(),
            Self::Bootstrap(id) => format!("system:bootstrap:{id}"),
            Self::Node(name) => name.clone(),
        }
    }
}

/// Who shows this token or certificate; nobody by a wrong token.
pub(super) fn user(
    state: &mut State,
    token: Option<&str>,
    certificate: Option<&str>,
) -> Option<User> {
    let Some(token) = token else {
        let node = certificate.map(|name| User::Node(name.to_owned()));
        return Some(node.unwrap_or(User::Anonymous));
    };
    if token == state.pki.admin_token {
        return Some(User::Admin);
    }
    let (id, secret) = token.split_once('.')?;
    let known = signer::tokens(state);
    let known = known
        .iter()
        .find(|known| known.id == id && known.secret == secret)?;
    known
        .authenticates
        .then(|| User::Bootstrap(known.id.clone()))
}

/// Whether a call is allowed.
pub(super) fn may(state: &State, user: &User, method: &str, path: &str) -> bool {
    if state.faults.forbidden.contains(&format!("{method} {path}")) {
        return false;
    }
    let open = ["/version", "/readyz", "/livez", "/healthz"].contains(&path);
    let reads = method == "GET";
    match user {
        User::Admin | User::Node(_) => true,
        User::Anonymous => reads && (open || path == CLUSTER_INFO),
        User::Bootstrap(_) => {
            let config = |name| path == format!("{CONFIG_MAPS}/{name}");
            let configs = config("kubeadm-config") || config("kubelet-config");
            let node = path.starts_with("/api/v1/nodes/");
            let csrs = path.starts_with("/apis/certificates.k8s.io/");
            let reviews = path.contains("/selfsubjectaccessreviews");
            let may_read = open || path == CLUSTER_INFO || configs || node || csrs;
            (reads && may_read) || (method == "POST" && (csrs || reviews))
        }
    }
}

/// What a `SelfSubjectAccessReview` asks: the call it stands for.
pub(super) fn reviewed(review: &Value) -> (String, String) {
    let asked = &review["spec"]["resourceAttributes"];
    let text = |field: &str| asked[field].as_str().unwrap_or_default();
    let method = match text("verb") {
        "create" => "POST",
        "delete" => "DELETE",
        "patch" => "PATCH",
        _ => "GET",
    };
    let group = match text("group") {
        "" => "/api/v1".to_owned(),
        group => format!("/apis/{group}/v1"),
    };
    let namespace = match text("namespace") {
        "" => String::new(),
        namespace => format!("/namespaces/{namespace}"),
    };
    let part = match text("subresource") {
        "" => String::new(),
        part => format!("/{part}"),
    };
    let path = format!("{group}{namespace}/{}{part}", text("resource"));
    (method.to_owned(), path)
}
