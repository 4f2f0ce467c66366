//! DHCP: addresses and boot information for the hosts we know, or, as a proxy, boot information
//! beside somebody else's server (UDP 67 and 4011).
//!
//! Each packet is decided on by a pure function; the sockets are at the end. Not here: relays'
//! own options, IPv6, dynamic DNS.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::Arc;

use dhcproto::v4::{
    DhcpOption, DhcpOptions, Flags, Message, MessageType, Opcode, OptionCode, UnknownOption,
};
use dhcproto::{Decodable, Decoder, Encodable};
use ferrite_proto::mac::Mac;
use tokio::net::UdpSocket;
use tokio_util::sync::CancellationToken;

use super::leases::Leases;
use super::{
    BootAnswer, BootDirectory, DhcpProxy, DhcpServer, FirmwareArch, NetbootEvent, Requester, ipxe,
};

pub(super) const SERVER_PORT: u16 = 67;
/// Where a PXE firmware asks a proxy once more for its boot file.
pub(super) const PROXY_PORT: u16 = 4011;
const CLIENT_PORT: u16 = 68;
/// BOOTP's length; some firmware drops anything shorter.
const MIN_PACKET: usize = 300;

/// How machines are answered.
#[derive(Debug)]
pub(super) enum Mode {
    /// With addresses.
    Server(DhcpServer, Arc<Leases>),
    /// With boot information alone.
    Proxy(DhcpProxy),
    /// Not at all.
    Off,
}

/// What every answer needs.
pub(super) struct Dhcp {
    pub(super) mode: Mode,
    pub(super) http_url: String,
    pub(super) directory: Arc<dyn BootDirectory>,
}

/// An answer and where it goes.
#[derive(Debug)]
struct Reply {
    packet: Vec<u8>,
    to: SocketAddrV4,
    event: Option<NetbootEvent>,
}

/// What a client asks, as far as it matters here.
struct Query {
    message: Message,
    kind: MessageType,
    mac: Mac,
    /// The program that asks.
    client: Client,
}

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Client {
    /// iPXE: it can be given a script.
    Ipxe,
    /// A firmware that boots from the network.
    Firmware(FirmwareArch),
    /// An operating system: it wants an address, and no boot file.
    System,
}

impl Query {
    /// Reads a packet; `None` for what is no request of an Ethernet machine.
    fn parse(packet: &[u8]) -> Option<Self> {
        // Checked before the decoder: it trusts `hlen`. op 1, Ethernet, 6 bytes, magic cookie.
        let well_formed = packet.get(..3) == Some(&[1, 1, 6])
            && packet.get(236..240) == Some(&[99, 130, 83, 99])
            && packet.len() <= 4096;
        if !well_formed {
            return None;
        }
        // In debug builds the decoder asserts what a sender says; a panic must not end the task.
        let decoded = std::panic::catch_unwind(|| Message::decode(&mut Decoder::new(packet)));
        let message = decoded.ok()?.ok()?;
        let mac = Mac(message.chaddr().try_into().ok()?);
        // A multicast or zero address is nobody's.
        if mac.0[0] & 1 == 1 || mac.0 == [0; 6] {
            return None;
        }
        Some(Self {
            kind: message.opts().msg_type()?,
            client: client(message.opts()),
            message,
            mac,
        })
    }

    fn address(&self, code: OptionCode) -> Option<Ipv4Addr> {
        match self.message.opts().get(code)? {
            DhcpOption::RequestedIpAddress(ip) | DhcpOption::ServerIdentifier(ip) => Some(*ip),
            _ => None,
        }
    }
}

fn client(options: &DhcpOptions) -> Client {
    let user_class = match options.get(OptionCode::UserClass) {
        // As RFC 3004 has it (with a length before each class), or bare, as iPXE sends it.
        Some(DhcpOption::UserClass(class)) => class.ends_with(b"iPXE"),
        _ => false,
    };
    if user_class || options.get(OptionCode::from(175)).is_some() {
        return Client::Ipxe;
    }
    let arch = match options.get(OptionCode::ClientSystemArchitecture) {
        Some(DhcpOption::ClientSystemArchitecture(arch)) => arch.0,
        _ => 0,
    };
    match options.get(OptionCode::ClassIdentifier) {
        Some(DhcpOption::ClassIdentifier(class)) if class.starts_with(b"PXEClient") => {
            Client::Firmware(match arch {
                0 => FirmwareArch::Bios,
                7 | 9 => FirmwareArch::UefiX64,
                other => FirmwareArch::Other(other),
            })
        }
        Some(DhcpOption::ClassIdentifier(class)) if class.starts_with(b"HTTPClient") => {
            Client::Firmware(match arch {
                16 => FirmwareArch::UefiX64Http,
                other => FirmwareArch::Other(other),
            })
        }
        _ => Client::System,
    }
}

