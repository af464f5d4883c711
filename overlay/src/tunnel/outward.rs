//! What goes out into the underlay: which way, in what size, and many datagrams by one system call.
//!
//! Invariant: no packet is longer than the path to its endpoint takes, as far as that is known; who sent what does not fit is told so. A frame counts as
//! transmitted when the kernel has taken it. Read first: [`super`], udp(7) on UDP_SEGMENT, RFC 6040 section 4.1.

use std::io;

use sys::inet::udp::{Datagrams, Outgoing, SendBatch};
use wire::{
    Accepts, Context, DropReason, FlowKey, Frame, NicId, Origin,
    fdb::Tick,
    fit::{Cutter, Fit, fit, fit6, lowered},
    icmp::{self, Owed},
    layers::{ETHERNET_LEN, ETHERTYPE_IPV4, ETHERTYPE_IPV6},
    segmentation::Settle,
};

use super::{TTL, TunnelPort};
use crate::{
    encap::HEADER,
    remotes::RemoteId,
    resolution::{self, Message},
    vtep::{NetworkId, Way},
};

/// Linux's number of "message too long" (errno(3)).
pub(super) const EMSGSIZE: i32 = 90;
/// Of "input/output error" and "invalid argument", which the kernel says where it cannot cut datagrams for a device.
const CANNOT_CUT: [i32; 2] = [5, 22];
/// Datagrams that the kernel cuts out of one, at most (UDP_MAX_SEGMENTS of the oldest kernels that can), and their bytes.
const MOST_CUT: u16 = 64;
const MOST_BYTES: usize = 65_000;

/// Whose frames one message of a batch carries.
#[derive(Clone, Copy)]
struct Carried {
    nic: NicId,
    frames: u32,
    bytes: u32,
}

/// The message pushed last, while datagrams may still be joined to it.
#[derive(Clone, Copy)]
struct Run {
    remote: RemoteId,
    nic: NicId,
    tos: u8,
    size: usize,
    bytes: usize,
    count: u16,
}

/// A socket that packets leave by, and what waits for it.
pub(super) struct Door {
    socket: Datagrams,
    batch: SendBatch,
    carried: Vec<Carried>,
    run: Option<Run>,
    /// The kernel cuts datagrams for the device that they leave by.
    cuts: bool,
}

/// One packet.
struct Packet<'p> {
    remote: RemoteId,
    how: Outgoing,
    nic: NicId,
    frame: &'p Frame,
}

impl Door {
    pub(super) fn new(socket: Datagrams) -> Door {
        let carried = Vec::with_capacity(sys::inet::udp::BATCH);
        Door { socket, batch: SendBatch::default(), carried, run: None, cuts: true }
    }

    pub(super) fn socket(&self) -> &Datagrams {
        &self.socket
    }

    /// Puts a packet into the batch; false when there is no room for it.
    fn put(&mut self, cx: &Context, packet: &Packet) -> bool {
        let head = cx.heads.get(packet.frame);
        let (front, pieces) = (head.bytes(), || cx.heads.body(packet.frame).iter().copied());
        let len = head.len();
        if let Some(run) = &mut self.run
            && self.cuts
            && (run.remote, run.nic, run.tos) == (packet.remote, packet.nic, packet.how.tos)
            && len <= run.size
            && run.count < MOST_CUT
            && run.bytes + len <= MOST_BYTES
            && self.batch.join(front, pieces())
        {
            run.count += 1;
            run.bytes += len;
            if let Some(carried) = self.carried.last_mut() {
                carried.frames += 1;
                carried.bytes += (len - HEADER) as u32;
            }
            // A shorter one is the last.
            self.run = self.run.filter(|run| len == run.size);
            return true;
        }
        let how = Outgoing { segment: if self.cuts { len as u16 } else { 0 }, ..packet.how };
        if !self.batch.push(&self.socket, how, front, pieces()) {
            return false;
        }
        self.run =
            Some(Run { remote: packet.remote, nic: packet.nic, tos: packet.how.tos, size: len, bytes: len, count: 1 });
        self.carried.push(Carried { nic: packet.nic, frames: 1, bytes: (len - HEADER) as u32 });
        true
    }

