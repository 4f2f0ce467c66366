//! What images, profiles and clusters mean to a host, and what they must be to mean it.
//!
//! A host's `spec.image_name` and `spec.profile` are looked up when the host is written. What they
//! stand for at that time is stored with the host: changing an image or a profile afterwards
//! changes no host until it is written again.

use ferrite_proto::catalog::{Image, Profile, ProfileSpec};
use ferrite_proto::cluster::{Cluster, Tenant};
use ferrite_proto::host::{Host, HostManifest, HostSpec};
use ferrite_proto::image::ImageRef;
use ferrite_proto::merge;
use ferrite_proto::named_image::ImageSpec;
use ferrite_proto::problem::{Code, Problem};
use ferrite_proto::resource::ApiVersion;
use serde::Deserialize;
use serde_json::{Value, json};

use super::App;
use super::error::Failure;
use super::resources::Resource;
use crate::cluster::kubeconfig::Kubeconfig;
use crate::lifecycle::intent;

/// Fields that are each host's own.
pub(super) const NOT_IN_PROFILES: [&str; 3] = ["bmc", "boot_mac", "profile"];

/// Fills in what the manifest leaves to a profile and to an image's name.
pub(crate) fn resolve(app: &App, whole: &mut Value, before: Option<&Host>) -> Result<(), Failure> {
    let names = ["profile", "image_name"];
    if names.iter().any(|field| text(whole, field).is_some()) {
        // What is no manifest is not looked at for names.
        super::body::read_value::<HostManifest>(whole.clone())?;
    }
    take_profile(app, whole)?;
    Ok(take_image(app, whole, before)?)
}

fn text(whole: &Value, field: &str) -> Option<String> {
    whole["spec"][field].as_str().map(str::to_owned)
}

fn take_profile(app: &App, whole: &mut Value) -> Result<(), Problem> {
    if let Some(name) = text(whole, "profile") {
        let profile = named::<Profile>(app, &name, "profile")?;
        let mut spec = profile["defaults"].clone();
        merge::apply(&mut spec, &whole["spec"]);
        whole["spec"] = spec;
    }
    Ok(())
}

/// What a host's manifest is with a patch. Secrets cannot be read: those of the patch are all. A
/// profile counts only where the patch names it: what the host has taken from it once is its own.
pub(crate) fn patched(app: &App, host: &Host, patch: &Value) -> Result<Value, Problem> {
    let mut whole = json!({
        "apiVersion": ApiVersion::V1,
        "kind": "Host",
        "metadata": {
            "name": host.name, "project": host.project,
            "labels": host.labels, "annotations": host.annotations,
        },
        "spec": host.spec,
    });
    let names = |field: &str| patch["spec"].get(field).is_some();
    // What a name stands for goes with the name, and a name with what it stood for.
    if let Some(spec) = whole["spec"].as_object_mut() {
        if names("image_name") && !names("image") && host.spec.image_name.is_some() {
            spec.remove("image");
        } else if names("image") && !names("image_name") {
            spec.remove("image_name");
        }
    }
    merge::apply(&mut whole, patch);
    if names("profile") {
        take_profile(app, &mut whole)?;
    }
    take_image(app, &mut whole, Some(host))?;
    Ok(whole)
}

fn take_image(app: &App, whole: &mut Value, before: Option<&Host>) -> Result<(), Problem> {
    let Some(name) = text(whole, "image_name") else {
        return Ok(());
    };
    let stored = before.map(|host| &host.spec);
    let stored = stored.filter(|spec| spec.image_name.as_ref() == Some(&name));
    let kept = stored.and_then(|spec| serde_json::to_value(spec.image.as_ref()?).ok());
    let given = &whole["spec"]["image"];
    if !given.is_null() && kept.as_ref() == Some(given) {
        return Ok(());
    }
    let image = json!(image_of(app, &name)?);
    if !given.is_null() && *given != image {
        return Err(invalid(
            format!("spec.image is not what image {name:?} stands for"),
            "give one of spec.image and spec.image_name",
        ));
    }
    whole["spec"]["image"] = image;
    Ok(())
}

/// What an image's name stands for now.
pub(super) fn image_of(app: &App, name: &str) -> Result<ImageRef, Problem> {
    let image = named::<Image>(app, name, "image_name")?;
    let image = ImageSpec::deserialize(image).map(|spec| spec.source());
    image.map_err(|error| {
        let what = format!("spec.image_name: image {name:?} cannot be read: {error}");
        invalid(what, "write the image anew")
    })
}

fn named<R: Resource>(app: &App, name: &str, field: &str) -> Result<Value, Problem> {
    intent::check_name(name)?;
    let found = app.hosts.documents().get(R::KIND, name);
    let found = found.ok_or_else(|| {
        let kind = R::KIND.to_ascii_lowercase();
        Problem::new(
            Code::ReferenceMissing,
            format!("spec.{field}: there is no {kind} {name:?}"),
            format!("GET /v1/{kind}s names all"),
        )
    })?;
    Ok(found.body["spec"].clone())
}

