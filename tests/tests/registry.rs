//! Images that the conductor fetches, packs and serves, with the program itself: what becomes of
//! each form, of wrong files and hostile places, of a full disk, and of a conductor that is killed
//! in the middle.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path as UrlPath, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use ferrite_proto::catalog::Image;
use ferrite_proto::digest::to_hex;
use ferrite_proto::named_image::{ImagePhase, ImageStatus};
use ferrite_proto::problem::Code;
use ferrite_tests::postgres::Postgres;
use ferrite_tests::swarm::{Operator, Served, ferrite};
use futures_util::stream;
use reqwest::Method;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// How long anything may take.
const PATIENCE: Duration = Duration::from_mins(2);
/// Between looks.
const LOOK: Duration = Duration::from_millis(50);

/// A server of files that hangs up after so many bytes of each answer.
struct Origin {
    files: BTreeMap<String, Bytes>,
    cut: Option<usize>,
    sent: AtomicU64,
}

impl Origin {
    fn start(files: &[(&str, Vec<u8>)], cut: Option<usize>) -> Result<(Arc<Self>, String)> {
        let files = files.iter().map(|(name, bytes)| {
            let bytes = Bytes::copy_from_slice(bytes);
            ((*name).to_owned(), bytes)
        });
        let origin = Arc::new(Self {
            files: files.collect(),
            cut,
            sent: AtomicU64::new(0),
        });
        let listener = TcpListener::bind("127.0.0.1:0")?;
        listener.set_nonblocking(true)?;
        let url = format!("http://{}", listener.local_addr()?);
        let router = Router::new()
            .route("/away", get(away))
            .route("/{name}", get(file))
            .with_state(Arc::clone(&origin));
        let listener = tokio::net::TcpListener::from_std(listener)?;
        tokio::spawn(async move { axum::serve(listener, router).await });
        Ok((origin, url))
    }
}

/// Where clouds keep credentials.
async fn away() -> Response {
    let to = [("location", "http://169.254.169.254/latest/meta-data/")];
    (StatusCode::FOUND, to).into_response()
}

async fn file(
    State(origin): State<Arc<Origin>>,
    UrlPath(name): UrlPath<String>,
    headers: HeaderMap,
) -> Response {
    let Some(bytes) = origin.files.get(&name) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let range = headers.get("range").and_then(|value| value.to_str().ok());
    let from = range.and_then(|range| {
        range
            .strip_prefix("bytes=")?
            .strip_suffix('-')?
            .parse()
            .ok()
    });
    let (start, whole) = (from.unwrap_or(0), bytes.len());
    let end = origin.cut.map_or(whole, |cut| whole.min(start + cut));
    let sent = bytes.slice(start..end);
    origin.sent.fetch_add(sent.len() as u64, Ordering::Relaxed);
    let mut parts = vec![Ok(sent)];
    if end < whole {
        parts.push(Err(std::io::Error::other("cut")));
    }
    let mut response = Response::builder()
        .header("etag", format!("\"{name}\""))
        .header("content-length", whole - start);
    if from.is_some() {
        let shown = format!("bytes {start}-{}/{whole}", whole - 1);
        response = response.status(206).header("content-range", shown);
    }
    let body = Body::from_stream(stream::iter(parts));
    response.body(body).unwrap_or_default()
}

/// A conductor, and who works with it.
struct World {
    dir: tempfile::TempDir,
    served: Served,
    operator: Operator,
}

