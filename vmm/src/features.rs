//! [`Features`]: what a virtio-net device and its driver agreed on.
//!
//! Invariant: a set of feature bits of virtio 1.2 (sections 5.1.3 and 6) and of vhost-user; unknown bits are never offered.

/// A set of virtio feature bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features(pub u64);

macro_rules! bits {
    ($($(#[$doc:meta])* $name:ident = $bit:literal,)*) => {
        impl Features {
            $($(#[$doc])* pub const $name: Features = Features(1 << $bit);)*

            /// The names of the bits in the set, in the order of their numbers.
            pub fn names(self) -> Vec<&'static str> {
                [$((Features::$name, stringify!($name)),)*].into_iter().filter(|(bit, _)| self.has(*bit)).map(|(_, n)| n).collect()
            }
        }
    };
}

bits! {
    /// The device completes partial checksums of the driver's frames.
    CSUM = 0,
    /// The driver takes frames with partial checksums.
    GUEST_CSUM = 1,
    /// The device names the MTU.
    MTU = 3,
    /// The device has a MAC address.
    MAC = 5,
    /// The driver takes TCP/IPv4 super-frames.
    GUEST_TSO4 = 7,
    /// The driver takes TCP/IPv6 super-frames.
    GUEST_TSO6 = 8,
    /// The driver takes TCP super-frames with ECN.
    GUEST_ECN = 9,
    /// The device takes TCP/IPv4 super-frames.
    HOST_TSO4 = 11,
    /// The device takes TCP/IPv6 super-frames.
    HOST_TSO6 = 12,
    /// The device takes TCP super-frames with ECN.
    HOST_ECN = 13,
    /// A frame may span several receive buffers.
    MRG_RXBUF = 15,
    /// The configuration space has a status field.
    STATUS = 16,
    /// There is a control virtqueue.
    CTRL_VQ = 17,
    /// Receive modes by the control virtqueue.
    CTRL_RX = 18,
    /// VLAN filtering by the control virtqueue.
    CTRL_VLAN = 19,
    /// More receive modes by the control virtqueue.
    CTRL_RX_EXTRA = 20,
    /// The driver announces itself when the device asks for it.
    GUEST_ANNOUNCE = 21,
    /// Several queue pairs.
    MQ = 22,
    /// The MAC address by the control virtqueue.
    CTRL_MAC_ADDR = 23,
    /// All writes are logged (`VHOST_F_LOG_ALL`).
    LOG_ALL = 26,
    /// Indirect descriptors.
    INDIRECT_DESC = 28,
    /// `used_event` and `avail_event`.
    EVENT_IDX = 29,
    /// The front end speaks vhost-user protocol features.
    PROTOCOL_FEATURES = 30,
    /// Virtio 1.
    VERSION_1 = 32,
    /// Packed virtqueues.
    RING_PACKED = 34,
    /// Buffers are used in the order in which they were made available.
    IN_ORDER = 35,
    /// The driver takes UDP super-frames over IPv4.
    GUEST_USO4 = 54,
    /// The driver takes UDP super-frames over IPv6.
    GUEST_USO6 = 55,
    /// The device takes UDP super-frames.
    HOST_USO = 56,
}

impl Features {
    /// Whether all of `other` is in it.
    #[inline]
    pub const fn has(self, other: Features) -> bool {
        self.0 & other.0 == other.0
    }

    /// Both sets together.
    pub const fn with(self, other: Features) -> Features {
        Features(self.0 | other.0)
    }

    /// The set without `other`.
    pub const fn without(self, other: Features) -> Features {
        Features(self.0 & !other.0)
    }

    /// What a driver that agreed on these can be given as it is.
    pub fn accepts(self) -> wire::Accepts {
        use wire::Accepts;
        if !self.has(Features::GUEST_CSUM) {
            return Accepts::NONE;
        }
        let pairs = [
            (Features::GUEST_CSUM, Accepts::CSUM),
            (Features::GUEST_TSO4, Accepts::TSO4),
            (Features::GUEST_TSO6, Accepts::TSO6),
            (Features::GUEST_ECN, Accepts::ECN),
            (Features::GUEST_USO4.with(Features::GUEST_USO6), Accepts::USO),
        ];
        pairs.into_iter().filter(|(bit, _)| self.has(*bit)).fold(Accepts::NONE, |set, (_, accepts)| set.with(accepts))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn super_frames_need_partial_checksums() {
        assert_eq!(Features::GUEST_TSO4.accepts(), wire::Accepts::NONE);
        let both = Features::GUEST_TSO4.with(Features::GUEST_CSUM).accepts();
        assert!(both.has(wire::Accepts::TSO4) && both.has(wire::Accepts::CSUM) && !both.has(wire::Accepts::TSO6));
    }
}
