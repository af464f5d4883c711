//! What control tells a tunnel while it runs, and asks it: [`Command`]. Read first: [`wire::inbox`].

use std::{net::IpAddr, sync::mpsc::SyncSender, time::Duration};

use wire::{Mac, Vni};

/// What is known of an endpoint in one network, for people and programs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerLine {
    /// The network.
    pub vni: Vni,
    /// The endpoint's address in the underlay.
    pub address: IpAddr,
    /// Stations of the network behind it.
    pub macs: usize,
    /// The longest IP packet of a guest that reaches it, in bytes.
    pub mtu: u16,
    /// How long it has been silent in all its networks; nothing: it was never heard.
    pub silent: Option<Duration>,
}

/// A station that moved to and fro between two endpoints, and is held behind one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlapLine {
    /// The network.
    pub vni: Vni,
    /// Its address.
    pub mac: Mac,
    /// The endpoint it is held behind, and the one where it was heard last.
    pub between: [IpAddr; 2],
    /// Times that it moved, or would have.
    pub moves: u64,
    /// Seconds for which it is held yet; zero when it was held within the last ten minutes.
    pub held: u32,
}

/// What a tunnel is told.
#[derive(Debug)]
pub enum Command {
    /// Tell what is known of endpoints, network by network.
    Show(SyncSender<Vec<PeerLine>>),
    /// Tell which stations move to and fro.
    Flapping(SyncSender<Vec<FlapLine>>),
}

/// Control's end.
pub type Remote = wire::inbox::Remote<Command>;
/// The tunnel's end.
pub type Inbox = wire::inbox::Inbox<Command>;
