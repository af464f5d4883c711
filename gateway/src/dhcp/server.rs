//! [`Dhcp`]: what a client is told.
//!
//! Invariant: an address is acknowledged only to a client whose lease, reservation or offer it is, or when nobody has a claim to it;
//! [`Dhcp::decide`] changes nothing, and each answer that promises something comes with the lease to be committed.
//!
//! Theory of operation: this is the only server of its segment, so it says no (NAK) to addresses that cannot be right here, and to who takes an
//! offer that was not made. It says yes to a client that renews an address which nobody else has, even where its lease was forgotten: the client
//! uses it already; but what no offer of ours went before the router asks about by ARP first ([`Change::Unproved`]). Only a client that
//! comes back from a restart with an address we know nothing of hears nothing (RFC 2131 section 4.3.2) and begins anew. An address that the
//! router hears somebody use without a lease is put aside for a time ([`Dhcp::heard`]).
//! Read first: RFC 2131 sections 4.3.1 to 4.3.6.

use std::{collections::BTreeSet, net::Ipv4Addr, time::Duration};

use wire::{DropReason, Instant, Mac, NicId, Verdict};

use super::{
    Client, DhcpConfig, Guest, Lease, LeaseEvent, LeaseState, Snapshot,
    leases::Leases,
    message::{Kind, Message, host_name},
    options,
    reply::{self, Reply},
};
use crate::{
    config::{ConfigError, RouterV4},
    gateway::{Change, Decision, Incoming},
};

/// No lease is shorter, whatever a client asks for.
const LEAST_LEASE: u32 = 60;

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Dhcp {
    config: DhcpConfig,
    reserved: BTreeSet<Ipv4Addr>,
    fixed: Vec<(u8, Vec<u8>)>,
    mtu: u16,
    leases: Leases,
}

/// A message together with who sent it.
struct Asked<'a> {
    v4: &'a RouterV4,
    mac: Mac,
    message: Message<'a>,
    client: Client,
    nic: NicId,
    name: Option<Box<str>>,
    now: Instant,
}

impl Dhcp {
    /// The server that `router` has, if it has one; its configuration has been checked.
    pub(crate) fn new(router: &RouterV4, mtu: u16, seed: u64) -> Option<Result<Self, ConfigError>> {
        let config = router.dhcp.clone()?;
        let reserved: BTreeSet<_> = config.reservations.iter().map(|reservation| reservation.address).collect();
        let pool = (config.first.to_bits()..=config.last.to_bits())
            .map(Ipv4Addr::from)
            .filter(|address| router.may_lease(*address) && !reserved.contains(address))
            .collect();
        let leases = Leases::new(pool, config.share, seed);
        let fixed = options::fixed(&config, router, mtu);
        Some(fixed.map(|fixed| Dhcp { config, reserved, fixed, mtu, leases }))
    }

    pub(crate) fn leases(&self) -> impl Iterator<Item = &Lease> {
        self.leases.iter()
    }

    pub(crate) fn commit(&mut self, lease: Lease, now: Instant) -> LeaseEvent {
        self.leases.put(lease, now)
    }

    /// Whether an address is offered to the client of `lease`.
    pub(crate) fn offers(&self, lease: &Lease) -> bool {
        let there = self.leases.at(lease.address);
        there.is_some_and(|there| there.state == LeaseState::Offered && there.client == lease.client)
    }

    /// Somebody on `nic` was heard to use `address`. Where it is theirs by no lease and nobody else's, it is put aside, and counts to the
    /// share of that NIC; who is at its limit is not believed.
    pub(crate) fn heard(&mut self, address: Ipv4Addr, mac: Mac, nic: NicId, now: Instant) -> Option<LeaseEvent> {
        let (in_use, aside) = (LeaseState::InUse, self.config.decline);
        let fresh = match self.leases.at(address) {
            Some(lease) if lease.state == in_use => lease.expires > now + aside / 2,
            // Its own; but somebody who goes on after the end of a lease has it no more.
            Some(lease) if lease.client.mac == mac => lease.state != LeaseState::Bound || lease.expires > now,
            Some(lease) => matches!(lease.state, LeaseState::Bound | LeaseState::Declined) && lease.expires > now,
            None => false,
        };
        let own = self.leases.at(address).is_some_and(|lease| lease.nic == Some(nic) && lease.state == in_use);
        if fresh || !self.leases.in_pool(address) || !(own || self.leases.within_share(nic)) {
            return None;
        }
        let client = Client { mac, id: Box::default() };
        let expires = now + aside;
        let nic = Some(nic);
        let lease = Lease { address, client, state: in_use, nic, home: nic, name: None, began: 0, expires };
        Some(self.leases.put(lease, now))
    }

