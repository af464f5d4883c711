//! Every feature set of QEMU's virtio-net device, on a TAP of the kernel and on a guest with another feature set.
//!
//! One boot serves them all: a guest has one NIC per feature set, each on a network of its own, with a TAP in a namespace
//! and a NIC of a second guest that has the feature sets in another order.

use super::lab::daemon::Daemon;
use super::lab::frames::{Flow, Proto, Vlan};
use super::lab::iperf::{Iperf, iperf};
use super::lab::netns::NetNs;
use super::lab::process::Place;
use super::lab::qemu::{GuestSpec, NicSpec, Qemu};
use super::lab::{Lab, require, skip};
use super::{MSS, SUPER_FRAME_GAP_US, address, edges, intact, intact_up_to, mac, super_frames};
use std::time::Duration;

/// A NIC's feature set.
#[derive(Debug, Clone, Copy)]
struct Features {
    packed: bool,
    mrg_rxbuf: bool,
    queues: u16,
    properties: &'static str,
}

const NO_OFFLOADS: &str = "csum=off,gso=off,host_tso4=off,host_tso6=off,host_ufo=off,host_ecn=off,\
                           guest_csum=off,guest_tso4=off,guest_tso6=off,guest_ufo=off,guest_ecn=off";
const CHECKSUM_ONLY: &str = "gso=off,host_tso4=off,host_tso6=off,host_ufo=off,host_ecn=off,\
                             guest_tso4=off,guest_tso6=off,guest_ufo=off,guest_ecn=off";
const DIRECT: &str = "indirect_desc=off";
const FLAGS: &str = "event_idx=off";
const DIRECT_FLAGS: &str = "indirect_desc=off,event_idx=off";
const LARGE_RINGS: &str = "rx_queue_size=1024,tx_queue_size=1024";

impl Features {
    /// The driver cuts super-frames into segments before it sends them.
    fn cuts(&self) -> bool {
        self.properties.contains("host_tso4=off")
    }

    /// Each receive buffer is a chain that takes more than a sixteenth of the ring: a burst of segments does not fit.
    fn receives_little(&self) -> bool {
        let whole = !self.properties.contains("guest_tso4=off");
        whole && !self.mrg_rxbuf && self.properties.contains("indirect_desc=off")
    }
}

/// The largest super-frame that arrives in the buffers of `to`, however fast `from` sends it.
fn largest(from: Option<&Features>, to: Option<&Features>) -> usize {
    let segments = from.is_some_and(Features::cuts) && to.is_some_and(Features::receives_little);
    if segments { 3000 } else { 65_535 }
}

const fn split(properties: &'static str) -> Features {
    Features { packed: false, mrg_rxbuf: true, queues: 1, properties }
}

const fn packed(properties: &'static str) -> Features {
    Features { packed: true, ..split(properties) }
}

const fn unmerged(features: Features) -> Features {
    Features { mrg_rxbuf: false, ..features }
}

const fn pair(features: Features) -> Features {
    Features { queues: 2, ..features }
}

#[test]
fn each_driver_feature_passes_frames_intact() {
    let lab = require!(Lab::new());
    pass_frames_intact(
        &lab,
        &[
            split(""),
            packed(""),
            unmerged(split("")),
            unmerged(packed("")),
            pair(split("")),
            pair(packed("")),
            split(NO_OFFLOADS),
            unmerged(packed(NO_OFFLOADS)),
            split(DIRECT_FLAGS),
            packed(DIRECT_FLAGS),
        ],
    );
}

#[test]
fn combinations_of_driver_features_pass_frames_intact() {
    if std::env::var_os("TRUNKLINE_SLOW").is_none() {
        skip!("it takes minutes; set TRUNKLINE_SLOW=1 to run it");
    }
    let lab = require!(Lab::new());
    let properties = [CHECKSUM_ONLY, NO_OFFLOADS, DIRECT, FLAGS, DIRECT_FLAGS, LARGE_RINGS];
    let shapes: [fn(Features) -> Features; 3] = [|features| features, unmerged, |features| pair(unmerged(features))];
    for shape in shapes {
        let sets: Vec<Features> = properties.iter().flat_map(|p| [shape(split(p)), shape(packed(p))]).collect();
        pass_frames_intact(&lab, &sets);
    }
}

