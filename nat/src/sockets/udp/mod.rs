//! [`Udp`]: UDP by one host socket for each endpoint inside.
//!
//! Invariant: an inside endpoint has one socket, whoever it speaks to (RFC 4787 REQ-1), and no two share one (REQ-3). A guest's sockets are
//! bounded by its own quota. Nothing is allocated for a datagram of an endpoint that is known.
//!
//! Theory of operation: frames of a burst are read and put to their sockets ([`Udp::leave`]); then each socket that was touched gets all of
//! its own with one call ([`Udp::flush`], in `outward.rs`). What comes in is received in batches, too, and made into frames while there is room for
//! them; the rest waits in the batch for the next turn ([`Udp::ready`], in `arriving.rs`). Published ports are sockets of their own (`publish.rs`).
//! Read first: RFC 4787, [`super::mappings`], [`sys::inet::udp`].

mod arriving;
mod outward;
mod publish;

use std::{io, net::SocketAddr, time::Duration};

use sys::inet::udp::{Datagrams, Kind, RecvBatch, SendBatch};
use wire::{Burst, Context, DropReason, Frame, Instant, Layers, Mac, NicId, keyed::splitmix};

use super::{
    Hub, Token, endpoints,
    errors::{self, Saying},
    mappings::{Class, Key, Mappings, Slot, bits},
    packet::{Packet, front},
};
use crate::{
    config::Filtering,
    control::{Line, Publication},
    record::Protocol,
};
use publish::Publications;

/// Remotes that an endpoint has sent to and that are remembered, for address-dependent filtering.
const PERMITS: usize = 64;
/// Datagrams that are remembered of an endpoint, to quote them.
const SENT: usize = 4;
/// Ports of the wished parity that are tried before any is taken.
const TRIES: usize = 8;

/// An endpoint inside and its socket.
struct Mapping {
    socket: Datagrams,
    talk: Talk,
}

/// What is known of an endpoint inside.
struct Talk {
    nic: NicId,
    inside: SocketAddr,
    outside: SocketAddr,
    mac: Mac,
    /// Whom it speaks to, while that is one.
    remote: Option<SocketAddr>,
    many: bool,
    permits: Vec<(u128, Instant)>,
    sent: [Option<Note>; SENT],
    next_note: usize,
    packets: u64,
    bytes: u64,
}

/// What is remembered of a datagram that was sent.
#[derive(Clone, Copy)]
struct Note {
    to: SocketAddr,
    id: u16,
    len: u16,
    sum: u16,
    tos: u8,
    df: bool,
}

/// By what a datagram leaves or came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Via {
    Mapping(Slot),
    /// A published port, by its place, and the client.
    Door(u32),
}

/// A datagram of a guest that waits for the end of its burst.
struct Pending {
    frame: Frame,
    packet: Packet,
    via: Via,
    to: SocketAddr,
    /// Where the payload begins in the frame.
    payload: usize,
}

/// See the module's documentation.
pub(crate) struct Udp {
    mappings: Mappings<Mapping>,
    publications: Publications,
    pending: Vec<Pending>,
    touched: Vec<Via>,
    /// Those of one socket.
    group: Vec<Pending>,
    send: SendBatch,
    /// For a run of datagrams that has to be cut here.
    cut: SendBatch,
    batch: RecvBatch,
    /// For errors that came back.
    errors: RecvBatch,
    /// What of the batch is still to be made into frames.
    backlog: Option<Backlog>,
    /// The endpoint that spoke last, which is likely to speak next.
    last: Option<(Key, Slot)>,
    chance: u64,
    id: u16,
    filtering: Filtering,
    preserve_port: bool,
    permit_lifetime: Duration,
}

#[derive(Clone, Copy)]
struct Backlog {
    via: Via,
    /// The datagram in the batch, and bytes of it that have been made into frames.
    index: usize,
    at: usize,
}

