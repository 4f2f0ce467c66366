//! How a machine reaches the ramdisk: DHCP or proxyDHCP, TFTP for the first iPXE, HTTP for the
//! rest, and per-host ISOs for virtual media.
//!
//! It knows no hosts. Who boots what is asked of a [`BootDirectory`], and everything that was
//! served is told to it. Firmware and iPXE speak plain HTTP only, so a ticket goes out only to
//! the address that its host's MAC has leased.

mod advert;
mod artifacts;
mod dhcp;
mod http;
mod ipxe;
mod iso;
mod leases;
mod tftp;

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use ferrite_proto::boot::BootParameters;
use ferrite_proto::mac::Mac;
use tokio::net::{TcpListener, UdpSocket};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub(crate) use artifacts::ArtifactError;
pub(crate) use http::CONNECTIONS;

/// Knows what each machine shall boot. Called from the network's tasks: it must not block.
pub(crate) trait BootDirectory: Send + Sync {
    /// What this machine shall boot now. Asking changes nothing.
    fn answer(&self, who: &Requester) -> BootAnswer;
    /// What the ISO behind `token` shall be and say; `None` for a token that is unknown or over.
    fn iso(&self, token: &str) -> Option<(Flavour, BootParameters)>;
    /// Told of everything that was served.
    fn note(&self, event: NetbootEvent);
}

/// A machine that asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Requester {
    /// The NIC it asks with.
    pub(crate) mac: Mac,
    /// Its address, once it has one.
    pub(crate) ip: Option<IpAddr>,
    /// Its firmware, where it told.
    pub(crate) arch: Option<FirmwareArch>,
}

/// Client architectures of RFC 4578 that we can boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FirmwareArch {
    /// Legacy BIOS (0).
    Bios,
    /// UEFI on x86-64 over TFTP (7, 9).
    UefiX64,
    /// UEFI on x86-64 over HTTP (16).
    UefiX64Http,
    /// Any other number.
    Other(u16),
}

/// Which ramdisk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Flavour {
    /// With the agent alone.
    #[default]
    Ordinary,
    /// With a shell and an SSH server as well.
    Rescue,
}

/// What a machine shall boot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum BootAnswer {
    /// The ramdisk, with these words.
    Ramdisk(Flavour, BootParameters),
    /// Its own disk.
    OwnDisk,
    /// Nobody knows it.
    Unknown,
}

/// What was served, for a host's timeline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum NetbootEvent {
    /// An address or boot information went out.
    Dhcp {
        /// To whom.
        mac: Mac,
        /// The address given, absent for a proxy.
        ip: Option<Ipv4Addr>,
        /// The boot file offered, if any.
        boot_file: Option<String>,
    },
    /// A file went out over TFTP, whole.
    Tftp {
        /// To which address.
        ip: IpAddr,
        /// Whose address it is, where a lease says.
        mac: Option<Mac>,
        /// The file.
        name: String,
        /// How long it is.
        bytes: u64,
    },
    /// An iPXE script went out.
    Script {
        /// To whom.
        mac: Mac,
        /// What it says: `ramdisk`, `own disk`, `unknown`.
        answer: &'static str,
    },
    /// A boot file, or a range of it, went out over HTTP.
    File {
        /// To which address.
        ip: IpAddr,
        /// Whose address it is, where a lease says.
        mac: Option<Mac>,
        /// The file.
        name: String,
        /// Bytes that were sent.
        bytes: u64,
        /// Whether the last byte of the file was among them.
        to_the_end: bool,
    },
    /// A range of a host's ISO was read.
    Iso {
        /// Which.
        token: String,
        /// Bytes that were sent.
        bytes: u64,
    },
}

/// Where netboot listens and what it serves; made by `config.rs`, cannot be wrong in itself.
#[derive(Debug, Clone)]
pub(crate) struct NetbootConfig {
    /// Folder made by `ferrite-image`, with `manifest.json`.
    pub(crate) artifacts: PathBuf,
    /// Folder with `snponly.efi` and `undionly.kpxe`: Debian's `/usr/lib/ipxe`.
    pub(crate) ipxe: PathBuf,
    /// Folder for `leases.json`.
    pub(crate) state_dir: PathBuf,
    /// Plain HTTP for firmware and iPXE.
    pub(crate) http_listen: SocketAddr,
    /// What machines are told of it: `http://10.77.0.1:7080`, no path, no slash at the end.
    pub(crate) http_url: String,
    /// TFTP's address, port 69; `None` switches it off.
    pub(crate) tftp: Option<SocketAddr>,
    /// DHCP.
    pub(crate) dhcp: DhcpMode,
}

