//! A burst and the same frames one by one: what a packet port remembers of the frame before makes no difference to the next.

#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

mod common;
use common::v4::{port::*, *};
use nat::{Config, Filtering, Side};
use proptest::prelude::*;
use wire::{Gso, NicId, Offload};

/// What distinguishes frames that follow one another.
#[derive(Clone, Copy, Debug)]
struct Made {
    nic: u16,
    flow: usize,
    len: usize,
    ttl: u8,
    may_fragment: bool,
    more: bool,
    owed: bool,
    sender: u8,
}

const FLAGS: [&str; 4] = ["S", "A", "FA", "R"];

fn made() -> impl Strategy<Value = Made> {
    // Mostly the same, so that memory is used; sometimes not.
    let seldom = || prop::bool::weighted(0.1);
    let flow = prop_oneof![6 => Just(0usize), 3 => Just(5usize), 2 => 0..8usize];
    let len = prop_oneof![4 => Just(18usize), 1 => 0..60usize, 1 => Just(1700usize)];
    (0..12u16, flow, len, seldom(), any::<bool>(), seldom(), seldom(), seldom()).prop_map(
        |(nic, flow, len, old, may_fragment, more, owed, other)| Made {
            nic: u16::from(nic == 0),
            flow,
            len,
            ttl: if old { 1 } else { 9 },
            may_fragment,
            more,
            owed,
            sender: u8::from(other),
        },
    )
}

/// The frame of a flow: from inside, or from outside to where the flow is mapped.
fn frame(made: &Made, outside: Option<&[u16; 3]>) -> (Vec<u8>, Offload) {
    let payload = vec![7; made.len];
    let near = |n: usize| match outside {
        None => ep(GUEST, 4000 + n as u16),
        Some(ports) => ep(OUTSIDE, ports[n]),
    };
    let ends = |near: nat::Endpoint, far: nat::Endpoint| if outside.is_some() { (far, near) } else { (near, far) };
    let mut bytes = match made.flow {
        0 | 1 => ends(near(0), ep(SERVER, 9000 + made.flow as u16)),
        2 | 3 => ends(near(1), ep(PEER, 9000)),
        _ => ends(near(2), ep(SERVER, 80)),
    };
    if made.flow == 3 {
        bytes.1.port += 1;
    }
    let mut bytes =
        if made.flow < 4 { udp(bytes.0, bytes.1, &payload) } else { tcp(bytes.0, bytes.1, FLAGS[made.flow - 4]) };
    bytes[22] = made.ttl;
    bytes[20] = u8::from(!made.may_fragment) << 6 | u8::from(made.more) << 5;
    bytes[24..26].fill(0);
    let mut sum = wire::checksum::Checksum::new();
    sum.add_bytes(&bytes[14..34]);
    let field = sum.finish().to_be_bytes();
    bytes[24..26].copy_from_slice(&field);
    bytes[11] ^= made.sender;
    let at = if made.flow < 4 { 6 } else { 16 };
    let owed = if made.owed { Offload::new(Gso::None, 0, 0, 34, at) } else { Offload::NONE };
    (if outside.is_some() { from_outside(bytes) } else { bytes }, owed)
}

fn gates(filtering: Filtering) -> ([Gate; 2], [u16; 3]) {
    let mut gates = [(); 2].map(|()| Gate::new(port_config(Config { filtering, ..config() })));
    let ports = gates.each_mut().map(|gate| {
        let mut open = |frame: &[u8]| seen(&one(gate.out(0, frame), Side::Outside)).source.port;
        [
            open(&udp(ep(GUEST, 4000), ep(SERVER, 9000), b"")),
            open(&udp(ep(GUEST, 4001), ep(PEER, 9000), b"")),
            open(&tcp(ep(GUEST, 4002), ep(SERVER, 80), "S")),
        ]
    });
    assert_eq!(ports[0], ports[1]);
    let [first, _] = ports;
    (gates, first)
}

proptest! {
    #[test]
    fn a_burst_is_what_its_frames_are_one_by_one(
        strict: bool,
        bursts in prop::collection::vec((any::<bool>(), prop::collection::vec(made(), 1..40)), 1..4),
    ) {
        let filtering = if strict { Filtering::AddressDependent } else { Filtering::EndpointIndependent };
        let ([mut whole, mut single], ports) = gates(filtering);
        for (inward, burst) in bursts {
            let outside = inward.then_some(&ports);
            let frames: Vec<(NicId, Vec<u8>, Offload)> = burst
                .iter()
                .map(|made| {
                    let (bytes, owed) = frame(made, outside);
                    (if inward { OUTSIDE_NIC } else { NicId(made.nic) }, bytes, owed)
                })
                .collect();
            let mut together = whole.cross_from(&frames);
            let mut apart: Vec<Out> = frames.iter().flat_map(|frame| single.cross_from(std::slice::from_ref(frame))).collect();
            // What goes outside and what goes inside come by different ways; each keeps its order.
            together.sort_by_key(|out| out.side == Side::Inside);
            apart.sort_by_key(|out| out.side == Side::Inside);
            prop_assert_eq!(together, apart);
            prop_assert_eq!(whole.port.snapshot(whole.now), single.port.snapshot(single.now));
            prop_assert_eq!(whole.port.stats(), single.port.stats());
        }
    }
}
