//! [`Label`]: the 802.1Q tag of a frame, and putting it on, taking it off and changing it.
//!
//! Invariant: a tag is touched only in the frame's head, priority bits are kept while there is a tag, and what the frame owes
//! ([`wire::Offload`]) moves with its headers. Read first: IEEE 802.1Q clause 9.

use wire::{DropReason, Head, MAX_FRAME, Vid};

/// EtherType 0x8100 as the two bytes lie in a little-endian word.
pub(crate) const TPID_ON_WIRE: u16 = 0x8100u16.swap_bytes();
const TPID: [u8; 2] = [0x81, 0x00];
const VID_MASK: u16 = 0x0fff;
const MACS: usize = 12;
const TAG: usize = 4;
/// Bytes of an Ethernet header with one tag.
const TAGGED_HEADER: usize = MACS + TAG + 2;

/// How a frame is labelled on its way in, or is to be on its way out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Label(u16);

impl Label {
    /// Without a tag (or with one that is payload).
    pub const NONE: Label = Label(u16::MAX);
    /// With a tag that carries a priority and no VLAN (VID 0).
    pub const PRIORITY: Label = Label(0);

    /// With a tag of this VLAN.
    pub const fn tagged(vid: Vid) -> Label {
        Label(vid.get())
    }

    /// The label of a frame whose first EtherType is 0x8100 and that begins with `bytes`; nothing when it ends within its headers.
    #[inline]
    pub(crate) fn read(bytes: &[u8]) -> Option<Label> {
        let [.., high, low, _, _]: &[u8; TAGGED_HEADER] = bytes.first_chunk()?;
        Some(Label::of_tag([*high, *low]))
    }

    /// The label of a frame whose tag control information is these bytes: its priority is no part of it.
    #[inline]
    pub(crate) const fn of_tag(tag: [u8; 2]) -> Label {
        Label(u16::from_be_bytes(tag) & VID_MASK)
    }

    /// Has a tag.
    #[inline]
    pub const fn is_tagged(self) -> bool {
        self.0 != Label::NONE.0
    }

    /// The VID in the tag: zero for a priority tag, and out of every range for none.
    #[inline]
    pub(crate) const fn vid(self) -> u16 {
        self.0
    }
}

/// Makes a frame that is labelled `from` one that is labelled `to`.
pub(crate) fn relabel(head: &mut Head, from: Label, to: Label) -> Result<(), DropReason> {
    match (from.is_tagged(), to.is_tagged()) {
        _ if from == to => {}
        (false, _) => push(head, to)?,
        (true, false) => pop(head)?,
        (true, true) => rewrite(head, to),
    }
    head.tagged = to.is_tagged();
    Ok(())
}

fn push(head: &mut Head, to: Label) -> Result<(), DropReason> {
    let macs: [u8; MACS] = *head.bytes().first_chunk().ok_or(DropReason::Runt)?;
    if head.len() + TAG > MAX_FRAME || !head.push(TAG) {
        return Err(DropReason::Oversize);
    }
    let [tpid_high, tpid_low] = TPID;
    let [high, low] = to.vid().to_be_bytes();
    if let Some((front, rest)) = head.bytes_mut().split_first_chunk_mut()
        && let Some(tag) = rest.first_chunk_mut()
    {
        *front = macs;
        *tag = [tpid_high, tpid_low, high, low];
    }
    head.offload = head.offload.shifted(TAG as i16);
    Ok(())
}

fn pop(head: &mut Head) -> Result<(), DropReason> {
    if head.offload.needs_checksum() && usize::from(head.offload.checksum_start()) < TAGGED_HEADER {
        return Err(DropReason::BadOffload);
    }
    let header: [u8; TAGGED_HEADER] = *head.bytes().first_chunk().ok_or(DropReason::Runt)?;
    let [macs @ .., _, _, _, _, _, _] = header;
    if !head.pull(TAG) {
        return Err(DropReason::Runt);
    }
    if let Some(front) = head.bytes_mut().first_chunk_mut() {
        *front = macs;
    }
    head.offload = head.offload.shifted(-(TAG as i16));
    Ok(())
}

fn rewrite(head: &mut Head, to: Label) {
    if let Some([high, low]) = head.bytes_mut().get_mut(MACS + 2..MACS + TAG) {
        let tag = u16::from_be_bytes([*high, *low]) & !VID_MASK | to.vid();
        [*high, *low] = tag.to_be_bytes();
    }
}

#[cfg(test)]
mod tests {
    use wire::{Context, Gso, Offload, Origin, Sizes};

    use super::*;

    fn with_head(bytes: &[u8], offload: Offload, change: impl FnOnce(&mut Head)) -> (Vec<u8>, Offload) {
        let mut cx = Context::new(Sizes { heads: 4, pieces: 4, pool: 1 << 18 }).unwrap();
        let frame = cx.originate(Origin::default(), bytes).unwrap();
        let head = cx.heads.get_mut(&frame);
        head.offload = offload;
        change(head);
        let offload = head.offload;
        let mut all = vec![0; bytes.len() + 8];
        let len = cx.read_all(&frame, &mut all).unwrap();
        all.truncate(len);
        (all, offload)
    }

    fn vlan(number: u16) -> Label {
        Label::tagged(Vid::new(number).unwrap())
    }

    fn frame(len: usize) -> Vec<u8> {
        (0..len).map(|i| i as u8).collect()
    }

    #[test]
    fn on_and_off_again() {
        for len in [14, 60, 128, 1514] {
            let plain = frame(len);
            let mut tagged = plain.clone();
            tagged.splice(12..12, [0x81, 0, 0x0f, 0xa1]);
            let owed = Offload::new(Gso::Tcp4, 54, 1448, 34, 16);
            let (on, offload) = with_head(&plain, owed, |head| {
                relabel(head, Label::NONE, vlan(0xfa1)).unwrap();
                assert!(head.tagged);
            });
            assert_eq!((on, offload), (tagged.clone(), owed.shifted(4)));
            let (off, offload) = with_head(&tagged, owed.shifted(4), |head| {
                relabel(head, vlan(0xfa1), Label::NONE).unwrap();
                assert!(!head.tagged);
            });
            assert_eq!((off, offload), (plain, owed));
        }
    }

    #[test]
    fn priority_bits_survive_a_new_vid() {
        let mut tagged = frame(60);
        tagged.splice(12..12, [0x81, 0, 0xb0, 0x00]);
        assert_eq!(Label::read(&tagged), Some(Label::PRIORITY));
        let (bytes, _) = with_head(&tagged, Offload::NONE, |head| relabel(head, Label::PRIORITY, vlan(0x123)).unwrap());
        assert_eq!(&bytes[12..16], &[0x81, 0, 0xb1, 0x23]);
        assert_eq!(Label::read(&bytes), Some(vlan(0x123)));
    }

    #[test]
    fn what_cannot_be_done_is_refused() {
        assert_eq!(Label::read(&frame(17)), None);
        let mut tagged = frame(60);
        tagged.splice(12..12, [0x81, 0, 0, 7]);
        with_head(&tagged, Offload::new(Gso::None, 0, 0, 15, 2), |head| {
            assert_eq!(relabel(head, vlan(7), Label::NONE), Err(DropReason::BadOffload), "a checksum over the tag");
        });
        with_head(&vec![0; MAX_FRAME], Offload::NONE, |head| {
            assert_eq!(relabel(head, Label::NONE, vlan(7)), Err(DropReason::Oversize));
        });
    }
}
