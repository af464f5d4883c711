//! MACs that stations of ours have: made of a name, locally administered, and told apart by what they are for.
//!
//! Invariant: the same on every run and host for one name, so that guests which know one find it again. Read first: [`crate::hash`].

use wire::Mac;

use crate::hash;

/// What a station is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum For {
    /// A segment's router.
    Router = 0x67,
    /// The host in a network of its own.
    Host = 0x68,
    /// The outside of a network behind NAT by packets.
    Outside = 0x6e,
}

/// The MAC of such a station of this name.
pub fn of(purpose: For, name: &str) -> Mac {
    let [.., a, b, c] = hash::of(name).to_be_bytes();
    Mac::new([0x02, 0x74, purpose as u8, a, b, c])
}

/// Whether it is that of a router, or of a host in a network of its own, here or elsewhere.
pub fn is_gateway(mac: Mac) -> bool {
    let [first, second, purpose, ..] = mac.bytes();
    (first, second) == (0x02, 0x74) && [For::Router, For::Host].iter().any(|other| *other as u8 == purpose)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_stay_what_they_are() {
        let all = [For::Router, For::Host, For::Outside].map(|purpose| of(purpose, "foobar"));
        let texts = all.map(|mac| mac.to_string());
        assert_eq!(texts, ["02:74:67:9c:f9:68", "02:74:68:9c:f9:68", "02:74:6e:9c:f9:68"]);
        assert_eq!(all.map(is_gateway), [true, true, false]);
        assert!(!is_gateway(Mac::new([0x02, 0, 0x67, 0, 0, 1])));
    }
}
