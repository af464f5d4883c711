//! [`Gateway`]: one frame in, a verdict and at most one frame out.
//!
//! Invariant: [`Gateway::decide`] changes nothing, and what it decides is a function of the frame, the state and the time;
//! [`Gateway::commit`] is the only thing that changes state. Whatever bytes come in, nothing panics, and an answer is never longer
//! than the question or than 1,500 bytes, whichever is longer.
//!
//! Theory of operation: the port first asks for the [`Interest`] in a frame, by its head alone, so that what the router has nothing
//! to say about is never read whole. Then `decide` writes the answer into a buffer that is used again and again, and `commit` takes what has
//! to be remembered: an error from the budget, a lease, a solicitation. Trace and tests call `decide` only.
//! Read first: RFC 1812 sections 4 and 5 (routers), then the module of a protocol.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use wire::{DropReason, Instant, L3, Layers, Mac, NicId, Origin, Verdict, layers::ETHERNET_LEN};

use crate::{
    arp,
    bytes::array,
    config::{Config, ConfigError, Elsewhere},
    dhcp::{Dhcp, Event, Lease, LeaseEvent, LeaseState, Snapshot},
    dhcp6::Dhcp6,
    errors::ErrorBudget,
    icmp, ipv4, ipv6, ndisc,
    neighbours::{Neighbour, Neighbours},
    ra::Advertiser,
    straight::Straight,
};

/// How long an address stays offered to a client whose answer waits: some times that wait.
const PUT_OFF: Duration = Duration::from_secs(1);

/// A frame and what is known about it.
#[derive(Clone, Copy, Debug)]
pub struct Incoming<'a> {
    /// All its bytes (to [`Gateway::interest`]: those of its head).
    pub bytes: &'a [u8],
    /// Where it came in.
    pub origin: Origin,
    /// Its transport checksum is not there yet.
    pub checksum_owed: bool,
}

impl Incoming<'_> {
    /// Destination and source.
    pub(crate) fn macs(&self) -> (Mac, Mac) {
        let at = |at| Mac::new(array(self.bytes, at).unwrap_or_default());
        (at(0), at(6))
    }
}

/// How much of a frame [`Gateway::decide`] needs to see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interest {
    /// Nothing more: it ends here.
    None(DropReason),
    /// It goes on to what is behind the gateway, or to another segment.
    Forward,
    /// It goes to the service port.
    Service,
    /// All of it.
    All,
}

/// What [`Gateway::commit`] remembers.
#[derive(Debug)]
pub(crate) enum Change {
    None,
    /// An ICMP error that this NIC caused.
    Error(NicId),
    /// The router's IPv4 address was defended.
    Defence,
    /// A router advertisement to all is asked for.
    Solicited,
    /// Somebody has shown where an address is.
    Heard {
        address: IpAddr,
        mac: Mac,
        nic: NicId,
    },
    /// A lease begins, goes on or ends.
    Lease(Box<Lease>),
    /// One begins or goes on that no offer of ours went before: somebody else may use its address.
    Unproved(Box<Lease>),
    /// The same in DHCPv6.
    Lease6(Box<Lease<Ipv6Addr>>),
}

/// What is to happen to a frame.
#[derive(Debug)]
#[must_use = "a decision takes effect when it is committed"]
pub struct Decision {
    /// How the frame ends. An answer, where one was written, is sent whatever the verdict is: an ICMP error goes with a drop.
    pub verdict: Verdict,
    pub(crate) change: Change,
}

impl Decision {
    pub(crate) fn drop(reason: DropReason) -> Self {
        Decision { verdict: Verdict::Drop(reason), change: Change::None }
    }

    pub(crate) fn reply() -> Self {
        Decision { verdict: Verdict::Reply, change: Change::None }
    }

    /// The address that the frame shows the place of.
    pub(crate) fn heard(&self) -> Option<IpAddr> {
        match &self.change {
            Change::Heard { address, .. } => Some(*address),
            Change::Lease(lease) if lease.state == LeaseState::Bound => Some(lease.address.into()),
            Change::Lease6(lease) if lease.state == LeaseState::Bound => Some(lease.address.into()),
            _ => None,
        }
    }

    /// The address that the frame is answered with an offer of.
    pub(crate) fn offered(&self) -> Option<Ipv4Addr> {
        self.lease().filter(|lease| lease.state == LeaseState::Offered).map(|lease| lease.address)
    }

    /// The lease that the frame changes, as it will be.
    pub fn lease(&self) -> Option<&Lease> {
        match &self.change {
            Change::Lease(lease) | Change::Unproved(lease) => Some(lease),
            _ => None,
        }
    }

