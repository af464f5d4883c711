//! Stations come, move and go; and several hosts that tell each other everything agree about them.

use std::collections::{BTreeMap, VecDeque};

use proptest::prelude::*;

use super::*;

fn vni(n: u32) -> Vni {
    Vni::new(n).unwrap()
}

fn host(n: u8) -> IpAddr {
    [192, 0, 2, n].into()
}

fn mac(n: u8) -> Mac {
    Mac::new([2, 0, 0, 0, 0, n])
}

fn at(seconds: u64) -> Instant {
    Instant::START + Duration::from_secs(seconds)
}

fn evpn(n: u8) -> Evpn {
    let mut evpn = Evpn::new(host(n), &[(vni(100), 1), (vni(200), 2)], Most::default());
    evpn.set_router(Ipv4Addr::new(192, 0, 2, n));
    evpn
}

fn theirs(of: u8, station: u8, sequence: u32) -> Route {
    let rd = Rd::Address(Ipv4Addr::new(192, 0, 2, of), 1);
    let prefix = Prefix::Station { rd, tag: 0, mac: mac(station), ip: None };
    Route { prefix, vni: vni(100), next_hop: host(of), mobility: Mobility { sequence, sticky: false } }
}

fn sequences(actions: &[Action]) -> Vec<u32> {
    let announced = actions.iter().filter_map(|action| match action {
        Action::Announce(route) => Some(route.mobility.sequence),
        _ => None,
    });
    announced.collect()
}

#[test]
fn a_station_is_announced_with_its_addresses_and_withdrawn_when_its_port_goes_down() {
    let mut evpn = evpn(1);
    evpn.heard(vni(100), mac(1), 7, at(1));
    evpn.addressed(vni(100), mac(1), host(77));
    evpn.addressed(vni(100), mac(1), host(77));
    evpn.addressed(vni(100), mac(2), host(78));
    let actions = evpn.take();
    assert_eq!(actions.len(), 2, "each once, and no address of a station that was not heard: {actions:?}");
    assert_eq!(evpn.own().len(), 4, "two endpoints, the station, and the station with its address");
    evpn.heard(vni(100), mac(2), 7, at(1));
    evpn.addressed(vni(100), mac(2), host(77));
    let actions = evpn.take();
    assert!(
        matches!(
            actions[..],
            [Action::Announce(_), Action::Withdraw(Prefix::Station { ip: Some(_), .. }), Action::Announce(_)]
        ),
        "{actions:?}"
    );
    evpn.down(7, at(2));
    let gone = evpn.take().into_iter().filter(|action| matches!(action, Action::Withdraw(_))).count();
    assert_eq!((gone, evpn.own().len()), (3, 2));
    evpn.heard(vni(300), mac(1), 7, at(3));
    assert_eq!(evpn.take(), [], "no network of ours");
}

#[test]
fn a_station_of_another_host_is_placed_after_its_endpoint_and_forgotten_before_it() {
    let mut evpn = evpn(1);
    let route = theirs(2, 1, 0);
    evpn.learn(&route, at(1));
    evpn.learn(&route, at(1));
    assert_eq!(evpn.take(), [Action::Join(vni(100), host(2)), Action::Place(vni(100), mac(1), host(2))]);
    let Prefix::Station { rd, tag, mac, .. } = route.prefix else { panic!() };
    let with = Route { prefix: Prefix::Station { rd, tag, mac, ip: Some(host(99)) }, ..route };
    evpn.learn(&with, at(1));
    assert_eq!(evpn.take(), [Action::PlaceNeighbour(vni(100), host(99), mac)]);
    evpn.forget(&route.prefix, at(2));
    assert_eq!(evpn.take(), [], "the other route says the same");
    evpn.forget(&with.prefix, at(2));
    let gone =
        [Action::Forget(vni(100), mac), Action::ForgetNeighbour(vni(100), host(99)), Action::Part(vni(100), host(2))];
    assert_eq!(evpn.take(), gone);
    assert_eq!((evpn.count(), evpn.remote), ((0, 0), 0));
}

