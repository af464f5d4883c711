//! What a packet says of its sender: [`Bridge::inspect`].
//!
//! Invariant: from a guarded port nothing passes that speaks for another address than the port's, nothing that only a router or a
//! DHCP server says, and no headers that could hide such a thing. From any port nothing passes that speaks, by ARP or neighbour discovery,
//! for an address that another attached NIC of the segment was declared with; and nothing that a router says where the segment has one.
//!
//! Theory of operation: which frames are looked into depends on the port and the EtherType alone ([`Inspection`]), so ports without a guard
//! pay nothing for IPv4, and TCP and UDP of a guarded port cost a few comparisons. Only the head is read. Of fragments, the first must hold all headers (RFC 7112),
//! so later ones cannot complete anything and pass. Up to two tags are looked through, and LLC/SNAP; more is refused, because receivers
//! disagree about it (CVE-2021-27853 and its siblings). Link-local IPv6 addresses may be of the guest's own making (RFC 7217) unless some are declared,
//! but never another's. Secure neighbour discovery (RFC 3971), whose options reach past the head, does not pass a guard.
//! Read first: RFC 7113 (RA guard), RFC 7513 and RFC 6620 (source address validation), RFC 5227, RFC 6980.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use wire::{
    DropReason, Mac, NicId, Segment,
    layers::{ETHERNET_LEN, ETHERTYPE_IPV4, ETHERTYPE_IPV6, ETHERTYPE_SERVICE_VLAN, ETHERTYPE_VLAN, TAG_LEN},
};

use crate::{
    bridge::{Bridge, Member},
    guard::Role,
};

#[cfg(test)]
mod tests;

const ETHERTYPE_ARP: u16 = 0x0806;
/// EtherTypes below are lengths (IEEE 802.3 clause 3.2.6).
const FIRST_ETHERTYPE: u16 = 0x0600;
const SNAP: [u8; 6] = [0xaa, 0xaa, 3, 0, 0, 0];
const MAX_TAGS: usize = 2;
const MAX_EXTENSIONS: usize = 8;
const ARP_ETHERNET_IPV4: [u8; 6] = [0, 1, 8, 0, 6, 4];
const ICMP: u8 = 1;
const IGMP: u8 = 2;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;

/// Which frames of a port are looked into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Inspection {
    /// None.
    Nothing,
    /// ARP, IPv6 and tagged ones: the port has no guard, but others have addresses.
    Claims,
    /// IPv4, too: the port has a guard, or the segment a router.
    Everything,
}

impl Inspection {
    /// Whether a frame with this EtherType, as it lies in a little-endian word, is looked into.
    #[inline]
    pub(crate) fn concerns(self, on_wire: u16) -> bool {
        let ethertype = on_wire.swap_bytes();
        match self {
            Inspection::Nothing => false,
            Inspection::Claims => ethertype != ETHERTYPE_IPV4 && is_telling(ethertype),
            Inspection::Everything => is_telling(ethertype),
        }
    }
}

fn is_telling(ethertype: u16) -> bool {
    matches!(ethertype, ETHERTYPE_IPV4 | ETHERTYPE_IPV6 | ETHERTYPE_ARP | ETHERTYPE_VLAN | ETHERTYPE_SERVICE_VLAN)
        || ethertype < FIRST_ETHERTYPE
}

/// Whether a drop for this reason is a matter of one packet, so that the next with the same Ethernet header may pass.
pub(crate) fn is_inspected(reason: DropReason) -> bool {
    use DropReason::{RogueDhcp, RogueRa, SpoofedAddress, SpoofedArp, SpoofedNd};
    matches!(reason, SpoofedAddress | SpoofedArp | SpoofedNd | RogueDhcp | RogueRa)
}

/// A port and what it may say in a segment.
struct Speaker<'a> {
    bridge: &'a Bridge,
    member: &'a Member,
    nic: NicId,
    segment: Segment,
    source: Mac,
}

