//! How a frame ends: [`Verdict`], [`DropReason`], and the [`Counters`] that remember it.
//!
//! Invariant: every frame that was received, copied or originated is counted once as transmitted or dropped (or is held), so the sums agree
//! at the end of every turn.

/// What a core decides about a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It goes on.
    Forward,
    /// It was answered; what came in ends here.
    Reply,
    /// It is kept for later by whoever decided.
    Hold,
    /// It ends here.
    Drop(DropReason),
}

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        /// Why a frame was dropped.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum DropReason { $($(#[$doc])* $name,)* }

        impl DropReason {
            /// Every reason, in the order of their numbers.
            pub const ALL: &'static [DropReason] = &[$(DropReason::$name,)*];

            /// The reason's name in counters, JSON and tables.
            pub const fn name(self) -> &'static str {
                match self { $(DropReason::$name => $text,)* }
            }
        }
    };
}

reasons! {
    /// Shorter than an Ethernet header.
    Runt = "runt",
    /// Longer than a frame may be (65,550 bytes).
    Oversize = "oversize",
    /// In more pieces than a frame may have.
    TooManyPieces = "too_many_pieces",
    /// Its virtio-net header contradicts it.
    BadOffload = "bad_offload",
    /// The turn ran out of heads.
    NoHeads = "no_heads",
    /// The turn ran out of pooled bytes or pieces.
    NoBuffers = "no_buffers",
    /// Its source is a group address or zero.
    BadSource = "bad_source",
    /// Its source is not the address the port was declared with.
    SpoofedSource = "spoofed_source",
    /// Its source moved to and fro between ports (or tunnel endpoints), and is held behind another one: there is a loop outside.
    Flapping = "flapping",
    /// Sent to a reserved address (01:80:C2:00:00:0X).
    Reserved = "reserved",
    /// Tagged for a VLAN that the port is not a member of, or tagged on an access port.
    VlanNotAllowed = "vlan_not_allowed",
    /// Untagged on a trunk without a native VLAN.
    UntaggedNotAllowed = "untagged_not_allowed",
    /// No other port in its segment.
    NoDestination = "no_destination",
    /// Its destination is behind the port it came from.
    SamePort = "same_port",
    /// Between two isolated ports.
    Isolated = "isolated",
    /// Over the port's budget for broadcast frames.
    BroadcastBudget = "broadcast_budget",
    /// Over the port's budget for multicast frames.
    MulticastBudget = "multicast_budget",
    /// Over the port's budget for frames to unknown addresses.
    UnknownBudget = "unknown_budget",
    /// The receiver's ring had no room; counted at the receiver. Where more than a burst goes to one lane in a turn, at the sender.
    RingFull = "ring_full",
    /// The receiver is not attached.
    NotReady = "not_ready",
    /// The receiver's buffers cannot hold a frame of this length.
    TooBig = "too_big",
    /// The receiver filters this address or VLAN.
    Filtered = "filtered",
    /// The device would not take it without blocking.
    WouldBlock = "would_block",
    /// The device refused it.
    DeviceError = "device_error",
    /// Owes a segmentation that cannot be done (headers too long or not as announced).
    CannotSegment = "cannot_segment",
    /// The memory it was lent from is gone.
    Stale = "stale",
    /// Nothing that the segment's router answers or passes on.
    NotForGateway = "not_for_gateway",
    /// A packet to the segment's router that is cut off, contradicts itself or has a wrong checksum.
    BadPacket = "bad_packet",
    /// To somewhere that the segment's router has no way to, or may not pass on to.
    NoRoute = "no_route",
    /// Its hop limit ended at the segment's router.
    TtlExceeded = "ttl_exceeded",
    /// The DHCP server has no address for this client, or the message does not go with a lease of it.
    NoLease = "no_lease",
    /// Its next hop does not say where it is.
    Unresolved = "unresolved",
    /// Nothing that the NAT translates, or a datagram from outside that belongs to no guest.
    NotTranslated = "not_translated",
    /// A TCP segment of no connection that the NAT knows.
    NoConnection = "no_connection",
    /// An echo request, where this host allows no ping sockets (net.ipv4.ping_group_range).
    PingNotPermitted = "ping_not_permitted",
    /// Longer than the MTU of the way it would go, and not to be cut; its sender was told, within a limit.
    MtuExceeded = "mtu_exceeded",
    /// To an outside address of a NAT that nothing inside is mapped to.
    NatNoMapping = "nat_no_mapping",
    /// From an address that a NAT's mapping does not let in.
    NatFiltered = "nat_filtered",
    /// A TCP segment of no connection that the NAT knows.
    NatNoSession = "nat_no_session",
    /// All ports of the NAT's outside address are taken.
    NatNoPort = "nat_no_port",
    /// Its guest has as many mappings and connections as it may; with sockets, as many descriptors.
    NatQuota = "nat_quota",
    /// The NAT's table is full.
    NatFull = "nat_full",
    /// A protocol that the NAT does not translate.
    NatUnsupported = "nat_unsupported",
    /// An IP packet whose source is none of the addresses that the port was declared with.
    SpoofedAddress = "spoofed_address",
    /// An ARP packet whose sender is not the port, or is an address that another port was declared with.
    SpoofedArp = "spoofed_arp",
    /// A neighbour discovery message that speaks for an address that is not the port's.
    SpoofedNd = "spoofed_nd",
    /// What only a DHCP server says, from a port that is none.
    RogueDhcp = "rogue_dhcp",
    /// A router advertisement or redirect from a port that is no router's, or headers that could hide one.
    RogueRa = "rogue_ra",
    /// Neither ARP nor IP, or of a router: nothing that leaves by an uplink with one MAC.
    OneMac = "one_mac",
    /// A packet from a tunnel whose header has flags, options or contents that are not known.
    BadTunnel = "bad_tunnel",
    /// A packet from a tunnel of a network that is not here.
    UnknownVni = "unknown_vni",
    /// A packet from a tunnel endpoint that the network does not name.
    UnknownVtep = "unknown_vtep",
    /// A frame that is itself a packet of the tunnel it would go into, or has come out of.
    TunnelLoop = "tunnel_loop",
    /// The underlay could not say that it was congested: the inner packet does not know ECN (RFC 6040).
    Congested = "congested",
    /// A fragment of a packet to a tunnel endpoint on a network of ours.
    OuterFragment = "outer_fragment",
    /// A frame to a tunnel endpoint on a network of ours that it does not take: no packet of a tunnel, no message to it.
    NotForTunnel = "not_for_tunnel",
    /// A packet to a sealed tunnel that was not sealed by its sender, was seen before, or whose sender has made no session.
    BadSeal = "bad_seal",
}

