//! Which image a host is given: the one that its `spec` says, or the packed form of it that the
//! conductor keeps. Pure.

use ferrite_proto::host::HostSpec;
use ferrite_proto::image::{Format, ImageRef};
use ferrite_proto::named_image::{ImagePhase, ImageSpec, ImageStatus};

use super::record::Record;

/// Which one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// The one that `spec` says; the host fetches it itself.
    #[default]
    AsItIs,
    /// The packed form of it.
    Kept(Box<ImageRef>),
    /// None yet: what the host waits for.
    NotYet(String),
}

/// A named image as it is stored.
#[derive(Debug, Clone)]
pub(crate) struct Named {
    /// What it is made of.
    pub(crate) spec: ImageSpec,
    /// How far it is.
    pub(crate) status: Option<ImageStatus>,
}

/// The name that an image of a host goes by, if it has one.
pub(crate) fn name_of(spec: &HostSpec) -> Option<&str> {
    let image = spec.image.as_ref()?;
    spec.image_name.as_deref().or_else(|| image.uploaded())
}

/// Which image the host is given, if `named` is what its image's name stands for now.
pub(crate) fn wanted(record: &Record, named: Option<&Named>) -> Wanted {
    let spec = &record.host.spec;
    let (Some(image), Some(name)) = (&spec.image, name_of(spec)) else {
        return Wanted::AsItIs;
    };
    let same = |named: &&Named| named.spec.pack && named.spec.source() == *image;
    if let Some(named) = named.filter(same) {
        return packed(name, named.status.as_ref());
    }
    // The name stands for something else by now, or for nothing: what the host was given once is
    // kept for it.
    let before = record.run.deployment.as_ref();
    let before = before.filter(|before| before.image == *image);
    match before.and_then(|before| before.kept.clone()) {
        Some(kept) => Wanted::Kept(Box::new(kept)),
        None if image.uploaded().is_some() => {
            Wanted::NotYet(format!("image {name}, which is there no longer"))
        }
        None => Wanted::AsItIs,
    }
}

fn packed(name: &str, status: Option<&ImageStatus>) -> Wanted {
    let Some(status) = status else {
        return Wanted::NotYet(format!("image {name}"));
    };
    match (status.phase, &status.url, &status.digest, &status.problem) {
        (ImagePhase::Ready, Some(url), Some(digest), _) => Wanted::Kept(Box::new(ImageRef {
            url: url.clone(),
            mirrors: Vec::new(),
            digest: Some(digest.clone()),
            digest_url: None,
            raw_digest: None,
            signed_by: status.signed_by.clone(),
            format: Format::Packed,
            compression: None,
            allow_unverified: false,
        })),
        (ImagePhase::Failed, _, _, Some(problem)) => {
            Wanted::NotYet(format!("image {name}: {problem}"))
        }
        _ => Wanted::NotYet(format!("image {name}: {}", status.words())),
    }
}

#[cfg(test)]
mod tests {
    use ferrite_proto::problem::{Code, Problem};
    use jiff::Timestamp;
    use serde_json::json;

    use super::*;
    use crate::lifecycle::record::Deployment;

    fn record(url: &str) -> Record {
        let host = json!({
            "apiVersion": "ferrite/v1", "kind": "Host", "metadata": {"name": "a"},
            "spec": {
                "bmc": {"address": "redfish://b", "username": "u"},
                "boot_mac": "52:54:00:00:00:01",
            },
            "secrets": {"bmc_password": "p"},
        });
        let host = serde_json::from_value(host).unwrap();
        let now = Timestamp::UNIX_EPOCH;
        let added = crate::lifecycle::intent::enrol(host, "uid".to_owned(), now);
        let mut record = added.unwrap().record;
        let image = json!({"url": url, "allow_unverified": true});
        record.host.spec.image = serde_json::from_value(image).unwrap();
        record.host.spec.image_name = Some("debian".to_owned());
        record
    }

    fn named(url: &str, phase: ImagePhase) -> Named {
        let spec = json!({"url": url, "allow_unverified": true, "pack": true});
        let mut status = ImageStatus::new(1, Timestamp::UNIX_EPOCH);
        if phase == ImagePhase::Failed {
            status.problem = Some(Problem::new(Code::ImageStoreFull, "no room", "make some"));
        }
        status.enter(phase, Timestamp::UNIX_EPOCH);
        if phase == ImagePhase::Ready {
            status.url = Some("https://c/images/x.zst".to_owned());
            status.digest = format!("sha256:{}", "ab".repeat(32)).parse().ok();
        }
        Named {
            spec: serde_json::from_value(spec).unwrap(),
            status: Some(status),
        }
    }

    #[test]
    fn a_host_waits_for_its_image_by_name_and_is_given_the_packed_form() {
        let host = record("https://h/x.raw");
        let of = |phase| wanted(&host, Some(&named("https://h/x.raw", phase)));
        let waits = |text: &str| Wanted::NotYet(text.to_owned());
        assert_eq!(of(ImagePhase::Fetching), waits("image debian: Fetching"));
        let Wanted::NotYet(failed) = of(ImagePhase::Failed) else {
            panic!("it goes on")
        };
        assert!(failed.contains("no room"), "{failed}");
        let Wanted::Kept(kept) = of(ImagePhase::Ready) else {
            panic!("it waits")
        };
        assert_eq!(kept.format, Format::Packed);
        assert!(kept.validate().is_ok());
    }

    #[test]
    fn what_the_name_stands_for_now_is_not_what_the_host_was_promised() {
        let mut host = record("https://h/x.raw");
        let other = named("https://h/y.raw", ImagePhase::Ready);
        assert_eq!(wanted(&host, Some(&other)), Wanted::AsItIs);
        assert_eq!(wanted(&host, None), Wanted::AsItIs);
        let Wanted::Kept(kept) = wanted(&host, Some(&named("https://h/x.raw", ImagePhase::Ready)))
        else {
            panic!("it waits")
        };
        host.run.deployment = Some(Deployment {
            request: 1,
            image: host.host.spec.image.clone().unwrap(),
            kept: Some((*kept).clone()),
            root: ferrite_proto::step::RootDisk {
                hints: host.host.spec.root_device_hints.clone(),
                default: host.host.spec.root_device_default,
            },
            method: host.host.spec.boot_method,
            verify: false,
            booting_at: None,
        });
        assert_eq!(wanted(&host, None), Wanted::Kept(kept));
        let uploaded = record("upload://debian");
        assert!(matches!(wanted(&uploaded, None), Wanted::NotYet(_)));
    }
}
