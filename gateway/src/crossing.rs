//! A packet that goes from one segment into another: it has to fit.
//!
//! Invariant: what is put into a segment is no longer than its MTU. A packet that may not be cut is answered with the MTU by the leg it came in by; a
//! super-frame of TCP is cut smaller by whoever cuts it; the MSS is a backstop. Only cutting copies.
//! Read first: [`wire::fit`], RFC 1812 section 5.2.6, RFC 1191, RFC 8201.

use std::net::IpAddr;

use wire::{
    Accepts, Context, DropReason, Frame, L3, Layers, MAX_FRAME,
    fit::{self, Cutter, Fit},
    layers::ETHERNET_LEN,
    segmentation::Settle,
};

use crate::leg::Leg;

/// IANA's number of TCP.
const TCP: u8 = 6;

/// Takes a packet for `to` from the segment of `from` into that of `into`.
pub(crate) fn cross(cx: &mut Context, frame: Frame, to: IpAddr, from: &mut Leg, into: &mut Leg) {
    let mtu = into.gateway().config().mtu;
    let head = cx.heads.get_mut(&frame);
    let v6 = to.is_ipv6();
    if let Some(Layers { l3: L3::V4 | L3::V6, protocol: Some(TCP), l4: Some(l4), .. }) = Layers::parse(head.bytes()) {
        fit::clamp(head, l4, mtu, if v6 { 60 } else { 40 });
    }
    match if v6 { fit::fit6(head, mtu) } else { fit::fit(head, mtu) } {
        Fit::Whole => into.deliver(cx, frame, to),
        Fit::Lower(size) => {
            head.offload = fit::lowered(head.offload, size);
            into.deliver(cx, frame, to);
        }
        Fit::TooBig => from.too_big(cx, frame, mtu),
        Fit::Cut => cut(cx, frame, to, mtu, into),
    }
}

/// Sends a packet on in fragments.
#[cold]
fn cut(cx: &mut Context, frame: Frame, to: IpAddr, mtu: u16, into: &mut Leg) {
    let (origin, len) = (cx.heads.get(&frame).origin, cx.heads.get(&frame).len());
    let (mut whole, mut part) = (vec![0; MAX_FRAME], vec![0; usize::from(mtu) + ETHERNET_LEN]);
    let mut settle = Settle::new(cx, frame, Accepts::NONE);
    while let Some(frame) = settle.next(cx) {
        let read = cx.read_all(&frame, &mut whole);
        let bytes = read.and_then(|len| whole.get(..len));
        let Some(mut cutter) = bytes.and_then(|bytes| Cutter::new(bytes, mtu)) else {
            cx.drop(frame, DropReason::TooBig);
            continue;
        };
        while let Some(len) = cutter.next(&mut part) {
            if let Some(fragment) = part.get(..len).and_then(|bytes| cx.originate(origin, bytes)) {
                into.deliver(cx, fragment, to);
            }
        }
        cx.transmitted(1, len as u64);
    }
}
