//! Frames spread over several buffers: gathered from a transmit chain, scattered over receive chains.
//!
//! Invariant: where a driver cuts its buffers does not matter (virtio 1.2 section 2.7.4.1); even the header may be in parts. What looking
//! at one frame costs is bounded, however small the buffers are.

use sys::{Lent, MapRef, Room};
use wire::{DropReason, Frame, Heads, MAX_FRAME, Offload, Origin};

use super::{HEADER_BYTES, MIN_FRAME, Put};
use crate::virtqueue::{
    Ring,
    chain::{Batch, Chain, MAX_CHAIN, RingError},
};

/// A frame in several buffers, header and head possibly spread over some of them.
pub(super) fn many_pieces(
    map: &MapRef<'_>,
    pieces: &[Lent],
    heads: &mut Heads,
    origin: Origin,
) -> Result<Frame, DropReason> {
    let total: usize = pieces.iter().map(Lent::len).sum();
    let len = total.checked_sub(HEADER_BYTES).filter(|len| *len >= MIN_FRAME).ok_or(DropReason::Runt)?;
    if len > MAX_FRAME {
        return Err(DropReason::Oversize);
    }
    if pieces.len() > sys::arena::MAX_PIECES {
        return Err(DropReason::TooManyPieces);
    }
    let mut header = [0; HEADER_BYTES];
    let rest = gather(map, pieces, 0, &mut header)?;
    let offload = Offload::from_bytes(header).checked(len).ok_or(DropReason::BadOffload)?;
    let (frame, head) = heads.begin(origin, len).ok_or(DropReason::NoHeads)?;
    head.offload = offload;
    let (mut at, mut inside) = gather(map, pieces.get(rest.0..).unwrap_or_default(), rest.1, head.fill())?;
    at += rest.0;
    for piece in pieces.get(at..).unwrap_or_default() {
        let part = piece.part(inside, piece.len() - inside).ok_or(DropReason::Runt)?;
        inside = 0;
        if !part.is_empty() && !heads.add_piece(&frame, part) {
            return Err(DropReason::NoBuffers);
        }
    }
    Ok(frame)
}

/// Fills `into` from `pieces`, beginning `skip` bytes into the first; returns the piece and the place in it where the next byte is.
fn gather(map: &MapRef<'_>, pieces: &[Lent], skip: usize, into: &mut [u8]) -> Result<(usize, usize), DropReason> {
    let mut into = into;
    let mut skip = skip;
    for (n, piece) in pieces.iter().enumerate() {
        let part = piece.part(skip, piece.len() - skip.min(piece.len())).ok_or(DropReason::Runt)?;
        let copied = map.read(part, into);
        if copied < part.len().min(into.len()) {
            return Err(DropReason::Stale);
        }
        into = into.get_mut(copied..).unwrap_or_default();
        if into.is_empty() {
            return Ok((n, skip + copied));
        }
        skip = 0;
    }
    Err(DropReason::Runt)
}

/// Writes a frame into as many buffers and chains as it needs: one chain, or several where buffers are mergeable (section 5.1.6.4).
/// A frame that needs more than [`MAX_CHAIN`] buffers is too big: looking at them again for every frame would hold up all other ports.
#[cold]
pub(super) fn put_scattered<R: Ring>(
    map: &MapRef<'_>,
    ring: &mut R,
    batch: &mut Batch<Room>,
    next: &mut usize,
    mergeable: bool,
    heads: &Heads,
    frame: &Frame,
) -> Result<Put, RingError> {
    let head = heads.get(frame);
    let need = HEADER_BYTES + head.len();
    let room_of = |batch: &Batch<Room>, chain: Chain| batch.pieces(chain).iter().map(Room::len).sum::<usize>();
    let (mut chains, mut pieces, mut have) = (0, 0, 0);
    while have < need {
        if (chains > 0 && !mergeable) || pieces > MAX_CHAIN {
            return Ok(Put::Drop(DropReason::TooBig));
        }
        if batch.chains.len() == *next + chains {
            ring.take(map, batch, 1)?;
        }
        let Some(chain) = batch.chains.get(*next + chains) else {
            // With no chain in use and nothing waiting, more room may come; a frame longer than the whole ring never fits.
            return Ok(Put::NoRoom);
        };
        have += room_of(batch, *chain);
        pieces += usize::from(chain.pieces);
        chains += 1;
    }
    let used = batch.chains.get(*next..*next + chains).unwrap_or_default();
    let mut rooms = Rooms { rest: used.iter().flat_map(|chain| batch.pieces(*chain)).copied(), room: None };
    let header = head.offload.to_bytes(chains as u16);
    let fits = rooms.write(map, &header)
        && rooms.write(map, head.bytes())
        && heads.body(frame).iter().all(|piece| rooms.copy(map, *piece));
    if !fits {
        return Ok(Put::Drop(DropReason::Stale));
    }
    let mut left = need;
    for n in 0..chains {
        let Some(chain) = batch.chains.get(*next + n).copied() else { break };
        let written = room_of(batch, chain).min(left);
        left -= written;
        ring.complete(chain, written as u32);
    }
    *next += chains;
    Ok(Put::Done)
}

/// Rooms that are filled one after another.
struct Rooms<I> {
    room: Option<Room>,
    rest: I,
}

impl<I: Iterator<Item = Room>> Rooms<I> {
    /// Where the next byte goes; nothing when all are full.
    fn current(&mut self) -> Option<Room> {
        loop {
            match self.room {
                Some(room) if !room.is_empty() => return Some(room),
                _ => self.room = Some(self.rest.next()?),
            }
        }
    }

    /// Writes all of `bytes`; false when there is no room left or it is stale.
    fn write(&mut self, map: &MapRef<'_>, bytes: &[u8]) -> bool {
        let mut bytes = bytes;
        while !bytes.is_empty() {
            let Some(room) = self.current() else { return false };
            let n = map.write(room, bytes);
            if n == 0 {
                return false;
            }
            self.room = Some(room.after(n));
            bytes = bytes.get(n..).unwrap_or_default();
        }
        true
    }

    /// Copies all of `piece`; false when there is no room left or either is stale.
    fn copy(&mut self, map: &MapRef<'_>, piece: Lent) -> bool {
        let mut piece = piece;
        while !piece.is_empty() {
            let Some(room) = self.current() else { return false };
            let n = map.copy(room, piece);
            if n == 0 {
                return false;
            }
            self.room = Some(room.after(n));
            let Some(rest) = piece.part(n, piece.len() - n) else { return false };
            piece = rest;
        }
        true
    }
}
