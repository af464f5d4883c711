//! Whatever comes in, nothing panics, and what goes out is right.

use std::time::Duration;

use gateway::Elsewhere;
use proptest::prelude::*;

use crate::{
    arp::request,
    dhcp_client::Ask,
    dhcp6::with as stateful,
    dhcp6_client::Ask6,
    ipv6::solicitation,
    segment::{
        GLOBAL, GUEST, GUEST_GLOBAL, GUEST_MAC, OUTSIDE, ROUTER, ROUTER_MAC, Segment, check, config, icmpv6, ping, udp,
    },
};

/// Something that the router answers.
fn good() -> impl Strategy<Value = Vec<u8>> {
    prop::sample::select(vec![
        request(GUEST, ROUTER),
        ping(ROUTER, 64, b"abcdefgh"),
        ping(OUTSIDE, 1, b"abcdefgh"),
        udp(OUTSIDE, 64, 53, &[3; 700]),
        solicitation(GUEST_GLOBAL, GLOBAL, GLOBAL, true),
        icmpv6(ROUTER_MAC, GUEST_GLOBAL, GLOBAL, 255, [133, 0], &[0; 4]),
        icmpv6(ROUTER_MAC, GUEST_GLOBAL, GLOBAL, 64, [128, 0], &[0; 40]),
        Ask::new(1).with(55, &[1, 3, 6, 12, 15, 26, 28, 42, 119, 121]).with(61, &[3; 20]).frame(),
        Ask::new(3).address(50, GUEST).address(54, ROUTER).frame(),
        Ask::new(3).from(GUEST).frame(),
        Ask::new(8).from(GUEST).frame(),
        Ask6::new(1)
            .association(1, Some(GUEST_GLOBAL))
            .association(2, None)
            .with(14, &[])
            .with(39, b"\0\x03web\0")
            .frame(),
        Ask6::new(3).sent_to_the_server().association(1, None).with(6, &[0, 23, 0, 24]).frame(),
        Ask6::new(8).sent_to_the_server().association(1, Some(GUEST_GLOBAL)).frame(),
        Ask6::new(11).frame(),
    ])
}

/// Puts frames to routers of every kind, and looks at what they say.
fn listen(frames: &[Vec<u8>], owed: bool) {
    for elsewhere in [Elsewhere::Unreachable, Elsewhere::Prohibited, Elsewhere::Forward] {
        let mut segment = Segment::new(gateway::Config { elsewhere, ..stateful(|_| {}) });
        segment.checksum_owed = owed;
        for frame in frames {
            if let (_, Some(answer)) = segment.say(frame) {
                check(&answer);
                assert!(answer.len() <= frame.len().max(1514));
            }
            segment.later(Duration::from_millis(300));
            segment.tick();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn any_bytes(frames in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..400), 1..6), owed: bool) {
        listen(&frames, owed);
    }

    #[test]
    fn any_bytes_behind_a_header_for_the_router(
        kind in prop::sample::select(vec![0x0800u16, 0x0806, 0x86dd, 0x8100]),
        first in prop::sample::select(vec![0x45u8, 0x46, 0x4f, 0x60]),
        rest in prop::collection::vec(any::<u8>(), 0..300),
    ) {
        let mut frame = [ROUTER_MAC.bytes(), GUEST_MAC.bytes()].concat();
        frame.extend(kind.to_be_bytes());
        frame.push(first);
        frame.extend(rest);
        listen(&[frame], true);
    }

    #[test]
    fn changed_and_cut_frames(
        mut frames in prop::collection::vec(good(), 1..5),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(), any::<u8>()), 0..6),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let count = frames.len();
        for (which, at, value) in changes {
            let frame = &mut frames[which.index(count)];
            let len = frame.len();
            frame[at.index(len)] = value;
        }
        if let Some(cut) = cut {
            let len = frames[0].len();
            frames[0].truncate(cut.index(len));
        }
        // With checksums that count and without, so that changes reach what lies behind them.
        listen(&frames, false);
        listen(&frames, true);
    }
}

#[test]
fn the_good_ones_are_answered() {
    let mut segment = Segment::new(config());
    segment.ask(&request(GUEST, ROUTER));
    segment.ask(&icmpv6(ROUTER_MAC, GUEST_GLOBAL, GLOBAL, 255, [133, 0], &[0; 4]));
    segment.ask(&Ask::new(8).from(GUEST).frame());
}
