//! [`TunnelPort`]: a tunnel endpoint as a port of the bridges of its networks, on UDP sockets of the host; no privilege is needed.
//!
//! Invariant: what is transmitted to it leaves encapsulated or ends with a counted reason; what comes in is in one network only, and its origin is
//! the NIC that the port has there. It never waits, and no system call is for one frame where several go the same way.
//!
//! Theory of operation: the port is attached once for each network, [`wire::Context::nic`] says which of them it is called for. Outward, a super-frame
//! is cut into segments that fit the path; those of one flow to one endpoint follow each other in one datagram that the kernel cuts
//! (UDP_SEGMENT), out of the socket that the flow's hash chooses, so that its source port spreads flows over the underlay (RFC 7348 section 5).
//! Inward, datagrams are received into the pool, in runs where the kernel has joined them (UDP_GRO), and TCP segments become super-frames again.
//! Read first: [`crate::vtep`]; then `outward.rs` and `inward.rs` beside this file.

use std::{io, net::SocketAddr, os::fd::AsRawFd, time::Duration};

use sys::inet::udp::{Datagrams, Kind, LendBatch, RecvBatch};
use wire::{Burst, Context, DropReason, Instant, NicId, Port, Wake, coalesce::Coalesce};

use crate::{
    control::{Command, Inbox},
    encap::HEADER,
    vtep::{NetworkId, Vtep},
};

mod inward;
mod outward;

use outward::Door;

/// How often what is due to no packet is done.
const TICK: Duration = Duration::from_secs(1);
/// Stations looked at then.
const SWEEP: usize = 4096;
/// Time to live of packets in the underlay.
const TTL: u8 = 64;

/// How an endpoint sends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TunnelConfig {
    /// Sockets that packets leave by, each with a source port of its own: flows are spread over them.
    pub sources: usize,
    /// DSCP of packets in the underlay (0 to 63); nothing: that of the inner packet.
    pub dscp: Option<u8>,
    /// ICMP errors that a guest's NIC may cause in a second.
    pub errors: u32,
}

impl Default for TunnelConfig {
    fn default() -> Self {
        TunnelConfig { sources: 8, dscp: Some(0), errors: 100 }
    }
}

/// See the module's documentation.
pub struct TunnelPort {
    vtep: Vtep,
    config: TunnelConfig,
    inbound: Datagrams,
    doors: Vec<Door>,
    batch: LendBatch,
    coalesce: Coalesce,
    /// Errors that came back.
    errors: RecvBatch,
    /// By network, the port's NIC in it; and by NIC, the network.
    nics: Vec<NicId>,
    networks: Vec<Option<NetworkId>>,
    ticked: Instant,
    /// Room for one frame of our own, and for the packet that it is about.
    answer: Box<[u8]>,
    scratch: Box<[u8]>,
    limits: wire::icmp::Limits,
    inbox: Option<Inbox>,
}

impl TunnelPort {
    /// Opens the sockets of an endpoint. It is to be attached once for each network, in their order.
    ///
    /// # Errors
    /// `AddrNotAvailable` when the local address is not this host's, `AddrInUse` when another program has the port; else what socket(2) reports.
    pub fn open(vtep: Vtep, config: TunnelConfig) -> io::Result<TunnelPort> {
        let kind = if vtep.local().is_ipv4() { Kind::Udp4 } else { Kind::Udp6 };
        let open = |port: u16| -> io::Result<Datagrams> {
            let mut socket = Datagrams::open(kind, SocketAddr::new(vtep.local(), port), TTL, 0)?;
            // The underlay says what is too long for it instead of cutting it.
            socket.set_df(true)?;
            Ok(socket)
        };
        let inbound = open(vtep.port())?;
        let doors = (0..config.sources.max(1)).map(|_| open(0).map(Door::new)).collect::<io::Result<_>>()?;
        Ok(TunnelPort {
            limits: wire::icmp::Limits::new(config.errors),
            inbox: None,
            vtep,
            config,
            inbound,
            doors,
            batch: LendBatch::default(),
            coalesce: Coalesce::default(),
            errors: RecvBatch::default(),
            nics: Vec::new(),
            networks: Vec::new(),
            ticked: Instant::START,
            answer: vec![0; 2048].into(),
            scratch: vec![0; wire::MAX_FRAME].into(),
        })
    }

