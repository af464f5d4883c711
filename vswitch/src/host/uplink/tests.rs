//! A real interface, one end of a veth pair whose other end is in a namespace of its own.

use std::{
    io::Write,
    net::UdpSocket,
    process::{Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use sys::{netns::in_netns, packet::Takes, poll::Sleep};
use wire::{Burst, Clock, Context, NicId, Port, Sizes, SystemClock, Wake};

use super::*;

const PATIENCE: Duration = Duration::from_secs(20);
const STATION: [u8; 6] = [2, 0, 0, 0, 0, 0xaa];

/// Two namespaces joined by a veth pair, `up0` in the first, `far0` with 192.0.2.2/24 in the second. Removed when dropped.
struct Link {
    near: String,
    far: String,
}

fn ip(arguments: &[&str]) -> Result<(), String> {
    let output = Command::new("ip").args(arguments).stdin(Stdio::null()).output().map_err(|error| error.to_string())?;
    let error = || format!("ip {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    output.status.success().then_some(()).ok_or_else(error)
}

impl Link {
    fn new(test: &str) -> Option<Link> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = |end| format!("tl-up{end}-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let link = Link { near: name('a'), far: name('b') };
        let Link { near, far } = &link;
        let steps: [&[&str]; 7] = [
            &["netns", "add", near],
            &["netns", "add", far],
            &["-n", near, "link", "add", "up0", "type", "veth", "peer", "name", "far0", "netns", far],
            &["-n", near, "link", "set", "up0", "up"],
            &["-n", far, "addr", "add", "192.0.2.2/24", "dev", "far0"],
            &["-n", far, "link", "set", "far0", "up"],
            &["-n", far, "neigh", "add", "192.0.2.1", "lladdr", "02:00:00:00:00:aa", "dev", "far0"],
        ];
        for step in steps {
            if let Err(error) = ip(step) {
                std::io::stderr().write_all(format!("\nSKIPPED {test}: {error}\n").as_bytes()).unwrap();
                return None;
            }
        }
        Some(link)
    }

    fn port(&self, takes: Takes) -> (UplinkPort, Context) {
        let mut cx = Context::new(Sizes::default()).unwrap();
        cx.add_nic(NicId(0));
        (UplinkPort::new(PacketSocket::open("up0", Some(&self.near), takes).unwrap()), cx)
    }

    /// A datagram from the far end to us, by the interface that has `from`.
    fn send(&self, from: &str, to: &str, size: usize) {
        in_netns(&self.far, || UdpSocket::bind((from, 5000)).unwrap().send_to(&vec![7; size], (to, 9000)).unwrap())
            .unwrap();
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        for name in [&self.near, &self.far] {
            let _ = ip(&["netns", "del", name]);
        }
    }
}

/// Reads until a frame is `wanted`.
fn wait(port: &mut UplinkPort, cx: &mut Context, wanted: impl Fn(&[u8]) -> bool) -> Vec<u8> {
    let clock = SystemClock::new();
    let (mut burst, mut sleep, mut wake) = (Burst::default(), Sleep::default(), Wake::default());
    while clock.now().since(wire::Instant::START) < PATIENCE {
        cx.begin_turn(clock.now());
        port.awake();
        port.receive(cx, &mut burst).unwrap();
        for frame in burst.drain() {
            let mut bytes = vec![0; cx.heads.get(&frame).len()];
            cx.read_all(&frame, &mut bytes).unwrap();
            cx.drop(frame, wire::DropReason::NoDestination);
            if wanted(&bytes) {
                return bytes;
            }
        }
        wake.clear();
        if port.wake(&mut wake) {
            sleep.wait(wake.readable.iter().copied(), Some(Duration::from_millis(100))).unwrap();
        }
    }
    panic!("nothing of what was waited for came");
}

fn is_udp(frame: &[u8]) -> bool {
    frame.get(12..14) == Some(&[8, 0]) && frame.get(23) == Some(&17)
}

#[test]
fn frames_pass_both_ways_and_others_stations_are_left_out() {
    let Some(link) = Link::new("frames_pass_both_ways_and_others_stations_are_left_out") else { return };
    let (mut port, mut cx) = link.port(Takes::Station(STATION));
    ip(&["-n", &link.far, "neigh", "add", "192.0.2.9", "lladdr", "02:00:00:00:00:99", "dev", "far0"]).unwrap();
    link.send("192.0.2.2", "192.0.2.9", 33);
    link.send("192.0.2.2", "192.0.2.1", 1400);
    let frame = wait(&mut port, &mut cx, is_udp);
    assert_eq!(
        (&frame[..6], frame.len(), frame[50]),
        (&STATION[..], 1442, 7),
        "the first that came is the second that was sent"
    );
    let answers = in_netns(&link.far, || UdpSocket::bind(("192.0.2.2", 9000)).unwrap()).unwrap();
    answers.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut answer = frame[6..12].to_vec();
    answer.extend(STATION);
    answer.extend([8, 0, 0x45, 0, 0, 33, 0, 1, 0, 0, 64, 17, 0, 0, 192, 0, 2, 1, 192, 0, 2, 2]);
    answer.extend([0x23, 0x28, 0x23, 0x28, 0, 13, 0, 0]);
    answer.extend(b"hello");
    let mut sum = wire::checksum::Checksum::new();
    sum.add_bytes(&answer[14..34]);
    answer[24..26].copy_from_slice(&sum.finish().to_be_bytes());
    cx.begin_turn(cx.now);
    let mut burst = Burst::default();
    burst.push(cx.originate(wire::Origin::default(), &answer).unwrap()).unwrap();
    port.transmit(&mut cx, &mut burst).unwrap();
    let mut heard = [0; 64];
    assert_eq!(answers.recv(&mut heard).unwrap(), 5);
    assert_eq!(&heard[..5], b"hello");
    assert!(cx.ledger.balances(), "{:?}", cx.ledger);
}

#[test]
fn a_tag_that_the_kernel_took_off_is_put_back() {
    let Some(link) = Link::new("a_tag_that_the_kernel_took_off_is_put_back") else { return };
    let (mut port, mut cx) = link.port(Takes::All);
    let mut far = UplinkPort::new(PacketSocket::open("far0", Some(&link.far), Takes::All).unwrap());
    let mut tagged = STATION.to_vec();
    tagged.extend([2, 0, 0, 0, 0, 1, 0x81, 0, 0x60, 100, 0x88, 0xb5]);
    tagged.extend([7; 300]);
    cx.begin_turn(cx.now);
    let mut burst = Burst::default();
    burst.push(cx.originate(wire::Origin::default(), &tagged).unwrap()).unwrap();
    far.transmit(&mut cx, &mut burst).unwrap();
    // The kernel takes the tag off before a packet socket is given the frame.
    assert_eq!(wait(&mut port, &mut cx, |frame| frame.get(6..12) == Some(&[2, 0, 0, 0, 0, 1])), tagged);
}

#[test]
fn an_interface_that_goes_ends_the_port_with_its_name() {
    let Some(link) = Link::new("an_interface_that_goes_ends_the_port_with_its_name") else { return };
    let (mut port, mut cx) = link.port(Takes::Station(STATION));
    ip(&["-n", &link.near, "link", "del", "up0"]).unwrap();
    let mut burst = Burst::default();
    let clock = SystemClock::new();
    let error = loop {
        assert!(clock.now().since(wire::Instant::START) < PATIENCE);
        cx.begin_turn(clock.now());
        burst.push(cx.originate(wire::Origin::default(), &[2; 60]).unwrap()).unwrap();
        if let Err(error) = port.transmit(&mut cx, &mut burst) {
            break error.to_string();
        }
    };
    assert!(error.contains("uplink up0") && error.contains("removed"), "{error}");
}
