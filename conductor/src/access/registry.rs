//! Tokens, client certificates and bindings, as documents of the store: made, looked up, revoked.
//!
//! A token is known by its SHA-256 only. That is enough, without argon2 or its like: those make
//! guessing a person's password slow, and nobody guesses 256 random bits; a slow digest at every
//! call would only help an attacker to keep the conductor busy.

use ferrite_proto::access::{Binding, Certificate, CreatedToken, Grant, NewToken, Token};
use ferrite_proto::problem::{Code, Problem};
use ferrite_proto::secret::Secret;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::caller::{Person, actor};
use super::jwt::User;
use crate::clock;
use crate::crash::{self, Moment, Work};
use crate::documents::Documents;
use crate::store::{AuditEntry, Document, Expect};
use crate::token;

/// What a leaked token is found by.
pub(crate) const PREFIX: &str = "frt_";
const TOKEN: &str = "Token";
const CERTIFICATE: &str = "Certificate";
const BINDING: &str = "RoleBinding";
/// Grants of one subject.
pub(crate) const MOST_GRANTS: usize = 100;
/// Longest that a token may be made for, in seconds: a hundred years.
pub(crate) const LONGEST: u64 = 100 * 366 * 86_400;

/// The name of the token that the conductor makes at its first start.
pub(crate) const FIRST_ADMIN: &str = "admin";

/// All that is known of who may come in.
#[derive(Debug, Clone)]
pub(crate) struct Registry {
    documents: Documents,
}

impl Registry {
    /// What these documents say.
    pub(crate) const fn new(documents: Documents) -> Self {
        Self { documents }
    }

    /// Whose token this is. `frt_NAME_SECRET`: the name finds it, the digest proves it.
    pub(crate) fn by_token(&self, presented: &str) -> Option<Person> {
        let (name, _) = presented.strip_prefix(PREFIX)?.split_once('_')?;
        let found = self.documents.get(TOKEN, name)?;
        let digest = found.secret.as_ref()?.get("sha256")?.as_str()?;
        if !token::is(presented, digest) {
            return None;
        }
        let mut grants = grants_of(&found.body);
        grants.extend(self.bound(&format!("token:{name}")));
        Some(Person {
            name: name.to_owned(),
            via: "token",
            grants,
        })
    }

    /// Whose certificate this is; the TLS layer has checked that our CA issued it.
    pub(crate) fn by_certificate(&self, name: &str, fingerprint: &str) -> Option<Person> {
        let found = self.documents.get(CERTIFICATE, name)?;
        if found.body.get("fingerprint")?.as_str()? != fingerprint {
            return None;
        }
        let mut grants = grants_of(&found.body);
        grants.extend(self.bound(&format!("certificate:{name}")));
        Some(Person {
            name: name.to_owned(),
            via: "certificate",
            grants,
        })
    }

    /// What a user of the OIDC provider may do: what was given to the name and to the groups.
    pub(crate) fn by_user(&self, user: User) -> Person {
        let mut grants = self.bound(&format!("user:{}", user.name));
        for group in &user.groups {
            grants.extend(self.bound(&format!("group:{group}")));
        }
        Person {
            name: user.name,
            via: "oidc",
            grants,
        }
    }

    /// What a subject was given.
    pub(crate) fn bound(&self, subject: &str) -> Vec<Grant> {
        let found = self.documents.get(BINDING, subject);
        found.map_or_else(Vec::new, |found| grants_of(&found.body))
    }

    /// Makes a token.
    pub(crate) async fn create_token(&self, asked: NewToken) -> Result<CreatedToken, Problem> {
        check_name(&asked.name)?;
        check_grants(&asked.grants)?;
        let created = clock::now();
        let expires = asked
            .expires_seconds
            .map(|s| until(created, s))
            .transpose()?;
        let secret = token::random();
        let secret = format!("{PREFIX}{}_{}", asked.name, secret.expose());
        let shown = Token {
            created_by: actor().to_string(),
            name: asked.name,
            grants: asked.grants,
            created,
            expires,
        };
        let mut document = Document::new(TOKEN, &shown.name, created, to_body(&shown)?);
        document.expires = expires;
        document.secret = Some(json!({"sha256": token::sha256(&secret)}));
        let detail = json!({"grants": shown.grants, "expires": expires});
        let audit = vec![entry("create", TOKEN, &shown.name, detail)];
        crash::point(Work::CreateToken, Moment::Before);
        self.documents.put(document, Expect::Absent, audit).await?;
        crash::point(Work::CreateToken, Moment::After);
        Ok(CreatedToken {
            token: shown,
            secret: Secret::new(secret),
        })
    }

