//! [`Bridge`]: one virtual switch, seen by control. What it does with frames is in [`crate::forward`].
//!
//! Invariant: the lists of receivers, one for each segment, name exactly the NICs that are members and have lanes; the forwarding database
//! names only members. Everything here runs between turns and may allocate; nothing of it runs on a frame's path.
//! Read first: [`crate::membership`], [`crate::fdb`].

use std::{net::IpAddr, time::Duration};

use wire::{ByNic, Instant, Mac, NicId, Segment, Vid};

use crate::{
    budget::{Budgets, Payers},
    fdb::{self, Entry, Fdb, FdbStats, Flap, StaticError},
    guard::{Addresses, Claims, Role},
    membership::{Labels, Membership, Segments},
    vlan::Label,
};

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;

/// How a bridge behaves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BridgeSpec {
    /// Stations it remembers at most ([`fdb::DEFAULT_CAPACITY`]; 16 to 2^22).
    pub fdb_capacity: usize,
    /// How long it remembers a station that is silent ([`fdb::DEFAULT_AGEING`]; 1 to 1,000,000 whole seconds).
    pub ageing: Duration,
    /// A random number that guests cannot know; it decides which addresses share a bucket.
    pub seed: u64,
}

impl BridgeSpec {
    /// The defaults.
    pub fn new(seed: u64) -> BridgeSpec {
        BridgeSpec { fdb_capacity: fdb::DEFAULT_CAPACITY, ageing: fdb::DEFAULT_AGEING, seed }
    }
}

/// How a bridge treats a NIC.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NicSpec {
    /// The VLANs it takes part in.
    pub membership: Membership,
    /// The address it must send from, and that no other NIC of its segments may take while it is attached; none: any.
    pub guard: Option<Mac>,
    /// Its IP addresses. Under guard it must send from these (a family of which none is given is not checked). Nobody else of its segments
    /// may speak for them while it is attached.
    pub addresses: Vec<IpAddr>,
    /// What may be expected of it.
    pub role: Role,
    /// No frames between it and other isolated NICs.
    pub isolated: bool,
    /// Its frames to 01:80:C2:00:00:0X are forwarded like other multicast instead of eaten.
    pub pass_reserved: bool,
    /// How much it may have copied to everybody.
    pub budgets: Budgets,
    /// The budgets are not for all of its frames together, but for each lane in [`wire::Origin`]: of a tunnel that is the endpoint that sent a frame.
    pub budgets_each: bool,
    /// Control says which stations are behind it ([`Bridge::tell`]): nothing is learnt from its frames, and it does not speak for who is heard elsewhere.
    pub told: bool,
}

/// One station that a bridge knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FdbEntry {
    /// Its VLAN; nothing in a VLAN-unaware network.
    pub vlan: Option<Vid>,
    /// Its address.
    pub mac: Mac,
    /// The NIC it is behind.
    pub nic: NicId,
    /// Seconds since it was last heard; zero for a static entry.
    pub age: u32,
    /// Put there by configuration.
    pub fixed: bool,
    /// Put there by control.
    pub told: bool,
}

/// A station that moved to and fro between two NICs, and is held behind one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flapping {
    /// Its VLAN; nothing in a VLAN-unaware network.
    pub vlan: Option<Vid>,
    /// Its address.
    pub mac: Mac,
    /// Where it was first, and is held.
    pub home: NicId,
    /// Where else it was heard last.
    pub other: NicId,
    /// Times that it moved.
    pub moves: u64,
    /// Seconds for which it is held yet; zero when it was held within the last ten minutes.
    pub held: u32,
}

/// The way to a NIC within a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// The NIC.
    pub nic: NicId,
    /// How it wants the segment's frames labelled.
    pub label: Label,
    /// Its lane, if it has one only.
    pub(crate) lane: u16,
    /// How many lanes it has.
    pub(crate) lanes: u16,
    pub(crate) isolated: bool,
}

/// A NIC of a bridge.
pub(crate) struct Member {
    pub(crate) labels: Labels,
    pub(crate) vlan_aware: bool,
    pub(crate) guard: Option<Mac>,
    pub(crate) addresses: Addresses,
    pub(crate) role: Role,
    pub(crate) isolated: bool,
    pub(crate) pass_reserved: bool,
    pub(crate) told: bool,
    pub(crate) pacers: Payers,
    pub(crate) lanes: Vec<u16>,
}

impl Member {
    pub(crate) fn is_in(&self, segment: Segment) -> bool {
        self.labels.segments.binary_search(&segment).is_ok()
    }
}