    /// What of it is done at once, and the lease that begins with its answer only, a moment later: that of an address which nobody was asked about,
    /// or which an offer `waits` for. Meanwhile the address is offered.
    pub(crate) fn put_off(self, now: Instant, waits: impl Fn(Ipv4Addr) -> bool) -> (Decision, Option<Box<Lease>>) {
        let (verdict, lease) = match self {
            Decision { verdict, change: Change::Unproved(lease) } => (verdict, lease),
            Decision { verdict, change: Change::Lease(lease) }
                if lease.state == LeaseState::Bound && waits(lease.address) =>
            {
                (verdict, lease)
            }
            other => return (other, None),
        };
        let offered = Lease { state: LeaseState::Offered, expires: now + PUT_OFF, ..(*lease).clone() };
        (Decision { verdict, change: Change::Lease(Box::new(offered)) }, Some(lease))
    }
}

/// The router of one segment. See the module's documentation.
#[derive(Debug)]
pub struct Gateway {
    config: Config,
    errors: ErrorBudget,
    defended: Option<Instant>,
    advertiser: Option<Advertiser>,
    dhcp: Option<Dhcp>,
    neighbours: Neighbours,
    dhcp6: Option<Dhcp6>,
    /// How many leases have begun so far, here and at those who count with it.
    begun: Arc<AtomicU64>,
    straight: Option<Straight>,
}

impl Gateway {
    /// The router that `config` describes, whose time begins at `now`.
    pub fn new(config: Config, now: Instant) -> Result<Self, ConfigError> {
        config.check()?;
        let dhcp = config.v4.as_ref().and_then(|v4| Dhcp::new(v4, config.mtu, config.seed)).transpose()?;
        let dhcp6 = config.v6.as_ref().and_then(|v6| Dhcp6::new(v6, config.mac, config.seed)).transpose()?;
        let advertiser = match &config.v6 {
            Some(v6) => Some(Advertiser::new(&config, v6, now)?),
            None => None,
        };
        Ok(Gateway {
            errors: ErrorBudget::new(config.errors_per_second),
            defended: None,
            advertiser,
            dhcp,
            dhcp6,
            neighbours: Neighbours::default(),
            begun: Arc::default(),
            straight: Straight::new(&config),
            config,
        })
    }

    /// Counts the leases that begin by `begun`, as others do: of all their leases it is known which began first ([`Lease::began`]).
    #[must_use]
    pub fn with_begun(self, begun: Arc<AtomicU64>) -> Self {
        Gateway { begun, ..self }
    }

    /// Who it is.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Whether there is a way out now ([`Elsewhere::Forward`]) or none ([`Elsewhere::Unreachable`]).
    pub(crate) fn set_leads_out(&mut self, leads: bool) {
        let elsewhere = if leads { Elsewhere::Forward } else { Elsewhere::Unreachable };
        if self.config.elsewhere != elsewhere {
            self.config.elsewhere = elsewhere;
            self.straight = Straight::new(&self.config);
        }
    }

    /// How much of a frame has to be seen, by its first bytes (128, or all where there are fewer).
    #[inline]
    pub fn interest(&self, head: &Incoming<'_>, now: Instant) -> Interest {
        match &self.straight {
            Some(straight) if straight.covers(head.bytes, head.checksum_owed) => Interest::Forward,
            _ => self.interest_in_other(head, now),
        }
    }

    pub(crate) fn interest_in_other(&self, head: &Incoming<'_>, now: Instant) -> Interest {
        let not_ours = Interest::None(DropReason::NotForGateway);
        let (to, from) = head.macs();
        if (to != self.config.mac && !to.is_group()) || !from.is_unicast() || from == self.config.mac {
            return not_ours;
        }
        let Some(layers) = Layers::parse(head.bytes) else { return not_ours };
        if layers.l2_len != ETHERNET_LEN {
            // Tags that the bridge did not take off are not the router's.
            return not_ours;
        }
        match (layers.l3, layers.ethertype) {
            (_, arp::ETHERTYPE) => Interest::All,
            (L3::V4, _) => ipv4::interest(self.protocols(now), head, layers),
            (L3::V6, _) => ipv6::interest(self.protocols(now), head, layers),
            _ => not_ours,
        }
    }

