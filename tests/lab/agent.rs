//! The host's side of the agent in a guest (assets/agent.c, where the messages are described): commands over a serial line.
//!
//! Theory of operation: one thread reads the line and files what arrives under the command's number; whoever waits for a
//! command looks at that state. Command numbers are unique in this process, so that a guest that migrated, or whose
//! agent started afresh after a reboot, never mixes up old and new. The thread ends when the line closes.

use super::{holds_within, unique};
use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// The status of a command whose guest went away or rebooted before it ended.
pub const LOST: i32 = -1;

#[derive(Default)]
struct State {
    hellos: u32,
    pongs: u64,
    closed: bool,
    jobs: HashMap<u64, (Vec<u8>, Option<i32>)>,
}

impl State {
    fn lose_running(&mut self) {
        self.jobs.values_mut().filter(|(_, status)| status.is_none()).for_each(|(_, status)| *status = Some(LOST));
    }
}

/// The connection to one guest's agent.
pub struct Agent {
    line: Mutex<Box<dyn Write + Send>>,
    state: Arc<Mutex<State>>,
}

impl std::fmt::Debug for Agent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Agent")
    }
}

impl Agent {
    /// Takes up the two directions of a serial line.
    pub fn attach(from_guest: impl Read + Send + 'static, to_guest: impl Write + Send + 'static) -> Arc<Self> {
        let state = Arc::new(Mutex::new(State::default()));
        let filed = Arc::clone(&state);
        std::thread::spawn(move || {
            let _ = read_messages(&mut BufReader::new(from_guest), &filed);
            let mut state = filed.lock().unwrap();
            state.closed = true;
            state.lose_running();
        });
        Arc::new(Self { line: Mutex::new(Box::new(to_guest)), state })
    }

    /// How often the agent has started: once after a boot, once more after each reboot.
    pub fn starts(&self) -> u32 {
        self.state.lock().unwrap().hellos
    }

    /// Whether the line is closed: the guest is gone.
    pub fn closed(&self) -> bool {
        self.state.lock().unwrap().closed
    }

    /// Whether the agent answers within `timeout`.
    pub fn answers(&self, timeout: Duration) -> bool {
        let before = self.state.lock().unwrap().pongs;
        self.send("ping", 0, b"");
        holds_within(timeout, || self.state.lock().unwrap().pongs > before)
    }

    /// Starts a shell command and forgets it.
    pub fn start(&self, command: &str) -> u64 {
        let id = unique();
        self.state.lock().unwrap().jobs.insert(id, (Vec::new(), None));
        self.send("run", id, command.as_bytes());
        id
    }

    /// Starts a shell command.
    pub fn spawn(self: &Arc<Self>, command: &str) -> AgentJob {
        AgentJob { id: self.start(command), agent: Arc::clone(self) }
    }

    fn send(&self, kind: &str, id: u64, body: &[u8]) {
        let mut message = format!("@{kind} {id} {}\n", body.len()).into_bytes();
        message.extend_from_slice(body);
        let mut line = self.line.lock().unwrap();
        if line.write_all(&message).and_then(|()| line.flush()).is_err() {
            self.state.lock().unwrap().lose_running();
        }
    }
}

/// A command in a guest; killed when dropped.
#[derive(Debug)]
pub struct AgentJob {
    id: u64,
    agent: Arc<Agent>,
}

impl AgentJob {
    /// What it has printed so far.
    pub fn output(&self) -> String {
        let state = self.agent.state.lock().unwrap();
        state.jobs.get(&self.id).map(|(output, _)| String::from_utf8_lossy(output).into_owned()).unwrap_or_default()
    }

    /// Its exit status, once it has ended; [`LOST`] if the guest went away.
    pub fn status(&self) -> Option<i32> {
        self.agent.state.lock().unwrap().jobs.get(&self.id).and_then(|(_, status)| *status)
    }

    /// SIGKILL to it and its children.
    pub fn kill(&self) {
        if self.status().is_none() {
            self.agent.send("kill", self.id, b"");
        }
    }
}

impl Drop for AgentJob {
    fn drop(&mut self) {
        self.kill();
        self.agent.state.lock().unwrap().jobs.remove(&self.id);
    }
}

fn read_messages(line: &mut impl BufRead, state: &Mutex<State>) -> io::Result<()> {
    loop {
        let mut noise = Vec::new();
        if line.read_until(b'@', &mut noise)? == 0 {
            return Ok(());
        }
        let mut head = Vec::new();
        line.read_until(b'\n', &mut head)?;
        let head = String::from_utf8_lossy(&head);
        let mut words = head.split_whitespace();
        let kind = words.next().unwrap_or_default();
        let mut number = || words.next().and_then(|word| word.parse::<u64>().ok());
        let (Some(id), Some(len)) = (number(), number()) else {
            continue;
        };
        let mut body = vec![0; usize::try_from(len.min(1 << 20)).unwrap_or(0)];
        line.read_exact(&mut body)?;
        let mut state = state.lock().unwrap();
        match kind {
            "hello" => {
                state.hellos += 1;
                state.lose_running();
            }
            "pong" => state.pongs += 1,
            "out" => {
                if let Some((output, _)) = state.jobs.get_mut(&id) {
                    output.extend_from_slice(&body);
                }
            }
            "end" => {
                if let Some((_, status)) = state.jobs.get_mut(&id) {
                    *status = String::from_utf8_lossy(&body).trim().parse().ok().or(Some(LOST));
                }
            }
            _ => {}
        }
    }
}
