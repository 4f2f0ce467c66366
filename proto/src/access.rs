//! Who may do what, as the API says it: roles, tokens, client certificates, the audit log.
//!
//! Not here: how a caller is recognised, and what each call needs; that is the conductor's.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::secret::Secret;

/// What people may do. Each role may do what the one before it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Read everything that is not secret.
    Viewer,
    /// Change hosts and what they run.
    Operator,
    /// Say who else may do what.
    Admin,
}

impl Role {
    /// As it is written.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Admin => "admin",
        }
    }
}

/// A role, in one project or in all.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Grant {
    /// What may be done.
    pub role: Role,
    /// Where; everywhere, and to what belongs to no project, without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project: Option<String>,
}

/// `GET /v1/whoami`: the caller.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct WhoAmI {
    /// By what name.
    pub name: String,
    /// `token`, `certificate` or `oidc`.
    pub via: String,
    /// What may be done.
    pub grants: Vec<Grant>,
}

/// `POST /v1/tokens`: a new token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct NewToken {
    /// Its name; that of nobody else's token.
    pub name: String,
    /// What it may do.
    pub grants: Vec<Grant>,
    /// For how long it holds; for ever without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_seconds: Option<u64>,
}

/// A token, without the token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Token {
    /// Its name.
    pub name: String,
    /// What it may do.
    pub grants: Vec<Grant>,
    /// Who made it.
    pub created_by: String,
    /// When.
    pub created: Timestamp,
    /// Until when it holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<Timestamp>,
}

/// The one reply that has the token itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CreatedToken {
    /// What it is.
    #[serde(flatten)]
    pub token: Token,
    /// `frt_…`, for `Authorization: Bearer`. It is not kept, and never shown again.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub secret: Secret<String>,
}

/// All tokens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TokenList {
    /// By name.
    pub items: Vec<Token>,
}

/// `POST /v1/certificates`: a new client certificate. The key is the caller's own: only its
/// request comes here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct NewCertificate {
    /// Whose it is: its common name.
    pub name: String,
    /// What its owner may do.
    pub grants: Vec<Grant>,
    /// PKCS #10, PEM. Only its public key is taken.
    pub csr: String,
    /// For how long it holds; a year without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub days: Option<u32>,
}

/// A client certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Certificate {
    /// Whose it is.
    pub name: String,
    /// What its owner may do.
    pub grants: Vec<Grant>,
    /// Hex SHA-256 of it.
    pub fingerprint: String,
    /// The certificate, PEM.
    pub pem: String,
    /// Who had it made.
    pub created_by: String,
    /// When.
    pub created: Timestamp,
    /// Until when it holds.
    pub expires: Timestamp,
}

/// All client certificates, and the authority behind them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CertificateList {
    /// The conductor's CA, PEM.
    pub ca: String,
    /// By name.
    pub items: Vec<Certificate>,
}

/// What a subject may do, beside what its token or certificate says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Binding {
    /// `user:NAME` and `group:NAME` (OIDC), `token:NAME`, `certificate:NAME`.
    pub subject: String,
    /// What it may do.
    pub grants: Vec<Grant>,
}

/// `PUT /v1/roles/{subject}`: everything that the subject may do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Grants {
    /// Replaces what was there.
    pub grants: Vec<Grant>,
}

/// All bindings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct BindingList {
    /// By subject.
    pub items: Vec<Binding>,
}

/// A line of the audit log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AuditLine {
    /// 1, 2, 3, …
    pub id: u64,
    /// The change that it tells of.
    pub revision: u64,
    /// Whose; empty for what concerns the whole conductor.
    pub project: String,
    /// JSON, exactly as it was hashed: `at`, `actor`, `action`, `target`, `detail`.
    pub body: String,
    /// Hex SHA-256 of the hash before, the number, the project and the body.
    pub hash: String,
}

/// Where the audit log ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AuditHead {
    /// Of the last line.
    pub id: u64,
    /// Of the last line.
    pub hash: String,
    /// Whether the conductor's key says so, too.
    pub vouched: bool,
}

/// `GET /v1/audit?after=N&limit=N`: lines, oldest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AuditList {
    /// The end of the whole log; none while it is empty.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head: Option<AuditHead>,
    /// The lines.
    pub items: Vec<AuditLine>,
}
