//! The HTTPS API: for people, for agents, for daemons. Who may call what is decided in front of all
//! of it, by [`crate::access`].

pub(crate) mod access;
#[cfg(test)]
mod access_tests;
pub(crate) mod agent;
pub(crate) mod arrival;
pub(crate) mod body;
pub(crate) mod catalog;
#[cfg(test)]
mod certificate_tests;
mod clusters;
pub(crate) mod daemon;
mod error;
pub(crate) mod events;
pub(crate) mod hosts;
pub(crate) mod idempotency;
pub(crate) mod images;
mod joining;
pub(crate) mod limits;
pub(crate) mod list;
pub(crate) mod openapi;
mod operations;
pub(crate) mod operator;
pub(crate) mod preconditions;
#[cfg(test)]
mod resource_tests;
pub(crate) mod resources;
mod rolling;
pub(crate) mod seeing;
pub(crate) mod select;
pub(crate) mod tasks;
#[cfg(test)]
mod tests;
pub(crate) mod watch;

use std::sync::Arc;

use axum::extract::DefaultBodyLimit;
use axum::http::{HeaderValue, StatusCode};
use axum::middleware;
use axum::response::Response;
use axum::routing::{delete, get, post, put};
use axum::{Extension, Json, Router};
use ferrite_proto::agent_api;
use ferrite_proto::catalog::{Image, Profile};
use ferrite_proto::cluster::Cluster;
use ferrite_proto::join::{JOIN, JOIN_REPORT};
use ferrite_proto::problem::{Code, Problem};

use self::arrival::Bodies;
pub(crate) use self::body::{Body, Query};
pub(crate) use self::error::ApiError;
use self::idempotency::Keys;
use self::resources::Resource;
use self::watch::Watchers;
use crate::access::door::{self, Door};
use crate::access::oidc::Oidc;
use crate::access::refusals::Refusals;
use crate::access::registry::Registry;
use crate::access::table::TABLE;
use crate::boots::Boots;
use crate::cli::client::VERSION_HEADER;
use crate::hosts::Hosts;
use crate::images::Images;
use crate::lifecycle::driver::Driver;
use crate::lifecycle::execute::World;
use crate::seeing::calls;
use crate::tls::Authority;

/// Bytes of a request's body.
const BODY: usize = 1 << 20;
/// Bytes of a poll's body: it may carry an inventory.
const POLL_BODY: usize = 4 << 20;
/// Bytes of a body whose sender is not known before it was read: a hello, an enrolment.
const STRANGERS_BODY: usize = 64 << 10;

/// What handlers work with.
#[derive(Debug)]
pub(crate) struct App {
    /// The hosts.
    pub(crate) hosts: Arc<Hosts>,
    /// Images that are kept.
    pub(crate) images: Arc<Images>,
    /// What can be booted.
    pub(crate) boots: Arc<Boots>,
    /// Limits, and how we are reached.
    pub(crate) world: Arc<World>,
    /// Goes round for new hosts, too.
    pub(crate) driver: Arc<Driver>,
    /// Hex SHA-256 of the operators' token.
    pub(crate) admin_sha256: String,
    /// Who comes in by an OIDC provider.
    pub(crate) oidc: Option<Oidc>,
    /// Calls that were refused.
    pub(crate) refusals: Refusals,
    /// Issues client certificates.
    pub(crate) authority: Arc<Authority>,
    /// How long a poll may be held.
    pub(crate) poll_seconds: u32,
    /// Between check-ins of a daemon.
    pub(crate) check_in_seconds: u32,
    /// Held calls are let go when this is cancelled.
    pub(crate) stop: tokio_util::sync::CancellationToken,
}