    pub(crate) fn snapshot(&self, now: Instant) -> Snapshot {
        Snapshot { leases: self.leases.snapshot(now), leases6: Vec::new() }
    }

    pub(crate) fn restore(&mut self, snapshot: &Snapshot, now: Instant, away: Duration) -> usize {
        let known = |saved: &&super::SavedLease| {
            let reserved_for = self.config.reservations.iter().find(|r| r.address == saved.address);
            match reserved_for {
                Some(reservation) => is_for(&reservation.guest, saved.client.mac, saved.name.as_deref()),
                None => self.leases.in_pool(saved.address),
            }
        };
        let fitting: Vec<_> = snapshot.leases.iter().filter(known).collect();
        for saved in &fitting {
            let aside = matches!(saved.state, LeaseState::Declined | LeaseState::InUse);
            let longest = if aside { self.config.decline } else { self.config.lease };
            self.leases.restore(saved, now, away, longest);
        }
        fitting.len()
    }

    /// Decides about the UDP payload `bytes`, sent from `from`.
    #[allow(clippy::too_many_arguments)]
    pub(crate) fn decide(
        &self,
        v4: &RouterV4,
        mac: Mac,
        incoming: &Incoming<'_>,
        from: Ipv4Addr,
        bytes: &[u8],
        now: Instant,
        out: &mut Vec<u8>,
    ) -> Decision {
        let Some(message) = Message::parse(bytes) else { return Decision::drop(DropReason::BadPacket) };
        if message.relayed {
            return Decision::drop(DropReason::NotForGateway);
        }
        if message.mac != incoming.macs().1 || !(from.is_unspecified() || v4.contains(from)) && message.ciaddr != from {
            return Decision::drop(DropReason::BadPacket);
        }
        let client = Client { mac: message.mac, id: message.id.into() };
        // A client need not say its name again when it renews.
        let known = || self.leases.of(&client).and_then(|lease| lease.name.clone());
        let asked = Asked {
            v4,
            mac,
            nic: incoming.origin.nic,
            name: message.name.and_then(host_name).or_else(known),
            client,
            message,
            now,
        };
        match message.kind {
            Kind::Discover => self.discover(&asked, out),
            Kind::Request => self.request(&asked, out),
            Kind::Decline => self.decline(&asked),
            Kind::Release => self.release(&asked),
            Kind::Inform => self.inform(&asked, out),
            Kind::Offer | Kind::Ack | Kind::Nak => Decision::drop(DropReason::BadPacket),
        }
    }

    /// The address reserved for this client, unless somebody else has it at the moment.
    fn reserved(&self, asked: &Asked<'_>) -> Option<Ipv4Addr> {
        let mine = |guest: &Guest| is_for(guest, asked.client.mac, asked.name.as_deref());
        let address = self.config.reservations.iter().find(|r| mine(&r.guest))?.address;
        let held = self.leases.at(address).is_some_and(|lease| {
            lease.expires > asked.now && (lease.state == LeaseState::Declined || lease.client.mac != asked.client.mac)
        });
        (!held).then_some(address)
    }

    /// What the client has or had, if nothing better is meant for it.
    fn remembered(&self, asked: &Asked<'_>) -> Option<&Lease> {
        let lease = self.leases.of(&asked.client)?;
        // An address reserved for somebody else since is not the client's any more.
        (!self.reserved.contains(&lease.address) || self.reserved(asked) == Some(lease.address)).then_some(lease)
    }

