//! What can go wrong at a BMC, and what a person reads of it.
//!
//! Every variant names the BMC; `problem` adds what to do. The lifecycle sees only the problem.

use ferrite_proto::problem::{Code, Problem};
use serde_json::Value;

/// A call to a BMC that failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BmcError {
    /// The address in the host's spec cannot be used.
    #[error("{address:?} is no BMC address: {reason}")]
    Address {
        /// As written.
        address: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// No answer.
    #[error("the BMC at {bmc} does not answer: {reason}")]
    Unreachable {
        /// `https://10.0.0.5`.
        bmc: String,
        /// Connection refused, timed out, certificate not trusted …
        reason: String,
    },
    /// The BMC's certificate is not one that we trust.
    #[error("the certificate of the BMC at {bmc} is not trusted: {reason}")]
    Certificate {
        /// `https://10.0.0.5`.
        bmc: String,
        /// What is wrong with it.
        reason: String,
    },
    /// 401 or 403.
    #[error("the BMC at {bmc} refuses the credentials of {username:?} (HTTP {status}){said}")]
    Credentials {
        /// `https://10.0.0.5`.
        bmc: String,
        /// Whose.
        username: String,
        /// 401 or 403.
        status: u16,
        /// The BMC's own message.
        said: Said,
    },
    /// Any other answer that is an error.
    #[error("the BMC at {bmc} answers {method} {path} with HTTP {status}{said}")]
    Status {
        /// `https://10.0.0.5`.
        bmc: String,
        /// What was asked.
        method: &'static str,
        /// Of which resource.
        path: String,
        /// With which status.
        status: u16,
        /// The BMC's own message.
        said: Said,
    },
    /// An answer without what we need.
    #[error("the BMC at {bmc} answers {path} with something unusable: {reason}")]
    Protocol {
        /// `https://10.0.0.5`.
        bmc: String,
        /// Which resource.
        path: String,
        /// What is missing or wrong.
        reason: String,
    },
    /// The virtual media drive cannot be used.
    #[error("the BMC at {bmc} does not take {url} as virtual media: {reason}")]
    Media {
        /// `https://10.0.0.5`.
        bmc: String,
        /// The ISO, without its token.
        url: String,
        /// The BMC's own message, slot by slot.
        reason: String,
    },
}

/// What a BMC said in its error body, ready to be put behind a sentence; empty if it said nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Said {
    /// Message ids of the extended information (`Base.1.8.GeneralError`).
    pub(crate) ids: Vec<String>,
    /// Its messages, joined, at most 300 characters.
    pub(crate) message: String,
}

impl std::fmt::Display for Said {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.message.is_empty() {
            return Ok(());
        }
        write!(f, ": {}", self.message)
    }
}

impl BmcError {
    /// For the host's status.
    pub(crate) fn problem(&self) -> Problem {
        let (code, advice) = match self {
            Self::Address { .. } => (
                Code::RequestInvalid,
                "write redfish://HOST[:PORT][/redfish/v1/Systems/ID], or redfish+http:// for a \
                 BMC without TLS",
            ),
            Self::Unreachable { .. } => (
                Code::BmcUnreachable,
                "check that the address is right and that the conductor can reach the BMC's \
                 network; it is tried again by itself",
            ),
            Self::Certificate { .. } => (
                Code::BmcProtocol,
                "give the BMC a certificate from a public authority, or set insecure_tls for \
                 this host (--insecure-bmc-tls) if its network is yours alone",
            ),
            Self::Credentials { .. } => (
                Code::BmcCredentialsRefused,
                "set the right user name and password with `ferrite host set`; it is not tried \
                 again before, so that the BMC does not lock the account",
            ),
            Self::Status { .. } | Self::Protocol { .. } => (
                Code::BmcProtocol,
                "it is tried again by itself; if it stays, look at the BMC's own log, update or \
                 restart the BMC, and report its make and firmware to Ferrite",
            ),
            Self::Media { .. } => (
                Code::BmcMediaRefused,
                "check that the BMC can reach the conductor's HTTP address and is licensed for \
                 virtual media; else boot this host by PXE",
            ),
        };
        Problem::new(code, self.to_string(), advice)
    }
}

impl From<BmcError> for Problem {
    fn from(error: BmcError) -> Self {
        error.problem()
    }
}

impl Said {
    /// Takes the messages out of a Redfish error body, whichever way it is nested.
    pub(super) fn read(body: &Value) -> Self {
        let error = &body["error"];
        let extended = error["@Message.ExtendedInfo"].as_array();
        let extended = extended.or_else(|| body["@Message.ExtendedInfo"].as_array());
        let infos = extended.map_or(&[][..], Vec::as_slice);
        let texts = |key: &str| {
            let texts = infos.iter().filter_map(|info| info[key].as_str());
            texts
                .take(8)
                .map(|text| printable(text, 200))
                .collect::<Vec<_>>()
        };
        let mut messages = texts("Message");
        if messages.is_empty() {
            messages.extend(error["message"].as_str().map(|text| printable(text, 300)));
        }
        let mut ids = texts("MessageId");
        ids.extend(error["code"].as_str().map(|text| printable(text, 200)));
        Self {
            ids,
            message: printable(&messages.join(" "), 300),
        }
    }
}

/// Text of a BMC as it may stand in a log: one line, bounded.
fn printable(text: &str, most: usize) -> String {
    let clean = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    clean.take(most).collect::<String>().trim().to_owned()
}
