//! The front end of the crate `vhost`, which somebody else wrote.

use std::os::fd::AsRawFd;

use vhost::{
    VhostBackend, VhostUserDirtyLogRegion, VhostUserMemoryRegionInfo, VringConfigData,
    vhost_user::{
        Frontend, VhostUserFrontend,
        message::{VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserInflight, VhostUserProtocolFeatures},
    },
};
use vmm_sys_util::eventfd::EventFd;

use super::*;
use crate::features::Features;

fn info(guest: &Guest, at: u64, size: u64) -> VhostUserMemoryRegionInfo {
    VhostUserMemoryRegionInfo {
        guest_phys_addr: at,
        memory_size: size,
        userspace_addr: USER + at,
        mmap_offset: at,
        mmap_handle: guest.file.as_raw_fd(),
    }
}

fn config(ring: usize) -> VringConfigData {
    let [descriptors, driver, device] = areas(ring as u16).map(|at| at + USER);
    VringConfigData {
        queue_max_size: ENTRIES,
        queue_size: ENTRIES,
        flags: 0,
        desc_table_addr: descriptors,
        used_ring_addr: device,
        avail_ring_addr: driver,
        log_addr: None,
    }
}

/// Agrees on features and starts two rings, asking how each message went.
fn bring_up(frontend: &mut Frontend, guest: &Guest, features: Features) {
    frontend.set_owner().unwrap();
    let offered = frontend.get_features().unwrap();
    assert!(Features(offered).has(features));
    let protocol = frontend.get_protocol_features().unwrap();
    let expected = VhostUserProtocolFeatures::MQ
        | VhostUserProtocolFeatures::LOG_SHMFD
        | VhostUserProtocolFeatures::RARP
        | VhostUserProtocolFeatures::REPLY_ACK
        | VhostUserProtocolFeatures::MTU
        | VhostUserProtocolFeatures::BACKEND_REQ
        | VhostUserProtocolFeatures::CONFIG
        | VhostUserProtocolFeatures::INFLIGHT_SHMFD
        | VhostUserProtocolFeatures::RESET_DEVICE
        | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
        | VhostUserProtocolFeatures::STATUS;
    assert_eq!(protocol, expected);
    frontend.set_protocol_features(protocol).unwrap();
    frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
    frontend.set_features(features.0).unwrap();
    frontend.set_mem_table(&[info(guest, 0, MEMORY)]).unwrap();
    for ring in 0..2 {
        frontend.set_vring_num(ring, ENTRIES).unwrap();
        frontend.set_vring_base(ring, 3).unwrap();
        frontend.set_vring_addr(ring, &config(ring)).unwrap();
        frontend.set_vring_call(ring, &EventFd::new(0).unwrap()).unwrap();
        frontend.set_vring_err(ring, &EventFd::new(0).unwrap()).unwrap();
        frontend.set_vring_kick(ring, &EventFd::new(0).unwrap()).unwrap();
        frontend.set_vring_enable(ring, true).unwrap();
    }
}

#[test]
fn the_whole_life_of_a_device() {
    let setting = Setting::new(1);
    let guest = Guest::new();
    let mut frontend = Frontend::connect(setting.path(0), 3).unwrap();
    bring_up(&mut frontend, &guest, common());
    setting.recorder.wait("up", |record| record.is_up(0));
    assert_eq!(frontend.get_max_mem_slots().unwrap(), 509);
    frontend.set_backend_request_fd(&EventFd::new(0).unwrap()).unwrap();
    frontend.set_vring_enable(1, false).unwrap();

    let (reply, bytes) = frontend.get_config(6, 4, VhostUserConfigFlags::empty(), &[0; 4]).unwrap();
    assert_eq!(({ reply.offset }, { reply.size }), (6, 4));
    assert_eq!(bytes, [1, 0, 1, 0], "link up, one pair");
    assert!(frontend.set_config(6, VhostUserConfigFlags::empty(), &[0]).is_err());

    let other = Guest::new();
    let more = VhostUserMemoryRegionInfo { guest_phys_addr: MEMORY, mmap_offset: 0, ..info(&other, 0, 8192) };
    let more = VhostUserMemoryRegionInfo { userspace_addr: USER + MEMORY, ..more };
    for _ in 0..2 {
        frontend.add_mem_region(&more).unwrap();
    }
    frontend.remove_mem_region(&more).unwrap();

    let log = sys::memory::memfd("log", 4096).unwrap();
    let region = VhostUserDirtyLogRegion { mmap_size: 4096, mmap_offset: 0, mmap_handle: log.as_raw_fd() };
    frontend.set_log_base(0, Some(region)).unwrap();
    frontend.set_log_fd(EventFd::new(0).unwrap().as_raw_fd()).unwrap();
    frontend.set_features(common().with(Features::LOG_ALL).0).unwrap();
    frontend.set_features(common().0).unwrap();

    let (inflight, file) = frontend.get_inflight_fd(&VhostUserInflight::new(0, 0, 2, ENTRIES)).unwrap();
    frontend.set_inflight_fd(&inflight, file.as_raw_fd()).unwrap();

    assert_eq!(frontend.get_vring_base(0).unwrap(), 3);
    assert_eq!(frontend.get_vring_base(1).unwrap(), 3);
    setting.recorder.wait("stopped", |record| !record.is_up(0) && record.lanes_of(0) == 0);
    frontend.reset_device().unwrap();
    bring_up(&mut frontend, &guest, common().with(Features::RING_PACKED));
    setting.recorder.wait("up again", |record| record.is_up(0));
    assert_eq!(frontend.get_queue_num().unwrap(), 1);
    drop(frontend);
    setting.recorder.wait("gone", |record| record.lanes_of(0) == 0 && !record.is_up(0));
}

#[test]
fn it_connects_anew_after_going_at_once() {
    let setting = Setting::new(1);
    for _ in 0..5 {
        let guest = Guest::new();
        let mut frontend = Frontend::connect(setting.path(0), 2).unwrap();
        bring_up(&mut frontend, &guest, common());
        setting.recorder.wait("up", |record| record.is_up(0));
        drop(frontend);
        setting.recorder.wait("gone", |record| record.lanes_of(0) == 0 && !record.is_up(0));
    }
}
