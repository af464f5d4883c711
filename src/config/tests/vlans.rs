//! VLANs with a router: what a table says, what it leaves to its network, and what is wrong with it.

use super::*;

#[test]
fn a_vlan_has_what_its_table_says_and_the_rest_from_its_network() {
    let text = "[networks.lan]\nmode = \"nat\"\ndhcp6 = \"stateful\"\nntp = [\"192.0.2.1\"]\ndomain = \"lan.test\"\n[networks.lan.vlans.200]\n\
                subnet = \"10.2.0.0/24\"\nsubnet6 = \"fd02::/64\"\ndhcp = false\ndhcp6 = \"off\"\nntp = []\ndomain = \"two.test\"\n\
                [networks.lan.vlans.100]\n[networks.lan.vlans.300]\nsubnet6 = false\n";
    let config = read(text).unwrap();
    let [network] = config.networks.as_slice() else { panic!() };
    assert_eq!(network.vlans.iter().map(|vlan| vlan.id.get()).collect::<Vec<_>>(), [100, 200, 300]);
    let segments: Vec<Segment<'_>> = network.segments().collect();
    let told: Vec<_> = segments.iter().map(|s| (s.to_string(), s.dhcp(), s.dhcp6(), s.ntp().len())).collect();
    let expected = [
        ("lan".to_owned(), true, Dhcp6::Stateful, 1),
        ("lan, VLAN 100".to_owned(), true, Dhcp6::Stateful, 1),
        ("lan, VLAN 200".to_owned(), false, Dhcp6::Off, 0),
        ("lan, VLAN 300".to_owned(), true, Dhcp6::Stateful, 1),
    ];
    assert_eq!(told, expected);
    let domains: Vec<String> = segments.iter().map(Segment::search_domain).collect();
    assert_eq!(domains, ["lan.test", "lan.test", "two.test", "lan.test"]);
    let needs: Vec<_> = segments.iter().map(|s| (s.needs_subnet(), s.needs_subnet6())).collect();
    assert_eq!(needs, [(true, true), (true, true), (false, false), (true, false)]);
    let router: Vec<String> = segments[2].router().map(|address| address.to_string()).collect();
    assert_eq!(router, ["10.2.0.1", "fd02::1"]);
    let value = serde_json::to_value(&config).unwrap();
    assert_eq!(value["networks"][0]["vlans"]["200"]["subnet"], "10.2.0.0/24", "as in the file");
    // The host has the first address in the untagged segment, and none in VLANs.
    let text =
        "[networks.m]\nmode = \"host-only\"\nsubnet = \"10.1.0.0/24\"\n[networks.m.vlans.7]\nsubnet = \"10.7.0.0/30\"";
    let config = read(text).unwrap();
    let routers: Vec<_> = config.networks[0].segments().flat_map(|s| s.router().collect::<Vec<_>>()).collect();
    assert_eq!(routers.iter().map(ToString::to_string).collect::<Vec<_>>(), ["10.1.0.2", "10.7.0.1"]);
    assert!(config.networks[0].segments().all(|s| !s.needs_subnet6()), "IPv6 is chosen in mode nat only");
}

#[test]
fn ports_are_in_the_segments_that_they_carry() {
    let text = "[networks.lan]\ndhcp = true\nsubnet = \"10.1.0.0/24\"\n[networks.lan.vlans.100]\n[networks.lan.vlans.200]\n[networks.other]\n\
                [guests.g]\nports = [{ network = \"lan\" }, { network = \"lan\", vlan = 1 }, { network = \"lan\", vlan = 100 }, \
                { network = \"lan\", trunk = [100, 200], native = 1 }, { network = \"lan\", trunk = [300], native = 200 }, \
                { network = \"lan\", vlan = 300 }, { network = \"other\" }, { network = \"lan\", trunk = [100] }]";
    let config = read(text).unwrap();
    let network = &config.networks[0];
    let carried: Vec<Vec<usize>> = network
        .segments()
        .map(|segment| (0..config.ports.len()).filter(|at| segment.carries(&config.ports[*at])).collect())
        .collect();
    assert_eq!(carried, [vec![0, 1, 3], vec![2, 3, 7], vec![3, 4]]);
    let untagged: Vec<Option<String>> =
        config.ports.iter().map(|port| network.segment_of(port).map(|segment| segment.key())).collect();
    let key = |key: &str| Some(key.to_owned());
    let (lan, one, two) = (key("lan"), key("lan/vlan100"), key("lan/vlan200"));
    assert_eq!(untagged[..6], [lan.clone(), lan.clone(), one, lan, two, None]);
    assert_eq!(untagged[7], None, "a trunk without a native VLAN has no untagged frames");
}

