//! [`Change`]: what control tells a worker, between turns; [`Report`] and [`Failure`]: what a worker tells back.
//!
//! Invariant: a change carries everything it needs by value; a worker never waits for control.

use std::{net::IpAddr, sync::mpsc::SyncSender};

use wire::{Counters, Ledger, Mac, NicId, Port, Vid, filter::RxFilter};

use crate::{
    bridge::{BridgeSpec, FdbEntry, Flapping, NicSpec},
    fdb::StaticError,
};

/// A bridge of a worker, by its place in the worker's table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BridgeId(pub u16);

/// What control tells a worker.
pub enum Change {
    /// A bridge begins, empty.
    AddBridge {
        /// Its place, chosen by control.
        id: BridgeId,
        /// How it behaves.
        spec: BridgeSpec,
    },
    /// A bridge ends. Its NICs were removed before.
    RemoveBridge {
        /// Its place.
        id: BridgeId,
    },
    /// A NIC joins a bridge, without lanes.
    AddNic {
        /// Its place, chosen by control.
        nic: NicId,
        /// Its bridge.
        bridge: BridgeId,
        /// How it is treated.
        spec: NicSpec,
    },
    /// A NIC is declared with other IP addresses than before ([`NicSpec::addresses`]).
    SetAddresses {
        /// The NIC.
        nic: NicId,
        /// All of them.
        addresses: Vec<IpAddr>,
    },
    /// A NIC leaves; its ports are dropped.
    RemoveNic {
        /// Its place.
        nic: NicId,
    },
    /// An address is behind a NIC, whatever is learnt.
    AddStatic {
        /// The bridge.
        bridge: BridgeId,
        /// The VLAN; none means the untagged segment.
        vlan: Option<Vid>,
        /// The address.
        mac: Mac,
        /// The NIC.
        nic: NicId,
        /// What came of it.
        reply: SyncSender<Result<(), StaticError>>,
    },
    /// Stations are behind a NIC by control's word, or are so no longer ([`crate::Bridge::tell`]).
    Tell {
        /// A NIC of the bridge.
        nic: NicId,
        /// The VLAN; none means the untagged segment.
        vlan: Option<Vid>,
        /// The stations, each with whether it is there.
        stations: Vec<(Mac, bool)>,
    },
    /// A station is not known to be where it was heard: it has gone somewhere that it will not be heard from. What is static or told stays.
    Forget {
        /// A NIC of the bridge.
        nic: NicId,
        /// The VLAN; none means the untagged segment.
        vlan: Option<Vid>,
        /// The station.
        mac: Mac,
    },
    /// A lane of a NIC begins to work; a port that is there already is dropped.
    Attach {
        /// The NIC.
        nic: NicId,
        /// Which lane of it.
        lane: u16,
        /// Its port.
        port: Box<dyn Port>,
    },
    /// The port of a NIC's first lane serves another NIC of the same worker, too: it is told by [`wire::Context::nic`] which of them it is
    /// called for, and sends into the bridges of both by answers. It ends with the port.
    AttachToo {
        /// The other NIC.
        nic: NicId,
        /// The NIC whose port it is.
        to: NicId,
    },
    /// A lane ends; its port is dropped.
    Detach {
        /// The NIC.
        nic: NicId,
        /// Which lane of it.
        lane: u16,
    },
    /// The driver of a NIC wants other frames than before.
    Filter {
        /// The NIC.
        nic: NicId,
        /// What it wants.
        filter: Box<RxFilter>,
    },
    /// The driver of a NIC uses its first lanes only.
    Pairs {
        /// The NIC.
        nic: NicId,
        /// How many.
        pairs: u16,
    },
    /// A frame (Ethernet, without FCS) is sent as if the NIC had sent it.
    Originate {
        /// The NIC.
        nic: NicId,
        /// The frame.
        bytes: Vec<u8>,
    },
    /// What the worker counted and learnt is told.
    Show {
        /// Where to.
        reply: SyncSender<Report>,
    },
    /// The worker ends.
    Stop,
}

/// A port that failed and was detached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The NIC.
    pub nic: NicId,
    /// Which lane of it.
    pub lane: u16,
    /// Why.
    pub reason: String,
}

/// What a worker counted since it started, and what its bridges learnt.
pub struct Report {
    /// The CPU it is pinned to.
    pub cpu: Option<usize>,
    /// Frames received.
    pub frames: u64,
    /// TSC cycles of rounds in which frames were received.
    pub busy_cycles: u64,
    /// TSC cycles of all other rounds, sleep included.
    pub idle_cycles: u64,
    /// The sums of all frames.
    pub ledger: Ledger,
    /// What each NIC received, was sent and lost.
    pub counters: Vec<(NicId, Counters)>,
    /// What each bridge learnt.
    pub fdb: Vec<(BridgeId, Vec<FdbEntry>)>,
    /// Stations that move to and fro, of all bridges.
    pub flapping: Vec<Flapping>,
}
