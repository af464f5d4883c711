//! Real TAPs between network namespaces of their own: frames, super-frames and segments both ways, bounds, pauses, faults.

use std::{
    fs,
    io::{ErrorKind, Read, Write},
    net::{TcpListener, TcpStream, UdpSocket},
    process::{Command, Stdio},
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
    time::Duration,
};

use sys::{
    GuestMemory, Region,
    memory::Mapping,
    netns::in_netns,
    poll::Sleep,
    tap::{Tap, TapStep},
};
use wire::{
    BURST, Burst, Clock, Context, DropReason, Instant, MAX_FRAME, NicId, Offload, Origin, Port, Sizes, SystemClock,
    Wake,
};

use super::*;

const PATIENCE: Duration = Duration::from_secs(20);

/// Says past the test harness's capture that a test could not run.
fn skip(test: &str, reason: &str) {
    let line = format!("\nSKIPPED {test}: {reason}\n");
    io::stderr().write_all(line.as_bytes()).unwrap();
}

/// A network namespace with one TAP, 192.0.2.`host`/24, and a switch port on it. Removed when dropped, also when the test fails.
struct Site {
    name: String,
    device: TapDevice,
    port: Option<TapPort>,
}

impl Site {
    fn new(test: &str, host: u8) -> Option<Site> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("tl-tap-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        match Command::new("ip").args(["netns", "add", &name]).stdin(Stdio::null()).output() {
            Ok(output) if output.status.success() => {}
            Ok(output) => {
                skip(test, &format!("ip netns add: {}", String::from_utf8_lossy(&output.stderr).trim()));
                return None;
            }
            Err(error) => {
                skip(test, &format!("the program ip (package iproute2) cannot be run: {error}"));
                return None;
            }
        }
        let Tap { device, mut queues } = match Tap::open("tl0", 1, Some(&name)) {
            Ok(tap) => tap,
            Err(error) => {
                let _ = Command::new("ip").args(["netns", "del", &name]).status();
                assert_eq!(error.step, TapStep::Open, "{error}");
                skip(test, &error.to_string());
                return None;
            }
        };
        let port = TapPort::new(&device, queues.remove(0), 0);
        let site = Site { name, device, port: Some(port) };
        // Without IPv6 the kernel sends nothing that it was not asked to.
        site.inside(|| {
            let path = "/proc/sys/net/ipv6/conf/all/disable_ipv6";
            fs::exists(path).unwrap().then(|| fs::write(path, "1").unwrap());
        });
        site.device.set_mac([2, 0, 0, 0, 0, host]).unwrap();
        site.device.set_up(true).unwrap();
        site.ip(&["addr", "add", &format!("192.0.2.{host}/24"), "dev", "tl0"]);
        Some(site)
    }

    fn ip(&self, command: &[&str]) {
        let output = Command::new("ip").args(["-n", &self.name]).args(command).output().unwrap();
        assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        in_netns(&self.name, work).unwrap()
    }

    /// A socket that sends to 192.0.2.9, whose address need not be asked for.
    fn sender(&self) -> UdpSocket {
        self.ip(&["neigh", "replace", "192.0.2.9", "lladdr", "02:00:00:00:00:09", "dev", "tl0"]);
        let socket = self.inside(|| UdpSocket::bind("0.0.0.0:0")).unwrap();
        socket.connect("192.0.2.9:9").unwrap();
        socket
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
    }
}

fn context() -> Context {
    let mut cx = Context::new(Sizes::default()).unwrap();
    cx.add_nic(NicId(0));
    cx.add_nic(NicId(1));
    cx
}

/// What a wire between two ports saw.
#[derive(Default)]
struct Seen {
    longest: usize,
    cx: Option<Context>,
}

