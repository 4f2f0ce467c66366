//! The kinds of resources that the command line knows, by the words that people use for them, and
//! the calls behind them. What a kind means is the conductor's business.

use ferrite_proto::problem::{Code, Problem};

use super::nearest;

/// A kind of resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// Profiles and images first: what is applied in this order finds what it names.
    Profile,
    /// A named image.
    Image,
    /// A place to join.
    Cluster,
    /// A physical server.
    Host,
    /// What happened.
    Event,
    /// What is under way.
    Task,
    /// A client certificate.
    Certificate,
}

impl Kind {
    /// Every kind.
    pub(crate) const ALL: [Self; 7] = [
        Self::Host,
        Self::Image,
        Self::Cluster,
        Self::Profile,
        Self::Event,
        Self::Task,
        Self::Certificate,
    ];

    /// As `kind:` has it.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Profile => "Profile",
            Self::Image => "Image",
            Self::Cluster => "Cluster",
            Self::Host => "Host",
            Self::Event => "Event",
            Self::Task => "Task",
            Self::Certificate => "Certificate",
        }
    }

    /// As the API's paths have it.
    pub(crate) const fn plural(self) -> &'static str {
        match self {
            Self::Profile => "profiles",
            Self::Image => "images",
            Self::Cluster => "clusters",
            Self::Host => "hosts",
            Self::Event => "events",
            Self::Task => "tasks",
            Self::Certificate => "certificates",
        }
    }

    /// As it stands before a name: `host/r1-n4`.
    pub(crate) fn singular(self) -> String {
        self.as_str().to_lowercase()
    }

    /// Whether people write it in manifests.
    pub(crate) const fn is_written(self) -> bool {
        matches!(
            self,
            Self::Profile | Self::Image | Self::Cluster | Self::Host
        )
    }

    /// From a word of the command line: any case, singular or plural.
    pub(crate) fn from_word(word: &str) -> Result<Self, Problem> {
        let lower = word.to_lowercase();
        let found = Self::ALL
            .into_iter()
            .find(|kind| lower == kind.singular() || lower == kind.plural());
        found.ok_or_else(|| {
            let known = Self::ALL.map(Self::plural);
            let near = nearest::hint(&lower, known);
            Problem::new(
                Code::RequestInvalid,
                format!("there is no kind {word:?}{near}"),
                format!("the kinds are {}", known.join(", ")),
            )
        })
    }

    /// The call for all of them.
    pub(crate) fn collection(self) -> String {
        format!("/v1/{}", self.plural())
    }

    /// The call for one of them. A name is data: it must not lead to another call.
    pub(crate) fn item(self, name: &str) -> String {
        format!("/v1/{}/{}", self.plural(), escaped(name))
    }
}

/// A name or a value as part of a path or query.
pub(crate) fn escaped(name: &str) -> String {
    let harmless = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    name.bytes().fold(String::new(), |path, byte| {
        if harmless(byte) || (byte == b'.' && !name.starts_with('.')) {
            path + &char::from(byte).to_string()
        } else {
            path + &format!("%{byte:02X}")
        }
    })
}

/// `KIND`, `KIND/NAME…` or `KIND NAME…`, as kubectl takes them.
pub(crate) fn targets(words: &[String]) -> Result<Vec<(Kind, Option<String>)>, Problem> {
    let (first, rest) = words.split_first().ok_or_else(|| {
        Problem::new(
            Code::RequestInvalid,
            "of what? no kind is given",
            "write KIND or KIND/NAME: hosts, host/r1-n4",
        )
    })?;
    if let (false, false) = (first.contains('/'), rest.is_empty()) {
        let kind = Kind::from_word(first)?;
        return Ok(rest.iter().map(|name| (kind, Some(name.clone()))).collect());
    }
    words.iter().map(|word| target(word)).collect()
}

fn target(word: &str) -> Result<(Kind, Option<String>), Problem> {
    match word.split_once('/') {
        Some((kind, name)) if !name.is_empty() => {
            Ok((Kind::from_word(kind)?, Some(name.to_owned())))
        }
        Some((kind, _)) => Ok((Kind::from_word(kind)?, None)),
        None => Ok((Kind::from_word(word)?, None)),
    }
}

/// The same where a name must be.
pub(crate) fn named(words: &[String]) -> Result<Vec<(Kind, String)>, Problem> {
    let nameless = |kind: Kind| {
        let plural = kind.plural();
        Problem::new(
            Code::RequestInvalid,
            format!("which of the {plural}? no name is given"),
            format!("write {}/NAME", kind.singular()),
        )
    };
    let all = targets(words)?.into_iter();
    all.map(|(kind, name)| Ok((kind, name.ok_or_else(|| nameless(kind))?)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn things_are_named_as_kubectl_names_them() {
        let one = |name: &str| (Kind::Host, Some(name.to_owned()));
        assert_eq!(targets(&words("host/a")).unwrap(), [one("a")]);
        assert_eq!(targets(&words("Hosts a b")).unwrap(), [one("a"), one("b")]);
        assert_eq!(targets(&words("host/a host/b")).unwrap().len(), 2);
        assert_eq!(targets(&words("images")).unwrap(), [(Kind::Image, None)]);
        let error = targets(&words("hoost/a")).unwrap_err();
        assert!(error.message.contains("did you mean `hosts`?"), "{error}");
        assert!(named(&words("host")).is_err());
        assert!(targets(&[]).is_err());
    }

    #[test]
    fn a_name_never_leads_to_another_call() {
        assert_eq!(Kind::Host.item("r1.node-2"), "/v1/hosts/r1.node-2");
        assert_eq!(Kind::Host.item("a/b?c"), "/v1/hosts/a%2Fb%3Fc");
        assert_eq!(Kind::Image.item("../x"), "/v1/images/%2E%2E%2Fx");
    }
}
