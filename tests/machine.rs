//! The built-in guest as a process of its own, beside other guests: Linux in QEMU and the kernel's own stack behind a TAP.
//!
//! Read first: `vmm::machine`, `src/guests.rs`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failing test panics")]

mod lab;

use lab::daemon::{Daemon, program};
use lab::netns::NetNs;
use lab::pings::Pings;
use lab::process::Place;
use lab::qemu::{GuestSpec, NicSpec, Qemu};
use lab::{Lab, Unable, holds_within, need_program, require, wait_for};
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(10);

fn need_kvm() -> Result<(), Unable> {
    match std::fs::OpenOptions::new().read(true).write(true).open("/dev/kvm") {
        Ok(_) => Ok(()),
        Err(error) => Err(Unable(format!("/dev/kvm cannot be used: {error}"))),
    }
}

/// A network with two built-in guests, a place for a guest of somebody else, and a TAP in a namespace, whose MAC is the same whenever it is made; it may be a DHCP server.
fn config(ns: &NetNs) -> String {
    let netns = ns.netns_name();
    format!(
        "[networks.lan]\nsubnet = \"10.0.0.0/24\"\n\
         [guests.one]\nengine = \"machine\"\nports = [{{ network = \"lan\", addresses = [\"10.0.0.1\"], mac = \"02:00:00:00:00:01\" }}]\n\
         [guests.two]\nengine = \"machine\"\nports = [{{ network = \"lan\", addresses = [\"10.0.0.2\"] }}]\n\
         [guests.linux]\nports = [{{ network = \"lan\", socket = \"$DIR/linux.sock\" }}]\n\
         [guests.tap]\nports = [{{ network = \"lan\", mac = \"02:00:00:00:00:09\", guard = false, attach = \"tap\", tap = \"eth0\", netns = \"{netns}\" }}]\n"
    )
}

/// Ends the machines of a configuration when dropped.
struct Machines<'a>(&'a Path);

impl Machines<'_> {
    fn verb(&self, args: &[&str]) -> Output {
        Command::new(program()).arg("--config").arg(self.0).arg("guest").args(args).output().unwrap()
    }

    fn told(&self, args: &[&str]) -> String {
        let output = self.verb(args);
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn running(&self) -> Vec<bool> {
        let list: serde_json::Value = serde_json::from_str(&self.told(&["list", "--json"])).unwrap();
        list.as_array().unwrap().iter().map(|guest| guest["state"] == "running").collect()
    }
}

impl Drop for Machines<'_> {
    fn drop(&mut self) {
        for name in ["one", "two"] {
            self.verb(&["stop", name]);
        }
    }
}

#[test]
fn a_machine_a_linux_guest_and_a_tap_talk_on_one_segment() {
    let lab = require!(Lab::new());
    require!(need_kvm());
    let ns = require!(NetNs::new(&lab, "tap"));
    let mut daemon = Daemon::start(&lab, &config(&ns));
    let file = daemon.config().to_owned();
    let machines = Machines(&file);
    ns.address("eth0", "10.0.0.9/24");
    let nic = NicSpec::new(lab.path("linux.sock"), "52:54:00:00:00:01");
    let linux = require!(Qemu::boot(&lab, GuestSpec::new("linux", vec![nic])));
    linux.sh("ip addr add 10.0.0.3/24 dev eth0 && ip link set eth0 up");
    for (from, to) in [(&ns as &dyn Place, "10.0.0.1"), (&ns, "10.0.0.3"), (&linux, "10.0.0.1"), (&linux, "10.0.0.9")] {
        assert!(from.reaches(to, PATIENCE).is_some(), "{} to {to}\n{}", from.name(), daemon.log());
    }
    // The machine's stream echo, from the kernel and from Linux in a guest.
    for place in [&ns as &dyn Place, &linux] {
        let sent = "head -c 300000 /dev/zero | tr '\\0' 'x'";
        let file = format!("/tmp/echoed-{}", std::process::id());
        let echoed = place.sh(&format!(
            "{sent} | timeout 10 busybox nc 10.0.0.1 7 | tee {file} | wc -c; tr -d x <{file} | wc -c; rm {file}"
        ));
        let counts: Vec<&str> = echoed.split_whitespace().collect();
        assert_eq!(counts, ["300000", "0"], "{}: bytes that came back, and others than those sent", place.name());
    }

    // The daemon is killed and ended under them: they stay, and are back by themselves.
    for killed in [true, false, true] {
        if killed {
            daemon.kill9()
        } else {
            daemon.terminate()
        }
        assert_eq!(machines.running(), [true, true, false, false]);
        daemon.restart();
        ns.address("eth0", "10.0.0.9/24");
        let back = |to: &str| ns.reaches(to, PATIENCE);
        assert!(back("10.0.0.1").is_some() && back("10.0.0.2").is_some(), "{}", daemon.log());
    }

    // One is ended; the other one does not notice; it comes back.
    let pings = Pings::start(&ns, "10.0.0.2");
    assert_eq!(machines.told(&["stop", "one"]), "one stopped\n");
    assert_eq!(machines.told(&["stop", "one"]), "one is stopped already\n");
    wait_for("its port to be free", PATIENCE, || daemon.port("one/0")["state"] == "waiting");
    assert_eq!(machines.told(&["start", "one"]), "one started\n");
    assert!(ns.reaches("10.0.0.1", PATIENCE).is_some(), "{}", daemon.log());
    assert_eq!(machines.told(&["start", "one"]), "one is started already\n");
    assert!(pings.none_lost() > 0);
    assert_eq!(machines.verb(&["stop", "linux"]).status.code(), Some(2), "somebody else's guest");
    assert_eq!(machines.verb(&["stop", "none"]).status.code(), Some(2), "no guest");
}

