//! What control tells a tunnel while it runs, and asks it: [`Command`]. Read first: [`wire::inbox`].

use std::{net::IpAddr, sync::mpsc::SyncSender, time::Duration};

use wire::Vni;

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

/// What a tunnel is told.
#[derive(Debug)]
pub enum Command {
    /// Tell what is known of endpoints, network by network.
    Show(SyncSender<Vec<PeerLine>>),
}

/// Control's end.
pub type Remote = wire::inbox::Remote<Command>;
/// The tunnel's end.
pub type Inbox = wire::inbox::Inbox<Command>;
