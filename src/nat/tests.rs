//! Where a publication leads: to whom the configuration means, and to nobody who merely calls himself so.

use serde_json::json;

use super::*;
use crate::{
    config::{Subnet, Surroundings},
    gateways::{Leases, Made},
    state,
};

const LAN: &str =
    "[networks.lan]\nmode = \"nat\"\nsubnet = \"10.1.1.0/24\"\nsubnet6 = \"fd00:1::/64\"\ndhcp6 = \"stateful\"\n";

/// What became of each publication of `publish`, with these leases of (address, last byte of the MAC, name, began).
fn found(guests: &str, publish: &[&str], leases: &[(&str, u8, &str, u64)]) -> Vec<Result<String, String>> {
    let dir = tempfile::tempdir().unwrap();
    let text = format!("host.state_dir = \"{}\"\n{LAN}publish = {publish:?}\n{guests}", dir.path().display());
    let around = Surroundings { root: true, ..Surroundings::default() };
    let config = config::parse(&text, "t.toml".as_ref(), &around).unwrap();
    let until = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() + 1000;
    let (saved, leases) = (leases, Leases::default());
    for segment in config.networks[0].segments() {
        let is_here = |address: &str| {
            let address: IpAddr = address.parse().unwrap();
            segment
                .subnets()
                .any(|subnet| subnet.overlaps(Subnet::of(address, if address.is_ipv4() { 32 } else { 128 })))
        };
        let saved = saved.iter().filter(|(address, ..)| is_here(address)).map(|(address, mac, name, began)| {
            json!({ "address": address, "mac": format!("02:00:00:00:00:{mac:02x}"), "client_id": [*mac], "hostname": name,
                    "state": "bound", "began": began, "until": until })
        });
        let file = format!("leases-{}.json", segment.key().replace('/', "%"));
        state::write(&dir.path().join(file), &saved.collect::<Vec<_>>()).unwrap();
        let made: Option<Made> = leases.make(&config, segment, &[], true, 1).unwrap();
        assert!(made.is_some());
    }
    let places: Vec<On<NicId>> = (0..config.ports.len()).map(|at| (0, NicId(at as u16))).collect();
    let finder = Finder { config: &config, places: &places, leases: &leases };
    let wanted = config.networks[0].nat.clone().unwrap().publish;
    let of = |publish: &Publish| finder.find(&config.networks[0].name, 0, publish).map(|found| found.to.to_string());
    wanted.iter().map(of).collect()
}

#[test]
fn who_calls_himself_as_a_guest_of_the_file_is_called_is_not_published() {
    let guest = "[guests.web]\nports = [{ network = \"lan\", mac = \"02:00:00:00:00:01\" }]";
    let publish = ["tcp 127.0.0.1:8080 web:80"];
    let stranger = ("10.1.1.66", 0x66, "web", 1);
    let told = found(guest, &publish, &[stranger]);
    assert_eq!(told, [Err("guest web has no address yet".to_owned())]);
    let told = found(guest, &publish, &[stranger, ("10.1.1.5", 1, "other", 2)]);
    assert_eq!(told, [Ok("10.1.1.5:80".to_owned())]);
    // Where the file has no such guest, whoever has been called so for longest is meant.
    let told = found("", &publish, &[("10.1.1.5", 5, "web", 9), ("10.1.1.66", 0x66, "web", 3)]);
    assert_eq!(told, [Ok("10.1.1.66:80".to_owned())]);
    assert_eq!(found("", &publish, &[]), [Err("nobody is called web".to_owned())]);
}

#[test]
fn a_lease_of_the_version_that_is_listened_on_comes_first() {
    let publish = ["tcp 127.0.0.1:8080 web:80", "tcp [::1]:8080 web:80"];
    let guest = "[guests.web]\nports = [{ network = \"lan\", mac = \"02:00:00:00:00:01\" }]";
    let (four, six) = (("10.1.1.5", 1, "x", 1), ("fd00:1::1005", 1, "x", 2));
    let both = [Ok("10.1.1.5:80".to_owned()), Ok("[fd00:1::1005]:80".to_owned())];
    assert_eq!(found(guest, &publish, &[four, six]), both);
    assert_eq!(found(guest, &publish, &[six]), [both[1].clone(), both[1].clone()]);
    let named = [("10.1.1.5", 1, "web", 1), ("fd00:1::1066", 2, "web", 2), ("fd00:1::1005", 1, "web", 3)];
    assert_eq!(found("", &publish, &named), both, "of one holder");
}

#[test]
fn a_guest_is_where_its_port_is_and_a_name_whose_it_was_first_in_all_segments() {
    let vlan = "[networks.lan.vlans.7]\nsubnet = \"10.1.7.0/24\"\nsubnet6 = false\n";
    let guest = |more: &str| {
        format!("{vlan}[guests.web]\nports = [{{ network = \"lan\", mac = \"02:00:00:00:00:01\"{more} }}]")
    };
    let publish = ["tcp 127.0.0.1:8080 web:80"];
    let in_vlan = [("10.1.7.66", 1, "x", 1)];
    let told = found(&guest(""), &publish, &in_vlan);
    assert_eq!(told, [Err("guest web has no address yet".to_owned())], "somebody else has its MAC in a VLAN");
    assert_eq!(found(&guest(", vlan = 7"), &publish, &in_vlan), [Ok("10.1.7.66:80".to_owned())]);
    let named = |vlans: u64| [("10.1.1.5", 5, "web", 5), ("10.1.7.66", 0x66, "web", vlans)];
    assert_eq!(found(vlan, &publish, &named(3)), [Ok("10.1.7.66:80".to_owned())]);
    assert_eq!(found(vlan, &publish, &named(9)), [Ok("10.1.1.5:80".to_owned())]);
}
