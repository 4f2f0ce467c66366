//! Metal3's `BareMetalHost` and the `Secret` with its BMC's account, as hosts of ours. What the
//! host is to run is not taken over: it would be written at once.

use std::collections::BTreeMap;
use std::path::Path;

use base64::Engine;
use serde_json::{Map, Value, json};

use super::get::text;
use super::manifest::{self, Manifest};

/// Rows, and what is to be said of them.
type Taken = (Vec<Result<Manifest, String>>, Vec<String>);

/// Fields of a `BareMetalHost` that are taken over.
const TAKEN: [&str; 5] = [
    "bmc",
    "bootMACAddress",
    "bootMode",
    "rootDeviceHints",
    "automatedCleaningMode",
];

/// Root device hints, there and here.
const HINTS: [(&str, &str); 7] = [
    ("deviceName", "name"),
    ("hctl", "hctl"),
    ("model", "model"),
    ("vendor", "vendor"),
    ("serialNumber", "serial"),
    ("wwn", "wwn"),
    ("rotational", "rotational"),
];

/// The hosts of a file with `BareMetalHost`s; none when there is none in it.
pub(crate) fn hosts(source: &str, file: &Path) -> Option<Taken> {
    let documents: Vec<_> = manifest::values(source, file);
    let of_kind = |document: &Value, kind: &str| text(document, "/kind") == kind;
    let good = || {
        documents
            .iter()
            .filter_map(|document| document.as_ref().ok())
    };
    good().find(|(_, document)| of_kind(document, "BareMetalHost"))?;
    let secrets: BTreeMap<_, _> = good()
        .filter(|(_, document)| of_kind(document, "Secret"))
        .map(|(_, document)| (key(document, &text(document, "/metadata/name")), document))
        .collect();
    let mut rows = Vec::new();
    let mut notes = Vec::new();
    for document in &documents {
        match document {
            Err(problem) => rows.push(Err(problem.clone())),
            Ok((origin, one)) if of_kind(one, "BareMetalHost") => {
                rows.push(host(one, &secrets, origin).map_err(|why| format!("{origin}: {why}")));
                notes.extend(left_out(one).map(|what| format!("{origin}: {what}")));
            }
            Ok((_, one)) if of_kind(one, "Secret") => {}
            Ok((origin, one)) => {
                let kind = text(one, "/kind");
                notes.push(format!("{origin}: {kind:?} is not taken over"));
            }
        }
    }
    Some((rows, notes))
}

/// A secret is found by its name in the host's namespace.
fn key(document: &Value, name: &str) -> (String, String) {
    (text(document, "/metadata/namespace"), name.to_owned())
}

fn left_out(one: &Value) -> Option<String> {
    let spec = one.get("spec").and_then(Value::as_object)?;
    let left: Vec<_> = spec
        .keys()
        .filter(|field| !TAKEN.contains(&field.as_str()))
        .map(String::as_str)
        .collect();
    let name = text(one, "/metadata/name");
    (!left.is_empty()).then(|| format!("host/{name}: not taken over: {}", left.join(", ")))
}

fn host(
    one: &Value,
    secrets: &BTreeMap<(String, String), &Value>,
    origin: &str,
) -> Result<Manifest, String> {
    let name = text(one, "/metadata/name");
    let credentials = text(one, "/spec/bmc/credentialsName");
    let secret = secrets
        .get(&key(one, &credentials))
        .ok_or_else(|| format!("the Secret {credentials:?} of host/{name} is not in this file"))?;
    let mut spec = json!({
        "bmc": {"address": text(one, "/spec/bmc/address"), "username": entry(secret, "username")?},
        "root_device_hints": hints(one.pointer("/spec/rootDeviceHints"))?,
    });
    if one.pointer("/spec/bmc/disableCertificateVerification") == Some(&Value::Bool(true)) {
        spec["bmc"]["insecure_tls"] = json!(true);
    }
    if let Some(mac) = one.pointer("/spec/bootMACAddress") {
        spec["boot_mac"] = mac.clone();
    }
    if let Some(cleaning) = one.pointer("/spec/automatedCleaningMode") {
        spec["automated_cleaning"] = cleaning.clone();
    }
    match text(one, "/spec/bootMode").as_str() {
        "" | "UEFI" => {}
        "legacy" => spec["boot_mode"] = json!("bios"),
        other => return Err(format!("host/{name}: bootMode {other:?} is not supported")),
    }
    let address = text(one, "/spec/bmc/address");
    if address.contains("virtualmedia") {
        spec["boot_via"] = json!("virtual-media");
    }
    let mut metadata = Map::from_iter([("name".to_owned(), json!(name))]);
    if let Some(labels) = one.pointer("/metadata/labels") {
        metadata.insert("labels".to_owned(), labels.clone());
    }
    Ok(Manifest::host(
        origin.to_owned(),
        name,
        json!({
            "apiVersion": "ferrite/v1", "kind": "Host", "metadata": metadata, "spec": spec,
            "secrets": {"bmc_password": entry(secret, "password")?},
        }),
    ))
}

