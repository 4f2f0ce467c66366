//! Hosts as resources: what `PUT` and `PATCH` take, change and refuse.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body as HttpBody;
use axum::http::Request;
use serde_json::{Value, json};
use tokio_stream::StreamExt;
use tower::ServiceExt;

use super::router;
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
    let listed = conductor.admin("GET", "/v1/hosts", Value::Null).await;
    assert_eq!(
        listed["items"],
        json!([same]),
        "written for the list as alone"
    );
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
    let (status, said) = code(&conductor, "PUT", "/v1/hosts/a", &manifest("b", 1)).await;
    assert_eq!((status, said.as_str()), (400, "name-mismatch"));
}

#[tokio::test]
async fn what_is_valid_by_the_document_is_taken_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let conductor = Conductor::start(dir.path()).await;
    let post = async |path: &str, body: &Value| code(&conductor, "POST", path, body).await.0;
    let mut host = manifest("a", 1);
    host["spec"]["priority"] = json!(7.0);
    assert_eq!(post("/v1/hosts?dry_run=true", &host).await, 200);
    host["spec"]["priority"] = json!(7.5);
    assert_eq!(post("/v1/hosts?dry_run=true", &host).await, 422);
    let profile = |defaults: Value| {
        json!({"apiVersion": "ferrite/v1", "kind": "Profile", "metadata": {"name": "p"},
            "spec": {"defaults": defaults}})
    };
    for bad in [
        json!({"priority": 1001}),
        json!({"group": "G"}),
        json!({"image": {"url": "file:///x", "allow_unverified": true}}),
    ] {
        assert_eq!(post("/v1/profiles", &profile(bad)).await, 422);
    }
    assert_eq!(
        post("/v1/profiles", &profile(json!({"priority": 9}))).await,
        201
    );
    let get = async |path: &str| code(&conductor, "GET", path, &Value::Null).await.0;
    for bad in [
        "hosts?resource_version=null",
        "events?limit=0&watch=true",
        "hosts/a?wait=61",
    ] {
        assert_eq!(get(&format!("/v1/{bad}")).await, 400, "{bad}");
    }
    assert_eq!(get(&format!("/v1/audit?after={}", u64::MAX)).await, 200);
    let refused = conductor.with("PUT", "/v1/hosts/a", ("if-none-match", "\"7\""), &host);
    assert_eq!(refused.await, 400);
}

impl Conductor {
    /// A call with one more header.
    async fn with(&self, method: &str, path: &str, header: (&str, &str), body: &Value) -> u16 {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("content-type", "application/merge-patch+json")
            .header("authorization", format!("Bearer {ADMIN}"))
            .header(header.0, header.1)
            .body(HttpBody::from(body.to_string()))
            .unwrap();
        let app = Arc::clone(&self.app);
        let reply = router(app).oneshot(request).await.unwrap();
        reply.status().as_u16()
    }

    /// The text of the first two events of a stream.
    async fn began(&self, path: &str) -> Vec<String> {
        let events = self.events(path).await;
        let texts = events.map(|chunk| String::from_utf8(chunk.unwrap().to_vec()).unwrap());
        texts.take(2).collect().await
    }

    /// A stream of events, each as its type and its object.
    async fn watch(&self, path: &str) -> impl futures_util::Stream<Item = (String, Value)> + Unpin {
        let events = self.events(path).await;
        Box::pin(events.map(|chunk| {
            let text = String::from_utf8(chunk.unwrap().to_vec()).unwrap();
            let data = text.lines().find_map(|line| line.strip_prefix("data: "));
            let data: Value = serde_json::from_str(data.unwrap()).unwrap();
            let word = data["type"].as_str().unwrap().to_owned();
            (word, data["object"].clone())
        }))
    }

    async fn events(&self, path: &str) -> axum::body::BodyDataStream {
        let request = Request::get(path)
            .header("authorization", format!("Bearer {ADMIN}"))
            .body(HttpBody::empty())
            .unwrap();
        let app = Arc::clone(&self.app);
        let reply = router(app).oneshot(request).await.unwrap();
        assert_eq!(reply.status(), 200, "{path}");
        assert_eq!(reply.headers()["content-type"], "text/event-stream");
        reply.into_body().into_data_stream()
    }
}

/// The next event of a host: its type and its name.
async fn next(events: &mut (impl futures_util::Stream<Item = (String, Value)> + Unpin)) -> String {
    loop {
        let waited = tokio::time::timeout(Duration::from_secs(10), events.next());
        let (word, object) = waited.await.unwrap().unwrap();
        if word != "BOOKMARK" {
            return format!("{word} {}", object["metadata"]["name"].as_str().unwrap());
        }
    }
}