impl Udp {
    /// With nothing mapped.
    pub(crate) fn new(hub: &Hub) -> Udp {
        let config = &hub.config;
        let lifetimes = [config.udp_well_known, config.udp];
        Udp {
            mappings: Mappings::new(config.udp_mappings, config.udp_quota, lifetimes, config.seed ^ 0x5544_5000),
            publications: Publications::new(config, [hub.router(false), hub.router(true)]),
            pending: Vec::with_capacity(wire::BURST),
            touched: Vec::with_capacity(wire::BURST),
            group: Vec::with_capacity(wire::BURST),
            send: SendBatch::default(),
            cut: SendBatch::default(),
            batch: RecvBatch::default(),
            errors: RecvBatch::default(),
            backlog: None,
            last: None,
            chance: config.seed,
            id: 0,
            filtering: config.filtering,
            preserve_port: config.preserve_port,
            permit_lifetime: config.udp,
        }
    }

    /// Takes a guest's whole UDP packet. It ends here or with [`Udp::flush`].
    pub(crate) fn leave(&mut self, cx: &mut Context, frame: Frame, layers: &Layers, hub: &mut Hub) {
        let (packet, ports, payload) = match read(cx, &frame, layers) {
            Ok(read) => read,
            Err(reason) => return cx.drop(frame, reason),
        };
        if !packet.is_unicast() {
            return cx.drop(frame, DropReason::NoRoute);
        }
        let source = SocketAddr::new(packet.source, ports.0);
        let destination = SocketAddr::new(packet.destination, ports.1);
        let mac = source_mac(cx, &frame);
        if let Some((door, client)) = self.publications.client(source, destination, packet.origin.nic, mac, cx.now) {
            return self.put(cx, hub, Pending { frame, packet, via: Via::Door(door), to: client, payload });
        }
        let Some(address) = hub.reach(packet.destination) else {
            return prohibited(cx, hub, frame, &packet);
        };
        let to = SocketAddr::new(address, ports.1);
        let key = Key::new(packet.origin.nic, source);
        let known = self.last.filter(|(of, slot)| *of == key && self.mappings.get(*slot).is_some());
        let slot = match known.map(|(_, slot)| slot).or_else(|| self.mappings.find(key)) {
            Some(slot) => slot,
            None => match self.open(cx, hub, key, source, &packet, ports.1) {
                Ok(slot) => slot,
                Err(error) if is_room(&error) => return no_room(cx, hub, frame, &packet),
                Err(_) => return prohibited(cx, hub, frame, &packet),
            },
        };
        self.last = Some((key, slot));
        let class = if ports.1 < 1024 { Class::Brief } else { Class::Long };
        self.mappings.renew(slot, class, cx.now);
        if let Some(Mapping { talk, .. }) = self.mappings.get_mut(slot) {
            talk.mac = mac;
            talk.packets += 1;
            talk.bytes += (packet.end - packet.l3) as u64;
            talk.spoke_to(to, self.filtering, cx.now);
            if packet.segment == 0 {
                let sum = front(cx.heads.get(&frame), packet.l4 + 6, packet.l4 + 8);
                let sum = sum.first_chunk().map_or(0, |sum| u16::from_be_bytes(*sum));
                let len = (packet.end - packet.l4) as u16;
                let Packet { id, tos, df, .. } = packet;
                talk.note(Note { to, id, len, sum, tos, df });
            }
        }
        self.put(cx, hub, Pending { frame, packet, via: Via::Mapping(slot), to, payload });
    }

    fn put(&mut self, cx: &mut Context, hub: &mut Hub, pending: Pending) {
        if !self.touched.contains(&pending.via) {
            self.touched.push(pending.via);
        }
        self.pending.push(pending);
        if self.pending.len() >= wire::BURST {
            self.flush(cx, hub);
        }
    }

