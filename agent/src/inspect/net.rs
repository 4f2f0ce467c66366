//! Network interfaces with hardware behind them. Bridges, bonds and the like are not hardware.

use ferrite_proto::inventory::Nic;
use ferrite_proto::mac::Mac;
use nix::sys::socket::SockaddrStorage;

use super::Reader;

const CLASS: &str = "/sys/class/net";
/// `ARPHRD_ETHER`.
const ETHERNET: u32 = 1;

pub(super) fn read(reader: &Reader<'_>) -> Vec<Nic> {
    let addresses = if reader.root.is_system() {
        addresses(reader)
    } else {
        Vec::new()
    };
    let names = reader.names(CLASS);
    let nics = names.iter().filter_map(|name| nic(reader, name));
    nics.map(|mut nic| {
        let own = addresses.iter().filter(|(name, _)| *name == nic.name);
        nic.addresses = own.map(|(_, address)| address.clone()).collect();
        nic
    })
    .collect()
}

fn nic(reader: &Reader<'_>, name: &str) -> Option<Nic> {
    let file = |part: &str| format!("{CLASS}/{name}/{part}");
    let hardware = reader.root.path(file("device")).exists();
    if !hardware || reader.number::<u32>(file("type")) != Some(ETHERNET) {
        return None;
    }
    // A bond gives its members one common MAC, and keeps their own here.
    let permanent = reader.text(file("bonding_slave/perm_hwaddr"));
    let mac = permanent.or_else(|| reader.text(file("address")));
    let bus = reader.target_name(file("device/subsystem"));
    let carrier = reader.text(file("carrier")).map(|text| text == "1");
    let speed = reader.number::<i64>(file("speed"));
    Some(Nic {
        name: name.to_owned(),
        mac: mac.and_then(|mac| mac.parse::<Mac>().ok()),
        driver: reader.target_name(file("device/driver")),
        pci: pci(reader, &file("device"), bus.as_deref()),
        speed_mbps: speed
            .and_then(|speed| u32::try_from(speed).ok())
            .filter(|&speed| speed > 0 && carrier == Some(true)),
        carrier,
        addresses: Vec::new(),
    })
}

/// The PCI address: the device itself, or what a virtio device sits on.
fn pci(reader: &Reader<'_>, device: &str, bus: Option<&str>) -> Option<String> {
    let target = reader.target(device)?;
    let mut parts = target.rsplit('/');
    let address = match bus {
        Some("pci") => parts.next(),
        _ => parts.nth(1),
    }?;
    is_pci_address(address).then(|| address.to_owned())
}

/// `0000:00:1f.6`.
fn is_pci_address(text: &str) -> bool {
    let hex = |part: &str, len| part.len() == len && part.chars().all(|c| c.is_ascii_hexdigit());
    let mut parts = text.split([':', '.']);
    let mut next = |len| parts.next().is_some_and(|part| hex(part, len));
    text.len() == 12 && next(4) && next(2) && next(2) && next(1)
}

/// Every interface's addresses with prefix length.
fn addresses(reader: &Reader<'_>) -> Vec<(String, String)> {
    let list = match nix::ifaddrs::getifaddrs() {
        Ok(list) => list,
        Err(errno) => {
            reader.note("network addresses".to_owned(), &errno.into());
            return Vec::new();
        }
    };
    let shown = list.filter_map(|entry| {
        let (address, mask) = (entry.address?, entry.netmask?);
        Some((entry.interface_name, with_prefix(&address, &mask)?))
    });
    shown.collect()
}

fn with_prefix(address: &SockaddrStorage, mask: &SockaddrStorage) -> Option<String> {
    if let (Some(address), Some(mask)) = (address.as_sockaddr_in(), mask.as_sockaddr_in()) {
        let bits = u32::from(mask.ip()).count_ones();
        return Some(format!("{}/{bits}", address.ip()));
    }
    let (address, mask) = (address.as_sockaddr_in6()?, mask.as_sockaddr_in6()?);
    let bits = u128::from(mask.ip()).count_ones();
    Some(format!("{}/{bits}", address.ip()))
}

#[cfg(test)]
mod tests {
    use super::super::fixture::write;
    use super::*;
    use crate::root::Root;
    use std::os::unix::fs::symlink;

    #[test]
    fn only_hardware_is_listed_with_its_permanent_mac() {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::at(folder.path());
        let device = "/sys/devices/pci0000:00/0000:00:03.0";
        write(
            &root,
            &[
                ("/sys/class/net/eth0/address", b"52:54:00:00:00:99\n"),
                ("/sys/class/net/eth0/type", b"1\n"),
                ("/sys/class/net/eth0/carrier", b"1\n"),
                ("/sys/class/net/eth0/speed", b"10000\n"),
                (
                    "/sys/class/net/eth0/bonding_slave/perm_hwaddr",
                    b"52:54:00:77:00:01\n",
                ),
                ("/sys/class/net/bond0/address", b"52:54:00:00:00:99\n"),
                ("/sys/class/net/bond0/type", b"1\n"),
                ("/sys/bus/pci/drivers/e1000e/bind", b""),
                (&format!("{device}/vendor"), b"0x8086\n"),
            ],
        );
        symlink(root.path(device), root.path("/sys/class/net/eth0/device")).unwrap();
        let bus = root.path(format!("{device}/subsystem"));
        symlink(root.path("/sys/bus/pci"), bus).unwrap();
        let driver = root.path(format!("{device}/driver"));
        symlink(root.path("/sys/bus/pci/drivers/e1000e"), driver).unwrap();
        let nics = read(&Reader::new(&root));
        assert_eq!(nics.len(), 1);
        assert_eq!(nics[0].mac, "52:54:00:77:00:01".parse().ok());
        assert_eq!(nics[0].driver.as_deref(), Some("e1000e"));
        assert_eq!(nics[0].pci.as_deref(), Some("0000:00:03.0"));
        assert_eq!(nics[0].speed_mbps, Some(10_000));
    }
}
