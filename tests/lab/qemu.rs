//! Linux guests in QEMU, with vhost-user NICs.
//!
//! Theory of operation: Debian's cloud kernel boots the laboratory's initramfs; the console (first serial port) goes to a
//! file, the agent speaks over the second one, the monitor has a socket. KVM is used only where a probe has shown that
//! Linux reaches user space in it (on some nested hosts /dev/kvm opens and Linux dies in it); the answer is cached.
//! Under emulation the NICs have `vectors=0`: QEMU 7.2 crashes in vhost_net_start when a vhost-user device uses MSI-X
//! there, so interrupts are INTx.

use super::agent::Agent;
use super::kernel::Kernel;
use super::process::{Job, Place, Process, guarded};
use super::qmp::Qmp;
use super::{Lab, Unable, build, cache_dir, holds_within, initramfs, need_program, unique, wait_for};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

const BOOT: Duration = Duration::from_secs(60);

/// Who listens on a vhost-user socket, seen from QEMU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChardevRole {
    /// QEMU connects, and again one second after it lost the connection (`reconnect=1`).
    Client,
    /// QEMU listens. It does not start its guest before somebody has connected.
    Server,
}

/// A vhost-user NIC of a guest. The guest names them eth0, eth1, ... in order.
#[derive(Debug, Clone)]
pub struct NicSpec {
    /// The vhost-user socket.
    pub socket: PathBuf,
    /// The MAC address, such as 52:54:00:00:00:01.
    pub mac: String,
    /// Who listens.
    pub role: ChardevRole,
    /// Packed rings.
    pub packed: bool,
    /// Mergeable receive buffers.
    pub mrg_rxbuf: bool,
    /// Queue pairs; above 1 the guest should have as many CPUs.
    pub queues: u16,
    /// Further properties of virtio-net-pci, such as `host_mtu=9000,rx_queue_size=1024`; may be empty.
    pub properties: String,
}

impl NicSpec {
    /// QEMU as client, split rings, mergeable buffers, one queue pair.
    pub fn new(socket: impl Into<PathBuf>, mac: &str) -> Self {
        Self {
            socket: socket.into(),
            mac: mac.to_owned(),
            role: ChardevRole::Client,
            packed: false,
            mrg_rxbuf: true,
            queues: 1,
            properties: String::new(),
        }
    }
}

/// What runs the guest's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Accel {
    /// KVM where Linux runs in it, else emulation.
    #[default]
    Auto,
    /// Emulation.
    Tcg,
    /// KVM, without asking.
    Kvm,
}

/// What a guest is made of.
#[derive(Debug, Clone)]
pub struct GuestSpec {
    /// A name for messages and files.
    pub name: String,
    /// Its NICs.
    pub nics: Vec<NicSpec>,
    /// Memory in MiB, shared with the switch through a memfd.
    pub mem_mib: u32,
    /// Virtual CPUs.
    pub cpus: u32,
    /// What runs it.
    pub accel: Accel,
    /// Where to wait for a migrating guest, such as `unix:/path`; the guest then does not boot.
    pub incoming: Option<String>,
    /// Further arguments for QEMU.
    pub arguments: Vec<String>,
}

impl GuestSpec {
    /// A guest of 192 MiB and one CPU.
    pub fn new(name: &str, nics: Vec<NicSpec>) -> Self {
        Self {
            name: name.to_owned(),
            nics,
            mem_mib: 192,
            cpus: 1,
            accel: Accel::Auto,
            incoming: None,
            arguments: Vec::new(),
        }
    }
}

/// A running guest. Commands run in it through [`Place`].
#[derive(Debug)]
pub struct Qemu {
    name: String,
    process: Process,
    agent: Arc<Agent>,
    monitor: PathBuf,
    console: PathBuf,
}

impl Qemu {
    /// Boots a guest and waits until it takes commands; with `incoming` set, waits only for QEMU.
    pub fn boot(lab: &Lab, spec: GuestSpec) -> Result<Self, Unable> {
        let kvm = match spec.accel {
            Accel::Auto => kvm_runs_linux(lab)?,
            Accel::Tcg => false,
            Accel::Kvm => true,
        };
        let mut guest = Self::start(lab, &spec, kvm)?;
        if spec.incoming.is_some() {
            // Once the monitor answers, QEMU waits for the migration.
            guest.qmp("query-status", json!({}));
        } else if !guest.wait_for_start(0, BOOT) {
            panic!("{} did not boot\n{}", guest.name, guest.story());
        }
        Ok(guest)
    }

