//! The server's door: TLS, who calls, what is asked.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::connect_info::Connected;
use axum::extract::{ConnectInfo, State as Shared};
use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::serve::{IncomingStream, Listener};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::access::{self, User};
use super::objects::{self, Answer, refusal};
use super::{State, signer};

/// How long a handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(5);

type Server = (Arc<Mutex<State>>, watch::Sender<u64>);

/// Accepts with TLS, unless it is down.
struct Door {
    listener: TcpListener,
    state: Arc<Mutex<State>>,
}

/// Who is at the other end: the name in the certificate, if there is one.
#[derive(Debug, Clone)]
struct Peer(Option<String>);

impl Connected<IncomingStream<'_, Door>> for Peer {
    fn connect_info(stream: IncomingStream<'_, Door>) -> Self {
        let (_, session) = stream.io().get_ref();
        let leaf = session.peer_certificates().and_then(<[_]>::first);
        Self(leaf.and_then(|leaf| node_name(leaf)))
    }
}

/// The text of a certificate's common name, where that is a node's. Good enough for certificates
/// that we signed ourselves.
fn node_name(der: &[u8]) -> Option<String> {
    const BEGIN: &[u8] = b"system:node:";
    let at = der
        .windows(BEGIN.len())
        .position(|window| window == BEGIN)?;
    let length = usize::from(*der.get(at.checked_sub(1)?)?);
    let name = der.get(at..at + length)?;
    String::from_utf8(name.to_vec()).ok()
}

impl Listener for Door {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, SocketAddr) {
        loop {
            let Ok((stream, address)) = self.listener.accept().await else {
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            };
            let (is_down, tls) = {
                let state = lock(&self.state);
                (state.faults.is_down, Arc::clone(&state.pki.tls))
            };
            if is_down {
                continue;
            }
            let accepted = TlsAcceptor::from(tls).accept(stream);
            if let Ok(Ok(stream)) = tokio::time::timeout(HANDSHAKE, accepted).await {
                return (stream, address);
            }
        }
    }

    fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Serves until it is aborted.
pub(super) async fn serve(
    listener: TcpListener,
    state: Arc<Mutex<State>>,
    changed: watch::Sender<u64>,
) {
    let door = Door {
        listener,
        state: Arc::clone(&state),
    };
    let router = Router::new().fallback(answer).with_state((state, changed));
    let service = router.into_make_service_with_connect_info::<Peer>();
    drop(axum::serve(door, service).await);
}

async fn answer(
    Shared((state, changed)): Shared<Server>,
    ConnectInfo(Peer(node)): ConnectInfo<Peer>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let (path, query) = (
        uri.path().to_owned(),
        uri.query().unwrap_or_default().to_owned(),
    );
    let body: Value = serde_json::from_slice(&body).unwrap_or_default();
    let mut held = lock(&state);
    let date = held.now().strftime("%a, %d %b %Y %H:%M:%S GMT").to_string();
    if held.faults.is_down {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    let bearer = headers.get(header::AUTHORIZATION);
    let bearer = bearer.and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
    let user = access::user(&mut held, bearer, node.as_deref());
    let name = user
        .as_ref()
        .map_or_else(|| "nobody".to_owned(), User::name);
    held.calls.push(format!("{method} {path} as {name}"));
    let (status, answered) = match &user {
        None => refusal(StatusCode::UNAUTHORIZED, "Unauthorized", "Unauthorized"),
        Some(user) if !access::may(&held, user, method.as_str(), &path) => {
            let message = forbidden(&name, &method, &path);
            refusal(StatusCode::FORBIDDEN, "Forbidden", &message)
        }
        Some(_) if query.contains("watch=") && method == Method::GET => {
            drop(held);
            return follow(state, changed.subscribe(), path, query);
        }
        Some(user) => act(&mut held, user, &method, &path, &query, body),
    };
    drop(held);
    if method != Method::GET {
        changed.send_modify(|changes| *changes += 1);
    }
    let headers = [
        (header::CONTENT_TYPE, "application/json".to_owned()),
        (header::DATE, date),
    ];
    (status, headers, answered.to_string()).into_response()
}

/// In the words of Kubernetes: `configmaps "x" is forbidden: User "u" cannot get resource …`.
fn forbidden(user: &str, method: &Method, path: &str) -> String {
    let mut parts = path.rsplit('/');
    let (name, kind) = (parts.next().unwrap_or(""), parts.next().unwrap_or(""));
    let verb = match method.as_str() {
        "POST" => "create",
        "PATCH" => "patch",
        "DELETE" => "delete",
        _ => "get",
    };
    format!(
        "{kind} {name:?} is forbidden: User {user:?} cannot {verb} resource {kind:?} in API group \
         \"\""
    )
}

fn act(
    state: &mut State,
    user: &User,
    method: &Method,
    path: &str,
    query: &str,
    body: Value,
) -> Answer {
    objects::approve_pending(state);
    match (method.as_str(), path) {
        ("GET", "/readyz" | "/livez" | "/healthz") => (StatusCode::OK, json!("ok")),
        ("GET", "/version") => {
            let version = state.kubernetes_version.clone();
            (StatusCode::OK, json!({"major": "1", "gitVersion": version}))
        }
        ("POST", path) if path.ends_with("/selfsubjectaccessreviews") => {
            let (method, asked) = access::reviewed(&body);
            let allowed = access::may(state, user, &method, &asked);
            (StatusCode::CREATED, json!({"status": {"allowed": allowed}}))
        }
        ("POST", path) if path.ends_with("/eviction") => {
            objects::evict(state, path.trim_end_matches("/eviction"), &body)
        }
        ("GET", _) => objects::get(state, path, query),
        ("POST", _) => objects::create(state, path, body, &user.name()),
        ("PATCH", _) => objects::change(state, path, body, false),
        ("PUT", _) => objects::change(state, path, body, true),
        ("DELETE", _) => objects::delete(state, path, &body),
        _ => refusal(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed", path),
    }
}

/// Tells of every object of a collection as it changes: all of them are `MODIFIED`, but for those
/// that are there at first. Removals are not told.
fn follow(
    state: Arc<Mutex<State>>,
    changes: watch::Receiver<u64>,
    path: String,
    query: String,
) -> Response {
    let begin = (state, changes, std::collections::BTreeMap::new(), true);
    let stream =
        futures_util::stream::unfold(begin, move |(state, mut changes, mut told, first)| {
            let (path, query) = (path.clone(), query.clone());
            async move {
                if !first {
                    changes.changed().await.ok()?;
                }
                changes.mark_unchanged();
                let items = {
                    let mut held = lock(&state);
                    objects::approve_pending(&mut held);
                    signer::sign(&mut held);
                    objects::list(&held, &path, &query)
                };
                let mut lines = String::new();
                for item in items {
                    let name = item["metadata"]["name"].to_string();
                    let version = item["metadata"]["resourceVersion"].to_string();
                    let before = told.insert(name, version.clone());
                    if before.as_ref() != Some(&version) {
                        let kind = if before.is_none() {
                            "ADDED"
                        } else {
                            "MODIFIED"
                        };
                        let line = json!({"type": kind, "object": item});
                        lines = lines + &line.to_string() + "\n";
                    }
                }
                let piece = Ok::<_, std::convert::Infallible>(lines);
                Some((piece, (state, changes, told, false)))
            }
        });
    let kind = [(header::CONTENT_TYPE, "application/json")];
    (kind, Body::from_stream(stream)).into_response()
}
