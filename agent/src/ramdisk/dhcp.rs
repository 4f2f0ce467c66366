//! The words of a `DHCPv4` client (RFC 2131, 2132, 3442). Pure: bytes in, bytes out; `leases.rs`
//! has the socket and the clock.

use std::net::Ipv4Addr;
use std::time::Duration;

use dhcproto::v4::{DhcpOption, Flags, Message, MessageType, Opcode, OptionCode};
use dhcproto::{Decodable, Encodable};
use ferrite_proto::mac::Mac;

/// Shortest and longest lease that is taken at its word.
const LEASE_SECONDS: std::ops::RangeInclusive<u32> = 60..=7 * 86_400;
/// Most DNS servers and routes that are kept.
const LIST_LIMIT: usize = 16;

/// What a server grants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Lease {
    /// Ours.
    pub(crate) address: Ipv4Addr,
    /// Bits of its network.
    pub(crate) prefix: u8,
    /// Network, bits, gateway; `0.0.0.0/0` is the default route.
    pub(crate) routes: Vec<(Ipv4Addr, u8, Ipv4Addr)>,
    /// DNS servers.
    pub(crate) dns: Vec<Ipv4Addr>,
    /// Who granted it.
    pub(crate) server: Ipv4Addr,
    /// How long it lasts.
    pub(crate) lasts: Duration,
}

/// What a server says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Reply {
    /// It could grant this.
    Offer(Lease),
    /// It grants this.
    Ack(Lease),
    /// It takes back what it granted.
    Nak,
}

/// One exchange with a server: its number and our MAC.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Exchange {
    /// Random, so that replies to others are told apart.
    pub(crate) xid: u32,
    /// Of the interface.
    pub(crate) mac: Mac,
}

impl Exchange {
    /// Asks who could grant an address.
    pub(crate) fn discover(self, elapsed: Duration) -> Vec<u8> {
        encode(&self.message(MessageType::Discover, elapsed))
    }

    /// Asks for what was offered.
    pub(crate) fn request(self, offer: &Lease, elapsed: Duration) -> Vec<u8> {
        let mut message = self.message(MessageType::Request, elapsed);
        let options = message.opts_mut();
        options.insert(DhcpOption::RequestedIpAddress(offer.address));
        options.insert(DhcpOption::ServerIdentifier(offer.server));
        encode(&message)
    }

    /// Asks for more time.
    pub(crate) fn renew(self, lease: &Lease) -> Vec<u8> {
        let mut message = self.message(MessageType::Request, Duration::ZERO);
        message.set_ciaddr(lease.address);
        message.set_flags(Flags::default());
        encode(&message)
    }

    fn message(self, kind: MessageType, elapsed: Duration) -> Message {
        let none = Ipv4Addr::UNSPECIFIED;
        let mut message = Message::new_with_id(self.xid, none, none, none, none, &self.mac.0);
        // The interface has no address yet, so the reply must come as a broadcast.
        message.set_flags(Flags::default().set_broadcast());
        message.set_secs(u16::try_from(elapsed.as_secs()).unwrap_or(u16::MAX));
        let options = message.opts_mut();
        options.insert(DhcpOption::MessageType(kind));
        options.insert(DhcpOption::MaxMessageSize(1472));
        options.insert(DhcpOption::ClassIdentifier(b"ferrite-agent".to_vec()));
        options.insert(DhcpOption::ParameterRequestList(vec![
            OptionCode::SubnetMask,
            OptionCode::Router,
            OptionCode::DomainNameServer,
            OptionCode::ClasslessStaticRoute,
        ]));
        message
    }

