//! [`Nptv6`]: IPv6 prefixes exchanged one for the other, nothing kept (RFC 6296).
//!
//! Invariant: the Internet checksum of an address is the same before and after, so no checksum behind the IPv6 header changes, owed or not;
//! translating out and back gives the same address.

use std::net::Ipv6Addr;

use wire::{Head, L3, Layers};

use crate::{decide::Refusal, record::Side};

/// A pair of prefixes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Nptv6 {
    inside: u128,
    outside: u128,
    length: u32,
}

/// Why there can be no pair of such prefixes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PrefixError {
    /// Out of range.
    #[error("a prefix of {0} bits; NPTv6 exchanges prefixes of 1 to 64 bits (RFC 6296 section 3)")]
    Length(u32),
}

impl Nptv6 {
    /// Exchanges the first `length` bits (1 to 64) of `inside` for those of `outside`.
    pub fn new(inside: Ipv6Addr, outside: Ipv6Addr, length: u32) -> Result<Nptv6, PrefixError> {
        if !(1..=64).contains(&length) {
            return Err(PrefixError::Length(length));
        }
        let mask = u128::MAX << (128 - length);
        Ok(Nptv6 { inside: inside.to_bits() & mask, outside: outside.to_bits() & mask, length })
    }

    /// Rewrites the head of a packet that came in on `side`: the source of what goes out, the destination of what comes in.
    pub fn translate(&self, side: Side, head: &mut Head) -> Result<(), Refusal> {
        let layers = Layers::parse(head.bytes()).ok_or(Refusal::Malformed)?;
        if layers.l3 != L3::V6 {
            return Err(Refusal::Malformed);
        }
        self.exchange_at(side, head, layers.l2_len + if side == Side::Inside { 8 } else { 24 })
    }

    /// Exchanges the prefix of the address at `at`.
    pub(crate) fn exchange_at(&self, side: Side, head: &mut Head, at: usize) -> Result<(), Refusal> {
        let (from, to) = match side {
            Side::Inside => (self.inside, self.outside),
            Side::Outside => (self.outside, self.inside),
        };
        let place =
            head.bytes_mut().get_mut(at..).and_then(|rest| rest.first_chunk_mut::<16>()).ok_or(Refusal::Malformed)?;
        *place = self.exchange(u128::from_be_bytes(*place), from, to)?.to_be_bytes();
        Ok(())
    }

    /// The address outside of one inside, or nothing when it does not have the prefix or cannot be translated.
    pub fn outside(&self, inside: Ipv6Addr) -> Option<Ipv6Addr> {
        self.exchange(inside.to_bits(), self.inside, self.outside).ok().map(Ipv6Addr::from_bits)
    }

    /// The address inside of one outside, or nothing when it does not have the prefix or cannot be translated.
    pub fn inside(&self, outside: Ipv6Addr) -> Option<Ipv6Addr> {
        self.exchange(outside.to_bits(), self.outside, self.inside).ok().map(Ipv6Addr::from_bits)
    }

    fn exchange(&self, address: u128, from: u128, to: u128) -> Result<u128, Refusal> {
        let mask = u128::MAX << (128 - self.length);
        if address & mask != from {
            return Err(Refusal::NotOurs);
        }
        // The word that takes the difference: the one after a prefix of 48 bits or fewer, else the first of the interface identifier that
        // is not all ones (RFC 6296 sections 3.4 and 3.5).
        let words = if self.length <= 48 { 3..4 } else { 4..8 };
        let word = |n: u32| (address >> (112 - 16 * n)) as u16;
        let n = words.into_iter().find(|n| word(*n) != 0xffff).ok_or(Refusal::Malformed)?;
        let new = add(word(n), add(sum(from), !sum(to)));
        // Zero is written as zero, not as all ones, which has the same sum (RFC 6296 section 3.6).
        let new = if new == 0xffff { 0 } else { new };
        let shift = 112 - 16 * n;
        Ok(address & !mask & !(0xffff << shift) | to | u128::from(new) << shift)
    }
}

fn sum(address: u128) -> u16 {
    (0..8).fold(0, |sum, n| add(sum, (address >> (16 * n)) as u16))
}

fn add(a: u16, b: u16) -> u16 {
    let (sum, carry) = a.overflowing_add(b);
    sum + u16::from(carry)
}