/// All calls.
pub(crate) fn router(app: Arc<App>) -> Router {
    let operator = Router::new()
        .route("/v1/hosts", get(hosts::list).post(hosts::create))
        .route(
            "/v1/hosts/{name}",
            get(hosts::get)
                .put(hosts::put)
                .patch(hosts::patch)
                .delete(hosts::delete),
        )
        .route("/v1/hosts/{name}/provision", post(operator::provision))
        .route("/v1/hosts/{name}/deprovision", post(operator::deprovision))
        .route("/v1/hosts/{name}/retry", post(operator::retry))
        .route("/v1/hosts/{name}/clean", post(operations::clean))
        .route("/v1/hosts/{name}/service", post(operations::service))
        .route("/v1/hosts/{name}/rescue", post(operations::rescue))
        .route("/v1/hosts/{name}/unrescue", post(operations::unrescue))
        .route("/v1/hosts/{name}/abort", post(operations::abort))
        .route("/v1/hosts/{name}/approve", post(operations::approve))
        .route("/v1/hosts/{name}/explain", get(operator::explain))
        .route("/v1/hosts/{name}/events", get(operator::events))
        .route("/v1/hosts/{name}/inventory", get(operator::inventory))
        .route("/v1/hosts/{name}/timeline", get(operator::timeline))
        .route("/v1/timeline", get(operator::fleet_timeline))
        .route("/v1/events", get(events::list))
        .route("/v1/tasks", get(tasks::list))
        .route("/v1/tasks/{name}", delete(operations::abort))
        .route("/v1/version", get(operator::version))
        .route("/openapi.json", get(openapi::serve))
        .merge(seeing_routes())
        .merge(access_routes());
    let strangers = Router::new()
        .route(agent_api::HELLO, post(agent::hello))
        .route(agent_api::ENROLL, post(daemon::enroll))
        .layer(DefaultBodyLimit::max(STRANGERS_BODY));
    operator
        .merge(documents::<Image>("/v1/images"))
        .merge(documents::<Profile>("/v1/profiles"))
        .merge(cluster_routes())
        .layer(middleware::from_fn_with_state(
            Keys::new(Arc::clone(&app)),
            idempotency::once,
        ))
        .merge(daemon_routes())
        .layer(DefaultBodyLimit::max(BODY))
        .merge(strangers)
        .merge(poll_route())
        .merge(files())
        .fallback(nothing_here)
        .layer(Extension(Watchers::default()))
        .layer(middleware::from_fn_with_state(
            Door {
                app: Arc::clone(&app),
                table: TABLE,
                bodies: Bodies::default(),
            },
            door::guard,
        ))
        .layer(middleware::from_fn_with_state(
            Arc::clone(app.hosts.seeing()),
            calls::observe,
        ))
        .layer(middleware::map_response(with_version))
        .with_state(app)
}

fn cluster_routes() -> Router<Arc<App>> {
    documents::<Cluster>("/v1/clusters")
        .route(
            "/v1/clusters/{name}/check",
            get(clusters::last_check).post(clusters::check),
        )
        .route(
            "/v1/clusters/{name}/roll",
            get(rolling::get).post(rolling::begin),
        )
        .route("/v1/clusters/{name}/roll/pause", post(rolling::pause))
        .route("/v1/clusters/{name}/roll/resume", post(rolling::resume))
        .route("/v1/clusters/{name}/roll/abort", post(rolling::abort))
}

/// Bytes of images go through as they come: nothing reads them whole.
fn files() -> Router<Arc<App>> {
    Router::new()
        .route("/v1/images/{name}/content", put(images::upload))
        .route("/images/{file}", get(images::file))
}

fn daemon_routes() -> Router<Arc<App>> {
    Router::new()
        .route(agent_api::CHECK_IN, post(daemon::check_in))
        .route(JOIN, post(joining::material))
        .route(JOIN_REPORT, post(joining::report))
}

/// What an agent reports may be long.
fn poll_route() -> Router<Arc<App>> {
    Router::new()
        .route(agent_api::POLL, post(agent::poll))
        .layer(DefaultBodyLimit::max(POLL_BODY))
}

fn seeing_routes() -> Router<Arc<App>> {
    Router::new()
        .route("/v1/hosts/{name}/logs", get(seeing::logs))
        .route("/v1/support-bundle", get(seeing::bundle))
        .route("/metrics", get(seeing::figures))
        .route("/healthz", get(seeing::alive))
        .route("/readyz", get(seeing::ready))
}

/// Calls about who may do what.
fn access_routes() -> Router<Arc<App>> {
    Router::new()
        .route("/v1/whoami", get(access::who_am_i))
        .route("/v1/tokens", get(access::tokens).post(access::create_token))
        .route("/v1/tokens/{token}", delete(access::revoke_token))
        .route(
            "/v1/certificates",
            get(access::certificates).post(access::create_certificate),
        )
        .route(
            "/v1/certificates/{certificate}",
            delete(access::revoke_certificate),
        )
        .route("/v1/roles", get(access::roles))
        .route(
            "/v1/roles/{subject}",
            put(access::grant).delete(access::withdraw),
        )
        .route("/v1/audit", get(access::audit))
}

impl App {
    /// Who may come in.
    pub(crate) fn registry(&self) -> Registry {
        Registry::new(self.hosts.documents())
    }
}

/// Every answer tells the conductor's version: a command line of another one warns.
async fn with_version(mut answer: Response) -> Response {
    let version = HeaderValue::from_static(env!("CARGO_PKG_VERSION"));
    answer.headers_mut().insert(VERSION_HEADER, version);
    answer
}

/// The calls of a kind that is a document.
fn documents<R: Resource>(path: &str) -> Router<Arc<App>> {
    Router::new()
        .route(path, get(resources::list::<R>).post(resources::create::<R>))
        .route(
            &format!("{path}/{{name}}"),
            get(resources::get::<R>)
                .put(resources::put::<R>)
                .patch(resources::patch::<R>)
                .delete(resources::delete::<R>),
        )
}

async fn nothing_here() -> Response {
    ApiError(Problem::new(
        Code::RequestInvalid,
        "there is no such call",
        "/openapi.json describes the calls",
    ))
    .with(StatusCode::NOT_FOUND)
}

/// An answer as JSON.
pub(crate) type Answer<T> = Result<Json<T>, ApiError>;