    /// What is to happen to a frame that [`Gateway::interest`] is in; the answer, if there is one, is in `out` then, else that is empty.
    pub fn decide(&self, incoming: &Incoming<'_>, now: Instant, out: &mut Vec<u8>) -> Decision {
        out.clear();
        let head = Incoming { bytes: incoming.bytes.get(..wire::HEAD_BYTES).unwrap_or(incoming.bytes), ..*incoming };
        match self.interest(&head, now) {
            Interest::None(reason) => return Decision::drop(reason),
            Interest::Forward | Interest::Service => {
                return Decision { verdict: Verdict::Forward, change: Change::None };
            }
            Interest::All => {}
        }
        let Some(layers) = Layers::parse(incoming.bytes) else { return Decision::drop(DropReason::BadPacket) };
        match (layers.l3, layers.ethertype) {
            (_, arp::ETHERTYPE) => arp::decide(&self.config, self.defended, &self.neighbours, incoming, now, out),
            (L3::V4, _) => ipv4::decide(self.protocols(now), incoming, layers, out),
            (L3::V6, _) => ipv6::decide(self.protocols(now), incoming, layers, out),
            _ => Decision::drop(DropReason::NotForGateway),
        }
    }

    #[cfg(test)]
    pub(crate) fn straight(&self) -> Option<&Straight> {
        self.straight.as_ref()
    }

