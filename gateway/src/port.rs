//! [`GatewayPort`]: the router of a segment as a port of its bridge.
//!
//! Invariant: every frame that is transmitted to the port ends here: answered (it counts as transmitted, the answer as originated), handed to
//! the port behind, or dropped with a reason. An answer's origin is the router's own NIC. For ARP, echo and neighbour discovery nothing is
//! allocated; for DHCP only what has to be remembered.
//!
//! Theory of operation: by the head alone it is known whether the router has anything to say about a frame; only then is the frame read
//! whole. Answers go into `cx.answers`, which the worker forwards in the same turn; where there is no room, they are
//! dropped. What the router says unasked comes out of `receive`, and `wake` gives the time of it. Behind it there can be
//! another port, the way out: it is given what goes elsewhere, and what it receives goes into the segment as the router's.
//! Read first: [`wire::port`], [`Gateway`].

use std::io;

use wire::{Burst, Context, DropReason, Frame, Instant, MAX_FRAME, Origin, Port, Verdict, Wake};

use crate::{
    book::LeaseSender,
    gateway::{Gateway, Incoming, Interest},
};

/// See the module's documentation.
pub struct GatewayPort {
    gateway: Gateway,
    /// The router's NIC.
    origin: Origin,
    /// Room for the longest frame that is asked.
    question: Box<[u8]>,
    /// Room for the longest answer.
    answer: Vec<u8>,
    book: Option<LeaseSender>,
    way_out: Option<Box<dyn Port>>,
    /// What is to be handed to the way out; empty between calls.
    onward: Burst,
}

impl GatewayPort {
    /// The router as a port.
    pub fn new(gateway: Gateway) -> Self {
        GatewayPort {
            gateway,
            origin: Origin::default(),
            question: vec![0; MAX_FRAME].into(),
            answer: Vec::with_capacity(MAX_FRAME),
            book: None,
            way_out: None,
            onward: Burst::default(),
        }
    }

    /// Tells `book` of its leases, those that are there already at once: a reader never sees fewer.
    #[must_use]
    pub fn with_book(mut self, mut book: LeaseSender) -> Self {
        book.all(Instant::START);
        book.catch_up(&self.gateway, Instant::START);
        self.book = Some(book);
        self
    }

    /// Hands what goes elsewhere to `port` ([`crate::Elsewhere::Forward`]).
    #[must_use]
    pub fn with_way_out(mut self, port: Box<dyn Port>) -> Self {
        self.way_out = Some(port);
        self
    }

    /// The router itself.
    pub fn gateway(&self) -> &Gateway {
        &self.gateway
    }

    fn take(&mut self, cx: &mut Context, frame: Frame) {
        let head = cx.heads.get(&frame);
        let (origin, len, owed) = (head.origin, head.len(), head.offload.needs_checksum());
        let incoming = Incoming { bytes: head.bytes(), origin, checksum_owed: owed };
        match self.gateway.interest(&incoming, cx.now) {
            Interest::None(reason) => return cx.drop(frame, reason),
            Interest::Forward => return self.forward(cx, frame),
            Interest::All => {}
        }
        let Some(len) = cx.read_all(&frame, &mut self.question).filter(|read| *read == len) else {
            return cx.drop(frame, DropReason::Stale);
        };
        let bytes = self.question.get(..len).unwrap_or_default();
        let whole = Incoming { bytes, origin, checksum_owed: owed };
        let decision = self.gateway.decide(&whole, cx.now, &mut self.answer);
        let verdict = decision.verdict;
        if let Some(event) = self.gateway.commit(decision, cx.now)
            && let Some(book) = &mut self.book
        {
            book.changed(event, cx.now);
        }
        match verdict {
            Verdict::Forward => self.forward(cx, frame),
            Verdict::Reply | Verdict::Hold => cx.transmitted(1, len as u64),
            Verdict::Drop(reason) => cx.drop(frame, reason),
        }
        if !self.answer.is_empty() {
            self.send(cx);
        }
    }

    /// Sends the answer.
    fn send(&self, cx: &mut Context) {
        if let Some(answer) = cx.originate(self.origin, &self.answer)
            && let Err(answer) = cx.answers.push(answer)
        {
            cx.drop(answer, DropReason::NoBuffers);
        }
    }

    fn forward(&mut self, cx: &mut Context, frame: Frame) {
        if self.way_out.is_none() {
            return cx.drop(frame, DropReason::NoRoute);
        }
        if let Err(frame) = self.onward.push(frame) {
            cx.drop(frame, DropReason::NoBuffers);
        }
    }

    fn deadline(&self) -> Option<Instant> {
        let book = self.book.as_ref().and_then(LeaseSender::deadline);
        self.gateway.deadline().into_iter().chain(book).min()
    }
}

impl Port for GatewayPort {
    fn attach(&mut self, cx: &mut Context) -> io::Result<()> {
        self.origin = Origin { nic: cx.nic, lane: 0 };
        self.way_out.as_mut().map_or(Ok(()), |port| port.attach(cx))
    }

    fn detach(&mut self, cx: &mut Context) {
        if let Some(port) = &mut self.way_out {
            port.detach(cx);
        }
    }

    fn receive(&mut self, cx: &mut Context, burst: &mut Burst) -> io::Result<()> {
        if let Some(port) = &mut self.way_out {
            port.receive(cx, burst)?;
        }
        if self.deadline().is_none_or(|deadline| cx.now < deadline) {
            return Ok(());
        }
        if let Some(book) = &mut self.book {
            book.catch_up(&self.gateway, cx.now);
        }
        if burst.room() > 0
            && self.gateway.tick(cx.now, &mut self.answer)
            && let Some(frame) = cx.originate(self.origin, &self.answer)
            && let Err(frame) = burst.push(frame)
        {
            cx.drop(frame, DropReason::NoBuffers);
        }
        Ok(())
    }

    fn transmit(&mut self, cx: &mut Context, burst: &mut Burst) -> io::Result<()> {
        for frame in burst.drain() {
            self.take(cx, frame);
        }
        let Some(port) = self.way_out.as_mut().filter(|_| !self.onward.is_empty()) else { return Ok(()) };
        let result = port.transmit(cx, &mut self.onward);
        // Of a port that failed, what it did not take.
        self.onward.drain().for_each(|frame| cx.drop(frame, DropReason::NotReady));
        result
    }

    fn release(&mut self, cx: &mut Context) -> io::Result<()> {
        self.way_out.as_mut().map_or(Ok(()), |port| port.release(cx))
    }

    fn wake(&mut self, wake: &mut Wake) -> bool {
        if let Some(deadline) = self.deadline() {
            wake.by(deadline);
        }
        self.way_out.as_mut().is_none_or(|port| port.wake(wake))
    }

    fn awake(&mut self) {
        if let Some(port) = &mut self.way_out {
            port.awake();
        }
    }
}
