//! Secrets are planted wherever people, agents and files can put one; then a host goes its way,
//! with failures, and everything that the conductor says or writes is searched: its log, figures,
//! every answer, errors, the bundle, the database and the log beside it. In clear, hex and base64.

use std::fmt::Write as _;

use base64::Engine;
use base64::prelude::{BASE64_STANDARD_NO_PAD, BASE64_URL_SAFE_NO_PAD};

use super::*;

/// What was planted, what was said, and what was written to the log.
struct Field {
    conductor: Conductor,
    planted: Vec<String>,
    said: String,
}

impl Field {
    /// A new secret of this name; no two have anything in common that is searched for.
    fn plant(&mut self, name: &str) -> String {
        let digest = token::sha256(&format!("canary of {name}"));
        let secret = format!("cnry{}", &digest[..24]);
        self.planted.push(secret.clone());
        secret
    }

    /// Calls, and keeps what is said: headers and body.
    async fn say(&mut self, method: &str, path: &str, token: &str, body: impl Into<String>) -> u16 {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("content-type", "application/json")
            .header("authorization", format!("Bearer {token}"))
            .body(HttpBody::from(body.into()))
            .unwrap();
        let reply = router(Arc::clone(&self.conductor.app))
            .oneshot(request)
            .await;
        let reply = reply.unwrap();
        let status = reply.status().as_u16();
        let headers = reply.headers();
        let _ = writeln!(self.said, "{method} {path} {status} {headers:?}");
        let bytes = axum::body::to_bytes(reply.into_body(), 64 << 20)
            .await
            .unwrap();
        self.said += &String::from_utf8_lossy(&bytes);
        status
    }

    /// Everything that can be read.
    async fn read_all(&mut self) {
        for path in [
            "/v1/hosts",
            "/v1/hosts/n",
            "/v1/hosts/n/explain",
            "/v1/hosts/n/events?limit=2000",
            "/v1/hosts/n/inventory",
            "/v1/hosts/n/timeline",
            "/v1/hosts/n/logs?tail=1000",
            "/v1/tokens",
            "/v1/roles",
            "/v1/audit",
            "/v1/whoami",
            "/v1/version",
            "/metrics",
        ] {
            self.say("GET", path, ADMIN, "").await;
        }
        self.said += &seeing::unpacked(&self.conductor).await;
    }
}

/// How a secret may look: itself, hex, and base64 wherever it may stand in what is encoded.
fn looks(secret: &str) -> Vec<String> {
    let hex = ferrite_proto::digest::to_hex(secret.as_bytes());
    let mut all = vec![secret.to_owned(), hex.to_uppercase(), hex];
    for before in 0..3 {
        let padded = format!("{}{secret}", "x".repeat(before));
        // The first and last characters hold bits of what stands beside it.
        let (from, to) = ((before * 8).div_ceil(6), (padded.len() * 8) / 6);
        let standard = BASE64_STANDARD_NO_PAD.encode(&padded)[from..to].to_owned();
        let for_urls = BASE64_URL_SAFE_NO_PAD.encode(&padded)[from..to].to_owned();
        all.extend([standard, for_urls]);
    }
    all
}

fn search(place: &str, text: &[u8], planted: &[String], found: &mut Vec<String>) {
    let text = String::from_utf8_lossy(text);
    for (number, secret) in planted.iter().enumerate() {
        for look in looks(secret) {
            if let Some(at) = text.find(&look) {
                let from = text.floor_char_boundary(at.saturating_sub(160));
                let around = &text[from..at];
                found.push(format!("{place}: canary {number} as {look}: …{around}"));
            }
        }
    }
}

#[test]
fn a_canary_is_found_however_it_is_hidden() {
    let planted = vec!["cnry0123456789abcdef".to_owned()];
    for before in ["", "a", "ab", "abc"] {
        let text = format!("{before}{}tail", planted[0]);
        let hex = ferrite_proto::digest::to_hex(text.as_bytes());
        for hidden in [text.clone(), hex, BASE64_STANDARD_NO_PAD.encode(&text)] {
            let mut found = Vec::new();
            search("here", hidden.as_bytes(), &planted, &mut found);
            assert!(!found.is_empty(), "{hidden}");
        }
    }
}

fn captured() -> (Logged, tracing::Dispatch, tracing::subscriber::DefaultGuard) {
    let logged = Logged::default();
    let sink = logged.clone();
    let subscriber = tracing_subscriber::fmt()
        .json()
        .with_max_level(tracing::Level::TRACE)
        .with_writer(move || sink.clone())
        .finish();
    // With two that listen, a line that another test's thread meets first is not off for all.
    let second = tracing::Dispatch::new(tracing_subscriber::registry());
    (logged, second, tracing::subscriber::set_default(subscriber))
}

