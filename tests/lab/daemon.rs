//! The program under test: `trunkline up`, and its other verbs against the running daemon.

use super::netns::NetNs;
use super::process::{CommandOutput, Process, guarded, signal, status_number};
use super::{Lab, holds_within};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

const READY: Duration = Duration::from_secs(60);
const END: Duration = Duration::from_secs(60);

/// The built program.
pub fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_trunkline"))
}

/// Runs the program with these arguments to its end (a `check`, a wrong command line); nothing is added to them.
pub fn trunkline(arguments: &[&str]) -> CommandOutput {
    let done = Command::new(program()).args(arguments).stdin(Stdio::null()).output().expect("the program");
    let output = String::from_utf8_lossy(&done.stdout).into_owned() + &String::from_utf8_lossy(&done.stderr);
    CommandOutput { status: status_number(done.status), output }
}

/// A running daemon, or the place of one that was ended.
#[derive(Debug)]
pub struct Daemon {
    name: String,
    dir: PathBuf,
    config: PathBuf,
    socket: PathBuf,
    process: Option<Process>,
    logs: Vec<String>,
    /// The network namespace it runs in; none for the laboratory's own.
    netns: Option<String>,
    /// It runs as nobody, without capabilities.
    is_nobody: bool,
}

/// What makes of a command of root's one of user nobody, who has no capability and can get none.
const AS_NOBODY: [&str; 10] = [
    "setpriv",
    "--reuid=65534",
    "--regid=65534",
    "--clear-groups",
    "--inh-caps=-all",
    "--bounding-set=-all",
    "--no-new-privs",
    "--pdeathsig",
    "KILL",
    "--",
];

impl Daemon {
    /// Writes the configuration and runs `up` on it until it says `ready`; panics with its log if it does not.
    ///
    /// In the text, `$DIR` stands for the laboratory's directory. Unless the text sets `run_dir` and `state_dir`, they
    /// are `$DIR/run` and `$DIR/state`.
    pub fn start(lab: &Lab, config_toml: &str) -> Self {
        let mut daemon = Self::prepared(lab, config_toml);
        daemon.restart();
        daemon
    }

    /// The same within a network namespace: what it makes on its host is made there.
    pub fn start_in(lab: &Lab, ns: &NetNs, config_toml: &str) -> Self {
        let mut daemon = Self::prepared(lab, config_toml);
        daemon.netns = Some(ns.netns_name().to_owned());
        daemon.restart();
        daemon
    }

    /// The same beside others of the laboratory, under a name of its own: `$DIR/NAME.toml`, `$DIR/NAME` and `$DIR/NAME-state` are its.
    pub fn start_beside(lab: &Lab, ns: &NetNs, name: &str, config_toml: &str) -> Self {
        let own = format!("[host]\nname = \"{name}\"\nrun_dir = \"$DIR/{name}\"\nstate_dir = \"$DIR/{name}-state\"\n");
        let mut daemon = Self::named(lab, name, &format!("{own}{config_toml}"));
        daemon.netns = Some(ns.netns_name().to_owned());
        daemon.restart();
        daemon
    }

    /// The same as user nobody, without capabilities: an ordinary user's daemon.
    pub fn start_as_nobody(lab: &Lab, ns: &NetNs, config_toml: &str) -> Self {
        let mut daemon = Self::prepared(lab, config_toml);
        (daemon.netns, daemon.is_nobody) = (Some(ns.netns_name().to_owned()), true);
        for dir in ["run", "state"] {
            of_nobody(&lab.path(dir));
        }
        daemon.restart();
        daemon
    }

    /// [`Daemon::start_beside`] as user nobody.
    pub fn start_as_nobody_beside(lab: &Lab, ns: &NetNs, name: &str, config_toml: &str) -> Self {
        let own = format!("[host]\nname = \"{name}\"\nrun_dir = \"$DIR/{name}\"\nstate_dir = \"$DIR/{name}-state\"\n");
        let mut daemon = Self::named(lab, name, &format!("{own}{config_toml}"));
        (daemon.netns, daemon.is_nobody) = (Some(ns.netns_name().to_owned()), true);
        for dir in [name, &format!("{name}-state")] {
            of_nobody(&lab.path(dir));
        }
        daemon.restart();
        daemon
    }

    /// Writes the configuration and starts nothing.
    pub fn prepared(lab: &Lab, config_toml: &str) -> Self {
        Self::named(lab, "trunkline", config_toml)
    }

    fn named(lab: &Lab, name: &str, config_toml: &str) -> Self {
        let text = complete(config_toml).replace("$DIR", &lab.dir().display().to_string());
        let config = lab.path(&format!("{name}.toml"));
        fs::write(&config, &text).expect("the configuration file");
        let run_dir = value_of(&text, "run_dir").expect("a run_dir");
        let socket = Path::new(&run_dir).join("control.sock");
        Self {
            name: name.to_owned(),
            dir: lab.dir().to_owned(),
            config,
            socket,
            process: None,
            logs: Vec::new(),
            netns: None,
            is_nobody: false,
        }
    }

