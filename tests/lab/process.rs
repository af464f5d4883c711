//! Child processes of the laboratory, and where commands run.
//!
//! Invariant: a process ends with its handle, and with the thread that started it (`setpriv --pdeathsig`), so neither a
//! panic nor a killed test runner leaves one behind. Shell commands get a process namespace of their own where root
//! permits it: with its first process go all the others. Processes must therefore be started from the test's own thread.

use super::agent::AgentJob;
use super::{holds_within, is_root, unique};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// The status that a command gets which did not end in time, as timeout(1) has it.
pub const TIMED_OUT: i32 = 124;

/// What became of a command: its exit status (128 + signal, [`TIMED_OUT`]) and what it printed, both streams together.
#[derive(Debug, Clone)]
pub struct CommandOutput {
    /// The exit code; 128 + the signal's number; [`TIMED_OUT`]; -1 if the guest went away meanwhile.
    pub status: i32,
    /// Standard output and standard error as they came.
    pub output: String,
}

impl CommandOutput {
    /// Whether the command ended with status 0.
    pub fn ok(&self) -> bool {
        self.status == 0
    }

    /// The output of a command that must succeed; panics with it otherwise.
    pub fn success(self) -> String {
        assert!(self.ok(), "a command ended with status {}:\n{}", self.status, self.output);
        self.output
    }
}

/// A command for `program` which dies with the thread that starts it. Environment set on it reaches the program.
pub fn guarded(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(program);
    command
}

/// Like [`guarded`], and what the program starts dies with it, whatever it does (as root; best effort otherwise).
pub fn guarded_tree(program: impl AsRef<OsStr>) -> Command {
    if !is_root() {
        return guarded(program);
    }
    let mut command = guarded("unshare");
    command.args(["--pid", "--fork", "--kill-child", "--"]).arg(program);
    command
}

/// The exit code, or 128 + the signal's number.
pub fn status_number(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}

/// Sends a signal (its name without SIG) to one process that the laboratory started.
pub fn signal(pid: u32, name: &str) {
    signal_target(&pid.to_string(), name);
}

/// What kill(1) takes: a process id, or a process group's with a minus before it.
fn signal_target(target: &str, name: &str) {
    let _ = Command::new("sh").args(["-c", &format!("kill -s {name} -- {target}")]).stderr(Stdio::null()).status();
}

/// A running child. Ends, at the latest, when this handle is dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    name: String,
    log: PathBuf,
    ended: Option<ExitStatus>,
}

impl Process {
    /// Starts a command (made by [`guarded`]) with both its outputs going to one log file in `dir`.
    pub fn start(dir: &Path, name: &str, mut command: Command) -> Self {
        let log = dir.join(format!("{name}-{}.log", unique()));
        let file = File::create(&log).expect("a log file");
        command.stdin(Stdio::null()).stdout(file.try_clone().expect("a log file")).stderr(file);
        Self::spawn(name, log, command)
    }

    /// Starts a command whose standard input and output are pipes; standard error goes to the log.
    pub fn start_piped(dir: &Path, name: &str, mut command: Command) -> (Self, ChildStdin, ChildStdout) {
        let log = dir.join(format!("{name}-{}.log", unique()));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(File::create(&log).expect("a log file"));
        let mut process = Self::spawn(name, log, command);
        let input = process.child.stdin.take().expect("a pipe");
        let output = process.child.stdout.take().expect("a pipe");
        (process, input, output)
    }

    /// Starts a command with both outputs in the log and a standard input that stays open and silent.
    pub fn start_held(dir: &Path, name: &str, mut command: Command) -> (Self, ChildStdin) {
        let log = dir.join(format!("{name}-{}.log", unique()));
        let file = File::create(&log).expect("a log file");
        command.stdin(Stdio::piped()).stdout(file.try_clone().expect("a log file")).stderr(file);
        let mut process = Self::spawn(name, log, command);
        let input = process.child.stdin.take().expect("a pipe");
        (process, input)
    }

