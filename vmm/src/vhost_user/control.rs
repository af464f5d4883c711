//! [`Control`]: the commands of the control queue, and [`ControlQueue`], the ring they come by.
//!
//! Invariant: a command is read once, up to [`MAX_COMMAND`] bytes, and only then looked at; what it changes is bounded (tables of up to
//! [`MAX_MACS`] addresses, 4096 VLANs); a command of a feature that was not agreed on is an error to the driver.
//! Read first: virtio 1.2 section 5.1.6.5.
//!
//! Theory of operation: front ends that leave the control queue to the device are few and their commands rare, so the session's own thread
//! serves the ring, with an arena of its own, when its kick is rung. What a command means goes to the switch as a whole new filter.

use std::sync::Arc;

use sys::{GuestMemory, MapRef, arena::Arena, arena::MapId, eventfd::EventFd};
use wire::Mac;

use super::{
    error::SessionError,
    wiring::{RxFilter, VlanSet},
};
use crate::{
    features::Features,
    virtqueue::{
        DeviceQueue, Ring,
        chain::{Batch, Chain, EitherWay, RingError},
    },
    with_ring,
};

/// The longest command that is read: class, command, and tables of some 1300 addresses.
pub const MAX_COMMAND: usize = 8192;
/// The most addresses a driver can name of each kind; with more of them it gets all frames of that kind.
pub const MAX_MACS: usize = 64;
/// The most commands served in one go.
const MAX_COMMANDS: usize = 32;

const OK: u8 = 0;
const ERR: u8 = 1;

const CLASS_RX: u8 = 0;
const CLASS_MAC: u8 = 1;
const CLASS_VLAN: u8 = 2;
const CLASS_ANNOUNCE: u8 = 3;
const CLASS_MQ: u8 = 4;

/// What a command changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The frames the driver wants.
    Filter(Box<RxFilter>),
    /// The number of queue pairs the driver uses.
    Pairs(u16),
}

/// What the driver has asked for so far.
#[derive(Clone, Debug)]
pub struct Control {
    features: Features,
    pairs: u16,
    filter: RxFilter,
    /// What the driver said of all unicast and all multicast frames, and whether it named too many addresses to remember.
    all: [AllOf; 2],
}

#[derive(Clone, Copy, Debug, Default)]
struct AllOf {
    wanted: bool,
    overflow: bool,
}

impl Control {
    /// Nothing asked for, by a driver that agreed on `features` with a device of `pairs` queue pairs and address `mac`. Features that mean nothing without
    /// a control queue are ignored when there is none: the front end has kept it for itself.
    pub fn new(features: Features, pairs: u16, mac: Option<Mac>) -> Self {
        let features = if features.has(Features::CTRL_VQ) { features } else { Features::default() };
        let vlans = features.has(Features::CTRL_VLAN).then(VlanSet::default);
        Control { features, pairs, filter: RxFilter { vlans, mac, ..RxFilter::default() }, all: Default::default() }
    }

    /// The queue pairs in use before the driver says: one where it can say, else all.
    pub fn first_pairs(&self) -> u16 {
        if self.features.has(Features::MQ) { 1 } else { self.pairs }
    }

    /// The frames the driver wants.
    pub fn filter(&self) -> &RxFilter {
        &self.filter
    }

    /// Carries out one command: class, command and its data. Nothing: the driver is told that it went wrong.
    pub fn command(&mut self, bytes: &[u8]) -> Option<Option<Change>> {
        let (&[class, command], data) = bytes.split_first_chunk::<2>()?;
        match class {
            CLASS_RX => self.receive_mode(command, data)?,
            CLASS_MAC => self.addresses(command, data)?,
            CLASS_VLAN => self.vlan(command, data)?,
            CLASS_ANNOUNCE if command == 0 && self.features.has(Features::GUEST_ANNOUNCE) => return Some(None),
            CLASS_MQ if command == 0 && self.features.has(Features::MQ) => {
                let pairs = u16::from_le_bytes(data.try_into().ok()?);
                return (1..=self.pairs).contains(&pairs).then_some(Some(Change::Pairs(pairs)));
            }
            _ => return None,
        }
        let [unicast, multicast] = self.all;
        self.filter.all_unicast = unicast.wanted || unicast.overflow;
        self.filter.all_multicast = multicast.wanted || multicast.overflow;
        Some(Some(Change::Filter(Box::new(self.filter.clone()))))
    }

