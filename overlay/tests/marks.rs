//! Congestion marks over every kind of underlay: what the path sees on the outside, and what the other end makes of what the path says.
//!
//! Read first: RFC 6040 section 4.

#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

mod world;

use std::{net::IpAddr, time::Duration};

use sys::inet::udp::{Datagrams, Kind, Outgoing, RecvBatch, SendBatch};
use wire::{DropReason, Offload};
use world::{Host, Net, Under, address, free_port, host, settle, udp};

const CE: u8 = 3;

/// Two endpoints, and the path between them, which writes a mark on every packet.
struct Way {
    a: Host,
    b: Host,
    /// Between sockets: one that is the second endpoint to the first, and the other way round.
    between: Option<[Datagrams; 2]>,
    /// The marks that packets from the first endpoint had.
    seen: Vec<u8>,
}

impl Way {
    fn new(under: &Under) -> Way {
        let (a, b) = (address(1, false), address(2, false));
        let is_station = matches!(under, Under::Station { .. });
        let first = free_port(a);
        // Ports of their own: what each sends to the other's address goes to the path.
        let second = if is_station { first } else { free_port(b) };
        let mut one = host(under, a, first, 1500, &[Net::new(5001, &[b])]);
        let mut two = host(under, b, second, 1500, &[Net::new(5001, &[a])]);
        let path = |at: IpAddr, port: u16| Datagrams::open(Kind::Udp4, (at, port).into(), 64, 0).unwrap();
        let between = (!is_station).then(|| [path(b, first), path(a, second)]);
        settle(&mut [&mut one, &mut two]);
        Way { a: one, b: two, between, seen: Vec::new() }
    }

    /// Sends frames, and has the path write this mark on the packets; what comes out at the other end, that many frames or drops.
    fn send(&mut self, frames: &[(Vec<u8>, Offload)], mark: u8) -> Vec<Vec<u8>> {
        self.seen.clear();
        let dropped = self.b.drops(0, DropReason::Congested);
        assert!(self.a.send(0, frames).is_empty());
        let mut got = Vec::new();
        for _ in 0..2000 {
            got.extend(self.pass(mark));
            if got.len() as u64 + self.b.drops(0, DropReason::Congested) - dropped >= frames.len() as u64 {
                return got;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        panic!("{} of {} frames came", got.len(), frames.len());
    }

    fn pass(&mut self, mark: u8) -> Vec<Vec<u8>> {
        let came = match &self.between {
            Some([to_b, to_a]) => {
                let at = |host: &Host| (host.port.vtep().local(), host.port.vtep().port());
                let (first, second) = (at(&self.a), at(&self.b));
                self.seen.extend(relay(&mut self.a, to_b, to_a, second, mark));
                relay(&mut self.a, to_a, to_b, first, 0);
                self.a.turn();
                self.b.turn()
            }
            None => {
                let mut packets = self.a.sent(1);
                for (packet, _) in &mut packets {
                    self.seen.push(packet[15]);
                    write_mark(packet, 14, mark);
                }
                self.b.come(&packets)
            }
        };
        came.into_iter().map(|(_, bytes, _)| bytes).collect()
    }
}

/// Passes on what waits at a socket, from another one; the TOS that what was no handshake and no sign of life had.
fn relay(host: &mut Host, at: &Datagrams, from: &Datagrams, to: (IpAddr, u16), mark: u8) -> Vec<u8> {
    let (mut batch, mut sending, mut seen) = (RecvBatch::default(), SendBatch::default(), Vec::new());
    while let Ok(came) = batch.receive(at, 8) {
        for packet in (0..came).filter_map(|at| batch.get(at)) {
            let each = if packet.segment == 0 { packet.bytes.len() } else { usize::from(packet.segment) };
            for bytes in packet.bytes.chunks(each.max(1)) {
                let is_data = bytes[0] > 2 && bytes.len() > 60;
                seen.extend(is_data.then_some(packet.tos));
                let how = Outgoing { to: to.into(), ttl: 64, tos: if is_data { mark } else { 0 }, segment: 0 };
                let pooled = host.cx.arena.pool(bytes).unwrap();
                assert!(sending.push(from, how, &[], std::iter::once(pooled)));
                assert_eq!(sending.send(from, &host.cx.arena, 0).unwrap(), 1);
                sending.clear();
            }
        }
    }
    seen
}

/// Writes a mark into the packet that begins there.
fn write_mark(frame: &mut [u8], at: usize, mark: u8) {
    if frame[at] >> 4 == 6 {
        frame[at + 1] = frame[at + 1] & !0x30 | mark << 4;
        return;
    }
    frame[at + 1] = frame[at + 1] & !3 | mark;
    frame[at + 10..at + 12].fill(0);
    let mut sum = wire::checksum::Checksum::new();
    sum.add_bytes(&frame[at..at + 20]);
    let sum = sum.finish().to_be_bytes();
    frame[at + 10..at + 12].copy_from_slice(&sum);
}

/// IPv4, IPv6, and IPv4 behind a tag, with this mark.
fn marked(mark: u8) -> [Vec<u8>; 3] {
    let mut frames = [(false, 200), (true, 190), (false, 220)].map(|(v6, len)| udp(2, len, v6, true));
    frames.iter_mut().for_each(|frame| write_mark(frame, 14, mark));
    frames[2].splice(12..12, [0x81, 0, 0, 7]);
    frames
}

#[test]
fn marks_are_on_the_outside_and_what_the_path_says_is_inside() {
    // RFC 6040 figure 4, by inner and outer mark: not-ECT, ECT(1), ECT(0), CE.
    let table = [
        [Some(0), Some(0), Some(0), None],
        [Some(1), Some(1), Some(1), Some(CE)],
        [Some(2), Some(1), Some(2), Some(CE)],
        [Some(CE), Some(CE), Some(CE), Some(CE)],
    ];
    for under in Under::all() {
        let mut way = Way::new(&under);
        for outer in 0..4 {
            for inner in 0..4 {
                let sent = marked(inner).map(|bytes| (bytes, Offload::NONE));
                let dropped = way.b.drops(0, DropReason::Congested);
                let mut got = way.send(&sent, outer);
                assert_eq!(way.seen, [inner; 3], "the outside of {inner}");
                let expected = table[usize::from(inner)][usize::from(outer)].map(marked);
                let lost = way.b.drops(0, DropReason::Congested) - dropped;
                assert_eq!(lost, if expected.is_some() { 0 } else { 3 }, "{inner} in {outer}");
                got.sort_by_key(Vec::len);
                assert!(got == expected.map(Vec::from).unwrap_or_default(), "{inner} in {outer}: {got:x?}");
            }
        }
    }
}