/// The first file of a firmware; what it names is served by TFTP or HTTP (a test sees to it).
pub(super) fn boot_file(http_url: &str, arch: FirmwareArch) -> Option<String> {
    match arch {
        FirmwareArch::Bios => Some("undionly.kpxe".to_owned()),
        FirmwareArch::UefiX64 => Some("snponly.efi".to_owned()),
        FirmwareArch::UefiX64Http => Some(format!("{http_url}/ipxe/snponly.efi")),
        FirmwareArch::Other(_) => None,
    }
}

impl Dhcp {
    fn boot_file(&self, query: &Query) -> Option<String> {
        match query.client {
            Client::Ipxe => Some(ipxe::script_url(&self.http_url, query.mac)),
            Client::Firmware(arch) => boot_file(&self.http_url, arch),
            Client::System => None,
        }
    }

    fn knows(&self, query: &Query, unknown: bool) -> bool {
        let who = Requester {
            mac: query.mac,
            ip: None,
            arch: match query.client {
                Client::Firmware(arch) => Some(arch),
                Client::Ipxe | Client::System => None,
            },
        };
        unknown || self.directory.answer(&who) != BootAnswer::Unknown
    }

    /// Answers a packet that came to port 67.
    fn answer(&self, packet: &[u8]) -> Option<Reply> {
        let query = Query::parse(packet)?;
        match &self.mode {
            Mode::Server(config, leases) if self.knows(&query, config.unknown) => {
                self.serve(&query, config, leases)
            }
            Mode::Proxy(config)
                if query.kind == MessageType::Discover
                    && query.client != Client::System
                    && self.knows(&query, config.unknown) =>
            {
                self.boot_information(&query, MessageType::Offer, config.address)
            }
            Mode::Server(..) | Mode::Proxy(_) | Mode::Off => None,
        }
    }

    /// Answers a packet that came to port 4011.
    fn answer_proxy(&self, packet: &[u8], from: SocketAddrV4) -> Option<Reply> {
        let query = Query::parse(packet)?;
        let Mode::Proxy(config) = &self.mode else {
            return None;
        };
        let asks = matches!(query.kind, MessageType::Request | MessageType::Inform);
        if !asks || query.client == Client::System || !self.knows(&query, config.unknown) {
            return None;
        }
        let reply = self.boot_information(&query, MessageType::Ack, config.address)?;
        Some(Reply { to: from, ..reply })
    }

    fn serve(&self, query: &Query, config: &DhcpServer, leases: &Leases) -> Option<Reply> {
        match query.kind {
            MessageType::Discover => {
                let ip = leases.lend(query.mac);
                if ip.is_none() {
                    tracing::warn!(mac = %query.mac, "dhcp: every address of the pool is lent");
                }
                Some(self.grant(query, config, MessageType::Offer, ip?))
            }
            MessageType::Request => self.request(query, config, leases),
            MessageType::Inform => {
                let mut options = network(config);
                let ip = query.message.ciaddr();
                let boot = self.add_boot(query, &mut options, config.address);
                Some(reply(
                    query,
                    MessageType::Ack,
                    Ipv4Addr::UNSPECIFIED,
                    &options,
                    boot,
                    Some(ip),
                ))
            }
            MessageType::Decline => {
                let ip = leases.decline(query.mac);
                tracing::warn!(mac = %query.mac, ?ip, "dhcp: somebody else has this address");
                None
            }
            // A released address stays its MAC's: the same machine is back soon.
            _ => None,
        }
    }

