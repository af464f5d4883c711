//! `plan` and `apply`: what another configuration would change in a running one, and changing it.
//!
//! Invariant: what can be changed while frames flow is changed without touching anything else; when something else differs as well,
//! nothing is changed and it is said what. Networks, guests and ports are compared by name, so that their order means nothing.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::config::{Config, Name, Nat, Network, Vlan};

/// What `POST /v1/plan` and `POST /v1/apply` are given.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Asked {
    /// The file, for messages.
    pub file: String,
    /// What it says.
    pub text: String,
}

/// What a configuration would change, and their answer.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// What changes while frames flow, a line each.
    pub changes: Vec<String>,
    /// What only a restart of the daemon changes.
    pub restart: Vec<String>,
    /// It was carried out.
    pub applied: bool,
    /// What was tried and did not succeed; it is tried again by itself.
    pub failures: Vec<String>,
}

impl Plan {
    /// From the file that runs to another; both as they were read.
    pub fn between(now: &Config, next: &Config) -> Plan {
        let mut plan = Plan::default();
        if now.host != next.host {
            plan.restart.push("[host] differs".to_owned());
        }
        let restart = &mut plan.restart;
        by_name(restart, "network", &now.networks, &next.networks, |network| network.name.to_string(), without_parts);
        let both = |of: &Config, other: &Config| vlans(of, |name| other.networks.iter().any(|also| also.name == *name));
        by_name(restart, "VLAN", &both(now, next), &both(next, now), |(name, _)| name.clone(), Clone::clone);
        by_name(restart, "tunnel endpoint", &now.vteps, &next.vteps, |vtep| vtep.name.clone(), Clone::clone);
        by_name(restart, "guest", &now.guests, &next.guests, |guest| guest.name.to_string(), Clone::clone);
        by_name(restart, "port", &now.ports, &next.ports, |port| port.name.to_string(), Clone::clone);
        for network in &next.networks {
            let before = now.networks.iter().find(|other| other.name == network.name).map(publications);
            let (before, after) = (before.unwrap_or_default(), publications(network));
            let gone = before
                .iter()
                .filter(|text| !after.contains(text))
                .map(|text| format!("- network {}: publish {text}", network.name));
            let new = after
                .iter()
                .filter(|text| !before.contains(text))
                .map(|text| format!("+ network {}: publish {text}", network.name));
            plan.changes.extend(gone.chain(new));
        }
        plan
    }

    /// For people.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for line in &self.changes {
            text.push_str(&format!("{line}\n"));
        }
        for line in &self.restart {
            text.push_str(&format!("! {line}; that takes a restart of the daemon\n"));
        }
        for line in &self.failures {
            text.push_str(&format!("failed, and is tried again: {line}\n"));
        }
        text.push_str(match (self.applied, self.changes.is_empty(), self.restart.is_empty()) {
            (true, ..) => "applied\n",
            (false, true, true) => "nothing differs\n",
            (false, _, true) => "`apply` changes this while frames flow\n",
            (false, ..) => "`apply` changes nothing while there are lines with `!`\n",
        });
        text
    }
}

fn publications(network: &Network) -> Vec<String> {
    network.nat.iter().flat_map(|nat| &nat.publish).map(ToString::to_string).collect()
}

/// Without what is compared by itself.
fn without_parts(network: &Network) -> Network {
    let nat = network.nat.as_ref().map(|nat| Nat { publish: Vec::new(), ..nat.clone() });
    Network { nat, vlans: Vec::new(), ..network.clone() }
}

/// The VLANs of the networks that are wanted, with what they are called.
fn vlans(config: &Config, wanted: impl Fn(&Name) -> bool) -> Vec<(String, Vlan)> {
    let networks = config.networks.iter().filter(|network| wanted(&network.name));
    let of = |network: &Network| {
        let called = |vlan: &Vlan| (format!("{} of network {}", vlan.id, network.name), vlan.clone());
        network.vlans.iter().map(called).collect::<Vec<_>>()
    };
    networks.flat_map(of).collect()
}

fn by_name<T, K: PartialEq>(
    lines: &mut Vec<String>,
    what: &str,
    now: &[T],
    next: &[T],
    name: impl Fn(&T) -> String,
    key: impl Fn(&T) -> K,
) {
    let index = |list: &[T]| list.iter().map(|item| (name(item), key(item))).collect::<BTreeMap<String, K>>();
    let (now, next) = (index(now), index(next));
    lines.extend(now.keys().filter(|name| !next.contains_key(*name)).map(|name| format!("{what} {name} is gone")));
    for (name, key) in &next {
        match now.get(name) {
            None => lines.push(format!("{what} {name} is new")),
            Some(before) if before != key => lines.push(format!("{what} {name} differs")),
            Some(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{self, Surroundings};

    fn config(text: &str) -> Config {
        config::parse(text, "t.toml".as_ref(), &Surroundings { root: true, ..Surroundings::default() }).unwrap()
    }

    const LAN: &str = "[networks.lan]\nmode = \"nat\"\nsubnet = \"10.1.1.0/24\"\n";

    #[test]
    fn publications_change_while_frames_flow() {
        let now = config(&format!("{LAN}publish = [\"tcp 127.0.0.1:80 10.1.1.5:80\", \"udp [::]:53 10.1.1.5:53\"]"));
        let next =
            config(&format!("{LAN}publish = [\"udp [::]:53 10.1.1.5:53\", \"tcp 0.0.0.0:90-91 10.1.1.5:90-91\"]"));
        let plan = Plan::between(&now, &next);
        let changes = [
            "- network lan: publish tcp 127.0.0.1:80 10.1.1.5:80",
            "+ network lan: publish tcp 0.0.0.0:90-91 10.1.1.5:90-91",
        ];
        assert_eq!((plan.changes.as_slice(), plan.restart.is_empty()), (&changes.map(str::to_owned)[..], true));
        assert_eq!(Plan::between(&now, &now), Plan::default());
    }

    #[test]
    fn vlans_are_named_one_by_one() {
        let vlan = |number: u16, more: &str| format!("[networks.lan.vlans.{number}]\n{more}\n");
        let now = config(&format!("{LAN}{}{}", vlan(100, ""), vlan(200, "")));
        let next = config(&format!("{LAN}{}{}", vlan(200, "dhcp = false"), vlan(300, "")));
        let expected =
            ["VLAN 100 of network lan is gone", "VLAN 200 of network lan differs", "VLAN 300 of network lan is new"];
        assert_eq!(Plan::between(&now, &next).restart, expected);
        let other = config("[networks.b]\n");
        assert_eq!(Plan::between(&now, &other).restart, ["network lan is gone", "network b is new"]);
    }

    #[test]
    fn what_takes_a_restart_is_named() {
        let now = config(&format!("{LAN}[networks.b]\n[guests.g]\nports = [{{ network = \"b\" }}]"));
        let next = config(&format!("{LAN}mtu = 1400\n[networks.c]\n[guests.g]\nports = [{{ network = \"c\" }}]"));
        let plan = Plan::between(&now, &next);
        let expected = ["network b is gone", "network c is new", "network lan differs", "port g/0 differs"];
        assert_eq!(plan.restart, expected);
        assert!(plan.text().contains("! network c is new"), "{}", plan.text());
    }
}
