//! Reads `[networks.NAME.vlans.ID]`, and says which subnets exclude each other.
//!
//! Invariant: a VLAN that has a table is in a network that has a router, and segments whose routers reach the same world have subnets of their own.

use std::{collections::BTreeMap, net::IpAddr};

use wire::Vid;

use super::{
    error::Fault,
    network::{DHCP6, check_dhcp, domain, ntp, subnet6},
    reader::{Entry, Section},
    segment::{Segment, Vlan},
    types::{Dhcp6, Mode, Network, Port, Tagging},
    units::Subnet,
};

const KEYS: &[&str] = &["subnet", "subnet6", "dhcp", "dhcp6", "domain", "ntp"];

/// What a VLAN has from its network.
pub(super) struct Defaults<'a> {
    pub(super) mode: Mode,
    pub(super) dhcp: bool,
    pub(super) dhcp6: Dhcp6,
    pub(super) ntp: &'a [IpAddr],
    pub(super) mtu: Option<u16>,
}

/// `vlans` of a network, by number.
pub(super) fn read(section: &Section<'_>, defaults: &Defaults<'_>) -> Result<Vec<Vlan>, Fault> {
    let Some(entry) = section.get("vlans") else { return Ok(Vec::new()) };
    if defaults.mode == Mode::Bridged {
        let what = "the VLANs of a bridged network are the physical network's, and so are their routers; `vlans` is allowed in mode \
                    isolated, host-only, nat";
        return Err(entry.key_fault(what).help("ports join VLANs by `vlan` and `trunk`, without a table here"));
    }
    if !defaults.dhcp && defaults.mode != Mode::Nat {
        let what = "VLANs are routed by the network's router, and it has none; give it `dhcp = true`";
        return Err(entry.key_fault(what));
    }
    let mut vlans: Vec<Vlan> = Vec::new();
    for (text, entry) in entry.named()? {
        let vlan = vlan(text, &entry, defaults)?;
        if vlans.iter().any(|other| other.id == vlan.id) {
            return Err(entry.key_fault(format!("VLAN {} is given twice; each has one table", vlan.id)));
        }
        vlans.push(vlan);
    }
    vlans.sort_by_key(|vlan| vlan.id);
    Ok(vlans)
}

fn vlan(text: &str, entry: &Entry<'_>, defaults: &Defaults<'_>) -> Result<Vlan, Fault> {
    let id: Option<Vid> = text.parse().ok().filter(|id: &Vid| id.to_string() == text);
    let id =
        id.ok_or_else(|| entry.key_fault(format!("`{text}` is not the number of a VLAN; allowed are 2 to 4094")))?;
    if id.get() == 1 {
        let what = "VLAN 1 is the network's untagged segment, whose keys are those of the network itself; allowed are 2 to 4094";
        return Err(entry.key_fault(what));
    }
    let section = entry.section(KEYS)?;
    let dhcp = section.map("dhcp", Entry::boolean)?.unwrap_or(defaults.dhcp);
    let vlan = Vlan {
        id,
        subnet: section.map("subnet", |entry| entry.parse_with(Subnet::v4))?,
        subnet6: section.map("subnet6", subnet6)?.flatten(),
        without6: section.get("subnet6").is_some_and(|entry| entry.is_false()),
        dhcp,
        dhcp6: section.map("dhcp6", |entry| entry.choice(&DHCP6))?.unwrap_or(defaults.dhcp6),
        domain: section.map("domain", domain)?,
        ntp: section.map("ntp", ntp)?.unwrap_or_else(|| defaults.ntp.to_vec()),
    };
    let at = section.get("subnet").or_else(|| section.get("subnet6"));
    // The host is in the untagged segment only, so that a VLAN of a host-only network has room for as many guests as any.
    let mode = if defaults.mode == Mode::HostOnly { Mode::Isolated } else { defaults.mode };
    let with6 = vlan.subnet6.is_some() || (mode == Mode::Nat && !vlan.without6);
    check_dhcp(at.as_ref().unwrap_or(entry), mode, vlan.subnet, with6, defaults.mtu)?;
    Ok(vlan)
}

/// Where a segment is in the table of its network.
fn place<'a>(network: &Entry<'a>, segment: &Segment<'_>) -> Option<Entry<'a>> {
    let vid = segment.vid()?.to_string();
    let vlans = network.section(super::network::KEYS).ok()?.get("vlans")?.named().ok()?;
    vlans.into_iter().find(|(text, _)| *text == vid).map(|(_, entry)| entry)
}

