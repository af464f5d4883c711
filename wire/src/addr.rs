//! Addresses and identifiers of the link layer: [`Mac`], [`Vid`], [`Vni`].
//!
//! Invariant: a value of these types is within its field's range, so nothing behind the edge checks again.
//! Read first: IEEE 802.3 clause 3.2.3 (addresses), IEEE 802.1Q clause 9.6 (VLAN identifiers), RFC 7348 section 5 (VNI), RFC 4291 appendix A.

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr},
    str::FromStr,
};

/// Why a text is not an address or identifier.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddrError {
    /// Not six hexadecimal bytes separated by `:` or `-`.
    #[error("`{0}` is not a MAC address; write six hexadecimal bytes, for example 02:00:00:00:00:01")]
    Mac(String),
    /// Not a number from 1 to 4094.
    #[error("`{0}` is not a VLAN identifier; allowed are 1 to 4094")]
    Vid(String),
    /// Not a number from 1 to 16777215.
    #[error("`{0}` is not a VXLAN network identifier; allowed are 1 to 16777215")]
    Vni(String),
}

/// A 48-bit Ethernet address in wire order (first byte sent first).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Mac([u8; 6]);

impl Mac {
    /// ff:ff:ff:ff:ff:ff.
    pub const BROADCAST: Mac = Mac([0xff; 6]);

    /// The address with these bytes, first on the wire first.
    #[inline]
    pub const fn new(bytes: [u8; 6]) -> Self {
        Mac(bytes)
    }

    /// The bytes, first on the wire first.
    #[inline]
    pub const fn bytes(self) -> [u8; 6] {
        self.0
    }

    /// The address as the low 48 bits of a number, first byte on the wire in bits 0 to 7.
    #[inline]
    pub const fn to_bits(self) -> u64 {
        let [a, b, c, d, e, f] = self.0;
        u64::from_le_bytes([a, b, c, d, e, f, 0, 0])
    }

    /// The inverse of [`Mac::to_bits`]; the upper 16 bits are ignored.
    #[inline]
    pub const fn from_bits(bits: u64) -> Self {
        let [a, b, c, d, e, f, _, _] = bits.to_le_bytes();
        Mac([a, b, c, d, e, f])
    }

    /// Group address (broadcast or multicast): the I/G bit is set.
    #[inline]
    pub const fn is_group(self) -> bool {
        self.0[0] & 1 != 0
    }

    /// All ones.
    #[inline]
    pub const fn is_broadcast(self) -> bool {
        self.to_bits() == 0xffff_ffff_ffff
    }

    /// May be the source of a frame and the address of one station: neither a group address nor all zero.
    #[inline]
    pub const fn is_unicast(self) -> bool {
        !self.is_group() && self.to_bits() != 0
    }

    /// 01:80:C2:00:00:00 to :0F, which bridges do not forward (IEEE 802.1Q table 8-1).
    #[inline]
    pub const fn is_reserved(self) -> bool {
        self.to_bits() & 0xf0ff_ffff_ffff == 0x0000_00c2_8001
    }

    /// The address that packets to a group go to (RFC 1112 section 6.4, RFC 2464 section 7).
    pub const fn of_group(group: IpAddr) -> Mac {
        match group {
            IpAddr::V4(group) => {
                let [_, a, b, c] = group.octets();
                Mac([0x01, 0x00, 0x5e, a & 0x7f, b, c])
            }
            IpAddr::V6(group) => {
                let [.., a, b, c, d] = group.octets();
                Mac([0x33, 0x33, a, b, c, d])
            }
        }
    }

    /// The IPv6 address that an interface with this MAC makes itself in the 64 bits of a prefix (RFC 4291 appendix A).
    pub const fn in_prefix(self, prefix: Ipv6Addr) -> Ipv6Addr {
        let [p, q, r, s, ..] = prefix.segments();
        let [a, b, c, d, e, f] = self.0;
        let [t, u, v, w] = [[a ^ 2, b], [c, 0xff], [0xfe, d], [e, f]];
        let (t, u, v, w) = (u16::from_be_bytes(t), u16::from_be_bytes(u), u16::from_be_bytes(v), u16::from_be_bytes(w));
        Ipv6Addr::new(p, q, r, s, t, u, v, w)
    }

    /// That in the prefix of the link, fe80::/64.
    pub const fn link_local(self) -> Ipv6Addr {
        self.in_prefix(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0))
    }
}

