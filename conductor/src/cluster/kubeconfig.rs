//! A kubeconfig, as far as we take one: everything in it, and nothing to run.
//!
//! It comes from people, and is read by the conductor: one that names a program, a file of the
//! conductor or another way around TLS is refused, with the words that are wrong.

use std::fmt;

use ferrite_proto::secret::Secret;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde::Deserialize;
use serde::de::IgnoredAny;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;

/// More than any that a person was given.
const LONGEST: usize = 256 << 10;

/// Where a cluster is, how its server is known, and who we are there.
#[derive(Debug, Clone)]
pub(crate) struct Kubeconfig {
    /// `https://host:port`, without a path.
    pub(crate) server: String,
    /// Its CA, as PEM.
    pub(crate) ca: String,
    /// Who we are.
    pub(crate) login: Login,
}

/// Who we are to an API server.
#[derive(Debug, Clone)]
pub(crate) enum Login {
    /// Nobody: `system:anonymous`.
    Nobody,
    /// A client certificate and its key, as PEM, one after the other.
    Certificate(Secret<String>),
    /// A bearer token.
    Token(Secret<String>),
}

/// Why a kubeconfig is not taken. Its words never hold what the kubeconfig holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Unusable(String);

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Raw {
    current_context: Option<String>,
    #[serde(default)]
    clusters: Vec<NamedCluster>,
    #[serde(default)]
    contexts: Vec<NamedContext>,
    #[serde(default)]
    users: Vec<NamedUser>,
}

#[derive(Deserialize)]
struct NamedCluster {
    name: String,
    cluster: RawCluster,
}

#[derive(Deserialize)]
struct NamedContext {
    name: String,
    context: RawContext,
}

#[derive(Deserialize)]
struct NamedUser {
    name: String,
    user: RawUser,
}

