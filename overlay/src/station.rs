//! [`Station`]: a tunnel endpoint that is a station of a network of ours, with its own MAC and IP address, as what carries packets between hosts.
//!
//! Invariant: a packet goes to the MAC address that its next hop has shown to be behind, or ends as `Unresolved`; it is whole and right but for a checksum
//! inside that it may owe, which whoever takes it out of this network completes. No copy of a body, no allocation and no system call is for a frame.
//!
//! Theory of operation: the port has a NIC in that network. Outward, all outer headers go into the head's headroom at once, from a template that is kept for
//! a burst ([`Front`]), and the frame becomes one that this NIC has sent: an answer, which the worker forwards in the same turn. The source port is the
//! flow's. Inward, what is for the endpoint is a tunnel's packet and loses its headers by advancing the frame's start (`inward.rs`), or a message
//! (`talk.rs`). Where packets go next is in `hops.rs`; each remote endpoint's MAC address is kept in [`Path`], which holds for a few seconds and as long as
//! nothing has changed there. Who is named as a peer is asked for before the first packet, so that this one mostly finds its way.
//! Read first: [`crate::tunnel`], RFC 7348 section 5, RFC 6936 (zero checksums), RFC 6864 (identification).

use std::{net::IpAddr, time::Duration};

use wire::{
    Accepts, Context, DropReason, Frame, Instant, Mac, NicId, Origin, bytes::put, checksum::Checksum, icmp,
    reassembly::Reassembly,
};

use crate::{
    encap::{HEADER, source_port},
    remotes::RemoteId,
    resolution,
    tunnel::outward::{Packet, Underlay},
    vtep::{HEARD_ONLY, NetworkId, Vtep, Way},
};

mod hops;
mod inward;
mod talk;

use crate::tunnel::TTL;
use hops::{Ask, Hops};
use talk::Own;

/// Outer headers: Ethernet, IP, UDP and the tunnel's.
const OUTER4: usize = 14 + 20 + 8 + HEADER;
const OUTER6: usize = 14 + 40 + 8 + HEADER;
/// How long a path is believed in without asking where the next hop is.
const PATH: Duration = Duration::from_secs(5);
/// How often the endpoint announces itself and its groups when it comes up, a second apart.
const ANNOUNCED: u8 = 3;
/// Peers that are asked for in a second, at most.
const ASKED: usize = 64;
/// Answers to pings, and to who asks for our address, in a second: so many of each to what comes from one NIC.
const ANSWERED: u32 = 1000;

/// An endpoint in a network of ours; its address is that of its [`Vtep`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StationConfig {
    /// Its MAC address.
    pub mac: Mac,
    /// The length of its network's prefix.
    pub prefix: u8,
    /// The router that other endpoints are behind which are not in that prefix.
    pub gateway: Option<IpAddr>,
    /// UDP checksums are sent with IPv4, too; with IPv6 they always are.
    pub checksum: bool,
}

/// The way to a remote endpoint.
#[derive(Clone, Copy)]
struct Path {
    /// Whose it is: numbers of endpoints are given again.
    address: IpAddr,
    mac: Mac,
    changes: u64,
    until: Instant,
}

/// The outer headers of the last packet, whose next one they mostly are but for lengths, TOS, source port and checksums.
struct Front {
    of: Option<(RemoteId, NetworkId)>,
    v4: [u8; OUTER4],
    v6: [u8; OUTER6],
    /// The sum of what does not change in the header of IPv4, folded.
    sum: u32,
}

/// What a burst came to: frames, their bytes, and those of their packets.
#[derive(Default)]
struct Sent {
    frames: u64,
    inner: u64,
    outer: u64,
}

/// How much is answered. Who asks for our address is answered, however many pings come from the same NIC.
struct Limits {
    pings: icmp::Limits,
    neighbours: icmp::Limits,
}

/// See the module's documentation.
pub(crate) struct Station {
    own: Own,
    config: StationConfig,
    groups: Vec<IpAddr>,
    nic: Option<NicId>,
    hops: Hops,
    paths: Vec<Option<Path>>,
    front: Front,
    sent: Sent,
    limits: Limits,
    announced: u8,
    /// Somebody has asked for its groups.
    reports_due: bool,
    /// Peers are asked for in turns.
    next: usize,
    scratch: Box<[u8]>,
    /// What peers have sent that was cut on its way.
    reassembly: Reassembly,
}

impl Underlay for Station {
    const ACCEPTS: Accepts = Accepts::CSUM;

    #[inline]
    fn put(&mut self, cx: &mut Context, vtep: &Vtep, packet: Packet) {
        match packet.way {
            Way::One(remote) => self.send(cx, vtep, remote, packet),
            Way::All => self.flood(cx, vtep, packet),
        }
    }

