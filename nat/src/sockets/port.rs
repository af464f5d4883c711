//! [`SocketsPort`]: the socket engine as what lies behind a router.
//!
//! Invariant: every frame that is transmitted ends here, as taken over or dropped with a reason; what comes out of `receive` was originated.
//! The engine never waits.
//!
//! Theory of operation: a turn takes the guests' frames by protocol and sends what they make at its end; then `receive` looks which sockets have
//! something and makes frames of it until the burst is full. A NIC whose sockets have had their share of system calls in a turn waits for
//! the next; sockets that were not looked at come up first then. Read first: [`super`], [`wire::port`].

use std::{io, os::fd::AsRawFd, time::Duration};

use sys::epoll::Events;
use wire::{Burst, Context, DropReason, Frame, Instant, L3, Layers, Port, Wake, reassembly::Reassembly};

use super::{Hub, SocketsConfig, Token, ping::Ping, tcp::Tcp, udp::Udp};
use crate::{
    control::{Command, Inbox, Publication},
    record::Protocol,
};

/// How often what is old is looked for.
const SWEEP: Duration = Duration::from_secs(1);

/// See the module's documentation.
pub struct SocketsPort {
    hub: Hub,
    udp: Udp,
    ping: Ping,
    tcp: Tcp,
    reassembly: Reassembly,
    inbox: Inbox,
    events: Events,
    swept: Instant,
}

impl SocketsPort {
    /// An engine that is told what to do by `inbox`.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn new(config: SocketsConfig, inbox: Inbox) -> io::Result<SocketsPort> {
        let hub = Hub::new(config)?;
        Ok(SocketsPort {
            udp: Udp::new(&hub),
            ping: Ping::new(&hub),
            tcp: Tcp::new(&hub),
            hub,
            reassembly: Reassembly::default(),
            inbox,
            events: Events::default(),
            swept: Instant::START,
        })
    }

    fn take(&mut self, cx: &mut Context, frame: Frame) {
        let Some(mut layers) = Layers::parse(cx.heads.get(&frame).bytes()) else {
            return cx.drop(frame, DropReason::Runt);
        };
        let mut frame = frame;
        if layers.fragment {
            let sender = cx.heads.get(&frame).origin.nic.0;
            let Some(whole) = self.reassembly.take(cx, frame, &layers, sender) else { return };
            frame = whole;
            match Layers::parse(cx.heads.get(&frame).bytes()) {
                Some(of_whole) => layers = of_whole,
                None => return cx.drop(frame, DropReason::Runt),
            }
        }
        match (layers.l3, layers.protocol) {
            (L3::V4 | L3::V6, Some(17)) => self.udp.leave(cx, frame, &layers, &mut self.hub),
            (L3::V4 | L3::V6, Some(6)) => self.tcp.leave(cx, frame, &layers, &mut self.hub),
            (L3::V4, Some(1)) | (L3::V6, Some(58)) => self.ping.leave(cx, frame, &layers, &mut self.hub),
            _ => cx.drop(frame, DropReason::NotTranslated),
        }
    }

    fn command(&mut self, cx: &mut Context, command: Command) {
        let now = cx.now;
        // Nobody waiting for the answer any more is no fault of ours.
        match command {
            Command::Publish(publication, reply) => {
                let _ = reply.send(self.publish(&publication));
            }
            Command::Withdraw(publication, reply) => {
                let _ = reply.send(match publication.protocol {
                    Protocol::Tcp => self.tcp.withdraw(&publication, &mut self.hub),
                    _ => self.udp.withdraw(&publication),
                });
            }
            Command::Show(reply) => {
                let mut lines = Vec::new();
                self.udp.show(now, &mut lines);
                self.ping.show(now, &mut lines);
                self.tcp.show(now, &mut lines);
                let _ = reply.send(lines);
            }
            Command::HostAddresses(addresses) => {
                if self.hub.set_host(&addresses) {
                    self.tcp.end_forbidden(cx, &mut self.hub);
                }
            }
        }
    }

    fn publish(&mut self, publication: &Publication) -> Result<(), String> {
        match publication.protocol {
            Protocol::Udp => self.udp.publish(publication, &self.hub),
            Protocol::Tcp => self.tcp.publish(publication, &self.hub),
            Protocol::Icmp => Err("icmp has no ports to publish; name tcp or udp".to_owned()),
        }
    }

    /// Drops what an earlier turn has left: frames live one turn.
    fn begin(&mut self, cx: &mut Context) {
        while let Some(frame) = self.hub.out.pop() {
            if cx.heads.is_current(&frame) {
                let _ = self.hub.out.push(frame);
                return;
            }
            cx.drop(frame, DropReason::NotReady);
        }
    }

    fn events(&mut self, cx: &mut Context) {
        if !self.udp.resume(cx, &mut self.hub) || self.hub.epoll.look(&mut self.events).is_err() {
            return;
        }
        for (token, change) in self.events.changes() {
            match Token::from_bits(token) {
                // Told once only, so they are taken whether there is room for frames or not.
                Some(Token::Tcp(slot)) => self.tcp.ready(cx, slot, change, &mut self.hub),
                Some(Token::Listener(place)) => self.tcp.accept(cx, place, &mut self.hub),
                _ if self.hub.out.room() == 0 => {}
                Some(Token::Udp(slot)) => self.udp.ready(cx, slot, &mut self.hub),
                Some(Token::Published(door)) => self.udp.ready_published(cx, door, &mut self.hub),
                Some(Token::Ping(slot)) => self.ping.ready(cx, slot, &mut self.hub),
                None => {}
            }
        }
    }
}

impl Port for SocketsPort {
    fn receive(&mut self, cx: &mut Context, burst: &mut Burst) -> io::Result<()> {
        self.begin(cx);
        self.hub.begin_turn();
        while let Some(command) = self.inbox.next() {
            self.command(cx, command);
        }
        if cx.now.since(self.swept) >= SWEEP {
            self.swept = cx.now;
            self.udp.sweep(cx.now, &mut self.hub);
            self.ping.sweep(cx.now, &mut self.hub);
            self.reassembly.expire(cx.now);
        }
        self.events(cx);
        self.tcp.sweep(cx, &mut self.hub);
        self.tcp.serve(cx, &mut self.hub);
        let mut left = Burst::default();
        for frame in self.hub.out.drain() {
            if let Err(frame) = burst.push(frame) {
                let _ = left.push(frame);
            }
        }
        self.hub.out = left;
        Ok(())
    }

    fn transmit(&mut self, cx: &mut Context, burst: &mut Burst) -> io::Result<()> {
        self.begin(cx);
        for frame in burst.drain() {
            self.take(cx, frame);
        }
        self.udp.flush(cx, &mut self.hub);
        Ok(())
    }

    fn release(&mut self, _cx: &mut Context) -> io::Result<()> {
        Ok(())
    }

    fn wake(&mut self, wake: &mut Wake) -> bool {
        wake.readable.push(self.hub.epoll.as_raw_fd());
        let deadlines = [self.udp.deadline(), self.ping.deadline(), self.reassembly.deadline()];
        for deadline in deadlines.into_iter().flatten() {
            // Not more often than things are looked at.
            wake.by(deadline.max(self.swept + SWEEP));
        }
        if let Some(deadline) = self.tcp.deadline() {
            wake.by(deadline);
        }
        !self.udp.waits() && !self.tcp.waits()
    }
}
