//! [`Remotes`]: the tunnel endpoints of other hosts that are known, and what is known of each.
//!
//! Invariant: bounded; an endpoint that some network names stays, one that was only heard goes when it is silent for too long, and gives way, the one
//! that was silent longest first. An endpoint keeps its number while it is known. Read first: [`crate::vtep`].

use std::{collections::HashMap, net::IpAddr, time::Duration};

use wire::{Instant, keyed::Keyed};

/// Which remote endpoint, by its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RemoteId(pub u16);

/// Endpoints known at most. Networks may name all of them.
pub const MOST: usize = 16_384;

/// How long what somebody said of a path is believed after it became narrow (RFC 1191 section 6.3, RFC 8201 section 5.3).
const NARROW: Duration = Duration::from_secs(600);

/// What is known of an endpoint.
#[derive(Clone, Debug)]
pub struct Remote {
    /// Its address in the underlay.
    pub address: IpAddr,
    /// The longest IP packet that reaches it, in bytes.
    pub mtu: u16,
    /// How many networks name it.
    pub named: u32,
    /// When it was last heard; nothing: never.
    pub heard: Option<Instant>,
    /// What [`Remote::mtu`] is where nobody on the path says otherwise, and when somebody did last.
    wide: u16,
    narrowed: Option<Instant>,
    /// Under seal: how old the session with it is, as of the last second; nothing: there is none.
    pub session: Option<Duration>,
}

/// See the module's documentation.
pub struct Remotes {
    places: Vec<Option<Remote>>,
    by_address: HashMap<IpAddr, RemoteId, Keyed>,
    /// Those that were only heard, at most.
    heard_only: usize,
    /// What a new one's [`Remote::mtu`] is until more is known.
    mtu: u16,
}

impl Remotes {
    /// None yet; of those that are only heard there may be `heard_only`.
    pub fn new(seed: u64, heard_only: usize, mtu: u16) -> Remotes {
        let by_address = HashMap::with_capacity_and_hasher(heard_only, Keyed::new(seed));
        Remotes { places: Vec::with_capacity(heard_only), by_address, heard_only, mtu }
    }

    /// The endpoint with an address.
    #[inline]
    pub fn find(&self, address: IpAddr) -> Option<RemoteId> {
        self.by_address.get(&address).copied()
    }

    /// An endpoint.
    #[inline]
    pub fn get(&self, id: RemoteId) -> Option<&Remote> {
        self.places.get(usize::from(id.0))?.as_ref()
    }

    /// An endpoint, to change.
    #[inline]
    pub fn get_mut(&mut self, id: RemoteId) -> Option<&mut Remote> {
        self.places.get_mut(usize::from(id.0))?.as_mut()
    }

    /// A network names an endpoint. Allocates. Nothing when there are [`MOST`] already.
    pub fn name(&mut self, address: IpAddr) -> Option<RemoteId> {
        let id = self.find(address).or_else(|| self.add(address))?;
        self.get_mut(id)?.named += 1;
        Some(id)
    }

    /// A network names an endpoint no longer. True: nobody does, and it is known no more.
    pub fn unname(&mut self, id: RemoteId) -> bool {
        let Some(remote) = self.get_mut(id) else { return false };
        remote.named = remote.named.saturating_sub(1);
        let gone = remote.named == 0;
        if gone {
            self.remove(id);
        }
        gone
    }

    /// An endpoint was heard that no network names. If another had to give way for it, that comes second: what is known behind it is to be
    /// forgotten. Nothing when none can.
    pub fn hear(&mut self, address: IpAddr, now: Instant) -> Option<(RemoteId, Option<RemoteId>)> {
        let heard_only = || {
            let all = self.places.iter().enumerate();
            all.filter_map(|(at, place)| {
                place.as_ref().filter(|remote| remote.named == 0).map(|remote| (at, remote.heard))
            })
        };
        let mut gone = None;
        if heard_only().count() >= self.heard_only {
            let (at, _) = heard_only().min_by_key(|(_, heard)| *heard)?;
            gone = Some(RemoteId(at as u16));
            self.remove(RemoteId(at as u16));
        }
        let id = self.add(address)?;
        self.get_mut(id)?.heard = Some(now);
        Some((id, gone))
    }

    /// All that are known.
    pub fn iter(&self) -> impl Iterator<Item = (RemoteId, &Remote)> {
        let all = self.places.iter().enumerate();
        all.filter_map(|(at, place)| Some((RemoteId(at as u16), place.as_ref()?)))
    }

