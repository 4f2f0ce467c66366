//! What holds of a value beyond its type, said in the schemas: who checks a body by the document
//! alone comes to the same answer as the conductor.
//!
//! A `format` of our own stands where JSON Schema has no words for a rule; the pattern beside it
//! says as much as can be said. Not here: what depends on what is stored.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::access::registry;
use crate::api::{access as calls, catalog as resources};
use crate::lifecycle::operate;

/// A name: of a host, a project, a token.
pub(super) const NAME: &str = "^[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?$";
/// One line that can be shown.
const LINE: &str = r"^[^\x00-\x1f\x7f-\x9f]*$";
/// The same, and not blank.
const KEY_LINE: &str = r"^[^\x00-\x1f\x7f-\x9f]*[^\s\x00-\x1f\x7f-\x9f][^\x00-\x1f\x7f-\x9f]*$";
/// A label's key: as Kubernetes has it.
const KEY: &str = "^([A-Za-z0-9]([A-Za-z0-9._-]{0,251}[A-Za-z0-9])?/)?\
                   [A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$";
/// Where a page begins: a name, or nothing.
pub(super) const PLACE: &str = "^([a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?)?$";
/// Conditions on labels, with no more than their letters.
pub(super) const LABELS: &str = r"^[A-Za-z0-9._/=!(), -]*$";
/// Conditions on fields.
pub(super) const FIELDS: &str =
    r"^( *(metadata|spec|status)\.[A-Za-z0-9_.]+ *!?={1,2}[^,()]*(,|$))*$";
/// An image's URL. What ends like a number is an IPv4 address, in its usual form, and one that
/// other machines have.
const IMAGE: &str = concat!(
    "^https?://(",
    r"(?!([^/?#:]*\.)?([0-9]+|0[xX][0-9A-Fa-f]*)\.?([/?#:]|$))",
    r"[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*\.?",
    r"|(?!(0|127)\.|169\.254\.)(22[0-3]|2[01][0-9]|1[0-9]{2}|[1-9]?[0-9])",
    r"(\.(25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])){3}",
    r"|\[[0-9A-Fa-f:.]{2,45}\])",
    "(:([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5]))?",
    r"([/?#][^\s\\\x00-\x1f\x7f-\x9f]*)?$",
);
/// An artifact of a registry, by its digest.
const ARTIFACT: &str = concat!(
    r"^oci(\+http)?://[a-z0-9]([a-z0-9.-]{0,60}[a-z0-9])?(:[1-9][0-9]{0,3})?",
    r"(/[a-z0-9]+([._-][a-z0-9]+)*){1,8}(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?",
    "@sha256:[0-9a-f]{64}$",
);
/// A file that people give.
const UPLOAD: &str = "^upload://[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?$";
/// minisign's public key.
const PUBLIC_KEY: &str = "^RW[A-Za-z0-9+/]{54}$";
/// A label's value.
const VALUE: &str = "^([A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?$";

/// Adds the rules to the schemas. Those of places that are not there are returned.
pub(super) fn state(schemas: &mut BTreeMap<String, Value>) -> Vec<Rule> {
    let all = [
        names(),
        hosts(),
        images(),
        catalog(),
        operations(),
        access(),
    ]
    .concat();
    let mut missed = add(schemas, all);
    missed.extend(add_variants(schemas));
    let defaults = schemas.get("HostSpec").map(profile_defaults);
    let defaults = rule("ProfileSpec", "/properties/defaults", defaults.into());
    missed.extend(add(schemas, vec![defaults]));
    schemas.values_mut().for_each(bound_integers);
    missed
}

