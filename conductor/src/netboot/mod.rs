//! How a machine reaches the ramdisk: DHCP or proxyDHCP, TFTP for the first iPXE, HTTP for the
//! rest, and per-host ISOs for virtual media.
//!
//! It knows no hosts. Who boots what is asked of a [`BootDirectory`], and everything that was
//! served is told to it. Firmware and iPXE speak plain HTTP only, so a ticket goes out only to
//! the address that its host's MAC has leased.


use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use ferrite_proto::boot::BootParameters;
use ferrite_proto::mac::Mac;

/// Knows what each machine shall boot. Called from the network's tasks: it must not block.
pub(crate) trait BootDirectory: Send + Sync {
    /// What this machine shall boot now. Asking changes nothing.
    fn answer(&self, who: &Requester) -> BootAnswer;
    /// What the ISO behind `token` shall say; `None` for a token that is unknown or over.
    fn iso(&self, token: &str) -> Option<BootParameters>;
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

/// What a machine shall boot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum BootAnswer {
    /// The ramdisk, with these words.
    Ramdisk(BootParameters),
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
#[error("{0}")]
pub(crate) struct NetbootError(String);

/// The running services.
#[derive(Debug)]
pub(crate) struct Netboot {}

/// Starts what the configuration asks for; returns once every socket is bound.
#[expect(clippy::unused_async, reason = "being written")]
pub(crate) async fn start(
    _config: NetbootConfig,
    _directory: Arc<dyn BootDirectory>,
) -> Result<Netboot, NetbootError> {
    Ok(Netboot {})
}

impl Netboot {
    /// Where a BMC fetches the ISO of `token`; `None` when no ISO was built.
    pub(crate) fn iso_url(&self, _token: &str) -> Option<String> {
        None
    }

    /// Stops and joins everything.
    #[expect(clippy::unused_async, reason = "being written")]
    pub(crate) async fn stop(self) {}
}
