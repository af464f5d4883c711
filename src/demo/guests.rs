//! [`Guest`]: a built-in guest of the demo, in a virtual machine or in a thread.
//!
//! Invariant: both kinds run the same code of the crate `guest` and are told the same commands; a guest ends when it is dropped.

use std::time::{Duration, Instant};

use clap::ValueEnum;
use vmm::machine::{Machine, MachineSpec};
use wire::Mac;

use super::{PATIENCE, net::Net, thread::ThreadGuest};

/// Where guests run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Engine {
    /// Virtual machines of KVM, their NICs ports of the switch without a socket between
    Machine,
    /// Threads of this process, attached by vhost-user sockets
    Thread,
}

/// The engine in use, and why.
pub(super) struct Asked {
    engine: Engine,
    why_no_machine: Option<String>,
}

impl Asked {
    /// The engine asked for, or the best that can be had: machines if one boots here.
    pub(super) fn of(engine: Option<Engine>) -> Result<Asked, String> {
        if engine == Some(Engine::Thread) {
            return Ok(Asked { engine: Engine::Thread, why_no_machine: None });
        }
        match (probe(), engine) {
            (Ok(()), _) => Ok(Asked { engine: Engine::Machine, why_no_machine: None }),
            (Err(why), Some(Engine::Machine)) => Err(why),
            (Err(why), _) => Ok(Asked { engine: Engine::Thread, why_no_machine: Some(why) }),
        }
    }

    pub(super) fn told(&self) -> String {
        let how = match self.engine {
            Engine::Machine => "virtual machines of KVM; their network cards are ports of the switch",
            Engine::Thread => "threads of this process, attached by vhost-user sockets",
        };
        match &self.why_no_machine {
            Some(why) => format!("{how}\n  (not as virtual machines: {why})"),
            None => how.to_owned(),
        }
    }

    pub(super) fn engine(&self) -> Engine {
        self.engine
    }
}

/// Whether a machine with the built-in guest comes up here: some hosts have a /dev/kvm in which nothing runs.
fn probe() -> Result<(), String> {
    /// Takes rings and leaves them alone.
    struct Nobody;
    impl vmm::machine::NicBackEnd for Nobody {
        fn features(&self) -> vmm::Features {
            vmm::Features::VERSION_1
        }
        fn start(&mut self, _: vmm::machine::ReadyNic) -> std::io::Result<()> {
            Ok(())
        }
        fn stop(&mut self) {}
    }
    let spec = MachineSpec::built_in("probe", Mac::new([2, 0, 0, 0, 0, 1]));
    let mut machine = Machine::start(spec, Box::new(Nobody)).map_err(|error| error.to_string())?;
    match machine.read_line(PATIENCE) {
        Some(_) => Ok(()),
        None => Err(format!("a guest does not come up: {}", machine.stop())),
    }
}

enum Body {
    /// Ended.
    Gone,
    Machine(Machine),
    Thread(ThreadGuest),
}

/// A guest that was started.
pub(super) struct Guest {
    body: Body,
    pub(super) mac: Mac,
    pub(super) begun: Instant,
}

/// The address of a port's guest: the declared one, or one that is made up of the port's place.
fn address(net: &Net, port: &str, number: u16) -> Mac {
    let [high, low] = number.to_be_bytes();
    net.mac(port).unwrap_or(Mac::new([2, 0x74, 0x6c, 0, high, low]))
}

impl Guest {
    /// Starts a guest on a port of the network, without waiting for it.
    pub(super) fn start(asked: &Asked, net: &Net, port: &str, number: u16) -> Result<Guest, String> {
        let mac = address(net, port, number);
        let begun = Instant::now();
        let body = match asked.engine() {
            Engine::Machine => {
                let back_end = net.back_end(port).ok_or_else(|| format!("there is no port {port}"))?;
                let machine = Machine::start(MachineSpec::built_in(port, mac), Box::new(back_end));
                Body::Machine(machine.map_err(|error| error.to_string())?)
            }
            Engine::Thread => {
                let socket = net.socket(port).ok_or_else(|| format!("port {port} has no socket"))?;
                Body::Thread(ThreadGuest::start(port, mac, socket).map_err(|error| error.to_string())?)
            }
        };
        Ok(Guest { body, mac, begun })
    }

    /// Starts one and waits until it is ready.
    pub(super) fn boot(asked: &Asked, net: &Net, port: &str, number: u16) -> Result<Guest, String> {
        let guest = Guest::start(asked, net, port, number)?;
        guest.ready()?;
        Ok(guest)
    }

    /// Waits for the guest's first line.
    pub(super) fn ready(&self) -> Result<(), String> {
        match self.read(PATIENCE) {
            Some(line) if line.starts_with("ready ") => Ok(()),
            Some(line) => Err(format!("the guest began with {line}")),
            None => Err("the guest says nothing".to_owned()),
        }
    }

    /// Types a command.
    pub(super) fn send(&self, command: &str) -> Result<(), String> {
        let typed = match &self.body {
            Body::Machine(machine) => machine.type_line(command),
            Body::Thread(thread) => thread.type_line(command),
            Body::Gone => false,
        };
        if typed { Ok(()) } else { Err("the guest reads nothing".to_owned()) }
    }

    fn read(&self, patience: Duration) -> Option<String> {
        match &self.body {
            Body::Machine(machine) => machine.read_line(patience),
            Body::Thread(thread) => thread.read_line(patience),
            Body::Gone => None,
        }
    }

    /// The reply to a command that was typed: what follows `ok`, or what follows `no` as the error.
    pub(super) fn reply(&self) -> Result<String, String> {
        let line = self.read(PATIENCE).ok_or("the guest does not answer")?;
        match line.split_once(' ').unwrap_or((&line, "")) {
            ("ok", told) => Ok(told.to_owned()),
            ("no", why) => Err(why.to_owned()),
            _ => Err(format!("the guest says: {line}")),
        }
    }

    /// Types a command and waits for its reply.
    pub(super) fn tell(&self, command: &str) -> Result<String, String> {
        self.send(command)?;
        self.reply()
    }

    /// Ends the guest as a power cut does.
    pub(super) fn kill(&mut self) {
        self.body = Body::Gone;
    }
}

/// The number of `key=number` in a reply.
pub(super) fn number(reply: &str, key: &str) -> Result<u64, String> {
    let pairs = reply.split_whitespace().filter_map(|word| word.split_once('='));
    let found = pairs.filter(|(name, _)| *name == key).find_map(|(_, text)| text.parse().ok());
    found.ok_or_else(|| format!("there is no {key} in the reply: {reply}"))
}
