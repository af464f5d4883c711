//! [`filled`]: a large array that is read at random, in huge pages where the kernel gives them.
//!
//! Invariant: it is an array like any other; only how fast it is read differs. Read first: madvise(2), MADV_HUGEPAGE.

use std::mem::MaybeUninit;

/// A huge page of most machines.
const HUGE: usize = 2 << 20;

/// `len` values, each a copy of `value`. A look-up in an array of small pages misses the translation cache as well as the others, so the
/// kernel is asked for huge ones before the memory is touched.
pub fn filled<T: Clone>(len: usize, value: T) -> Box<[T]> {
    let mut all: Vec<T> = Vec::with_capacity(len);
    ask(all.spare_capacity_mut());
    all.resize(len, value);
    all.into()
}

/// Asks for huge pages wherever whole ones lie within this memory.
fn ask<T>(memory: &mut [MaybeUninit<T>]) {
    let range = memory.as_mut_ptr_range();
    let (start, end) = (range.start.addr().next_multiple_of(HUGE), range.end.addr() & !(HUGE - 1));
    if start < end {
        let at = range.start.map_addr(|_| start);
        // SAFETY: the range lies within memory that is borrowed for writing, and the advice changes no contents. Refused, it changes nothing.
        unsafe { libc::madvise(at.cast(), end - start, libc::MADV_HUGEPAGE) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_filled_from_end_to_end_whatever_its_size() {
        for len in [0, 1, 1000, HUGE / 4, HUGE + 3] {
            let all = filled(len, 7_u64);
            assert!(all.len() == len && all.iter().all(|value| *value == 7), "{len}");
        }
    }
}
