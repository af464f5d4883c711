//! [`Dhcp6`]: what a DHCPv6 client is told.
//!
//! Invariant: an address is promised only to a client whose lease, reservation or offer it is, or when nobody has a claim to it;
//! [`Dhcp6::decide`] changes nothing, and each answer that promises something comes with the lease to be committed.
//!
//! Theory of operation: as in DHCPv4 this is the only server of its segment, so it says yes to a client that renews an address nobody else
//! has, even where its lease was forgotten. A message that came to the router alone is answered with UseMulticast.
//! Read first: RFC 8415 sections 16 (validation) and 18.3.

use std::{collections::BTreeSet, net::Ipv6Addr, time::Duration};

use wire::{DropReason, Instant, Mac, NicId, Verdict, checksum::Checksum, layers::ETHERTYPE_IPV6};

use super::{
    CLIENT_PORT, Dhcp6Config, SERVER_PORT,
    message::{
        ADVERTISE, CONFIRM, DECLINE, INFORMATION_REQUEST, Message, REBIND, RELEASE, RENEW, REPLY, REQUEST, SOLICIT,
    },
    pool,
};
use crate::{
    bytes::set16,
    config::{ConfigError, RouterV6, encode_name, within},
    dhcp::{Client, Lease, LeaseEvent, LeaseState, SavedLease, is_for, leases::Leases, message::host_name},
    gateway::{Change, Decision},
    icmp::Path,
    packet::{self, L4_OVER_V6, TTL, UDP},
};

const SUCCESS: u16 = 0;
const NO_ADDRS_AVAIL: u16 = 2;
const NO_BINDING: u16 = 3;
const NOT_ON_LINK: u16 = 4;
const USE_MULTICAST: u16 = 5;

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Dhcp6 {
    config: Dhcp6Config,
    /// DUID-LL of the router: the same after every start.
    duid: [u8; 10],
    prefix: Option<(Ipv6Addr, u8)>,
    reserved: BTreeSet<Ipv6Addr>,
    /// Options 23, 24 and 56.
    fixed: Vec<(u16, Vec<u8>)>,
    leases: Leases<Ipv6Addr>,
}

/// A message together with who sent it.
struct Asked<'a> {
    path: &'a Path<Ipv6Addr>,
    message: Message<'a>,
    client: Client,
    nic: NicId,
    name: Option<Box<str>>,
    now: Instant,
}

/// What is said about the association.
#[derive(Clone, Copy)]
enum About {
    Nothing,
    /// Its address, and for how long.
    Address(Ipv6Addr, u32),
    /// The same, and the address that it has no more.
    Moved(Ipv6Addr, u32, Ipv6Addr),
    Status(u16),
}

impl Dhcp6 {
    /// The server that `router` has, if it has one.
    pub(crate) fn new(router: &RouterV6, mac: Mac, seed: u64) -> Option<Result<Self, ConfigError>> {
        let config = router.dhcp.clone()?;
        let reserved: BTreeSet<_> = config.reservations.iter().map(|reservation| reservation.address).collect();
        let free = pool(router).filter(|address| config.stateful && !reserved.contains(address)).collect();
        let mut search = Vec::new();
        for name in &router.search {
            if let Err(error) = encode_name(name, &mut search) {
                return Some(Err(error));
            }
        }
        let dns = router.dns.iter().flat_map(|address| address.octets()).collect();
        // RFC 5908 section 4.1: each as a suboption.
        let ntp = config.ntp.iter().flat_map(|address| [&[0, 1, 0, 16][..], &address.octets()].concat()).collect();
        let mut duid = [0, 3, 0, 1, 0, 0, 0, 0, 0, 0];
        duid[4..].copy_from_slice(&mac.bytes());
        Some(Ok(Dhcp6 {
            leases: Leases::new(free, config.share, seed),
            duid,
            prefix: router.global,
            reserved,
            fixed: [(23, dns), (24, search), (56, ntp)]
                .into_iter()
                .filter(|(_, value): &(u16, Vec<u8>)| !value.is_empty())
                .collect(),
            config,
        }))
    }

    pub(crate) fn leases(&self) -> impl Iterator<Item = &Lease<Ipv6Addr>> {
        self.leases.iter()
    }

    pub(crate) fn commit(&mut self, lease: Lease<Ipv6Addr>, now: Instant) -> LeaseEvent<Ipv6Addr> {
        self.leases.put(lease, now)
    }

    pub(crate) fn snapshot(&self, now: Instant) -> Vec<SavedLease<Ipv6Addr>> {
        self.leases.snapshot(now)
    }

