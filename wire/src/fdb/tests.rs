//! The forwarding database on virtual time, and against a model that is as simple as its rules.

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

const S: Segment = Segment(0);

fn mac(n: u64) -> Mac {
    Mac::from_bits(0x02 | n << 8)
}

fn at(seconds: u64) -> Instant {
    Instant::START + Duration::from_secs(seconds)
}

struct Timed {
    fdb: Fdb,
    now: Tick,
}

impl Timed {
    fn new(capacity: usize, nics: u16) -> Timed {
        let mut fdb = Fdb::new(capacity, DEFAULT_AGEING, 42);
        (0..nics).for_each(|nic| fdb.add_nic(NicId(nic)));
        let now = fdb.tick(at(0));
        Timed { fdb, now }
    }

    fn go(&mut self, seconds: u64) {
        self.now = self.fdb.tick(at(seconds));
    }

    fn learn(&mut self, n: u64, nic: u16) -> bool {
        let learnt = self.fdb.learn(S, mac(n), NicId(nic), self.now);
        check(&self.fdb, self.now);
        learnt
    }

    fn find(&self, n: u64) -> Option<u16> {
        self.fdb.lookup(S, mac(n), self.now).map(|nic| nic.0)
    }
}

/// What holds of every database at all times: lists and table agree, and lists are ordered.
fn check(fdb: &Fdb, now: Tick) {
    assert!(fdb.len <= fdb.capacity);
    assert_eq!(fdb.table.iter().count(), fdb.len);
    let mut listed = 0;
    for nic in (0..fdb.holders.places()).filter_map(|place| fdb.holders.at(place)) {
        listed += fdb.holders.count(nic, false) + fdb.holders.count(nic, true);
        let records = || fdb.table.iter().filter(|record| record.nic == nic);
        assert_eq!(records().filter(|record| record.stays()).count(), fdb.holders.count(nic, true) as usize);
        let oldest = records().filter(|record| !record.stays()).map(|record| record.stamp).min();
        let first = fdb.holders.first(nic, false).and_then(|slot| fdb.table.get(slot));
        assert_eq!(first.map(|record| record.stamp), oldest);
    }
    assert_eq!(listed as usize, fdb.len);
    assert!(fdb.iter(now).count() <= fdb.len);
}

#[test]
fn learns_forgets_and_is_renewed() {
    let mut t = Timed::new(64, 2);
    assert_eq!(t.find(1), None);
    assert!(t.learn(1, 0) && t.learn(2, 1));
    assert_eq!((t.find(1), t.find(2)), (Some(0), Some(1)));
    assert_eq!(t.fdb.lookup(Segment(1), mac(1), t.now), None, "another segment");
    t.go(299);
    t.learn(2, 1);
    t.go(300);
    assert_eq!((t.find(1), t.find(2)), (None, Some(1)));
    assert_eq!(t.fdb.iter(t.now).map(|entry| (entry.mac, entry.age)).collect::<Vec<_>>(), [(mac(2), 1)]);
    t.learn(1, 0);
    assert_eq!(t.find(1), Some(0), "heard again");
}

#[test]
fn group_addresses_zero_and_unknown_nics_are_not_learnt() {
    let mut t = Timed::new(64, 1);
    for not_a_station in [Mac::BROADCAST, Mac::new([1, 0, 0x5e, 0, 0, 1]), Mac::new([0; 6])] {
        assert!(!t.fdb.learn(S, not_a_station, NicId(0), t.now));
        assert_eq!(t.fdb.lookup(S, not_a_station, t.now), None);
    }
    assert!(!t.learn(1, 5));
    assert_eq!(t.fdb.len(), 0);
}

#[test]
fn moves_are_counted_unless_the_entry_was_too_old() {
    let mut t = Timed::new(64, 3);
    t.learn(1, 0);
    t.learn(1, 1);
    assert_eq!((t.find(1), t.fdb.stats().moves), (Some(1), 1));
    assert_eq!((t.fdb.count(NicId(0)), t.fdb.count(NicId(1))), (0, 1));
    t.go(300);
    t.learn(1, 2);
    assert_eq!((t.find(1), t.fdb.stats().moves), (Some(2), 1));
}