#[test]
fn the_highest_number_has_a_station_and_on_a_tie_the_lowest_endpoint() {
    let mut evpn = evpn(3);
    evpn.learn(&theirs(5, 1, 0), at(1));
    evpn.learn(&theirs(4, 1, 0), at(1));
    assert_eq!(evpn.find(vni(100), mac(1)), Some(host(4)));
    evpn.learn(&theirs(5, 1, 1), at(2));
    assert_eq!(evpn.find(vni(100), mac(1)), Some(host(5)));
    evpn.take();
    evpn.heard(vni(100), mac(1), 7, at(3));
    assert_eq!(evpn.find(vni(100), mac(1)), Some(host(3)));
    assert_eq!(sequences(&evpn.take()), [2], "one more than the highest there was");
    evpn.learn(&theirs(5, 1, 2), at(4));
    assert_eq!((evpn.find(vni(100), mac(1)), evpn.take()), (Some(host(3)), vec![]), "ours is the lower address");
    evpn.learn(&theirs(5, 1, 3), at(5));
    let actions = evpn.take();
    assert!(matches!(actions[0], Action::Withdraw(_)), "{actions:?}");
    assert_eq!(actions[1..], [Action::ForgetLocal(vni(100), mac(1)), Action::Place(vni(100), mac(1), host(5))]);
}

#[test]
fn who_does_not_move_keeps_its_place() {
    let mut evpn = evpn(1);
    let mut route = theirs(2, 1, 0);
    route.mobility.sticky = true;
    evpn.learn(&route, at(1));
    evpn.take();
    evpn.heard(vni(100), mac(1), 7, at(2));
    assert_eq!(evpn.take(), [Action::Sticky(vni(100), mac(1), host(2))]);
    assert_eq!(evpn.find(vni(100), mac(1)), Some(host(2)));
    evpn.declared(vni(100), mac(2), 7, true, at(3));
    evpn.learn(&theirs(2, 2, 9), at(4));
    assert_eq!(evpn.find(vni(100), mac(2)), Some(host(1)));
    let own = evpn.own();
    assert!(own.iter().any(|route| route.mobility == Mobility { sequence: 0, sticky: true }), "{own:?}");
}

#[test]
fn a_station_that_flaps_is_held_where_it_is_and_let_go_later() {
    let mut evpn = evpn(1);
    evpn.heard(vni(100), mac(1), 7, at(0));
    for n in 0..20u32 {
        evpn.learn(&theirs(2, 1, n * 2 + 1), at(u64::from(n)));
        evpn.heard(vni(100), mac(1), 7, at(u64::from(n)));
    }
    let actions = evpn.take();
    assert_eq!(actions.iter().filter(|action| matches!(action, Action::Duplicate(..))).count(), 1);
    let moves = actions.iter().filter(|action| matches!(action, Action::Place(..) | Action::Forget(..))).count();
    assert_eq!(moves, MOVES);
    let held = evpn.find(vni(100), mac(1));
    evpn.tick(at(100));
    assert_eq!((evpn.find(vni(100), mac(1)), evpn.take()), (held, vec![]));
    evpn.tick(at(300));
    // Where it was heard meanwhile, it may have been taken for one of ours.
    let expected = [Action::ForgetLocal(vni(100), mac(1)), Action::Place(vni(100), mac(1), held.unwrap())];
    assert_eq!(evpn.take(), expected, "what is heard now counts again");
    evpn.heard(vni(100), mac(1), 7, at(301));
    assert_eq!(evpn.find(vni(100), mac(1)), Some(host(1)));
}

#[test]
fn moves_that_take_their_time_are_no_flapping() {
    let mut evpn = evpn(1);
    for n in 0..20u32 {
        let now = at(u64::from(n) * 100);
        evpn.learn(&theirs(2, 1, n * 2 + 1), now);
        evpn.heard(vni(100), mac(1), 7, now + Duration::from_secs(50));
        evpn.tick(now);
    }
    assert!(!evpn.take().iter().any(|action| matches!(action, Action::Duplicate(..))));
}

