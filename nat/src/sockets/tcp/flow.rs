//! [`Flow`]: one TCP connection of a guest, and the host socket that it goes on by. Plain data; what is done with it is in the files beside.
//!
//! Invariant: `first <= next` and `expected <= edge` in sequence space; what lies between `first` and `next` lies in the host socket's buffer, too, and
//! nowhere else; the guest was acknowledged nothing that the host socket has not taken.
//!
//! Theory of operation: two half connections. *Out* (guest to host): `expected` is the number that the guest is to send next, all before it was
//! written to the socket; `edge` is the end of the window that it was told. *In* (host to guest): `first` is the oldest number the guest has not
//! acknowledged, `next` the first that it was not sent. Peeking at the socket reads what comes after `next`; an acknowledgement discards what
//! came before it. So sending again is peeking again.
//! Read first: RFC 9293 sections 3.3.1 and 3.10, RFC 5681.

use std::{net::SocketAddr, time::Duration};

use sys::inet::tcp::{Room, Stream};
use wire::{Instant, Mac, NicId};

use super::segment::seq;
use crate::sockets::mappings::bits;

/// How windows that we tell are scaled, where the guest scales its own.
pub(super) const OUR_SCALE: u8 = 7;
/// The first time to wait for an acknowledgement; doubled each time.
const FIRST_WAIT: Duration = Duration::from_millis(400);
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// Silence after which a connection is given up, in waits.
pub(super) const WAITS: u8 = 12;
/// How many a SYN is worth.
pub(super) const SYN_WAITS: u8 = 6;
/// What a guest is sent before it has acknowledged anything.
const FIRST_CWND: u32 = 10 * 65_536;
/// A window that keeps a guest from sending a whole super-frame.
const SMALL: u32 = 65_536;
/// What a guest may send at first: no more than the buffer of a new socket takes (46,080 bytes with what the kernel adds), and more than
/// any guest sends before it is acknowledged.
const FIRST_WINDOW: u16 = 32_768;
/// The most that is on the way.
const MOST_CWND: u32 = 16 << 20;
/// The same where all of it is read over again for each frame that follows.
const MOST_READ_AGAIN: u32 = 2 << 20;

/// How far a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// The host connects; the guest has heard nothing.
    Connecting,
    /// The host has connected; the guest was sent SYN and ACK.
    Answered,
    /// Somebody outside has connected; the guest was sent a SYN.
    Asked,
    /// Open, at least one way.
    Open,
    /// Both ways have ended; only what comes late is waited for.
    Over,
}

/// Whose connection it is: inside endpoint with its NIC, and whom the guest sees at the other end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FlowKey {
    pub(super) nic: NicId,
    pub(super) inside: SocketAddr,
    pub(super) remote: SocketAddr,
}

impl std::hash::Hash for FlowKey {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        let (inside, remote) = (bits(self.inside.ip()), bits(self.remote.ip()));
        let ports = u64::from(self.inside.port()) << 32 | u64::from(self.remote.port()) << 16 | u64::from(self.nic.0);
        // Of IPv4 the lower half of an address says all.
        state.write_u64(inside as u64 ^ (inside >> 64) as u64);
        state.write_u64(remote as u64);
        state.write_u64((remote >> 64) as u64 ^ ports);
    }
}

