//! Names of guests, of the host, and those that stay here.

use super::*;

fn addresses(message: &Message) -> Vec<String> {
    assert_eq!(code(message), ResponseCode::NoError, "{message:?}");
    message.answers.iter().filter_map(|record| record.data.ip_addr()).map(|address| address.to_string()).collect()
}

fn lease(name: &str, address: &str) -> LeasedName {
    let address: std::net::IpAddr = address.parse().unwrap();
    let last = match address {
        std::net::IpAddr::V4(address) => address.octets()[3],
        std::net::IpAddr::V6(address) => address.octets()[15],
    };
    LeasedName { name: name.into(), address, holder: wire::Mac::new([2, 0, 0, 0, 0, last]), declared: false }
}

#[test]
fn guests_are_found_in_the_domain_and_bare_whatever_the_case() {
    let mut net = Net::new();
    let lan = client(LAN, 1);
    for name in ["web.lan.test.", "WEB.Lan.Test.", "web.", "wEb."] {
        let v4 = net.at_once(lan, &query(name, RecordType::A));
        assert_eq!(addresses(&v4), ["10.0.0.10"], "{name}");
        assert!(v4.metadata.authoritative && v4.answers[0].ttl <= 60);
        assert_eq!(v4.answers[0].name.to_ascii(), name, "as it was written");
        assert_eq!(addresses(&net.at_once(lan, &query(name, RecordType::AAAA))), ["fd00::10"]);
        assert_eq!(addresses(&net.at_once(lan, &query(name, RecordType::ANY))).len(), 2);
    }
}

#[test]
fn nothing_of_a_type_is_not_no_such_name() {
    let mut net = Net::new();
    let lan = client(LAN, 1);
    for (name, kind) in [
        ("db.lan.test.", RecordType::AAAA),
        ("db.", RecordType::AAAA),
        ("web.lan.test.", RecordType::TXT),
        ("mute.lan.test.", RecordType::A),
        ("lan.test.", RecordType::A),
        ("host.internal.", RecordType::HTTPS),
        ("0.10.in-addr.arpa.", RecordType::PTR),
    ] {
        let answer = net.at_once(lan, &query(name, kind));
        assert_eq!((code(&answer), answer.answers.len()), (ResponseCode::NoError, 0), "{name}");
        assert_eq!(answer.authorities[0].record_type(), RecordType::SOA, "{name}: for how long");
    }
    for name in ["nobody.lan.test.", "a.web.lan.test."] {
        let answer = net.at_once(lan, &query(name, RecordType::A));
        assert_eq!((code(&answer), answer.answers.len()), (ResponseCode::NXDomain, 0), "{name}");
        assert_eq!(answer.authorities[0].name.to_ascii(), "lan.test.");
    }
    let soa = net.at_once(lan, &query("lan.test.", RecordType::SOA));
    assert_eq!(soa.answers[0].record_type(), RecordType::SOA);
}

#[test]
fn addresses_have_names() {
    let mut net = Net::new();
    net.resolver.set_leases(NetworkId(LAN), &[lease("laptop", "10.0.0.20")]);
    let lan = client(LAN, 1);
    let v6 = format!("0.1.{}0.0.d.f.ip6.arpa.", "0.".repeat(26));
    for (name, is) in [
        ("10.0.0.10.in-addr.arpa.", "web.lan.test."),
        ("20.0.0.10.in-addr.arpa.", "laptop.lan.test."),
        ("1.0.0.10.in-addr.arpa.", "host.internal."),
        (v6.as_str(), "web.lan.test."),
    ] {
        let answer = net.at_once(lan, &query(name, RecordType::PTR));
        assert_eq!(answer.answers.len(), 1, "{name}: {answer:?}");
        assert_eq!(answer.answers[0].data.to_string(), is);
    }
    for name in ["99.0.0.10.in-addr.arpa.", "1.1.168.192.in-addr.arpa.", "1.0.1.10.in-addr.arpa."] {
        assert_eq!(code(&net.at_once(lan, &query(name, RecordType::PTR))), ResponseCode::NXDomain, "{name}");
    }
    net.forwarded(lan, &query("8.8.8.8.in-addr.arpa.", RecordType::PTR));
}

