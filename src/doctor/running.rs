//! Checks of a daemon that runs: what it has seen that a file cannot say.
//!
//! Invariant: where no daemon answers there is nothing to check. Read first: [`super`], [`crate::client`].

use std::path::Path;

use super::{Check, State};
use crate::{
    client,
    model::{Flapping, NetworkStatus},
};

/// One check for each network: does it have a loop outside?
pub(super) fn loops(socket: &Path) -> Vec<Check> {
    if !socket.exists() {
        return Vec::new();
    }
    match client::ask::<Vec<NetworkStatus>>(socket, "/v1/networks") {
        Ok((_, networks)) => networks.iter().map(of).collect(),
        Err(_) => Vec::new(),
    }
}

fn of(network: &NetworkStatus) -> Check {
    let name = format!("loops of {}", network.name);
    let Some(Flapping { mac, vlan, between: [home, other], moves, held_s }) = network.flapping.first() else {
        return Check::fine(name, "no station moves to and fro");
    };
    let vlan = vlan.map_or_else(String::new, |vlan| format!(" in VLAN {vlan}"));
    let others = match network.flapping.len() - 1 {
        0 => String::new(),
        more => format!(", and {more} more"),
    };
    let held = match held_s {
        0 => "it was held where it was first for a minute".to_owned(),
        left => format!("it is held at {home} for {left} s yet, and its frames from {other} are dropped (flapping)"),
    };
    let detail = format!("{mac}{vlan}{others} moved {moves} times between {home} and {other}; {held}");
    let remedy = format!(
        "look how {home} and {other} are joined outside of this network, and part them there; or two guests have one MAC"
    );
    Check::wrong(name, State::Problem, detail, remedy)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loop_is_told_with_network_address_and_both_ports() {
        let mut network: NetworkStatus = serde_json::from_str(
            r#"{"name":"lan","mode":"isolated","subnet":null,"subnet6":null,"mtu":1500,"ports":[]}"#,
        )
        .unwrap();
        assert_eq!(of(&network).state, State::Ok);
        let between = ["lan/uplink".to_owned(), "198.51.100.2".to_owned()];
        network.flapping.push(Flapping {
            vlan: Some(7),
            mac: "02:00:00:00:00:01".to_owned(),
            between,
            moves: 99,
            held_s: 12,
        });
        let check = of(&network);
        assert_eq!((check.name.as_str(), check.state), ("loops of lan", State::Problem));
        for part in ["02:00:00:00:00:01 in VLAN 7 moved 99 times between lan/uplink and 198.51.100.2", "for 12 s yet"] {
            assert!(check.detail.contains(part), "{}", check.detail);
        }
        assert!(loops(Path::new("/nonexistent/socket")).is_empty());
    }
}
