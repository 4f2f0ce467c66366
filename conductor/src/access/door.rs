//! The choke point: a middleware around every route. What it refuses no handler ever sees.
//!
//! Not here: what each call needs, which is [`super::table`], and who somebody is.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::RequestExt;
use axum::body::{Body, to_bytes};
use axum::extract::{ConnectInfo, MatchedPath, RawPathParams, Request, State};
use axum::http::{Extensions, HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use ferrite_proto::problem::{Code, Problem};
use ferrite_proto::resource::DEFAULT_PROJECT;
use serde::{Deserialize, Deserializer};

use super::caller::{CALL, Call, Caller, Grant, Person, Presented, Role};
use super::peer::Peer;
use super::registry::{FIRST_ADMIN, PREFIX};
use super::table::{self, Line, Scope, Verdict, Who};
use crate::api::arrival::{self, Bodies};
use crate::api::body::unquoted;
use crate::api::{ApiError, App};
use crate::clock;
use crate::hosts::Credential;
use crate::token;

/// What the door decides with.
#[derive(Debug, Clone)]
pub(crate) struct Door {
    /// Who is known, and which host belongs where.
    pub(crate) app: Arc<App>,
    /// What each call needs.
    pub(crate) table: &'static [Line],
    /// Room for bodies.
    pub(crate) bodies: Bodies,
}

/// Seconds after which there may be room for a large body.
const AGAIN: u32 = 5;
/// Characters of a token: those of OIDC providers are long.
const LONGEST: usize = 8192;

/// Lets a request through with its [`Caller`], or answers it.
pub(crate) async fn guard(State(door): State<Door>, request: Request, next: Next) -> Response {
    let Door { app, table, bodies } = door;
    // What no route matches is for the fallback, which says just that.
    let Some(path) = request.extensions().get::<MatchedPath>().cloned() else {
        return next.run(request).await;
    };
    let path = path.as_str();
    let who = match table::look_up(table, request.method().as_str(), path) {
        Verdict::Open(who) => who,
        Verdict::OtherMethods => return wrong_method(table, path),
        Verdict::Nothing => {
            let method = request.method();
            return ApiError(forbidden(&format!(
                "{method} {path} has no line in access::table::TABLE: nobody may call it"
            )))
            .into_response();
        }
    };
    let from = request.extensions().get::<ConnectInfo<SocketAddr>>();
    let from = from.map_or_else(String::new, |ConnectInfo(peer)| peer.ip().to_string());
    let what = format!("{} {path}", request.method());
    // In a box: it is over when a poll begins to be held, and would be held with it.
    match Box::pin(admit(&app, &bodies, who, request)).await {
        Ok((request, caller)) => {
            let call = Call { caller, from, what };
            CALL.scope(call, next.run(request)).await
        }
        Err(problem) => Box::pin(refuse(&app, path, &from, problem)).await,
    }
}

async fn refuse(app: &App, path: &str, from: &str, problem: Problem) -> Response {
    if matches!(problem.code, Code::Unauthorized | Code::Forbidden) {
        let noted = app.refusals.note(from, clock::now());
        if noted.log {
            tracing::warn!(path, from, %problem, "a call was refused");
        }
        if let Some(Err(error)) = match noted.sum {
            Some(sum) => Some(app.hosts.audit(vec![sum]).await),
            None => None,
        } {
            tracing::error!(%error, "refused calls are not in the audit log");
        }
    }
    let code = problem.code;
    let mut response = ApiError(problem).into_response();
    let headers = response.headers_mut();
    match code {
        Code::Unauthorized => {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        Code::TooManyRequests => {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(AGAIN));
        }
        _ => {}
    }
    response
}

/// Finds out who calls, and whether they may; then the body is waited for.
async fn admit(
    app: &App,
    bodies: &Bodies,
    who: Who,
    mut request: Request,
) -> Result<(Request, Caller), Problem> {
    let caller = match who {
        Who::Anyone => Caller::Anyone,
        Who::Agent => Caller::Agent(host_of(app, request.headers(), Credential::AgentToken)?),
        Who::Daemon => Caller::Daemon(host_of(app, request.headers(), Credential::DaemonKey)?),
        Who::Person(role, scope) => {
            let person = Arc::new(person(app, request.headers(), request.extensions()).await?);
            check(app, &person, role, scope, &mut request).await?;
            Caller::Person(person)
        }
    };
    let path = request.extensions().get::<MatchedPath>();
    if path.is_some_and(|path| table::STREAMED.contains(&path.as_str())) {
        request.extensions_mut().insert(caller.clone());
        return Ok((request, caller));
    }
    let most = match who {
        Who::Anyone => arrival::STRANGER,
        Who::Agent => arrival::POLL,
        Who::Daemon | Who::Person(..) => arrival::CALL,
    };
    request = bodies.arrive(most, request).await?;
    if let (Who::Person(role, scope), Caller::Person(person)) = (who, &caller) {
        request = check_body(person, role, scope, request).await?;
    }
    request.extensions_mut().insert(caller.clone());
    Ok((request, caller))
}

async fn check(
    app: &App,
    person: &Person,
    role: Role,
    scope: Scope,
    request: &mut Request,
) -> Result<(), Problem> {
    let fits = match scope {
        Scope::Any | Scope::Body => person.may_anywhere(role),
        Scope::Global => person.may_everywhere(role),
        Scope::Host | Scope::HostAndBody => {
            let known = host_project(app, request).await?;
            match known {
                Some((name, project)) if !person.may_in(Role::Viewer, &project) => {
                    return Err(not_there(&name));
                }
                Some((_, project)) => person.may_in(role, &project),
                // The handler says that there is none; or makes it, where the body says.
                None => person.may_anywhere(role),
            }
        }
    };
    if fits {
        Ok(())
    } else {
        Err(lacks(person, role))
    }
}

/// As much of a body as says where the thing belongs. A name that is there twice is an error, so
/// that no later reader sees another one.
#[derive(Debug, Deserialize)]
struct Named {
    metadata: Option<Metadata>,
}

#[derive(Debug, Deserialize)]
struct Metadata {
    #[serde(default, deserialize_with = "said")]
    project: Option<String>,
}

/// `null` means the default project; nothing said is another thing.
fn said<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    let project: Option<String> = Option::deserialize(from)?;
    Ok(project.or_else(|| Some(DEFAULT_PROJECT.to_owned())))
}

