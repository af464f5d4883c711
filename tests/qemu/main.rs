//! The program with Linux guests in QEMU, from `trunkline up` to frames compared byte for byte.
//!
//! | module | what it shows |
//! | --- | --- |
//! | `networks` | guests talk; VLANs part them and trunks join them; what `show` and `status` say of it |
//! | `restarts` | the daemon is killed or ended under load and comes back, for split and packed rings, from either side |
//! | `lives` | a guest reboots, another is killed amid a transfer: nobody else notices |
//! | `migration` | a guest moves to another QEMU while it is sent frames |
//! | `drivers` | every feature set of QEMU's device passes frames intact |
//!
//! Invariant: frames of tests are told from those that a kernel sends on its own account: IPv6 is off, so counters can be
//! compared exactly. Read first: `lab`, which has what tests are made of.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failing test panics")]

#[path = "../lab/mod.rs"]
mod lab;

mod drivers;
mod lives;
mod migration;
mod networks;
mod restarts;

use lab::frames::{Flow, FrameReport, Proto, Traffic, exchange};
use lab::process::Place;

/// The address of NIC `nic` of guest `guest`.
fn mac(guest: usize, nic: usize) -> String {
    format!("52:54:00:00:{guest:02x}:{nic:02x}")
}

/// Gives an interface an IPv4 address and sets it up; the place sends nothing that it is not asked for, except ARP.
fn address(place: &dyn Place, interface: &str, address: &str) {
    let quiet = "sysctl -q -w net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1";
    // Nor does it ask whether a neighbour is still there, which would be frames that nobody sent.
    let trusting = format!("echo 3600 >/proc/sys/net/ipv4/neigh/{interface}/delay_first_probe_time");
    place.sh(&format!("{quiet} && ip addr add {address} dev {interface} && ip link set {interface} up && {trusting}"));
}

/// Plain frames of the sizes at which drivers and headers have their edges, `count` of each.
fn edges(count: u32) -> Traffic {
    Traffic::plain(&[60, 61, 64, 127, 128, 129, 256, 1000, 1513, 1514], count)
}

/// TCP frames from a bare header to the largest super-frame, `count` of each.
fn super_frames(proto: Proto, count: u32) -> Traffic {
    Traffic { proto, sizes: vec![80, 1514, 3000, 20_000, 65_535], count, seed: 5 }
}

/// Sends the traffic and wants all of it back intact.
#[track_caller]
fn intact(sender: &dyn Place, receiver: &dyn Place, flow: &Flow<'_>, traffic: &Traffic) -> FrameReport {
    let report = exchange(sender, receiver, flow, traffic);
    let way = format!("{} {} to {} {}", sender.name(), flow.from, receiver.name(), flow.to);
    assert!(report.clean, "{way}, {:?} of {:?}: {report:?}", traffic.proto, traffic.sizes);
    report
}

/// Time for the receiver between super-frames: as segments, one of them takes a fifth of a ring.
const SUPER_FRAME_GAP_US: u32 = 4000;

/// Payload of a segment, so that with either version of IP it fits an MTU of 1500.
const MSS: u16 = 1428;

/// Plain frames and super-frames over both versions of IP, all intact.
#[track_caller]
fn everything_intact(sender: &dyn Place, receiver: &dyn Place, flow: &Flow<'_>) {
    intact_up_to(sender, receiver, flow, 65_535);
}

/// The same with super-frames of up to `largest` bytes.
#[track_caller]
fn intact_up_to(sender: &dyn Place, receiver: &dyn Place, flow: &Flow<'_>, largest: usize) {
    intact(sender, receiver, flow, &edges(5));
    let slower = Flow { gap_us: SUPER_FRAME_GAP_US, mss: MSS, ..flow.clone() };
    for proto in [Proto::Tcp4, Proto::Tcp6] {
        let mut traffic = super_frames(proto, 3);
        traffic.sizes.retain(|size| *size <= largest);
        intact(sender, receiver, &slower, &traffic);
    }
}
