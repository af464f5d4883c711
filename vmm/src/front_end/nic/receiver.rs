//! [`Receiver`]: the receive ring of a [`super::Nic`].
//!
//! Invariant: a buffer is copied from once, then given back to the device; what a frame has in buffers that did not come yet is waited for.

use std::os::fd::{AsRawFd, RawFd};

use sys::MapRef;
use wire::{MAX_FRAME, Offload};

use super::{Bells, ENTRIES, NicError, RX_BYTES, RX_START};
use crate::{
    ring_port::HEADER_BYTES,
    virtqueue::driver::{Buffer, DriverQueue, UsedError},
};

/// The receive ring. See the module's documentation.
pub(super) struct Receiver {
    queue: DriverQueue,
    bells: Bells,
    /// The buffer of each chain id.
    buffers: Box<[u16]>,
    /// The frame that is put together.
    scratch: Box<[u8]>,
    /// Bytes of it that are there.
    have: usize,
    offload: Offload,
    /// Buffers of it, and how many of them are still to come.
    count: u16,
    left: u16,
}

impl Receiver {
    /// The ring, all buffers still ours.
    pub(super) fn new(queue: DriverQueue, bells: Bells) -> Self {
        Receiver {
            queue,
            bells,
            buffers: vec![0; usize::from(ENTRIES)].into(),
            scratch: vec![0; MAX_FRAME].into(),
            have: 0,
            offload: Offload::NONE,
            count: 0,
            left: 0,
        }
    }

    /// Gives all buffers to the device.
    pub(super) fn offer_all(&mut self) {
        (0..ENTRIES).for_each(|number| self.offer(number));
        self.want_interrupts(false);
        let wanted = self.queue.publish();
        self.bells.kick(wanted);
    }

    fn offer(&mut self, number: u16) {
        let guest = RX_START + u64::from(number) * u64::from(RX_BYTES);
        // There are as many entries as buffers.
        if let Ok(id) = self.queue.add(&[], &[Buffer { guest, len: RX_BYTES }])
            && let Some(buffer) = self.buffers.get_mut(usize::from(id))
        {
            *buffer = number;
        }
    }

    /// Takes up to `max` whole frames; the header's words are not checked. Returns how many.
    pub(super) fn receive(
        &mut self,
        map: &MapRef<'_>,
        max: usize,
        mergeable: bool,
        each: &mut dyn FnMut(Offload, &[u8]),
    ) -> Result<usize, NicError> {
        let (mut frames, mut buffers) = (0, 0);
        let wrong = |error: UsedError| NicError::Ring { ring: "receive ring", error };
        while frames < max
            && let Some(used) = self.queue.take_used().map_err(wrong)?
        {
            buffers += 1;
            let number = self.buffers.get(usize::from(used.id)).copied().unwrap_or(0);
            self.take(map, number, used.written, mergeable)?;
            self.offer(number);
            if self.left == 0 {
                frames += 1;
                each(self.offload, self.scratch.get(..self.have).unwrap_or_default());
            }
        }
        if buffers > 0 {
            let wanted = self.queue.publish();
            self.bells.kick(wanted);
        }
        Ok(frames)
    }

    /// Copies a buffer behind what is there of the frame, or begins the next one.
    fn take(&mut self, map: &MapRef<'_>, number: u16, written: u32, mergeable: bool) -> Result<(), NicError> {
        let guest = RX_START + u64::from(number) * u64::from(RX_BYTES);
        let mut skip = 0;
        let lent = map.lend(guest, written);
        if self.left == 0 {
            let mut header = [0; HEADER_BYTES];
            if lent.is_none_or(|lent| map.read(lent, &mut header) < HEADER_BYTES) {
                return Err(self.wrong(written, "shorter than a header"));
            }
            self.offload = Offload::from_bytes(header);
            let [.., low, high] = header;
            self.count = if mergeable { u16::from_le_bytes([low, high]) } else { 1 };
            if !(1..=ENTRIES).contains(&self.count) {
                return Err(self.wrong(written, "a number of buffers that there are not"));
            }
            (self.left, self.have, skip) = (self.count, 0, HEADER_BYTES);
        }
        let rest = lent.and_then(|lent| lent.part(skip, lent.len() - skip));
        let len = rest.map_or(0, |rest| rest.len());
        let Some(room) = self.scratch.get_mut(self.have..self.have + len) else {
            return Err(self.wrong(written, "longer than any frame"));
        };
        if let Some(rest) = rest {
            map.read(rest, room);
        }
        self.have += len;
        self.left -= 1;
        Ok(())
    }

    fn wrong(&self, written: u32, what: &'static str) -> NicError {
        let bytes = if self.left == 0 { 0 } else { HEADER_BYTES + self.have };
        NicError::Frame { bytes: bytes + written as usize, buffers: self.count, what }
    }

    /// See [`super::Nic::want_interrupts`].
    pub(super) fn want_interrupts(&mut self, want: bool) -> bool {
        if want {
            self.bells.forget_calls();
        }
        self.queue.want_interrupts(want)
    }

    /// The device's calls.
    pub(super) fn call(&self) -> RawFd {
        self.bells.call.as_raw_fd()
    }
}