/// Passes frames between two ports for as long as `work` runs.
fn wire(mut ports: [TapPort; 2], work: impl FnOnce()) -> Seen {
    let done = AtomicBool::new(false);
    let pass = || {
        let (clock, mut cx, mut longest) = (SystemClock::new(), context(), 0);
        let (mut burst, mut sleep, mut wake) = (Burst::default(), Sleep::default(), Wake::default());
        while !done.load(Ordering::Acquire) {
            let mut frames = 0;
            for (from, to) in [(0, 1), (1, 0)] {
                cx.begin_turn(clock.now());
                cx.nic = NicId(from);
                ports[usize::from(from)].receive(&mut cx, &mut burst).unwrap();
                frames += burst.len();
                longest = burst.iter().map(|frame| cx.heads.get(frame).len()).fold(longest, usize::max);
                cx.nic = NicId(to);
                ports[usize::from(to)].transmit(&mut cx, &mut burst).unwrap();
                assert!(burst.is_empty() && cx.ledger.balances(), "{:?}", cx.ledger);
            }
            if frames == 0 {
                wake.clear();
                if ports.iter_mut().all(|port| port.wake(&mut wake)) {
                    sleep.wait(wake.readable.iter().copied(), Some(Duration::from_millis(100))).unwrap();
                }
                ports.iter_mut().for_each(Port::awake);
            }
        }
        Seen { longest, cx: Some(cx) }
    };
    struct Done<'a>(&'a AtomicBool);
    impl Drop for Done<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Release);
        }
    }
    std::thread::scope(|scope| {
        let passing = scope.spawn(pass);
        let end = Done(&done);
        work();
        drop(end);
        passing.join().unwrap()
    })
}

/// The byte at `at` of what is sent over TCP.
fn pattern(at: usize) -> u8 {
    (at ^ at >> 8 ^ at >> 16) as u8
}

/// Sends `total` bytes over one TCP connection from `a` to `b` and compares them.
fn stream(a: &Site, b: &Site, total: usize) {
    let listener = b.inside(|| TcpListener::bind("192.0.2.2:0")).unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut socket = a.inside(|| TcpStream::connect_timeout(&address, PATIENCE)).unwrap();
            socket.set_write_timeout(Some(PATIENCE)).unwrap();
            let mut chunk = vec![0; 1 << 18];
            for start in (0..total).step_by(chunk.len()) {
                let len = chunk.len().min(total - start);
                chunk.iter_mut().enumerate().for_each(|(at, byte)| *byte = pattern(start + at));
                socket.write_all(&chunk[..len]).unwrap();
            }
        });
        let (mut socket, _) = listener.accept().unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let (mut at, mut chunk) = (0, vec![0; 1 << 18]);
        loop {
            let n = socket.read(&mut chunk).unwrap();
            if n == 0 {
                break;
            }
            let wrong = chunk[..n].iter().enumerate().position(|(i, byte)| *byte != pattern(at + i));
            assert_eq!(wrong, None, "of {n} bytes at {at}");
            at += n;
        }
        assert_eq!(at, total);
    });
}

fn two(test: &str) -> Option<(Site, Site, [TapPort; 2])> {
    let (mut a, mut b) = (Site::new(test, 1)?, Site::new(test, 2)?);
    let ports = [a.port.take()?, b.port.take()?];
    Some((a, b, ports))
}

#[test]
fn datagrams_of_all_sizes_pass_both_ways() {
    let Some((a, b, ports)) = two("datagrams_of_all_sizes_pass_both_ways") else { return };
    for site in [&a, &b] {
        site.device.set_mtu(65_521).unwrap();
    }
    let seen = wire(ports, || {
        let here = a.inside(|| UdpSocket::bind("192.0.2.1:0")).unwrap();
        let there = b.inside(|| UdpSocket::bind("192.0.2.2:0")).unwrap();
        here.connect(there.local_addr().unwrap()).unwrap();
        there.connect(here.local_addr().unwrap()).unwrap();
        for socket in [&here, &there] {
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
        }
        let mut buffer = vec![0; 70_000];
        for len in (0..300).chain([1472, 1473, 4096, 9000, 32_768, 65_000, 65_493]) {
            let sent: Vec<u8> = (0..len).map(pattern).collect();
            for (from, to) in [(&here, &there), (&there, &here)] {
                from.send(&sent).unwrap();
                let n = to.recv(&mut buffer).unwrap();
                assert!(buffer[..n] == sent, "{n} bytes of {len}");
            }
        }
    });
    let cx = seen.cx.unwrap();
    let counters = [0, 1].map(|nic| cx.counters(NicId(nic)).unwrap().clone());
    assert_eq!(seen.longest, 65_521 + 14);
    assert_eq!((counters[0].rx_frames, counters[0].rx_bytes), (counters[1].tx_frames, counters[1].tx_bytes));
    assert_eq!((cx.ledger.dropped, cx.ledger.copied), (0, 0));
}

