//! What control tells a tunnel while it runs, and asks it: [`Command`].
//!
//! Invariant: a command that names what is not there (any more) changes nothing. Read first: [`wire::inbox`].

use std::{net::IpAddr, sync::mpsc::SyncSender, time::Duration};

use wire::{Instant, Mac, NicId, Vni};

use crate::{
    locals::{Locals, Present},
    vtep::{NetworkId, Vtep},
};

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
    /// What is sent to it is sealed.
    pub sealed: bool,
    /// Under seal: how old the session with it is; nothing: there is none.
    pub session: Option<Duration>,
    /// Who says that it is there.
    pub source: Source,
}

/// Where it is known from that an endpoint takes part in a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The configuration names it.
    Configured,
    /// Control has told of it.
    Control,
    /// It was heard.
    Heard,
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

/// A station behind an endpoint, for people and programs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StationLine {
    /// The network.
    pub vni: Vni,
    /// Its address.
    pub mac: Mac,
    /// The endpoint's address in the underlay.
    pub address: IpAddr,
    /// Seconds since it was last heard; zero where it was placed.
    pub age: u32,
    /// It was placed there by control or configuration.
    pub placed: bool,
}

/// What a tunnel is told.
#[derive(Debug)]
pub enum Command {
    /// Tell what is known of endpoints, network by network.
    Show(SyncSender<Vec<PeerLine>>),
    /// Tell the addresses of endpoints that networks name.
    Remotes(SyncSender<Vec<IpAddr>>),
    /// The longest IP packet of the underlay that reaches an endpoint, as somebody has tried out.
    Path(IpAddr, u16),
    /// Tell which stations move to and fro.
    Flapping(SyncSender<Vec<FlapLine>>),
    /// Tell which stations are behind which endpoint.
    Stations(SyncSender<Vec<StationLine>>),
    /// An endpoint takes part in a network; the longest IP packet that its path takes, in bytes.
    Join(NetworkId, IpAddr, u16),
    /// It does so no longer.
    Part(NetworkId, IpAddr),
    /// A station is behind an endpoint that takes part in its network.
    Place(NetworkId, Mac, IpAddr),
    /// A station is behind no endpoint.
    Forget(NetworkId, Mac),
    /// An IP address is that of a station behind an endpoint.
    PlaceNeighbour(NetworkId, IpAddr, Mac),
    /// It is so no longer.
    ForgetNeighbour(NetworkId, IpAddr),
    /// A station of this host is not here any more: when it speaks, that is news.
    ForgetLocal(NetworkId, Mac),
    /// So are all that spoke at a NIC, and what they said of their addresses is forgotten.
    ForgetNic(NicId),
    /// Tell which stations of this host are known.
    Locals(SyncSender<Present>),
}

impl Command {
    /// Does it.
    pub(crate) fn carry_out(self, vtep: &mut Vtep, locals: Option<&mut Locals>, now: Instant) {
        match (self, locals) {
            // Nobody waiting for the answer any more is no fault of ours.
            (Command::Show(reply), _) => _ = reply.send(vtep.peers(now)),
            (Command::Flapping(reply), _) => _ = reply.send(vtep.flapping(now)),
            (Command::Remotes(reply), _) => _ = reply.send(vtep.remotes.named()),
            (Command::Stations(reply), _) => _ = reply.send(vtep.station_lines(now)),
            (Command::Path(address, mtu), _) => vtep.remotes.set_path(address, mtu),
            // What is wrong with an address was seen before it became a command, and without room the station counts as unknown.
            (Command::Join(network, peer, mtu), _) => _ = vtep.join(network, peer, mtu),
            (Command::Part(network, peer), _) => vtep.part(network, peer),
            (Command::Place(network, mac, peer), _) => {
                if let Some(remote) = vtep.remotes.find(peer) {
                    _ = vtep.place(network, mac, remote);
                }
            }
            (Command::Forget(network, mac), _) => _ = vtep.forget(network, mac),
            (Command::PlaceNeighbour(network, ip, mac), _) => _ = vtep.neighbours.place(network, ip, mac),
            (Command::ForgetNeighbour(network, ip), _) => _ = vtep.neighbours.forget(network, ip),
            (Command::ForgetLocal(network, mac), Some(locals)) => locals.forget(network, mac),
            (Command::ForgetNic(nic), locals) => {
                vtep.neighbours.forget_nic(nic);
                locals.into_iter().for_each(|locals| locals.forget_nic(nic));
            }
            (Command::Locals(reply), Some(locals)) => _ = reply.send(locals.present(now)),
            // The answer's other end ends with it.
            (Command::ForgetLocal(..) | Command::Locals(_), None) => {}
        }
    }
}

/// Control's end.
pub type Remote = wire::inbox::Remote<Command>;
/// The tunnel's end.
pub type Inbox = wire::inbox::Inbox<Command>;
