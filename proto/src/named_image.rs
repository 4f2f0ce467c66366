//! An image with a name: what it is made of, and how far the conductor is with packing it.
//!
//! Not here: what the packed form is (`ferrite-imaging`), and who fetches it.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::image::{Compression, Format, ImageRef, InvalidImage};
use crate::problem::Problem;

/// What is wanted of a named image: where its file is, and whether the conductor packs it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct ImageSpec {
    /// `http://`, `https://` or `oci://`, as of a host's image. Or `upload://NAME`, by custom with
    /// the image's own name: its file is given by `PUT /v1/images/NAME/content`.
    pub url: String,
    /// Other places of the same file.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mirrors: Vec<String>,
    /// Digest of the file as fetched; of one that is packed already, that of its index.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<Digest>,
    /// A URL of a file of digests, in place of `digest`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest_url: Option<String>,
    /// Digest of the disk's bytes that the file holds, besides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub raw_digest: Option<Digest>,
    /// minisign's public key of who vouches for an image that is packed already.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signed_by: Option<String>,
    /// What the file holds once decompressed.
    #[serde(default)]
    pub format: Format,
    /// How it is compressed; told from the first bytes when not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compression: Option<Compression>,
    /// Take it without a digest. A person has to say so.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub allow_unverified: bool,
    /// The conductor fetches the file once, packs it, and gives hosts the packed form. Else each
    /// host fetches the file itself.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub pack: bool,
}

impl ImageSpec {
    /// What it is made of: what hosts mean by the name.
    pub fn source(&self) -> ImageRef {
        let spec = self.clone();
        ImageRef {
            url: spec.url,
            mirrors: spec.mirrors,
            digest: spec.digest,
            digest_url: spec.digest_url,
            raw_digest: spec.raw_digest,
            signed_by: spec.signed_by,
            format: spec.format,
            compression: spec.compression,
            allow_unverified: spec.allow_unverified,
        }
    }

    /// Whether people give the file, rather than a server.
    pub fn is_uploaded(&self) -> bool {
        self.source().uploaded().is_some()
    }

    /// Checks the form, and that what is to be packed can be.
    pub fn validate(&self) -> Result<(), InvalidImage> {
        let cannot = |why| Err(InvalidImage::NotPacked(why));
        match self.format {
            _ if !self.pack && self.is_uploaded() => {
                cannot("what is uploaded is packed: say pack: true")
            }
            Format::Packed if self.pack => {
                cannot("it is packed already: say pack: false, or format: raw, which it is, too")
            }
            _ if self.pack && self.url.starts_with("oci") => {
                cannot("an artifact of a registry is fetched by hosts alone: say pack: false")
            }
            _ if self.pack && self.digest_url.is_some() => {
                cannot("digest_url is read by hosts alone: give the digest itself")
            }
            _ => self.source().validate(),
        }
    }
}

impl From<ImageRef> for ImageSpec {
    /// Not packed.
    fn from(image: ImageRef) -> Self {
        Self {
            url: image.url,
            mirrors: image.mirrors,
            digest: image.digest,
            digest_url: image.digest_url,
            raw_digest: image.raw_digest,
            signed_by: image.signed_by,
            format: image.format,
            compression: image.compression,
            allow_unverified: image.allow_unverified,
            pack: false,
        }
    }
}

/// How far an image is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum ImagePhase {
    /// Its turn has not come, or its file has not been given.
    #[default]
    Pending,
    /// Its file is on the way here.
    Fetching,
    /// Its file is being packed.
    Packing,
    /// Hosts can have it.
    Ready,
    /// It cannot be had; `problem` says why.
    Failed,
}

impl ImagePhase {
    /// As it is written.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "Pending",
            Self::Fetching => "Fetching",
            Self::Packing => "Packing",
            Self::Ready => "Ready",
            Self::Failed => "Failed",
        }
    }
}

/// What is seen of an image that the conductor packs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ImageStatus {
    /// How far it is.
    pub phase: ImagePhase,
    /// Of which `metadata.generation`.
    pub observed_generation: u64,
    /// Since when it is in this phase.
    pub since: Timestamp,
    /// When this was last written.
    pub updated: Timestamp,
    /// Bytes of the file that are fetched or packed so far.
    #[serde(default)]
    pub bytes_done: u64,
    /// Of so many, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_total: Option<u64>,
    /// Digest of the packed image's index.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<Digest>,
    /// Bytes of the disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_bytes: Option<u64>,
    /// Bytes of the packed file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub packed_bytes: Option<u64>,
    /// Where hosts fetch it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// minisign's public key of the conductor that packed it, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signed_by: Option<String>,
    /// Which conductor works on it, or has it: what hosts reach it by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conductor: Option<String>,
    /// Why it cannot be had.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<Problem>,
    /// How often in a row that went wrong.
    #[serde(default)]
    pub attempts: u32,
    /// When it is tried again by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_at: Option<Timestamp>,
    /// The same for Kubernetes' tools.
    #[serde(default)]
    pub conditions: Vec<ImageCondition>,
}