    pub(crate) fn restore(&mut self, saved: &[SavedLease<Ipv6Addr>], now: Instant, away: Duration) -> usize {
        let fits = |saved: &&SavedLease<Ipv6Addr>| match self
            .config
            .reservations
            .iter()
            .find(|reservation| reservation.address == saved.address)
        {
            Some(reservation) => is_for(&reservation.guest, saved.client.mac, saved.name.as_deref()),
            None => self.leases.in_pool(saved.address),
        };
        let fitting: Vec<_> = saved.iter().filter(fits).collect();
        for saved in &fitting {
            let longest = if saved.state == LeaseState::Declined { self.config.decline } else { self.config.lease };
            self.leases.restore(saved, now, away, longest);
        }
        fitting.len()
    }

    /// Decides about the UDP payload `bytes`; `path` is that of the answer.
    pub(crate) fn decide(
        &self,
        path: &Path<Ipv6Addr>,
        to_all: bool,
        nic: NicId,
        bytes: &[u8],
        now: Instant,
        out: &mut Vec<u8>,
    ) -> Decision {
        let bad = || Decision::drop(DropReason::BadPacket);
        let Some(message) = Message::parse(bytes) else { return bad() };
        let for_us = message.server.map(|server| server == self.duid);
        let is_valid = match message.kind {
            SOLICIT | CONFIRM | REBIND => message.client.is_some() && for_us.is_none(),
            REQUEST | RENEW | RELEASE | DECLINE => message.client.is_some() && for_us.is_some(),
            INFORMATION_REQUEST => message.association.is_none(),
            _ => false,
        };
        if !is_valid {
            return bad();
        }
        if for_us == Some(false) || !(self.config.stateful || message.kind == INFORMATION_REQUEST) {
            return Decision::drop(DropReason::NotForGateway);
        }
        let duid = message.client.unwrap_or_default();
        let id = [duid, &message.association.unwrap_or_default()].concat();
        let client = Client { mac: path.to_mac, id: id.into() };
        let known = || self.leases.of(&client).and_then(|lease| lease.name.clone());
        let name = message.name.and_then(host_name).or_else(known);
        let asked = Asked { path, client, nic, name, now, message };
        match (asked.message.kind, to_all) {
            (REQUEST | RENEW | RELEASE | DECLINE, false) => {
                self.answer(&asked, REPLY, About::Nothing, Some(USE_MULTICAST), out);
                Decision::reply()
            }
            (_, false) => Decision::drop(DropReason::NotForGateway),
            (SOLICIT, _) => self.solicit(&asked, out),
            (REQUEST, _) => self.request(&asked, out),
            (RENEW | REBIND, _) => self.renew(&asked, out),
            (RELEASE, _) => self.end(&asked, LeaseState::Released, Duration::ZERO, out),
            (DECLINE, _) => self.end(&asked, LeaseState::Declined, self.config.decline, out),
            (CONFIRM, _) => match asked.message.address {
                Some(address) => {
                    let status = if self.is_on_link(address) { SUCCESS } else { NOT_ON_LINK };
                    self.answer(&asked, REPLY, About::Nothing, Some(status), out);
                    Decision::reply()
                }
                None => Decision::drop(DropReason::NoLease),
            },
            _ => {
                self.answer(&asked, REPLY, About::Nothing, None, out);
                Decision::reply()
            }
        }
    }

    fn is_on_link(&self, address: Ipv6Addr) -> bool {
        self.prefix.is_some_and(|(router, prefix)| within(address.into(), router.into(), prefix))
    }

    /// The address reserved for this client, unless somebody else has it at the moment.
    fn reserved(&self, asked: &Asked<'_>) -> Option<Ipv6Addr> {
        let mine =
            self.config.reservations.iter().find(|r| is_for(&r.guest, asked.client.mac, asked.name.as_deref()))?;
        let held = self.leases.at(mine.address).is_some_and(|lease| {
            // A guest that was installed anew says another DUID.
            lease.expires > asked.now && (lease.state == LeaseState::Declined || lease.client.mac != asked.client.mac)
        });
        (!held).then_some(mine.address)
    }

    /// What the client has a claim to: what is reserved for it, or what it has or had.
    fn claim(&self, asked: &Asked<'_>) -> Option<Ipv6Addr> {
        let remembered = self.leases.of(&asked.client).map(|lease| lease.address);
        self.reserved(asked).or(remembered.filter(|address| !self.reserved.contains(address)))
    }

    /// The address it wishes, when nobody has a claim to that.
    fn wished(&self, asked: &Asked<'_>) -> Option<Ipv6Addr> {
        let free = |address: &Ipv6Addr| {
            self.leases.in_pool(*address)
                && self.leases.is_free(*address, asked.client.mac, asked.now)
                && self.leases.within_share(asked.nic)
        };
        asked.message.address.filter(free)
    }