    /// What was sent has left its network, and is sent anew in the endpoint's.
    fn end(&mut self, cx: &mut Context) {
        let (Some(nic), Sent { frames, inner, outer }) = (self.nic, std::mem::take(&mut self.sent)) else { return };
        cx.transmitted(frames, inner);
        let from = std::mem::replace(&mut cx.nic, nic);
        cx.received(frames, outer);
        cx.nic = from;
    }
}

impl Station {
    /// An endpoint that is not in its network yet.
    pub(crate) fn new(vtep: &Vtep, config: StationConfig) -> Station {
        let mut station = Station {
            own: Own { mac: config.mac, address: vtep.local(), port: vtep.port() },
            config,
            groups: vtep.groups(),
            nic: None,
            hops: Hops::default(),
            paths: Vec::new(),
            front: Front { of: None, v4: [0; OUTER4], v6: [0; OUTER6], sum: 0 },
            sent: Sent::default(),
            limits: Limits { pings: icmp::Limits::new(ANSWERED), neighbours: icmp::Limits::new(ANSWERED) },
            announced: 0,
            reports_due: false,
            next: 0,
            scratch: vec![0; wire::MAX_FRAME].into(),
            reassembly: Reassembly::default(),
        };
        station.make_room(vtep);
        station
    }

    /// It is in its network from here on.
    pub(crate) fn attach(&mut self, cx: &Context) {
        self.nic = Some(cx.nic);
    }

    /// Whether it is this NIC.
    #[inline]
    pub(crate) fn is_at(&self, nic: NicId) -> bool {
        self.nic == Some(nic)
    }

    /// A burst begins: what was kept for the last one may have changed.
    #[inline]
    pub(crate) fn begin(&mut self) {
        self.front.of = None;
    }

    /// Makes room for what packets go to. Allocates.
    fn make_room(&mut self, vtep: &Vtep) {
        let most = vtep.remotes.places() + HEARD_ONLY;
        self.hops.make_room(most);
        if self.paths.len() < most {
            self.paths.resize(most, None);
        }
    }

    /// What is due in a second: announcements, reports of groups that were asked for, and questions for peers that are not known.
    pub(crate) fn tick(&mut self, cx: &mut Context, vtep: &Vtep) {
        self.make_room(vtep);
        self.hops.sweep(cx.now);
        self.reassembly.expire(cx.now);
        if self.nic.is_none() {
            return;
        }
        if self.announced < ANNOUNCED {
            self.announced += 1;
            let mut announcement = [0; resolution::LONGEST];
            let len = resolution::announcement(self.own.address, self.own.mac, &mut announcement);
            self.say(cx, announcement.get(..len).unwrap_or_default());
            self.reports_due = true;
        }
        if std::mem::take(&mut self.reports_due) {
            self.report(cx);
        }
        let peers = vtep.remotes.iter().filter(|(_, remote)| remote.named > 0 && !remote.address.is_multicast());
        let count = vtep.remotes.len();
        let mut asked = 0;
        for (_, remote) in peers.skip(self.next) {
            if asked == ASKED {
                break;
            }
            asked += 1;
            if let Some(hop) = self.next_hop(remote.address) {
                self.look_for(cx, hop);
            }
        }
        self.next = if asked < ASKED { 0 } else { (self.next + asked) % count.max(1) };
    }

    /// Tells routers and switches which groups it is in.
    fn report(&mut self, cx: &mut Context) {
        for at in 0..self.groups.len() {
            if let Some(group) = self.groups.get(at) {
                let report = talk::report(&self.own, *group);
                self.say(cx, report.bytes());
            }
        }
    }

    /// Sends a frame of its own.
    fn say(&self, cx: &mut Context, bytes: &[u8]) {
        let Some(nic) = self.nic else { return };
        if let Some(frame) = cx.originate(Origin { nic, lane: 0 }, bytes)
            && let Err(frame) = cx.answers.push(frame)
        {
            cx.drop_at(nic, frame, DropReason::NoBuffers);
        }
    }

    /// Who packets to an address go to first; nothing where no router is known that may know.
    fn next_hop(&self, to: IpAddr) -> Option<IpAddr> {
        let on_link = match (self.own.address, to) {
            (IpAddr::V4(us), IpAddr::V4(to)) => {
                let differs = us.to_bits() ^ to.to_bits();
                differs.leading_zeros() >= u32::from(self.config.prefix)
            }
            (IpAddr::V6(us), IpAddr::V6(to)) => {
                let differs = us.to_bits() ^ to.to_bits();
                differs.leading_zeros() >= u32::from(self.config.prefix)
            }
            _ => return None,
        };
        if on_link { Some(to) } else { self.config.gateway }
    }

