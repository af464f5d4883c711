//! [`Locals`]: the stations of this host that speak into a tunnel, for control that announces them; and [`Listener`], control's end of the news.
//!
//! Invariant: bounded, aged, fair, as the table is that bridges learn with. A frame costs one look into it, nothing is allocated for a frame, and nothing waits: news that
//! finds no room is left out, and the listener is told to ask for everything ([`Listener::must_ask`]).
//!
//! Theory of operation: a station that is new, or at another NIC than before, is news; one that is heard again renews its time. Its IP addresses are those that it
//! gives in ARP and neighbour discovery; a small table of what was told lately keeps them from being told with each packet. What leaves the table is no news: the listener
//! is told to ask, and compares. Each piece of news has its number, so an answer and the news around it are put in order. The bell is rung once a turn, and only if the listener sleeps.
//! Read first: [`wire::fdb`], [`sys::spsc`].

use std::{
    hash::BuildHasher,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::{AsFd, BorrowedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering, fence},
    },
    time::Duration,
};

use sys::{
    eventfd::EventFd,
    spsc::{self, Consumer, Producer},
};
use wire::{
    Instant, Mac, NicId, Segment,
    fdb::{Fdb, Key, Learn, Tick},
    keyed::Keyed,
};

use crate::vtep::NetworkId;

/// News on its way at most.
const NEWS: usize = 4096;
/// IP addresses that are remembered as told.
const TOLD: usize = 1024;

/// Something about a station of this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum News {
    /// It spoke at a NIC where it was not known.
    Heard(NetworkId, Mac, NicId),
    /// It has an IP address. May be told again.
    Addressed(NetworkId, Mac, IpAddr),
}

/// All stations that are known at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Present {
    /// As many pieces of news were told before.
    pub after: u64,
    /// The stations, in no order.
    pub stations: Vec<(NetworkId, Mac, NicId)>,
}

struct Bell {
    asleep: AtomicBool,
    /// The listener is to ask for everything.
    ask: AtomicBool,
    event: EventFd,
}

/// See the module's documentation.
pub struct Locals {
    table: Fdb,
    /// Who spoke last, and when.
    last: Option<(Key, NicId, Tick)>,
    told: Box<[u64]>,
    marks: Keyed,
    news: Producer<News>,
    count: u64,
    /// Entries that have left the table by themselves.
    left: u64,
    bell: Arc<Bell>,
    owed: bool,
}

/// Control's end.
pub struct Listener {
    news: Consumer<News>,
    count: u64,
    bell: Arc<Bell>,
}

/// Both ends: for `capacity` stations that are forgotten after `ageing`. `seed` must be unknown to guests.
///
/// # Errors
/// What eventfd(2) reported: too many open files.
pub fn locals(capacity: usize, ageing: Duration, seed: u64) -> io::Result<(Locals, Listener)> {
    let (put, take) = spsc::ring(NEWS);
    let bell = Bell { asleep: AtomicBool::new(false), ask: AtomicBool::new(false), event: EventFd::new()? };
    let bell = Arc::new(bell);
    let locals = Locals {
        table: Fdb::new(capacity, ageing, seed),
        last: None,
        told: vec![0; TOLD].into(),
        marks: Keyed::new(seed),
        news: put,
        count: 0,
        left: 0,
        bell: Arc::clone(&bell),
        owed: false,
    };
    Ok((locals, Listener { news: take, count: 0, bell }))
}

impl Locals {
    /// A frame that begins with `bytes` came from a NIC of this host and goes into the tunnel.
    #[inline]
    pub fn hear(&mut self, network: NetworkId, nic: NicId, bytes: &[u8], now: Instant) {
        let Some([a, b, c, d, e, f]) = bytes.get(6..).and_then(|rest| rest.first_chunk::<6>()).copied() else { return };
        let mac = Mac::new([a, b, c, d, e, f]);
        let (key, tick) = (Key::new(Segment(network.0), mac.to_bits()), self.table.tick(now));
        if self.last != Some((key, nic, tick)) {
            if !mac.is_unicast() {
                return;
            }
            self.last = Some((key, nic, tick));
            self.know(network, mac, nic, key, tick);
        }
        if let Some([0x08, 0x06] | [0x86, 0xdd]) = bytes.get(12..14)
            && let Some(ip) = given(bytes)
        {
            self.addressed(network, mac, ip);
        }
    }

