//! [`probe`]: which packets reach the other hosts of an underlay, tried out by echo requests of the length that the route promises.
//!
//! Invariant: what is said was seen. That a host answers no request says nothing of its packets, and is told as such.
//!
//! Theory of operation: a router that drops what is too long for it and says nothing (a black hole, RFC 2923 section 2.1) is found only by who tries.
//! All hosts are asked at once, by a short request and by one as long as the route takes; who answers the short one only is asked for lengths
//! in between until the longest is known (as RFC 8899 searches, with the peer's ICMP as what acknowledges). Some hosts answer short requests only, whatever
//! their way takes; they are known by a length that every way takes. Read first: icmp(7).

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
/// The length of a request that everybody answers who answers any, in bytes.
const SHORT: u16 = 84;

/// What was seen of the way to a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Packets as long as the route takes arrive.
    Whole(u16),
    /// The longest that arrive, in bytes; longer ones, which the route takes, are lost and nobody says so.
    Narrow(u16),
    /// It answers no echo request, or no long one; the route takes this.
    Silent(u16),
}

/// What there is to see of the ways to hosts, each given with what its route takes. `ask` says who answers requests of which lengths; `least` every way takes.
fn search(
    routes: Vec<(IpAddr, u16)>,
    least: u16,
    mut ask: impl FnMut(Vec<(IpAddr, u16)>) -> io::Result<Vec<IpAddr>>,
) -> io::Result<Vec<(IpAddr, Way)>> {
    let answered = ask(routes.iter().map(|(peer, _)| (*peer, SHORT)).collect())?;
    let there = routes.iter().copied().filter(|(peer, _)| answered.contains(peer));
    let long = ask(there.clone().collect())?;
    // Who answers none that every way takes has it in for long requests, which says nothing of the way.
    let others = there.filter(|(peer, _)| !long.contains(peer));
    let fair = ask(others.clone().map(|(peer, _)| (peer, least)).collect())?;
    // The longest that is known to arrive, and the shortest that is known not to.
    let mut narrow: HashMap<IpAddr, (u16, u16)> =
        others.filter(|(peer, _)| fair.contains(peer)).map(|(peer, route)| (peer, (least, route))).collect();
    loop {
        let open = narrow.iter().filter(|(_, (arrives, lost))| lost.saturating_sub(*arrives) > 1);
        let asked: Vec<(IpAddr, u16)> =
            open.map(|(peer, (arrives, lost))| (*peer, arrives + (lost - arrives) / 2)).collect();
        if asked.is_empty() {
            break;
        }
        let arrived = ask(asked.clone())?;
        for (peer, length) in asked {
            let Some((arrives, lost)) = narrow.get_mut(&peer) else { continue };
            *if arrived.contains(&peer) { arrives } else { lost } = length;
        }
    }
    let way = |(peer, route): (IpAddr, u16)| {
        let way = match narrow.get(&peer) {
            Some((arrives, _)) if *arrives < route => Way::Narrow(*arrives),
            Some(_) => Way::Whole(route),
            None if long.contains(&peer) => Way::Whole(route),
            None => Way::Silent(route),
        };
        (peer, way)
    };
    Ok(routes.into_iter().map(way).collect())
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
        // The port is any: it is the route that is asked for.
        let routes: Vec<(IpAddr, u16)> = peers
            .iter()
            .filter_map(|peer| Some((*peer, udp::path_mtu(local, SocketAddr::new(*peer, 9)).ok()?)))
            .collect();
        search(routes, LEAST[usize::from(self.v6)], |asked| self.twice(asked))
    }

    /// Who answers a request of that length; who does not is asked once more.
    fn twice(&mut self, asked: Vec<(IpAddr, u16)>) -> io::Result<Vec<IpAddr>> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_that_arrives_is_found_and_who_answers_short_ones_only_says_nothing() {
        let peer = |n: u8| IpAddr::from([192, 0, 2, n]);
        let takes = [1500, 1400, 577, 576, 575, 84, 83];
        let routes: Vec<(IpAddr, u16)> = (0..7).map(|n| (peer(n), 1500)).collect();
        let mut asked = 0;
        let ways = search(routes, 576, |all| {
            asked += 1;
            let arrives = |(peer, length): &(IpAddr, u16)| match peer {
                IpAddr::V4(v4) => *length <= takes[usize::from(v4.octets()[3])],
                IpAddr::V6(_) => false,
            };
            Ok(all.into_iter().filter(arrives).map(|(peer, _)| peer).collect())
        });
        let ways: Vec<Way> = ways.unwrap().into_iter().map(|(_, way)| way).collect();
        let silent = Way::Silent(1500);
        let narrow = [1400, 577, 576].map(Way::Narrow);
        assert_eq!(ways, [&[Way::Whole(1500)][..], &narrow, &[silent; 3]].concat());
        assert!(asked <= 14, "{asked} rounds");
        let lost = search(vec![(peer(0), 576)], 576, |all| {
            Ok(all.iter().filter(|_| all[0].1 == 84).map(|(peer, _)| *peer).collect())
        });
        assert_eq!(lost.unwrap(), [(peer(0), Way::Silent(576))]);
    }
}