    /// A socket for an endpoint that has none.
    fn open(
        &mut self,
        cx: &Context,
        hub: &mut Hub,
        key: Key,
        inside: SocketAddr,
        packet: &Packet,
        port: u16,
    ) -> io::Result<Slot> {
        let Udp { mappings, chance, preserve_port, .. } = self;
        let class = if port < 1024 { Class::Brief } else { Class::Long };
        endpoints::open(mappings, hub, (key, class), cx.now, |hub, slot| {
            let socket = bind(chance, *preserve_port, inside, packet)?;
            let outside = endpoints::watched(hub, &socket, Token::Udp(slot))?;
            let talk = Talk {
                nic: key.nic(),
                inside,
                outside,
                mac: Mac::new([0; 6]),
                remote: None,
                many: false,
                permits: Vec::new(),
                sent: [None; SENT],
                next_note: 0,
                packets: 0,
                bytes: 0,
            };
            Ok(Mapping { socket, talk })
        })
    }

    /// Begins to forward ports; the error says why not, and nothing has changed then.
    pub(crate) fn publish(&mut self, publication: &Publication, hub: &Hub) -> Result<(), String> {
        self.publications.publish(publication, hub)
    }

    /// Ends that; false when it was not there.
    pub(crate) fn withdraw(&mut self, publication: &Publication) -> bool {
        self.publications.withdraw(publication)
    }

    /// Forgets what was not used for long enough, and says when the next is due.
    pub(crate) fn sweep(&mut self, now: Instant, hub: &mut Hub) {
        endpoints::sweep(&mut self.mappings, hub, now);
        self.publications.sweep(now);
    }

    /// When something is due to be forgotten.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.mappings.deadline().into_iter().chain(self.publications.deadline()).min()
    }

    /// Whether frames wait to be made that no descriptor tells of.
    pub(crate) fn waits(&self) -> bool {
        self.backlog.is_some()
    }

    /// What is remembered.
    pub(crate) fn show(&self, now: Instant, lines: &mut Vec<Line>) {
        for (slot, key, Mapping { talk, .. }) in self.mappings.iter() {
            lines.push(Line {
                protocol: Protocol::Udp,
                nic: key.nic(),
                inside: talk.inside,
                outside: Some(talk.outside),
                remote: talk.remote.filter(|_| !talk.many),
                state: "open",
                expires: self.mappings.ends(slot).map(|ends| ends.since(now).as_secs() as u32),
                packets: talk.packets,
                bytes: talk.bytes,
            });
        }
        self.publications.show(now, lines);
    }
}

impl Talk {
    fn spoke_to(&mut self, to: SocketAddr, filtering: Filtering, now: Instant) {
        match self.remote {
            None => self.remote = Some(to),
            Some(remote) => self.many |= remote != to,
        }
        if filtering != Filtering::AddressDependent {
            return;
        }
        let address = bits(to.ip());
        if let Some(permit) = self.permits.iter_mut().find(|(of, _)| *of == address) {
            permit.1 = now;
        } else if self.permits.len() < PERMITS {
            self.permits.push((address, now));
        } else if let Some(oldest) = self.permits.iter_mut().min_by_key(|(_, since)| *since) {
            *oldest = (address, now);
        }
    }

    fn permits(&self, from: SocketAddr, lifetime: Duration, now: Instant) -> bool {
        let address = bits(from.ip());
        self.permits.iter().any(|(of, since)| *of == address && now.since(*since) < lifetime)
    }

    fn note(&mut self, note: Note) {
        if let Some(place) = self.sent.get_mut(self.next_note % SENT) {
            *place = Some(note);
        }
        self.next_note += 1;
    }

    /// What is known of the datagram that was sent last to `to`.
    fn noted(&self, to: SocketAddr) -> Option<Note> {
        let recent = (1..=SENT).filter_map(|back| {
            let at = self.next_note.checked_sub(back)? % SENT;
            self.sent.get(at).copied().flatten()
        });
        recent.into_iter().find(|note| note.to == to)
    }
}

