//! [`Ask`]: what a front end asks of a back end, and how that looks on the wire.
//!
//! Invariant: a message has the size and descriptors that [`crate::vhost_user::request`] reads it with.
//! Read first: vhost-user specification, "Front-end message types".

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
};

use super::setup::DeviceSetup;
use crate::{
    features::Features,
    vhost_user::{
        device::protocol,
        message::{Header, code},
        session::replies,
    },
};

/// Bytes of the configuration space that are asked for: address, status, queue pairs, MTU (virtio 1.2 section 5.1.4).
pub(super) const CONFIG: u32 = 12;
/// Bytes before them in the message: offset, size, flags.
pub(super) const CONFIG_HEADER: u32 = 12;

/// Protocol features that are of use here. A back end asks nothing of us, the dirty log is for migration, and one table is memory enough.
pub(super) const PROTOCOL: u64 = protocol::MQ | protocol::REPLY_ACK | protocol::CONFIG | protocol::STATUS;

/// The bits of the device status (virtio 1.2 section 2.1).
pub(super) mod status {
    pub const ACKNOWLEDGE: u8 = 1;
    pub const DRIVER: u8 = 2;
    pub const DRIVER_OK: u8 = 4;
    pub const FEATURES_OK: u8 = 8;
}

/// One message. Those about a ring have its index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ask {
    Features,
    ProtocolFeatures,
    AgreeProtocol(u64),
    Owner,
    Pairs,
    Config,
    Agree(Features),
    Memory,
    Size(u16),
    Base(u16),
    Address(u16),
    Call(u16),
    Kick(u16),
    Enable(u16),
    Status(u8),
    Stop(u16),
}

impl Ask {
    /// Its request code.
    pub(super) fn code(self) -> u32 {
        match self {
            Ask::Features => code::GET_FEATURES,
            Ask::ProtocolFeatures => code::GET_PROTOCOL_FEATURES,
            Ask::AgreeProtocol(_) => code::SET_PROTOCOL_FEATURES,
            Ask::Owner => code::SET_OWNER,
            Ask::Pairs => code::GET_QUEUE_NUM,
            Ask::Config => code::GET_CONFIG,
            Ask::Agree(_) => code::SET_FEATURES,
            Ask::Memory => code::SET_MEM_TABLE,
            Ask::Size(_) => code::SET_VRING_NUM,
            Ask::Base(_) => code::SET_VRING_BASE,
            Ask::Address(_) => code::SET_VRING_ADDR,
            Ask::Call(_) => code::SET_VRING_CALL,
            Ask::Kick(_) => code::SET_VRING_KICK,
            Ask::Enable(_) => code::SET_VRING_ENABLE,
            Ask::Status(_) => code::SET_STATUS,
            Ask::Stop(_) => code::GET_VRING_BASE,
        }
    }

    /// The least and the most bytes of its reply, in words for people too.
    pub(super) fn reply_bytes(self) -> (u32, u32, &'static str) {
        match self {
            // No bytes of the space say that it cannot be read.
            Ask::Config => (0, CONFIG_HEADER + CONFIG, "24, or 12 for a refusal"),
            _ => (8, 8, "8"),
        }
    }

    /// The message about this device, with an acknowledgement asked for where back end and message have one.
    pub(super) fn message(self, acknowledged: bool, setup: Option<&DeviceSetup>) -> io::Result<Outgoing> {
        let request = self.code();
        let has_reply = replies(request);
        // Agreed on by this very message.
        let can_acknowledge = acknowledged && !matches!(self, Ask::AgreeProtocol(_));
        let mut fds = Vec::new();
        let mut payload = Vec::new();
        let state = |ring: u16, value: u32| [u32::from(ring).to_ne_bytes(), value.to_ne_bytes()].concat();
        let ring = |index: u16| {
            let ring = setup.and_then(|setup| setup.rings.get(usize::from(index)));
            ring.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("ring {index} was not set up")))
        };
        match self {
            Ask::Features | Ask::ProtocolFeatures | Ask::Owner | Ask::Pairs => {}
            Ask::AgreeProtocol(bits) => payload = bits.to_ne_bytes().to_vec(),
            Ask::Config => {
                payload = [0, CONFIG, 0].into_iter().flat_map(u32::to_ne_bytes).collect();
                // The answer has the question's size, so the bytes asked for are there, too.
                payload.resize((CONFIG_HEADER + CONFIG) as usize, 0);
            }
            Ask::Agree(features) => payload = features.0.to_ne_bytes().to_vec(),
            Ask::Memory => {
                let regions = setup.map_or(&[][..], |setup| setup.memory.regions());
                payload = (regions.len() as u64).to_ne_bytes().to_vec();
                for region in regions {
                    payload.extend(region.spec.to_bytes());
                    fds.push(region.file.try_clone()?);
                }
            }
            Ask::Size(index) => payload = state(index, u32::from(ring(index)?.size)),
            Ask::Base(index) => payload = state(index, ring(index)?.base),
            Ask::Address(index) => {
                let at = ring(index).map(|ring| setup.map(|setup| setup.address(ring)))?;
                payload = state(index, 0);
                let parts = at.map_or([0; 4], |at| [at.descriptors, at.used, at.avail, 0]);
                payload.extend(parts.into_iter().flat_map(u64::to_ne_bytes));
            }
            Ask::Call(index) | Ask::Kick(index) => {
                let ring = ring(index)?;
                let bell = if matches!(self, Ask::Call(_)) { &ring.call } else { &ring.kick };
                fds.push(bell.as_fd().try_clone_to_owned()?);
                payload = u64::from(index).to_ne_bytes().to_vec();
            }
            Ask::Enable(index) => payload = state(index, 1),
            Ask::Status(bits) => payload = u64::from(bits).to_ne_bytes().to_vec(),
            Ask::Stop(index) => payload = state(index, 0),
        }
        let header = Header { request, need_reply: can_acknowledge && !has_reply, size: payload.len() as u32 };
        let bytes = [&header.to_bytes()[..], &payload].concat();
        Ok(Outgoing { bytes, fds, is_answered: has_reply || header.need_reply })
    }
}

/// A message as it goes onto the wire.
#[derive(Debug)]
pub(super) struct Outgoing {
    /// Header and payload.
    pub(super) bytes: Vec<u8>,
    /// Descriptors to attach.
    pub(super) fds: Vec<OwnedFd>,
    /// Whether a reply is due.
    pub(super) is_answered: bool,
}