impl DropReason {
    /// How many there are.
    pub const COUNT: usize = DropReason::ALL.len();
}

/// What one NIC received, was sent and lost. `rx` is what came in from the guest.
#[derive(Clone, Debug)]
pub struct Counters {
    /// Frames from the guest.
    pub rx_frames: u64,
    /// Bytes of them, without virtio-net header.
    pub rx_bytes: u64,
    /// Frames to the guest.
    pub tx_frames: u64,
    /// Bytes of them.
    pub tx_bytes: u64,
    drops: [u64; DropReason::COUNT],
}

impl Default for Counters {
    fn default() -> Self {
        Counters { rx_frames: 0, rx_bytes: 0, tx_frames: 0, tx_bytes: 0, drops: [0; DropReason::COUNT] }
    }
}

impl Counters {
    /// Counts `frames` more dropped for `reason`.
    #[inline]
    pub fn dropped(&mut self, reason: DropReason, frames: u64) {
        if let Some(count) = self.drops.get_mut(reason as usize) {
            *count += frames;
        }
    }

    /// Frames dropped for `reason`.
    pub fn drops(&self, reason: DropReason) -> u64 {
        self.drops.get(reason as usize).copied().unwrap_or(0)
    }

    /// The reasons that happened, with their counts.
    pub fn all_drops(&self) -> impl Iterator<Item = (DropReason, u64)> + '_ {
        DropReason::ALL.iter().zip(self.drops).filter(|(_, n)| *n > 0).map(|(reason, n)| (*reason, n))
    }

    /// All drops together.
    pub fn total_drops(&self) -> u64 {
        self.drops.iter().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::DropReason;

    #[test]
    fn every_reason_is_explained_to_users() {
        let page = include_str!("../../docs/drops.md");
        let missing: Vec<&str> = DropReason::ALL
            .iter()
            .map(|reason| reason.name())
            .filter(|name| !page.contains(&format!("`{name}`")))
            .collect();
        assert!(missing.is_empty(), "{missing:?}");
    }
}
