//! Who manages a NIC: NetworkManager, systemd-networkd, ifupdown or a DHCP client. What they hold is not changed behind their back.
//!
//! Invariant: this only reads. A manager counts when it runs, in this network namespace, and its own records name the NIC; ifupdown, which
//! does not stay, by its record alone. Read first: the comment of each [`Manager`].

use std::{
    fmt, fs,
    path::{Path, PathBuf},
};

/// Somebody who manages a NIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manager {
    /// NetworkManager: `managed=true` in /run/NetworkManager/devices/INDEX.
    Nm,
    /// systemd-networkd: ADMIN_STATE in /run/systemd/netif/links/INDEX is not `unmanaged`.
    Networkd,
    /// A line of /run/network/ifstate.
    Ifupdown,
    /// A process: dhclient, dhcpcd, udhcpc.
    DhcpClient(&'static str),
}

impl fmt::Display for Manager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Manager::Nm => "NetworkManager",
            Manager::Networkd => "systemd-networkd",
            Manager::Ifupdown => "ifupdown",
            Manager::DhcpClient(name) => name,
        })
    }
}

impl Manager {
    /// Its own commands that make a bridge `br0` of the NIC.
    pub fn commands(self, nic: &str) -> String {
        match self {
            Manager::Nm => format!(
                "nmcli connection add type bridge ifname br0 con-name br0 bridge.stp no\n\
                 nmcli connection add type ethernet ifname {nic} con-name br0-{nic} master br0\n\
                 nmcli connection up br0-{nic}\n\
                 nmcli connection up br0"
            ),
            Manager::Networkd => format!(
                "/etc/systemd/network/10-br0.netdev:     [NetDev]\n\
                 {sp}Name=br0\n\
                 {sp}Kind=bridge\n\
                 /etc/systemd/network/10-br0-port.network: [Match]\n\
                 {sp}Name={nic}\n\
                 {sp}[Network]\n\
                 {sp}Bridge=br0\n\
                 /etc/systemd/network/10-br0.network:    what the .network file of {nic} says now, with [Match] Name=br0\n\
                 then: networkctl reload",
                sp = " ".repeat(40)
            ),
            Manager::Ifupdown => format!(
                "in /etc/network/interfaces, instead of the stanza of {nic} (needs the package bridge-utils):\n\
                 auto br0\n\
                 iface br0 inet dhcp        # or static, with the lines that {nic} has now\n\
                 {sp}bridge_ports {nic}\n\
                 {sp}bridge_stp off\n\
                 {sp}bridge_fd 0\n\
                 then: ifdown {nic}; ifup br0",
                sp = " ".repeat(4)
            ),
            Manager::DhcpClient(name) => {
                let (stop, start) = match name {
                    "dhclient" => (format!("dhclient -r {nic}"), "dhclient br0"),
                    "dhcpcd" => (format!("dhcpcd -k {nic}"), "dhcpcd br0"),
                    _ => (format!("end the {name} of {nic}"), "udhcpc -i br0"),
                };
                format!(
                    "{stop}\n\
                     ip link add br0 type bridge stp_state 0 forward_delay 0\n\
                     ip link set {nic} master br0\n\
                     ip link set br0 up\n\
                     {start}"
                )
            }
        }
    }

    /// Why the NIC is not touched, and what to do instead.
    pub fn refusal(self, nic: &str) -> String {
        let commands: String = self.commands(nic).lines().map(|line| format!("\n    {line}")).collect();
        format!(
            "{nic} is managed by {self}, which would undo or be confused by a change behind its back; have it make a bridge:{commands}\n  \
             and write bridge = \"br0\" in place of uplink = \"{nic}\"; or write mac_nat = true, which leaves {nic} as it is"
        )
    }
}

/// What is looked at.
#[derive(Clone, Debug)]
pub struct Records {
    /// Where /run is.
    run: PathBuf,
    /// The command lines of the processes of this network namespace.
    processes: Vec<Vec<String>>,
    /// Whether the records of those who keep them by name are about this network namespace.
    by_name: bool,
}

impl Records {
    /// Those of this host.
    pub fn here() -> Records {
        let netns = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/net")).ok();
        let own = netns("self");
        // What may not be looked at is taken to be here.
        let is_here = |pid: &str| netns(pid).is_none_or(|other| Some(other) == own);
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().into_string().ok());
        let pids = pids.filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()));
        let words = |pid: String| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).ok().filter(|line| !line.is_empty())?;
            let text = String::from_utf8_lossy(&line).into_owned();
            is_here(&pid).then(|| text.trim_end_matches('\0').split('\0').map(str::to_owned).collect())
        };
        Records { run: "/run".into(), processes: pids.filter_map(words).collect(), by_name: is_here("1") }
    }

    /// Who manages the NIC of this name and number.
    pub fn manager(&self, nic: &str, index: u32) -> Option<Manager> {
        let read = |path: &str| fs::read_to_string(self.run.join(path)).unwrap_or_default();
        let says = |text: &str, line: &str| text.lines().any(|found| found.trim() == line);
        if self.runs("NetworkManager") && says(&read(&format!("NetworkManager/devices/{index}")), "managed=true") {
            return Some(Manager::Nm);
        }
        let link = read(&format!("systemd/netif/links/{index}"));
        let state = link.lines().find_map(|line| line.strip_prefix("ADMIN_STATE="));
        if self.runs("systemd-networkd") && state.is_some_and(|state| state != "unmanaged") {
            return Some(Manager::Networkd);
        }
        if let Some(name) = self.processes.iter().find_map(|words| dhcp_client(words, nic)) {
            return Some(Manager::DhcpClient(name));
        }
        let is_up = |text: String| text.lines().any(|line| line.split('=').next() == Some(nic));
        let stanza = self.by_name && (is_up(read("network/ifstate")) || is_up(read(&format!("network/ifstate.{nic}"))));
        stanza.then_some(Manager::Ifupdown)
    }

    fn runs(&self, program: &str) -> bool {
        self.processes.iter().any(|words| words.first().is_some_and(|word| base(word) == program))
    }
}