    /// Whether a client without a claim may have `address`.
    fn open(&self, asked: &Asked<'_>, address: Ipv4Addr) -> bool {
        self.leases.in_pool(address)
            && self.leases.is_free(address, asked.client.mac, asked.now)
            && self.leases.within_share(asked.nic)
    }

    /// RFC 2131 section 4.3.1.
    fn discover(&self, asked: &Asked<'_>, out: &mut Vec<u8>) -> Decision {
        let remembered = self.remembered(asked);
        let wished = asked.message.requested.filter(|address| self.open(asked, *address));
        let address = self
            .reserved(asked)
            .or(remembered.map(|lease| lease.address))
            .or(wished)
            .or_else(|| self.leases.choose(&asked.client, asked.nic, asked.now));
        let Some(address) = address else { return Decision::drop(DropReason::NoLease) };
        let offered = asked.now + self.config.offer;
        let lease = match remembered.filter(|lease| lease.address == address) {
            // Who asks again has not lost what it has.
            Some(lease) if lease.state == LeaseState::Bound && lease.expires > offered => {
                // Nor is it elsewhere for having asked.
                Lease { nic: lease.nic.or(Some(asked.nic)), ..asked.lease(address, LeaseState::Bound, lease.expires) }
            }
            _ => asked.lease(address, LeaseState::Offered, offered),
        };
        self.give(asked, Kind::Offer, address, out);
        promise(lease)
    }

    /// RFC 2131 section 4.3.2: selecting, coming back from a restart, renewing, rebinding.
    fn request(&self, asked: &Asked<'_>, out: &mut Vec<u8>) -> Decision {
        let message = &asked.message;
        let selecting = message.server.is_some();
        if message.server.is_some_and(|server| server != asked.v4.address) {
            // Another server was chosen: our offer is not needed.
            return match self.leases.of(&asked.client).filter(|lease| lease.state == LeaseState::Offered) {
                Some(lease) => promise(asked.lease(lease.address, LeaseState::Released, asked.now)),
                None => Decision::drop(DropReason::NotForGateway),
            };
        }
        let renewing = !message.ciaddr.is_unspecified();
        let wished = if renewing { Some(message.ciaddr) } else { message.requested };
        let Some(address) = wished else { return Decision::drop(DropReason::BadPacket) };
        if !asked.v4.may_lease(address) {
            return self.refuse(asked, out);
        }
        // Between its offer and its end a client keeps what it has, also when a reservation was made since; that is offered next time.
        let remembered = self.remembered(asked);
        let runs = |lease: &Lease| {
            lease.address == address
                && lease.expires > asked.now
                && matches!(lease.state, LeaseState::Bound | LeaseState::Offered)
        };
        if remembered.is_some_and(runs) {
            return promise(self.acknowledge(asked, address, out));
        }
        match self.reserved(asked).or(remembered.map(|lease| lease.address)) {
            // It takes what was not offered.
            _ if selecting => self.refuse(asked, out),
            Some(claim) if claim == address => unproved(self.acknowledge(asked, address, out)),
            Some(_) => self.refuse(asked, out),
            None if renewing && self.open(asked, address) => unproved(self.acknowledge(asked, address, out)),
            None if renewing => self.refuse(asked, out),
            None => Decision::drop(DropReason::NoLease),
        }
    }

    fn acknowledge(&self, asked: &Asked<'_>, address: Ipv4Addr, out: &mut Vec<u8>) -> Lease {
        let seconds = self.give(asked, Kind::Ack, address, out);
        asked.lease(address, LeaseState::Bound, asked.now + Duration::from_secs(u64::from(seconds)))
    }

    /// RFC 2131 section 4.3.3.
    fn decline(&self, asked: &Asked<'_>) -> Decision {
        let of_us = asked.message.server.is_none_or(|server| server == asked.v4.address);
        match self.held(asked, asked.message.requested).filter(|_| of_us) {
            Some(address) => promise(asked.lease(address, LeaseState::Declined, asked.now + self.config.decline)),
            None => Decision::drop(DropReason::NoLease),
        }
    }

    /// RFC 2131 section 4.3.4: the address is free, and remembered.
    fn release(&self, asked: &Asked<'_>) -> Decision {
        match self.held(asked, Some(asked.message.ciaddr)) {
            Some(address) => promise(asked.lease(address, LeaseState::Released, asked.now)),
            None => Decision::drop(DropReason::NoLease),
        }
    }

