//! What people do beside hosts: tokens, certificates, roles and images, made and taken back.
//! Whatever was acknowledged must be there, or gone, for good.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::lane::Lane;
use crate::person::PATIENCE;

/// Made with OpenSSL; its key is nowhere.
const REQUEST: &str = include_str!("request.csr");

/// Makes one of each and takes each back.
pub(crate) async fn visit(lane: &Lane) -> Result<()> {
    let grants = json!([{"role": "viewer"}]);
    let token = json!({"name": "kills", "grants": grants});
    make(lane, "/v1/tokens", "kills", &token).await?;
    drop_it(lane, "/v1/tokens", "kills").await?;
    let certificate = json!({"name": "kills", "grants": grants, "csr": REQUEST});
    make(lane, "/v1/certificates", "kills", &certificate).await?;
    drop_it(lane, "/v1/certificates", "kills").await?;
    let image = json!({
        "apiVersion": "ferrite/v1",
        "kind": "Image",
        "metadata": {"name": "kills"},
        "spec": {
            "url": "http://192.0.2.1/images/a.raw",
            "digest": format!("sha256:{}", "a".repeat(64)),
        },
    });
    make(lane, "/v1/images", "kills", &image).await?;
    drop_it(lane, "/v1/images", "kills").await?;
    give_image(lane).await?;
    let subject = "/v1/roles/user:kills";
    let (status, json) = lane
        .person
        .insist(Method::PUT, subject, Some(&json!({"grants": grants})))
        .await?;
    ensure!(status == StatusCode::OK, "{subject}: {status}: {json}");
    ensure!(
        is_there(lane, "/v1/roles", "user:kills").await?,
        "a role was lost"
    );
    drop_it(lane, "/v1/roles", "user:kills").await
}

/// An image whose file is given, packed over every death, and taken back.
async fn give_image(lane: &Lane) -> Result<()> {
    let image = json!({
        "apiVersion": "ferrite/v1",
        "kind": "Image",
        "metadata": {"name": "given"},
        "spec": {"url": "upload://given", "pack": true},
    });
    make(lane, "/v1/images", "given", &image).await?;
    let started = Instant::now();
    loop {
        let found = lane.person.get("/v1/images/given").await?;
        let found = found.unwrap_or_default();
        match found["status"]["phase"].as_str() {
            Some("Ready") => break,
            Some("Pending") => lane.person.give("/v1/images/given/content", "disk").await,
            _ => {}
        }
        ensure!(started.elapsed() < PATIENCE, "it is not packed: {found}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    drop_it(lane, "/v1/images", "given").await
}

/// Made once: a second call finds the name taken.
async fn make(lane: &Lane, list: &str, name: &str, body: &Value) -> Result<()> {
    let key = uuid::Uuid::new_v4().to_string();
    let (status, json) = lane.person.insist_with_key(list, &key, body).await?;
    let made = matches!(status, StatusCode::CREATED | StatusCode::CONFLICT);
    ensure!(made, "{list}: {status}: {json}");
    ensure!(is_there(lane, list, name).await?, "{list}: {name} was lost");
    Ok(())
}

async fn drop_it(lane: &Lane, list: &str, name: &str) -> Result<()> {
    let path = format!("{list}/{name}");
    let (status, json) = lane.person.insist(Method::DELETE, &path, None).await?;
    let gone = status.is_success() || status == StatusCode::NOT_FOUND;
    ensure!(gone, "{path}: {status}: {json}");
    ensure!(!is_there(lane, list, name).await?, "{path} came back");
    Ok(())
}

async fn is_there(lane: &Lane, list: &str, name: &str) -> Result<bool> {
    let all = lane.person.get(list).await?.unwrap_or_default();
    let items = all["items"].as_array();
    let named = |item: &Value| {
        [&item["name"], &item["subject"], &item["metadata"]["name"]]
            .into_iter()
            .any(|found| found == name)
    };
    Ok(items.into_iter().flatten().any(named))
}
