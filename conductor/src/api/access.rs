//! Calls about who may do what: the caller, tokens, certificates, roles, the audit log.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use ferrite_proto::access::{
    AuditHead, AuditLine, AuditList, Binding, BindingList, Certificate, CertificateList,
    CreatedToken, Grants, NewCertificate, NewToken, TokenList, WhoAmI,
};
use ferrite_proto::digest::to_hex;
use ferrite_proto::problem::{Code, Problem};
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::{Answer, ApiError, App, Body, Query};
use crate::access::caller::{Caller, actor};
use crate::access::registry::check_name;
use crate::clock;

/// Lines of the audit log in one answer.
const MOST_LINES: u32 = 1000;
/// Days that a client certificate holds.
const YEAR: u32 = 365;
pub(super) const MOST_DAYS: u32 = 3650;

/// `GET /v1/whoami`
pub(crate) async fn who_am_i(caller: Caller) -> Answer<WhoAmI> {
    let Caller::Person(person) = caller else {
        let what = "the caller is no person";
        return Err(Problem::new(Code::Internal, what, "").into());
    };
    Ok(Json(WhoAmI {
        name: person.name.clone(),
        via: person.via.to_owned(),
        grants: person.grants.clone(),
    }))
}

/// `GET /v1/tokens`
pub(crate) async fn tokens(State(app): State<Arc<App>>) -> Answer<TokenList> {
    let items = app.registry().tokens()?;
    Ok(Json(TokenList { items }))
}

/// `POST /v1/tokens`
pub(crate) async fn create_token(
    State(app): State<Arc<App>>,
    Body(asked): Body<NewToken>,
) -> Result<(StatusCode, Json<CreatedToken>), ApiError> {
    let created = app.registry().create_token(asked).await?;
    tracing::info!(token = created.token.name, "token created");
    Ok((StatusCode::CREATED, Json(created)))
}

/// `DELETE /v1/tokens/{token}`
pub(crate) async fn revoke_token(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
) -> Result<StatusCode, ApiError> {
    app.registry().revoke_token(&name).await?;
    tracing::info!(token = name, "token revoked");
    Ok(StatusCode::NO_CONTENT)
}

/// `GET /v1/certificates`
pub(crate) async fn certificates(State(app): State<Arc<App>>) -> Answer<CertificateList> {
    Ok(Json(CertificateList {
        ca: app.authority.pem.clone(),
        items: app.registry().certificates()?,
    }))
}

/// `POST /v1/certificates`
pub(crate) async fn create_certificate(
    State(app): State<Arc<App>>,
    Body(asked): Body<NewCertificate>,
) -> Result<(StatusCode, Json<Certificate>), ApiError> {
    check_name(&asked.name)?;
    let days = asked.days.unwrap_or(YEAR);
    if !(1..=MOST_DAYS).contains(&days) {
        let what = format!("days is not from 1 to {MOST_DAYS}");
        return Err(Problem::new(Code::RequestInvalid, what, "leave it out for a year").into());
    }
    let issued = app.authority.issue_client(&asked.name, &asked.csr, days);
    let issued = issued.map_err(|error| {
        let advice = "send PKCS #10 in PEM with a key of P-256, P-384, Ed25519 or RSA";
        Problem::new(Code::RequestInvalid, error.to_string(), advice)
    })?;
    let made = Certificate {
        name: asked.name,
        grants: asked.grants,
        fingerprint: to_hex(&Sha256::digest(&issued.der)),
        pem: issued.pem,
        created_by: actor().to_string(),
        created: clock::now(),
        expires: issued.expires,
    };
    app.registry().add_certificate(&made).await?;
    tracing::info!(certificate = made.name, "client certificate issued");
    Ok((StatusCode::CREATED, Json(made)))
}

/// `DELETE /v1/certificates/{certificate}`
pub(crate) async fn revoke_certificate(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
) -> Result<StatusCode, ApiError> {
    app.registry().revoke_certificate(&name).await?;
    tracing::info!(certificate = name, "client certificate revoked");
    Ok(StatusCode::NO_CONTENT)
}

/// `GET /v1/roles`
pub(crate) async fn roles(State(app): State<Arc<App>>) -> Answer<BindingList> {
    let items = app.registry().bindings()?;
    Ok(Json(BindingList { items }))
}

/// `PUT /v1/roles/{subject}`
pub(crate) async fn grant(
    State(app): State<Arc<App>>,
    Path(subject): Path<String>,
    Body(Grants { grants }): Body<Grants>,
) -> Answer<Binding> {
    Ok(Json(app.registry().bind(&subject, grants).await?))
}

/// `DELETE /v1/roles/{subject}`
pub(crate) async fn withdraw(
    State(app): State<Arc<App>>,
    Path(subject): Path<String>,
) -> Result<StatusCode, ApiError> {
    app.registry().unbind(&subject).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Which lines.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Lines {
    #[serde(default)]
    after: u64,
    limit: Option<u32>,
}

/// `GET /v1/audit`
pub(crate) async fn audit(
    State(app): State<Arc<App>>,
    Query(query): Query<Lines>,
) -> Answer<AuditList> {
    let limit = query.limit.unwrap_or(100).min(MOST_LINES);
    // The end first: a line that comes in between is then no gap.
    let head = app.hosts.audit_head().await?;
    // No line has a number above this: databases count with a sign.
    let after = query.after.min(i64::MAX.cast_unsigned());
    let lines = app.hosts.audit_lines(after, limit).await?;
    Ok(Json(AuditList {
        head: head.map(|head| AuditHead {
            id: head.id,
            hash: head.hash,
            vouched: head.vouched,
        }),
        items: lines.into_iter().map(shown).collect(),
    }))
}

fn shown(line: crate::store::AuditLine) -> AuditLine {
    AuditLine {
        id: line.id,
        revision: line.revision,
        project: line.project,
        body: line.body,
        hash: line.hash,
    }
}
