//! The guests of a configuration whose engine is `machine`: each is a process `trunkline machine` that outlives the daemon.
//!
//! Invariant: whether a guest runs is what its lock says, and nothing else is remembered; so a killed daemon, a killed guest and a process id
//! that somebody else has by now are all the same to us. Read first: [`crate::machine`].

use std::{
    fs::{self, File, OpenOptions},
    io,
    net::IpAddr,
    os::unix::process::CommandExt,
    path::PathBuf,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use wire::Mac;

use crate::{
    config::{Attach, Config, Engine, Guest, Port},
    hash,
    table::Table,
};

/// How long a guest may take to end.
const PATIENCE: Duration = Duration::from_secs(10);
/// Prefix length of guests' addresses in a network without a subnet.
const PREFIX: u8 = 24;

/// Why a guest cannot be started or stopped.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    /// The file has no such guest.
    #[error("there is no guest `{0}` in {1}; it has: {2}")]
    Unknown(String, PathBuf, String),
    /// Somebody else runs it.
    #[error("guest {0} has engine \"external\": whoever runs it starts and stops it")]
    External(String),
    /// The system refused.
    #[error("guest {0}: {1}")]
    System(String, io::Error),
    /// It is told to end and does not.
    #[error("guest {0} (process {1}) does not end")]
    Stays(String, u32),
}

/// The file that is locked while a guest runs.
fn lock_file(config: &Config, guest: &Guest) -> PathBuf {
    config.host.run_dir.join(format!("{}.machine", guest.name))
}

/// The process that runs a guest; nothing when none does.
fn process(config: &Config, guest: &Guest) -> io::Result<Option<u32>> {
    let path = lock_file(config, guest);
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    match file.try_lock_shared() {
        Ok(()) => Ok(None),
        Err(fs::TryLockError::WouldBlock) => {
            let text = fs::read_to_string(&path)?;
            text.trim().parse().map(Some).map_err(|_| io::Error::other(format!("{} is not a lock", path.display())))
        }
        Err(fs::TryLockError::Error(error)) => Err(error),
    }
}

/// The guests whose process is ours to start.
pub fn machines(config: &Config) -> impl Iterator<Item = &Guest> {
    config.guests.iter().filter(|guest| guest.engine == Engine::Machine)
}

/// Starts a guest unless it runs. It is attached when there is a daemon.
///
/// # Errors
/// The process cannot be made.
pub fn start(config: &Config, guest: &Guest) -> Result<bool, GuestError> {
    let system = |error| GuestError::System(guest.name.to_string(), error);
    if process(config, guest).map_err(system)?.is_some() {
        return Ok(false);
    }
    let Some((port, socket)) = config.ports.iter().find_map(|port| match &port.attach {
        Attach::VhostUser { socket, .. } if port.guest == guest.name => Some((port, socket)),
        _ => None,
    }) else {
        return Err(system(io::Error::other("it has no port")));
    };
    let log = config.host.run_dir.join(format!("{}.log", guest.name));
    let log = OpenOptions::new().create(true).append(true).open(log).map_err(system)?;
    let mut command = Command::new(std::env::current_exe().map_err(system)?);
    command.args(["machine", "--name", guest.name.as_str(), "--mac", &address(port).to_string()]);
    command.arg("--port").arg(socket).arg("--lock").arg(lock_file(config, guest));
    if let Some(text) = first_address(config, port) {
        command.args(["--run", &text]);
    }
    command.stdin(Stdio::null()).stdout(log.try_clone().map_err(system)?).stderr(log);
    // A group of its own: what ends the daemon from the keyboard does not end the guest.
    let mut child = command.process_group(0).spawn().map_err(system)?;
    let name = guest.name.to_string();
    // For as long as we are here, somebody has to take note of its end.
    let waiting = std::thread::Builder::new().name(format!("wait-{name}")).spawn(move || match child.wait() {
        Ok(status) => tracing::info!(guest = name, %status, "a machine ended"),
        Err(error) => tracing::warn!(guest = name, %error, "a machine cannot be waited for"),
    });
    waiting.map(|_| true).map_err(system)
}

/// The guest's address: the declared one, or one made of its name, the same every time.
fn address(port: &Port) -> Mac {
    let [_, a, b, c] = hash::of(port.name.as_str()).to_be_bytes();
    port.mac.unwrap_or(Mac::new([2, 0x74, 0x6c, a, b, c]))
}

/// The command that gives a guest its first declared address, or has it ask for one where there is somebody to ask.
fn first_address(config: &Config, port: &Port) -> Option<String> {
    let network = config.networks.iter().find(|network| network.name == port.network);
    let segment = network.and_then(|network| network.segment_of(port));
    if segment.is_some_and(|segment| segment.dhcp()) {
        return Some("dhcp ms=60000".to_owned());
    }
    let prefix = segment.and_then(|segment| segment.subnet()).map_or(PREFIX, |subnet| subnet.length());
    let address = port.addresses.iter().find(|address| matches!(address, IpAddr::V4(_)))?;
    Some(format!("address {address}/{prefix}"))
}

/// Ends a guest, as a power cut does; false when it does not run.
///
/// # Errors
/// It may not be ended by this user, or it does not end.
pub fn stop(config: &Config, guest: &Guest) -> Result<bool, GuestError> {
    let system = |error| GuestError::System(guest.name.to_string(), error);
    let Some(pid) = process(config, guest).map_err(system)? else { return Ok(false) };
    sys::process::terminate(pid).map_err(system)?;
    let begun = Instant::now();
    while process(config, guest).map_err(system)?.is_some() {
        if begun.elapsed() > PATIENCE {
            return Err(GuestError::Stays(guest.name.to_string(), pid));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(true)
}

/// The guest of this name that is ours to start and stop.
///
/// # Errors
/// There is none.
pub fn named<'a>(config: &'a Config, name: &str) -> Result<&'a Guest, GuestError> {
    let Some(guest) = config.guests.iter().find(|guest| guest.name.as_str() == name) else {
        let names: Vec<&str> = config.guests.iter().map(|guest| guest.name.as_str()).collect();
        return Err(GuestError::Unknown(name.to_owned(), config.file.clone(), names.join(", ")));
    };
    match guest.engine {
        Engine::Machine => Ok(guest),
        Engine::External => Err(GuestError::External(name.to_owned())),
    }
}

/// All guests and how they are, as a table or as JSON: `{name, engine, state, pid}`.
///
/// # Errors
/// A lock cannot be read.
pub fn list(config: &Config, json: bool) -> Result<String, GuestError> {
    let mut table = Table::new(&["GUEST", "ENGINE", "STATE", ">PROCESS"]);
    let mut values = Vec::new();
    for guest in &config.guests {
        let pid = process(config, guest).map_err(|error| GuestError::System(guest.name.to_string(), error))?;
        let state = match (guest.engine, pid) {
            (Engine::External, _) => "external",
            (Engine::Machine, Some(_)) => "running",
            (Engine::Machine, None) => "stopped",
        };
        let engine = guest.engine.word();
        table.row([
            guest.name.to_string(),
            engine.to_owned(),
            state.to_owned(),
            pid.map_or(String::new(), |pid| pid.to_string()),
        ]);
        values.push(serde_json::json!({ "name": guest.name, "engine": engine, "state": state, "pid": pid }));
    }
    Ok(if json { format!("{}\n", serde_json::Value::Array(values)) } else { table.to_string() })
}