impl World {
    async fn start(more: &str) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let config = format!("[images]\nfrom_loopback = true\nkeep_free_mib = 0\n{more}");
        let served = Served::start(&ferrite()?, dir.path(), &config).await?;
        let operator = served.operator()?;
        Ok(Self {
            dir,
            served,
            operator,
        })
    }

    async fn add(&self, name: &str, spec: Value) -> Result<()> {
        let mut spec = spec;
        spec["pack"] = json!(true);
        let image = json!({
            "apiVersion": "ferrite/v1", "kind": "Image", "metadata": {"name": name}, "spec": spec,
        });
        let added = self.operator.call(Method::POST, "/v1/images", Some(&image));
        added.await.map(drop)
    }

    async fn status(&self, name: &str) -> Result<ImageStatus> {
        let path = format!("/v1/images/{name}");
        let image = self.operator.call(Method::GET, &path, None).await?;
        let image: Image = serde_json::from_value(image)?;
        image.status.context("it has no status")
    }

    async fn until(&self, name: &str, phase: ImagePhase) -> Result<ImageStatus> {
        let begun = Instant::now();
        loop {
            let status = self.status(name).await?;
            if status.phase == phase {
                return Ok(status);
            }
            ensure!(begun.elapsed() < PATIENCE, "{name}: {status:?}");
            if status.phase == ImagePhase::Failed && status.retry_at.is_none() {
                bail!("{name} failed: {status:?}");
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Waits until it failed so.
    async fn until_failed(&self, name: &str, code: Code) -> Result<ImageStatus> {
        let begun = Instant::now();
        loop {
            let status = self.status(name).await?;
            if let Some(problem) = status.problem.as_ref() {
                ensure!(problem.code == code, "{name}: {problem:?}");
                return Ok(status);
            }
            ensure!(begun.elapsed() < PATIENCE, "{name}: {status:?}");
            tokio::time::sleep(LOOK).await;
        }
    }

    /// A packed image as hosts fetch it: without a login.
    fn fetch(&self, status: &ImageStatus) -> Result<reqwest::RequestBuilder> {
        let ca = std::fs::read(self.dir.path().join("state/ca.pem"))?;
        let client = reqwest::Client::builder()
            .tls_certs_only(reqwest::Certificate::from_pem_bundle(&ca)?)
            .no_proxy()
            .build()?;
        Ok(client.get(status.url.as_ref().context("it has no URL")?))
    }

    fn images(&self) -> PathBuf {
        self.dir.path().join("state/images")
    }

    /// The command line, as a person on the machine has it.
    fn cli(&self, words: &[&str]) -> Result<(bool, String)> {
        let output = Command::new(ferrite()?)
            .args(words)
            .env("FERRITE_CLIENT", self.dir.path().join("state/client.toml"))
            .output()?;
        let all = [output.stdout, output.stderr].concat();
        Ok((output.status.success(), String::from_utf8(all)?))
    }
}

/// Files in a folder, and those in its folders.
fn files(dir: &Path) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            found.extend(files(&entry.path())?);
        } else {
            found.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    found.sort();
    Ok(found)
}

/// Bytes that do not compress.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let words = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words.flatten().take(length).collect()
}

/// A disk with something, nothing, and a bit.
fn disk() -> Vec<u8> {
    let mut disk = noise(3 << 20);
    disk.resize(9 << 20, 0);
    disk.extend_from_slice(&b"the end ".repeat(64));
    disk
}

fn sha256(bytes: &[u8]) -> String {
    format!("sha256:{}", to_hex(&Sha256::digest(bytes)))
}

fn tool(words: &[&str]) -> Result<Vec<u8>> {
    let output = Command::new(words[0]).args(&words[1..]).output();
    let output = output.with_context(|| format!("running {}", words[0]))?;
    ensure!(output.status.success(), "{words:?}: {output:?}");
    Ok(output.stdout)
}

