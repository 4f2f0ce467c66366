//! Whether a packed image's signature holds: minisign's form, which others can check and make.

use std::str::FromStr;

use minisign_verify::Signature;

use super::{SIGNATURE_MAGIC, content};

/// A key that packed images are signed with: what `minisign -G` writes to its `.pub` file, or
/// only the line of it that begins with `RW`.
#[derive(Debug, Clone, PartialEq)]
pub struct PublicKey(minisign_verify::PublicKey);

/// Why a signature or a key does not do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadSignature {
    /// No public key.
    #[error("this is no minisign public key: give the line that begins with RW")]
    Key,
    /// No signature.
    #[error("the packed image's signature is damaged")]
    Form,
    /// Signed by somebody else, or something else was signed.
    #[error("the packed image's signature is not of this key, or not of this index")]
    Wrong,
}

impl FromStr for PublicKey {
    type Err = BadSignature;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let line = text.lines().map(str::trim).rfind(|line| !line.is_empty());
        let key = minisign_verify::PublicKey::from_base64(line.unwrap_or_default());
        key.map(Self).map_err(|_| BadSignature::Key)
    }
}

impl PublicKey {
    /// Checks that this key signed the index's frame. Both frames are as they lie in the file
    /// ([`super::Located`]).
    ///
    /// # Errors
    /// When it did not.
    pub fn vouches(&self, index: &[u8], signature: &[u8]) -> Result<(), BadSignature> {
        let text = signature_text(signature)?;
        let signature = Signature::decode(text).map_err(|_| BadSignature::Form)?;
        // Both of minisign's ways: over the bytes, and over their hash.
        self.0
            .verify(index, &signature, true)
            .map_err(|_| BadSignature::Wrong)
    }
}

/// The text in a signature's frame, as minisign writes it to a `.minisig` file.
///
/// # Errors
/// When that is no such frame.
pub fn signature_text(frame: &[u8]) -> Result<&str, BadSignature> {
    content(SIGNATURE_MAGIC, frame)
        .and_then(|text| str::from_utf8(text).ok())
        .ok_or(BadSignature::Form)
}

#[cfg(test)]
mod tests {
    use super::super::skippable;
    use super::*;

    /// Minisign's own words on `test`: see the crate that checks.
    const KEY: &str = "RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3";
    const SIGNATURE: &str = "untrusted comment: signature from minisign secret key
RUQf6LRCGA9i559r3g7V1qNyJDApGip8MfqcadIgT9CuhV3EMhHoN1mGTkUidF/z7SrlQgXdy8ofjb7bNJJylDOocrCo8KLzZwo=
trusted comment: timestamp:1633700835\tfile:test\tprehashed
wLMDjy9FLAuxZ3q4NlEvkgtyhrr0gtTu6KC4KBJdITbbOeAi1zBIYo0v4iTgt8jJpIidRJnp94ABQkJAgAooBQ==
";

    #[test]
    fn what_minisign_signed_is_vouched_for() {
        let file = format!("untrusted comment: minisign public key\n{KEY}\n\n");
        for text in [KEY, &file] {
            let key: PublicKey = text.parse().unwrap();
            let frame = skippable(SIGNATURE_MAGIC, SIGNATURE.as_bytes());
            assert_eq!(key.vouches(b"test", &frame), Ok(()));
            assert_eq!(key.vouches(b"tess", &frame), Err(BadSignature::Wrong));
            assert_eq!(key.vouches(b"test", &frame[1..]), Err(BadSignature::Form));
            let other = SIGNATURE.replace("prehashed", "PREHASHED");
            let frame = skippable(SIGNATURE_MAGIC, other.as_bytes());
            assert_eq!(key.vouches(b"test", &frame), Err(BadSignature::Wrong));
            let frame = skippable(SIGNATURE_MAGIC, b"untrusted");
            assert_eq!(key.vouches(b"test", &frame), Err(BadSignature::Form));
        }
        for text in ["", "RW", "-----BEGIN PUBLIC KEY-----\n"] {
            assert_eq!(text.parse::<PublicKey>(), Err(BadSignature::Key));
        }
    }
}
