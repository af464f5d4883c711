//! Checks of the host: devices, rights, limits, the kernel, name servers. They hold with and without a file.
//!
//! Read first: [`super`].

use std::{
    fs::{self, OpenOptions},
    io::ErrorKind,
    net::{SocketAddr, UdpSocket},
    path::{Path, PathBuf},
    time::Duration,
};

use gateway::dns;

use super::{Check, State};
use crate::{
    config::{Attach, Config, Mode, NatEngine, Via},
    service,
};

/// Bits of capabilities (capability.h).
const NET_ADMIN: u64 = 1 << 12;
const NET_RAW: u64 = 1 << 13;
/// Fewer descriptors than this are few: a connection of a guest takes one.
pub(super) const FEW_DESCRIPTORS: u64 = 65_536;
/// Name servers that are asked: each may take its second.
const MOST_SERVERS: usize = 3;
/// How long a name server may take.
const PATIENCE: Duration = Duration::from_secs(1);

/// A file of /proc in one line; empty when it is not there.
fn line(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().trim().replace('\t', " ")
}

/// The rest of the line of a file that begins so.
fn field(path: &str, begin: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    text.lines().find_map(|line| line.strip_prefix(begin)).map(|rest| rest.trim().to_owned())
}

pub(super) fn kernel() -> Check {
    let release = line("/proc/sys/kernel/osrelease");
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse().unwrap_or(0));
    let version: (u32, u32) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    let lacks = match version {
        (6, 9..) | (7.., _) => return Check::fine("kernel", release),
        (6, 2..) => "TCP of NAT networks copies more (SO_PEEK_OFF came with Linux 6.9)",
        _ => {
            "UDP super-frames are cut in software (they came to TAPs with Linux 6.2), and TCP of NAT networks copies more (6.9)"
        }
    };
    Check::wrong(
        "kernel",
        State::Warning,
        format!("{release}: {lacks}"),
        "nothing need be done; a newer kernel is faster",
    )
}

fn device(name: &str, why: &str, missing: &str) -> Check {
    match OpenOptions::new().read(true).write(true).open(name) {
        Ok(_) => Check::fine(name, "opens"),
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            let remedy = format!("run as a user who may open it: `ls -l {name}` names the group");
            Check::wrong(name, State::Warning, format!("may not be opened; {why}"), remedy)
        }
        Err(error) => Check::wrong(name, State::Warning, format!("does not open ({error}); {why}"), missing),
    }
}

pub(super) fn kvm() -> Check {
    let missing = "switch virtualization on in the firmware, `modprobe kvm_intel` or `kvm_amd`; on a rented machine ask for nested virtualization";
    device("/dev/kvm", "guests with engine = \"machine\" need it", missing)
}

pub(super) fn tun() -> Check {
    let missing = "`modprobe tun`; in a container pass /dev/net/tun in";
    device("/dev/net/tun", "ports with attach = \"tap\", host-only and bridged networks need it", missing)
}

/// What a file asks for that takes a capability: the capability's bit and name, and what takes it.
fn needs(config: &Config) -> Vec<(u64, String)> {
    let mut needs = Vec::new();
    for network in &config.networks {
        let name = &network.name;
        if matches!(network.mode, Mode::HostOnly | Mode::Bridged) {
            needs.push((NET_ADMIN, format!("network {name} ({})", network.mode)));
        }
        if network.mac_nat {
            needs.push((NET_RAW, format!("network {name} (mac_nat)")));
        }
        match network.nat.as_ref().map(|nat| &nat.engine) {
            Some(NatEngine::Packet { via: Via::Tap(tap), .. }) => {
                needs.push((NET_ADMIN, format!("network {name} (tap {tap})")));
            }
            Some(NatEngine::Packet { via: Via::Uplink(uplink), .. }) => {
                needs.push((NET_RAW, format!("network {name} (uplink {uplink})")));
            }
            _ => {}
        }
    }
    let taps = config.ports.iter().filter(|port| !port.is_host && !port.is_uplink);
    let taps = taps.filter(|port| matches!(port.attach, Attach::Tap { .. }));
    needs.extend(taps.map(|port| (NET_ADMIN, format!("port {} (tap)", port.name))));
    needs
}

/// One check for each capability that something takes.
pub(super) fn capabilities(config: Option<&Config>) -> Vec<Check> {
    let effective = field("/proc/self/status", "CapEff:").and_then(|text| u64::from_str_radix(&text, 16).ok());
    let needs = config.map(needs).unwrap_or_default();
    let all = [
        (NET_ADMIN, "CAP_NET_ADMIN", "TAPs, host-only and bridged networks"),
        (NET_RAW, "CAP_NET_RAW", "mac_nat, and NAT by packets on an uplink,"),
    ];
    all.iter()
        .map(|(bit, name, what)| capability(effective.unwrap_or(0) & bit != 0, *bit, name, what, &needs))
        .collect()
}