/// Types of which a call takes less, or wants more, than another.
fn add_variants(schemas: &mut BTreeMap<String, Value>) -> Vec<Rule> {
    let variants = [
        ("Metadata", "SharedMetadata"),
        ("HostSecrets", "NewHostSecrets"),
        ("HostSecrets", "CloudInitData"),
    ];
    for (of, variant) in variants {
        let schema = schemas.get(of).cloned().unwrap_or_default();
        schemas.insert(variant.into(), schema);
    }
    let is = |variant: &str| json!({"$ref": format!("#/components/schemas/{variant}")});
    let password = json!({"bmc_password": is("Secret_String")});
    let rules = vec![
        rule("Image", "/properties/metadata", is("SharedMetadata")),
        rule("NewImage", "/properties/metadata", is("SharedMetadata")),
        rule("Profile", "/properties/metadata", is("SharedMetadata")),
        rule("Cluster", "/properties/metadata", is("SharedMetadata")),
        rule(
            "SharedMetadata",
            "/properties/project",
            json!({"type": "null"}),
        ),
        rule("NewHost", "/properties/secrets", is("NewHostSecrets")),
        rule(
            "NewHost",
            "",
            json!({"required": ["apiVersion", "kind", "metadata", "spec", "secrets"]}),
        ),
        rule("NewHostSecrets", "", json!({"required": ["bmc_password"]})),
        rule("NewHostSecrets", "/properties", password),
        rule("Provision", "/properties/secrets", is("CloudInitData")),
        rule(
            "CloudInitData",
            "/properties",
            json!({"bmc_password": {"type": "null"}}),
        ),
    ];
    add(schemas, rules)
}

fn add(schemas: &mut BTreeMap<String, Value>, rules: Vec<Rule>) -> Vec<Rule> {
    let mut missed = Vec::new();
    for rule in rules {
        let schema = schemas.get_mut(rule.schema);
        let place = schema.and_then(|schema| schema.pointer_mut(rule.place));
        match (place, &rule.says) {
            (Some(Value::Object(place)), Value::Object(says)) => place.extend(says.clone()),
            _ => missed.push(rule),
        }
    }
    missed
}

/// What is added to a schema.
#[derive(Debug, Clone)]
pub(super) struct Rule {
    schema: &'static str,
    /// A JSON pointer within it.
    place: &'static str,
    says: Value,
}

const fn rule(schema: &'static str, place: &'static str, says: Value) -> Rule {
    Rule {
        schema,
        place,
        says,
    }
}

fn name() -> Value {
    json!({"minLength": 1, "maxLength": 63, "pattern": NAME})
}

/// By itself or by its name.
fn one_image() -> Value {
    let (image, name) = (json!({"type": "object"}), json!({"type": "string"}));
    let none = json!({"type": "null"});
    json!({"oneOf": [
        {"required": ["image"], "properties": {"image": image, "image_name": none}},
        {"required": ["image_name"], "properties": {"image": none, "image_name": name}},
    ]})
}

/// A status in what is given.
fn sent_back() -> Value {
    json!({"status": {"description": "May be sent back as it was read; ignored."}})
}

fn names() -> Vec<Rule> {
    let labels = json!({
        "propertyNames": {"type": "string", "pattern": KEY},
        "additionalProperties": {"type": "string", "maxLength": 63, "pattern": VALUE},
    });
    let annotations = json!({"propertyNames": {"type": "string", "pattern": KEY}});
    let mut node_labels = labels.clone();
    node_labels["maxProperties"] = json!(64);
    let value = json!({"maxLength": 63, "pattern": VALUE});
    vec![
        rule("JoinSpec", "/properties/cluster", name()),
        rule("RollRequest", "/properties/image_name", name()),
        rule("RollRequest", "", one_image()),
        rule("JoinSpec", "/properties/node_labels", node_labels),
        rule(
            "JoinSpec",
            "/properties/node_taints",
            json!({"maxItems": 64}),
        ),
        rule("NodeTaint", "/properties/key", json!({"pattern": KEY})),
        rule("NodeTaint", "/properties/value", value),
        rule("Metadata", "/properties/name", name()),
        rule("Metadata", "/properties/project", name()),
        rule("Metadata", "/properties/labels", labels),
        rule("Metadata", "/properties/annotations", annotations),
    ]
}

