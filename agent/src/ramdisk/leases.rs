//! DHCP on every interface with link, at the same time, for as long as the ramdisk runs.
//!
//! A UDP socket bound to the interface does: the kernel lets a broadcast out of an interface
//! without an address, and the broadcast flag makes the reply come back as one.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::PathBuf;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use ferrite_proto::mac::Mac;
use socket2::{Domain, Protocol, Socket, Type};

use super::dhcp::{Exchange, Lease, Reply};
use super::links::{Link, Netlink};
use crate::root::Root;

const CLIENT_PORT: u16 = 68;
const SERVER_PORT: u16 = 67;
/// Seconds to wait for a reply, attempt by attempt; the last is repeated for ever.
const PATIENCE: [u64; 4] = [1, 2, 4, 8];
/// How often interfaces and their link are looked at.
const LOOK: Duration = Duration::from_millis(50);

/// What happens on the interfaces, for the consoles.
#[derive(Debug)]
pub(crate) enum News {
    /// An interface has appeared.
    Found(Link),
    /// It has link.
    Carrier(String),
    /// It has an address.
    Leased(String, Lease),
    /// Something failed and is tried again.
    Trouble(String, String),
}

/// The network of the ramdisk.
#[derive(Debug)]
pub(crate) struct Network {
    root: Root,
    netlink: Netlink,
    preferred: Option<Mac>,
    leases: Mutex<Vec<(Link, Lease)>>,
    changed: Condvar,
}

impl Network {
    /// Starts looking for interfaces; the threads live as long as the process.
    pub(crate) fn start(
        root: Root,
        preferred: Option<Mac>,
        news: &Sender<News>,
    ) -> io::Result<Arc<Self>> {
        let netlink = Netlink::open()?;
        // Nothing here needs the loopback interface; programs are surprised when it is down.
        let _ = netlink.up_loopback();
        let (leases, changed) = Default::default();
        let network = Arc::new(Self {
            root,
            netlink,
            preferred,
            leases,
            changed,
        });
        let (watching, news) = (Arc::clone(&network), news.clone());
        std::thread::Builder::new()
            .name("links".into())
            .spawn(move || watching.watch(&news))?;
        Ok(network)
    }

    /// Waits until some interface has an address.
    pub(crate) fn wait_for_lease(&self, patience: Duration) -> bool {
        let leases = self.leases.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self
            .changed
            .wait_timeout_while(leases, patience, |l| l.is_empty());
        !waited.unwrap_or_else(PoisonError::into_inner).0.is_empty()
    }

    fn watch(self: Arc<Self>, news: &Sender<News>) {
        let mut known: Vec<Link> = Vec::new();
        loop {
            for link in Link::all(&self.root) {
                if known.contains(&link) {
                    continue;
                }
                known.push(link.clone());
                let _ = news.send(News::Found(link.clone()));
                let (network, news) = (Arc::clone(&self), news.clone());
                let run = move || network.serve(&link, &news);
                let _ = std::thread::Builder::new().name("dhcp".into()).spawn(run);
            }
            std::thread::sleep(if known.is_empty() {
                Duration::from_millis(10)
            } else {
                LOOK
            });
        }
    }

    /// Keeps one interface configured.
    fn serve(&self, link: &Link, news: &Sender<News>) {
        if let Err(error) = self.netlink.up(link) {
            let _ = news.send(News::Trouble(
                link.name.clone(),
                format!("cannot bring it up: {error}"),
            ));
        }
        while !link.has_carrier(&self.root) {
            std::thread::sleep(LOOK / 5);
        }
        let _ = news.send(News::Carrier(link.name.clone()));
        loop {
            let result = self.hold_a_lease(link, news);
            if let Err(error) = result {
                let _ = news.send(News::Trouble(link.name.clone(), format!("DHCP: {error}")));
            }
            std::thread::sleep(Duration::from_secs(1));
        }
    }

    /// Obtains a lease, and returns when it has run out.
    fn hold_a_lease(&self, link: &Link, news: &Sender<News>) -> io::Result<()> {
        let socket = Port::open(link)?;
        let mut lease = socket.obtain(&mut |error| {
            let _ = news.send(News::Trouble(link.name.clone(), error));
        })?;
        self.put_to_use(link, &lease)?;
        let _ = news.send(News::Leased(link.name.clone(), lease.clone()));
        let mut granted = Instant::now();
        loop {
            std::thread::sleep(next_attempt(lease.lasts, granted.elapsed()));
            match socket.renew(&lease) {
                Ok(Some(Reply::Ack(new))) if new.address == lease.address => {
                    lease = new;
                    granted = Instant::now();
                    self.put_to_use(link, &lease)?;
                }
                Ok(None) | Err(_) if granted.elapsed() < lease.lasts => {}
                _ => break,
            }
        }
        self.forget(link);
        self.netlink.withdraw(link, &lease)
    }

    fn put_to_use(&self, link: &Link, lease: &Lease) -> io::Result<()> {
        let preferred = self.preferred == Some(link.mac);
        let metric = if preferred { 100 } else { 200 + link.index };
        self.netlink.apply(link, lease, metric)?;
        let mut leases = self.leases.lock().unwrap_or_else(PoisonError::into_inner);
        leases.retain(|(other, _)| other.index != link.index);
        leases.push((link.clone(), lease.clone()));
        leases.sort_by_key(|(link, _)| (self.preferred != Some(link.mac), link.index));
        let text = resolv_conf(&leases);
        drop(leases);
        self.changed.notify_all();
        // Without it names cannot be looked up; conductors are mostly given by address.
        let path: PathBuf = self.root.path("/etc/resolv.conf");
        let _ = std::fs::create_dir_all(self.root.path("/etc"));
        let _ = std::fs::write(path, text);
        Ok(())
    }

