//! [`SwitchWiring`]: the way from vhost-user sessions to the switch.
//!
//! Invariant: a call only sends a change; it never waits for a worker. Read first: `vmm::vhost_user::wiring`.

use vmm::vhost_user::wiring::{NicKey, PortState, RxFilter, Wiring};
use vswitch::change::Change;
use wire::{Mac, Port};

use crate::{
    announce::Announcement,
    config, model,
    switch::{Place, States},
};

/// Knows where each port of the configuration is; the key of a NIC is the port's number there.
pub struct SwitchWiring {
    names: Vec<String>,
    announcements: Vec<Announcement>,
    places: Vec<Place>,
    states: States,
}

impl SwitchWiring {
    /// The way to these ports, given in the order of the configuration.
    pub fn new(ports: &[config::Port], places: Vec<Place>, states: States) -> Self {
        let names = ports.iter().map(|port| port.name.to_string()).collect();
        SwitchWiring { names, announcements: ports.iter().map(Announcement::of).collect(), places, states }
    }

    /// Tells everybody where a guest is, by the MAC that is told of it or the declared one.
    fn tell(&self, nic: NicKey, mac: Option<Mac>) {
        let at = nic.0 as usize;
        if let (Some(announcement), Some(place)) = (self.announcements.get(at), self.places.get(at)) {
            announcement.send(mac, place);
        }
    }

    fn send(&self, nic: NicKey, change: impl FnOnce(&Place) -> Change) {
        if let Some(place) = self.places.get(nic.0 as usize) {
            // A worker that has ended drops what it is sent, and so every lane comes home.
            place.changes.send(change(place));
        }
    }

    fn name(&self, nic: NicKey) -> &str {
        self.names.get(nic.0 as usize).map_or("?", String::as_str)
    }
}

impl Wiring for SwitchWiring {
    fn attach(&mut self, nic: NicKey, lane: u16, port: Box<dyn Port>) {
        self.send(nic, |place| Change::Attach { nic: place.nic, lane, port });
    }

    fn detach(&mut self, nic: NicKey, lane: u16) {
        self.send(nic, |place| Change::Detach { nic: place.nic, lane });
    }

    fn announce(&mut self, nic: NicKey, mac: Mac) {
        tracing::info!(port = self.name(nic), %mac, "the guest has moved here and is announced");
        self.tell(nic, Some(mac));
    }

    fn state(&mut self, nic: NicKey, state: PortState) {
        let port = self.name(nic);
        let (state, reason) = match state {
            PortState::Waiting(reason) => (model::PortState::Waiting, Some(reason)),
            PortState::Up => (model::PortState::Up, None),
            PortState::Down(reason) => (model::PortState::Down, Some(reason)),
        };
        match &reason {
            Some(reason) if state == model::PortState::Down => tracing::warn!(port, reason, "the port is down"),
            Some(reason) => tracing::info!(port, reason, "the port waits"),
            None => tracing::info!(port, "the port is up"),
        }
        let was = self.states.get(nic.0 as usize).state;
        if state == model::PortState::Up && was != state {
            self.tell(nic, None);
        }
        self.states.set(nic.0 as usize, state, reason);
    }

    fn rx_filter(&mut self, nic: NicKey, filter: RxFilter) {
        self.send(nic, |place| Change::Filter { nic: place.nic, filter: Box::new(filter) });
    }

    fn pairs(&mut self, nic: NicKey, pairs: u16) {
        self.send(nic, |place| Change::Pairs { nic: place.nic, pairs });
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::{config::Surroundings, switch::Switch};

    #[test]
    fn who_comes_up_or_has_moved_here_is_known_before_it_sends() {
        let text = "[networks.lan]\n[guests.g]\nports = [{ network = \"lan\", mac = \"02:00:00:00:00:01\" }, { network = \"lan\" }]\n\
                    [guests.other]\nports = [{ network = \"lan\" }]\n";
        let config = config::parse(text, Path::new("test"), &Surroundings::here()).unwrap();
        let mut switch = Switch::start(config.clone(), config.clone()).unwrap();
        let mut wiring = SwitchWiring::new(&config.ports, switch.places(), switch.states());
        // Changes of a worker are done in their order, so what is asked after them shows what they did.
        let known = || {
            let all = switch.view().fdb().into_iter().map(|entry| (entry.mac, entry.port));
            all.collect::<Vec<(String, String)>>()
        };
        wiring.state(NicKey(0), PortState::Waiting("nobody is connected".to_owned()));
        wiring.state(NicKey(1), PortState::Up);
        assert_eq!(known(), [], "the second port declares no address");
        wiring.state(NicKey(0), PortState::Up);
        let first = ("02:00:00:00:00:01".to_owned(), "g/0".to_owned());
        assert_eq!(known(), std::slice::from_ref(&first));
        wiring.announce(NicKey(1), Mac::new([2, 0, 0, 0, 0, 9]));
        assert_eq!(known(), [first, ("02:00:00:00:00:09".to_owned(), "g/1".to_owned())]);
        switch.stop();
    }
}
