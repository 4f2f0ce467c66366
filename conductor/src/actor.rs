//! Who does something: the conductor by itself, a host's agent or daemon, or a person.
//!
//! Not here: what each may do. An actor says who it was, never that it was allowed.

use std::fmt;

use serde_json::{Value, json};

/// Who acts.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) enum Actor {
    /// The conductor, of its own accord.
    #[default]
    Conductor,
    /// The agent in the host's ramdisk.
    Agent,
    /// The daemon in the host's OS.
    Daemon,
    /// A person, or a program of theirs.
    Person {
        /// By what name they came in.
        name: String,
        /// Token, certificate or OIDC; from where; which request: as the audit log shows it.
        via: Value,
    },
}

impl Actor {
    /// As the audit log keeps it.
    pub(crate) fn to_json(&self) -> Value {
        match self {
            Self::Conductor | Self::Agent | Self::Daemon => json!({"who": self.to_string()}),
            Self::Person { name, via } => json!({"who": name, "via": via}),
        }
    }
}

impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Conductor => "(conductor)",
            Self::Agent => "(agent)",
            Self::Daemon => "(daemon)",
            Self::Person { name, .. } => name,
        })
    }
}