#[test]
fn the_sweep_forgets_what_the_snapshot_does_not_have() {
    let mut evpn = evpn(1);
    (1..=4).for_each(|n| evpn.learn(&theirs(2, n, 0), at(1)));
    evpn.take();
    evpn.begin();
    evpn.learn(&theirs(2, 2, 0), at(2));
    evpn.learn(&theirs(2, 5, 0), at(2));
    assert_eq!(evpn.take(), [Action::Place(vni(100), mac(5), host(2))], "what stays is not touched");
    assert_eq!((evpn.sweep(at(3)), evpn.located(vni(100))), (3, (2, 0)));
}

#[test]
fn the_present_replace_those_that_were_heard_and_leave_the_declared() {
    let mut evpn = evpn(1);
    evpn.declared(vni(100), mac(1), 5, false, at(1));
    evpn.heard(vni(100), mac(1), 5, at(1));
    evpn.heard(vni(100), mac(2), 6, at(1));
    evpn.present(&[(vni(100), mac(3), 6)], at(2));
    let places = [1, 2, 3].map(|n| evpn.find(vni(100), mac(n)));
    assert_eq!(places, [Some(host(1)), None, Some(host(1))]);
}

#[test]
fn an_endpoint_that_sends_too_much_loses_its_own() {
    let mut evpn = Evpn::new(host(1), &[(vni(100), 1)], Most { routes: 16, stations: 64 });
    (0..60).for_each(|n| evpn.learn(&theirs(2, n, 0), at(1)));
    (100..104).for_each(|n| evpn.learn(&theirs(3, n, 0), at(1)));
    assert_eq!(evpn.count(), (12, 52), "half of all, and room for another");
    assert_eq!(evpn.find(vni(100), mac(103)), Some(host(3)));
    let mut few = Evpn::new(host(1), &[(vni(100), 1)], Most { routes: 99, stations: 2 });
    (0..5).for_each(|n| few.heard(vni(100), mac(n), 1, at(1)));
    assert_eq!(few.located(vni(100)), (0, 2));
}

#[test]
fn the_room_for_stations_is_shared_and_that_of_this_host_is_its_own() {
    let mut evpn = Evpn::new(host(1), &[(vni(100), 1)], Most { routes: 1000, stations: 8 });
    (0..60).for_each(|n| evpn.learn(&theirs(2, n, 0), at(1)));
    (100..102).for_each(|n| evpn.learn(&theirs(3, n, 0), at(1)));
    (200..205).for_each(|n| evpn.heard(vni(100), mac(n), 7, at(1)));
    assert_eq!((evpn.located(vni(100)), evpn.count().0), ((6, 5), 6), "half of all, and room for others");
    assert_eq!(evpn.find(vni(100), mac(101)), Some(host(3)));
}

#[test]
fn what_is_refused_leaves_nothing_behind() {
    let mut evpn = Evpn::new(host(1), &[(vni(100), 1)], Most { routes: 4, stations: 4 });
    for n in 2..200 {
        let rd = Rd::Address(Ipv4Addr::new(192, 0, 2, n), 1);
        let prefix = Prefix::Endpoint { rd, tag: 0, origin: host(n) };
        evpn.learn(&Route { prefix, vni: vni(100), next_hop: host(n), mobility: Mobility::default() }, at(1));
    }
    assert_eq!((evpn.count(), evpn.held.len()), ((4, 194), 4));
}

#[test]
fn one_station_has_not_more_routes_than_can_be_looked_at() {
    let mut evpn = evpn(1);
    let Route { prefix: Prefix::Station { rd, tag, mac, .. }, vni, next_hop, mobility } = theirs(2, 1, 0) else {
        panic!()
    };
    for n in 0..1000u32 {
        let prefix = Prefix::Station { rd, tag, mac, ip: Some(Ipv4Addr::from(n).into()) };
        evpn.learn(&Route { prefix, vni, next_hop, mobility }, at(1));
    }
    assert_eq!(evpn.count(), (CANDIDATES, 1000 - CANDIDATES as u64));
    evpn.learn(&theirs(2, 2, 0), at(1));
    assert_eq!(evpn.find(vni, self::mac(2)), Some(host(2)), "others have their room");
}

