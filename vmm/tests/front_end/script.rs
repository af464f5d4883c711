//! A back end that is played by hand, message by message.

// Each of the two programs that use it has no use for some of it.
#![allow(dead_code)]

use std::{
    io::{ErrorKind, Read, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    sync::Arc,
};

use sys::{GuestMemory, Region, eventfd::EventFd, memory::Mapping, socket::recv_with_fds, split::SplitMemory};
use vmm::{
    Features,
    vhost_user::{
        device::{Device, protocol},
        message::{HEADER_BYTES, Header, Reply, RingAddress, code},
        request::Request,
    },
};
use wire::Mac;

/// The device's address.
pub const ADDRESS: Mac = Mac::new([2, 0, 0, 0, 3, 3]);

/// One ring as it was set up.
#[derive(Default)]
pub struct Ring {
    pub entries: u16,
    pub base: u32,
    pub address: Option<RingAddress>,
    pub call: Option<EventFd>,
}

/// The back end: what it was told, and a well-behaved answer to everything.
pub struct Script {
    pub socket: UnixStream,
    /// Requests heard.
    pub heard: Vec<u32>,
    pub offered: Features,
    pub memory: Option<Arc<GuestMemory>>,
    pub rings: [Ring; 2],
}

/// A request and the answer that is due.
pub struct Due {
    pub request: u32,
    pub answer: Option<Vec<u8>>,
}

impl Script {
    pub fn new(socket: UnixStream) -> Script {
        let device = Device { mac: Some(ADDRESS), mtu: Some(2000), ..Device::default() };
        Script { socket, heard: Vec::new(), offered: device.offered(), memory: None, rings: Default::default() }
    }

    /// The next request, if there is one, carried out.
    pub fn hear(&mut self) -> Option<Due> {
        let mut header = [0; HEADER_BYTES];
        let mut fds = Vec::new();
        match recv_with_fds(self.socket.as_fd(), &mut header, &mut fds) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => return None,
            Ok(outcome) if outcome.bytes == 0 => return None,
            outcome => assert!(outcome.is_ok_and(|outcome| outcome.bytes == HEADER_BYTES), "a whole header at once"),
        }
        let header = Header::parse(&header).unwrap();
        let mut payload = vec![0; header.size as usize];
        self.socket.read_exact(&mut payload).unwrap();
        self.heard.push(header.request);
        let request = Request::parse(header.request, &payload, fds).unwrap();
        let answer = self.carry_out(header.request, request);
        let acknowledgement = header.need_reply.then(|| Reply::word(header.request, 0).bytes);
        Some(Due { request: header.request, answer: answer.or(acknowledgement) })
    }

    fn carry_out(&mut self, request: u32, what: Request) -> Option<Vec<u8>> {
        let reply = match what {
            Request::GetFeatures => Reply::word(request, self.offered.0),
            Request::GetProtocolFeatures => Reply::word(request, protocol::OFFERED),
            Request::GetQueueNum => Reply::word(request, 1),
            Request::GetConfig { offset, size, flags } => {
                let space = Device::default().config_space(Some(ADDRESS), Some(2000));
                Reply::config(offset, flags, &space[offset as usize..(offset + size) as usize])
            }
            Request::GetVringBase { ring } => Reply::state(request, ring, self.rings[usize::from(ring)].base),
            Request::SetMemTable(regions) => {
                let region = |(spec, file): (vmm::vhost_user::message::RegionSpec, OwnedFd)| {
                    let mapping = Mapping::shared(file.as_fd(), spec.offset, spec.size).unwrap();
                    Region::new(spec.guest, spec.size, spec.user, Arc::new(mapping), 0).unwrap()
                };
                self.memory =
                    Some(Arc::new(GuestMemory::new(regions.into_iter().map(region).collect(), None).unwrap()));
                return None;
            }
            Request::SetVringNum { ring, entries } => return self.set(ring, |ring| ring.entries = entries),
            Request::SetVringBase { ring, base } => return self.set(ring, |ring| ring.base = base),
            Request::SetVringAddr { ring, address } => return self.set(ring, |ring| ring.address = Some(address)),
            Request::SetVringCall { ring, fd } => {
                return self.set(ring, |ring| ring.call = fd.map(|fd| EventFd::adopt(fd).unwrap()));
            }
            _ => return None,
        };
        Some(reply.bytes)
    }

    fn set(&mut self, ring: u16, set: impl FnOnce(&mut Ring)) -> Option<Vec<u8>> {
        set(&mut self.rings[usize::from(ring)]);
        None
    }

    /// Answers everything that was asked so far.
    pub fn serve(&mut self) {
        while let Some(due) = self.hear() {
            if let Some(answer) = due.answer {
                self.socket.write_all(&answer).unwrap();
            }
        }
    }

    /// Whether the rings have been given.
    pub fn is_started(&self) -> bool {
        self.heard.iter().filter(|request| **request == code::SET_VRING_ENABLE).count() == 2
    }

    /// A ring as its device sees it.
    pub fn ring(&self, ring: usize) -> SplitMemory {
        let (memory, Ring { entries, address, .. }) = (self.memory.clone().unwrap(), &self.rings[ring]);
        let address = address.unwrap();
        let guest = |user| memory.guest_of_user(user).unwrap();
        let places = [address.descriptors, address.avail, address.used].map(guest);
        SplitMemory::new(memory.clone(), *entries, places[0], places[1], places[2]).unwrap()
    }
}
