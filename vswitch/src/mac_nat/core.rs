//! [`MacNat`]: what becomes of a frame between guests and an uplink that has one MAC. No I/O, told the time.
//!
//! Invariant: what leaves has the uplink's MAC as its Ethernet source, as ARP sender and in every link-layer option of neighbour discovery;
//! what cannot be brought to that is dropped. What comes in for the uplink's MAC goes to the guest that has its IP address, and to nobody
//! where none has.
//!
//! Theory of operation: [`MacNat::outbound`] and [`MacNat::inbound`] look at a frame's head and say what is to be changed and learnt;
//! [`MacNat::learn`] and [`Rewrite::apply`] do it. Neighbour discovery that does not lie in the head as a whole is dropped: its options could
//! not be seen. Only MACs and the broadcast flag of DHCP change, so an owed checksum, whose field is the sum of a pseudo header, stays as it is.
//!
//! Read first: RFC 826, RFC 4861 section 4, RFC 2131 section 4.1 (broadcast flag), [`super::holders`].

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use wire::{DropReason, Instant, L3, Layers, Mac, NicId, checksum};

use super::holders::Holders;

const ARP: u16 = 0x0806;
/// An Ethernet header and ARP for IPv4 over Ethernet.
const ARP_LEN: usize = 42;
const ARP_SENDER: usize = 22;
const ARP_TARGET: usize = 32;
const DHCP_FLAGS: usize = 18;
const DHCP_CLIENT: usize = 36;

/// Link-layer options in one packet of neighbour discovery, at most.
const MAX_OPTIONS: usize = 4;

/// What is to be changed in a frame's head. Offsets are from its first byte.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rewrite {
    /// Ethernet destination.
    pub destination: Option<Mac>,
    /// Ethernet source.
    pub source: Option<Mac>,
    /// A MAC for all of `places`.
    mac: [u8; 6],
    places: [Option<u16>; MAX_OPTIONS],
    /// Where DHCP's flags are.
    broadcast: Option<u16>,
    /// The checksum over places and flags, if it is not owed, and whether zero means none.
    sum: Option<(u16, bool)>,
}

/// An address that a guest was heard with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Learnt {
    address: IpAddr,
    mac: Mac,
    nic: NicId,
}

/// A frame's way out.
pub type Outbound = Result<(Rewrite, Option<Learnt>), DropReason>;

impl Rewrite {
    /// Changes the head.
    pub fn apply(&self, bytes: &mut [u8]) {
        if let (Some(mac), Some(place)) = (self.destination, bytes.get_mut(..6)) {
            place.copy_from_slice(&mac.bytes());
        }
        if let (Some(mac), Some(place)) = (self.source, bytes.get_mut(6..12)) {
            place.copy_from_slice(&mac.bytes());
        }
        for at in self.places.iter().flatten() {
            self.put(bytes, usize::from(*at), &self.mac);
        }
        if let Some(at) = self.broadcast.map(usize::from)
            && let Some(flags) = bytes.get(at..at + 2).and_then(|flags| flags.first_chunk::<2>()).copied()
        {
            let [high, low] = flags;
            self.put(bytes, at, &[high | 0x80, low]);
        }
    }

    fn put(&self, bytes: &mut [u8], at: usize, new: &[u8]) {
        let Some(place) = bytes.get_mut(at..at + new.len()) else { return };
        let mut old = [0; 6];
        if let Some(old) = old.get_mut(..new.len()) {
            old.copy_from_slice(place);
        }
        place.copy_from_slice(new);
        let Some((sum, zero_is_none)) = self.sum else { return };
        let Some(field) = bytes.get_mut(usize::from(sum)..).and_then(|rest| rest.first_chunk_mut::<2>()) else {
            return;
        };
        let before = u16::from_be_bytes(*field);
        if zero_is_none && before == 0 {
            return;
        }
        let after = checksum::update_bytes(before, old.get(..new.len()).unwrap_or_default(), new);
        *field = (if zero_is_none && after == 0 { 0xffff } else { after }).to_be_bytes();
    }
}

/// See the module's documentation.
pub struct MacNat {
    mac: Mac,
    holders: Holders,
}

impl MacNat {
    /// For an uplink with this MAC. `reserved`, the host's own addresses and its routers', never is a guest's.
    pub fn new(mac: Mac, reserved: Vec<IpAddr>) -> MacNat {
        MacNat { mac, holders: Holders::new(reserved) }
    }

