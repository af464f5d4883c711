//! [`probe`]: which packets reach the other hosts of an underlay, tried out by echo requests of the length that the route promises.
//!
//! Invariant: what is said was seen. That a host answers no request says nothing of its packets, and is told as such.
//!
//! Theory of operation: a router that drops what is too long for it and says nothing (a black hole, RFC 2923 section 2.1) is found only by who tries.
//! All hosts are asked at once, by a short request and by one as long as the route takes; who answers the short one only is asked for lengths
//! in between until the longest is known (as RFC 8899 searches, with the peer's ICMP as what acknowledges). Read first: icmp(7).

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr, UdpSocket},
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use sys::inet::udp::{self, Datagrams, Kind};

/// How long answers are waited for in a round.
const ROUND: Duration = Duration::from_millis(400);
/// Hosts asked at once, so that their answers find room in the socket.
const AT_ONCE: usize = 128;
/// ICMP header of an echo.
const ECHO: usize = 8;
/// The longest packet that every path takes, in bytes (RFC 791, RFC 8200 section 5).
const LEAST: [u16; 2] = [576, 1280];

/// What was seen of the way to a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Packets as long as the route takes arrive.
    Whole(u16),
    /// The longest that arrive, in bytes; longer ones, which the route takes, are lost and nobody says so.
    Narrow(u16),
    /// It answers no echo request; the route takes this.
    Silent(u16),
}

/// A socket for echo requests.
struct Asking {
    socket: UdpSocket,
    v6: bool,
    seq: u16,
}

/// Tries the ways from an address of this host to others. Takes a second, and some more where a way is narrow.
///
/// # Errors
/// `PermissionDenied` where net.ipv4.ping_group_range does not hold a group of ours; else what socket(2) and bind(2) report.
pub fn probe(local: IpAddr, peers: &[IpAddr]) -> io::Result<Vec<(IpAddr, Way)>> {
    let mut asking = Asking::open(local)?;
    let mut found = Vec::new();
    for some in peers.chunks(AT_ONCE) {
        found.extend(asking.ways(local, some)?);
    }
    Ok(found)
}

impl Asking {
    fn open(local: IpAddr) -> io::Result<Asking> {
        let kind = if local.is_ipv4() { Kind::Ping4 } else { Kind::Ping6 };
        let mut socket = Datagrams::open(kind, SocketAddr::new(local, 0), 64, 0)?;
        socket.set_df(true)?;
        let socket = UdpSocket::from(OwnedFd::from(socket));
        socket.set_nonblocking(false)?;
        Ok(Asking { socket, v6: local.is_ipv6(), seq: 0 })
    }

    fn ways(&mut self, local: IpAddr, peers: &[IpAddr]) -> io::Result<Vec<(IpAddr, Way)>> {
        let least = LEAST[usize::from(self.v6)];
        // The port is any: it is the route that is asked for.
        let routes: Vec<(IpAddr, u16)> = peers
            .iter()
            .filter_map(|peer| Some((*peer, udp::path_mtu(local, SocketAddr::new(*peer, 9)).ok()?)))
            .collect();
        let short = routes.iter().map(|(peer, _)| (*peer, least.min(84)));
        let answered = self.twice(short)?;
        let long = self.twice(routes.iter().copied().filter(|(peer, _)| answered.contains(peer)))?;
        // Of the others, the longest that is known to arrive, and the shortest that is known not to.
        let mut narrow: Vec<(IpAddr, u16, u16)> = routes
            .iter()
            .filter(|(peer, _)| answered.contains(peer) && !long.contains(peer))
            .map(|(peer, route)| (*peer, least.min(84), *route))
            .collect();
        while narrow.iter().any(|(_, arrives, lost)| lost - arrives > 1) {
            let asked = narrow.iter().filter(|(_, arrives, lost)| lost - arrives > 1);
            let asked: Vec<(IpAddr, u16)> =
                asked.map(|(peer, arrives, lost)| (*peer, arrives + (lost - arrives) / 2)).collect();
            let arrived = self.twice(asked.iter().copied())?;
            for (peer, length) in asked {
                let Some((_, arrives, lost)) = narrow.iter_mut().find(|(other, ..)| *other == peer) else { continue };
                *if arrived.contains(&peer) { arrives } else { lost } = length;
            }
        }
        let way = |(peer, route): (IpAddr, u16)| {
            let narrow = narrow.iter().find(|(other, ..)| *other == peer).map(|(_, arrives, _)| Way::Narrow(*arrives));
            let whole = if answered.contains(&peer) { Way::Whole(route) } else { Way::Silent(route) };
            (peer, narrow.unwrap_or(whole))
        };
        Ok(routes.into_iter().map(way).collect())
    }

    /// Who answers a request of that length; who does not is asked once more.
    fn twice(&mut self, asked: impl Iterator<Item = (IpAddr, u16)>) -> io::Result<Vec<IpAddr>> {
        let asked: Vec<(IpAddr, u16)> = asked.collect();
        let mut answered = self.round(&asked)?;
        let others: Vec<(IpAddr, u16)> = asked.into_iter().filter(|(peer, _)| !answered.contains(peer)).collect();
        answered.extend(self.round(&others)?);
        Ok(answered)
    }

    fn round(&mut self, asked: &[(IpAddr, u16)]) -> io::Result<Vec<IpAddr>> {
        let (request, reply, header) = if self.v6 { (128, 129, 40) } else { (8, 0, 20) };
        self.seq = self.seq.wrapping_add(1);
        let mut waiting: HashMap<IpAddr, usize> = HashMap::new();
        for (peer, length) in asked {
            let length = usize::from(*length).saturating_sub(header).max(ECHO);
            let mut message = vec![0; length];
            let [high, low] = self.seq.to_be_bytes();
            message.iter_mut().zip([request, 0, 0, 0, 0, 0, high, low]).for_each(|(to, from)| *to = from);
            // An error that came back for an earlier one ends a call once; what is too long for a path that is known by now is lost at once.
            let sent = |_| self.socket.send_to(&message, SocketAddr::new(*peer, 0)).is_ok();
            if (0..3).any(sent) {
                waiting.insert(*peer, length);
            }
        }
        let (mut answered, until) = (Vec::new(), Instant::now() + ROUND);
        let mut message = vec![0; usize::from(u16::MAX)];
        while !waiting.is_empty() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            self.socket.set_read_timeout(Some(left))?;
            // Errors that came back are no answers; the next call tells the next thing.
            let Ok((length, from)) = self.socket.recv_from(&mut message) else { continue };
            let is_ours = message.first() == Some(&reply) && message.get(6..8) == Some(&self.seq.to_be_bytes());
            if is_ours && waiting.get(&from.ip()) == Some(&length) {
                waiting.remove(&from.ip());
                answered.push(from.ip());
            }
        }
        Ok(answered)
    }
}
