//! A bridge with its surroundings, for tests: frames go in as bytes at a NIC and come out as bytes at NICs.
//!
//! Invariant: what comes out is counted as transmitted, and the ledger balances after every burst.

use std::time::Duration;

use wire::{Burst, Context, DropReason, Instant, Mac, NicId, Offload, Origin, Sizes, Vid};

use crate::{Bridge, BridgeSpec, Egress, Membership, NicSpec};

/// What left: the NIC, its lane, the bytes, and what they owe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sent {
    pub(crate) nic: u16,
    pub(crate) lane: u16,
    pub(crate) bytes: Vec<u8>,
    pub(crate) offload: Offload,
}

pub(crate) struct Net {
    pub(crate) bridge: Bridge,
    pub(crate) cx: Context,
    egress: Egress,
    /// The NIC of every lane.
    lanes: Vec<NicId>,
}

impl Net {
    pub(crate) fn new() -> Net {
        Net::with(BridgeSpec { fdb_capacity: 1024, ..BridgeSpec::new(1) })
    }

    pub(crate) fn with(spec: BridgeSpec) -> Net {
        let cx = Context::new(Sizes { heads: 1024, pieces: 1024, pool: 1 << 20 }).unwrap();
        Net { bridge: Bridge::new(spec), cx, egress: Egress::default(), lanes: Vec::new() }
    }

    /// A network whose NICs 0, 1, ... have these memberships and one lane each.
    pub(crate) fn of(memberships: &[Membership]) -> Net {
        let mut net = Net::new();
        for (nic, membership) in memberships.iter().enumerate() {
            net.add(nic as u16, NicSpec { membership: membership.clone(), ..NicSpec::default() }, 1);
        }
        net
    }

    /// `n` NICs without VLANs.
    pub(crate) fn plain(n: usize) -> Net {
        Net::of(&vec![Membership::Untagged; n])
    }

    pub(crate) fn add(&mut self, nic: u16, spec: NicSpec, lanes: usize) {
        let nic = NicId(nic);
        self.bridge.add_nic(nic, spec);
        self.cx.add_nic(nic);
        let first = self.lanes.len();
        self.lanes.extend(std::iter::repeat_n(nic, lanes));
        self.egress.resize(self.lanes.len());
        let numbers: Vec<u16> = (first..self.lanes.len()).map(|lane| lane as u16).collect();
        self.bridge.set_lanes(nic, &numbers);
    }

    pub(crate) fn advance(&mut self, by: Duration) {
        self.cx.now = self.cx.now + by;
    }

    pub(crate) fn now(&self) -> Instant {
        self.cx.now
    }

    /// One turn: a burst of frames from a NIC. What left is ordered by NIC and lane.
    pub(crate) fn burst(&mut self, nic: u16, frames: &[(Vec<u8>, Offload)]) -> Vec<Sent> {
        self.burst_of(nic, 0, frames)
    }

    /// The same, from a lane of the NIC.
    pub(crate) fn burst_of(&mut self, nic: u16, lane: u16, frames: &[(Vec<u8>, Offload)]) -> Vec<Sent> {
        self.cx.begin_turn(self.cx.now);
        let mut burst = Burst::default();
        for (bytes, offload) in frames {
            let frame = self.cx.originate(Origin { nic: NicId(nic), lane }, bytes).unwrap();
            self.cx.heads.get_mut(&frame).offload = *offload;
            burst.push(frame).unwrap();
        }
        self.bridge.forward(&mut self.cx, &mut burst, &mut self.egress);
        assert!(burst.is_empty());
        let mut sent = Vec::new();
        while let Some(lane) = self.egress.next_touched() {
            self.cx.nic = self.lanes[usize::from(lane)];
            for frame in self.egress.burst(lane).drain() {
                let head = self.cx.heads.get(&frame);
                assert_eq!(head.origin.nic.0, nic);
                let mut bytes = vec![0; head.len()];
                let offload = head.offload;
                assert_eq!(self.cx.read_all(&frame, &mut bytes), Some(bytes.len()));
                self.cx.transmitted(1, bytes.len() as u64);
                sent.push(Sent { nic: self.cx.nic.0, lane, bytes, offload });
            }
        }
        assert!(self.cx.ledger.balances(), "{:?}", self.cx.ledger);
        sent.sort_by_key(|sent| sent.lane);
        sent
    }

    /// One frame from a NIC; the NICs that got it, with the bytes.
    pub(crate) fn send(&mut self, nic: u16, bytes: &[u8]) -> Vec<(u16, Vec<u8>)> {
        let sent = self.burst(nic, &[(bytes.to_vec(), Offload::NONE)]);
        sent.into_iter().map(|sent| (sent.nic, sent.bytes)).collect()
    }

    /// One frame from a NIC; the NICs that got it.
    pub(crate) fn reaches(&mut self, nic: u16, bytes: &[u8]) -> Vec<u16> {
        self.send(nic, bytes).into_iter().map(|(nic, _)| nic).collect()
    }

    /// One frame from a NIC that reaches nobody; why.
    pub(crate) fn dropped(&mut self, nic: u16, bytes: &[u8]) -> DropReason {
        let count = |net: &Net, reason| net.cx.counters(NicId(nic)).unwrap().drops(reason);
        let before: Vec<u64> = DropReason::ALL.iter().map(|reason| count(self, *reason)).collect();
        assert_eq!(self.send(nic, bytes), []);
        let changed = DropReason::ALL.iter().zip(before).filter(|(reason, before)| count(self, **reason) != *before);
        let reasons: Vec<DropReason> = changed.map(|(reason, _)| *reason).collect();
        assert_eq!(reasons.len(), 1, "{reasons:?}");
        reasons[0]
    }
}

/// The address of station `n`.
pub(crate) fn mac(n: u8) -> Mac {
    Mac::new([2, 0, 0, 0, 0, n])
}

pub(crate) fn vid(number: u16) -> Vid {
    Vid::new(number).unwrap()
}

/// A frame of 60 bytes that tells its sender in its payload.
pub(crate) fn frame(to: Mac, from: Mac) -> Vec<u8> {
    let mut bytes = [to.bytes(), from.bytes()].concat();
    bytes.extend([0x88, 0xb5]);
    bytes.resize(60, from.bytes()[5]);
    bytes
}

/// The frame with a tag of this priority and VLAN.
pub(crate) fn tagged(mut bytes: Vec<u8>, priority: u8, number: u16) -> Vec<u8> {
    let tci = u16::from(priority) << 13 | number;
    let [high, low] = tci.to_be_bytes();
    bytes.splice(12..12, [0x81, 0x00, high, low]);
    bytes
}

pub(crate) fn access(number: u16) -> Membership {
    Membership::Access(vid(number))
}

pub(crate) fn trunk(numbers: &[u16], native: Option<u16>) -> Membership {
    Membership::Trunk { vlans: numbers.iter().map(|n| vid(*n)).collect(), native: native.map(vid) }
}
