//! The configuration: what `trunkline.toml` says, checked once, so that nothing behind this edge checks again.
//!
//! Invariant: a [`Config`] can be carried out as far as the file and the host's CPUs and groups can tell. Names, sockets and
//! TAPs are unique, networks exist, numbers are in range; what this version cannot do is not in it. A wrong file
//! makes one message and no `Config`.
//!
//! How it works: `toml` parses the text to a tree that keeps byte ranges; [`reader`] turns tables into sections
//! whose keys are all known; `host`, `network` and `guest` read one kind of section each, and claim what must be
//! unique. What is right but not available in this version is collected and told last, so that a real mistake comes
//! first. Read first: the TOML 1.0 specification.

mod behind;
mod bridged;
mod claims;
mod dscp;
mod error;
mod evpn;
mod guest;
mod host;
pub mod names;
mod nat;
mod network;
mod one_host;
mod overlay;
mod own_ports;
mod publish;
mod reader;
mod sealing;
mod seat;
mod segment;
mod station;
mod surroundings;
pub mod types;
pub mod units;
mod vlan;

#[cfg(test)]
mod tests;

pub use error::ConfigError;
pub use names::Name;
pub use nat::{Nat, NatEngine, Proto, Publish, Target, Via};

pub use network::MTU_MAX;
pub use overlay::{Overlay, Vtep};
pub use sealing::Sealing;
pub use seat::Seat;
pub use segment::{Segment, Vlan};
pub use surroundings::Surroundings;
pub use types::{Attach, Config, Dhcp6, Engine, Guest, Host, Idle, Mode, Network, Port, Role, Station, Tagging};
pub use units::Subnet;

use claims::Claims;
use error::Fault;
use reader::{Entry, Section};
use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};
use toml::de::DeTable;

/// Where a file is looked for when none is named, in this order.
pub const DEFAULT_FILES: [&str; 2] = ["trunkline.toml", "/etc/trunkline/trunkline.toml"];

/// Longest path of a unix socket in bytes (`sun_path` of unix(7) is 108 with the closing zero byte).
pub const SOCKET_PATH_MAX: usize = 107;

/// Largest configuration file that is read, in bytes.
const FILE_MAX: u64 = 16 << 20;

/// Finds the file to read: the named one, else the first of [`DEFAULT_FILES`] that exists.
pub fn find(named: Option<&Path>) -> Result<PathBuf, ConfigError> {
    if let Some(file) = named {
        return Ok(file.to_owned());
    }
    let files = DEFAULT_FILES.map(PathBuf::from);
    let found = files.iter().find(|file| file.exists()).cloned();
    found.ok_or_else(|| ConfigError::Nowhere(files.to_vec()))
}

/// Reads and checks a file.
pub fn load(file: &Path, around: &Surroundings) -> Result<Config, ConfigError> {
    let unreadable = |source: io::Error| {
        let hint = match source.kind() {
            io::ErrorKind::NotFound => "check the path",
            io::ErrorKind::PermissionDenied => "check its permissions, or run as a user who may read it",
            io::ErrorKind::IsADirectory => "name the file in it",
            _ => "check that it is a regular file",
        };
        ConfigError::Unreadable { file: file.to_owned(), source, hint }
    };
    let mut bytes = Vec::new();
    File::open(file).and_then(|open| open.take(FILE_MAX + 1).read_to_end(&mut bytes)).map_err(unreadable)?;
    if bytes.len() as u64 > FILE_MAX {
        return Err(unreadable(io::Error::new(io::ErrorKind::FileTooLarge, "it is larger than 16 MiB")));
    }
    let text = String::from_utf8(bytes).map_err(|error| {
        let good = error.utf8_error().valid_up_to();
        let text = String::from_utf8_lossy(error.as_bytes()).into_owned();
        Fault::new(good..good + 1, "", "the file is not UTF-8 from here on").tell(file.to_owned(), &text)
    })?;
    parse(&text, file, around)
}

/// Checks the text of `file`.
pub fn parse(text: &str, file: &Path, around: &Surroundings) -> Result<Config, ConfigError> {
    read(text, file, around).map_err(|fault| fault.tell(file.to_owned(), text))
}

/// What is gathered while a file is read.
#[derive(Default)]
struct Reading {
    claims: Claims,
    /// Stations that no guest of this host may be.
    unless: Vec<behind::Unless>,
    /// What is right but not available in this version.
    refused: Vec<Fault>,
}

impl Reading {
    /// Notes that what `entry` asks for is not available; `instead` says what is.
    fn refuse(&mut self, entry: &Entry<'_>, what: &str, instead: &str) {
        let message = format!("{what} is not available in this version; {instead}");
        self.refused.push(entry.key_fault(message));
    }
}

fn read(text: &str, file: &Path, around: &Surroundings) -> Result<Config, Fault> {
    let table = DeTable::parse(text).map_err(|error| syntax(text, &error))?;
    let root = Section::root(&table, &["version", "host", "networks", "vteps", "guests"])?;
    root.map("version", |entry| match entry.integer(0, u32::MAX)? {
        1 => Ok(()),
        other => Err(entry.fault(format!("format {other} is not known; allowed is 1"))),
    })?;
    let mut reading = Reading::default();

    let host = host::read(&root, around)?;
    reading.claims.reserve("socket", host.control_socket.clone(), "the control socket");
    reading.claims.reserve("socket", host.lock_file(), "the lock of the run directory");
    let mut vteps = overlay::read_vteps(&root, &mut reading)?;
    let networks = network::read(&root, &host, &mut vteps, &mut reading)?;
    let (guests, mut ports) = guest::read(&root, &host, &networks, &mut reading)?;
    seat::check(&root, &vteps, &networks)?;
    publish::check(&root, &networks, &guests, &ports)?;
    behind::check(std::mem::take(&mut reading.unless), &ports)?;
    ports.extend(networks.iter().filter_map(Network::host_port));
    let uplinks: Vec<Port> = networks.iter().filter_map(|network| network.uplink_port(&ports)).collect();
    ports.extend(uplinks);
    ports.extend(networks.iter().flat_map(Network::tunnel_ports));
    ports.extend(seat::ports(&vteps, &networks));

    match reading.refused.into_iter().min_by_key(|fault| fault.span.start) {
        Some(first) => Err(first),
        None => Ok(Config { file: file.to_owned(), host, vteps, networks, guests, ports }),
    }
}

/// A fault of the TOML itself.
fn syntax(text: &str, error: &toml::de::Error) -> Fault {
    let span = error.span().unwrap_or(0..0);
    let message = error.message();
    let key = if message.contains("duplicate key") { text.get(span.clone()).unwrap_or_default() } else { "" };
    match key {
        "" => Fault::new(span, "", format!("this is not TOML: {message}")),
        key => Fault::new(span, key, format!("the key `{key}` is given twice; each key is allowed once in a table")),
    }
}
