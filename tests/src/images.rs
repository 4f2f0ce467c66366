//! The lab's image server: a directory over HTTP with ranges, byte counts and faults on demand.
//!
//! For images and other files that hosts and BMCs fetch. It is no part of the conductor and knows
//! nothing of it.

use std::io::SeekFrom;
use std::net::TcpListener;
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Result;
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::Response;
use futures_util::{Stream, stream};
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio::task::JoinHandle;

use crate::bmc::hang_up;
use crate::faults::{Effect, Faults};

pub const PORT: u16 = 8080;
const CHUNK: usize = 256 << 10;
/// Enough for the sent bytes to reach the wire before the connection is cut.
const FLUSH: Duration = Duration::from_millis(100);

/// One GET or HEAD that was answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Served {
    pub method: String,
    pub path: String,
    pub status: u16,
    pub range: Option<String>,
}

#[derive(Debug)]
pub struct Images {
    dir: PathBuf,
    pub faults: Faults,
    bytes: AtomicU64,
    served: Mutex<Vec<Served>>,
}

impl Images {
    pub fn new(dir: &Path) -> Arc<Self> {
        Arc::new(Self {
            dir: dir.to_owned(),
            faults: Faults::default(),
            bytes: AtomicU64::new(0),
            served: Mutex::new(Vec::new()),
        })
    }

    /// Must be called on the lab's runtime.
    pub fn serve(self: &Arc<Self>, listener: TcpListener) -> Result<JoinHandle<()>> {
        listener.set_nonblocking(true)?;
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let router = Router::new().fallback(handle).with_state(Arc::clone(self));
        Ok(tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, router).await {
                tracing::error!(%error, "the image server stopped answering");
            }
        }))
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Body bytes handed out so far.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    pub fn served(&self) -> Vec<Served> {
        self.served
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// The file for a URL path; `None` for anything that would leave the directory.
    fn file_for(&self, path: &str) -> Option<PathBuf> {
        let relative = Path::new(path.trim_start_matches('/'));
        let inside = relative
            .components()
            .all(|part| matches!(part, Component::Normal(_)));
        inside.then(|| self.dir.join(relative))
    }
}

async fn handle(State(images): State<Arc<Images>>, request: Request) -> Response {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let fault = images.faults.strike(method.as_str(), &path);
    if let Some(fault) = &fault {
        tokio::time::sleep(fault.delay).await;
    }
    let effect = fault.map_or(Effect::Slow, |fault| fault.effect);
    let range = request
        .headers()
        .get(header::RANGE)
        .and_then(|value| value.to_str().ok());
    let range = range.map(str::to_owned);
    let response = match &effect {
        Effect::Drop => return hang_up(),
        Effect::Stall => std::future::pending().await,
        Effect::Status(status) => plain(StatusCode::from_u16(*status).unwrap_or_default()),
        Effect::Body(text) => Response::new(Body::from(text.clone())),
        _ => file(&images, &method, &path, request.headers(), effect).await,
    };
    let (method, status) = (method.to_string(), response.status().as_u16());
    let served = Served {
        method,
        path,
        status,
        range,
    };
    images
        .served
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .push(served);
    response
}

async fn file(
    images: &Arc<Images>,
    method: &Method,
    path: &str,
    headers: &HeaderMap,
    effect: Effect,
) -> Response {
    if method != Method::GET && method != Method::HEAD {
        return plain(StatusCode::METHOD_NOT_ALLOWED);
    }
    let Some((mut file, length)) = open(images.file_for(path)).await else {
        return plain(StatusCode::NOT_FOUND);
    };
    let length = match effect {
        Effect::Truncate(at) => length.min(at),
        _ => length,
    };
    let asked = headers
        .get(header::RANGE)
        .and_then(|value| value.to_str().ok());
    let Some(range) = range(asked, length) else {
        let size = format!("bytes */{length}");
        let response = Response::builder()
            .status(416)
            .header(header::CONTENT_RANGE, size);
        return response.body(Body::empty()).unwrap_or_default();
    };
    let mut response = Response::builder()
        .header(header::ACCEPT_RANGES, "bytes")
        .header(header::CONTENT_TYPE, "application/octet-stream")
        .header(header::CONTENT_LENGTH, range.end - range.start);
    if asked.is_some() {
        let shown = format!(
            "bytes {}-{}/{length}",
            range.start,
            range.end.saturating_sub(1)
        );
        response = response.status(206).header(header::CONTENT_RANGE, shown);
    }
    if method == Method::HEAD || file.seek(SeekFrom::Start(range.start)).await.is_err() {
        return response.body(Body::empty()).unwrap_or_default();
    }
    let images = Arc::clone(images);
    let sending = Sending {
        images,
        file,
        position: range.start,
        end: range.end,
        sent: 0,
        effect,
    };
    response
        .body(Body::from_stream(sending.stream()))
        .unwrap_or_default()
}

