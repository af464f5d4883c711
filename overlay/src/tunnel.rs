//! [`TunnelPort`]: a tunnel endpoint as a port of the bridges of its networks.
//!
//! Invariant: what is transmitted to it leaves encapsulated or ends with a counted reason; what comes in is in one network only, and its origin is
//! the NIC that the port has there.
//!
//! Theory of operation: the port is attached once for each network, [`wire::Context::nic`] says which of them it is called for. What is decided is
//! the same whatever carries the packets ([`outward`], [`inward`]); that is UDP sockets of the host ([`sockets`]), which may seal what they send
//! ([`sealed`]), or a network of ours in which the
//! endpoint is a station ([`crate::station`]): then the port has one NIC more, in that network, and what comes and goes there are packets.
//! Outward, a super-frame is cut into segments that fit the path.
//! Read first: [`crate::vtep`].

use std::{io, time::Duration};

use wire::{Burst, Context, DropReason, Instant, NicId, Port, Wake};

use crate::{
    control::Inbox,
    encap::HEADER,
    locals::Locals,
    station::{Station, StationConfig},
    vtep::{NetworkId, Vtep},
};

mod door;
pub(crate) mod inward;
pub(crate) mod outward;
mod sealed;
mod sockets;
mod unwrap;

use outward::Outward;
pub(crate) use sealed::SEAL;
pub use sealed::Seal;
use sealed::Sealed;
use sockets::Sockets;

/// How often what is due to no packet is done.
const TICK: Duration = Duration::from_secs(1);
/// Commands carried out in one go, between frames.
const COMMANDS: usize = 256;
/// Stations looked at then.
const SWEEP: usize = 4096;
/// Time to live of packets in the underlay.
pub(crate) const TTL: u8 = 64;

/// How an endpoint sends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TunnelConfig {
    /// Sockets that packets leave by, each with a source port of its own: flows are spread over them. On a network of ours each flow has its own.
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

/// What carries the packets of an endpoint.
enum Under {
    Sockets(Box<Sockets>),
    Sealed(Box<Sealed>),
    Station(Box<Station>),
}

/// See the module's documentation.
pub struct TunnelPort {
    vtep: Vtep,
    outward: Outward,
    under: Under,
    /// By network, the port's NIC in it; and by NIC, the network.
    nics: Vec<NicId>,
    networks: Vec<Option<NetworkId>>,
    ticked: Option<Instant>,
    inbox: Option<Inbox>,
    locals: Option<Locals>,
}

impl TunnelPort {
    /// Opens the sockets of an endpoint. It is to be attached once for each network, in their order.
    ///
    /// # Errors
    /// `AddrNotAvailable` when the local address is not this host's, `AddrInUse` when another program has the port; else what socket(2) reports.
    pub fn open(vtep: Vtep, config: TunnelConfig) -> io::Result<TunnelPort> {
        let sockets = Sockets::open(&vtep, config.sources)?;
        Ok(TunnelPort::new(vtep, config, Under::Sockets(Box::new(sockets))))
    }

    /// Opens the socket of an endpoint that seals what it sends. It is to be attached once for each network, in their order.
    ///
    /// # Errors
    /// As [`TunnelPort::open`] has them.
    pub fn sealed(vtep: Vtep, config: TunnelConfig, seal: Seal) -> io::Result<TunnelPort> {
        let sealed = Sealed::open(&vtep, seal)?;
        Ok(TunnelPort::new(vtep, config, Under::Sealed(Box::new(sealed))))
    }

    /// An endpoint that is a station of a network of ours. It is to be attached once for each network that it stretches, in their order, and then
    /// to the one that it is in.
    pub fn on(vtep: Vtep, config: TunnelConfig, station: StationConfig) -> TunnelPort {
        let station = Station::new(&vtep, station);
        TunnelPort::new(vtep, config, Under::Station(Box::new(station)))
    }

    fn new(vtep: Vtep, config: TunnelConfig, under: Under) -> TunnelPort {
        let outward = Outward::new(config);
        TunnelPort {
            vtep,
            outward,
            under,
            nics: Vec::new(),
            networks: Vec::new(),
            ticked: None,
            inbox: None,
            locals: None,
        }
    }

    /// Does what it is told by `inbox`.
    #[must_use]
    pub fn with_inbox(mut self, inbox: Inbox) -> Self {
        self.inbox = Some(inbox);
        self
    }

    /// Tells control of the stations of this host, by `locals`.
    #[must_use]
    pub fn with_locals(mut self, locals: Locals) -> Self {
        self.locals = Some(locals);
        self
    }

