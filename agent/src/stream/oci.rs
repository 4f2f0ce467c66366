//! Artifacts of an OCI registry: from the name that a person gives, by the manifest and perhaps an
//! index before it, to the one layer that is the file. Pure: what to ask for, and what the answers
//! mean.

use ferrite_proto::digest::{Algorithm, Digest};
use ferrite_proto::image::ImageRef;
use ferrite_proto::oci::OciRef;
use serde::Deserialize;
use sha2::{Digest as _, Sha256, Sha512};

/// What is asked for, in the order of the answer's use.
pub(super) const MANIFESTS: &str = "application/vnd.oci.image.manifest.v1+json, \
     application/vnd.oci.image.index.v1+json, \
     application/vnd.docker.distribution.manifest.v2+json, \
     application/vnd.docker.distribution.manifest.list.v2+json";
/// Longest manifest: registries take none that is longer (distribution spec 1.1).
pub(super) const LONGEST: usize = 4 << 20;
/// After a blob's name; no person can write it, because such a name is refused.
const BLOB: &str = "#blob";

/// Why there is no file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum BadArtifact {
    #[error("the registry's manifest has the digest {found}, not {wanted}")]
    OtherDigest { found: String, wanted: String },
    #[error("the registry's manifest cannot be read: {0}")]
    Form(String),
    #[error("it has {0} layers, and an image has one: publish it with `oras push`")]
    Layers(usize),
    #[error("its index has {0} manifests for {1}, and not one")]
    Manifests(usize, &'static str),
    #[error("its index leads to another index")]
    TooDeep,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Manifest {
    schema_version: u32,
    #[serde(default)]
    layers: Vec<Descriptor>,
    #[serde(default)]
    manifests: Vec<Descriptor>,
}

#[derive(Debug, Deserialize)]
struct Descriptor {
    digest: Digest,
    platform: Option<Platform>,
}

#[derive(Debug, Deserialize)]
struct Platform {
    architecture: String,
}

/// What a manifest leads to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Leads {
    ToFile(Digest),
    ToManifest(Digest),
}

/// Reads a manifest that is vouched for by `digest`, if anything does.
pub(super) fn read(text: &[u8], digest: Option<&Digest>) -> Result<Leads, BadArtifact> {
    if let Some(wanted) = digest {
        let found = digest_like(wanted, text);
        if found.as_ref() != Some(wanted) {
            return Err(BadArtifact::OtherDigest {
                found: found.map_or_else(String::new, |found| found.to_string()),
                wanted: wanted.to_string(),
            });
        }
    }
    let form = |why: String| BadArtifact::Form(why);
    let manifest: Manifest =
        serde_json::from_slice(text).map_err(|error| form(error.to_string()))?;
    if manifest.schema_version != 2 {
        return Err(form("its schema is not version 2".to_owned()));
    }
    match (manifest.layers.as_slice(), manifest.manifests.as_slice()) {
        ([], []) => Err(BadArtifact::Layers(0)),
        ([only], []) => Ok(Leads::ToFile(only.digest.clone())),
        ([], [only]) => Ok(Leads::ToManifest(only.digest.clone())),
        ([], several) => ours(several).map(Leads::ToManifest),
        (layers, _) => Err(BadArtifact::Layers(layers.len())),
    }
}

/// Of several manifests the one for this machine.
fn ours(manifests: &[Descriptor]) -> Result<Digest, BadArtifact> {
    let here = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let fits = |descriptor: &&Descriptor| {
        let platform = descriptor.platform.as_ref();
        platform.is_some_and(|platform| platform.architecture == here)
    };
    let fitting: Vec<&Descriptor> = manifests.iter().filter(fits).collect();
    match fitting.as_slice() {
        [only] => Ok(only.digest.clone()),
        several => Err(BadArtifact::Manifests(several.len(), here)),
    }
}

