//! [`Heaviest`]: of many holders, who holds most is known at any time.
//!
//! Invariant: the first has no fewer than any other. Each holder knows its place, which it is told whenever that changes; nothing is allocated but in
//! [`Heaviest::add`].
//!
//! Theory of operation: a heap, in which each has no fewer than its two children. One more or less moves a holder by as many places at most as the heap
//! has levels. Read first: [`crate::lists`].

/// See the module's documentation.
pub struct Heaviest<T> {
    heap: Vec<(u32, T)>,
}

impl<T: Copy> Heaviest<T> {
    /// Nobody yet, with room for so many.
    pub fn new(room: usize) -> Heaviest<T> {
        Heaviest { heap: Vec::with_capacity(room) }
    }

    /// One that holds nothing yet; its place.
    pub fn add(&mut self, holder: T) -> usize {
        self.heap.push((0, holder));
        self.heap.len() - 1
    }

    /// Who holds most, if anybody holds anything.
    pub fn first(&self) -> Option<T> {
        self.heap.first().filter(|(count, _)| *count > 0).map(|(_, holder)| *holder)
    }

    /// The holder at a place holds `count` now; `moved` is told of each that is at another place then.
    pub fn weigh(&mut self, place: usize, count: u32, mut moved: impl FnMut(T, usize)) {
        let Some((before, _)) = self.heap.get_mut(place) else { return };
        let mut at = place;
        if std::mem::replace(before, count) < count {
            while at > 0 && self.weight(at) > self.weight((at - 1) / 2) {
                self.swap(at, (at - 1) / 2, &mut moved);
                at = (at - 1) / 2;
            }
            return;
        }
        loop {
            let (left, right) = (2 * at + 1, 2 * at + 2);
            let child = if self.weight(right) > self.weight(left) { right } else { left };
            if self.weight(child) <= self.weight(at) {
                break;
            }
            self.swap(at, child, &mut moved);
            at = child;
        }
    }

    /// What a place has; nothing where there is none.
    fn weight(&self, at: usize) -> Option<u32> {
        self.heap.get(at).map(|(count, _)| *count)
    }

    fn swap(&mut self, one: usize, two: usize, moved: &mut impl FnMut(T, usize)) {
        self.heap.swap(one, two);
        for at in [one, two] {
            if let Some((_, holder)) = self.heap.get(at) {
                moved(*holder, at);
            }
        }
    }
}
