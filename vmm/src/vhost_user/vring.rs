//! [`Vring`]: what a front end has said about one ring, from its first descriptor to `GET_VRING_BASE`.
//!
//! Invariant: the doorbells are here or in the [`DeviceQueue`] made of them, never in both; `base` is where the ring starts when it is made
//! next, whether the front end named it or the queue that came home did.
//! Read first: vhost-user specification, "Ring states"; virtio 1.2 section 2.
//!
//! Theory of operation: a ring is started by `SET_VRING_KICK` and stopped by `GET_VRING_BASE`. Between the two it is made into a
//! [`DeviceQueue`] as soon as its size, addresses and memory are known, and made anew after each change. Enabled is another matter: it is
//! remembered whether the ring is started or not, since front ends say it at any time, before the features too. A ring that is started and
//! disabled is left alone. The specification wants its frames discarded; but User-mode Linux disables a ring, never stops it, and gives
//! its memory to somebody else, where any flag that we write is a wrong byte; and DPDK, which all front ends know, leaves it alone too.

use std::{path::PathBuf, sync::Arc};

use sys::{
    GuestMemory,
    eventfd::EventFd,
    packed::{PACKED_USED, PackedMemory},
    split::SplitMemory,
};

use super::{error::SessionError, inflight::Inflight, message::RingAddress};
use crate::{
    features::Features,
    virtqueue::{AnyRing, DeviceQueue, QueueSetup, journal::Journal},
};

/// One ring as its front end described it.
#[derive(Default)]
pub(super) struct Vring {
    /// Its index in messages.
    pub(super) index: u16,
    /// Entries; 0 before the front end said.
    pub(super) size: u16,
    /// Where it lies, in the front end's addresses.
    pub(super) address: Option<RingAddress>,
    /// Where it starts, as vhost-user has it: see [`DeviceQueue::base`].
    pub(super) base: u32,
    /// The driver's kicks, while the ring is here.
    pub(super) kick: Option<EventFd>,
    /// Where the driver is called, while the ring is here.
    pub(super) call: Option<EventFd>,
    /// Where the front end hears of a broken ring.
    pub(super) err: Option<EventFd>,
    /// Between `SET_VRING_KICK` and `GET_VRING_BASE`.
    pub(super) started: bool,
    /// See the module's documentation.
    pub(super) enabled: bool,
    /// Its memory was removed under it by `REM_MEM_REG`: it waits for its memory to be added again.
    pub(super) lost: bool,
    /// Where its position is kept over our death, if the front end keeps nothing for us; and the journal itself, while the ring is here.
    pub(super) journal_path: Option<PathBuf>,
    pub(super) journal: Option<Journal>,
    /// It was made into a queue since it was started.
    was_made: bool,
}

impl Vring {
    /// A stopped, disabled ring of this index.
    pub(super) fn new(index: u16, journal_path: Option<PathBuf>) -> Self {
        Vring { index, journal_path, ..Vring::default() }
    }

    /// Whether all is said that makes it run, but for the memory.
    pub(super) fn is_complete(&self) -> bool {
        self.started && self.size > 0 && self.address.is_some()
    }

    /// Stops it. What was kept for our death is forgotten: the front end knows where the ring stands, or does not want to.
    pub(super) fn stop(&mut self) {
        if let Some(mut journal) = self.journal.take() {
            journal.clear();
        }
        (self.started, self.lost, self.was_made) = (false, false, false);
        self.kick = None;
    }

    /// Whether all its parts begin in `memory`.
    pub(super) fn is_inside(&self, memory: &GuestMemory) -> bool {
        let inside = |user| memory.guest_of_user(user).is_some();
        self.address.is_some_and(|at| inside(at.descriptors) && inside(at.avail) && inside(at.used))
    }