/// A virtual switch.
pub struct Bridge {
    pub(crate) fdb: Fdb,
    pub(crate) segments: Segments,
    pub(crate) members: ByNic<Member>,
    /// By segment: the members with lanes.
    pub(crate) receivers: Vec<Vec<Route>>,
    pub(crate) claims: Claims,
    pub(crate) vlan_aware: bool,
}

impl Bridge {
    /// A bridge without NICs.
    pub fn new(spec: BridgeSpec) -> Bridge {
        Bridge {
            fdb: Fdb::new(spec.fdb_capacity, spec.ageing, spec.seed),
            segments: Segments::new(),
            members: ByNic::default(),
            receivers: Vec::new(),
            claims: Claims::default(),
            vlan_aware: false,
        }
    }

    /// A NIC joins, without lanes. One that is there already leaves first.
    pub fn add_nic(&mut self, nic: NicId, spec: NicSpec) {
        self.remove_nic(nic);
        self.fdb.add_nic(nic);
        if let Some(mac) = spec.guard {
            self.claims.add(mac, nic);
        }
        let addresses = Addresses::new(&spec.addresses, spec.guard);
        self.claims.add_addresses(&addresses, nic);
        let member = Member {
            labels: self.segments.labels(&spec.membership),
            vlan_aware: spec.membership.is_vlan_aware(),
            guard: spec.guard,
            addresses,
            role: spec.role,
            isolated: spec.isolated,
            pass_reserved: spec.pass_reserved,
            told: spec.told,
            pacers: Payers::new(spec.budgets, spec.budgets_each),
            lanes: Vec::new(),
        };
        self.members.insert(nic, member);
        self.receivers.resize_with(self.segments.len(), Vec::new);
        self.vlan_aware = self.members.iter().any(|(_, member)| member.vlan_aware);
    }

    /// A NIC is declared with these IP addresses, and no others ([`NicSpec::addresses`]).
    pub fn set_addresses(&mut self, nic: NicId, addresses: &[IpAddr]) {
        let Some(member) = self.members.get_mut(nic) else { return };
        member.addresses = Addresses::new(addresses, member.guard);
        self.claims.remove_addresses(nic);
        self.claims.add_addresses(&member.addresses, nic);
    }

    /// A NIC leaves; what was learnt or declared behind it is forgotten.
    pub fn remove_nic(&mut self, nic: NicId) {
        self.set_lanes(nic, &[]);
        if self.members.remove(nic).is_none() {
            return;
        }
        self.claims.remove(nic);
        self.fdb.remove_nic(nic, true);
        self.vlan_aware = self.members.iter().any(|(_, member)| member.vlan_aware);
    }

    /// The worker-wide numbers of a NIC's lanes; with none it gets no frames, but keeps its place and its entries.
    pub fn set_lanes(&mut self, nic: NicId, lanes: &[u16]) {
        let Some(member) = self.members.get_mut(nic) else { return };
        member.lanes = lanes.to_vec();
        let segments = member.labels.segments.clone();
        for segment in segments {
            let route = self.route(nic, segment).filter(|route| route.lanes > 0);
            if let Some(list) = self.receivers.get_mut(usize::from(segment.0)) {
                list.retain(|other| other.nic != nic);
                list.extend(route);
            }
        }
    }

    /// Forgets what was learnt behind a NIC; what is static or told stays.
    pub fn forget(&mut self, nic: NicId) {
        self.fdb.remove_nic(nic, false);
    }

    /// A station is behind a NIC for good, in VLAN `vlan` or in the untagged segment of the network.
    pub fn add_static(&mut self, vlan: Option<Vid>, mac: Mac, nic: NicId) -> Result<(), StaticError> {
        let segment = self.segment(vlan).filter(|segment| self.is_member(nic, *segment));
        let segment = segment.ok_or(StaticError::NotMember(nic))?;
        self.fdb.add_static(segment, mac, nic, self.fdb.tick(Instant::START))
    }

    /// A station is behind a NIC by control's word, until it is heard elsewhere or that is taken back ([`Bridge::untell`]). Without room, or where the
    /// NIC is no member, it stays unknown; a static entry stays as it is.
    pub fn tell(&mut self, vlan: Option<Vid>, mac: Mac, nic: NicId) {
        if let Some(segment) = self.segment(vlan).filter(|segment| self.is_member(nic, *segment)) {
            _ = self.fdb.tell(segment, mac, nic, self.fdb.tick(Instant::START));
        }
    }