async fn open(path: Option<PathBuf>) -> Option<(File, u64)> {
    let file = File::open(path?).await.ok()?;
    let metadata = file.metadata().await.ok()?;
    metadata.is_file().then_some((file, metadata.len()))
}

fn plain(status: StatusCode) -> Response {
    let mut response = Response::new(Body::from(format!("{status}\n")));
    *response.status_mut() = status;
    response
}

/// One range of bytes; `None` when it cannot be satisfied. What is not understood means the whole
/// file.
fn range(asked: Option<&str>, length: u64) -> Option<std::ops::Range<u64>> {
    let spec = asked.and_then(|text| text.strip_prefix("bytes="));
    let Some((first, last)) = spec.and_then(|spec| spec.split_once('-')) else {
        return Some(0..length);
    };
    let range = match (first.parse::<u64>(), last.parse::<u64>()) {
        (Ok(first), Ok(last)) if first <= last => first..length.min(last.saturating_add(1)),
        (Ok(first), Err(_)) if last.is_empty() => first..length,
        (Err(_), Ok(count)) if first.is_empty() => length.saturating_sub(count)..length,
        _ => return Some(0..length),
    };
    (range.start < length).then_some(range)
}

/// A body on its way out.
struct Sending {
    images: Arc<Images>,
    file: File,
    position: u64,
    end: u64,
    sent: u64,
    effect: Effect,
}

impl Sending {
    fn stream(self) -> impl Stream<Item = std::io::Result<Bytes>> {
        stream::try_unfold(self, |mut sending| async move {
            let chunk = sending.next().await?;
            Ok(chunk.map(|chunk| (chunk, sending)))
        })
    }

