//! [`Straight`]: most of what passes through a router, told by a few words of its head.
//!
//! Invariant: what is said here to go straight on is what `ipv4.rs` would let go on, and for the same reasons; about anything else it says
//! nothing. It is a shorter way to one answer, not a second opinion: a test holds the two together.
//! Read first: `course` in `ipv4.rs`.

use std::net::IpAddr;

use wire::{Mac, checksum};

use crate::config::{Config, Elsewhere, is_host};

/// EtherType IPv4, version 4, a header without options; as they follow one another in a frame.
const PLAIN: [u8; 3] = [0x08, 0x00, 0x45];

/// The router's addresses, made ready to be compared with. See the module's documentation.
#[derive(Debug)]
pub(crate) struct Straight {
    mac: Mac,
    network: u32,
    mask: u32,
    aliases: Box<[u32]>,
}

impl Straight {
    /// For a router behind which there is something; nothing for others.
    pub(crate) fn new(config: &Config) -> Option<Straight> {
        let v4 = config.v4.as_ref().filter(|_| config.elsewhere == Elsewhere::Forward)?;
        let aliases = config.aliases.iter().filter_map(|alias| match alias {
            IpAddr::V4(alias) => Some(alias.to_bits()),
            IpAddr::V6(_) => None,
        });
        let (network, mask) = (v4.network().to_bits(), v4.mask().to_bits());
        Some(Straight { mac: config.mac, network, mask, aliases: aliases.collect() })
    }

    /// Whether a frame goes on, by its first bytes.
    #[inline]
    pub(crate) fn covers(&self, bytes: &[u8], checksum_owed: bool) -> bool {
        let Some(bytes) = bytes.first_chunk::<34>() else { return false };
        let [t0, t1, t2, t3, t4, t5, f0, f1, f2, f3, f4, f5, a, b, c, .., ttl, _, _, _, s0, s1, s2, s3, d0, d1, d2, d3] =
            *bytes;
        let (to, from) = (Mac::new([t0, t1, t2, t3, t4, t5]), Mac::new([f0, f1, f2, f3, f4, f5]));
        let Some(header) = bytes.last_chunk::<20>() else { return false };
        let (source, destination) = (u32::from_be_bytes([s0, s1, s2, s3]), u32::from_be_bytes([d0, d1, d2, d3]));
        to == self.mac
            && [a, b, c] == PLAIN
            && ttl > 1
            && destination & self.mask != self.network
            && is_host(destination.into())
            && is_host(source.into())
            && from.is_unicast()
            && from != self.mac
            && (checksum_owed || checksum::is_valid_header(header))
            && !self.aliases.contains(&destination)
    }
}