    /// Sends what waits; true when something came back that is to be heard.
    pub(super) fn flush(&mut self, cx: &mut Context) -> bool {
        if self.batch.is_empty() {
            return false;
        }
        let nic = cx.nic;
        let (mut failed, mut again) = (false, true);
        let mut from = 0;
        while from < self.carried.len() {
            let reason = match self.batch.send(&self.socket, &cx.arena, from) {
                Ok(0) => DropReason::DeviceError,
                Ok(sent) => {
                    for carried in self.carried.iter().skip(from).take(sent) {
                        cx.nic = carried.nic;
                        cx.transmitted(carried.frames.into(), carried.bytes.into());
                    }
                    from += sent;
                    again = true;
                    continue;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => DropReason::WouldBlock,
                Err(error) if error.kind() == io::ErrorKind::InvalidInput && error.raw_os_error().is_none() => {
                    DropReason::Stale
                }
                Err(error) => {
                    failed = true;
                    match error.raw_os_error() {
                        Some(EMSGSIZE) => DropReason::MtuExceeded,
                        Some(errno) if self.cuts && CANNOT_CUT.contains(&errno) => {
                            self.cuts = false;
                            DropReason::CannotSegment
                        }
                        // What befell an earlier one is told once; this one may go.
                        _ if again => {
                            again = false;
                            continue;
                        }
                        _ => DropReason::NoRoute,
                    }
                }
            };
            // A socket that is full is full for all.
            let lost = if reason == DropReason::WouldBlock { self.carried.len() - from } else { 1 };
            for carried in self.carried.iter().skip(from).take(lost) {
                cx.nic = carried.nic;
                (0..carried.frames).for_each(|_| cx.drop_one(reason));
            }
            from += lost;
        }
        cx.nic = nic;
        self.batch.clear();
        self.carried.clear();
        self.run = None;
        failed
    }
}

impl TunnelPort {
    /// Takes a frame of a network.
    pub(super) fn go_out(&mut self, cx: &mut Context, frame: Frame, network: NetworkId, tick: Tick) {
        let head = cx.heads.get(&frame);
        let (to, _) = head.macs();
        let way = match self.vtep.route(network, head.bytes(), to, tick) {
            Ok(way) => way,
            Err(reason) => return cx.drop(frame, reason),
        };
        if Message::may_be(head.ethertype(), head.bytes()) && self.is_answered(cx, &frame, network) {
            // It ends here as one that arrived.
            cx.ledger.transmitted += 1;
            return;
        }
        let head = cx.heads.get(&frame);
        let mtu = self.vtep.fits(network, way);
        let fits = match head.ethertype() {
            ETHERTYPE_IPV4 => fit(head, mtu),
            ETHERTYPE_IPV6 => fit6(head, mtu),
            _ if head.len() <= usize::from(mtu) + ETHERNET_LEN => Fit::Whole,
            _ => Fit::TooBig,
        };
        match fits {
            Fit::Whole => {}
            Fit::Lower(size) => {
                let head = cx.heads.get_mut(&frame);
                head.offload = lowered(head.offload, size);
            }
            Fit::Cut => return self.cut(cx, frame, network, way, mtu),
            Fit::TooBig => {
                self.tell(cx, &frame, mtu);
                return cx.drop(frame, DropReason::MtuExceeded);
            }
        }
        let mut settle = Settle::new(cx, frame, Accepts::NONE);
        while let Some(frame) = settle.next(cx) {
            self.wrap(cx, frame, network, way);
        }
    }

    /// Whether a message about neighbours was a question that is answered here.
    #[cold]
    fn is_answered(&mut self, cx: &mut Context, frame: &Frame, network: NetworkId) -> bool {
        if !self.vtep.looks(network) {
            return false;
        }
        let head = cx.heads.get(frame);
        let mut answer = [0; resolution::LONGEST];
        let made = self.vtep.ask(network, head.origin.nic, head.bytes(), cx.now, &mut answer);
        let Some(answer) = made.and_then(|len| answer.get(..len)) else { return false };
        let Some(answer) = cx.originate(Origin { nic: cx.nic, lane: 0 }, answer) else { return false };
        if let Err(answer) = cx.answers.push(answer) {
            cx.drop(answer, DropReason::NoBuffers);
            return false;
        }
        true
    }

