//! What those who look on are told.

use super::*;
use crate::clock;

async fn text_of(conductor: &Conductor, path: &str, token: &str) -> (u16, String) {
    let request = Request::get(path)
        .header("authorization", format!("Bearer {token}"))
        .header("x-request-id", "ci-7")
        .body(HttpBody::empty())
        .unwrap();
    let reply = router(Arc::clone(&conductor.app)).oneshot(request).await;
    let reply = reply.unwrap();
    assert_eq!(reply.headers()["x-request-id"], "ci-7", "{path}");
    let status = reply.status().as_u16();
    let bytes = axum::body::to_bytes(reply.into_body(), 1 << 20).await;
    (status, String::from_utf8(bytes.unwrap().to_vec()).unwrap())
}

/// The value of a series, by everything before its last space.
fn value(figures: &str, series: &str) -> f64 {
    let line = figures.lines().find_map(|line| line.strip_prefix(series));
    let line = line.unwrap_or_else(|| panic!("no {series} in\n{figures}"));
    line.trim().parse().unwrap()
}

#[tokio::test]
async fn figures_follow_what_happens_and_name_no_host() {
    let dir = tempfile::tempdir().unwrap();
    let conductor = Conductor::start(dir.path()).await;
    conductor.add().await;
    let ticket = conductor.ticket().await;
    let (_, hello) = conductor.hello(&ticket, "a", MAC).await;
    let token = hello["token"].as_str().unwrap();
    let inspected = json!({"outcome": "inspected", "inventory": {"version": 1}});
    let inspected = serde_json::from_value(inspected).unwrap();
    conductor.step(token, &mut 0, inspected).await;
    let preparing = |host: &Value| host["status"]["state"] == "preparing";
    conductor.until("preparing", preparing).await;
    let (status, figures) = text_of(&conductor, "/metrics", ADMIN).await;
    assert_eq!(status, 200);
    for (series, wanted) in [
        ("ferrite_hosts{state=\"preparing\",health=\"ok\"} ", 1.0),
        (
            "ferrite_hosts{state=\"available\",health=\"waiting\"} ",
            0.0,
        ),
        ("ferrite_agents_connected ", 1.0),
        ("ferrite_daemons_connected ", 0.0),
        (
            "ferrite_host_state_seconds_count{state=\"registering\"} ",
            1.0,
        ),
        ("ferrite_phase_seconds_count{phase=\"inspect\"} ", 1.0),
        (
            "ferrite_bmc_call_seconds_count{call=\"identity\",outcome=\"ok\"} ",
            1.0,
        ),
        (
            "ferrite_api_call_seconds_count{method=\"POST\",path=\"/v1/hosts\",status=\"2xx\"} ",
            1.0,
        ),
    ] {
        assert!(
            (value(&figures, series) - wanted).abs() < 1e-9,
            "{series}\n{figures}"
        );
    }
    assert!(value(&figures, "process_resident_memory_bytes ") > 1e6);
    assert!(figures.ends_with("# EOF\n"));
    assert!(!figures.contains("\"n\"") && !figures.contains("hosts/n"));
    assert!(
        text_of(&conductor, "/metrics", "wrong")
            .await
            .1
            .contains("\"request_id\":\"ci-7\"")
    );
}

#[tokio::test]
async fn anybody_may_ask_whether_it_is_well_and_learns_no_more() {
    let dir = tempfile::tempdir().unwrap();
    let conductor = Conductor::start(dir.path()).await;
    for path in ["/healthz", "/readyz"] {
        assert_eq!(
            text_of(&conductor, path, "").await,
            (200, "ok\n".to_owned())
        );
    }
    conductor.app.stop.cancel();
    assert_eq!(text_of(&conductor, "/healthz", "").await.0, 200);
    assert_eq!(text_of(&conductor, "/readyz", "").await.0, 503);
}

impl Conductor {
    /// To the middle of a step: an order that is accepted. Gives the agent's token.
    async fn in_a_step(&self) -> String {
        self.add().await;
        let ticket = self.ticket().await;
        let (_, hello) = self.hello(&ticket, "a", MAC).await;
        let token = hello["token"].as_str().unwrap().to_owned();
        for sequence in 1..100 {
            let (_, reply) = self.poll(&token, sequence, json!([])).await;
            if reply["order"]["number"] == 1 {
                let accepted = json!([{"report": "accepted", "order": 1}]);
                assert_eq!(self.poll(&token, 100, accepted).await.0, 200);
                return token;
            }
        }
        panic!("no order");
    }
}

