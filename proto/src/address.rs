//! Which addresses a fetched URL may lead to. Pure: whoever connects asks with the address that it
//! connects to, after names were resolved and at every redirect.
//!
//! A URL in the API makes a machine of ours call somewhere. Private networks are allowed, because
//! that is where image servers are; what is never an image server is not: the machine itself, its
//! link, and the places where clouds keep credentials.

use std::error::Error;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Where clouds answer with credentials, beside 169.254.0.0/16 and `fe80::/10`.
const METADATA: [IpAddr; 5] = [
    // Alibaba
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
    // Oracle
    IpAddr::V4(Ipv4Addr::new(192, 0, 0, 192)),
    // Azure
    IpAddr::V4(Ipv4Addr::new(168, 63, 129, 16)),
    // AWS
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
    // Google
    IpAddr::V6(Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254)),
];

/// What is allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Policy {
    /// Other machines only.
    #[default]
    Others,
    /// The own machine, too: for tests with a server on loopback.
    OthersAndLoopback,
}

/// Why an address is not fetched from.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{address} is {what}, which is never fetched from")]
pub struct Refused {
    /// The address, or the name.
    pub address: String,
    /// What it is.
    pub what: &'static str,
}

/// Most redirects that are followed.
pub const REDIRECTS: usize = 5;

/// Why a redirect is not followed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoRedirect {
    /// After [`REDIRECTS`] of them.
    #[error("too many redirects")]
    TooMany,
    /// It leads where nothing is fetched from.
    #[error(transparent)]
    Refused(#[from] Refused),
}

impl Refused {
    /// The refusal behind an error of whatever connects, if that is what it was.
    pub fn behind<'e>(error: &'e (dyn Error + 'static)) -> Option<&'e Self> {
        let causes = std::iter::successors(error.source(), |&error| error.source());
        let mut found = causes.filter_map(|cause| match cause.downcast_ref() {
            Some(NoRedirect::Refused(refused)) => Some(refused),
            _ => cause.downcast_ref(),
        });
        found.next()
    }
}

impl Policy {
    /// The addresses of a name that may be connected to. With none left, why not the first.
    pub fn allowed(self, found: &[SocketAddr]) -> Result<Vec<SocketAddr>, Refused> {
        let (mut allowed, mut refused) = (Vec::new(), None);
        for address in found {
            match self.check(address.ip()) {
                Ok(()) => allowed.push(*address),
                Err(why) => refused = refused.or(Some(why)),
            }
        }
        match refused {
            Some(why) if allowed.is_empty() => Err(why),
            _ => Ok(allowed),
        }
    }

    /// Whether one more redirect is followed, after so many URLs, to this host.
    pub fn check_redirect(self, before: usize, host: &str) -> Result<(), NoRedirect> {
        if before > REDIRECTS {
            return Err(NoRedirect::TooMany);
        }
        Ok(self.check_host(host)?)
    }

    /// Refuses an address that nobody shall be sent to.
    pub fn check(self, address: IpAddr) -> Result<(), Refused> {
        let plain = embedded(address);
        let what =
            class(plain).filter(|_| !(self == Self::OthersAndLoopback && plain.is_loopback()));
        what.map_or(Ok(()), |what| {
            Err(Refused {
                address: address.to_string(),
                what,
            })
        })
    }

    /// The same for the host of a URL, as far as it can be told without resolving it.
    pub fn check_host(self, host: &str) -> Result<(), Refused> {
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        if let Ok(address) = bare.parse() {
            return self.check(address);
        }
        let name = host.trim_end_matches('.').to_ascii_lowercase();
        let is = |known: &str| name == known || name.ends_with(&format!(".{known}"));
        let local = is("localhost") || is("localhost.localdomain") || is("ip6-localhost");
        if local && self == Self::Others {
            let (address, what) = (host.to_owned(), "the machine itself");
            return Err(Refused { address, what });
        }
        if is("metadata.google.internal") {
            let (address, what) = (host.to_owned(), "a cloud's metadata");
            return Err(Refused { address, what });
        }
        Ok(())
    }
}

/// The IPv4 address within an IPv6 one, where there is one that packets end up at.
fn embedded(address: IpAddr) -> IpAddr {
    let IpAddr::V6(v6) = address else {
        return address;
    };
    let words = v6.segments();
    let v4 = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        IpAddr::V4(Ipv4Addr::new(a, b, c, d))
    };
    match words {
        // ::1 and :: are themselves; ::a.b.c.d, ::ffff:a.b.c.d, ::ffff:0:a.b.c.d
        [0, 0, 0, 0, 0, 0, 0, 0 | 1] => address,
        // NAT64 and 6to4 after them.
        [0, 0, 0, 0, 0 | 0xffff, 0 | 0xffff, high, low]
        | [0x64, 0xff9b, 0, 0, 0, 0, high, low]
        | [0x2002, high, low, ..] => v4(high, low),
        _ => address,
    }
}