fn names(list: &Value) -> Vec<&str> {
    let items = list["items"].as_array().unwrap();
    let name = |item: &Value| item["metadata"]["name"].as_str().map(str::to_owned);
    assert!(items.iter().all(|item| name(item).is_some()));
    let all = items
        .iter()
        .filter_map(|item| item["metadata"]["name"].as_str());
    all.collect()
}

#[tokio::test]
async fn a_list_comes_in_pages_and_by_selectors() {
    let dir = tempfile::tempdir().unwrap();
    let conductor = Conductor::start(dir.path()).await;
    for (nic, name) in ["a", "b", "c"].into_iter().enumerate() {
        let mut host = manifest(name, u8::try_from(nic).unwrap());
        host["metadata"]["labels"] = json!({"rack": format!("r{nic}")});
        conductor.admin("POST", "/v1/hosts", host).await;
    }
    let get = async |query: &str| {
        let path = format!("/v1/hosts?{query}");
        conductor.admin("GET", &path, Value::Null).await
    };
    let first = get("limit=2").await;
    assert_eq!(names(&first), ["a", "b"]);
    let next = first["metadata"]["continue"].as_str().unwrap();
    let second = get(&format!("limit=2&continue={next}")).await;
    assert_eq!(names(&second), ["c"]);
    assert!(second["metadata"].get("continue").is_none());
    assert_eq!(
        names(&get("label_selector=rack%20in%20(r0,r2)").await),
        ["a", "c"]
    );
    assert_eq!(
        names(&get("field_selector=metadata.name!=a").await),
        ["b", "c"]
    );
    assert_eq!(names(&get("project=other").await), [""; 0]);
    for bad in [
        "limit=0",
        "limit=1001",
        "continue=X",
        "label_selector=(",
        "watched=true",
    ] {
        let path = format!("/v1/hosts?{bad}");
        let (status, said) = code(&conductor, "GET", &path, &Value::Null).await;
        assert_eq!((status, said.as_str()), (400, "query-invalid"), "{bad}");
    }
}

#[tokio::test]
async fn a_dry_run_says_what_would_be_and_stores_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let conductor = Conductor::start(dir.path()).await;
    let dry = "/v1/hosts/a?dry_run=true";
    let would = conductor.admin("PUT", dry, manifest("a", 1)).await;
    assert_eq!(would["spec"]["bmc"]["address"], "redfish://b1");
    let (status, _) = code(&conductor, "GET", "/v1/hosts/a", &Value::Null).await;
    assert_eq!(status, 404);
    conductor.admin("POST", "/v1/hosts", manifest("a", 1)).await;
    let patch = json!({"spec": {"boot_mode": "bios"}});
    let would = conductor.admin("PATCH", dry, patch).await;
    assert_eq!(would["metadata"]["generation"], 2);
    let is = conductor.admin("GET", "/v1/hosts/a", Value::Null).await;
    assert_eq!(is["metadata"]["generation"], 1);
    // What the store would refuse, a dry run refuses.
    let taken = manifest("b", 1);
    let (status, said) = code(&conductor, "POST", "/v1/hosts?dry_run=true", &taken).await;
    assert_eq!((status, said.as_str()), (409, "host-exists"));
}

#[tokio::test]
async fn preconditions_are_honoured() {
    let dir = tempfile::tempdir().unwrap();
    let conductor = Conductor::start(dir.path()).await;
    let any = ("if-match", "*");
    let absent = ("if-none-match", "*");
    let host = manifest("a", 1);
    assert_eq!(conductor.with("PUT", "/v1/hosts/a", any, &host).await, 412);
    assert_eq!(
        conductor.with("PUT", "/v1/hosts/a", absent, &host).await,
        201
    );
    assert_eq!(
        conductor.with("PUT", "/v1/hosts/a", absent, &host).await,
        412
    );
    let stale = ("if-match", "\"0\"");
    let patch = json!({"metadata": {"labels": {"a": "b"}}});
    assert_eq!(
        conductor.with("PATCH", "/v1/hosts/a", stale, &patch).await,
        412
    );
    assert_eq!(
        conductor.with("DELETE", "/v1/hosts/a", stale, &patch).await,
        412
    );
    assert_eq!(
        conductor.with("PATCH", "/v1/hosts/a", any, &patch).await,
        200
    );
}

