//! What one worker may dereference: the guest memories it holds and the pooled bytes of the turn.
//!
//! Invariant: memory leaves an arena only through [`Arena::remove`], which gives the arena an epoch no arena ever had; so a piece of memory
//! whose epoch is the arena's own is mapped. Read first: [`crate::guest`].
//!
//! Theory of operation: the pool is one anonymous mapping handed out from its start in every turn and given back all at once, so that the
//! bytes a TAP fills are the same warm ones turn after turn, and nothing has to be counted or freed one by one.

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsRawFd, BorrowedFd},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use crate::{
    guest::{self, GuestMemory, Lent, MapRef},
    memory::Mapping,
};

/// Epochs are unique in the process. The counter stops at its end instead of starting over (see [`fresh_epoch`]).
static EPOCHS: AtomicU32 = AtomicU32::new(1);

/// An epoch nobody has had. Four thousand million unmappings use them up; then the process ends rather than trust an old address.
fn fresh_epoch() -> u32 {
    EPOCHS
        .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |epoch| epoch.checked_add(1))
        .unwrap_or_else(|_| std::process::abort())
}

/// Which memory of an [`Arena`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapId(usize);

/// The memory of one worker. See the module's documentation.
pub struct Arena {
    epoch: u32,
    maps: Vec<Option<Arc<GuestMemory>>>,
    pool: Mapping,
    pool_used: usize,
}

/// Most pieces in one gathered write.
pub const MAX_PIECES: usize = 256;

impl Arena {
    /// An arena with a pool of `pool_bytes` (rounded up to pages) and no guest memory.
    pub fn new(pool_bytes: usize) -> io::Result<Self> {
        Ok(Arena { epoch: fresh_epoch(), maps: Vec::new(), pool: Mapping::anonymous(pool_bytes)?, pool_used: 0 })
    }

    /// Takes hold of a guest's memory.
    pub fn insert(&mut self, memory: Arc<GuestMemory>) -> MapId {
        let free = self.maps.iter().position(Option::is_none).unwrap_or_else(|| {
            self.maps.push(None);
            self.maps.len() - 1
        });
        if let Some(slot) = self.maps.get_mut(free) {
            *slot = Some(memory);
        }
        MapId(free)
    }

    /// Lets go of a guest's memory. Everything lent by this arena so far is stale from here on.
    pub fn remove(&mut self, id: MapId) -> Option<Arc<GuestMemory>> {
        let memory = self.maps.get_mut(id.0)?.take();
        self.epoch = fresh_epoch();
        memory
    }

