//! Who calls, and what that person may see and do. Pure: nothing is looked up here.

use std::collections::BTreeSet;
use std::sync::Arc;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
pub(crate) use ferrite_proto::access::{Grant, Role};
use ferrite_proto::problem::{Code, Problem};
use serde_json::json;

use crate::actor::Actor;
use crate::api::ApiError;
use crate::seeing::calls;

fn holds_in(grant: &Grant, project: &str) -> bool {
    grant.project.as_deref().is_none_or(|own| own == project)
}

/// A person, or a tool of theirs, that has shown who it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Person {
    /// The name: of a token, in a certificate, or of a user.
    pub(crate) name: String,
    /// What showed it: `token`, `certificate`, `oidc`.
    pub(crate) via: &'static str,
    /// What it may do.
    pub(crate) grants: Vec<Grant>,
}

impl Person {
    /// Whether it may do what needs `role` in a project.
    pub(crate) fn may_in(&self, role: Role, project: &str) -> bool {
        let grants = &self.grants;
        grants
            .iter()
            .any(|g| g.role >= role && holds_in(g, project))
    }

    /// Whether it may do what needs `role` and belongs to no project.
    pub(crate) fn may_everywhere(&self, role: Role) -> bool {
        let everywhere = |grant: &Grant| grant.project.is_none();
        self.grants.iter().any(|g| g.role >= role && everywhere(g))
    }

    /// Whether there is any project in which it may do what needs `role`.
    pub(crate) fn may_anywhere(&self, role: Role) -> bool {
        self.grants.iter().any(|grant| grant.role >= role)
    }

    /// What it may read.
    pub(crate) fn visible(&self) -> Visible {
        if self.may_everywhere(Role::Viewer) {
            return Visible(None);
        }
        let projects = self.grants.iter().filter_map(|g| g.project.clone());
        Visible(Some(Arc::new(projects.collect())))
    }
}

/// Who calls. The door puts it into every request that it lets through.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Caller {
    /// Nobody in particular: the call is open to anyone.
    Anyone,
    /// The agent in the ramdisk of this host.
    Agent(Presented),
    /// The daemon in the OS of this host.
    Daemon(Presented),
    /// A person.
    Person(Arc<Person>),
}

/// A call that was let through.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Call {
    /// Who makes it.
    pub(crate) caller: Caller,
    /// From which address.
    pub(crate) from: String,
    /// `POST /v1/hosts/{name}/provision`
    pub(crate) what: String,
}

tokio::task_local! {
    /// The call that is being answered. Set by the door; whoever writes what happened reads it, so
    /// that no handler can forget to say who it was.
    pub(crate) static CALL: Call;
}

/// Who acts here: the caller that is being answered, or else the conductor itself.
pub(crate) fn actor() -> Actor {
    let actor = CALL.try_with(|call| match &call.caller {
        Caller::Anyone => Actor::Conductor,
        Caller::Agent(_) => Actor::Agent,
        Caller::Daemon(_) => Actor::Daemon,
        Caller::Person(person) => Actor::Person {
            name: person.name.clone(),
            via: json!({
                "via": person.via,
                "from": call.from,
                "call": call.what,
                "request": calls::current(),
            }),
        },
    });
    actor.unwrap_or_default()
}

/// The projects that a caller may read. Whoever lists things of projects needs one, and there is
/// one only in a request that came through the door.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Visible(Option<Arc<BTreeSet<String>>>);

impl Visible {
    /// What the conductor itself sees, for figures of the whole.
    pub(crate) const fn all() -> Self {
        Self(None)
    }

    /// Whether something of this project may be shown.
    pub(crate) fn sees(&self, project: &str) -> bool {
        self.0
            .as_ref()
            .is_none_or(|projects| projects.contains(project))
    }
}

fn unguarded() -> ApiError {
    ApiError(Problem::new(
        Code::Internal,
        "a call came past the door",
        "tell Ferrite's authors",
    ))
}

impl<S: Sync> FromRequestParts<S> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        parts.extensions.get().cloned().ok_or_else(unguarded)
    }
}

impl<S: Sync> FromRequestParts<S> for Visible {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        match parts.extensions.get() {
            Some(Caller::Person(person)) => Ok(person.visible()),
            _ => Err(unguarded()),
        }
    }
}

/// What a host's agent or daemon came in with. By the time that a change of the host is made, it
/// may be void: whoever makes one looks again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Presented {
    /// The host that it was good for.
    pub(crate) host: String,
    /// Hex SHA-256 of the token.
    pub(crate) sha256: String,
}

/// The host whose agent calls.
#[derive(Debug)]
pub(crate) struct AgentOf(pub(crate) Presented);

impl<S: Sync> FromRequestParts<S> for AgentOf {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        match parts.extensions.get() {
            Some(Caller::Agent(presented)) => Ok(Self(presented.clone())),
            _ => Err(unguarded()),
        }
    }
}

/// The host whose daemon calls.
#[derive(Debug)]
pub(crate) struct DaemonOf(pub(crate) Presented);

impl<S: Sync> FromRequestParts<S> for DaemonOf {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        match parts.extensions.get() {
            Some(Caller::Daemon(presented)) => Ok(Self(presented.clone())),
            _ => Err(unguarded()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn person(grants: &[(Role, Option<&str>)]) -> Person {
        let grant = |(role, project): &(Role, Option<&str>)| Grant {
            role: *role,
            project: project.map(str::to_owned),
        };
        Person {
            name: "p".into(),
            via: "token",
            grants: grants.iter().map(grant).collect(),
        }
    }

    #[test]
    fn a_role_holds_in_its_project_and_no_other() {
        let one = person(&[(Role::Operator, Some("red")), (Role::Viewer, Some("blue"))]);
        assert!(one.may_in(Role::Viewer, "red") && one.may_in(Role::Operator, "red"));
        assert!(!one.may_in(Role::Admin, "red"));
        assert!(one.may_in(Role::Viewer, "blue") && !one.may_in(Role::Operator, "blue"));
        assert!(!one.may_in(Role::Viewer, "green") && !one.may_everywhere(Role::Viewer));
        assert!(one.may_anywhere(Role::Operator) && !one.may_anywhere(Role::Admin));
        let sees = one.visible();
        assert!(sees.sees("red") && sees.sees("blue") && !sees.sees("green"));
        let all = person(&[(Role::Viewer, None)]);
        assert!(all.may_in(Role::Viewer, "green") && all.visible().sees("green"));
        assert!(!person(&[]).visible().sees("default"));
    }
}
