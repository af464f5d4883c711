//! [`Gate`]: a packet port between scripted frames, in virtual time; compiled once for each version of IP.
//!
//! Invariant: whatever comes out has right checksums, and the ledger balances after every turn.

use std::time::Duration;

use nat::{PacketPort, PortConfig, Side};
use wire::{Burst, Context, DropReason, Instant, Mac, NicId, Offload, Origin, Port, Sizes};

pub use super::{
    super::{HOP_MAC, OWN},
    port_config,
};
use super::{HOP, check, found};

pub const INSIDE_NIC: NicId = NicId(10);
pub const OUTSIDE_NIC: NicId = NicId(11);
/// What came out, where, and what it owes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Out {
    pub side: Side,
    pub frame: Vec<u8>,
    pub offload: Offload,
}

pub struct Gate {
    pub port: PacketPort,
    pub cx: Context,
    pub now: Instant,
}

/// From the router outside to us.
pub fn from_outside(mut frame: Vec<u8>) -> Vec<u8> {
    frame[..6].copy_from_slice(&OWN.bytes());
    frame[6..12].copy_from_slice(&HOP_MAC.bytes());
    frame
}

impl Gate {
    /// A port that has announced itself and does not know its next hop.
    pub fn unresolved(config: PortConfig) -> Gate {
        let mut cx = Context::new(Sizes { heads: 2048, pieces: 512, pool: 1 << 20 }).unwrap();
        (0..12).for_each(|nic| cx.add_nic(NicId(nic)));
        let mut gate = Gate { port: PacketPort::new(config).unwrap(), cx, now: Instant::START };
        for nic in [INSIDE_NIC, OUTSIDE_NIC] {
            gate.cx.nic = nic;
            gate.port.attach(&mut gate.cx).unwrap();
        }
        for _ in 0..3 {
            gate.wait(Duration::from_secs(1));
        }
        gate
    }

    /// A port whose next hop has said where it is.
    pub fn new(config: PortConfig) -> Gate {
        let mut gate = Gate::unresolved(config);
        gate.out(3, &super::udp(super::ep(super::GUEST, 9), super::ep(super::SERVER, 9), b""));
        assert_eq!(gate.back(&found(HOP)).len(), 1, "what has waited goes");
        gate
    }

    pub fn cross_with(&mut self, nic: NicId, frame: &[u8], offload: Offload) -> Vec<Out> {
        self.cross_all(nic, &[(frame, offload)])
    }

    /// Frames of one burst.
    pub fn cross_all(&mut self, nic: NicId, frames: &[(&[u8], Offload)]) -> Vec<Out> {
        let frames: Vec<_> = frames.iter().map(|(frame, offload)| (nic, frame.to_vec(), *offload)).collect();
        self.cross_from(&frames)
    }

    /// Frames of one burst, of several NICs inside or of the one outside.
    pub fn cross_from(&mut self, frames: &[(NicId, Vec<u8>, Offload)]) -> Vec<Out> {
        self.cx.begin_turn(self.now);
        let mut burst = Burst::default();
        for (nic, frame, offload) in frames {
            let handle = self.cx.originate(Origin { nic: *nic, lane: 0 }, frame).unwrap();
            self.cx.heads.get_mut(&handle).offload = *offload;
            burst.push(handle).unwrap();
        }
        let is_outside = frames.iter().any(|(nic, ..)| *nic == OUTSIDE_NIC);
        self.cx.nic = if is_outside { OUTSIDE_NIC } else { INSIDE_NIC };
        self.port.transmit(&mut self.cx, &mut burst).unwrap();
        assert!(burst.is_empty(), "a port takes everything");
        self.collect()
    }

    fn collect(&mut self) -> Vec<Out> {
        let mut burst = Burst::default();
        self.cx.nic = INSIDE_NIC;
        self.port.receive(&mut self.cx, &mut burst).unwrap();
        let mut outs = Vec::new();
        let mut answers = std::mem::take(&mut self.cx.answers);
        let frames = answers.drain().map(|frame| (Side::Outside, frame));
        for (side, frame) in frames.chain(burst.drain().map(|frame| (Side::Inside, frame))) {
            let head = self.cx.heads.get(&frame);
            let offload = head.offload;
            if side == Side::Outside {
                assert_eq!(head.origin.nic, OUTSIDE_NIC);
            }
            let mut bytes = vec![0; head.len()];
            assert_eq!(self.cx.read_all(&frame, &mut bytes), Some(bytes.len()));
            self.cx.transmitted(1, bytes.len() as u64);
            if offload.is_none() {
                check(&bytes);
            }
            outs.push(Out { side, frame: bytes, offload });
        }
        self.port.release(&mut self.cx).unwrap();
        assert!(self.cx.ledger.balances(), "{:?}", self.cx.ledger);
        outs
    }

    pub fn out(&mut self, nic: u16, frame: &[u8]) -> Vec<Out> {
        self.cross_with(NicId(nic), frame, Offload::NONE)
    }

    /// From outside, as it is on the link there.
    pub fn back(&mut self, frame: &[u8]) -> Vec<Out> {
        self.cross_with(OUTSIDE_NIC, frame, Offload::NONE)
    }

    /// From the router outside.
    pub fn reply(&mut self, frame: Vec<u8>) -> Vec<Out> {
        self.back(&from_outside(frame))
    }

    /// Time goes on, in steps of a quarter of a second; what comes out meanwhile.
    pub fn wait(&mut self, time: Duration) -> Vec<Out> {
        let (mut outs, until) = (Vec::new(), self.now + time);
        while self.now < until {
            self.now = until.min(self.now + Duration::from_millis(250));
            self.cx.begin_turn(self.now);
            outs.extend(self.collect());
        }
        outs
    }

    pub fn drops(&self, nic: NicId, reason: DropReason) -> u64 {
        self.cx.counters(nic).unwrap().drops(reason)
    }
}

/// The one frame that came out, on this side.
#[track_caller]
pub fn one(outs: Vec<Out>, side: Side) -> Vec<u8> {
    match <[Out; 1]>::try_from(outs) {
        Ok([out]) if out.side == side => out.frame,
        other => panic!("expected one frame to the {side:?}, was {other:?}"),
    }
}

/// Type and code of an ICMP error, and the last two bytes of its MTU.
pub fn icmp(frame: &[u8]) -> (u8, u8, u16) {
    let at = super::L4;
    (frame[at], frame[at + 1], u16::from_be_bytes([frame[at + 6], frame[at + 7]]))
}
