//! What an endpoint takes, learns and refuses, in virtual time.

use std::{sync::Arc, time::Duration};

use super::*;

mod suppress;

const LOCAL: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(198, 51, 100, 1));
const A: Mac = Mac::new([2, 0, 0, 0, 0, 0xa]);
const B: Mac = Mac::new([2, 0, 0, 0, 0, 0xb]);

fn peer(n: u8) -> IpAddr {
    [198, 51, 100, n].into()
}

fn vni(number: u32) -> Vni {
    Vni::new(number).unwrap()
}

fn network(number: u32, peers: &[u8]) -> NetworkConfig {
    let peers = peers.iter().map(|n| peer(*n)).collect();
    NetworkConfig { vni: vni(number), peers, group: None, learning: true, anyone: false, suppress: false }
}

fn config(networks: Vec<NetworkConfig>) -> VtepConfig {
    VtepConfig {
        local: LOCAL,
        port: 4789,
        encapsulation: Encapsulation::Vxlan,
        sealed: false,
        networks,
        mtu: 1500,
        stations: 64,
        ageing: Duration::from_secs(300),
        seed: 7,
    }
}

fn at(seconds: u64) -> Instant {
    Instant::START + Duration::from_secs(seconds)
}

/// A packet behind the UDP header: the header of a network and a frame.
fn packet(number: u32, from: Mac, rest: &[u8]) -> Vec<u8> {
    [&Encapsulation::Vxlan.header(vni(number))[..], &[0xff; 6], &from.bytes(), rest].concat()
}

/// Takes a packet as the port does; the endpoint that it was heard from.
fn take(vtep: &mut Vtep, from: IpAddr, packet: &[u8], now: Instant) -> Result<NetworkId, DropReason> {
    let sender = vtep.sender(from);
    let inward = vtep.accept(sender, packet, packet.len())?;
    let source = packet[14..20].try_into().map(Mac::new).unwrap();
    vtep.hear(sender, inward.network, source.to_bits(), now)?;
    Ok(inward.network)
}

fn way(vtep: &Vtep, network: NetworkId, to: Mac, now: Instant) -> Result<Way, DropReason> {
    vtep.way(network, to.to_bits(), vtep.tick(now))
}

const IPV4: [u8; 2] = [0x08, 0x00];

#[test]
fn stations_are_learnt_behind_who_sent_and_found_there() {
    let mut vtep = Vtep::new(config(vec![network(5001, &[2, 3]), network(5002, &[3])])).unwrap();
    let (first, second) = (NetworkId(0), NetworkId(1));
    let two = vtep.remotes.find(peer(2)).unwrap();
    assert_eq!(way(&vtep, first, A, at(0)), Ok(Way::All), "nobody knows");
    assert_eq!(take(&mut vtep, peer(2), &packet(5001, A, &IPV4), at(1)), Ok(first));
    assert_eq!(way(&vtep, first, A, at(2)), Ok(Way::One(two)));
    assert_eq!(way(&vtep, second, A, at(2)), Ok(Way::All), "another network");
    assert_eq!(way(&vtep, first, Mac::BROADCAST, at(2)), Ok(Way::All));
    // It moves to another host.
    take(&mut vtep, peer(3), &packet(5001, A, &IPV4), at(3)).unwrap();
    assert_eq!(way(&vtep, first, A, at(4)), Ok(Way::One(vtep.remotes.find(peer(3)).unwrap())));
    assert_eq!(way(&vtep, first, A, at(400)), Ok(Way::All), "silent for too long");
    let entries: Vec<_> = vtep.stations(at(4)).collect();
    assert_eq!(entries.len(), 1);
    assert_eq!((entries[0].0, entries[0].1, entries[0].3), (first, A, false));
}