#[tokio::test]
async fn a_watch_tells_what_is_and_what_comes_and_goes() {
    let dir = tempfile::tempdir().unwrap();
    let conductor = Conductor::start(dir.path()).await;
    conductor.admin("POST", "/v1/hosts", manifest("a", 1)).await;
    let mut all = conductor.watch("/v1/hosts?watch=true").await;
    assert_eq!(next(&mut all).await, "ADDED a");
    let began = conductor.began("/v1/hosts?watch=true").await;
    assert!(began[0].contains("event: ADDED") && !began[0].contains("id:"));
    assert!(began[1].contains("event: BOOKMARK") && began[1].contains("id:"));
    let path = "/v1/hosts?watch=true&label_selector=rack=r2";
    let mut selected = conductor.watch(path).await;
    let list = conductor.admin("GET", "/v1/hosts", Value::Null).await;
    let version = list["metadata"]["resourceVersion"].as_str().unwrap();
    conductor.admin("POST", "/v1/hosts", manifest("b", 2)).await;
    let patch = json!({"metadata": {"labels": {"rack": "r2"}}});
    conductor.admin("PATCH", "/v1/hosts/b", patch).await;
    assert_eq!(next(&mut selected).await, "ADDED b");
    let patch = json!({"metadata": {"labels": {"rack": "r3"}}});
    conductor.admin("PATCH", "/v1/hosts/b", patch).await;
    loop {
        match next(&mut selected).await.as_str() {
            "MODIFIED b" => {}
            other => break assert_eq!(other, "DELETED b"),
        }
    }
    // From where the list was, nothing is missed.
    let path = format!("/v1/hosts?watch=true&resource_version={version}");
    let mut caught_up = conductor.watch(&path).await;
    while next(&mut caught_up).await != "MODIFIED b" {}
    conductor.admin("DELETE", "/v1/hosts/a", Value::Null).await;
    while next(&mut caught_up).await != "DELETED a" {}
}

fn image(url: &str) -> Value {
    let digest = format!("sha256:{}", "0".repeat(64));
    json!({"apiVersion": "ferrite/v1", "kind": "Image", "metadata": {"name": "os"},
        "spec": {"url": url, "digest": digest}})
}

#[tokio::test]
async fn documents_are_resources_like_hosts() {
    let dir = tempfile::tempdir().unwrap();
    let conductor = Conductor::start(dir.path()).await;
    let first = image("http://images/1");
    let made = conductor.admin("POST", "/v1/images", first.clone()).await;
    assert_eq!(made["kind"], "Image");
    assert_eq!(made["metadata"]["generation"], 1);
    let (status, said) = code(&conductor, "POST", "/v1/images", &first).await;
    assert_eq!((status, said.as_str()), (409, "already-exists"));
    let same = conductor.admin("PUT", "/v1/images/os", made.clone()).await;
    assert_eq!(same, made);
    let patch = json!({"spec": {"url": "http://images/2"}});
    let changed = conductor.admin("PATCH", "/v1/images/os", patch).await;
    assert_eq!(changed["metadata"]["generation"], 2);
    // What was read before is no longer what is there.
    let (status, _) = code(&conductor, "PUT", "/v1/images/os", &made).await;
    assert_eq!(status, 409);
    let bad = json!({"spec": {"format": "raww"}});
    let (status, said) = code(&conductor, "PATCH", "/v1/images/os", &bad).await;
    assert_eq!((status, said.as_str()), (422, "request-invalid"));
    let list = conductor.admin("GET", "/v1/images", Value::Null).await;
    assert_eq!(
        (names(&list), list["kind"].as_str()),
        (vec!["os"], Some("ImageList"))
    );
    let (status, _) = code(&conductor, "DELETE", "/v1/images/os", &Value::Null).await;
    assert_eq!(status, 204);
    let (status, said) = code(&conductor, "GET", "/v1/images/os", &Value::Null).await;
    assert_eq!((status, said.as_str()), (404, "not-found"));
}

#[tokio::test]
async fn a_host_takes_what_an_image_and_a_profile_stand_for() {
    let dir = tempfile::tempdir().unwrap();
    let conductor = Conductor::start(dir.path()).await;
    conductor
        .admin("POST", "/v1/images", image("http://images/1"))
        .await;
    let profile = json!({"apiVersion": "ferrite/v1", "kind": "Profile",
        "metadata": {"name": "db"},
        "spec": {"defaults": {"boot_mode": "bios", "image_name": "os"}}});
    conductor.admin("POST", "/v1/profiles", profile).await;
    let mut host = manifest("a", 1);
    host["spec"]["profile"] = json!("db");
    let made = conductor.admin("PUT", "/v1/hosts/a", host.clone()).await;
    assert_eq!(made["spec"]["boot_mode"], "bios");
    assert_eq!(made["spec"]["image"]["url"], "http://images/1");
    // A new meaning of the name is taken when the host is written, not before.
    let patch = json!({"spec": {"url": "http://images/2"}});
    conductor.admin("PATCH", "/v1/images/os", patch).await;
    let label = json!({"metadata": {"labels": {"x": "y"}}});
    let same = conductor.admin("PATCH", "/v1/hosts/a", label).await;
    assert_eq!(same["spec"]["image"]["url"], "http://images/1");
    let again = conductor.admin("PUT", "/v1/hosts/a", host.clone()).await;
    assert_eq!(again["spec"]["image"]["url"], "http://images/2");
    let none = json!({"spec": {"image": null}});
    let gone = conductor.admin("PATCH", "/v1/hosts/a", none).await;
    assert!(gone["spec"].get("image_name").is_none() && gone["spec"]["image"].is_null());
    host["spec"]["profile"] = json!("nothing");
    let (status, said) = code(&conductor, "PUT", "/v1/hosts/a", &host).await;
    assert_eq!((status, said.as_str()), (409, "reference-missing"));
}