/// Subnets, none of which has an address of another, and whose they are, by their first addresses.
#[derive(Default)]
pub(super) struct Taken<'a>(BTreeMap<IpAddr, (Subnet, Segment<'a>)>);

impl<'a> Taken<'a> {
    /// The one that has an address in `subnet`, which is put in otherwise.
    fn take(&mut self, subnet: Subnet, segment: Segment<'a>) -> Option<(Subnet, Segment<'a>)> {
        let (first, last) = subnet.ends();
        // As they are apart, only the last one that begins in it or before it can reach into it.
        let before = self.0.range(..=last).next_back().map(|(_, before)| *before);
        let overlapping = before.filter(|(other, _)| other.overlaps(subnet));
        if overlapping.is_none() {
            self.0.insert(first, (subnet, segment));
        }
        overlapping
    }
}

/// Whether no address is in two segments of `network`, nor in one of it and one that is `taken` by networks whose routers reach the same world.
pub(super) fn overlaps<'a>(network: &'a Network, entry: &Entry<'_>, taken: &mut Taken<'a>) -> Result<(), Fault> {
    let mut own = Taken::default();
    let taken = if network.reaches_out() { taken } else { &mut own };
    for segment in network.segments() {
        for subnet in [segment.subnet(), segment.subnet6()].into_iter().flatten() {
            if let Some((other, whose)) = taken.take(subnet, segment) {
                let what =
                    format!("subnet {subnet} overlaps {other} of network {whose}; give each a subnet of its own");
                return Err(place(entry, &segment).as_ref().unwrap_or(entry).key_fault(what));
            }
        }
    }
    Ok(())
}

/// Whether the addresses of a port with `vlan` are of that VLAN's subnets, as far as the file has these.
pub(super) fn check_addresses(network: &Network, port: &Port, entry: &Entry<'_>) -> Result<(), Fault> {
    let Tagging::Access { vlan } = &port.tagging else { return Ok(()) };
    let Some(segment) = network.segments().find(|segment| segment.vid() == Some(*vlan)) else { return Ok(()) };
    for address in &port.addresses {
        let (subnet, bits) = match address {
            IpAddr::V4(_) => (segment.subnet(), 32),
            IpAddr::V6(v6) if v6.is_unicast_link_local() => continue,
            IpAddr::V6(_) => (segment.subnet6(), 128),
        };
        if let Some(subnet) = subnet.filter(|subnet| !subnet.overlaps(Subnet::of(*address, bits))) {
            let what = format!("{address} is not of {subnet}, the subnet of VLAN {vlan} of network {}", network.name);
            return Err(entry.fault(what).help("give the port an address of that subnet, or another `vlan`"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use crate::config::{Surroundings, parse};

    #[test]
    fn subnets_are_apart_whichever_comes_first() {
        let network = |n: usize, subnet: &str| format!("[networks.n{n}]\nmode = \"nat\"\nsubnet = \"{subnet}\"\n");
        let table = [
            (["10.0.0.0/8", "192.168.0.0/24", "10.5.0.0/16"], Some("10.5.0.0/16 overlaps 10.0.0.0/8 of network n0")),
            (["10.5.0.0/16", "10.7.0.0/16", "10.0.0.0/8"], Some("10.0.0.0/8 overlaps 10.7.0.0/16 of network n1")),
            (["10.2.0.0/16", "10.0.0.0/16", "10.1.0.0/16"], None),
            (["10.2.0.0/16", "10.0.0.0/16", "10.2.0.0/16"], Some("10.2.0.0/16 overlaps 10.2.0.0/16 of network n0")),
            (
                ["192.0.0.0/8", "126.0.0.0/8", "192.168.0.0/30"],
                Some("192.168.0.0/30 overlaps 192.0.0.0/8 of network n0"),
            ),
        ];
        for (subnets, expected) in table {
            let text: String = subnets.iter().enumerate().map(|(n, subnet)| network(n, subnet)).collect();
            let around = Surroundings { root: true, ..Surroundings::default() };
            let error = parse(&text, "t.toml".as_ref(), &around).err().map(|error| error.to_string());
            match expected {
                None => assert_eq!(error, None, "{subnets:?}"),
                Some(words) => {
                    assert!(error.as_ref().is_some_and(|error| error.contains(words)), "{subnets:?}: {error:?}")
                }
            }
        }
    }
}
