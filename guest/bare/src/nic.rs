//! The NIC: a virtio-net driver with mergeable receive buffers and offloads, on the queues and the transport of virtio-drivers.
//!
//! Invariant: a buffer is either ours or in a queue, and `slots` knows which: the token that a queue gave for it leads back to it.
//! (virtio-drivers' own network driver agrees to no offloads, so a super-frame could not pass.)
//! Read first: virtio 1.2 section 5.1.6.

use alloc::{boxed::Box, vec, vec::Vec};

use guest::{Header, MTU, Mac};
use virtio_drivers::{
    Error,
    queue::VirtQueue,
    transport::{Transport, mmio::MmioTransport},
};

use crate::mem::Identity;

/// Entries of each queue.
const ENTRIES: usize = 256;
/// Bytes of a receive buffer, and of a transmit buffer for plain frames.
const BUFFER: usize = 2048;
/// Buffers for super-frames.
const BIG_BUFFERS: usize = 4;
const BIG_BUFFER: usize = HEADER + 65_552;
const HEADER: usize = 12;
/// Where the device's configuration has the MTU (virtio 1.2 section 5.1.4).
const MTU_AT: usize = 10;
const RX: u16 = 0;
const TX: u16 = 1;
/// Nobody's slot.
const NONE: u16 = u16::MAX;

bitflags::bitflags! {
    /// The features we can use (virtio 1.2 section 5.1.3).
    #[derive(Debug, Clone, Copy)]
    struct Features: u64 {
        const CSUM = 1 << 0;
        const GUEST_CSUM = 1 << 1;
        const MTU = 1 << 3;
        const MAC = 1 << 5;
        const GUEST_TSO4 = 1 << 7;
        const GUEST_TSO6 = 1 << 8;
        const HOST_TSO4 = 1 << 11;
        const HOST_TSO6 = 1 << 12;
        const MRG_RXBUF = 1 << 15;
        const STATUS = 1 << 16;
        const VERSION_1 = 1 << 32;
    }
}

/// One queue and the buffers that went into it.
struct Lane {
    queue: VirtQueue<Identity, ENTRIES>,
    buffers: Vec<Box<[u8]>>,
    /// The slot (index of a buffer) of each token, and its length when sent.
    slots: [(u16, u32); ENTRIES],
    free: Vec<u16>,
    added: bool,
}

impl Lane {
    fn new(transport: &mut MmioTransport<'static>, index: u16, buffers: Vec<Box<[u8]>>) -> Result<Lane, Error> {
        let queue = VirtQueue::new(transport, index, false, false)?;
        let free = (0..buffers.len() as u16).rev().collect();
        Ok(Lane { queue, buffers, slots: [(NONE, 0); ENTRIES], free, added: false })
    }
}

/// The driver.
pub struct Nic {
    transport: MmioTransport<'static>,
    mac: Mac,
    mtu: u16,
    features: Features,
    rx: Lane,
    tx: Lane,
    big_free: Vec<u16>,
    /// A frame of several buffers is put together here.
    merged: Vec<u8>,
}

impl Nic {
    /// Starts the device.
    pub fn new(mut transport: MmioTransport<'static>) -> Result<Nic, Error> {
        let features = transport.begin_init(Features::all());
        let mut mac = Mac::default();
        for (at, byte) in mac.iter_mut().enumerate() {
            *byte = transport.read_config_space(at)?;
        }
        let mtu = if features.contains(Features::MTU) { transport.read_config_space(MTU_AT)? } else { MTU };
        let plain = || vec![0u8; BUFFER].into_boxed_slice();
        let rx = Lane::new(&mut transport, RX, (0..ENTRIES).map(|_| plain()).collect())?;
        // A frame takes one descriptor, so there are never more than entries.
        let small = ENTRIES - BIG_BUFFERS;
        let big = (0..BIG_BUFFERS).map(|_| vec![0u8; BIG_BUFFER].into_boxed_slice());
        let mut tx = Lane::new(&mut transport, TX, (0..small).map(|_| plain()).chain(big).collect())?;
        tx.free.retain(|slot| usize::from(*slot) < small);
        let big_free = (small as u16..ENTRIES as u16).collect();
        transport.finish_init();
        let mut nic = Nic { transport, mac, mtu, features, rx, tx, big_free, merged: Vec::with_capacity(BIG_BUFFER) };
        nic.tx.queue.set_dev_notify(false);
        nic.rx.queue.set_dev_notify(false);
        nic.refill();
        nic.flush();
        Ok(nic)
    }

    /// The address the device has.
    pub fn mac(&self) -> Mac {
        self.mac
    }

    /// The longest IP packet that its network takes, in bytes.
    pub fn mtu(&self) -> u16 {
        self.mtu
    }

    /// Gives free receive buffers to the device.
    fn refill(&mut self) {
        let Lane { queue, buffers, slots, free, added } = &mut self.rx;
        while let Some(slot) = free.pop() {
            let Some(buffer) = buffers.get_mut(usize::from(slot)) else { continue };
            // SAFETY: the buffer lives in `buffers` for as long as the queue, and is not touched before `pop_used` has given it back.
            match unsafe { queue.add(&[], &mut [&mut buffer[..]]) } {
                Ok(token) => {
                    if let Some(place) = slots.get_mut(usize::from(token)) {
                        *place = (slot, 0);
                    }
                    *added = true;
                }
                Err(_) => return free.push(slot),
            }
        }
    }

