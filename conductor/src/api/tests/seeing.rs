//! What those who look on are told.

use super::*;

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