type Checked = Result<(), DropReason>;

impl Bridge {
    /// Which frames of a member are looked into.
    pub(crate) fn inspection(&self, member: &Member) -> Inspection {
        let others_advertise = || self.members.iter().any(|(_, member)| member.role == Role::Router);
        match member.role {
            Role::Router => Inspection::Nothing,
            _ if member.guard.is_some() => Inspection::Everything,
            Role::Guest if others_advertise() => Inspection::Everything,
            _ if self.claims.has_addresses() => Inspection::Claims,
            _ => Inspection::Nothing,
        }
    }

    /// Whether what a frame from `nic` in `segment`, which begins with `bytes`, says of its sender may be.
    #[inline(never)]
    pub(crate) fn inspect(&self, nic: NicId, segment: Segment, bytes: &[u8]) -> Checked {
        let Some(member) = self.members.get(nic) else { return Ok(()) };
        let source = Mac::new(array(bytes, 6).unwrap_or_default());
        let speaker = Speaker { bridge: self, member, nic, segment, source };
        let (mut at, mut ethertype) = (ETHERNET_LEN, be16(bytes, 12).unwrap_or(0));
        let mut tags = 0;
        while let ETHERTYPE_VLAN | ETHERTYPE_SERVICE_VLAN = ethertype {
            if tags == MAX_TAGS {
                return if speaker.may_advertise() { Ok(()) } else { Err(DropReason::RogueRa) };
            }
            ethertype = be16(bytes, at + 2).unwrap_or(0);
            at += TAG_LEN;
            tags += 1;
        }
        if ethertype < FIRST_ETHERTYPE && array(bytes, at) == Some(SNAP) {
            ethertype = be16(bytes, at + 6).unwrap_or(0);
            at += 8;
            if let ETHERTYPE_VLAN | ETHERTYPE_SERVICE_VLAN = ethertype
                && !speaker.may_advertise()
            {
                return Err(DropReason::RogueRa);
            }
        }
        let packet = bytes.get(at..).unwrap_or_default();
        match ethertype {
            ETHERTYPE_IPV4 => speaker.ipv4(packet),
            ETHERTYPE_IPV6 => speaker.ipv6(packet),
            ETHERTYPE_ARP => speaker.arp(packet),
            _ => Ok(()),
        }
    }
}

