//! Network namespaces of a test: named after the process that made them, deleted with their handle.
//!
//! Invariant: nothing here touches an interface, route or rule of the machine's own namespace; even veth pairs are
//! created inside the namespaces they join.

use super::process::{CommandOutput, Job, Place, Process, guarded_tree};
use super::{Lab, Unable, build, need_program, need_root, unique};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const PREFIX: &str = "tlab-";

/// A network namespace with its loopback up and IPv6 address detection off, so that addresses serve at once.
#[derive(Debug)]
pub struct NetNs {
    name: String,
    dir: PathBuf,
    path: String,
}

impl NetNs {
    /// Makes a namespace; `label` is the last part of its name.
    pub fn new(lab: &Lab, label: &str) -> Result<Self, Unable> {
        need_root("network namespaces")?;
        need_program("ip", "iproute2")?;
        let bin = build::guest_programs()?;
        let name = format!("{PREFIX}{}-{}-{label}", std::process::id(), unique());
        ip(&["netns", "add", &name]).map_err(|why| Unable(format!("network namespaces cannot be made: {why}")))?;
        let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap_or_default());
        let ns = Self { name, dir: lab.dir().to_owned(), path };
        ns.ip("link set lo up");
        ns.sh("sysctl -q -w net.ipv6.conf.default.accept_dad=0 net.ipv6.conf.all.accept_dad=0 2>/dev/null || true");
        Ok(ns)
    }

    /// The name by which ip(8), and `netns = "..."` of a port, knows it.
    pub fn netns_name(&self) -> &str {
        &self.name
    }

    /// Runs `ip <arguments>` (separated by blanks) inside; it must succeed.
    pub fn ip(&self, arguments: &str) -> String {
        let mut all = vec!["-n", &self.name];
        all.extend(arguments.split_whitespace());
        ip(&all).unwrap_or_else(|why| panic!("ip {arguments} in {}: {why}", self.name))
    }

    /// Runs a program with its arguments inside, to its end.
    pub fn exec(&self, program: &[&str]) -> CommandOutput {
        let quoted: Vec<String> = program.iter().map(|word| format!("'{}'", word.replace('\'', r"'\''"))).collect();
        self.run(&quoted.join(" "), std::time::Duration::from_secs(20))
    }

    /// Gives an interface an address (with its prefix length) and sets it up.
    pub fn address(&self, interface: &str, address: &str) {
        self.ip(&format!("addr add {address} dev {interface}"));
        self.ip(&format!("link set {interface} up"));
    }

    /// Whether an interface exists inside.
    pub fn has_link(&self, interface: &str) -> bool {
        ip(&["-n", &self.name, "link", "show", interface]).is_ok()
    }

    /// The MAC address of an interface.
    pub fn mac(&self, interface: &str) -> String {
        self.sh(&format!("cat /sys/class/net/{interface}/address")).trim().to_owned()
    }

    /// Makes a veth pair: `inside` in this namespace, `there` in the other one; both are up.
    pub fn veth(&self, inside: &str, other: &Self, there: &str) {
        self.ip(&format!("link add {inside} type veth peer name {there} netns {}", other.name));
        self.ip(&format!("link set {inside} up"));
        other.ip(&format!("link set {there} up"));
    }
}

impl Place for NetNs {
    fn name(&self) -> &str {
        &self.name
    }

    fn spawn(&self, command: &str) -> Job {
        let mut shell = guarded_tree("ip");
        // A shell in between: the first process of a process namespace is deaf to signals, the command shall not be.
        let between = ["sh", "-c", "sh -c \"$1\"; exit $?", "sh", command];
        shell.args(["netns", "exec", &self.name]).args(between).env("PATH", &self.path);
        Job::Local(Process::start(&self.dir, "job", shell))
    }
}

impl Drop for NetNs {
    fn drop(&mut self) {
        remove(&self.name);
    }
}

/// Two namespaces on a Linux bridge, to compare with: `eth0` in each, 10.0.0.1/24 and 10.0.0.2/24.
#[derive(Debug)]
pub struct KernelBridge {
    /// Has 10.0.0.1.
    pub a: NetNs,
    /// Has 10.0.0.2.
    pub b: NetNs,
    /// Holds the bridge `br0`.
    pub middle: NetNs,
}

impl KernelBridge {
    /// Makes the three namespaces, the bridge and the veth pairs.
    pub fn new(lab: &Lab) -> Result<Self, Unable> {
        let all = Self { a: NetNs::new(lab, "a")?, b: NetNs::new(lab, "b")?, middle: NetNs::new(lab, "br")? };
        all.middle.ip("link add br0 type bridge");
        all.middle.ip("link set br0 up");
        for (end, port, address) in [(&all.a, "p0", "10.0.0.1/24"), (&all.b, "p1", "10.0.0.2/24")] {
            all.middle.veth(port, end, "eth0");
            all.middle.ip(&format!("link set {port} master br0"));
            end.address("eth0", address);
        }
        Ok(all)
    }
}

fn ip(arguments: &[&str]) -> Result<String, String> {
    let done = Command::new("ip").args(arguments).stdin(Stdio::null()).output().map_err(|e| e.to_string())?;
    if done.status.success() {
        Ok(String::from_utf8_lossy(&done.stdout).into_owned())
    } else {
        Err(String::from_utf8_lossy(&done.stderr).trim().to_owned())
    }
}

/// Ends what runs in a namespace of ours and deletes it.
fn remove(name: &str) {
    for pid in ip(&["netns", "pids", name]).unwrap_or_default().split_whitespace() {
        if let Ok(pid) = pid.parse() {
            super::process::signal(pid, "KILL");
        }
    }
    let _ = ip(&["netns", "del", name]);
}

/// Deletes the namespaces of test processes that are no more (killed before they could tidy up).
pub fn remove_stale() {
    for line in ip(&["netns", "list"]).unwrap_or_default().lines() {
        let name = line.split_whitespace().next().unwrap_or_default();
        let owner = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next()).unwrap_or_default();
        if owner.parse::<u32>().is_ok() && !Path::new("/proc").join(owner).exists() {
            remove(name);
        }
    }
}
