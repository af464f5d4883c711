//! [`Device`]: the network device that a driver sees: features, configuration space, number of queues.
//!
//! Invariant: what is offered is what is served; a device has 1 to [`MAX_PAIRS`] queue pairs, so that every ring has an index of 8 bits.
//! Read first: virtio 1.2 sections 5.1.3 (features) and 5.1.4 (configuration space).

use std::path::PathBuf;

use wire::Mac;

use super::message::CONFIG_BYTES;
use crate::features::Features;

/// The most queue pairs of a device: with a control queue behind them, ring indices end at 254 (vhost-user has 8 bits for them).
pub const MAX_PAIRS: u16 = 127;
/// The smallest MTU of a device (virtio 1.2 section 5.1.4.1).
pub const MIN_MTU: u16 = 68;

/// Protocol features of vhost-user that are offered, as the specification names them. `BACKEND_REQ` is offered for User-mode Linux alone,
/// which finds no interrupt for its rings without it; nothing is ever asked by that way.
pub mod protocol {
    #![allow(missing_docs)]
    pub const MQ: u64 = 1 << 0;
    pub const LOG_SHMFD: u64 = 1 << 1;
    pub const RARP: u64 = 1 << 2;
    pub const REPLY_ACK: u64 = 1 << 3;
    pub const MTU: u64 = 1 << 4;
    pub const BACKEND_REQ: u64 = 1 << 5;
    pub const CONFIG: u64 = 1 << 9;
    pub const INFLIGHT_SHMFD: u64 = 1 << 12;
    pub const RESET_DEVICE: u64 = 1 << 13;
    pub const CONFIGURE_MEM_SLOTS: u64 = 1 << 15;
    pub const STATUS: u64 = 1 << 16;

    /// All of them.
    pub const OFFERED: u64 = MQ
        | LOG_SHMFD
        | RARP
        | REPLY_ACK
        | MTU
        | BACKEND_REQ
        | CONFIG
        | INFLIGHT_SHMFD
        | RESET_DEVICE
        | CONFIGURE_MEM_SLOTS
        | STATUS;
}

/// Offered by every device.
const ALWAYS: [Features; 26] = [
    Features::CSUM,
    Features::GUEST_CSUM,
    Features::GUEST_TSO4,
    Features::GUEST_TSO6,
    Features::GUEST_ECN,
    Features::GUEST_USO4,
    Features::GUEST_USO6,
    Features::HOST_TSO4,
    Features::HOST_TSO6,
    Features::HOST_ECN,
    Features::HOST_USO,
    Features::MRG_RXBUF,
    Features::STATUS,
    Features::CTRL_VQ,
    Features::CTRL_RX,
    Features::CTRL_RX_EXTRA,
    Features::CTRL_VLAN,
    Features::CTRL_MAC_ADDR,
    Features::GUEST_ANNOUNCE,
    Features::LOG_ALL,
    Features::INDIRECT_DESC,
    Features::EVENT_IDX,
    Features::PROTOCOL_FEATURES,
    Features::VERSION_1,
    Features::RING_PACKED,
    Features::IN_ORDER,
];

/// `VIRTIO_NET_S_LINK_UP`.
const STATUS_LINK_UP: u16 = 1;

/// What a port is to its driver.
#[derive(Clone, Debug, Default)]
pub struct Device {
    /// Queue pairs, 1 to [`MAX_PAIRS`]; other numbers count as the nearest of these.
    pub queues: u16,
    /// Largest payload of an Ethernet frame in bytes; nothing: the device names none.
    pub mtu: Option<u16>,
    /// The address that drivers get which leave it to the device.
    pub mac: Option<Mac>,
    /// Where the positions of packed rings are kept over our death: a path to which each ring appends its number. Nothing: nowhere.
    pub journal: Option<PathBuf>,
}

impl Device {
    /// Queue pairs.
    pub fn pairs(&self) -> u16 {
        self.queues.clamp(1, MAX_PAIRS)
    }

    /// What the driver may choose from.
    pub fn offered(&self) -> Features {
        let always = ALWAYS.into_iter().fold(Features::default(), Features::with);
        let optional = [
            (Features::MTU, self.mtu.is_some()),
            (Features::MAC, self.mac.is_some()),
            (Features::MQ, self.pairs() > 1),
        ];
        optional.into_iter().filter(|(_, offer)| *offer).fold(always, |set, (bit, _)| set.with(bit))
    }

    /// The configuration space (`struct virtio_net_config`, little endian) with the address and MTU in force; the rest is zero.
    pub fn config_space(&self, mac: Option<Mac>, mtu: Option<u16>) -> [u8; CONFIG_BYTES] {
        let mut space = [0; CONFIG_BYTES];
        let mac = mac.map_or([0; 6], Mac::bytes);
        let words = [STATUS_LINK_UP, self.pairs(), mtu.unwrap_or(0)];
        let bytes = mac.into_iter().chain(words.iter().flat_map(|word| word.to_le_bytes()));
        space.iter_mut().zip(bytes).for_each(|(to, byte)| *to = byte);
        space
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_space_is_laid_out_as_virtio_says() {
        let device = Device { queues: 4, mtu: Some(9000), ..Device::default() };
        let space = device.config_space(Some("02:00:00:00:00:05".parse().unwrap()), device.mtu);
        assert_eq!(space.get(..12).unwrap(), [2, 0, 0, 0, 0, 5, 1, 0, 4, 0, 0x28, 0x23]);
        assert!(space.iter().skip(12).all(|byte| *byte == 0));
    }

    #[test]
    fn some_features_depend_on_the_port() {
        let plain = Device::default();
        let rich = Device { queues: 2, mtu: Some(1500), mac: Some(Mac::new([2; 6])), journal: None };
        let more = Features::MTU.with(Features::MAC).with(Features::MQ);
        assert_eq!(plain.offered().0 & more.0, 0);
        assert!(rich.offered().has(more));
        assert_eq!(Device { queues: 1000, ..Device::default() }.pairs(), MAX_PAIRS);
    }
}
