//! [`Holders`]: which guest has which IP address.
//!
//! Invariant: at most [`CAPACITY`] addresses, at most [`SHARE`] of one NIC; an address that its holder used less than [`LIVE`] ago goes to
//! nobody else; one of the host or of a router outside is nobody's. A NIC over its share loses its own oldest address, never another's.
//! Hashing is keyed at random. Nothing is allocated but when a NIC's first address comes.

use std::{collections::HashMap, net::IpAddr, time::Duration};

use wire::{Instant, Mac, NicId};

/// Addresses in all.
pub const CAPACITY: usize = 4096;
/// Addresses of one NIC.
pub const SHARE: usize = 64;
/// Time for which an address stays with a guest that is silent although another one claims it.
pub const LIVE: Duration = Duration::from_secs(60);
/// Time after which the address of a silent guest is forgotten.
pub const AGE: Duration = Duration::from_secs(3600);

/// Who has an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holder {
    /// The guest's MAC.
    pub mac: Mac,
    /// The guest's NIC.
    pub nic: NicId,
    /// When it was last heard.
    pub heard: Instant,
}

/// See the module's documentation.
pub struct Holders {
    holders: HashMap<IpAddr, Holder>,
    of: HashMap<NicId, Vec<IpAddr>>,
    reserved: Vec<IpAddr>,
    /// Goes up when an address comes or goes.
    version: u64,
}

impl Holders {
    /// Nobody has anything; `reserved` never is a guest's.
    pub fn new(reserved: Vec<IpAddr>) -> Holders {
        Holders { holders: HashMap::with_capacity(CAPACITY), of: HashMap::new(), reserved, version: 0 }
    }

    /// From now on these, and no others, never are a guest's; who has one of them loses it.
    pub fn reserve(&mut self, reserved: Vec<IpAddr>) {
        for address in &reserved {
            self.forget(address);
        }
        self.reserved = reserved;
    }

    /// A number that changes when an address comes or goes.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Whether an address is the host's or a router's.
    pub fn is_reserved(&self, address: &IpAddr) -> bool {
        self.reserved.contains(address)
    }

    /// Who has an address at time `now`.
    pub fn get(&self, address: &IpAddr, now: Instant) -> Option<Holder> {
        self.holders.get(address).copied().filter(|holder| now.since(holder.heard) < AGE)
    }

    /// Whether the guest `mac` at `nic` may use an address.
    pub fn may_use(&self, address: &IpAddr, mac: Mac, nic: NicId, now: Instant) -> bool {
        let other = |holder: &Holder| holder.nic != nic || holder.mac != mac;
        // A guest may give its own address to another MAC of its own NIC.
        let live = |holder: Holder| other(&holder) && holder.nic != nic && now.since(holder.heard) < LIVE;
        !self.is_reserved(address) && !self.holders.get(address).copied().is_some_and(live)
    }

    /// The guest `mac` at `nic` was heard with an address that it may use.
    pub fn heard(&mut self, address: IpAddr, mac: Mac, nic: NicId, now: Instant) {
        let new = Holder { mac, nic, heard: now };
        match self.holders.get_mut(&address) {
            Some(holder) if holder.nic == nic => *holder = new,
            Some(_) => {
                self.forget(&address);
                self.insert(address, new);
            }
            None => self.insert(address, new),
        }
    }

    fn insert(&mut self, address: IpAddr, holder: Holder) {
        self.version += 1;
        if self.of.get(&holder.nic).map_or(0, Vec::len) >= SHARE {
            self.forget_oldest(holder.nic);
        }
        if self.holders.len() >= CAPACITY
            && let Some(most) = self.of.iter().max_by_key(|(_, all)| all.len()).map(|(nic, _)| *nic)
        {
            self.forget_oldest(most);
        }
        self.of.entry(holder.nic).or_insert_with(|| Vec::with_capacity(SHARE)).push(address);
        self.holders.insert(address, holder);
    }

    fn forget_oldest(&mut self, nic: NicId) {
        let age = |address: &&IpAddr| self.holders.get(*address).map(|holder| holder.heard);
        if let Some(oldest) = self.of.get(&nic).and_then(|all| all.iter().min_by_key(age)).copied() {
            self.forget(&oldest);
        }
    }

    fn forget(&mut self, address: &IpAddr) {
        let Some(holder) = self.holders.remove(address) else { return };
        self.version += 1;
        let Some(all) = self.of.get_mut(&holder.nic) else { return };
        all.retain(|other| other != address);
        if all.is_empty() {
            self.of.remove(&holder.nic);
        }
    }

    /// Every address of a guest.
    pub fn iter(&self) -> impl Iterator<Item = (&IpAddr, &Holder)> {
        self.holders.iter()
    }
}