#[test]
fn one_that_is_held_is_told_once_however_often_its_place_is_withdrawn() {
    let mut evpn = evpn(1);
    for n in 0..500u32 {
        let of = 2 + (n % 2) as u8;
        evpn.learn(&theirs(of, 1, n), at(1));
        evpn.forget(&theirs(5 - of, 1, 0).prefix, at(1));
    }
    let told = evpn.take().into_iter().filter(|action| matches!(action, Action::Duplicate(..)));
    assert_eq!(told.count(), 1);
    assert!(evpn.networks[&vni(100)].stations[&mac(1)].moves.len() <= MOVES);
    (2..4).for_each(|of| evpn.forget(&theirs(of, 1, 0).prefix, at(1)));
    assert_eq!((evpn.networks[&vni(100)].stations.len(), evpn.restless.len()), (0, 0), "nobody says anything of it");
}

#[test]
fn one_that_spoke_here_all_the_while_counts_when_nobody_else_has_it_any_more() {
    let mut evpn = evpn(1);
    let mut route = theirs(2, 1, 0);
    route.mobility.sticky = true;
    evpn.learn(&route, at(1));
    evpn.heard(vni(100), mac(1), 7, at(2));
    evpn.take();
    evpn.forget(&route.prefix, at(3));
    let gone =
        [Action::Forget(vni(100), mac(1)), Action::ForgetLocal(vni(100), mac(1)), Action::Part(vni(100), host(2))];
    assert_eq!(evpn.take(), gone, "it is news when it speaks");
    evpn.heard(vni(100), mac(1), 7, at(4));
    assert_eq!(evpn.find(vni(100), mac(1)), Some(host(1)));
    // One that the file names need not speak.
    evpn.declared(vni(100), mac(2), 7, false, at(5));
    evpn.learn(&theirs(2, 2, 1), at(6));
    assert_eq!(evpn.find(vni(100), mac(2)), Some(host(2)));
    evpn.forget(&theirs(2, 2, 1).prefix, at(7));
    assert_eq!(evpn.find(vni(100), mac(2)), Some(host(1)));
    evpn.down(7, at(8));
    assert_eq!(evpn.find(vni(100), mac(2)), None);
}

#[test]
fn one_that_is_held_where_nobody_has_it_any_more_is_let_go() {
    let mut evpn = evpn(1);
    for n in 0..20u32 {
        evpn.heard(vni(100), mac(1), 7, at(1));
        evpn.learn(&theirs(2, 1, n * 2 + 1), at(1));
    }
    assert_eq!(evpn.find(vni(100), mac(1)), Some(host(2)));
    evpn.heard(vni(100), mac(1), 7, at(2));
    evpn.forget(&theirs(2, 1, 0).prefix, at(3));
    evpn.heard(vni(100), mac(1), 7, at(4));
    assert_eq!(evpn.find(vni(100), mac(1)), Some(host(1)));
}

/// What a tunnel makes of the actions.
#[derive(Default)]
struct Tunnel {
    joined: HashSet<(Vni, IpAddr)>,
    placed: BTreeMap<(Vni, Mac), IpAddr>,
    neighbours: BTreeMap<(Vni, IpAddr), Mac>,
}

/// A host, what it has said that others have not heard yet, and when it is.
struct Host {
    evpn: Evpn,
    tunnel: Tunnel,
    outbox: [VecDeque<Action>; 3],
}

