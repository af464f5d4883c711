//! [`Ping`]: ICMP and ICMPv6 echo by ping sockets, which need no privilege where the host allows them.
//!
//! Invariant: one identifier of a guest has one socket, whoever is asked (RFC 5508 REQ-1), and replies come back with the guest's identifier,
//! sequence number and bytes. Nothing is ever answered in the outside's stead: where the host allows no ping sockets, requests are dropped and counted.
//! A guest's sockets are bounded by its own quota.
//!
//! Read first: icmp(7) on ping sockets, RFC 792, RFC 4443 section 4, RFC 5508 section 3.

use std::{
    io,
    net::{IpAddr, SocketAddr},
};

use sys::inet::udp::{Datagrams, Kind, Outgoing, RecvBatch, SendBatch};
use wire::{Context, DropReason, Frame, Instant, Layers, Mac, NicId};

use super::{
    Hub, Token, endpoints,
    errors::{self, EMSGSIZE},
    inward,
    mappings::{Class, Key, Mappings, Slot},
    packet::{Packet, body, front},
    udp::{is_room, no_room, prohibited, source_mac, tell},
};
use crate::{config::Filtering, control::Line, record::Protocol};

const ICMP: u8 = 1;
const ICMPV6: u8 = 58;
/// How often a request is tried that another one's error stands in the way of.
const TRIES: usize = 3;
/// Replies taken from one socket in a turn.
const MOST: usize = 16;
/// Destinations of one identifier that are remembered, for address-dependent filtering.
const ASKED: usize = 16;

/// An identifier of a guest and its socket.
struct Mapping {
    socket: Datagrams,
    nic: NicId,
    /// The port is the identifier.
    inside: SocketAddr,
    outside: SocketAddr,
    mac: Mac,
    /// Who was asked, the last few of them.
    asked: [Option<IpAddr>; ASKED],
    next_asked: usize,
    /// Of the request sent last, to quote it.
    id: u16,
    tos: u8,
    df: bool,
    len: u16,
    packets: u64,
    bytes: u64,
}

/// See the module's documentation.
pub(crate) struct Ping {
    mappings: Mappings<Mapping>,
    send: SendBatch,
    batch: RecvBatch,
    /// A message being changed.
    message: Vec<u8>,
    identification: u16,
}

impl Ping {
    /// With nothing mapped.
    pub(crate) fn new(hub: &Hub) -> Ping {
        let config = &hub.config;
        Ping {
            mappings: Mappings::new(
                config.ping_mappings,
                config.ping_quota,
                [config.icmp, config.icmp],
                config.seed ^ 0x5049_4e47,
            ),
            send: SendBatch::default(),
            batch: RecvBatch::default(),
            message: Vec::new(),
            identification: 0,
        }
    }