#[test]
fn what_is_not_for_us_is_refused_with_its_reason() {
    let mut vtep = Vtep::new(config(vec![network(5001, &[2])])).unwrap();
    let good = packet(5001, A, &IPV4);
    let mut flags = good.clone();
    flags[0] = 0x0c;
    let mut loops = packet(5001, A, &[0; 60]);
    loops[20..22].copy_from_slice(&IPV4);
    loops[8 + 23] = 17;
    loops[8 + 30..8 + 34].copy_from_slice(&[198, 51, 100, 1]);
    loops[8 + 36..8 + 38].copy_from_slice(&4789u16.to_be_bytes());
    for (from, bytes, reason) in [
        (peer(3), &good, DropReason::UnknownVtep),
        (peer(2), &packet(5002, A, &IPV4), DropReason::UnknownVni),
        (peer(2), &flags, DropReason::BadTunnel),
        (peer(2), &good[..7].to_vec(), DropReason::Runt),
        (peer(2), &good[..21].to_vec(), DropReason::Runt),
        (peer(2), &loops, DropReason::TunnelLoop),
    ] {
        let sender = vtep.sender(from);
        assert_eq!(vtep.accept(sender, bytes, bytes.len()), Err(reason), "{bytes:?}");
    }
    assert_eq!(take(&mut vtep, peer(2), &good, at(0)), Ok(NetworkId(0)));
    // Our own packets that a guest's network has brought back.
    let mut out = vec![0; 60];
    out[12..14].copy_from_slice(&IPV4);
    out[23] = 17;
    out[26..30].copy_from_slice(&[198, 51, 100, 1]);
    out[36..38].copy_from_slice(&4789u16.to_be_bytes());
    assert!(vtep.is_loop(&out));
    out[29] = 2;
    assert!(!vtep.is_loop(&out), "another's is carried");
}

#[test]
fn strangers_are_heard_only_where_anyone_is_and_take_nothing_from_peers() {
    let open = NetworkConfig { anyone: true, ..network(5001, &[2]) };
    let mut vtep = Vtep::new(config(vec![open, network(5002, &[2])])).unwrap();
    take(&mut vtep, peer(2), &packet(5001, B, &IPV4), at(0)).unwrap();
    assert_eq!(take(&mut vtep, peer(9), &packet(5001, A, &IPV4), at(1)), Ok(NetworkId(0)));
    let nine = vtep.remotes.find(peer(9)).unwrap();
    assert_eq!(way(&vtep, NetworkId(0), A, at(2)), Ok(Way::One(nine)));
    assert_eq!(take(&mut vtep, peer(9), &packet(5002, A, &IPV4), at(1)), Err(DropReason::UnknownVtep));
    assert!(!vtep.flood(NetworkId(0)).contains(&nine), "it is not sent what is for everybody");
    // Stations that one endpoint invents push out its own.
    for n in 0..200u32 {
        let [_, _, a, b] = n.to_be_bytes();
        let invented = Mac::new([2, 9, 9, 9, a, b]);
        take(&mut vtep, peer(9), &packet(5001, invented, &IPV4), at(2)).unwrap();
    }
    assert_eq!(way(&vtep, NetworkId(0), B, at(3)), Ok(Way::One(vtep.remotes.find(peer(2)).unwrap())));
    // Strangers are bounded; those that gave way are forgotten with their stations.
    for n in 0..2000u32 {
        let [_, _, a, b] = n.to_be_bytes();
        let stranger = IpAddr::from([203, 0, a, b]);
        take(&mut vtep, stranger, &packet(5001, A, &IPV4), at(10 + u64::from(n))).unwrap();
    }
    assert_eq!(vtep.remotes.len(), 1 + HEARD_ONLY);
    assert_eq!(vtep.remotes.find(peer(9)), None);
    assert!(vtep.stations(at(2000)).all(|(_, mac, _, _)| mac == A || mac == B));
}