/// See the module's documentation.
pub(super) struct Flow {
    pub(super) key: FlowKey,
    /// Nothing once it is [`State::Over`].
    pub(super) socket: Option<Stream>,
    /// As the host's network sees both ends; of published ports, the peer is the client.
    pub(super) outside: Option<SocketAddr>,
    pub(super) peer: SocketAddr,
    /// The published port that it came in by, by its place.
    pub(super) door: Option<u32>,
    pub(super) mac: Mac,
    pub(super) state: State,
    pub(super) expected: u32,
    pub(super) edge: u32,
    pub(super) first: u32,
    pub(super) next: u32,
    /// The guest's window, in bytes.
    pub(super) window: u32,
    /// How the guest scales its windows; nothing: neither side does.
    pub(super) scale: Option<u8>,
    pub(super) mss: u16,
    pub(super) cwnd: u32,
    ssthresh: u32,
    /// What was lost last is over when something behind this number was acknowledged (RFC 6582 section 3.2).
    pub(super) recover: u32,
    /// Acknowledgements of the same number, one after the other.
    pub(super) repeated: u8,
    /// Waits in vain, one after the other.
    pub(super) waits: u8,
    /// The end of what was ever sent.
    pub(super) high: u32,
    /// The number of our FIN, once the host has ended its direction.
    pub(super) fin: Option<u32>,
    /// The guest has acknowledged our FIN.
    pub(super) fin_acked: bool,
    /// The guest has ended its direction.
    pub(super) ended: bool,
    /// The socket may have something to read.
    pub(super) readable: bool,
    /// The host's network has ended its direction behind what the socket has to read.
    pub(super) hung_up: bool,
    /// The host's network has sent urgent data, at which peeks stop short.
    pub(super) urgent: bool,
    /// It waits in the list of those to be served.
    pub(super) queued: bool,
    /// The guest is owed an acknowledgement.
    pub(super) owes: bool,
    /// When something is to be done if nothing happens, and when the wheel brings it up.
    pub(super) deadline: Instant,
    pub(super) scheduled: Instant,
    pub(super) packets: u64,
    pub(super) bytes: u64,
}

impl Flow {
    /// A connection that begins, with `first` as our first number.
    pub(super) fn new(key: FlowKey, peer: SocketAddr, socket: Stream, state: State, first: u32) -> Flow {
        Flow {
            key,
            outside: socket.local().ok(),
            socket: Some(socket),
            peer,
            door: None,
            mac: Mac::new([0; 6]),
            state,
            expected: 0,
            edge: 0,
            first,
            next: first,
            window: 0,
            scale: None,
            mss: 536,
            cwnd: FIRST_CWND,
            ssthresh: MOST_CWND,
            recover: first,
            repeated: 0,
            waits: 0,
            high: first,
            fin: None,
            fin_acked: false,
            ended: false,
            readable: false,
            hung_up: false,
            urgent: false,
            queued: false,
            owes: false,
            deadline: Instant::START,
            scheduled: Instant::START,
            packets: 0,
            bytes: 0,
        }
    }

    /// Numbers on the way to the guest.
    pub(super) fn on_the_way(&self) -> u32 {
        self.next.wrapping_sub(self.first)
    }

    /// Bytes of data among them.
    pub(super) fn data_on_the_way(&self) -> u32 {
        self.on_the_way().saturating_sub(u32::from(self.fin_is_sent() && !self.fin_acked))
    }

    /// Whether our FIN is on the way, or was.
    pub(super) fn fin_is_sent(&self) -> bool {
        self.fin.is_some_and(|fin| seq::before(fin, self.next))
    }

    /// How many more bytes the guest may be sent.
    pub(super) fn allowed(&self) -> u32 {
        let again = self.socket.as_ref().is_some_and(Stream::reads_again);
        let most = if again { MOST_READ_AGAIN } else { MOST_CWND };
        self.window.min(self.cwnd).min(most).saturating_sub(self.on_the_way())
    }

    /// Whether both directions have ended and the guest knows it.
    pub(super) fn is_over(&self) -> bool {
        self.ended && self.fin_acked
    }

    /// The guest has acknowledged everything before `ack`; the bytes of data among that.
    pub(super) fn acknowledged(&mut self, ack: u32) -> u32 {
        let numbers = ack.wrapping_sub(self.first);
        let with_fin = self.fin.is_some_and(|fin| !self.fin_acked && seq::before(fin, ack));
        self.fin_acked |= with_fin;
        self.first = ack;
        // What was about to be sent again has arrived after all.
        self.next = seq::max(self.next, ack);
        (self.repeated, self.waits) = (0, 0);
        if seq::before(self.recover, ack) {
            // It follows, for numbers come round again.
            self.recover = ack.wrapping_sub(1);
        }
        let data = numbers.saturating_sub(u32::from(with_fin));
        // Slow start, then one segment for each window (RFC 5681 section 3.1).
        let more = match self.cwnd < self.ssthresh {
            true => data,
            false => (u64::from(self.mss) * u64::from(data) / u64::from(self.cwnd.max(1))) as u32,
        };
        self.cwnd = self.cwnd.saturating_add(more).min(MOST_CWND);
        data
    }