    fn receive_mode(&mut self, command: u8, data: &[u8]) -> Option<()> {
        let &[on @ 0..=1] = data else { return None };
        let needs = if command <= 1 { Features::CTRL_RX } else { Features::CTRL_RX_EXTRA };
        if !self.features.has(needs) {
            return None;
        }
        let filter = &mut self.filter;
        let [unicast, multicast] = &mut self.all;
        let mode = match command {
            0 => &mut filter.promiscuous,
            1 => &mut multicast.wanted,
            2 => &mut unicast.wanted,
            3 => &mut filter.no_multicast,
            4 => &mut filter.no_unicast,
            5 => &mut filter.no_broadcast,
            _ => return None,
        };
        *mode = on == 1;
        Some(())
    }

    fn addresses(&mut self, command: u8, data: &[u8]) -> Option<()> {
        match command {
            0 if self.features.has(Features::CTRL_RX) => {
                let (unicast, rest) = mac_table(data)?;
                let (multicast, rest) = mac_table(rest)?;
                if !rest.is_empty() {
                    return None;
                }
                // Too many to remember: then rather all of them than some of them.
                for (all, table) in self.all.iter_mut().zip([&unicast, &multicast]) {
                    all.overflow = table.0.len() > MAX_MACS;
                }
                self.filter.unicast = unicast.take_if_few();
                self.filter.multicast = multicast.take_if_few();
            }
            1 if self.features.has(Features::CTRL_MAC_ADDR) => {
                let mac = Mac::new(data.try_into().ok()?);
                if !mac.is_unicast() {
                    return None;
                }
                self.filter.mac = Some(mac);
            }
            _ => return None,
        }
        Some(())
    }

    fn vlan(&mut self, command: u8, data: &[u8]) -> Option<()> {
        let vid = u16::from_le_bytes(data.try_into().ok()?);
        let vlans = self.filter.vlans.as_mut()?;
        (command <= 1 && vlans.set(vid, command == 0)).then_some(())
    }
}

/// Addresses of one kind, as they lie in a command.
struct MacTable<'a>(&'a [[u8; 6]]);

impl MacTable<'_> {
    fn take_if_few(&self) -> Vec<Mac> {
        if self.0.len() > MAX_MACS { Vec::new() } else { self.0.iter().copied().map(Mac::new).collect() }
    }
}

/// A count and that many addresses, and what follows them.
fn mac_table(data: &[u8]) -> Option<(MacTable<'_>, &[u8])> {
    let (count, rest) = data.split_first_chunk::<4>()?;
    let bytes = usize::try_from(u32::from_le_bytes(*count)).ok()?.checked_mul(6)?;
    let (table, rest) = rest.split_at_checked(bytes)?;
    Some((MacTable(table.as_chunks::<6>().0), rest))
}

/// The control queue's ring while it runs.
pub(super) struct ControlQueue {
    queue: DeviceQueue,
    arena: Arena,
    map: MapId,
    batch: Batch<EitherWay>,
}

impl ControlQueue {
    /// The queue, in this memory.
    pub(super) fn new(queue: DeviceQueue, memory: Arc<GuestMemory>) -> Result<Self, SessionError> {
        let mut arena = Arena::new(1).map_err(SessionError::ControlMemory)?;
        let map = arena.insert(memory);
        Ok(ControlQueue { queue, arena, map, batch: Batch::default() })
    }

    /// Another descriptor of the driver's kick.
    pub(super) fn kick(&self) -> Option<EventFd> {
        self.queue.kick.as_ref().and_then(|kick| kick.try_clone().ok())
    }

    /// Serves what the driver asked for; returns what changed by it, and whether more waits.
    pub(super) fn serve(&mut self, control: &mut Control) -> Result<(Vec<Change>, bool), SessionError> {
        let mut changes = Vec::new();
        let wrong = SessionError::Control;
        if let Some(kick) = &self.queue.kick {
            // A broken kick is the front end's loss.
            let _ = kick.drain();
        }
        let map = self.arena.map(self.map).ok_or(wrong(RingError::NoMemory))?;
        let mut more = true;
        for _ in 0..MAX_COMMANDS {
            self.batch.clear();
            let (queue, batch) = (&mut self.queue, &mut self.batch);
            with_ring!(&mut queue.ring, ring => ring.take(&map, batch, 1)).map_err(wrong)?;
            let Some(chain) = batch.chains.first().copied() else {
                more = with_ring!(&mut queue.ring, ring => ring.want_kicks(true));
                if more {
                    continue;
                }
                break;
            };
            let written = carry_out(&map, batch, chain, control, &mut changes);
            with_ring!(&mut queue.ring, ring => ring.complete(chain, written));
            queue.publish();
        }
        Ok((changes, more))
    }

    /// Ends it and gives the queue back.
    pub(super) fn into_queue(self) -> DeviceQueue {
        self.queue
    }
}