impl Speaker<'_> {
    fn is_guarded(&self) -> bool {
        self.member.guard.is_some()
    }

    /// Whether it may say what a router or a DHCP server says.
    fn may_advertise(&self) -> bool {
        self.member.role != Role::Guest || !(self.is_guarded() || self.has_router())
    }

    /// Whether a router of ours is in the segment.
    fn has_router(&self) -> bool {
        let is_router = |member: &&Member| member.role == Role::Router && member.is_in(self.segment);
        self.bridge.members.iter().any(|(_, member)| is_router(&member))
    }

    /// Whether an attached NIC of the segment, and not this one, was declared with `address`.
    fn is_anothers(&self, address: IpAddr) -> bool {
        let mut others = false;
        for nic in self.bridge.claims.claimants_of(address) {
            if nic == self.nic {
                return false;
            }
            let member = self.bridge.members.get(nic);
            others |= member.is_some_and(|member| !member.lanes.is_empty() && member.is_in(self.segment));
        }
        others
    }

    /// Whether a packet may come from `address`.
    fn may_use_v4(&self, address: Ipv4Addr) -> bool {
        let declared = &self.member.addresses.v4;
        !self.is_guarded() || declared.is_empty() || declared.contains(&address)
    }

    fn may_use_v6(&self, address: Ipv6Addr) -> bool {
        let declared = &self.member.addresses;
        if !self.is_guarded() {
            true
        } else if address.is_unicast_link_local() {
            // Of its own making, of the MAC it sends from (it may have several by static entries), or declared.
            declared.link_local.contains(&address)
                || address == self.source.link_local()
                || !(declared.fixed_link_local || self.is_anothers(address.into()))
        } else {
            declared.v6.is_empty() || declared.v6.contains(&address)
        }
    }

    fn arp(&self, packet: &[u8]) -> Checked {
        let spoofed = Err(DropReason::SpoofedArp);
        if array(packet, 0) != Some(ARP_ETHERNET_IPV4) {
            return Ok(());
        }
        let (Some(hardware), Some(address)) = (array(packet, 8), array::<4>(packet, 14)) else { return spoofed };
        let address = Ipv4Addr::from(address);
        if self.is_guarded() && Mac::new(hardware) != self.source {
            return spoofed;
        }
        // RFC 5227 section 2.1.1: a probe speaks for nobody.
        let fine = address.is_unspecified() || (self.may_use_v4(address) && !self.is_anothers(address.into()));
        if fine { Ok(()) } else { spoofed }
    }

    fn ipv4(&self, packet: &[u8]) -> Checked {
        let Some([first, _, _, _, _, _, flags, offset, _, protocol, _, _, a, b, c, d]) = array::<16>(packet, 0) else {
            return if self.is_guarded() { Err(DropReason::SpoofedAddress) } else { Ok(()) };
        };
        let source = Ipv4Addr::new(a, b, c, d);
        let transport = usize::from(first & 0x0f) * 4;
        if !self.may_use_v4(source) {
            // Who has no address yet asks for one, or joins a group (RFC 3376 section 4.2.13).
            let to = be16(packet, transport + 2);
            let asks = protocol == IGMP || (protocol == UDP && to == Some(67));
            if !(source.is_unspecified() && asks) {
                return Err(DropReason::SpoofedAddress);
            }
        }
        if !matches!(protocol, UDP | ICMP) || u16::from_be_bytes([flags & 0x1f, offset]) != 0 || self.may_advertise() {
            return Ok(());
        }
        match protocol {
            UDP => self.udp(packet.get(transport..), (67, 68), Some(1)),
            // Redirect; router advertisement (RFC 1256).
            _ if matches!(packet.get(transport), None | Some(5 | 9)) => Err(DropReason::RogueRa),
            _ => Ok(()),
        }
    }

    /// A datagram from the port that servers have, or to the one that clients have, is a server's, unless it begins with `unless`.
    fn udp(&self, datagram: Option<&[u8]>, (server, client): (u16, u16), unless: Option<u8>) -> Checked {
        let Some([a, b, c, d]) = datagram.and_then(|datagram| array(datagram, 0)) else {
            return Err(DropReason::RogueDhcp);
        };
        let is_servers = u16::from_be_bytes([a, b]) == server || u16::from_be_bytes([c, d]) == client;
        let operation = datagram.and_then(|datagram| datagram.get(8)).copied();
        if is_servers && (operation.is_none() || operation != unless) {
            return Err(DropReason::RogueDhcp);
        }
        Ok(())
    }

    fn ipv6(&self, packet: &[u8]) -> Checked {
        let (Some(length), Some(source)) = (be16(packet, 4), array::<16>(packet, 8).map(Ipv6Addr::from)) else {
            return if self.is_guarded() { Err(DropReason::SpoofedAddress) } else { Ok(()) };
        };
        let next = packet.get(6).copied().unwrap_or(59);
        if source.is_unspecified() {
            // Only who looks whether an address is free, asks for a router or joins a group has none (RFC 4862, RFC 4861, RFC 3590).
            if self.is_guarded() && !self.member.addresses.v6.is_empty() && !matches!(next, ICMPV6 | 0) {
                return Err(DropReason::SpoofedAddress);
            }
        } else if !self.may_use_v6(source) {
            return Err(DropReason::SpoofedAddress);
        }
        let (protocol, at, fragment) = match chain(packet, next) {
            Chain::Transport { protocol, at, fragment } => (protocol, at, fragment),
            Chain::LaterFragment => return Ok(()),
            Chain::Hidden if self.may_advertise() => return Ok(()),
            Chain::Hidden => return Err(DropReason::RogueRa),
        };
        let transport = packet.get(at..).unwrap_or_default();
        match protocol {
            UDP if !self.may_advertise() => self.udp(Some(transport), (547, 546), None),
            ICMPV6 => {
                let message = packet.get(at..(40 + usize::from(length)).min(packet.len())).unwrap_or_default();
                let whole = !fragment && 40 + usize::from(length) <= packet.len();
                self.icmpv6(message, source, whole)
            }
            _ => Ok(()),
        }
    }

    fn icmpv6(&self, message: &[u8], source: Ipv6Addr, whole: bool) -> Checked {
        let spoofed = Err(DropReason::SpoofedNd);
        let (kind, options) = match message.first() {
            None if self.may_advertise() => return Ok(()),
            None | Some(134 | 137) if !self.may_advertise() => return Err(DropReason::RogueRa),
            Some(133) => (133, 8),
            Some(kind @ (135 | 136)) => (*kind, 24),
            _ => return Ok(()),
        };
        // Who takes the source's place in neighbour caches by asking.
        if !source.is_unspecified() && self.is_anothers(source.into()) {
            return spoofed;
        }
        let target = array::<16>(message, 8).map(Ipv6Addr::from);
        if kind == 136 && target.is_none_or(|target| self.is_anothers(target.into())) {
            return spoofed;
        }
        if !self.is_guarded() {
            return Ok(());
        }
        let speaks_for_target = kind == 136 || (kind == 135 && source.is_unspecified());
        if speaks_for_target && !target.is_some_and(|target| self.may_use_v6(target)) {
            return spoofed;
        }
        // RFC 6980: neighbour discovery is never in fragments.
        if whole && message.get(options..).is_some_and(|options| self.is_link_layer(options)) {
            Ok(())
        } else {
            spoofed
        }
    }

    /// Whether the options are well formed and name no other link-layer address than the frame's source (RFC 4861 section 4.6.1).
    fn is_link_layer(&self, mut options: &[u8]) -> bool {
        while let Some((kind, rest)) = options.split_first() {
            let length = rest.first().map_or(0, |units| usize::from(*units) * 8);
            if length == 0 || length > options.len() {
                return false;
            }
            if matches!(kind, 1 | 2) && (length != 8 || array(options, 2) != Some(self.source.bytes())) {
                return false;
            }
            options = options.get(length..).unwrap_or_default();
        }
        true
    }
}

