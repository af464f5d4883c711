//! Where rings start after somebody's death, and the control queue: tests in which a driver is at work.

use sys::{Room, arena::Arena, packed::PackedMemory, split::SplitMemory};

use super::*;
use crate::{
    virtqueue::{
        Ring,
        chain::Batch,
        driver::{Buffer, DriverQueue, DriverSetup},
    },
    with_ring,
};

#[test]
fn a_packed_ring_has_its_wrap_counters_in_the_base() {
    let packed = common().with(Features::RING_PACKED);
    let cases = [(0x8000, 0x8000_8000), (0x8005_8007, 0x8005_8005), (0x0003_8001, 0x0003_0003), (0, 0x8000_8000)];
    for (named, starts) in cases {
        let (mut bench, guest) = (Bench::new(Device::default()), Guest::new());
        bench.send_all(enable_and_start(&guest, packed, named));
        assert_eq!(bench.lane(0).rx.as_ref().unwrap().base(), starts, "{named:#x}");
        assert_eq!(bench.reply(state(code::GET_VRING_BASE, 0, 0))[4..], u32::to_ne_bytes(starts));
    }
    let (mut bench, guest) = (Bench::new(Device::default()), Guest::new());
    let [descriptors, driver, device] = areas(0);
    let ring = PackedMemory::new(guest.memory(), ENTRIES, descriptors, driver, device).unwrap();
    ring.set_used(5, PackedMemory::used_word(5, 0, true));
    bench.send_all(enable_and_start(&guest, packed, 0));
    assert_eq!(bench.lane(0).rx.as_ref().unwrap().base(), 0, "a ring that was used may stand at 0 in its second lap");
    let (mut bench, guest) = (Bench::new(Device::default()), Guest::new());
    let mut messages = enable_and_start(&guest, packed, 64);
    messages.truncate(7);
    bench.send_all(messages);
    assert!(bench.reason(bell(code::SET_VRING_KICK, 0, None)).starts_with("ring 0: "));
}

#[test]
fn a_split_ring_that_is_said_to_start_at_0_goes_on_where_it_was_used() {
    // Named, available, used; starts.
    let cases =
        [(0, 0, 0, 0), (0, 300, 290, 290), (0, 3, 65530, 65530), (0, 300, 17, 0), (0, 5, 9, 0), (7, 300, 290, 7)];
    for (named, available, used, starts) in cases {
        let (mut bench, guest) = (Bench::new(Device::default()), Guest::new());
        let [descriptors, driver, device] = areas(0);
        let ring = SplitMemory::new(guest.memory(), ENTRIES, descriptors, driver, device).unwrap();
        ring.set_avail_index(available);
        ring.set_used_index(used);
        bench.send_all(enable_and_start(&guest, common(), named));
        assert_eq!(bench.lane(0).rx.as_ref().unwrap().base(), starts, "{named} {available} {used}");
    }
}

/// A driver's receive ring of two buffers, one of which the device uses.
fn use_one(bench: &mut Bench, guest: &Guest, features: Features) -> u32 {
    let [descriptors, driver, device] = areas(0);
    let memory = guest.memory();
    let setup =
        DriverSetup { memory: memory.clone(), features, size: ENTRIES, descriptors, driver, device, tables: None };
    let mut queue = DriverQueue::new(&setup).unwrap();
    for n in 0..2 {
        queue.add(&[], &[Buffer { guest: 0x20_0000 + n * 2048, len: 2048 }]).unwrap();
    }
    let _ = queue.publish();
    let mut arena = Arena::new(1).unwrap();
    let lane = bench.away.iter_mut().find(|lane| lane.index == 0).unwrap();
    let map = arena.insert(lane.memory.clone());
    let map = arena.map(map).unwrap();
    let rx = lane.rx.as_mut().unwrap();
    let mut batch: Batch<Room> = Batch::default();
    with_ring!(&mut rx.ring, ring => {
        ring.take(&map, &mut batch, 1).unwrap();
        ring.complete(batch.chains[0], 100);
        ring.publish();
    });
    rx.base()
}

#[test]
fn a_packed_ring_goes_on_where_its_journal_says() {
    let packed = common().with(Features::RING_PACKED);
    let dir = tempfile::tempdir().unwrap();
    let device = Device { journal: Some(dir.path().join("port")), ..Device::default() };
    let (mut bench, guest) = running(device.clone(), packed);
    // The base a front end names that has started no ring before.
    let begin = 0x8000_8000;
    bench.send_all(vec![plain(code::RESET_DEVICE)]);
    bench.send_all(enable_and_start(&guest, packed, begin));
    let base = use_one(&mut bench, &guest, packed);
    assert_eq!(base, 0x8001_8001);
    drop(bench);
    let mut bench = Bench::new(device.clone());
    bench.send_all(enable_and_start(&guest, packed, begin));
    assert_eq!(bench.lane(0).rx.as_ref().unwrap().base(), base, "a front end that does not know is corrected");
    bench.send_all(vec![state(code::GET_VRING_BASE, 0, 0), state(code::GET_VRING_BASE, 1, 0)]);
    let mut bench = Bench::new(device);
    bench.send_all(enable_and_start(&guest, packed, begin));
    assert_eq!(bench.lane(0).rx.as_ref().unwrap().base(), begin, "one that was told is believed");
}

