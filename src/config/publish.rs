//! Checks where publications lead, as far as a file can tell.
//!
//! Invariant: what passes may lead to somebody: an address inside, a guest with a port in the network, or a name that a guest can give itself by
//! DHCP. Read first: [`super::nat`].

use super::{
    error::Fault,
    nat::{Publish, Target},
    reader::Section,
    types::{Guest, Network, Port},
    units::Subnet,
};
use std::net::IpAddr;

/// The first publication that cannot lead to anybody.
pub(super) fn check(root: &Section<'_>, networks: &[Network], guests: &[Guest], ports: &[Port]) -> Result<(), Fault> {
    let Some(section) = root.get("networks") else { return Ok(()) };
    for (name, entry) in section.named()? {
        let Some(network) = networks.iter().find(|network| network.name.as_str() == name) else { continue };
        let Some((_, entry)) = entry.named()?.into_iter().find(|(key, _)| *key == "publish") else { continue };
        for publish in network.nat.iter().flat_map(|nat| &nat.publish) {
            if let Some(what) = leads_nowhere(publish, network, guests, ports) {
                return Err(entry.fault(format!("`{publish}`: {what}")));
            }
        }
    }
    Ok(())
}

fn leads_nowhere(publish: &Publish, network: &Network, guests: &[Guest], ports: &[Port]) -> Option<String> {
    let name = match &publish.to {
        Target::Address(address) => return is_outside(*address, network),
        Target::Guest(name) => name,
    };
    if guests.iter().any(|guest| guest.name == *name) {
        let has_port = ports.iter().any(|port| port.guest == *name && port.network == network.name);
        return (!has_port).then(|| format!("guest {name} has no port in network {}; give it one", network.name));
    }
    // What is left of names that clients say: see `host_name` in the DHCP server.
    let fit = name.as_str().bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    let can_be_said = fit && !name.as_str().ends_with('-');
    (!can_be_said).then(|| {
        format!(
            "the file has no guest {name}, and by DHCP none can call itself so; name a guest of the file, or an address"
        )
    })
}

/// Why an address is nobody's in a network; nothing where its subnet is yet to be chosen.
fn is_outside(address: IpAddr, network: &Network) -> Option<String> {
    let (subnet, never, whole) = match address {
        IpAddr::V4(_) => (network.subnet, false, 32),
        IpAddr::V6(_) => (network.subnet6, network.without6, 128),
    };
    match subnet {
        Some(subnet) if !subnet.overlaps(Subnet::of(address, whole)) => {
            Some(format!("{address} is not in {subnet}; give an address of the network, or name a guest"))
        }
        None if never => Some(format!("{address} is not of this network, which has no IPv6 (`subnet6 = false`)")),
        _ => None,
    }
}
