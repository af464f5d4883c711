//! A device that others wrote: the back end of the crate `vhost` and the rings of the crate `virtio-queue`. It sends everything back.

use std::{
    fs::File,
    io::{Read, Write},
    os::unix::net::UnixStream,
    sync::{Arc, Mutex},
};

use vhost::vhost_user::{
    BackendReqHandler, Error, GpuBackend, Result, VhostUserBackendReqHandlerMut,
    message::{
        VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
        VhostUserMemoryRegion, VhostUserProtocolFeatures, VhostUserShMemConfig, VhostUserSharedMsg,
        VhostUserSingleMemoryRegion, VhostUserVringAddrFlags, VhostUserVringState,
    },
};
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap};
use vmm::{
    Features,
    front_end::{Nic, Peer, State},
};
use wire::{Clock, Mac, Offload, SystemClock};

use crate::switch::{LONG, frame};

#[derive(Default)]
struct Ring {
    size: u16,
    base: u16,
    /// Descriptor table, available and used ring, guest addresses.
    places: [u64; 3],
    kick: Option<File>,
    call: Option<File>,
    enabled: bool,
}

/// The device, and what it was told, in this order.
#[derive(Default)]
struct Echo {
    said: Vec<String>,
    features: u64,
    regions: Vec<VhostUserMemoryRegion>,
    memory: Option<GuestMemoryMmap>,
    rings: [Ring; 2],
    queues: Option<[Queue; 2]>,
    frames: usize,
}

const ADDRESS: [u8; 6] = [2, 0, 0, 0, 9, 9];

impl Echo {
    fn say(&mut self, what: &str) -> Result<()> {
        self.said.push(what.to_owned());
        Ok(())
    }

    fn ring(&mut self, index: u32) -> Result<&mut Ring> {
        self.rings.get_mut(index as usize).ok_or(Error::InvalidParam)
    }

    fn guest(&self, user: u64) -> u64 {
        let region = self
            .regions
            .iter()
            .find(|region| (region.user_addr..region.user_addr + region.memory_size).contains(&user));
        let region = region.expect("an address in the memory table");
        user - region.user_addr + region.guest_phys_addr
    }

    fn make_queues(&mut self) {
        let queue = |ring: &Ring| {
            let halves = |at: u64| (Some(at as u32), Some((at >> 32) as u32));
            let [(a, b), (c, d), (e, f)] = ring.places.map(halves);
            let mut queue = Queue::new(ring.size).unwrap();
            queue.set_size(ring.size);
            queue.set_desc_table_address(a, b);
            queue.set_avail_ring_address(c, d);
            queue.set_used_ring_address(e, f);
            queue.set_next_avail(ring.base);
            queue.set_next_used(ring.base);
            queue.set_ready(true);
            assert!(queue.is_valid(self.memory.as_ref().unwrap()));
            queue
        };
        self.queues = Some([queue(&self.rings[0]), queue(&self.rings[1])]);
    }

    /// Sends back what was sent, over as many receive buffers as it needs.
    fn work(&mut self) {
        if !self.rings.iter().all(|ring| ring.enabled) {
            return;
        }
        if self.queues.is_none() {
            self.make_queues();
        }
        let (memory, [rx, tx]) = (self.memory.as_ref().unwrap(), self.queues.as_mut().unwrap());
        let chains: Vec<_> = tx.iter(memory).unwrap().collect();
        for chain in chains {
            let head = chain.head_index();
            let mut bytes = Vec::new();
            for descriptor in chain {
                let mut part = vec![0; descriptor.len() as usize];
                memory.read_slice(&mut part, descriptor.addr()).unwrap();
                bytes.extend(part);
            }
            tx.add_used(memory, head, 0).unwrap();
            let mut buffers = Vec::new();
            let mut room = 0;
            while room < bytes.len() {
                let mut chain = rx.pop_descriptor_chain(memory).expect("a receive buffer");
                let head = chain.head_index();
                let descriptor = chain.next().unwrap();
                room += descriptor.len() as usize;
                buffers.push((head, descriptor));
            }
            bytes[10..12].copy_from_slice(&(buffers.len() as u16).to_le_bytes());
            let mut rest = &bytes[..];
            for (head, descriptor) in buffers {
                let (part, after) = rest.split_at(rest.len().min(descriptor.len() as usize));
                memory.write_slice(part, descriptor.addr()).unwrap();
                rx.add_used(memory, head, part.len() as u32).unwrap();
                rest = after;
            }
            self.frames += 1;
        }
        for ring in &mut self.rings {
            ring.call.as_mut().unwrap().write_all(&1u64.to_ne_bytes()).unwrap();
        }
    }
}

