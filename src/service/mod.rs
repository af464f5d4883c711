//! [`Service`]: the thread for what routers do that may have to wait: DNS.
//!
//! Invariant: workers never wait for it; what it cannot take in time is dropped at their end of a link. It needs no privilege: whom it asks,
//! it asks by ordinary sockets. There is one for all networks, and every one has its turn.
//!
//! Theory of operation: a router hands frames for port 53 to a link. The thread sleeps on the links and on its sockets; awake, it lets every
//! network's stack take a batch, puts the queries to the resolver, and does what that says. Once a second it looks at leases and name servers.
//! Read first: [`gateway::dns`], [`stack`], [`mod@vswitch::link`].

mod name_servers;
mod networks;
mod stack;
mod tcp;
mod upstream;

pub use name_servers::{NameServers, scope};
pub use networks::Networks;

use std::{
    io::{self, ErrorKind},
    net::IpAddr,
    thread::JoinHandle,
    time::Duration,
};

use gateway::dns::{Action, LeasedName, Limits, NetworkId, NetworkNames, Resolver};
use mio::{Events, Interest, Poll, Token, Waker, unix::SourceFd};
use sys::tsc;
use vswitch::{LinkEnd, LinkPort, LinkSpec, link_to_thread};
use wire::Instant;

use crate::seed;
use stack::{Ask, Stack};
use upstream::Sockets;

/// Frames on their way from, and to, one network.
const DEPTH: usize = 256;
/// Time between two looks at leases and name servers.
const LOOK: Duration = Duration::from_secs(1);
/// How old what is known of leases may be when somebody asks.
const FRESH: Duration = Duration::from_millis(20);
/// Of tokens, exchanges have the numbers from one upwards.
const STOP: Token = Token(usize::MAX);
const FIRST_LINK: usize = usize::MAX / 2;

/// A network whose router serves DNS.
pub struct Served {
    /// The router's addresses that guests ask.
    pub router: Vec<IpAddr>,
    /// What the configuration says about names in it.
    pub names: NetworkNames,
    /// Longest packet in bytes.
    pub mtu: u16,
    /// The thread's end of the link to the router.
    pub link: LinkEnd,
}

/// Both ends of a link between a router and the thread, for packets of up to `mtu` bytes.
///
/// # Errors
/// Too many open files.
pub fn link(mtu: u16) -> io::Result<(LinkPort, LinkEnd)> {
    link_to_thread(LinkSpec { depth: DEPTH, frame: usize::from(mtu) + wire::layers::ETHERNET_LEN })
}

/// The names by DHCP of a network, by its place among those served; those that began first in front.
pub type LeasedNames = Box<dyn FnMut(usize) -> Vec<LeasedName> + Send>;

/// The thread, which ends with this.
pub struct Service {
    stop: Waker,
    thread: Option<JoinHandle<()>>,
}

impl Service {
    /// Starts the thread.
    ///
    /// # Errors
    /// What it needs from the system cannot be had.
    pub fn start(networks: Vec<Served>, servers: NameServers, leases: LeasedNames) -> io::Result<Service> {
        let poll = Poll::new()?;
        let stop = Waker::new(poll.registry(), STOP)?;
        let (mut names, mut stacks) = (Vec::new(), Vec::new());
        for (at, network) in networks.into_iter().enumerate() {
            let id = NetworkId(u16::try_from(at).map_err(|_| ErrorKind::InvalidInput)?);
            let stack = Stack::new(id, network.link, &network.router, network.mtu, seed::random()?, time());
            poll.registry().register(&mut SourceFd(&stack.fd()), Token(FIRST_LINK + at), Interest::READABLE)?;
            names.push(network.names);
            stacks.push(stack);
        }
        let sockets = Sockets::new(poll.registry().try_clone()?);
        let resolver = Resolver::new(names, Limits::default());
        let work =
            Work { poll, stacks, sockets, resolver, servers, leases, look: Instant::START, looked: Instant::START };
        let thread = std::thread::Builder::new().name("service".to_owned()).spawn(move || work.run())?;
        Ok(Service { stop, thread: Some(thread) })
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.stop.wake();
        if let Some(thread) = self.thread.take() {
            // One that panicked has ended as well.
            let _ = thread.join();
        }
    }
}