/// Binds to the port that the guest has, else to one of the same parity, else to any. Low ports are the host's own, even where we might.
fn bind(chance: &mut u64, preserve_port: bool, inside: SocketAddr, packet: &Packet) -> io::Result<Datagrams> {
    let (kind, any) = match packet.source {
        std::net::IpAddr::V4(_) => (Kind::Udp4, SocketAddr::from(([0u8; 4], 0))),
        std::net::IpAddr::V6(_) => (Kind::Udp6, SocketAddr::from(([0u16; 8], 0))),
    };
    let open = |port: u16| {
        let mut at = any;
        at.set_port(port);
        Datagrams::open(kind, at, packet.ttl, packet.tos)
    };
    let taken = |error: &io::Error| matches!(error.kind(), io::ErrorKind::AddrInUse | io::ErrorKind::PermissionDenied);
    let wished = inside.port();
    if preserve_port && wished >= 1024 {
        match open(wished) {
            Err(error) if taken(&error) => {}
            result => return result,
        }
    }
    for _ in 0..TRIES {
        // A number that cannot be foretold (RFC 6056), of the parity of the guest's port (RFC 4787 REQ-4).
        let port = 1024 + (splitmix(chance) % 64_512) as u16;
        match open(port & !1 | wished & 1) {
            Err(error) if taken(&error) => {}
            result => return result,
        }
    }
    open(0)
}

/// Reads a UDP packet: its headers, its ports, and where its payload begins.
fn read(cx: &Context, frame: &Frame, layers: &Layers) -> Result<(Packet, (u16, u16), usize), DropReason> {
    let bad = DropReason::BadPacket;
    let head = cx.heads.get(frame);
    let mut packet = Packet::read(head, layers)?;
    let [a, b, c, d, e, f, g, h] = *head.bytes().get(packet.l4..).and_then(|at| at.first_chunk()).ok_or(bad)?;
    if packet.segment == 0 {
        let len = usize::from(u16::from_be_bytes([e, f]));
        if len < 8 || packet.l4 + len > packet.end {
            return Err(bad);
        }
        packet.end = packet.l4 + len;
    }
    // Without a checksum, which IPv6 does not allow (RFC 8200 section 8.1).
    let none = [g, h] == [0, 0] && !head.offload.needs_checksum();
    if none && packet.source.is_ipv6() || !none && !packet.intact(cx, frame) {
        return Err(bad);
    }
    let ports = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
    if ports.1 == 0 {
        return Err(bad);
    }
    Ok((packet, ports, packet.l4 + 8))
}

/// Who sent a frame, on its link.
pub(super) fn source_mac(cx: &Context, frame: &Frame) -> Mac {
    let (_, source) = cx.heads.get(frame).macs();
    Mac::from_bits(source)
}

/// Ends a packet to where its guest may not, and tells it so.
pub(super) fn prohibited(cx: &mut Context, hub: &mut Hub, frame: Frame, packet: &Packet) {
    forbid(cx, hub, frame, packet, DropReason::NoRoute);
}

/// Whether it failed for want of descriptors or of the kernel's memory (EMFILE, ENFILE, ENOBUFS, ENOMEM), or for a quota of ours.
pub(super) fn is_room(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::QuotaExceeded || matches!(error.raw_os_error(), Some(24 | 23 | 105 | 12))
}

/// Tells a guest the same where there is no descriptor for it: it is to fail at once, and not to try until it gives up.
pub(super) fn no_room(cx: &mut Context, hub: &mut Hub, frame: Frame, packet: &Packet) {
    forbid(cx, hub, frame, packet, DropReason::NatQuota);
}

fn forbid(cx: &mut Context, hub: &mut Hub, frame: Frame, packet: &Packet, reason: DropReason) {
    let v6 = packet.source.is_ipv6();
    let say = if v6 { Saying { kind: 1, code: 1, word: 0 } } else { Saying { kind: 3, code: 13, word: 0 } };
    tell(cx, hub, &frame, packet, say);
    cx.drop(frame, reason);
}

/// Tells a guest about its packet, in the router's name.
pub(super) fn tell(cx: &mut Context, hub: &mut Hub, frame: &Frame, packet: &Packet, say: Saying) {
    let way = hub.way(cx, source_mac(cx, frame));
    if let Some(router) = hub.router(packet.source.is_ipv6()) {
        let out: &mut Burst = &mut hub.out;
        errors::about_packet(cx, out, &way, router, say, (frame, packet));
    }
}
