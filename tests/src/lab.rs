//! A whole lab in one value: network, hosts with BMCs, image server and, on request, a conductor.
//!
//! Everything is blocking, so that a test is a plain function of ten lines. Dropping the lab leaves
//! nothing behind but its directory, and that only if the caller named one.

use std::ffi::OsString;
use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;
use tokio::runtime::Runtime;

use crate::accel::{self, Accel};
use crate::bmc::{Bmc, PASSWORD, USER};
use crate::forward::{carry_all, forward};
use crate::images::{self, Images};
use crate::machine::Machine;
use crate::net::{Namespace, SERVER};
use crate::vm::{Cost, Power, Vm};

/// How often a wait looks again.
const GLANCE: Duration = Duration::from_millis(100);

#[derive(Debug, Default)]
pub struct Builder {
    machines: Vec<Machine>,
    dir: Option<PathBuf>,
    images: Option<PathBuf>,
    accel: Option<Accel>,
}

impl Builder {
    /// Adds a host; its number is its place, beginning with 1.
    ///
    /// # Panics
    /// When there are 255 hosts already: their addresses are used up.
    #[must_use]
    pub fn host(mut self, shape: impl FnOnce(Machine) -> Machine) -> Self {
        let number = u8::try_from(self.machines.len() + 1).expect("a lab has at most 255 hosts");
        self.machines.push(shape(Machine::new(number)));
        self
    }

    #[must_use]
    pub fn hosts(self, count: u8, shape: impl Fn(Machine) -> Machine) -> Self {
        (0..count).fold(self, |builder, _| builder.host(&shape))
    }

    /// Keeps the lab's files there instead of in a temporary directory.
    #[must_use]
    pub fn dir(mut self, dir: &Path) -> Self {
        self.dir = Some(dir.to_owned());
        self
    }

    /// What the image server serves.
    #[must_use]
    pub fn images(mut self, dir: &Path) -> Self {
        self.images = Some(dir.to_owned());
        self
    }

    #[must_use]
    pub fn accel(mut self, accel: Accel) -> Self {
        self.accel = Some(accel);
        self
    }

    pub fn up(self) -> Result<Lab> {
        let net = Arc::new(Namespace::create()?);
        let runtime = net.runtime()?;
        let dir = Dir::new(self.dir)?;
        let accel = self.accel.unwrap_or_else(accel::choose);
        let images_dir = self.images.unwrap_or_else(|| dir.path().join("images"));
        fs::create_dir_all(&images_dir)?;
        let images = Images::new(&images_dir);
        let mut lab = Lab {
            hosts: Vec::new(),
            images,
            accel,
            dir,
            runtime: Some(runtime),
            outside: Vec::new(),
            net,
        };
        lab.start_images()?;
        for machine in self.machines {
            lab.add_host(machine)?;
        }
        Ok(lab)
    }
}

/// A running lab.
#[derive(Debug)]
pub struct Lab {
    hosts: Vec<Host>,
    images: Arc<Images>,
    accel: Accel,
    dir: Dir,
    runtime: Option<Runtime>,
    /// Of what `reach` leads to.
    outside: Vec<Runtime>,
    net: Arc<Namespace>,
}

impl Lab {
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// The host with this number; the first is 1.
    ///
    /// # Panics
    /// When the lab has no such host: a mistake in the test.
    pub fn host(&self, number: usize) -> &Host {
        let index = number.checked_sub(1).expect("hosts are counted from 1");
        self.hosts.get(index).expect("the lab has that many hosts")
    }

    pub fn hosts(&self) -> &[Host] {
        &self.hosts
    }

    pub fn images(&self) -> &Images {
        &self.images
    }

    pub fn image_url(&self, file: &str) -> String {
        format!("http://{SERVER}:{}/{file}", images::PORT)
    }

    pub fn net(&self) -> &Namespace {
        &self.net
    }

    pub(crate) fn share_net(&self) -> Arc<Namespace> {
        Arc::clone(&self.net)
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub fn accel(&self) -> Accel {
        self.accel
    }

    /// Runs a future with its sockets inside the lab.
    pub fn block_on<T: Send + 'static>(
        &self,
        future: impl Future<Output = T> + Send + 'static,
    ) -> Result<T> {
        let task = self.handle()?.spawn(future);
        self.handle()?
            .block_on(task)
            .context("a task of the lab failed")
    }

    /// Runs a program inside the lab to its end.
    pub fn run(&self, argv: &[&str], env: &[(&str, &str)]) -> Result<Output> {
        let arguments = argv.iter().map(OsString::from).collect();
        let env: Vec<_> = env
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect();
        let child = self.net.spawn(arguments, move |command| {
            command
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .envs(env);
        })?;
        child
            .wait_with_output()
            .with_context(|| format!("running {}", argv.join(" ")))
    }

    /// Opens 127.0.0.1:`port` (0: any) on the ordinary network for an address inside.
    pub fn forward(&self, port: u16, target: SocketAddr) -> Result<SocketAddr> {
        forward(&self.handle()?, port, target)
    }

    /// Makes one address of the ordinary network answer inside: the lab has no other way out. It
    /// lasts as long as the lab.
    pub fn reach(&mut self, target: SocketAddr) -> Result<()> {
        self.net.add_address(target.ip())?;
        let bound = self.net.run_in(move || TcpListener::bind(target))?;
        let listener = bound.with_context(|| format!("listening on {target} in the lab"))?;
        let outside = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .context("starting a runtime outside the lab")?;
        carry_all(outside.handle(), listener, target)?;
        self.outside.push(outside);
        Ok(())
    }