    async fn next(&mut self) -> std::io::Result<Option<Bytes>> {
        let mut want = usize::try_from(self.end - self.position)
            .unwrap_or(CHUNK)
            .min(CHUNK);
        match self.effect {
            Effect::Cut(after) | Effect::StallAfter(after) => {
                let left = after.saturating_sub(self.sent);
                want = want.min(usize::try_from(left).unwrap_or(CHUNK));
                if want == 0 && self.position < self.end {
                    return Err(self.stop().await);
                }
            }
            Effect::Rate(rate) => {
                want = want.min(usize::try_from(rate / 10).unwrap_or(CHUNK).max(1));
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            _ => (),
        }
        let mut chunk = vec![0; want];
        let read = self.file.read(&mut chunk).await?;
        chunk.truncate(read);
        self.flip(&mut chunk);
        self.position += read as u64;
        self.sent += read as u64;
        self.images.bytes.fetch_add(read as u64, Ordering::Relaxed);
        Ok((read > 0).then(|| Bytes::from(chunk)))
    }

    async fn stop(&self) -> std::io::Error {
        tokio::time::sleep(FLUSH).await;
        if matches!(self.effect, Effect::StallAfter(_)) {
            std::future::pending::<()>().await;
        }
        std::io::ErrorKind::ConnectionAborted.into()
    }

    fn flip(&self, chunk: &mut [u8]) {
        let Effect::Flip(at) = self.effect else {
            return;
        };
        let index = at
            .checked_sub(self.position)
            .and_then(|index| usize::try_from(index).ok());
        if let Some(byte) = index.and_then(|index| chunk.get_mut(index)) {
            *byte = !*byte;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::faults::Fault;

    struct World {
        images: Arc<Images>,
        url: String,
        client: reqwest::Client,
        _dir: tempfile::TempDir,
    }

    fn content() -> Vec<u8> {
        (0..1_000_000_u32)
            .map(|index| index.to_le_bytes()[0])
            .collect()
    }

    fn world() -> World {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("os.raw"), content()).unwrap();
        let images = Images::new(dir.path());
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/os.raw", listener.local_addr().unwrap());
        images.serve(listener).unwrap();
        World {
            images,
            url,
            client: crate::http_client().unwrap(),
            _dir: dir,
        }
    }

    impl World {
        async fn get(&self, range: Option<&str>) -> reqwest::Response {
            let request = self.client.get(&self.url);
            let request = match range {
                Some(range) => request.header("Range", range),
                None => request,
            };
            request.send().await.unwrap()
        }
    }

    #[test]
    fn ranges_follow_the_rfc() {
        assert_eq!(range(None, 10), Some(0..10));
        assert_eq!(range(Some("bytes=2-4"), 10), Some(2..5));
        assert_eq!(range(Some("bytes=2-"), 10), Some(2..10));
        assert_eq!(range(Some("bytes=-3"), 10), Some(7..10));
        assert_eq!(range(Some("bytes=4-99"), 10), Some(4..10));
        assert_eq!(range(Some("bytes=10-"), 10), None);
        assert_eq!(range(Some("lines=1-2"), 10), Some(0..10));
    }

    #[tokio::test]
    async fn whole_files_and_ranges_arrive_and_are_counted() {
        let world = world();
        let whole = world.get(None).await;
        assert_eq!(whole.status(), 200);
        assert_eq!(whole.bytes().await.unwrap(), content());
        let part = world.get(Some("bytes=5-9")).await;
        assert_eq!(part.status(), 206);
        assert_eq!(part.headers()["Content-Range"], "bytes 5-9/1000000");
        assert_eq!(part.bytes().await.unwrap().as_ref(), [5, 6, 7, 8, 9]);
        assert_eq!(world.images.bytes(), 1_000_005);
        let head = world.client.head(&world.url).send().await.unwrap();
        assert_eq!(head.headers()["Content-Length"], "1000000");
        assert_eq!(world.get(Some("bytes=1000000-")).await.status(), 416);
    }

    #[tokio::test]
    async fn nothing_outside_the_directory_is_served() {
        let world = world();
        assert!(world.images.file_for("/../etc/passwd").is_none());
        assert!(
            world
                .images
                .file_for("//etc/passwd")
                .is_some_and(|path| path.starts_with(world.images.dir()))
        );
        let missing = world.url.replace("os.raw", "none.raw");
        assert_eq!(
            world.client.get(missing).send().await.unwrap().status(),
            404
        );
    }

    #[tokio::test]
    async fn a_cut_body_announces_more_than_it_sends() {
        let world = world();
        world
            .images
            .faults
            .add(Fault::new("/os.raw", Effect::Cut(300_000)).times(1));
        let mut reply = world.get(None).await;
        assert_eq!(reply.content_length(), Some(1_000_000));
        let mut got = 0;
        let end = loop {
            match reply.chunk().await {
                Ok(Some(chunk)) => got += chunk.len(),
                end => break end,
            }
        };
        assert!(end.is_err(), "the cut was not noticed");
        assert_eq!(got, 300_000);
        assert_eq!(
            world.get(None).await.bytes().await.unwrap().len(),
            1_000_000
        );
    }

    #[tokio::test]
    async fn truncated_flipped_and_failing_files() {
        let world = world();
        let faults = &world.images.faults;
        faults.add(Fault::new("/os.raw", Effect::Truncate(700_000)).times(1));
        assert_eq!(
            world.get(None).await.bytes().await.unwrap(),
            content()[..700_000]
        );
        faults.add(Fault::new("/os.raw", Effect::Flip(600_000)).times(1));
        let (flipped, right) = (world.get(None).await.bytes().await.unwrap(), content());
        let at = |index: &usize| flipped[*index] != right[*index];
        let different: Vec<_> = (0..right.len()).filter(at).collect();
        assert_eq!(different, [600_000]);
        faults.add(Fault::new("/os.raw", Effect::Status(500)).times(1));
        assert_eq!(world.get(None).await.status(), 500);
        assert_eq!(world.images.served().len(), 3);
    }

    #[tokio::test]
    async fn a_slow_server_is_slow() {
        let world = world();
        world
            .images
            .faults
            .add(Fault::new("/os.raw", Effect::Rate(2_000_000)));
        let start = std::time::Instant::now();
        world.get(None).await.bytes().await.unwrap();
        assert!(
            start.elapsed() >= Duration::from_millis(450),
            "{:?}",
            start.elapsed()
        );
    }
}
