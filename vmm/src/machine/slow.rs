//! The slow devices, on queues of `virtio-queue`: a console of lines (virtio 1.2 section 5.3) and entropy (section 5.4).
//!
//! Invariant: a chain that a driver made wrongly is given back with nothing in it; what is kept for a driver that takes nothing is
//! bounded.

use std::{
    collections::VecDeque,
    fs::File,
    io::{self, Read, Write},
    sync::{Arc, mpsc::Sender},
};

use sys::eventfd::EventFd;
use virtio_queue::{Queue, QueueT};
use vm_memory::GuestMemoryMmap;

use super::mmio::{Device, QueueRegisters};
use crate::features::Features;

/// Bytes that wait for the guest to read them, at most.
const TYPED: usize = 1 << 16;
/// Bytes of a line that the guest writes, at most; longer ones are broken.
const LINE: usize = 4096;
/// Most bytes of entropy for one request.
const ENTROPY: usize = 256;

/// Makes the queues that a driver has set up.
fn queues(registers: &[QueueRegisters], most: &[u16], memory: &GuestMemoryMmap) -> io::Result<Vec<Queue>> {
    let queue = |(at, most): (&QueueRegisters, &u16)| {
        let mut queue = Queue::new(*most).map_err(io::Error::other)?;
        queue.set_size(at.size);
        let halves = |address: u64| (Some(address as u32), Some((address >> 32) as u32));
        let (low, high) = halves(at.descriptors);
        queue.set_desc_table_address(low, high);
        let (low, high) = halves(at.driver);
        queue.set_avail_ring_address(low, high);
        let (low, high) = halves(at.device);
        queue.set_used_ring_address(low, high);
        queue.set_ready(at.ready);
        match queue.is_valid(memory) {
            true => Ok(queue),
            false => Err(io::Error::other(format!("a queue is not set up or lies outside of memory: {at:x?}"))),
        }
    };
    registers.iter().zip(most).map(queue).collect()
}

/// Gives a chain back with `written` bytes in it.
fn give_back(queue: &mut Queue, memory: &GuestMemoryMmap, head: u16, written: usize) {
    // The used ring was found in memory when the queue was made.
    let _ = queue.add_used(memory, head, written as u32);
}

/// A console that is read and written in lines.
pub(super) struct Console {
    memory: Arc<GuestMemoryMmap>,
    call: EventFd,
    queues: Vec<Queue>,
    typed: VecDeque<u8>,
    line: Vec<u8>,
    lines: Sender<String>,
}

const TO_GUEST: usize = 0;
const FROM_GUEST: usize = 1;

impl Console {
    pub(super) fn new(memory: Arc<GuestMemoryMmap>, call: EventFd, lines: Sender<String>) -> Self {
        Console { memory, call, queues: Vec::new(), typed: VecDeque::new(), line: Vec::new(), lines }
    }

    /// Types a line; false when too much waits already.
    pub(super) fn type_line(&mut self, line: &str) -> bool {
        if self.typed.len() + line.len() > TYPED {
            return false;
        }
        self.typed.extend(line.bytes().chain([b'\n']));
        self.deliver();
        true
    }

    /// What was typed goes to the guest, as far as it has given buffers.
    fn deliver(&mut self) {
        let Some(queue) = self.queues.get_mut(TO_GUEST) else { return };
        let mut delivered = false;
        while !self.typed.is_empty()
            && let Some(chain) = queue.pop_descriptor_chain(&*self.memory)
        {
            let head = chain.head_index();
            let (front, _) = self.typed.as_slices();
            let written = chain.writer(&self.memory).ok().and_then(|mut to| to.write(front).ok()).unwrap_or(0);
            self.typed.drain(..written);
            give_back(queue, &self.memory, head, written);
            delivered = true;
        }
        if delivered {
            // A full counter has interrupted the guest already.
            let _ = self.call.notify();
        }
    }

    /// Takes what the guest wrote.
    fn take(&mut self) {
        let Some(queue) = self.queues.get_mut(FROM_GUEST) else { return };
        while let Some(chain) = queue.pop_descriptor_chain(&*self.memory) {
            let head = chain.head_index();
            let mut bytes = [0; LINE];
            let read = chain.reader(&self.memory).ok().and_then(|mut from| from.read(&mut bytes).ok()).unwrap_or(0);
            give_back(queue, &self.memory, head, 0);
            for byte in bytes.iter().take(read) {
                if *byte == b'\n' || self.line.len() >= LINE {
                    // Nobody may be listening any more.
                    let _ = self.lines.send(String::from_utf8_lossy(&self.line).into_owned());
                    self.line.clear();
                }
                if *byte != b'\n' {
                    self.line.push(*byte);
                }
            }
        }
    }
}

impl Device for Console {
    fn id(&self) -> u32 {
        3
    }
    fn features(&self) -> Features {
        Features::VERSION_1
    }
    fn config(&self) -> &[u8] {
        &[]
    }
    fn queues(&self) -> &'static [u16] {
        &[64, 64]
    }
    fn start(&mut self, _: Features, registers: &[QueueRegisters]) -> io::Result<()> {
        self.queues = queues(registers, self.queues(), &self.memory)?;
        self.deliver();
        Ok(())
    }
    fn notified(&mut self, queue: usize) {
        match queue {
            TO_GUEST => self.deliver(),
            FROM_GUEST => self.take(),
            _ => {}
        }
    }
    fn stop(&mut self) {
        self.queues.clear();
    }
}

/// Random bytes of the host.
pub(super) struct Entropy {
    memory: Arc<GuestMemoryMmap>,
    call: EventFd,
    queues: Vec<Queue>,
    source: File,
}

impl Entropy {
    pub(super) fn new(memory: Arc<GuestMemoryMmap>, call: EventFd) -> io::Result<Self> {
        Ok(Entropy { memory, call, queues: Vec::new(), source: File::open("/dev/urandom")? })
    }
}

impl Device for Entropy {
    fn id(&self) -> u32 {
        4
    }
    fn features(&self) -> Features {
        Features::VERSION_1
    }
    fn config(&self) -> &[u8] {
        &[]
    }
    fn queues(&self) -> &'static [u16] {
        &[64]
    }
    fn start(&mut self, _: Features, registers: &[QueueRegisters]) -> io::Result<()> {
        self.queues = queues(registers, self.queues(), &self.memory)?;
        Ok(())
    }
    fn notified(&mut self, _: usize) {
        let Some(queue) = self.queues.first_mut() else { return };
        while let Some(chain) = queue.pop_descriptor_chain(&*self.memory) {
            let head = chain.head_index();
            let mut bytes = [0; ENTROPY];
            let filled = self.source.read(&mut bytes).unwrap_or(0);
            let random = bytes.get(..filled).unwrap_or_default();
            let written = chain.writer(&self.memory).ok().and_then(|mut to| to.write(random).ok()).unwrap_or(0);
            give_back(queue, &self.memory, head, written);
        }
        // A full counter has interrupted the guest already.
        let _ = self.call.notify();
    }
    fn stop(&mut self) {
        self.queues.clear();
    }
}
