//! Bootstrap tokens, the signatures that a cluster makes with them, and pins of a CA: as kubeadm
//! has them, on bytes alone.

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use ferrite_proto::digest::to_hex;
use ferrite_proto::secret::Secret;
use hmac::{Hmac, KeyInit, Mac};
use jiff::Timestamp;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

const ALPHABET: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";
const ID: usize = 6;
const SECRET: usize = 16;
/// Where tokens are kept.
pub(super) const SECRETS: &str = "/api/v1/namespaces/kube-system/secrets";
/// What every one of ours has.
const LABEL: &str = "ferrite.dev/minted-by";

/// A new token.
#[derive(Debug, Clone)]
pub(crate) struct Token {
    /// Public: it is in the names of things.
    pub(crate) id: String,
    secret: Secret<String>,
}

impl Token {
    /// A random one.
    pub(super) fn random() -> Self {
        // More than 36 letters' worth of bits for each: the bias is of no use to a guesser.
        let letters = |count: usize| -> String {
            let random = Sha256::digest(crate::token::random().expose().as_bytes());
            let letter = |pair: &[u8]| {
                let number = usize::from(u16::from_be_bytes([pair[0], pair[1]]));
                char::from(ALPHABET[number % ALPHABET.len()])
            };
            random.chunks_exact(2).map(letter).take(count).collect()
        };
        Self {
            id: letters(ID),
            secret: Secret::new(letters(SECRET)),
        }
    }

    /// `id.secret`.
    pub(crate) fn whole(&self) -> Secret<String> {
        Secret::new(format!("{}.{}", self.id, self.secret.expose()))
    }

    /// As the cluster keeps it.
    pub(super) fn object(&self, description: &str, expires: Timestamp) -> Value {
        json!({
            "apiVersion": "v1",
            "kind": "Secret",
            "type": "bootstrap.kubernetes.io/token",
            "metadata": {
                "name": name_of(&self.id),
                "namespace": "kube-system",
                "labels": {LABEL: "ferrite"},
            },
            "stringData": {
                "token-id": self.id,
                "token-secret": self.secret.expose(),
                "expiration": expires.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
                "usage-bootstrap-authentication": "true",
                "usage-bootstrap-signing": "true",
                "auth-extra-groups": "system:bootstrappers:kubeadm:default-node-token",
                "description": description,
            },
        })
    }

    /// Whether a signature of `cluster-info` is of this token.
    pub(super) fn signed(&self, kubeconfig: &str, signature: &str) -> bool {
        let mut parts = signature.split('.');
        let (Some(header), Some(""), Some(mac), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return false;
        };
        if !self.is_header(header) {
            return false;
        }
        let Ok(mac) = BASE64_URL_SAFE_NO_PAD.decode(mac) else {
            return false;
        };
        let payload = BASE64_URL_SAFE_NO_PAD.encode(kubeconfig);
        let mut made = Hmac::<Sha256>::new_from_slice(self.secret.expose().as_bytes())
            .expect("HMAC takes a key of any length");
        made.update(format!("{header}.{payload}").as_bytes());
        made.verify_slice(&mac).is_ok()
    }

    fn is_header(&self, header: &str) -> bool {
        let decoded = BASE64_URL_SAFE_NO_PAD.decode(header).ok();
        let read = decoded.and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok());
        read.is_some_and(|read| read["alg"] == "HS256" && read["kid"] == self.id.as_str())
    }
}

/// The name of a token's Secret.
pub(super) fn name_of(id: &str) -> String {
    format!("bootstrap-token-{id}")
}

/// The pins of all certificates: kubeadm's `sha256:…`, of their public keys.
pub(crate) fn pins(pem: &str) -> Vec<String> {
    let certificates = CertificateDer::pem_slice_iter(pem.as_bytes()).filter_map(Result::ok);
    let mut pins: Vec<_> = certificates.filter_map(|der| pin(&der)).collect();
    pins.sort();
    pins.dedup();
    pins
}

