//! Which machine may boot what: the armed tickets, in memory, for netboot to ask.
//!
//! Made from the stored hosts; nothing here is decided. What netboot serves is counted and told on.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use ferrite_proto::boot::BootParameters;
use ferrite_proto::mac::Mac;
use ferrite_proto::secret::Secret;
use jiff::Timestamp;
use tokio::sync::mpsc;

use crate::clock;
use crate::guard::{self, Guard};
use crate::lifecycle::order::Reach;
use crate::lifecycle::record::{BootFlavour, BootPhase};
use crate::netboot::{BootAnswer, BootDirectory, Flavour, NetbootEvent, Requester};
use crate::store::Stored;
use crate::token;

/// Something new was seen of a host's boot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sighting {
    /// Which host.
    pub(crate) host: String,
    /// When.
    pub(crate) at: Timestamp,
    /// In words.
    pub(crate) what: String,
}

/// The armed tickets.
pub(crate) struct Boots {
    reach: Reach,
    known: Mutex<Known>,
    sightings: mpsc::Sender<Sighting>,
}

impl fmt::Debug for Boots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Boots")
    }
}

/// The hosts, and by what a machine or a BMC is known as one of them.
#[derive(Debug, Default)]
struct Known {
    hosts: HashMap<String, Entry>,
    by_mac: HashMap<Mac, String>,
    /// By the SHA-256 of what the ISO's URL carries.
    by_iso: HashMap<String, String>,
}

impl Known {
    fn of_mac(&self, mac: Mac) -> Option<&String> {
        self.by_mac.get(&mac)
    }

    fn of_iso(&self, token: &str) -> Option<&String> {
        self.by_iso.get(&token::sha256(token))
    }

    /// What led to the host leads nowhere any more.
    fn unlink(&mut self, name: &str) {
        let Some(entry) = self.hosts.get(name) else {
            return;
        };
        if let Some(mac) = entry.mac
            && self.by_mac.get(&mac).is_some_and(|known| known == name)
        {
            self.by_mac.remove(&mac);
        }
        if let Some(token) = &entry.iso_token {
            self.by_iso.remove(&token::sha256(token.expose()));
        }
    }

    fn link(&mut self, name: &str) {
        let Some(entry) = self.hosts.get(name) else {
            return;
        };
        self.by_mac
            .extend(entry.mac.map(|mac| (mac, name.to_owned())));
        let token = entry.iso_token.as_ref();
        let digest = token.map(|token| token::sha256(token.expose()));
        self.by_iso
            .extend(digest.map(|digest| (digest, name.to_owned())));
    }
}

/// A host, as far as booting goes.
#[derive(Debug, Clone, Default)]
struct Entry {
    mac: Option<Mac>,
    /// Present while it may boot the ramdisk.
    ticket: Option<(Secret<String>, Timestamp)>,
    iso_token: Option<Secret<String>>,
    /// Which ramdisk it boots.
    flavour: Flavour,
    /// The power is on its way: what is read now is read by the machine.
    powered: bool,
    bytes: u64,
    last: String,
}