/// What a chain of IPv6 headers leads to.
enum Chain {
    /// A transport header of this protocol, at this place, in a whole packet or a first fragment.
    Transport { protocol: u8, at: usize, fragment: bool },
    /// A fragment other than the first.
    LaterFragment,
    /// It reaches past what can be seen, or is longer than anybody's.
    Hidden,
}

fn chain(packet: &[u8], mut next: u8) -> Chain {
    let (mut at, mut fragment) = (40, false);
    for _ in 0..=MAX_EXTENSIONS {
        let length = match next {
            0 | 43 | 60 | 135 | 139 | 140 => packet.get(at + 1).map(|length| (usize::from(*length) + 1) * 8),
            51 => packet.get(at + 1).map(|length| (usize::from(*length) + 2) * 4),
            44 => {
                let Some(word) = be16(packet, at + 2) else { return Chain::Hidden };
                if word & 0xfff8 != 0 {
                    return Chain::LaterFragment;
                }
                fragment |= word & 1 != 0;
                Some(8)
            }
            protocol => return Chain::Transport { protocol, at, fragment },
        };
        let (Some(length), Some(following)) = (length, packet.get(at)) else { return Chain::Hidden };
        next = *following;
        at += length;
        if at > packet.len() {
            return Chain::Hidden;
        }
    }
    Chain::Hidden
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    array(bytes, at).map(u16::from_be_bytes)
}