    /// The guest memory `id`, to lend from and write to.
    #[inline]
    pub fn map(&self, id: MapId) -> Option<MapRef<'_>> {
        let memory = self.maps.get(id.0)?.as_deref()?;
        Some(MapRef::new(memory, self.epoch))
    }

    /// Copies the start of `from` into `into`, as far as both reach; returns the bytes copied, 0 when `from` is stale.
    #[inline]
    pub fn read(&self, from: Lent, into: &mut [u8]) -> usize {
        guest::read(from, self.epoch, into)
    }

    /// Whether `piece` was lent by this arena and may still be read.
    #[inline]
    pub(crate) fn holds(&self, piece: &Lent) -> bool {
        piece.epoch == self.epoch
    }

    /// Gives all pooled bytes back: the end of a turn.
    #[inline]
    pub fn reset_pool(&mut self) {
        self.pool_used = 0;
    }

    /// Pooled bytes with a copy of `bytes`; nothing when the pool is used up.
    pub fn pool(&mut self, bytes: &[u8]) -> Option<Lent> {
        let lent = self.reserve(bytes.len())?;
        // SAFETY: `reserve` found room for `bytes.len()` in the pool, which is ours and to which no Rust reference exists.
        unsafe { crate::copy::copy(lent.ptr.as_ptr(), bytes.as_ptr(), bytes.len()) };
        self.keep(bytes.len());
        Some(lent)
    }

    /// The next `len` pooled bytes, not yet taken.
    pub(crate) fn reserve(&self, len: usize) -> Option<Lent> {
        if self.pool.len() - self.pool_used < len || len > u32::MAX as usize {
            return None;
        }
        // SAFETY: `pool_used <= pool.len()`.
        let ptr = unsafe { self.pool.ptr().add(self.pool_used) };
        Some(Lent { ptr, len: len as u32, epoch: self.epoch })
    }

    /// Takes `len` of the bytes reserved last; the next ones begin on a cache line.
    pub(crate) fn keep(&mut self, len: usize) {
        self.pool_used = (self.pool_used + len).next_multiple_of(64).min(self.pool.len());
    }

    /// One `readv` from `fd`: first into `front`, what does not fit there into up to `more` pooled bytes. Returns the bytes read in all and
    /// the pooled part of them. The error is `OutOfMemory` when the pool cannot take `more`.
    pub fn read_from(&mut self, fd: BorrowedFd<'_>, front: [&mut [u8]; 2], more: usize) -> io::Result<(usize, Lent)> {
        self.read_with(front, more, |iov| {
            // SAFETY: `read_with` vouches for the ranges.
            unsafe { libc::readv(fd.as_raw_fd(), iov.as_mut_ptr(), 3) }
        })
    }

    /// As [`Arena::read_from`], of a socket: one `recvmsg`, with its ancillary data in `control` (aligned as `struct cmsghdr`).
    pub(crate) fn receive_from(
        &mut self,
        fd: BorrowedFd<'_>,
        front: [&mut [u8]; 2],
        more: usize,
        control: &mut [u8],
    ) -> io::Result<(usize, Lent)> {
        self.read_with(front, more, |iov| {
            // SAFETY: all zeros is a valid msghdr.
            let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
            message.msg_iov = iov.as_mut_ptr();
            message.msg_iovlen = 3;
            message.msg_control = control.as_mut_ptr().cast();
            message.msg_controllen = control.len() as _;
            // SAFETY: `read_with` vouches for the ranges; the ancillary data is written to an exclusive borrow that lives past the call.
            unsafe { libc::recvmsg(fd.as_raw_fd(), &raw mut message, libc::MSG_DONTWAIT) }
        })
    }

    /// Has `read` fill three ranges that are writable until it returns: `front` and up to `more` pooled bytes.
    #[inline]
    fn read_with(
        &mut self,
        front: [&mut [u8]; 2],
        more: usize,
        read: impl FnOnce(&mut [libc::iovec; 3]) -> libc::ssize_t,
    ) -> io::Result<(usize, Lent)> {
        let lent = self.reserve(more).ok_or(io::ErrorKind::OutOfMemory)?;
        let [a, b] = front;
        let fronts = a.len() + b.len();
        let parts = [IoSliceMut::new(a), IoSliceMut::new(b)];
        let mut iov: [libc::iovec; 3] = [libc::iovec { iov_base: lent.ptr.as_ptr().cast(), iov_len: more }; 3];
        for (entry, mut part) in iov.iter_mut().zip(parts) {
            *entry = libc::iovec { iov_base: part.as_mut_ptr().cast(), iov_len: part.len() };
        }
        let n = usize::try_from(read(&mut iov)).map_err(|_| io::Error::last_os_error())?;
        let pooled = n.saturating_sub(fronts);
        self.keep(pooled);
        Ok((n, Lent { len: pooled as u32, ..lent }))
    }

    /// One `writev` to `fd` of `front` and then the lent pieces, read by the kernel where they lie. Stale pieces and more than
    /// [`MAX_PIECES`] are `InvalidInput`.
    pub fn write_to<'p>(
        &self,
        fd: BorrowedFd<'_>,
        front: [&[u8]; 2],
        pieces: impl Iterator<Item = &'p Lent>,
    ) -> io::Result<usize> {
        let mut iov = [const { MaybeUninit::<libc::iovec>::uninit() }; MAX_PIECES + 2];
        let [a, b] = front.map(IoSlice::new);
        let fronts = [(a.as_ptr(), a.len()), (b.as_ptr(), b.len())].into_iter();
        let mut count = 0;
        let mut stale = false;
        let pieces = pieces.map(|piece| {
            stale |= piece.epoch != self.epoch;
            (piece.ptr.as_ptr().cast_const(), piece.len as usize)
        });
        for (base, len) in fronts.chain(pieces) {
            let entry = iov.get_mut(count).ok_or(io::ErrorKind::InvalidInput)?;
            entry.write(libc::iovec { iov_base: base.cast_mut().cast(), iov_len: len });
            count += 1;
        }
        if stale {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        // SAFETY: the first `count` entries are initialised and name readable ranges: two borrows that live past the call, and lent bytes
        // whose epoch is ours. The kernel copes with their changing meanwhile.
        let n = unsafe { libc::writev(fd.as_raw_fd(), iov.as_ptr().cast(), count as libc::c_int) };
        usize::try_from(n).map_err(|_| io::Error::last_os_error())
    }
}
