//! What is remembered of neighbours, and who loses what at the bound.

use super::*;

const ONE: NetworkId = NetworkId(0);
const TWO: NetworkId = NetworkId(1);
const AGEING: Duration = Duration::from_secs(300);

fn mac(n: u8) -> Mac {
    Mac::new([2, 0, 0, 0, 0, n])
}

fn v4(n: u32) -> IpAddr {
    IpAddr::from((0x0a00_0000 + n).to_be_bytes())
}

fn v6(n: u16) -> IpAddr {
    std::net::Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, n).into()
}

fn at(seconds: u64) -> Instant {
    Instant::START + Duration::from_secs(seconds)
}

fn local(n: u8, nic: u16) -> Neighbour {
    Neighbour::new(mac(n), Whence::Local(NicId(nic)))
}

fn remote(n: u8, id: u16) -> Neighbour {
    Neighbour::new(mac(n), Whence::Remote(RemoteId(id)))
}

fn table(capacity: usize) -> Neighbours {
    Neighbours::new(capacity, AGEING, 7)
}

#[test]
fn what_was_heard_is_known_in_its_network_until_it_is_too_old() {
    let mut all = table(64);
    all.hear(ONE, v4(1), remote(1, 3), at(10));
    all.hear(ONE, v6(1), remote(1, 3), at(10));
    assert_eq!(all.find(ONE, v4(1), at(309)), Some(remote(1, 3)));
    assert_eq!((all.find(TWO, v4(1), at(11)), all.find(ONE, v4(1), at(310))), (None, None));
    all.hear(ONE, v4(1), remote(2, 4), at(20));
    assert_eq!(all.find(ONE, v4(1), at(21)), Some(remote(2, 4)), "the latest word counts");
    all.sweep(at(315), 9);
    assert_eq!((all.len(), all.iter(at(315)).count()), (1, 1), "of the other address, nothing is left");
    for address in [v4(0).to_string().replace("10.", "224."), "0.0.0.0".into(), "ff02::1".into(), "::".into()] {
        all.hear(ONE, address.parse().unwrap(), remote(1, 3), at(20));
    }
    all.hear(ONE, v4(9), Neighbour::new(Mac::BROADCAST, Whence::Remote(RemoteId(3))), at(20));
    assert_eq!(all.len(), 1, "none of these is a neighbour");
}

#[test]
fn what_control_placed_stays_as_it_is() {
    let mut all = table(64);
    all.hear(ONE, v6(1), Neighbour { router: Some(true), ..remote(1, 3) }, at(1));
    assert!(all.place(ONE, v6(1), mac(1)) && all.place(ONE, v4(1), mac(1)));
    all.hear(ONE, v4(1), local(9, 5), at(2));
    let placed = Neighbour::new(mac(1), Whence::Placed);
    assert_eq!(all.find(ONE, v4(1), at(100_000)), Some(placed));
    assert_eq!(all.find(ONE, v6(1), at(2)), Some(Neighbour { router: Some(true), ..placed }), "what it said of itself");
    assert!(all.forget(ONE, v4(1)) && !all.forget(ONE, v4(1)) && !all.forget(TWO, v6(1)));
    assert_eq!(all.find(ONE, v4(1), at(3)), None);
    assert!(!all.place(ONE, "ff02::1".parse().unwrap(), mac(1)) && !all.place(ONE, v4(3), Mac::BROADCAST));
}

/// How many were said at NICs of this host.
fn local_ones(all: &Neighbours, now: Instant) -> usize {
    all.iter(now).filter(|(_, _, neighbour)| matches!(neighbour.whence, Whence::Local(_))).count()
}

#[test]
fn what_was_said_at_a_nic_goes_with_it_and_nothing_else() {
    let mut all = table(64);
    all.hear(ONE, v4(1), local(1, 5), at(1));
    all.hear(TWO, v6(1), local(1, 5), at(1));
    all.hear(ONE, v4(2), local(2, 6), at(1));
    all.hear(ONE, v4(3), remote(3, 5), at(1));
    all.hear(ONE, v4(4), local(4, 5), at(1));
    all.hear(ONE, v4(4), remote(4, 1), at(2));
    assert_eq!(local_ones(&all, at(2)), 3, "one has moved away");
    all.forget_nic(NicId(5));
    assert_eq!((all.len(), local_ones(&all, at(2))), (3, 1));
    assert!(all.find(ONE, v4(2), at(2)).is_some() && all.find(ONE, v4(1), at(2)).is_none());
    all.sweep(at(400), 9);
    assert_eq!(all.len(), 0);
}

#[test]
fn whoever_invents_addresses_loses_its_own() {
    let mut all = table(64);
    all.place(TWO, v4(1), mac(1));
    (0..10).for_each(|n| all.hear(ONE, v4(n + 1), local(1, 5), at(1)));
    (0..5000).for_each(|n| all.hear(TWO, v4(1000 + n), remote(2, 3), at(2)));
    assert_eq!(all.len(), 64);
    assert_eq!((local_ones(&all, at(2)), all.find(TWO, v4(1), at(2)).is_some()), (10, true));
    assert!(all.find(TWO, v4(5999), at(2)).is_some(), "its latest are kept");
    assert!(all.find(TWO, v4(1000), at(2)).is_none());
    assert_eq!((all.entries.len(), all.free.len()), (64, 0));
    all.forget_remote(RemoteId(3));
    assert_eq!(all.len(), 11);
    // What is placed is half at most.
    let placed = (0..64).filter(|n| all.place(TWO, v6(*n), mac(4))).count();
    assert_eq!(placed, 31);
    all.forget_network(TWO);
    assert_eq!((all.len(), local_ones(&all, at(2))), (10, 10));
}

#[test]
fn memory_stays_what_it_was() {
    let mut all = table(64);
    let room = all.places.capacity();
    for n in 0..100_000 {
        all.hear(ONE, v4(n * 7 + 1), remote(n as u8, (n % 5) as u16), at(u64::from(n / 100)));
        if n % 3 == 0 {
            all.forget(ONE, v4((n / 2) * 7 + 1));
        }
    }
    assert_eq!((all.places.capacity(), all.entries.len()), (room, 64));
}
