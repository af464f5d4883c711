//! [`Layers`]: where the headers of an Ethernet frame lie.
//!
//! Invariant: every offset lies within the bytes that were given and the fixed part of the header it points at is there too; walking is
//! bounded (two tags, eight IPv6 extension headers). Nothing here looks at a body, so headers that reach past a frame's head are not found.
//! Read first: IEEE 802.1Q clause 9, RFC 791 section 3.1, RFC 8200 section 4.

/// EtherType of an IEEE 802.1Q tag (customer tag).
pub const ETHERTYPE_VLAN: u16 = 0x8100;
/// EtherType of an IEEE 802.1ad service tag.
pub const ETHERTYPE_SERVICE_VLAN: u16 = 0x88a8;
/// EtherType of IPv4.
pub const ETHERTYPE_IPV4: u16 = 0x0800;
/// EtherType of IPv6.
pub const ETHERTYPE_IPV6: u16 = 0x86dd;
/// Bytes of an Ethernet header without tags.
pub const ETHERNET_LEN: usize = 14;
/// Bytes of one tag.
pub const TAG_LEN: usize = 4;

const MAX_TAGS: usize = 2;
const MAX_EXTENSIONS: usize = 8;
const IPV4_LEN: usize = 20;
const IPV6_LEN: usize = 40;
/// The fragment header (RFC 8200 section 4.5).
const FRAGMENT: u8 = 44;

/// What the network layer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum L3 {
    /// IPv4, its fixed header and options within the bytes.
    V4,
    /// IPv6, its fixed header within the bytes.
    V6,
    /// Anything else, or an IP header that is cut off or contradicts itself.
    Other,
}

/// Where the headers of a frame lie, in bytes from its first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layers {
    /// Length of the Ethernet header with its tags (two at most), which is where the network layer begins.
    pub l2_len: usize,
    /// The EtherType after the tags, host byte order.
    pub ethertype: u16,
    /// What the network layer is.
    pub l3: L3,
    /// The packet is a fragment, the first included (an IPv6 "atomic" fragment, RFC 6946, is whole and is none).
    pub fragment: bool,
    /// The transport protocol (IANA protocol number) after IPv6 extension headers; for [`L3::Other`], and where the extension headers
    /// reach past the bytes, nothing.
    pub protocol: Option<u8>,
    /// Where the transport header begins: at or before the end of the bytes, so it may be cut off. Nothing in a fragment other than the
    /// first, which has none.
    pub l4: Option<usize>,
}

impl Layers {
    /// The headers of the frame that begins with `bytes`; nothing when not even the Ethernet header and its tags are there.
    pub fn parse(bytes: &[u8]) -> Option<Layers> {
        let mut l2_len = ETHERNET_LEN;
        let mut ethertype = be16(bytes, 12)?;
        for _ in 0..MAX_TAGS {
            if ethertype != ETHERTYPE_VLAN && ethertype != ETHERTYPE_SERVICE_VLAN {
                break;
            }
            ethertype = be16(bytes, l2_len + 2)?;
            l2_len += TAG_LEN;
        }
        let other = Layers { l2_len, ethertype, l3: L3::Other, fragment: false, protocol: None, l4: None };
        let found = match ethertype {
            ETHERTYPE_IPV4 => ipv4(bytes, other),
            ETHERTYPE_IPV6 => ipv6(bytes, other),
            _ => None,
        };
        Some(found.unwrap_or(other))
    }

    /// The headers of the IPv6 packet that begins at `l3`: of one that an ICMPv6 error quotes, say. Nothing when its fixed header is not there.
    pub fn of_ipv6(bytes: &[u8], l3: usize) -> Option<Layers> {
        ipv6(
            bytes,
            Layers { l2_len: l3, ethertype: ETHERTYPE_IPV6, l3: L3::Other, fragment: false, protocol: None, l4: None },
        )
    }
}

/// Where the first fragment header of the IPv6 packet that begins at `l3` is, if it has one; it may be cut off itself.
pub fn fragment_header(bytes: &[u8], l3: usize) -> Option<usize> {
    let mut next = *bytes.get(l3 + 6)?;
    let mut at = l3 + IPV6_LEN;
    for _ in 0..MAX_EXTENSIONS {
        if next == FRAGMENT {
            return Some(at);
        }
        let (following, _) = extension(bytes, at)?;
        at += extension_len(next, bytes, at)??;
        next = following;
    }
    None
}

