//! Answers router solicitations of our hosts with "no router here".
//!
//! iPXE asks for an IPv6 router while it asks for DHCP, and waits 13 seconds when nobody answers:
//! on an IPv4 network that is the longest part of its boot. The answer promises nothing (lifetime
//! 0, no prefix, no flags) and goes to the one that asked alone, so it changes nothing for
//! anybody, also where there is a real router. Not a router, and not IPv6 netboot.

use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::sync::Arc;

use ferrite_proto::mac::Mac;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::UdpSocket;
use tokio_util::sync::CancellationToken;

use super::{BootAnswer, BootDirectory, Requester};

const SOLICITATION: u8 = 133;
const ADVERTISEMENT: u8 = 134;
const ALL_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);

/// A socket for `ICMPv6` on one interface.
pub(super) fn socket(interface: &str) -> io::Result<UdpSocket> {
    // Not from /sys: in a network namespace that may show another's interfaces.
    let index = nix::net::if_::if_nametoindex(interface)?;
    let socket = Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::ICMPV6))?;
    socket.bind_device(Some(interface.as_bytes()))?;
    socket.join_multicast_v6(&ALL_ROUTERS, index)?;
    // Whoever gets one with less than 255 hops must take it for forged (RFC 4861, 6.1.2).
    socket.set_unicast_hops_v6(255)?;
    socket.set_nonblocking(true)?;
    // A raw socket reads and writes datagrams just as a UDP socket does.
    UdpSocket::from_std(socket.into())
}

/// Answers until it is stopped.
pub(super) async fn run(
    directory: Arc<dyn BootDirectory>,
    unknown: bool,
    socket: UdpSocket,
    stop: CancellationToken,
) {
    let mut buffer = [0; 1500];
    loop {
        let received = tokio::select! {
            () = stop.cancelled() => return,
            received = socket.recv_from(&mut buffer) => received,
        };
        let (length, from) = match received {
            Ok((length, SocketAddr::V6(from))) => (length, from),
            Ok(_) => continue,
            Err(error) => {
                tracing::debug!(%error, "advert: receiving");
                tokio::time::sleep(std::time::Duration::from_millis(200)).await;
                continue;
            }
        };
        let Some(mac) = solicitor(&buffer[..length], from) else {
            continue;
        };
        let who = Requester {
            mac,
            ip: Some(IpAddr::V6(*from.ip())),
            arch: None,
        };
        if !unknown && directory.answer(&who) == BootAnswer::Unknown {
            continue;
        }
        if let Err(error) = socket.send_to(&no_router(), from).await {
            tracing::debug!(%mac, %error, "advert: sending");
        }
    }
}

/// Who asks for a router: by the link-layer address in its question, or by the one that its
/// address is made of.
fn solicitor(packet: &[u8], from: SocketAddrV6) -> Option<Mac> {
    if packet.len() < 8 || packet[..2] != [SOLICITATION, 0] || !from.ip().is_unicast_link_local() {
        return None;
    }
    // Option 1, one unit of eight bytes: the sender's MAC.
    if let Some([1, 1, mac @ ..]) = packet.get(8..16) {
        return mac.try_into().ok().map(Mac);
    }
    let address = from.ip().octets();
    let (vendor, device) = (&address[8..11], &address[13..]);
    if address[11..13] != [0xff, 0xfe] {
        return None;
    }
    let mut mac: [u8; 6] = [vendor, device].concat().try_into().ok()?;
    mac[0] ^= 2;
    Some(Mac(mac))
}

/// Type, code, checksum (the kernel's), hop limit, flags, lifetime, two timers: all zero.
fn no_router() -> [u8; 16] {
    let mut packet = [0; 16];
    packet[0] = ADVERTISEMENT;
    packet
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(address: &str) -> SocketAddrV6 {
        SocketAddrV6::new(address.parse().unwrap(), 0, 0, 2)
    }

    #[tokio::test]
    async fn an_interface_that_is_not_there_is_an_error() {
        let error = socket("no-such-nic0").unwrap_err();
        let missing = error.raw_os_error() == Some(nix::libc::ENODEV);
        assert!(missing, "{error}");
    }

    #[test]
    fn a_solicitor_is_known_by_its_option_or_its_address() {
        let mac = Mac([0x52, 0x54, 0, 0x77, 0, 1]);
        let address = from("fe80::5054:ff:fe77:1");
        let bare = [133, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(solicitor(&bare, address), Some(mac));
        let option = [&bare[..], &[1, 1], &mac.0].concat();
        assert_eq!(solicitor(&option, from("fe80::1")), Some(mac));
    }

    #[test]
    fn all_else_is_left_alone() {
        let address = from("fe80::5054:ff:fe77:1");
        for packet in [
            &[][..],
            &[133, 0, 0],
            &[134, 0, 0, 0, 0, 0, 0, 0],
            &[133, 1, 0, 0, 0, 0, 0, 0],
        ] {
            assert_eq!(solicitor(packet, address), None, "{packet:?}");
        }
        assert_eq!(
            solicitor(&[133, 0, 0, 0, 0, 0, 0, 0], from("2001:db8::1")),
            None
        );
        assert_eq!(
            solicitor(&[133, 0, 0, 0, 0, 0, 0, 0], from("fe80::1")),
            None
        );
    }

    #[test]
    fn the_answer_promises_nothing() {
        assert_eq!(no_router()[0], 134);
        assert!(no_router()[1..].iter().all(|&b| b == 0));
    }
}