#[derive(Deserialize)]
struct RawContext {
    cluster: String,
    user: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct RawCluster {
    server: String,
    certificate_authority_data: Option<String>,
    certificate_authority: Option<IgnoredAny>,
    #[serde(default)]
    insecure_skip_tls_verify: bool,
    proxy_url: Option<IgnoredAny>,
    tls_server_name: Option<IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct RawUser {
    token: Option<Secret<String>>,
    client_certificate_data: Option<Secret<String>>,
    client_key_data: Option<Secret<String>>,
    exec: Option<IgnoredAny>,
    auth_provider: Option<IgnoredAny>,
    client_certificate: Option<IgnoredAny>,
    client_key: Option<IgnoredAny>,
    #[serde(rename = "tokenFile")]
    token_file: Option<IgnoredAny>,
    username: Option<IgnoredAny>,
    password: Option<IgnoredAny>,
    #[serde(rename = "as")]
    impersonated: Option<IgnoredAny>,
}

impl Kubeconfig {
    /// Reads what `kubectl config view --raw --flatten --minify` prints.
    pub(crate) fn parse(text: &str) -> Result<Self, Unusable> {
        if text.len() > LONGEST {
            return Err(unusable("is longer than 256 KiB"));
        }
        // What the parser says may quote what is secret: only the place is told.
        let raw: Raw = serde_saphyr::from_str(text).map_err(|error| {
            let at = error.location();
            let line = at.map_or_else(String::new, |at| format!(", line {}", at.line()));
            unusable(format!("cannot be read as a kubeconfig{line}"))
        })?;
        let context = chosen(&raw)?;
        let cluster = raw.clusters.iter().find(|c| c.name == context.cluster);
        let cluster = cluster.ok_or_else(|| unusable("lacks the cluster of its context"))?;
        let user = raw.users.iter().find(|u| u.name == context.user);
        let user = user.ok_or_else(|| unusable("lacks the user of its context"))?;
        Ok(Self {
            server: server(&cluster.cluster)?,
            ca: authorities(&cluster.cluster)?,
            login: login(&user.user)?,
        })
    }
}

fn unusable(what: impl Into<String>) -> Unusable {
    Unusable(what.into())
}

fn chosen(raw: &Raw) -> Result<&RawContext, Unusable> {
    let found = match &raw.current_context {
        Some(name) if !name.is_empty() => raw.contexts.iter().find(|c| c.name == *name),
        _ if raw.contexts.len() == 1 => raw.contexts.first(),
        _ => return Err(unusable("has no current-context")),
    };
    let found = found.ok_or_else(|| unusable("lacks the context that current-context names"))?;
    Ok(&found.context)
}

/// The server's origin; see [`super::origin`].
fn server(cluster: &RawCluster) -> Result<String, Unusable> {
    let origin = super::origin(&cluster.server);
    origin.ok_or_else(|| unusable("has a server that is not https://HOST:PORT"))
}

fn authorities(cluster: &RawCluster) -> Result<String, Unusable> {
    if cluster.insecure_skip_tls_verify {
        return Err(unusable(
            "says insecure-skip-tls-verify: anybody could be the server",
        ));
    }
    refuse(&[
        ("certificate-authority", &cluster.certificate_authority),
        ("proxy-url", &cluster.proxy_url),
        ("tls-server-name", &cluster.tls_server_name),
    ])?;
    let data = cluster.certificate_authority_data.as_deref();
    let data = data.ok_or_else(|| unusable("has no certificate-authority-data"))?;
    let pem = decode("certificate-authority-data", data)?;
    super::check_authorities(&pem)
        .map_err(|what| unusable(format!("has a certificate-authority-data that {what}")))?;
    Ok(pem)
}

fn login(user: &RawUser) -> Result<Login, Unusable> {
    refuse(&[
        ("exec", &user.exec),
        ("auth-provider", &user.auth_provider),
        ("client-certificate", &user.client_certificate),
        ("client-key", &user.client_key),
        ("tokenFile", &user.token_file),
        ("username", &user.username),
        ("password", &user.password),
        ("as", &user.impersonated),
    ])?;
    let (certificate, key) = (&user.client_certificate_data, &user.client_key_data);
    match (certificate, key, &user.token) {
        (Some(certificate), Some(key), _) => {
            let certificate = decode("client-certificate-data", certificate.expose())?;
            let key = decode("client-key-data", key.expose())?;
            if CertificateDer::from_pem_slice(certificate.as_bytes()).is_err() {
                return Err(unusable("has a client-certificate-data that is no PEM"));
            }
            if PrivateKeyDer::from_pem_slice(key.as_bytes()).is_err() {
                return Err(unusable("has a client-key-data that is no key in PEM"));
            }
            let both = format!("{certificate}\n{key}");
            Ok(Login::Certificate(Secret::new(both)))
        }
        (None, None, Some(token)) if is_header(token.expose()) => Ok(Login::Token(token.clone())),
        (None, None, Some(_)) => Err(unusable("has a token that no header can carry")),
        (None, None, None) => Err(unusable("has no token and no client certificate")),
        _ => Err(unusable(
            "has one of client-certificate-data and client-key-data",
        )),
    }
}

fn is_header(token: &str) -> bool {
    !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic())
}

fn decode(field: &str, data: &str) -> Result<String, Unusable> {
    let bytes = BASE64_STANDARD.decode(data.trim()).ok();
    let text = bytes.and_then(|bytes| String::from_utf8(bytes).ok());
    text.ok_or_else(|| unusable(format!("has a {field} that is not PEM in base64")))
}

fn refuse(fields: &[(&str, &Option<IgnoredAny>)]) -> Result<(), Unusable> {
    let found = fields.iter().find(|(_, value)| value.is_some());
    found.map_or(Ok(()), |(name, _)| {
        Err(unusable(format!(
            "has `{name}`, which is not taken: the conductor runs no program, reads no file and \
             asks no proxy of a kubeconfig"
        )))
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A kubeconfig with a token.
    pub(crate) fn with_token(server: &str, ca: &str, token: &str) -> String {
        let ca = BASE64_STANDARD.encode(ca);
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: x\n\
             clusters:\n- name: c\n  cluster:\n    server: {server}\n\
             \x20   certificate-authority-data: {ca}\n\
             contexts:\n- name: x\n  context: {{cluster: c, user: u}}\n\
             users:\n- name: u\n  user:\n    token: {token}\n"
        )
    }

    fn pem() -> String {
        let made = rcgen::generate_simple_self_signed(["c".to_owned()]).unwrap();
        made.cert.pem()
    }

    #[test]
    fn what_is_whole_is_taken() {
        let read = Kubeconfig::parse(&with_token("https://c:6443", &pem(), "hunter2")).unwrap();
        assert_eq!(read.server, "https://c:6443");
        assert!(matches!(&read.login, Login::Token(token) if token.expose() == "hunter2"));
        assert!(!format!("{read:?}").contains("hunter2"));
        let own = rcgen::generate_simple_self_signed(["me".to_owned()]).unwrap();
        let (certificate, key) = (own.cert.pem(), own.signing_key.serialize_pem());
        let user = format!(
            "client-certificate-data: {}\n    client-key-data: {}",
            BASE64_STANDARD.encode(certificate),
            BASE64_STANDARD.encode(key)
        );
        let text = with_token("https://c:6443", &pem(), "hunter2");
        let read = Kubeconfig::parse(&text.replace("token: hunter2", &user)).unwrap();
        assert!(matches!(read.login, Login::Certificate(_)));
    }

    #[test]
    fn nothing_is_run_and_no_file_is_read() {
        let good = with_token("https://c:6443", &pem(), "hunter2");
        for (right, wrong, told) in [
            ("token: hunter2", "exec: {command: sh}", "`exec`"),
            (
                "token: hunter2",
                "auth-provider: {name: gcp}",
                "`auth-provider`",
            ),
            ("token: hunter2", "tokenFile: /etc/shadow", "`tokenFile`"),
            ("token: hunter2", "client-key: /etc/shadow", "`client-key`"),
            ("token: hunter2", "username: a", "`username`"),
            ("token: hunter2", "as: root", "`as`"),
            ("token: hunter2", "token: \"a\\nb\"", "header"),
            ("token: hunter2", "client-key-data: eA==", "one of"),
            ("token: hunter2", "{}", "no token"),
            (
                "certificate-authority-data",
                "certificate-authority",
                "`certificate-authority`",
            ),
            ("server: https://c:6443", "server: http://c", "https://HOST"),
            (
                "server: https://c:6443",
                "server: https://c/x",
                "https://HOST",
            ),
            (
                "    server:",
                "    insecure-skip-tls-verify: true\n    server:",
                "insecure",
            ),
            (
                "    server:",
                "    proxy-url: http://p\n    server:",
                "`proxy-url`",
            ),
            (
                "current-context: x",
                "current-context: y",
                "current-context",
            ),
            ("cluster: c, user", "cluster: d, user", "lacks the cluster"),
        ] {
            let text = good.replace(right, wrong);
            assert_ne!(text, good, "{right}");
            let error = Kubeconfig::parse(&text).unwrap_err().to_string();
            assert!(error.contains(told), "{wrong}: {error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn a_strangers_bytes_are_an_error() {
        let bomb = "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\n\
                    c: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\nclusters: [*c,*c,*c,*c,*c,*c,*c,*c]";
        let long = "x".repeat(LONGEST + 1);
        for text in ["", "[", "\0", "token: hunter2", "clusters: 7", bomb, &long] {
            assert!(Kubeconfig::parse(text).is_err());
        }
    }
}
