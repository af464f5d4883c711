//! [`FlowKey`]: which flow a frame belongs to, and the hash that spreads flows over lanes.
//!
//! Invariant: all whole packets of one transport connection in one direction have one key, tagged or not, and all fragments between two
//! addresses have one key (they name neither protocol nor ports, not even the first). Read first: [`crate::layers`].

use crate::{
    keyed::fold,
    layers::{L3, Layers},
};

/// What frames of one flow have in common. The tag is no part of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct FlowKey {
    /// Destination and source MAC as they lie on the wire.
    pub macs: [u8; 12],
    /// The EtherType after the tags, host byte order.
    pub ethertype: u16,
    /// Source address; IPv4 in the first four bytes; zero when it is not IP.
    pub source: [u8; 16],
    /// Destination address, likewise.
    pub destination: [u8; 16],
    /// Transport protocol; zero when it is not IP or not found, and for fragments.
    pub protocol: u8,
    /// Source and destination port of TCP, UDP, SCTP, DCCP and UDP-Lite as they lie on the wire; zero for others and for fragments.
    pub ports: [u8; 4],
}

impl FlowKey {
    /// The key of the frame that begins with `bytes`; what is not there counts as zero.
    pub fn of(bytes: &[u8]) -> FlowKey {
        let Some(layers) = Layers::parse(bytes) else { return FlowKey::default() };
        let at = layers.l2_len;
        let mut key = FlowKey { macs: part(bytes, 0), ethertype: layers.ethertype, ..FlowKey::default() };
        match layers.l3 {
            L3::V4 => {
                let [a, b, c, d]: [u8; 4] = part(bytes, at + 12);
                key.source = [a, b, c, d, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
                let [a, b, c, d]: [u8; 4] = part(bytes, at + 16);
                key.destination = [a, b, c, d, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
            }
            L3::V6 => {
                key.source = part(bytes, at + 8);
                key.destination = part(bytes, at + 24);
            }
            L3::Other => return key,
        }
        if layers.fragment {
            return key;
        }
        key.protocol = layers.protocol.unwrap_or(0);
        if let (6 | 17 | 33 | 132 | 136, Some(l4)) = (key.protocol, layers.l4) {
            key.ports = part(bytes, l4);
        }
        key
    }

    /// A number that spreads keys evenly over its 32 bits. Not secret: a guest can choose which lane its own flows take, and no more.
    #[inline]
    pub fn hash(&self) -> u32 {
        let [a, b, c, d, e, f, g, h, i, j, k, l] = self.macs;
        let [ethertype_high, ethertype_low] = self.ethertype.to_be_bytes();
        let [p, q, r, s] = self.ports;
        let mut hash = SEED;
        for word in [
            u64::from_le_bytes([a, b, c, d, e, f, g, h]),
            u64::from_le_bytes([i, j, k, l, ethertype_high, ethertype_low, self.protocol, 0]),
            u64::from_le_bytes([p, q, r, s, 0, 0, 0, 0]),
        ]
        .into_iter()
        .chain([u128::from_le_bytes(self.source), u128::from_le_bytes(self.destination)].into_iter().flat_map(halves))
        {
            hash = fold(hash ^ word, FACTOR);
        }
        (hash ^ hash >> 32) as u32
    }
}

/// A number that is the same for all frames of a flow that begin with these bytes, and spreads flows over its 32 bits. Quicker than that of the
/// [`FlowKey`], and another one: of whole TCP and UDP packets without options only addresses and ports are looked at.
#[inline]
pub fn quick_hash(bytes: &[u8]) -> u32 {
    if let Some([0x08, 0x00, 0x45, _, _, _, _, _, flags, 0, _, protocol @ (6 | 17), _, _, rest @ ..]) =
        bytes.get(12..).and_then(|rest| rest.first_chunk::<26>())
        && flags & 0x3f == 0
        && let ([addresses @ .., _, _, _, _], Some(ports)) = (rest, rest.last_chunk::<4>())
    {
        let ports = u64::from(u32::from_le_bytes(*ports)) | u64::from(*protocol) << 32;
        let hash = fold(fold(u64::from_le_bytes(*addresses) ^ SEED, FACTOR) ^ ports, FACTOR);
        return (hash ^ hash >> 32) as u32;
    }
    FlowKey::of(bytes).hash()
}

const SEED: u64 = 0x9e37_79b9_7f4a_7c15;
const FACTOR: u64 = 0xd6e8_feb8_6659_fd93;

fn halves(wide: u128) -> [u64; 2] {
    [wide as u64, (wide >> 64) as u64]
}

/// The `N` bytes at `at`; zeros when not all of them are there.
fn part<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).copied().unwrap_or([0; N])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An untagged TCP segment from 10.0.0.`from`:1000+`from` to 10.0.0.9:80.
    fn tcp4(from: u8, flags_and_offset: u16) -> Vec<u8> {
        let mut bytes = vec![2, 0, 0, 0, 0, 9, 2, 0, 0, 0, 0, 1, 8, 0, 0x45];
        bytes.resize(54, 0);
        bytes[20..22].copy_from_slice(&flags_and_offset.to_be_bytes());
        bytes[23] = 6;
        bytes[26..34].copy_from_slice(&[10, 0, 0, from, 10, 0, 0, 9]);
        bytes[34..38].copy_from_slice(&[4, from, 0, 80]);
        bytes
    }