#[test]
fn a_packed_ring_goes_on_where_the_inflight_buffer_says() {
    let packed = common().with(Features::RING_PACKED);
    let guest = Guest::new();
    let mut bench = Bench::new(Device::default());
    let spec = |size: u64, queues: u16, entries: u16| {
        [words(&[size, 0]), [queues.to_ne_bytes(), entries.to_ne_bytes(), [0; 2], [0; 2]].concat()].concat()
    };
    let Step::Reply(reply) = bench.send(Message::new(code::GET_INFLIGHT_FD, spec(0, 2, ENTRIES), vec![])) else {
        panic!()
    };
    let size = u64::from_ne_bytes(reply.bytes[HEADER_BYTES..][..8].try_into().unwrap());
    assert_eq!(size, 2 * (32 + 32 * u64::from(ENTRIES)).next_multiple_of(64));
    let buffer = reply.fd.unwrap();
    bench.send_all(enable_and_start(&guest, packed, 0x8000_8000));
    let base = use_one(&mut bench, &guest, packed);
    drop(bench);
    let mut bench = Bench::new(Device::default());
    let mut messages = enable_and_start(&guest, packed, 0x8000_8000);
    let adopt = Message::new(code::SET_INFLIGHT_FD, spec(size, 2, ENTRIES), vec![buffer.try_clone().unwrap()]);
    messages.insert(1, adopt);
    bench.send_all(messages);
    assert_eq!(bench.lane(0).rx.as_ref().unwrap().base(), base);
    let small = Message::new(code::SET_INFLIGHT_FD, spec(64, 2, ENTRIES), vec![buffer.try_clone().unwrap()]);
    assert!(bench.reason(small).starts_with("inflight buffer for 2 queues of 64 entries in 64 bytes"));
    assert!(bench.reason(Message::new(code::GET_INFLIGHT_FD, spec(0, 9, ENTRIES), vec![])).contains("3 rings"));
}

#[test]
fn the_control_queue_is_served_here() {
    let features =
        [Features::CTRL_VQ, Features::CTRL_RX, Features::CTRL_VLAN].into_iter().fold(common(), Features::with);
    let (mut bench, guest) = running(Device::default(), features);
    let kick = EventFd::new().unwrap();
    bench.send_all(ring_start(2, 0, &kick));
    assert!(bench.control.is_none(), "not enabled yet");
    bench.send_all(vec![state(code::SET_VRING_ENABLE, 2, 1)]);
    assert!(bench.control.is_some());
    assert_eq!(bench.filters.last().unwrap().vlans, Some(Default::default()));
    let [descriptors, driver, device] = areas(2);
    let memory = guest.memory();
    let setup =
        DriverSetup { memory: memory.clone(), features, size: ENTRIES, descriptors, driver, device, tables: None };
    let mut queue = DriverQueue::new(&setup).unwrap();
    let mut arena = Arena::new(1).unwrap();
    let map = arena.insert(memory);
    let map = arena.map(map).unwrap();
    let (command, answer) = (0x20_0000, 0x20_1000);
    for (bytes, expected) in [(&[0u8, 0, 0][..], 0u8), (&[2, 0, 5, 0], 0), (&[9, 0], 1)] {
        map.write(map.room(command, 16).unwrap(), bytes);
        map.write(map.room(answer, 1).unwrap(), &[7]);
        let data = Buffer { guest: command, len: bytes.len() as u32 };
        queue.add(&[data], &[Buffer { guest: answer, len: 1 }]).unwrap();
        let _ = queue.publish();
        assert!(!bench.session.control().unwrap());
        assert_eq!(queue.take_used().unwrap().unwrap().written, 1);
        let mut ack = [9];
        map.read(map.lend(answer, 1).unwrap(), &mut ack);
        assert_eq!(ack, [expected], "{bytes:?}");
    }
    bench.pass_on();
    let filter = bench.filters.last().unwrap();
    assert!(!filter.promiscuous && filter.vlans.as_ref().is_some_and(|vlans| vlans.has(5)));
    bench.send_all(vec![state(code::GET_VRING_BASE, 2, 0)]);
    assert!(bench.control.is_none());
    bench.session.close();
    bench.pass_on();
    assert_eq!(bench.detached, [0]);
    assert!(matches!(bench.bring_home(0, None), Step::Nothing));
    assert!(bench.session.is_home() && bench.away.is_empty());
}
