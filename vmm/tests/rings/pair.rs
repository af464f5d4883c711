//! [`Pair`]: two guests whose ports are next to each other, and the context their turns need.

use std::io;

use vmm::{
    Features, RingPort,
    virtqueue::testing::{Rig, RigSpec, turn},
};
use wire::{Burst, Context, DropReason, NicId, Offload, Port, Sizes};

/// The guest that sends is NIC 0, the one that receives is NIC 1.
pub struct Pair {
    pub cx: Context,
    pub burst: Burst,
    pub a: Rig,
    pub b: Rig,
    pub from: RingPort,
    pub to: RingPort,
}

impl Pair {
    pub fn new(a: RigSpec, b: RigSpec) -> Pair {
        Pair::of(Rig::new(a).unwrap(), Rig::new(b).unwrap())
    }

    pub fn of(a: Rig, b: Rig) -> Pair {
        let (from, to) = (a.port().unwrap(), b.port().unwrap());
        Pair::with_ports(a, b, from, to)
    }

    pub fn with_ports(a: Rig, b: Rig, mut from: RingPort, mut to: RingPort) -> Pair {
        let mut cx = context();
        from.attach(&mut cx).unwrap();
        to.attach(&mut cx).unwrap();
        Pair { cx, burst: Burst::default(), a, b, from, to }
    }

    /// One turn; what failed is 0 for the sender's port and 1 for the receiver's.
    pub fn turn(&mut self) -> Result<usize, (usize, io::Error)> {
        let result = turn(&mut self.cx, &mut self.burst, &mut self.from, &mut self.to);
        if result.is_err() {
            // What a worker does with the frames that a failed port did not take.
            self.burst.drain().for_each(|frame| self.cx.drop(frame, DropReason::NotReady));
        }
        assert!(self.cx.ledger.balances(), "{:?} after {result:?}", self.cx.ledger);
        result
    }

    /// Drops of either side for this reason.
    pub fn drops(&self, reason: DropReason) -> u64 {
        (0..2).filter_map(|nic| self.cx.counters(NicId(nic))).map(|counters| counters.drops(reason)).sum()
    }

    /// Sends `bytes`, which owe nothing, in buffers of the lengths `cuts`.
    pub fn send(&mut self, bytes: &[u8], cuts: &[u32], indirect: bool) {
        assert!(self.a.send(Offload::NONE, bytes, cuts, indirect), "no room to send {} bytes", bytes.len());
        self.a.tx.publish().unwrap();
    }

    pub fn offer(&mut self, cuts: &[u32], indirect: bool) {
        assert!(self.b.offer(cuts, indirect), "no room to offer {cuts:?}");
        self.b.rx.publish().unwrap();
    }
}

pub fn context() -> Context {
    let mut cx = Context::new(Sizes::default()).unwrap();
    cx.add_nic(NicId(0));
    cx.add_nic(NicId(1));
    cx
}

/// A frame of `len` bytes that no other `seed` gives.
pub fn frame(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes: Vec<u8> = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    })
    .take(len.div_ceil(8))
    .flatten()
    .collect();
    bytes.truncate(len);
    bytes
}

/// Every combination of ring format, `EVENT_IDX`, `IN_ORDER` and `MRG_RXBUF`; each allows indirect descriptors.
pub fn feature_sets() -> Vec<Features> {
    let bits = [Features::RING_PACKED, Features::EVENT_IDX, Features::IN_ORDER, Features::MRG_RXBUF];
    let set = |n: usize| {
        let chosen = bits.iter().enumerate().filter(|(bit, _)| n >> bit & 1 != 0);
        chosen.fold(Features::INDIRECT_DESC, |set, (_, bit)| set.with(*bit))
    };
    (0..1 << bits.len()).map(set).collect()
}