    fn start(lab: &Lab, spec: &GuestSpec, kvm: bool) -> Result<Self, Unable> {
        let qemu = need_program("qemu-system-x86_64", "qemu-system-x86")?;
        let kernel = Kernel::debian_cloud()?;
        let initramfs = initramfs::for_kernel(&kernel)?;
        let id = unique();
        let file = |kind: &str| lab.path(&format!("{}-{id}.{kind}", spec.name));
        let (serial, monitor, console) = (file("serial"), file("qmp"), file("console"));

        let mut command = guarded(qemu);
        command.args(["-nodefaults", "-no-user-config", "-display", "none", "-name", &spec.name]);
        command.args(["-machine", "q35,memory-backend=m0", "-m", &spec.mem_mib.to_string()]);
        command.args(["-object", &format!("memory-backend-memfd,id=m0,size={}M,share=on", spec.mem_mib)]);
        command.args(["-smp", &spec.cpus.to_string()]);
        command.args(if kvm { ["-accel", "kvm", "-cpu", "host"] } else { ["-accel", "tcg", "-cpu", "qemu64"] });
        command.arg("-kernel").arg(&kernel.image).arg("-initrd").arg(&initramfs);
        // No reboot on panic: a guest that died stays dead, and its console says why.
        // A periodic tick: on a loaded host, an emulated one-shot timer now and then does not fire, and a sleeper sleeps on.
        let timers = if kvm { "" } else { "nohz=off highres=off" };
        command.args(["-append", &format!("console=ttyS0 agent=ttyS1 panic=0 quiet mitigations=off {timers}")]);
        command.args(["-serial", &format!("file:{}", console.display())]);
        command.args(["-chardev", &format!("socket,id=agent,path={},server=on,wait=off", serial.display())]);
        command.args(["-serial", "chardev:agent"]);
        command.args(["-qmp", &format!("unix:{},server=on,wait=off", monitor.display())]);
        for (index, nic) in spec.nics.iter().enumerate() {
            command.args(nic_arguments(index, nic, kvm));
        }
        if let Some(uri) = &spec.incoming {
            command.args(["-incoming", uri]);
        }
        command.args(&spec.arguments);

        let mut process = Process::start(lab.dir(), &spec.name, command);
        let mut line = None;
        holds_within(BOOT, || {
            line = line.take().or_else(|| UnixStream::connect(&serial).ok());
            line.is_some() || !process.running()
        });
        let Some(line) = line else { panic!("QEMU for {} did not start:\n{}", spec.name, process.log_tail(30)) };
        let agent = Agent::attach(line.try_clone().expect("a socket"), line);
        Ok(Self { name: spec.name.clone(), process, agent, monitor, console })
    }

    /// QEMU's process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Whether QEMU runs.
    pub fn running(&mut self) -> bool {
        self.process.running()
    }

