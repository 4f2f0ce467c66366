//! The HTTPS API: for people, for agents, for daemons. Who may call what is decided in front of all
//! of it, by [`crate::access`].

pub(crate) mod access;
#[cfg(test)]
mod access_tests;
pub(crate) mod agent;
#[cfg(test)]
mod certificate_tests;
pub(crate) mod daemon;
pub(crate) mod openapi;
mod operations;
pub(crate) mod operator;
#[cfg(test)]
mod resource_tests;
pub(crate) mod seeing;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{DefaultBodyLimit, FromRequest, FromRequestParts, Request};
use axum::http::request::Parts;
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post, put};
use axum::{Json, Router};
use ferrite_proto::agent_api;
use ferrite_proto::api::ErrorBody;
use ferrite_proto::problem::{Code, Problem};
use serde::de::DeserializeOwned;

use crate::access::door::{self, Door};
use crate::access::registry::Registry;
use crate::access::table::TABLE;
use crate::boots::Boots;
use crate::cli::client::VERSION_HEADER;
use crate::hosts::Hosts;
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
/// How long such a body may take to arrive.
const STRANGERS_TIME: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 10 });

/// What handlers work with.
#[derive(Debug)]
pub(crate) struct App {
    /// The hosts.
    pub(crate) hosts: Arc<Hosts>,
    /// What can be booted.
    pub(crate) boots: Arc<Boots>,
    /// Limits, and how we are reached.
    pub(crate) world: Arc<World>,
    /// Goes round for new hosts, too.
    pub(crate) driver: Arc<Driver>,
    /// Hex SHA-256 of the operators' token.
    pub(crate) admin_sha256: String,
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
        .route("/v1/hosts", get(operator::list).post(operator::add))
        .route(
            "/v1/hosts/{name}",
            get(operator::get)
                .put(operator::put)
                .patch(operator::patch)
                .delete(operator::delete),
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
        .route("/v1/version", get(operator::version))
        .route("/openapi.json", get(openapi::serve))
        .merge(seeing_routes())
        .merge(access_routes());
    let poll = Router::new()
        .route(agent_api::POLL, post(agent::poll))
        .layer(DefaultBodyLimit::max(POLL_BODY));
    let check_in = Router::new().route(agent_api::CHECK_IN, post(daemon::check_in));
    let strangers = Router::new()
        .route(agent_api::HELLO, post(agent::hello))
        .route(agent_api::ENROLL, post(daemon::enroll))
        .layer(DefaultBodyLimit::max(STRANGERS_BODY))
        .layer(middleware::from_fn(in_good_time));
    operator
        .merge(check_in)
        .layer(DefaultBodyLimit::max(BODY))
        .merge(strangers)
        .merge(poll)
        .fallback(nothing_here)
        .layer(middleware::from_fn_with_state(
            Door {
                app: Arc::clone(&app),
                table: TABLE,
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

/// A stranger that sends its body by the drop does not hold a connection for long.
async fn in_good_time(request: Request, next: Next) -> Response {
    let answer = tokio::time::timeout(STRANGERS_TIME, next.run(request)).await;
    answer.unwrap_or_else(|_| {
        let problem = Problem::new(Code::RequestInvalid, "the call took too long", "call again");
        ApiError(problem).with(StatusCode::REQUEST_TIMEOUT)
    })
}

async fn nothing_here() -> Response {
    ApiError(Problem::new(
        Code::RequestInvalid,
        "there is no such call",
        "see the list of calls in proto/src/api.rs",
    ))
    .with(StatusCode::NOT_FOUND)
}

/// An error as RFC 9457 wants it.
#[derive(Debug)]
pub(crate) struct ApiError(pub(crate) Problem);

impl ApiError {
    /// Answered with this status.
    pub(crate) fn with(self, status: StatusCode) -> Response {
        let body = ErrorBody {
            status: status.as_u16(),
            code: self.0.code,
            detail: self.0.message,
            advice: (!self.0.advice.is_empty()).then_some(self.0.advice),
            request_id: calls::current(),
        };
        let kind = [(header::CONTENT_TYPE, "application/problem+json")];
        (status, kind, Json(body).into_response().into_body()).into_response()
    }
}

impl From<Problem> for ApiError {
    fn from(problem: Problem) -> Self {
        Self(problem)
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status = match self.0.code {
            Code::HostNotFound | Code::NotFound => StatusCode::NOT_FOUND,
            Code::HostExists
            | Code::AlreadyExists
            | Code::Conflict
            | Code::Protected
            | Code::PlanChanged => StatusCode::CONFLICT,
            Code::RequestInvalid => StatusCode::UNPROCESSABLE_ENTITY,
            Code::Unauthorized => StatusCode::UNAUTHORIZED,
            Code::AgentTicketRefused | Code::Forbidden => StatusCode::FORBIDDEN,
            Code::RevisionGone => StatusCode::GONE,
            Code::StoreUnavailable => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        if status.is_server_error() {
            tracing::error!(problem = %self.0, "a call failed");
        }
        self.with(status)
    }
}

/// A JSON body; what cannot be read is answered like every other error.
#[derive(Debug)]
pub(crate) struct Body<T>(pub(crate) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = Response;

    async fn from_request(request: Request, state: &S) -> Result<Self, Response> {
        match Json::from_request(request, state).await {
            Ok(Json(value)) => Ok(Self(value)),
            Err(rejection) => Err(unreadable(&rejection)),
        }
    }
}

fn unreadable(rejection: &JsonRejection) -> Response {
    let problem = Problem::new(
        Code::RequestInvalid,
        format!("the body cannot be used: {}", rejection.body_text()),
        "send JSON as described in proto/src/api.rs",
    );
    ApiError(problem).with(rejection.status())
}

/// What stands behind the `?`.
#[derive(Debug)]
pub(crate) struct Query<T>(pub(crate) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Query<T> {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Response> {
        let read = axum::extract::Query::from_request_parts(parts, state).await;
        read.map(|axum::extract::Query(value)| Self(value))
            .map_err(|rejection: QueryRejection| {
                let text = format!("the query cannot be used: {}", rejection.body_text());
                let problem = Problem::new(Code::RequestInvalid, text, "");
                ApiError(problem).with(rejection.status())
            })
    }
}

/// An answer as JSON.
pub(crate) type Answer<T> = Result<Json<T>, ApiError>;