    /// Does what control has asked for.
    fn obey(&mut self, now: Instant) {
        let Some(inbox) = &self.inbox else { return };
        for command in std::iter::from_fn(|| inbox.next()).take(COMMANDS) {
            command.carry_out(&mut self.vtep, self.locals.as_mut(), now);
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

    /// What is due once in a while.
    #[cold]
    fn tick(&mut self, cx: &mut Context) {
        self.ticked = Some(cx.now);
        self.vtep.sweep(cx.now, SWEEP);
        if let Some(locals) = &mut self.locals {
            locals.sweep(cx.now, SWEEP);
        }
        match &mut self.under {
            Under::Sockets(sockets) => sockets.hear_errors(&mut self.vtep, cx.now),
            Under::Sealed(sealed) => sealed.tick(cx, &mut self.vtep),
            Under::Station(station) => station.tick(cx, &self.vtep),
        }
    }

    fn send<U: outward::Underlay>(
        (outward, vtep, under, locals): (&mut Outward, &mut Vtep, &mut U, &mut Option<Locals>),
        cx: &mut Context,
        burst: &mut Burst,
        network: NetworkId,
    ) {
        let to = (network, vtep.tick(cx.now));
        let (mut last, mut from) = (None, 0);
        for frame in burst.drain() {
            let head = cx.heads.get(&frame);
            let (_, source) = head.macs();
            if let Some(locals) = locals {
                locals.hear(network, head.origin.nic, head.bytes(), cx.now);
            }
            if source != from {
                from = source;
                vtep.leaves(network, source, cx.now);
            }
            outward.go_out(cx, (vtep, under), frame, to, &mut last);
        }
        under.end(cx);
    }
}

impl Port for TunnelPort {
    fn attach(&mut self, cx: &mut Context) -> io::Result<()> {
        if let Under::Station(station) = &mut self.under
            && self.nics.len() == self.vtep.networks()
        {
            station.attach(cx);
            return Ok(());
        }
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
        if self.ticked.is_none_or(|ticked| cx.now >= ticked + TICK) {
            self.tick(cx);
        }
        self.obey(cx.now);
        match &mut self.under {
            Under::Sockets(sockets) => sockets.come_in(cx, &mut self.vtep, &self.nics),
            Under::Sealed(sealed) => sealed.come_in(cx, &mut self.vtep, &self.nics),
            Under::Station(_) => {}
        }
        Ok(())
    }

    fn transmit(&mut self, cx: &mut Context, burst: &mut Burst) -> io::Result<()> {
        if let Under::Station(station) = &mut self.under
            && station.is_at(cx.nic)
        {
            station.come_in(cx, &mut self.vtep, &self.nics, burst);
            return Ok(());
        }
        let Some(network) = self.network_of(cx.nic) else {
            burst.drain().for_each(|frame| cx.drop(frame, DropReason::NotReady));
            return Ok(());
        };
        match &mut self.under {
            Under::Sockets(sockets) => {
                let parts = (&mut self.outward, &mut self.vtep, &mut **sockets, &mut self.locals);
                TunnelPort::send(parts, cx, burst, network);
            }
            Under::Sealed(sealed) => {
                let parts = (&mut self.outward, &mut self.vtep, &mut **sealed, &mut self.locals);
                TunnelPort::send(parts, cx, burst, network);
            }
            Under::Station(station) => {
                station.begin();
                let parts = (&mut self.outward, &mut self.vtep, &mut **station, &mut self.locals);
                TunnelPort::send(parts, cx, burst, network);
            }
        }
        Ok(())
    }

    fn release(&mut self, cx: &mut Context) -> io::Result<()> {
        match &mut self.under {
            Under::Sockets(sockets) => sockets.flush(cx, &mut self.vtep),
            Under::Sealed(sealed) => sealed.flush(cx, &mut self.vtep),
            Under::Station(_) => {}
        }
        if let Some(locals) = &mut self.locals {
            locals.ring();
        }
        Ok(())
    }

    fn wake(&mut self, wake: &mut Wake) -> bool {
        match &self.under {
            Under::Sockets(sockets) => sockets.wake(wake),
            Under::Sealed(sealed) => sealed.wake(wake),
            Under::Station(_) => {}
        }
        if let Some(ticked) = self.ticked {
            wake.by(ticked + TICK);
        }
        !self.inbox.as_ref().is_some_and(Inbox::is_waiting)
    }
}

const _: () = assert!(HEADER <= wire::frame::HEADROOM, "a header goes before any frame");