    /// Something was lost on the way: everything after `first` is to be sent again.
    pub(super) fn lost(&mut self, by_silence: bool) {
        let least = 2 * u32::from(self.mss);
        self.ssthresh = (self.on_the_way() / 2).max(least);
        self.cwnd = if by_silence { least } else { self.ssthresh };
        self.next = self.first;
        self.recover = self.high;
        self.repeated = 0;
        if let Some(socket) = &self.socket {
            // The next peek that fails says what is wrong.
            let _ = socket.rewind(0);
        }
        self.readable = true;
    }

    /// How long silence is borne now.
    pub(super) fn wait(&self) -> Duration {
        (FIRST_WAIT * (1 << self.waits.min(10))).min(LONGEST_WAIT)
    }

    /// The window to tell the guest, after the host socket was asked for room; the field of a header.
    pub(super) fn tell_window(&mut self) -> u16 {
        let mut room = self.room();
        if room.scarce && self.edge.wrapping_sub(self.expected) < SMALL {
            // Unless there is room again meanwhile, its becoming writable is told.
            let writable = self.socket.as_ref().is_some_and(Stream::tell_of_room);
            room = if writable { self.room() } else { room };
        }
        self.widen(room.of_segments(self.mss.into()));
        self.window_field()
    }

    /// The window of a SYN, which is never scaled (RFC 7323 section 2.2); every new socket has as much room.
    pub(super) fn first_window(&mut self) -> u16 {
        self.widen(FIRST_WINDOW.into());
        FIRST_WINDOW
    }

    fn room(&self) -> Room {
        self.socket.as_ref().filter(|_| !self.ended).map_or(Room::NONE, Stream::room)
    }

    /// Moves the end of the window outwards; it never shrinks (RFC 9293 section 3.8.6).
    fn widen(&mut self, room: usize) {
        let shift = if self.scale.is_some() { OUR_SCALE } else { 0 };
        let most = 65_535 << shift;
        let room = (room.min(most as usize) as u32) >> shift << shift;
        self.edge = seq::max(self.edge, self.expected.wrapping_add(room));
    }

    /// Whether the guest would gain by hearing of more room.
    pub(super) fn window_is_small(&self) -> bool {
        self.edge.wrapping_sub(self.expected) < SMALL && !self.ended
    }

    /// The window as it was told last.
    pub(super) fn window_field(&self) -> u16 {
        let shift = if self.scale.is_some() { OUR_SCALE } else { 0 };
        (self.edge.wrapping_sub(self.expected) >> shift).min(65_535) as u16
    }

    /// For people.
    pub(super) fn word(&self) -> &'static str {
        match self.state {
            State::Connecting => "connecting",
            State::Answered => "syn_received",
            State::Asked => "syn_sent",
            State::Over => "closed",
            State::Open => match (self.ended, self.fin_is_sent()) {
                (false, false) => "established",
                (true, false) => "close_wait",
                (false, true) => "fin_wait",
                (true, true) => "closing",
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loss_is_told_from_repetition_however_much_has_gone_by() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let peer = listener.local_addr().unwrap();
        let key = FlowKey { nic: NicId(0), inside: peer, remote: peer };
        let mut flow = Flow::new(key, peer, Stream::connect(peer).unwrap(), State::Open, 0xffff_0000);
        flow.first = flow.first.wrapping_add(1);
        (flow.next, flow.high) = (flow.first, flow.first);
        // All numbers, one and a half times over.
        for _ in 0..6 << 10 {
            assert!(seq::before(flow.recover, flow.first));
            flow.next = flow.next.wrapping_add(1 << 20);
            flow.high = flow.next;
            flow.acknowledged(flow.next);
        }
        flow.next = flow.next.wrapping_add(3000);
        flow.high = flow.next;
        flow.lost(false);
        for part in [1000, 1000, 1000] {
            assert!(!seq::before(flow.recover, flow.first), "until all that was on the way is acknowledged, and more");
            flow.acknowledged(flow.first.wrapping_add(part));
        }
        assert!(!seq::before(flow.recover, flow.first));
        (flow.next, flow.high) = (flow.next.wrapping_add(1), flow.high.wrapping_add(1));
        flow.acknowledged(flow.next);
        assert!(seq::before(flow.recover, flow.first));
    }
}
