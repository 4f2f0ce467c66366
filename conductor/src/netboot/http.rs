//! Plain HTTP for firmware, iPXE and BMCs: scripts, boot files, per-host ISOs.
//!
//! Everything here travels in clear, because neither firmware nor Debian's iPXE can do better; so
//! nothing here is secret but a ticket, and that goes only to the machine it is for. The API and
//! the agents' side are elsewhere, over TLS.

use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{ConnectInfo, Path, RawQuery, State};
use axum::http::header::{ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, RANGE};
use axum::http::{HeaderMap, Method, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum_server::Server;
use ferrite_proto::mac::Mac;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::artifacts::{Artifact, Artifacts};
use super::leases::Leases;
use super::{BootAnswer, BootDirectory, Flavour, NetbootEvent, Requester};
use super::{dhcp, ipxe, iso, tftp};
use crate::listen::{self, Bounds};
use crate::ranges::{Asked, parse_range};

/// Connections at once: a rack of machines that boot together, a few each, and their BMCs.
pub(crate) const CONNECTIONS: usize = 1024;
/// How long nothing of an answer may be taken: a BMC reads an ISO when its machine does.
const STALL: Duration = Duration::from_mins(15);

/// How long a transfer may go on after we were told to stop.
const LAST_MOMENT: Duration = Duration::from_secs(2);

/// What the handlers need.
pub(super) struct Http {
    pub(super) url: String,
    pub(super) artifacts: Artifacts,
    pub(super) ipxe: tftp::Table,
    /// Our leases, when the addresses are ours to give.
    pub(super) leases: Option<Arc<Leases>>,
    pub(super) directory: Arc<dyn BootDirectory>,
}

impl Http {
    /// The MAC behind an address, as far as we can know.
    pub(super) fn mac_of(&self, ip: IpAddr) -> Option<Mac> {
        match (&self.leases, ip) {
            (Some(leases), IpAddr::V4(ip)) => leases.mac_of(ip),
            _ => dhcp::neighbour(ip),
        }
    }

    /// Whether `ip` may be told what is for `mac`. With our own leases it must be that MAC's; with
    /// somebody else's, the kernel must not have seen another MAC behind it.
    fn is_from(&self, mac: Mac, ip: IpAddr) -> bool {
        match (&self.leases, ip) {
            (Some(leases), IpAddr::V4(ip)) => leases.ip_of(mac) == Some(ip),
            (Some(_), IpAddr::V6(_)) => false,
            (None, ip) => dhcp::neighbour(ip).is_none_or(|seen| seen == mac),
        }
    }
}

/// Serves until it is stopped; transfers under way then get a moment to end, but no more: a BMC
/// may hold an ISO open for hours.
pub(super) async fn run(http: Arc<Http>, listener: TcpListener, stop: CancellationToken) {
    let service = router(http).into_make_service_with_connect_info::<SocketAddr>();
    let handle = axum_server::Handle::new();
    let bounds = Bounds {
        connections: CONNECTIONS,
        per_address: CONNECTIONS,
        stall: STALL,
    };
    let door = listen::bounded(Server::from_listener(listener), bounds);
    let served = door.handle(handle.clone()).serve(service);
    let stopping = async {
        stop.cancelled().await;
        handle.graceful_shutdown(Some(LAST_MOMENT));
        std::future::pending::<()>().await;
    };
    tokio::select! {
        served = served => {
            if let Err(error) = served {
                tracing::error!(%error, "netboot: HTTP ended");
            }
        }
        () = stopping => {}
    }
}

fn router(http: Arc<Http>) -> Router {
    Router::new()
        .route(ipxe::SCRIPT_PATH, get(script))
        .route("/artifacts/{name}", get(artifact))
        .route("/ipxe/{name}", get(first_stage))
        .route("/iso/{token}/ramdisk.iso", get(host_iso))
        .with_state(http)
}

/// Always 200 and always a script: firmware that gets an error goes on to whatever it finds.
async fn script(
    State(http): State<Arc<Http>>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    RawQuery(query): RawQuery,
) -> Response {
    let ip = peer.ip().to_canonical();
    let asked = query.as_deref().and_then(|q| q.strip_prefix("mac="));
    let asked = asked.and_then(|mac| mac.replace("%3A", ":").replace("%3a", ":").parse().ok());
    let Some(mac) = asked.or_else(|| http.mac_of(ip)) else {
        tracing::warn!(%ip, "netboot: a script was asked for without a MAC");
        return text(ipxe::script(&http.url, Mac([0; 6]), &BootAnswer::Unknown));
    };
    let mut answer = http.directory.answer(&Requester {
        mac,
        ip: Some(ip),
        arch: None,
    });
    if matches!(answer, BootAnswer::Ramdisk(..)) && !http.is_from(mac, ip) {
        tracing::warn!(%ip, %mac, "netboot: a script was asked for from another host's address");
        answer = BootAnswer::Unknown;
    }
    let script = ipxe::script(&http.url, mac, &answer);
    let answer = match answer {
        BootAnswer::Ramdisk(Flavour::Ordinary, _) => "ramdisk",
        BootAnswer::Ramdisk(Flavour::Rescue, _) => "rescue",
        BootAnswer::OwnDisk => "own disk",
        BootAnswer::Unknown => "unknown",
    };
    http.directory.note(NetbootEvent::Script { mac, answer });
    text(script)
}

async fn artifact(
    State(http): State<Arc<Http>>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    Path(name): Path<String>,
    method: Method,
    headers: HeaderMap,
) -> Response {
    let Some(file) = http.artifacts.files.iter().find(|f| f.name == name) else {
        return (StatusCode::NOT_FOUND, "there is no such boot file\n").into_response();
    };
    let (ip, bytes, name) = (peer.ip().to_canonical(), file.bytes, file.name);
    let mac = http.mac_of(ip);
    let directory = Arc::clone(&http.directory);
    let note = move |end, sent| {
        directory.note(NetbootEvent::File {
            ip,
            mac,
            name: name.to_owned(),
            bytes: sent,
            to_the_end: end == bytes,
        });
    };
    serve(file, None, &method, &headers, note).await
}

/// iPXE itself, for firmware that boots over HTTP.
async fn first_stage(State(http): State<Arc<Http>>, Path(name): Path<String>) -> Response {
    match http.ipxe.get(name.as_str()) {
        Some(bytes) => {
            let kind = [(CONTENT_TYPE, "application/efi")];
            (kind, bytes.clone()).into_response()
        }
        None => (StatusCode::NOT_FOUND, "there is no such file here\n").into_response(),
    }
}

/// The ISO of the host that the token was made for.
async fn host_iso(
    State(http): State<Arc<Http>>,
    Path(token): Path<String>,
    method: Method,
    headers: HeaderMap,
) -> Response {
    let found = http.directory.iso(&token);
    let found = found.filter(|(_, words)| words.validate().is_ok());
    let found = found.and_then(|(flavour, words)| Some((http.artifacts.iso_of(flavour)?, words)));
    let Some((iso, parameters)) = found else {
        return (
            StatusCode::NOT_FOUND,
            "there is no such ISO, or no longer\n",
        )
            .into_response();
    };
    let extent = iso::Extent {
        at: iso.config_at,
        bytes: parameters.boot_cfg().to_vec(),
    };
    let directory = Arc::clone(&http.directory);
    let note = move |_, bytes| {
        directory.note(NetbootEvent::Iso {
            token: token.clone(),
            bytes,
        });
    };
    serve(&iso.file, Some(extent), &method, &headers, note).await
}

/// A file or one range of it. `note` is told once, with the end of what was asked for and the
/// bytes that went out, also when the client went away.
async fn serve(
    file: &Artifact,
    extent: Option<iso::Extent>,
    method: &Method,
    headers: &HeaderMap,
    note: impl Fn(u64, u64) + Send + 'static,
) -> Response {
    let asked = headers.get(RANGE).and_then(|value| value.to_str().ok());
    let (status, range) = match asked.map_or(Asked::Whole, |text| parse_range(text, file.bytes)) {
        Asked::Whole => (StatusCode::OK, 0..file.bytes),
        Asked::Part(range) => (StatusCode::PARTIAL_CONTENT, range),
        Asked::Beyond => {
            let length = format!("bytes */{}", file.bytes);
            return (StatusCode::RANGE_NOT_SATISFIABLE, [(CONTENT_RANGE, length)]).into_response();
        }
    };
    let mut response = Response::builder()
        .status(status)
        .header(ACCEPT_RANGES, "bytes")
        .header(CONTENT_TYPE, "application/octet-stream")
        .header(CONTENT_LENGTH, range.end - range.start);
    if status == StatusCode::PARTIAL_CONTENT {
        let last = range.end.saturating_sub(1);
        let value = format!("bytes {}-{last}/{}", range.start, file.bytes);
        response = response.header(CONTENT_RANGE, value);
    }
    let body = match body(method, file.path.clone(), range, extent, note).await {
        Ok(body) => body,
        Err(error) => {
            tracing::error!(file = %file.path.display(), %error, "netboot: reading a boot file");
            return StatusCode::INTERNAL_SERVER_ERROR.into_response();
        }
    };
    response.body(body).unwrap_or_else(|error| {
        tracing::error!(%error, "netboot: a header of ours is malformed");
        StatusCode::INTERNAL_SERVER_ERROR.into_response()
    })
}

async fn body(
    method: &Method,
    path: PathBuf,
    range: Range<u64>,
    extent: Option<iso::Extent>,
    note: impl Fn(u64, u64) + Send + 'static,
) -> std::io::Result<Body> {
    if method == Method::HEAD {
        return Ok(Body::empty());
    }
    let mut tally = Tally {
        start: range.start,
        sent: 0,
        note,
    };
    let stream = iso::stream(&path, range, extent, move |bytes| tally.add(bytes)).await?;
    Ok(Body::from_stream(stream))
}

/// Counts what goes out, and tells when the response is over, however it ends.
struct Tally<F: Fn(u64, u64)> {
    start: u64,
    sent: u64,
    note: F,
}

impl<F: Fn(u64, u64)> Tally<F> {
    fn add(&mut self, bytes: u64) {
        self.sent += bytes;
    }
}

impl<F: Fn(u64, u64)> Drop for Tally<F> {
    fn drop(&mut self) {
        (self.note)(self.start + self.sent, self.sent);
    }
}

fn text(text: String) -> Response {
    ([(CONTENT_TYPE, "text/plain; charset=utf-8")], text).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netboot::{artifacts, tests::Directory};
    use ferrite_proto::boot::BootParameters;
    use std::net::Ipv4Addr;
    use tower::ServiceExt;

    const MAC: Mac = Mac([0x52, 0x54, 0, 0x77, 0, 1]);

    struct World {
        http: Arc<Http>,
        directory: Arc<Directory>,
        dir: tempfile::TempDir,
        ip: Ipv4Addr,
    }

    fn world() -> World {
        let dir = tempfile::tempdir().unwrap();
        artifacts::tests::folder(dir.path());
        let directory = Arc::new(Directory::with(MAC));
        let pool = (Ipv4Addr::new(10, 77, 0, 100), Ipv4Addr::new(10, 77, 0, 110));
        let leases = Leases::load(pool.0, pool.1, Duration::from_mins(1), dir.path());
        let ip = leases.lend(MAC).unwrap();
        let http = Arc::new(Http {
            url: "http://10.77.0.1:7080".into(),
            artifacts: artifacts::load(dir.path()).unwrap(),
            ipxe: Arc::default(),
            leases: Some(Arc::new(leases)),
            directory: Arc::clone(&directory) as Arc<dyn BootDirectory>,
        });
        World {
            http,
            directory,
            dir,
            ip,
        }
    }

    impl World {
        async fn ask(&self, from: Ipv4Addr, path: &str, range: &str) -> (StatusCode, Vec<u8>) {
            let mut request = axum::http::Request::get(path);
            if !range.is_empty() {
                request = request.header(RANGE, range);
            }
            let mut request = request.body(Body::empty()).unwrap();
            let peer = SocketAddr::from((from, 4000));
            request.extensions_mut().insert(ConnectInfo(peer));
            let reply = router(Arc::clone(&self.http))
                .oneshot(request)
                .await
                .unwrap();
            let status = reply.status();
            let body = axum::body::to_bytes(reply.into_body(), 1 << 20)
                .await
                .unwrap();
            (status, body.to_vec())
        }
    }

    #[tokio::test]
    async fn a_ticket_goes_only_to_the_address_that_its_mac_has() {
        let world = world();
        let path = format!("/boot.ipxe?mac={MAC}");
        let (status, script) = world.ask(world.ip, &path, "").await;
        let script = String::from_utf8(script).unwrap();
        assert_eq!(status, StatusCode::OK);
        assert!(script.contains("ferrite.ticket="), "{script}");

        let thief = Ipv4Addr::new(10, 77, 0, 222);
        let (status, script) = world.ask(thief, &path, "").await;
        let script = String::from_utf8(script).unwrap();
        assert_eq!(status, StatusCode::OK);
        assert!(!script.contains("ferrite.ticket="), "{script}");
        let answers: Vec<_> = world.directory.events().into_iter().collect();
        assert_eq!(
            answers,
            [
                NetbootEvent::Script {
                    mac: MAC,
                    answer: "ramdisk"
                },
                NetbootEvent::Script {
                    mac: MAC,
                    answer: "unknown"
                },
            ]
        );
    }

    #[tokio::test]
    async fn firmware_gets_a_script_whatever_it_asks() {
        let world = world();
        for path in [
            "/boot.ipxe",
            "/boot.ipxe?mac=",
            "/boot.ipxe?mac=zz",
            "/boot.ipxe?x=%00",
        ] {
            let (status, script) = world.ask(Ipv4Addr::LOCALHOST, path, "").await;
            assert_eq!(status, StatusCode::OK, "{path}");
            assert!(script.starts_with(b"#!ipxe\n"), "{path}");
        }
    }

    #[tokio::test]
    async fn boot_files_are_served_whole_and_in_ranges_and_noted() {
        let world = world();
        let file = std::fs::read(world.dir.path().join("initramfs.img")).unwrap();
        let path = "/artifacts/initramfs.img";
        let (status, body) = world.ask(world.ip, path, "").await;
        assert!(status == StatusCode::OK && body == file);
        let (status, body) = world.ask(world.ip, path, "bytes=100-199").await;
        assert!(status == StatusCode::PARTIAL_CONTENT && body == file[100..200]);
        let (status, _) = world.ask(world.ip, path, "bytes=70000-").await;
        assert_eq!(status, StatusCode::RANGE_NOT_SATISFIABLE);
        let noted = |bytes, to_the_end| NetbootEvent::File {
            ip: world.ip.into(),
            mac: Some(MAC),
            name: "initramfs.img".into(),
            bytes,
            to_the_end,
        };
        assert_eq!(
            world.directory.events(),
            [noted(70_000, true), noted(100, false)]
        );
        for path in ["/artifacts/manifest.json", "/artifacts/..%2Fleases.json"] {
            assert_eq!(world.ask(world.ip, path, "").await.0, StatusCode::NOT_FOUND);
        }
    }

    #[tokio::test]
    async fn an_iso_carries_the_words_of_its_token_and_nothing_else_changes() {
        let world = world();
        let built = std::fs::read(world.dir.path().join("ramdisk.iso")).unwrap();
        let (status, iso) = world
            .ask(world.ip, "/iso/token-of-one/ramdisk.iso", "")
            .await;
        assert_eq!(status, StatusCode::OK);
        assert_eq!(iso.len(), built.len());
        assert_eq!(iso[..6144], built[..6144]);
        assert_eq!(iso[6144 + 4096..], built[6144 + 4096..]);
        let text = std::str::from_utf8(&iso[6144..6144 + 4096]).unwrap();
        assert_eq!(BootParameters::parse(text).unwrap(), Directory::words());
        let (status, part) = world
            .ask(world.ip, "/iso/token-of-one/ramdisk.iso", "bytes=6000-7000")
            .await;
        assert!(status == StatusCode::PARTIAL_CONTENT && part == iso[6000..=7000]);
        let (status, _) = world.ask(world.ip, "/iso/another/ramdisk.iso", "").await;
        assert_eq!(status, StatusCode::NOT_FOUND);
    }

    #[tokio::test]
    async fn a_token_of_a_rescue_gets_the_iso_for_rescue() {
        let world = world();
        let built = std::fs::read(world.dir.path().join("rescue.iso")).unwrap();
        let url = "/iso/token-of-rescue/ramdisk.iso";
        let (_, iso) = world.ask(world.ip, url, "").await;
        assert_eq!((iso.len(), &iso[..8192]), (built.len(), &built[..8192]));
        let text = std::str::from_utf8(&iso[8192..8192 + 4096]).unwrap();
        assert_eq!(BootParameters::parse(text).unwrap(), Directory::words());
    }
}