#[tokio::test]
async fn no_canary_sings() {
    let (logged, _second, _guard) = captured();
    let (dir, files) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut field = Field {
        conductor: Conductor::start(dir.path()).await,
        planted: vec![ADMIN.to_owned()],
        said: String::new(),
    };
    let outlets = outlets(&mut field, files.path());
    enrol(&mut field).await;
    strangers(&mut field).await;
    let ticket = field.conductor.ticket().await;
    let stored = field.conductor.app.hosts.stored("n").unwrap();
    let iso_token = stored.kept.iso_token.clone().unwrap().into_inner();
    field.planted.extend([ticket.clone(), iso_token]);
    field.read_all().await;
    deploy(&mut field, &ticket).await;
    field.read_all().await;
    // Whatever SQLite still has in its log beside the database is looked at before it closes.
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir.path()).unwrap() {
        let path = entry.unwrap().path();
        let bytes = std::fs::read(&path).unwrap_or_default();
        search(
            &path.display().to_string(),
            &bytes,
            &field.planted,
            &mut found,
        );
    }
    field.conductor.app.stop.cancel();
    outlets.join_all().await;
    field.conductor.kill().await;
    let log = logged.0.lock().unwrap().clone();
    assert!(String::from_utf8_lossy(&log).contains("the host daemon enrolled"));
    for part in [
        "ferrite_hosts{",
        "/v1/audit 200",
        "/v1/tokens 200",
        "/logs?tail=1000 200",
    ] {
        assert!(field.said.contains(part), "no {part} in {}", field.said);
    }
    search("log", &log, &field.planted, &mut found);
    search("answers", field.said.as_bytes(), &field.planted, &mut found);
    assert!(field.planted.len() >= 20, "{} planted", field.planted.len());
    assert!(found.is_empty(), "{found:#?}");
    println!(
        "{} canaries: none in {} bytes of log, {} bytes of answers",
        field.planted.len(),
        log.len(),
        field.said.len()
    );
}

/// A webhook and a collector that are not there: every call fails, and is logged.
fn outlets(field: &mut Field, dir: &Path) -> tokio::task::JoinSet<()> {
    let (key, headers) = (dir.join("key"), dir.join("headers"));
    std::fs::write(&key, field.plant("webhook")).unwrap();
    let header = format!("Authorization: Bearer {}\n", field.plant("collector"));
    std::fs::write(&headers, header).unwrap();
    let config = format!(
        "url = \"https://c\"\n[traces]\nendpoint = \"http://127.0.0.1:9/v1/traces\"\n\
         headers_file = {headers:?}\n[[webhooks]]\nname = \"ops\"\nurl = \"http://127.0.0.1:9/\"\n\
         secret_file = {key:?}\n"
    );
    let config = crate::config::Config::parse(&config).unwrap().seeing;
    let app = &field.conductor.app;
    crate::seeing::outlets::start(config, &app.hosts, &Limits::default(), &app.stop).unwrap()
}

async fn enrol(field: &mut Field) {
    let secrets = json!({
        "bmc_password": field.plant("password"),
        "user_data": format!("#cloud-config {}", field.plant("user data")),
    });
    let host = json!({
        "apiVersion": "ferrite/v1", "kind": "Host", "metadata": {"name": "n"}, "secrets": secrets,
        "spec": {"bmc": {"address": "redfish://b", "username": "u"}, "boot_mac": MAC},
    });
    assert_eq!(
        field
            .say("POST", "/v1/hosts", ADMIN, host.to_string())
            .await,
        201
    );
    // Again: refused with an error that names what is taken.
    assert_eq!(
        field
            .say("POST", "/v1/hosts", ADMIN, host.to_string())
            .await,
        409
    );
    let change = json!({"secrets": {"bmc_password": field.plant("second password")}});
    field
        .say("PATCH", "/v1/hosts/n", ADMIN, change.to_string())
        .await;
    let token = json!({"name": "ci", "grants": [{"role": "viewer"}]});
    let reply = field
        .conductor
        .call("POST", "/v1/tokens", ADMIN, &token)
        .await;
    let made = reply.1["secret"].as_str().or(reply.1["token"].as_str());
    let made = made.map(str::to_owned);
    if let Some(made) = made {
        field.say("GET", "/v1/hosts", &made, "").await;
        field.planted.push(made);
    }
    misplaced(field).await;
}

