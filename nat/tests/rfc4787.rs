//! RFC 4787 (UDP) over IPv4 and over IPv6: the suite is in `suites/rfc4787.rs`; here is what IPv4 has besides.

#![allow(clippy::duplicate_mod, clippy::unwrap_used, clippy::panic, missing_docs)]

mod common;

macro_rules! family {
    () => {
        use crate::common::v4::*;
    };
}
#[path = "suites/rfc4787.rs"]
mod v4;

macro_rules! family {
    () => {
        use crate::common::v6::*;
    };
}
#[path = "suites/rfc4787.rs"]
mod v6;

use common::v4::*;

/// RFC 4787 REQ-13a | packet, IPv4 | met | A packet that does not fit and may be cut leaves in fragments, in order.
#[test]
fn rfc4787_req13a_what_may_be_cut_leaves_in_fragments() {
    let mut gate = port::Gate::new(nat::PortConfig { mtu: 600, ..port_config(config()) });
    let mut long = udp(ep(GUEST, 4000), ep(SERVER, 9000), &(0..1400).map(|n| n as u8).collect::<Vec<_>>());
    let sum = wire::checksum::update(u16::from_be_bytes([long[24], long[25]]), 0x4000, 0);
    long[20] = 0;
    long[24..26].copy_from_slice(&sum.to_be_bytes());
    let parts: Vec<Vec<u8>> = gate.out(0, &long).into_iter().map(|out| out.frame).collect();
    assert_eq!(parts.len(), 3);
    assert!(parts.iter().all(|part| part.len() <= 614));
    let offsets: Vec<u16> = parts.iter().map(|part| u16::from_be_bytes([part[20], part[21]])).collect();
    assert_eq!(offsets, [0x2000, 0x2000 | 72, 144]);
    assert_eq!(reassemble(&parts)[42..], long[42..]);
}

/// RFC 4787 REQ-13 | packet, IPv4 | met | The DF bit of what passes is kept.
#[test]
fn rfc4787_req13_the_df_bit_is_kept() {
    let mut nat = Packets::new(&config());
    for df in [true, false] {
        let mut frame = udp(ep(GUEST, 4000), ep(PEER, 9999), b"");
        if !df {
            frame[20] = 0;
            let sum = wire::checksum::update(u16::from_be_bytes([frame[24], frame[25]]), 0x4000, 0);
            frame[24..26].copy_from_slice(&sum.to_be_bytes());
        }
        let sent = nat.out(&frame).outward();
        assert_eq!(sent.frame[20] & 0x40 != 0, df);
    }
}