    /// All tokens that hold.
    pub(crate) fn tokens(&self) -> Result<Vec<Token>, Problem> {
        self.all(TOKEN)
    }

    /// Revokes a token, at once.
    pub(crate) async fn revoke_token(&self, name: &str) -> Result<(), Problem> {
        crash::point(Work::RevokeToken, Moment::Before);
        self.remove(TOKEN, name).await?;
        crash::point(Work::RevokeToken, Moment::After);
        Ok(())
    }

    /// Notes a certificate that was issued.
    pub(crate) async fn add_certificate(&self, issued: &Certificate) -> Result<(), Problem> {
        check_name(&issued.name)?;
        check_grants(&issued.grants)?;
        let body = to_body(issued)?;
        let mut document = Document::new(CERTIFICATE, &issued.name, issued.created, body);
        document.expires = Some(issued.expires);
        let detail = json!({
            "grants": issued.grants,
            "fingerprint": issued.fingerprint,
            "expires": issued.expires,
        });
        let audit = vec![entry("create", CERTIFICATE, &issued.name, detail)];
        crash::point(Work::IssueCertificate, Moment::Before);
        self.documents.put(document, Expect::Absent, audit).await?;
        crash::point(Work::IssueCertificate, Moment::After);
        Ok(())
    }

    /// All client certificates that hold.
    pub(crate) fn certificates(&self) -> Result<Vec<Certificate>, Problem> {
        self.all(CERTIFICATE)
    }

    /// Revokes a certificate, at once.
    pub(crate) async fn revoke_certificate(&self, name: &str) -> Result<(), Problem> {
        crash::point(Work::RevokeCertificate, Moment::Before);
        self.remove(CERTIFICATE, name).await?;
        crash::point(Work::RevokeCertificate, Moment::After);
        Ok(())
    }

    /// All bindings.
    pub(crate) fn bindings(&self) -> Result<Vec<Binding>, Problem> {
        self.all(BINDING)
    }

    /// Says what a subject may do.
    pub(crate) async fn bind(&self, subject: &str, grants: Vec<Grant>) -> Result<Binding, Problem> {
        check_subject(subject)?;
        check_grants(&grants)?;
        let binding = Binding {
            subject: subject.to_owned(),
            grants,
        };
        let detail = json!({"grants": binding.grants});
        let document = Document::new(BINDING, subject, clock::now(), to_body(&binding)?);
        let audit = vec![entry("grant", BINDING, subject, detail)];
        crash::point(Work::Grant, Moment::Before);
        self.documents
            .put(document, Expect::Anything, audit)
            .await?;
        crash::point(Work::Grant, Moment::After);
        Ok(binding)
    }

    /// Takes everything from a subject.
    pub(crate) async fn unbind(&self, subject: &str) -> Result<(), Problem> {
        crash::point(Work::Withdraw, Moment::Before);
        self.remove(BINDING, subject).await?;
        crash::point(Work::Withdraw, Moment::After);
        Ok(())
    }

    fn all<T: serde::de::DeserializeOwned>(&self, kind: &str) -> Result<Vec<T>, Problem> {
        let found = self.documents.list(kind).into_iter();
        let read = found.map(|one| serde_json::from_value(one.body.clone()));
        read.collect::<Result<_, _>>()
            .map_err(|error| damaged(kind, &error))
    }

    async fn remove(&self, kind: &str, name: &str) -> Result<(), Problem> {
        let audit = vec![entry("revoke", kind, name, Value::Null)];
        let removed = self.documents.remove(kind, name, Expect::Anything, audit);
        removed.await.map(drop)
    }
}

fn entry(action: &str, kind: &str, name: &str, detail: Value) -> AuditEntry {
    AuditEntry::of(&actor(), clock::now(), action, (kind, name, ""), detail)
}