#[test]
fn a_guest_that_moves_a_few_times_is_followed_every_time() {
    let mut t = Timed::new(64, 3);
    t.learn(1, 0);
    for n in 0..100 {
        // Ten moves at once, and then a pause.
        t.go(n / 10 * 11);
        let to = (1 - n % 2) as u16;
        assert!(t.learn(1, to));
        assert_eq!(t.find(1), Some(to));
    }
    assert_eq!((t.fdb.stats().moves, t.fdb.stats().flapping, t.fdb.flapping(t.now).count()), (100, 0, 0));
}

#[test]
fn who_moves_to_and_fro_is_held_where_it_was_first_and_let_go_again() {
    let mut t = Timed::new(64, 3);
    t.go(5);
    t.learn(1, 0);
    t.learn(2, 2);
    for n in 0..1000u64 {
        t.go(5 + n / 500);
        t.learn(1, (n % 2) as u16);
    }
    assert_eq!((t.find(1), t.find(2)), (Some(0), Some(2)));
    assert_eq!((t.fdb.stats().moves, t.fdb.stats().flapping), (10, 1), "moves that were believed");
    assert_eq!(t.fdb.consider(Key::new(S, mac(1).to_bits()), NicId(1), t.now), Learn::Held(NicId(0)));
    let flaps: Vec<Flap> = t.fdb.flapping(t.now).collect();
    let [Flap { home: NicId(0), other: NicId(1), moves, held, .. }] = flaps[..] else { panic!("{flaps:?}") };
    assert!(moves > 400 && held == 59, "{flaps:?}");
    // It speaks where it is held, and nowhere else is it believed.
    assert!(t.learn(1, 0) && !t.learn(1, 2));
    t.go(65);
    assert!(t.learn(1, 2), "the hold is over");
    assert_eq!((t.find(1), t.fdb.flapping(t.now).count()), (Some(2), 1), "and remembered for a while");
    t.go(665);
    assert_eq!(t.fdb.flapping(t.now).count(), 0);
    (0..20).for_each(|n| _ = t.learn(1, n % 2));
    t.fdb.remove_nic(NicId(1), true);
    assert_eq!(t.fdb.flapping(t.now).count(), 0, "where it would go is gone");
    assert!(t.learn(1, 2));
}

/// A guest at 0 speaks every `pause` seconds, each time `frames` of them, and what it says is heard from 1 right after, or `late` seconds later.
fn is_echoed(pause: u64, frames: u64, late: u64) -> Timed {
    let mut t = Timed::new(64, 2);
    for n in 0..20 {
        t.go(100 + n * pause);
        for _ in 0..frames {
            t.learn(1, 0);
            if late == 0 {
                t.learn(1, 1);
            }
        }
        t.go(100 + n * pause + late);
        t.learn(1, 1);
    }
    // It has more to say.
    (0..20).for_each(|_| _ = (t.learn(1, 0), t.learn(1, 1)));
    t
}

#[test]
fn a_guest_that_pauses_is_not_held_where_its_echo_comes_from() {
    for (pause, frames, late) in [(12, 1, 0), (12, 3, 0), (10, 1, 1), (15, 4, 1), (30, 1, 0), (59, 2, 2), (250, 1, 1)] {
        let t = is_echoed(pause, frames, late);
        let homes: Vec<_> = t.fdb.flapping(t.now).map(|flap| (flap.home.0, flap.held)).collect();
        assert_eq!(
            (t.find(1), homes),
            (Some(0), vec![(0, 60)]),
            "a pause of {pause} s, {frames} frames, {late} s late"
        );
    }
}

#[test]
fn a_neighbour_that_uses_an_address_in_every_pause_does_not_become_its_home() {
    for (pause, times) in [(12, 1), (40, 1), (40, 3), (55, 5), (200, 1)] {
        let mut t = Timed::new(64, 2);
        t.learn(1, 0);
        for n in 0..10 {
            for spoofed in 1..=times {
                t.go(n * pause + spoofed * pause / (times + 1));
                t.learn(1, 1);
            }
            t.go((n + 1) * pause);
            t.learn(1, 0);
        }
        (0..20).for_each(|_| _ = (t.learn(1, 1), t.learn(1, 0)));
        let homes: Vec<_> = t.fdb.flapping(t.now).map(|flap| flap.home.0).collect();
        assert_eq!((t.find(1), homes), (Some(0), vec![0]), "{times} in a pause of {pause} s");
    }
}