#[test]
fn super_frames_pass_as_they_are() {
    let Some((a, b, ports)) = two("super_frames_pass_as_they_are") else { return };
    let seen = wire(ports, || stream(&a, &b, 64 << 20));
    assert!(seen.longest > 30_000, "the longest frame had {} bytes", seen.longest);
    let cx = seen.cx.unwrap();
    assert_eq!((cx.ledger.copied, cx.ledger.dropped), (0, 0), "{:?}", cx.ledger);
}

#[test]
fn what_a_tap_does_not_accept_is_cut_and_summed() {
    for accepts in [Accepts::NONE, Accepts::CSUM] {
        let Some((a, b, mut ports)) = two("what_a_tap_does_not_accept_is_cut_and_summed") else { return };
        for port in &mut ports {
            port.accepts = accepts;
        }
        let seen = wire(ports, || stream(&a, &b, 8 << 20));
        let cx = seen.cx.unwrap();
        assert!(seen.longest > 1514 && cx.ledger.copied > 1000, "{} {:?}", seen.longest, cx.ledger);
    }
}

#[test]
fn a_burst_ends_at_its_frames_and_at_its_bytes() {
    let Some(mut site) = Site::new("a_burst_ends_at_its_frames_and_at_its_bytes", 1) else { return };
    site.device.set_mtu(65_521).unwrap();
    let (mut cx, mut burst, mut wake) = (context(), Burst::default(), Wake::default());
    let (sender, mut port) = (site.sender(), site.port.take().unwrap());
    for n in 0..BURST + 1 {
        sender.send(&[n as u8; 100]).unwrap();
    }
    for expected in [BURST, 1] {
        cx.begin_turn(Instant::START);
        port.receive(&mut cx, &mut burst).unwrap();
        assert_eq!(burst.drain().count(), expected);
        assert_eq!(port.wake(&mut wake), expected < BURST);
    }
    for _ in 0..6 {
        sender.send(&[7; 60_000]).unwrap();
    }
    port.awake();
    for expected in [4, 2] {
        cx.begin_turn(Instant::START);
        port.receive(&mut cx, &mut burst).unwrap();
        for frame in burst.iter() {
            let mut bytes = vec![0; MAX_FRAME];
            assert_eq!(cx.read_all(frame, &mut bytes), Some(14 + 28 + 60_000));
            assert_eq!(bytes[42..14 + 28 + 60_000], [7; 60_000]);
        }
        assert_eq!(burst.drain().count(), expected);
    }
    let counters = cx.counters(NicId(0)).unwrap();
    assert_eq!(counters.rx_frames, BURST as u64 + 7);
    assert_eq!(counters.rx_bytes, (BURST as u64 + 1) * 142 + 6 * 60_042);
}

#[test]
fn an_empty_queue_is_left_alone_for_a_while() {
    let Some(mut site) = Site::new("an_empty_queue_is_left_alone_for_a_while", 1) else { return };
    let (mut cx, mut burst) = (context(), Burst::default());
    let (sender, mut port) = (site.sender(), site.port.take().unwrap());
    let mut at = |port: &mut TapPort, micros: u64| {
        cx.begin_turn(Instant::from_nanos(micros * 1000));
        port.receive(&mut cx, &mut burst).unwrap();
        burst.drain().count()
    };
    assert_eq!(at(&mut port, 1000), 0);
    sender.send(b"one").unwrap();
    assert_eq!((at(&mut port, 1019), at(&mut port, 1020)), (0, 1));
    sender.send(b"two").unwrap();
    // A queue that brought frames is looked at again soon.
    assert_eq!((at(&mut port, 1039), at(&mut port, 1040)), (0, 1));
    for (empty, next) in [(1060, 1100), (1100, 1180), (1180, 1280), (1280, 1380)] {
        assert_eq!(at(&mut port, empty), 0);
        assert_eq!(port.look_at, Instant::from_nanos(next * 1000));
    }
    sender.send(b"three").unwrap();
    assert_eq!(at(&mut port, 1379), 0);
    port.awake();
    assert_eq!(at(&mut port, 1379), 1);
}

