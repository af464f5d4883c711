//! Segments that [`crate::segmentation`] has cut come together to what they were cut from; what may not be joined is left alone.

use proptest::prelude::*;

use super::*;
use crate::{
    Accepts, NicId,
    segmentation::tests::{Super, context, frame, settle, supers},
};

const ORIGIN: Origin = Origin { nic: NicId(0), lane: 7 };

/// Frames as they come in, and what comes out of them with what it owes.
fn joined(cx: &mut Context, frames: &[Vec<u8>]) -> Vec<(Vec<u8>, Offload)> {
    let mut coalesce = Coalesce::default();
    let mut done = Vec::new();
    for bytes in frames {
        let lent = cx.arena.pool(bytes).unwrap();
        done.extend(coalesce.push(cx, ORIGIN, lent, u16::MAX).unwrap());
    }
    done.extend(coalesce.finish(cx));
    assert!(coalesce.finish(cx).is_none());
    let read = |frame: Frame| {
        let head = cx.heads.get(&frame);
        let mut bytes = vec![0; head.len()];
        assert_eq!(cx.read_all(&frame, &mut bytes), Some(bytes.len()));
        (bytes, head.offload)
    };
    done.into_iter().map(read).collect()
}

/// What a super-frame is cut into, as a sender without offloads sends it.
fn cut(whole: &Super) -> Vec<Vec<u8>> {
    let mut cx = context();
    let owed = frame(&mut cx, &whole.bytes(), whole.offload(), &[1500]);
    settle(&mut cx, owed, Accepts::NONE).into_iter().map(|(bytes, _)| bytes).collect()
}

fn plain(flags: u8, payload: usize, v6: bool) -> Super {
    let payload = (0..payload).map(|n| n as u8).collect();
    Super { tags: 0, v6, extra: 0, tcp: true, options: 3, flags, id: 7, seq: u32::MAX - 3000, payload, mss: 1400 }
}

#[test]
fn segments_become_the_super_frame_that_they_were() {
    for v6 in [false, true] {
        for len in [1401, 2800, 10_000, 64_000] {
            let whole = plain(ACK | PSH, len, v6);
            let segments = cut(&whole);
            assert_eq!(segments.len(), len.div_ceil(1400));
            let mut cx = context();
            let out = joined(&mut cx, &segments);
            let [(bytes, offload)] = &out[..] else { panic!("{} frames", out.len()) };
            let mut expected = whole.bytes();
            if !v6 {
                expected[24..26].copy_from_slice(&bytes[24..26]);
                let mut sum = Checksum::new();
                sum.add_bytes(&bytes[14..34]);
                assert!(sum.is_valid());
            }
            assert!(*bytes == expected, "{len}");
            assert_eq!((offload.gso(), offload.segment_size()), (if v6 { Gso::Tcp6 } else { Gso::Tcp4 }, 1400));
            assert_eq!((usize::from(offload.checksum_start()), offload.checksum_offset()), (whole.l4(), 16));
        }
    }
}

#[test]
fn what_is_not_the_next_or_was_damaged_is_not_joined() {
    let segments = cut(&plain(ACK, 1400 * 4, false));
    type Change = fn(&mut Vec<u8>);
    let changes: [(&str, Change); 7] = [
        ("another port", |bytes| bytes[34] ^= 1),
        ("another window", |bytes| bytes[49] ^= 1),
        ("another option", |bytes| bytes[55] ^= 1),
        ("FIN", |bytes| bytes[47] |= 1),
        ("another sequence number", |bytes| bytes[41] ^= 1),
        ("damaged payload", |bytes| bytes[1000] ^= 1),
        ("a damaged IP header", |bytes| bytes[24] ^= 1),
    ];
    for (what, change) in changes {
        for at in 0..4 {
            let mut frames = segments.clone();
            change(&mut frames[at]);
            let mut cx = context();
            let out = joined(&mut cx, &frames);
            assert!(out.len() > 1, "{what} in {at}");
            let alone = out.iter().find(|(bytes, _)| *bytes == frames[at]);
            assert!(alone.is_some_and(|(_, offload)| offload.is_none()), "{what} in {at} goes on as it came");
        }
    }
}

#[test]
fn a_short_segment_and_a_push_are_the_last() {
    let [a, b, c] = [0, 1, 2].map(|n| Super { seq: 1000 + 1400 * n, ..plain(ACK, 1400, false) });
    let pushed = Super { flags: ACK | PSH, ..b.clone() };
    let bytes = |segments: &[&Super]| segments.iter().flat_map(|segment| cut(segment)).collect::<Vec<_>>();
    assert_eq!(joined(&mut context(), &bytes(&[&a, &b, &c])).len(), 1);
    assert_eq!(joined(&mut context(), &bytes(&[&a, &pushed, &c])).len(), 2);
    let mut short = b;
    short.payload.truncate(100);
    let after = Super { seq: 1000 + 1500, ..c };
    assert_eq!(joined(&mut context(), &bytes(&[&a, &short, &after])).len(), 2);
}

proptest! {
    #[test]
    fn whatever_is_cut_arrives_byte_for_byte(whole in supers(20_000), other in supers(3000)) {
        let frames = [cut(&whole), cut(&other), cut(&whole)].concat();
        let mut cx = context();
        let out = joined(&mut cx, &frames);
        // Cut again, the frames are those that came but for the identification.
        let masked = |mut bytes: Vec<u8>| {
            if bytes[12..14] == [8, 0] {
                bytes[18..20].fill(0);
                bytes[24..26].fill(0);
            }
            bytes
        };
        let mut again = Vec::new();
        for (bytes, offload) in out {
            let mut cx = context();
            let frame = frame(&mut cx, &bytes, offload, &[777]);
            again.extend(settle(&mut cx, frame, Accepts::NONE).into_iter().map(|(bytes, _)| masked(bytes)));
        }
        let frames: Vec<_> = frames.into_iter().map(masked).collect();
        prop_assert_eq!(again.len(), frames.len());
        prop_assert!(again == frames);
    }
}