/// The disk as qcow2 and as gzip.
fn forms(dir: &Path) -> Result<(Vec<u8>, Vec<u8>)> {
    let (raw, qcow2) = (dir.join("disk.raw"), dir.join("disk.qcow2"));
    std::fs::write(&raw, disk())?;
    let (raw, made) = (raw.display().to_string(), qcow2.display().to_string());
    tool(&["qemu-img", "convert", "-c", "-O", "qcow2", &raw, &made])?;
    Ok((std::fs::read(qcow2)?, tool(&["gzip", "-c", "-1", &raw])?))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_forms_of_a_disk_are_one_packed_image_that_goes_with_the_last() -> Result<()> {
    let world = World::start("").await?;
    let (qcow2, gzip) = forms(world.dir.path())?;
    let (_, url) = Origin::start(&[("q", qcow2.clone()), ("g", gzip)], None)?;
    let spec = json!({"url": format!("{url}/q"), "digest": sha256(&qcow2), "format": "qcow2",
        "raw_digest": sha256(&disk())});
    world.add("from-qcow2", spec).await?;
    let spec = json!({"url": format!("{url}/g"), "allow_unverified": true});
    world.add("from-gzip", spec).await?;
    let first = world.until("from-qcow2", ImagePhase::Ready).await?;
    let second = world.until("from-gzip", ImagePhase::Ready).await?;
    // qcow2 ends at a whole sector, as this disk does.
    ensure!(first.digest == second.digest && first.url == second.url);
    ensure!(first.image_bytes == Some(disk().len() as u64), "{first:?}");
    let kept = files(&world.images())?;
    ensure!(kept.len() == 1, "{kept:?}");
    is_served(&world, &first).await?;

    let remove = |name| world.operator.call(Method::DELETE, name, None);
    remove("/v1/images/from-qcow2").await?;
    tokio::time::sleep(Duration::from_secs(14)).await;
    ensure!(files(&world.images())? == kept, "another image names it");
    remove("/v1/images/from-gzip").await?;
    let begun = Instant::now();
    while !files(&world.images())?.is_empty() {
        ensure!(begun.elapsed() < PATIENCE, "nobody names it");
        tokio::time::sleep(LOOK).await;
    }
    Ok(())
}

/// Whole, in parts, and as Debian's zstd reads it.
async fn is_served(world: &World, status: &ImageStatus) -> Result<()> {
    let whole = world.fetch(status)?.send().await?;
    ensure!(whole.status() == 200);
    let tag = whole.headers()["etag"].clone();
    let whole = whole.bytes().await?;
    ensure!(Some(whole.len() as u64) == status.packed_bytes);
    let packed = world.dir.path().join("packed.zst");
    std::fs::write(&packed, &whole)?;
    let raw = tool(&["zstd", "-dcq", &packed.display().to_string()])?;
    ensure!(raw == disk(), "zstd -d gives another disk");
    let info = ferrite_imaging::packed::Opened::open(&&whole[..])?;
    ensure!(Some(sha256(&info.frame)) == status.digest.as_ref().map(ToString::to_string));

    let part = world.fetch(status)?.header("range", "bytes=1000-1999");
    let part = part.header("if-range", &tag).send().await?;
    ensure!(part.status() == 206 && part.headers()["etag"] == tag);
    let shown = format!("bytes 1000-1999/{}", whole.len());
    ensure!(part.headers()["content-range"] == shown);
    ensure!(part.bytes().await? == whole[1000..2000]);
    let tail = world.fetch(status)?.header("range", "bytes=-7").send();
    ensure!(tail.await?.bytes().await? == whole[whole.len() - 7..]);
    let other = world.fetch(status)?.header("range", "bytes=0-9");
    let other = other.header("if-range", "\"another\"").send().await?;
    ensure!(other.status() == 200, "parts of two files were mixed");
    let beyond = world.fetch(status)?.header("range", "bytes=99999999-");
    ensure!(beyond.send().await?.status() == 416);
    is_written(world, status)
}

/// By an agent, as it comes from the conductor.
fn is_written(world: &World, status: &ImageStatus) -> Result<()> {
    let target = world.dir.path().join("target");
    let (ca, disk) = (world.dir.path().join("state/ca.pem"), disk());
    std::fs::write(&target, vec![0x5a; 16 << 20])?;
    let agent = ferrite()?.with_file_name("ferrite-agent");
    let text = |path: &Path| path.display().to_string();
    let (url, digest) = (status.url.as_ref(), status.digest.as_ref());
    let digest = digest.context("it has no digest")?.to_string();
    let (agent, ca, disk_file) = (text(&agent), text(&ca), text(&target));
    let mut words = vec![agent.as_str(), "write-image", "--format", "packed", "--yes"];
    words.extend(["--source", url.context("it has no URL")?, "--ca-file", &ca]);
    words.extend(["--digest", &digest, "--disk", &disk_file]);
    tool(&words)?;
    let written = std::fs::read(&target)?;
    ensure!(written[..disk.len()] == disk, "an agent wrote other bytes");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_or_leads_astray_is_named_and_leaves_nothing() -> Result<()> {
    let world = World::start("").await?;
    let (qcow2, gzip) = forms(world.dir.path())?;
    let cut = gzip[..gzip.len() / 2].to_vec();
    let (_, url) = Origin::start(&[("q", qcow2.clone()), ("cut", cut.clone())], None)?;
    let right = sha256(&qcow2);
    for (name, spec, code) in [
        (
            "digest",
            json!({"url": format!("{url}/q"), "digest": sha256(b"x"), "format": "qcow2"}),
            Code::ImageDigestMismatch,
        ),
        (
            "raw-digest",
            json!({"url": format!("{url}/q"), "digest": right, "format": "qcow2",
                "raw_digest": sha256(b"x")}),
            Code::ImageDigestMismatch,
        ),
        (
            "not-said",
            json!({"url": format!("{url}/q"), "digest": right}),
            Code::ImageFormat,
        ),
        (
            "cut-short",
            json!({"url": format!("{url}/cut"), "allow_unverified": true}),
            Code::ImageTruncated,
        ),
        (
            "not-there",
            json!({"url": format!("{url}/none"), "allow_unverified": true}),
            Code::ImageNotFound,
        ),
        (
            "metadata",
            json!({"url": "http://169.254.169.254/x", "allow_unverified": true}),
            Code::ImageInvalid,
        ),
        (
            "redirected",
            json!({"url": format!("{url}/away"), "allow_unverified": true}),
            Code::ImageInvalid,
        ),
    ] {
        world.add(name, spec).await?;
        world.until_failed(name, code).await?;
        ensure!(files(&world.images())?.is_empty(), "{name}");
    }
    let (_, said) = world.cli(&["get", "images"])?;
    ensure!(said.contains("Failed") && said.contains("PHASE"), "{said}");
    let (_, said) = world.cli(&["describe", "image/digest"])?;
    ensure!(said.contains("[image-digest-mismatch]"), "{said}");
    // Another one of the name begins afresh.
    let right = json!({"spec": {"digest": right}});
    let path = "/v1/images/digest";
    world
        .operator
        .call(Method::PATCH, path, Some(&right))
        .await?;
    world.until("digest", ImagePhase::Ready).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_of_a_person_is_taken_once_and_signed() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let key = dir.path().join("key");
    let made = key.display().to_string();
    tool(&["openssl", "genpkey", "-algorithm", "ed25519", "-out", &made])?;
    let world = World::start(&format!("signing_key = {made:?}\n")).await?;
    let (qcow2, _) = forms(world.dir.path())?;
    let file = world.dir.path().join("disk.qcow2").display().to_string();
    let add = ["image", "add", "debian", &file, "--format", "qcow2"];
    let (other, own) = (sha256(b"x"), sha256(&qcow2));
    let wrong = [&add[..], &["--digest", &other]].concat();
    let (done, said) = world.cli(&wrong)?;
    ensure!(!done && said.contains("was demanded"), "{said}");
    ensure!(files(&world.images())?.is_empty());
    let (done, said) = world.cli(&["image", "remove", "debian"])?;
    ensure!(done, "{said}");
    let right = [&add[..], &["--digest", &own, "--wait"]].concat();
    let (done, said) = world.cli(&right)?;
    ensure!(
        done && said.contains("image/debian ready: 9.00 MiB packed"),
        "{said}"
    );
    let status = world.status("debian").await?;
    ensure!(status.signed_by.is_some_and(|key| key.starts_with("RW")));
    let kept = files(&world.images())?;
    ensure!(kept.len() == 1, "{kept:?}");
    let path = "/v1/images/debian/content";
    let again = world.operator.request(Method::PUT, path).body("another");
    ensure!(again.send().await?.status() == 409, "it was replaced");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_conductor_killed_in_the_middle_begins_again() -> Result<()> {
    let world = World::start("").await?;
    let disk = noise(48 << 20);
    let (origin, url) = Origin::start(&[("d", disk.clone())], Some(5 << 20))?;
    let spec = json!({"url": format!("{url}/d"), "digest": sha256(&disk)});
    world.add("large", spec).await?;
    world.until("large", ImagePhase::Packing).await?;
    // Its server hung up ten times: what was on its way then is all that is asked for again.
    let sent = origin.sent.load(Ordering::Relaxed);
    ensure!(sent < 2 * disk.len() as u64, "{sent} of {}", disk.len());
    world.served.kill()?;
    ensure!(!files(&world.images())?.is_empty(), "it was over already");
    world.served.launch()?;
    world.served.until_ready(PATIENCE).await?;
    let status = world.until("large", ImagePhase::Ready).await?;
    ensure!(status.image_bytes == Some(disk.len() as u64));
    let kept = files(&world.images())?;
    ensure!(kept.len() == 1, "{kept:?}");
    // One whose file is lost is made again.
    std::fs::remove_file(world.images().join(&kept[0]))?;
    let begun = Instant::now();
    while files(&world.images())? != kept {
        ensure!(begun.elapsed() < PATIENCE, "it is not made again");
        tokio::time::sleep(LOOK).await;
    }
    Ok(())
}

/// Two conductors on one database: hosts are sent from either to the one that has the file, and
/// one that is lost while it packs has a successor.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_conductor_sends_to_the_other_and_takes_over_its_work() -> Result<()> {
    let database = Postgres::start()?;
    let dir = tempfile::tempdir()?;
    let key = dir.path().join("secrets.key");
    std::fs::write(&key, [7_u8; 32])?;
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600))?;
    let store = format!(
        "[store]\nurl = {:?}\nkey_file = {:?}\n",
        database.url(),
        key.display().to_string()
    );
    let (one, two) = (World::start(&store).await?, World::start(&store).await?);
    let (small, large) = (disk(), noise(48 << 20));
    let (_, url) = Origin::start(&[("s", small.clone()), ("l", large.clone())], None)?;

    let spec = json!({"url": format!("{url}/s"), "digest": sha256(&small)});
    one.add("small", spec).await?;
    one.until("small", ImagePhase::Ready).await?;
    let status = followed(&two, "small").await?;
    let (keeper, other) = keeper_first(&one, &two, &status)?;
    let path = status
        .url
        .as_ref()
        .and_then(|url| url.split_once("/images/"));
    let (_, file) = path.context("it has no URL")?;
    let elsewhere = ImageStatus {
        url: Some(format!("{}/images/{file}", other.served.url)),
        ..status.clone()
    };
    ensure!(files(&other.images())?.is_empty(), "both packed it");
    is_served(other, &elsewhere).await?;
    is_served(keeper, &followed(keeper, "small").await?).await?;

    let spec = json!({"url": format!("{url}/l"), "digest": sha256(&large)});
    one.add("large", spec).await?;
    let status = one.until("large", ImagePhase::Packing).await?;
    let (lost, left) = keeper_first(&one, &two, &status)?;
    lost.served.kill()?;
    let status = left.until("large", ImagePhase::Ready).await?;
    ensure!(
        status.conductor.as_ref() == Some(&left.served.url),
        "{status:?}"
    );
    let whole = left.fetch(&status)?.send().await?.bytes().await?;
    ensure!(Some(whole.len() as u64) == status.packed_bytes);
    Ok(())
}