fn time() -> Instant {
    Instant::from_nanos(tsc::now_ns())
}

/// What the thread has.
struct Work {
    poll: Poll,
    stacks: Vec<Stack>,
    sockets: Sockets,
    resolver: Resolver,
    servers: NameServers,
    leases: LeasedNames,
    /// When to look at leases and name servers next.
    look: Instant,
    /// When we looked at leases last.
    looked: Instant,
}

impl Work {
    fn run(mut self) {
        let mut events = Events::with_capacity(256);
        let mut asks = Vec::new();
        loop {
            let now = time();
            if now >= self.look {
                self.look(now);
            }
            let mut more = false;
            for stack in &mut self.stacks {
                more |= stack.receive(now, &mut asks);
                stack.turn(None, now, &mut asks);
            }
            if !asks.is_empty() && now.since(self.looked) >= FRESH {
                // A guest that has just got its address is to be found.
                self.look_at_leases(now);
            }
            for Ask { client, bytes } in asks.drain(..) {
                self.resolver.ask(client, &bytes, now);
            }
            self.resolver.tick(now);
            self.act(now);
            for stack in &mut self.stacks {
                stack.send(now);
            }
            // When one of them has something, there will be no sleep.
            let armed = self.stacks.iter_mut().all(Stack::arm);
            let limit = if more || !armed { Duration::ZERO } else { self.rest(time()) };
            if let Err(error) = self.poll.poll(&mut events, Some(limit))
                && error.kind() != ErrorKind::Interrupted
            {
                tracing::error!(%error, "the service thread cannot wait for its sockets any more: DNS ends");
                return;
            }
            self.stacks.iter_mut().for_each(Stack::disarm);
            let now = time();
            for event in &events {
                match event.token() {
                    STOP => return,
                    Token(at) if at < FIRST_LINK => self.sockets.ready(at as u64, &mut self.resolver, now),
                    // Links are looked at in any case.
                    _ => {}
                }
            }
        }
    }

    /// How long there is nothing to do.
    fn rest(&mut self, now: Instant) -> Duration {
        let due = [Some(self.look), self.resolver.deadline()];
        let due = due.into_iter().flatten().map(|at| at.since(now));
        let rest = due.chain(self.stacks.iter_mut().filter_map(|stack| stack.rest(now))).min().unwrap_or(LOOK);
        // The wait is counted in milliseconds: not to wake up just before.
        if rest.is_zero() { rest } else { rest + Duration::from_millis(1) }
    }

    fn look(&mut self, now: Instant) {
        self.look = now + LOOK;
        if let Some(servers) = self.servers.read() {
            let before = self.resolver.upstreams();
            self.resolver.set_upstreams(&servers);
            let after = self.resolver.upstreams();
            if before != after {
                tracing::info!(servers = ?after, "guests' queries are forwarded to these name servers");
            }
        }
        self.look_at_leases(now);
    }

    fn look_at_leases(&mut self, now: Instant) {
        self.looked = now;
        for at in 0..self.stacks.len() {
            self.resolver.set_leases(NetworkId(at as u16), &(self.leases)(at));
        }
    }

    /// Does what the resolver says.
    fn act(&mut self, now: Instant) {
        while let Some(action) = self.resolver.next_action() {
            match action {
                Action::Reply { client, bytes } => {
                    if let Some(stack) = self.stacks.get_mut(usize::from(client.guest.network.0)) {
                        stack.reply(&client, &bytes, now);
                    }
                }
                Action::Send { exchange, server, tcp, bytes } => {
                    if let Err(error) = self.sockets.ask(exchange, server, tcp, &bytes) {
                        tracing::debug!(%server, %error, "a name server cannot be asked");
                        self.resolver.failed(exchange, now);
                    }
                }
                Action::Close { exchange } => self.sockets.close(exchange),
                Action::Unanswered { servers } if servers.is_empty() => {
                    tracing::warn!(
                        "guests ask for names and there is no name server to ask: is one in resolv.conf, or in `resolvers` of [host]?"
                    );
                }
                Action::Unanswered { servers } => {
                    tracing::warn!(?servers, "no name server answers: guests' queries fail until one does");
                }
            }
        }
    }
}