    fn chosen(&self, asked: &Asked<'_>) -> Option<Ipv6Addr> {
        let any = || self.leases.choose(&asked.client, asked.nic, asked.now);
        self.claim(asked).or_else(|| self.wished(asked)).or_else(any)
    }

    /// RFC 8415 sections 18.3.1 and 18.3.9.
    fn solicit(&self, asked: &Asked<'_>, out: &mut Vec<u8>) -> Decision {
        let kind = if asked.message.rapid { REPLY } else { ADVERTISE };
        if asked.message.association.is_none() {
            self.answer(asked, kind, About::Nothing, None, out);
            return Decision::reply();
        }
        let Some(address) = self.chosen(asked) else { return self.say(asked, kind, NO_ADDRS_AVAIL, out) };
        if asked.message.rapid {
            return self.bind(asked, address, out);
        }
        self.answer(asked, kind, About::Address(address, self.seconds()), None, out);
        let offered = asked.now + self.config.offer;
        match self.leases.of(&asked.client) {
            // Who asks again has not lost what it has.
            Some(lease) if lease.address == address && lease.state == LeaseState::Bound && lease.expires > offered => {
                let nic = lease.nic.or(Some(asked.nic));
                promise(Lease { nic, ..asked.lease(address, LeaseState::Bound, lease.expires) })
            }
            _ => promise(asked.lease(address, LeaseState::Offered, offered)),
        }
    }

    /// RFC 8415 section 18.3.2.
    fn request(&self, asked: &Asked<'_>, out: &mut Vec<u8>) -> Decision {
        if asked.message.association.is_none() {
            self.answer(asked, REPLY, About::Nothing, None, out);
            return Decision::reply();
        }
        if asked.message.address.is_some_and(|address| !self.is_on_link(address)) {
            return self.say(asked, REPLY, NOT_ON_LINK, out);
        }
        match self.chosen(asked) {
            Some(address) => self.bind(asked, address, out),
            None => self.say(asked, REPLY, NO_ADDRS_AVAIL, out),
        }
    }

    /// RFC 8415 sections 18.3.4 and 18.3.5.
    fn renew(&self, asked: &Asked<'_>, out: &mut Vec<u8>) -> Decision {
        match self.claim(asked).or_else(|| self.wished(asked)) {
            Some(address) => {
                let about = match asked.message.address.filter(|old| *old != address) {
                    // The client is to leave that at once.
                    Some(old) => About::Moved(address, self.seconds(), old),
                    None => About::Address(address, self.seconds()),
                };
                self.answer(asked, REPLY, about, None, out);
                promise(asked.lease(address, LeaseState::Bound, asked.now + self.config.lease))
            }
            None if asked.message.kind == RENEW => self.say(asked, REPLY, NO_BINDING, out),
            // An address that cannot be right here is at its end; of another we know nothing.
            None => match asked.message.address.filter(|address| !self.is_on_link(*address)) {
                Some(address) => {
                    self.answer(asked, REPLY, About::Address(address, 0), None, out);
                    Decision::reply()
                }
                None => Decision::drop(DropReason::NoLease),
            },
        }
    }

    /// RFC 8415 sections 18.3.7 and 18.3.8: only of an address that the client has, and from where that began.
    fn end(&self, asked: &Asked<'_>, state: LeaseState, time: Duration, out: &mut Vec<u8>) -> Decision {
        let held = self.leases.of(&asked.client).filter(|lease| {
            Some(lease.address) == asked.message.address && lease.home.is_none_or(|nic| nic == asked.nic)
        });
        let about = if held.is_some() { About::Nothing } else { About::Status(NO_BINDING) };
        self.answer(asked, REPLY, about, Some(SUCCESS), out);
        match held {
            Some(lease) => promise(asked.lease(lease.address, state, asked.now + time)),
            None => Decision::reply(),
        }
    }

    fn bind(&self, asked: &Asked<'_>, address: Ipv6Addr, out: &mut Vec<u8>) -> Decision {
        self.answer(asked, REPLY, About::Address(address, self.seconds()), None, out);
        promise(asked.lease(address, LeaseState::Bound, asked.now + self.config.lease))
    }

    fn say(&self, asked: &Asked<'_>, kind: u8, status: u16, out: &mut Vec<u8>) -> Decision {
        self.answer(asked, kind, About::Status(status), None, out);
        Decision::reply()
    }

    /// The seconds of a lease; all ones would mean for ever.
    fn seconds(&self) -> u32 {
        u32::try_from(self.config.lease.as_secs()).unwrap_or(u32::MAX).min(u32::MAX - 1)
    }

