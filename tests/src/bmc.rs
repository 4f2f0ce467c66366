//! A virtual BMC: Redfish over HTTP in front of one host, with credentials, sessions and faults on
//! demand.
//!
//! It plays a plain, correct BMC. Vendor oddities are put in with `faults`, not written here. What
//! the documents look like is in `bmc/documents.rs`, what requests do in `bmc/requests.rs`.

mod documents;
mod requests;

use std::fmt;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{Request, State};
use axum::response::Response;
use futures_util::{StreamExt, stream};
use serde_json::Value;
use tokio::io::AsyncWriteExt;
use tokio::runtime::Handle;
use tokio::task::{AbortHandle, JoinHandle};

use crate::faults::{Effect, Fault, Faults};
use crate::machine::{Firmware, Machine};
use crate::vm::{BootOverride, Power, Vm};
use requests::Reply;

pub const USER: &str = "admin";
pub const PASSWORD: &str = "lab-bmc-password";

const BODY_LIMIT: usize = 64 << 10;
const REMEMBERED_REQUESTS: usize = 20_000;
const MEDIA_PATIENCE: Duration = Duration::from_mins(2);

/// What a BMC is soldered to: the lab's QEMU host, or a double.
pub trait Hardware: Send + Sync + fmt::Debug {
    fn machine(&self) -> &Machine;
    fn power(&self) -> Power;
    fn power_on(&self) -> Result<()>;
    fn power_off(&self) -> Result<()>;
    fn press_button(&self) -> Result<()>;
    fn reset(&self) -> Result<()>;
    fn nmi(&self) -> Result<()>;
    fn boot_override(&self) -> BootOverride;
    fn set_boot(&self, boot: BootOverride) -> Result<()>;
    fn insert_media(&self, path: &Path) -> Result<()>;
    fn eject_media(&self) -> Result<()>;
}

impl Hardware for Arc<Vm> {
    fn machine(&self) -> &Machine {
        &self.machine
    }
    fn power(&self) -> Power {
        Vm::power(self)
    }
    fn power_on(&self) -> Result<()> {
        Vm::power_on(self)
    }
    fn power_off(&self) -> Result<()> {
        Vm::power_off(self)
    }
    fn press_button(&self) -> Result<()> {
        Vm::press_button(self)
    }
    fn reset(&self) -> Result<()> {
        Vm::reset(self)
    }
    fn nmi(&self) -> Result<()> {
        Vm::nmi(self)
    }
    fn boot_override(&self) -> BootOverride {
        Vm::boot_override(self)
    }
    fn set_boot(&self, boot: BootOverride) -> Result<()> {
        Vm::set_boot(self, boot)
    }
    fn insert_media(&self, path: &Path) -> Result<()> {
        Vm::insert_media(self, path)
    }
    fn eject_media(&self) -> Result<()> {
        Vm::eject_media(self)
    }
}

/// One request that the BMC answered, or did not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    pub method: String,
    pub path: String,
    /// 0: no answer was given.
    pub status: u16,
}

#[derive(Debug)]
pub struct Bmc {
    hardware: Box<dyn Hardware>,
    /// Downloaded media go here, as into a BMC's own memory.
    dir: PathBuf,
    pub faults: Faults,
    inner: Mutex<Inner>,
    media_bytes: AtomicU64,
    serving: Mutex<Option<AbortHandle>>,
}

#[derive(Debug)]
struct Inner {
    password: String,
    sessions: Vec<(String, String)>,
    media_url: Option<String>,
    media_count: u64,
    seen: Vec<Seen>,
}

impl Bmc {
    pub fn new(hardware: impl Hardware + 'static, dir: &Path) -> Arc<Self> {
        let inner = Inner {
            password: PASSWORD.to_owned(),
            sessions: Vec::new(),
            media_url: None,
            media_count: 0,
            seen: Vec::new(),
        };
        Arc::new(Self {
            hardware: Box::new(hardware),
            dir: dir.to_owned(),
            faults: Faults::default(),
            inner: Mutex::new(inner),
            media_bytes: AtomicU64::new(0),
            serving: Mutex::new(None),
        })
    }