    /// The next used receive buffer: its slot and the bytes in it.
    fn used(&mut self) -> Option<(u16, usize)> {
        let Lane { queue, buffers, slots, .. } = &mut self.rx;
        let token = queue.peek_used()?;
        let (slot, _) = *slots.get(usize::from(token))?;
        let buffer = buffers.get_mut(usize::from(slot))?;
        // SAFETY: this is the buffer that was added for this token.
        let len = unsafe { queue.pop_used(token, &[], &mut [&mut buffer[..]]) }.ok()? as usize;
        Some((slot, len.min(BUFFER)))
    }

    /// Hands up to `max` received frames to `each`.
    pub fn receive(&mut self, max: usize, each: &mut dyn FnMut(Header, &[u8])) -> usize {
        let mut count = 0;
        while count < max
            && let Some((slot, len)) = self.used()
        {
            count += 1;
            let (header, more) = match self.rx.buffers.get(usize::from(slot)).and_then(|b| b.first_chunk::<HEADER>()) {
                Some(bytes) => split_header(bytes),
                None => (Header::NONE, 0),
            };
            if more == 0 {
                if let Some(frame) = self.rx.buffers.get(usize::from(slot)).and_then(|b| b.get(HEADER..len)) {
                    each(header, frame);
                }
                self.rx.free.push(slot);
                continue;
            }
            self.merged.clear();
            self.merge(slot, HEADER, len);
            for _ in 0..more {
                // The device shows all buffers of a frame at once (virtio 1.2 section 5.1.6.4).
                let Some((slot, len)) = self.used() else { break };
                self.merge(slot, 0, len);
            }
            each(header, &self.merged);
        }
        if count > 0 {
            self.refill();
        }
        count
    }

    /// Puts a buffer's bytes to the end of the frame being merged, and frees it.
    fn merge(&mut self, slot: u16, from: usize, len: usize) {
        let bytes = self.rx.buffers.get(usize::from(slot)).and_then(|buffer| buffer.get(from..len));
        self.merged.extend_from_slice(bytes.unwrap_or_default());
        self.rx.free.push(slot);
    }

    /// Queues a frame; false when there is no room.
    pub fn send(&mut self, header: Header, parts: &[&[u8]]) -> bool {
        let len = HEADER + parts.iter().map(|part| part.len()).sum::<usize>();
        if header.owes_segments() && !self.features.contains(Features::HOST_TSO4 | Features::CSUM) || len > BIG_BUFFER {
            return false;
        }
        self.reap();
        let list = if len > BUFFER { &mut self.big_free } else { &mut self.tx.free };
        let Some(slot) = list.pop() else { return false };
        let Some(buffer) = self.tx.buffers.get_mut(usize::from(slot)) else { return false };
        buffer[..8].copy_from_slice(&header.low.to_le_bytes());
        buffer[8..HEADER].copy_from_slice(&header.high.to_le_bytes());
        let mut at = HEADER;
        for part in parts {
            buffer[at..at + part.len()].copy_from_slice(part);
            at += part.len();
        }
        // SAFETY: the buffer lives as long as the queue and is not touched before `pop_used` has given it back.
        match unsafe { self.tx.queue.add(&[&buffer[..len]], &mut []) } {
            Ok(token) => {
                if let Some(place) = self.tx.slots.get_mut(usize::from(token)) {
                    *place = (slot, len as u32);
                }
                self.tx.added = true;
                true
            }
            Err(_) => {
                self.free(slot);
                false
            }
        }
    }

    /// Whether a plain frame could be sent now.
    pub fn has_room(&mut self) -> bool {
        self.reap();
        !self.tx.free.is_empty()
    }

    fn free(&mut self, slot: u16) {
        let is_big = usize::from(slot) >= ENTRIES - BIG_BUFFERS;
        if is_big { self.big_free.push(slot) } else { self.tx.free.push(slot) }
    }

    /// Takes back what the device has sent.
    fn reap(&mut self) {
        while let Some(token) = self.tx.queue.peek_used() {
            let Some((slot, len)) = self.tx.slots.get(usize::from(token)).copied() else { return };
            let Some(buffer) = self.tx.buffers.get(usize::from(slot)) else { return };
            // SAFETY: these are the bytes that were added for this token.
            if unsafe { self.tx.queue.pop_used(token, &[&buffer[..len as usize]], &mut []) }.is_err() {
                return;
            }
            self.free(slot);
        }
    }

    /// Tells the device of what was added, if it wants to know.
    pub fn flush(&mut self) {
        for (lane, index) in [(&mut self.rx, RX), (&mut self.tx, TX)] {
            if core::mem::take(&mut lane.added) && lane.queue.should_notify() {
                self.transport.notify(index);
            }
        }
    }

    /// Asks for interrupts or for none; true when a frame waits already.
    pub fn want_interrupts(&mut self, want: bool) -> bool {
        self.rx.queue.set_dev_notify(want);
        // Between our wish and our look, as the device has one between its used index and its look (virtio 1.2 section 2.7.7).
        core::sync::atomic::fence(core::sync::atomic::Ordering::SeqCst);
        want && self.rx.queue.can_pop()
    }
}

/// The header, and how many buffers the frame has beyond its first.
fn split_header(bytes: &[u8; HEADER]) -> (Header, u16) {
    let [low @ .., _, _, _, _] = bytes;
    let [.., a, b, c, d] = *bytes;
    let buffers = u16::from_le_bytes([c, d]);
    (Header { low: u64::from_le_bytes(*low), high: u32::from_le_bytes([a, b, 0, 0]) }, buffers.saturating_sub(1))
}