    /// Reads a server's words; nothing for what is not for us or cannot be used.
    pub(crate) fn read(self, bytes: &[u8]) -> Option<Reply> {
        let message = Message::from_bytes(bytes).ok()?;
        let ours = message.opcode() == Opcode::BootReply
            && message.xid() == self.xid
            && message.hlen() == 6
            && message.chaddr() == self.mac.0;
        if !ours {
            return None;
        }
        match message.opts().msg_type()? {
            MessageType::Offer => lease(&message).map(Reply::Offer),
            MessageType::Ack => lease(&message).map(Reply::Ack),
            MessageType::Nak => Some(Reply::Nak),
            _ => None,
        }
    }
}

fn encode(message: &Message) -> Vec<u8> {
    // Encoding fails only for options longer than their length can say; ours are short.
    message.to_vec().unwrap_or_default()
}

fn lease(message: &Message) -> Option<Lease> {
    let address = message.yiaddr();
    let usable = !address.is_unspecified()
        && !address.is_loopback()
        && !address.is_multicast()
        && !address.is_broadcast();
    let options = message.opts();
    let prefix = match options.get(OptionCode::SubnetMask) {
        Some(DhcpOption::SubnetMask(mask)) => prefix_of(*mask)?,
        _ => class_prefix(address),
    };
    let server = match options.get(OptionCode::ServerIdentifier) {
        Some(DhcpOption::ServerIdentifier(server)) => *server,
        _ => return None,
    };
    let seconds = match options.get(OptionCode::AddressLeaseTime) {
        Some(DhcpOption::AddressLeaseTime(seconds)) => *seconds,
        _ => 3600,
    };
    let seconds = seconds.clamp(*LEASE_SECONDS.start(), *LEASE_SECONDS.end());
    let dns = match options.get(OptionCode::DomainNameServer) {
        Some(DhcpOption::DomainNameServer(servers)) => servers.clone(),
        _ => Vec::new(),
    };
    usable.then(|| Lease {
        address,
        prefix,
        routes: routes(message),
        dns: dns.into_iter().take(LIST_LIMIT).collect(),
        server,
        lasts: Duration::from_secs(seconds.into()),
    })
}

/// RFC 3442: where classless routes are given, the router option is ignored.
fn routes(message: &Message) -> Vec<(Ipv4Addr, u8, Ipv4Addr)> {
    let options = message.opts();
    if let Some(DhcpOption::ClasslessStaticRoute(routes)) =
        options.get(OptionCode::ClasslessStaticRoute)
    {
        let plain = routes
            .iter()
            .map(|(net, gateway)| (net.network(), net.prefix_len(), *gateway));
        return plain.take(LIST_LIMIT).collect();
    }
    match options.get(OptionCode::Router) {
        Some(DhcpOption::Router(routers)) => {
            let first = routers.first().filter(|router| !router.is_unspecified());
            first
                .map(|router| (Ipv4Addr::UNSPECIFIED, 0, *router))
                .into_iter()
                .collect()
        }
        _ => Vec::new(),
    }
}

fn prefix_of(mask: Ipv4Addr) -> Option<u8> {
    let bits = u32::from(mask);
    let ones = bits.leading_ones();
    let contiguous = bits.count_ones() == ones && ones > 0;
    contiguous.then(|| u8::try_from(ones).unwrap_or(32))
}

