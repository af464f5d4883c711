//! [`NatStats`]: what happened to a table.
//!
//! Invariant: counters only grow; the sum of two is that of two tables.

/// What happened to a table since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NatStats {
    /// Mappings made for a packet.
    pub mapped: u64,
    /// TCP sessions begun.
    pub sessions: u64,
    /// Records that gave way because the table was full.
    pub evicted: u64,
    /// Records that gave way because their NIC was at its quota.
    pub over_quota: u64,
    /// Records that gave way because both buckets of a new one were full; next to none, unless the seed is known to a guest.
    pub crowded: u64,
    /// Records that the sweep freed.
    pub expired: u64,
}

impl std::ops::Add for NatStats {
    type Output = NatStats;

    fn add(self, other: NatStats) -> NatStats {
        NatStats {
            mapped: self.mapped + other.mapped,
            sessions: self.sessions + other.sessions,
            evicted: self.evicted + other.evicted,
            over_quota: self.over_quota + other.over_quota,
            crowded: self.crowded + other.crowded,
            expired: self.expired + other.expired,
        }
    }
}
