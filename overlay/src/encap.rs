//! [`Encapsulation`]: the eight bytes between UDP and the inner frame, of VXLAN and of Geneve.
//!
//! Invariant: what is written is read as the same identifier. What a receiver could misread is refused: flags of VXLAN whose meaning is not known
//! (an extension may give the bytes behind them another one), options of Geneve that must be understood.
//! Reserved fields are sent as zero and not looked at.
//! Read first: RFC 7348 section 5, RFC 8926 section 3.4.

use wire::Vni;

/// Bytes of a header without options.
pub const HEADER: usize = 8;
/// VXLAN: the identifier is valid.
const VALID: u8 = 0x08;
/// Geneve: some option must be understood, and this is a message for the endpoint itself.
const CRITICAL: u8 = 0x40;
const CONTROL: u8 = 0x80;
/// Geneve: an Ethernet frame follows.
const ETHERNET: [u8; 2] = [0x65, 0x58];

/// How inner frames are wrapped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Encapsulation {
    /// RFC 7348, on UDP port 4789 unless told otherwise.
    #[default]
    Vxlan,
    /// RFC 8926, on UDP port 6081 unless told otherwise.
    Geneve,
}

/// Why a packet is none that is meant for us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// Cut off within the header.
    Short,
    /// Flags, version or options that are not known.
    Unknown,
    /// Something else than an Ethernet frame follows.
    Protocol,
}

impl Encapsulation {
    /// Its UDP port.
    pub const fn port(self) -> u16 {
        match self {
            Encapsulation::Vxlan => 4789,
            Encapsulation::Geneve => 6081,
        }
    }

    /// The header of a network.
    #[inline]
    pub const fn header(self, vni: Vni) -> [u8; HEADER] {
        let [_, a, b, c] = vni.get().to_be_bytes();
        match self {
            Encapsulation::Vxlan => [VALID, 0, 0, 0, a, b, c, 0],
            Encapsulation::Geneve => [0, 0, ETHERNET[0], ETHERNET[1], a, b, c, 0],
        }
    }

    /// The identifier in a header (host byte order, 24 bits), and where the inner frame begins.
    ///
    /// # Errors
    /// See [`Malformed`].
    #[inline]
    pub fn read(self, bytes: &[u8]) -> Result<(u32, usize), Malformed> {
        let [first, flags, p, q, a, b, c, _] = *bytes.first_chunk::<HEADER>().ok_or(Malformed::Short)?;
        let vni = u32::from_be_bytes([0, a, b, c]);
        match self {
            Encapsulation::Vxlan if first == VALID => Ok((vni, HEADER)),
            Encapsulation::Vxlan => Err(Malformed::Unknown),
            Encapsulation::Geneve if first >> 6 != 0 || flags & (CONTROL | CRITICAL) != 0 => Err(Malformed::Unknown),
            Encapsulation::Geneve if [p, q] != ETHERNET => Err(Malformed::Protocol),
            Encapsulation::Geneve => Ok((vni, HEADER + usize::from(first & 0x3f) * 4)),
        }
    }
}

/// The UDP source port of a flow's packets, out of the dynamic ports (RFC 6335 section 6).
#[inline]
pub(crate) const fn source_port(hash: u32) -> u16 {
    0xc000 | (hash >> 18) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_read_as_it_was_written() {
        for kind in [Encapsulation::Vxlan, Encapsulation::Geneve] {
            for number in [1, 5001, 0xff_ffff] {
                let vni = Vni::new(number).unwrap();
                assert_eq!(kind.read(&kind.header(vni)), Ok((number, HEADER)));
            }
            assert_eq!(kind.read(&[0; 7]), Err(Malformed::Short));
        }
    }

    #[test]
    fn what_is_not_known_is_refused_and_what_is_reserved_is_not_looked_at() {
        let vxlan = Encapsulation::Vxlan;
        assert_eq!(vxlan.read(&[0x08, 1, 2, 3, 0, 0, 9, 4]), Ok((9, 8)), "RFC 7348: ignored on receipt");
        for flags in [0, 0x88, 0x0c, 0x48] {
            assert_eq!(vxlan.read(&[flags, 0, 0, 0, 0, 0, 9, 0]), Err(Malformed::Unknown));
        }
        let geneve = Encapsulation::Geneve;
        assert_eq!(geneve.read(&[2, 0, 0x65, 0x58, 0, 0, 9, 0]), Ok((9, 16)), "options that may be skipped");
        assert_eq!(geneve.read(&[2, 0x40, 0x65, 0x58, 0, 0, 9, 0]), Err(Malformed::Unknown), "options that may not");
        assert_eq!(geneve.read(&[0x40, 0, 0x65, 0x58, 0, 0, 9, 0]), Err(Malformed::Unknown), "another version");
        assert_eq!(geneve.read(&[0, 0, 0x08, 0, 0, 0, 9, 0]), Err(Malformed::Protocol));
    }
}
