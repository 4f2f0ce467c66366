//! What every scenario starts from: the built programs, the image, and a lab with a conductor.

use std::borrow::Cow;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ferrite_proto::host::{Host, HostState};
use ferrite_tests::bmc::{PASSWORD, USER};
use ferrite_tests::conductor::{Built, Conductor, target_dir};
use ferrite_tests::control_plane::Binaries;
use ferrite_tests::demo::OsImage;
use ferrite_tests::lab::Lab;
use ferrite_tests::machine::Machine;
use ferrite_tests::net::require_root;

use crate::Scenario;

/// Deadlines for a machine that is emulated on two cores, and retries that come soon.
const LIFECYCLE: &str = "boot_seconds = 240\nretry_first_seconds = 2\nretry_max_seconds = 10\n\
                         agent_silence_seconds = 30\npoll_seconds = 10\ncheck_in_seconds = 5";
/// Power on to `available`, emulated.
pub(crate) const BOOT: Duration = Duration::from_mins(4);
/// `available` to `provisioned`, emulated.
pub(crate) const DEPLOY: Duration = Duration::from_mins(7);
/// A step that needs no boot.
pub(crate) const SOON: Duration = Duration::from_mins(1);

/// Where things are.
pub(crate) struct World {
    built: Built,
    images: PathBuf,
    image: OsImage,
    out: PathBuf,
    /// The programs of Kubernetes that somebody has.
    pub(crate) kubernetes: Option<Binaries>,
}

impl World {
    /// Looks for all that is needed; the error says what is lacking.
    pub(crate) fn find() -> Result<Self> {
        require_root()?;
        let target = target_dir()?;
        let images = target.join("lab");
        let image = OsImage::read(&images.join("os.raw"))?;
        image.variant("zstd")?;
        Ok(Self {
            built: Built::find()?,
            images,
            image,
            out: target.join("e2e"),
            kubernetes: Binaries::find()?,
        })
    }

    /// The image of a node, with somebody's kubeadm and kubelet or the tests'.
    pub(crate) fn node_image(&self) -> Result<OsImage> {
        let (file, make) = match &self.kubernetes {
            Some(_) => ("node-kube.raw", "kube-node"),
            None => ("node-double.raw", "node"),
        };
        let image = OsImage::read(&self.images.join(file));
        image.with_context(|| format!("`make {make}` makes it"))
    }

    /// Runs a scenario in a folder of its own, which stays for a look when it failed.
    pub(crate) fn run(&self, scenario: &Scenario) -> Result<()> {
        let dir = self.dir(scenario.name);
        if dir.exists() {
            fs::remove_dir_all(&dir).with_context(|| format!("clearing {}", dir.display()))?;
        }
        (scenario.run)(self)?;
        fs::remove_dir_all(&dir).with_context(|| format!("clearing {}", dir.display()))
    }

    fn dir(&self, name: &str) -> PathBuf {
        self.out.join(name)
    }

    /// A lab of one host with a conductor in it.
    pub(crate) fn site(&self, name: &str, shape: impl Fn(Machine) -> Machine) -> Result<Site<'_>> {
        self.site_with(name, Cow::Borrowed(&self.image), shape)
    }

    /// The same with another image to deploy.
    pub(crate) fn site_with<'a>(
        &self,
        name: &str,
        image: Cow<'a, OsImage>,
        shape: impl Fn(Machine) -> Machine,
    ) -> Result<Site<'a>> {
        let dir = self.dir(name);
        let lab = Lab::builder()
            .host(shape)
            .dir(&dir)
            .images(&self.images)
            .up()?;
        let conductor = Conductor::start(&lab, self.built.clone(), 0, LIFECYCLE)?;
        Ok(Site {
            conductor,
            lab,
            image,
        })
    }
}

/// The one host's name in the conductor.
pub(crate) const HOST: &str = "host-1";

/// A lab with a conductor. The conductor goes first when it ends.
pub(crate) struct Site<'a> {
    pub(crate) conductor: Conductor,
    pub(crate) lab: Lab,
    image: Cow<'a, OsImage>,
}

impl Site<'_> {
    /// `ferrite host add` with what the lab's host needs, and more words.
    pub(crate) fn add(&self, more: &[&str]) -> Result<()> {
        self.add_with_password(PASSWORD, more)
    }

    /// The same with a password that may be wrong.
    pub(crate) fn add_with_password(&self, password: &str, more: &[&str]) -> Result<()> {
        let host = self.lab.host(1);
        let bmc = host.bmc_url().replacen("http://", "redfish+http://", 1);
        let mac = host.machine().mac(0);
        let mut words = vec!["host", "add", HOST, "--bmc", &bmc, "--username", USER];
        words.extend(["--password-file", "-", "--boot-mac", &mac]);
        words.extend(more);
        self.conductor.cli_ok(&words, password).map(drop)
    }

    /// `ferrite host provision` with the demo's image.
    pub(crate) fn provision(&self, more: &[&str]) -> Result<()> {
        let (file, digest) = self.image.variant("zstd")?;
        self.provision_image(&file, &digest, more)
    }

    /// The same with another file of the image server.
    pub(crate) fn provision_image(&self, file: &str, digest: &str, more: &[&str]) -> Result<()> {
        let url = self.lab.image_url(file);
        let mut words = vec![
            "host",
            "provision",
            HOST,
            "--image",
            &url,
            "--digest",
            digest,
        ];
        words.extend(more);
        self.conductor.cli_ok(&words, "").map(drop)
    }

    /// The image's file name and digest.
    pub(crate) fn image(&self) -> Result<(String, String)> {
        self.image.variant("zstd")
    }

    pub(crate) fn wait_state(&self, state: HostState, patience: Duration) -> Result<Host> {
        self.conductor
            .wait_state(HOST, state, patience)
            .with_context(|| self.console_tail())
    }

    pub(crate) fn wait_error(&self, code: &str, patience: Duration) -> Result<Host> {
        self.conductor
            .wait_error(HOST, code, patience)
            .with_context(|| self.console_tail())
    }

    /// Waits for `provisioned`, and for cloud-init and the daemon to be content.
    pub(crate) fn wait_provisioned(&self) -> Result<Host> {
        let host = self.wait_state(HostState::Provisioned, DEPLOY)?;
        let daemon = host
            .status
            .daemon
            .as_ref()
            .context("provisioned without a daemon")?;
        let stage = daemon.cloud_init.stage;
        let done = ferrite_proto::agent_api::CloudInitStage::Done;
        ensure!(stage == done, "cloud-init: {:?}", daemon.cloud_init);
        ensure!(daemon.os.contains("Debian"), "the OS is {:?}", daemon.os);
        Ok(host)
    }

    pub(crate) fn firmware_boots(&self) -> u64 {
        self.lab.host(1).firmware_boots()
    }

    fn console_tail(&self) -> String {
        let console = self.lab.host(1).console();
        let lines: Vec<&str> = console.lines().collect();
        let tail = lines[lines.len().saturating_sub(25)..].join("\n");
        format!("the console of {HOST} ends with:\n{tail}\n")
    }
}