#[test]
fn wrong_vlans() {
    let lan = "[networks.lan]\ndhcp = true\nsubnet = \"10.1.0.0/24\"\n";
    let nat = "[networks.lan]\nmode = \"nat\"\nsubnet = \"10.1.0.0/24\"\n";
    let other = "[networks.b]\nmode = \"nat\"\nsubnet = \"10.2.0.0/24\"\n";
    // text, line, key, what the message or its help says
    let table: &[(String, usize, &str, &str)] = &[
        (format!("{lan}[networks.lan.vlans.0]"), 4, "networks.lan.vlans.0", "allowed are 2 to 4094"),
        (format!("{lan}[networks.lan.vlans.4095]"), 4, "networks.lan.vlans.4095", "allowed are 2 to 4094"),
        (format!("{lan}[networks.lan.vlans.0100]"), 4, "networks.lan.vlans.0100", "is not the number of a VLAN"),
        (format!("{lan}[networks.lan.vlans.red]"), 4, "networks.lan.vlans.red", "`red` is not the number of a VLAN"),
        (format!("{lan}[networks.lan.vlans.1]"), 4, "networks.lan.vlans.1", "the network's untagged segment"),
        (format!("{lan}vlans = [100]"), 4, "networks.lan.vlans", "a table is needed"),
        (
            format!("{lan}[networks.lan.vlans.9]\nsubnets = \"10.2.0.0/24\""),
            5,
            "networks.lan.vlans.9.subnets",
            "nearest known key is `subnet`",
        ),
        (
            format!("{lan}[networks.lan.vlans.9]\nmtu = 9000"),
            5,
            "networks.lan.vlans.9.mtu",
            "known in networks.lan.vlans.9",
        ),
        (
            format!("{lan}[networks.lan.vlans.9]\nsubnet = \"10.2.0.1/24\""),
            5,
            "networks.lan.vlans.9.subnet",
            "write 10.2.0.0/24",
        ),
        (
            format!("{lan}[networks.lan.vlans.9]\nsubnet = \"8.0.0.0/6\""),
            5,
            "networks.lan.vlans.9.subnet",
            "allowed are /8 to /30",
        ),
        (
            format!("{lan}[networks.lan.vlans.9]\nsubnet = \"10.1.0.0/25\""),
            4,
            "networks.lan.vlans.9",
            "overlaps 10.1.0.0/24 of network lan;",
        ),
        (
            format!(
                "{lan}[networks.lan.vlans.8]\nsubnet = \"10.3.0.0/16\"\n[networks.lan.vlans.9]\nsubnet = \"10.3.9.0/24\""
            ),
            6,
            "networks.lan.vlans.9",
            "overlaps 10.3.0.0/16 of network lan, VLAN 8",
        ),
        (
            format!(
                "{lan}[networks.lan.vlans.8]\nsubnet6 = \"fd01::/64\"\n[networks.lan.vlans.9]\nsubnet6 = \"fd01::/64\""
            ),
            6,
            "networks.lan.vlans.9",
            "overlaps fd01::/64 of network lan, VLAN 8",
        ),
        (
            format!("{other}{nat}[networks.lan.vlans.9]\nsubnet = \"10.2.0.0/24\""),
            7,
            "networks.lan.vlans.9",
            "overlaps 10.2.0.0/24 of network b",
        ),
        (
            format!("{nat}[networks.lan.vlans.9]\nsubnet = \"10.2.0.0/24\"\n{other}"),
            6,
            "networks.b",
            "overlaps 10.2.0.0/24 of network lan, VLAN 9",
        ),
        (
            format!(
                "{nat}engine = \"packet\"\ntap = \"t0\"\noutside = [\"192.0.2.9\"]\n[networks.lan.vlans.9]\nsubnet = \"192.0.2.0/24\""
            ),
            1,
            "networks.lan",
            "`outside` has 192.0.2.9, which is inside",
        ),
        ("[networks.lan]\n[networks.lan.vlans.9]".to_owned(), 2, "networks.lan.vlans", "give it `dhcp = true`"),
        (
            "[networks.lan]\nmode = \"bridged\"\nuplink = \"eth0\"\n[networks.lan.vlans.9]".to_owned(),
            4,
            "networks.lan.vlans",
            "are the physical network's",
        ),
    ];
    for (text, line, key, what) in table {
        let wrong = told(text);
        let said = format!("{} {}", wrong.message, wrong.help.as_deref().unwrap_or_default());
        assert_eq!((wrong.line, wrong.key.as_str()), (*line, *key), "{text}\n{wrong}");
        assert!(said.contains(what), "{text}\n{wrong}\nshould say: {what}");
    }
    // Networks that reach nothing may have the same subnets, and so may their VLANs.
    let apart = "[networks.b]\ndhcp = true\nsubnet = \"10.2.0.0/24\"\n";
    assert!(read(&format!("{apart}{lan}[networks.lan.vlans.9]\nsubnet = \"10.2.0.0/24\"")).is_ok());
}

#[test]
fn addresses_of_a_port_are_of_its_vlans_subnets() {
    let with = |port: &str| {
        format!(
            "[networks.lan]\ndhcp = true\nsubnet = \"10.1.0.0/24\"\n[networks.lan.vlans.9]\nsubnet = \"10.9.0.0/24\"\nsubnet6 = \"fd09::/64\"\n\
             [networks.lan.vlans.10]\n[guests.g]\nports = [{{ network = \"lan\", {port} }}]"
        )
    };
    let right = [
        "vlan = 9, addresses = [\"10.9.0.5\", \"fd09::5\", \"fe80::5\"]",
        "vlan = 10, addresses = [\"10.1.0.5\"]",
        "vlan = 11, addresses = [\"192.0.2.1\"]",
        "trunk = [9, 10], addresses = [\"10.9.0.5\", \"192.0.2.1\"]",
    ];
    for port in right {
        assert!(read(&with(port)).is_ok(), "{port}");
    }
    for (port, what) in [
        ("vlan = 9, addresses = [\"10.9.0.5\", \"10.1.0.5\"]", "10.1.0.5 is not of 10.9.0.0/24, the subnet of VLAN 9"),
        ("vlan = 9, addresses = [\"fd01::5\"]", "fd01::5 is not of fd09::/64"),
    ] {
        let wrong = told(&with(port));
        assert_eq!(wrong.key, "guests.g.ports[0].addresses");
        assert!(wrong.message.contains(what), "{wrong}");
    }
}