impl Boots {
    /// An empty directory, and what comes to be seen.
    pub(crate) fn new(reach: Reach) -> (Self, mpsc::Receiver<Sighting>) {
        let (sightings, receiver) = mpsc::channel(1024);
        let boots = Self {
            reach,
            known: Mutex::default(),
            sightings,
        };
        (boots, receiver)
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes over what is stored of a host.
    pub(crate) fn refresh(&self, stored: &Stored) {
        let (run, kept) = (&stored.record.run, &stored.kept);
        let unused = |used: bool| guard::holds(Guard::UsedTicketIsNotServed, !used);
        let armed = run.boot.as_ref().filter(|boot| unused(boot.used));
        let ticket = armed.and_then(|boot| {
            let ticket = kept.ticket.clone()?;
            Some((ticket, boot.expires_at))
        });
        let name = &stored.record.host.name;
        let mac = stored.record.host.spec.boot_mac;
        let mut known = self.known();
        let entry = known.hosts.entry(name.clone()).or_default();
        let same = entry.mac == mac && entry.iso_token == kept.iso_token;
        if !same {
            known.unlink(name);
        }
        let entry = known.hosts.entry(name.clone()).or_default();
        if ticket.is_some() && entry.ticket != ticket {
            entry.bytes = 0;
            entry.last.clear();
        }
        entry.mac = mac;
        entry.powered =
            armed.is_some_and(|boot| matches!(boot.phase, BootPhase::PowerAsked { .. }));
        entry.iso_token.clone_from(&kept.iso_token);
        entry.flavour = match run.boot.as_ref().map(|boot| boot.flavour) {
            Some(BootFlavour::Rescue) => Flavour::Rescue,
            Some(BootFlavour::Ordinary) | None => Flavour::Ordinary,
        };
        entry.ticket = ticket;
        if !same {
            known.link(name);
        }
    }

    /// Forgets a host.
    pub(crate) fn forget(&self, name: &str) {
        let mut known = self.known();
        known.unlink(name);
        known.hosts.remove(name);
    }

    /// Bytes that the present boot took over the network.
    pub(crate) fn bytes(&self, name: &str) -> u64 {
        self.known().hosts.get(name).map_or(0, |entry| entry.bytes)
    }

    fn parameters(&self, ticket: &Secret<String>) -> BootParameters {
        BootParameters {
            url: self.reach.url.clone(),
            ca: self.reach.ca,
            ticket: ticket.clone(),
            time: Some(clock::now().as_second()),
        }
    }

    fn saw_mac(&self, mac: Mac, bytes: u64, what: String) {
        self.saw(|known| known.of_mac(mac), bytes, what);
    }

    fn saw(&self, who: impl for<'a> Fn(&'a Known) -> Option<&'a String>, bytes: u64, what: String) {
        let mut known = self.known();
        let Some(name) = who(&known).cloned() else {
            return;
        };
        let Some(entry) = known.hosts.get_mut(&name) else {
            return;
        };
        if entry.ticket.is_none() {
            return;
        }
        entry.bytes = entry.bytes.saturating_add(bytes);
        if !entry.powered || entry.last == what {
            return;
        }
        entry.last.clone_from(&what);
        let sighting = Sighting {
            host: name,
            at: clock::now(),
            what,
        };
        // A full queue loses a line of a timeline, never a boot.
        let _ = self.sightings.try_send(sighting);
    }
}

impl BootDirectory for Boots {
    fn answer(&self, who: &Requester) -> BootAnswer {
        let known = self.known();
        let entry = known.of_mac(who.mac).and_then(|name| known.hosts.get(name));
        let Some(entry) = entry else {
            return BootAnswer::Unknown;
        };
        match &entry.ticket {
            Some((ticket, until)) if *until > clock::now() => {
                BootAnswer::Ramdisk(entry.flavour, self.parameters(ticket))
            }
            Some(_) | None => BootAnswer::OwnDisk,
        }
    }

    fn iso(&self, token: &str) -> Option<(Flavour, BootParameters)> {
        let known = self.known();
        let entry = known.hosts.get(known.of_iso(token)?)?;
        // The BMC may read on after the ticket was used; the words then open nothing any more.
        let ticket = entry.ticket.as_ref().map(|(ticket, _)| ticket.clone());
        let ticket = ticket.unwrap_or_else(|| Secret::new("x".repeat(43)));
        Some((entry.flavour, self.parameters(&ticket)))
    }

    fn note(&self, event: NetbootEvent) {
        match event {
            NetbootEvent::Dhcp { mac, .. } => self.saw_mac(mac, 0, "DHCP".to_owned()),
            NetbootEvent::Script { mac, answer } => {
                self.saw_mac(mac, 0, format!("iPXE script ({answer})"));
            }
            NetbootEvent::Tftp {
                mac: Some(mac),
                name,
                bytes,
                ..
            }
            | NetbootEvent::File {
                mac: Some(mac),
                name,
                bytes,
                ..
            } => self.saw_mac(mac, bytes, name),
            NetbootEvent::Tftp { mac: None, .. } | NetbootEvent::File { mac: None, .. } => {}
            NetbootEvent::Iso { token, bytes } => {
                self.saw(
                    |known| known.of_iso(&token),
                    bytes,
                    "the ISO being read".to_owned(),
                );
            }
        }
    }
}
