//! RFC 5508 (ICMP) over IPv4 and over IPv6: the suite is in `suites/rfc5508.rs`; here is what IPv4 has besides.

#![allow(clippy::duplicate_mod, clippy::unwrap_used, clippy::panic, missing_docs)]

mod common;

macro_rules! family {
    () => {
        use crate::common::v4::*;
    };
}
#[path = "suites/rfc5508.rs"]
mod v4;

macro_rules! family {
    () => {
        use crate::common::v6::*;
    };
}
#[path = "suites/rfc5508.rs"]
mod v6;

use common::v4::*;
use nat::Refusal;

/// RFC 5508 REQ-3 | packet, IPv4 | met | Errors that quote a header with a wrong checksum are dropped.
#[test]
fn rfc5508_req3_quoted_headers_are_validated() {
    let mut nat = Packets::new(&config());
    let sent = nat.out(&udp(ep(GUEST, 4000), ep(PEER, 9999), b"data")).outward();
    let mut about = sent.frame.clone();
    about[24] ^= 1;
    assert_eq!(nat.back(&error(ROUTER, OUTSIDE, UNREACHABLE, &about, 8)).refused(), Refusal::BadQuote);
}

/// RFC 5508 REQ-10 | packet, IPv4 | met | Timestamp queries are translated.
#[test]
fn rfc5508_req10_timestamps_pass() {
    let mut nat = Packets::new(&config());
    nat.out(&query(GUEST, SERVER, 13, 5, &[0; 12])).outward();
}
