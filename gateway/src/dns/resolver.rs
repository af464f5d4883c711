//! [`Resolver`]: queries in, answers out, and in between what is asked upstream on behalf of whom.
//!
//! Invariant: a query ends in exactly one reply, or in none where it was no query, was repeated, or is a guest's whose place another needed. A
//! guest has at most its share of those that wait; when all places are taken, the oldest query of the guest that holds most gives way. An
//! answer counts only if it comes from the server that was asked, by the same transport, under the id and for the question that were sent.
//!
//! Theory of operation: what is neither ours nor kept becomes an *exchange*: one question to one upstream at a time, by UDP first, from a
//! socket of its own. Those who ask the same meanwhile wait with the first: so nobody can have a question asked many times at once, which is
//! what guessing an id needs. When a server is silent, or has trouble, the next is asked, twice around. An answer that did not fit is asked for again
//! by TCP where somebody waits who came by TCP; the others are told that there is more. A server that does not know EDNS is asked again without.
//! Read first: RFC 5452 sections 4 and 9, RFC 1035 section 7, RFC 7766 section 6.2.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    hash::{BuildHasher, RandomState},
    net::SocketAddr,
    time::Duration,
};

use hickory_proto::op::ResponseCode;
use wire::Instant;

use super::{
    Action, Client, Guest, LeasedName, NetworkId, NetworkNames,
    cache::Cache,
    message::{FORMERR, Layout, Query, code, is_bare_refusal, truncated},
    upstreams::Upstreams,
    zones::Zones,
};

/// Patience with one server.
const UDP_TIMEOUT: Duration = Duration::from_millis(1500);
const TCP_TIMEOUT: Duration = Duration::from_secs(4);
/// Patience in all: after this, clients have given up as well.
const PATIENCE: Duration = Duration::from_secs(12);
/// How often each server is asked.
const ROUNDS: usize = 2;
/// Between two lines in the log about upstreams that are all silent.
const COMPLAINT: Duration = Duration::from_secs(60);
const SWEEP: Duration = Duration::from_secs(30);

/// How much of everything there is.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Queries that wait for upstreams.
    pub waiting: usize,
    /// Those of one guest.
    pub waiting_per_guest: usize,
    /// Answers that are kept.
    pub cache_entries: usize,
    /// Bytes of them.
    pub cache_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { waiting: 512, waiting_per_guest: 64, cache_entries: 10_000, cache_bytes: 8 << 20 }
    }
}

struct Waiter {
    client: Client,
    query: Query,
}

struct Exchange {
    key: Vec<u8>,
    /// As it was sent.
    query: Query,
    id: u16,
    server: SocketAddr,
    tcp: bool,
    /// The server that is asked without EDNS, having said that it does not understand.
    plain: Option<SocketAddr>,
    /// Servers asked, in order; one may be there twice.
    asked: Vec<SocketAddr>,
    deadline: Instant,
    ends: Instant,
    waiters: Vec<Waiter>,
    /// What a server with trouble said.
    trouble: Option<Vec<u8>>,
}

/// See the module's documentation.
pub struct Resolver {
    zones: Zones,
    upstreams: Upstreams,
    cache: Cache,
    limits: Limits,
    exchanges: HashMap<u64, Exchange>,
    by_key: HashMap<Vec<u8>, u64>,
    deadlines: BTreeSet<(Instant, u64)>,
    waiting: HashMap<Guest, usize>,
    actions: VecDeque<Action>,
    next: u64,
    /// Seeded by the operating system: nobody can tell what it makes of the next number.
    random: RandomState,
    complained: Option<Instant>,
    swept: Instant,
}

impl Resolver {
    /// A resolver for these networks, which has nobody to ask yet.
    pub fn new(networks: Vec<NetworkNames>, limits: Limits) -> Resolver {
        Resolver {
            zones: Zones::new(networks),
            upstreams: Upstreams::default(),
            cache: Cache::new(limits.cache_entries, limits.cache_bytes),
            limits,
            exchanges: HashMap::new(),
            by_key: HashMap::new(),
            deadlines: BTreeSet::new(),
            waiting: HashMap::new(),
            actions: VecDeque::new(),
            next: 1,
            random: RandomState::new(),
            complained: None,
            swept: Instant::START,
        }
    }

