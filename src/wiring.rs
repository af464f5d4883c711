//! [`SwitchWiring`]: the way from vhost-user sessions to the switch.
//!
//! Invariant: a call only sends a change; it never waits for a worker. Read first: `vmm::vhost_user::wiring`.

use vmm::vhost_user::wiring::{NicKey, PortState, RxFilter, Wiring};
use vswitch::change::Change;
use wire::{Mac, Port};

use crate::{
    model,
    switch::{Place, States},
};

/// Knows where each port of the configuration is; the key of a NIC is the port's number there.
pub struct SwitchWiring {
    names: Vec<String>,
    places: Vec<Place>,
    states: States,
}

impl SwitchWiring {
    /// The way to these ports, given in the order of the configuration.
    pub fn new(names: Vec<String>, places: Vec<Place>, states: States) -> Self {
        SwitchWiring { names, places, states }
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
        self.send(nic, |place| Change::Originate { nic: place.nic, bytes: rarp(mac).to_vec() });
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
        self.states.set(nic.0 as usize, state, reason);
    }

    fn rx_filter(&mut self, nic: NicKey, filter: RxFilter) {
        self.send(nic, |place| Change::Filter { nic: place.nic, filter: Box::new(filter) });
    }

    fn pairs(&mut self, nic: NicKey, pairs: u16) {
        self.send(nic, |place| Change::Pairs { nic: place.nic, pairs });
    }
}

/// The broadcast that tells switches where `mac` is: a reverse ARP request for its own address (RFC 903), 60 bytes.
fn rarp(mac: Mac) -> [u8; 60] {
    let mut frame = [0; 60];
    let fields: [&[u8]; 8] = [
        &[0xff; 6],
        &mac.bytes(),
        &[0x80, 0x35],
        &[0, 1, 8, 0, 6, 4, 0, 3],
        &mac.bytes(),
        &[0; 4],
        &mac.bytes(),
        &[0; 4],
    ];
    frame.iter_mut().zip(fields.concat()).for_each(|(to, byte)| *to = byte);
    frame
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_announcement_is_a_reverse_arp_request() {
        let frame = super::rarp("02:00:00:00:00:07".parse().unwrap());
        assert_eq!(frame[..14], [255, 255, 255, 255, 255, 255, 2, 0, 0, 0, 0, 7, 0x80, 0x35]);
        assert_eq!(frame[14..22], [0, 1, 8, 0, 6, 4, 0, 3], "Ethernet, IPv4, request reverse");
        assert_eq!(frame[22..28], frame[32..38], "sender and target are the guest");
        assert_eq!(frame[38..], [0; 22]);
    }
}