#[tokio::test]
async fn the_log_of_all_hosts_is_read_backwards_and_followed() {
    let dir = tempfile::tempdir().unwrap();
    let conductor = Conductor::start(dir.path()).await;
    for (nic, name) in (1..).zip(["a", "b"]) {
        conductor
            .admin("POST", "/v1/hosts", manifest(name, nic))
            .await;
    }
    let get = async |query: &str| {
        let path = format!("/v1/events?{query}");
        conductor.admin("GET", &path, Value::Null).await
    };
    let (mut seen, mut query) = (Vec::new(), "limit=1&host=a&kind=state".to_owned());
    let first = get(&query).await;
    for _ in 0..100 {
        let page = get(&query).await;
        for item in page["items"].as_array().unwrap() {
            assert_eq!(
                (&item["host"], &item["kind"]),
                (&json!("a"), &json!("state"))
            );
            seen.push(item["id"].as_u64().unwrap());
        }
        let Some(next) = page["metadata"]["continue"].as_str() else {
            break;
        };
        query = format!("limit=1&host=a&kind=state&continue={next}");
    }
    assert!(
        !seen.is_empty() && seen.is_sorted_by(|newer, older| newer > older),
        "{seen:?}"
    );
    let at = first["metadata"]["resourceVersion"].as_str().unwrap();
    let path = format!("/v1/events?watch=true&host=b&resource_version={at}");
    let mut events = conductor.watch(&path).await;
    conductor
        .admin("POST", "/v1/hosts/b/retry", Value::Null)
        .await;
    conductor.admin("DELETE", "/v1/hosts/b", Value::Null).await;
    let heard = tokio::time::timeout(Duration::from_secs(10), async {
        loop {
            let (word, object) = events.next().await.unwrap();
            if word == "ADDED" && object["text"] == "delete" {
                return object;
            }
        }
    });
    assert_eq!(heard.await.unwrap()["host"], "b");
    let tasks = conductor.admin("GET", "/v1/tasks", Value::Null).await;
    assert!(names(&tasks).contains(&"a"), "{tasks}");
}

#[tokio::test]
async fn a_post_that_is_sent_again_with_its_key_is_done_once() {
    let dir = tempfile::tempdir().unwrap();
    let conductor = Conductor::start(dir.path()).await;
    let post = async |key: &str, body: &Value| {
        let request = Request::post("/v1/hosts")
            .header("content-type", "application/json")
            .header("authorization", format!("Bearer {ADMIN}"))
            .header("idempotency-key", key)
            .body(HttpBody::from(body.to_string()))
            .unwrap();
        let app = Arc::clone(&conductor.app);
        let reply = router(app).oneshot(request).await.unwrap();
        let again = reply.headers().contains_key("idempotency-replayed");
        let status = reply.status().as_u16();
        let bytes = axum::body::to_bytes(reply.into_body(), 1 << 20).await;
        let body: Value = serde_json::from_slice(&bytes.unwrap()).unwrap();
        (status, again, body)
    };
    let (status, again, made) = post("k1", &manifest("a", 1)).await;
    assert_eq!((status, again), (201, false));
    let (status, again, same) = post("k1", &manifest("a", 1)).await;
    assert_eq!((status, again, &same), (201, true, &made));
    let (status, _, other) = post("k1", &manifest("b", 2)).await;
    assert_eq!(
        (status, &other["code"]),
        (422, &json!("idempotency-key-reused"))
    );
    let (status, _, taken) = post("k2", &manifest("a", 1)).await;
    assert_eq!((status, &taken["code"]), (409, &json!("host-exists")));
    // A refusal is an answer, too.
    let (status, again, _) = post("k2", &manifest("a", 1)).await;
    assert_eq!((status, again), (409, true));
}
