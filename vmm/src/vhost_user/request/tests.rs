//! Requests good, bad and random.

use std::os::fd::OwnedFd;

use proptest::prelude::*;

use super::*;
use crate::vhost_user::message::{HEADER_BYTES, Header, Reply};

fn fds(count: usize) -> Vec<OwnedFd> {
    (0..count).map(|_| sys::memory::memfd("request", 4096).unwrap()).collect()
}

fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

fn state(ring: u32, value: u32) -> Vec<u8> {
    [ring.to_ne_bytes(), value.to_ne_bytes()].concat()
}

fn table(count: u32, room: usize) -> Vec<u8> {
    let mut bytes = state(count, 0);
    for region in 0..room as u64 {
        bytes.extend(words(&[region << 20, 4096, region << 30, 0]));
    }
    bytes
}

fn error(request: u32, payload: &[u8], count: usize) -> MessageError {
    Request::parse(request, payload, fds(count)).unwrap_err()
}

#[test]
fn every_kind_is_read() {
    let address = [state(3, 1), words(&[0x1000, 0x2000, 0x3000, 0])].concat();
    match Request::parse(code::SET_VRING_ADDR, &address, vec![]).unwrap() {
        Request::SetVringAddr { ring: 3, address } => {
            assert_eq!(address, RingAddress { descriptors: 0x1000, used: 0x2000, avail: 0x3000 });
        }
        other => panic!("{other:?}"),
    }
    let config = [state(2, 4), 0u32.to_ne_bytes().to_vec(), vec![1, 2, 3, 4]].concat();
    match Request::parse(code::SET_CONFIG, &config, vec![]).unwrap() {
        Request::SetConfig { offset: 2, flags: 0, bytes } => assert_eq!(bytes, [1, 2, 3, 4]),
        other => panic!("{other:?}"),
    }
    let rarp = u64::from_ne_bytes([2, 0, 0, 0, 0, 9, 0, 0]);
    match Request::parse(code::SEND_RARP, &words(&[rarp]), vec![]).unwrap() {
        Request::SendRarp(mac) => assert_eq!(mac.to_string(), "02:00:00:00:00:09"),
        other => panic!("{other:?}"),
    }
    let kick = Request::parse(code::SET_VRING_KICK, &words(&[1 << 8 | 2]), vec![]).unwrap();
    assert!(matches!(kick, Request::SetVringKick { ring: 2, fd: None }));
    let call = Request::parse(code::SET_VRING_CALL, &words(&[5]), fds(1)).unwrap();
    assert!(matches!(call, Request::SetVringCall { ring: 5, fd: Some(_) }));
    let log = Request::parse(code::SET_LOG_BASE, &words(&[4096, 64]), fds(1)).unwrap();
    assert!(matches!(log, Request::SetLogBase { size: 4096, offset: 64, .. }));
}

#[test]
fn a_memory_table_counts_its_regions_and_may_have_room_for_more() {
    for room in [2, 8] {
        match Request::parse(code::SET_MEM_TABLE, &table(2, room), fds(2)).unwrap() {
            Request::SetMemTable(regions) => {
                let guests: Vec<u64> = regions.iter().map(|(spec, _)| spec.guest).collect();
                assert_eq!(guests, [0, 1 << 20]);
            }
            other => panic!("{other:?}"),
        }
    }
    let request = code::SET_MEM_TABLE;
    assert_eq!(error(request, &table(0, 1), 0), MessageError::Regions(0));
    assert_eq!(error(request, &table(9, 9), 8), MessageError::Regions(9));
    assert_eq!(error(request, &table(u32::MAX, 1), 1), MessageError::Regions(u32::MAX));
    assert!(matches!(error(request, &table(2, 1), 2), MessageError::Size { .. }));
    assert!(matches!(error(request, &table(2, 9), 2), MessageError::Size { .. }));
    assert_eq!(error(request, &table(2, 2), 1), MessageError::Descriptors { request, count: 1, expected: 2 });
    assert_eq!(error(request, &table(2, 2), 3), MessageError::Descriptors { request, count: 3, expected: 2 });
}