fn pass_frames_intact(lab: &Lab, sets: &[Features]) {
    let x = require!(NetNs::new(lab, "x"));
    let daemon = Daemon::start(lab, &configuration(sets, x.netns_name()));
    let boot = |name: &str, guest: usize, order: &[Features]| {
        let nic = |(index, set): (usize, &Features)| NicSpec {
            packed: set.packed,
            mrg_rxbuf: set.mrg_rxbuf,
            queues: set.queues,
            properties: set.properties.to_owned(),
            ..NicSpec::new(lab.path(&format!("{name}{index}.sock")), &mac(guest, index))
        };
        // Receive buffers that cannot be merged are of 64 KiB each.
        let spec =
            GuestSpec { mem_mib: 512, cpus: 2, ..GuestSpec::new(name, order.iter().enumerate().map(nic).collect()) };
        Qemu::boot(lab, spec)
    };
    let a = require!(boot("a", 1, sets));
    let b = require!(boot("b", 2, &other_order(sets)));
    for index in 0..sets.len() {
        address(&a, &format!("eth{index}"), &format!("10.0.{index}.1/24"));
        address(&b, &format!("eth{index}"), &format!("10.0.{index}.2/24"));
        address(&x, &format!("tap{index}"), &format!("10.0.{index}.3/24"));
    }
    for (index, (set, other)) in sets.iter().zip(other_order(sets)).enumerate() {
        eprintln!("NIC {index}: {set:?}, then to {other:?}");
        let (eth, tap) = (format!("eth{index}"), format!("tap{index}"));
        passes_both_ways(&a, (&eth, &mac(1, index), Some(set)), &x, (&tap, &x.mac(&tap), None));
        passes_both_ways(&a, (&eth, &mac(1, index), Some(set)), &b, (&eth, &mac(2, index), Some(&other)));
        if set.queues > 1 {
            uses_every_queue(&a, &b, index);
        }
        assert_eq!(daemon.port(&format!("a/{index}"))["state"], "up", "{}", daemon.log());
    }
}

/// The same sets for the second guest: neighbours differ in as much as possible.
fn other_order(sets: &[Features]) -> Vec<Features> {
    let middle = sets.len() / 2;
    sets.iter().cycle().skip(middle + 1).take(sets.len()).copied().collect()
}

fn configuration(sets: &[Features], netns: &str) -> String {
    let networks: String = (0..sets.len()).map(|index| format!("[networks.n{index}]\n")).collect();
    let guest = |name: &str, order: &[Features]| {
        let port = |(index, set): (usize, &Features)| {
            let queues = set.queues;
            format!("  {{ network = \"n{index}\", socket = \"$DIR/{name}{index}.sock\", queues = {queues} }},\n")
        };
        let ports: String = order.iter().enumerate().map(port).collect();
        format!("[guests.{name}]\nports = [\n{ports}]\n")
    };
    let tap = |index| {
        format!("  {{ network = \"n{index}\", attach = \"tap\", tap = \"tap{index}\", netns = \"{netns}\" }},\n")
    };
    let taps: String = (0..sets.len()).map(tap).collect();
    format!("{networks}{}{}[guests.x]\nports = [\n{taps}]\n", guest("a", sets), guest("b", &other_order(sets)))
}

/// An interface: its name, its address, and what its driver was given.
type At<'a> = (&'a str, &'a str, Option<&'a Features>);

/// Plain frames, tagged ones and super-frames, from one interface to another and back.
fn passes_both_ways(a: &dyn Place, at_a: At<'_>, b: &dyn Place, at_b: At<'_>) {
    for (from, (interface, _, sends), to, (there, dst, receives)) in [(a, at_a, b, at_b), (b, at_b, a, at_a)] {
        let mut flow = Flow { from: interface, to: there, ..Flow::to_mac(dst) };
        let largest = largest(sends, receives);
        let mut largest_tagged = largest;
        if receives.is_some_and(Features::receives_little) {
            flow.gap_us = SUPER_FRAME_GAP_US;
            // With its tag, the longest frame is longer than Linux hands to a device whole: it is cut before it is sent.
            largest_tagged = largest.min(20_000);
        }
        intact_up_to(from, to, &flow, largest);
        let tagged =
            Flow { send_vlan: Vlan::Id(7), receive_vlan: Vlan::Id(7), gap_us: SUPER_FRAME_GAP_US, mss: MSS, ..flow };
        intact(from, to, &tagged, &edges(1));
        let mut traffic = super_frames(Proto::Tcp4, 2);
        traffic.sizes.retain(|size| *size <= largest_tagged);
        intact(from, to, &tagged, &traffic);
    }
}

/// The guest's driver uses both queue pairs; frames from either processor, and flows dealt to both, arrive.
fn uses_every_queue(a: &Qemu, b: &Qemu, index: usize) {
    let eth = format!("eth{index}");
    let queues = a.sh(&format!("ls -d /sys/class/net/{eth}/queues/rx-* | wc -l"));
    assert_eq!(queues.trim(), "2");
    for cpu in 0..2 {
        // The driver has bound its transmit queues to the processors.
        let ping = format!("taskset -c {cpu} ping -c 20 -i 0.01 -W 2 10.0.{index}.2");
        let done = a.run(&ping, Duration::from_secs(20));
        assert!(done.ok() && done.output.contains(" 0% packet loss"), "CPU {cpu}: {}", done.output);
    }
    for reverse in [false, true] {
        let tcp = Iperf { seconds: 1, streams: 8, reverse, ..Iperf::default() };
        let tcp = iperf(b, a, &format!("10.0.{index}.2"), &tcp).expect("TCP");
        assert!(tcp.bits_per_second > 5e6, "{tcp:?}");
    }
}