fn entry(secret: &Value, name: &str) -> Result<String, String> {
    if let Some(text) = secret.pointer(&format!("/stringData/{name}")) {
        return Ok(text.as_str().unwrap_or_default().to_owned());
    }
    let of = text(secret, "/metadata/name");
    let encoded = text(secret, &format!("/data/{name}"));
    let wrong = || format!("the Secret {of:?} has no {name}");
    let engine = base64::engine::general_purpose::STANDARD;
    let bytes = engine.decode(encoded.trim()).map_err(|_| wrong())?;
    let decoded = String::from_utf8(bytes).map_err(|_| wrong())?;
    // `echo secret | base64` has the end of the line in it; Metal3 takes it off, too.
    match decoded.trim_end_matches(['\r', '\n']) {
        "" => Err(wrong()),
        text => Ok(text.to_owned()),
    }
}

fn hints(given: Option<&Value>) -> Result<Value, String> {
    let mut hints = Map::new();
    for (name, value) in given.and_then(Value::as_object).into_iter().flatten() {
        if name == "minSizeGigabytes" {
            hints.insert("min_size".to_owned(), json!(format!("{value}GiB")));
            continue;
        }
        let found = HINTS.iter().find(|(theirs, _)| theirs == name);
        let (_, ours) = found.ok_or_else(|| format!("rootDeviceHints.{name} is not supported"))?;
        hints.insert((*ours).to_owned(), value.clone());
    }
    Ok(Value::Object(hints))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "\
apiVersion: v1
kind: Secret
metadata: {name: a-bmc, namespace: metal3}
data:
  username: cm9vdA==
  password: aHVudGVyMgo=
---
apiVersion: metal3.io/v1alpha1
kind: BareMetalHost
metadata: {name: a, namespace: metal3, labels: {rack: r1}}
spec:
  online: true
  bootMACAddress: 52:54:00:00:00:01
  bootMode: legacy
  bmc:
    address: redfish-virtualmedia+https://10.0.0.1/redfish/v1/Systems/1
    credentialsName: a-bmc
    disableCertificateVerification: true
  rootDeviceHints: {serialNumber: S1, minSizeGigabytes: 100}
";

    #[test]
    fn a_bare_metal_host_is_a_host() {
        let (rows, notes) = hosts(FILE, Path::new("h.yaml")).unwrap();
        let host = rows[0].clone().unwrap();
        assert_eq!(
            host.body["spec"],
            json!({
                "bmc": {"address": "redfish-virtualmedia+https://10.0.0.1/redfish/v1/Systems/1",
                        "username": "root", "insecure_tls": true},
                "boot_mac": "52:54:00:00:00:01", "boot_mode": "bios", "boot_via": "virtual-media",
                "root_device_hints": {"serial": "S1", "min_size": "100GiB"},
            })
        );
        assert_eq!(host.body["secrets"]["bmc_password"], "hunter2");
        assert_eq!(notes, ["h.yaml:8: host/a: not taken over: online"]);
    }

    #[test]
    fn what_is_missing_or_not_supported_is_told() {
        for (old, new, told) in [
            (
                "name: a-bmc,",
                "name: other,",
                "the Secret \"a-bmc\" of host/a",
            ),
            (
                "bootMode: legacy",
                "bootMode: UEFISecureBoot",
                "UEFISecureBoot",
            ),
            ("serialNumber", "colour", "rootDeviceHints.colour"),
            ("password: aHVudGVyMgo=", "password: '!'", "has no password"),
        ] {
            let (rows, _) = hosts(&FILE.replace(old, new), Path::new("h.yaml")).unwrap();
            let error = rows[0].clone().unwrap_err();
            assert!(error.contains(told), "{error}");
        }
        assert!(hosts("kind: Secret\n", Path::new("h.yaml")).is_none());
    }
}