fn capability(there: bool, bit: u64, name: &str, what: &str, needs: &[(u64, String)]) -> Check {
    if there {
        return Check::fine(name, "is there");
    }
    let remedy = format!("run as root, or grant it (systemd: AmbientCapabilities={name})");
    let needs: Vec<&str> = needs.iter().filter(|(other, _)| *other == bit).map(|(_, who)| who.as_str()).collect();
    match needs.as_slice() {
        [] => Check::wrong(name, State::Warning, format!("is missing; {what} need it"), remedy),
        needs => {
            Check::wrong(name, State::Problem, format!("is missing; {} of this file need it", needs.join(", ")), remedy)
        }
    }
}

/// As many as a daemon that is started like this process may have; one that runs is asked instead.
pub(super) fn descriptors() -> Check {
    let limits = field("/proc/self/limits", "Max open files").unwrap_or_default();
    let numbers: Vec<u64> = limits.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    let (soft, hard) = (numbers.first().copied().unwrap_or(0), numbers.get(1).copied().unwrap_or(0));
    let detail = format!("{soft}, may be raised to {hard}");
    if hard >= FEW_DESCRIPTORS {
        return Check::fine("descriptors", detail);
    }
    let remedy = format!("raise the hard limit to {FEW_DESCRIPTORS} or more (LimitNOFILE=, /etc/security/limits.conf)");
    Check::wrong(
        "descriptors",
        State::Warning,
        format!("{detail}: so many connections of NAT networks at once"),
        remedy,
    )
}

pub(super) fn ping() -> Check {
    let name = "ping_group_range";
    let range = line("/proc/sys/net/ipv4/ping_group_range");
    let bounds: Vec<u64> = range.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    let groups = ["Gid:", "Groups:"].iter().filter_map(|begin| field("/proc/self/status", begin)).collect::<Vec<_>>();
    let mut groups = groups.iter().flat_map(|text| text.split_whitespace()).filter_map(|word| word.parse::<u64>().ok());
    match bounds.as_slice() {
        [low, high] if groups.any(|group| (*low..=*high).contains(&group)) => Check::fine(name, range),
        _ => Check::wrong(
            name,
            State::Warning,
            format!("{range} has none of this user's groups: guests behind NAT by sockets cannot ping"),
            "sysctl -w net.ipv4.ping_group_range=\"0 2147483647\" (and in /etc/sysctl.d)",
        ),
    }
}

pub(super) fn local_ports() -> Check {
    let range = line("/proc/sys/net/ipv4/ip_local_port_range");
    let bounds: Vec<u32> = range.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    let count = match bounds.as_slice() {
        [low, high] => high.saturating_sub(*low) + 1,
        _ => 0,
    };
    let detail = format!("{range}: {count} connections of NAT networks to one destination");
    match count >= 10_000 {
        true => Check::fine("local ports", detail),
        false => Check::wrong(
            "local ports",
            State::Warning,
            detail,
            "sysctl -w net.ipv4.ip_local_port_range=\"32768 60999\" (and in /etc/sysctl.d)",
        ),
    }
}

pub(super) fn hugepages() -> Check {
    let total = field("/proc/meminfo", "HugePages_Total:").unwrap_or_default();
    let size = field("/proc/meminfo", "Hugepagesize:").unwrap_or_default();
    Check::fine("huge pages", format!("{total} of {size}; only guests that ask for them (DPDK) need any"))
}

pub(super) fn directory(name: &str, dir: Option<&Path>) -> Check {
    let Some(dir) = dir else {
        let variable = if name == "run_dir" { "XDG_RUNTIME_DIR" } else { "XDG_STATE_HOME or HOME" };
        let remedy = format!("set {name} in [host], or {variable}");
        return Check::wrong(name, State::Problem, "has no default for this user", remedy);
    };
    // It need not be there; then it is made in the nearest directory above that is.
    let place = dir.ancestors().find(|place| place.exists()).unwrap_or(dir);
    let probe = place.join(format!(".trunkline-doctor-{}", std::process::id()));
    let made = OpenOptions::new().write(true).create_new(true).open(&probe);
    let _ = fs::remove_file(&probe);
    match made {
        Ok(_) if place == dir => Check::fine(name, format!("{} is writable", dir.display())),
        Ok(_) => Check::fine(name, format!("{} will be made", dir.display())),
        Err(error) => {
            let remedy = format!("make {} writable for this user, or set {name} in [host]", dir.display());
            Check::wrong(name, State::Problem, format!("{}: {error}", place.display()), remedy)
        }
    }
}