#[test]
fn the_host_has_a_name_where_it_may_be_reached() {
    let mut net = Net::new();
    let answer = net.at_once(client(LAN, 1), &query("host.internal.", RecordType::A));
    assert_eq!(addresses(&answer), ["10.0.0.1"]);
    let answer = net.at_once(client(LAN, 1), &query("HOST.internal.", RecordType::AAAA));
    assert_eq!(addresses(&answer), ["fd00::1"]);
    let answer = net.at_once(client(DMZ, 1), &query("host.internal.", RecordType::A));
    assert_eq!(code(&answer), ResponseCode::NXDomain);
}

#[test]
fn names_of_a_network_are_not_told_to_another_unless_it_is_routed() {
    let mut net = Net::new();
    net.resolver.set_leases(NetworkId(DMZ), &[lease("mail", "10.1.0.5")]);
    net.forwarded(client(DMZ, 1), &query("web.lan.test.", RecordType::A));
    net.forwarded(client(DMZ, 1), &query("web.", RecordType::A));
    let reverse = net.at_once(client(DMZ, 1), &query("10.0.0.10.in-addr.arpa.", RecordType::PTR));
    assert_eq!(code(&reverse), ResponseCode::NXDomain);

    let seeing = NetworkNames { sees: vec![NetworkId(1)], domain: Some("lan.test".into()), ..NetworkNames::default() };
    let seen = NetworkNames {
        domain: Some("dmz.test".into()),
        subnets: vec![("10.1.0.0".parse().unwrap(), 16)],
        ..NetworkNames::default()
    };
    net.resolver = Resolver::new(vec![seeing, seen], Limits::default());
    net.resolver.set_leases(NetworkId(DMZ), &[lease("mail", "10.1.0.5")]);
    for name in ["mail.dmz.test.", "mail."] {
        assert_eq!(addresses(&net.at_once(client(LAN, 1), &query(name, RecordType::A))), ["10.1.0.5"]);
    }
    let reverse = net.at_once(client(LAN, 1), &query("5.0.1.10.in-addr.arpa.", RecordType::PTR));
    assert_eq!(reverse.answers[0].data.to_string(), "mail.dmz.test.");
}

#[test]
fn segments_of_one_domain_tell_the_names_of_all() {
    let mut net = Net::new();
    let segment = |other: u16, fixed: (&str, &str), elsewhere: &str| NetworkNames {
        domain: Some("lan.test".into()),
        subnets: vec![(fixed.1.parse().unwrap(), 16)],
        fixed: vec![(fixed.0.into(), vec![fixed.1.parse().unwrap()]), ("trunk".into(), Vec::new())],
        elsewhere: vec![elsewhere.into()],
        sees: vec![NetworkId(other)],
        ..NetworkNames::default()
    };
    let segments = vec![segment(DMZ, ("web", "10.0.0.10"), "db"), segment(LAN, ("db", "10.1.0.7"), "web")];
    net.resolver = Resolver::new(segments, Limits::default());
    let of =
        |net: &mut Net, from: u16, name: &str| addresses(&net.at_once(client(from, 1), &query(name, RecordType::A)));
    for from in [LAN, DMZ] {
        for (name, is) in [("web", "10.0.0.10"), ("db", "10.1.0.7")] {
            assert_eq!(of(&mut net, from, &format!("{name}.lan.test.")), [is], "{name} from {from}");
            assert_eq!(of(&mut net, from, &format!("{name}.")), [is], "{name} from {from}");
        }
        let answer = net.at_once(client(from, 1), &query("nobody.lan.test.", RecordType::A));
        assert_eq!(code(&answer), ResponseCode::NXDomain);
        let reverse = net.at_once(client(from, 1), &query("7.0.1.10.in-addr.arpa.", RecordType::PTR));
        assert_eq!(reverse.answers[0].data.to_string(), "db.lan.test.");
    }
    // A guest that is in both is found where it has an address.
    assert_eq!(of(&mut net, LAN, "trunk.lan.test."), Vec::<String>::new());
    let declared = LeasedName { declared: true, ..lease("trunk", "10.1.0.9") };
    net.resolver.set_leases(NetworkId(DMZ), &[lease("web", "10.1.0.66"), declared.clone()]);
    assert_eq!([of(&mut net, LAN, "trunk.lan.test."), of(&mut net, LAN, "trunk.")], [["10.1.0.9"], ["10.1.0.9"]]);
    // The nearest address is told; and what the configuration names in one segment, nobody in another names himself.
    net.resolver.set_leases(NetworkId(LAN), &[LeasedName { address: "10.0.0.9".parse().unwrap(), ..declared }]);
    assert_eq!(of(&mut net, LAN, "trunk.lan.test."), ["10.0.0.9"]);
    assert_eq!(of(&mut net, DMZ, "trunk.lan.test."), ["10.1.0.9"]);
    assert_eq!([of(&mut net, DMZ, "web.lan.test."), of(&mut net, DMZ, "web.")], [["10.0.0.10"], ["10.0.0.10"]]);
}

