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
use std::{collections::HashMap, net::IpAddr};

/// The first publication that cannot lead to anybody.
pub(super) fn check(root: &Section<'_>, networks: &[Network], guests: &[Guest], ports: &[Port]) -> Result<(), Fault> {
    let Some(section) = root.get("networks") else { return Ok(()) };
    let by_name: HashMap<&str, &Network> = networks.iter().map(|network| (network.name.as_str(), network)).collect();
    for (name, entry) in section.named()? {
        let Some(network) = by_name.get(name) else { continue };
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

/// Why an address is nobody's in any segment of a network; nothing where a subnet is yet to be chosen.
fn is_outside(address: IpAddr, network: &Network) -> Option<String> {
    let v4 = address.is_ipv4();
    let whole = Subnet::of(address, if v4 { 32 } else { 128 });
    let to_come = network.segments().any(|segment| if v4 { segment.needs_subnet() } else { segment.needs_subnet6() });
    let subnets = network.segments().filter_map(|segment| if v4 { segment.subnet() } else { segment.subnet6() });
    let subnets: Vec<Subnet> = subnets.collect();
    if to_come || subnets.iter().any(|subnet| subnet.overlaps(whole)) {
        return None;
    }
    let list: Vec<String> = subnets.iter().map(Subnet::to_string).collect();
    Some(match list.as_slice() {
        [] => format!("{address} is not of this network, which has no IPv6 (`subnet6 = false`)"),
        list => format!("{address} is not in {}; give an address of the network, or name a guest", list.join(" or ")),
    })
}

#[cfg(test)]
mod tests {
    use crate::config::{Surroundings, parse};

    /// What is said of a publication to `to` in a network that says `keys`, and what follows it in the file.
    fn said(keys: &str, to: &str, more: &str) -> Option<String> {
        let around = Surroundings { root: true, ..Surroundings::default() };
        let text =
            format!("[networks.b]\nmode = \"nat\"\n{keys}\npublish = [\"udp 127.0.0.1:5353 {to}:53\"]\n{more}\n");
        parse(&text, "t.toml".as_ref(), &around).err().map(|error| error.to_string())
    }

    #[test]
    fn what_can_lead_to_nobody_is_refused() {
        let subnet = "subnet = \"10.1.0.0/24\"";
        let vlan = "[networks.b.vlans.7]\nsubnet = \"10.3.0.0/24\"";
        for (keys, to, more, why) in [
            (subnet, "10.2.0.5", "", "10.2.0.5 is not in 10.1.0.0/24"),
            (subnet, "10.2.0.5", vlan, "10.2.0.5 is not in 10.1.0.0/24 or 10.3.0.0/24"),
            ("subnet6 = false", "[fd00::5]", "", "has no IPv6"),
            ("subnet6 = false", "[fd00::5]", "[networks.b.vlans.7]\nsubnet6 = false", "has no IPv6"),
            ("", "my_guest", "", "by DHCP none can call itself so"),
            ("", "w", "[guests.w]\nports = []", "guest w has no port in network b"),
        ] {
            let said = said(keys, to, more).unwrap_or_default();
            assert!(said.contains(why) && said.contains("networks.b.publish"), "{to}: {said}");
        }
        // In a VLAN of the network there may be somebody, and where a subnet is yet to be chosen.
        for (keys, to, more) in [
            (subnet, "10.3.0.5", vlan),
            (subnet, "10.2.0.5", "[networks.b.vlans.7]"),
            ("subnet6 = false", "[fd00::5]", "[networks.b.vlans.7]"),
            ("", "10.2.0.5", ""),
            ("", "somebody", ""),
        ] {
            assert_eq!(said(keys, to, more), None, "{keys} {to} {more}");
        }
    }
}
