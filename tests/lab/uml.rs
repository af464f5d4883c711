//! Linux guests as processes: User-mode Linux is a real Linux with the real virtio-net driver, a vhost-user front end of
//! its own, at native speed and without KVM.
//!
//! It negotiates all that the device offers, the control queue included, and takes its MAC address from the device's
//! configuration space. It may hang in its driver's probe and then ignores SIGTERM: it is ended with SIGKILL, and the
//! process namespace it lives in takes the processes of its guest user space with it.

use super::agent::Agent;
use super::kernel::Kernel;
use super::process::{Job, Place, Process, guarded_tree, tail};
use super::{Lab, Unable, build, holds_within, initramfs, unique};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

const BOOT: Duration = Duration::from_secs(30);

/// A running User-mode Linux. Commands run in it through [`Place`].
#[derive(Debug)]
pub struct Uml {
    name: String,
    process: Process,
    agent: Arc<Agent>,
}

impl Uml {
    /// Boots a guest of 128 MiB whose NICs (eth0, ...) connect to these vhost-user sockets, where somebody must listen
    /// already; waits until it takes commands.
    pub fn boot(lab: &Lab, name: &str, sockets: &[PathBuf]) -> Result<Self, Unable> {
        let mut guest = Self::start(lab, name, sockets)?;
        let started = holds_within(BOOT, || guest.agent.starts() > 0 || !guest.process.running());
        if !started || guest.agent.starts() == 0 {
            panic!("{name} did not boot:\n{}", guest.story());
        }
        Ok(guest)
    }

    /// Starts a guest without waiting for it, for devices that may keep it from booting.
    pub fn start(lab: &Lab, name: &str, sockets: &[PathBuf]) -> Result<Self, Unable> {
        let kernel = Kernel::user_mode()?;
        let initramfs = initramfs::for_kernel(&kernel)?;
        let shim = build::ptrace_library()?;
        let mut command = guarded_tree("env");
        // Only the kernel itself is to have the library, not what it takes to start it.
        command.arg(format!("LD_PRELOAD={}", shim.display())).arg(format!("HOME={}", lab.dir().display()));
        command.arg(&kernel.image).args(["mem=128M", "quiet", "panic=-1", "agent=ttyS0"]);
        // The console goes to standard error; the agent's line is standard input and output.
        command.args(["con=null", "con0=null,fd:2", "ssl=null", "ssl0=fd:0,fd:1"]);
        command.arg(format!("initrd={}", initramfs.display()));
        command.arg(format!("uml_dir={}", lab.path(&format!("uml-{}", unique())).display()));
        for socket in sockets {
            command.arg(format!("virtio_uml.device={}:1", socket.display()));
        }
        let (process, to_guest, from_guest) = Process::start_piped(lab.dir(), name, command);
        Ok(Self { name: name.to_owned(), process, agent: Agent::attach(from_guest, to_guest) })
    }

    /// Whether it runs.
    pub fn running(&mut self) -> bool {
        self.process.running()
    }

    /// Whether the guest answers.
    pub fn answers(&self, timeout: Duration) -> bool {
        self.agent.answers(timeout)
    }

    /// What its kernel has printed.
    pub fn console(&self) -> String {
        self.process.log()
    }

    /// The end of its console, for a failing test.
    pub fn story(&self) -> String {
        format!("console of {}:\n{}", self.name, tail(&self.console(), 40))
    }

    /// SIGKILL to it and to all its guest's processes.
    pub fn kill(&mut self) {
        self.process.kill();
    }
}

impl Place for Uml {
    fn name(&self) -> &str {
        &self.name
    }

    fn spawn(&self, command: &str) -> Job {
        Job::Guest(self.agent.spawn(command))
    }
}