    /// Sends a Redfish request to a host's BMC, with the right credentials.
    pub fn redfish(
        &self,
        host: usize,
        method: &str,
        path: &str,
        body: &Value,
    ) -> Result<(u16, Value)> {
        let url = format!("{}{path}", self.host(host).bmc_url());
        let request = crate::http_client()?.request(method.parse()?, &url);
        let request = request.basic_auth(USER, Some(PASSWORD));
        let request = if body.is_null() {
            request
        } else {
            request.json(body)
        };
        self.block_on(async move {
            let reply = request
                .send()
                .await
                .with_context(|| format!("asking {url}"))?;
            let status = reply.status().as_u16();
            let text = reply.text().await?;
            Ok((status, serde_json::from_str(&text).unwrap_or(Value::Null)))
        })?
    }

    fn start_images(&self) -> Result<()> {
        let images = Arc::clone(&self.images);
        let listener = self.listen(images::PORT)?;
        self.block_on(async move { images.serve(listener).map(drop) })?
    }

    fn add_host(&mut self, machine: Machine) -> Result<()> {
        let port = machine.bmc_port();
        let dir = self.dir.path().join(format!("host-{}", machine.number));
        let vm = Vm::create(machine, &dir, Arc::clone(&self.net), self.accel)?;
        let bmc = Bmc::new(Arc::clone(&vm), &dir);
        let (served, listener) = (Arc::clone(&bmc), self.listen(port)?);
        self.block_on(async move { served.serve(listener).map(drop) })??;
        self.hosts.push(Host { vm, bmc });
        Ok(())
    }

    fn listen(&self, port: u16) -> Result<TcpListener> {
        let bound = self.net.run_in(move || TcpListener::bind((SERVER, port)))?;
        bound.with_context(|| format!("listening on {SERVER}:{port} in {}", self.net.name()))
    }

    fn handle(&self) -> Result<tokio::runtime::Handle> {
        self.runtime
            .as_ref()
            .map(|runtime| runtime.handle().clone())
            .context("the lab is down")
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for runtime in self
            .runtime
            .take()
            .into_iter()
            .chain(self.outside.drain(..))
        {
            runtime.shutdown_timeout(Duration::from_millis(200));
        }
        for host in &self.hosts {
            if let Err(error) = host.vm.power_off() {
                tracing::warn!(error = format!("{error:#}"), "a host did not go off");
            }
        }
        self.net.close();
    }
}

/// A host of the lab: the machine and its BMC.
#[derive(Debug)]
pub struct Host {
    pub vm: Arc<Vm>,
    pub bmc: Arc<Bmc>,
}

impl Host {
    pub fn machine(&self) -> &Machine {
        &self.vm.machine
    }

    /// As the hosts of a lab are called everywhere: in the conductor, in tests, in the status.
    pub fn name(&self) -> String {
        format!("host-{}", self.machine().number)
    }

    pub fn bmc_url(&self) -> String {
        format!("http://{SERVER}:{}", self.machine().bmc_port())
    }

    pub fn power(&self) -> Power {
        self.vm.power()
    }

    pub fn cost(&self) -> Cost {
        self.vm.cost()
    }

    pub fn firmware_boots(&self) -> u64 {
        self.cost().firmware_boots
    }

    pub fn disk(&self, index: usize) -> PathBuf {
        self.vm.disk(index)
    }

    /// Power lost without notice; the BMC then says Off.
    pub fn power_cut(&self) -> Result<()> {
        self.vm.power_off()
    }

    /// Everything the serial console has shown, over all power-ons.
    pub fn console(&self) -> String {
        let bytes = fs::read(self.vm.console_log()).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Waits until the console has shown `text`.
    pub fn wait_console(&self, text: &str, patience: Duration) -> Result<()> {
        let shown = wait_until(patience, || self.console().contains(text));
        shown.with_context(|| {
            let console = self.console();
            let tail: Vec<_> = console.lines().rev().take(15).collect();
            let tail = tail.into_iter().rev().collect::<Vec<_>>().join("\n");
            format!(
                "{}: no `{text}` on the console, which ends with:\n{tail}",
                self.name()
            )
        })
    }
}

/// Looks again and again until `holds`, or for as long as `patience`.
pub fn wait_until(patience: Duration, mut holds: impl FnMut() -> bool) -> Result<()> {
    let deadline = Instant::now() + patience;
    while !holds() {
        if Instant::now() >= deadline {
            bail!("waited {patience:?}");
        }
        std::thread::sleep(GLANCE);
    }
    Ok(())
}

/// New hosts are blank, so what an earlier lab here knew of its hosts must not meet them.
fn remove_earlier(dir: &Path) -> Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let of_host = name
            .to_string_lossy()
            .strip_prefix("host-")
            .map(str::parse::<u8>);
        if name == "conductor" || matches!(of_host, Some(Ok(_))) {
            let path = entry.path();
            fs::remove_dir_all(&path).with_context(|| format!("removing {}", path.display()))?;
        }
    }
    Ok(())
}

#[derive(Debug)]
enum Dir {
    Kept(PathBuf),
    Temporary(tempfile::TempDir),
}

impl Dir {
    fn new(named: Option<PathBuf>) -> Result<Self> {
        match named {
            None => Ok(Self::Temporary(
                tempfile::Builder::new().prefix("ferrite-lab-").tempdir()?,
            )),
            Some(path) => {
                fs::create_dir_all(&path)
                    .with_context(|| format!("creating {}", path.display()))?;
                remove_earlier(&path)?;
                Ok(Self::Kept(path.canonicalize()?))
            }
        }
    }

    fn path(&self) -> &Path {
        match self {
            Self::Kept(path) => path,
            Self::Temporary(dir) => dir.path(),
        }
    }
}