/// All nodes on a link (RFC 4291 section 2.7.1).
pub const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// The group in which an IPv6 address is asked for (RFC 4291 section 2.7.1).
pub const fn solicited_node(address: Ipv6Addr) -> Ipv6Addr {
    let [.., a, b, c] = address.octets();
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, u16::from_be_bytes([0xff, a]), u16::from_be_bytes([b, c]))
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Mac {
    type Err = AddrError;
    fn from_str(text: &str) -> Result<Self, AddrError> {
        let wrong = || AddrError::Mac(text.to_owned());
        let mut bytes = [0u8; 6];
        let mut parts = text.split([':', '-']);
        for byte in &mut bytes {
            let part = parts.next().ok_or_else(wrong)?;
            if part.len() != 2 || !part.bytes().all(|c| c.is_ascii_hexdigit()) {
                return Err(wrong());
            }
            *byte = u8::from_str_radix(part, 16).map_err(|_| wrong())?;
        }
        if parts.next().is_some() {
            return Err(wrong());
        }
        Ok(Mac(bytes))
    }
}

macro_rules! identifier {
    ($(#[$doc:meta])* $name:ident, $repr:ty, $max:literal, $error:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
        pub struct $name($repr);

        impl $name {
            /// The identifier with this number, if it is in range.
            #[inline]
            pub const fn new(number: $repr) -> Option<Self> {
                if number >= 1 && number <= $max { Some($name(number)) } else { None }
            }

            /// The number.
            #[inline]
            pub const fn get(self) -> $repr {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl FromStr for $name {
            type Err = AddrError;
            fn from_str(text: &str) -> Result<Self, AddrError> {
                text.parse().ok().and_then($name::new).ok_or_else(|| AddrError::$error(text.to_owned()))
            }
        }
    };
}

identifier!(
    /// A VLAN identifier, 1 to 4094 (0 means priority tag only and 4095 is reserved, IEEE 802.1Q table 9-2).
    Vid, u16, 4094, Vid
);
identifier!(
    /// A VXLAN network identifier, 1 to 2^24 - 1 (RFC 7348 section 5).
    Vni, u32, 16_777_215, Vni
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mac_reads_what_it_writes() {
        let mac: Mac = "02:00:5e:10:00:ff".parse().unwrap();
        assert_eq!(mac.to_string(), "02:00:5e:10:00:ff");
        assert_eq!(Mac::from_bits(mac.to_bits()), mac);
        assert!("02:00:5e:10:00".parse::<Mac>().is_err());
        assert!("02:00:5e:10:00:ff:00".parse::<Mac>().is_err());
        assert!("02:00:5e:10:00:+f".parse::<Mac>().is_err());
    }

    #[test]
    fn kinds_of_mac() {
        assert!(Mac::BROADCAST.is_group() && Mac::BROADCAST.is_broadcast());
        assert!(Mac::new([1, 0x80, 0xc2, 0, 0, 0x0e]).is_reserved());
        assert!(!Mac::new([1, 0x80, 0xc2, 0, 0, 0x10]).is_reserved());
        assert!(!Mac::new([1, 0x80, 0xc2, 0, 1, 0]).is_reserved());
        assert!(!Mac::new([0; 6]).is_unicast());
    }

    #[test]
    fn addresses_are_made_of_macs() {
        let mac = Mac::new([0x02, 0x74, 0x67, 1, 2, 3]);
        assert_eq!(mac.link_local().to_string(), "fe80::74:67ff:fe01:203");
        let prefix = "fd00:1:2:3:ffff::9".parse().unwrap();
        assert_eq!(
            mac.in_prefix(prefix).to_string(),
            "fd00:1:2:3:74:67ff:fe01:203",
            "of a prefix its first half counts"
        );
    }

    #[test]
    fn groups_have_their_macs() {
        let of = |group: &str| Mac::of_group(group.parse().unwrap()).to_string();
        assert_eq!(of("224.128.64.251"), "01:00:5e:00:40:fb", "of IPv4 23 bits");
        assert_eq!(of("ff02::1:ff28:9c5a"), "33:33:ff:28:9c:5a");
        let group = solicited_node("4037::1:800:200e:8c6c".parse().unwrap());
        assert_eq!(group.to_string(), "ff02::1:ff0e:8c6c", "the example of RFC 4291");
    }

    #[test]
    fn identifiers_keep_their_range() {
        assert!(Vid::new(0).is_none() && Vid::new(4095).is_none() && Vid::new(4094).is_some());
        assert!("0".parse::<Vni>().is_err() && "16777215".parse::<Vni>().is_ok());
    }
}