#[test]
fn images_that_are_no_guests_end_with_a_message_and_alone() {
    let lab = require!(Lab::new());
    require!(need_kvm());
    let ns = require!(NetNs::new(&lab, "tap"));
    let daemon = Daemon::start(&lab, &config(&ns));
    let file = daemon.config().to_owned();
    let _machines = Machines(&file);
    ns.address("eth0", "10.0.0.9/24");
    assert!(ns.reaches("10.0.0.2", PATIENCE).is_some(), "{}", daemon.log());
    let pings = Pings::start(&ns, "10.0.0.2");
    let script = lab.path("script");
    std::fs::write(&script, "#!/bin/sh\nexit 0\n").unwrap();
    let table = [
        (script.as_path(), "it is no 64-bit ELF program"),
        (Path::new("/bin/busybox"), ""),
        (Path::new(env!("CARGO_BIN_EXE_trunkline")), ""),
        (Path::new("/nonexistent"), "No such file"),
    ];
    for (image, wanted) in table {
        let mut command = Command::new(program());
        command.arg("machine").arg("--port").arg(lab.path("linux.sock")).arg("--image").arg(image);
        let output = command.output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{}: {error}", image.display());
        assert!(error.contains("error: ") && error.contains(wanted), "{}: {error}", image.display());
    }
    assert!(holds_within(PATIENCE, || daemon.port("linux/0")["state"] == "waiting"));
    assert!(pings.none_lost() > 0);
}

#[test]
fn a_guest_takes_a_lease_and_fetches_a_url() {
    let lab = require!(Lab::new());
    require!(need_kvm());
    require!(need_program("dnsmasq", "dnsmasq-base"));
    require!(need_program("busybox", "busybox-static"));
    let ns = require!(NetNs::new(&lab, "tap"));
    let daemon = Daemon::start(&lab, &config(&ns));
    let file = daemon.config().to_owned();
    let _machines = Machines(&file);
    ns.address("eth0", "10.0.0.9/24");
    let leases = lab.path("leases");
    let dhcp = format!(
        "exec dnsmasq --keep-in-foreground --conf-file=/dev/null --port=0 --interface=eth0 --bind-interfaces --log-facility=- \
         --dhcp-range=10.0.0.100,10.0.0.120,255.255.255.0 --dhcp-leasefile={} --user=root --no-ping",
        leases.display()
    );
    let mut dhcp = ns.spawn(&dhcp);
    dhcp.wait_for_output("DHCP, IP range", PATIENCE);
    std::fs::create_dir(lab.path("www")).unwrap();
    std::fs::write(lab.path("www/page"), vec![b'p'; 123_456]).unwrap();
    let _http = ns.spawn(&format!("exec busybox httpd -f -p 10.0.0.9:80 -h {}", lab.path("www").display()));
    wait_for("httpd to listen", PATIENCE, || ns.run("grep -q ':0050 .* 0A ' /proc/net/tcp", PATIENCE).ok());
    let guest = |commands: &[&str]| {
        let mut command = Command::new(program());
        command.arg("machine").arg("--port").arg(lab.path("linux.sock")).args(["--mac", "02:00:00:00:00:77"]);
        command.args(commands.iter().flat_map(|text| ["--run", text]));
        let output = command.output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    let (code, told, error) = guest(&["dhcp", "fetch 10.0.0.9:80 path=/page", "off"]);
    assert_eq!(code, Some(0), "{told}\n{error}\n{}", dhcp.output());
    let lines: Vec<&str> = told.lines().collect();
    assert!(lines[1].starts_with("ok 10.0.0.1") && lines[1].ends_with("/24"), "{told}");
    assert_eq!(lines[2], "ok status=200 bytes=123456", "{told}");
    assert!(std::fs::read_to_string(&leases).unwrap().contains("02:00:00:00:00:77"));
    // What cannot be had is told.
    let (code, told, error) = guest(&["dhcp", "fetch 10.0.0.9:81"]);
    assert_eq!(code, Some(1), "{told}");
    assert!(error.contains("does not carry out `fetch 10.0.0.9:81`"), "{told}\n{error}");
    let (code, told, _) = guest(&["address 10.0.0.77/24", "fetch 10.0.0.9:80 path=/none", "off"]);
    assert!(code == Some(0) && told.contains("ok status=404 "), "{told}");
}
