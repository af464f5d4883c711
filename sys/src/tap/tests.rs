//! TAPs in network namespaces of their own: frames, headers, queues, settings, and what errors say.

use std::io::{ErrorKind, Read, Write};
use std::time::{Duration, Instant};

use super::*;
use crate::testing::{Namespace, eventually, skip};

/// Opens a TAP in the test's namespace, or says aloud why it cannot.
fn open(test: &str, namespace: &Namespace, name: &str, queues: u16) -> Option<Tap> {
    match Tap::open(name, queues, Some(&namespace.name)) {
        Ok(tap) => Some(tap),
        Err(error) if matches!(error.step, TapStep::Open) => {
            skip(test, &error.to_string());
            None
        }
        Err(error) => panic!("{error}"),
    }
}

fn read_frame(queue: &TapQueue, buf: &mut [u8]) -> io::Result<usize> {
    (&queue.file).read(buf)
}

/// The next frame whose EtherType is `ether_type`, within a bounded time; the header is not checked.
fn next_frame(queues: &[TapQueue], ether_type: [u8; 2]) -> Vec<u8> {
    let mut buf = vec![0; 70_000];
    let deadline = Instant::now() + Duration::from_secs(10);
    while Instant::now() < deadline {
        for queue in queues {
            match read_frame(queue, &mut buf) {
                Ok(len) if buf[HEADER_LEN + 12..HEADER_LEN + 14] == ether_type => return buf[..len].to_vec(),
                Ok(_) => {}
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
            }
        }
        std::thread::yield_now();
    }
    panic!("no frame of type {ether_type:x?} came");
}

/// A broadcast frame of type 0x88b5 (local experiments), with an empty virtio-net header before it.
fn frame() -> Vec<u8> {
    let mut frame = vec![0; HEADER_LEN];
    frame.extend([0xff; 6].into_iter().chain([2, 0, 0, 0, 0, 9]).chain([0x88, 0xb5]).chain([7; 46]));
    frame
}

#[test]
fn frames_pass_with_a_header_of_12_bytes() {
    const TEST: &str = "frames_pass_with_a_header_of_12_bytes";
    let Some(namespace) = Namespace::new(TEST) else { return };
    let Some(Tap { device, queues }) = open(TEST, &namespace, "tl0", 1) else { return };
    device.set_mac([2, 0, 0, 0, 0, 1]).unwrap();
    device.set_mtu(9000).unwrap();
    device.set_up(true).unwrap();
    assert_eq!((device.name(), device.mtu().unwrap(), queues.len()), ("tl0", 9000, 1));
    assert!(device.index().unwrap() > 0 && device.offloads().checksum() && device.offloads().tcp_segmentation());
    namespace.run(&["ip", "addr", "add", "192.0.2.1/24", "dev", "tl0"]);
    namespace.run(&["ip", "neigh", "add", "192.0.2.2", "lladdr", "02:00:00:00:00:02", "dev", "tl0"]);
    in_netns(&namespace.name, || {
        let socket = std::net::UdpSocket::bind("192.0.2.1:0").unwrap();
        socket.send_to(b"to the wire", "192.0.2.2:9").unwrap();
    })
    .unwrap();
    let sent = next_frame(&queues, [8, 0]);
    assert_eq!(&sent[HEADER_LEN..HEADER_LEN + 12], [2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1]);
    assert_eq!((&sent[sent.len() - 11..], sent.len()), (&b"to the wire"[..], HEADER_LEN + 14 + 20 + 8 + 11));
    // The UDP checksum is owed: flags NEEDS_CSUM, checksum start and offset in little-endian.
    assert_eq!((sent[0], &sent[6..10]), (1, &[34, 0, 6, 0][..]));
    assert_eq!((&queues[0].file).write(&frame()).unwrap(), frame().len());
    let received = namespace.run(&["ip", "-s", "-o", "link", "show", "tl0"]);
    let counters = received.split("RX:").nth(1).unwrap();
    assert!(counters.split_whitespace().any(|word| word == "60"), "{received}");
}

#[test]
fn queues_come_and_go_one_by_one() {
    const TEST: &str = "queues_come_and_go_one_by_one";
    let Some(namespace) = Namespace::new(TEST) else { return };
    let Some(Tap { device, mut queues }) = open(TEST, &namespace, "tlq%d", 3) else { return };
    assert_eq!((device.name(), queues.len()), ("tlq0", 3));
    for queue in &queues {
        queue.set_attached(false).unwrap();
        assert_eq!(queue.set_attached(false).unwrap_err().kind(), ErrorKind::InvalidInput);
    }
    queues[1].set_attached(true).unwrap();
    device.set_queue_len(256).unwrap();
    device.set_up(true).unwrap();
    assert!(!next_frame(&queues[1..2], [0x86, 0xdd]).is_empty());
    queues.clear();
    eventually("the end of the device", || device.index().is_err());
    assert_eq!(device.mtu().unwrap_err().step, TapStep::Look);
    assert_eq!(device.set_up(false).unwrap_err().source.raw_os_error(), Some(libc::ENODEV));
}

#[test]
fn errors_say_what_is_missing_and_what_to_do() {
    const TEST: &str = "errors_say_what_is_missing_and_what_to_do";
    for name in ["", ".", "..", "sixteen-bytes-xx", "a/b", "a b", "a:b"] {
        let error = Tap::open(name, 1, None).unwrap_err();
        assert_eq!((error.step, error.kind()), (TapStep::Name, ErrorKind::InvalidInput), "{name}");
    }
    let error = Tap::open("tl0", 1, Some("trunkline-none")).unwrap_err();
    assert_eq!((error.step, error.kind()), (TapStep::Namespace, ErrorKind::NotFound));
    assert!(error.to_string().contains("ip netns add trunkline-none"), "{error}");
    let Some(namespace) = Namespace::new(TEST) else { return };
    let Some(tap) = open(TEST, &namespace, "tl0", 1) else { return };
    let busy = io::Error::from(Tap::open("tl0", 1, Some(&namespace.name)).unwrap_err());
    assert_eq!(busy.kind(), ErrorKind::ResourceBusy);
    let text = busy.to_string();
    assert!(text.starts_with(&format!("TAP tl0 in network namespace {}: create", namespace.name)), "{text}");
    assert!(text.ends_with("another program has tl0 open: end it, or choose another name"), "{text}");
    assert_eq!(tap.device.set_mtu(67).unwrap_err().step, TapStep::Mtu);
    assert!(tap.device.set_mtu(u32::MAX).unwrap_err().to_string().contains("68 to 65521"));
    assert!(tap.device.set_mac([1, 0, 0, 0, 0, 1]).unwrap_err().to_string().contains("unicast"));
    assert!(Tap::open("lo", 1, Some(&namespace.name)).unwrap_err().advice().contains("no TAP"));
}