#[test]
fn a_guest_that_has_moved_for_good_is_at_home_there() {
    let mut t = Timed::new(64, 3);
    t.learn(1, 0);
    t.go(1);
    t.learn(1, 1);
    t.go(1 + u64::from(flaps::LIVED));
    t.learn(1, 1);
    (0..20).for_each(|_| _ = (t.learn(1, 2), t.learn(1, 1)));
    assert_eq!((t.find(1), t.fdb.flapping(t.now).map(|flap| flap.home).collect()), (Some(1), vec![NicId(1)]));
}

#[test]
fn who_is_forgotten_is_held_no_longer() {
    let mut t = Timed::new(64, 2);
    (0..20).for_each(|n| _ = t.learn(1, n % 2));
    assert!(!t.learn(1, 1));
    assert!(t.fdb.remove(S, mac(1)));
    assert_eq!(t.fdb.flapping(t.now).count(), 0);
    assert!(t.learn(1, 1) && t.learn(1, 0) && t.learn(1, 1), "it may move as one that was never heard");
}

#[test]
fn those_that_are_watched_are_bounded_and_who_is_held_gives_way_last() {
    let mut t = Timed::new(1024, 2);
    (0..20).for_each(|n| _ = t.learn(1, n % 2));
    for n in 100..400 {
        t.learn(n, 0);
        t.learn(n, 1);
    }
    assert_eq!(t.fdb.flapping(t.now).count(), 1);
    assert!(!t.learn(1, 1));
}

#[test]
fn static_entries_neither_age_nor_move_nor_give_way() {
    let mut t = Timed::new(16, 2);
    t.learn(1, 1);
    t.fdb.add_static(S, mac(1), NicId(0), t.now).unwrap();
    t.go(100_000);
    assert!(!t.learn(1, 1));
    assert!(t.learn(1, 0));
    for n in 2..100 {
        t.learn(n, 1);
    }
    assert_eq!(t.find(1), Some(0));
    t.fdb.add_static(S, mac(1), NicId(1), t.now).unwrap();
    assert_eq!(t.find(1), Some(1), "the last word counts");
    assert_eq!(t.fdb.remove_nic(NicId(1), false), 15);
    assert_eq!(t.fdb.iter(t.now).map(|entry| (entry.fixed, entry.age)).collect::<Vec<_>>(), [(true, 0)]);
    assert_eq!(t.fdb.remove_nic(NicId(1), true), 1);
    assert_eq!(t.fdb.add_static(S, mac(1), NicId(9), t.now), Err(StaticError::NotMember(NicId(9))));
    assert_eq!(t.fdb.add_static(S, Mac::BROADCAST, NicId(0), t.now), Err(StaticError::Address(Mac::BROADCAST)));
}

#[test]
fn told_entries_move_and_neither_age_nor_give_way() {
    let mut t = Timed::new(16, 2);
    for n in 0..8 {
        t.fdb.tell(S, mac(n), NicId(0), t.now).unwrap();
    }
    assert_eq!(t.fdb.tell(S, mac(9), NicId(0), t.now), Err(StaticError::Full(8)));
    t.go(100_000);
    for n in 10..100 {
        t.learn(n, 1);
    }
    assert_eq!((0..8).filter(|n| t.find(*n) == Some(0)).count(), 8);
    // One that is heard elsewhere is as any that was heard, and leaves its room to others that are told.
    assert!(t.learn(3, 1));
    assert_eq!(t.find(3), Some(1));
    t.fdb.tell(S, mac(9), NicId(0), t.now).unwrap();
    t.fdb.untell(S, mac(3), NicId(0));
    assert_eq!(t.find(3), Some(1));
    t.fdb.untell(S, mac(9), NicId(0));
    assert_eq!(t.find(9), None);
    t.go(100_300);
    assert_eq!((t.find(3), t.find(4)), (None, Some(0)));
    let told: Vec<_> = t.fdb.iter(t.now).map(|entry| (entry.told, entry.fixed, entry.age)).collect();
    assert_eq!(told, [(true, false, 0); 7]);
    let (kept, now) = (t.fdb.iter(t.now).next().unwrap(), t.now);
    let mut other = Timed::new(16, 2);
    assert!(!other.fdb.restore(&kept, now), "control tells it again");
    check(&t.fdb, t.now);
}

