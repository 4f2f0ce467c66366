//! Signs the index of a packed image, in minisign's form, with a key that people can make:
//! `openssl genpkey -algorithm ed25519`, or `minisign -G -W`. Checking is `signature`'s.

use std::io;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use ring::signature::{Ed25519KeyPair, KeyPair as _};

/// minisign's word for a signature over the bytes themselves.
const ALGORITHM: &[u8; 2] = b"Ed";

/// Why a text is no key to sign with.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadKey {
    /// It begins as PEM does.
    #[error("it is no PEM")]
    Pem,
    /// Of another algorithm, or damaged.
    #[error("it is no Ed25519 key ({0})")]
    Pkcs8(String),
    /// Neither of the two forms.
    #[error("neither the PEM of `openssl genpkey -algorithm ed25519` nor minisign's secret key")]
    Form,
    /// Nobody is here to type it.
    #[error("it has a password: make one without, by `minisign -G -W`")]
    Password,
    /// Damaged.
    #[error("its halves do not belong together")]
    Halves,
}

/// A secret key. Its public half is all that it shows.
pub struct SigningKey {
    pair: Ed25519KeyPair,
    /// Which key it is, so that people can tell.
    number: [u8; 8],
}

impl std::fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("SigningKey").field(&self.public()).finish()
    }
}

impl SigningKey {
    /// Reads what either tool writes.
    ///
    /// # Errors
    /// When it is neither, or has a password.
    pub fn parse(text: &str) -> Result<Self, BadKey> {
        let lines = || text.lines().map(str::trim).filter(|line| !line.is_empty());
        if text.contains("-----BEGIN PRIVATE KEY-----") {
            let body: String = lines().filter(|line| !line.starts_with("-----")).collect();
            let der = BASE64.decode(body).map_err(|_| BadKey::Pem)?;
            let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(&der)
                .map_err(|error| BadKey::Pkcs8(error.to_string()))?;
            let digest = blake3::hash(pair.public_key().as_ref());
            let mut number = [0; 8];
            number.copy_from_slice(&digest.as_bytes()[..8]);
            return Ok(Self { pair, number });
        }
        let line = lines().next_back().unwrap_or_default();
        let key = BASE64.decode(line).unwrap_or_default();
        Self::minisign(&key)
    }

    /// What `minisign -G` writes: 2 bytes each of algorithm, of how it is encrypted and of its
    /// checksum, 48 of that, the number, the secret and the public half, and a checksum.
    fn minisign(key: &[u8]) -> Result<Self, BadKey> {
        if key.len() != 158 || !key.starts_with(ALGORITHM) {
            return Err(BadKey::Form);
        }
        if key[2..4] != [0, 0] {
            return Err(BadKey::Password);
        }
        let (secret, public) = (&key[62..94], &key[94..126]);
        let pair =
            Ed25519KeyPair::from_seed_and_public_key(secret, public).map_err(|_| BadKey::Halves)?;
        let mut number = [0; 8];
        number.copy_from_slice(&key[54..62]);
        Ok(Self { pair, number })
    }

    /// The public half, as minisign writes it.
    pub fn public(&self) -> String {
        BASE64.encode([ALGORITHM, &self.number[..], self.pair.public_key().as_ref()].concat())
    }

    /// A signature as a `.minisig` file has it.
    ///
    /// # Errors
    /// When `about` is more than a line.
    pub fn sign(&self, bytes: &[u8], about: &str) -> io::Result<String> {
        if about.contains(['\n', '\r']) {
            return Err(io::Error::other("a comment is one line"));
        }
        let signature = self.pair.sign(bytes);
        let head = [ALGORITHM, &self.number[..], signature.as_ref()].concat();
        let global = self
            .pair
            .sign(&[signature.as_ref(), about.as_bytes()].concat());
        let (head, global) = (BASE64.encode(head), BASE64.encode(global));
        let untrusted = "signature of a packed image's index";
        Ok(format!(
            "untrusted comment: {untrusted}\n{head}\ntrusted comment: {about}\n{global}\n"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As `openssl genpkey -algorithm ed25519` writes a key (RFC 8410): its bytes are all 9.
    fn pem() -> String {
        let head = [48, 46, 2, 1, 0, 48, 5, 6, 3, 43, 101, 112, 4, 34, 4, 32];
        let der = BASE64.encode([&head[..], &[9; 32]].concat());
        format!("-----BEGIN PRIVATE KEY-----\n{der}\n-----END PRIVATE KEY-----\n")
    }

    #[test]
    fn keys_of_both_tools_sign() {
        let seed = [7; 32];
        let pair = Ed25519KeyPair::from_seed_unchecked(&seed).unwrap();
        let public = pair.public_key().as_ref();
        let head = [
            &b"Ed\0\0B2"[..],
            &[0; 48],
            b"number 8",
            &seed,
            public,
            &[0; 32],
        ]
        .concat();
        let minisign = format!("untrusted comment: x\n{}\n", BASE64.encode(head));
        for text in [&pem(), &minisign] {
            let key = SigningKey::parse(text).unwrap();
            let text = key.sign(b"index", "file:x").unwrap();
            let public = minisign_verify::PublicKey::from_base64(&key.public()).unwrap();
            let signature = minisign_verify::Signature::decode(&text).unwrap();
            assert!(public.verify(b"index", &signature, true).is_ok());
            assert!(public.verify(b"other", &signature, true).is_err());
            assert!(key.sign(b"index", "two\nlines").is_err());
        }
    }

    #[test]
    fn what_is_no_key_is_said() {
        let refused = |text: &str| match SigningKey::parse(text) {
            Ok(_) => panic!("{text} was taken"),
            Err(error) => error.to_string(),
        };
        assert!(refused("").contains("neither"));
        assert!(refused(&pem().replace("MC4", "AAA")).contains("no Ed25519 key"));
        let sealed = [&b"EdScB2"[..], &[0; 152]].concat();
        assert!(refused(&BASE64.encode(sealed)).contains("password"));
    }
}
