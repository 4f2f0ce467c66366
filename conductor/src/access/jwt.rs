//! Reads a signed token of an OIDC provider. Pure: keys and the time are given.
//!
//! Only RS256 and ES256 are taken, each with a key of its own kind: `none`, HS256 (which would take
//! a public key for a shared secret) and everything else are refused before any key is looked at.

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, RSA_PKCS1_2048_8192_SHA256, RsaPublicKeyComponents, UnparsedPublicKey,
};
use serde::Deserialize;
use serde_json::Value;

/// Seconds that clocks may be apart.
const LEEWAY: i64 = 60;

/// The provider's keys.
#[derive(Debug, Clone, Default, Deserialize)]
pub(crate) struct Keys {
    keys: Vec<Key>,
}

/// A key; of those that are not for us, only what is needed to pass over them.
#[derive(Debug, Clone, Deserialize)]
struct Key {
    kty: String,
    kid: Option<String>,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
}

/// What a token has to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Expected {
    /// Who made it.
    pub(crate) issuer: String,
    /// For whom.
    pub(crate) audience: String,
    /// Where the user's name is.
    pub(crate) username_claim: String,
    /// Where the user's groups are.
    pub(crate) groups_claim: String,
}

/// Who somebody is, by a token that holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct User {
    /// The name.
    pub(crate) name: String,
    /// The groups.
    pub(crate) groups: Vec<String>,
}

/// Why a token is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    /// It is no JWT.
    #[error("it is no signed JWT")]
    Form,
    /// Its algorithm.
    #[error("it is signed by {0:?}, and only RS256 and ES256 are taken")]
    Algorithm(String),
    /// Its key: perhaps a new one.
    #[error("its key is none of the issuer's")]
    Key,
    /// Its signature.
    #[error("its signature does not hold")]
    Signature,
    /// What it says.
    #[error("its {0:?} is missing, or not what it must be")]
    Claim(String),
    /// The time.
    #[error("it has ended, or has not begun")]
    Time,
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
    crit: Option<Value>,
}

/// Checks a token, and says whose it is.
pub(crate) fn verify(
    token: &str,
    keys: &Keys,
    expected: &Expected,
    now: i64,
) -> Result<User, Refusal> {
    let (signed, signature) = token.rsplit_once('.').ok_or(Refusal::Form)?;
    let (header, claims) = signed.split_once('.').ok_or(Refusal::Form)?;
    let header: Header = part(header)?;
    if !matches!(header.alg.as_str(), "RS256" | "ES256") {
        return Err(Refusal::Algorithm(header.alg.chars().take(20).collect()));
    }
    if header.crit.is_some() {
        return Err(Refusal::Form);
    }
    let kid = header.kid.as_deref().ok_or(Refusal::Key)?;
    let kty = if header.alg == "RS256" { "RSA" } else { "EC" };
    let fits = |key: &&Key| key.kid.as_deref() == Some(kid) && key.kty == kty;
    let key = keys.keys.iter().find(fits).ok_or(Refusal::Key)?;
    key.verify(signed.as_bytes(), &bytes(signature)?)?;
    user(&part(claims)?, expected, now)
}

fn bytes(text: &str) -> Result<Vec<u8>, Refusal> {
    let decoded = BASE64_URL_SAFE_NO_PAD.decode(text);
    decoded.map_err(|_| Refusal::Form)
}

fn part<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, Refusal> {
    serde_json::from_slice(&bytes(text)?).map_err(|_| Refusal::Form)
}

impl Key {
    fn verify(&self, message: &[u8], signature: &[u8]) -> Result<(), Refusal> {
        let number = |text: &Option<String>| bytes(text.as_deref().ok_or(Refusal::Key)?);
        let held = if self.kty == "RSA" {
            let (n, e) = (number(&self.n)?, number(&self.e)?);
            let key = RsaPublicKeyComponents { n, e };
            key.verify(&RSA_PKCS1_2048_8192_SHA256, message, signature)
        } else {
            if self.crv.as_deref() != Some("P-256") {
                return Err(Refusal::Key);
            }
            let point = [vec![4], number(&self.x)?, number(&self.y)?].concat();
            UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point).verify(message, signature)
        };
        held.map_err(|_| Refusal::Signature)
    }
}

