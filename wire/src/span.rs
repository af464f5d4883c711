//! The bytes of a frame between two places in it, wherever they lie: [`front`], [`body`].
//!
//! Invariant: the two together are those bytes, in order, as far as the frame has them. Read first: [`crate::frame`].

use sys::Lent;

use crate::{Context, Frame, Head};

/// The part of a frame's head between two places in the frame.
pub fn front(head: &Head, from: usize, to: usize) -> &[u8] {
    let bytes = head.bytes();
    bytes.get(from.min(bytes.len())..to.min(bytes.len())).unwrap_or_default()
}

/// The lent pieces between two places in the frame.
pub fn body<'c>(cx: &'c Context, frame: &Frame, from: usize, to: usize) -> impl Iterator<Item = Lent> + 'c {
    let mut at = cx.heads.get(frame).bytes().len();
    cx.heads.body(frame).iter().filter_map(move |piece| {
        let start = at;
        at += piece.len();
        let (first, last) = (from.max(start), to.min(at));
        if first >= last {
            return None;
        }
        piece.part(first - start, last - first)
    })
}
