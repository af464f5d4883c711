//! The MTU of networks that name none: what their underlay leaves and, behind address translation, their way out takes.
//!
//! Invariant: what a file says stays, and of several ways the narrowest counts. With sockets the host cuts up what guests send, so that only a way that takes less than usual matters; with packets what
//! is sent inside is sent outside. A way that is not there when the daemon starts counts as usual.
//! Read first: RFC 8900 section 3 (why not to count on fragments), proc_pid_net(5).

use std::fs;

use crate::{
    config::{Config, Mode, Nat, NatEngine, Network, Via},
    gateways::MTU,
    tunnels,
};

/// Smallest MTU of a network with IPv6 (RFC 8200 section 5), and of one with DHCP (RFC 2131 section 2).
const LEAST: [(bool, u16); 2] = [(true, 1280), (false, 576)];

/// Gives every such network the MTU of what carries it.
pub fn work_out(config: &mut Config) {
    let open: Vec<bool> = config.networks.iter().map(|network| network.mtu.is_none()).collect();
    tunnels::work_out_mtu(config);
    let of_networks: Vec<_> = config.networks.iter().map(|network| (network.name.clone(), network.mtu)).collect();
    for (network, _) in config.networks.iter_mut().zip(open).filter(|(_, open)| *open) {
        let way_out = match &network.nat {
            _ if network.mode != Mode::Nat => None,
            Some(Nat { engine: NatEngine::Packet { via: Via::Network(outside), .. }, .. }) => {
                Some(of_networks.iter().find(|(name, _)| name == outside).and_then(|(_, mtu)| *mtu).unwrap_or(MTU))
            }
            Some(nat) => Some(of_way_out(nat).unwrap_or(MTU)),
            None => None,
        };
        let Some(mtu) = narrowest(network.mtu, way_out) else { continue };
        let least = if network.has_router() { least(network) } else { 0 };
        if mtu < least {
            tracing::warn!(network = %network.name, mtu, "guests are told {least}, the least that IP takes there, and what carries them takes less: longer packets are lost; widen it, or set subnet6 = false");
        }
        network.mtu = Some(mtu.max(least));
        if way_out.is_some() {
            tracing::info!(network = %network.name, mtu = network.mtu, "the MTU is that of the way out, or of the underlay where that takes less");
        }
    }
}

/// Of what an underlay leaves and a way out takes. A way out that takes what is usual is not worth telling.
fn narrowest(overlay: Option<u16>, way_out: Option<u16>) -> Option<u16> {
    match overlay {
        Some(overlay) => Some(way_out.map_or(overlay, |way_out| overlay.min(way_out))),
        None => way_out.filter(|mtu| *mtu != MTU),
    }
}

fn least(network: &Network) -> u16 {
    let has_v6 = network.segments().any(|segment| segment.subnet6().is_some() || segment.needs_subnet6());
    LEAST.iter().find(|(v6, _)| *v6 == has_v6).map_or(MTU, |(_, least)| *least)
}

/// The MTU of what an engine sends by, in bytes; nothing when that is not known.
pub fn of_way_out(nat: &Nat) -> Option<u16> {
    match &nat.engine {
        NatEngine::Sockets { .. } => of_default_route(),
        NatEngine::Packet { via: Via::Uplink(name) | Via::Tap(name), .. } => of_device(name.as_str()),
        NatEngine::Packet { via: Via::Network(_), .. } => None,
    }
}

/// The MTU of this host's default route, what is usual at most; nothing when there is none.
pub fn of_default_route() -> Option<u16> {
    let table = fs::read_to_string("/proc/net/route").unwrap_or_default();
    let (device, of_route) = default_route(&table).or_else(|| {
        let table = fs::read_to_string("/proc/net/ipv6_route").unwrap_or_default();
        Some((default_route6(&table)?, None))
    })?;
    Some(of_route.or_else(|| of_device(&device))?.min(MTU))
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
    fn of_an_underlay_and_a_way_out_the_narrower_counts() {
        assert_eq!(narrowest(Some(8950), Some(1500)), Some(1500));
        assert_eq!(narrowest(Some(1450), Some(1500)), Some(1450));
        assert_eq!(narrowest(Some(8950), None), Some(8950), "there is no way out");
        assert_eq!((narrowest(None, Some(1500)), narrowest(None, Some(1400))), (None, Some(1400)));
        // Both lead to a peer on the loopback device, which is wide; the way out of the second is not.
        let overlay = "overlay = { vni = VNI, local = \"127.0.0.1\", peers = [PEERS] }\n";
        let network = |name: &str, vni: &str, peers: &str, more: &str| {
            format!("[networks.{name}]\n{}{more}", overlay.replace("VNI", vni).replace("PEERS", peers))
        };
        let packet = "mode = \"nat\"\nengine = \"packet\"\nvia = \"d\"\ngateway_host = \"h\"\nsubnet6 = false\n";
        let text = [
            "[host]\nname = \"h\"\n[networks.d]\nmtu = 1000\n".to_owned(),
            network("a", "1", "\"127.0.0.2\"", ""),
            network("b", "2", "\"127.0.0.2\"", &format!("{packet}outside = [\"192.0.2.6\"]\n")),
        ]
        .concat();
        let around = Surroundings { root: true, ..Surroundings::default() };
        let mut config = config::parse(&text, "t.toml".as_ref(), &around).unwrap();
        work_out(&mut config);
        let told: Vec<Option<u16>> = config.networks.iter().map(|network| network.mtu).collect();
        assert_eq!((told[0], told[2]), (Some(1000), Some(1000)), "{told:?}");
        assert!(told[1].is_some_and(|mtu| mtu > 8000), "the loopback device is wide: {told:?}");
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