/// For a server that says no mask (RFC 791's classes).
fn class_prefix(address: Ipv4Addr) -> u8 {
    match address.octets()[0] {
        0..=127 => 8,
        128..=191 => 16,
        _ => 24,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MAC: Mac = Mac([0x52, 0x54, 0, 0x77, 0, 1]);
    const US: Exchange = Exchange {
        xid: 0x1234_5678,
        mac: MAC,
    };

    fn reply(kind: MessageType, options: Vec<DhcpOption>) -> Vec<u8> {
        let none = Ipv4Addr::UNSPECIFIED;
        let ours = Ipv4Addr::new(10, 77, 0, 100);
        let mut message = Message::new_with_id(US.xid, none, ours, none, none, &MAC.0);
        message.set_opcode(Opcode::BootReply);
        message.opts_mut().insert(DhcpOption::MessageType(kind));
        let server = DhcpOption::ServerIdentifier(Ipv4Addr::new(10, 77, 0, 1));
        message.opts_mut().insert(server);
        for option in options {
            message.opts_mut().insert(option);
        }
        message.to_vec().unwrap()
    }

    fn mask() -> DhcpOption {
        DhcpOption::SubnetMask(Ipv4Addr::new(255, 255, 255, 0))
    }

    #[test]
    fn an_offer_becomes_a_request_for_it() {
        let router = DhcpOption::Router(vec![Ipv4Addr::new(10, 77, 0, 1)]);
        let bytes = reply(
            MessageType::Offer,
            vec![mask(), router, DhcpOption::AddressLeaseTime(600)],
        );
        let Some(Reply::Offer(lease)) = US.read(&bytes) else {
            panic!("no offer")
        };
        assert_eq!(
            (lease.address, lease.prefix),
            (Ipv4Addr::new(10, 77, 0, 100), 24)
        );
        let gateway = Ipv4Addr::new(10, 77, 0, 1);
        assert_eq!(lease.routes, [(Ipv4Addr::UNSPECIFIED, 0, gateway)]);
        assert_eq!(lease.lasts, Duration::from_mins(10));
        let request = Message::from_bytes(&US.request(&lease, Duration::ZERO)).unwrap();
        assert_eq!(request.opts().msg_type(), Some(MessageType::Request));
        assert!(request.flags().broadcast());
        let asked = request.opts().get(OptionCode::RequestedIpAddress);
        assert_eq!(asked, Some(&DhcpOption::RequestedIpAddress(lease.address)));
    }

    #[test]
    fn classless_routes_replace_the_router() {
        let router = DhcpOption::Router(vec![Ipv4Addr::new(10, 77, 0, 1)]);
        let classless = DhcpOption::ClasslessStaticRoute(vec![(
            "192.168.0.0/16".parse().unwrap(),
            Ipv4Addr::new(10, 77, 0, 9),
        )]);
        let Some(Reply::Ack(lease)) =
            US.read(&reply(MessageType::Ack, vec![mask(), router, classless]))
        else {
            panic!("no ack")
        };
        let gateway = Ipv4Addr::new(10, 77, 0, 9);
        assert_eq!(lease.routes, [(Ipv4Addr::new(192, 168, 0, 0), 16, gateway)]);
    }

    #[test]
    fn replies_to_others_and_odd_masks_are_not_taken() {
        let bytes = reply(MessageType::Ack, vec![mask()]);
        assert!(Exchange { xid: 1, ..US }.read(&bytes).is_none());
        assert!(
            Exchange {
                mac: Mac([1; 6]),
                ..US
            }
            .read(&bytes)
            .is_none()
        );
        let odd = DhcpOption::SubnetMask(Ipv4Addr::new(255, 0, 255, 0));
        assert!(US.read(&reply(MessageType::Ack, vec![odd])).is_none());
        assert_eq!(US.read(&reply(MessageType::Nak, vec![])), Some(Reply::Nak));
    }

    #[test]
    fn a_lease_of_no_or_endless_time_is_bounded() {
        for (given, taken) in [(0, 60), (u32::MAX, 7 * 86_400)] {
            let lease = DhcpOption::AddressLeaseTime(given);
            let Some(Reply::Ack(lease)) = US.read(&reply(MessageType::Ack, vec![mask(), lease]))
            else {
                panic!("no ack")
            };
            assert_eq!(lease.lasts.as_secs(), taken);
        }
    }

    proptest! {
        /// dhcproto asserts on wrong option lengths in debug builds only (crates.md, finding 5),
        /// so only the options' values are mutated here, never their lengths.
        #[test]
        fn no_values_panic(values in proptest::collection::vec(any::<u8>(), 28)) {
            let mut bytes = reply(MessageType::Ack, vec![mask()]);
            bytes[16..44].copy_from_slice(&values);
            let _ = US.read(&bytes);
        }
    }
}
