//! The MTU of networks behind address translation that name none: what their way out takes.
//!
//! Invariant: what a file says stays. With sockets the host cuts up what guests send, so that only a way that takes less than usual matters; with packets what
//! is sent inside is sent outside. A way that is not there when the daemon starts counts as usual.
//! Read first: RFC 8900 section 3 (why not to count on fragments), proc_pid_net(5).

use std::fs;

use crate::{
    config::{Config, Mode, Nat, NatEngine, Network, Via},
    gateways::MTU,
};

/// Smallest MTU of a network with IPv6 (RFC 8200 section 5), and of one with DHCP (RFC 2131 section 2).
const LEAST: [(bool, u16); 2] = [(true, 1280), (false, 576)];

/// Gives every such network the MTU of its way out.
pub fn work_out(config: &mut Config) {
    let of_networks: Vec<_> = config.networks.iter().map(|network| (network.name.clone(), network.mtu)).collect();
    for network in config.networks.iter_mut().filter(|network| network.mode == Mode::Nat && network.mtu.is_none()) {
        let mtu = match &network.nat {
            Some(Nat { engine: NatEngine::Packet { via: Via::Network(outside), .. }, .. }) => {
                of_networks.iter().find(|(name, _)| name == outside).and_then(|(_, mtu)| *mtu)
            }
            Some(nat) => of_way_out(nat),
            None => None,
        };
        if let Some(mtu) = mtu.filter(|mtu| *mtu != MTU) {
            network.mtu = Some(mtu.max(least(network)));
            tracing::info!(network = %network.name, mtu = network.mtu, "the MTU is that of the way out");
        }
    }
}

fn least(network: &Network) -> u16 {
    let has_v6 = network.segments().any(|segment| segment.subnet6().is_some() || segment.needs_subnet6());
    LEAST.iter().find(|(v6, _)| *v6 == has_v6).map_or(MTU, |(_, least)| *least)
}

/// The MTU of what an engine sends by, in bytes; nothing when that is not known.
pub fn of_way_out(nat: &Nat) -> Option<u16> {
    match &nat.engine {
        NatEngine::Sockets { .. } => {
            let table = fs::read_to_string("/proc/net/route").unwrap_or_default();
            let (device, of_route) = default_route(&table).or_else(|| {
                let table = fs::read_to_string("/proc/net/ipv6_route").unwrap_or_default();
                Some((default_route6(&table)?, None))
            })?;
            Some(of_route.or_else(|| of_device(&device))?.min(MTU))
        }
        NatEngine::Packet { via: Via::Uplink(name) | Via::Tap(name), .. } => of_device(name.as_str()),
        NatEngine::Packet { via: Via::Network(_), .. } => None,
    }
}

/// The MTU of an interface; nothing when it is not there. What no frame of ours can be long for counts as the longest that can.
fn of_device(name: &str) -> Option<u16> {
    let text = fs::read_to_string(format!("/sys/class/net/{name}/mtu")).ok()?;
    let mtu: u32 = text.trim().parse().ok()?;
    Some(u16::try_from(mtu).unwrap_or(u16::MAX).min(crate::config::MTU_MAX))
}

/// The device of the default route that comes first, and the MTU that the route itself has.
fn default_route(table: &str) -> Option<(String, Option<u16>)> {
    let route = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [device, destination, _, _, _, _, metric, mask, mtu, ..] = *fields.as_slice() else { return None };
        let is_default = destination == "00000000" && mask == "00000000";
        let metric: u32 = metric.parse().ok()?;
        let mtu = mtu.parse().ok().filter(|mtu| *mtu > 0);
        is_default.then(|| (metric, device.to_owned(), mtu))
    };
    let first = table.lines().skip(1).filter_map(route).min_by_key(|(metric, ..)| *metric);
    first.map(|(_, device, mtu)| (device, mtu))
}

/// The same of IPv6, as far as the device goes.
fn default_route6(table: &str) -> Option<String> {
    let route = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [destination, length, _, _, _, metric, _, _, _, device] = *fields.as_slice() else { return None };
        let is_default = length == "00" && destination.bytes().all(|digit| digit == b'0') && device != "lo";
        let metric = u32::from_str_radix(metric, 16).ok()?;
        is_default.then(|| (metric, device.to_owned()))
    };
    table.lines().filter_map(route).min_by_key(|(metric, _)| *metric).map(|(_, device)| device)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{self, Surroundings};

    #[test]
    fn the_default_route_that_comes_first_counts() {
        let head = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n";
        let route = |device: &str, destination: &str, metric: u32, mask: &str, mtu: u32| {
            format!("{device}\t{destination}\t010200C0\t0003\t0\t0\t{metric}\t{mask}\t{mtu}\t0\t0\n")
        };
        let zero = "00000000";
        let table = [
            head.to_owned(),
            route("eth1", zero, 600, zero, 0),
            route("eth0", zero, 100, zero, 1400),
            route("tun0", zero, 50, "00000080", 1300),
            "nonsense\n".to_owned(),
        ];
        assert_eq!(default_route(&table.concat()), Some(("eth0".to_owned(), Some(1400))));
        assert_eq!(default_route(&table[..2].concat()), Some(("eth1".to_owned(), None)));
        assert_eq!(default_route(head), None);
        let zeros = "0".repeat(32);
        let line = |length: &str, metric: &str, device: &str| {
            format!("{zeros} {length} {zeros} 00 {zeros} {metric} 00000001 00000000 00000003 {device}\n")
        };
        let table = [
            line("00", "ffffffff", "lo"),
            line("00", "00000400", "eth1"),
            line("00", "00000100", "eth0"),
            line("40", "00000001", "eth2"),
        ];
        assert_eq!(default_route6(&table.concat()), Some("eth0".to_owned()));
        assert_eq!(default_route6(&table[0]), None, "that is the route to nowhere");
    }

    #[test]
    fn what_the_file_says_stays_and_what_is_not_there_counts_as_usual() {
        let text = "[networks.a]\nmode = \"nat\"\nengine = \"packet\"\nuplink = \"nosuch0\"\noutside = [\"192.0.2.9\"]\n\
                    [networks.b]\nmode = \"nat\"\nengine = \"packet\"\nuplink = \"lo\"\noutside = [\"192.0.2.8\"]\nmtu = 1300\n\
                    [networks.c]\nmode = \"nat\"\nengine = \"packet\"\nvia = \"d\"\noutside = [\"192.0.2.7\"]\n[networks.d]\nmtu = 1000\n\
                    [networks.e]\nmode = \"nat\"\nengine = \"packet\"\nvia = \"d\"\noutside = [\"192.0.2.6\"]\nsubnet6 = false\n";
        let around = Surroundings { root: true, ..Surroundings::default() };
        let mut config = config::parse(text, "t.toml".as_ref(), &around).unwrap();
        work_out(&mut config);
        let told: Vec<Option<u16>> = config.networks.iter().map(|network| network.mtu).collect();
        assert_eq!(told, [None, Some(1300), Some(1280), Some(1000), Some(1000)], "IPv6 takes 1280 at least");
    }
}