impl VhostUserBackendReqHandlerMut for Echo {
    fn set_owner(&mut self) -> Result<()> {
        self.say("owner")
    }

    fn get_features(&mut self) -> Result<u64> {
        let offered = [Features::MRG_RXBUF, Features::MAC, Features::PROTOCOL_FEATURES, Features::EVENT_IDX];
        Ok(offered.into_iter().fold(Features::VERSION_1, Features::with).0)
    }

    fn set_features(&mut self, features: u64) -> Result<()> {
        self.features = features;
        self.say("features")
    }

    fn set_mem_table(
        &mut self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _: Option<bool>,
    ) -> Result<Option<Vec<u64>>> {
        self.regions = regions.to_vec();
        let ranges = regions.iter().zip(files).map(|(region, file)| {
            let at = FileOffset::new(file, region.mmap_offset);
            (GuestAddress(region.guest_phys_addr), region.memory_size as usize, Some(at))
        });
        self.memory = Some(GuestMemoryMmap::from_ranges_with_files(ranges).unwrap());
        self.say("memory").map(|()| None)
    }

    fn set_vring_num(&mut self, index: u32, num: u32) -> Result<()> {
        self.ring(index)?.size = num as u16;
        self.say(&format!("size {index}"))
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        _: VhostUserVringAddrFlags,
        descriptor: u64,
        used: u64,
        available: u64,
        _: u64,
    ) -> Result<()> {
        let places = [descriptor, available, used].map(|user| self.guest(user));
        self.ring(index)?.places = places;
        self.say(&format!("address {index}"))
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> Result<()> {
        self.ring(index)?.base = base as u16;
        self.say(&format!("base {index} {base}"))
    }

    fn get_vring_base(&mut self, index: u32) -> Result<VhostUserVringState> {
        let next = self.queues.as_ref().map_or(0, |queues| queues[index as usize].next_avail());
        Ok(VhostUserVringState::new(index, u32::from(next)))
    }

    fn set_vring_kick(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        self.ring(index.into())?.kick = fd;
        self.say(&format!("kick {index}"))
    }

    fn set_vring_call(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        self.ring(index.into())?.call = fd;
        self.say(&format!("call {index}"))
    }

    fn get_protocol_features(&mut self) -> Result<VhostUserProtocolFeatures> {
        Ok(VhostUserProtocolFeatures::all() & !VhostUserProtocolFeatures::STATUS)
    }

    fn set_protocol_features(&mut self, features: u64) -> Result<()> {
        self.say(&format!("protocol {:?}", VhostUserProtocolFeatures::from_bits(features).unwrap()))
    }

    fn get_queue_num(&mut self) -> Result<u64> {
        Ok(1)
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Result<()> {
        self.ring(index)?.enabled = enable;
        self.say(&format!("enable {index}"))
    }

    fn get_config(&mut self, offset: u32, size: u32, _: VhostUserConfigFlags) -> Result<Vec<u8>> {
        let space = [&ADDRESS[..], &[0; 64]].concat();
        space.get(offset as usize..(offset + size) as usize).map(<[u8]>::to_vec).ok_or(Error::InvalidParam)
    }

    fn reset_owner(&mut self) -> Result<()> {
        Err(Error::InvalidParam)
    }
    fn reset_device(&mut self) -> Result<()> {
        Err(Error::InvalidParam)
    }
    fn set_vring_err(&mut self, _: u8, _: Option<File>) -> Result<()> {
        Err(Error::InvalidParam)
    }
    fn set_config(&mut self, _: u32, _: &[u8], _: VhostUserConfigFlags) -> Result<()> {
        Err(Error::InvalidParam)
    }
    fn set_gpu_socket(&mut self, _: GpuBackend) -> Result<()> {
        Err(Error::InvalidParam)
    }
    fn get_shared_object(&mut self, _: VhostUserSharedMsg) -> Result<File> {
        Err(Error::InvalidParam)
    }
    fn get_inflight_fd(&mut self, _: &VhostUserInflight) -> Result<(VhostUserInflight, File)> {
        Err(Error::InvalidParam)
    }
    fn set_inflight_fd(&mut self, _: &VhostUserInflight, _: File) -> Result<()> {
        Err(Error::InvalidParam)
    }
    fn get_max_mem_slots(&mut self) -> Result<u64> {
        Err(Error::InvalidParam)
    }
    fn add_mem_region(&mut self, _: &VhostUserSingleMemoryRegion, _: File, _: Option<bool>) -> Result<Option<u64>> {
        Err(Error::InvalidParam)
    }
    fn remove_mem_region(&mut self, _: &VhostUserSingleMemoryRegion) -> Result<()> {
        Err(Error::InvalidParam)
    }
    fn set_device_state_fd(
        &mut self,
        _: VhostTransferStateDirection,
        _: VhostTransferStatePhase,
        _: File,
    ) -> Result<Option<File>> {
        Err(Error::InvalidParam)
    }
    fn check_device_state(&mut self) -> Result<()> {
        Err(Error::InvalidParam)
    }
    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        Err(Error::InvalidParam)
    }
    fn set_log_base(&mut self, _: &vhost::vhost_user::message::VhostUserLog, _: File) -> Result<()> {
        Err(Error::InvalidParam)
    }
}

#[test]
fn frames_come_back_from_a_device_that_others_wrote() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let echo = Arc::new(Mutex::new(Echo::default()));
    let mut handler = BackendReqHandler::from_stream(theirs, echo.clone());
    // It answers one message at a time and ends when the front end does.
    let talk = std::thread::spawn(move || while handler.handle_request().is_ok() {});
    let mut nic = Nic::new(Peer::Stream(ours), Mac::new([2; 6])).unwrap();
    let clock = SystemClock::new();
    while !nic.is_up() {
        nic.maintain(clock.now());
        assert!(clock.now().nanos() < LONG.as_nanos() as u64, "{:?}", nic.front_end().failure());
        std::thread::yield_now();
    }
    assert_eq!((nic.mac(), nic.mtu()), (Mac::new(ADDRESS), 1500));
    let agreed = Features::VERSION_1.with(Features::MRG_RXBUF).with(Features::MAC);
    assert_eq!(nic.features(), agreed);
    {
        let echo = echo.lock().unwrap();
        assert_eq!(Features(echo.features), agreed.with(Features::PROTOCOL_FEATURES));
        let ring = |n: u8| {
            ["size N", "base N 0", "address N", "call N", "kick N"].map(|what| what.replace('N', &n.to_string()))
        };
        let mut expected = vec![
            "protocol VhostUserProtocolFeatures(MQ | REPLY_ACK | CONFIG)".to_owned(),
            "owner".to_owned(),
            "features".to_owned(),
            "memory".to_owned(),
        ];
        expected.extend([ring(0), ring(1)].concat());
        expected.extend(["enable 0".to_owned(), "enable 1".to_owned()]);
        assert_eq!(echo.said, expected);
    }
    let (mut got, mut sent) = (Vec::new(), Vec::new());
    for (n, len) in (0..).zip((60..9000).step_by(97).chain([65_535, 60, 65_535])) {
        let bytes = frame(n, len);
        assert!(nic.send(Offload::NONE, &[&bytes]));
        sent.push(bytes);
        nic.flush().unwrap();
        {
            let mut echo = echo.lock().unwrap();
            let mut kicks = [0; 8];
            echo.rings[1].kick.as_mut().unwrap().read_exact(&mut kicks).expect("it was kicked");
            echo.work();
        }
        nic.receive(usize::MAX, &mut |_, frame| got.push(frame.to_vec())).unwrap();
        assert_eq!(got.last(), sent.last(), "frame of {len} bytes");
    }
    assert_eq!(got, sent);
    assert_eq!(nic.front_end().state(), State::Running);
    drop(nic);
    talk.join().unwrap();
}
