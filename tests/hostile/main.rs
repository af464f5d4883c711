//! Front ends, drivers and stations that misbehave, on the running program: each harms itself alone.
//!
//! While they do, two namespaces of the same network ping each other fifty times a second and may not lose one.

#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used, reason = "a failing test panics")]

mod front_end;
#[path = "../lab/mod.rs"]
mod lab;

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use front_end::FrontEnd;
use lab::daemon::Daemon;
use lab::frames::{Flow, Traffic, Vlan, exchange};
use lab::netns::NetNs;
use lab::pings::Pings;
use lab::process::Place;
use lab::{Lab, Unable, require, wait_for};
use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;

const PATIENCE: Duration = Duration::from_secs(10);
const NEXT: u16 = 1;
const INDIRECT: u16 = 4;

/// A network of two namespaces with TAPs and a port `evil/0` for a front end.
struct Setting {
    daemon: Daemon,
    one: NetNs,
    _two: NetNs,
    socket: PathBuf,
}

fn tap(ns: &NetNs, more: &str) -> String {
    format!("{{ network = \"lan\", attach = \"tap\", tap = \"eth0\", netns = \"{}\"{more} }}", ns.netns_name())
}

impl Setting {
    fn new(lab: &Lab, evil: &str) -> Result<Self, Unable> {
        let (one, two) = (NetNs::new(lab, "one")?, NetNs::new(lab, "two")?);
        let text = format!(
            "[networks.lan]\nmode = \"isolated\"\n[guests.one]\nports = [{}]\n[guests.two]\nports = [{}]\n\
             [guests.evil]\nports = [{{ network = \"lan\", socket = \"$DIR/evil.sock\"{evil} }}]\n",
            tap(&one, ""),
            tap(&two, "")
        );
        let daemon = Daemon::start(lab, &text);
        one.address("eth0", "10.0.0.1/24");
        two.address("eth0", "10.0.0.2/24");
        Ok(Self { daemon, one, _two: two, socket: lab.path("evil.sock") })
    }

    fn attach(&self) -> FrontEnd {
        let front_end = FrontEnd::attach(&self.socket);
        wait_for("the port to be up", PATIENCE, || self.daemon.port("evil/0")["state"] == "up");
        front_end
    }

    /// Waits until the port is not up, for this reason.
    fn is_down(&self, reason: &str) {
        let named = |port: &serde_json::Value| port["reason"].as_str().is_some_and(|why| why.contains(reason));
        let came = lab::holds_within(PATIENCE, || {
            let port = self.daemon.port("evil/0");
            port["state"] != "up" && named(&port)
        });
        assert!(came, "no {reason:?}: {}\n{}", self.daemon.port("evil/0"), self.daemon.log());
    }

    fn drops(&self, port: &str, reason: &str) -> u64 {
        self.daemon.port(port)["drops"][reason].as_u64().unwrap_or(0)
    }

    /// A well-behaved front end can attach, send and receive.
    fn still_serves(&self) {
        wait_for("the port to be free", PATIENCE, || self.daemon.port("evil/0")["state"] == "waiting");
        let mut good = self.attach();
        let before = self.daemon.port("evil/0")["rx_frames"].as_u64();
        good.receive();
        good.send(&frame([0xff; 6], [2, 0, 0, 0, 0, 7]));
        wait_for("a frame sent", PATIENCE, || self.daemon.port("evil/0")["rx_frames"].as_u64() > before);
        let _asking = self.one.spawn("ping -i 0.1 -w 20 10.0.0.99");
        wait_for("a frame received", PATIENCE, || !good.receive().is_empty());
    }
}

/// A frame of 60 bytes that means nothing to anybody.
fn frame(to: [u8; 6], from: [u8; 6]) -> Vec<u8> {
    [&to[..], &from, &[0x88, 0xb5], &[0; 46]].concat()
}