    /// What the guest's kernel has printed.
    pub fn console(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.console).unwrap_or_default()).into_owned()
    }

    /// The ends of the console and of QEMU's own messages, for a failing test.
    pub fn story(&self) -> String {
        let console = super::process::tail(&self.console(), 40);
        format!("console of {}:\n{console}\nQEMU says:\n{}", self.name, self.process.log_tail(20))
    }

    /// Whether the guest answers (it may be silent while it boots, or when its kernel has died).
    pub fn answers(&self, timeout: Duration) -> bool {
        self.agent.answers(timeout)
    }

    /// Reboots the guest from inside and waits until it takes commands again.
    pub fn reboot(&mut self) {
        let before = self.agent.starts();
        self.agent.start("reboot -f");
        assert!(self.wait_for_start(before, BOOT), "{} did not come back\n{}", self.name, self.story());
    }

    /// Resets the guest as the reset button would, and waits until it takes commands again.
    pub fn reset(&mut self) {
        let before = self.agent.starts();
        self.qmp("system_reset", json!({}));
        assert!(self.wait_for_start(before, BOOT), "{} did not come back\n{}", self.name, self.story());
    }

    /// SIGKILL to QEMU.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Runs a monitor command that must succeed.
    pub fn qmp(&self, command: &str, arguments: Value) -> Value {
        let mut monitor = Qmp::connect(&self.monitor).unwrap_or_else(|why| panic!("monitor of {}: {why}", self.name));
        monitor.execute(command, arguments).unwrap_or_else(|why| panic!("monitor of {}: {why}", self.name))
    }

    /// Ends QEMU through its monitor and waits for its end.
    pub fn quit(&mut self) {
        self.qmp("quit", json!({}));
        assert!(self.process.wait(Duration::from_secs(20)).is_some(), "QEMU of {} did not quit", self.name);
    }

    /// Live-migrates the guest to a QEMU that waits at `uri`, and waits until it is there and answers. False: its kernel died there. Under
    /// emulation QEMU now and then takes a page along as it was a moment before, and the kernel's lists, which no device writes to,
    /// contradict each other; it may do so only a moment later ([`has_died`](Self::has_died)).
    #[must_use]
    pub fn migrate(&self, uri: &str, target: &Self) -> bool {
        self.qmp("migrate", json!({ "uri": uri }));
        let mut last = Value::Null;
        let moved = holds_within(BOOT, || {
            last = self.qmp("query-migrate", json!({}));
            matches!(last["status"].as_str(), Some("completed" | "failed" | "cancelled"))
        });
        let completed = moved && last["status"] == "completed";
        assert!(completed, "{} did not migrate: {last}\n{}\n{}", self.name, self.story(), target.story());
        wait_for("the migrated guest to run", BOOT, || target.qmp("query-status", json!({}))["running"] == true);
        let answers = holds_within(BOOT, || target.answers(Duration::from_millis(200)) || target.has_died());
        if target.has_died() {
            return false;
        }
        assert!(answers, "{} is silent after its migration\n{}", target.name, target.story());
        true
    }

    /// Whether its kernel has panicked.
    pub fn has_died(&self) -> bool {
        self.console().contains("Kernel panic")
    }

    /// Waits until the agent has started more often than `before`; false when QEMU ends or the time is over.
    fn wait_for_start(&mut self, before: u32, timeout: Duration) -> bool {
        holds_within(timeout, || self.agent.starts() > before || !self.process.running())
            && self.agent.starts() > before
    }
}

impl Place for Qemu {
    fn name(&self) -> &str {
        &self.name
    }

    fn spawn(&self, command: &str) -> Job {
        Job::Guest(self.agent.spawn(command))
    }
}

fn nic_arguments(index: usize, nic: &NicSpec, kvm: bool) -> Vec<String> {
    let on = |yes: bool| if yes { "on" } else { "off" };
    let ends = match nic.role {
        ChardevRole::Client => "reconnect=1",
        ChardevRole::Server => "server=on,wait=off",
    };
    let mut device = format!(
        "virtio-net-pci,netdev=n{index},mac={},packed={},mrg_rxbuf={},romfile=",
        nic.mac,
        on(nic.packed),
        on(nic.mrg_rxbuf)
    );
    let mut netdev = format!("vhost-user,id=n{index},chardev=c{index}");
    if nic.queues > 1 {
        netdev.push_str(&format!(",queues={}", nic.queues));
        device.push_str(",mq=on");
    }
    match (kvm, nic.queues) {
        (false, _) => device.push_str(",vectors=0"),
        (true, 1) => {}
        (true, queues) => device.push_str(&format!(",vectors={}", 2 * queues + 2)),
    }
    if !nic.properties.is_empty() {
        device.push_str(&format!(",{}", nic.properties));
    }
    let chardev = format!("socket,id=c{index},path={},{ends}", nic.socket.display());
    ["-chardev", &chardev, "-netdev", &netdev, "-device", &device].map(str::to_owned).to_vec()
}

/// Whether Linux reaches user space under KVM here: a guest without NICs is given 8 seconds, once per kernel and host.
fn kvm_runs_linux(lab: &Lab) -> Result<bool, Unable> {
    if !Path::new("/dev/kvm").exists() {
        return Ok(false);
    }
    let kernel = Kernel::debian_cloud()?;
    let host = fs::read_to_string("/proc/version").unwrap_or_default();
    let qemu = need_program("qemu-system-x86_64", "qemu-system-x86")?;
    let answer = cache_dir().join(format!("kvm-{}", build::content_hash(&[&kernel.name, &host], &[&qemu])));
    if let Ok(known) = fs::read_to_string(&answer) {
        return Ok(known.trim() == "yes");
    }
    let mut guest = Qemu::start(lab, &GuestSpec::new("kvm-probe", Vec::new()), true)?;
    let runs = guest.wait_for_start(0, Duration::from_secs(20));
    fs::write(&answer, if runs { "yes\n" } else { "no\n" }).expect("the cache");
    Ok(runs)
}