    /// The client's own address, when it is the one it names and the client is where that began.
    fn held(&self, asked: &Asked<'_>, named: Option<Ipv4Addr>) -> Option<Ipv4Addr> {
        let lease = self.leases.of(&asked.client)?;
        let same_place = lease.home.is_none_or(|nic| nic == asked.nic);
        (same_place && Some(lease.address) == named).then_some(lease.address)
    }

    /// RFC 2131 section 4.3.5: everything but an address.
    fn inform(&self, asked: &Asked<'_>, out: &mut Vec<u8>) -> Decision {
        let to = asked.message.ciaddr;
        if !asked.v4.may_lease(to) {
            return Decision::drop(DropReason::BadPacket);
        }
        let reply = self.reply(asked, Kind::Ack, (to, asked.client.mac), Ipv4Addr::UNSPECIFIED, None);
        reply::write(out, &reply, &asked.message);
        Decision::reply()
    }

    /// Writes an offer or acknowledgement of `address`; returns the lease's seconds.
    fn give(&self, asked: &Asked<'_>, kind: Kind, address: Ipv4Addr, out: &mut Vec<u8>) -> u32 {
        let message = &asked.message;
        let most = u32::try_from(self.config.lease.as_secs()).unwrap_or(u32::MAX - 1);
        let seconds = message.lease.map_or(most, |wish| wish.clamp(LEAST_LEASE, most));
        // RFC 2131 section 4.1: to the address that the client has, else to all if it wants that, else to the one that it is to have.
        let to = if !message.ciaddr.is_unspecified() && kind == Kind::Ack {
            (message.ciaddr, asked.client.mac)
        } else if message.broadcast {
            (Ipv4Addr::BROADCAST, Mac::BROADCAST)
        } else {
            (address, asked.client.mac)
        };
        reply::write(out, &self.reply(asked, kind, to, address, Some(seconds)), message);
        seconds
    }

    /// NAK, always to all (RFC 2131 section 4.1).
    fn refuse(&self, asked: &Asked<'_>, out: &mut Vec<u8>) -> Decision {
        let to = (Ipv4Addr::BROADCAST, Mac::BROADCAST);
        let reply = self.reply(asked, Kind::Nak, to, Ipv4Addr::UNSPECIFIED, None);
        reply::write(out, &reply, &asked.message);
        Decision::reply()
    }

    fn reply<'a>(
        &'a self,
        asked: &'a Asked<'_>,
        kind: Kind,
        (to, to_mac): (Ipv4Addr, Mac),
        address: Ipv4Addr,
        lease: Option<u32>,
    ) -> Reply<'a> {
        Reply {
            kind,
            router: asked.v4.address,
            mac: asked.mac,
            mtu: self.mtu,
            to,
            to_mac,
            address,
            lease,
            name: asked.name.as_deref(),
            fixed: &self.fixed,
        }
    }
}

impl Asked<'_> {
    fn lease(&self, address: Ipv4Addr, state: LeaseState, expires: Instant) -> Lease {
        let (client, name, nic) = (self.client.clone(), self.name.clone(), Some(self.nic));
        // When it began is told by who commits it.
        Lease { address, client, state, nic, home: nic, name, began: 0, expires }
    }
}

/// What was answered, or only heard, and is to be remembered.
fn promise(lease: Lease) -> Decision {
    Decision { verdict: Verdict::Reply, change: Change::Lease(Box::new(lease)) }
}

/// The same of an address that no offer went before.
fn unproved(lease: Lease) -> Decision {
    Decision { verdict: Verdict::Reply, change: Change::Unproved(Box::new(lease)) }
}

pub(crate) fn is_for(guest: &Guest, mac: Mac, name: Option<&str>) -> bool {
    match guest {
        Guest::Mac(reserved) => *reserved == mac,
        // Names are compared as they are kept: made fit for DNS.
        Guest::Name(reserved) => host_name(reserved.as_bytes()).as_deref() == name && name.is_some(),
    }
}