/// What a driver does to its transmit queue, and what the port then says.
type Wrong = (&'static str, fn(&mut FrontEnd));

const WRONG: [Wrong; 10] = [
    ("descriptor 1000 in a ring of 256", |bad| bad.make_available(&[1000], 1)),
    ("the available index jumped", |bad| bad.make_available(&[0], 5000)),
    ("longer than", |bad| {
        bad.set_descriptor(0, 0x10_0000, 64, NEXT, 1);
        bad.set_descriptor(1, 0x10_0000, 64, NEXT, 0);
        bad.make_available(&[0], 1);
    }),
    ("not inside one memory region", |bad| {
        bad.set_descriptor(0, u64::MAX - 8, 64, 0, 0);
        bad.make_available(&[0], 1);
    }),
    ("not inside one memory region", |bad| {
        bad.set_descriptor(0, 0x10_0000, u32::MAX, 0, 0);
        bad.make_available(&[0], 1);
    }),
    ("descriptor 300 in a ring of 256", |bad| {
        bad.set_descriptor(0, 0x10_0000, 64, NEXT, 300);
        bad.make_available(&[0], 1);
    }),
    ("an indirect descriptor where none is allowed", |bad| {
        // The table's one entry is the descriptor that leads to it.
        bad.set_descriptor(0, bad.rig.tx.areas.descriptors, 16, INDIRECT, 0);
        bad.make_available(&[0], 1);
    }),
    ("truncated", |bad| {
        bad.send(&frame([0xff; 6], [2, 0, 0, 0, 0, 7]));
        bad.truncate(1);
        bad.truncate(0);
        bad.kick();
    }),
    ("in no memory region", |bad| {
        bad.send(&frame([0xff; 6], [2, 0, 0, 0, 0, 7]));
        let only = bad.region(1);
        let _ = bad.session.set_mem_table(&[only]);
    }),
    ("not inside one memory region", |bad| {
        let gone = bad.region(1);
        let _ = bad.session.remove_mem_region(&gone);
        // Messages are taken in their order: with this answered, the region is gone.
        bad.session.get_features().unwrap();
        bad.send(&frame([0xff; 6], [2, 0, 0, 0, 0, 7]));
    }),
];

#[test]
fn a_driver_that_breaks_its_rings_takes_down_its_own_port() {
    let lab = require!(Lab::new());
    let setting = require!(Setting::new(&lab, ""));
    let pings = Pings::start(&setting.one, "10.0.0.2");
    for (reason, wrong) in WRONG {
        let mut bad = setting.attach();
        wrong(&mut bad);
        setting.is_down(reason);
        drop(bad);
        setting.still_serves();
    }
    println!("{} pings meanwhile", pings.none_lost());
}

#[test]
fn bytes_that_are_no_session_end_it() {
    let lab = require!(Lab::new());
    let setting = require!(Setting::new(&lab, ""));
    let pings = Pings::start(&setting.one, "10.0.0.2");
    let message = |request: u32, flags: u32, size: u32, payload: &[u8]| {
        [&request.to_ne_bytes()[..], &flags.to_ne_bytes(), &size.to_ne_bytes(), payload].concat()
    };
    let cases = [
        ("protocol version", b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec()),
        ("protocol version", vec![0xff; 4096]),
        ("request 77 is not supported", message(77, 1, 0, &[])),
        ("announces 4294967295 bytes", message(5, 1, u32::MAX, &[])),
        ("with 7 bytes instead of 8", message(2, 1, 7, &[0; 7])),
        ("0 file descriptors instead of 1", message(12, 1, 8, &[0; 8])),
    ];
    for (reason, bytes) in cases {
        let mut raw = UnixStream::connect(&setting.socket).unwrap();
        raw.write_all(&bytes).unwrap();
        setting.is_down(reason);
        drop(raw);
        setting.still_serves();
    }
    // Half a message, in a session of which nothing more comes.
    let mut raw = UnixStream::connect(&setting.socket).unwrap();
    raw.write_all(&message(1, 1, 0, &[])[..7]).unwrap();
    setting.is_down("a front end is connected");
    pings.go_on();
    drop(raw);
    setting.still_serves();
    // Messages out of order, by a front end whose rings run.
    let bad = setting.attach();
    let _ = bad.session.set_vring_num(0, 64);
    setting.is_down("which runs");
    drop(bad);
    setting.still_serves();
    println!("{} pings meanwhile", pings.none_lost());
}

#[test]
fn a_broadcast_storm_is_held_and_others_go_on() {
    let lab = require!(Lab::new());
    let setting = require!(Setting::new(&lab, ""));
    let mut loud = setting.attach();
    let pings = Pings::start(&setting.one, "10.0.0.2");
    let storm = frame([0xff; 6], [2, 0, 0, 0, 0, 7]);
    let held = lab::holds_within(2 * PATIENCE, || {
        (0..2000).for_each(|_| loud.send(&storm));
        setting.drops("evil/0", "broadcast_budget") > 500
    });
    assert!(held, "the storm is not held: {}", setting.daemon.port("evil/0"));
    pings.go_on();
    println!("{} pings meanwhile; {}", pings.none_lost(), setting.daemon.port("evil/0"));
    assert_eq!(setting.drops("two/0", "would_block"), 0);
}

#[test]
fn a_declared_address_is_guarded() {
    let lab = require!(Lab::new());
    let setting = require!(Setting::new(&lab, ", mac = \"02:00:00:00:00:07\""));
    let mut guest = setting.attach();
    let sent = |from: [u8; 6], guest: &mut FrontEnd| {
        let before = setting.daemon.port("evil/0")["rx_frames"].as_u64();
        guest.send(&frame([0xff; 6], from));
        wait_for("the frames", PATIENCE, || setting.daemon.port("evil/0")["rx_frames"].as_u64() > before);
    };
    sent([2, 0, 0, 0, 0, 7], &mut guest);
    assert_eq!(setting.drops("evil/0", "spoofed_source"), 0);
    sent([2, 0, 0, 0, 0, 8], &mut guest);
    wait_for("spoofed frames to be counted", PATIENCE, || setting.drops("evil/0", "spoofed_source") > 0);
    let learnt = setting.daemon.json(&["show", "fdb", "--json"]);
    let has = |mac: &str| learnt.as_array().unwrap().iter().any(|entry| entry["mac"] == mac);
    assert!(has("02:00:00:00:00:07") && !has("02:00:00:00:00:08"), "{learnt}");
}

#[test]
fn isolated_ports_reach_only_the_others() {
    let lab = require!(Lab::new());
    let names = ["one", "two", "open"];
    let [one, two, open] = names.map(|name| NetNs::new(&lab, name));
    let (one, two, open) = (require!(one), require!(two), require!(open));
    let ports = [tap(&one, ", isolated = true"), tap(&two, ", isolated = true"), tap(&open, "")];
    let daemon = Daemon::start(
        &lab,
        &format!("[networks.lan]\nmode = \"isolated\"\n[guests.g]\nports = [{}]\n", ports.join(", ")),
    );
    for (number, ns) in (1..).zip([&one, &two, &open]) {
        ns.address("eth0", &format!("10.0.0.{number}/24"));
    }
    assert!(one.reaches("10.0.0.3", PATIENCE).is_some() && open.reaches("10.0.0.2", PATIENCE).is_some());
    assert!(one.reaches("10.0.0.2", Duration::from_secs(1)).is_none());
    // Even with its address known to the switch and to the sender.
    let (to, short) = (two.mac("eth0"), Duration::from_millis(300));
    let flow = Flow { receive_vlan: Vlan::Any, timeout: short, ..Flow::to_mac(&to) };
    assert_eq!(exchange(&one, &two, &flow, &Traffic::plain(&[60], 5)).frames, 0);
    wait_for("the drops", PATIENCE, || daemon.port("g/0")["drops"]["isolated"].as_u64() >= Some(5));
}

#[test]
fn reserved_addresses_stay_on_their_link_unless_asked_for() {
    let lab = require!(Lab::new());
    for (more, passed) in [("", 0), (", pass_reserved = true", 5)] {
        let (one, two) = (require!(NetNs::new(&lab, "one")), require!(NetNs::new(&lab, "two")));
        let ports = [tap(&one, more), tap(&two, more)].join(", ");
        let daemon =
            Daemon::start(&lab, &format!("[networks.lan]\nmode = \"isolated\"\n[guests.g]\nports = [{ports}]\n"));
        one.address("eth0", "10.0.0.1/24");
        two.address("eth0", "10.0.0.2/24");
        // The receiver ends when it has all; what does not come is waited for in vain.
        let timeout = if passed == 0 { Duration::from_millis(500) } else { PATIENCE };
        let flow = Flow { timeout, ..Flow::to_mac("01:80:c2:00:00:0e") };
        let report = exchange(&one, &two, &flow, &Traffic::plain(&[60], 5));
        assert_eq!(report.frames, passed, "{report:?}");
        let eaten = || daemon.port("g/0")["drops"]["reserved"].as_u64().unwrap_or(0);
        if passed == 0 {
            wait_for("the drops", PATIENCE, || eaten() >= 5);
        } else {
            assert_eq!(eaten(), 0, "{}", daemon.port("g/0"));
        }
    }
}