/// What we do about DHCP.
#[derive(Debug, Clone)]
pub(crate) enum DhcpMode {
    /// Nothing: addresses and boot information come from elsewhere, or everything is virtual media.
    Off,
    /// Addresses and boot information.
    Server(DhcpServer),
    /// Boot information beside somebody else's DHCP server.
    Proxy(DhcpProxy),
}

/// Our DHCP server.
#[derive(Debug, Clone)]
pub(crate) struct DhcpServer {
    /// The network interface it is bound to.
    pub(crate) interface: String,
    /// Our address there: server identifier, next-server.
    pub(crate) address: Ipv4Addr,
    /// Length of the network's prefix.
    pub(crate) prefix: u8,
    /// First address given out.
    pub(crate) pool_start: Ipv4Addr,
    /// Last address given out.
    pub(crate) pool_end: Ipv4Addr,
    /// Default router, if there is one.
    pub(crate) router: Option<Ipv4Addr>,
    /// Name servers.
    pub(crate) dns: Vec<Ipv4Addr>,
    /// How long an address is lent.
    pub(crate) lease: std::time::Duration,
    /// Answer machines that the directory does not know, too.
    pub(crate) unknown: bool,
}

/// Our proxyDHCP server.
#[derive(Debug, Clone)]
pub(crate) struct DhcpProxy {
    /// The network interface it is bound to.
    pub(crate) interface: String,
    /// Our address there.
    pub(crate) address: Ipv4Addr,
    /// Answer machines that the directory does not know, too.
    pub(crate) unknown: bool,
}

