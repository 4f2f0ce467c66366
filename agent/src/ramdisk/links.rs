//! Network interfaces by rtnetlink: up, address, routes. IPv6 needs nothing here: the kernel
//! listens to router advertisements by itself on every interface that is up.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Mutex, PoisonError};

use ferrite_proto::mac::Mac;
use rtnetlink::{AddressMessageBuilder, Handle, LinkUnspec, RouteMessageBuilder};
use tokio::runtime::Runtime;

use super::dhcp::Lease;
use crate::root::Root;

/// A network interface with hardware behind it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Link {
    /// Kernel name.
    pub(crate) name: String,
    /// Kernel number.
    pub(crate) index: u32,
    /// Its MAC.
    pub(crate) mac: Mac,
}

impl Link {
    /// Those that are there, by kernel number.
    pub(crate) fn all(root: &Root) -> Vec<Self> {
        let names = root.names("/sys/class/net").unwrap_or_default();
        let mut links: Vec<Self> = names
            .iter()
            .filter_map(|name| Self::read(root, name))
            .collect();
        links.sort_by_key(|link| link.index);
        links
    }

    fn read(root: &Root, name: &str) -> Option<Self> {
        let folder = format!("/sys/class/net/{name}");
        // ARPHRD_ETHER, and a device behind it: no loopback, tunnel or bridge.
        let ethernet = root.text(format!("{folder}/type")).ok()? == "1";
        if !ethernet || !root.path(format!("{folder}/device")).exists() {
            return None;
        }
        let mac: Mac = root.text(format!("{folder}/address")).ok()?.parse().ok()?;
        let index = root.text(format!("{folder}/ifindex")).ok()?.parse().ok()?;
        Some(Self {
            name: name.to_owned(),
            index,
            mac,
        })
    }

    /// Whether the cable has a signal. Reads as an error while the interface is down.
    pub(crate) fn has_carrier(&self, root: &Root) -> bool {
        root.text(format!("/sys/class/net/{}/carrier", self.name))
            .is_ok_and(|text| text == "1")
    }
}

/// The door to rtnetlink.
pub(crate) struct Netlink {
    runtime: Mutex<Runtime>,
    handle: Handle,
}

impl std::fmt::Debug for Netlink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Netlink")
    }
}

impl Netlink {
    /// Opens it.
    pub(crate) fn open() -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .build()?;
        let (connection, handle, _) = {
            let _inside = runtime.enter();
            rtnetlink::new_connection()?
        };
        runtime.spawn(connection);
        Ok(Self {
            runtime: Mutex::new(runtime),
            handle,
        })
    }

    fn wait<T>(&self, work: impl Future<Output = Result<T, rtnetlink::Error>>) -> io::Result<T> {
        let runtime = self.runtime.lock().unwrap_or_else(PoisonError::into_inner);
        runtime.block_on(work).map_err(|error| match error {
            rtnetlink::Error::NetlinkError(message) => message.to_io(),
            other => io::Error::other(other),
        })
    }

    /// Brings an interface up.
    pub(crate) fn up(&self, link: &Link) -> io::Result<()> {
        let message = LinkUnspec::new_with_index(link.index).up().build();
        self.wait(self.handle.link().set(message).execute())
    }

    /// Brings the loopback interface up, which is always the first.
    pub(crate) fn up_loopback(&self) -> io::Result<()> {
        let message = LinkUnspec::new_with_index(1).up().build();
        self.wait(self.handle.link().set(message).execute())
    }

    /// Gives an interface what was leased for it. Routes of other interfaces yield to those with
    /// a lower `metric`.
    pub(crate) fn apply(&self, link: &Link, lease: &Lease, metric: u32) -> io::Result<()> {
        let address = IpAddr::V4(lease.address);
        let add = self
            .handle
            .address()
            .add(link.index, address, lease.prefix)
            .replace();
        self.wait(add.execute())?;
        for (network, prefix, gateway) in &lease.routes {
            let mut message = RouteMessageBuilder::<Ipv4Addr>::new()
                .destination_prefix(*network, *prefix)
                .output_interface(link.index)
                .priority(metric);
            if !gateway.is_unspecified() {
                message = message.gateway(*gateway);
            }
            self.wait(self.handle.route().add(message.build()).replace().execute())?;
        }
        Ok(())
    }

    /// Takes an address away again, and with it its routes.
    pub(crate) fn withdraw(&self, link: &Link, lease: &Lease) -> io::Result<()> {
        let message = AddressMessageBuilder::<Ipv4Addr>::new()
            .index(link.index)
            .address(lease.address, lease.prefix)
            .build();
        self.wait(self.handle.address().del(message).execute())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_interfaces_with_hardware_are_links() {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::at(folder.path());
        for (name, kind, device, index) in [
            ("lo", "772", false, 1),
            ("eth1", "1", true, 3),
            ("eth0", "1", true, 2),
            ("br0", "1", false, 4),
        ] {
            let net = root.path(format!("/sys/class/net/{name}"));
            std::fs::create_dir_all(&net).unwrap();
            std::fs::write(net.join("type"), kind).unwrap();
            std::fs::write(net.join("address"), format!("52:54:00:77:00:0{index}\n")).unwrap();
            std::fs::write(net.join("ifindex"), index.to_string()).unwrap();
            std::fs::write(net.join("carrier"), "1\n").unwrap();
            if device {
                std::fs::create_dir(net.join("device")).unwrap();
            }
        }
        let links = Link::all(&root);
        let names: Vec<_> = links.iter().map(|link| link.name.as_str()).collect();
        assert_eq!(names, ["eth0", "eth1"]);
        assert!(links[0].has_carrier(&root));
    }
}
