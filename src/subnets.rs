//! Subnets for networks, and VLANs of these, that need one and name none: a free /24, and a /64 of unique local addresses, remembered.
//!
//! Invariant: a subnet that is chosen overlaps with no route of this host but the default one, and with no other network of the file or of the
//! memory; the same network gets the same subnet again for as long as that holds.

use std::{
    collections::BTreeMap,
    fs, io,
    net::{IpAddr, Ipv4Addr},
    path::Path,
};

use wire::Mac;

use crate::{
    config::{Config, Mode, Network, Segment, Subnet},
    state,
};

/// Where routes are read: of the network namespace that this process is in.
const ROUTES: &str = "/proc/net/route";
/// The second bytes of the prefixes 10.N.0.0/16 that subnets are taken from, one after the other.
const FROM: std::ops::RangeInclusive<u8> = 77..=99;

/// Gives every segment that needs a subnet one, and the host's port in a host-only network the addresses that it then has.
///
/// # Errors
/// Routes cannot be read, or no subnet is free.
pub fn choose(config: &mut Config) -> io::Result<()> {
    choose_missing(config)?;
    let Config { networks, ports, .. } = config;
    for port in ports.iter_mut().filter(|port| port.is_host) {
        let network = networks.iter().find(|network| network.name == port.network && network.mode == Mode::HostOnly);
        if let Some(network) = network {
            port.addresses = host_addresses(network, port.mac);
        }
    }
    Ok(())
}

/// The addresses that the host has in a host-only network: the first of `subnet`, and of `subnet6` the one that it makes itself of its MAC where a
/// router of ours tells it the prefix.
fn host_addresses(network: &Network, mac: Option<Mac>) -> Vec<IpAddr> {
    let own = network.subnet.and_then(|subnet| subnet.host(1));
    let made = match (network.subnet6.and_then(|subnet| subnet.host(0)), mac) {
        (Some(IpAddr::V6(prefix)), Some(mac)) if network.tells_prefix() => Some(mac.in_prefix(prefix).into()),
        _ => None,
    };
    own.into_iter().chain(made).collect()
}

fn choose_missing(config: &mut Config) -> io::Result<()> {
    let (wanting, wanting6) =
        (wanting(config, |segment| segment.needs_subnet()), wanting(config, |segment| segment.needs_subnet6()));
    if wanting.is_empty() && wanting6.is_empty() {
        return Ok(());
    }
    let file = config.host.state_dir.join("subnets.json");
    let mut remembered: BTreeMap<String, String> = state::read(&file).unwrap_or_default();
    let before = remembered.clone();
    let mut taken = routes(&fs::read_to_string(ROUTES)?);
    taken.extend(config.networks.iter().flat_map(Network::segments).filter_map(|segment| segment.subnet()));
    for Wanting { network, vlan, key } in wanting {
        let others =
            remembered.iter().filter(|(other, _)| **other != key).filter_map(|(_, text)| Subnet::v4(text).ok());
        let kept: Vec<Subnet> = taken.iter().copied().chain(others).collect();
        let own = remembered.get(&key).and_then(|text| Subnet::v4(text).ok());
        let is_free = |subnet: &Subnet| !taken.iter().any(|other| other.overlaps(*subnet));
        let subnet = own.filter(is_free).or_else(|| free(&kept)).ok_or_else(|| {
            io::Error::other(format!(
                "network {key}: no subnet of 10.77.0.0 to 10.99.255.255 is free; give it one by `subnet`"
            ))
        })?;
        if own != Some(subnet) {
            tracing::info!(network = key, %subnet, "chose a subnet");
        }
        remembered.insert(key, subnet.to_string());
        taken.push(subnet);
        if let Some(network) = config.networks.get_mut(network) {
            match vlan.and_then(|at| network.vlans.get_mut(at)) {
                Some(vlan) => vlan.subnet = Some(subnet),
                None => network.subnet = Some(subnet),
            }
        }
    }
    for Wanting { network, vlan, key } in wanting6 {
        // No segment's key ends so: a slash is in no network's name, and a VLAN's number follows a word.
        let name = format!("{key}/6");
        let own = remembered.get(&name).and_then(|text| Subnet::v6(text).ok());
        let subnet = match own {
            Some(subnet) => subnet,
            None => unique_local()?,
        };
        remembered.insert(name, subnet.to_string());
        if let Some(network) = config.networks.get_mut(network) {
            match vlan.and_then(|at| network.vlans.get_mut(at)) {
                Some(vlan) => vlan.subnet6 = Some(subnet),
                None => network.subnet6 = Some(subnet),
            }
        }
    }
    if remembered != before
        && let Err(error) = state::write(&file, &remembered)
    {
        tracing::warn!(file = %file.display(), %error, "chosen subnets will not be remembered");
    }
    Ok(())
}

