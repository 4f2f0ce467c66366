//! Hosts as resources: what `PUT` and `PATCH` take, change and refuse.

use serde_json::{Value, json};

use super::tests::{ADMIN, Conductor};

fn manifest(name: &str, nic: u8) -> Value {
    json!({
        "apiVersion": "ferrite/v1",
        "kind": "Host",
        "metadata": {"name": name, "labels": {"rack": "r1"}},
        "spec": {
            "bmc": {"address": format!("redfish://b{nic}"), "username": "u"},
            "boot_mac": format!("52:54:00:77:01:{nic:02x}"),
        },
        "secrets": {"bmc_password": "hunter2"},
    })
}

async fn code(conductor: &Conductor, method: &str, path: &str, body: &Value) -> (u16, String) {
    let (status, reply) = conductor.call(method, path, ADMIN, body).await;
    let code = reply["code"].as_str().unwrap_or_default().to_owned();
    (status, code)
}

#[tokio::test]
async fn put_makes_a_host_and_the_same_again_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let conductor = Conductor::start(dir.path()).await;
    let mut wanted = manifest("a", 1);
    let (status, made) = conductor.call("PUT", "/v1/hosts/a", ADMIN, &wanted).await;
    assert_eq!(status, 201, "{made}");
    assert_eq!(made["apiVersion"], "ferrite/v1");
    assert_eq!(made["metadata"]["project"], "default");
    assert_eq!(made["metadata"]["labels"]["rack"], "r1");
    assert!(made.get("secrets").is_none());
    let (status, same) = conductor.call("PUT", "/v1/hosts/a", ADMIN, &wanted).await;
    assert_eq!(status, 200, "{same}");
    assert_eq!(same["metadata"]["generation"], 1);
    wanted["spec"]["boot_mode"] = json!("bios");
    wanted["metadata"]["labels"] = json!({"rack": "r2"});
    let changed = conductor.admin("PUT", "/v1/hosts/a", wanted).await;
    assert_eq!(changed["metadata"]["generation"], 2);
    assert_eq!(changed["metadata"]["labels"], json!({"rack": "r2"}));
    let listed = conductor.admin("GET", "/v1/hosts", Value::Null).await;
    assert_eq!(listed["kind"], "HostList");
    assert_eq!(listed["items"][0]["spec"]["boot_mode"], "bios");
}

#[tokio::test]
async fn patch_changes_what_it_names() {
    let dir = tempfile::tempdir().unwrap();
    let conductor = Conductor::start(dir.path()).await;
    conductor.admin("POST", "/v1/hosts", manifest("a", 1)).await;
    let patch = json!({"metadata": {"labels": {"rack": null, "row": "7"}}});
    let changed = conductor.admin("PATCH", "/v1/hosts/a", patch).await;
    assert_eq!(changed["metadata"]["labels"], json!({"row": "7"}));
    assert_eq!(changed["metadata"]["generation"], 1);
    let patch = json!({"spec": {"bmc": {"username": "other"}}});
    let changed = conductor.admin("PATCH", "/v1/hosts/a", patch).await;
    assert_eq!(changed["spec"]["bmc"]["username"], "other");
    assert_eq!(changed["spec"]["bmc"]["address"], "redfish://b1");
    assert_eq!(changed["metadata"]["generation"], 2);
}

#[tokio::test]
async fn what_was_read_by_somebody_else_meanwhile_is_not_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    let conductor = Conductor::start(dir.path()).await;
    conductor.admin("POST", "/v1/hosts", manifest("a", 1)).await;
    let stale = json!({"metadata": {"resourceVersion": "987654"}});
    let (status, said) = code(&conductor, "PATCH", "/v1/hosts/a", &stale).await;
    assert_eq!((status, said.as_str()), (409, "conflict"));
    let mut another = manifest("a", 1);
    another["metadata"]["uid"] = json!("somebody-elses");
    let (status, said) = code(&conductor, "PUT", "/v1/hosts/a", &another).await;
    assert_eq!((status, said.as_str()), (409, "conflict"));
}

#[tokio::test]
async fn a_manifest_that_means_something_else_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let conductor = Conductor::start(dir.path()).await;
    for (place, value) in [
        ("/apiVersion", json!("ferrite/v9")),
        ("/kind", json!("Image")),
        ("/metadata/name", json!("b")),
        ("/metadata/labels", json!({"a b": "c"})),
        ("/metadata/labels", json!({"a": "-"})),
        ("/metadata/project", json!("P")),
        ("/metadata/annotations", json!({"a": "x".repeat(70_000)})),
        ("/spec/bmc", json!({"address": "redfish://b", "user": "u"})),
        ("/secrets", json!({"network_data": "{"})),
    ] {
        let mut bad = manifest("a", 1);
        bad["metadata"]["project"] = json!("p");
        bad["metadata"]["annotations"] = json!({});
        *bad.pointer_mut(place).unwrap() = value;
        let (status, said) = code(&conductor, "PUT", "/v1/hosts/a", &bad).await;
        assert_eq!((status, said.as_str()), (422, "request-invalid"), "{bad}");
    }
}
