//! What the calls about who may do what take and answer.

use ferrite_proto::access::{
    AuditList, Binding, BindingList, Certificate, CertificateList, CreatedToken, Grants,
    NewCertificate, NewToken, TokenList, WhoAmI,
};
use serde_json::json;

use super::Document;

/// Describes them.
pub(super) fn describe(all: &mut Document) {
    tokens(all);
    certificates(all);
    roles(all);
    let summary = "Who the caller is, and may do what.";
    all.call("GET", "/v1/whoami", "whoAmI", summary)
        .answers::<WhoAmI>(200, "The caller.");
    let number = |most: u64| json!({"type": "integer", "minimum": 0, "maximum": most});
    all.call("GET", "/v1/audit", "listAudit", "The audit log.")
        .query("after", &number(u64::MAX), "Only lines after this.")
        .query("limit", &number(u64::from(u32::MAX)), "At most so many.")
        .answers::<AuditList>(200, "Lines, oldest first, and the log's end.");
}

fn tokens(all: &mut Document) {
    all.call("GET", "/v1/tokens", "listTokens", "Tokens that hold.")
        .answers::<TokenList>(200, "By name, without the tokens themselves.");
    all.call("POST", "/v1/tokens", "createToken", "Makes a token.")
        .body::<NewToken>()
        .answers::<CreatedToken>(201, "The token; it is not shown again.")
        .or(&[409]);
    let path = "/v1/tokens/{token}";
    all.call("DELETE", path, "revokeToken", "Revokes a token, at once.")
        .answers_otherwise(204, None, "It holds no more.");
}

fn certificates(all: &mut Document) {
    let path = "/v1/certificates";
    let summary = "The CA, and client certificates that hold.";
    all.call("GET", path, "listCertificates", summary)
        .answers::<CertificateList>(200, "By name.");
    let summary = "Issues a client certificate.";
    all.call("POST", path, "createCertificate", summary)
        .body::<NewCertificate>()
        .answers::<Certificate>(201, "The certificate.")
        .or(&[409]);
    let path = "/v1/certificates/{certificate}";
    let summary = "Revokes a client certificate, at once.";
    all.call("DELETE", path, "revokeCertificate", summary)
        .answers_otherwise(204, None, "It holds no more.");
}

fn roles(all: &mut Document) {
    let summary = "What subjects were given.";
    all.call("GET", "/v1/roles", "listRoles", summary)
        .answers::<BindingList>(200, "By subject.");
    let path = "/v1/roles/{subject}";
    all.call("PUT", path, "grantRoles", "Says what a subject may do.")
        .body::<Grants>()
        .answers::<Binding>(200, "As it is now.");
    let summary = "Takes from a subject what it was given.";
    all.call("DELETE", path, "withdrawRoles", summary)
        .answers_otherwise(204, None, "It has nothing more.");
}
