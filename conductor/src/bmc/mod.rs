//! The door to a host's BMC: one small trait, and the error that every call can end with.
//!
//! It does not poll, wait or decide: power that changes late is the lifecycle's business. A new
//! kind of BMC is one file beside `redfish.rs` and one arm in [`connect`].

mod address;
mod clients;
mod error;
mod media;
mod quirks;
mod redfish;
mod wire;

use std::future::Future;
use std::pin::Pin;

use ferrite_proto::host::{BmcSpec, Power};
use ferrite_proto::inventory::BootMode;
use ferrite_proto::secret::Secret;

pub(crate) use clients::{Clients, system_cas};
pub(crate) use error::BmcError;
#[cfg(test)]
pub(crate) use error::Said;

/// What a call to a BMC comes to.
pub(crate) type BmcFuture<'a, T> = Pin<Box<dyn Future<Output = Result<T, BmcError>> + Send + 'a>>;

/// A host's BMC. Calls may be made again: each sets a state and does not toggle one.
pub(crate) trait Bmc: Send + Sync + std::fmt::Debug {
    /// Who the machine behind the BMC is. Reaches the BMC and proves the credentials.
    fn identity(&self) -> BmcFuture<'_, BmcIdentity>;
    /// Power as it is now.
    fn power(&self) -> BmcFuture<'_, Power>;
    /// Asks for power. Returns when the BMC took the request; the caller polls [`Bmc::power`].
    fn set_power(&self, action: PowerAction) -> BmcFuture<'_, ()>;
    /// The next boot, and only that, goes to `device`.
    fn set_boot_once(&self, device: BootDevice, mode: BootMode) -> BmcFuture<'_, ()>;
    /// The next boot goes where the firmware's own order says.
    fn clear_boot_override(&self) -> BmcFuture<'_, ()>;
    /// Presents the ISO at `url` as a CD; whatever was in the drive is ejected first.
    fn insert_media<'a>(&'a self, url: &'a str) -> BmcFuture<'a, ()>;
    /// Empties the CD drive; an empty one is fine.
    fn eject_media(&self) -> BmcFuture<'_, ()>;
}

/// Who a BMC says its machine is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct BmcIdentity {
    /// SMBIOS system UUID, lower case.
    pub(crate) uuid: Option<String>,
    /// System serial number.
    pub(crate) serial: Option<String>,
    /// Manufacturer of the system.
    pub(crate) vendor: Option<String>,
    /// Model of the system.
    pub(crate) model: Option<String>,
    /// Version of the system's firmware.
    pub(crate) firmware: Option<String>,
}

/// What can be asked of a power supply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PowerAction {
    /// Switch on; nothing to do when it is on.
    On,
    /// Switch off at once; nothing to do when it is off.
    ForceOff,
    /// Reset a machine that is on.
    ForceRestart,
}

/// What a machine can be told to boot from once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BootDevice {
    /// The network.
    Pxe,
    /// The CD that the BMC presents.
    Cd,
}

/// Whether an address can be used at all. Asks nobody.
pub(crate) fn check(address: &str) -> Result<(), BmcError> {
    address::Address::parse(address).map(|_| ())
}

/// A client for the BMC at `spec.address`. Makes no contact yet: the first call does.
pub(crate) fn connect(
    clients: &Clients,
    spec: &BmcSpec,
    password: &Secret<String>,
) -> Result<Box<dyn Bmc>, BmcError> {
    let address = address::Address::parse(&spec.address)?;
    let client = clients.get(spec.insecure_tls);
    let client = client.map_err(|error| BmcError::Unreachable {
        bmc: address.base.clone(),
        reason: wire::deepest(&error),
    })?;
    let patience = wire::Patience::default();
    let bmc = redfish::Redfish::new(client, address, spec, password, patience);
    Ok(Box::new(bmc))
}

#[cfg(test)]
mod tests;
