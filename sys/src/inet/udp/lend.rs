//! [`LendBatch`]: datagrams that are received straight into an arena's pool, and lent on from there.
//!
//! Invariant: what came in is pooled until the turn ends, and every datagram has a place for the longest. Read first: [`super`], [`crate::arena`].

use std::{io, net::SocketAddr};

use super::{
    BATCH, Datagrams,
    receive::{Facts, Messages, STRIDE},
};
use crate::{Lent, arena::Arena};

/// A datagram that came in, or a run of them.
#[derive(Clone, Copy)]
pub struct Lending {
    /// Its bytes; of a run, those of all.
    pub bytes: Lent,
    /// Who sent it.
    pub from: SocketAddr,
    /// Bytes of each datagram but the last, where the bytes are those of many; zero when it is one.
    pub segment: u16,
    /// Its TOS or traffic class.
    pub tos: u8,
}

/// See the module's documentation.
#[derive(Default)]
pub struct LendBatch {
    messages: Messages,
    pooled: Option<Lent>,
}

impl LendBatch {
    /// Receives up to `most` datagrams (or runs of them) with one call into the pool, and tells how many came.
    ///
    /// # Errors
    /// `WouldBlock` if nothing has arrived, `OutOfMemory` when the pool has no room for one; an error that came back for something sent earlier;
    /// else what recvmmsg(2) reports.
    pub fn receive(&mut self, socket: &Datagrams, arena: &mut Arena, most: usize) -> io::Result<usize> {
        let most = (1..=most.min(BATCH)).rev().find(|most| arena.reserve(most * STRIDE).is_some());
        let most = most.ok_or(io::ErrorKind::OutOfMemory)?;
        let pooled = arena.reserve(most * STRIDE).ok_or(io::ErrorKind::OutOfMemory)?;
        self.pooled = Some(pooled);
        let first = pooled.ptr.as_ptr();
        // SAFETY: the pool has room for `most` places that follow one another, nobody else has them before `keep`, and no Rust reference into
        // the pool exists. The pointer arithmetic stays inside what was reserved.
        let came = unsafe { self.messages.receive(socket, most, |index| first.add(index * STRIDE)) }?;
        let last = came.checked_sub(1).and_then(|last| Some((last, self.messages.facts(last)?.len)));
        arena.keep(last.map_or(came * STRIDE, |(last, len)| last * STRIDE + len));
        Ok(came)
    }

    /// The datagram at `index`; nothing when there is none or it names no sender.
    pub fn get(&self, index: usize) -> Option<Lending> {
        let Facts { len, from, segment, tos, .. } = self.messages.facts(index)?;
        let bytes = self.pooled?.part(index * STRIDE, len)?;
        Some(Lending { bytes, from, segment, tos })
    }

    /// Datagrams in it.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.messages.len()
    }
}
