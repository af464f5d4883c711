//! [`Sender`]: the transmit ring of a [`super::Nic`].
//!
//! Invariant: a transmit buffer is in the list of free ones or in one chain that the device has, and the lists are kept in memory of our own.

use std::os::fd::{AsRawFd, RawFd};

use sys::MapRef;
use wire::{MAX_FRAME, Offload};

use super::{Bells, ENTRIES, NicError, TX_BYTES, TX_START};
use crate::{
    ring_port::HEADER_BYTES,
    virtqueue::driver::{Buffer, DriverQueue},
};

/// The most buffers of one frame.
const MAX_CHAIN: usize = (HEADER_BYTES + MAX_FRAME).div_ceil(TX_BYTES as usize);

/// The transmit ring. See the module's documentation.
pub(super) struct Sender {
    queue: DriverQueue,
    bells: Bells,
    /// Free buffers.
    free: Vec<u16>,
    /// For every buffer the one after it in its chain.
    next: Box<[u16]>,
    /// For every chain id its first buffer, and how many it has.
    chains: Box<[(u16, u16)]>,
    /// A frame found no room: the next buffer that comes back is worth a call.
    starved: bool,
}

impl Sender {
    /// The ring, all buffers ours.
    pub(super) fn new(queue: DriverQueue, bells: Bells) -> Self {
        let entries = usize::from(ENTRIES);
        let mut sender = Sender {
            queue,
            bells,
            free: (0..ENTRIES).rev().collect(),
            next: vec![0; entries].into(),
            chains: vec![(0, 0); entries].into(),
            starved: false,
        };
        sender.want_interrupts(false);
        sender
    }

    /// Adds a frame of `len` bytes; false when there is no room.
    pub(super) fn send(
        &mut self,
        map: &MapRef<'_>,
        offload: Offload,
        parts: &[&[u8]],
        len: usize,
    ) -> Result<bool, NicError> {
        let total = HEADER_BYTES + len;
        let need = total.div_ceil(TX_BYTES as usize);
        if need > self.free.len() || need > usize::from(self.queue.free()) {
            self.take_back()?;
        }
        let Some(first) = self.free.len().checked_sub(need).filter(|_| need <= usize::from(self.queue.free())) else {
            self.starved = true;
            return Ok(false);
        };
        let taken = self.free.get(first..).unwrap_or_default();
        let mut chain = [Buffer { guest: 0, len: 0 }; MAX_CHAIN];
        let mut left = total as u32;
        for (buffer, number) in chain.iter_mut().zip(taken) {
            let guest = TX_START + u64::from(*number) * u64::from(TX_BYTES);
            *buffer = Buffer { guest, len: left.min(TX_BYTES) };
            left -= buffer.len;
        }
        let chain = chain.get(..need).unwrap_or_default();
        fill(map, chain, [&offload.to_bytes(0)[..]].into_iter().chain(parts.iter().copied()));
        let Ok(id) = self.queue.add(chain, &[]) else {
            self.starved = true;
            return Ok(false);
        };
        for pair in taken.windows(2) {
            if let [number, after] = pair
                && let Some(next) = self.next.get_mut(usize::from(*number))
            {
                *next = *after;
            }
        }
        if let (Some(chain), Some(number)) = (self.chains.get_mut(usize::from(id)), taken.first()) {
            *chain = (*number, need as u16);
        }
        self.free.truncate(first);
        Ok(true)
    }

    /// Takes back the buffers of all chains that the device is done with.
    pub(super) fn has_room(&self) -> bool {
        !self.free.is_empty() && self.queue.free() > 0
    }

    fn take_back(&mut self) -> Result<(), NicError> {
        let wrong = |error| NicError::Ring { ring: "transmit ring", error };
        while let Some(used) = self.queue.take_used().map_err(wrong)? {
            let (mut number, count) = self.chains.get(usize::from(used.id)).copied().unwrap_or_default();
            for _ in 0..count {
                self.free.push(number);
                number = self.next.get(usize::from(number)).copied().unwrap_or(0);
            }
            self.starved = false;
        }
        Ok(())
    }

    /// See [`super::Nic::flush`].
    pub(super) fn flush(&mut self) -> Result<(), NicError> {
        let wanted = self.queue.publish();
        self.bells.kick(wanted);
        self.take_back()
    }

    /// See [`super::Nic::want_interrupts`].
    pub(super) fn want_interrupts(&mut self, want: bool) -> bool {
        if want {
            self.bells.forget_calls();
        }
        self.queue.want_interrupts(want && self.starved)
    }

    /// The device's calls.
    pub(super) fn call(&self) -> RawFd {
        self.bells.call.as_raw_fd()
    }
}

/// Writes the parts one after another over the buffers, which are as long as all of them.
fn fill<'a>(map: &MapRef<'_>, chain: &[Buffer], parts: impl Iterator<Item = &'a [u8]>) {
    let mut rooms = chain.iter().filter_map(|buffer| map.room(buffer.guest, buffer.len));
    let Some(mut room) = rooms.next() else { return };
    for mut part in parts {
        while !part.is_empty() {
            if room.is_empty() {
                let Some(next) = rooms.next() else { return };
                room = next;
            }
            let n = map.write(room, part);
            room = room.after(n);
            part = part.get(n..).unwrap_or_default();
        }
    }
}