/// What a conductor says of an image that is ready, once it has heard that from another.
async fn followed(world: &World, name: &str) -> Result<ImageStatus> {
    let begun = Instant::now();
    loop {
        match world.status(name).await {
            Ok(status) if status.phase == ImagePhase::Ready => return Ok(status),
            said => ensure!(begun.elapsed() < PATIENCE, "it never follows: {said:?}"),
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Who works on an image or has it, and who does not.
fn keeper_first<'w>(
    one: &'w World,
    two: &'w World,
    status: &ImageStatus,
) -> Result<(&'w World, &'w World)> {
    match status.conductor.as_ref() {
        Some(url) if *url == one.served.url => Ok((one, two)),
        Some(url) if *url == two.served.url => Ok((two, one)),
        _ => bail!("nobody has it: {status:?}"),
    }
}

/// A small disk, gone at the end.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount(&self, size: &str, how: nix::mount::MsFlags) -> Result<()> {
        let options = format!("size={size}");
        let (kind, options) = (Some("tmpfs"), Some(options.as_str()));
        nix::mount::mount(kind, self.0.path(), kind, how, options)
            .context("mounting a tmpfs; are we root?")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(self.0.path(), nix::mount::MntFlags::MNT_DETACH);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_is_named_and_the_image_comes_when_there_is_room() -> Result<()> {
    let small = SmallDisk(tempfile::tempdir()?);
    small.mount("24m", nix::mount::MsFlags::empty())?;
    let dir = small.0.path().display().to_string();
    let world = World::start(&format!("dir = {dir:?}\n")).await?;
    let disk = noise(16 << 20);
    let (_, url) = Origin::start(&[("d", disk.clone())], None)?;
    let spec = json!({"url": format!("{url}/d"), "digest": sha256(&disk)});
    world.add("large", spec).await?;
    // The file fits, the packed image beside it does not.
    let failed = world.until_failed("large", Code::ImageStoreFull).await?;
    let message = failed.problem.context("a problem")?.message;
    ensure!(message.contains(&dir), "{message}");
    ensure!(failed.retry_at.is_some(), "it is tried again");
    ensure!(files(small.0.path())?.is_empty(), "nothing is left of it");
    small.mount("80m", nix::mount::MsFlags::MS_REMOUNT)?;
    world.until("large", ImagePhase::Ready).await?;
    Ok(())
}
