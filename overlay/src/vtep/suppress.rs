//! ARP and ND suppression: what an endpoint hears of neighbours, and whom it answers for.
//!
//! Invariant: it answers for nobody but a neighbour whose address is known from behind a tunnel and whose MAC is known to be behind one as well;
//! never for what a guest of this host has said it is, and never a probe or an announcement. A question that it does not answer takes its way.
//!
//! Theory of operation: addresses and stations are two tables. A guest that moves from one other host to another is announced there by its MAC alone, and its
//! addresses follow; a station that is heard on this host is behind no tunnel any more, and neither are its addresses. What a guest of this host has said goes
//! with its port; where it leaves and the port stays, questions for it take their way until it is heard from where it is now.
//! An answer for a router's link-local address that does not say "router" would take the router away from who asked (RFC 4861 section 7.2.5), so where
//! that is not known the router is left to answer itself.
//! Read first: RFC 9161 section 3, [`crate::neighbours`], [`crate::resolution`].

use std::net::IpAddr;

use wire::{
    Instant, Mac, NicId, Segment,
    fdb::{Key, Learn},
};

use super::{NetworkId, Vtep};
use crate::{
    neighbours::{Neighbour, Whence},
    remotes::RemoteId,
    resolution::{LONGEST, Message, Said},
};

impl Vtep {
    /// Whether a network looks at what is said of neighbours.
    #[inline]
    pub fn looks(&self, network: NetworkId) -> bool {
        self.network(network).is_some_and(|network| network.suppress || !network.learning)
    }

    /// A frame of this host is about to leave from a station: if it was behind an endpoint by what was heard, it is so no longer.
    #[inline]
    pub fn leaves(&mut self, network: NetworkId, source: u64, now: Instant) {
        let key = Key::new(Segment(network.0), source);
        // To no endpoint of these: whether it would move says where it is.
        if let Learn::Move { .. } = self.stations.consider(key, HERE, self.tick(now)) {
            self.stations.remove(key.segment(), Mac::from_bits(source));
        }
    }

    /// A guest at a NIC of this host sends a message about neighbours into a network. The answer, if it is one to be given here: its length.
    pub fn ask(
        &mut self,
        network: NetworkId,
        nic: NicId,
        bytes: &[u8],
        now: Instant,
        answer: &mut [u8; LONGEST],
    ) -> Option<usize> {
        let message = Message::read(bytes)?;
        if let Some(said) = message.said {
            self.neighbours.hear(network, said.address, neighbour(said, Whence::Local(nic)), now);
        }
        let asked = message.asked.filter(|_| self.network(network).is_some_and(|network| network.suppress))?;
        let Neighbour { mac, whence, router, overrides } = self.neighbours.find(network, asked.target, now)?;
        let link_local = matches!(asked.target, IpAddr::V6(target) if target.is_unicast_link_local());
        let is_behind = self.stations.lookup(Segment(network.0), mac, self.tick(now)).is_some();
        if matches!(whence, Whence::Local(_)) || !is_behind || (link_local && router.is_none()) {
            return None;
        }
        let len = asked.answer(&Said { address: asked.target, mac, router, overrides }, answer)?;
        self.answered += 1;
        Some(len)
    }

    /// A message about neighbours came from an endpoint. Where control alone says who is where, of its neighbours it is only learnt what they
    /// say of themselves.
    pub fn tell(&mut self, network: NetworkId, from: RemoteId, bytes: &[u8], now: Instant) {
        let Some(said) = Message::read(bytes).and_then(|message| message.said) else { return };
        let learning = self.network(network).is_some_and(|network| network.learning);
        let known = self.neighbours.find(network, said.address, now).map(|known| known.whence);
        if learning || known == Some(Whence::Placed) {
            self.neighbours.hear(network, said.address, neighbour(said, Whence::Remote(from)), now);
        }
    }

    /// Questions of guests that were answered here and went nowhere.
    pub fn answered(&self) -> u64 {
        self.answered
    }
}

/// No endpoint's number.
const HERE: NicId = NicId(u16::MAX);

fn neighbour(said: Said, whence: Whence) -> Neighbour {
    Neighbour { mac: said.mac, whence, router: said.router, overrides: said.overrides }
}