    /// A client that takes an offer, asks for its old address, or prolongs it.
    fn request(&self, query: &Query, config: &DhcpServer, leases: &Leases) -> Option<Reply> {
        let chosen = query.address(OptionCode::ServerIdentifier);
        if chosen.is_some_and(|server| server != config.address) {
            return None;
        }
        let current = query.message.ciaddr();
        let wanted = query
            .address(OptionCode::RequestedIpAddress)
            .or_else(|| (!current.is_unspecified()).then_some(current))?;
        match leases.lend(query.mac) {
            Some(ip) if ip == wanted => Some(self.grant(query, config, MessageType::Ack, ip)),
            // We are the only server here: an address that is not ours to give is a wrong one.
            _ => {
                let mut options = DhcpOptions::new();
                options.insert(DhcpOption::ServerIdentifier(config.address));
                let none = Ipv4Addr::UNSPECIFIED;
                Some(reply(query, MessageType::Nak, none, &options, None, None))
            }
        }
    }

    fn grant(&self, query: &Query, config: &DhcpServer, kind: MessageType, ip: Ipv4Addr) -> Reply {
        let mut options = network(config);
        let seconds = u32::try_from(config.lease.as_secs()).unwrap_or(u32::MAX);
        options.insert(DhcpOption::AddressLeaseTime(seconds));
        let boot = self.add_boot(query, &mut options, config.address);
        let file = boot.as_ref().map(|(_, file)| file.clone());
        let mut reply = reply(query, kind, ip, &options, boot, None);
        reply.event = (kind == MessageType::Ack).then_some(NetbootEvent::Dhcp {
            mac: query.mac,
            ip: Some(ip),
            boot_file: file,
        });
        reply
    }

    /// Adds where to boot from, and returns it for the fixed fields.
    fn add_boot(
        &self,
        query: &Query,
        options: &mut DhcpOptions,
        address: Ipv4Addr,
    ) -> Option<(Ipv4Addr, String)> {
        let file = self.boot_file(query)?;
        options.insert(DhcpOption::TFTPServerName(address.to_string().into_bytes()));
        options.insert(DhcpOption::BootfileName(file.clone().into_bytes()));
        if query.client == Client::Ipxe && matches!(self.mode, Mode::Server(..)) {
            // iPXE's own option `no-pxedhcp`: it need not wait 3 seconds for a proxy's offer.
            let no_proxy = UnknownOption::new(OptionCode::from(175), vec![0xb0, 1, 1]);
            options.insert(DhcpOption::Unknown(no_proxy));
        }
        if query.client == Client::Firmware(FirmwareArch::UefiX64Http) {
            // UEFI takes an HTTP URL only from a server that says it means HTTP.
            options.insert(DhcpOption::ClassIdentifier(b"HTTPClient".to_vec()));
        }
        Some((address, file))
    }

    /// A proxy's answer: a boot file and no address.
    fn boot_information(
        &self,
        query: &Query,
        kind: MessageType,
        address: Ipv4Addr,
    ) -> Option<Reply> {
        let mut options = DhcpOptions::new();
        let boot = self.add_boot(query, &mut options, address)?;
        options.insert(DhcpOption::ServerIdentifier(address));
        if !options.contains(OptionCode::ClassIdentifier) {
            options.insert(DhcpOption::ClassIdentifier(b"PXEClient".to_vec()));
            // PXE_DISCOVERY_CONTROL = 8: no menu, no multicast, boot the file that is named.
            options.insert(DhcpOption::VendorExtensions(vec![6, 1, 8, 255]));
        }
        // PXE wants its own machine identifier back.
        let uuid = query
            .message
            .opts()
            .get(OptionCode::ClientMachineIdentifier);
        if let Some(uuid) = uuid {
            options.insert(uuid.clone());
        }
        let event = NetbootEvent::Dhcp {
            mac: query.mac,
            ip: None,
            boot_file: Some(boot.1.clone()),
        };
        let none = Ipv4Addr::UNSPECIFIED;
        let mut reply = reply(query, kind, none, &options, Some(boot), None);
        reply.event = Some(event);
        Some(reply)
    }
}

/// What every machine is told of the network.
fn network(config: &DhcpServer) -> DhcpOptions {
    let mask = u32::MAX.checked_shl(32 - u32::from(config.prefix.min(32)));
    let mut options = DhcpOptions::new();
    options.insert(DhcpOption::ServerIdentifier(config.address));
    options.insert(DhcpOption::SubnetMask(mask.unwrap_or(0).into()));
    if let Some(router) = config.router {
        options.insert(DhcpOption::Router(vec![router]));
    }
    if !config.dns.is_empty() {
        options.insert(DhcpOption::DomainNameServer(config.dns.clone()));
    }
    options
}