fn ipv4(bytes: &[u8], frame: Layers) -> Option<Layers> {
    let at = frame.l2_len;
    let header: &[u8; IPV4_LEN] = bytes.get(at..)?.first_chunk()?;
    let [first, _, _, _, _, _, flags, offset, _, protocol, ..] = *header;
    let length = usize::from(first & 0x0f) * 4;
    if first >> 4 != 4 || length < IPV4_LEN || bytes.len() < at + length {
        return None;
    }
    let offset = u16::from_be_bytes([flags & 0x1f, offset]);
    let fragment = flags & 0x20 != 0 || offset != 0;
    let l4 = (offset == 0).then_some(at + length);
    Some(Layers { l3: L3::V4, fragment, protocol: Some(protocol), l4, ..frame })
}

fn ipv6(bytes: &[u8], frame: Layers) -> Option<Layers> {
    let header: &[u8; IPV6_LEN] = bytes.get(frame.l2_len..)?.first_chunk()?;
    let [first, _, _, _, _, _, next, ..] = *header;
    if first >> 4 != 6 {
        return None;
    }
    let mut found = Layers { l3: L3::V6, ..frame };
    let mut at = frame.l2_len + IPV6_LEN;
    let mut next = next;
    for _ in 0..MAX_EXTENSIONS {
        let Some(length) = extension_len(next, bytes, at) else {
            found.protocol = Some(next);
            found.l4 = (at <= bytes.len()).then_some(at);
            return Some(found);
        };
        if next == FRAGMENT {
            let Some(offset) = be16(bytes, at + 2) else { return Some(found) };
            found.fragment |= offset & 0xfff9 != 0;
            if offset & 0xfff8 != 0 {
                found.protocol = bytes.get(at).copied();
                return Some(found);
            }
        }
        let (Some(length), Some((following, _))) = (length, extension(bytes, at)) else { return Some(found) };
        next = following;
        at += length;
    }
    Some(found)
}

/// Bytes of the extension header `kind` at `at`, if it is there; nothing when `kind` is no extension header.
fn extension_len(kind: u8, bytes: &[u8], at: usize) -> Option<Option<usize>> {
    match kind {
        // Hop-by-hop options, routing, destination options, mobility, host identity, shim6: eight bytes and eight more each.
        0 | 43 | 60 | 135 | 139 | 140 => Some(extension(bytes, at).map(|(_, length)| (length + 1) * 8)),
        // Authentication header, in words less two (RFC 4302 section 2.2).
        51 => Some(extension(bytes, at).map(|(_, length)| (length + 2) * 4)),
        FRAGMENT => Some(Some(8)),
        _ => None,
    }
}

