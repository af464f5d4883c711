//! The NIC as smoltcp wants it: [`Wire`], one frame at a time, with a VLAN tag put on and taken off.
//!
//! Invariant: frames of another VLAN than the guest's are not seen by the stack. Checksums of what comes in are not looked at: between
//! guests of one host they are often still owed (virtio 1.2 section 5.1.6.4.1).

use alloc::{collections::VecDeque, vec::Vec};

use smoltcp::{
    phy::{Checksum, Device, DeviceCapabilities, Medium, RxToken, TxToken},
    time::Instant,
};

use crate::platform::{Header, Platform};

/// The Ethernet header, and the longest IP packet that the stack makes, however wide its network is.
const ETHERNET: usize = 14;
const LONGEST: u16 = 1500;
/// Bytes of an 802.1Q tag.
const TAG: usize = 4;
/// Frames that wait for the stack, at most.
const WAITING: usize = 256;

/// Frames on their way to the stack, and buffers that were used before.
#[derive(Default)]
pub(crate) struct Inbox {
    frames: VecDeque<Vec<u8>>,
    spare: Vec<Vec<u8>>,
}

impl Inbox {
    /// Keeps a copy of a frame for the stack. When too many wait, it is lost, as in any NIC.
    pub(crate) fn push(&mut self, vlan: Option<u16>, frame: &[u8]) {
        let tag = match frame.get(12..16) {
            Some(&[0x81, 0, high, low]) => Some(u16::from_be_bytes([high, low]) & 0xfff),
            _ => None,
        };
        if tag != vlan || self.frames.len() >= WAITING {
            return;
        }
        let mut copy = self.spare.pop().unwrap_or_default();
        copy.clear();
        match (tag, frame.get(..12), frame.get(12 + TAG..)) {
            (Some(_), Some(addresses), Some(rest)) => {
                copy.extend_from_slice(addresses);
                copy.extend_from_slice(rest);
            }
            _ => copy.extend_from_slice(frame),
        }
        self.frames.push_back(copy);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }
}

/// A platform's NIC for the length of one poll.
pub(crate) struct Wire<'a, P> {
    pub(crate) platform: &'a mut P,
    pub(crate) inbox: &'a mut Inbox,
    pub(crate) vlan: Option<u16>,
    /// Where a frame is put together before it goes.
    pub(crate) scratch: &'a mut Vec<u8>,
}

impl<P: Platform> Device for Wire<'_, P> {
    type RxToken<'t>
        = Incoming<'t>
    where
        Self: 't;
    type TxToken<'t>
        = Outgoing<'t, P>
    where
        Self: 't;

    fn receive(&mut self, _: Instant) -> Option<(Incoming<'_>, Outgoing<'_, P>)> {
        // A frame may ask for an answer: without room for that it waits.
        if !self.platform.has_room() {
            return None;
        }
        let frame = self.inbox.frames.pop_front()?;
        let incoming = Incoming { frame: Some(frame), spare: &mut self.inbox.spare };
        Some((incoming, Outgoing { platform: self.platform, vlan: self.vlan, scratch: self.scratch }))
    }

    fn transmit(&mut self, _: Instant) -> Option<Outgoing<'_, P>> {
        self.platform.has_room().then_some(Outgoing { platform: self.platform, vlan: self.vlan, scratch: self.scratch })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = ETHERNET + usize::from(self.platform.mtu().min(LONGEST));
        capabilities.checksum.tcp = Checksum::Tx;
        capabilities.checksum.udp = Checksum::Tx;
        capabilities
    }
}

/// A frame for the stack to look at.
pub(crate) struct Incoming<'t> {
    frame: Option<Vec<u8>>,
    spare: &'t mut Vec<Vec<u8>>,
}

impl RxToken for Incoming<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(mut self, f: F) -> R {
        let frame = self.frame.take().unwrap_or_default();
        let result = f(&frame);
        self.spare.push(frame);
        result
    }
}

/// Room for a frame of the stack.
pub(crate) struct Outgoing<'t, P> {
    platform: &'t mut P,
    vlan: Option<u16>,
    scratch: &'t mut Vec<u8>,
}

impl<P: Platform> TxToken for Outgoing<'_, P> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        self.scratch.clear();
        self.scratch.resize(len, 0);
        let result = f(self.scratch);
        let (addresses, rest) = self.scratch.split_at(len.min(12));
        let [high, low] = self.vlan.unwrap_or(0).to_be_bytes();
        let tag = [0x81, 0, high, low];
        let tag = if self.vlan.is_some() { tag.as_slice() } else { &[] };
        // There is room for one: tokens are given out only then.
        let _ = self.platform.send(Header::NONE, &[addresses, tag, rest]);
        result
    }
}
