//! [`Unwrap`]: packets of tunnels that lie in lent memory become frames of their networks.
//!
//! Invariant: a packet ends as part of one frame or with a reason, and what [`Vtep::accept`] refuses is not learnt from. TCP segments of one run of packets become
//! super-frames again. Read first: [`super::inward`], [`wire::coalesce`].

use sys::Lent;
use wire::{Context, DropReason, NicId, Origin, coalesce::Coalesce};

use super::inward::{Heard, deliver, listen};
use crate::vtep::{Inward, Sender, Vtep};

/// Bytes that say whose a packet is and where its frame goes.
const FRONT: usize = 8 + 64;

/// See the module's documentation.
#[derive(Default)]
pub(super) struct Unwrap {
    coalesce: Coalesce,
}

impl Unwrap {
    /// Takes what was behind a packet's UDP header; `mark` is what the underlay says of congestion. [`Unwrap::finish`] ends a run of them.
    pub(super) fn take(
        &mut self,
        cx: &mut Context,
        (vtep, nics): (&mut Vtep, &[NicId]),
        heard: &mut Heard,
        bytes: Lent,
        mark: u8,
    ) {
        let mut front = [0; FRONT];
        let near = cx.arena.read(bytes, &mut front);
        let front = front.get(..near).unwrap_or_default();
        let inward = match vtep.accept(heard.sender, front, bytes.len()) {
            Ok(inward) => inward,
            Err(reason) => {
                // What is of no network of ours counts at the endpoint's first one.
                let place = vtep.meant(front).map_or(0, |network| usize::from(network.0));
                cx.nic = nics.get(place).copied().unwrap_or(cx.nic);
                return cx.lost(reason);
            }
        };
        let Some(nic) = nics.get(usize::from(inward.network.0)).copied() else { return cx.lost(DropReason::NotReady) };
        if let Err(reason) = heard.hear(cx, vtep, inward.network, front.get(inward.at..).unwrap_or_default()) {
            cx.nic = nic;
            return cx.lost(reason);
        }
        if vtep.looks(inward.network)
            && let Some(inner) = bytes.part(inward.at, bytes.len() - inward.at)
        {
            let mut front = [0; wire::HEAD_BYTES];
            let near = cx.arena.read(inner, &mut front);
            listen(cx, vtep, inward.network, heard.sender, front.get(..near).unwrap_or_default());
        }
        let mtu = match heard.sender {
            Sender::Known(id) => vtep.inner_mtu(id),
            Sender::Stranger(_) => u16::MAX,
        };
        let origin = Origin { nic, lane: heard.lane() };
        self.join(cx, origin, inward, bytes, mtu, mark);
    }

    /// Makes a frame of a packet, or makes the last one longer by it.
    fn join(&mut self, cx: &mut Context, origin: Origin, inward: Inward, bytes: Lent, mtu: u16, mark: u8) {
        cx.nic = origin.nic;
        let Some(inner) = bytes.part(inward.at, bytes.len() - inward.at) else { return cx.lost(DropReason::Runt) };
        match self.coalesce.push(cx, origin, inner, mtu) {
            Ok(Some(frame)) => deliver(cx, frame, mark),
            Ok(None) => {}
            Err(reason) => cx.lost(reason),
        }
    }

    /// A run of packets has ended.
    pub(super) fn finish(&mut self, cx: &mut Context, mark: u8) {
        if let Some(frame) = self.coalesce.finish(cx) {
            deliver(cx, frame, mark);
        }
    }
}