    fn spawn(name: &str, log: PathBuf, mut command: Command) -> Self {
        command.process_group(0);
        let child = command.spawn().unwrap_or_else(|e| panic!("{name} cannot be started by {command:?}: {e}"));
        Self { child, name: name.to_owned(), log, ended: None }
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has printed so far.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// The last lines of what it has printed.
    pub fn log_tail(&self, lines: usize) -> String {
        tail(&self.log(), lines)
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().unwrap_or(None);
        }
        self.ended
    }

    /// Whether it runs.
    pub fn running(&mut self) -> bool {
        self.ended().is_none()
    }

    /// Waits for its end; `None` if it has not ended in time.
    pub fn wait(&mut self, timeout: Duration) -> Option<ExitStatus> {
        holds_within(timeout, || self.ended().is_some());
        self.ended()
    }

    /// SIGKILL to it and its process group (each process is started in one of its own), and waits until it is gone.
    pub fn kill(&mut self) {
        if self.running() {
            signal_target(&format!("-{}", self.pid()), "KILL");
            let _ = self.child.kill();
            self.ended = self.child.wait().ok();
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The last `lines` lines of a text.
pub fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// A command running in a [`Place`]. It is killed when the handle is dropped.
#[derive(Debug)]
pub enum Job {
    /// In a guest.
    Guest(AgentJob),
    /// On this machine.
    Local(Process),
}

impl Job {
    /// What it has printed so far.
    pub fn output(&self) -> String {
        match self {
            Self::Guest(job) => job.output(),
            Self::Local(process) => process.log(),
        }
    }

    /// Whether it runs.
    pub fn running(&mut self) -> bool {
        match self {
            Self::Guest(job) => job.status().is_none(),
            Self::Local(process) => process.running(),
        }
    }

    /// Waits until it has printed `text`; panics with its output when it ends without, or after `timeout`.
    pub fn wait_for_output(&mut self, text: &str, timeout: Duration) {
        let seen = holds_within(timeout, || self.output().contains(text) || !self.running());
        assert!(seen && self.output().contains(text), "no {text:?} in the output of a command:\n{}", self.output());
    }

    /// Waits for its end and takes its output; a command that takes longer is killed and has status [`TIMED_OUT`].
    pub fn wait(mut self, timeout: Duration) -> CommandOutput {
        let in_time = holds_within(timeout, || !self.running());
        if !in_time {
            self.kill();
        }
        let status = match &mut self {
            Self::Guest(job) => job.status(),
            Self::Local(process) => process.ended().map(status_number),
        };
        let status = if in_time { status.unwrap_or(TIMED_OUT) } else { TIMED_OUT };
        CommandOutput { status, output: self.output() }
    }

    /// SIGKILL to it and its children.
    pub fn kill(&mut self) {
        match self {
            Self::Guest(job) => job.kill(),
            Self::Local(process) => process.kill(),
        }
    }
}

/// Where a shell command can run: a guest or a network namespace. `frames` and `iperf3` are on the path in all of them.
pub trait Place {
    /// A name for messages.
    fn name(&self) -> &str;

    /// Starts a shell command and leaves it running.
    fn spawn(&self, command: &str) -> Job;

    /// Runs a shell command to its end.
    fn run(&self, command: &str, timeout: Duration) -> CommandOutput {
        self.spawn(command).wait(timeout)
    }

    /// Runs a short shell command that must succeed, and returns what it printed.
    fn sh(&self, command: &str) -> String {
        let done = self.run(command, Duration::from_secs(60));
        assert!(done.ok(), "in {}, `{command}` ended with status {}:\n{}", self.name(), done.status, done.output);
        done.output
    }

    /// Pings an IPv4 or IPv6 address ten times a second until it answers; how long that took, or `None` after `timeout`.
    fn reaches(&self, address: &str, timeout: Duration) -> Option<Duration> {
        let began = Instant::now();
        loop {
            let left = timeout.checked_sub(began.elapsed())?;
            // It ends at the first error that the kernel has, for example that nobody answered ARP for three seconds.
            let mut pinging = self.spawn(&format!("ping -i 0.1 -w {} {address}", left.as_secs() + 1));
            holds_within(left, || pinging.output().contains(" bytes from ") || !pinging.running());
            if pinging.output().contains(" bytes from ") {
                return Some(began.elapsed());
            }
        }
    }
}