    /// Takes a guest's whole ICMP or ICMPv6 packet, which ends here.
    pub(crate) fn leave(&mut self, cx: &mut Context, frame: Frame, layers: &Layers, hub: &mut Hub) {
        let packet = match Packet::read(cx.heads.get(&frame), layers) {
            Ok(packet) => packet,
            Err(reason) => return cx.drop(frame, reason),
        };
        let v6 = packet.source.is_ipv6();
        let header = front(cx.heads.get(&frame), packet.l4, packet.end);
        let Some([kind, code, _, _, a, b, _, _]) = header.first_chunk::<8>().copied() else {
            return cx.drop(frame, DropReason::BadPacket);
        };
        if (packet.protocol, kind, code) != if v6 { (ICMPV6, 128, 0) } else { (ICMP, 8, 0) } {
            return cx.drop(frame, DropReason::NotTranslated);
        }
        if !packet.intact(cx, &frame) {
            return cx.drop(frame, DropReason::BadPacket);
        }
        let Some(address) = hub.reach(packet.destination).filter(|_| packet.is_unicast()) else {
            return prohibited(cx, hub, frame, &packet);
        };
        let to = SocketAddr::new(address, 0);
        let inside = SocketAddr::new(packet.source, u16::from_be_bytes([a, b]));
        let key = Key::new(packet.origin.nic, inside);
        let slot = match self.mappings.find(key).map_or_else(|| self.open(cx, hub, key, inside, &packet), Ok) {
            Ok(slot) => slot,
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                return cx.drop(frame, DropReason::PingNotPermitted);
            }
            Err(error) if is_room(&error) => return no_room(cx, hub, frame, &packet),
            Err(_) => return prohibited(cx, hub, frame, &packet),
        };
        self.mappings.renew(slot, Class::Brief, cx.now);
        self.send(cx, hub, frame, &packet, slot, to);
    }

    fn open(&mut self, cx: &Context, hub: &mut Hub, key: Key, inside: SocketAddr, packet: &Packet) -> io::Result<Slot> {
        endpoints::open(&mut self.mappings, hub, (key, Class::Brief), cx.now, |hub, slot| {
            let socket = bind(inside, packet)?;
            let outside = endpoints::watched(hub, &socket, Token::Ping(slot))?;
            Ok(Mapping {
                socket,
                nic: key.nic(),
                inside,
                outside,
                mac: Mac::new([0; 6]),
                asked: [None; ASKED],
                next_asked: 0,
                id: 0,
                tos: 0,
                df: false,
                len: 0,
                packets: 0,
                bytes: 0,
            })
        })
    }

    /// Sends a request.
    fn send(&mut self, cx: &mut Context, hub: &mut Hub, frame: Frame, packet: &Packet, slot: Slot, to: SocketAddr) {
        let Some(mapping) = self.mappings.get_mut(slot) else { return cx.drop(frame, DropReason::NotReady) };
        mapping.mac = source_mac(cx, &frame);
        mapping.ask(to.ip());
        (mapping.id, mapping.tos, mapping.df) = (packet.id, packet.tos, packet.df);
        mapping.len = (packet.end - packet.l4) as u16;
        mapping.packets += 1;
        mapping.bytes += (packet.end - packet.l3) as u64;
        let _ = mapping.socket.set_df(packet.df);
        self.send.clear();
        let how = Outgoing { to, ttl: packet.ttl, tos: packet.tos, segment: 0 };
        let bytes = front(cx.heads.get(&frame), packet.l4, packet.end);
        if !self.send.push(&mapping.socket, how, bytes, body(cx, &frame, packet.l4, packet.end)) {
            return cx.drop(frame, DropReason::TooManyPieces);
        }
        for tries in 0..=TRIES {
            hub.spend(packet.origin.nic);
            let error = match self.send.send(&mapping.socket, &cx.arena, 0) {
                Ok(_) => return cx.transmitted(1, cx.heads.get(&frame).len() as u64),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return cx.drop(frame, DropReason::WouldBlock);
                }
                Err(error) => error,
            };
            let mtu = read_errors(cx, hub, &mut self.batch, mapping);
            let _ = mapping.socket.take_error();
            let number = error.raw_os_error().unwrap_or(0);
            if number == EMSGSIZE || tries == TRIES {
                if let Some(say) = errors::from_errno(number, packet.source.is_ipv6(), mtu.unwrap_or(0)) {
                    tell(cx, hub, &frame, packet, say);
                }
                let reason = if number == EMSGSIZE { DropReason::TooBig } else { DropReason::NoRoute };
                return cx.drop(frame, reason);
            }
        }
    }

    /// The socket of a mapping has something.
    pub(crate) fn ready(&mut self, cx: &mut Context, slot: Slot, hub: &mut Hub) {
        for _ in 0..MOST {
            let Some(mapping) = self.mappings.get_mut(slot) else { return };
            if hub.out.room() == 0 || !hub.spend(mapping.nic) {
                return;
            }
            match self.batch.receive(&mapping.socket, 1) {
                Ok(1) => {}
                result => {
                    let _ = read_errors(cx, hub, &mut self.batch, mapping);
                    if result.is_err_and(|error| error.kind() != io::ErrorKind::WouldBlock) {
                        let _ = mapping.socket.take_error();
                    }
                    return;
                }
            }
            let Some(incoming) = self.batch.get(0) else { continue };
            if hub.config.filtering == Filtering::AddressDependent && !mapping.asked.contains(&Some(incoming.from.ip()))
            {
                cx.lost(DropReason::Filtered);
                continue;
            }
            let v6 = mapping.inside.is_ipv6();
            let Some(from) = hub.seen_as(incoming.from, v6) else {
                cx.lost(DropReason::NotTranslated);
                continue;
            };
            self.message.clear();
            self.message.extend_from_slice(incoming.bytes);
            let Some(header) = self.message.first_chunk_mut::<8>() else { continue };
            let [a, b] = mapping.inside.port().to_be_bytes();
            let [_, _, sum, sum_low, id, id_low, _, _] = header;
            (*sum, *sum_low, *id, *id_low) = (0, 0, a, b);
            mapping.packets += 1;
            mapping.bytes += incoming.bytes.len() as u64 + if v6 { 40 } else { 20 };
            self.identification = self.identification.wrapping_add(1);
            let label = inward::Label {
                source: from.ip(),
                destination: mapping.inside.ip(),
                protocol: if v6 { ICMPV6 } else { ICMP },
                // We are a hop like another.
                ttl: incoming.ttl.saturating_sub(1).max(1),
                tos: incoming.tos,
                id: self.identification,
            };
            let way = hub.way(cx, mapping.mac);
            inward::icmp(cx, &mut hub.out, &way, &label, &mut self.message);
        }
    }

    /// Forgets what was not used for long enough.
    pub(crate) fn sweep(&mut self, now: Instant, hub: &mut Hub) {
        endpoints::sweep(&mut self.mappings, hub, now);
    }

    /// When something is due to be forgotten.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.mappings.deadline()
    }

    /// What is remembered.
    pub(crate) fn show(&self, now: Instant, lines: &mut Vec<Line>) {
        lines.extend(self.mappings.iter().map(|(slot, key, mapping)| Line {
            protocol: Protocol::Icmp,
            nic: key.nic(),
            inside: mapping.inside,
            outside: Some(mapping.outside),
            remote: mapping.only_one().map(|remote| SocketAddr::new(remote, 0)),
            state: "query",
            expires: self.mappings.ends(slot).map(|ends| ends.since(now).as_secs() as u32),
            packets: mapping.packets,
            bytes: mapping.bytes,
        }));
    }
}