/// Puts an answer together. It goes to `to`, else where RFC 2131 (4.1) says; to a client without
/// an address it is broadcast, because the kernel cannot yet ARP for it.
fn reply(
    query: &Query,
    kind: MessageType,
    ip: Ipv4Addr,
    options: &DhcpOptions,
    boot: Option<(Ipv4Addr, String)>,
    to: Option<Ipv4Addr>,
) -> Reply {
    let asked = &query.message;
    let mut answer = Message::default();
    answer
        .set_opcode(Opcode::BootReply)
        .set_xid(asked.xid())
        .set_flags(asked.flags())
        .set_giaddr(asked.giaddr())
        .set_yiaddr(ip)
        .set_chaddr(&query.mac.0);
    if kind == MessageType::Ack {
        answer.set_ciaddr(asked.ciaddr());
    }
    if let Some((server, file)) = boot {
        answer.set_siaddr(server);
        // The field has 128 bytes with the final zero; the option carries any length.
        if file.len() < 128 {
            answer.set_fname_str(file);
        }
    }
    let relayed = !asked.giaddr().is_unspecified();
    let renewing = kind != MessageType::Nak && !asked.ciaddr().is_unspecified();
    let to = match (to, relayed, renewing) {
        (_, true, _) => SocketAddrV4::new(asked.giaddr(), SERVER_PORT),
        (Some(ip), ..) if !ip.is_unspecified() => SocketAddrV4::new(ip, CLIENT_PORT),
        (_, _, true) => SocketAddrV4::new(asked.ciaddr(), CLIENT_PORT),
        _ => SocketAddrV4::new(Ipv4Addr::BROADCAST, CLIENT_PORT),
    };
    if relayed && kind == MessageType::Nak {
        // The relay cannot reach a client whose address is wrong otherwise (RFC 2131, 4.3.2).
        answer.set_flags(Flags::default().set_broadcast());
    }
    Reply {
        packet: encode(&answer, kind, options),
        to,
        event: None,
    }
}

/// Writes the message type before all other options: old firmware looks no further.
fn encode(answer: &Message, kind: MessageType, options: &DhcpOptions) -> Vec<u8> {
    let mut first = answer.clone();
    first.opts_mut().insert(DhcpOption::MessageType(kind));
    let mut packet = first.to_vec().unwrap_or_default();
    // The end mark; the other options bring their own.
    packet.pop();
    packet.extend(options.to_vec().unwrap_or_default());
    packet.resize(packet.len().max(MIN_PACKET), 0);
    packet
}

/// A UDP socket on `port` of one interface, able to broadcast.
pub(super) fn socket(interface: &str, port: u16) -> io::Result<UdpSocket> {
    use socket2::{Domain, Protocol, Socket, Type};
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_reuse_address(true)?;
    socket.set_broadcast(true)?;
    socket.bind_device(Some(interface.as_bytes()))?;
    socket.set_nonblocking(true)?;
    socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)).into())?;
    UdpSocket::from_std(socket.into())
}

/// Answers until it is stopped.
pub(super) async fn run(dhcp: Arc<Dhcp>, socket: UdpSocket, port: u16, stop: CancellationToken) {
    let mut buffer = [0; 4096];
    loop {
        let received = tokio::select! {
            () = stop.cancelled() => return,
            received = socket.recv_from(&mut buffer) => received,
        };
        let (packet, from) = match received {
            Ok((length, SocketAddr::V4(from))) => (&buffer[..length], from),
            Ok(_) => continue,
            Err(error) => {
                // The interface may be going down; it comes back, and so do we.
                tracing::warn!(%error, "dhcp: receiving");
                tokio::time::sleep(std::time::Duration::from_millis(200)).await;
                continue;
            }
        };
        let reply = match port {
            PROXY_PORT => dhcp.answer_proxy(packet, from),
            _ => dhcp.answer(packet),
        };
        let Some(reply) = reply else {
            continue;
        };
        match socket.send_to(&reply.packet, reply.to).await {
            Ok(_) => reply.event.into_iter().for_each(|e| dhcp.directory.note(e)),
            Err(error) => tracing::warn!(to = %reply.to, %error, "dhcp: sending"),
        }
    }
}

/// The MAC that the kernel last saw behind `ip` on a network of ours, for when the addresses are
/// somebody else's to give.
pub(super) fn neighbour(ip: IpAddr) -> Option<Mac> {
    let table = std::fs::read_to_string("/proc/net/arp").ok()?;
    parse_neighbour(&table, ip)
}

