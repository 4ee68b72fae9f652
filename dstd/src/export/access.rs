//! Who a client is, and what an export's lists say about it.
//!
//! Owns peers, prefixes and lists of them. Called by the configuration (to read them) and by the handshake.
//! Pure. A peer's address is compared in its plain form: an IPv4 client of a dual-stack socket is IPv4.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

/// The other end of a connection.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Peer {
    Tcp(SocketAddr),
    /// By its credentials when it connected.
    Unix {
        uid: u32,
        pid: i32,
    },
}

impl Peer {
    /// IPv4 addresses in IPv6 clothes become IPv4 again.
    pub fn tcp(address: SocketAddr) -> Peer {
        Peer::Tcp(SocketAddr::new(address.ip().to_canonical(), address.port()))
    }

    /// Whose connections are counted together: one address, or one user of this machine.
    pub fn source(&self) -> Source {
        match self {
            Peer::Tcp(address) => Source::Address(address.ip()),
            Peer::Unix { uid, .. } => Source::User(*uid),
        }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Peer::Tcp(address) => write!(f, "{address}"),
            Peer::Unix { uid, pid } => write!(f, "process {pid} of user {uid}"),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Source {
    Address(IpAddr),
    User(u32),
}

/// One entry of a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Prefix {
    /// Addresses whose first `bits` are these; the rest of `address` is zero.
    Net { address: IpAddr, bits: u8 },
    /// Everybody who may open the Unix socket.
    Unix,
}

impl Prefix {
    pub fn holds(&self, peer: &Peer) -> bool {
        match (self, peer) {
            (Prefix::Unix, Peer::Unix { .. }) => true,
            (Prefix::Net { address, bits }, Peer::Tcp(peer)) => {
                let peer = peer.ip().to_canonical();
                peer.is_ipv4() == address.is_ipv4() && first_bits(peer, *bits) == *address
            }
            _ => false,
        }
    }
}

/// The address with everything behind its first `bits` zero.
fn first_bits(address: IpAddr, bits: u8) -> IpAddr {
    match address {
        IpAddr::V4(v4) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(bits)).unwrap_or(0);
            IpAddr::V4((v4.to_bits() & mask).into())
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(bits)).unwrap_or(0);
            IpAddr::V6((v6.to_bits() & mask).into())
        }
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Prefix::Unix => f.write_str("unix"),
            Prefix::Net { address, bits } => write!(f, "{address}/{bits}"),
        }
    }
}

impl FromStr for Prefix {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "unix" {
            return Ok(Prefix::Unix);
        }
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits)),
            None => (text, None),
        };
        let no = || {
            format!(
                "`{text}` is no address: write `10.1.2.3`, `10.0.0.0/8`, `2001:db8::/32` or `unix` (names of hosts \
                 aren't looked up)"
            )
        };
        let address: IpAddr = address.parse().map_err(|_| no())?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let bits: u8 = match bits {
            None => most,
            Some(bits) => bits
                .parse()
                .ok()
                .filter(|bits| *bits <= most)
                .ok_or_else(|| {
                    format!("`{text}`: the number after `/` counts bits, write 0 to {most}")
                })?,
        };
        let (address, bits) = match address.to_canonical() {
            plain if plain.is_ipv4() && address.is_ipv6() => match bits.checked_sub(96) {
                Some(bits) => (plain, bits),
                None => (address, bits),
            },
            _ => (address, bits),
        };
        let short = first_bits(address, bits);
        if short != address {
            return Err(format!(
                "`{text}` has bits behind the prefix: write `{short}/{bits}` for the net, or `{address}` for the one host"
            ));
        }
        Ok(Prefix::Net { address, bits })
    }
}

/// What an export says about who may do what.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Access {
    /// None: everybody.
    pub allow: Option<Vec<Prefix>>,
    pub read_only_for: Vec<Prefix>,
}

impl Access {
    pub fn allows(&self, peer: &Peer) -> bool {
        match &self.allow {
            None => true,
            Some(list) => list.iter().any(|prefix| prefix.holds(peer)),
        }
    }

    pub fn only_reads(&self, peer: &Peer) -> bool {
        self.read_only_for.iter().any(|prefix| prefix.holds(peer))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(address: &str) -> Peer {
        Peer::tcp(SocketAddr::new(address.parse().unwrap(), 4000))
    }

    const UNIX: Peer = Peer::Unix { uid: 1, pid: 2 };

    #[test]
    fn a_list_holds_whom_it_names_and_nobody_else() {
        for (list, address, held) in [
            ("10.0.0.0/8", "10.255.0.1", true),
            ("10.0.0.0/8", "11.0.0.0", false),
            ("10.0.0.0/8", "::ffff:10.0.0.1", true),
            ("10.0.0.0/8", "::10.0.0.1", false),
            ("::ffff:10.0.0.0/104", "10.1.1.1", true),
            ("::ffff:10.0.0.0/104", "11.1.1.1", false),
            ("10.1.2.3", "10.1.2.3", true),
            ("10.1.2.3", "10.1.2.2", false),
            ("10.1.2.2/31", "10.1.2.3", true),
            ("0.0.0.0/0", "203.0.113.9", true),
            ("0.0.0.0/0", "2001:db8::1", false),
            ("::/0", "2001:db8::1", true),
            ("::/0", "203.0.113.9", false),
            ("2001:db8::/33", "2001:db8:7fff::1", true),
            ("2001:db8::/33", "2001:db8:8000::1", false),
            ("::1", "::1", true),
            ("::1", "::2", false),
            ("::1", "127.0.0.1", false),
            ("unix", "127.0.0.1", false),
        ] {
            let prefix: Prefix = list.parse().unwrap();
            assert_eq!(prefix.holds(&tcp(address)), held, "{list} and {address}");
            assert_eq!(prefix.holds(&UNIX), list == "unix", "{list}");
        }
    }

    #[test]
    fn without_a_list_everybody_comes_in_and_an_allow_list_shuts_unix_out() {
        let open = Access::default();
        assert!(open.allows(&tcp("203.0.113.9")) && open.allows(&UNIX));
        assert!(!open.only_reads(&UNIX));
        let some = Access {
            allow: Some(vec!["10.0.0.0/8".parse().unwrap(), "::1".parse().unwrap()]),
            read_only_for: vec!["10.9.0.0/16".parse().unwrap()],
        };
        assert!(some.allows(&tcp("::1")) && !some.allows(&UNIX));
        assert!(!some.allows(&tcp("192.0.2.1")));
        assert!(some.only_reads(&tcp("10.9.1.1")) && !some.only_reads(&tcp("10.8.1.1")));
    }

    #[test]
    fn what_is_no_prefix_is_told() {
        for (text, says) in [
            ("", "is no address"),
            ("localhost", "aren't looked up"),
            ("10.0.0.0/33", "write 0 to 32"),
            ("::/129", "write 0 to 128"),
            ("10.0.0.0/", "write 0 to 32"),
            (
                "10.0.0.1/8",
                "write `10.0.0.0/8` for the net, or `10.0.0.1`",
            ),
            ("2001:db8::1/64", "write `2001:db8::/64`"),
            ("Unix", "is no address"),
        ] {
            let error = text.parse::<Prefix>().unwrap_err();
            assert!(error.contains(says), "{text}: {error}");
        }
    }

    #[test]
    fn an_ipv4_client_of_a_dual_stack_socket_counts_as_itself() {
        assert_eq!(tcp("::ffff:10.0.0.1").source(), tcp("10.0.0.1").source());
        assert_eq!(tcp("::ffff:10.0.0.1").to_string(), "10.0.0.1:4000");
    }
}