fn class(address: IpAddr) -> Option<&'static str> {
    if METADATA.contains(&address) {
        return Some("a cloud's metadata");
    }
    match address {
        IpAddr::V4(v4) => class_v4(v4),
        IpAddr::V6(v6) => class_v6(v6),
    }
}

fn class_v4(v4: Ipv4Addr) -> Option<&'static str> {
    match v4.octets() {
        [0, ..] => Some("no address of a machine"),
        [127, ..] => Some("the machine itself"),
        [169, 254, ..] => Some("link-local, where clouds keep credentials"),
        [224..=239, ..] => Some("multicast"),
        [240..=255, ..] => Some("reserved"),
        _ => None,
    }
}

fn class_v6(v6: Ipv6Addr) -> Option<&'static str> {
    if v6.is_loopback() {
        return Some("the machine itself");
    }
    match v6.segments() {
        [0, 0, 0, 0, 0, 0, 0, 0] => Some("no address of a machine"),
        [0xfe80..=0xfebf, ..] => Some("link-local"),
        [0xfec0..=0xfeff, ..] => Some("site-local"),
        [0xff00..=0xffff, ..] => Some("multicast"),
        // Teredo hides an address of IPv4 in another form; discard-only leads nowhere.
        [0x2001, 0, ..] | [0x100, 0, 0, 0, ..] => Some("a tunnel or nowhere"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_other_machines_are_fetched_from() {
        for bad in [
            "0.0.0.0",
            "0.1.2.3",
            "127.0.0.1",
            "127.255.255.254",
            "169.254.169.254",
            "169.254.0.1",
            "224.0.0.1",
            "239.255.255.255",
            "240.0.0.1",
            "255.255.255.255",
            "100.100.100.200",
            "192.0.0.192",
            "168.63.129.16",
            "::",
            "::1",
            "::7f00:1",
            "::ffff:127.0.0.1",
            "::ffff:0:127.0.0.1",
            "::ffff:169.254.169.254",
            "64:ff9b::7f00:1",
            "64:ff9b::a9fe:a9fe",
            "2002:7f00:1::",
            "fe80::1",
            "febf::1",
            "fec0::1",
            "ff02::1",
            "fd00:ec2::254",
            "fd20:ce::254",
            "2001:0:1::1",
            "100::1",
        ] {
            let refused = Policy::Others.check(bad.parse().unwrap());
            assert!(refused.is_err(), "{bad}");
        }
        for good in [
            "10.77.0.1",
            "192.168.1.1",
            "172.16.0.1",
            "100.64.0.1",
            "8.8.8.8",
            "fd00::1",
            "2001:db8::1",
            "::ffff:10.0.0.1",
            "2600::1",
        ] {
            assert_eq!(
                Policy::Others.check(good.parse().unwrap()),
                Ok(()),
                "{good}"
            );
        }
    }

    #[test]
    fn a_test_may_ask_its_own_machine_and_nothing_more() {
        let tests = Policy::OthersAndLoopback;
        for good in ["127.0.0.1", "::1", "::ffff:127.0.0.1"] {
            assert_eq!(tests.check(good.parse().unwrap()), Ok(()), "{good}");
        }
        assert!(tests.check("169.254.169.254".parse().unwrap()).is_err());
        assert!(tests.check_host("localhost").is_ok());
        for bad in [
            "localhost",
            "LOCALHOST.",
            "a.localhost",
            "metadata.google.internal",
            "[::1]",
        ] {
            assert!(Policy::Others.check_host(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_name_is_judged_by_what_it_resolves_to() {
        let at = |text: &str| SocketAddr::new(text.parse().unwrap(), 0);
        let (good, bad) = (at("10.0.0.1"), at("169.254.169.254"));
        assert_eq!(Policy::Others.allowed(&[bad, good]).unwrap(), [good]);
        assert!(Policy::Others.allowed(&[bad]).is_err());
        assert_eq!(Policy::Others.allowed(&[]).unwrap(), []);
    }

    #[derive(Debug, thiserror::Error)]
    #[error("what a client says")]
    struct Shown(#[source] NoRedirect);

    #[test]
    fn a_redirect_is_judged_and_they_end() {
        let checked = |before, host| Policy::Others.check_redirect(before, host);
        assert_eq!(checked(REDIRECTS, "10.0.0.1"), Ok(()));
        assert_eq!(checked(REDIRECTS + 1, "10.0.0.1"), Err(NoRedirect::TooMany));
        let refused = checked(1, "169.254.169.254").unwrap_err();
        let found = Shown(refused);
        let found = Refused::behind(&found).unwrap();
        assert_eq!(found.address, "169.254.169.254");
        assert!(Refused::behind(&Shown(NoRedirect::TooMany)).is_none());
    }
}
