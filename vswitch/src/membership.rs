//! [`Membership`]: which segments of a bridge a NIC takes part in, and how its frames are labelled for them.
//!
//! Invariant: one VID is one segment for the whole life of a bridge, and the untagged segment of the network is that of VLAN 1.
//!
//! Theory of operation: a network of whose NICs none names a VLAN is *VLAN-unaware*, like a Linux bridge without `vlan_filtering`: it has
//! one segment, and tags are payload. As soon as one NIC names a VLAN it is *VLAN-aware*, like a Linux bridge with `vlan_filtering` and its
//! default PVID of 1:
//!
//! | NIC | untagged, or priority tag (VID 0) | tagged | sent to it |
//! | --- | --- | --- | --- |
//! | no VLAN named | VLAN 1 | dropped | VLAN 1, untagged |
//! | access 100 | VLAN 100 | dropped, even with 100 | VLAN 100, untagged |
//! | trunk 100, 200 native 1 | VLAN 1 | VLAN 100, 200 or 1, else dropped | 100 and 200 tagged, VLAN 1 untagged |
//! | trunk 100, 200 | dropped | VLAN 100 or 200, else dropped | 100 and 200 tagged |
//!
//! So a trunk with `native = 1` meets the NICs that name no VLAN, and so does a trunk that carries VLAN 1 with a tag. Only TPID 0x8100
//! labels; 0x88a8 is payload. Read first: IEEE 802.1Q clauses 6.9 and 9.6.

use wire::{Segment, Vid};

/// How a NIC takes part in the VLANs of its network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Membership {
    /// It names no VLAN.
    #[default]
    Untagged,
    /// Frames without a tag, in one VLAN.
    Access(Vid),
    /// Frames with a tag, of some VLANs.
    Trunk {
        /// VLANs that are carried with a tag; `native` among them changes nothing.
        vlans: Vec<Vid>,
        /// The VLAN that is carried without a tag; none drops untagged frames.
        native: Option<Vid>,
    },
}

impl Membership {
    /// Whether it names a VLAN.
    pub(crate) fn is_vlan_aware(&self) -> bool {
        *self != Membership::Untagged
    }
}

/// A set of VIDs.
#[derive(Clone)]
pub(crate) struct VidSet(Box<[u64; 64]>);

impl VidSet {
    fn new(vids: impl Iterator<Item = Vid>) -> VidSet {
        let mut words = Box::new([0u64; 64]);
        for vid in vids {
            if let Some(word) = words.get_mut(usize::from(vid.get() >> 6)) {
                *word |= 1 << (vid.get() & 63);
            }
        }
        VidSet(words)
    }

    /// Whether the VID, given as a number, is in it; 0 and 4095 never are.
    #[inline]
    pub(crate) fn has(&self, vid: u16) -> bool {
        self.0.get(usize::from(vid >> 6)).is_some_and(|word| word >> (vid & 63) & 1 != 0)
    }
}

/// A membership in terms of one bridge's segments.
pub(crate) struct Labels {
    /// Where frames without a tag belong.
    pub(crate) untagged: Option<Segment>,
    /// The VIDs it takes with a tag, the native one included; nothing for an access port.
    pub(crate) tagged: Option<VidSet>,
    /// Every segment it is a member of, once.
    pub(crate) segments: Vec<Segment>,
}

const NO_SEGMENT: u16 = u16::MAX;

/// The VLANs of one bridge: VID to segment and back.
pub(crate) struct Segments {
    of: Box<[u16; 4096]>,
    vids: Vec<Vid>,
}

impl Segments {
    /// The untagged segment of a network.
    pub(crate) const BASE: Segment = Segment(0);

    pub(crate) fn new() -> Segments {
        let mut segments = Segments { of: Box::new([NO_SEGMENT; 4096]), vids: Vec::new() };
        if let Some(one) = Vid::new(1) {
            segments.assign(one);
        }
        segments
    }

    /// The segment of a VID, if a NIC was ever a member of it.
    #[inline]
    pub(crate) fn segment(&self, vid: u16) -> Option<Segment> {
        self.of.get(usize::from(vid)).copied().filter(|segment| *segment != NO_SEGMENT).map(Segment)
    }

    /// The VID of a segment.
    pub(crate) fn vid(&self, segment: Segment) -> Option<Vid> {
        self.vids.get(usize::from(segment.0)).copied()
    }

    /// Segments so far.
    pub(crate) fn len(&self) -> usize {
        self.vids.len()
    }

    /// The membership in terms of segments; VIDs that are met for the first time get one. Allocates.
    pub(crate) fn labels(&mut self, membership: &Membership) -> Labels {
        match membership {
            Membership::Untagged => Labels::access(Self::BASE),
            Membership::Access(vid) => Labels::access(self.assign(*vid)),
            Membership::Trunk { vlans, native } => {
                let all = || vlans.iter().chain(native).copied();
                let mut segments: Vec<Segment> = all().map(|vid| self.assign(vid)).collect();
                segments.sort_unstable();
                segments.dedup();
                let untagged = native.map(|vid| self.assign(vid));
                Labels { untagged, tagged: Some(VidSet::new(all())), segments }
            }
        }
    }

    fn assign(&mut self, vid: Vid) -> Segment {
        if let Some(segment) = self.segment(vid.get()) {
            return segment;
        }
        let segment = Segment(self.vids.len() as u16);
        self.vids.push(vid);
        if let Some(place) = self.of.get_mut(usize::from(vid.get())) {
            *place = segment.0;
        }
        segment
    }
}

impl Labels {
    fn access(segment: Segment) -> Labels {
        Labels { untagged: Some(segment), tagged: None, segments: vec![segment] }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vid(number: u16) -> Vid {
        Vid::new(number).unwrap()
    }

    #[test]
    fn the_base_segment_is_vlan_1() {
        let mut segments = Segments::new();
        assert_eq!(segments.labels(&Membership::Untagged).untagged, Some(Segments::BASE));
        assert_eq!(segments.labels(&Membership::Access(vid(1))).untagged, Some(Segments::BASE));
        assert_eq!(segments.vid(Segments::BASE), Some(vid(1)));
    }

    #[test]
    fn vids_keep_their_segments() {
        let mut segments = Segments::new();
        let trunk = Membership::Trunk { vlans: vec![vid(200), vid(100), vid(1)], native: Some(vid(1)) };
        let labels = segments.labels(&trunk);
        assert_eq!(labels.segments, [Segment(0), Segment(1), Segment(2)]);
        assert_eq!(labels.untagged, Some(Segment(0)));
        assert_eq!((segments.segment(200), segments.segment(100)), (Some(Segment(1)), Some(Segment(2))));
        assert_eq!(segments.labels(&Membership::Access(vid(100))).untagged, Some(Segment(2)));
        assert_eq!((segments.segment(300), segments.vid(Segment(2)), segments.len()), (None, Some(vid(100)), 3));
    }

    #[test]
    fn a_set_holds_what_was_put_in() {
        let set = VidSet::new([1, 63, 64, 4094].into_iter().map(vid));
        let members: Vec<u16> = (0..=u16::MAX).filter(|number| set.has(*number)).collect();
        assert_eq!(members, [1, 63, 64, 4094]);
    }
}