fn hosts() -> Vec<Rule> {
    let address = json!({"format": "bmc-address",
        "pattern": r"^redfish(-virtualmedia)?(\+https?)?://[^/?#@\s][^?#@\s]*$"});
    // Over PXE a host is known by its MAC; how it boots may be said by its profile.
    let reachable = json!({"anyOf": [
        {"required": ["boot_mac"], "properties": {"boot_mac": {"type": "string"}}},
        {"required": ["boot_via"], "properties": {"boot_via": {"const": "virtual-media"}}},
        {"required": ["profile"], "properties": {"profile": {"type": "string"}}},
        {"required": ["externally_provisioned"],
            "properties": {"externally_provisioned": {"const": true}}},
    ], "not": {
        "required": ["externally_provisioned", "image"],
        "properties": {"externally_provisioned": {"const": true}, "image": {"type": "object"}},
    }});
    let bytes = json!({"maximum": u64::MAX});
    vec![
        rule("HostManifest", "/properties", sent_back()),
        rule("NewHost", "/properties", sent_back()),
        rule("BmcSpec", "/properties/address", address),
        rule("HostSpec", "", reachable),
        rule("HostSpec", "/properties/image_name", name()),
        rule("HostSpec", "/properties/profile", name()),
        rule("HostSpec", "/properties/group", name()),
        rule(
            "HostSpec",
            "/properties/priority",
            json!({"minimum": -1000, "maximum": 1000}),
        ),
        rule(
            "Hold",
            "/properties/reason",
            json!({"maxLength": 500, "pattern": LINE}),
        ),
        rule(
            "HostSecrets",
            "/properties/network_data",
            json!({"format": "json"}),
        ),
        rule("ByteSize", "/oneOf/0", bytes),
    ]
}

fn images() -> Vec<Rule> {
    let mut all = [image("ImageRef"), image("ImageSpec")].concat();
    all.push(rule("NewImage", "/properties", sent_back()));
    all.push(rule(
        "ImageSpec",
        "",
        json!({"not": {"anyOf": not_packed()}}),
    ));
    all
}

/// What both have in common.
fn image(of: &'static str) -> Vec<Rule> {
    let url = || json!({"format": "image-url", "pattern": IMAGE});
    let any = format!("{IMAGE}|{ARTIFACT}|{UPLOAD}");
    let any = json!({"format": "image-url", "pattern": any});
    vec![
        rule(of, "/properties/url", any),
        rule(of, "/properties/mirrors", json!({"maxItems": 8})),
        rule(of, "/properties/mirrors/items", url()),
        rule(of, "/properties/digest_url", url()),
        rule(of, "/properties/signed_by", json!({"pattern": PUBLIC_KEY})),
        rule(of, "", vouched()),
    ]
}

/// What the conductor does not pack, and what it must.
fn not_packed() -> Vec<Value> {
    let packs = |field: &str, of: Value| {
        let mut properties = serde_json::Map::new();
        properties.insert("pack".to_owned(), json!({"const": true}));
        properties.insert(field.to_owned(), of);
        json!({"required": ["pack", field], "properties": properties})
    };
    vec![
        packs("format", json!({"const": "packed"})),
        packs("digest_url", json!({"type": "string"})),
        packs("url", json!({"pattern": "^oci"})),
        json!({
            "required": ["url"],
            "properties": {"url": {"pattern": UPLOAD}, "pack": {"const": false}},
        }),
    ]
}

/// Nothing is written that nothing vouches for, unless a person says so. Of a packed image a
/// digest is that of its index, which stands in no file of digests; no other has a signature.
fn vouched() -> Value {
    let by = |packed: bool, field: &str, of: Value, none: &[&str]| {
        let mut properties = serde_json::Map::new();
        let format = if packed {
            json!({"const": "packed"})
        } else {
            json!({"enum": ["raw", "qcow2"]})
        };
        properties.insert("format".to_owned(), format);
        properties.insert(field.to_owned(), of);
        for none in none {
            properties.insert((*none).to_owned(), json!({"type": "null"}));
        }
        let required = if packed {
            vec!["format", field]
        } else {
            vec![field]
        };
        json!({"required": required, "properties": properties})
    };
    let text = || json!({"type": "string"});
    let yes = || json!({"const": true});
    json!({"anyOf": [
        by(false, "digest", text(), &["digest_url", "signed_by"]),
        by(false, "digest_url", text(), &["digest", "signed_by"]),
        by(false, "allow_unverified", yes(), &["digest_url", "signed_by"]),
        by(false, "url", json!({"pattern": format!("{ARTIFACT}|{UPLOAD}")}),
            &["digest_url", "signed_by"]),
        by(true, "digest", text(), &["digest_url"]),
        by(true, "signed_by", text(), &["digest_url"]),
        by(true, "allow_unverified", yes(), &["digest_url"]),
    ]})
}