/// Of who may not do it everywhere.
async fn check_body(
    person: &Person,
    role: Role,
    scope: Scope,
    request: Request,
) -> Result<Request, Problem> {
    let of_body = matches!(scope, Scope::Body | Scope::HostAndBody);
    if !of_body || person.may_everywhere(role) {
        return Ok(request);
    }
    let invalid = |what: String| Problem::new(Code::RequestInvalid, what, "");
    let (parts, body) = request.into_parts();
    // It is in memory already.
    let bytes = to_bytes(body, usize::MAX)
        .await
        .map_err(|error| invalid(format!("the body cannot be read: {error}")))?;
    let named: Named = serde_json::from_slice(&bytes).map_err(|error| {
        let error = unquoted(&error.to_string());
        invalid(format!("the body cannot be used: {error}"))
    })?;
    let project = named.metadata.and_then(|metadata| metadata.project);
    let project = match (project, scope) {
        (Some(project), _) => project,
        (None, Scope::HostAndBody) if parts.method != "PUT" => {
            return Ok(Request::from_parts(parts, Body::from(bytes)));
        }
        (None, _) => DEFAULT_PROJECT.to_owned(),
    };
    if !person.may_in(role, &project) {
        return Err(lacks(person, role));
    }
    Ok(Request::from_parts(parts, Body::from(bytes)))
}