    /// The addresses of hosts that networks name. Strangers are not among them: whoever forges a source would have us send to it.
    pub fn named(&self) -> Vec<IpAddr> {
        let hosts = self.iter().filter(|(_, remote)| remote.named > 0 && !remote.address.is_multicast());
        hosts.map(|(_, remote)| remote.address).collect()
    }

    /// An endpoint that was only heard, and not within `ageing`, is known no more. True: that is so, and what is known behind it is to be forgotten.
    pub fn age(&mut self, id: RemoteId, now: Instant, ageing: Duration) -> bool {
        let silent = |remote: &Remote| remote.named == 0 && remote.heard.is_none_or(|heard| now >= heard + ageing);
        let gone = self.get(id).is_some_and(silent);
        if gone {
            self.remove(id);
        }
        gone
    }

    /// What is known of the way to an endpoint is this from here on.
    pub fn set_path(&mut self, address: IpAddr, mtu: u16) {
        if let Some(remote) = self.find(address).and_then(|id| self.get_mut(id)) {
            (remote.mtu, remote.wide, remote.narrowed) = (mtu, mtu, None);
        }
    }

    /// Somebody on the way to an endpoint says that it takes no more than this.
    pub fn narrows(&mut self, address: IpAddr, mtu: u16, now: Instant) {
        if let Some(remote) = self.find(address).and_then(|id| self.get_mut(id))
            && mtu < remote.mtu
        {
            (remote.mtu, remote.narrowed) = (mtu, Some(now));
        }
    }

    /// Paths that became narrow [`NARROW`] ago may be wide again: whoever is on them says so if not.
    pub fn widen(&mut self, now: Instant) {
        for remote in self.places.iter_mut().flatten() {
            if remote.narrowed.is_some_and(|narrowed| now >= narrowed + NARROW) {
                (remote.mtu, remote.narrowed) = (remote.wide, None);
            }
        }
    }

    /// All numbers are below this.
    pub fn places(&self) -> usize {
        self.places.len()
    }

    /// How many are known.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.by_address.len()
    }

    fn add(&mut self, address: IpAddr) -> Option<RemoteId> {
        if self.by_address.len() >= MOST {
            return None;
        }
        let at = self.places.iter().position(Option::is_none).unwrap_or_else(|| {
            self.places.push(None);
            self.places.len() - 1
        });
        let remote =
            Remote { address, mtu: self.mtu, named: 0, heard: None, session: None, wide: self.mtu, narrowed: None };
        *self.places.get_mut(at)? = Some(remote);
        let id = RemoteId(at as u16);
        self.by_address.insert(address, id);
        Some(id)
    }

    fn remove(&mut self, id: RemoteId) {
        if let Some(remote) = self.places.get_mut(usize::from(id.0)).and_then(Option::take) {
            self.by_address.remove(&remote.address);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(n: u8) -> IpAddr {
        [198, 51, 100, n].into()
    }

    fn at(seconds: u64) -> Instant {
        Instant::START + Duration::from_secs(seconds)
    }

    #[test]
    fn those_that_were_only_heard_give_way_the_silent_first() {
        let mut remotes = Remotes::new(7, 2, 1500);
        let named = remotes.name(address(1)).unwrap();
        let (first, _) = remotes.hear(address(2), at(1)).unwrap();
        let (second, _) = remotes.hear(address(3), at(2)).unwrap();
        remotes.get_mut(first).unwrap().heard = Some(at(3));
        let (third, gone) = remotes.hear(address(4), at(4)).unwrap();
        assert_eq!((gone, third), (Some(second), second), "its place is taken");
        assert_eq!((remotes.find(address(3)), remotes.len()), (None, 3));
        assert_eq!(remotes.get(named).unwrap().address, address(1));
    }

    #[test]
    fn who_is_asked_about_its_path_is_a_host_that_a_network_names() {
        let mut remotes = Remotes::new(7, 2, 1500);
        for named in [address(1), [239, 1, 1, 1].into(), address(2)] {
            remotes.name(named).unwrap();
        }
        remotes.hear(address(3), at(1)).unwrap();
        assert_eq!(remotes.named(), [address(1), address(2)]);
    }

    #[test]
    fn an_endpoint_goes_when_the_last_network_leaves_it() {
        let mut remotes = Remotes::new(7, 2, 1500);
        let id = remotes.name(address(1)).unwrap();
        assert_eq!(remotes.name(address(1)), Some(id));
        assert!(!remotes.unname(id) && remotes.unname(id));
        assert_eq!((remotes.find(address(1)), remotes.len()), (None, 0));
        assert!(!remotes.unname(id));
    }
}