    fn know(&mut self, network: NetworkId, mac: Mac, nic: NicId, key: Key, tick: Tick) {
        // Allocates once for a NIC that never spoke.
        self.table.add_nic(nic);
        let learn = self.table.consider(key, nic, tick);
        let is_news = matches!(learn, Learn::Insert | Learn::Move { .. });
        if self.table.settle(learn, key, nic, tick) && is_news {
            self.tell(News::Heard(network, mac, nic));
        }
    }

    #[cold]
    fn addressed(&mut self, network: NetworkId, mac: Mac, ip: IpAddr) {
        // An address has one place, whoever has it: when it goes over to another station and comes back, that is told, too.
        let at = self.marks.hash_one((network, ip)) as usize % TOLD;
        let mark = self.marks.hash_one((network, mac, ip));
        if self.told.get(at) != Some(&mark)
            && self.tell(News::Addressed(network, mac, ip))
            && let Some(place) = self.told.get_mut(at)
        {
            *place = mark;
        }
    }

    fn tell(&mut self, news: News) -> bool {
        self.owed = true;
        let told = self.news.push(news).is_ok();
        if told {
            self.count += 1;
        } else {
            self.bell.ask.store(true, Ordering::Relaxed);
        }
        told
    }

    /// The end of a turn: wakes the listener if there is something for it and it sleeps.
    #[inline]
    pub fn ring(&mut self) {
        if std::mem::take(&mut self.owed) {
            fence(Ordering::SeqCst);
            if self.bell.asleep.load(Ordering::Relaxed) && self.bell.asleep.swap(false, Ordering::Relaxed) {
                // A full counter wakes as well.
                let _ = self.bell.event.notify();
            }
        }
    }

    /// Frees up to `budget` stations that are silent for too long.
    pub fn sweep(&mut self, now: Instant, budget: usize) {
        self.table.sweep(self.table.tick(now), budget);
        let stats = self.table.stats();
        let left = stats.expired + stats.evicted + stats.crowded;
        if std::mem::replace(&mut self.left, left) != left {
            self.bell.ask.store(true, Ordering::Relaxed);
            self.owed = true;
        }
        self.ring();
    }

    /// A station is not here any more: when it speaks again, that is news.
    pub fn forget(&mut self, network: NetworkId, mac: Mac) {
        self.table.remove(Segment(network.0), mac);
        self.forget_told();
    }

    /// A NIC's stations are gone.
    pub fn forget_nic(&mut self, nic: NicId) {
        self.table.remove_nic(nic, true);
        self.forget_told();
        // What it said before it went may still be on its way, and come after the word that it went.
        self.bell.ask.store(true, Ordering::Relaxed);
        self.owed = true;
    }

    fn forget_told(&mut self) {
        self.last = None;
        self.told.fill(0);
    }

    /// Everything that is known.
    pub fn present(&mut self, now: Instant) -> Present {
        // Their addresses may have found no room, and are told anew.
        self.told.fill(0);
        let entries = self.table.iter(self.table.tick(now));
        let stations = entries.map(|entry| (NetworkId(entry.segment.0), entry.mac, entry.nic)).collect();
        Present { after: self.count, stations }
    }
}

impl Listener {
    /// The next piece of news, if there is one.
    pub fn pop(&mut self) -> Option<News> {
        let news = self.news.pop()?;
        self.count += 1;
        Some(news)
    }

    /// Pieces of news that were taken: to be compared with [`Present::after`].
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Whether something left the table, or found no room: the tunnel is to be asked for everything. Says so once.
    pub fn must_ask(&self) -> bool {
        self.bell.ask.swap(false, Ordering::Relaxed)
    }

    /// Before sleeping on the descriptor; false when there is something already.
    #[must_use]
    pub fn arm(&mut self) -> bool {
        self.bell.asleep.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        self.news.is_empty() && !self.bell.ask.load(Ordering::Relaxed)
    }

