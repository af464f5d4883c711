//! [`PacketPort`]: the packet NAT as a port behind a network's router, with a NIC of its own outside.
//!
//! Invariant: a frame leaves translated, is answered or held, or ends with a counted reason. Nothing is allocated once a NIC has been heard
//! of; everything that outlives a turn is bounded, and what a guest sends costs other guests nothing: places, questions and errors are
//! counted per NIC.
//!
//! Theory of operation: the port is attached twice, first for the router's NIC, then for its own outside; [`wire::Context::nic`] says which of
//! them it is called for. Frames from inside are decided by [`NatTable`], given the MAC address of their next hop and put into `cx.answers`, so
//! that the worker forwards them in the bridge outside, in the same turn. Frames from outside go into a burst that the router takes in the same
//! turn. What cannot go at once (a later fragment before its first, a packet whose next hop has yet to say where it is) is
//! kept as it came and decided anew. Whatever must be known before a packet goes (does it fit, where is the next hop) is asked
//! between `decide` and `commit`: an error quotes the packet as its sender knows it.
//! Read first: [`crate::decide`], [`wire::port`]; then `forward.rs` beside this file (a packet's way), `outside.rs`, `held.rs`.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr},
    time::Duration,
};
use wire::icmp::Limits;

use wire::{Burst, Context, DropReason, Frame, Instant, MAX_FRAME, Mac, NicId, Origin, Port, Wake};

use crate::{
    config::Config,
    control::Inbox,
    record::{Side, Slot},
    snapshot::Snapshot,
    stats::NatStats,
    table::NatTable,
};

mod bytes;
mod config;
mod control;
mod discovery;
mod family;
mod forward;
mod guests;
mod held;
mod memo;
mod neighbours;
mod outside;
mod v6;

pub use config::{ByV6, PortConfig, PortConfigError, PortConfigV6};

use config::mask;
use guests::Guests;
use held::Held;
use memo::Memo;
use neighbours::Neighbours;
use v6::{By, V6};

/// How often what is not due to a frame is looked after.
const TICK: Duration = Duration::from_millis(100);
/// The same while the worker has nothing to do and nothing waits.
const IDLE_TICK: Duration = Duration::from_secs(1);
/// Records looked at in a tick.
const SWEEP: usize = 2048;
/// Times that our addresses are announced when the port begins.
const ANNOUNCEMENTS: u8 = 2;

/// See the module's documentation.
pub struct PacketPort {
    table: NatTable,
    mac: Mac,
    outside_mtu: u16,
    inside_mtu: u16,
    router: Ipv4Addr,
    /// The outside subnet and its mask; a mask of ones if there is none.
    subnet: (u32, u32),
    next_hop: Option<Ipv4Addr>,
    v6: Option<V6>,
    neighbours: Neighbours,
    guests: Guests,
    held: Held,
    /// Of the burst that is being taken: what is known of the flow of the frames before, and the record of the last.
    memo: Option<Memo>,
    last: Option<Slot>,
    limits: Limits,
    inbox: Option<Inbox>,
    /// The router's NIC, and our own.
    inside: Option<Origin>,
    outside: Option<Origin>,
    /// What the router has yet to take in this turn.
    inward: Burst,
    /// Room for the longest frame, and for one made of it.
    scratch: Box<[u8]>,
    answer: Box<[u8]>,
    tick: Instant,
    announce: u8,
    announced: Instant,
}

impl PacketPort {
    /// A port; all memory is taken here, but what is known of a NIC when that is first heard of.
    pub fn new(config: PortConfig) -> Result<PacketPort, PortConfigError> {
        config.check()?;
        let least = if config.only_v6() { Some(64) } else { None };
        let PortConfig { mac, table, prefix, next_hop, mtu, inside_mtu, router, inside: _, errors, v6 } = config;
        let first = table.outside.first().copied().unwrap_or(Ipv4Addr::UNSPECIFIED);
        let subnet = (first.to_bits() & mask(prefix), mask(prefix));
        let longest = usize::from(mtu.max(inside_mtu)) + wire::layers::ETHERNET_LEN;
        Ok(PacketPort {
            neighbours: Neighbours::new(table.seed),
            table: NatTable::made(&Config { mappings: least.unwrap_or(table.mappings), ..table }),
            mac,
            outside_mtu: mtu,
            inside_mtu,
            router,
            subnet,
            next_hop,
            v6: v6.map(V6::new),
            guests: Guests::default(),
            held: Held::new(longest),
            memo: None,
            last: None,
            limits: Limits::new(errors),
            inbox: None,
            inside: None,
            outside: None,
            inward: Burst::default(),
            scratch: vec![0; MAX_FRAME].into(),
            answer: vec![0; longest.max(2048)].into(),
            tick: Instant::START,
            announce: ANNOUNCEMENTS,
            announced: Instant::START,
        })
    }

    /// Does what it is told by `inbox`.
    #[must_use]
    pub fn with_inbox(mut self, inbox: Inbox) -> Self {
        self.inbox = Some(inbox);
        self
    }

    /// Takes up what another port knew ([`PacketPort::snapshot`]); the NICs must be the same. Returns how many entries found no place.
    pub fn restore(&mut self, (v4, v6): &(Snapshot, Snapshot<Ipv6Addr>), now: Instant) -> usize {
        for nic in v4.entries.iter().map(|entry| entry.nic).chain(v6.entries.iter().map(|entry| entry.nic)) {
            self.add_nic(nic);
        }
        let left_out = self.table6_mut().map_or(v6.entries.len(), |table| table.restore(v6, now));
        self.table.restore(v4, now) + left_out
    }

