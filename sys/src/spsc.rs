//! A ring between two threads: one puts values in, the other takes them out, and neither ever waits.
//!
//! Invariant: the slots from `head` up to `tail` hold a value and are the consumer's; all others are empty and the producer's. Only the producer moves `tail`, only the consumer
//! moves `head`; a value is written before `tail` is stored (release) and read after it was loaded (acquire), and the same for `head`
//! the other way round. There is one [`Producer`] and one [`Consumer`], neither of which can be copied.
//!
//! Theory of operation: both numbers run on for ever (wrapping) and are cut to the slots by a mask. They lie in cache lines of their
//! own, and each side keeps a copy of the other's number that it renews only when the ring looks full, or empty: while both are busy, a line
//! moves once for many values. Read first: <https://doc.rust-lang.org/nomicon/atomics.html>, "Acquire-Release".

use std::{
    cell::UnsafeCell,
    mem::MaybeUninit,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

/// A number alone in its cache lines: 128 bytes, because processors fetch lines in pairs.
#[repr(align(128))]
struct Alone(AtomicUsize);

struct Ring<T> {
    /// The next slot to take from.
    head: Alone,
    /// The next slot to put into.
    tail: Alone,
    /// A power of two of them.
    slots: Box<[UnsafeCell<MaybeUninit<T>>]>,
}

// SAFETY: values move from one thread to another through the slots, which `T: Send` allows. A slot is touched by one side at a time: by the
// producer before `tail` passes it and by the consumer after, ordered by release and acquire of `tail`, and the other way round by `head`.
unsafe impl<T: Send> Sync for Ring<T> {}

impl<T> Drop for Ring<T> {
    fn drop(&mut self) {
        let (mut head, tail) = (*self.head.0.get_mut(), *self.tail.0.get_mut());
        let mask = self.slots.len() - 1;
        while head != tail {
            if let Some(slot) = self.slots.get_mut(head & mask) {
                // SAFETY: slots from head up to tail hold a value, and both sides are gone: nobody takes it any more.
                unsafe { slot.get_mut().assume_init_drop() };
            }
            head = head.wrapping_add(1);
        }
    }
}

/// The end that puts values in.
pub struct Producer<T> {
    ring: Arc<Ring<T>>,
    /// As in the ring, where only we change it.
    tail: usize,
    /// As it was when we looked last; the ring's is never behind.
    head: usize,
}

/// The end that takes values out.
pub struct Consumer<T> {
    ring: Arc<Ring<T>>,
    /// As in the ring, where only we change it.
    head: usize,
    /// As it was when we looked last; the ring's is never behind.
    tail: usize,
}

/// A ring with room for `capacity` values, rounded up to a power of two (at least 1, at most 2^20).
pub fn ring<T: Send>(capacity: usize) -> (Producer<T>, Consumer<T>) {
    let capacity = capacity.clamp(1, 1 << 20).next_power_of_two();
    let ring = Arc::new(Ring {
        head: Alone(AtomicUsize::new(0)),
        tail: Alone(AtomicUsize::new(0)),
        slots: (0..capacity).map(|_| UnsafeCell::new(MaybeUninit::uninit())).collect(),
    });
    (Producer { ring: Arc::clone(&ring), tail: 0, head: 0 }, Consumer { ring, head: 0, tail: 0 })
}

impl<T: Send> Producer<T> {
    /// Puts `value` in; gives it back when there is no room.
    ///
    /// # Errors
    /// The value itself: the ring is full.
    #[inline]
    pub fn push(&mut self, value: T) -> Result<(), T> {
        if self.room() == 0 {
            return Err(value);
        }
        let Some(slot) = self.ring.slots.get(self.tail & (self.ring.slots.len() - 1)) else { return Err(value) };
        // SAFETY: there is room, so the slot at `tail` is empty and ours until `tail` passes it below; the consumer reads no slot that it has
        // not seen `tail` pass.
        unsafe { (*slot.get()).write(value) };
        self.tail = self.tail.wrapping_add(1);
        self.ring.tail.0.store(self.tail, Ordering::Release);
        Ok(())
    }

    /// Whether there is room for at least one more; how much at least.
    #[inline]
    pub fn room(&mut self) -> usize {
        let capacity = self.ring.slots.len();
        let known = capacity - self.tail.wrapping_sub(self.head);
        if known > 0 {
            return known;
        }
        self.head = self.ring.head.0.load(Ordering::Acquire);
        capacity - self.tail.wrapping_sub(self.head)
    }

    /// Values that the consumer has not taken yet; it may have taken more by the time this returns.
    pub fn waiting(&self) -> usize {
        self.tail.wrapping_sub(self.ring.head.0.load(Ordering::Acquire))
    }
}

impl<T: Send> Consumer<T> {
    /// Takes the value that was put in first; nothing when there is none.
    #[inline]
    pub fn pop(&mut self) -> Option<T> {
        if self.is_empty() {
            return None;
        }
        let slot = self.ring.slots.get(self.head & (self.ring.slots.len() - 1))?;
        // SAFETY: `tail` was seen to have passed the slot at `head`, so it holds a value that was written before; it is read once, as `head`
        // passes it now, and the producer writes no slot that it has not seen `head` pass.
        let value = unsafe { (*slot.get()).assume_init_read() };
        self.head = self.head.wrapping_add(1);
        self.ring.head.0.store(self.head, Ordering::Release);
        Some(value)
    }

    /// Whether there is nothing to take at this moment.
    #[inline]
    pub fn is_empty(&mut self) -> bool {
        if self.head == self.tail {
            self.tail = self.ring.tail.0.load(Ordering::Acquire);
        }
        self.head == self.tail
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_come_out_in_order_and_a_full_ring_gives_them_back() {
        let (mut put, mut take) = ring::<u32>(3);
        assert_eq!(put.room(), 4, "rounded up to a power of two");
        for round in 0..10 {
            for n in 0..4 {
                put.push(round * 4 + n).unwrap();
            }
            assert_eq!((put.push(99), put.waiting()), (Err(99), 4));
            for n in 0..4 {
                assert_eq!(take.pop(), Some(round * 4 + n));
            }
            assert_eq!((take.pop(), put.waiting()), (None, 0));
        }
    }

    #[test]
    fn what_is_left_in_a_ring_is_dropped_once() {
        let counted = Arc::new(());
        let (mut put, mut take) = ring(8);
        for _ in 0..6 {
            put.push(Arc::clone(&counted)).unwrap();
        }
        drop(take.pop());
        drop(take.pop());
        assert_eq!(Arc::strong_count(&counted), 5);
        drop(put);
        drop(take);
        assert_eq!(Arc::strong_count(&counted), 1);
    }

    #[test]
    fn the_numbers_may_wrap() {
        let (mut put, mut take) = ring::<usize>(2);
        let start = usize::MAX - 1;
        put.ring.head.0.store(start, Ordering::Relaxed);
        put.ring.tail.0.store(start, Ordering::Relaxed);
        (put.head, put.tail, take.head, take.tail) = (start, start, start, start);
        for n in 0..8 {
            put.push(n).unwrap();
            put.push(n + 100).unwrap();
            assert_eq!(put.push(0), Err(0));
            assert_eq!((take.pop(), take.pop(), take.pop()), (Some(n), Some(n + 100), None));
        }
    }

    #[test]
    fn two_threads_lose_double_and_tear_nothing() {
        const VALUES: u64 = 400_000;
        for capacity in [1, 2, 64, 1024] {
            let (mut put, mut take) = ring::<Box<[u64; 5]>>(capacity);
            let writer = std::thread::spawn(move || {
                for n in 0..VALUES / 4 {
                    let mut value = Box::new([n, !n, n << 1, n >> 1, n]);
                    while let Err(back) = put.push(value) {
                        value = back;
                        std::thread::yield_now();
                    }
                }
            });
            let mut next = 0;
            while next < VALUES / 4 {
                match take.pop() {
                    Some(value) => {
                        assert_eq!(*value, [next, !next, next << 1, next >> 1, next]);
                        next += 1;
                    }
                    None => std::thread::yield_now(),
                }
            }
            writer.join().unwrap();
            assert!(take.pop().is_none());
        }
    }
}