#[test]
fn refusals_are_drops_and_only_the_end_of_the_device_ends_the_port() {
    let Some(mut site) = Site::new("refusals_are_drops_and_only_the_end_of_the_device_ends_the_port", 1) else {
        return;
    };
    let (mut cx, mut burst) = (context(), Burst::default());
    let mut port = site.port.take().unwrap();
    let mut send = |port: &mut TapPort, cx: &mut Context, offload: Offload| {
        cx.begin_turn(Instant::from_nanos(1_000_000));
        let frame = cx.originate(Origin::default(), &[2; 60]).unwrap();
        cx.heads.get_mut(&frame).offload = offload;
        burst.push(frame).unwrap();
        let sent = port.transmit(cx, &mut burst);
        assert!(burst.is_empty() && cx.ledger.balances());
        sent
    };
    let drops = |cx: &Context| cx.counters(NicId(0)).unwrap().drops(DropReason::DeviceError);
    send(&mut port, &mut cx, Offload::NONE).unwrap();
    assert_eq!((drops(&cx), cx.ledger.transmitted), (0, 1));
    let contradictory = Offload::new(wire::Gso::None, 0, 0, 60, 16);
    send(&mut port, &mut cx, contradictory).unwrap();
    assert_eq!(drops(&cx), 1, "a checksum past the end");
    site.device.set_up(false).unwrap();
    send(&mut port, &mut cx, Offload::NONE).unwrap();
    assert_eq!(drops(&cx), 2, "down");
    port.receive(&mut cx, &mut Burst::default()).unwrap();
    site.ip(&["link", "del", "tl0"]);
    let error = send(&mut port, &mut cx, Offload::NONE).unwrap_err();
    assert_eq!(drops(&cx), 3, "gone");
    assert!(error.to_string().starts_with("TAP tl0: the device was removed"), "{error}");
    port.awake();
    assert_eq!(port.receive(&mut cx, &mut Burst::default()).unwrap_err().kind(), error.kind());
}

#[test]
fn a_body_that_is_gone_is_not_sent() {
    let Some(mut site) = Site::new("a_body_that_is_gone_is_not_sent", 1) else { return };
    let (mut cx, mut burst, mut port) = (context(), Burst::default(), site.port.take().unwrap());
    let region = Region::new(0, 4096, 0, Mapping::anonymous(4096).unwrap().into(), 0).unwrap();
    let id = cx.arena.insert(GuestMemory::new(vec![region], None).unwrap().into());
    burst.push(cx.originate(Origin::default(), &[2; 600]).unwrap()).unwrap();
    // Letting go of any memory makes everything stale that was lent before.
    cx.arena.remove(id);
    port.transmit(&mut cx, &mut burst).unwrap();
    assert_eq!(cx.counters(NicId(0)).unwrap().all_drops().collect::<Vec<_>>(), [(DropReason::Stale, 1)]);
}

#[test]
fn a_turn_too_small_for_one_frame_is_an_error() {
    let Some(mut site) = Site::new("a_turn_too_small_for_one_frame_is_an_error", 1) else { return };
    let mut cx = Context::new(Sizes { heads: 4, pieces: 4, pool: 4096 }).unwrap();
    cx.begin_turn(Instant::START);
    let error = site.port.take().unwrap().receive(&mut cx, &mut Burst::default()).unwrap_err();
    assert!(error.kind() == ErrorKind::OutOfMemory && error.to_string().contains("TAP tl0"), "{error}");
}
