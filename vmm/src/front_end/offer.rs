//! [`Offer`]: what a back end offers, and whether that is enough.
//!
//! Invariant: an address is that of one station and an MTU is one that a device can have; what contradicts this is an error of the back
//! end's. Read first: virtio 1.2 section 5.1.4 (configuration space).

use wire::Mac;

use super::{
    ask::{Ask, CONFIG, CONFIG_HEADER},
    error::FrontEndError,
};
use crate::{
    features::Features,
    vhost_user::{device::MIN_MTU, message::Fields},
};

/// What a back end offers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offer {
    /// What the driver may choose from, without what the two of us agree on among ourselves.
    pub features: Features,
    /// The device's address, if it has one.
    pub mac: Option<Mac>,
    /// Largest payload of an Ethernet frame in bytes, if the device names one.
    pub mtu: Option<u16>,
    /// Queue pairs, 1 to [`crate::vhost_user::device::MAX_PAIRS`].
    pub pairs: u16,
}

/// Whether all of `needed` is in `offered`.
pub(super) fn offers(offered: Features, needed: Features) -> Result<(), FrontEndError> {
    let missing = needed.without(offered);
    if missing == Features::default() { Ok(()) } else { Err(FrontEndError::NotOffered(missing)) }
}

/// Address and MTU out of the answer to `GET_CONFIG`, where these fields count (virtio 1.2 section 5.1.4) and can be had.
pub(super) fn configuration(reply: &[u8], offered: Features) -> Result<(Option<Mac>, Option<u16>), FrontEndError> {
    let asked = Ask::Config.code();
    if reply.is_empty() {
        return Ok((None, None));
    }
    let (_, _, expected) = Ask::Config.reply_bytes();
    let short = FrontEndError::ReplySize { asked, size: reply.len() as u32, expected };
    let Some((head, space)) = reply.split_at_checked(CONFIG_HEADER as usize) else { return Err(short) };
    let mut fields = Fields(head);
    let (offset, size) = (fields.u32(), fields.u32());
    if size == 0 && space.is_empty() {
        return Ok((None, None));
    }
    if (offset, size as usize) != (0, space.len()) || space.len() != CONFIG as usize {
        let value = u64::from(size) << 32 | u64::from(offset);
        return Err(FrontEndError::Value {
            asked,
            what: "size and offset",
            value,
            allowed: "those asked for, 12 and 0",
        });
    }
    let [a, b, c, d, e, f, .., low, high] = *space else { return Err(short) };
    let (mac, mtu) = (Mac::new([a, b, c, d, e, f]), u16::from_le_bytes([low, high]));
    if offered.has(Features::MAC) && !mac.is_unicast() {
        let (what, allowed) = ("MAC address (first byte last)", "the address of one station");
        return Err(FrontEndError::Value { asked, what, value: mac.to_bits(), allowed });
    }
    if offered.has(Features::MTU) && mtu < MIN_MTU {
        return Err(FrontEndError::Value { asked, what: "MTU", value: u64::from(mtu), allowed: "68 to 65535" });
    }
    Ok((offered.has(Features::MAC).then_some(mac), offered.has(Features::MTU).then_some(mtu)))
}
