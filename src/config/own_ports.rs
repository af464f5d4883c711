//! The ports of a network that no guest has: the host's, and that of the physical network.
//!
//! Invariant: they are made of what the file says of the network and of its guests' ports, and their names are reserved.

use wire::Vid;

use super::{
    names::PortName,
    types::{Attach, Mode, Network, Port, Tagging},
};
use crate::own_mac;

impl Network {
    /// The port by which the host is in a host-only network, or in one with MAC-NAT.
    pub fn host_port(&self) -> Option<Port> {
        let tap = self.tap.clone().filter(|_| self.mode == Mode::HostOnly || self.mac_nat)?;
        let attach = Attach::Tap { tap, netns: None };
        let port = self.own_port(PortName::host(&self.name), attach, Tagging::Untagged {});
        // Guests may not speak for the host. With MAC-NAT it is no MAC of the uplink, which nothing from here leaves by.
        let mac = own_mac::of(own_mac::For::Host, self.name.as_str());
        Some(Port { is_host: true, mac: Some(mac), guard: true, ..port })
    }

    /// Whether a router of ours tells an IPv6 prefix in it.
    pub fn tells_prefix(&self) -> bool {
        self.has_router() && self.subnet6.is_some()
    }

    /// The port by which a bridged network is joined to the physical one; `ports` are those of the guests. Where they name VLANs it carries
    /// all of these with tags, and without a tag what ports without `vlan` send; with MAC-NAT it is the NIC itself, without tags.
    pub fn uplink_port(&self, ports: &[Port]) -> Option<Port> {
        if let Some(uplink) = self.uplink.clone().filter(|_| self.mac_nat) {
            let attach = Attach::Uplink { uplink };
            let port = self.own_port(PortName::uplink(&self.name), attach, Tagging::Untagged {});
            return Some(Port { is_uplink: true, ..port });
        }
        let tap = self.tap.clone().filter(|_| self.mode == Mode::Bridged)?;
        let mut vids: Vec<Vid> = Vec::new();
        for port in ports.iter().filter(|port| port.network == self.name) {
            match &port.tagging {
                Tagging::Untagged {} => {}
                Tagging::Access { vlan } => vids.push(*vlan),
                Tagging::Trunk { trunk, native } => vids.extend(trunk.iter().chain(native)),
            }
        }
        let native = Vid::new(1);
        let tagging = match vids.is_empty() {
            true => Tagging::Untagged {},
            false => {
                vids.sort();
                vids.dedup();
                vids.retain(|vid| Some(*vid) != native);
                Tagging::Trunk { trunk: vids, native }
            }
        };
        let attach = Attach::Tap { tap, netns: None };
        Some(Port { is_uplink: true, ..self.own_port(PortName::uplink(&self.name), attach, tagging) })
    }

    /// A port that no guest has.
    pub(super) fn own_port(&self, name: PortName, attach: Attach, tagging: Tagging) -> Port {
        Port {
            name,
            guest: self.name.clone(),
            network: self.name.clone(),
            attach,
            tagging,
            mac: None,
            addresses: Vec::new(),
            fdb: Vec::new(),
            queues: 1,
            guard: false,
            isolated: false,
            pass_reserved: false,
            is_host: false,
            is_uplink: false,
        }
    }
}