/// Name and project of the host that the path names.
async fn host_project(
    app: &App,
    request: &mut Request,
) -> Result<Option<(String, String)>, Problem> {
    let parameters: RawPathParams = request
        .extract_parts()
        .await
        .map_err(|_| Problem::new(Code::RequestInvalid, "the path cannot be read", ""))?;
    let name = parameters.iter().find(|(key, _)| *key == "name");
    let Some((_, name)) = name else {
        return Err(forbidden("the call names no host"));
    };
    let known = app.hosts.live(name).map(|live| live.stored());
    Ok(known.map(|known| (name.to_owned(), known.record.host.project.clone())))
}

fn host_of(app: &App, headers: &HeaderMap, kind: Credential) -> Result<Presented, Problem> {
    let sha256 = token::sha256(bearer(headers)?);
    let host = app.hosts.find(kind, &sha256);
    let host = host.ok_or_else(|| unauthorized("the token is unknown or no longer valid"))?;
    Ok(Presented { host, sha256 })
}

/// By a token, if there is one, else by a certificate: a wrong token is not made good by either.
async fn person(app: &App, headers: &HeaderMap, known: &Extensions) -> Result<Person, Problem> {
    let peer = known.get::<Peer>();
    if let (Some(peer), None) = (peer, headers.get(header::AUTHORIZATION)) {
        let known = app.registry().by_certificate(&peer.name, &peer.fingerprint);
        return known.ok_or_else(|| unauthorized("the certificate was revoked"));
    }
    let presented = bearer(headers)?;
    if token::is(presented, &app.admin_sha256) {
        return Ok(first_admin());
    }
    // Three parts between dots, and not ours: a provider's token.
    let is_jwt = !presented.starts_with(PREFIX) && presented.split('.').count() == 3;
    if let (true, Some(oidc)) = (is_jwt, &app.oidc) {
        return Ok(app.registry().by_user(oidc.user(presented).await?));
    }
    app.registry()
        .by_token(presented)
        .ok_or_else(|| unauthorized("the token is unknown, revoked or expired"))
}

/// Whoever has the token that lies in the state folder.
fn first_admin() -> Person {
    Person {
        name: FIRST_ADMIN.to_owned(),
        via: "token",
        grants: vec![Grant {
            role: Role::Admin,
            project: None,
        }],
    }
}

/// The token of a call.
fn bearer(headers: &HeaderMap) -> Result<&str, Problem> {
    let value = headers.get(header::AUTHORIZATION);
    value
        .and_then(|value| value.to_str().ok())
        .and_then(|text| text.strip_prefix("Bearer "))
        .map(str::trim)
        .filter(|text| !text.is_empty() && text.len() <= LONGEST)
        .ok_or_else(|| unauthorized("there is no `Authorization: Bearer` token"))
}

fn unauthorized(what: &str) -> Problem {
    Problem::new(
        Code::Unauthorized,
        what,
        "people find theirs in the conductor's state folder, in admin.token",
    )
}

fn forbidden(what: &str) -> Problem {
    Problem::new(Code::Forbidden, what, "ask an admin for a role that may")
}

fn lacks(person: &Person, role: Role) -> Problem {
    let (name, role) = (&person.name, role.as_str());
    forbidden(&format!("{name:?} needs the role {role} for this"))
}

fn not_there(name: &str) -> Problem {
    crate::hosts::unknown(name)
}

fn wrong_method(table: &[Line], path: &str) -> Response {
    let methods = table::methods(table, path);
    let problem = Problem::new(
        Code::RequestInvalid,
        "this call has another method",
        format!("{path} has {methods}"),
    );
    let mut response = ApiError(problem).with(StatusCode::METHOD_NOT_ALLOWED);
    if let Ok(allow) = HeaderValue::from_str(&methods) {
        response.headers_mut().insert(header::ALLOW, allow);
    }
    response
}