/// One command: reads it, carries it out, writes the answer into the first byte that the driver offers for it.
fn carry_out(
    map: &MapRef<'_>,
    batch: &Batch<EitherWay>,
    chain: Chain,
    control: &mut Control,
    changes: &mut Vec<Change>,
) -> u32 {
    let mut bytes = Vec::new();
    let mut whole = true;
    let mut answer = None;
    for piece in batch.pieces(chain) {
        match piece {
            EitherWay::Lent(lent) if bytes.len() + lent.len() <= MAX_COMMAND => {
                let at = bytes.len();
                bytes.resize(at + lent.len(), 0);
                let room = bytes.get_mut(at..).unwrap_or_default();
                whole &= map.read(*lent, room) == lent.len();
            }
            EitherWay::Lent(_) => whole = false,
            EitherWay::Room(room) => answer = answer.or(Some(*room).filter(|room| !room.is_empty())),
        }
    }
    let outcome = if whole { control.command(&bytes) } else { None };
    let ack = if outcome.is_some() { OK } else { ERR };
    tracing::debug!(class = bytes.first(), command = bytes.get(1), bytes = bytes.len(), ack, "control command");
    changes.extend(outcome.flatten());
    answer.map_or(0, |room| map.write(room, &[ack]) as u32)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn all() -> Features {
        Features(u64::MAX)
    }

    #[test]
    fn modes_and_addresses_make_a_filter() {
        let mut control = Control::new(all(), 4, None);
        assert!(control.filter().promiscuous);
        assert!(control.command(&[0, 0, 0]).is_some());
        assert!(control.command(&[0, 1, 1]).is_some());
        assert!(control.command(&[1, 1, 2, 0, 0, 0, 0, 7]).is_some());
        let table = [&[1, 0, 1, 0, 0, 0][..], &[2, 0, 0, 0, 0, 8], &[1, 0, 0, 0], &[1, 0, 0x5e, 0, 0, 1]].concat();
        let Some(Some(Change::Filter(filter))) = control.command(&table) else { panic!() };
        assert!(!filter.promiscuous && filter.all_multicast && !filter.all_unicast);
        assert_eq!(filter.mac.unwrap().to_string(), "02:00:00:00:00:07");
        assert_eq!(filter.unicast, [Mac::new([2, 0, 0, 0, 0, 8])]);
        assert_eq!(filter.multicast, [Mac::new([1, 0, 0x5e, 0, 0, 1])]);
    }

    #[test]
    fn vlans_are_all_out_until_added() {
        let mut control = Control::new(all(), 1, None);
        assert!(control.command(&[2, 0, 100, 0]).is_some());
        assert!(control.command(&[2, 0, 0xff, 0x0f]).is_some());
        assert!(control.command(&[2, 1, 0xff, 0x0f]).is_some());
        assert!(control.command(&[2, 0, 0, 0x10]).is_none());
        let vlans = control.filter().vlans.clone().unwrap();
        assert!(vlans.has(100) && !vlans.has(4095) && !vlans.has(1));
        assert_eq!(Control::new(Features::CTRL_VQ, 1, None).command(&[2, 0, 100, 0]), None);
    }

    #[test]
    fn pairs_are_bounded_by_the_device() {
        let mut control = Control::new(all(), 4, None);
        assert_eq!(control.command(&[4, 0, 4, 0]), Some(Some(Change::Pairs(4))));
        assert_eq!(control.command(&[4, 0, 5, 0]), None);
        assert_eq!(control.command(&[4, 0, 0, 0]), None);
        assert_eq!(control.command(&[4, 1, 1, 0]), None);
        assert_eq!(control.command(&[3, 0]), Some(None));
    }

    #[test]
    fn too_many_addresses_mean_all_of_them() {
        let mut control = Control::new(all(), 1, None);
        let count = (MAX_MACS + 1) as u32;
        let table = [&[1, 0][..], &count.to_le_bytes(), &vec![2; 6 * (MAX_MACS + 1)], &[0; 4]].concat();
        assert!(control.command(&table).is_some());
        assert!(control.filter().all_unicast && control.filter().unicast.is_empty());
        assert!(control.command(&[&[1, 0][..], &[0; 8]].concat()).is_some());
        assert!(!control.filter().all_unicast);
        let huge = [&[1, 0][..], &u32::MAX.to_le_bytes(), &[0; 40]].concat();
        assert_eq!(control.command(&huge), None);
    }

    proptest! {
        #[test]
        fn any_command_is_answered(
            class in 0u8..6,
            command in 0u8..7,
            data in prop::collection::vec(any::<u8>(), 0..64),
        ) {
            let mut control = Control::new(all(), 4, None);
            let bytes = [&[class, command][..], &data].concat();
            let _ = control.command(&bytes);
            prop_assert!(control.filter().unicast.len() <= MAX_MACS);
            prop_assert!(control.filter().multicast.len() <= MAX_MACS);
        }
    }
}
