//! A front end that plays a guest: the session is the crate `vhost`'s, the driver is the rig of `vmm`. What it does wrong, tests do.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::sync::Arc;

use sys::memory::Mapping;
use vhost::vhost_user::message::VhostUserProtocolFeatures;
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vmm::Features;
use vmm::virtqueue::testing::{Rig, RigSpec};
use vmm_sys_util::eventfd::EventFd;
use wire::Offload;

/// Where the front end claims to have the guest's memory mapped.
const USER: u64 = 0x7000_0000_0000;
const REGIONS: usize = 2;

/// A guest with two memory regions whose driver has started one queue pair.
pub struct FrontEnd {
    /// The session.
    pub session: Frontend,
    /// The driver and its rings.
    pub rig: Rig,
    files: Vec<File>,
    kicks: Vec<EventFd>,
    _calls: Vec<EventFd>,
}

impl FrontEnd {
    /// Connects, agrees on split rings with mergeable buffers, and starts them. Nothing is offered to receive into.
    pub fn attach(socket: &Path) -> Self {
        let features = Features::VERSION_1.with(Features::MRG_RXBUF).with(Features::PROTOCOL_FEATURES);
        let spec = RigSpec { regions: REGIONS, slots: 256, ..RigSpec::new(features) };
        let bytes = spec.region_bytes() as u64;
        let files: Vec<File> = (0..REGIONS).map(|_| tempfile::tempfile().unwrap()).collect();
        files.iter().for_each(|file| file.set_len(bytes).unwrap());
        let map = |file: &File| Arc::new(Mapping::shared(file.as_fd(), 0, bytes).unwrap());
        let rig = Rig::in_memory(spec, &files.iter().map(map).collect::<Vec<_>>(), None).unwrap();

        let mut session = Frontend::connect(socket, 2).unwrap();
        session.set_owner().unwrap();
        let offered = session.get_features().unwrap();
        assert!(Features(offered).has(features), "the device offers {offered:#x}");
        let protocol = session.get_protocol_features().unwrap();
        session.set_protocol_features(protocol & !VhostUserProtocolFeatures::REPLY_ACK).unwrap();
        session.set_features(features.0).unwrap();
        let kicks = (0..2).map(|_| EventFd::new(0).unwrap()).collect();
        let calls = (0..2).map(|_| EventFd::new(0).unwrap()).collect();
        let mut all = Self { session, rig, files, kicks, _calls: calls };
        all.session.set_mem_table(&[all.region(0), all.region(1)]).unwrap();
        for ring in 0..2 {
            all.start(ring);
        }
        all
    }

    fn start(&mut self, ring: usize) {
        let side = if ring == 0 { &self.rig.rx } else { &self.rig.tx };
        let size = self.rig.spec().size;
        let user = |guest: u64| guest - Rig::region(0) + USER;
        let config = VringConfigData {
            queue_max_size: size,
            queue_size: size,
            flags: 0,
            desc_table_addr: user(side.areas.descriptors),
            used_ring_addr: user(side.areas.device),
            avail_ring_addr: user(side.areas.driver),
            log_addr: None,
        };
        self.session.set_vring_num(ring, size).unwrap();
        self.session.set_vring_base(ring, 0).unwrap();
        self.session.set_vring_addr(ring, &config).unwrap();
        self.session.set_vring_call(ring, &self._calls[ring]).unwrap();
        self.session.set_vring_kick(ring, &self.kicks[ring]).unwrap();
        self.session.set_vring_enable(ring, true).unwrap();
    }

    /// A memory region as the front end describes it.
    pub fn region(&self, number: usize) -> VhostUserMemoryRegionInfo {
        VhostUserMemoryRegionInfo {
            guest_phys_addr: Rig::region(number),
            memory_size: self.rig.spec().region_bytes() as u64,
            userspace_addr: USER + Rig::region(number) - Rig::region(0),
            mmap_offset: 0,
            mmap_handle: self.files[number].as_raw_fd(),
        }
    }

    /// Rings the transmit queue's bell, and the receive queue's.
    pub fn kick(&self) {
        self.kicks.iter().for_each(|kick| kick.write(1).unwrap());
    }

    /// Makes as many copies of a frame available as there is room for, and sees to what has come back before.
    pub fn send(&mut self, frame: &[u8]) {
        self.rig.reap().unwrap();
        let mut added = false;
        while self.rig.send(Offload::NONE, frame, &[700], false) {
            added = true;
        }
        if added {
            self.rig.tx.publish().unwrap();
            self.kick();
        }
    }

    /// Takes what has arrived, and offers buffers for more.
    pub fn receive(&mut self) -> Vec<Vec<u8>> {
        let frames = self.rig.receive().unwrap();
        while self.rig.offer(&[2048], false) {}
        self.rig.rx.publish().unwrap();
        self.kick();
        frames.into_iter().map(|frame| frame.bytes).collect()
    }

    /// Writes a descriptor of the transmit queue.
    pub fn set_descriptor(&mut self, index: u16, address: u64, len: u32, flags: u16, next: u16) {
        let bytes =
            [&address.to_le_bytes()[..], &len.to_le_bytes(), &flags.to_le_bytes(), &next.to_le_bytes()].concat();
        assert!(self.rig.write(self.rig.tx.areas.descriptors + 16 * u64::from(index), &bytes));
    }

    /// Makes `heads` available in the transmit queue, and claims that `claimed` more than before are.
    pub fn make_available(&mut self, heads: &[u16], claimed: u16) {
        let driver = self.rig.tx.areas.driver;
        let index = self.rig.read(driver + 2, 2).unwrap();
        let index = u16::from_le_bytes([index[0], index[1]]);
        for (number, head) in (0..).zip(heads) {
            let slot = index.wrapping_add(number) % self.rig.spec().size;
            assert!(self.rig.write(driver + 4 + 2 * u64::from(slot), &head.to_le_bytes()));
        }
        assert!(self.rig.write(driver + 2, &index.wrapping_add(claimed).to_le_bytes()));
        self.kick();
    }

    /// Cuts the file behind a region down to nothing.
    pub fn truncate(&self, number: usize) {
        self.files[number].set_len(0).unwrap();
    }
}