    fn forget(&self, link: &Link) {
        let mut leases = self.leases.lock().unwrap_or_else(PoisonError::into_inner);
        leases.retain(|(other, _)| other.index != link.index);
    }
}

/// Half of the lease first (T1), then half of what is left, but not more often than each 30 s.
fn next_attempt(lasts: Duration, elapsed: Duration) -> Duration {
    let left = lasts.saturating_sub(elapsed);
    (left / 2).max(Duration::from_secs(30).min(left))
}

fn resolv_conf(leases: &[(Link, Lease)]) -> String {
    let mut servers: Vec<Ipv4Addr> = Vec::new();
    for server in leases.iter().flat_map(|(_, lease)| &lease.dns) {
        // The resolver reads three.
        if servers.len() < 3 && !servers.contains(server) {
            servers.push(*server);
        }
    }
    let line = |text: String, server: &Ipv4Addr| format!("{text}nameserver {server}\n");
    servers.iter().fold(String::new(), line)
}

/// A UDP socket on one interface.
struct Port {
    socket: Socket,
    exchange: Exchange,
}

impl Port {
    fn open(link: &Link) -> io::Result<Self> {
        let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
        socket.set_reuse_address(true)?;
        socket.set_broadcast(true)?;
        socket.bind_device(Some(link.name.as_bytes()))?;
        socket.bind(&SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, CLIENT_PORT).into())?;
        Ok(Self {
            socket,
            exchange: Exchange {
                xid: rand::random(),
                mac: link.mac,
            },
        })
    }

    /// Asks until a server has granted an address.
    fn obtain(&self, trouble: &mut dyn FnMut(String)) -> io::Result<Lease> {
        let started = Instant::now();
        for attempt in 0.. {
            let patience = PATIENCE
                .get(attempt)
                .or(PATIENCE.last())
                .copied()
                .unwrap_or(8);
            let deadline = Instant::now() + Duration::from_secs(patience);
            self.send(
                &self.exchange.discover(started.elapsed()),
                Ipv4Addr::BROADCAST,
            )?;
            let Some(Reply::Offer(offer)) =
                self.hear(deadline, |r| matches!(r, Reply::Offer(_)))?
            else {
                if attempt >= 2 {
                    trouble("no answer from a DHCP server yet; asking again".to_owned());
                }
                continue;
            };
            self.send(
                &self.exchange.request(&offer, started.elapsed()),
                Ipv4Addr::BROADCAST,
            )?;
            let deadline = deadline.max(Instant::now() + Duration::from_secs(1));
            if let Some(Reply::Ack(lease)) =
                self.hear(deadline, |r| !matches!(r, Reply::Offer(_)))?
            {
                return Ok(lease);
            }
        }
        Err(io::ErrorKind::TimedOut.into())
    }

    /// Asks for more time: granted, taken back, or no answer.
    fn renew(&self, lease: &Lease) -> io::Result<Option<Reply>> {
        self.send(&self.exchange.renew(lease), lease.server)?;
        let deadline = Instant::now() + Duration::from_secs(5);
        self.hear(deadline, |r| !matches!(r, Reply::Offer(_)))
    }

    fn send(&self, bytes: &[u8], to: Ipv4Addr) -> io::Result<()> {
        self.socket
            .send_to(bytes, &SocketAddrV4::new(to, SERVER_PORT).into())
            .map(drop)
    }

    /// The first reply that is wanted, until the deadline.
    fn hear(&self, deadline: Instant, wanted: fn(&Reply) -> bool) -> io::Result<Option<Reply>> {
        let mut buffer = [0; 2048];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            self.socket.set_read_timeout(Some(left))?;
            match io::Read::read(&mut &self.socket, &mut buffer) {
                Ok(taken) => {
                    let reply = self.exchange.read(buffer.get(..taken).unwrap_or_default());
                    if let Some(reply) = reply.filter(wanted) {
                        return Ok(Some(reply));
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_renewed_at_half_its_time_and_then_sooner_and_sooner() {
        let hour = Duration::from_hours(1);
        assert_eq!(next_attempt(hour, Duration::ZERO), Duration::from_mins(30));
        assert_eq!(
            next_attempt(hour, Duration::from_mins(30)),
            Duration::from_mins(15)
        );
        assert_eq!(
            next_attempt(hour, Duration::from_secs(3590)),
            Duration::from_secs(10)
        );
        assert_eq!(next_attempt(hour, hour), Duration::ZERO);
    }

    #[test]
    fn resolv_conf_has_each_server_once_and_three_at_most() {
        let link = Link {
            name: "eth0".into(),
            index: 2,
            mac: Mac([0; 6]),
        };
        let dns = (0..5)
            .flat_map(|n| [Ipv4Addr::new(10, 0, 0, n / 2); 2])
            .collect();
        let lease = Lease {
            address: Ipv4Addr::new(10, 0, 0, 9),
            prefix: 24,
            routes: Vec::new(),
            dns,
            server: Ipv4Addr::new(10, 0, 0, 1),
            lasts: Duration::from_hours(1),
        };
        let text = resolv_conf(&[(link, lease)]);
        assert_eq!(
            text,
            "nameserver 10.0.0.0\nnameserver 10.0.0.1\nnameserver 10.0.0.2\n"
        );
    }
}
