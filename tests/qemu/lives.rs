//! Guests come and go: what happens to one of them is nobody else's business.

use super::lab::daemon::Daemon;
use super::lab::frames::Flow;
use super::lab::netns::NetNs;
use super::lab::pings::Pings;
use super::lab::process::Place;
use super::lab::qemu::{GuestSpec, NicSpec, Qemu};
use super::lab::{Lab, require, wait_for};
use super::{address, everything_intact, mac};
use std::time::Duration;

#[test]
fn nobody_notices_a_guest_that_reboots_or_is_killed() {
    let lab = require!(Lab::new());
    let (x, y) = (require!(NetNs::new(&lab, "x")), require!(NetNs::new(&lab, "y")));
    let daemon = Daemon::start(
        &lab,
        &format!(
            r#"
            [networks.lan]
            [guests.a]
            ports = [{{ network = "lan", socket = "$DIR/a.sock" }}]
            [guests.b]
            ports = [{{ network = "lan", socket = "$DIR/b.sock" }}]
            [guests.x]
            ports = [{{ network = "lan", attach = "tap", tap = "eth0", netns = "{}" }}]
            [guests.y]
            ports = [{{ network = "lan", attach = "tap", tap = "eth0", netns = "{}" }}]
            "#,
            x.netns_name(),
            y.netns_name()
        ),
    );
    // One with split rings, one with packed ones; they change places when they come back.
    let spec = |name: &str, guest, packed| {
        let nic = NicSpec { packed, ..NicSpec::new(lab.path(&format!("{name}.sock")), &mac(guest, 0)) };
        GuestSpec::new(name, vec![nic])
    };
    let mut a = require!(Qemu::boot(&lab, spec("a", 1, true)));
    let mut b = require!(Qemu::boot(&lab, spec("b", 2, false)));
    let places: [(&dyn Place, &str); 4] =
        [(&a, "10.0.0.1/24"), (&b, "10.0.0.2/24"), (&x, "10.0.0.3/24"), (&y, "10.0.0.4/24")];
    places.iter().for_each(|(place, with_prefix)| address(*place, "eth0", with_prefix));
    let among_others = Pings::start(&x, "10.0.0.4");
    let to_b = Pings::start(&x, "10.0.0.2");

    // Reboots, from inside and by the reset button, while frames are on their way to the guest.
    let to_a = Pings::start(&y, "10.0.0.1");
    a.reboot();
    address(&a, "eth0", "10.0.0.1/24");
    everything_intact(&a, &x, &Flow::to_mac(&x.mac("eth0")));
    let before = to_a.answered();
    wait_for("the rebooted guest to answer the old pings", Duration::from_secs(10), || to_a.answered() > before + 10);
    a.reset();
    address(&a, "eth0", "10.0.0.1/24");
    everything_intact(&x, &a, &Flow::to_mac(&mac(1, 0)));
    assert!(to_b.none_lost() > 0, "pings were answered");

    // One that sends all it can is killed, and then one that is being sent all it can take.
    for (name, guest) in [("a", &mut a), ("b", &mut b)] {
        let port = format!("{name}/0");
        let mut server = y.spawn("exec iperf3 -s --forceflush");
        server.wait_for_output("Server listening", Duration::from_secs(10));
        let direction = if name == "a" { "" } else { "-R" };
        let _transfer = guest.spawn(&format!("exec iperf3 -c 10.0.0.4 -t 600 {direction}"));
        let field = if name == "a" { "rx_frames" } else { "tx_frames" };
        let before = daemon.port(&port)[field].as_u64().expect("a number");
        let flows = || daemon.port(&port)[field].as_u64().is_some_and(|frames| frames > before + 3000);
        wait_for("the transfer to flow", Duration::from_secs(20), flows);
        guest.kill();
        wait_for("the port to be free", Duration::from_secs(10), || daemon.port(&port)["state"] == "waiting");
        assert!(daemon.ctl(&["status"]).ok(), "{}", daemon.log());
    }
    let before = among_others.answered();
    wait_for("more answers", Duration::from_secs(10), || among_others.answered() > before + 50);

    // Others come in their place, with other rings.
    let a = require!(Qemu::boot(&lab, spec("a", 1, false)));
    let b = require!(Qemu::boot(&lab, spec("b", 2, true)));
    address(&a, "eth0", "10.0.0.1/24");
    address(&b, "eth0", "10.0.0.2/24");
    assert!(a.reaches("10.0.0.2", Duration::from_secs(5)).is_some(), "{}", daemon.log());
    everything_intact(&a, &b, &Flow::to_mac(&mac(2, 0)));
    everything_intact(&b, &a, &Flow::to_mac(&mac(1, 0)));
    assert!(among_others.none_lost() > 0, "pings were answered");
}