    fn tagged(mut bytes: Vec<u8>, tags: usize) -> Vec<u8> {
        for _ in 0..tags {
            bytes.splice(12..12, [0x81, 0, 0, 7]);
        }
        bytes
    }

    #[test]
    fn the_tag_is_no_part_of_the_flow() {
        let key = FlowKey::of(&tcp4(1, 0));
        assert_eq!((key.ports, key.protocol, key.ethertype), ([4, 1, 0, 80], 6, 0x0800));
        assert_eq!(&key.source[..4], &[10, 0, 0, 1]);
        assert_eq!(&key.destination[..4], &[10, 0, 0, 9]);
        assert_eq!(FlowKey::of(&tagged(tcp4(1, 0), 1)), key);
        assert_eq!(FlowKey::of(&tagged(tcp4(1, 0), 2)), key);
    }

    #[test]
    fn fragments_of_a_datagram_stay_together() {
        assert_eq!(FlowKey::of(&tcp4(1, 0x2000)), FlowKey::of(&tcp4(1, 0x0010)));
        assert_ne!(FlowKey::of(&tcp4(1, 0x2000)), FlowKey::of(&tcp4(1, 0)));
    }

    #[test]
    fn ipv6_flows_differ_by_address_and_port() {
        let mut bytes = vec![2, 0, 0, 0, 0, 9, 2, 0, 0, 0, 0, 1, 0x86, 0xdd, 0x60];
        bytes.resize(14 + 40 + 20, 0);
        bytes[20] = 17;
        let one = FlowKey::of(&bytes);
        bytes[37] = 5;
        let two = FlowKey::of(&bytes);
        bytes[55] = 5;
        let three = FlowKey::of(&bytes);
        assert_eq!(two.source[15], 5);
        assert_eq!(three.ports, [0, 5, 0, 0]);
        assert!(one.hash() != two.hash() && two.hash() != three.hash());
    }

    #[test]
    fn the_quick_hash_tells_flows_apart_and_fragments_only_by_address() {
        let hash = |from: u8, port: u8, flags: u16| {
            let mut bytes = tcp4(from, flags);
            bytes[35] = port;
            quick_hash(&bytes)
        };
        assert_eq!(hash(1, 5, 0), hash(1, 5, 0x4000), "not to be cut");
        assert!(hash(1, 5, 0) != hash(1, 6, 0) && hash(1, 5, 0) != hash(2, 5, 0));
        assert_eq!(hash(1, 5, 0x2000), hash(1, 6, 0x0010));
        let mut counts = [0u32; 8];
        for from in 0..=255 {
            (0..16).for_each(|port| counts[(hash(from, port, 0) >> 29) as usize] += 1);
        }
        assert!(counts.iter().all(|n| n.abs_diff(512) < 100), "{counts:?}");
    }

    #[test]
    fn no_bytes_no_flow() {
        assert_eq!(FlowKey::of(&[]), FlowKey::default());
        assert_eq!(FlowKey::of(&[1; 20]).ethertype, 0x0101);
        assert_eq!(FlowKey::of(&tcp4(1, 0)[..20]).source, [0; 16]);
    }

    #[test]
    fn flows_spread_evenly_over_lanes() {
        for lanes in [2u32, 3, 4, 8] {
            let mut counts = vec![0u32; lanes as usize];
            for from in 0..=255 {
                for port in 0..16 {
                    let mut bytes = tcp4(from, 0);
                    bytes[35] = port;
                    counts[((u64::from(FlowKey::of(&bytes).hash()) * u64::from(lanes)) >> 32) as usize] += 1;
                }
            }
            let fair = 4096 / lanes;
            assert!(counts.iter().all(|n| n.abs_diff(fair) < fair / 5), "{counts:?}");
        }
    }
}