/// The servers that guests' queries are forwarded to: those of the file, else of the file that it names.
pub(super) fn resolvers(config: Option<&Config>) -> Check {
    let name = "name servers";
    let given = config.map(|config| config.host.resolvers.clone()).unwrap_or_default();
    let file = config.map_or_else(|| PathBuf::from("/etc/resolv.conf"), |config| config.host.resolv_conf.clone());
    let (servers, place) = match given.is_empty() {
        false => (given, "`resolvers`".to_owned()),
        true => {
            let text = fs::read_to_string(&file).unwrap_or_default();
            (dns::name_servers(&text, service::scope), file.display().to_string())
        }
    };
    if servers.is_empty() {
        let remedy = format!("name a server in {place}, or by `resolvers` of [host]");
        return Check::wrong(name, State::Warning, format!("{place} names none"), remedy);
    }
    let servers = servers.get(..MOST_SERVERS).unwrap_or(&servers);
    let (good, silent): (Vec<&SocketAddr>, Vec<&SocketAddr>) = servers.iter().partition(|server| answers(**server));
    let names = |list: &[&SocketAddr]| list.iter().map(|server| server.to_string()).collect::<Vec<_>>().join(", ");
    match silent.as_slice() {
        [] => Check::fine(name, format!("{} answer", names(&good))),
        silent => Check::wrong(
            name,
            State::Warning,
            format!("{} of {place} did not answer within a second", names(silent)),
            "see whether this host reaches them, or name others",
        ),
    }
}

/// Whether a server answers a question at all (RFC 1035 section 4.1): for the name servers of the root.
fn answers(server: SocketAddr) -> bool {
    const QUESTION: [u8; 17] = [0x74, 0x6c, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 1];
    let any: SocketAddr = if server.is_ipv4() { ([0; 4], 0).into() } else { ([0u16; 8], 0).into() };
    let ask = || {
        let socket = UdpSocket::bind(any)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.connect(server)?;
        socket.send(&QUESTION)?;
        let mut answer = [0; 512];
        let length = socket.recv(&mut answer)?;
        std::io::Result::Ok(length >= 12 && answer.first_chunk() == QUESTION.first_chunk::<2>())
    };
    ask().unwrap_or(false)
}

pub(super) fn bridge_firewall() -> Check {
    let name = "bridged frames";
    match line("/proc/sys/net/bridge/bridge-nf-call-iptables").as_str() {
        "1" => Check::wrong(
            name,
            State::Warning,
            "the host's firewall sees them (net.bridge.bridge-nf-call-iptables = 1), and may drop those of bridged networks",
            "allow them in its FORWARD chain, or sysctl -w net.bridge.bridge-nf-call-iptables=0",
        ),
        _ => Check::fine(name, "pass the host's firewall untouched"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{self, Surroundings};

    fn config(text: &str) -> Config {
        let around = Surroundings { root: true, ..Surroundings::default() };
        config::parse(text, "t.toml".as_ref(), &around).unwrap()
    }

    #[test]
    fn the_name_servers_of_the_file_are_asked() {
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        let at = server.local_addr().unwrap();
        let asked = std::thread::spawn(move || {
            let mut question = [0; 512];
            let (length, from) = server.recv_from(&mut question).unwrap();
            question[2] |= 0x80;
            server.send_to(&question[..length], from).unwrap();
        });
        let check = resolvers(Some(&config(&format!("[host]\nresolvers = [\"{at}\"]"))));
        assert_eq!((check.state, check.detail), (State::Ok, format!("{at} answer")));
        asked.join().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("resolv.conf");
        fs::write(&file, "search lan\n").unwrap();
        let check = resolvers(Some(&config(&format!("[host]\nresolv_conf = \"{}\"", file.display()))));
        assert_eq!(check.detail, format!("{} names none", file.display()));
    }

    #[test]
    fn a_capability_is_missed_by_what_takes_it() {
        let nat = "mode = \"nat\"\nengine = \"packet\"\noutside = [\"192.0.2.9\"]";
        let text = format!(
            "[networks.a]\n{nat}\nuplink = \"eth9\"\n[networks.b]\n{nat}\ntap = \"t0\"\n[networks.c]\nmode = \"host-only\"\n\
             [networks.d]\n[guests.g]\nports = [{{ network = \"d\", attach = \"tap\", tap = \"t1\" }}]"
        );
        let needs = needs(&config(&text));
        let of = |bit| needs.iter().filter(|(other, _)| *other == bit).map(|(_, who)| who.as_str()).collect::<Vec<_>>();
        assert_eq!(of(NET_RAW), ["network a (uplink eth9)"]);
        assert_eq!(of(NET_ADMIN), ["network b (tap t0)", "network c (host-only)", "port g/0 (tap)"]);
        let missing = |needs: &[(u64, String)]| capability(false, NET_RAW, "CAP_NET_RAW", "this and that", needs);
        assert_eq!(missing(&needs).state, State::Problem);
        assert!(missing(&needs).detail.contains("network a (uplink eth9)"));
        assert_eq!(missing(&[]).state, State::Warning);
    }

    #[test]
    fn a_directory_that_can_be_made_is_fine_and_one_that_cannot_is_a_problem() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(directory("run_dir", Some(&dir.path().join("a/b"))).state, State::Ok);
        assert_eq!(directory("run_dir", Some(Path::new("/proc/nothing"))).state, State::Problem);
        assert_eq!(directory("run_dir", None).state, State::Problem);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "nothing is left");
    }
}