fn lines(from: u32, to: u32) -> Value {
    let lines = (from..to).map(|n| json!({"report": "log", "line": format!("line {n}")}));
    lines.collect()
}

#[tokio::test]
async fn lines_and_progress_are_seen_and_not_stored_until_a_failure() {
    let dir = tempfile::tempdir().unwrap();
    let conductor = Conductor::start(dir.path()).await;
    let token = conductor.in_a_step().await;
    let progress = |done: u64| {
        json!([{"report": "progress", "order": 1,
                "progress": {"phase": "write\u{7}", "bytes_done": done, "bytes_total": 100}}])
    };
    // The first is stored, so that it is known who is at it.
    assert_eq!(conductor.poll(&token, 101, progress(1)).await.0, 200);
    let before = conductor.app.hosts.revision();
    for sequence in 102..150 {
        assert_eq!(
            conductor.poll(&token, sequence, progress(sequence)).await.0,
            200
        );
    }
    for sequence in 150..160 {
        let said = lines(sequence * 10, sequence * 10 + 10);
        // The reply was lost once: the lines are there once.
        for _ in 0..2 {
            assert_eq!(
                conductor
                    .poll(&token, sequence.into(), said.clone())
                    .await
                    .0,
                200
            );
        }
    }
    assert_eq!(
        conductor.app.hosts.revision(),
        before,
        "something was stored"
    );
    let host = conductor.admin("GET", "/v1/hosts/n", Value::Null).await;
    let step = &host["status"]["step"]["progress"];
    assert_eq!(
        (&step["bytes_done"], &step["phase"]),
        (&json!(149), &json!("write "))
    );
    let log = conductor
        .admin("GET", "/v1/hosts/n/logs?tail=3", Value::Null)
        .await;
    let said: Vec<_> = log["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|l| &l["text"])
        .collect();
    assert_eq!(said, ["line 1597", "line 1598", "line 1599"]);
    let all = conductor
        .admin("GET", "/v1/hosts/n/logs?tail=10000", Value::Null)
        .await;
    assert_eq!(all["items"].as_array().unwrap().len(), 100);

    let problem = json!({"code": "disk-io", "message": "sda: EIO", "advice": ""});
    let failed = json!([{"report": "failed", "order": 1, "problem": problem}]);
    assert_eq!(conductor.poll(&token, 200, failed).await.0, 200);
    let events = conductor.app.hosts.events("n", 2000).await.unwrap();
    let kept = events.iter().filter(|event| event.kind == "log");
    let kept: Vec<_> = kept.map(|event| event.text.clone()).collect();
    assert_eq!(kept.len(), 50);
    assert_eq!(kept[49], "line 1599");
}

#[tokio::test]
async fn a_follower_of_lines_is_told_the_last_and_those_that_come() {
    let dir = tempfile::tempdir().unwrap();
    let conductor = Conductor::start(dir.path()).await;
    let token = conductor.in_a_step().await;
    conductor.poll(&token, 101, lines(0, 5)).await;
    let request = Request::get("/v1/hosts/n/logs?follow=true&tail=2")
        .header("authorization", format!("Bearer {ADMIN}"))
        .body(HttpBody::empty())
        .unwrap();
    let reply = router(Arc::clone(&conductor.app))
        .oneshot(request)
        .await
        .unwrap();
    assert_eq!(reply.headers()["content-type"], "text/event-stream");
    let mut stream = reply.into_body().into_data_stream();
    let mut heard = String::new();
    conductor.poll(&token, 102, lines(5, 7)).await;
    while !heard.contains("line 6") {
        let more = futures_util::StreamExt::next(&mut stream);
        let more = tokio::time::timeout(Duration::from_secs(5), more)
            .await
            .unwrap();
        heard += &String::from_utf8_lossy(&more.unwrap().unwrap());
    }
    for number in 3..7 {
        assert_eq!(
            heard.matches(&format!("line {number}")).count(),
            1,
            "{heard}"
        );
    }
    assert!(!heard.contains("line 2"), "{heard}");
    let (_, figures) = text_of(&conductor, "/metrics", ADMIN).await;
    assert!((value(&figures, "ferrite_watchers ") - 1.0).abs() < 1e-9);
    conductor.app.stop.cancel();
    let end = futures_util::StreamExt::next(&mut stream);
    assert!(
        tokio::time::timeout(Duration::from_secs(5), end)
            .await
            .unwrap()
            .is_none()
    );
}

/// The configuration of a webhook, and more of it; its receiver runs.
async fn webhook<T: 'static>(
    dir: &std::path::Path,
    receive: impl axum::handler::Handler<T, ()>,
    more: &str,
) -> crate::seeing::config::SeeingConfig {
    let receiver = axum::Router::new().route("/", axum::routing::post(receive));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, receiver).await });
    let secret = dir.join("webhook");
    std::fs::write(&secret, "a key of this very test").unwrap();
    let config = format!(
        "url = \"https://c\"\n[[webhooks]]\nname = \"ops\"\nurl = \"http://{at}/\"\n\
         secret_file = {secret:?}\n{more}\n"
    );
    crate::config::Config::parse(&config).unwrap().seeing
}