    /// Puts a frame that fits and owes nothing on its way.
    fn wrap(&mut self, cx: &mut Context, frame: Frame, network: NetworkId, way: Way) {
        let nic = cx.nic;
        let head = cx.heads.get_mut(&frame);
        let tos = tos(head.bytes(), self.config.dscp);
        let hash = FlowKey::of(head.bytes()).hash();
        let Some(header) = self.vtep.header(network).filter(|_| head.push(HEADER)) else {
            return cx.drop(frame, DropReason::NotReady);
        };
        if let Some(place) = head.bytes_mut().first_chunk_mut() {
            *place = header;
        }
        let door = (u64::from(hash) * self.doors.len() as u64) >> 32;
        let Some(door) = self.doors.get_mut(door as usize) else { return cx.drop(frame, DropReason::NotReady) };
        let port = self.vtep.port();
        let one;
        let remotes = match way {
            Way::One(remote) => {
                one = [remote];
                &one[..]
            }
            Way::All => self.vtep.flood(network),
        };
        let mut copies = 0;
        for remote in remotes.iter().copied() {
            let Some(address) = self.vtep.remotes.get(remote).map(|remote| remote.address) else { continue };
            let how = Outgoing { to: (address, port).into(), ttl: TTL, tos, segment: 0 };
            let packet = Packet { remote, how, nic, frame: &frame };
            // A batch that is full makes room by being sent.
            if !door.put(cx, &packet) {
                door.flush(cx);
                if !door.put(cx, &packet) {
                    continue;
                }
            }
            copies += 1;
        }
        // Each packet is a frame of its own to the books.
        match copies {
            0 => cx.drop(frame, DropReason::TooManyPieces),
            _ => cx.ledger.copied += copies - 1,
        }
    }

    /// Sends an IPv4 packet in fragments: it may be cut, and does not fit (RFC 791 section 2.3).
    #[cold]
    fn cut(&mut self, cx: &mut Context, frame: Frame, network: NetworkId, way: Way, mtu: u16) {
        let mut settle = Settle::new(cx, frame, Accepts::NONE);
        while let Some(frame) = settle.next(cx) {
            let origin = cx.heads.get(&frame).origin;
            let mut whole = std::mem::take(&mut self.scratch);
            let mut piece = std::mem::take(&mut self.answer);
            match cx.read_all(&frame, &mut whole).and_then(|len| Cutter::new(whole.get(..len)?, mtu)) {
                Some(mut cutter) => {
                    // The packet ends here, and its fragments begin.
                    cx.ledger.transmitted += 1;
                    while let Some(fragment) =
                        cutter.next(&mut piece).and_then(|len| cx.originate(origin, piece.get(..len)?))
                    {
                        self.wrap(cx, fragment, network, way);
                    }
                }
                None => cx.drop(frame, DropReason::Stale),
            }
            (self.scratch, self.answer) = (whole, piece);
        }
    }

    /// Tells the sender of a packet that it is too long, as its receiver would.
    #[cold]
    fn tell(&mut self, cx: &mut Context, frame: &Frame, mtu: u16) {
        let head = cx.heads.get(frame);
        let (nic, ethertype) = (head.origin.nic, head.ethertype());
        let (to, from) = head.macs();
        // Once for a NIC that was never told anything.
        self.limits.add(nic);
        if !self.limits.take(nic, cx.now) {
            return;
        }
        let Some(len) = cx.read_all(frame, &mut self.scratch) else { return };
        let packet = self.scratch.get(ETHERNET_LEN..len).unwrap_or_default();
        let made =
            match ethertype {
                ETHERTYPE_IPV4 => icmp::destination4(packet)
                    .and_then(|from| icmp::v4(Owed::TooBig(mtu), from, packet, &mut self.answer)),
                ETHERTYPE_IPV6 => icmp::destination6(packet)
                    .and_then(|from| icmp::v6(Owed::TooBig(mtu), from, packet, &mut self.answer)),
                _ => None,
            };
        let Some(made) = made.and_then(|len| self.answer.get_mut(..len)) else { return };
        let ([a, b, c, d, e, f, ..], [g, h, i, j, k, l, ..]) = (from.to_le_bytes(), to.to_le_bytes());
        if let Some(macs) = made.first_chunk_mut() {
            *macs = [a, b, c, d, e, f, g, h, i, j, k, l];
        }
        if let Some(answer) = cx.originate(Origin { nic: cx.nic, lane: 0 }, made)
            && let Err(answer) = cx.answers.push(answer)
        {
            cx.drop(answer, DropReason::NoBuffers);
        }
    }
}

/// TOS or traffic class of a packet in the underlay: the inner congestion mark (RFC 6040 section 4.1), and a DSCP that is told or the inner one.
#[inline]
fn tos(bytes: &[u8], dscp: Option<u8>) -> u8 {
    let inner = match bytes.get(12..16).and_then(|at| at.first_chunk::<4>()) {
        Some([0x08, 0x00, _, tos]) => *tos,
        Some([0x86, 0xdd, high, low]) => high << 4 | low >> 4,
        _ => 0,
    };
    dscp.map_or(inner, |dscp| dscp << 2 | inner & 3)
}