    /// Writes an answer.
    fn answer(&self, asked: &Asked<'_>, kind: u8, about: About, status: Option<u16>, out: &mut Vec<u8>) {
        let message = &asked.message;
        packet::ethernet(out, asked.path.to_mac, asked.path.mac, ETHERTYPE_IPV6);
        out.extend_from_slice(&[0x60, 0, 0, 0, 0, 0, UDP, TTL]);
        out.extend_from_slice(&asked.path.from.octets());
        out.extend_from_slice(&asked.path.to.octets());
        out.extend_from_slice(&SERVER_PORT.to_be_bytes());
        out.extend_from_slice(&CLIENT_PORT.to_be_bytes());
        out.extend_from_slice(&[0; 4]);
        let [a, b, c] = message.xid;
        out.extend_from_slice(&[kind, a, b, c]);
        option(out, 2, &self.duid);
        if let Some(client) = message.client {
            option(out, 1, client);
        }
        if let Some(association) = message.association {
            self.association(out, association, about);
        }
        if matches!(message.kind, SOLICIT | REQUEST | RENEW | REBIND | RELEASE | DECLINE)
            && status != Some(USE_MULTICAST)
        {
            let status = if matches!(message.kind, SOLICIT | REQUEST) { NO_ADDRS_AVAIL } else { NO_BINDING };
            for more in message.more.iter().flatten() {
                self.association(out, *more, About::Status(status));
            }
        }
        if let Some(status) = status {
            option(out, 13, &status.to_be_bytes());
        }
        if kind == ADVERTISE {
            // There is no other server to wait for.
            option(out, 7, &[255]);
        }
        if kind == REPLY && message.kind == SOLICIT {
            option(out, 14, &[]);
        }
        for (code, value) in self.fixed.iter().filter(|(code, _)| message.wants(*code)) {
            option(out, *code, value);
        }
        if message.kind == INFORMATION_REQUEST {
            let refresh = u32::try_from(self.config.refresh.as_secs()).unwrap_or(u32::MAX);
            option(out, 32, &refresh.to_be_bytes());
        }
        let length = out.len().saturating_sub(L4_OVER_V6) as u16;
        set16(out, 18, length);
        set16(out, L4_OVER_V6 + 4, length);
        let (from, to) = (asked.path.from.octets(), asked.path.to.octets());
        packet::finish(out, L4_OVER_V6, 6, Checksum::pseudo_v6(from, to, UDP, u32::from(length)));
    }

    /// An IA_NA.
    fn association(&self, out: &mut Vec<u8>, id: [u8; 4], about: About) {
        let seconds = match about {
            About::Nothing => return,
            About::Status(_) => 0,
            About::Address(_, seconds) | About::Moved(_, seconds, _) => seconds,
        };
        out.extend_from_slice(&[0, 3, 0, 0]);
        let begin = out.len();
        out.extend_from_slice(&id);
        out.extend_from_slice(&(seconds / 2).to_be_bytes());
        out.extend_from_slice(&(seconds / 5 * 4).to_be_bytes());
        match about {
            About::Address(address, _) => self::address(out, address, seconds),
            About::Moved(address, _, old) => {
                self::address(out, address, seconds);
                self::address(out, old, 0);
            }
            About::Status(status) => option(out, 13, &status.to_be_bytes()),
            About::Nothing => {}
        }
        let length = out.len().saturating_sub(begin) as u16;
        set16(out, begin.saturating_sub(2), length);
    }
}

impl Asked<'_> {
    fn lease(&self, address: Ipv6Addr, state: LeaseState, expires: Instant) -> Lease<Ipv6Addr> {
        let (client, name, nic) = (self.client.clone(), self.name.clone(), Some(self.nic));
        Lease { address, client, state, nic, home: nic, name, began: 0, expires }
    }
}

/// What was answered and is to be remembered.
fn promise(lease: Lease<Ipv6Addr>) -> Decision {
    Decision { verdict: Verdict::Reply, change: Change::Lease6(Box::new(lease)) }
}

fn option(out: &mut Vec<u8>, code: u16, value: &[u8]) {
    out.extend_from_slice(&code.to_be_bytes());
    out.extend_from_slice(&(value.len() as u16).to_be_bytes());
    out.extend_from_slice(value);
}

/// An address in an association, with both of its lifetimes.
fn address(out: &mut Vec<u8>, address: Ipv6Addr, seconds: u32) {
    out.extend_from_slice(&[0, 5, 0, 24]);
    out.extend_from_slice(&address.octets());
    out.extend_from_slice(&seconds.to_be_bytes());
    out.extend_from_slice(&seconds.to_be_bytes());
}
