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
    hosts: Mutex<HashMap<String, Entry>>,
    sightings: mpsc::Sender<Sighting>,
}

impl fmt::Debug for Boots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Boots")
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
            hosts: Mutex::default(),
            sightings,
        };
        (boots, receiver)
    }

    fn hosts(&self) -> MutexGuard<'_, HashMap<String, Entry>> {
        self.hosts.lock().unwrap_or_else(PoisonError::into_inner)
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
        let mut hosts = self.hosts();
        let entry = hosts.entry(stored.record.host.name.clone()).or_default();
        if ticket.is_some() && entry.ticket != ticket {
            entry.bytes = 0;
            entry.last.clear();
        }
        entry.mac = stored.record.host.spec.boot_mac;
        entry.powered =
            armed.is_some_and(|boot| matches!(boot.phase, BootPhase::PowerAsked { .. }));
        entry.iso_token.clone_from(&kept.iso_token);
        entry.flavour = match run.boot.as_ref().map(|boot| boot.flavour) {
            Some(BootFlavour::Rescue) => Flavour::Rescue,
            Some(BootFlavour::Ordinary) | None => Flavour::Ordinary,
        };
        entry.ticket = ticket;
    }

    /// Forgets a host.
    pub(crate) fn forget(&self, name: &str) {
        self.hosts().remove(name);
    }

    /// Bytes that the present boot took over the network.
    pub(crate) fn bytes(&self, name: &str) -> u64 {
        self.hosts().get(name).map_or(0, |entry| entry.bytes)
    }

    fn parameters(&self, ticket: &Secret<String>) -> BootParameters {
        BootParameters {
            url: self.reach.url.clone(),
            ca: self.reach.ca,
            ticket: ticket.clone(),
            time: Some(clock::now().as_second()),
        }
    }

    fn saw(&self, is_it: impl Fn(&Entry) -> bool, bytes: u64, what: String) {
        let mut hosts = self.hosts();
        let Some((name, entry)) = hosts.iter_mut().find(|(_, entry)| is_it(entry)) else {
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
            host: name.clone(),
            at: clock::now(),
            what,
        };
        // A full queue loses a line of a timeline, never a boot.
        let _ = self.sightings.try_send(sighting);
    }
}

impl BootDirectory for Boots {
    fn answer(&self, who: &Requester) -> BootAnswer {
        let hosts = self.hosts();
        let Some(entry) = hosts.values().find(|entry| entry.mac == Some(who.mac)) else {
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
        let digest = token::sha256(token);
        let hosts = self.hosts();
        let entry = hosts.values().find(|entry| {
            let kept = entry.iso_token.as_ref();
            kept.is_some_and(|kept| token::is(kept.expose(), &digest))
        })?;
        // The BMC may read on after the ticket was used; the words then open nothing any more.
        let ticket = entry.ticket.as_ref().map(|(ticket, _)| ticket.clone());
        let ticket = ticket.unwrap_or_else(|| Secret::new("x".repeat(43)));
        Some((entry.flavour, self.parameters(&ticket)))
    }

    fn note(&self, event: NetbootEvent) {
        let of = |mac: Mac| move |entry: &Entry| entry.mac == Some(mac);
        match event {
            NetbootEvent::Dhcp { mac, .. } => self.saw(of(mac), 0, "DHCP".to_owned()),
            NetbootEvent::Script { mac, answer } => {
                self.saw(of(mac), 0, format!("iPXE script ({answer})"));
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
            } => self.saw(of(mac), bytes, name),
            NetbootEvent::Tftp { mac: None, .. } | NetbootEvent::File { mac: None, .. } => {}
            NetbootEvent::Iso { token, bytes } => {
                let is_it = |entry: &Entry| {
                    let kept = entry.iso_token.as_ref();
                    kept.is_some_and(|kept| kept.expose() == &token)
                };
                self.saw(is_it, bytes, "the ISO being read".to_owned());
            }
        }
    }
}