/// A segment that lacks a subnet: the places of its network and VLAN in the configuration, and what it is remembered by.
struct Wanting {
    network: usize,
    vlan: Option<usize>,
    key: String,
}

fn wanting(config: &Config, wants: fn(&Segment<'_>) -> bool) -> Vec<Wanting> {
    let all = config.networks.iter().enumerate().flat_map(|(network, of)| {
        let places = std::iter::once(None).chain((0..of.vlans.len()).map(Some));
        of.segments().zip(places).map(move |(segment, vlan)| (segment, network, vlan))
    });
    let lacking = all.filter(|(segment, ..)| wants(segment));
    lacking.map(|(segment, network, vlan)| Wanting { network, vlan, key: segment.key() }).collect()
}

/// Warns of subnets that the host has a route for already: guests cannot reach those who are there.
pub fn warn(config: &Config) {
    let routes = routes(&fs::read_to_string(ROUTES).unwrap_or_default());
    let networks = config.networks.iter().filter(|network| network.mode != Mode::Isolated);
    for segment in networks.flat_map(Network::segments) {
        let overlap = |subnet: Subnet| routes.iter().find(|route| route.overlaps(subnet));
        if let Some((subnet, route)) = segment.subnet().and_then(|subnet| Some((subnet, overlap(subnet)?))) {
            tracing::warn!(network = %segment, %subnet, %route, "this host has a route there: guests do not reach those it leads to");
        }
    }
}

/// A /64 of unique local addresses (RFC 4193 section 3.2.1: 40 random bits of a site, here 56 with the subnet).
fn unique_local() -> io::Result<Subnet> {
    let mut bits = [0; 8];
    io::Read::read_exact(&mut fs::File::open("/dev/urandom")?, &mut bits)?;
    let random = u64::from_be_bytes(bits) >> 8;
    let prefix = u128::from(0xfd00_0000_0000_0000 | random) << 64;
    Ok(Subnet::of(IpAddr::V6(prefix.into()), 64))
}

/// The first /24 that overlaps with none of these.
fn free(taken: &[Subnet]) -> Option<Subnet> {
    let candidates = FROM.flat_map(|second| (1..=254).map(move |third| (second, third)));
    let subnets = candidates.filter_map(|(second, third)| Subnet::v4(&format!("10.{second}.{third}.0/24")).ok());
    subnets.into_iter().find(|subnet| !taken.iter().any(|other| other.overlaps(*subnet)))
}

/// The destinations in a routing table as /proc has it, without default routes: words in hexadecimal, as they lie in a little-endian memory.
pub fn routes(table: &str) -> Vec<Subnet> {
    let route = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let word = |n: usize| u32::from_str_radix(fields.get(n)?, 16).ok().map(u32::swap_bytes);
        let (destination, mask) = (word(1)?, word(7)?);
        let length = mask.leading_ones() as u8;
        (length > 0).then(|| Subnet::of(IpAddr::V4(Ipv4Addr::from(destination & mask)), length))
    };
    table.lines().skip(1).filter_map(route).collect()
}