    /// Ends the daemon, if it runs, and starts it with the same configuration; waits until it says `ready`.
    pub fn restart(&mut self) {
        if self.running() {
            self.terminate();
        }
        self.launch();
        let ready = holds_within(READY, || self.log().lines().any(|line| line.trim() == "ready") || !self.running());
        let said = self.log().lines().any(|line| line.trim() == "ready");
        assert!(ready && said, "the daemon is not ready:\n{}", self.log());
    }

    /// Starts the daemon without waiting for anything.
    pub fn launch(&mut self) {
        self.keep_log();
        let mut command = match &self.netns {
            None => guarded(program()),
            Some(netns) => {
                // It becomes the program: the process is the same one.
                let mut command = guarded("ip");
                command.args(["netns", "exec", netns]);
                if self.is_nobody {
                    command.args(AS_NOBODY);
                }
                command.arg(program());
                command
            }
        };
        command.arg("up").arg(&self.config).env("RUST_BACKTRACE", "1");
        self.process = Some(Process::start(&self.dir, &self.name, command));
    }

    /// The process id of the running daemon.
    pub fn pid(&self) -> u32 {
        self.process.as_ref().expect("a running daemon").pid()
    }

    /// Whether it runs.
    pub fn running(&mut self) -> bool {
        self.process.as_mut().is_some_and(Process::running)
    }

    /// SIGKILL.
    pub fn kill9(&mut self) {
        if let Some(process) = &mut self.process {
            process.kill();
        }
        self.keep_log();
    }

    /// SIGTERM, and waits for its end, which must be a clean one.
    pub fn terminate(&mut self) {
        let Some(process) = &mut self.process else {
            return;
        };
        signal(process.pid(), "TERM");
        let ended = process.wait(END);
        assert!(ended.is_some_and(|status| status.success()), "the daemon ended with {ended:?}:\n{}", self.log());
        self.keep_log();
    }

    /// What the daemon running now (or last) has printed.
    pub fn log(&self) -> String {
        match &self.process {
            Some(process) => process.log(),
            None => self.logs.last().cloned().unwrap_or_default(),
        }
    }

    /// The configuration file.
    pub fn config(&self) -> &Path {
        &self.config
    }

    /// The control socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Runs the same program with `--socket` and these arguments, to its end; standard output only.
    pub fn ctl(&self, arguments: &[&str]) -> CommandOutput {
        let mut command = Command::new(program());
        command.arg("--socket").arg(&self.socket).args(arguments).stdin(Stdio::null());
        let done = command.output().expect("the program");
        let status = status_number(done.status);
        let part = if done.status.success() { done.stdout } else { done.stderr };
        CommandOutput { status, output: String::from_utf8_lossy(&part).into_owned() }
    }

    /// The JSON that a command such as `["show", "ports", "--json"]` prints; panics with the daemon's log if it fails.
    pub fn json(&self, arguments: &[&str]) -> Value {
        let done = self.ctl(arguments);
        assert!(done.ok(), "{arguments:?} failed: {}\n{}", done.output, self.log());
        serde_json::from_str(&done.output)
            .unwrap_or_else(|e| panic!("{arguments:?} printed no JSON ({e}): {}", done.output))
    }

    /// The entry of `show ports --json` with this name.
    pub fn port(&self, name: &str) -> Value {
        let ports = self.json(&["show", "ports", "--json"]);
        let found = ports.as_array().and_then(|list| list.iter().find(|port| port["name"] == name));
        found.cloned().unwrap_or_else(|| panic!("no port {name} in {ports}"))
    }

    fn keep_log(&mut self) {
        if let Some(process) = self.process.take() {
            self.logs.push(process.log());
        }
    }
}

/// Makes a directory that is user nobody's.
fn of_nobody(dir: &Path) {
    fs::create_dir_all(dir).expect("a directory");
    std::os::unix::fs::chown(dir, Some(65534), Some(65534)).expect("a directory of nobody's");
}

/// Adds what keeps a configuration inside the laboratory's directory.
fn complete(text: &str) -> String {
    let missing: String = [("run_dir", "$DIR/run"), ("state_dir", "$DIR/state")]
        .iter()
        .filter(|(key, _)| value_of(text, key).is_none())
        .map(|(key, path)| format!("{key} = \"{path}\"\n"))
        .collect();
    match text.find("[host]\n") {
        Some(at) => format!("{}[host]\n{missing}{}", &text[..at], &text[at + "[host]\n".len()..]),
        None => format!("{text}\n[host]\n{missing}"),
    }
}

/// The string that a line `key = "..."` assigns.
fn value_of(text: &str, key: &str) -> Option<String> {
    text.lines()
        .filter_map(|line| line.split_once('='))
        .find(|(name, _)| name.trim() == key)
        .and_then(|(_, value)| value.split('"').nth(1).map(str::to_owned))
}