    /// Does what it is told by `inbox`.
    #[must_use]
    pub fn with_inbox(mut self, inbox: Inbox) -> Self {
        self.inbox = Some(inbox);
        self
    }

    /// Does what control has asked for.
    fn obey(&mut self, now: Instant) {
        while let Some(command) = self.inbox.as_ref().and_then(Inbox::next) {
            match command {
                // Nobody waiting for the answer any more is no fault of ours.
                Command::Show(reply) => _ = reply.send(self.vtep.peers(now)),
            }
        }
    }

    /// What it decides by.
    pub fn vtep(&self) -> &Vtep {
        &self.vtep
    }

    #[inline]
    fn network_of(&self, nic: NicId) -> Option<NetworkId> {
        self.networks.get(nic.index()).copied().flatten()
    }

    /// Takes errors that came back for what was sent: paths that are narrower than was thought.
    #[cold]
    fn hear_errors(&mut self) {
        let sockets = std::iter::once(&self.inbound).chain(self.doors.iter().map(Door::socket));
        for socket in sockets {
            // As many as an underlay may cause in a tick; what is left is read the next time.
            for _ in 0..64 {
                let Ok(Some(error)) = self.errors.error(socket) else { break };
                let narrower = error.errno == outward::EMSGSIZE;
                if let (true, Some(to), Ok(mtu)) = (narrower, error.to, u16::try_from(error.info)) {
                    let least = self.vtep.overhead() + 14 + 68;
                    if let Some(remote) = self.vtep.remotes.find(to.ip()).and_then(|id| self.vtep.remotes.get_mut(id)) {
                        remote.mtu = remote.mtu.min(mtu.max(least));
                    }
                }
            }
        }
    }
}

impl Port for TunnelPort {
    fn attach(&mut self, cx: &mut Context) -> io::Result<()> {
        let network = NetworkId(u16::try_from(self.nics.len()).map_err(|_| io::ErrorKind::InvalidInput)?);
        self.nics.push(cx.nic);
        if self.networks.len() <= cx.nic.index() {
            self.networks.resize(cx.nic.index() + 1, None);
        }
        if let Some(place) = self.networks.get_mut(cx.nic.index()) {
            *place = Some(network);
        }
        Ok(())
    }

    fn receive(&mut self, cx: &mut Context, _burst: &mut Burst) -> io::Result<()> {
        if cx.now >= self.ticked + TICK {
            self.ticked = cx.now;
            self.vtep.sweep(cx.now, SWEEP);
        }
        self.obey(cx.now);
        self.come_in(cx)
    }

    fn transmit(&mut self, cx: &mut Context, burst: &mut Burst) -> io::Result<()> {
        let Some(network) = self.network_of(cx.nic) else {
            burst.drain().for_each(|frame| cx.drop(frame, DropReason::NotReady));
            return Ok(());
        };
        let tick = self.vtep.tick(cx.now);
        let mut from = 0;
        for frame in burst.drain() {
            let (_, source) = cx.heads.get(&frame).macs();
            if source != from {
                from = source;
                self.vtep.leaves(network, source, cx.now);
            }
            self.go_out(cx, frame, network, tick);
        }
        Ok(())
    }

    fn release(&mut self, cx: &mut Context) -> io::Result<()> {
        let mut failed = false;
        for door in &mut self.doors {
            failed |= door.flush(cx);
        }
        if failed {
            self.hear_errors();
        }
        Ok(())
    }

    fn wake(&mut self, wake: &mut Wake) -> bool {
        // What is not taken would end every sleep at once.
        self.hear_errors();
        wake.readable.push(self.inbound.as_raw_fd());
        wake.readable.extend(self.doors.iter().map(|door| door.socket().as_raw_fd()));
        wake.by(self.ticked + TICK);
        true
    }
}

const _: () = assert!(HEADER <= wire::frame::HEADROOM, "a header goes before any frame");