    /// The servers to ask from here on, in this order. Routers of ours are left out: they would ask us. Those asked already may still answer.
    pub fn set_upstreams(&mut self, servers: &[SocketAddr]) {
        let zones = &self.zones;
        let others = servers.iter().copied().filter(|server| !zones.is_router(server.ip()));
        if self.upstreams.set(others) {
            self.cache.clear();
            self.complained = None;
        }
    }

    /// The servers that are asked.
    pub fn upstreams(&self) -> Vec<SocketAddr> {
        self.upstreams.all()
    }

    /// The leases of a network that have a name, those that began first in front: of two guests who call themselves the same, the first counts.
    pub fn set_leases(&mut self, network: NetworkId, leases: &[LeasedName]) {
        self.zones.set_leased(network, leases);
    }

    /// A guest asks.
    pub fn ask(&mut self, client: Client, bytes: &[u8], now: Instant) {
        let query = match Query::parse(bytes) {
            Ok(query) => query,
            Err(None) => return,
            Err(Some(bytes)) => return self.actions.push_back(Action::Reply { client, bytes }),
        };
        if let Some(answer) = self.zones.answer(client.guest.network, &query) {
            if let Ok(answer) = answer.to_vec() {
                let bytes = query.fit(&answer, &client);
                self.actions.push_back(Action::Reply { client, bytes });
            }
            return;
        }
        if !self.zones.forwards(client.guest.network) {
            return self.refuse(&Waiter { client, query }, ResponseCode::Refused);
        }
        let key = query.key();
        if let Some(answer) = self.cache.get(&key, now) {
            let bytes = query.fit(&answer, &client);
            return self.actions.push_back(Action::Reply { client, bytes });
        }
        self.wait(Waiter { client, query }, key, now);
    }

    /// Has a query wait for an upstream.
    fn wait(&mut self, waiter: Waiter, key: Vec<u8>, now: Instant) {
        let guest = waiter.client.guest;
        let there = self.by_key.get(&key).copied();
        let again = |other: &Waiter| other.client == waiter.client && other.query.id == waiter.query.id;
        if there.and_then(|id| self.exchanges.get(&id)).is_some_and(|exchange| exchange.waiters.iter().any(again)) {
            return;
        }
        if self.held(guest) >= self.limits.waiting_per_guest || !self.make_room(guest) {
            return self.refuse(&waiter, ResponseCode::Refused);
        }
        // Making room may have ended the exchange.
        if let Some(exchange) = self.by_key.get(&key).and_then(|id| self.exchanges.get_mut(id)) {
            *self.waiting.entry(guest).or_default() += 1;
            exchange.waiters.push(waiter);
            return;
        }
        let Some(server) = self.upstreams.next(&[], now) else {
            self.complain(Vec::new(), now);
            return self.refuse(&waiter, ResponseCode::ServFail);
        };
        *self.waiting.entry(guest).or_default() += 1;
        let exchange = self.next;
        self.next += 1;
        self.by_key.insert(key.clone(), exchange);
        let query = waiter.query.clone();
        let ends = now + PATIENCE;
        let new = Exchange {
            key,
            query,
            id: 0,
            server,
            tcp: false,
            plain: None,
            asked: Vec::new(),
            deadline: now,
            ends,
            waiters: vec![waiter],
            trouble: None,
        };
        self.exchanges.insert(exchange, new);
        self.send(exchange, server, false, now);
    }

    fn held(&self, guest: Guest) -> usize {
        self.waiting.get(&guest).copied().unwrap_or(0)
    }