#[test]
fn a_stranger_that_is_silent_for_too_long_is_forgotten_with_what_is_behind_it() {
    let mut vtep = Vtep::new(config(vec![NetworkConfig { anyone: true, ..network(5001, &[2]) }])).unwrap();
    take(&mut vtep, peer(2), &packet(5001, B, &IPV4), at(1)).unwrap();
    take(&mut vtep, peer(9), &packet(5001, A, &IPV4), at(1)).unwrap();
    let stranger = vtep.remotes.find(peer(9)).unwrap();
    vtep.sweep(at(300), 9);
    assert_eq!(vtep.remotes.find(peer(9)), Some(stranger), "not yet");
    // Who goes on to speak stays.
    take(&mut vtep, peer(9), &packet(5001, A, &IPV4), at(300)).unwrap();
    vtep.sweep(at(302), 9);
    assert_eq!(vtep.remotes.find(peer(9)), Some(stranger));
    vtep.sweep(at(601), 0);
    assert_eq!((vtep.remotes.find(peer(9)), vtep.remotes.len()), (None, 1), "a peer that is silent stays");
    assert!(vtep.stations(at(301)).all(|(_, _, behind, _)| behind != stranger), "its stations went with it");
    // Its number is another's now, and nothing of what was behind it is the other's.
    take(&mut vtep, peer(8), &packet(5001, Mac::new([2, 0, 0, 0, 0, 0xc]), &IPV4), at(602)).unwrap();
    assert_eq!((vtep.remotes.find(peer(8)), way(&vtep, NetworkId(0), A, at(602))), (Some(stranger), Ok(Way::All)));
}

#[test]
fn control_places_stations_that_nothing_moves() {
    let quiet = NetworkConfig { learning: false, ..network(5001, &[2, 3]) };
    let mut vtep = Vtep::new(config(vec![quiet])).unwrap();
    take(&mut vtep, peer(2), &packet(5001, A, &IPV4), at(0)).unwrap();
    assert_eq!(way(&vtep, NetworkId(0), A, at(0)), Ok(Way::All), "nothing is learnt");
    let three = vtep.remotes.find(peer(3)).unwrap();
    vtep.place(NetworkId(0), A, three).unwrap();
    take(&mut vtep, peer(2), &packet(5001, A, &IPV4), at(0)).unwrap();
    assert_eq!(way(&vtep, NetworkId(0), A, at(100_000)), Ok(Way::One(three)));
    assert!(vtep.forget(NetworkId(0), A) && !vtep.forget(NetworkId(0), A));
    assert_eq!(way(&vtep, NetworkId(0), A, at(0)), Ok(Way::All));
}

#[test]
fn networks_and_peers_come_and_go() {
    let mut vtep = Vtep::new(config(vec![network(5001, &[2])])).unwrap();
    assert_eq!(vtep.add(&network(5001, &[3])), Err(VtepError::Twice(vni(5001))));
    assert_eq!(vtep.add(&network(5002, &[1])), Err(VtepError::Ourselves(LOCAL)));
    let v6 = NetworkConfig { peers: ["fd99::2".parse().unwrap()].into(), ..network(5002, &[]) };
    assert!(matches!(vtep.add(&v6), Err(VtepError::Family { .. })));
    let group = NetworkConfig { peers: [[239, 1, 1, 1].into()].into(), ..network(5002, &[]) };
    assert!(matches!(vtep.add(&group), Err(VtepError::Address(_))));
    assert_eq!(vtep.remotes.len(), 1, "nothing has changed");
    let second = vtep.add(&network(5002, &[2, 3, 3])).unwrap();
    assert_eq!((vtep.flood(second).len(), vtep.remotes.len()), (2, 2));
    vtep.join(second, peer(4), 1400).unwrap();
    vtep.join(second, peer(4), 1400).unwrap();
    assert_eq!(vtep.flood(second).len(), 3);
    take(&mut vtep, peer(4), &packet(5002, A, &IPV4), at(0)).unwrap();
    vtep.part(second, peer(4));
    assert_eq!((vtep.flood(second).len(), vtep.remotes.find(peer(4))), (2, None));
    assert_eq!(way(&vtep, second, A, at(0)), Ok(Way::All), "who was behind it is known no more");
    vtep.remove(second);
    assert_eq!(take(&mut vtep, peer(2), &packet(5002, A, &IPV4), at(0)), Err(DropReason::UnknownVni));
    assert_eq!(vtep.remotes.len(), 1);
    assert_eq!(vtep.add(&network(5002, &[])), Ok(second), "its place is free");
    assert_eq!(way(&vtep, second, A, at(0)), Err(DropReason::NoDestination));
}