fn base(word: &str) -> &str {
    let word = word.split(' ').next().unwrap_or_default().trim_end_matches(':');
    Path::new(word).file_name().and_then(|name| name.to_str()).unwrap_or_default()
}

/// The DHCP client that this command line is, if it is one for the NIC.
fn dhcp_client(words: &[String], nic: &str) -> Option<&'static str> {
    let mut words = words.iter().map(String::as_str);
    let mut first = words.next()?;
    if base(first) == "busybox" {
        first = words.next()?;
    }
    let rest: Vec<&str> = words.collect();
    let named = rest.iter().any(|word| *word == nic || word.strip_prefix("-i") == Some(nic));
    // Those which name no interface serve all; dhcpcd writes its interface into its title.
    let is_option = |word: &&str| word.starts_with('-') || word.starts_with('/');
    match base(first) {
        "dhclient" if named || rest.iter().all(is_option) => Some("dhclient"),
        "dhcpcd" if named || title_of(first, nic, &rest) => Some("dhcpcd"),
        "udhcpc" if named || (nic == "eth0" && !rest.iter().any(|word| word.starts_with("-i"))) => Some("udhcpc"),
        _ => None,
    }
}

/// Whether a dhcpcd whose title or arguments are these serves the NIC.
fn title_of(first: &str, nic: &str, rest: &[&str]) -> bool {
    match first.split_once(' ') {
        Some((_, title)) => title.split(' ').any(|word| word == nic || matches!(word, "[manager]" | "[master]")),
        None => rest.iter().all(|word| word.starts_with('-')),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records(run: &Path, processes: &[&str]) -> Records {
        let words = |line: &&str| line.split('|').map(str::to_owned).collect();
        Records { run: run.into(), processes: processes.iter().map(words).collect(), by_name: true }
    }

    fn file(run: &Path, name: &str, text: &str) {
        let path = run.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    #[test]
    fn dhcp_clients_are_told_by_their_command_lines() {
        let run = tempfile::tempdir().unwrap();
        let manager = |line: &str| records(run.path(), &[line]).manager("eth0", 7);
        for (line, name) in [
            ("/sbin/dhclient|-4|-v|eth0", Some("dhclient")),
            ("/sbin/dhclient|-v", Some("dhclient")),
            ("/sbin/dhclient|eth1", None),
            ("busybox|udhcpc|-f|-i|eth0", Some("udhcpc")),
            ("udhcpc|-ieth0|-b", Some("udhcpc")),
            ("udhcpc|-i|eth1", None),
            ("udhcpc|-b", Some("udhcpc")),
            ("dhcpcd: eth0 [ip4] [ip6]", Some("dhcpcd")),
            ("dhcpcd: [manager] [ip4] [ip6]", Some("dhcpcd")),
            ("dhcpcd: eth1 [ip4]", None),
            ("/usr/sbin/dhcpcd|-q", Some("dhcpcd")),
            ("cat|dhclient", None),
        ] {
            assert_eq!(manager(line), name.map(Manager::DhcpClient), "{line}");
        }
    }

    #[test]
    fn a_manager_counts_when_it_runs_and_its_records_name_the_nic() {
        let run = tempfile::tempdir().unwrap();
        let run = run.path();
        file(run, "systemd/netif/links/7", "# private\nADMIN_STATE=configured\nOPER_STATE=routable\n");
        file(run, "systemd/netif/links/8", "ADMIN_STATE=unmanaged\n");
        file(run, "NetworkManager/devices/9", "[device]\nmanaged=true\n");
        file(run, "NetworkManager/devices/10", "[device]\nmanaged=false\n");
        let running = records(run, &["/lib/systemd/systemd-networkd", "/usr/sbin/NetworkManager|--no-daemon"]);
        let found = [7, 8, 9, 10, 11].map(|index| running.manager("eth0", index));
        assert_eq!(found, [Some(Manager::Networkd), None, Some(Manager::Nm), None, None]);
        let stopped = records(run, &["bash"]);
        assert_eq!([7, 9].map(|index| stopped.manager("eth0", index)), [None, None]);
        file(run, "network/ifstate", "lo=lo\neth0=eth0\n");
        assert_eq!(stopped.manager("eth0", 11), Some(Manager::Ifupdown));
        assert_eq!(stopped.manager("eth1", 11), None);
    }

    #[test]
    fn a_refusal_names_the_commands_and_both_ways_out() {
        for (manager, command) in [
            (Manager::Nm, "nmcli connection add type bridge"),
            (Manager::Networkd, "Kind=bridge"),
            (Manager::Ifupdown, "bridge_ports eth0"),
            (Manager::DhcpClient("dhclient"), "dhclient -r eth0"),
        ] {
            let text = manager.refusal("eth0");
            assert!([command, "bridge = \"br0\"", "mac_nat = true"].iter().all(|part| text.contains(part)), "{text}");
        }
    }
}
