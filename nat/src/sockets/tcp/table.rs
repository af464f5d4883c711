//! [`Table`]: flows, by their place and by whose they are.
//!
//! Invariant: a key has one place. A place that is used again has another generation, so that what still speaks of the flow before finds nothing.
//! Read first: [`super::flow`].

use std::collections::HashMap;

use wire::keyed::Keyed;

use super::flow::{Flow, FlowKey};
use crate::sockets::mappings::Slot;

/// See the module's documentation.
pub(super) struct Table {
    index: HashMap<FlowKey, u32, Keyed>,
    /// Each with its generation.
    places: Vec<(u32, Option<Box<Flow>>)>,
    free: Vec<u32>,
}

impl Table {
    pub(super) fn new(seed: u64) -> Table {
        Table { index: HashMap::with_hasher(Keyed::new(seed)), places: Vec::new(), free: Vec::new() }
    }

    pub(super) fn find(&self, key: FlowKey) -> Option<Slot> {
        let place = *self.index.get(&key)?;
        let (generation, _) = self.places.get(place as usize)?;
        Some(Slot { place, generation: *generation })
    }

    pub(super) fn get(&self, slot: Slot) -> Option<&Flow> {
        let (generation, flow) = self.places.get(slot.place as usize)?;
        flow.as_deref().filter(|_| *generation == slot.generation)
    }

    pub(super) fn get_mut(&mut self, slot: Slot) -> Option<&mut Flow> {
        let (generation, flow) = self.places.get_mut(slot.place as usize)?;
        flow.as_deref_mut().filter(|_| *generation == slot.generation)
    }

    /// Puts a flow whose key is new into a free place.
    pub(super) fn insert(&mut self, flow: Flow) -> Slot {
        let place = self.free.pop().unwrap_or_else(|| {
            self.places.push((0, None));
            (self.places.len() - 1) as u32
        });
        self.index.insert(flow.key, place);
        let Some((generation, free)) = self.places.get_mut(place as usize) else {
            return Slot { place, generation: 0 };
        };
        *free = Some(Box::new(flow));
        Slot { place, generation: *generation }
    }

    /// Gives a flow another key, which is new.
    pub(super) fn move_to(&mut self, slot: Slot, key: FlowKey) {
        let Some(flow) = self.get_mut(slot) else { return };
        let before = std::mem::replace(&mut flow.key, key);
        self.index.remove(&before);
        self.index.insert(key, slot.place);
    }

    pub(super) fn remove(&mut self, slot: Slot) -> Option<Flow> {
        let (generation, place) = self.places.get_mut(slot.place as usize)?;
        if *generation != slot.generation {
            return None;
        }
        let flow = place.take()?;
        *generation = (*generation + 1) & Slot::GENERATIONS;
        self.index.remove(&flow.key);
        self.free.push(slot.place);
        Some(*flow)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Flow> {
        self.places.iter().filter_map(|(_, flow)| flow.as_deref())
    }

    /// The places of all flows that `which` is true of.
    pub(super) fn slots(&self, which: impl Fn(&Flow) -> bool) -> Vec<Slot> {
        let slot = |(place, (generation, flow)): (usize, &(u32, Option<Box<Flow>>))| {
            flow.as_deref().filter(|flow| which(flow))?;
            Some(Slot { place: place as u32, generation: *generation })
        };
        self.places.iter().enumerate().filter_map(slot).collect()
    }
}
