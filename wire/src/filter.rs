//! [`RxFilter`]: which frames a driver wants to receive, as it told its device by the control queue.
//!
//! Invariant: a filter only ever takes frames away from the NIC it belongs to. Read first: virtio 1.2 sections 5.1.6.5.1 to 5.1.6.5.3.

use crate::{Burst, Context, DropReason, Head, Mac};

/// The identifiers of the VLANs that a driver wants to receive: one bit each, 4096 of them.
#[derive(Clone, PartialEq, Eq)]
pub struct VlanSet([u64; 64]);

impl Default for VlanSet {
    fn default() -> Self {
        VlanSet([0; 64])
    }
}

impl VlanSet {
    /// Whether the identifier (0 to 4095) is in it.
    pub fn has(&self, vid: u16) -> bool {
        self.0.get(usize::from(vid >> 6)).is_some_and(|word| word >> (vid & 63) & 1 != 0)
    }

    /// Puts the identifier in or takes it out; false when it is above 4095.
    pub fn set(&mut self, vid: u16, member: bool) -> bool {
        let Some(word) = self.0.get_mut(usize::from(vid >> 6)) else { return false };
        let bit = 1 << (vid & 63);
        *word = if member { *word | bit } else { *word & !bit };
        true
    }
}

impl std::fmt::Debug for VlanSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries((0..4096).filter(|vid| self.has(*vid))).finish()
    }
}

/// Which frames a driver wants to receive (virtio 1.2 section 5.1.6.5.1 to 5.1.6.5.3).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RxFilter {
    /// All frames, whatever their destination.
    pub promiscuous: bool,
    /// All multicast frames.
    pub all_multicast: bool,
    /// All unicast frames.
    pub all_unicast: bool,
    /// No multicast frames.
    pub no_multicast: bool,
    /// No unicast frames.
    pub no_unicast: bool,
    /// No broadcast frames.
    pub no_broadcast: bool,
    /// The device's own address, once the driver has set it.
    pub mac: Option<Mac>,
    /// Other unicast addresses that are wanted.
    pub unicast: Vec<Mac>,
    /// Multicast addresses that are wanted.
    pub multicast: Vec<Mac>,
    /// The VLANs that are wanted; nothing when the driver does not filter by VLAN. Untagged frames always are.
    pub vlans: Option<VlanSet>,
}

impl Default for RxFilter {
    /// Everything passes: what a driver that never asked for less expects of a switch.
    fn default() -> Self {
        RxFilter {
            promiscuous: true,
            all_multicast: false,
            all_unicast: false,
            no_multicast: false,
            no_unicast: false,
            no_broadcast: false,
            mac: None,
            unicast: Vec::new(),
            multicast: Vec::new(),
            vlans: None,
        }
    }
}

impl RxFilter {
    /// Whether it lets everything pass, so that no frame needs to be looked at.
    pub fn is_open(&self) -> bool {
        self.promiscuous && !self.no_multicast && !self.no_unicast && !self.no_broadcast && self.vlans.is_none()
    }

    /// Takes out of a burst what the driver it goes to does not want.
    #[cold]
    pub fn drop_unwanted(&self, cx: &mut Context, burst: &mut Burst) {
        let mut wanted = Burst::default();
        for frame in burst.drain() {
            if self.passes(cx.heads.get(&frame)) {
                // As many frames as came fit again.
                let _ = wanted.push(frame);
            } else {
                cx.drop(frame, DropReason::Filtered);
            }
        }
        *burst = wanted;
    }

    /// Whether the driver wants the frame that begins with this head.
    pub fn passes(&self, head: &Head) -> bool {
        if let (Some(vlans), 0x8100) = (&self.vlans, head.ethertype()) {
            let vid = head
                .bytes()
                .get(14..16)
                .and_then(|tag| tag.first_chunk::<2>())
                .map_or(0, |tag| u16::from_be_bytes(*tag));
            if vid & 0xfff != 0 && !vlans.has(vid & 0xfff) {
                return false;
            }
        }
        let to = Mac::from_bits(head.macs().0);
        if to.is_broadcast() {
            !self.no_broadcast
        } else if to.is_group() {
            !self.no_multicast && (self.promiscuous || self.all_multicast || self.multicast.contains(&to))
        } else {
            let known = self.mac.is_none_or(|mac| mac == to) || self.unicast.contains(&to);
            !self.no_unicast && (self.promiscuous || self.all_unicast || known)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Context, NicId, Origin, Sizes};

    fn passes(filter: &RxFilter, bytes: &[u8]) -> bool {
        let mut cx = Context::new(Sizes::default()).unwrap();
        cx.add_nic(NicId(0));
        let frame = cx.originate(Origin::default(), bytes).unwrap();
        filter.passes(cx.heads.get(&frame))
    }

    fn to(mac: &str) -> [u8; 60] {
        let mut frame = [0; 60];
        frame[..6].copy_from_slice(&mac.parse::<Mac>().unwrap().bytes());
        frame
    }

    #[test]
    fn a_driver_that_is_not_promiscuous_gets_what_it_listed() {
        let listed: Mac = "01:00:5e:00:00:05".parse().unwrap();
        let own: Mac = "02:00:00:00:00:01".parse().unwrap();
        let filter = RxFilter { promiscuous: false, mac: Some(own), multicast: vec![listed], ..RxFilter::default() };
        assert!(!filter.is_open());
        assert!(passes(&filter, &to("02:00:00:00:00:01")) && !passes(&filter, &to("02:00:00:00:00:02")));
        assert!(passes(&filter, &to("01:00:5e:00:00:05")) && !passes(&filter, &to("01:00:5e:00:00:06")));
        assert!(passes(&filter, &to("ff:ff:ff:ff:ff:ff")));
        assert!(passes(&RxFilter { all_multicast: true, ..filter.clone() }, &to("01:00:5e:00:00:06")));
        assert!(!passes(&RxFilter { no_broadcast: true, ..filter }, &to("ff:ff:ff:ff:ff:ff")));
    }

    #[test]
    fn vlans_not_asked_for_do_not_pass_and_untagged_frames_do() {
        let mut vlans = VlanSet::default();
        assert!(vlans.set(100, true) && !vlans.set(4096, true));
        let filter = RxFilter { vlans: Some(vlans), ..RxFilter::default() };
        let mut tagged = to("02:00:00:00:00:01");
        tagged[12..16].copy_from_slice(&[0x81, 0, 0, 100]);
        assert!(passes(&filter, &tagged) && passes(&filter, &to("02:00:00:00:00:01")));
        tagged[15] = 101;
        assert!(!passes(&filter, &tagged));
    }
}