impl Host {
    fn carry_out(&mut self) {
        for action in self.evpn.take() {
            let tunnel = &mut self.tunnel;
            match action {
                Action::Announce(_) | Action::Withdraw(_) => {
                    self.outbox.iter_mut().for_each(|to| to.push_back(action.clone()));
                }
                Action::Join(vni, host) => assert!(tunnel.joined.insert((vni, host))),
                Action::Part(vni, host) => {
                    assert!(tunnel.joined.remove(&(vni, host)));
                    assert!(!tunnel.placed.iter().any(|((of, _), at)| *of == vni && *at == host), "stations first");
                }
                Action::Place(vni, mac, host) => {
                    assert!(tunnel.joined.contains(&(vni, host)), "the endpoint first");
                    tunnel.placed.insert((vni, mac), host);
                }
                Action::Forget(vni, mac) => assert!(tunnel.placed.remove(&(vni, mac)).is_some()),
                Action::PlaceNeighbour(vni, ip, mac) => _ = tunnel.neighbours.insert((vni, ip), mac),
                Action::ForgetNeighbour(vni, ip) => assert!(tunnel.neighbours.remove(&(vni, ip)).is_some()),
                Action::ForgetLocal(..) | Action::Duplicate(..) | Action::Sticky(..) => {}
            }
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Heard(usize, u8),
    Addressed(usize, u8, u8),
    Down(usize, u8),
    Hear(usize, usize, usize),
    Wait(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..3usize, 0..4u8).prop_map(|(host, station)| Step::Heard(host, station)),
        3 => (0..3usize, 0..4u8, 0..4u8).prop_map(|(host, station, ip)| Step::Addressed(host, station, ip)),
        2 => (0..3usize, 0..4u8).prop_map(|(host, station)| Step::Down(host, station)),
        9 => (0..3usize, 0..3usize, 1..4usize).prop_map(|(from, to, count)| Step::Hear(from, to, count)),
        2 => (1..90u64).prop_map(Step::Wait),
    ]
}

fn hear(hosts: &mut [Host; 3], from: usize, to: usize, count: usize, now: Instant) {
    for _ in 0..count {
        let Some(action) = hosts[from].outbox[to].pop_front() else { break };
        if from != to {
            match action {
                Action::Announce(route) => hosts[to].evpn.learn(&route, now),
                Action::Withdraw(prefix) => hosts[to].evpn.forget(&prefix, now),
                _ => unreachable!(),
            }
            hosts[to].carry_out();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    /// Whatever happens in whatever order, once all is said and heard all hosts agree, and their tunnels are as they decided.
    #[test]
    fn hosts_agree(steps in prop::collection::vec(step(), 0..200)) {
        let mut hosts = [1, 2, 3].map(|n| Host { evpn: evpn(n), tunnel: Tunnel::default(), outbox: Default::default() });
        let mut seconds = 0;
        for step in steps {
            let now = at(seconds);
            match step {
                Step::Heard(host, station) => hosts[host].evpn.heard(vni(100), mac(station), station.into(), now),
                Step::Addressed(host, station, ip) => hosts[host].evpn.addressed(vni(100), mac(station), self::host(50 + ip)),
                Step::Down(host, station) => hosts[host].evpn.down(station.into(), now),
                Step::Hear(from, to, count) => hear(&mut hosts, from, to, count, now),
                Step::Wait(more) => {
                    seconds += more;
                    hosts.iter_mut().for_each(|host| host.evpn.tick(at(seconds)));
                }
            }
            hosts.iter_mut().for_each(Host::carry_out);
        }
        for _ in 0..4 {
            seconds += 400;
            hosts.iter_mut().for_each(|host| host.evpn.tick(at(seconds)));
            hosts.iter_mut().for_each(Host::carry_out);
            while hosts.iter().any(|host| host.outbox.iter().any(|to| !to.is_empty())) {
                for from in 0..3 {
                    (0..3).for_each(|to| hear(&mut hosts, from, to, usize::MAX, at(seconds)));
                }
            }
        }
        for station in 0..4 {
            let places = hosts.iter().map(|host| host.evpn.find(vni(100), mac(station))).collect::<Vec<_>>();
            prop_assert!(places.iter().all(|place| *place == places[0]), "station {station}: {places:?}");
        }
        for (n, host) in hosts.iter().enumerate() {
            for station in 0..4 {
                let elsewhere = host.evpn.find(vni(100), mac(station)).filter(|at| *at != self::host(n as u8 + 1));
                prop_assert_eq!(host.tunnel.placed.get(&(vni(100), mac(station))).copied(), elsewhere);
            }
            for ((vni, _), mac) in &host.tunnel.neighbours {
                prop_assert!(host.tunnel.placed.contains_key(&(*vni, *mac)), "an address of nobody");
            }
            prop_assert_eq!(host.evpn.routes.len(), host.evpn.held.values().sum::<usize>());
            let all = || host.evpn.networks.values().flat_map(|network| network.stations.values());
            prop_assert_eq!(host.evpn.remote, all().filter(|station| !station.remote.is_empty()).count());
            prop_assert_eq!(host.evpn.local_stations, all().filter(|station| station.local.is_some()).count());
        }
    }
}