#[test]
fn a_guest_cannot_take_a_name_from_another() {
    let mut net = Net::new();
    let lan = client(LAN, 1);
    let of = |net: &mut Net, name: &str| addresses(&net.at_once(lan, &query(name, RecordType::A)));
    // Not from one that the configuration names, not from one that came first, wherever in the list.
    net.resolver.set_leases(NetworkId(LAN), &[lease("laptop", "10.0.0.20"), lease("web", "10.0.0.66")]);
    net.resolver.set_leases(NetworkId(LAN), &[lease("laptop", "10.0.0.66"), lease("laptop", "10.0.0.20")]);
    assert_eq!((of(&mut net, "web."), of(&mut net, "laptop.")), (vec!["10.0.0.10".into()], vec!["10.0.0.20".into()]));
    let reverse = net.at_once(lan, &query("66.0.0.10.in-addr.arpa.", RecordType::PTR));
    assert_eq!(code(&reverse), ResponseCode::NXDomain, "it has no name");
    // When the first one goes, the name is free.
    net.resolver.set_leases(NetworkId(LAN), &[lease("laptop", "10.0.0.66")]);
    assert_eq!(of(&mut net, "laptop."), ["10.0.0.66"]);
    // Names that others act on without asking.
    let claims = ["localhost", "wpad", "host", "a b", "", "x.y"].map(|name| lease(name, "10.0.0.66"));
    net.resolver.set_leases(NetworkId(LAN), &claims);
    assert_eq!(of(&mut net, "localhost."), ["127.0.0.1"]);
    assert_eq!(of(&mut net, "x."), ["10.0.0.66"], "the first label counts");
    net.forwarded(lan, &query("wpad.", RecordType::A));
    assert_eq!(of(&mut net, "host.internal."), ["10.0.0.1"]);
}

#[test]
fn special_names_stay_here() {
    let mut net = Net::new();
    let lan = client(LAN, 1);
    assert_eq!(addresses(&net.at_once(lan, &query("a.b.localhost.", RecordType::AAAA))), ["::1"]);
    for name in ["invalid.", "x.invalid.", "x.onion."] {
        assert_eq!(code(&net.at_once(lan, &query(name, RecordType::A))), ResponseCode::NXDomain);
    }
    net.forwarded(lan, &query("internal.", RecordType::NS));
    net.forwarded(lan, &query(".", RecordType::NS));
}

