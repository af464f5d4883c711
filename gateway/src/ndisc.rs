//! Neighbour solicitations for the router's addresses, and the router's own for those of the segment.
//!
//! Invariant: an advertisement names one of the router's own addresses and its MAC. A node that is looking whether its address is
//! free (RFC 4862 section 5.4) is answered to all nodes, anybody else directly.
//! Read first: RFC 4861 sections 4.3, 4.4, 7.1.1 and 7.2.4.

use std::net::Ipv6Addr;

use wire::{ALL_NODES, DropReason, Mac, layers::ETHERTYPE_IPV6, solicited_node};

use crate::{
    bytes::array,
    config::RouterV6,
    gateway::Decision,
    icmp::Path,
    packet::{self, V6},
};

pub(crate) const ROUTER_SOLICITATION: u8 = 133;
pub(crate) const ROUTER_ADVERTISEMENT: u8 = 134;
pub(crate) const NEIGHBOR_SOLICITATION: u8 = 135;
pub(crate) const NEIGHBOR_ADVERTISEMENT: u8 = 136;
/// Option: source link-layer address.
pub(crate) const SOURCE_LINK: u8 = 1;
/// Option: target link-layer address.
pub(crate) const TARGET_LINK: u8 = 2;
/// The hop limit that shows that no router passed a packet on.
pub(crate) const HOP_LIMIT: u8 = 255;

/// Router, solicited, override.
const ROUTER: u8 = 0x80;
const SOLICITED: u8 = 0x40;
const OVERRIDE: u8 = 0x20;

/// Whether the options are well formed, and whether a source link-layer address is among them.
pub(crate) fn options(mut bytes: &[u8]) -> Option<bool> {
    let mut found = false;
    while let Some((kind, rest)) = bytes.split_first() {
        let units = *rest.first()?;
        if units == 0 {
            return None;
        }
        found |= *kind == SOURCE_LINK;
        bytes = bytes.get(usize::from(units) * 8..)?;
    }
    Some(found)
}

/// The link-layer address that an option of this kind gives, where the options are well formed.
pub(crate) fn link_address(mut bytes: &[u8], wanted: u8) -> Option<Mac> {
    options(bytes)?;
    while let Some((kind, rest)) = bytes.split_first() {
        if *kind == wanted {
            return array(rest, 1).map(Mac::new);
        }
        bytes = bytes.get(usize::from(*rest.first()?) * 8..)?;
    }
    None
}

/// What `message`, sent from `from` in a frame of `mac`, shows of who has which address: a solicitation of its sender, an
/// advertisement of its target.
pub(crate) fn shown(message: &[u8], from: Ipv6Addr, mac: Mac) -> Option<(Ipv6Addr, Mac)> {
    let options = message.get(24..)?;
    let (address, option) = match *message.first()? {
        NEIGHBOR_SOLICITATION => (from, SOURCE_LINK),
        NEIGHBOR_ADVERTISEMENT => (Ipv6Addr::from(array::<16>(message, 8)?), TARGET_LINK),
        _ => return None,
    };
    let said = link_address(options, option).unwrap_or(mac);
    (said == mac && !address.is_unspecified() && !address.is_multicast()).then_some((address, mac))
}

/// Whether an advertisement is to take the place of what was known.
pub(crate) fn overrides(message: &[u8]) -> bool {
    message.get(4).is_some_and(|flags| flags & OVERRIDE != 0)
}

/// Asks who has `address`, from `from`.
pub(crate) fn ask(out: &mut Vec<u8>, mac: Mac, from: Ipv6Addr, address: Ipv6Addr) {
    let to = solicited_node(address);
    let header = V6 { from, to, hop_limit: HOP_LIMIT };
    packet::ethernet(out, Mac::of_group(to.into()), mac, ETHERTYPE_IPV6);
    packet::icmpv6(out, &header);
    out.extend_from_slice(&[NEIGHBOR_SOLICITATION, 0, 0, 0, 0, 0, 0, 0]);
    out.extend_from_slice(&address.octets());
    out.extend_from_slice(&[SOURCE_LINK, 1]);
    out.extend_from_slice(&mac.bytes());
    packet::finish_icmpv6(out, &header);
}

/// Answers `message`, a neighbour solicitation sent to `to`, whose checksum, code and hop limit are right.
pub(crate) fn solicitation(
    mac: Mac,
    v6: &RouterV6,
    path: &Path<Ipv6Addr>,
    to: Ipv6Addr,
    message: &[u8],
    out: &mut Vec<u8>,
) -> Decision {
    let bad = Decision::drop(DropReason::BadPacket);
    let Some(target) = array::<16>(message, 8).map(Ipv6Addr::from) else { return bad };
    let Some(source_link) = message.get(24..).and_then(options) else { return bad };
    let probe = path.to.is_unspecified();
    if target.is_multicast() || path.to.is_multicast() || (probe && (source_link || to != solicited_node(target))) {
        return bad;
    }
    if !v6.owns(target) {
        return Decision::drop(DropReason::NotForGateway);
    }
    let (to, to_mac, flags) = if probe {
        (ALL_NODES, Mac::of_group(ALL_NODES.into()), ROUTER | OVERRIDE)
    } else {
        (path.to, path.to_mac, ROUTER | SOLICITED | OVERRIDE)
    };
    let header = V6 { from: target, to, hop_limit: HOP_LIMIT };
    packet::ethernet(out, to_mac, mac, ETHERTYPE_IPV6);
    packet::icmpv6(out, &header);
    out.extend_from_slice(&[NEIGHBOR_ADVERTISEMENT, 0, 0, 0, flags, 0, 0, 0]);
    out.extend_from_slice(&target.octets());
    out.extend_from_slice(&[TARGET_LINK, 1]);
    out.extend_from_slice(&mac.bytes());
    packet::finish_icmpv6(out, &header);
    Decision::reply()
}