fn user(claims: &Value, expected: &Expected, now: i64) -> Result<User, Refusal> {
    let wrong = |name: &str| Refusal::Claim(name.to_owned());
    let text = |name: &str| claims.get(name).and_then(Value::as_str);
    if text("iss") != Some(expected.issuer.as_str()) {
        return Err(wrong("iss"));
    }
    let is_ours = |value: &Value| value.as_str() == Some(expected.audience.as_str());
    let ours = match claims.get("aud") {
        Some(Value::Array(all)) => all.iter().any(is_ours),
        Some(one) => is_ours(one),
        None => false,
    };
    if !ours {
        return Err(wrong("aud"));
    }
    // Seconds may have a fraction (RFC 7519, 2); below 2^53 none is lost.
    let seconds = |name: &str| {
        claims
            .get(name)
            .map(|at| at.as_f64().ok_or_else(|| wrong(name)))
    };
    let ends = seconds("exp").ok_or_else(|| wrong("exp"))??;
    let begins = seconds("nbf").transpose()?;
    #[expect(
        clippy::cast_precision_loss,
        reason = "seconds since 1970 are far below 2^53"
    )]
    let (early, late) = ((now + LEEWAY) as f64, (now - LEEWAY) as f64);
    if ends <= late || begins.is_some_and(|begins| begins > early) {
        return Err(Refusal::Time);
    }
    let name = text(&expected.username_claim).filter(|name| (1..=200).contains(&name.len()));
    let groups = claims.get(&expected.groups_claim).and_then(Value::as_array);
    let groups = groups.into_iter().flatten().filter_map(Value::as_str);
    Ok(User {
        name: name
            .ok_or_else(|| wrong(&expected.username_claim))?
            .to_owned(),
        groups: groups.map(str::to_owned).take(200).collect(),
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use ring::rand::SystemRandom;
    use ring::signature::{
        ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair, RSA_PKCS1_SHA256, RsaKeyPair,
    };
    use serde_json::json;

    /// For this test alone; made by `openssl genpkey`.
    const RSA: &[u8] = include_bytes!("../../testdata/oidc-test-rsa.der");
    const NOW: i64 = 1_800_000_000;

    fn text(bytes: &[u8]) -> String {
        BASE64_URL_SAFE_NO_PAD.encode(bytes)
    }

    /// An issuer with real keys of both kinds.
    pub(crate) struct Issuer {
        rsa: RsaKeyPair,
        ec: EcdsaKeyPair,
    }

    impl Issuer {
        pub(crate) fn new() -> Self {
            let random = SystemRandom::new();
            let kind = &ECDSA_P256_SHA256_FIXED_SIGNING;
            let ec = EcdsaKeyPair::generate_pkcs8(kind, &random).unwrap();
            Self {
                rsa: RsaKeyPair::from_der(RSA).unwrap(),
                ec: EcdsaKeyPair::from_pkcs8(kind, ec.as_ref(), &random).unwrap(),
            }
        }

        pub(crate) fn keys(&self) -> Value {
            let public = RsaPublicKeyComponents::<Vec<u8>>::from(self.rsa.public());
            let point = self.ec.public_key().as_ref();
            let (n, e) = (text(&public.n), text(&public.e));
            json!({"keys": [
                {"kty": "RSA", "kid": "r", "use": "sig", "n": n, "e": e},
                {"kty": "EC", "kid": "e", "crv": "P-256",
                 "x": text(&point[1..33]), "y": text(&point[33..])},
                {"kty": "oct", "kid": "o", "k": "AAAA"},
            ]})
        }

        pub(crate) fn sign(&self, header: &Value, claims: &Value) -> String {
            let signed = format!(
                "{}.{}",
                text(header.to_string().as_bytes()),
                text(claims.to_string().as_bytes())
            );
            let random = SystemRandom::new();
            let signature = if header["alg"] == "ES256" {
                let made = self.ec.sign(&random, signed.as_bytes()).unwrap();
                made.as_ref().to_vec()
            } else {
                let mut made = vec![0; self.rsa.public().modulus_len()];
                self.rsa
                    .sign(&RSA_PKCS1_SHA256, &random, signed.as_bytes(), &mut made)
                    .unwrap();
                made
            };
            format!("{signed}.{}", text(&signature))
        }
    }

    fn expected() -> Expected {
        Expected {
            issuer: "https://idp.example".into(),
            audience: "ferrite".into(),
            username_claim: "email".into(),
            groups_claim: "groups".into(),
        }
    }

    fn claims() -> Value {
        json!({"iss": "https://idp.example", "aud": ["other", "ferrite"], "email": "a@b",
               "groups": ["ops"], "exp": NOW + 300, "nbf": NOW - 5})
    }

    fn check(issuer: &Issuer, header: &Value, claims: &Value) -> Result<User, Refusal> {
        let keys = serde_json::from_value(issuer.keys()).unwrap();
        verify(&issuer.sign(header, claims), &keys, &expected(), NOW)
    }

    #[test]
    fn a_token_of_either_kind_says_who_it_is() {
        let issuer = Issuer::new();
        for header in [
            json!({"alg": "RS256", "kid": "r"}),
            json!({"alg": "ES256", "kid": "e"}),
        ] {
            let user = check(&issuer, &header, &claims()).unwrap();
            assert_eq!(
                (user.name.as_str(), user.groups),
                ("a@b", vec!["ops".to_owned()])
            );
        }
    }

    #[test]
    fn what_a_token_must_say_it_must_say() {
        let issuer = Issuer::new();
        let header = json!({"alg": "ES256", "kid": "e"});
        for (name, value) in [
            ("iss", json!("https://idp.example/")),
            ("iss", Value::Null),
            ("aud", json!("others")),
            ("aud", json!([])),
            ("aud", Value::Null),
            ("email", json!(7)),
            ("email", json!("")),
            ("exp", Value::Null),
            ("exp", json!("tomorrow")),
            ("exp", json!(NOW - 61)),
            ("nbf", json!(NOW + 61)),
            ("nbf", json!("now")),
        ] {
            let mut claims = claims();
            claims[name] = value.clone();
            assert!(check(&issuer, &header, &claims).is_err(), "{name}: {value}");
        }
        let mut late = claims();
        late["exp"] = json!(NOW - 30);
        assert!(
            check(&issuer, &header, &late).is_ok(),
            "clocks may be a little apart"
        );
    }

    #[test]
    fn nothing_but_the_issuers_own_signature_holds() {
        let issuer = Issuer::new();
        for (header, why) in [
            (json!({"alg": "none", "kid": "r"}), "none"),
            (json!({"alg": "HS256", "kid": "o"}), "a shared secret"),
            (
                json!({"alg": "HS256", "kid": "r"}),
                "a public key as a secret",
            ),
            (
                json!({"alg": "RS256", "kid": "e"}),
                "the key of the other kind",
            ),
            (
                json!({"alg": "ES256", "kid": "r"}),
                "the key of the other kind",
            ),
            (json!({"alg": "RS256", "kid": "x"}), "an unknown key"),
            (json!({"alg": "RS256"}), "no key"),
            (json!({"alg": "RS512", "kid": "r"}), "another algorithm"),
            (
                json!({"alg": "RS256", "kid": "r", "crit": ["b64"]}),
                "what must be understood",
            ),
        ] {
            assert!(check(&issuer, &header, &claims()).is_err(), "{why}");
        }
        let keys: Keys = serde_json::from_value(issuer.keys()).unwrap();
        let header = json!({"alg": "ES256", "kid": "e"});
        let good = issuer.sign(&header, &claims());
        assert!(verify(&good, &keys, &expected(), NOW).is_ok());
        let (signed, signature) = good.rsplit_once('.').unwrap();
        let (head, _) = signed.split_once('.').unwrap();
        let mut others = claims();
        others["email"] = json!("root");
        let others = text(others.to_string().as_bytes());
        for forged in [
            format!("{head}.{others}.{signature}"),
            format!("{signed}."),
            signed.to_owned(),
            format!("{good}.x"),
            Issuer::new().sign(&header, &claims()),
            ".".into(),
            "..".into(),
            String::new(),
        ] {
            assert!(
                verify(&forged, &keys, &expected(), NOW).is_err(),
                "{forged}"
            );
        }
    }
}
