//! [`Net`]: the switch of the demo, with sockets in a directory of its own that goes away with it.
//!
//! Invariant: all it makes lies in that directory or in this process's own network namespace.

use std::{
    fs,
    io::{self, Read},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use sys::tap::TapDevice;
use vmm::{
    machine::InSwitch,
    vhost_user::{SessionHandle, SessionThread},
};
use vswitch::change::Change;

use crate::{
    config::{self, Config, Surroundings},
    model::PortStatus,
    run,
    switch::{Place, Switch},
    taps::{self, Taps},
    view::{Sums, View},
    wiring::SwitchWiring,
};

/// A directory with a name that nobody can guess, for this user alone.
struct Directory(PathBuf);

impl Directory {
    fn new() -> io::Result<Directory> {
        let mut random = [0; 8];
        fs::File::open("/dev/urandom")?.read_exact(&mut random)?;
        let path = std::env::temp_dir().join(format!("trunkline-demo-{:016x}", u64::from_ne_bytes(random)));
        fs::DirBuilder::new().mode(0o700).create(&path)?;
        Ok(Directory(path))
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        // What stays behind is an empty directory in the place for such things.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// See the module's documentation.
pub(super) struct Net {
    view: View,
    places: Vec<Place>,
    taps: Taps,
    /// Why there is no TAP, if so.
    pub(super) no_tap: Option<String>,
    config: Config,
    sessions: Option<SessionHandle>,
    switch: Switch,
    _directory: Directory,
}

impl Net {
    /// Starts the networks of a configuration. TAPs are made only in a network namespace of our own.
    pub(super) fn start(text: &str, own_network: Result<(), String>) -> io::Result<Net> {
        let directory = Directory::new()?;
        let host = format!("[host]\nname = \"demo\"\nrun_dir = \"{0}\"\nstate_dir = \"{0}\"\n", directory.0.display());
        let config = config::parse(&format!("{host}{text}"), Path::new("demo"), &Surroundings::here());
        let config = config.map_err(io::Error::other)?;
        let switch = Switch::start(config.clone(), config.clone())?;
        let (places, states) = (switch.places(), switch.states());
        let wiring = SwitchWiring::new(&config.ports, places.clone(), states.clone());
        let sessions = SessionThread::spawn(run::vhost_user_ports(&config, &states), Box::new(wiring))?;
        let (taps, no_tap) = match own_network {
            Ok(()) => (taps::attach(&config, &places, &states), None),
            Err(why) => (Taps::default(), Some(why)),
        };
        let view = switch.view();
        Ok(Net { view, places, taps, no_tap, config, sessions: Some(sessions), switch, _directory: directory })
    }

    fn index(&self, port: &str) -> Option<usize> {
        self.config.ports.iter().position(|known| known.name.as_str() == port)
    }

    /// A back end for a machine's NIC that makes it the port of this name.
    pub(super) fn back_end(&self, port: &str) -> Option<InSwitch> {
        let Place { changes, nic } = self.places.get(self.index(port)?)?.clone();
        let back = changes.clone();
        Some(InSwitch::new(
            Box::new(move |port| {
                changes.send(Change::Attach { nic, lane: 0, port });
            }),
            Box::new(move || {
                back.send(Change::Detach { nic, lane: 0 });
            }),
        ))
    }

    /// The vhost-user socket of the port of this name.
    pub(super) fn socket(&self, port: &str) -> Option<PathBuf> {
        match &self.config.ports.get(self.index(port)?)?.attach {
            config::Attach::VhostUser { socket, .. } => Some(socket.clone()),
            config::Attach::Tap { .. }
            | config::Attach::Tunnel { .. }
            | config::Attach::Endpoint { .. }
            | config::Attach::Uplink { .. } => None,
        }
    }

    /// The address that the configuration declares for the port of this name.
    pub(super) fn mac(&self, port: &str) -> Option<wire::Mac> {
        self.config.ports.get(self.index(port)?)?.mac
    }

    /// The first TAP.
    pub(super) fn tap(&self) -> Option<&TapDevice> {
        self.taps.devices.first()
    }

    /// Has a network publish a port, as the file would have it.
    pub(super) fn publish(&self, network: &str, publication: &str) -> Result<(), String> {
        let text = format!("[networks.n]\nmode = \"nat\"\npublish = [\"{publication}\"]");
        let parsed =
            config::parse(&text, Path::new("demo"), &Surroundings::here()).map_err(|error| error.to_string())?;
        let wanted = parsed.networks.into_iter().filter_map(|network| network.nat).flat_map(|nat| nat.publish);
        let name = self.config.networks.iter().find(|known| known.name.as_str() == network);
        self.view.nats().want(&name.ok_or("no such network")?.name, wanted.collect());
        self.view.settle_nats().first().map_or(Ok(()), |failure| Err(failure.clone()))
    }

    /// The port's counters.
    pub(super) fn port(&self, port: &str) -> Option<PortStatus> {
        self.view.ports().into_iter().find(|status| status.name == port)
    }

    /// The sums of everything that was moved so far.
    pub(super) fn sums(&self) -> Option<Sums> {
        self.view.sums()
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        // Sessions first: they take their lanes home while the workers still turn.
        if let Some(sessions) = self.sessions.take() {
            sessions.stop();
        }
        self.switch.stop();
    }
}