    /// Makes it into a queue in `memory`.
    ///
    /// # Errors
    /// The parts of the ring are not in the memory, or not as virtio wants them; the ring then still has its doorbells.
    pub(super) fn make(
        &mut self,
        memory: &Arc<GuestMemory>,
        features: Features,
        inflight: Option<&Inflight>,
    ) -> Result<DeviceQueue, SessionError> {
        let ring = self.index;
        let RingAddress { descriptors, used, avail } =
            self.address.ok_or(SessionError::Elsewhere { ring, part: "descriptor area", user: 0 })?;
        let guest = |part, user| memory.guest_of_user(user).ok_or(SessionError::Elsewhere { ring, part, user });
        let (descriptors, driver, device) =
            (guest("descriptor area", descriptors)?, guest("driver area", avail)?, guest("device area", used)?);
        let packed = features.has(Features::RING_PACKED);
        let fresh = || {
            let ring = PackedMemory::new(memory.clone(), self.size, descriptors, driver, device);
            ring.is_ok_and(|ring| is_fresh(&ring))
        };
        let used = || {
            let ring = SplitMemory::new(memory.clone(), self.size, descriptors, driver, device);
            ring.map_or(0, |ring| used_so_far(&ring))
        };
        let named = if packed { packed_base(self.base, fresh) } else { split_base(self.base, used) };
        let (base, journal) = self.start_index(named, packed, inflight);
        let setup = QueueSetup {
            memory: memory.clone(),
            features,
            size: self.size,
            descriptors,
            driver,
            device,
            base,
            journal,
            kick: None,
            call: None,
            enabled: self.enabled,
        };
        let mut queue = DeviceQueue::new(setup).map_err(|error| SessionError::Place { ring, error })?;
        queue.kick = self.kick.take();
        queue.call = self.call.take();
        // A driver that is called at any change may be gone by the time it hears: User-mode Linux then turns in circles for ever.
        queue.call_at_attach = !std::mem::replace(&mut self.was_made, true);
        Ok(queue)
    }

    /// Where the ring starts: the one place that decides it. A split ring goes on where the front end says, or where its used index is if
    /// that says nothing. A packed ring goes on where its journal says, if the ring agrees (see [`Journal::recover`]), else where the front
    /// end says.
    fn start_index(&mut self, named: u32, packed: bool, inflight: Option<&Inflight>) -> (u32, Option<Journal>) {
        if !packed {
            return (named, None);
        }
        if self.journal.is_none() {
            self.journal = inflight.and_then(|inflight| inflight.journal(self.index, self.size));
        }
        if self.journal.is_none()
            && let Some(path) = &self.journal_path
        {
            match Journal::open(path, self.size) {
                Ok(journal) => self.journal = Some(journal),
                Err(error) => tracing::warn!(path = %path.display(), %error, "ring without a journal"),
            }
        }
        (named, self.journal.take())
    }

    /// Takes the queue back that was made of this ring.
    pub(super) fn take_home(&mut self, mut queue: DeviceQueue) {
        self.base = queue.base();
        self.kick = queue.kick.take();
        self.call = queue.call.take();
        if let AnyRing::Packed(ring) = &mut queue.ring {
            self.journal = ring.take_journal();
        }
    }
}

/// What the base of a split ring means: the entry to take next. DPDK's virtio-user names 0 whenever it starts a ring, also to a back end that has
/// come back; the ring itself then says how far it was used, and a fresh one was used up to 0.
fn split_base(base: u32, used: impl FnOnce() -> u16) -> u32 {
    if base == 0 { u32::from(used()) } else { base }
}

/// The used index of a ring, if what was made available goes with it, else 0.
fn used_so_far(ring: &SplitMemory) -> u16 {
    let used = ring.used_index();
    if ring.avail_index().wrapping_sub(used) <= ring.size() { used } else { 0 }
}

/// What the base of a packed ring means. In the low half it has the next available entry, in the high half the next used one, each with its
/// wrap counter. What was taken and not yet used is taken again, so the used one counts; front ends that know one index leave it 0.
/// And some (User-mode Linux) start every ring at 0, though the wrap counters of a fresh one are 1.
fn packed_base(base: u32, is_fresh: impl FnOnce() -> bool) -> u32 {
    match (base >> 16, base) {
        (0, 0) if is_fresh() => 1 << 15,
        (0, avail) => avail,
        (used, _) => used,
    }
}

/// Whether no entry of a ring was ever used: after the first lap at least one has the flag, whatever was made available again since.
fn is_fresh(ring: &PackedMemory) -> bool {
    (0..ring.size()).all(|index| ring.descriptor(index).is_none_or(|entry| entry.flags & PACKED_USED == 0))
}