fn parse_neighbour(table: &str, ip: IpAddr) -> Option<Mac> {
    let ip = ip.to_string();
    table.lines().skip(1).find_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [address, _, _, mac, ..] = words[..] else {
            return None;
        };
        (address == ip).then(|| mac.parse().ok()).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netboot::tests::Directory;
    use proptest::prelude::*;
    use std::time::Duration;

    const MAC: Mac = Mac([0x52, 0x54, 0, 0x77, 0, 1]);
    const US: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);

    fn server() -> (Dhcp, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        let config = DhcpServer {
            interface: "br0".into(),
            address: US,
            prefix: 24,
            pool_start: Ipv4Addr::new(10, 77, 0, 100),
            pool_end: Ipv4Addr::new(10, 77, 0, 200),
            router: None,
            dns: vec![US],
            lease: Duration::from_hours(1),
            unknown: false,
        };
        let leases = Leases::load(config.pool_start, config.pool_end, config.lease, dir.path());
        (dhcp(Mode::Server(config, Arc::new(leases))), dir)
    }

    fn dhcp(mode: Mode) -> Dhcp {
        Dhcp {
            mode,
            http_url: "http://10.77.0.1:7080".into(),
            directory: Arc::new(Directory::with(MAC)),
        }
    }

    fn packet(mac: Mac, kind: MessageType, options: Vec<DhcpOption>) -> Vec<u8> {
        let mut message = Message::default();
        message.set_opcode(Opcode::BootRequest).set_chaddr(&mac.0);
        message.opts_mut().insert(DhcpOption::MessageType(kind));
        for option in options {
            message.opts_mut().insert(option);
        }
        message.to_vec().unwrap()
    }

    fn pxe(arch: u16) -> Vec<DhcpOption> {
        let class = format!("PXEClient:Arch:{arch:05}:UNDI:003016");
        vec![
            DhcpOption::ClassIdentifier(class.into_bytes()),
            DhcpOption::ClientSystemArchitecture(dhcproto::v4::Architecture(arch)),
        ]
    }

    fn read(reply: &Reply) -> Message {
        // Firmware wants the type first and at least BOOTP's length.
        assert_eq!(reply.packet[240], 53);
        assert!(reply.packet.len() >= MIN_PACKET);
        Message::decode(&mut Decoder::new(&reply.packet)).unwrap()
    }

    fn boot_file_of(message: &Message) -> Option<String> {
        let option = match message.opts().get(OptionCode::BootfileName) {
            Some(DhcpOption::BootfileName(name)) => String::from_utf8(name.clone()).ok(),
            _ => None,
        };
        let field = message
            .fname_str()
            .map(|n| n.unwrap().trim_end_matches('\0').to_owned());
        assert_eq!(option, field);
        option
    }

    #[test]
    fn each_kind_of_client_gets_its_own_boot_file() {
        let (dhcp, _dir) = server();
        let ipxe = || vec![DhcpOption::UserClass(b"iPXE".to_vec())];
        let mut ipxe_in_firmware = pxe(7);
        ipxe_in_firmware.extend(ipxe());
        let script = "http://10.77.0.1:7080/boot.ipxe?mac=52:54:00:77:00:01";
        for (options, file) in [
            (pxe(0), Some("undionly.kpxe")),
            (pxe(7), Some("snponly.efi")),
            (pxe(9), Some("snponly.efi")),
            (pxe(11), None),
            (ipxe_in_firmware, Some(script)),
            (ipxe(), Some(script)),
            (vec![], None),
        ] {
            let reply = dhcp
                .answer(&packet(MAC, MessageType::Discover, options))
                .unwrap();
            let message = read(&reply);
            assert_eq!(boot_file_of(&message).as_deref(), file);
            assert_eq!(message.opts().msg_type(), Some(MessageType::Offer));
            assert_eq!(*reply.to.ip(), Ipv4Addr::BROADCAST);
        }
    }

    #[test]
    fn an_offer_that_is_taken_is_acknowledged_and_another_address_refused() {
        let (dhcp, _dir) = server();
        let offer = dhcp
            .answer(&packet(MAC, MessageType::Discover, vec![]))
            .unwrap();
        let ip = read(&offer).yiaddr();
        let ask = |ip, server| {
            let options = vec![
                DhcpOption::RequestedIpAddress(ip),
                DhcpOption::ServerIdentifier(server),
            ];
            dhcp.answer(&packet(MAC, MessageType::Request, options))
        };
        let ack = ask(ip, US).unwrap();
        let message = read(&ack);
        assert_eq!(message.opts().msg_type(), Some(MessageType::Ack));
        assert_eq!(message.yiaddr(), ip);
        let mask = message.opts().get(OptionCode::SubnetMask);
        assert_eq!(
            mask,
            Some(&DhcpOption::SubnetMask([255, 255, 255, 0].into()))
        );
        assert!(ack.event.is_some());

        let nak = ask(Ipv4Addr::new(10, 9, 9, 9), US).unwrap();
        assert_eq!(read(&nak).opts().msg_type(), Some(MessageType::Nak));
        assert!(
            ask(ip, Ipv4Addr::new(10, 77, 0, 2)).is_none(),
            "it chose another server"
        );
    }

    #[test]
    fn an_address_is_prolonged_by_unicast_and_a_relay_gets_its_own_answer() {
        let (dhcp, _dir) = server();
        let offer = dhcp
            .answer(&packet(MAC, MessageType::Discover, vec![]))
            .unwrap();
        let ip = read(&offer).yiaddr();
        let mut renew = packet(MAC, MessageType::Request, vec![]);
        renew[12..16].copy_from_slice(&ip.octets());
        let ack = dhcp.answer(&renew).unwrap();
        assert_eq!(ack.to, SocketAddrV4::new(ip, 68));
        let mut relayed = packet(MAC, MessageType::Discover, vec![]);
        relayed[24..28].copy_from_slice(&[10, 77, 0, 250]);
        let offer = dhcp.answer(&relayed).unwrap();
        assert_eq!(offer.to, SocketAddrV4::new([10, 77, 0, 250].into(), 67));
    }

    #[test]
    fn strangers_get_no_answer() {
        let (dhcp, _dir) = server();
        let stranger = Mac([2, 0, 0, 0, 0, 9]);
        assert!(
            dhcp.answer(&packet(stranger, MessageType::Discover, pxe(7)))
                .is_none()
        );
    }

    #[test]
    fn a_proxy_gives_boot_files_and_never_an_address() {
        let dhcp = dhcp(Mode::Proxy(DhcpProxy {
            interface: "br0".into(),
            address: US,
            unknown: false,
        }));
        let offer = dhcp
            .answer(&packet(MAC, MessageType::Discover, pxe(7)))
            .unwrap();
        let message = read(&offer);
        assert!(message.yiaddr().is_unspecified());
        assert_eq!(boot_file_of(&message).as_deref(), Some("snponly.efi"));
        let class = message.opts().get(OptionCode::ClassIdentifier);
        assert_eq!(
            class,
            Some(&DhcpOption::ClassIdentifier(b"PXEClient".to_vec()))
        );
        assert!(
            dhcp.answer(&packet(MAC, MessageType::Discover, vec![]))
                .is_none()
        );
        assert!(
            dhcp.answer(&packet(MAC, MessageType::Request, pxe(7)))
                .is_none()
        );
        let from = SocketAddrV4::new([10, 77, 0, 120].into(), 4011);
        let ack = dhcp
            .answer_proxy(&packet(MAC, MessageType::Request, pxe(7)), from)
            .unwrap();
        assert_eq!(ack.to, from);
        assert_eq!(read(&ack).opts().msg_type(), Some(MessageType::Ack));
    }

    #[test]
    fn the_kernels_table_of_neighbours_is_read() {
        let table = "IP address  HW type  Flags  HW address  Mask  Device\n\
                     10.77.0.101  0x1  0x2  52:54:00:77:00:01  *  br0\n";
        let ip = |text: &str| text.parse().unwrap();
        assert_eq!(parse_neighbour(table, ip("10.77.0.101")), Some(MAC));
        assert_eq!(parse_neighbour(table, ip("10.77.0.10")), None);
    }

    proptest! {
        #[test]
        fn no_bytes_break_the_server(
            tail in proptest::collection::vec(any::<u8>(), 0..300),
            hlen in prop_oneof![Just(6_u8), any::<u8>()],
        ) {
            let (dhcp, _dir) = server();
            let mut packet = packet(MAC, MessageType::Discover, vec![]);
            packet[2] = hlen;
            packet.truncate(240);
            packet.extend(&tail);
            let _ = dhcp.answer(&packet);
            let _ = dhcp.answer(&tail);
        }
    }
}