#[test]
fn static_entries_leave_half_for_guests() {
    let mut t = Timed::new(16, 1);
    for n in 0..8 {
        t.fdb.add_static(S, mac(n), NicId(0), t.now).unwrap();
    }
    assert_eq!(t.fdb.add_static(S, mac(9), NicId(0), t.now), Err(StaticError::Full(8)));
    t.fdb.add_static(S, mac(3), NicId(0), t.now).unwrap();
    assert!(t.learn(9, 0));
    assert!(t.fdb.remove(S, mac(3)) && !t.fdb.remove(S, mac(3)));
    t.fdb.add_static(S, mac(10), NicId(0), t.now).unwrap();
    check(&t.fdb, t.now);
}

#[test]
fn at_the_bound_the_biggest_holder_gives_up_its_oldest() {
    let mut t = Timed::new(64, 3);
    t.learn(1000, 0);
    t.learn(1001, 1);
    for n in 0..62 {
        t.go(1 + n);
        t.learn(n, 2);
    }
    assert_eq!(t.fdb.len(), 64);
    t.go(100);
    t.learn(0, 2);
    t.learn(1002, 0);
    assert_eq!((t.find(0), t.find(1), t.find(1000), t.find(1002)), (Some(2), None, Some(0), Some(0)));
    for n in 100..1000 {
        t.learn(n, 2);
    }
    assert_eq!((t.find(1000), t.find(1001), t.find(1002)), (Some(0), Some(1), Some(0)), "who floods evicts its own");
    let stats = t.fdb.stats();
    assert_eq!((t.fdb.len(), t.fdb.count(NicId(2)), stats.evicted, stats.crowded), (64, 61, 901, 0));
}

#[test]
fn the_sweep_frees_what_is_too_old_within_its_budget() {
    let mut t = Timed::new(256, 3);
    for n in 0..60 {
        t.learn(n, (n % 3) as u16);
    }
    t.go(10);
    t.learn(7, 1);
    t.go(300);
    assert_eq!(t.fdb.len(), 60, "too old, not yet freed");
    assert_eq!(t.fdb.sweep(t.now, 25), 25);
    assert_eq!(t.fdb.sweep(t.now, 1000), 34);
    assert_eq!((t.fdb.sweep(t.now, 1000), t.fdb.len(), t.fdb.stats().expired), (0, 1, 59));
    assert_eq!(t.find(7), Some(1));
    check(&t.fdb, t.now);
}

#[test]
fn a_snapshot_is_taken_up_with_its_ages() {
    let mut t = Timed::new(64, 2);
    t.fdb.add_static(S, mac(9), NicId(1), t.now).unwrap();
    for n in 0..8 {
        t.go(n * 40);
        t.learn(n, (n % 2) as u16);
    }
    let mut snapshot: Vec<Entry> = t.fdb.iter(t.now).collect();
    snapshot.sort_by_key(|entry| std::cmp::Reverse(entry.age));
    let mut other = Timed::new(64, 2);
    for entry in &snapshot {
        assert!(other.fdb.restore(entry, other.now));
        assert!(!other.fdb.restore(entry, other.now), "known already");
    }
    check(&other.fdb, other.now);
    let mut restored: Vec<Entry> = other.fdb.iter(other.now).collect();
    restored.sort_by_key(|entry| std::cmp::Reverse(entry.age));
    let key = |entry: &Entry| entry.mac.to_bits();
    snapshot.sort_by_key(key);
    restored.sort_by_key(key);
    assert_eq!(restored, snapshot);
    other.go(60);
    assert_eq!((other.find(0), other.find(1), other.find(2)), (None, None, Some(0)));
}

#[test]
fn who_knows_the_seed_still_evicts_own_entries_first() {
    let mut t = Timed::new(4096, 2);
    let victims: Vec<u64> = (0..50).collect();
    for n in &victims {
        t.learn(*n, 0);
    }
    // Both buckets of all of these are among the first 32 of 2048, as only somebody who knows the seed could arrange: 128 places.
    let crammed = |n: &u64| t.fdb.table.ways_of(Key::new(S, mac(*n).to_bits())).iter().all(|bucket| *bucket < 32);
    let attack: Vec<u64> = (1000..1_500_000).filter(crammed).collect();
    assert!(attack.len() > 256);
    for n in attack {
        assert!(t.learn(n, 1), "one insertion is bounded work and succeeds");
    }
    assert_eq!(victims.iter().filter(|n| t.find(**n) == Some(0)).count(), 50);
    assert!(t.fdb.stats().crowded > 128);
}