    /// Who has which address.
    pub fn holders(&self) -> &Holders {
        &self.holders
    }

    /// The same, to change.
    pub(super) fn holders_mut(&mut self) -> &mut Holders {
        &mut self.holders
    }

    /// Remembers what was heard.
    pub fn learn(&mut self, learnt: Learnt, now: Instant) {
        self.holders.heard(learnt.address, learnt.mac, learnt.nic, now);
    }

    /// What becomes of a frame of `len` bytes that begins with `bytes`, from a guest at `nic`. `owed`: its checksum is still to be made.
    ///
    /// # Errors
    /// Why it may not leave.
    pub fn outbound(&self, bytes: &[u8], len: usize, nic: NicId, owed: bool, now: Instant) -> Outbound {
        let from = mac_at(bytes, 6).ok_or(DropReason::Runt)?;
        let layers = Layers::parse(bytes).ok_or(DropReason::Runt)?;
        if layers.l2_len != 14 {
            return Err(DropReason::VlanNotAllowed);
        }
        let mut rewrite = Rewrite { source: Some(self.mac), mac: self.mac.bytes(), ..Rewrite::default() };
        let address = match (layers.ethertype, layers.l3) {
            (ARP, _) => {
                let (sender, mac) = arp(bytes, ARP_SENDER).ok_or(DropReason::OneMac)?;
                if mac != from {
                    return Err(DropReason::SpoofedSource);
                }
                rewrite.places = [Some(ARP_SENDER as u16), None, None, None];
                IpAddr::V4(sender)
            }
            (_, L3::V4) => {
                self.dhcp_request(bytes, &layers, owed, &mut rewrite);
                IpAddr::V4(v4_at(bytes, 26).ok_or(DropReason::BadPacket)?)
            }
            (_, L3::V6) => {
                discovery(bytes, len, &layers, owed, &mut rewrite)?;
                IpAddr::V6(v6_at(bytes, 22).ok_or(DropReason::BadPacket)?)
            }
            _ => return Err(DropReason::OneMac),
        };
        if address.is_unspecified() {
            return Ok((rewrite, None));
        }
        if address.is_multicast() || !self.holders.may_use(&address, from, nic, now) {
            return Err(DropReason::SpoofedSource);
        }
        Ok((rewrite, Some(Learnt { address, mac: from, nic })))
    }

    /// Has the answers to a DHCP request sent by broadcast: one by unicast would go to the guest's own MAC, which nobody outside knows.
    fn dhcp_request(&self, bytes: &[u8], layers: &Layers, owed: bool, rewrite: &mut Rewrite) {
        let Some(at) = udp_to(bytes, layers, 67) else { return };
        if bytes.get(at + 8..at + 11) == Some(&[1, 1, 6]) {
            rewrite.broadcast = Some((at + DHCP_FLAGS) as u16);
            rewrite.sum = (!owed).then_some(((at + 6) as u16, true));
        }
    }

    /// What becomes of a frame from outside that begins with `bytes`.
    ///
    /// # Errors
    /// Why it goes to no guest.
    pub fn inbound(&self, bytes: &[u8], now: Instant) -> Result<Rewrite, DropReason> {
        let (to, from) = mac_at(bytes, 0).zip(mac_at(bytes, 6)).ok_or(DropReason::Runt)?;
        let layers = Layers::parse(bytes).ok_or(DropReason::Runt)?;
        if layers.l2_len != 14 {
            return Err(DropReason::VlanNotAllowed);
        }
        if from == self.mac {
            // Access points send broadcasts back to who sent them.
            return Err(DropReason::SamePort);
        }
        if to.is_group() {
            return Ok(Rewrite::default());
        }
        if to != self.mac {
            return Err(DropReason::NoDestination);
        }
        let guest = |address: IpAddr| {
            let holder = self.holders.get(&address, now).ok_or(DropReason::NoDestination)?;
            Ok(Rewrite { destination: Some(holder.mac), mac: holder.mac.bytes(), ..Rewrite::default() })
        };
        match (layers.ethertype, layers.l3) {
            (ARP, _) => {
                let (target, _) = arp(bytes, ARP_TARGET).ok_or(DropReason::BadPacket)?;
                if target.is_unspecified() {
                    // The answer to a probe (RFC 5227), whose sender said no address.
                    return Ok(Rewrite { destination: Some(Mac::BROADCAST), ..Rewrite::default() });
                }
                Ok(Rewrite { places: [Some(ARP_TARGET as u16), None, None, None], ..guest(IpAddr::V4(target))? })
            }
            (_, L3::V4) => match self.dhcp_client(bytes, &layers) {
                Some(mac) => Ok(Rewrite { destination: Some(mac), ..Rewrite::default() }),
                None => guest(IpAddr::V4(v4_at(bytes, 30).ok_or(DropReason::BadPacket)?)),
            },
            (_, L3::V6) => guest(IpAddr::V6(v6_at(bytes, 38).ok_or(DropReason::BadPacket)?)),
            _ => Err(DropReason::NoDestination),
        }
    }