    /// Makes a place for one more of `guest`'s; false when nobody holds more than it.
    fn make_room(&mut self, guest: Guest) -> bool {
        if self.waiting.values().sum::<usize>() < self.limits.waiting {
            return true;
        }
        let mine = self.held(guest);
        let Some((fullest, most)) = self.waiting.iter().max_by_key(|(_, held)| **held) else { return false };
        let (fullest, most) = (*fullest, *most);
        if most <= mine + 1 {
            return false;
        }
        let holds = |exchange: &&u64| {
            let exchange = self.exchanges.get(exchange);
            exchange.is_some_and(|exchange| exchange.waiters.iter().any(|waiter| waiter.client.guest == fullest))
        };
        // Exchanges are numbered in their order.
        let Some(oldest) = self.exchanges.keys().filter(holds).min().copied() else { return false };
        let Some(exchange) = self.exchanges.get_mut(&oldest) else { return false };
        let Some(at) = exchange.waiters.iter().position(|waiter| waiter.client.guest == fullest) else { return false };
        let waiter = exchange.waiters.remove(at);
        let unheard = exchange.waiters.is_empty();
        self.let_go(&waiter);
        self.refuse(&waiter, ResponseCode::Refused);
        if unheard {
            self.end(oldest);
        }
        true
    }

    fn let_go(&mut self, waiter: &Waiter) {
        if let Some(held) = self.waiting.get_mut(&waiter.client.guest) {
            *held -= 1;
            if *held == 0 {
                self.waiting.remove(&waiter.client.guest);
            }
        }
    }

    fn refuse(&mut self, waiter: &Waiter, code: ResponseCode) {
        if let Ok(bytes) = waiter.query.answer(code).to_vec() {
            self.actions.push_back(Action::Reply { client: waiter.client, bytes });
        }
    }

    /// Takes an exchange out; its socket is closed.
    fn end(&mut self, id: u64) -> Option<Exchange> {
        let exchange = self.exchanges.remove(&id)?;
        self.by_key.remove(&exchange.key);
        self.deadlines.remove(&(exchange.deadline, id));
        self.actions.push_back(Action::Close { exchange: id });
        Some(exchange)
    }

    /// Puts an exchange's question to a server, under a new id.
    fn send(&mut self, id: u64, server: SocketAddr, tcp: bool, now: Instant) {
        let number = self.random.hash_one((id, now, self.next)) as u16;
        self.next += 1;
        let Some(exchange) = self.exchanges.get_mut(&id) else { return };
        self.deadlines.remove(&(exchange.deadline, id));
        exchange.deadline = (now + if tcp { TCP_TIMEOUT } else { UDP_TIMEOUT }).min(exchange.ends);
        self.deadlines.insert((exchange.deadline, id));
        (exchange.id, exchange.server, exchange.tcp) = (number, server, tcp);
        if !tcp {
            exchange.asked.push(server);
        }
        let bytes = exchange.query.upstream(number, exchange.plain == Some(server));
        self.actions.push_back(Action::Send { exchange: id, server, tcp, bytes });
    }

    /// Bytes came from `server` on the socket of an exchange.
    pub fn answered(&mut self, id: u64, server: SocketAddr, tcp: bool, bytes: &[u8], now: Instant) {
        let Some(exchange) =
            self.exchanges.get(&id).filter(|exchange| exchange.server == server && exchange.tcp == tcp)
        else {
            return;
        };
        let ours = |layout: &Layout| layout.answers(bytes, exchange.id, &exchange.query.question);
        let layout = Layout::of(bytes).filter(ours);
        let not_understood = is_bare_refusal(bytes, exchange.id) || (layout.is_some() && code(bytes) == FORMERR);
        if not_understood && exchange.query.has_edns() && exchange.plain != Some(server) {
            return self.ask_plainly(id, now);
        }
        if not_understood && layout.is_none() {
            // There is nothing in it that those who wait could be told.
            self.upstreams.answered(server);
            return self.go_on(id, now);
        }
        let Some(layout) = layout else {
            // By UDP anybody may have sent it, and the right one may still come.
            if tcp {
                self.failed(id, now);
            }
            return;
        };
        self.upstreams.answered(server);
        let code = code(bytes);
        if code != 0 && code != 3 {
            if let Some(exchange) = self.exchanges.get_mut(&id) {
                exchange.trouble = Some(bytes.to_vec());
            }
            return self.go_on(id, now);
        }
        if truncated(bytes) && !tcp {
            return self.more(id, bytes, now);
        }
        let Some(exchange) = self.end(id) else { return };
        if exchange.query.recursive()
            && !truncated(bytes)
            && let Some(first) = exchange.waiters.first()
        {
            self.cache.put(exchange.key, first.client.guest, bytes, layout, code == 0, now);
        }
        self.tell(exchange.waiters, bytes);
    }

