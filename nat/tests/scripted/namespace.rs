//! Network namespaces of a test's own, and a router in another one.

use std::{
    process::{Child, Command as Process, Stdio},
    time::Duration,
};

/// Lets everybody in this namespace make ping sockets, which at first nobody may.
pub fn permit_ping() {
    std::fs::write("/proc/sys/net/ipv4/ping_group_range", "0 0").unwrap();
}

/// Whether this is the test itself, in a network namespace of its own with loopback up; else runs it there in a process of its own and says whether
/// that went well. Where there can be no namespace, says SKIPPED.
pub fn in_namespace(name: &str) -> bool {
    if std::env::var_os("TRUNKLINE_NAMESPACE").is_some() {
        run(&["ip", "link", "set", "lo", "up"]);
        return true;
    }
    let mut unshare = Process::new("unshare");
    unshare.args(["-r", "-n", "--kill-child"]).arg(std::env::current_exe().unwrap());
    unshare.args(["--exact", name, "--nocapture", "--test-threads=1"]).env("TRUNKLINE_NAMESPACE", "1");
    let may = Process::new("unshare").args(["-r", "-n", "ip", "link", "show", "lo"]).output();
    if !may.is_ok_and(|output| output.status.success()) {
        println!("SKIPPED {name}: unshare(1) cannot make a network namespace here");
        return false;
    }
    let output = unshare.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    print!("{said}");
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    false
}

#[track_caller]
pub fn run(words: &[&str]) {
    let output = Process::new(words[0]).args(&words[1..]).output().unwrap();
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A router in a namespace of its own, one hop away: it has 198.51.100.1 and 2001:db8:1::1 on the link to us (198.51.100.2, 2001:db8:1::2), and a
/// link with an MTU of 1300 to 203.0.113.0/24 and 2001:db8:2::/64, on which 203.0.113.1 and 2001:db8:2::1 are its own and nobody else is.
pub struct Router(Child);

impl Router {
    pub fn new() -> Router {
        let child = Process::new("unshare").args(["-n", "sleep", "60"]).stdin(Stdio::null()).spawn().unwrap();
        let router = Router(child);
        // It is in its namespace when that differs from ours.
        let ours = std::fs::read_link("/proc/self/ns/net").unwrap();
        let its = format!("/proc/{}/ns/net", router.0.id());
        while std::fs::read_link(&its).unwrap() == ours {
            std::thread::sleep(Duration::from_millis(1));
        }
        let pid = router.0.id().to_string();
        let enter = ["nsenter", "-t", pid.as_str(), "-n"];
        let there = |words: &str| run(&[&enter[..], &words.split(' ').collect::<Vec<_>>()].concat());
        let here = |words: &str| run(&words.split(' ').collect::<Vec<_>>());
        run(&["ip", "link", "add", "out", "type", "veth", "peer", "name", "in", "netns", &pid]);
        here("ip address add 198.51.100.2/24 dev out");
        here("ip address add 2001:db8:1::2/64 dev out nodad");
        here("ip link set out up");
        there("ip link set lo up");
        there("ip address add 198.51.100.1/24 dev in");
        there("ip address add 2001:db8:1::1/64 dev in nodad");
        there("ip link set in up");
        there("ip link add far type veth peer name end");
        there("ip link set end up");
        there("ip link set far mtu 1300");
        there("ip address add 203.0.113.1/24 dev far");
        there("ip address add 2001:db8:2::1/64 dev far nodad");
        there("ip link set far up");
        there(
            "sysctl -q -w net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 net.ipv4.icmp_ratelimit=0 net.ipv6.icmp.ratelimit=0",
        );
        here("ip route add default via 198.51.100.1");
        here("ip route add default via 2001:db8:1::1");
        router
    }

    /// Runs a command in the router.
    pub fn run(&self, words: &str) {
        let pid = self.0.id().to_string();
        run(&[&["nsenter", "-t", pid.as_str(), "-n"], &words.split(' ').collect::<Vec<_>>()[..]].concat());
    }
}

impl Drop for Router {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