/// What a receiver and a collector are told of a host that goes on its way, by a real store.
#[tokio::test]
async fn a_webhook_tells_what_the_hosts_log_has() {
    let dir = tempfile::tempdir().unwrap();
    let conductor = Conductor::start(dir.path()).await;
    let taken = Arc::new(Mutex::new(Vec::<Value>::new()));
    let keep = Arc::clone(&taken);
    let receive = move |body: axum::Json<Value>| async move {
        keep.lock().unwrap().push(body.0);
    };
    let config = webhook(dir.path(), receive, "kinds = [\"state\"]").await;
    let stop = &conductor.app.stop;
    let limits = Limits::default();
    let start =
        || crate::seeing::outlets::start(config.clone(), &conductor.app.hosts, &limits, stop);
    let outlets = start().unwrap();
    let cursor = || conductor.app.hosts.documents().get("WebhookCursor", "ops");
    for _ in 0..500 {
        if cursor().is_some() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    conductor.in_a_step().await;
    let wanted = "registering → inspecting";
    for _ in 0..500 {
        if taken
            .lock()
            .unwrap()
            .iter()
            .any(|event| event["data"]["text"] == wanted)
        {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    stop.cancel();
    outlets.join_all().await;
    let taken = taken.lock().unwrap();
    assert!(!taken.is_empty(), "nothing was told");
    for event in &*taken {
        assert_eq!(
            (&event["type"], &event["data"]["host"]),
            (&json!("host.state"), &json!("n"))
        );
    }
    let after = cursor().unwrap().body["after"].as_u64().unwrap();
    // What nobody wants to hear of is passed over.
    assert!(Some(after) >= taken.last().unwrap()["data"]["id"].as_u64());
}

/// The receiver is down while a host comes and goes.
#[tokio::test]
async fn a_removed_host_is_told_of_and_then_forgotten() {
    use axum::http::StatusCode;
    use std::sync::atomic::{AtomicBool, Ordering};
    let dir = tempfile::tempdir().unwrap();
    let conductor = Conductor::start(dir.path()).await;
    let (up, taken) = (Arc::new(AtomicBool::new(false)), Arc::default());
    let (is_up, keep) = (Arc::clone(&up), Arc::<Mutex<Vec<Value>>>::clone(&taken));
    let receive = move |body: axum::Json<Value>| async move {
        if !is_up.load(Ordering::Relaxed) {
            return StatusCode::SERVICE_UNAVAILABLE;
        }
        keep.lock().unwrap().push(body.0);
        StatusCode::NO_CONTENT
    };
    let config = webhook(dir.path(), receive, "").await;
    let (hosts, stop) = (&conductor.app.hosts, &conductor.app.stop);
    let outlets = crate::seeing::outlets::start(config, hosts, &Limits::default(), stop).unwrap();
    while hosts.documents().get("WebhookCursor", "ops").is_none() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    conductor.in_a_step().await;
    hosts
        .remove("n", &crate::actor::Actor::Conductor)
        .await
        .unwrap();
    // Longer than it takes to forget what nobody waits for.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let waiting = hosts.outbox(0, 99).await.unwrap();
    assert!(!waiting.is_empty() && hosts.log(0, 99).await.unwrap().is_empty());
    up.store(true, Ordering::Relaxed);
    let emptied = async {
        while !hosts.outbox(0, 99).await.unwrap().is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let emptied = tokio::time::timeout(Duration::from_secs(20), emptied).await;
    stop.cancel();
    outlets.join_all().await;
    emptied.expect("what was told is forgotten");
    let taken = taken.lock().unwrap();
    let told: Vec<_> = taken
        .iter()
        .map(|event| event["data"]["id"].as_u64())
        .collect();
    let waited: Vec<_> = waiting.iter().map(|line| Some(line.id)).collect();
    assert_eq!(told, waited);
}

#[tokio::test]
async fn the_bundle_is_for_admins_and_tells_of_everything() {
    let dir = tempfile::tempdir().unwrap();
    let conductor = Conductor::start(dir.path()).await;
    conductor.in_a_step().await;
    let (status, _) = conductor
        .call("GET", "/v1/support-bundle", "wrong", &Value::Null)
        .await;
    assert_eq!(status, 401);
    let text = unpacked(&conductor).await;
    for part in [
        "version.json",
        "hosts.jsonl",
        "events.jsonl",
        "metrics.txt",
        "store.json",
    ] {
        assert!(text.contains(part), "no {part}");
    }
    assert!(text.contains("registering → inspecting") && text.contains("ferrite_hosts{"));
}

/// The support bundle, as one text.
pub(super) async fn unpacked(conductor: &Conductor) -> String {
    let request = Request::get("/v1/support-bundle")
        .header("authorization", format!("Bearer {ADMIN}"))
        .body(HttpBody::empty())
        .unwrap();
    let reply = router(Arc::clone(&conductor.app))
        .oneshot(request)
        .await
        .unwrap();
    assert_eq!(reply.status(), StatusCode::OK);
    let bytes = axum::body::to_bytes(reply.into_body(), 64 << 20)
        .await
        .unwrap();
    let mut text = Vec::new();
    let mut unzipped = flate2::read::GzDecoder::new(&*bytes);
    std::io::Read::read_to_end(&mut unzipped, &mut text).unwrap();
    String::from_utf8_lossy(&text).into_owned()
}

#[tokio::test]
async fn figures_count_those_who_wait_and_those_who_watch() {
    use crate::lifecycle::turns::{Demand, GroupLimits};
    use ferrite_proto::operation::Work;
    let dir = tempfile::tempdir().unwrap();
    let conductor = Conductor::start(dir.path()).await;
    let turns = conductor.app.hosts.turns();
    let one = GroupLimits {
        deploy: 1,
        ..GroupLimits::default()
    };
    turns.set_limits([("rack".to_owned(), one)].into());
    for host in ["a", "b", "c"] {
        turns.ask(&Demand {
            host: host.to_owned(),
            group: "rack".to_owned(),
            work: Work::Deploy,
            priority: 0,
            since: clock::now(),
        });
    }
    let watch = Request::get("/v1/hosts?watch=true")
        .header("authorization", format!("Bearer {ADMIN}"))
        .body(HttpBody::empty())
        .unwrap();
    let open = router(Arc::clone(&conductor.app)).oneshot(watch).await;
    let open = open.unwrap();
    let (_, figures) = text_of(&conductor, "/metrics", ADMIN).await;
    let waiting = "ferrite_queue_depth{group=\"rack\",work=\"deploy\"} ";
    assert!((value(&figures, waiting) - 2.0).abs() < 1e-9);
    assert!((value(&figures, "ferrite_watchers ") - 1.0).abs() < 1e-9);
    turns.forget("b");
    turns.forget("c");
    drop(open);
    for _ in 0..100 {
        let (_, figures) = text_of(&conductor, "/metrics", ADMIN).await;
        if value(&figures, "ferrite_watchers ") < 0.5 {
            assert!(value(&figures, waiting).abs() < 1e-9);
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("the watch is counted for ever");
}