fn catalog() -> Vec<Rule> {
    let endpoint = json!({"format": "https-origin",
        "pattern": r"^https://[^/?#@\\\s]+/?$"});
    vec![
        rule("ClusterSpec", "/properties/endpoint", endpoint),
        rule("Tenant", "/properties/namespace", name()),
        rule("Tenant", "/properties/name", name()),
        rule(
            "ClusterSecrets",
            "/properties/kubeconfig",
            json!({"oneOf": [{"type": "null"}, {"type": "string", "format": "kubeconfig"}]}),
        ),
        rule(
            "ClusterSpec",
            "/properties/ca",
            json!({"format": "certificates-pem"}),
        ),
    ]
}

fn operations() -> Vec<Rule> {
    let closed = || json!({"additionalProperties": false});
    let key = json!({"type": "string", "maxLength": operate::KEY_CHARS, "pattern": KEY_LINE});
    let keys = json!({"maxItems": operate::MOST_KEYS, "items": key});
    let steps = || json!({"minItems": 1, "maxItems": operate::MOST_STEPS});
    vec![
        rule("Clean", "/properties/steps", steps()),
        rule("Service", "/properties/steps", steps()),
        rule("CleanStep", "/oneOf/0", closed()),
        rule("CleanStep", "/oneOf/1", closed()),
        rule("ServiceStep", "/oneOf/0", closed()),
        rule("ServiceStep", "/oneOf/1", closed()),
        rule("Rescue", "/properties/authorized_keys", keys),
    ]
}

fn access() -> Vec<Rule> {
    let some = || json!({"minItems": 1, "maxItems": registry::MOST_GRANTS});
    let not_the_first = || {
        json!({"minLength": 1, "maxLength": 63, "pattern": NAME,
        "not": {"const": "admin"}})
    };
    vec![
        rule("Grant", "/properties/project", name()),
        rule("NewToken", "/properties/name", not_the_first()),
        rule("NewToken", "/properties/grants", some()),
        rule(
            "NewToken",
            "/properties/expires_seconds",
            json!({"minimum": 1, "maximum": registry::LONGEST}),
        ),
        rule("NewCertificate", "/properties/name", not_the_first()),
        rule("NewCertificate", "/properties/grants", some()),
        rule(
            "NewCertificate",
            "/properties/days",
            json!({"minimum": 1, "maximum": calls::MOST_DAYS}),
        ),
        rule(
            "NewCertificate",
            "/properties/csr",
            json!({"format": "pkcs10-pem"}),
        ),
        rule("Grants", "/properties/grants", some()),
    ]
}

/// What a profile may say: what a host may, but for what is each host's own.
fn profile_defaults(spec: &Value) -> Value {
    let mut fields = spec["properties"].as_object().cloned().unwrap_or_default();
    fields.retain(|field, _| !resources::NOT_IN_PROFILES.contains(&field.as_str()));
    json!({"properties": fields, "additionalProperties": false, "not": spec["not"]})
}

/// An integer ends where its type ends.
fn bound_integers(schema: &mut Value) {
    if let Value::Object(object) = schema {
        let unsigned = object.get("minimum").and_then(Value::as_u64).is_some();
        let (least, most) = match (object.get("format").and_then(Value::as_str), unsigned) {
            (Some("int32"), true) => (json!(0), json!(u32::MAX)),
            (Some("int32"), false) => (json!(i32::MIN), json!(i32::MAX)),
            (Some("int64"), true) => (json!(0), json!(u64::MAX)),
            (Some("int64"), false) => (json!(i64::MIN), json!(i64::MAX)),
            _ => return object.values_mut().for_each(bound_integers),
        };
        object.entry("minimum").or_insert(least);
        object.entry("maximum").or_insert(most);
    } else if let Value::Array(all) = schema {
        all.iter_mut().for_each(bound_integers);
    }
}