    /// Control's word is taken back; where the station was heard since, that stays.
    pub fn untell(&mut self, vlan: Option<Vid>, mac: Mac, nic: NicId) {
        if let Some(segment) = self.segment(vlan) {
            self.fdb.untell(segment, mac, nic);
        }
    }

    /// Forgets where a station was heard; what is static or told stays.
    pub fn forget_station(&mut self, vlan: Option<Vid>, mac: Mac) {
        if let Some(segment) = self.segment(vlan) {
            self.fdb.unlearn(segment, mac);
        }
    }

    /// Forgets a station; false when it was not known.
    pub fn remove_station(&mut self, vlan: Option<Vid>, mac: Mac) -> bool {
        self.segment(vlan).is_some_and(|segment| self.fdb.remove(segment, mac))
    }

    /// Frees up to `budget` entries of stations that are silent for too long; returns how many.
    pub fn sweep(&mut self, now: Instant, budget: usize) -> usize {
        self.fdb.sweep(self.fdb.tick(now), budget)
    }

    /// The stations it knows, in no order: for people to see, and the snapshot that [`Bridge::restore`] takes back.
    pub fn fdb_entries(&self, now: Instant) -> Vec<FdbEntry> {
        let entry = |Entry { segment, mac, nic, age, fixed, told }| {
            let vlan = self.vlan(segment);
            FdbEntry { vlan, mac, nic, age, fixed, told }
        };
        self.fdb.iter(self.fdb.tick(now)).map(entry).collect()
    }

    /// Stations that move to and fro.
    pub fn flapping(&self, now: Instant) -> Vec<Flapping> {
        let one = |Flap { segment, mac, home, other, moves, held }| Flapping {
            vlan: self.vlan(segment),
            mac,
            home,
            other,
            moves,
            held,
        };
        self.fdb.flapping(self.fdb.tick(now)).map(one).collect()
    }

    /// Takes up stations of a snapshot, each under the NIC it names. Those that are too old, known already or whose NIC is no member of
    /// their VLAN are left out; returns how many were taken up.
    pub fn restore(&mut self, snapshot: &[FdbEntry], now: Instant) -> usize {
        let tick = self.fdb.tick(now);
        let mut oldest_first: Vec<&FdbEntry> = snapshot.iter().collect();
        oldest_first.sort_unstable_by_key(|entry| std::cmp::Reverse(entry.age));
        let restored = oldest_first.into_iter().filter(|entry| {
            let FdbEntry { vlan, mac, nic, age, fixed, told } = **entry;
            self.segment(vlan)
                .filter(|segment| self.is_member(nic, *segment))
                .is_some_and(|segment| self.fdb.restore(&Entry { segment, mac, nic, age, fixed, told }, tick))
        });
        restored.count()
    }

    /// Stations it holds, those included that are silent for too long and not yet swept out.
    pub fn fdb_len(&self) -> usize {
        self.fdb.len()
    }

    /// What happened to its forwarding database so far.
    pub fn fdb_stats(&self) -> FdbStats {
        self.fdb.stats()
    }

    /// The VLAN of a segment; nothing in a VLAN-unaware network.
    pub fn vlan(&self, segment: Segment) -> Option<Vid> {
        self.segments.vid(segment).filter(|_| self.vlan_aware)
    }

    /// The segment of a VLAN, or the untagged segment of the network; nothing when no NIC was ever a member of the VLAN.
    pub fn segment(&self, vlan: Option<Vid>) -> Option<Segment> {
        vlan.map_or(Some(Segments::BASE), |vid| self.segments.segment(vid.get()))
    }

    /// The way to a NIC within a segment; nothing when it is no member.
    pub(crate) fn route(&self, nic: NicId, segment: Segment) -> Option<Route> {
        let member = self.members.get(nic).filter(|member| member.is_in(segment))?;
        let label = match self.segments.vid(segment) {
            Some(vid) if member.labels.untagged != Some(segment) => Label::tagged(vid),
            _ => Label::NONE,
        };
        let lane = member.lanes.first().copied().unwrap_or(0);
        let lanes = u16::try_from(member.lanes.len()).unwrap_or(u16::MAX);
        Some(Route { nic, label, lane, lanes, isolated: member.isolated })
    }

    pub(crate) fn is_member(&self, nic: NicId, segment: Segment) -> bool {
        self.members.get(nic).is_some_and(|member| member.is_in(segment))
    }
}
