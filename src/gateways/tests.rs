//! What routers are made of, and what is remembered of their leases.

use std::net::Ipv4Addr;

use super::*;
use crate::config;

fn lease(n: u8, state: SavedState, until: u64) -> Saved {
    Saved {
        address: Ipv4Addr::new(10, 0, 0, n).into(),
        mac: format!("02:00:00:00:00:{n:02x}"),
        client_id: vec![1, n],
        hostname: Some("web".to_owned()),
        state,
        began: n.into(),
        until,
    }
}

#[test]
fn what_is_written_is_read_again() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("deep/leases-lan.json");
    let read = |file: &PathBuf| state::read::<Vec<Saved>>(file);
    assert_eq!(read(&file), None);
    let leases = [lease(5, SavedState::Bound, since_1970() + 100), lease(6, SavedState::Declined, 0)];
    state::write(&file, &leases).unwrap();
    assert_eq!(read(&file).unwrap(), leases);
    let snapshot = snapshot(&read(&file).unwrap());
    assert_eq!(snapshot.leases.len(), 2);
    assert!((98..=100).contains(&snapshot.leases[0].remaining.as_secs()));
    assert_eq!(snapshot.leases[1].remaining, Duration::ZERO, "it is over");
    std::fs::write(&file, "[{").unwrap();
    assert_eq!(read(&file), None, "a broken file costs the memory and nothing else");
}

#[test]
fn a_clock_that_is_a_second_off_changes_nothing() {
    let a = [lease(5, SavedState::Bound, 1000)];
    assert!(is_same(&a, &[lease(5, SavedState::Bound, 1001)]));
    assert!(!is_same(&a, &[lease(5, SavedState::Bound, 1010)]));
    assert!(!is_same(&a, &[lease(5, SavedState::Released, 1000)]));
    assert!(!is_same(&a, &[]));
}

#[test]
fn a_router_between_many_segments_is_the_way_to_all_of_them() {
    let made = |vlans: u32| {
        let tables = (2..2 + vlans).map(|id| format!("[networks.lan.vlans.{id}]\nsubnet = \"10.{}.0.0/16\"\n", id));
        let text = format!("[networks.lan]\ndhcp = true\nsubnet = \"10.1.0.0/16\"\n{}", tables.collect::<String>());
        let around = config::Surroundings { root: true, ..Default::default() };
        let config = config::parse(&text, "t.toml".as_ref(), &around).unwrap();
        let segments: Vec<Segment<'_>> = config.networks[0].segments().collect();
        let made = router(&config, segments[0], &segments[1..], false, 1).unwrap();
        assert!(made.check().is_ok() && made.routes.len() == vlans as usize);
        let dhcp = made.v4.unwrap().dhcp.unwrap();
        (dhcp.routes.len(), dhcp.router)
    };
    assert_eq!(made(2), (2, false), "each is told, and nothing else leads there");
    assert_eq!(made(35), (35, false));
    assert_eq!(made(60), (0, true), "there is no room for so many in a message");
}

#[test]
fn ipv6_is_told_a_way_out_only_where_one_takes_it() {
    let of = |keys: &str, leads_out: bool| {
        let around = config::Surroundings { root: true, ..Default::default() };
        let text =
            format!("[networks.lan]\nmode = \"nat\"\nsubnet = \"10.1.1.0/24\"\nsubnet6 = \"fd00:1::/64\"\n{keys}\n");
        let config = config::parse(&text, "t.toml".as_ref(), &around).unwrap();
        let told = |segment: Segment<'_>| {
            let router = router(&config, segment, &[], leads_out, 1).unwrap();
            (router.elsewhere, router.elsewhere6.unwrap_or(router.elsewhere), router.v6.unwrap().default_router)
        };
        config.networks[0].segments().map(told).collect::<Vec<_>>()
    };
    let (out, not) = (Elsewhere::Forward, Elsewhere::Unreachable);
    assert_eq!(of("", true), [(out, out, true)]);
    assert_eq!(of("", false), [(not, not, false)], "the way out could not be made");
    let vlan = "[networks.lan.vlans.7]\nsubnet = \"10.1.7.0/24\"\nsubnet6 = \"fd00:7::/64\"";
    let packet = |more: &str| of(&format!("engine = \"packet\"\ntap = \"t0\"\n{more}\n{vlan}"), true);
    assert_eq!(packet("outside = [\"192.0.2.9\"]"), [(out, not, false); 2]);
    assert_eq!(packet("outside = [\"192.0.2.9\", \"2001:db8::9\"]"), [(out, out, true); 2]);
    let exchanged = packet("outside = [\"192.0.2.9\"]\nprefix6 = \"2001:db8:9::/64\"");
    assert_eq!(exchanged, [(out, out, true), (out, not, false)], "the prefix of one segment");
}