    /// Everything it knows of mappings and connections, but published ports: of IPv4, of IPv6.
    pub fn snapshot(&self, now: Instant) -> (Snapshot, Snapshot<Ipv6Addr>) {
        (self.table.snapshot(now), self.table6().map(|table| table.snapshot(now)).unwrap_or_default())
    }

    /// What happened to its tables.
    pub fn stats(&self) -> NatStats {
        self.table.stats() + self.table6().map(NatTable::stats).unwrap_or_default()
    }

    /// Bytes of memory that its tables have taken.
    pub fn memory(&self) -> usize {
        self.table.memory() + self.table6().map_or(0, NatTable::memory)
    }

    /// The table of IPv6, if there is one.
    fn table6(&self) -> Option<&NatTable<Ipv6Addr>> {
        match self.v6.as_ref().map(|v6| &v6.by) {
            Some(By::Table(table)) => Some(table),
            _ => None,
        }
    }

    fn table6_mut(&mut self) -> Option<&mut NatTable<Ipv6Addr>> {
        match self.v6.as_mut().map(|v6| &mut v6.by) {
            Some(By::Table(table)) => Some(table),
            _ => None,
        }
    }

    /// NICs up to `nic` are known from here on. Allocates.
    pub fn add_nic(&mut self, nic: NicId) {
        self.table.add_nic(nic);
        if let Some(table) = self.table6_mut() {
            table.add_nic(nic);
        }
        self.guests.add(nic);
        self.limits.add(nic);
    }

    /// Sends a frame on: out by the outside NIC, or to the router. Its MAC addresses are set here; a destination of zero the router finds.
    #[inline]
    fn send(&mut self, cx: &mut Context, frame: Frame, to: Side, mac: u64) {
        let head = cx.heads.get_mut(&frame);
        let [a, b, c, d, e, f, ..] = mac.to_le_bytes();
        let [g, h, i, j, k, l] = self.mac.bytes();
        bytes::put(head.bytes_mut(), 0, &[a, b, c, d, e, f, g, h, i, j, k, l]);
        let pushed = match to {
            Side::Outside => {
                if let Some(outside) = self.outside {
                    head.origin = outside;
                }
                cx.answers.push(frame)
            }
            Side::Inside => self.inward.push(frame),
        };
        if let Err(frame) = pushed {
            cx.drop(frame, DropReason::NoBuffers);
        }
    }

    /// Sends a frame of our own.
    fn originate(&mut self, cx: &mut Context, len: usize, to: Side, mac: u64) {
        let origin = if to == Side::Outside { self.outside } else { self.inside };
        let bytes = self.answer.get(..len).unwrap_or_default();
        if let Some(frame) = cx.originate(origin.unwrap_or_default(), bytes) {
            self.send(cx, frame, to, mac);
        }
    }

    /// What is due to no frame.
    #[cold]
    fn look_after(&mut self, cx: &mut Context) {
        self.tick = cx.now + TICK;
        self.neighbours.doubt();
        self.table.sweep(cx.now, SWEEP);
        self.tell_unsolicited::<Ipv4Addr>(cx);
        if let Some(table) = self.table6_mut() {
            table.sweep(cx.now, SWEEP);
            self.tell_unsolicited::<Ipv6Addr>(cx);
        }
        self.held.sweep(cx.now);
        self.ask_again(cx);
        if self.announce > 0 && self.outside.is_some() && cx.now >= self.announced {
            self.announce -= 1;
            self.announced = cx.now + neighbours::AGAIN;
            self.say_where_we_are(cx);
        }
    }
}

impl Port for PacketPort {
    fn attach(&mut self, cx: &mut Context) -> io::Result<()> {
        let origin = Origin { nic: cx.nic, lane: 0 };
        match self.inside {
            None => self.inside = Some(origin),
            Some(_) => self.outside = Some(origin),
        }
        self.add_nic(cx.nic);
        Ok(())
    }

    fn receive(&mut self, cx: &mut Context, burst: &mut Burst) -> io::Result<()> {
        if cx.now >= self.tick {
            self.look_after(cx);
        }
        self.obey(cx.now);
        for frame in self.inward.drain() {
            if !cx.heads.is_current(&frame) {
                // The router did not come for it in its turn.
                cx.drop(frame, DropReason::Stale);
            } else if let Err(frame) = burst.push(frame) {
                cx.drop(frame, DropReason::NoBuffers);
            }
        }
        Ok(())
    }

    fn transmit(&mut self, cx: &mut Context, burst: &mut Burst) -> io::Result<()> {
        let from = if self.outside.is_some_and(|outside| outside.nic == cx.nic) { Side::Outside } else { Side::Inside };
        self.table.foresee(from, cx, burst.iter());
        (self.memo, self.last) = (None, None);
        if from == Side::Outside {
            for frame in burst.drain() {
                self.come_in(cx, frame);
            }
        } else {
            for frame in burst.drain() {
                self.go_out(cx, frame);
            }
        }
        Ok(())
    }

    fn release(&mut self, cx: &mut Context) -> io::Result<()> {
        for frame in self.inward.drain() {
            cx.drop(frame, DropReason::Stale);
        }
        Ok(())
    }

    fn wake(&mut self, wake: &mut Wake) -> bool {
        if !self.held.is_empty() || self.announce > 0 {
            wake.by(self.tick);
        } else if self.table.is_busy() || self.table6().is_some_and(NatTable::is_busy) {
            wake.by(self.tick + IDLE_TICK);
        }
        true
    }
}