    fn protocols(&self, now: Instant) -> Protocols<'_> {
        Protocols {
            config: &self.config,
            errors: &self.errors,
            neighbours: &self.neighbours,
            advertiser: self.advertiser.as_ref(),
            dhcp: self.dhcp.as_ref(),
            dhcp6: self.dhcp6.as_ref(),
            now,
        }
    }

    /// Remembers what was decided; what it did to the leases.
    pub fn commit(&mut self, decision: Decision, now: Instant) -> Option<Event> {
        match decision.change {
            Change::None => {}
            Change::Error(nic) => self.errors.take(nic, now),
            Change::Defence => self.defended = Some(now),
            Change::Solicited => {
                if let Some(advertiser) = &mut self.advertiser {
                    advertiser.solicited(now);
                }
            }
            Change::Heard { address, mac, nic } => {
                self.neighbours.heard(address, mac, nic, now);
                let IpAddr::V4(address) = address else { return None };
                return self.dhcp.as_mut()?.heard(address, mac, nic, now).map(Event::V4);
            }
            Change::Lease(lease) | Change::Unproved(lease) => return self.lease(*lease, now),
            Change::Lease6(lease) => return self.lease6(*lease, now),
        }
        None
    }

    /// A lease that was put off begins; nothing where its address is offered to the client no more.
    pub(crate) fn begin(&mut self, lease: Lease, now: Instant) -> Option<Event> {
        self.dhcp.as_ref().filter(|dhcp| dhcp.offers(&lease))?;
        self.lease(lease, now)
    }

    fn next_begun(&self) -> u64 {
        self.begun.fetch_add(1, Ordering::Relaxed) + 1
    }

    fn lease(&mut self, mut lease: Lease, now: Instant) -> Option<Event> {
        lease.began = self.next_begun();
        let event = self.dhcp.as_mut()?.commit(lease, now);
        self.remember(&event);
        Some(Event::V4(event))
    }

    fn lease6(&mut self, mut lease: Lease<Ipv6Addr>, now: Instant) -> Option<Event> {
        lease.began = self.next_begun();
        let event = self.dhcp6.as_mut()?.commit(lease, now);
        self.remember(&event);
        Some(Event::V6(event))
    }

    /// A client is where its lease says.
    fn remember<A: Copy + Into<IpAddr>>(&mut self, event: &LeaseEvent<A>) {
        if let Some(left) = event.left {
            self.neighbours.ended(left.into());
        }
        let Lease { address, client, state, nic, expires, .. } = &event.lease;
        match (state, nic) {
            (LeaseState::Bound, Some(nic)) => self.neighbours.leased((*address).into(), client.mac, *nic, *expires),
            (LeaseState::Released | LeaseState::Declined, _) => self.neighbours.ended((*address).into()),
            _ => {}
        }
    }

    /// What is known of who has `address` in the segment.
    pub fn neighbour(&self, address: IpAddr, now: Instant) -> Neighbour {
        self.neighbours.find(address, now)
    }

    /// Writes the question who has `address`; an empty `out` when the router does not speak that version of IP.
    pub fn ask(&mut self, address: IpAddr, now: Instant, out: &mut Vec<u8>) {
        out.clear();
        match (address, &self.config.v4, &self.config.v6) {
            (IpAddr::V4(address), Some(v4), _) => arp::ask(out, self.config.mac, v4.address, address),
            (IpAddr::V6(address), _, Some(v6)) => ndisc::ask(out, self.config.mac, v6.source_for(address), address),
            _ => {}
        }
        self.neighbours.asked(address, now);
    }

    /// Writes the question whether somebody has an address that is offered to a client on `nic`; false and an empty `out` where that is known
    /// or the NIC has caused too many questions.
    pub(crate) fn probe(&mut self, address: Ipv4Addr, nic: NicId, now: Instant, out: &mut Vec<u8>) -> bool {
        out.clear();
        if self.neighbour(address.into(), now) != Neighbour::Ask || !self.errors.allows(nic, now) {
            return false;
        }
        self.errors.take(nic, now);
        self.ask(address.into(), now, out);
        true
    }

    /// Forgets questions that nobody answered. Now and then.
    pub fn sweep(&mut self, now: Instant) {
        self.neighbours.sweep(now);
    }

    /// Writes the error about a packet that is longer than `mtu` and may not be cut; an empty `out` where none may be sent.
    pub fn too_big(&mut self, incoming: &Incoming<'_>, mtu: u16, now: Instant, out: &mut Vec<u8>) {
        out.clear();
        let nic = incoming.origin.nic;
        if !self.errors.allows(nic, now) {
            return;
        }
        let (mac, to_mac) = (self.config.mac, incoming.macs().1);
        let Some(layers) = Layers::parse(incoming.bytes) else { return };
        let about = incoming.bytes.get(layers.l2_len..).unwrap_or_default();
        match (layers.l3, &self.config.v4, &self.config.v6) {
            (L3::V4, Some(v4), _) => {
                let Some(to) = ipv4::to_complain_to(v4, incoming, layers) else { return };
                let path = icmp::Path { mac, to_mac, from: v4.address, to };
                icmp::error_with(out, &path, icmp::UNREACHABLE, icmp::TOO_BIG, mtu.into(), about);
            }
            (L3::V6, _, Some(v6)) => {
                let Some(to) = ipv6::to_complain_to(v6, incoming, layers) else { return };
                let path = icmp::Path { mac, to_mac, from: v6.source_for(to), to };
                icmp::error_v6_with(out, &path, icmp::V6_TOO_BIG, 0, mtu.into(), about);
            }
            _ => return,
        }
        self.errors.take(nic, now);
    }

    /// Whether `address` is to be found on the segment.
    pub fn is_on_link(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => self.config.v4.as_ref().is_some_and(|v4| v4.may_lease(address)),
            IpAddr::V6(address) => self.config.v6.as_ref().is_some_and(|v6| v6.is_on_link(address)),
        }
    }

    /// Writes the router advertisement that is due, if one is; false and an empty `out` when none is.
    pub fn tick(&mut self, now: Instant, out: &mut Vec<u8>) -> bool {
        out.clear();
        self.advertiser.as_mut().is_some_and(|advertiser| advertiser.tick(now, out))
    }

    /// When [`Gateway::tick`] is to be called next.
    pub fn deadline(&self) -> Option<Instant> {
        self.advertiser.as_ref().map(Advertiser::next)
    }

    /// Every lease, offer and address put aside, by address.
    pub fn leases(&self) -> impl Iterator<Item = &Lease> {
        self.dhcp.iter().flat_map(Dhcp::leases)
    }

    /// The same of DHCPv6.
    pub fn leases6(&self) -> impl Iterator<Item = &Lease<Ipv6Addr>> {
        self.dhcp6.iter().flat_map(Dhcp6::leases)
    }

    /// What is to outlive a restart.
    pub fn snapshot(&self, now: Instant) -> Snapshot {
        let mut all = self.dhcp.as_ref().map(|dhcp| dhcp.snapshot(now)).unwrap_or_default();
        all.leases6 = self.dhcp6.as_ref().map(|dhcp| dhcp.snapshot(now)).unwrap_or_default();
        all
    }

    /// Takes over what an earlier router of the segment left `away` ago. What does not fit the configuration any more is left out;
    /// the number of leases that were taken over.
    pub fn restore(&mut self, snapshot: &Snapshot, now: Instant, away: Duration) -> usize {
        let began = snapshot.leases.iter().map(|lease| lease.began);
        let last = began.chain(snapshot.leases6.iter().map(|lease| lease.began)).max();
        self.begun.fetch_max(last.unwrap_or(0), Ordering::Relaxed);
        self.dhcp.as_mut().map_or(0, |dhcp| dhcp.restore(snapshot, now, away))
            + self.dhcp6.as_mut().map_or(0, |dhcp| dhcp.restore(&snapshot.leases6, now, away))
    }
}

/// What the protocols decide with.
#[derive(Clone, Copy)]
pub(crate) struct Protocols<'a> {
    pub(crate) config: &'a Config,
    pub(crate) errors: &'a ErrorBudget,
    pub(crate) neighbours: &'a Neighbours,
    pub(crate) advertiser: Option<&'a Advertiser>,
    pub(crate) dhcp: Option<&'a Dhcp>,
    pub(crate) dhcp6: Option<&'a Dhcp6>,
    pub(crate) now: Instant,
}
