//! The TAP ports of a configuration: devices made and handed to the switch.
//!
//! Invariant: a TAP that cannot be made takes down its own port, with a reason, and nothing else. The devices end with the process, or
//! when their port is let go.

use std::net::IpAddr;

use sys::tap::{Tap, TapDevice, TapError};
use vswitch::{apart::Apart, change::Change, host::tap::TapPort};

use crate::{
    bridged::{self, Joined},
    config::{Attach, Config, Network, Port},
    model::PortState,
    switch::{Place, States},
};

/// Frames that may wait in a TAP's queue for a worker that does not run at the moment. Whoever sends into it is not held back by a full queue, but
/// loses what does not fit: the kernel's own 1,000 are gone within one time slice of another thread.
const QUEUE_LEN: u32 = 4096;
/// The largest MTU of a TAP.
const LONGEST: u32 = 65_521;

/// The devices that were made, and the networks that are joined by some of them.
#[derive(Default)]
pub struct Taps {
    // Fields go in this order: networks come apart first.
    _joined: Vec<Joined>,
    /// The devices.
    pub devices: Vec<TapDevice>,
}

/// Makes the TAPs of all TAP ports and attaches their queues. Keep what is returned for as long as the devices are wanted.
pub fn attach(config: &Config, places: &[Place], states: &States) -> Taps {
    let (mut devices, mut joined) = (Vec::new(), Vec::new());
    for (index, (port, place)) in config.ports.iter().zip(places).enumerate() {
        let Attach::Tap { tap, netns } = &port.attach else { continue };
        let network = config.networks.iter().find(|network| network.name == port.network);
        let opened = open(port, tap.as_str(), netns.as_ref().map(|name| name.as_str()), network);
        let own = network.filter(|_| port.is_host).and_then(|network| network.subnet);
        let opened = opened.and_then(|tap| match own.and_then(|subnet| Some((subnet.host(1)?, subnet.length()))) {
            Some((IpAddr::V4(address), prefix)) => tap.device.set_address(address, prefix).map(|()| tap),
            _ => Ok(tap),
        });
        match opened {
            Ok(Tap { device, queues }) => {
                if let Some(network) = network.filter(|_| port.is_host) {
                    lead_to_vlans(network, &device);
                }
                let uplink = network.filter(|network| port.is_host && network.mac_nat).and_then(|network| {
                    let uplink = config.ports.iter().position(|other| other.is_uplink && other.network == network.name);
                    places.get(uplink?)
                });
                tracing::info!(port = %port.name, tap = device.name(), netns = netns.as_ref().map(|name| name.as_str()), "made a TAP");
                for (lane, queue) in queues.into_iter().enumerate() {
                    let port: Box<dyn wire::Port> = Box::new(TapPort::new(&device, queue, lane as u16));
                    let port = match uplink {
                        // What comes in by the NIC the host has heard there.
                        Some(uplink) => Box::new(Apart::new(port, uplink.nic)),
                        None => port,
                    };
                    place.changes.send(Change::Attach { nic: place.nic, lane: lane as u16, port });
                }
                states.set(index, PortState::Up, None);
                if let Some(network) = network.filter(|_| port.is_uplink) {
                    joined.extend(join(config, network, &device, (states, index)));
                }
                devices.push(device);
            }
            Err(error) => {
                let reason = error.to_string();
                tracing::error!(port = %port.name, reason, "the port is down");
                states.set(index, PortState::Down, Some(reason));
            }
        }
    }
    Taps { _joined: joined, devices }
}

/// The host, which is in the untagged segment only, reaches guests in VLANs over the router.
fn lead_to_vlans(network: &Network, device: &TapDevice) {
    let Some(IpAddr::V4(router)) = network.subnet.and_then(|subnet| subnet.host(network.router_number())) else {
        return;
    };
    for segment in network.segments().filter(|segment| segment.vlan.is_some()) {
        if let Some((IpAddr::V4(subnet), prefix)) =
            segment.subnet().and_then(|subnet| Some((subnet.host(0)?, subnet.length())))
            && let Err(error) = device.add_route(subnet, prefix, router)
        {
            tracing::warn!(network = %segment, %error, "this host does not reach the guests there");
        }
    }
}

/// Joins a bridged network by its TAP; how that goes is the state of the uplink port.
fn join(config: &Config, network: &Network, device: &TapDevice, (states, index): (&States, usize)) -> Option<Joined> {
    // The TAP is a cable: the host itself has no address on it.
    let ipv6 = format!("/proc/sys/net/ipv6/conf/{}/disable_ipv6", device.name());
    if std::path::Path::new(&ipv6).exists() && std::fs::write(&ipv6, "1").is_err() {
        tracing::warn!(tap = device.name(), "the host keeps an IPv6 address on the uplink's TAP");
    }
    let (later, name) = (states.clone(), network.name.to_string());
    let down = move |reason: String| {
        tracing::error!(network = name, reason, "the uplink is down");
        later.set(index, PortState::Down, Some(reason));
    };
    match bridged::join(&config.host, network, device.name(), down) {
        Ok(joined) => Some(joined),
        Err(reason) => {
            tracing::error!(network = %network.name, reason, "the uplink is down");
            states.set(index, PortState::Down, Some(reason));
            None
        }
    }
}

fn open(port: &Port, name: &str, netns: Option<&str>, network: Option<&Network>) -> Result<Tap, TapError> {
    let tap = Tap::open(name, port.queues, netns)?;
    if let Some(mac) = port.mac {
        tap.device.set_mac(mac.bytes())?;
    }
    if port.is_host {
        bridged::host_side::deafen(tap.device.name(), network.is_some_and(Network::tells_prefix));
    }
    // A cable into a bridge is as wide as that, whatever guests are told: with a narrower one, the bridge would be narrower for all.
    let underneath = network.filter(|_| port.is_uplink).and_then(bridged::mtu_underneath);
    let told = network.and_then(|network| network.mtu).map(u32::from);
    if let Some(mtu) = underneath.map(|mtu| mtu.min(LONGEST)).or(told) {
        tap.device.set_mtu(mtu)?;
    }
    tap.device.set_queue_len(QUEUE_LEN)?;
    tap.device.set_up(true)?;
    Ok(tap)
}