fn digest_like(wanted: &Digest, bytes: &[u8]) -> Option<Digest> {
    let found = match wanted.algorithm() {
        Algorithm::Sha256 => Sha256::digest(bytes).to_vec(),
        Algorithm::Sha512 => Sha512::digest(bytes).to_vec(),
        Algorithm::Blake3 => return None,
    };
    Digest::new(wanted.algorithm(), found).ok()
}

/// The image that the layer is: its URL says so to [`blob_of`].
pub(super) fn image_of(image: &ImageRef, named: &OciRef, layer: &Digest) -> ImageRef {
    let blob = OciRef {
        tag: None,
        digest: Some(layer.clone()),
        ..named.clone()
    };
    ImageRef {
        url: format!("{blob}{BLOB}"),
        ..image.clone()
    }
}

/// The URL of a layer in the registry's API, and its name, if that is what a URL means.
pub(super) fn blob_of(url: &str) -> Option<(String, String)> {
    let named = OciRef::parse(url.strip_suffix(BLOB)?).ok()?;
    let digest = named.digest.as_ref()?.to_string();
    Some((named.at("blobs", &digest), named.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sha256(byte: &str) -> String {
        format!("sha256:{}", byte.repeat(32))
    }

    fn read_unvouched(value: &serde_json::Value) -> Result<Leads, BadArtifact> {
        read(value.to_string().as_bytes(), None)
    }

    #[test]
    fn a_manifest_leads_to_its_one_layer() {
        let layer = |digest: &str| serde_json::json!({"digest": digest, "size": 1});
        let one = serde_json::json!({
            "schemaVersion": 2,
            "artifactType": "application/vnd.example",
            "config": {"digest": sha256("00")},
            "layers": [layer(&sha256("aa"))],
        });
        let file = sha256("aa").parse().unwrap();
        assert_eq!(read_unvouched(&one), Ok(Leads::ToFile(file)));
        let two = serde_json::json!({
            "schemaVersion": 2,
            "layers": [layer(&sha256("aa")), layer(&sha256("bb"))],
        });
        assert_eq!(read_unvouched(&two), Err(BadArtifact::Layers(2)));
        let weak = serde_json::json!({"schemaVersion": 2, "layers": [layer("md5:00")]});
        assert!(matches!(read_unvouched(&weak), Err(BadArtifact::Form(_))));
        let none = serde_json::json!({"schemaVersion": 2});
        assert_eq!(read_unvouched(&none), Err(BadArtifact::Layers(0)));
        let old = serde_json::json!({"schemaVersion": 1});
        assert!(matches!(read_unvouched(&old), Err(BadArtifact::Form(_))));
    }

    #[test]
    fn an_index_leads_to_the_manifest_for_this_machine() {
        let ours = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            _ => "arm64",
        };
        let entry = |digest: String, architecture: &str| {
            serde_json::json!({
                "digest": digest,
                "platform": {"architecture": architecture, "os": "linux"},
            })
        };
        let manifest = sha256("bb").parse().unwrap();
        let index = serde_json::json!({
            "schemaVersion": 2,
            "manifests": [entry(sha256("aa"), "s390x"), entry(sha256("bb"), ours)],
        });
        assert_eq!(read_unvouched(&index), Ok(Leads::ToManifest(manifest)));
        let foreign = serde_json::json!({
            "schemaVersion": 2,
            "manifests": [entry(sha256("aa"), "s390x"), entry(sha256("bb"), "riscv64")],
        });
        let found = read_unvouched(&foreign);
        assert!(matches!(found, Err(BadArtifact::Manifests(0, _))));
    }

    #[test]
    fn a_manifest_that_nobody_vouches_for_is_not_read() {
        let wanted: Digest = sha256("aa").parse().unwrap();
        let read = read(b"{\"schemaVersion\": 2}", Some(&wanted));
        assert!(matches!(read, Err(BadArtifact::OtherDigest { .. })));
    }
}