#[test]
fn the_path_says_what_fits() {
    let mut vtep = Vtep::new(config(vec![network(5001, &[2, 3])])).unwrap();
    let (two, all) = (vtep.remotes.find(peer(2)).unwrap(), Way::All);
    assert_eq!((vtep.fits(NetworkId(0), Way::One(two)), vtep.fits(NetworkId(0), all)), (1450, 1450));
    vtep.remotes.get_mut(two).unwrap().mtu = 1400;
    assert_eq!((vtep.fits(NetworkId(0), Way::One(two)), vtep.fits(NetworkId(0), all)), (1350, 1350));
    let v6 = VtepConfig { local: "fd99::1".parse().unwrap(), ..config(Vec::new()) };
    let mut vtep = Vtep::new(v6).unwrap();
    let peers = vec!["fd99::2".parse().unwrap()];
    let id = vtep.add(&NetworkConfig { peers: peers.into(), ..network(1, &[]) }).unwrap();
    assert_eq!(vtep.fits(id, Way::All), 1430);
}

#[test]
fn ten_thousand_networks_over_a_thousand_peers_are_told_apart() {
    let peers: Arc<[IpAddr]> = (0..1000u16).map(|n| [10, 9, (n >> 8) as u8, n as u8].into()).collect();
    let networks = (0..10_000)
        .map(|n| NetworkConfig {
            vni: vni(n * 1000 + 1),
            peers: peers.clone(),
            learning: true,
            group: None,
            anyone: false,
            suppress: false,
        })
        .collect();
    let mut vtep = Vtep::new(config(networks)).unwrap();
    assert_eq!(vtep.remotes.len(), 1000);
    for n in [0, 1, 4999, 9999] {
        let inner = packet(n * 1000 + 1, A, &IPV4);
        assert_eq!(take(&mut vtep, peers[n as usize % 1000], &inner, at(0)), Ok(NetworkId(n as u16)));
        assert_eq!(vtep.flood(NetworkId(n as u16)).len(), 1000);
    }
    assert_eq!(take(&mut vtep, peers[0], &packet(1000, A, &IPV4), at(0)), Err(DropReason::UnknownVni));
}

#[test]
fn a_station_that_two_endpoints_send_in_turn_is_held_and_named() {
    let mut vtep = Vtep::new(config(vec![network(5001, &[2, 3])])).unwrap();
    let frame = packet(5001, A, &IPV4);
    for n in 0..100 {
        let came = take(&mut vtep, peer(2 + n % 2), &frame, at(5));
        let copy = n > 11 && n % 2 == 1;
        assert_eq!(came.is_err(), copy, "packet {n}");
    }
    assert_eq!(take(&mut vtep, peer(3), &frame, at(5)), Err(DropReason::Flapping));
    assert_eq!(way(&vtep, NetworkId(0), A, at(5)), Ok(Way::One(vtep.remotes.find(peer(2)).unwrap())));
    let told = vtep.flapping(at(6));
    assert_eq!((told.len(), told[0].mac, told[0].between, told[0].held), (1, A, [peer(2), peer(3)], 59));
    assert_eq!(take(&mut vtep, peer(3), &frame, at(70)), Ok(NetworkId(0)));
}
