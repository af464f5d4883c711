//! What the host sends to a guest by TCP through the socket engine: windows, losses, silence; each also as on a kernel that does not remember how far
//! was peeked. See `scripted/mod.rs` for who is what.

#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

mod scripted;

use std::io::Write;

use scripted::{
    tcp::{ACK, End, PSH, accept, bytes, connected, connected_with, listener, read, segment},
    *,
};
use wire::Gso;

const GUEST: &str = "10.0.0.2:4000";
const GUEST6: &str = "[fd00::2]:4000";

/// Runs a test twice: as this kernel is, and as on one that does not remember how far was peeked.
fn on_any_kernel(test: fn()) {
    test();
    sys::inet::tcp::without_places(test);
}

/// Some time passes in which no data comes.
fn still(lab: &mut Lab) {
    for _ in 0..20 {
        let got = lab.turn(0, &[]);
        assert!(got.iter().all(|got| segment(&got.bytes).unwrap().payload.is_empty()));
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}

#[test]
fn data_goes_both_ways_intact() {
    on_any_kernel(|| {
        for (guest, v6) in [(GUEST, false), (GUEST6, true)] {
            let mut lab = Lab::new(config());
            let (listener, name) = listener(v6);
            let mut guest = End::new(0, at(guest), name);
            guest.open(&mut lab);
            let mut host = accept(&listener);
            for len in [1, 73, 74, 75, 1400] {
                guest.send(&mut lab, &bytes(len));
                assert_eq!(guest.acked, guest.seq, "{len}: acknowledged in the same turn");
                assert_eq!(read(&mut host, len), bytes(len));
                guest.received.clear();
                host.write_all(&bytes(len)).unwrap();
                guest.until(&mut lab, |guest| guest.received.len() == len);
                assert_eq!(guest.received, bytes(len));
            }
            guest.received.clear();
            host.set_nonblocking(true).unwrap();
            let all = bytes(4 << 20);
            let mut sent = 0;
            while guest.received.len() < all.len() {
                sent += host.write(&all[sent..]).unwrap_or(0);
                let before = guest.received.len();
                guest.until(&mut lab, |guest| guest.received.len() > before);
            }
            assert!(guest.received == all);
            assert!(guest.longest <= if v6 { 1440 } else { 1460 });
        }
    });
}

#[test]
fn data_for_a_guest_comes_in_super_frames_of_its_segments() {
    on_any_kernel(|| {
        let mut lab = Lab::new(config());
        let (_, mut host) = connected_with(&mut lab, |guest| guest.mss = Some(1000));
        host.write_all(&bytes(200_000)).unwrap();
        let got = lab.receive_as_is();
        let first = &got[0];
        assert_eq!((first.offload.gso(), first.offload.segment_size()), (Gso::Tcp4, 1000));
        assert!(first.bytes.len() > 60_000, "{} bytes", first.bytes.len());
        let cut = lab.settle(first);
        assert!(cut.iter().all(|frame| frame.len() <= 1054));
        assert_eq!(segment(cut.last().unwrap()).unwrap().flags, ACK | PSH);
        let whole: Vec<u8> = cut.iter().flat_map(|frame| segment(frame).unwrap().payload).collect();
        assert!(whole[..] == bytes(200_000)[..whole.len()]);
    });
}

#[test]
fn segments_are_no_longer_than_the_mtu_whatever_the_guest_says() {
    on_any_kernel(|| {
        let mut lab = Lab::new(config());
        let (mut guest, mut host) = connected_with(&mut lab, |guest| guest.mss = Some(65_535));
        host.write_all(&bytes(50_000)).unwrap();
        guest.until(&mut lab, |guest| guest.received.len() == 50_000);
        assert_eq!(guest.longest, 1460);
        let (mut guest, mut host) = connected_with(&mut lab, |guest| {
            guest.mss = Some(1);
            guest.me.set_port(4001);
        });
        host.write_all(&bytes(5_000)).unwrap();
        guest.until(&mut lab, |guest| guest.received.len() == 5_000);
        assert_eq!(guest.longest, 88, "an MSS of 1 is not believed");
    });
}

#[test]
fn a_guest_is_sent_no_more_than_its_window() {
    on_any_kernel(|| {
        let mut lab = Lab::new(config());
        let (mut guest, mut host) = connected_with(&mut lab, |guest| (guest.scale, guest.window) = (Some(0), 3000));
        host.write_all(&bytes(10_000)).unwrap();
        let got: Vec<_> = lab.receive();
        guest.take(&got);
        let more: usize =
            (0..10).flat_map(|_| lab.turn(0, &[])).map(|got| segment(&got.bytes).unwrap().payload.len()).sum();
        assert!(guest.received.len() + more <= 3000, "{} and {more}", guest.received.len());
        guest.until(&mut lab, |guest| guest.received.len() == 10_000);
        assert_eq!(guest.received, bytes(10_000));
    });
}

#[test]
fn a_closed_window_is_probed_and_its_opening_seen() {
    on_any_kernel(|| {
        let mut lab = Lab::new(config());
        let (mut guest, mut host) = connected_with(&mut lab, |guest| guest.window = 0);
        host.write_all(&bytes(1000)).unwrap();
        still(&mut lab);
        for _ in 0..3 {
            lab.seconds(40);
            let probe = segment(&lab.receive()[0]).unwrap();
            assert_eq!((probe.seq, probe.payload.len()), (guest.ack.wrapping_sub(1), 0));
            assert!(guest.acknowledge(&mut lab).is_empty(), "still closed");
        }
        guest.window = 65_535;
        guest.acknowledge(&mut lab);
        guest.until(&mut lab, |guest| guest.received.len() == 1000);
    });
}

#[test]
fn a_window_that_stays_closed_while_probes_are_answered_ends_nothing() {
    on_any_kernel(|| {
        let mut lab = Lab::new(config());
        let (mut guest, mut host) = connected_with(&mut lab, |guest| guest.window = 0);
        host.write_all(&bytes(1000)).unwrap();
        still(&mut lab);
        for _ in 0..40 {
            lab.seconds(40);
            guest.take(&lab.receive());
            guest.acknowledge(&mut lab);
        }
        assert!(!guest.reset, "RFC 9293 section 3.8.6.1: as long as the receiver answers");
        guest.window = 65_535;
        guest.acknowledge(&mut lab);
        guest.until(&mut lab, |guest| guest.received.len() == 1000);
    });
}

#[test]
fn an_acknowledgement_is_within_what_the_guest_expects_while_data_is_sent_again() {
    on_any_kernel(|| {
        let mut lab = Lab::new(config());
        let (mut guest, mut host) = connected(&mut lab);
        let before = guest.ack;
        host.write_all(&bytes(20_000)).unwrap();
        let frames = lab.receive();
        guest.take(&frames);
        assert_eq!(guest.received.len(), 20_000);
        // What the guest says of it is lost, so the first of it comes once more.
        lab.seconds(1);
        assert!(!lab.receive().is_empty());
        let has = std::mem::replace(&mut guest.ack, before);
        let said = guest.send(&mut lab, b"data");
        assert_eq!(said.iter().map(|said| (said.seq, said.ack)).collect::<Vec<_>>(), [(has, guest.seq)]);
        assert_eq!(read(&mut host, 4), b"data");
    });
}

#[test]
fn segments_lost_on_the_way_in_are_sent_again_after_silence() {
    on_any_kernel(|| {
        let mut lab = Lab::new(config());
        let (mut guest, mut host) = connected(&mut lab);
        host.write_all(&bytes(3000)).unwrap();
        assert!(!lab.receive().is_empty(), "and nobody takes it");
        lab.nothing();
        lab.seconds(1);
        guest.until(&mut lab, |guest| guest.received.len() == 3000);
        assert_eq!(guest.received, bytes(3000));
        host.write_all(b"more").unwrap();
        guest.until(&mut lab, |guest| guest.received.ends_with(b"more"));
        assert_eq!(guest.received.len(), 3004);
    });
}

#[test]
fn three_repeated_acknowledgements_have_the_rest_sent_again_at_once() {
    on_any_kernel(|| {
        let mut lab = Lab::new(config());
        let (mut guest, mut host) = connected(&mut lab);
        host.write_all(&bytes(100_000)).unwrap();
        let got = lab.receive();
        guest.take(&got[..2]);
        assert_eq!(guest.received.len(), 2920);
        guest.acknowledge(&mut lab);
        let mut again = Vec::new();
        for _ in 0..3 {
            again = guest.acknowledge(&mut lab);
        }
        assert_eq!(again[0].payload[..], bytes(100_000)[2920..][..again[0].payload.len()]);
        guest.until(&mut lab, |guest| guest.received.len() == 100_000);
        assert!(guest.received == bytes(100_000));
    });
}

#[test]
fn frames_that_are_lost_now_and_then_stop_nothing() {
    on_any_kernel(|| {
        let mut lab = Lab::new(config());
        let (mut guest, mut host) = connected_with(&mut lab, |guest| guest.window = 400);
        let all = bytes(1 << 20);
        host.set_nonblocking(true).unwrap();
        let (mut sent, mut count, mut rounds) = (0, 0u32, 0);
        while guest.received.len() < all.len() {
            rounds += 1;
            assert!(rounds < 20_000, "{} bytes", guest.received.len());
            sent += host.write(&all[sent..]).unwrap_or(0);
            let got = lab.turn(0, &[]);
            let mut frames: Vec<_> = got.iter().flat_map(|got| lab.settle(got)).collect();
            frames.retain(|_| {
                count = count.wrapping_add(1);
                count.wrapping_mul(2_654_435_761) >> 24 > 5
            });
            for frame in &frames {
                guest.take(std::slice::from_ref(frame));
                // Its answer may be lost, too.
                if count % 7 != 0 {
                    let answer = guest.frame(ACK, b"");
                    guest.say(&mut lab, &answer);
                }
            }
            if frames.is_empty() {
                lab.seconds(1);
            }
        }
        assert!(guest.received == all);
    });
}

#[test]
fn a_guest_that_acknowledges_little_of_much_is_sent_as_little_more() {
    on_any_kernel(|| {
        let mut lab = Lab::new(config());
        let (mut guest, mut host) =
            connected_with(&mut lab, |guest| (guest.mss, guest.scale, guest.window) = (Some(88), Some(0), 20_000));
        host.write_all(&bytes(60_000)).unwrap();
        let first = guest.ack;
        let whole = 20_000 / 88 * 88;
        while guest.received.len() < whole {
            let frames = lab.receive();
            assert!(guest.take(&frames) > 0, "{} bytes came", guest.received.len());
        }
        for n in 1..50 {
            let has = std::mem::replace(&mut guest.ack, first.wrapping_add(88 * n));
            let little = guest.frame(ACK, b"");
            guest.ack = has;
            guest.say(&mut lab, &little);
            assert_eq!((guest.received.len(), guest.reset), (whole + 88 * n as usize, false));
        }
        guest.until(&mut lab, |guest| guest.received.len() == 60_000);
        assert!(guest.received == bytes(60_000));
    });
}

#[test]
fn what_repeats_itself_for_what_was_sent_twice_has_nothing_sent_again() {
    on_any_kernel(|| {
        let mut lab = Lab::new(config());
        let (mut guest, mut host) = connected(&mut lab);
        let repeat = |lab: &mut Lab, guest: &mut End| -> usize {
            (0..3).flat_map(|_| guest.acknowledge(lab)).map(|segment| segment.payload.len()).sum()
        };
        host.write_all(&bytes(60_000)).unwrap();
        let mut frames = Vec::<Vec<u8>>::new();
        while frames.iter().filter_map(|frame| segment(frame)).map(|segment| segment.payload.len()).sum::<usize>()
            < 60_000
        {
            frames.extend(lab.receive());
        }
        // The third is lost; all that came after it is sent twice.
        guest.take(&frames[..2]);
        guest.acknowledge(&mut lab);
        let has = guest.ack;
        assert!(repeat(&mut lab, &mut guest) > 0 && guest.received.len() > 2920);
        guest.until(&mut lab, |guest| guest.received.len() == 60_000);
        assert_ne!(guest.ack, has);
        // More is on the way when the guest answers what it had already.
        host.write_all(&bytes(20_000)).unwrap();
        let mut more = Vec::new();
        while more.len() < 20_000usize.div_ceil(1460) {
            more.extend(lab.receive());
        }
        assert_eq!(repeat(&mut lab, &mut guest), 0, "nothing of it is lost");
        // Behind that, what is lost is lost.
        guest.take(&more[..2]);
        guest.acknowledge(&mut lab);
        assert!(repeat(&mut lab, &mut guest) > 0);
        guest.until(&mut lab, |guest| guest.received.len() == 80_000);
    });
}

#[test]
fn a_window_that_was_closed_for_long_delays_nothing_that_is_sent_later() {
    let mut lab = Lab::new(config());
    let (mut guest, mut host) = connected_with(&mut lab, |guest| guest.window = 0);
    host.write_all(&bytes(1000)).unwrap();
    still(&mut lab);
    for _ in 0..8 {
        lab.seconds(40);
        guest.take(&lab.receive());
        guest.acknowledge(&mut lab);
    }
    guest.window = 65_535;
    let lost = guest.frame(ACK, b"");
    assert!(!lab.ask(0, &lost).is_empty());
    lab.seconds(1);
    guest.until(&mut lab, |guest| guest.received.len() == 1000);
}

#[test]
fn an_end_that_a_closed_window_keeps_out_waits_for_as_long_as_the_guest_answers() {
    let mut lab = Lab::new(config());
    let (mut guest, mut host) = connected(&mut lab);
    host.write_all(&bytes(1000)).unwrap();
    drop(host);
    while !guest.fin {
        let frames = lab.receive();
        assert!(guest.take(&frames) > 0, "{} bytes came", guest.received.len());
    }
    assert_eq!(guest.received.len(), 1000);
    let behind_the_data = guest.ack.wrapping_sub(1);
    for _ in 0..40 {
        // It has no room, not even for an end.
        (guest.ack, guest.fin, guest.window) = (behind_the_data, false, 0);
        guest.acknowledge(&mut lab);
        lab.seconds(40);
        guest.take(&lab.receive());
    }
    assert!(!guest.reset, "RFC 9293 section 3.8.6.1: as long as the receiver answers");
    guest.window = 65_535;
    guest.until(&mut lab, |guest| guest.fin);
}

#[test]
fn a_reset_while_data_is_sent_again_is_one_for_a_guest_that_has_it() {
    let mut lab = Lab::new(config());
    let (mut guest, mut host) = connected(&mut lab);
    host.write_all(&bytes(20_000)).unwrap();
    let before = guest.ack;
    guest.take(&lab.receive());
    assert_eq!(guest.received.len(), 20_000);
    let has = std::mem::replace(&mut guest.ack, before);
    // Its acknowledgements are lost, so that the first of it comes once more; then the host gives up.
    lab.seconds(1);
    assert!(!lab.receive().is_empty());
    let unread = guest.frame(ACK | PSH, b"unread");
    lab.send(0, &unread);
    drop(host);
    let reset = lab.receive().iter().filter_map(|frame| segment(frame)).find(|segment| segment.flags & 4 != 0).unwrap();
    assert_eq!(reset.seq, has, "RFC 5961 section 3: only the very number resets");
}