    /// The MAC address of a neighbour, which is asked for if it is time to.
    fn look_for(&mut self, cx: &mut Context, address: IpAddr) -> Option<Mac> {
        let (mac, ask) = self.hops.find(address, cx.now);
        let to = match ask {
            Ask::Nobody => return mac,
            Ask::Everybody => None,
            Ask::Only(mac) => Some(mac),
        };
        let question = talk::question(&self.own, address, to);
        self.say(cx, question.bytes());
        mac
    }

    /// The MAC address that packets to a remote endpoint go to.
    fn resolve(&mut self, cx: &mut Context, remote: RemoteId, address: IpAddr) -> Result<Mac, DropReason> {
        let at = usize::from(remote.0);
        if let Some(Some(path)) = self.paths.get(at)
            && path.address == address
            && path.changes == self.hops.changes()
            && cx.now < path.until
        {
            return Ok(path.mac);
        }
        let mac = if address.is_multicast() {
            Mac::of_group(address)
        } else {
            let hop = self.next_hop(address).ok_or(DropReason::NoRoute)?;
            self.look_for(cx, hop).ok_or(DropReason::Unresolved)?
        };
        // An endpoint that is new since the last tick is looked up for every burst until the next.
        if let Some(place) = self.paths.get_mut(at) {
            *place = Some(Path { address, mac, changes: self.hops.changes(), until: cx.now + PATH });
        }
        Ok(mac)
    }

    /// Makes the template for packets of a network to an endpoint.
    #[inline(never)]
    fn prepare(
        &mut self,
        cx: &mut Context,
        vtep: &Vtep,
        remote: RemoteId,
        network: NetworkId,
    ) -> Result<(), DropReason> {
        let address = vtep.remotes.get(remote).map(|remote| remote.address).ok_or(DropReason::NoDestination)?;
        let header = vtep.header(network).ok_or(DropReason::NotReady)?;
        let mac = self.resolve(cx, remote, address)?;
        let Front { of, v4, v6, sum } = &mut self.front;
        *of = Some((remote, network));
        let port = vtep.port().to_be_bytes();
        // Every place lies within the template.
        match (self.own.address, address) {
            (IpAddr::V4(us), IpAddr::V4(to)) => {
                put(v4, 0, &mac.bytes());
                put(v4, 6, &self.own.mac.bytes());
                // Not to be cut; of such packets the identification means nothing.
                put(v4, 12, &[0x08, 0x00, 0x45, 0, 0, 0, 0, 0, 0x40, 0, TTL, 17, 0, 0]);
                put(v4, 26, &us.octets());
                put(v4, 30, &to.octets());
                put(v4, 36, &port);
                put(v4, 42, &header);
                let mut of_header = Checksum::new();
                of_header.add_bytes(v4.get(14..34).unwrap_or_default());
                *sum = of_header.fold().into();
            }
            (IpAddr::V6(us), IpAddr::V6(to)) => {
                put(v6, 0, &mac.bytes());
                put(v6, 6, &self.own.mac.bytes());
                put(v6, 12, &[0x86, 0xdd, 0x60, 0, 0, 0, 0, 0, 17, TTL]);
                put(v6, 22, &us.octets());
                put(v6, 38, &to.octets());
                put(v6, 56, &port);
                put(v6, 62, &header);
            }
            _ => return Err(DropReason::NoRoute),
        }
        Ok(())
    }

    /// Sends a packet to one endpoint.
    #[inline]
    fn send(&mut self, cx: &mut Context, vtep: &Vtep, remote: RemoteId, packet: Packet) {
        let Packet { frame, network, tos, hash, .. } = packet;
        let Some(nic) = self.nic else { return cx.drop(frame, DropReason::NotReady) };
        if self.front.of != Some((remote, network))
            && let Err(reason) = self.prepare(cx, vtep, remote, network)
        {
            return cx.drop(frame, reason);
        }
        let inner = cx.heads.get(&frame).len();
        let done = if self.own.address.is_ipv4() {
            self.wrap4(cx, &frame, tos, hash)
        } else {
            self.wrap6(cx, &frame, tos, hash)
        };
        if let Err(reason) = done {
            return cx.drop(frame, reason);
        }
        let head = cx.heads.get_mut(&frame);
        head.origin = Origin { nic, lane: 0 };
        self.sent.frames += 1;
        self.sent.inner += inner as u64;
        self.sent.outer += head.len() as u64;
        if let Err(frame) = cx.answers.push(frame) {
            cx.drop_at(nic, frame, DropReason::NoBuffers);
        }
    }

