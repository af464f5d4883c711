//! What is said in the name of a guest whose port has come up: where it is, before it says a word.
//!
//! Invariant: nothing is said that was not declared for the port or told by whoever moved the guest, and it is said as the guest itself would:
//! through its port's guard, into its VLANs. Who hears it at a bridge or a tunnel endpoint learns the guest's place; who hears it in a guest, its address.
//! Read first: RFC 903 (the frame of it that switches learn by), RFC 5227 section 2.3, RFC 4861 section 7.2.6.

use std::net::IpAddr;

use overlay::resolution::{self, LONGEST};
use vswitch::change::Change;
use wire::{Mac, Vid};

use crate::{
    config::{Attach, Config, Port, Tagging},
    model::PortState,
    switch::{Place, States},
};

/// VLANs of a trunk into which its guest is announced, at most.
const VLANS: usize = 256;

/// What there is to say of a port.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Announcement {
    mac: Option<Mac>,
    addresses: Vec<IpAddr>,
    /// It sends without tags, too.
    untagged: bool,
    tagged: Vec<Vid>,
}

impl Announcement {
    /// Of what the file declares.
    pub fn of(port: &Port) -> Announcement {
        let (untagged, tagged) = match &port.tagging {
            Tagging::Untagged {} | Tagging::Access { .. } => (true, Vec::new()),
            Tagging::Trunk { trunk, native } => (native.is_some(), trunk.iter().copied().take(VLANS).collect()),
        };
        Announcement { mac: port.mac, addresses: port.addresses.clone(), untagged, tagged }
    }

    /// The frames; `mac` is what was told of the guest. None where nobody knows its MAC.
    pub fn frames(&self, mac: Option<Mac>) -> Vec<Vec<u8>> {
        let Some(mac) = mac.or(self.mac) else { return Vec::new() };
        let here = rarp(mac);
        let mut frames: Vec<Vec<u8>> = self.tagged.iter().map(|vlan| tagged(&here, *vlan)).collect();
        if self.untagged {
            frames.push(here);
            frames.extend(self.addresses.iter().map(|address| {
                let mut frame = [0; LONGEST];
                let len = resolution::announcement(*address, mac, &mut frame);
                frame.get(..len).unwrap_or_default().to_vec()
            }));
        }
        frames
    }

    /// Says it at a place.
    pub fn send(&self, mac: Option<Mac>, place: &Place) {
        for bytes in self.frames(mac) {
            place.changes.send(Change::Originate { nic: place.nic, bytes });
        }
    }
}

/// Announces the guests of TAP ports, which are there from the start.
pub fn taps(config: &Config, places: &[Place], states: &States) {
    for (index, (port, place)) in config.ports.iter().zip(places).enumerate() {
        let is_guests = matches!(port.attach, Attach::Tap { .. }) && !port.is_host && !port.is_uplink;
        if is_guests && states.get(index).state == PortState::Up {
            Announcement::of(port).send(None, place);
        }
    }
}

/// The broadcast that tells switches where `mac` is: a reverse ARP request for its own address (RFC 903), 60 bytes.
fn rarp(mac: Mac) -> Vec<u8> {
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
    let mut frame = fields.concat();
    frame.resize(60, 0);
    frame
}

fn tagged(frame: &[u8], vlan: Vid) -> Vec<u8> {
    let (macs, rest) = frame.split_at(12.min(frame.len()));
    [macs, &[0x81, 0x00], &vlan.get().to_be_bytes(), rest].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: Mac = Mac::new([2, 0, 0, 0, 0, 7]);

    #[test]
    fn the_place_is_told_by_a_reverse_arp_request() {
        let frame = rarp(MAC);
        assert_eq!(frame[..14], [255, 255, 255, 255, 255, 255, 2, 0, 0, 0, 0, 7, 0x80, 0x35]);
        assert_eq!(frame[14..22], [0, 1, 8, 0, 6, 4, 0, 3], "Ethernet, IPv4, request reverse");
        assert_eq!(frame[22..28], frame[32..38], "sender and target are the guest");
        assert_eq!((&frame[38..], frame.len()), (&[0; 22][..], 60));
    }

    #[test]
    fn every_declared_address_is_told_and_nothing_where_no_mac_is_known() {
        let all = Announcement {
            mac: Some(MAC),
            addresses: vec!["10.0.0.7".parse().unwrap(), "fd00::7".parse().unwrap()],
            untagged: true,
            tagged: Vec::new(),
        };
        let frames = all.frames(None);
        let said = |frame: &Vec<u8>| resolution::Message::read(frame).and_then(|message| message.said);
        let told: Vec<_> = frames.iter().filter_map(said).map(|said| (said.address, said.mac)).collect();
        assert_eq!((frames.len(), told), (3, all.addresses.iter().map(|address| (*address, MAC)).collect()));
        let other = Mac::new([2, 0, 0, 0, 0, 9]);
        assert!(all.frames(Some(other)).iter().all(|frame| frame[6..12] == other.bytes()));
        assert!(Announcement { mac: None, ..all.clone() }.frames(None).is_empty());
        let trunk = Announcement { untagged: false, tagged: vec![Vid::new(100).unwrap()], ..all };
        let frames = trunk.frames(None);
        assert_eq!((frames.len(), &frames[0][12..18]), (1, &[0x81, 0, 0, 100, 0x80, 0x35][..]));
    }
}
