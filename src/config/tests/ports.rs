//! Ports that are wrong, each as the one line of a file that is right otherwise: the key and what is said.
//!
//! Invariant: each way in which a port can be wrong has a line here. Read the tests of whole files in `super` first.

use super::{told, with_port};

#[test]
fn wrong_ports() {
    // port, key behind guests.g.ports, what the message or its help says
    let table: &[(&str, &str, &str)] = &[
        ("{ }", "[0]", "`network` is missing"),
        ("7", "[0]", "a table is needed"),
        ("{ network = \"lam\" }", "[0].network", "the nearest network is `lan`"),
        ("{ network = \"lan\", name = \"a//b\" }", "[0].name", "not a name of a port"),
        (
            "{ network = \"lan\", name = \"g/1\" }, { network = \"lan\" }",
            "[1]",
            "g/1 is taken by guests.g.ports[0] (first in line 4)",
        ),
        ("{ network = \"lan\", mac = \"02:00:00:00:00\" }", "[0].mac", "not a MAC address"),
        ("{ network = \"lan\", mac = \"01:00:00:00:00:00\" }", "[0].mac", "unicast"),
        ("{ network = \"lan\", mac = \"00:00:00:00:00:00\" }", "[0].mac", "all zero"),
        (
            "{ network = \"lan\", mac = \"02:00:00:00:00:01\" }, { network = \"lan\", mac = \"02-00-00-00-00-01\" }",
            "[1].mac",
            "taken by port g/0",
        ),
        ("{ network = \"lan\", addresses = [\"10.0.0.300\"] }", "[0].addresses[0]", "not an IP address"),
        ("{ network = \"lan\", addresses = [\"10.0.0.3\", \"10.0.0.3\"] }", "[0].addresses[1]", "listed twice"),
        ("{ network = \"lan\", addresses = [\"224.0.0.1\"] }", "[0].addresses[0]", "unicast"),
        ("{ network = \"lan\", attach = \"vhost\" }", "[0].attach", "nearest is \"vhost-user\""),
        ("{ network = \"lan\", attach = \"tap\" }", "[0]", "`tap` is missing"),
        ("{ network = \"lan\", attach = \"tap\", tap = \"a/b\" }", "[0].tap", "not a name of an interface"),
        ("{ network = \"lan\", attach = \"tap\", tap = \"a\", socket = \"/x\" }", "[0].socket", "belongs to"),
        ("{ network = \"lan\", netns = \"a\" }", "[0].netns", "attach = \"tap\""),
        (
            "{ network = \"lan\", attach = \"tap\", tap = \"a\" }, { network = \"lan\", attach = \"tap\", tap = \"a\" }",
            "[1].tap",
            "the TAP a is taken by port g/0",
        ),
        ("{ network = \"lan\", socket = \"x.sock\" }", "[0].socket", "absolute path"),
        (
            "{ network = \"lan\", socket = \"/run/trunkline/./control.sock\" }",
            "[0].socket",
            "taken by the control socket",
        ),
        ("{ network = \"lan\", socket = \"/run/trunkline/lock\" }", "[0].socket", "lock of the run directory"),
        (
            "{ network = \"lan\", socket = \"/run/trunkline//g-1.sock\" }, { network = \"lan\" }",
            "[1]",
            "taken by port g/0",
        ),
        ("{ network = \"lan\", role = \"listen\" }", "[0].role", "\"server\", \"client\""),
        ("{ network = \"lan\", vlan = 0 }", "[0].vlan", "allowed are 1 to 4094"),
        ("{ network = \"lan\", vlan = 4095 }", "[0].vlan", "allowed are 1 to 4094"),
        ("{ network = \"lan\", vlan = 1, trunk = [2] }", "[0]", "exclude each other"),
        ("{ network = \"lan\", trunk = [] }", "[0].trunk", "at least one VLAN"),
        ("{ network = \"lan\", trunk = [2, 2] }", "[0].trunk[1]", "listed twice"),
        ("{ network = \"lan\", native = 2 }", "[0].native", "give `trunk` too"),
        ("{ network = \"lan\", vlan = 1, native = 2 }", "[0].native", "belongs to a trunk"),
        ("{ network = \"lan\", queues = 0 }", "[0].queues", "allowed are 1 to 128"),
        ("{ network = \"lan\", queues = 129 }", "[0].queues", "allowed are 1 to 128"),
        ("{ network = \"lan\", guard = true }", "[0].guard", "give the port's `mac` too"),
        ("{ network = \"lan\", isolated = 1 }", "[0].isolated", "true or false is needed"),
        ("{ network = \"lan\", fdb = \"02:00:00:00:00:01\" }", "[0].fdb", "an array is needed"),
        ("{ network = \"lan\", fdb = [\"03:00:00:00:00:01\"] }", "[0].fdb[0]", "group address"),
        ("{ network = \"lan\", fdb = [{ vlan = 1 }] }", "[0].fdb[0]", "`mac` is missing"),
        (
            "{ network = \"lan\", trunk = [2, 3], fdb = [\"02:00:00:00:00:01\"] }",
            "[0].fdb[0]",
            "{ mac = \"02:00:00:00:00:01\", vlan = ... }",
        ),
        (
            "{ network = \"lan\", vlan = 7, fdb = [{ mac = \"02:00:00:00:00:01\", vlan = 8 }] }",
            "[0].fdb[0].vlan",
            "does not carry VLAN 8; it is access 7",
        ),
        (
            "{ network = \"lan\", fdb = [{ mac = \"02:00:00:00:00:01\", vlan = 8 }] }",
            "[0].fdb[0].vlan",
            "it is untagged",
        ),
        (
            "{ network = \"lan\", fdb = [\"02:00:00:00:00:01\"] }, { network = \"lan\", fdb = [\"02-00-00-00-00-01\"] }",
            "[1].fdb[0]",
            "taken by port g/0",
        ),
        (
            "{ network = \"lan\", fdb = [\"02:00:00:00:00:01\"] }, { network = \"lan\", mac = \"02:00:00:00:00:01\" }",
            "[0].fdb[0]",
            "declared `mac` of port g/1",
        ),
        ("{ network = \"lan\", rate = { in = \"fast\" } }", "[0].rate.in", "write a number above 0"),
        ("{ network = \"lan\", rate = { } }", "[0].rate", "give one or both"),
        (
            "{ network = \"lan\", rate = { in = \"100Mbit\", out = \"1Gbit\" } }",
            "[0].rate",
            "a rate limit is not available",
        ),
        (
            "{ network = \"lan\", attach = \"stream\", socket = \"/run/y.sock\" }",
            "[0].attach",
            "\"stream\" is not available",
        ),
    ];
    for (port, key, what) in table {
        let wrong = told(&with_port(port));
        let said = format!("{} {}", wrong.message, wrong.help.as_deref().unwrap_or_default());
        assert_eq!((wrong.line, wrong.key), (4, format!("guests.g.ports{key}")), "{port}\n{said}");
        assert!(said.contains(what), "{port}\n{said}\nshould say: {what}");
    }
}
