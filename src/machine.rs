//! `machine`: one built-in guest in a process of its own, attached to a daemon by vhost-user.
//!
//! Invariant: the guest outlives the daemon, and is attached again when there is one; two processes never run the same guest (a lock
//! says so). Read first: `vmm::machine`.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use vmm::{
    front_end::Peer,
    machine::{Ended, Machine, MachineError, MachineSpec, Remote},
};
use wire::Mac;

/// How long to look for a daemon at the start.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long a guest may take to carry out what it is told at its start.
const REPLY: Duration = Duration::from_secs(30);

/// What to run.
#[derive(Debug, Clone)]
pub struct Options {
    /// For log lines.
    pub name: String,
    /// The daemon's vhost-user socket.
    pub socket: PathBuf,
    /// The NIC's address.
    pub mac: Mac,
    /// Bytes of memory.
    pub memory: u64,
    /// Another program than the built-in guest.
    pub image: Option<PathBuf>,
    /// Commands for the guest, as the crate `guest` has them.
    pub commands: Vec<String>,
    /// Locked while the guest runs; holds the process id.
    pub lock: Option<PathBuf>,
}

/// Why a guest does not run, or does not run any more.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The program cannot be read.
    #[error("{0}: {1}")]
    Image(PathBuf, io::Error),
    /// The lock cannot be had for another reason than that the guest runs already.
    #[error("the lock {0}: {1}")]
    Lock(PathBuf, io::Error),
    /// No daemon serves the socket.
    #[error("no daemon answers on {0}: {1}; start one with `trunkline up`, and see that this user may open the socket")]
    NoDaemon(PathBuf, io::Error),
    /// The machine cannot be made.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// The guest refused a command.
    #[error("the guest does not carry out `{0}`: {1}")]
    Command(String, String),
    /// The guest ended, and not because it was told to.
    #[error("{0}")]
    Ended(Ended),
}

/// Holds a guest's lock: nothing when another process has it.
pub fn lock(path: &Path) -> io::Result<Option<File>> {
    let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
    match file.try_lock() {
        Ok(()) => {
            file.set_len(0)?;
            writeln!(file, "{}", std::process::id())?;
            Ok(Some(file))
        }
        Err(fs::TryLockError::WouldBlock) => Ok(None),
        Err(fs::TryLockError::Error(error)) => Err(error),
    }
}

/// Runs a guest to its end, its console on standard output.
///
/// # Errors
/// See [`Error`].
pub fn run(options: Options) -> Result<(), Error> {
    sys::sigbus::install().map_err(|error| Error::Machine(error.into()))?;
    let _lock = match &options.lock {
        None => None,
        Some(path) => match lock(path).map_err(|error| Error::Lock(path.clone(), error))? {
            Some(held) => Some(held),
            None => {
                tracing::info!(guest = options.name, "runs already");
                return Ok(());
            }
        },
    };
    let image: Option<Arc<[u8]>> = match &options.image {
        Some(path) => Some(fs::read(path).map_err(|error| Error::Image(path.clone(), error))?.into()),
        None => None,
    };
    let remote = Remote::find(Peer::Connect(options.socket.clone()), PATIENCE)
        .map_err(|error| Error::NoDaemon(options.socket.clone(), error))?;
    let built_in = MachineSpec::built_in(&options.name, options.mac);
    let image = image.unwrap_or_else(|| Arc::clone(&built_in.image));
    let spec = MachineSpec { memory: options.memory, image, mtu: remote.mtu(), ..built_in };
    let mut machine = Machine::start(spec, Box::new(remote))?;
    for command in &options.commands {
        tell(&machine, command)?;
    }
    while machine.is_running() {
        if let Some(line) = machine.read_line(Duration::from_secs(3600)) {
            say(&line);
        }
    }
    match machine.wait() {
        Ended::Off => Ok(()),
        ended => Err(Error::Ended(ended)),
    }
}

/// A line of the guest, for whoever reads along.
fn say(line: &str) {
    // Nobody may be reading any more, which is no reason to end the guest.
    let _ = writeln!(io::stdout(), "{line}");
}

/// Types a command and waits for the reply.
fn tell(machine: &Machine, command: &str) -> Result<(), Error> {
    let failed = |why: &str| Error::Command(command.to_owned(), why.to_owned());
    if !machine.type_line(command) {
        return Err(failed("it reads nothing"));
    }
    while let Some(line) = machine.read_line(REPLY) {
        say(&line);
        match line.split_once(' ').unwrap_or((&line, "")) {
            ("ok", _) => return Ok(()),
            ("no", why) => return Err(failed(why)),
            _ => {}
        }
    }
    Err(failed("it does not answer"))
}