    /// After sleeping, or the wish to.
    pub fn disarm(&mut self) {
        self.bell.asleep.store(false, Ordering::Relaxed);
        // A doorbell of our own: draining fails in no way that matters.
        let _ = self.bell.event.drain();
    }
}

impl AsFd for Listener {
    /// Readable after [`Listener::arm`] when there is something.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.bell.event.as_fd()
    }
}

/// The IP address that a frame says its source has: the sender of ARP (RFC 826), the source of a neighbour solicitation or the target of an advertisement
/// (RFC 4861 sections 4.3 and 4.4). A frame that speaks for another station says nothing.
fn given(bytes: &[u8]) -> Option<IpAddr> {
    let source = bytes.get(6..12)?;
    match bytes.get(12..14)? {
        [0x08, 0x06] => {
            let arp = bytes.get(14..42)?;
            let ethernet = arp.get(..6)? == [0, 1, 8, 0, 6, 4];
            let ip = Ipv4Addr::from(*arp.get(14..)?.first_chunk::<4>()?);
            let one = !ip.is_unspecified() && !ip.is_multicast() && !ip.is_broadcast() && !ip.is_loopback();
            (ethernet && arp.get(8..14)? == source && one).then_some(ip.into())
        }
        [0x86, 0xdd] => {
            // No extension header, and a hop limit that no router has lowered.
            if bytes.get(20..22)? != [58, 255] {
                return None;
            }
            let at = match bytes.get(54)? {
                135 => 22,
                136 => 62,
                _ => return None,
            };
            let ip = Ipv6Addr::from(*bytes.get(at..)?.first_chunk::<16>()?);
            (!ip.is_unspecified() && !ip.is_multicast() && !ip.is_loopback()).then_some(ip.into())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AGEING: Duration = Duration::from_secs(300);
    const N: NetworkId = NetworkId(3);

    fn at(seconds: u64) -> Instant {
        Instant::START + Duration::from_secs(seconds)
    }

    fn frame(source: u8) -> Vec<u8> {
        let mut bytes = vec![0xff; 6];
        bytes.extend([2, 0, 0, 0, 0, source, 0x08, 0x00]);
        bytes.resize(60, 0);
        bytes
    }

    fn mac(n: u8) -> Mac {
        Mac::new([2, 0, 0, 0, 0, n])
    }

    fn arp(source: u8, sender: u8, ip: [u8; 4]) -> Vec<u8> {
        let mut bytes = frame(source);
        bytes[12..22].copy_from_slice(&[0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1]);
        bytes[22..28].copy_from_slice(&mac(sender).bytes());
        bytes[28..32].copy_from_slice(&ip);
        bytes
    }

    fn news(listener: &mut Listener) -> Vec<News> {
        std::iter::from_fn(|| listener.pop()).collect()
    }

    #[test]
    fn a_station_is_news_once_at_each_nic() {
        let (mut locals, mut listener) = locals(64, AGEING, 1).unwrap();
        for second in 0..3 {
            locals.hear(N, NicId(5), &frame(1), at(second));
        }
        locals.hear(N, NicId(6), &frame(1), at(3));
        let mut group = frame(1);
        group[6] = 3;
        locals.hear(N, NicId(6), &group, at(3));
        locals.hear(N, NicId(6), &frame(1)[..9], at(3));
        assert_eq!(news(&mut listener), [News::Heard(N, mac(1), NicId(5)), News::Heard(N, mac(1), NicId(6))]);
        locals.forget(N, mac(1));
        locals.hear(N, NicId(6), &frame(1), at(3));
        assert_eq!(news(&mut listener), [News::Heard(N, mac(1), NicId(6))]);
        // Numbers of NICs come in any order.
        locals.hear(N, NicId(2), &frame(2), at(3));
        assert_eq!(news(&mut listener), [News::Heard(N, mac(2), NicId(2))]);
        assert!(!listener.must_ask());
        locals.forget_nic(NicId(2));
        locals.forget_nic(NicId(6));
        locals.forget_nic(NicId(600));
        assert_eq!(locals.present(at(3)).stations, []);
    }

    #[test]
    fn what_a_port_said_before_it_went_is_corrected() {
        let (mut locals, mut listener) = locals(64, AGEING, 1).unwrap();
        locals.hear(N, NicId(5), &frame(1), at(0));
        locals.forget_nic(NicId(5));
        // The news is heard after the port went, whatever is done about it.
        assert_eq!(news(&mut listener), [News::Heard(N, mac(1), NicId(5))]);
        assert!(!listener.arm() && listener.must_ask(), "nobody would take it back");
        assert_eq!(locals.present(at(0)), Present { after: 1, stations: vec![] });
    }

    #[test]
    fn who_is_silent_for_too_long_is_asked_about() {
        let (mut locals, mut listener) = locals(64, AGEING, 1).unwrap();
        locals.hear(N, NicId(5), &frame(1), at(0));
        locals.hear(N, NicId(5), &frame(2), at(200));
        locals.sweep(at(250), 100);
        assert!(!listener.must_ask());
        assert!(!listener.arm(), "there is news");
        listener.disarm();
        news(&mut listener);
        assert!(listener.arm());
        locals.sweep(at(350), 100);
        assert!(listener.bell.event.drain().unwrap(), "it was woken");
        assert!(listener.must_ask() && !listener.must_ask());
        assert_eq!(locals.present(at(350)), Present { after: 2, stations: vec![(N, mac(2), NicId(5))] });
        assert_eq!(listener.count(), 2);
    }

    #[test]
    fn news_without_room_is_asked_for_and_nothing_waits() {
        let (mut locals, mut listener) = locals(1 << 16, AGEING, 1).unwrap();
        for n in 0..NEWS + 100 {
            let mut bytes = frame(0);
            bytes[8..12].copy_from_slice(&(n as u32).to_be_bytes());
            locals.hear(N, NicId(5), &bytes, at(1));
        }
        assert!(listener.must_ask());
        assert_eq!(news(&mut listener).len(), NEWS);
        let present = locals.present(at(1));
        assert_eq!((present.after, present.stations.len()), (NEWS as u64, NEWS + 100));
    }

    #[test]
    fn addresses_are_told_by_those_who_have_them() {
        let (mut locals, mut listener) = locals(64, AGEING, 1).unwrap();
        for _ in 0..3 {
            locals.hear(N, NicId(5), &arp(1, 1, [10, 0, 0, 7]), at(1));
        }
        locals.hear(N, NicId(5), &arp(1, 2, [10, 0, 0, 8]), at(1));
        locals.hear(N, NicId(5), &arp(1, 1, [0, 0, 0, 0]), at(1));
        let told = [News::Heard(N, mac(1), NicId(5)), News::Addressed(N, mac(1), [10, 0, 0, 7].into())];
        assert_eq!(news(&mut listener), told, "none that is another's, and no probe");
        // It fails over to another station, and back.
        for station in [2, 1, 1, 2] {
            locals.hear(N, NicId(5), &arp(station, station, [10, 0, 0, 7]), at(1));
        }
        let heard = news(&mut listener).into_iter().filter(|news| matches!(news, News::Addressed(..)));
        let told = [2, 1, 2].map(|station| News::Addressed(N, mac(station), [10, 0, 0, 7].into()));
        assert_eq!(heard.collect::<Vec<_>>(), told);
        let source: Ipv6Addr = "fd00::5".parse().unwrap();
        let target: Ipv6Addr = "fd00::6".parse().unwrap();
        for (kind, expected) in [(135, Some(source)), (136, Some(target)), (133, None)] {
            let mut bytes = frame(1);
            bytes[12..14].copy_from_slice(&[0x86, 0xdd]);
            bytes.resize(86, 0);
            bytes[20..22].copy_from_slice(&[58, 255]);
            bytes[22..38].copy_from_slice(&source.octets());
            bytes[54] = kind;
            bytes[62..78].copy_from_slice(&target.octets());
            locals.hear(N, NicId(5), &bytes, at(1));
            let told: Vec<News> = expected.map(|ip| News::Addressed(N, mac(1), ip.into())).into_iter().collect();
            assert_eq!(news(&mut listener), told);
            bytes[21] = 254;
            locals.forget(N, mac(9));
            locals.hear(N, NicId(5), &bytes, at(1));
            assert!(news(&mut listener).iter().all(|news| matches!(news, News::Heard(..))), "it came by a router");
        }
    }
}
