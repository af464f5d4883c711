//! [`Vnis`]: which network a VNI is.
//!
//! Invariant: finding one reads two words at most, whatever is asked. Read first: [`super`].

use wire::Vni;

use super::NetworkId;

/// From a VNI to its network: two tables of twelve bits each, the second only where there is something.
pub(super) struct Vnis(Vec<Option<Box<[u16; 4096]>>>);

impl Vnis {
    pub(super) fn new() -> Vnis {
        Vnis((0..4096).map(|_| None).collect())
    }

    #[inline]
    pub(super) fn find(&self, vni: u32) -> Option<NetworkId> {
        let page = self.0.get((vni >> 12) as usize)?.as_ref()?;
        page.get((vni & 0xfff) as usize).copied().filter(|id| *id != u16::MAX).map(NetworkId)
    }

    pub(super) fn set(&mut self, vni: Vni, id: u16) {
        if let Some(page) = self.0.get_mut((vni.get() >> 12) as usize)
            && let Some(place) =
                page.get_or_insert_with(|| Box::new([u16::MAX; 4096])).get_mut((vni.get() & 0xfff) as usize)
        {
            *place = id;
        }
    }
}