/// Why netboot cannot start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NetbootError {
    /// The boot files are not there, or not those that were built.
    #[error(transparent)]
    Artifacts(#[from] ArtifactError),
    /// iPXE is not there.
    #[error(
        "cannot read {}; install Debian's package ipxe, or name the folder that has it",
        path.display()
    )]
    Ipxe {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A setting that cannot be.
    #[error("netboot: {0}")]
    Setting(String),
    /// A port cannot be had.
    #[error(
        "cannot listen for {what} on {at}; is another server running there, or are we not root?"
    )]
    Listen {
        /// `DHCP`, `TFTP`, `HTTP`.
        what: &'static str,
        /// Address or interface, and port.
        at: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// The running services.
#[derive(Debug)]
pub(crate) struct Netboot {
    iso_base: Option<String>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

/// Reads all that would be served, without serving it; the names of the files.
pub(crate) async fn check(config: &NetbootConfig) -> Result<Vec<String>, NetbootError> {
    check_url(config)?;
    leases(config)?;
    let (artifacts, first_stage) = read_files(config).await?;
    let isos = artifacts.iso.iter().chain(&artifacts.rescue_iso);
    let iso = isos.map(|iso| &iso.file);
    let files = artifacts.files.iter().chain(iso).map(|file| file.name);
    let mut names: Vec<_> = files.chain(first_stage.keys().copied()).collect();
    names.sort_unstable();
    Ok(names.into_iter().map(str::to_owned).collect())
}

fn check_url(config: &NetbootConfig) -> Result<(), NetbootError> {
    let url = &config.http_url;
    if ipxe::is_plain_url(url) {
        return Ok(());
    }
    let reason = format!("http_url is {url:?}, it must be http://HOST:PORT and no more");
    Err(NetbootError::Setting(reason))
}

/// Starts what the configuration asks for; returns once every socket is bound.
pub(crate) async fn start(
    config: NetbootConfig,
    directory: Arc<dyn BootDirectory>,
) -> Result<Netboot, NetbootError> {
    check_url(&config)?;
    let (artifacts, first_stage) = read_files(&config).await?;
    let leases = leases(&config)?;
    let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
    let iso_base = artifacts.iso.is_some().then(|| config.http_url.clone());
    let http = Arc::new(http::Http {
        url: config.http_url.clone(),
        artifacts,
        ipxe: Arc::clone(&first_stage),
        leases: leases.clone(),
        directory: Arc::clone(&directory),
    });
    // All ports first: a start that fails leaves nothing running.
    let listener = TcpListener::bind(config.http_listen).await;
    let listener = listener.map_err(listen("HTTP", config.http_listen))?;
    let tftp = match config.tftp {
        Some(at) => Some(UdpSocket::bind(at).await.map_err(listen("TFTP", at))?),
        None => None,
    };
    let dhcp = dhcp_sockets(&config.dhcp)?;

    tasks.spawn(http::run(Arc::clone(&http), listener, stop.clone()));
    if let Some(socket) = tftp {
        let served = move |ip, name: &'static str, bytes| {
            let (ip, name) = (IpAddr::to_canonical(&ip), name.to_owned());
            let mac = http.mac_of(ip);
            let event = NetbootEvent::Tftp {
                ip,
                mac,
                name,
                bytes,
            };
            http.directory.note(event);
        };
        tasks.spawn(tftp::run(socket, first_stage, stop.clone(), served));
    }
    let mode = match (config.dhcp, leases) {
        (DhcpMode::Server(server), Some(leases)) => dhcp::Mode::Server(server, leases),
        (DhcpMode::Proxy(proxy), _) => dhcp::Mode::Proxy(proxy),
        (DhcpMode::Server(_) | DhcpMode::Off, _) => dhcp::Mode::Off,
    };
    let answers = dhcp::Dhcp {
        mode,
        http_url: config.http_url,
        directory,
    };
    spawn_dhcp(&tasks, answers, dhcp, &stop);
    tasks.close();
    Ok(Netboot {
        iso_base,
        stop,
        tasks,
    })
}

fn spawn_dhcp(
    tasks: &TaskTracker,
    answers: dhcp::Dhcp,
    sockets: Vec<(UdpSocket, u16)>,
    stop: &CancellationToken,
) {
    let network = match &answers.mode {
        dhcp::Mode::Server(server, _) => Some((&server.interface, server.unknown)),
        dhcp::Mode::Proxy(proxy) => Some((&proxy.interface, proxy.unknown)),
        dhcp::Mode::Off => None,
    };
    if let Some((interface, unknown)) = network {
        match advert::socket(interface) {
            Ok(socket) => {
                let directory = Arc::clone(&answers.directory);
                tasks.spawn(advert::run(directory, unknown, socket, stop.clone()));
            }
            // Without IPv6 here all works as well, only iPXE takes longer.
            Err(error) => tracing::info!(%error, "netboot: iPXE will wait for an IPv6 router"),
        }
    }
    let answers = Arc::new(answers);
    for (socket, port) in sockets {
        tasks.spawn(dhcp::run(Arc::clone(&answers), socket, port, stop.clone()));
    }
}

impl Netboot {
    /// Where a BMC fetches the ISO of `token`; `None` when no ISO was built.
    pub(crate) fn iso_url(&self, token: &str) -> Option<String> {
        let base = self.iso_base.as_ref()?;
        Some(format!("{base}/iso/{token}/ramdisk.iso"))
    }

    /// Stops and joins everything.
    pub(crate) async fn stop(self) {
        self.stop.cancel();
        self.tasks.wait().await;
    }
}

/// Reads and checks boot files and iPXE, on a thread that may block.
async fn read_files(
    config: &NetbootConfig,
) -> Result<(artifacts::Artifacts, tftp::Table), NetbootError> {
    let (artifacts, ipxe) = (config.artifacts.clone(), config.ipxe.clone());
    let read = tokio::task::spawn_blocking(move || {
        let table = tftp::table(&ipxe);
        let table = table.map_err(|(path, source)| NetbootError::Ipxe { path, source })?;
        Ok((artifacts::load(&artifacts)?, table))
    });
    read.await.expect("reading files does not panic")
}

/// The leases that a server of addresses needs.
fn leases(config: &NetbootConfig) -> Result<Option<Arc<leases::Leases>>, NetbootError> {
    let DhcpMode::Server(server) = &config.dhcp else {
        return Ok(None);
    };
    let (first, last) = (server.pool_start, server.pool_end);
    let network = ipnet::Ipv4Net::new(server.address, server.prefix);
    let inside = network.is_ok_and(|net| [first, last].iter().all(|ip| net.contains(ip)));
    if first > last || !inside || (first..=last).contains(&server.address) {
        return Err(NetbootError::Setting(format!(
            "the pool {first} to {last} must lie in the network of {}/{} and not contain it",
            server.address, server.prefix
        )));
    }
    let leases = leases::Leases::load(first, last, server.lease, &config.state_dir);
    Ok(Some(Arc::new(leases)))
}

fn dhcp_sockets(mode: &DhcpMode) -> Result<Vec<(UdpSocket, u16)>, NetbootError> {
    let (interface, ports): (_, &[u16]) = match mode {
        DhcpMode::Off => return Ok(Vec::new()),
        DhcpMode::Server(server) => (&server.interface, &[dhcp::SERVER_PORT]),
        DhcpMode::Proxy(proxy) => (&proxy.interface, &[dhcp::SERVER_PORT, dhcp::PROXY_PORT]),
    };
    let bind = |&port: &u16| {
        let socket = dhcp::socket(interface, port);
        let socket = socket.map_err(listen("DHCP", format!("{interface} port {port}")))?;
        Ok((socket, port))
    };
    ports.iter().map(bind).collect()
}

fn listen(
    what: &'static str,
    at: impl std::fmt::Display,
) -> impl FnOnce(io::Error) -> NetbootError {
    let at = at.to_string();
    move |source| NetbootError::Listen { what, at, source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ferrite_proto::boot::CaPin;
    use ferrite_proto::secret::Secret;
    use std::sync::Mutex;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    /// Knows one MAC and one ISO, and remembers what it was told.
    pub(super) struct Directory {
        mac: Mac,
        events: Mutex<Vec<NetbootEvent>>,
    }

    impl Directory {
        pub(super) fn with(mac: Mac) -> Self {
            let events = Mutex::default();
            Self { mac, events }
        }

        pub(super) fn words() -> BootParameters {
            BootParameters {
                url: "https://10.77.0.1:7443".into(),
                ca: CaPin([7; 32]),
                ticket: Secret::new("abcdefghijklmnop-_".into()),
                time: None,
            }
        }

        pub(super) fn events(&self) -> Vec<NetbootEvent> {
            self.events.lock().unwrap().clone()
        }
    }

    impl BootDirectory for Directory {
        fn answer(&self, who: &Requester) -> BootAnswer {
            if who.mac == self.mac {
                BootAnswer::Ramdisk(Flavour::Ordinary, Self::words())
            } else {
                BootAnswer::Unknown
            }
        }

        fn iso(&self, token: &str) -> Option<(Flavour, BootParameters)> {
            let flavour = match token {
                "token-of-one" => Flavour::Ordinary,
                "token-of-rescue" => Flavour::Rescue,
                _ => return None,
            };
            Some((flavour, Self::words()))
        }

        fn note(&self, event: NetbootEvent) {
            self.events.lock().unwrap().push(event);
        }
    }

    /// The contract between DHCP and the rest: a boot file that is offered is one that is served.
    #[tokio::test]
    async fn each_boot_file_that_dhcp_offers_is_served() {
        let dir = tempfile::tempdir().unwrap();
        artifacts::tests::folder(dir.path());
        for name in ["snponly.efi", "undionly.kpxe"] {
            std::fs::write(dir.path().join(name), name).unwrap();
        }
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let http_listen = free.local_addr().unwrap();
        drop(free);
        let config = NetbootConfig {
            artifacts: dir.path().to_owned(),
            ipxe: dir.path().to_owned(),
            state_dir: dir.path().to_owned(),
            http_listen,
            http_url: format!("http://{http_listen}"),
            tftp: Some("127.0.0.1:0".parse().unwrap()),
            dhcp: DhcpMode::Off,
        };
        let directory = Arc::new(Directory::with(Mac([2, 0, 0, 0, 0, 1])));
        let netboot = start(config, directory).await.unwrap();
        let table = tftp::table(dir.path()).unwrap();
        let url = format!("http://{http_listen}");
        for arch in [
            FirmwareArch::Bios,
            FirmwareArch::UefiX64,
            FirmwareArch::UefiX64Http,
        ] {
            let file = dhcp::boot_file(&url, arch).unwrap();
            match file.strip_prefix(&url) {
                None => assert!(table.contains_key(file.as_str()), "{file}"),
                Some(path) => assert!(fetch(http_listen, path).await.contains("200 OK"), "{file}"),
            }
        }
        let script = ipxe::script_url(&url, Mac([2, 0, 0, 0, 0, 1]));
        let script = fetch(http_listen, script.strip_prefix(&url).unwrap()).await;
        for word in script
            .split_whitespace()
            .filter(|w| w.contains("/artifacts/"))
        {
            let path = word.strip_prefix(&url).unwrap();
            assert!(fetch(http_listen, path).await.contains("200 OK"), "{path}");
        }
        netboot.stop().await;
    }

    async fn fetch(at: SocketAddr, path: &str) -> String {
        let mut stream = tokio::net::TcpStream::connect(at).await.unwrap();
        let request = format!("GET {path} HTTP/1.0\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut reply = Vec::new();
        stream.read_to_end(&mut reply).await.unwrap();
        String::from_utf8_lossy(&reply).into_owned()
    }
}
