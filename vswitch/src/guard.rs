//! [`Claims`]: which NIC was declared with which address.
//!
//! Invariant: an address that an attached NIC was declared with is never learnt behind another NIC of the same segment, so a port without a
//! guard cannot draw a guarded port's frames to itself. The check that a guarded port sends from its own address alone is one comparison
//! on the data path; this table is asked only when an address is about to be learnt anew. Read first: [`crate::decide`].

use wire::{Mac, NicId};

/// Addresses and the NICs declared with them, ordered.
#[derive(Default)]
pub(crate) struct Claims(Vec<(u64, NicId)>);

impl Claims {
    /// `nic` was declared with `mac`.
    pub(crate) fn add(&mut self, mac: Mac, nic: NicId) {
        self.0.push((mac.to_bits(), nic));
        self.0.sort_unstable();
    }

    /// `nic` is gone.
    pub(crate) fn remove(&mut self, nic: NicId) {
        self.0.retain(|(_, claimant)| *claimant != nic);
    }

    /// The NICs declared with an address, as [`Mac::to_bits`] has it.
    pub(crate) fn claimants(&self, mac: u64) -> impl Iterator<Item = NicId> {
        let from = self.0.partition_point(|(claimed, _)| *claimed < mac);
        self.0.iter().skip(from).take_while(move |(claimed, _)| *claimed == mac).map(|(_, nic)| *nic)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_may_be_claimed_in_several_vlans() {
        let mac = |last| Mac::new([2, 0, 0, 0, 0, last]);
        let mut claims = Claims::default();
        for (last, nic) in [(3, 1), (1, 7), (3, 9), (2, 4)] {
            claims.add(mac(last), NicId(nic));
        }
        assert_eq!(claims.claimants(mac(3).to_bits()).collect::<Vec<_>>(), [NicId(1), NicId(9)]);
        claims.remove(NicId(1));
        assert_eq!(claims.claimants(mac(3).to_bits()).collect::<Vec<_>>(), [NicId(9)]);
        assert_eq!(claims.claimants(mac(4).to_bits()).count(), 0);
    }
}
