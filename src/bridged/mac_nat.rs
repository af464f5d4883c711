//! [`MacNat`]: a network whose guests go out by a NIC of the host under its own MAC address, looked after while it runs.
//!
//! Invariant: the NIC is left as it is. What is made on the host lies on the host's TAP of the network, and ends with it.
//!
//! Theory of operation. A thread looks at the NIC once a second, and when a guest's address came or went: the uplink port is made anew when the
//! NIC has another MAC address or has come back; what is reserved for the host and its routers is told to the port and the bridge; and the
//! host's TAP gets a route to every address that a guest has ([`super::host_side`]).
//! Read first: `vswitch::mac_nat`, docs/decisions/0014-mac-nat-and-the-host.md.

use std::{
    io,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{SyncSender, sync_channel},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use sys::packet::{PacketSocket, Takes};
use vswitch::{
    apart::Apart,
    change::Change,
    host::uplink::UplinkPort,
    mac_nat::{
        MacNatPort,
        remote::{Remote, remote},
    },
};
use wire::Mac;

use super::{
    host_side,
    netlink::Netlink,
    site::{Site, is_of_the_link},
};
use crate::{
    config::{Attach, Config, Network},
    host,
    model::PortState,
    switch::{Place, States},
};

/// How often the NIC is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// How long the first look may take before the others are not kept waiting.
const PATIENCE: Duration = Duration::from_secs(5);

/// A network that is looked after until this goes.
#[derive(Debug)]
pub struct MacNat {
    ending: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// What the thread looks after.
struct Keep {
    network: String,
    nic: String,
    tap: String,
    uplink: Place,
    host: Place,
    /// The uplink port among those of the configuration.
    index: usize,
    states: States,
    port: Option<Open>,
    /// What the bridge was told that the host has.
    declared: Vec<IpAddr>,
    /// What went wrong with the TAP when it was looked at last.
    trouble: Option<String>,
}

/// The uplink port as it was made.
struct Open {
    nic: (u32, [u8; 6]),
    remote: Remote,
    reserved: Vec<IpAddr>,
    guests: Vec<IpAddr>,
}

/// The host's addresses that mean something to guests: from these it speaks to them, and none of them has one.
pub fn host_addresses() -> Vec<IpAddr> {
    host::addresses().into_iter().filter(|address| !is_of_the_link(address)).collect()
}

/// Looks after every network with MAC-NAT; their TAPs are made.
pub fn start(config: &Config, places: &[Place], states: &States) -> Vec<MacNat> {
    let with_mac_nat = config.networks.iter().filter(|network| network.mac_nat);
    with_mac_nat.filter_map(|network| MacNat::start(config, network, places, states)).collect()
}

impl MacNat {
    fn start(config: &Config, network: &Network, places: &[Place], states: &States) -> Option<MacNat> {
        let own = |wanted: fn(&crate::config::Port) -> bool| {
            config.ports.iter().position(|port| port.network == network.name && wanted(port))
        };
        let (index, host) = (own(|port| port.is_uplink)?, own(|port| port.is_host)?);
        let Attach::Uplink { uplink: nic } = &config.ports.get(index)?.attach else { return None };
        let keep = Keep {
            network: network.name.to_string(),
            nic: nic.to_string(),
            tap: network.tap.as_ref()?.to_string(),
            uplink: places.get(index)?.clone(),
            host: places.get(host)?.clone(),
            index,
            states: states.clone(),
            port: None,
            declared: config.ports.get(host)?.addresses.clone(),
            trouble: None,
        };
        let ending = Arc::new(AtomicBool::new(false));
        let (looked, first_look) = sync_channel(1);
        let theirs = Arc::clone(&ending);
        let thread = thread::Builder::new().name("mac-nat".into()).spawn(move || keep.run(&theirs, &looked));
        let thread = match thread {
            Ok(thread) => thread,
            Err(error) => {
                states.set(index, PortState::Down, Some(format!("no thread can be had for it: {error}")));
                return None;
            }
        };
        let _ = first_look.recv_timeout(PATIENCE);
        Some(MacNat { ending, thread: Some(thread) })
    }
}

impl Drop for MacNat {
    fn drop(&mut self) {
        self.ending.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _ = thread.join();
        }
    }
}

impl Keep {
    fn run(mut self, ending: &AtomicBool, looked: &SyncSender<()>) {
        while !ending.load(Ordering::Acquire) {
            if let Err(reason) = self.look() {
                self.down(reason);
            }
            let _ = looked.try_send(());
            thread::park_timeout(LOOK);
        }
    }

    fn look(&mut self) -> Result<(), String> {
        let mut netlink = Netlink::open().map_err(|error| format!("the kernel's routing socket: {error}"))?;
        let site = Site::look(&mut netlink, &self.nic)?;
        let declared = host_addresses();
        if declared != self.declared {
            self.host.changes.send(Change::SetAddresses { nic: self.host.nic, addresses: declared.clone() });
            self.declared = declared;
        }
        // Those of the link, too: nobody is the host's TAP.
        let mut reserved = host::addresses();
        reserved.extend(&site.routers);
        let failed = self.states.get(self.index).state == PortState::Down;
        match &mut self.port {
            Some(open) if open.nic == (site.index, site.mac) && !failed => {
                if open.reserved != reserved {
                    open.remote.reserve(reserved.clone());
                    open.reserved = reserved;
                }
            }
            _ => self.open(&site, reserved)?,
        }
        let Some(open) = &mut self.port else { return Ok(()) };
        if let Some(holders) = open.remote.holders() {
            open.guests = holders.into_iter().map(|(address, _)| address).collect();
        }
        let done = host_side::bring(&mut netlink, &self.tap, &site, &open.guests);
        let trouble = done.err().map(|error| error.to_string());
        if let Some(reason) = trouble.as_ref().filter(|_| trouble != self.trouble) {
            tracing::warn!(network = self.network, tap = self.tap, reason, "the host does not reach every guest");
        }
        self.trouble = trouble;
        Ok(())
    }

    /// Makes the uplink port, in place of one that is there.
    fn open(&mut self, site: &Site, reserved: Vec<IpAddr>) -> Result<(), String> {
        let socket = PacketSocket::open(&self.nic, None, Takes::Own(site.mac)).map_err(|error| error.to_string())?;
        let (remote, inbox) = remote();
        let uplink = Box::new(UplinkPort::new(socket));
        let port = MacNatPort::new(uplink, Mac::new(site.mac), reserved.clone()).with_inbox(inbox);
        // What the host sends goes out by the NIC itself.
        let port = Box::new(Apart::new(Box::new(port), self.host.nic));
        // Before it can fail.
        self.states.set(self.index, PortState::Up, None);
        self.uplink.changes.send(Change::Attach { nic: self.uplink.nic, lane: 0, port });
        let mac = Mac::new(site.mac);
        tracing::info!(network = self.network, uplink = self.nic, %mac, "guests go out by the NIC's own address");
        self.port = Some(Open { nic: (site.index, site.mac), remote, reserved, guests: Vec::new() });
        Ok(())
    }

    fn down(&mut self, reason: String) {
        if self.port.take().is_some() {
            self.uplink.changes.send(Change::Detach { nic: self.uplink.nic, lane: 0 });
        }
        let doing = self.states.get(self.index);
        if doing.state != PortState::Down || doing.reason.as_deref() != Some(reason.as_str()) {
            tracing::error!(network = self.network, reason, "the uplink is down");
            self.states.set(self.index, PortState::Down, Some(reason));
        }
    }
}

/// Whether guests could go out by this NIC now; nothing is changed.
///
/// # Errors
/// Why not, and what to do.
pub fn look(nic: &str) -> Result<String, String> {
    let mut netlink = Netlink::open().map_err(|error: io::Error| error.to_string())?;
    let site = Site::look(&mut netlink, nic)?;
    Ok(format!("guests go out by {nic} as {}, and {nic} stays as it is", Mac::new(site.mac)))
}
