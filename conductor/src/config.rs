//! The configuration: as it is written (`Raw…`), and as it is used ([`Config`]), which cannot be
//! wrong in itself. The defaults are those of `defaults.toml`, which people are shown.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ferrite_proto::address::Policy;
use ferrite_proto::operation::Work;
use ferrite_proto::secret::Secret;
use serde::Deserialize;

use crate::access::oidc::OidcConfig;
use crate::api::limits::Rate;
use crate::image_servers::ImageServerConfig;
use crate::images::ImagesConfig;
use crate::lifecycle::record::Limits;
use crate::lifecycle::turns::GroupLimits;
use crate::netboot::{DhcpMode, DhcpProxy, DhcpServer, NetbootConfig};
use crate::seeing::config::{RawMetrics, RawTraces, SeeingConfig, WebhookConfig};

/// Every default, with what it means.
pub(crate) const DEFAULTS: &str = include_str!("defaults.toml");

/// How the conductor is set up.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    /// Where everything is kept.
    pub(crate) state_dir: PathBuf,
    /// HTTPS.
    pub(crate) listen: SocketAddr,
    /// What hosts are told of it.
    pub(crate) url: String,
    /// Names in the certificate.
    pub(crate) names: Vec<String>,
    /// Where it is kept.
    pub(crate) store: StoreConfig,
    /// Logs.
    pub(crate) log: LogConfig,
    /// How machines reach the ramdisk; absent without artifacts.
    pub(crate) netboot: Option<NetbootConfig>,
    /// Time limits.
    pub(crate) limits: Limits,
    /// How much is done at once, by group of hosts.
    pub(crate) groups: BTreeMap<String, GroupLimits>,
    /// How long a poll is held.
    pub(crate) poll_seconds: u32,
    /// Between check-ins.
    pub(crate) check_in_seconds: u32,
    /// How often each caller may call.
    pub(crate) api_rate: Rate,
    /// To the API.
    pub(crate) connections: Connections,
    /// Who looks on.
    pub(crate) seeing: SeeingConfig,
    /// Images that are kept.
    pub(crate) images: ImagesConfig,
    /// What is known of servers of images.
    pub(crate) image_servers: Vec<ImageServerConfig>,
    /// Where clusters may be.
    pub(crate) clusters: Policy,
    /// Who says who people are, beside the conductor.
    pub(crate) oidc: Option<OidcConfig>,
    /// All of it as it was written, defaults included.
    pub(crate) written: serde_json::Value,
}

/// How many connections are served at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Connections {
    /// Of all together.
    pub(crate) all: usize,
    /// Of one address.
    pub(crate) per_address: usize,
}

/// The database, and the key of what is secret in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StoreConfig {
    /// A server that several conductors share; else a file in the state folder.
    pub(crate) url: Option<Secret<String>>,
    /// Where the server's password is, when the URL has none.
    pub(crate) password_file: Option<PathBuf>,
    /// Where the key comes from.
    pub(crate) key: KeySource,
    /// Keys of before, until everything is sealed anew.
    pub(crate) old_keys: Vec<PathBuf>,
}

/// Where the key of the secrets comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum KeySource {
    /// A file; made at the first start, unless others must have the same.
    File(PathBuf),
    /// What a program prints: 32 bytes, raw or in hex.
    Command(Vec<String>),
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawStore {
    url: Option<Secret<String>>,
    password_file: Option<PathBuf>,
    key_file: Option<PathBuf>,
    key_command: Option<Vec<String>>,
    old_key_files: Vec<PathBuf>,
}

/// Logs.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct LogConfig {
    /// tracing's filter.
    pub(crate) filter: String,
    /// How lines look.
    pub(crate) format: LogFormat,
}

