//! What control tells an engine while it runs, and asks it: [`Command`], sent by a [`Remote`], read from an [`Inbox`] between frames.
//!
//! Invariant: an engine never waits for control. Both engines understand every command; what an engine cannot do it answers with the reason.
//! Read first: [`wire::inbox`].

use std::{net::SocketAddr, sync::mpsc::SyncSender};

use wire::NicId;

use crate::{prefix::Prefix, record::Protocol};

/// Ports of an outside address that lead to ports inside, one to one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Publication {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// The first port outside; an unspecified address means every address of the host (sockets) or of the pool (packet).
    pub listen: SocketAddr,
    /// Where the first port leads; the others to the ports after it. May be of the other family than `listen` where connections
    /// are made anew (sockets).
    pub to: SocketAddr,
    /// How many ports.
    pub count: u16,
    /// The NIC that `to` is behind, if that is known.
    pub nic: Option<NicId>,
}

/// What is remembered of one mapping or connection, for people and programs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// TCP, UDP or ICMP queries.
    pub protocol: Protocol,
    /// Whose it is.
    pub nic: NicId,
    /// The endpoint inside; of ICMP, the port is the identifier.
    pub inside: SocketAddr,
    /// What the outside sees, if that is known.
    pub outside: Option<SocketAddr>,
    /// Who is spoken to, of connections and of what has spoken to one only.
    pub remote: Option<SocketAddr>,
    /// How far it is: a word.
    pub state: &'static str,
    /// Seconds until it is forgotten if no packet comes; nothing when it stays.
    pub expires: Option<u32>,
    /// Packets, both ways.
    pub packets: u64,
    /// Bytes of these.
    pub bytes: u64,
}

/// What an engine is told.
#[derive(Debug)]
pub enum Command {
    /// Begin to forward; the answer says why not, in which case nothing has changed.
    Publish(Publication, SyncSender<Result<(), String>>),
    /// End a publication and the connections that came through it; false: it was not there.
    Withdraw(Publication, SyncSender<bool>),
    /// Tell everything that is remembered.
    Show(SyncSender<Vec<Line>>),
    /// The addresses that this host has now: guests reach none of them unless the host is theirs to reach, and their connections to what
    /// has become one end (sockets).
    HostAddresses(Vec<Prefix>),
}

/// Control's end of the way to an engine.
pub type Remote = wire::inbox::Remote<Command>;
/// The engine's end.
pub type Inbox = wire::inbox::Inbox<Command>;

/// Both ends of the way from control to an engine.
pub fn remote() -> (Remote, Inbox) {
    wire::inbox::remote()
}