    #[inline]
    fn wrap4(&self, cx: &mut Context, frame: &Frame, tos: u8, hash: u32) -> Result<(), DropReason> {
        let head = cx.heads.get_mut(frame);
        let total = u16::try_from(head.len() + OUTER4 - 14).map_err(|_| DropReason::Oversize)?;
        if !head.push(OUTER4) {
            return Err(DropReason::Oversize);
        }
        head.offload = head.offload.shifted(OUTER4 as i16);
        head.tagged = false;
        let outer = head.bytes_mut().first_chunk_mut::<OUTER4>().ok_or(DropReason::Runt)?;
        *outer = self.front.v4;
        outer[15] = tos;
        [outer[16], outer[17]] = total.to_be_bytes();
        let sum = self.front.sum + u32::from(tos) + u32::from(total);
        let sum = (sum & 0xffff) + (sum >> 16);
        [outer[24], outer[25]] = (!((sum & 0xffff) + (sum >> 16)) as u16).to_be_bytes();
        [outer[34], outer[35]] = source_port(hash).to_be_bytes();
        [outer[38], outer[39]] = (total - 20).to_be_bytes();
        if self.config.checksum {
            let IpAddr::V4(us) = self.own.address else { return Ok(()) };
            let to = wire::bytes::array(outer, 30).unwrap_or_default();
            return seal(cx, frame, 34, Checksum::pseudo_v4(us.octets(), to, 17, total - 20));
        }
        Ok(())
    }

    #[inline]
    fn wrap6(&self, cx: &mut Context, frame: &Frame, tos: u8, hash: u32) -> Result<(), DropReason> {
        let head = cx.heads.get_mut(frame);
        let len = u16::try_from(head.len() + OUTER6 - 54).map_err(|_| DropReason::Oversize)?;
        if !head.push(OUTER6) {
            return Err(DropReason::Oversize);
        }
        head.offload = head.offload.shifted(OUTER6 as i16);
        head.tagged = false;
        let outer = head.bytes_mut().first_chunk_mut::<OUTER6>().ok_or(DropReason::Runt)?;
        *outer = self.front.v6;
        // The flow's label, so that routers spread flows (RFC 6438).
        let [_, label @ ..] = (u32::from(tos) << 20 | hash & 0xf_ffff).to_be_bytes();
        [outer[15], outer[16], outer[17]] = label;
        outer[14] |= tos >> 4;
        [outer[18], outer[19]] = len.to_be_bytes();
        [outer[54], outer[55]] = source_port(hash).to_be_bytes();
        [outer[58], outer[59]] = len.to_be_bytes();
        // The checksum covers the length twice.
        let mut sum = Checksum::new();
        sum.add_bytes(outer.get(22..54).unwrap_or_default());
        sum.add_bytes(&[0, 17]);
        sum.add_u16(len);
        seal(cx, frame, 54, sum)
    }

    /// Sends a packet to every endpoint of its network.
    #[cold]
    fn flood(&mut self, cx: &mut Context, vtep: &Vtep, packet: Packet) {
        let Packet { frame, network, way, tos, hash } = packet;
        let Some((last, others)) = vtep.flood(network).split_last() else {
            return cx.drop(frame, DropReason::NoDestination);
        };
        for remote in others {
            match cx.copy(&frame) {
                Some(copy) => self.send(cx, vtep, *remote, Packet { frame: copy, network, way, tos, hash }),
                None => return cx.drop(frame, DropReason::NoHeads),
            }
        }
        self.send(cx, vtep, *last, Packet { frame, network, way, tos, hash });
    }
}

/// Completes the UDP checksum of a packet whose UDP header is at `l4`; `sum` is that of the pseudo header. A checksum inside that is owed counts as if it was
/// there already: what it covers then sums up to the complement of what its field holds now.
fn seal(cx: &mut Context, frame: &Frame, l4: usize, mut sum: Checksum) -> Result<(), DropReason> {
    let head = cx.heads.get(frame);
    let bytes = head.bytes();
    if head.offload.needs_checksum() {
        let start = usize::from(head.offload.checksum_start());
        let field = wire::bytes::word(bytes, head.offload.checksum_at()).ok_or(DropReason::CannotSegment)?;
        sum.add_bytes(bytes.get(l4..start).ok_or(DropReason::CannotSegment)?);
        sum.add_u16(!field);
    } else {
        sum.add_bytes(bytes.get(l4..).ok_or(DropReason::Runt)?);
        if !sum.add_lent(&cx.arena, cx.heads.body(frame).iter().copied()) {
            return Err(DropReason::Stale);
        }
    }
    let value = sum.finish_udp().to_be_bytes();
    put(cx.heads.get_mut(frame).bytes_mut(), l4 + 6, &value);
    Ok(())
}