/// The subnet that is remembered of a segment with this key; for `check`.
pub fn remembered(state_dir: &Path, key: &str) -> Option<String> {
    let remembered: BTreeMap<String, String> = state::read(&state_dir.join("subnets.json"))?;
    remembered.get(key).cloned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{self, Surroundings};

    const TABLE: &str = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n\
                         eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
                         eth0\t00014D0A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n\
                         *\t00004E0A\t00000000\t0200\t0\t0\t0\t0000FFFF\t0\t0\t0\nnonsense\n";

    #[test]
    fn routes_are_read_and_avoided() {
        let taken = routes(TABLE);
        assert_eq!(taken.iter().map(Subnet::to_string).collect::<Vec<_>>(), ["10.77.1.0/24", "10.78.0.0/16"]);
        assert_eq!(free(&taken).unwrap().to_string(), "10.77.2.0/24");
        let all = Subnet::of(Ipv4Addr::new(10, 0, 0, 0).into(), 8);
        assert_eq!(free(&[all]), None);
    }

    #[test]
    fn a_choice_is_remembered_and_never_given_twice() {
        let dir = tempfile::tempdir().unwrap();
        let around = Surroundings { root: true, ..Surroundings::default() };
        let chosen = |names: &[&str]| {
            let networks: String =
                names.iter().map(|name| format!("[networks.{name}]\nmode = \"host-only\"\n")).collect();
            let text = format!("host.state_dir = \"{}\"\n{networks}", dir.path().display());
            let mut config = config::parse(&text, "t.toml".as_ref(), &around).unwrap();
            choose(&mut config).unwrap();
            config.networks.iter().map(|network| network.subnet.unwrap().to_string()).collect::<Vec<_>>()
        };
        let first = chosen(&["a", "b"]);
        assert_ne!(first[0], first[1]);
        assert_eq!(chosen(&["b", "c", "a"]), [first[1].clone(), chosen(&["c"])[0].clone(), first[0].clone()]);
        assert_eq!(remembered(dir.path(), "a"), Some(first[0].clone()));
    }

    #[test]
    fn vlans_get_subnets_of_their_own_that_stay() {
        let dir = tempfile::tempdir().unwrap();
        let around = Surroundings { root: true, ..Surroundings::default() };
        let chosen = |text: &str| {
            let text = format!("host.state_dir = \"{}\"\n{text}", dir.path().display());
            let mut config = config::parse(&text, "t.toml".as_ref(), &around).unwrap();
            choose(&mut config).unwrap();
            let of = |segment: Segment<'_>| segment.subnets().map(|subnet| subnet.to_string()).collect::<Vec<_>>();
            config.networks.iter().flat_map(Network::segments).map(of).collect::<Vec<_>>()
        };
        let vlans =
            |numbers: &[u16]| numbers.iter().map(|number| format!("[networks.a.vlans.{number}]\n")).collect::<String>();
        let nat = "[networks.a]\nmode = \"nat\"\n";
        let first = chosen(&format!("{nat}{}", vlans(&[6, 100])));
        let mut different = first.concat();
        different.sort();
        different.dedup();
        assert_eq!((different.len(), first.len()), (6, 3), "two each: {first:?}");
        let again = chosen(&format!("{nat}{}", vlans(&[5, 6, 100])));
        assert_eq!([&again[0], &again[2], &again[3]], [&first[0], &first[1], &first[2]]);
        assert_eq!(remembered(dir.path(), "a/vlan6").as_ref(), first[1].first());
        // Elsewhere than in mode nat there is IPv6 where it is asked for.
        let text = "[networks.b]\nsubnet = \"10.77.0.0/16\"\ndhcp = true\n[networks.b.vlans.7]\nsubnet6 = \"fd09::/64\"\n[networks.b.vlans.8]\n";
        let isolated = chosen(text);
        assert_eq!(isolated.iter().map(Vec::len).collect::<Vec<_>>(), [1, 2, 1]);
        assert!(isolated[1..].iter().all(|subnets| !subnets[0].starts_with("10.77.")), "{isolated:?}");
        let without = chosen(&format!("{nat}[networks.a.vlans.6]\nsubnet6 = false\n"));
        assert_eq!(without[1], first[1][..1]);
    }

    #[test]
    fn the_host_is_declared_with_what_it_has_in_a_host_only_network() {
        let dir = tempfile::tempdir().unwrap();
        let around = Surroundings { root: true, ..Surroundings::default() };
        let host = |more: &str| {
            let state = dir.path().display();
            let text = format!("host.state_dir = \"{state}\"\n[networks.a]\nmode = \"host-only\"\n{more}\n");
            let mut config = config::parse(&text, "t.toml".as_ref(), &around).unwrap();
            choose(&mut config).unwrap();
            config.ports.pop().unwrap()
        };
        let port = host("subnet = \"10.9.0.0/24\"\nsubnet6 = \"fd00:9::/64\"");
        let mac = port.mac.unwrap();
        let made = mac.in_prefix("fd00:9::".parse().unwrap());
        assert!(port.is_host && port.guard, "{port:?}");
        assert_eq!(port.addresses, [IpAddr::from([10, 9, 0, 1]), made.into()]);
        // Nobody tells it a prefix.
        let port = host("subnet = \"10.9.0.0/24\"\nsubnet6 = \"fd00:9::/64\"\ndhcp = false");
        assert_eq!(port.addresses, [IpAddr::from([10, 9, 0, 1])]);
        // A subnet that is chosen counts as well.
        assert_eq!(host("").addresses.len(), 1);
    }

    #[test]
    fn a_network_behind_translation_has_a_unique_local_prefix_that_stays() {
        let dir = tempfile::tempdir().unwrap();
        let around = Surroundings { root: true, ..Surroundings::default() };
        let chosen = || {
            let state = dir.path().display();
            let text = format!(
                "host.state_dir = \"{state}\"\n[networks.a]\nmode = \"nat\"\n[networks.b]\nmode = \"nat\"\nsubnet6 = false\n"
            );
            let mut config = config::parse(&text, "t.toml".as_ref(), &around).unwrap();
            choose(&mut config).unwrap();
            (config.networks[0].subnet6.unwrap(), config.networks[1].subnet6)
        };
        let first = chosen();
        assert!(first.0.to_string().starts_with("fd") && Subnet::v6(&first.0.to_string()).is_ok(), "{}", first.0);
        assert_eq!(first.1, None);
        assert_eq!(chosen(), first);
    }
}