fn grants_of(body: &Value) -> Vec<Grant> {
    let grants = body.get("grants").cloned().unwrap_or_default();
    // What cannot be read grants nothing.
    serde_json::from_value(grants).unwrap_or_else(|error| {
        tracing::error!(%error, "grants that are stored cannot be read");
        Vec::new()
    })
}

fn to_body(what: &impl serde::Serialize) -> Result<Value, Problem> {
    serde_json::to_value(what).map_err(|error| damaged("a document", &error))
}

fn damaged(kind: &str, error: &serde_json::Error) -> Problem {
    let what = format!("what is stored of {kind} cannot be read: {error}");
    Problem::new(Code::Internal, what, "restore it from a backup")
}

fn until(created: Timestamp, seconds: u64) -> Result<Timestamp, Problem> {
    let seconds = Some(seconds).filter(|s| (1..=LONGEST).contains(s));
    let duration = seconds
        .and_then(|s| i64::try_from(s).ok())
        .map(SignedDuration::from_secs);
    let expires = duration.and_then(|duration| created.checked_add(duration).ok());
    expires.ok_or_else(|| {
        let what = "expires_seconds is not from 1 to a hundred years";
        Problem::new(
            Code::RequestInvalid,
            what,
            "leave it out for a token without an end",
        )
    })
}

/// Names end up in certificates, tokens and paths.
pub(crate) fn check_name(name: &str) -> Result<(), Problem> {
    if is_name(name) && name != FIRST_ADMIN {
        return Ok(());
    }
    let shown: String = name.chars().take(80).collect();
    Err(Problem::new(
        Code::RequestInvalid,
        format!("{shown:?} cannot be the name of a token or certificate"),
        "use a-z, 0-9, - and . (not first or last), at most 63; `admin` is the first one's",
    ))
}

fn is_name(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-.".contains(c);
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    name.len() <= 63
        && name.chars().all(plain)
        && edge(name.chars().next())
        && edge(name.chars().last())
}

fn check_subject(subject: &str) -> Result<(), Problem> {
    let kinds = ["user:", "group:", "token:", "certificate:"];
    let named = kinds.iter().find_map(|kind| subject.strip_prefix(kind));
    let plain = |name: &str| {
        (1..=200).contains(&name.chars().count())
            && !name.chars().any(|c| c.is_control() || c == '/')
    };
    if named.is_some_and(plain) {
        return Ok(());
    }
    let shown: String = subject.chars().take(80).collect();
    Err(Problem::new(
        Code::RequestInvalid,
        format!("{shown:?} is nobody who could have a role"),
        "give user:NAME or group:NAME (OIDC), token:NAME or certificate:NAME",
    ))
}

fn check_grants(grants: &[Grant]) -> Result<(), Problem> {
    let invalid = |what: &str| {
        let advice = "give for instance [{\"role\": \"operator\", \"project\": \"default\"}]";
        Err(Problem::new(Code::RequestInvalid, what, advice))
    };
    if grants.is_empty() || grants.len() > MOST_GRANTS {
        return invalid("there must be 1 to 100 grants");
    }
    if !grants
        .iter()
        .filter_map(|g| g.project.as_deref())
        .all(is_name)
    {
        return invalid("a project's name has a-z, 0-9, - and . (not first or last), at most 63");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_subjects_that_could_be_mistaken_are_refused() {
        for good in ["ci", "a.b-c", "0"] {
            assert!(check_name(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "admin",
            "A",
            "a_b",
            "-a",
            "a/b",
            "ä",
            "a b",
            &"a".repeat(64),
        ] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
        for good in ["user:alice@example.com", "group:ops team", "token:ci"] {
            assert!(check_subject(good).is_ok(), "{good}");
        }
        for bad in ["alice", "user:", "host:x", "user:a/b", "user:a\n"] {
            assert!(check_subject(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn grants_need_a_role_and_projects_that_can_be() {
        let grant = |project: Option<&str>| Grant {
            role: ferrite_proto::access::Role::Viewer,
            project: project.map(str::to_owned),
        };
        assert!(check_grants(&[grant(None), grant(Some("red"))]).is_ok());
        assert!(check_grants(&[]).is_err());
        assert!(check_grants(&[grant(Some("*"))]).is_err());
        assert!(check_grants(&vec![grant(None); 101]).is_err());
    }
}