    /// Whom a DHCP answer is for, unless it is for the host itself.
    fn dhcp_client(&self, bytes: &[u8], layers: &Layers) -> Option<Mac> {
        let at = udp_to(bytes, layers, 68)?;
        let is_answer = bytes.get(at + 8..at + 11) == Some(&[2, 1, 6]);
        mac_at(bytes, at + DHCP_CLIENT).filter(|mac| is_answer && mac.is_unicast() && *mac != self.mac)
    }
}

/// Finds the link-layer options of a packet of neighbour discovery that is to leave.
fn discovery(bytes: &[u8], len: usize, layers: &Layers, owed: bool, rewrite: &mut Rewrite) -> Result<(), DropReason> {
    let Some(protocol) = layers.protocol else { return Err(DropReason::BadPacket) };
    // A fragment other than the first has no header to look at, and what it belongs to is no neighbour discovery (RFC 6980).
    let Some(at) = layers.l4.filter(|_| protocol == 58) else { return Ok(()) };
    let options = match bytes.get(at) {
        Some(133) => at + 8,
        Some(135 | 136) => at + 24,
        // Guests announce no routers and redirect nobody outside.
        Some(134 | 137) => return Err(DropReason::OneMac),
        Some(_) => return Ok(()),
        None => return Err(DropReason::BadPacket),
    };
    let payload = bytes.get(18..20).and_then(|b| b.first_chunk::<2>()).map_or(0, |b| u16::from_be_bytes(*b));
    let end = 54 + usize::from(payload);
    if layers.fragment || len > bytes.len() || end > bytes.len() || options > end {
        return Err(DropReason::BadPacket);
    }
    rewrite.sum = (!owed).then_some(((at + 2) as u16, false));
    let (mut at, mut places) = (options, rewrite.places.iter_mut());
    while at < end {
        let kind = bytes.get(at).copied().ok_or(DropReason::BadPacket)?;
        let length = bytes.get(at + 1).map_or(0, |eights| usize::from(*eights) * 8);
        if length == 0 || at + length > end {
            return Err(DropReason::BadPacket);
        }
        if kind == 1 || kind == 2 {
            let place = places.next().filter(|_| length == 8).ok_or(DropReason::BadPacket)?;
            *place = Some((at + 2) as u16);
        }
        at += length;
    }
    Ok(())
}

/// Where the UDP header of a whole datagram over IPv4 to `port` is.
fn udp_to(bytes: &[u8], layers: &Layers, port: u16) -> Option<usize> {
    let at = layers.l4.filter(|_| layers.protocol == Some(17) && !layers.fragment)?;
    (bytes.get(at + 2..at + 4)? == port.to_be_bytes()).then_some(at)
}

/// The IPv4 address and the MAC of ARP's sender or target.
fn arp(bytes: &[u8], at: usize) -> Option<(Ipv4Addr, Mac)> {
    if bytes.len() < ARP_LEN || bytes.get(14..20)? != [0, 1, 8, 0, 6, 4] {
        return None;
    }
    Some((v4_at(bytes, at + 6)?, mac_at(bytes, at)?))
}

fn mac_at(bytes: &[u8], at: usize) -> Option<Mac> {
    bytes.get(at..)?.first_chunk::<6>().map(|mac| Mac::new(*mac))
}

fn v4_at(bytes: &[u8], at: usize) -> Option<Ipv4Addr> {
    bytes.get(at..)?.first_chunk::<4>().map(|address| Ipv4Addr::from(*address))
}

fn v6_at(bytes: &[u8], at: usize) -> Option<Ipv6Addr> {
    bytes.get(at..)?.first_chunk::<16>().map(|address| Ipv6Addr::from(*address))
}

#[cfg(test)]
mod tests;
