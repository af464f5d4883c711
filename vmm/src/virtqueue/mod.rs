//! Virtqueues: the device half that ports are made of, the driver half that loads and tests them.
//!
//! Read in this order: [`chain`] (what a driver offers, checked), [`split`] and [`packed`] (the two ring formats behind the one trait
//! [`Ring`]), [`journal`] (how a packed ring survives us), [`driver`] (the other half). Memory is reached through `sys` alone.

pub mod chain;
pub mod driver;
pub mod journal;
pub mod packed;
pub mod split;
#[cfg(any(test, feature = "testing"))]
pub mod testing;

use std::sync::Arc;

use sys::{
    GuestMemory, MapRef,
    eventfd::EventFd,
    packed::PackedMemory,
    split::{PlaceError, SplitMemory},
};

use crate::features::Features;
use chain::{Batch, Chain, Piece, RingError};
use journal::Journal;
use packed::{PackedQueue, Position};
use split::SplitQueue;

/// What a device does with a ring of either format.
pub trait Ring {
    /// Takes up to `max` chains that the driver made available and adds them to `batch`.
    fn take<P: Piece>(&mut self, map: &MapRef<'_>, batch: &mut Batch<P>, max: usize) -> Result<(), RingError>;

    /// Untakes the chains taken last, all of `chains`.
    fn give_back(&mut self, chains: &[Chain]);

    /// Uses the oldest chain not yet used, `written` bytes of it written. The driver sees it after [`Ring::publish`].
    fn complete(&mut self, chain: Chain, written: u32);

    /// Uses the oldest chains, nothing written.
    fn complete_all(&mut self, chains: &[Chain]);

    /// Shows the driver everything completed so far, and says whether it wants to be notified.
    fn publish(&mut self) -> bool;

    /// Whether something was completed and not yet published.
    fn is_staged(&self) -> bool;

    /// Asks the driver to notify us of more, or not to. When asked to, says whether there is more already.
    fn want_kicks(&mut self, want: bool) -> bool;
}

/// Where a front end put a ring and how it wants it run.
pub struct QueueSetup {
    /// The memory the ring and its buffers lie in.
    pub memory: Arc<GuestMemory>,
    /// What driver and device agreed on; decides the format.
    pub features: Features,
    /// Entries.
    pub size: u16,
    /// Guest physical address of the descriptor area.
    pub descriptors: u64,
    /// Guest physical address of the driver area.
    pub driver: u64,
    /// Guest physical address of the device area.
    pub device: u64,
    /// Where to start, as vhost-user's `SET_VRING_BASE` has it: split, an index; packed, index and wrap counter of the next available
    /// entry in the low and of the next used one in the high half.
    pub base: u32,
    /// Keeps the position of a packed ring over our death.
    pub journal: Option<Journal>,
    /// The driver's kicks.
    pub kick: Option<EventFd>,
    /// Where the driver wants to be called.
    pub call: Option<EventFd>,
    /// Disabled rings are drained without effect.
    pub enabled: bool,
}

/// A ring of either format.
pub enum AnyRing {
    /// Split.
    Split(SplitQueue),
    /// Packed.
    Packed(PackedQueue),
}

/// Runs `$body` with `$ring` being the concrete ring, so that the body is compiled for each format.
#[macro_export]
macro_rules! with_ring {
    ($any:expr, $ring:ident => $body:expr) => {
        match $any {
            $crate::virtqueue::AnyRing::Split($ring) => $body,
            $crate::virtqueue::AnyRing::Packed($ring) => $body,
        }
    };
}

/// One running virtqueue of a device, with its notifications.
pub struct DeviceQueue {
    /// The ring.
    pub ring: AnyRing,
    /// The driver's kicks; none means that it must be polled.
    pub kick: Option<EventFd>,
    /// Where the driver wants to be called; none means never.
    pub call: Option<EventFd>,
    /// The driver is called once when the port that is made of the ring begins: true unless somebody knows that it was called already.
    pub call_at_attach: bool,
    /// Disabled rings are drained without effect.
    pub enabled: bool,
}

impl DeviceQueue {
    /// The queue a front end set up. A packed ring's journal, where there is a believable one, overrules the base.
    pub fn new(setup: QueueSetup) -> Result<Self, PlaceError> {
        let QueueSetup { memory, features, size, descriptors, driver, device, base, mut journal, .. } = setup;
        let ring = if features.has(Features::RING_PACKED) {
            let memory = PackedMemory::new(memory, size, descriptors, driver, device)?;
            let named = Position::from_bits(base as u16);
            if named.index >= size {
                return Err(PlaceError::Base(named.index, size));
            }
            let at = journal.as_mut().map_or(named, |journal| {
                journal.recover(&memory).unwrap_or_else(|| {
                    journal.start(named, &memory);
                    named
                })
            });
            AnyRing::Packed(PackedQueue::new(memory, features, at, journal))
        } else {
            let memory = SplitMemory::new(memory, size, descriptors, driver, device)?;
            AnyRing::Split(SplitQueue::new(memory, features, base as u16))
        };
        Ok(DeviceQueue { ring, kick: setup.kick, call: setup.call, call_at_attach: true, enabled: setup.enabled })
    }

    /// Where the ring would start again, as vhost-user's `GET_VRING_BASE` has it.
    pub fn base(&self) -> u32 {
        match &self.ring {
            AnyRing::Split(ring) => u32::from(ring.base()),
            AnyRing::Packed(ring) => u32::from(ring.base().bits()) * 0x1_0001,
        }
    }

    /// Shows the driver what was completed and calls it if it wants to be.
    #[inline]
    pub fn publish(&mut self) {
        if with_ring!(&mut self.ring, ring => ring.publish()) {
            self.call_driver();
        }
    }

    /// Calls the driver, whether it wants to be called or not.
    pub fn call_driver(&self) {
        if let Some(call) = &self.call {
            // A full eventfd counter has notified the driver already; a broken one is the front end's loss.
            let _ = call.notify();
        }
    }

    /// Forgets the position kept for our death: the front end was told it. The journal file stays with the caller.
    pub fn close_journal(&mut self) {
        if let AnyRing::Packed(ring) = &mut self.ring
            && let Some(mut journal) = ring.take_journal()
        {
            journal.clear();
        }
    }
}