/// A body that does not fit is refused, and what is in it is not repeated.
async fn misplaced(field: &mut Field) {
    for wrong in [
        json!({"secrets": field.plant("misplaced")}),
        json!({"spec": {"bmc": field.plant("misplaced address")}}),
        json!({"secrets": {"bmc_password": [field.plant("list")]}}),
        json!({"secrets": {"meta_data": field.plant("meta")}}),
    ] {
        let status = field
            .say("POST", "/v1/hosts", ADMIN, wrong.to_string())
            .await;
        assert!((400..500).contains(&status), "{status}");
    }
    for key in ["secrets", "spec", "metadata"] {
        let wrong = json!({key: field.plant(&format!("misplaced {key}"))}).to_string();
        let status = field.say("PATCH", "/v1/hosts/n", ADMIN, wrong).await;
        assert!((400..500).contains(&status), "{status}");
    }
    let cut = format!(
        "{{\"secrets\": {{\"bmc_password\": \"{}",
        field.plant("cut off")
    );
    assert_eq!(field.say("POST", "/v1/hosts", ADMIN, cut).await, 400);
    let url = format!(
        "https://user:{}@images/x.raw",
        field.plant("image password")
    );
    let image = json!({"image": {"url": url, "format": "raw", "allow_unverified": true}});
    let status = field
        .say("POST", "/v1/hosts/n/provision", ADMIN, image.to_string())
        .await;
    assert!(
        (400..500).contains(&status),
        "an image's URL has a password: {status}"
    );
}

/// Those who are refused present secrets, too.
async fn strangers(field: &mut Field) {
    let wrong = field.plant("wrong token");
    assert_eq!(field.say("GET", "/v1/hosts", &wrong, "").await, 401);
    assert_eq!(field.say("POST", "/v1/agent/poll", &wrong, "{}").await, 401);
    let hello = json!({
        "ticket": field.plant("wrong ticket"), "nonce": "x", "identity": {"macs": [MAC]},
        "agent_version": "0", "kernel": "6", "uptime_seconds": 1.0, "boot_mode": "uefi",
        "memory_bytes": 1,
    });
    let status = field
        .say("POST", "/v1/agent/hello", "", hello.to_string())
        .await;
    assert_eq!(status, 403);
    let enroll = json!({
        "credential": field.plant("wrong credential"), "key_sha256": "0".repeat(64),
        "identity": {"macs": [MAC]},
    });
    let status = field
        .say("POST", "/v1/daemon/enroll", "", enroll.to_string())
        .await;
    assert_eq!(status, 403);
}

/// To the daemon's key, with a step that fails on the way.
async fn deploy(field: &mut Field, ticket: &str) {
    let (_, hello) = field.conductor.hello(ticket, "nonce", MAC).await;
    let token = hello["token"].as_str().unwrap().to_owned();
    field.planted.push(token.clone());
    let mut sequence = 0;
    let inspected = json!({"outcome": "inspected", "inventory": {"version": 1}});
    let inspected = serde_json::from_value(inspected).unwrap();
    field.conductor.step(&token, &mut sequence, inspected).await;
    let erased = Outcome::Erased { disks: Vec::new() };
    field.conductor.step(&token, &mut sequence, erased).await;
    let secrets = json!({
        "user_data": field.plant("second user data"), "vendor_data": field.plant("vendor data"),
        "network_data": json!({field.plant("network key"): field.plant("network")}).to_string(),
        "meta_data": {"key": field.plant("meta data")},
    });
    let wish = json!({
        "image": {"url": "http://i/1.raw", "format": "raw", "allow_unverified": true},
        "secrets": secrets,
    });
    let status = field
        .say("POST", "/v1/hosts/n/provision", ADMIN, wish.to_string())
        .await;
    assert_eq!(status, 200);
    let written = Outcome::ImageWritten(ImageWritten::default());
    field.conductor.step(&token, &mut sequence, written).await;
    field.read_all().await;
    let drive = Outcome::ConfigDriveWritten {
        partition: "p".into(),
        bytes: 1,
    };
    field.conductor.step(&token, &mut sequence, drive).await;
    let stored = field.conductor.app.hosts.stored("n").unwrap();
    let credential = stored.kept.credential.clone().unwrap().into_inner();
    field.planted.push(credential.clone());
    let key = field.plant("daemon key");
    let enroll = json!({
        "credential": credential, "key_sha256": token::sha256(&key), "identity": {"macs": [MAC]},
    });
    assert_eq!(
        field
            .say("POST", "/v1/daemon/enroll", "", enroll.to_string())
            .await,
        200
    );
    assert_eq!(
        field
            .say("POST", "/v1/daemon/check-in", &key, "{\"os\": 1}")
            .await,
        422
    );
    let problem = json!({"code": "disk-io", "message": "sda: EIO", "advice": ""});
    let number = field.conductor.app.hosts.stored("n").unwrap();
    let number = number.record.run.last_order;
    let failed = json!({"sequence": sequence + 1, "reports": [
        {"report": "log", "line": "about to fail"},
        {"report": "failed", "order": number, "problem": problem},
    ]});
    field
        .say("POST", "/v1/agent/poll", &token, failed.to_string())
        .await;
}