#[test]
fn a_name_of_the_configuration_without_an_address_is_nobodys_to_claim() {
    let mut net = Net::new();
    net.resolver.set_leases(NetworkId(LAN), &[lease("mute", "10.0.0.30")]);
    let answer = net.at_once(client(LAN, 1), &query("mute.", RecordType::A));
    // The name is the configuration's, which gives it no address: nobody may say that it is theirs.
    assert_eq!(addresses(&answer), Vec::<String>::new());
}

#[test]
fn a_guest_of_the_configuration_has_its_name_wherever_dhcp_puts_it() {
    let mut net = Net::new();
    let of = |net: &mut Net| addresses(&net.at_once(client(LAN, 1), &query("mute.", RecordType::A)));
    net.resolver.set_leases(NetworkId(LAN), &[lease("mute", "10.0.0.66")]);
    assert_eq!(of(&mut net), Vec::<String>::new());
    let declared = LeasedName { declared: true, ..lease("mute", "10.0.0.30") };
    net.resolver.set_leases(NetworkId(LAN), &[lease("mute", "10.0.0.66"), declared]);
    assert_eq!(of(&mut net), ["10.0.0.30"]);
}

#[test]
fn where_nothing_leads_out_queries_do_not_either() {
    let mut net = Net::new();
    net.resolver = Resolver::new(
        vec![NetworkNames { fixed: vec![("a".into(), vec!["10.0.0.2".parse().unwrap()])], ..NetworkNames::default() }],
        Limits::default(),
    );
    net.resolver.set_upstreams(&[server(1)]);
    assert_eq!(addresses(&net.at_once(client(LAN, 1), &query("a.", RecordType::A))), ["10.0.0.2"]);
    let refused = net.at_once(client(LAN, 1), &query("secret.tunnel.example.", RecordType::TXT));
    assert_eq!(code(&refused), ResponseCode::Refused);
}

#[test]
fn a_name_that_a_guest_gives_itself_is_no_more_than_its_addresses() {
    let mut net = Net::new();
    net.resolver.set_leases(NetworkId(LAN), &[lease("com", "10.0.0.66")]);
    let lan = client(LAN, 1);
    assert_eq!(addresses(&net.at_once(lan, &query("com.", RecordType::A))), ["10.0.0.66"]);
    assert_eq!(addresses(&net.at_once(lan, &query("com.", RecordType::ANY))), ["10.0.0.66"]);
    assert_eq!(addresses(&net.at_once(lan, &query("com.", RecordType::AAAA))), Vec::<String>::new());
    for kind in [RecordType::DS, RecordType::DNSKEY, RecordType::NS, RecordType::SOA] {
        net.forwarded(lan, &query("com.", kind));
    }
    // In the domain, and where the configuration gives the name, it is ours whole.
    for name in ["com.lan.test.", "db."] {
        let answer = net.at_once(lan, &query(name, RecordType::DS));
        assert_eq!((code(&answer), answer.answers.len()), (ResponseCode::NoError, 0), "{name}");
    }
}

#[test]
fn a_guest_has_its_name_at_all_addresses_of_its_own_and_at_no_others() {
    let mut net = Net::new();
    let six = |last: u8| LeasedName {
        address: format!("fd00::10{last:02x}").parse().unwrap(),
        ..lease("laptop", &format!("10.0.0.{last}"))
    };
    let all = [lease("laptop", "10.0.0.20"), six(20), lease("laptop", "10.0.0.66"), six(66)];
    net.resolver.set_leases(NetworkId(LAN), &all);
    let lan = client(LAN, 1);
    assert_eq!(addresses(&net.at_once(lan, &query("laptop.", RecordType::A))), ["10.0.0.20"]);
    assert_eq!(addresses(&net.at_once(lan, &query("laptop.", RecordType::AAAA))), ["fd00::1014"]);
    let reverse = net.at_once(lan, &query(&format!("4.1.0.1.{}0.0.d.f.ip6.arpa.", "0.".repeat(24)), RecordType::PTR));
    assert_eq!(reverse.answers[0].data.to_string(), "laptop.lan.test.");
}