/// The next header and the length byte of the extension header at `at`.
fn extension(bytes: &[u8], at: usize) -> Option<(u8, usize)> {
    let [next, length] = *bytes.get(at..)?.first_chunk()?;
    Some((next, usize::from(length)))
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|word| u16::from_be_bytes(*word))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(ethertypes: &[u16], l3: &[u8]) -> Vec<u8> {
        let mut bytes = vec![2; 12];
        for (i, ethertype) in ethertypes.iter().enumerate() {
            bytes.extend(ethertype.to_be_bytes());
            if i + 1 < ethertypes.len() {
                bytes.extend([0, 100]);
            }
        }
        bytes.extend(l3);
        bytes
    }

    fn v4(ihl: u8, flags_and_offset: u16, protocol: u8) -> Vec<u8> {
        let mut header = vec![0; usize::from(ihl) * 4];
        header[0] = 0x40 | ihl;
        header[6..8].copy_from_slice(&flags_and_offset.to_be_bytes());
        header[9] = protocol;
        header
    }

    fn v6(next: u8, rest: &[u8]) -> Vec<u8> {
        let mut header = vec![0; 40];
        header[0] = 0x60;
        header[6] = next;
        header.extend(rest);
        header
    }

    #[test]
    fn plain_and_tagged_ipv4() {
        let plain = Layers::parse(&frame(&[0x0800], &v4(6, 0x4000, 6))).unwrap();
        let expected =
            Layers { l2_len: 14, ethertype: 0x0800, l3: L3::V4, fragment: false, protocol: Some(6), l4: Some(38) };
        assert_eq!(plain, expected);
        let tagged = Layers::parse(&frame(&[0x88a8, 0x8100, 0x0800], &v4(5, 0, 17))).unwrap();
        assert_eq!((tagged.l2_len, tagged.l4, tagged.protocol), (22, Some(42), Some(17)));
    }

    #[test]
    fn a_third_tag_is_payload() {
        let layers = Layers::parse(&frame(&[0x8100, 0x8100, 0x8100, 0x0800], &v4(5, 0, 17))).unwrap();
        assert_eq!((layers.l2_len, layers.ethertype, layers.l3), (22, 0x8100, L3::Other));
    }

    #[test]
    fn fragments_have_ports_only_in_the_first() {
        let first = Layers::parse(&frame(&[0x0800], &v4(5, 0x2000, 17))).unwrap();
        assert!(first.fragment && first.l4 == Some(34));
        let last = Layers::parse(&frame(&[0x0800], &v4(5, 0x0010, 17))).unwrap();
        assert!(last.fragment && last.l4.is_none() && last.protocol == Some(17));
        let first = Layers::parse(&frame(&[0x86dd], &v6(44, &[17, 0, 0, 1, 0, 0, 0, 9]))).unwrap();
        assert!(first.fragment && first.l4 == Some(62) && first.protocol == Some(17));
        let last = Layers::parse(&frame(&[0x86dd], &v6(44, &[17, 0, 0, 8, 0, 0, 0, 9]))).unwrap();
        assert!(last.fragment && last.l4.is_none() && last.protocol == Some(17));
        let atomic = Layers::parse(&frame(&[0x86dd], &v6(44, &[17, 0, 0, 0, 0, 0, 0, 9]))).unwrap();
        assert!(!atomic.fragment && atomic.l4 == Some(62));
    }

    #[test]
    fn extension_headers_are_skipped_within_bounds() {
        let chain = [[43, 1], [0; 2], [0; 2], [0; 2], [0; 2], [0; 2], [0; 2], [0; 2], [6, 0], [0; 2], [0; 2], [0; 2]];
        let layers = Layers::parse(&frame(&[0x86dd], &v6(0, chain.as_flattened()))).unwrap();
        assert_eq!((layers.protocol, layers.l4), (Some(6), Some(14 + 40 + 16 + 8)));
        let endless = [0u8; 128];
        let layers = Layers::parse(&frame(&[0x86dd], &v6(0, &endless))).unwrap();
        assert_eq!((layers.l3, layers.protocol, layers.l4), (L3::V6, None, None));
        let cut = Layers::parse(&frame(&[0x86dd], &v6(0, &[6, 9]))).unwrap();
        assert_eq!((cut.protocol, cut.l4), (Some(6), None));
    }

    #[test]
    fn a_fragment_header_is_found_behind_others() {
        let chain = [[44, 0], [0; 2], [0; 2], [0; 2], [17, 0], [0, 8], [0; 2], [0, 9]];
        let bytes = v6(0, chain.as_flattened());
        assert_eq!(fragment_header(&bytes, 0), Some(48));
        assert_eq!(fragment_header(&frame(&[0x86dd], &bytes), 14), Some(62));
        assert_eq!(fragment_header(&bytes[..48], 0), Some(48), "where it would be");
        assert_eq!(fragment_header(&bytes[..41], 0), None);
        assert_eq!(fragment_header(&v6(17, &[0; 8]), 0), None);
        let layers = Layers::of_ipv6(&bytes, 0).unwrap();
        assert!(layers.fragment && layers.l4.is_none() && layers.protocol == Some(17));
        assert_eq!(Layers::of_ipv6(&bytes[..39], 0), None);
    }

    #[test]
    fn what_is_cut_off_or_contradicts_itself_is_other() {
        assert_eq!(Layers::parse(&[0; 13]), None);
        assert_eq!(Layers::parse(&frame(&[0x8100], &[0; 3])), None);
        for header in [v4(5, 0, 6)[..19].to_vec(), v4(6, 0, 6)[..20].to_vec(), v6(6, &[])] {
            assert_eq!(Layers::parse(&frame(&[0x0800], &header)).unwrap().l3, L3::Other);
        }
    }

    proptest! {
        #[test]
        fn offsets_stay_within_any_bytes(
            kind in prop::sample::select(vec![0x0800u16, 0x86dd, 0x8100, 0x88a8]),
            version in prop::sample::select(vec![0x45u8, 0x4f, 0x60]),
            rest in prop::collection::vec(prop::sample::select(vec![0u8, 1, 6, 43, 44, 51, 60, 0x45, 0x60, 0x81, 255]), 0..160),
        ) {
            let mut l3 = vec![version];
            l3.extend(rest);
            let bytes = frame(&[kind], &l3);
            if let Some(layers) = Layers::parse(&bytes) {
                prop_assert!(layers.l2_len <= bytes.len());
                prop_assert!(layers.l4.is_none_or(|l4| l4 <= bytes.len()));
            }
        }
    }
}