#[test]
fn orderly_floods_fill_a_full_size_database() {
    for (seed, stride) in [(1, 1), (2, 1 << 16), (3, 0x0101_0101), (4, 0x1_0001)] {
        let mut fdb = Fdb::new(DEFAULT_CAPACITY, DEFAULT_AGEING, seed);
        fdb.add_nic(NicId(0));
        let now = fdb.tick(at(0));
        for n in 0..DEFAULT_CAPACITY as u64 {
            fdb.learn(S, mac(n.wrapping_mul(stride) & 0xff_ffff_ffff), NicId(0), now);
        }
        assert_eq!((fdb.len(), fdb.stats().crowded), (DEFAULT_CAPACITY, 0), "stride {stride:#x}");
    }
}

#[derive(Clone, Debug)]
enum Step {
    Learn(u64, u16),
    Static(u64, u16),
    Remove(u64),
    Leave(u16, bool),
    Wait(u64),
    Sweep(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let station = 0..80u64;
    let nic = 0..4u16;
    prop_oneof![
        20 => (station.clone(), nic.clone()).prop_map(|(n, nic)| Step::Learn(n, nic)),
        1 => (station.clone(), nic.clone()).prop_map(|(n, nic)| Step::Static(n, nic)),
        1 => station.prop_map(Step::Remove),
        1 => (nic, any::<bool>()).prop_map(|(nic, fixed)| Step::Leave(nic, fixed)),
        3 => (0..150u64).prop_map(Step::Wait),
        2 => (0..20usize).prop_map(Step::Sweep),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Without pressure it is a hash map with times. With pressure (32 places for 80 stations) it may know less, and never anything wrong.
    #[test]
    fn it_is_a_map_that_forgets(steps in prop::collection::vec(step(), 0..400), seed: u64, roomy: bool) {
        let mut fdb = Fdb::new(if roomy { 256 } else { 32 }, DEFAULT_AGEING, seed);
        (0..4).for_each(|nic| fdb.add_nic(NicId(nic)));
        let mut model: HashMap<u64, (u16, u64, bool)> = HashMap::new();
        let mut seconds = 0;
        for step in steps {
            let now = fdb.tick(at(seconds));
            match step {
                Step::Learn(n, nic) => {
                    let pinned = model.get(&n).is_some_and(|(there, _, fixed)| *fixed && *there != nic);
                    let learnt = fdb.learn(S, mac(n), NicId(nic), now);
                    prop_assert!(learnt != pinned || !roomy && pinned);
                    if learnt && !model.get(&n).is_some_and(|(_, _, fixed)| *fixed) {
                        model.insert(n, (nic, seconds, false));
                    }
                }
                Step::Static(n, nic) => {
                    if fdb.add_static(S, mac(n), NicId(nic), now).is_ok() {
                        model.insert(n, (nic, seconds, true));
                    } else {
                        prop_assert!(!roomy);
                    }
                }
                Step::Remove(n) => {
                    fdb.remove(S, mac(n));
                    model.remove(&n);
                }
                Step::Leave(nic, fixed) => {
                    fdb.remove_nic(NicId(nic), fixed);
                    model.retain(|_, (there, _, is_fixed)| *there != nic || (*is_fixed && !fixed));
                }
                Step::Wait(more) => seconds += more,
                Step::Sweep(budget) => prop_assert!(fdb.sweep(now, budget) <= budget),
            }
            let now = fdb.tick(at(seconds));
            check(&fdb, now);
            for n in 0..80 {
                let expected = model.get(&n).filter(|(_, heard, fixed)| *fixed || seconds - heard < 300);
                let expected = expected.map(|(nic, ..)| NicId(*nic));
                let found = fdb.lookup(S, mac(n), now);
                let given_way = !roomy && found.is_none() && !model.get(&n).is_some_and(|(_, _, fixed)| *fixed);
                prop_assert!(found == expected || given_way, "station {n}: {found:?}, expected {expected:?}");
            }
        }
    }
}