fn pin(der: &CertificateDer<'_>) -> Option<String> {
    let (_, read) = x509_parser::parse_x509_certificate(der).ok()?;
    let digest = Sha256::digest(read.tbs_certificate.subject_pki.raw);
    Some(format!("sha256:{}", to_hex(&digest)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(id: &str, secret: &str) -> Token {
        Token {
            id: id.to_owned(),
            secret: Secret::new(secret.to_owned()),
        }
    }

    #[test]
    fn a_token_is_of_kubeadms_form_and_no_two_are_alike() {
        let (one, two) = (Token::random(), Token::random());
        let whole = one.whole();
        let (id, secret) = whole.expose().split_once('.').unwrap();
        assert_eq!((id.len(), secret.len()), (ID, SECRET));
        assert!(
            id.bytes()
                .chain(secret.bytes())
                .all(|b| ALPHABET.contains(&b))
        );
        assert_ne!(one.whole(), two.whole());
        assert!(!format!("{one:?}").contains(secret));
        let expires = "2026-11-20T12:00:00.5Z".parse().unwrap();
        let object = one.object("for a host", expires);
        assert_eq!(object["stringData"]["expiration"], "2026-11-20T12:00:00Z");
        assert_eq!(object["metadata"]["name"], format!("bootstrap-token-{id}"));
    }

    /// Made with openssl: `printf %s HEADER.PAYLOAD | openssl dgst -sha256 -hmac SECRET`.
    #[test]
    fn a_signature_is_of_one_token_and_one_text() {
        let token = token("abcdef", "0123456789abcdef");
        let text = "apiVersion: v1\nkind: Config\n";
        let signature = SIGNED_BY_OPENSSL;
        assert!(token.signed(text, signature));
        assert!(!token.signed("apiVersion: v1\n", signature));
        assert!(!self::token("abcdef", "0123456789abcdeg").signed(text, signature));
        assert!(!self::token("abcdeg", "0123456789abcdef").signed(text, signature));
        let (header, mac) = signature.split_once("..").unwrap();
        for bad in [
            String::new(),
            "..".to_owned(),
            mac.to_owned(),
            format!("{header}.x.{mac}"),
            format!("{header}..{mac}.y"),
            format!("{header}..{}", &mac[1..]),
        ] {
            assert!(!token.signed(text, &bad), "{bad}");
        }
        // The algorithm is not the sender's to choose.
        let none = BASE64_URL_SAFE_NO_PAD.encode(r#"{"alg":"none","kid":"abcdef"}"#);
        assert!(!token.signed(text, &format!("{none}..{mac}")));
    }

    const SIGNED_BY_OPENSSL: &str = concat!(
        "eyJhbGciOiJIUzI1NiIsImtpZCI6ImFiY2RlZiJ9..",
        "vH_kT4yiol-nrAWgjfCYqvum5wsKETXe0S7OOp1VgnE",
    );

    /// `openssl x509 -pubkey | openssl pkey -pubin -outform der | sha256sum` of this certificate.
    #[test]
    fn a_pin_is_the_digest_of_the_public_key() {
        assert_eq!(pins(CA), [CA_PIN]);
        assert_eq!(pins(&format!("{CA}{CA}")), [CA_PIN]);
        assert!(pins("").is_empty());
    }

    const CA: &str = "\
-----BEGIN CERTIFICATE-----
MIIBQDCB86ADAgECAhQO/Bta2AEIUfMD0BsrJeuC2IZs8zAFBgMrZXAwFTETMBEG
A1UEAwwKa3ViZXJuZXRlczAgFw0yNjExMjEyMjE5MDBaGA8yMTI2MTAyODIyMTkw
MFowFTETMBEGA1UEAwwKa3ViZXJuZXRlczAqMAUGAytlcAMhAGxmhhITdQcML4p/
JclVQ5MySTFg09CF6zJjWf3dWk/Ao1MwUTAdBgNVHQ4EFgQUWX/9o+/Lt3daJQjJ
pM/pDAeGVR8wHwYDVR0jBBgwFoAUWX/9o+/Lt3daJQjJpM/pDAeGVR8wDwYDVR0T
AQH/BAUwAwEB/zAFBgMrZXADQQCWDI7m94Pm7v/3PuUOqIbU/CKKQxtBzdfUAWFE
zCuc+rKCbI7KvERJVgEbWhpkosaaZAJUolkz/SjkuYecKgMB
-----END CERTIFICATE-----
";
    const CA_PIN: &str = "sha256:9b15ee4b90277650ac842936ea69a0f308538ff09ecee368c7b9a25f181afd61";
}