#[test]
fn wrong_sizes_and_descriptors_have_names() {
    let text = error(code::SET_VRING_NUM, &[0; 7], 0).to_string();
    assert_eq!(text, "SET_VRING_NUM with 7 bytes instead of 8");
    let text = error(code::SET_VRING_KICK, &words(&[0]), 0).to_string();
    assert_eq!(text, "SET_VRING_KICK with 0 file descriptors instead of 1");
    let text = error(code::SET_VRING_CALL, &words(&[1 << 8]), 1).to_string();
    assert_eq!(text, "SET_VRING_CALL with 1 file descriptors instead of 0");
    let text = error(code::SET_FEATURES, &words(&[0]), 1).to_string();
    assert_eq!(text, "SET_FEATURES with 1 file descriptors instead of 0");
    let text = error(code::SET_VRING_NUM, &state(0, 32769), 0).to_string();
    assert_eq!(text, "SET_VRING_NUM: entries 32769; allowed is 1 to 32768");
    let text = error(code::SET_VRING_ENABLE, &state(256, 1), 0).to_string();
    assert_eq!(text, "SET_VRING_ENABLE: ring 256; allowed is 0 to 255");
    assert!(matches!(error(code::SET_VRING_ENABLE, &state(0, 2), 0), MessageError::Value { .. }));
    assert!(matches!(error(code::SET_STATUS, &words(&[256]), 0), MessageError::Value { .. }));
    let long = [state(0, 257), vec![0; 4 + 257]].concat();
    assert!(matches!(error(code::GET_CONFIG, &long, 0), MessageError::Size { .. }));
}

#[test]
fn a_removed_region_may_bring_its_descriptor() {
    let payload = words(&[0, 4096, 4096, 8192, 0]);
    for count in [0, 1] {
        let request = Request::parse(code::REM_MEM_REG, &payload, fds(count)).unwrap();
        assert!(matches!(request, Request::RemMemReg(RegionSpec { guest: 4096, .. })));
    }
    assert!(matches!(error(code::REM_MEM_REG, &payload, 2), MessageError::Descriptors { .. }));
    assert!(matches!(error(code::ADD_MEM_REG, &payload, 0), MessageError::Descriptors { .. }));
}

#[test]
fn headers() {
    let bytes = |words: [u32; 3]| {
        let mut bytes = [0; HEADER_BYTES];
        for (to, word) in bytes.chunks_mut(4).zip(words) {
            to.copy_from_slice(&word.to_ne_bytes());
        }
        bytes
    };
    let header = Header::parse(&bytes([8, 0b1001, 8])).unwrap();
    assert_eq!(header, Header { request: 8, need_reply: true, size: 8 });
    assert_eq!(Header::parse(&bytes([8, 0, 8])), Err(MessageError::Version(0)));
    assert_eq!(Header::parse(&bytes([8, 5, 8])), Err(MessageError::Reply));
    assert_eq!(Header::parse(&bytes([8, 1, 4097])), Err(MessageError::Huge { request: 8, size: 4097 }));
    let reply = Reply::word(code::GET_FEATURES, 7);
    assert_eq!(reply.bytes.len(), 20);
    assert_eq!(reply.bytes.get(..12).unwrap(), bytes([1, 5, 8]));
}

proptest! {
    /// Whatever the bytes and descriptors, reading them ends in a request or a named error.
    #[test]
    fn any_bytes_are_read_or_refused(
        request in 0u32..50,
        payload in prop::collection::vec(any::<u8>(), 0..300),
        count in 0usize..4,
    ) {
        if let Err(error) = Request::parse(request, &payload, fds(count)) {
            prop_assert!(!error.to_string().is_empty());
        }
    }

    /// The same, with lengths that fit and small numbers at the start, so that more is understood.
    #[test]
    fn plausible_bytes_are_read_or_refused(
        request in 1u32..45,
        size in prop::sample::select(vec![0usize, 8, 16, 20, 24, 40, 72, 268]),
        first in 0u8..10,
        fill in any::<u8>(),
        count in 0usize..3,
    ) {
        let mut payload = vec![fill; size];
        if let Some(head) = payload.get_mut(..4) {
            head.copy_from_slice(&u32::from(first).to_ne_bytes());
        }
        if let Err(error) = Request::parse(request, &payload, fds(count)) {
            prop_assert!(!error.to_string().is_empty());
        }
    }

    #[test]
    fn any_header_is_read_or_refused(bytes in any::<[u8; HEADER_BYTES]>()) {
        if let Ok(header) = Header::parse(&bytes) {
            prop_assert!(header.size <= crate::vhost_user::message::MAX_PAYLOAD);
        }
    }
}