    /// Answers on `listener` until `unplug` or the runtime's end. Must be called on the lab's
    /// runtime.
    pub fn serve(self: &Arc<Self>, listener: TcpListener) -> Result<JoinHandle<()>> {
        listener.set_nonblocking(true)?;
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let router = Router::new().fallback(handle).with_state(Arc::clone(self));
        let task = tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, router).await {
                tracing::error!(%error, "a BMC stopped answering");
            }
        });
        *self.serving.lock().unwrap_or_else(PoisonError::into_inner) = Some(task.abort_handle());
        Ok(task)
    }

    /// Pulls the BMC's network cable: new connections are refused, open ones are cut at their next
    /// request.
    pub fn unplug(&self) {
        if let Some(task) = self
            .serving
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
        {
            task.abort();
        }
    }

    fn is_plugged(&self) -> bool {
        self.serving
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .is_some()
    }

    pub fn set_password(&self, password: &str) {
        let mut inner = self.lock();
        password.clone_into(&mut inner.password);
        inner.sessions.clear();
    }

    /// Bytes downloaded as virtual media so far.
    pub fn media_bytes(&self) -> u64 {
        self.media_bytes.load(Ordering::Relaxed)
    }

    pub fn media_url(&self) -> Option<String> {
        self.lock().media_url.clone()
    }

    /// Every request so far, oldest first.
    pub fn requests(&self) -> Vec<Seen> {
        self.lock().seen.clone()
    }

    fn note(&self, method: &str, path: &str, status: u16) {
        let mut inner = self.lock();
        if inner.seen.len() < REMEMBERED_REQUESTS {
            let (method, path) = (method.to_owned(), path.to_owned());
            inner.seen.push(Seen {
                method,
                path,
                status,
            });
        }
    }

    /// Fetches virtual media whole, then puts it into the drive.
    fn load_media(&self, url: &str) -> Result<()> {
        let number = {
            let mut inner = self.lock();
            inner.media_count += 1;
            inner.media_count
        };
        let path = self.dir.join(format!("media-{number}.iso"));
        let bytes = Handle::current().block_on(download(url, &path))?;
        self.media_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.hardware.insert_media(&path)?;
        self.lock().media_url = Some(url.to_owned());
        self.drop_media_file(number - 1);
        Ok(())
    }

    fn eject_media(&self) -> Result<()> {
        self.hardware.eject_media()?;
        let number = {
            let mut inner = self.lock();
            inner.media_url = None;
            inner.media_count
        };
        self.drop_media_file(number);
        Ok(())
    }

    fn drop_media_file(&self, number: u64) {
        drop(std::fs::remove_file(
            self.dir.join(format!("media-{number}.iso")),
        ));
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn download(url: &str, path: &Path) -> Result<u64> {
    let client = crate::http_client()?;
    let reply = client.get(url).timeout(MEDIA_PATIENCE).send().await;
    let reply = reply.with_context(|| format!("fetching {url}"))?;
    ensure!(
        reply.status().is_success(),
        "fetching {url}: {}",
        reply.status()
    );
    let mut file = tokio::fs::File::create(path).await?;
    let (mut bytes, mut chunks) = (0, reply.bytes_stream());
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.with_context(|| format!("fetching {url}, after {bytes} bytes"))?;
        file.write_all(&chunk).await?;
        bytes += chunk.len() as u64;
    }
    file.flush().await?;
    Ok(bytes)
}

async fn handle(State(bmc): State<Arc<Bmc>>, request: Request) -> Response {
    let (head, body) = request.into_parts();
    let (method, path) = (head.method.as_str().to_owned(), head.uri.path().to_owned());
    if !bmc.is_plugged() {
        return hang_up();
    }
    let fault = bmc.faults.strike(&method, &path);
    tokio::time::sleep(fault.as_ref().map_or(Duration::ZERO, |fault| fault.delay)).await;
    if let Some(reply) = fault.as_ref().and_then(unanswered) {
        bmc.note(&method, &path, 0);
        return reply.await;
    }
    let body = to_bytes(body, BODY_LIMIT).await;
    let reply = match (fault.map(|fault| fault.effect), body) {
        (Some(Effect::Status(status)), _) => requests::faulty_status(status),
        (Some(Effect::Body(text)), _) => return Response::new(Body::from(text)),
        (_, Err(_)) => requests::faulty_status(413),
        (effect, Ok(body)) => {
            let mut reply = answer(&bmc, head, body).await;
            if let Some(Effect::Lie { pointer, value }) = effect {
                lie(&mut reply.body, &pointer, value);
            }
            reply
        }
    };
    bmc.note(&method, &path, reply.status);
    reply.into_response()
}

/// Requests wait for QEMU and for downloads, so they run where waiting is allowed.
async fn answer(bmc: &Arc<Bmc>, head: axum::http::request::Parts, body: Bytes) -> Reply {
    let bmc = Arc::clone(bmc);
    let work = move || requests::answer(&bmc, &head, &body);
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|_| requests::faulty_status(500))
}

fn unanswered(fault: &Fault) -> Option<impl Future<Output = Response> + use<>> {
    let stall = match fault.effect {
        Effect::Stall | Effect::StallAfter(_) => true,
        Effect::Drop | Effect::Cut(_) => false,
        _ => return None,
    };
    Some(async move {
        if stall {
            std::future::pending::<()>().await;
        }
        hang_up()
    })
}

/// A body that fails before its first byte: the server closes the connection instead of answering.
pub(crate) fn hang_up() -> Response {
    let broken = std::io::Error::from(std::io::ErrorKind::ConnectionAborted);
    Response::new(Body::from_stream(stream::once(async {
        Err::<Bytes, _>(broken)
    })))
}

fn lie(body: &mut Value, pointer: &str, value: Value) {
    if let Some(place) = body.pointer_mut(pointer) {
        *place = value;
    }
}

fn mode(firmware: Firmware) -> &'static str {
    match firmware {
        Firmware::Uefi => "UEFI",
        Firmware::Bios => "Legacy",
    }
}

#[cfg(test)]
mod tests;
