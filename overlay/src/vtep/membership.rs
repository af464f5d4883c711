//! Endpoints that take part in a network by control's word.
//!
//! Invariant: control takes back only what it has given: an endpoint that the configuration names stays. Read first: [`super`].

use std::net::IpAddr;

use wire::NicId;

use super::{Network, NetworkId, Vtep, VtepError};
use crate::{
    control::Source,
    remotes::{MOST, RemoteId},
};

impl Vtep {
    /// An endpoint joins a network: control's word. `mtu` is the longest IP packet that its path takes, in bytes, where no more is known.
    ///
    /// # Errors
    /// What is wrong with the address.
    pub fn join(&mut self, network: NetworkId, peer: IpAddr, mtu: u16) -> Result<(), VtepError> {
        self.check(peer)?;
        let Some(Some(place)) = self.networks.get_mut(usize::from(network.0)) else { return Ok(()) };
        let id = self.remotes.name(peer).ok_or(VtepError::TooMany("remote endpoints", MOST))?;
        if self.remotes.get(id).is_some_and(|remote| remote.named == 1) {
            self.remotes.set_path(peer, mtu);
        }
        self.stations.add_nic(NicId(id.0));
        match place.flood.binary_search(&id) {
            Ok(_) => _ = self.remotes.unname(id),
            Err(at) => {
                place.flood.insert(at, id);
                place.joined.push(id);
            }
        }
        Ok(())
    }

    /// An endpoint leaves a network that it has joined.
    pub fn part(&mut self, network: NetworkId, peer: IpAddr) {
        let Some(id) = self.remotes.find(peer) else { return };
        let Some(Some(place)) = self.networks.get_mut(usize::from(network.0)) else { return };
        let before = place.joined.len();
        place.joined.retain(|other| *other != id);
        if place.joined.len() < before {
            place.flood.retain(|other| *other != id);
            self.leave(id);
        }
    }
}

impl Network {
    /// Who says that an endpoint takes part in it.
    pub(super) fn source(&self, id: RemoteId) -> Source {
        match self.flood.binary_search(&id) {
            Err(_) => Source::Heard,
            Ok(_) if self.joined.contains(&id) => Source::Control,
            Ok(_) => Source::Configured,
        }
    }
}