/// How lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum LogFormat {
    /// For people.
    Text,
    /// For machines.
    Json,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    state_dir: PathBuf,
    listen: SocketAddr,
    url: Option<String>,
    names: Vec<String>,
    store: RawStore,
    log: LogConfig,
    netboot: RawNetboot,
    lifecycle: RawLifecycle,
    api: RawApi,
    metrics: RawMetrics,
    traces: RawTraces,
    #[serde(default)]
    webhooks: Vec<WebhookConfig>,
    oidc: Option<OidcConfig>,
    images: RawImages,
    clusters: RawClusters,
    #[serde(default)]
    limits: BTreeMap<String, GroupLimits>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawImages {
    dir: Option<PathBuf>,
    url: Option<String>,
    signing_key: Option<PathBuf>,
    keep_free_mib: u32,
    from_loopback: bool,
    #[serde(default)]
    servers: Vec<ImageServerConfig>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawClusters {
    allow_loopback: bool,
}

impl RawClusters {
    const fn policy(self) -> Policy {
        if self.allow_loopback {
            Policy::OthersAndLoopback
        } else {
            Policy::Others
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawNetboot {
    artifacts: Option<PathBuf>,
    ipxe: PathBuf,
    http_listen: SocketAddr,
    http_url: Option<String>,
    tftp: bool,
    dhcp: RawDhcp,
    unknown: bool,
    interface: Option<String>,
    address: Option<Ipv4Addr>,
    prefix: u8,
    pool_start: Option<Ipv4Addr>,
    pool_end: Option<Ipv4Addr>,
    router: Option<Ipv4Addr>,
    dns: Vec<Ipv4Addr>,
    lease_seconds: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum RawDhcp {
    Server,
    Proxy,
    Off,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawApi {
    calls_per_second: u32,
    calls_at_once: u32,
    connections: u32,
    connections_per_address: u32,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawLifecycle {
    boot_seconds: u32,
    step_seconds: u32,
    daemon_seconds: u32,
    power_seconds: u32,
    agent_silence_seconds: u32,
    daemon_silence_seconds: u32,
    power_interval_seconds: u32,
    retry_first_seconds: u32,
    retry_max_seconds: u32,
    max_attempts: u32,
    poll_seconds: u32,
    check_in_seconds: u32,
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    /// The file.
    #[error("cannot read the configuration {}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Not TOML.
    #[error("the configuration is not TOML: {0}")]
    Syntax(String),
    /// A key.
    #[error("{path}: {what}")]
    Key {
        /// Where: `netboot.prefix`.
        path: String,
        /// What about it.
        what: String,
    },
}

fn key(path: &str, what: impl Into<String>) -> ConfigError {
    ConfigError::Key {
        path: path.to_owned(),
        what: what.into(),
    }
}

impl Config {
    /// Reads the file.
    pub(crate) fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::File {
            path: path.to_owned(),
            source,
        })?;
        Self::parse(&text)
    }

    /// Reads the text over the defaults.
    pub(crate) fn parse(text: &str) -> Result<Self, ConfigError> {
        let syntax = |error: toml::de::Error| ConfigError::Syntax(error.to_string());
        let mut merged: toml::Table = toml::from_str(DEFAULTS).map_err(syntax)?;
        let given: toml::Table = toml::from_str(text).map_err(syntax)?;
        overlay(&mut merged, given);
        let written = serde_json::to_value(&merged)
            .map_err(|error| ConfigError::Syntax(error.to_string()))?;
        let raw: Raw = serde_path_to_error::deserialize(merged).map_err(|error| {
            let path = error.path().to_string();
            key(&path, error.into_inner().message())
        })?;
        raw.check(written)
    }
}

/// Tables are merged, everything else is replaced.
fn overlay(base: &mut toml::Table, given: toml::Table) {
    for (name, value) in given {
        match (base.get_mut(&name), value) {
            (Some(toml::Value::Table(base)), toml::Value::Table(given)) => overlay(base, given),
            (_, value) => {
                base.insert(name, value);
            }
        }
    }
}

/// A limit of nothing would have hosts wait for ever.
fn groups(
    groups: BTreeMap<String, GroupLimits>,
) -> Result<BTreeMap<String, GroupLimits>, ConfigError> {
    for (name, limits) in &groups {
        for work in Work::ALL {
            if limits.of(work) == 0 {
                let path = format!("limits.{name}.{}", work.as_str());
                return Err(key(&path, "must be at least 1"));
            }
        }
    }
    Ok(groups)
}

impl Raw {
    fn check(self, written: serde_json::Value) -> Result<Config, ConfigError> {
        let url = match self.url {
            Some(url) => url,
            None => told("url", "https", self.listen)?,
        };
        let host = check_url("url", "https://", &url)?;
        let mut names = self.names;
        names.push(host);
        if !self.listen.ip().is_unspecified() {
            names.push(self.listen.ip().to_string());
        }
        names.sort();
        names.dedup();
        let seeing = SeeingConfig::check(&self.metrics, self.traces, self.webhooks)
            .map_err(|(path, what)| key(&path, what))?;
        Ok(Config {
            seeing,
            oidc: self.oidc,
            written,
            images: self.images.check(&self.state_dir, &url)?,
            image_servers: self.images.servers,
            clusters: self.clusters.policy(),
            netboot: self.netboot.check(&self.state_dir)?,
            groups: groups(self.limits)?,
            limits: self.lifecycle.limits()?,
            api_rate: self.api.rate()?,
            connections: self.api.connections()?,
            poll_seconds: at_least("lifecycle.poll_seconds", self.lifecycle.poll_seconds, 1)?,
            check_in_seconds: at_least(
                "lifecycle.check_in_seconds",
                self.lifecycle.check_in_seconds,
                1,
            )?,
            store: self.store.check(&self.state_dir)?,
            state_dir: self.state_dir,
            listen: self.listen,
            url,
            names,
            log: self.log,
        })
    }
}

impl RawImages {
    fn check(&self, state_dir: &Path, url: &str) -> Result<ImagesConfig, ConfigError> {
        for (at, server) in self.servers.iter().enumerate() {
            let wrong = |(name, what)| key(&format!("images.servers[{at}].{name}"), what);
            server.check().map_err(wrong)?;
        }
        if let Some(own) = &self.url {
            check_url("images.url", "https://", own)?;
        }
        Ok(ImagesConfig {
            dir: self.dir.clone().unwrap_or_else(|| state_dir.join("images")),
            url: self.url.clone().unwrap_or_else(|| url.to_owned()),
            signing_key: self.signing_key.clone(),
            keep_free: u64::from(self.keep_free_mib) << 20,
            from_loopback: self.from_loopback,
        })
    }
}

impl RawStore {
    fn check(self, state_dir: &Path) -> Result<StoreConfig, ConfigError> {
        if let Some(url) = &self.url {
            let scheme = url.expose().split("://").next().unwrap_or_default();
            if !matches!(scheme, "postgres" | "postgresql") {
                let what = "is not postgres://user@host/database; leave it out for SQLite";
                return Err(key("store.url", what));
            }
        }
        // systemd puts what `LoadCredential=` names here, for this service alone.
        let credential = std::env::var_os("CREDENTIALS_DIRECTORY")
            .map(|dir| PathBuf::from(dir).join("secrets.key"))
            .filter(|path| path.exists());
        let own = || credential.unwrap_or_else(|| state_dir.join("secrets.key"));
        let key = match (self.key_file, self.key_command) {
            (Some(_), Some(_)) => {
                return Err(key(
                    "store.key_command",
                    "is not for use with store.key_file",
                ));
            }
            (None, Some(command)) if command.is_empty() => {
                return Err(key("store.key_command", "names no program"));
            }
            (None, Some(command)) => KeySource::Command(command),
            (file, None) => KeySource::File(file.unwrap_or_else(own)),
        };
        Ok(StoreConfig {
            url: self.url,
            password_file: self.password_file,
            key,
            old_keys: self.old_key_files,
        })
    }
}

impl RawApi {
    fn rate(self) -> Result<Rate, ConfigError> {
        let in_the_long_run = self.calls_per_second;
        Ok(Rate {
            calls_per_second: at_least("api.calls_per_second", in_the_long_run, 1)?,
            calls_at_once: at_least("api.calls_at_once", self.calls_at_once, 1)?,
        })
    }

    fn connections(self) -> Result<Connections, ConfigError> {
        let one = self.connections_per_address;
        Ok(Connections {
            all: at_least("api.connections", self.connections, 16)? as usize,
            per_address: at_least("api.connections_per_address", one, 1)? as usize,
        })
    }
}

impl RawNetboot {
    fn check(self, state_dir: &Path) -> Result<Option<NetbootConfig>, ConfigError> {
        let Some(artifacts) = self.artifacts.clone() else {
            return Ok(None);
        };
        let http_url = match self.http_url.clone() {
            Some(url) => url,
            None => told("netboot.http_url", "http", self.http_listen)?,
        };
        let host = check_url("netboot.http_url", "http://", &http_url)?;
        let address = self.address.or_else(|| host.parse().ok());
        let needed = |wanted: &str| {
            address.ok_or_else(|| key("netboot.address", format!("is needed for {wanted}")))
        };
        let tftp = if self.tftp {
            Some(SocketAddr::from((needed("tftp = true")?, 69)))
        } else {
            None
        };
        let dhcp = match self.dhcp {
            RawDhcp::Off => DhcpMode::Off,
            RawDhcp::Server => DhcpMode::Server(self.server(needed("dhcp = \"server\"")?)?),
            RawDhcp::Proxy => DhcpMode::Proxy(DhcpProxy {
                interface: self.interface("proxy")?,
                address: needed("dhcp = \"proxy\"")?,
                unknown: self.unknown,
            }),
        };
        Ok(Some(NetbootConfig {
            artifacts,
            ipxe: self.ipxe,
            state_dir: state_dir.to_owned(),
            http_listen: self.http_listen,
            http_url,
            tftp,
            dhcp,
        }))
    }

    fn interface(&self, mode: &str) -> Result<String, ConfigError> {
        let missing = || {
            key(
                "netboot.interface",
                format!("is needed for dhcp = {mode:?}"),
            )
        };
        self.interface.clone().ok_or_else(missing)
    }

    fn server(&self, address: Ipv4Addr) -> Result<DhcpServer, ConfigError> {
        let pool = |end: Option<Ipv4Addr>, path| {
            end.ok_or_else(|| key(path, "is needed for dhcp = \"server\""))
        };
        let start = pool(self.pool_start, "netboot.pool_start")?;
        let end = pool(self.pool_end, "netboot.pool_end")?;
        let network = ipnet::Ipv4Net::new(address, self.prefix)
            .map_err(|_| key("netboot.prefix", "is at most 32"))?;
        if start > end || !network.contains(&start) || !network.contains(&end) {
            return Err(key(
                "netboot.pool_start",
                format!("{start} to {end} is not a range within {}", network.trunc()),
            ));
        }
        Ok(DhcpServer {
            interface: self.interface("server")?,
            address,
            prefix: self.prefix,
            pool_start: start,
            pool_end: end,
            router: self.router,
            dns: self.dns.clone(),
            lease: Duration::from_secs(self.lease_seconds.max(60).into()),
            unknown: self.unknown,
        })
    }
}

impl RawLifecycle {
    fn limits(&self) -> Result<Limits, ConfigError> {
        let seconds = |value: u32| Duration::from_secs(value.max(1).into());
        at_least(
            "lifecycle.agent_silence_seconds",
            self.agent_silence_seconds,
            self.poll_seconds.saturating_mul(2),
        )?;
        at_least(
            "lifecycle.daemon_silence_seconds",
            self.daemon_silence_seconds,
            self.check_in_seconds.saturating_mul(2),
        )?;
        Ok(Limits {
            boot: seconds(self.boot_seconds),
            step: seconds(self.step_seconds),
            daemon: seconds(self.daemon_seconds),
            power: seconds(self.power_seconds),
            agent_silence: seconds(self.agent_silence_seconds),
            daemon_silence: seconds(self.daemon_silence_seconds),
            power_interval: seconds(self.power_interval_seconds),
            retry_first: seconds(self.retry_first_seconds),
            retry_max: seconds(self.retry_max_seconds),
            max_attempts: at_least("lifecycle.max_attempts", self.max_attempts, 1)?,
        })
    }
}

fn at_least(path: &str, value: u32, least: u32) -> Result<u32, ConfigError> {
    if value >= least {
        Ok(value)
    } else {
        Err(key(
            path,
            format!("is {value} and must be at least {least}"),
        ))
    }
}

/// What others are told of an address that is listened on.
fn told(path: &str, scheme: &str, listen: SocketAddr) -> Result<String, ConfigError> {
    if listen.ip().is_unspecified() || listen.port() == 0 {
        return Err(key(
            path,
            format!("is needed: {listen} is no address that others could be told"),
        ));
    }
    Ok(format!("{scheme}://{listen}"))
}

/// The host of a URL without a path.
fn check_url(path: &str, scheme: &str, url: &str) -> Result<String, ConfigError> {
    let wrong = || {
        key(
            path,
            format!("{url:?} is not {scheme}host:port without a path"),
        )
    };
    let authority = url.strip_prefix(scheme).ok_or_else(wrong)?;
    let plain = |c: char| c.is_ascii_alphanumeric() || ".:-[]".contains(c);
    if authority.is_empty() || !authority.chars().all(plain) {
        return Err(wrong());
    }
    if let Ok(address) = authority.parse::<SocketAddr>() {
        return Ok(address.ip().to_string());
    }
    let bare = authority.trim_matches(['[', ']']);
    if let Ok(address) = bare.parse::<IpAddr>() {
        return Ok(address.to_string());
    }
    let host = authority
        .rsplit_once(':')
        .map_or(authority, |(host, _)| host);
    Ok(host.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAB: &str = r#"
        listen = "10.77.0.1:7443"
        [netboot]
        artifacts = "/boot"
        http_listen = "10.77.0.1:7080"
        dhcp = "server"
        interface = "br0"
        pool_start = "10.77.0.100"
        pool_end = "10.77.0.200"
    "#;

    #[test]
    fn a_short_file_is_filled_up_with_what_follows_from_it() {
        let config = Config::parse(LAB).unwrap();
        assert_eq!(config.url, "https://10.77.0.1:7443");
        assert_eq!(config.names, ["10.77.0.1"]);
        assert_eq!(config.limits, Limits::default());
        let netboot = config.netboot.unwrap();
        assert_eq!(netboot.http_url, "http://10.77.0.1:7080");
        assert_eq!(netboot.tftp, Some("10.77.0.1:69".parse().unwrap()));
        let DhcpMode::Server(server) = netboot.dhcp else {
            panic!("not a server: {:?}", netboot.dhcp);
        };
        assert_eq!((server.prefix, server.lease), (24, Duration::from_hours(1)));
    }

    #[test]
    fn what_is_wrong_is_named_by_its_path() {
        for (text, path) in [
            ("listen = 5", "listen"),
            ("stat_dir = \"x\"", "stat_dir"),
            ("", "url"),
            ("url = \"http://x\"", "url"),
            ("url = \"https://x/y\"", "url"),
            (
                "url = \"https://x\"\n[netboot]\nprefxi = 3",
                "netboot.prefxi",
            ),
            (
                "url = \"https://x\"\n[lifecycle]\npoll_seconds = 60",
                "lifecycle.agent_silence_seconds",
            ),
            (
                &LAB.replace("10.77.0.200", "10.78.0.200"),
                "netboot.pool_start",
            ),
            (&LAB.replace("interface = \"br0\"", ""), "netboot.interface"),
        ] {
            let Err(ConfigError::Key { path: found, what }) = Config::parse(text) else {
                panic!("accepted: {text}");
            };
            assert!(
                found == path || what.contains(path),
                "{text}: {found}: {what}"
            );
        }
    }
}
