//! [`Leg`]: the router in one segment, with the ports behind it there.
//!
//! Invariant: a frame that a leg is given ends as answered, handed to the way out or to the service, given back because another leg has it, or
//! dropped with a reason. What it puts into its segment has the router's MAC as its source and the leg's NIC as its origin.
//!
//! Theory of operation: by the head alone it is known whether the router has anything to say about a frame; only then is the frame read
//! whole. A port behind the router gives packets back by `receive`, in the same turn or a later one, and leaves the
//! destination zero where it does not know it: the leg then looks its neighbours up, and asks for and waits for who is not there.
//! Read first: [`Gateway`].

use std::{
    io,
    net::{IpAddr, Ipv4Addr},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use wire::{Burst, Context, DropReason, Frame, Instant, MAX_FRAME, NicId, Origin, Port, Verdict, Wake};

use crate::{
    book::LeaseSender,
    dhcp::{Event, Lease, LeaseEvent, LeaseState},
    gateway::{Gateway, Incoming, Interest},
    head::{age, destination, set_macs},
    held::Held,
    neighbours::Neighbour,
    offers::Offers,
    way_out::WayOut,
};

/// Time between two looks at what is held and asked for.
const LOOK: Duration = Duration::from_millis(500);

/// What became of a frame.
pub(crate) enum Fate {
    /// It has ended, or waits in a burst of the leg.
    Settled,
    /// It leads to `IpAddr`, which another leg has.
    Elsewhere(Frame, IpAddr),
    /// It leads out, by the way out of this leg.
    Out(Frame, usize),
}

/// See the module's documentation.
pub struct Leg {
    gateway: Gateway,
    /// The router's NIC in the segment.
    pub(crate) origin: Origin,
    /// Room for the longest frame that is asked.
    question: Box<[u8]>,
    /// Room for the longest answer.
    answer: Vec<u8>,
    book: Option<LeaseSender>,
    pub(crate) way_out: WayOut,
    /// Other legs go out by its way out.
    pub(crate) is_shared: bool,
    /// NICs that the way out has outside.
    pub(crate) outside_nics: usize,
    service: Option<Box<dyn Port>>,
    service_first: bool,
    /// What is to be handed to the way out, and to the service; empty between calls.
    onward: Burst,
    served: Burst,
    back: Burst,
    /// What the way out gave back for the segments of other legs; empty between calls.
    pub(crate) strays: Burst,
    /// Whether the way out leads anywhere, where that changes.
    leads: Option<Arc<AtomicBool>>,
    /// Ports that do not reach each other, in order.
    isolated: Vec<NicId>,
    held: Held,
    offers: Offers,
    look_at: Instant,
}

impl Leg {
    /// The router `gateway` without anything behind it.
    pub fn new(gateway: Gateway) -> Self {
        Leg {
            gateway,
            origin: Origin::default(),
            question: vec![0; MAX_FRAME].into(),
            answer: Vec::with_capacity(MAX_FRAME),
            book: None,
            way_out: WayOut::Nothing,
            is_shared: false,
            outside_nics: 0,
            service: None,
            service_first: false,
            onward: Burst::default(),
            served: Burst::default(),
            back: Burst::default(),
            strays: Burst::default(),
            leads: None,
            isolated: Vec::new(),
            held: Held::default(),
            offers: Offers::default(),
            look_at: Instant::START,
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

    /// Hands what goes elsewhere to `port` ([`crate::Elsewhere::Forward`]), which has this many NICs of its own outside.
    #[must_use]
    pub fn with_way_out(mut self, port: Box<dyn Port>, outside_nics: usize) -> Self {
        self.way_out = WayOut::Own(port);
        self.outside_nics = outside_nics;
        self
    }

    /// Hands what goes elsewhere to the way out of leg number `owner` of the same port, which gives back what is for this segment.
    #[must_use]
    pub fn with_way_out_of(mut self, owner: usize) -> Self {
        self.way_out = WayOut::Of(owner);
        self
    }

    /// Tells guests that nothing leads out for as long as this does not hold, whoever says so.
    #[must_use]
    pub fn leads_out_while(mut self, leads: Arc<AtomicBool>) -> Self {
        self.leads = Some(leads);
        self
    }

    /// Takes note of whether anything leads out now.
    #[inline]
    pub(crate) fn look_out(&mut self) {
        if let Some(leads) = &self.leads {
            self.gateway.set_leads_out(leads.load(Ordering::Relaxed));
        }
    }

    /// Ports of this segment and of others: between two of these the router passes nothing on into this segment.
    #[must_use]
    pub fn with_isolated(mut self, mut nics: Vec<NicId>) -> Self {
        nics.sort_unstable();
        self.isolated = nics;
        self
    }

    /// Hands what the router's services are to answer to `port` ([`crate::Config::services`]).
    #[must_use]
    pub fn with_service(mut self, port: Box<dyn Port>) -> Self {
        self.service = Some(port);
        self
    }

    /// The router itself.
    pub fn gateway(&self) -> &Gateway {
        &self.gateway
    }

    fn behind(&mut self) -> impl Iterator<Item = &mut Box<dyn Port>> {
        self.way_out.own().into_iter().chain(&mut self.service)
    }

    pub(crate) fn attach(&mut self, cx: &mut Context) -> io::Result<()> {
        self.origin = Origin { nic: cx.nic, lane: 0 };
        self.behind().try_for_each(|port| port.attach(cx))
    }

    pub(crate) fn detach(&mut self, cx: &mut Context) {
        self.behind().for_each(|port| port.detach(cx));
    }

    /// Takes a frame that the segment sent to the router.
    pub(crate) fn take(&mut self, cx: &mut Context, frame: Frame) -> Fate {
        let head = cx.heads.get(&frame);
        let (origin, len, owed) = (head.origin, head.len(), head.offload.needs_checksum());
        let incoming = Incoming { bytes: head.bytes(), origin, checksum_owed: owed };
        match self.gateway.interest(&incoming, cx.now) {
            Interest::None(reason) => {
                cx.drop(frame, reason);
                return Fate::Settled;
            }
            Interest::Forward => return self.forward(cx, frame),
            Interest::Service => return self.serve(cx, frame),
            Interest::All => {}
        }
        let Some(len) = cx.read_all(&frame, &mut self.question).filter(|read| *read == len) else {
            cx.drop(frame, DropReason::Stale);
            return Fate::Settled;
        };
        let bytes = self.question.get(..len).unwrap_or_default();
        let whole = Incoming { bytes, origin, checksum_owed: owed };
        let decision = self.gateway.decide(&whole, cx.now, &mut self.answer);
        let (decision, later) = decision.put_off(cx.now, |address| self.offers.waits(address));
        let (verdict, heard, offered) = (decision.verdict, decision.heard(), decision.offered());
        if let Some(event) = self.gateway.commit(decision, cx.now) {
            if let Event::V4(LeaseEvent { lease: Lease { address, state: LeaseState::InUse, .. }, .. }) = &event {
                self.offers.forget(*address);
            }
            if let Some(book) = &mut self.book {
                book.changed(event, cx.now);
            }
        }
        match verdict {
            Verdict::Forward => return self.forward(cx, frame),
            Verdict::Reply | Verdict::Hold => cx.transmitted(1, len as u64),
            Verdict::Drop(reason) => cx.drop(frame, reason),
        }
        match offered {
            Some(address) => self.offer(cx, address, origin, later),
            None if !self.answer.is_empty() => self.send(cx),
            None => {}
        }
        if let Some(address) = heard.filter(|_| !self.held.is_empty()) {
            self.settle(cx, address);
        }
        Fate::Settled
    }

    /// Sends the answer.
    fn send(&self, cx: &mut Context) {
        if let Some(answer) = cx.originate(self.origin, &self.answer) {
            hand_over(cx, answer);
        }
    }

    /// Sends an offer of `address`, or the acknowledgement of a lease that begins with it: at once where it is known that nobody else uses the
    /// address, else a moment after asking.
    fn offer(&mut self, cx: &mut Context, address: Ipv4Addr, to: Origin, lease: Option<Box<Lease>>) {
        if self.offers.waits(address) {
            return self.offers.replace(address, &self.answer, lease);
        }
        let offer = if self.offers.has_room(to.nic) { self.answer.clone() } else { Vec::new() };
        if !offer.is_empty() {
            if self.gateway.probe(address, to.nic, cx.now, &mut self.answer) {
                self.send(cx);
                return self.offers.keep(address, to.nic, cx.now, &offer, lease);
            }
            self.answer.extend_from_slice(&offer);
        }
        if self.begin(cx, lease) {
            self.send(cx);
        }
    }

    /// Has a lease that was put off begin, if there is one; false where it cannot any more, and is not to be acknowledged.
    fn begin(&mut self, cx: &mut Context, lease: Option<Box<Lease>>) -> bool {
        let Some(lease) = lease else { return true };
        let address = lease.address;
        let Some(event) = self.gateway.begin(*lease, cx.now) else { return false };
        if let Some(book) = &mut self.book {
            book.changed(event, cx.now);
        }
        if !self.held.is_empty() {
            self.settle(cx, address.into());
        }
        true
    }

    /// Lets what has waited for `address` go, when it is known where that is.
    fn settle(&mut self, cx: &mut Context, address: IpAddr) {
        while matches!(self.gateway.neighbour(address, cx.now), Neighbour::Known(..))
            && let Some(frame) = self.held.release(cx, address)
        {
            self.deliver(cx, frame, address);
        }
    }

    fn serve(&mut self, cx: &mut Context, frame: Frame) -> Fate {
        if self.service.is_none() {
            cx.drop(frame, DropReason::NotForGateway);
        } else if let Err(frame) = self.served.push(frame) {
            cx.drop(frame, DropReason::NoBuffers);
        }
        Fate::Settled
    }

    fn forward(&mut self, cx: &mut Context, frame: Frame) -> Fate {
        let head = cx.heads.get_mut(&frame);
        age(head.bytes_mut());
        let config = self.gateway.config();
        if !config.routes.is_empty()
            && let Some(to) = destination(head.bytes())
            && config.is_routed(to)
            && !config.onward.contains(&to)
        {
            return Fate::Elsewhere(frame, to);
        }
        match self.way_out {
            WayOut::Own(_) => self.go_out(cx, frame),
            WayOut::Of(owner) => return Fate::Out(frame, owner),
            WayOut::Nothing => cx.drop(frame, DropReason::NoRoute),
        }
        Fate::Settled
    }

    /// Takes a frame for its own way out.
    pub(crate) fn go_out(&mut self, cx: &mut Context, frame: Frame) {
        if let Err(frame) = self.onward.push(frame) {
            cx.drop(frame, DropReason::NoBuffers);
        }
    }

    /// Hands what was taken to the ports behind, and what they give back at once to the segment. Of a port that fails, what it did not take is
    /// dropped; the other one has its share all the same.
    pub(crate) fn hand_on(&mut self, cx: &mut Context) -> io::Result<()> {
        let mut result = Ok(());
        if !self.onward.is_empty()
            && let Some(port) = self.way_out.own()
        {
            result = port.transmit(cx, &mut self.onward);
            self.onward.drain().for_each(|frame| cx.drop(frame, DropReason::NotReady));
            if result.is_ok() {
                result = port.receive(cx, &mut self.back);
                self.give_back(cx);
            }
        }
        if !self.served.is_empty()
            && let Some(port) = &mut self.service
        {
            let served = port.transmit(cx, &mut self.served);
            self.served.drain().for_each(|frame| cx.drop(frame, DropReason::NotReady));
            result = result.and(served);
        }
        result
    }

    /// Frames that came in on a NIC that the way out has outside.
    pub(crate) fn come_in(&mut self, cx: &mut Context, burst: &mut Burst) -> io::Result<()> {
        let Some(port) = self.way_out.own() else { return Ok(()) };
        let outside = cx.nic;
        let result = port.transmit(cx, burst);
        cx.nic = self.origin.nic;
        let result = result.and_then(|()| port.receive(cx, &mut self.back));
        self.give_back(cx);
        cx.nic = outside;
        result
    }

    /// Puts what a port behind gave back into the segment, and aside what is for that of another leg.
    fn give_back(&mut self, cx: &mut Context) {
        let mut back = std::mem::take(&mut self.back);
        for frame in back.drain() {
            let head = cx.heads.get_mut(&frame);
            head.origin = self.origin;
            let to = destination(head.bytes());
            if self.is_shared && to.is_some_and(|to| !self.has(to)) {
                if let Err(frame) = self.strays.push(frame) {
                    cx.drop(frame, DropReason::NoBuffers);
                }
            } else if head.macs().0 != 0 {
                set_macs(head.bytes_mut(), None, self.gateway.config().mac);
                hand_over(cx, frame);
            } else if let Some(to) = to {
                self.deliver(cx, frame, to);
            } else {
                cx.drop(frame, DropReason::BadPacket);
            }
        }
        self.back = back;
    }

    /// Sends a packet to `next_hop`, a neighbour in the segment.
    pub(crate) fn deliver(&mut self, cx: &mut Context, frame: Frame, next_hop: IpAddr) {
        if !self.gateway.is_on_link(next_hop) {
            return cx.drop(frame, DropReason::NoRoute);
        }
        match self.gateway.neighbour(next_hop, cx.now) {
            Neighbour::Known(mac, nic) => {
                let head = cx.heads.get_mut(&frame);
                let from = head.origin.nic;
                let is_isolated = |nic| self.isolated.binary_search(&nic).is_ok();
                if is_isolated(nic) && is_isolated(from) {
                    return cx.drop_at(from, frame, DropReason::Isolated);
                }
                head.origin = self.origin;
                set_macs(head.bytes_mut(), Some(mac), self.gateway.config().mac);
                hand_over(cx, frame);
            }
            neighbour @ (Neighbour::Ask | Neighbour::Waiting) => {
                // For nobody's sake nobody is asked for.
                if self.held.keep(cx, frame, next_hop, self.origin.nic) && neighbour == Neighbour::Ask {
                    self.ask(cx, next_hop);
                }
            }
            Neighbour::Silent => cx.drop(frame, DropReason::Unresolved),
        }
    }

    /// Ends a packet that does not fit where it goes, and says so to whoever sent it.
    #[cold]
    pub(crate) fn too_big(&mut self, cx: &mut Context, frame: Frame, mtu: u16) {
        let origin = cx.heads.get(&frame).origin;
        if let Some(len) = cx.read_all(&frame, &mut self.question) {
            let bytes = self.question.get(..len).unwrap_or_default();
            let incoming = Incoming { bytes, origin, checksum_owed: true };
            self.gateway.too_big(&incoming, mtu, cx.now, &mut self.answer);
            if !self.answer.is_empty() {
                self.send(cx);
            }
        }
        cx.drop(frame, DropReason::TooBig);
    }

    fn ask(&mut self, cx: &mut Context, address: IpAddr) {
        self.gateway.ask(address, cx.now, &mut self.answer);
        if !self.answer.is_empty() {
            self.send(cx);
        }
    }

    /// What the ports behind have for the segment, and what the router says unasked.
    pub(crate) fn receive(&mut self, cx: &mut Context) -> io::Result<()> {
        // A turn has room for one burst, so the ports behind take turns at being first.
        self.service_first = !self.service_first;
        let mut ports = [self.way_out.own(), self.service.as_mut()];
        if self.service_first {
            ports.reverse();
        }
        for port in ports.into_iter().flatten() {
            if self.back.is_empty() && cx.answers.is_empty() {
                port.receive(cx, &mut self.back)?;
            }
        }
        if !self.back.is_empty() {
            self.give_back(cx);
        }
        if self.deadline().is_some_and(|deadline| cx.now >= deadline) {
            self.unasked(cx);
        }
        Ok(())
    }

    fn unasked(&mut self, cx: &mut Context) {
        if let Some(book) = &mut self.book {
            book.catch_up(&self.gateway, cx.now);
        }
        while let Some((offer, lease)) = self.offers.due(cx.now) {
            if self.begin(cx, lease)
                && let Some(offer) = cx.originate(self.origin, &offer)
            {
                hand_over(cx, offer);
            }
        }
        if self.gateway.tick(cx.now, &mut self.answer) {
            self.send(cx);
        }
        if !self.held.is_empty() && cx.now >= self.look_at {
            self.look_at = cx.now + LOOK;
            self.gateway.sweep(cx.now);
            self.held.sweep(cx);
            for next_hop in self.held.next_hops() {
                if self.gateway.neighbour(next_hop, cx.now) == Neighbour::Ask {
                    self.ask(cx, next_hop);
                }
            }
        }
    }

    pub(crate) fn release(&mut self, cx: &mut Context) -> io::Result<()> {
        self.behind().try_for_each(|port| port.release(cx))
    }

    fn deadline(&self) -> Option<Instant> {
        let book = self.book.as_ref().and_then(LeaseSender::deadline);
        let held = self.held.deadline().map(|deadline| deadline.min(self.look_at));
        self.gateway.deadline().into_iter().chain(book).chain(held).chain(self.offers.deadline()).min()
    }

    pub(crate) fn wake(&mut self, wake: &mut Wake) -> bool {
        if let Some(deadline) = self.deadline() {
            wake.by(deadline);
        }
        self.behind().all(|port| port.wake(wake))
    }

    pub(crate) fn awake(&mut self) {
        self.behind().for_each(|port| port.awake());
    }

    /// Whether the segment has `address`.
    pub(crate) fn has(&self, address: IpAddr) -> bool {
        self.gateway.is_on_link(address)
    }
}

/// Has the worker forward a frame in this turn.
fn hand_over(cx: &mut Context, frame: Frame) {
    if let Err(frame) = cx.answers.push(frame) {
        cx.drop(frame, DropReason::NoBuffers);
    }
}