fn invalid(what: impl Into<String>, advice: impl Into<String>) -> Problem {
    Problem::new(Code::RequestInvalid, what, advice)
}

/// Whether an image can be used.
pub(crate) fn check_image(spec: &ImageSpec) -> Result<(), Problem> {
    let checked = spec.validate();
    checked.map_err(|error| invalid(format!("spec: {error}"), "correct the image"))
}

/// Whether its defaults are fields of a host.
pub(crate) fn check_profile(spec: &ProfileSpec) -> Result<(), Problem> {
    let own = NOT_IN_PROFILES
        .iter()
        .find(|field| spec.defaults.contains_key(**field));
    if let Some(field) = own {
        return Err(invalid(
            format!("spec.defaults.{field} is each host's own"),
            "leave it out",
        ));
    }
    let mut whole = json!({"bmc": {"address": "redfish://x", "username": "x"}});
    merge::apply(&mut whole, &Value::Object(spec.defaults.clone()));
    let read = super::body::read_value::<HostSpec>(whole).map_err(|refused| {
        let problem = Problem::from(refused);
        invalid(format!("spec.defaults.{}", problem.message), problem.advice)
    })?;
    intent::check_values(&read)
}

/// Whether its endpoint, its CA and its kubeconfig can be used.
pub(crate) fn check_cluster(cluster: &Cluster) -> Result<(), Problem> {
    let spec = &cluster.spec;
    let is_place = |url: &String| url.len() <= 512 && crate::cluster::origin(url).is_some();
    if !spec.endpoint.as_ref().is_none_or(is_place) {
        return Err(invalid(
            "spec.endpoint is not https://HOST:PORT",
            "give the API server's address alone",
        ));
    }
    let ca = spec.ca.as_deref();
    ca.map_or(Ok(()), crate::cluster::check_authorities)
        .map_err(|what| {
            invalid(
                format!("spec.ca {what}"),
                "give certificates as PEM; they are in the cluster's kubeconfig",
            )
        })?;
    if let Some(Tenant { namespace, name }) = &spec.tenant {
        for (field, value) in [("namespace", namespace), ("name", name)] {
            intent::check_name(value).map_err(|problem| {
                let text = format!("spec.tenant.{field}: {}", problem.message);
                invalid(text, problem.advice)
            })?;
        }
    }
    if let Some(kubeconfig) = &cluster.secrets.kubeconfig {
        Kubeconfig::parse(kubeconfig.expose()).map_err(|what| {
            invalid(
                format!("secrets.kubeconfig {what}"),
                "give what `kubectl config view --raw --flatten --minify` prints, of a user with a \
                 token or a client certificate",
            )
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Map;

    fn profile(defaults: &Value) -> Result<(), Problem> {
        let defaults: Map<_, _> = defaults.as_object().cloned().unwrap_or_default();
        let description = None;
        check_profile(&ProfileSpec {
            description,
            defaults,
        })
    }

    #[test]
    fn a_profile_holds_fields_of_hosts_and_none_of_their_own() {
        profile(&json!({"boot_mode": "bios", "root_device_hints": {"rotational": false}})).unwrap();
        let refused = profile(&json!({"bot_mode": "bios"})).unwrap_err();
        assert!(refused.message.contains("bot_mode"), "{refused}");
        assert_eq!(refused.advice, "did you mean `boot_mode`?");
        assert!(profile(&json!({"boot_mac": "52:54:00:00:00:01"})).is_err());
        assert!(profile(&json!({"boot_mode": 7})).is_err());
    }

    #[test]
    fn a_cluster_has_an_address_and_a_certificate() {
        let key = rcgen::generate_simple_self_signed(["c".to_owned()]).unwrap();
        let spec = |endpoint: &str, ca: &str| {
            let whole = json!({
                "apiVersion": "ferrite/v1", "kind": "Cluster", "metadata": {"name": "c"},
                "spec": {"endpoint": endpoint, "ca": ca},
            });
            serde_json::from_value::<Cluster>(whole).unwrap()
        };
        let pem = key.cert.pem();
        check_cluster(&spec("https://c:6443", &pem)).unwrap();
        for bad in [
            "http://c",
            "https://",
            "https://u@c",
            "c:6443",
            "https://c/x",
        ] {
            assert!(check_cluster(&spec(bad, &pem)).is_err(), "{bad}");
        }
        assert!(check_cluster(&spec("https://c", "")).is_err());
        let with_key = format!("{pem}{}", key.signing_key.serialize_pem());
        assert!(check_cluster(&spec("https://c", &with_key)).is_err());
    }
}