    /// Puts the question to the same server again, without EDNS.
    fn ask_plainly(&mut self, id: u64, now: Instant) {
        let Some(exchange) = self.exchanges.get_mut(&id) else { return };
        let (server, tcp) = (exchange.server, exchange.tcp);
        exchange.plain = Some(server);
        if !tcp {
            // It is one attempt still.
            exchange.asked.pop();
        }
        self.upstreams.answered(server);
        self.send(id, server, tcp, now);
    }

    /// An answer did not fit: those who came by UDP are told, those who came by TCP get all of it.
    fn more(&mut self, id: u64, bytes: &[u8], now: Instant) {
        let Some(exchange) = self.exchanges.get_mut(&id) else { return };
        let server = exchange.server;
        let by_tcp = |waiter: &Waiter| waiter.client.connection.is_some();
        let (stay, told): (Vec<_>, Vec<_>) = std::mem::take(&mut exchange.waiters).into_iter().partition(by_tcp);
        let goes_on = !stay.is_empty();
        exchange.waiters = stay;
        self.tell(told, bytes);
        if goes_on {
            self.send(id, server, true, now);
        } else {
            self.end(id);
        }
    }

    fn tell(&mut self, waiters: Vec<Waiter>, answer: &[u8]) {
        for waiter in waiters {
            self.let_go(&waiter);
            let client = waiter.client;
            let bytes = waiter.query.fit(answer, &client);
            self.actions.push_back(Action::Reply { client, bytes });
        }
    }

    /// The socket of an exchange failed: refused, unreachable, or closed before an answer.
    pub fn failed(&mut self, id: u64, now: Instant) {
        if let Some(exchange) = self.exchanges.get(&id) {
            self.upstreams.silent(exchange.server, now);
            self.go_on(id, now);
        }
    }

    /// Asks the next server, or gives up.
    fn go_on(&mut self, id: u64, now: Instant) {
        let Some(exchange) = self.exchanges.get(&id) else { return };
        // A server that has trouble has it the second time as well.
        let rounds = if exchange.trouble.is_some() { 1 } else { ROUNDS };
        let left = exchange.asked.len() < rounds * self.upstreams.len() && now < exchange.ends;
        if let Some(server) = self.upstreams.next(&exchange.asked, now).filter(|_| left) {
            return self.send(id, server, false, now);
        }
        let Some(exchange) = self.end(id) else { return };
        match exchange.trouble {
            Some(answer) => self.tell(exchange.waiters, &answer),
            None => {
                let mut servers = exchange.asked;
                servers.sort_unstable();
                servers.dedup();
                self.complain(servers, now);
                for waiter in exchange.waiters {
                    self.let_go(&waiter);
                    self.refuse(&waiter, ResponseCode::ServFail);
                }
            }
        }
    }

    fn complain(&mut self, servers: Vec<SocketAddr>, now: Instant) {
        if self.complained.is_none_or(|last| now.since(last) >= COMPLAINT) {
            self.complained = Some(now);
            self.actions.push_back(Action::Unanswered { servers });
        }
    }

    /// Does what is due: servers that are silent, answers that have ended.
    pub fn tick(&mut self, now: Instant) {
        while let Some((at, id)) = self.deadlines.first().copied().filter(|(at, _)| *at <= now) {
            self.deadlines.remove(&(at, id));
            self.failed(id, now);
        }
        if now.since(self.swept) >= SWEEP {
            self.swept = now;
            self.cache.sweep(now);
        }
    }

    /// When [`Resolver::tick`] is to be called next, at the latest.
    pub fn deadline(&self) -> Option<Instant> {
        self.deadlines.first().map(|(at, _)| *at)
    }

    /// What is to be done next; to be asked until there is nothing.
    pub fn next_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    #[cfg(test)]
    pub(crate) fn sizes(&self) -> (usize, usize, (usize, usize)) {
        (self.exchanges.len(), self.waiting.values().sum(), self.cache.size())
    }
}