/// A condition, as Kubernetes writes them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ImageCondition {
    /// `Ready`.
    #[serde(rename = "type")]
    pub name: String,
    /// `True` or `False`.
    pub status: String,
    /// The phase, or the problem's code.
    pub reason: String,
    /// In words.
    #[serde(default)]
    pub message: String,
}

impl ImageStatus {
    /// Nothing is done yet.
    pub fn new(generation: u64, now: Timestamp) -> Self {
        let mut status = Self {
            phase: ImagePhase::Pending,
            observed_generation: generation,
            since: now,
            updated: now,
            bytes_done: 0,
            bytes_total: None,
            digest: None,
            image_bytes: None,
            packed_bytes: None,
            url: None,
            signed_by: None,
            conductor: None,
            problem: None,
            attempts: 0,
            retry_at: None,
            conditions: Vec::new(),
        };
        status.enter(ImagePhase::Pending, now);
        status
    }

    /// Another phase begins.
    pub fn enter(&mut self, phase: ImagePhase, now: Timestamp) {
        self.phase = phase;
        self.since = now;
        self.updated = now;
        self.bytes_done = 0;
        self.bytes_total = None;
        if phase != ImagePhase::Failed {
            self.problem = None;
            self.retry_at = None;
        }
        let ready = phase == ImagePhase::Ready;
        let problem = self.problem.as_ref();
        let reason = problem.map_or(phase.as_str(), |problem| problem.code.as_str());
        self.conditions = vec![ImageCondition {
            name: "Ready".to_owned(),
            status: if ready { "True" } else { "False" }.to_owned(),
            reason: reason.to_owned(),
            message: problem.map_or_else(String::new, |problem| problem.message.clone()),
        }];
    }

    /// How far it is, in words: `Packing, 40 %`.
    pub fn words(&self) -> String {
        let phase = self.phase.as_str();
        match self.bytes_total {
            Some(total) if total > 0 => {
                // Tens: whoever shows it stores it, and need not do so each second.
                let tens = self.bytes_done.min(total).saturating_mul(10) / total;
                format!("{phase}, {} %", tens * 10)
            }
            _ => phase.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn spec(more: &serde_json::Value) -> ImageSpec {
        let mut spec = json!({"url": "https://h/x.raw", "allow_unverified": true});
        crate::merge::apply(&mut spec, more);
        serde_json::from_value(spec).unwrap()
    }

    #[test]
    fn what_was_written_before_there_was_packing_means_the_same() {
        let old = json!({"url": "https://h/x.raw", "format": "raw", "allow_unverified": true});
        let read: ImageSpec = serde_json::from_value(old.clone()).unwrap();
        assert!(!read.pack);
        assert_eq!(serde_json::to_value(&read).unwrap(), old);
        assert_eq!(serde_json::to_value(read.source()).unwrap(), old);
        assert_eq!(ImageSpec::from(read.source()), read);
    }

    #[test]
    fn what_cannot_be_packed_is_refused_with_the_reason() {
        assert_eq!(spec(&json!({"pack": true})).validate(), Ok(()));
        assert_eq!(
            spec(&json!({"url": "upload://debian", "pack": true})).validate(),
            Ok(())
        );
        for (more, why) in [
            (json!({"url": "upload://debian"}), "pack: true"),
            (json!({"pack": true, "format": "packed"}), "already"),
            (json!({"pack": true, "url": "oci://r/os:1"}), "registry"),
            (
                json!({"pack": true, "digest_url": "https://h/SUMS"}),
                "digest itself",
            ),
        ] {
            let refused = spec(&more).validate().unwrap_err().to_string();
            assert!(refused.contains(why), "{refused}");
        }
    }

    #[test]
    fn how_far_it_is_is_said_in_tens() {
        let mut status = ImageStatus::new(1, Timestamp::UNIX_EPOCH);
        assert_eq!(status.words(), "Pending");
        status.enter(ImagePhase::Packing, Timestamp::UNIX_EPOCH);
        (status.bytes_done, status.bytes_total) = (49, Some(100));
        assert_eq!(status.words(), "Packing, 40 %");
        status.bytes_done = u64::MAX;
        assert_eq!(status.words(), "Packing, 100 %");
        assert_eq!(status.conditions[0].status, "False");
        status.enter(ImagePhase::Ready, Timestamp::UNIX_EPOCH);
        assert_eq!(status.conditions[0].status, "True");
    }
}