impl Mapping {
    fn ask(&mut self, address: IpAddr) {
        if !self.asked.contains(&Some(address)) {
            if let Some(place) = self.asked.get_mut(self.next_asked % ASKED) {
                *place = Some(address);
            }
            self.next_asked += 1;
        }
    }

    fn only_one(&self) -> Option<IpAddr> {
        self.asked.first().copied().flatten().filter(|_| self.next_asked == 1)
    }
}

/// A socket with the guest's identifier, else with any.
fn bind(inside: SocketAddr, packet: &Packet) -> io::Result<Datagrams> {
    let (kind, mut at) = match packet.source {
        IpAddr::V4(_) => (Kind::Ping4, SocketAddr::from(([0u8; 4], 0))),
        IpAddr::V6(_) => (Kind::Ping6, SocketAddr::from(([0u16; 8], 0))),
    };
    at.set_port(inside.port());
    Datagrams::open(kind, at, packet.ttl, packet.tos).or_else(|error| {
        if error.kind() != io::ErrorKind::AddrInUse {
            return Err(error);
        }
        // It is somebody else's.
        at.set_port(0);
        Datagrams::open(kind, at, packet.ttl, packet.tos)
    })
}

/// Reads the errors that came back to a socket and tells the guest; gives the MTU of the last that the host itself found.
fn read_errors(cx: &mut Context, hub: &mut Hub, batch: &mut RecvBatch, mapping: &Mapping) -> Option<u32> {
    endpoints::read_errors(cx, hub, &mapping.socket, batch, |cx, hub, back| {
        let Mapping { inside, id, tos, df, len, .. } = *mapping;
        let sent = errors::Sent { inside, remote: back.remote, id, tos, df: df && inside.is_ipv4(), len, sum: 0 };
        let way = hub.way(cx, mapping.mac);
        errors::about_echo(cx, &mut hub.out, &way, back, &sent);
    })
}
