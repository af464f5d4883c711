//! Copies between memory that somebody else may be writing at the same time.
//!
//! Invariant: memory shared with a guest is only touched by instructions the compiler cannot reason about (inline assembly) or by volatile
//! accesses, so a guest that changes bytes under us yields some mixture of old and new bytes and nothing worse.
//!
//! Theory of operation: frames are short or long, rarely between. Up to 256 bytes go in 16-byte steps with an overlapping tail, inline at
//! the call, because a call to `memcpy` costs more than the copy. Longer ones go in 64-byte steps of AVX where the CPU has it, else by
//! `rep movsb`. All loads of a step come before its stores. Source and destination must not overlap unless they are equal in
//! distance by more than a step; callers copy between different buffers.

/// Longest copy done inline.
const INLINE: usize = 256;

/// Copies `n` bytes from `src` to `dst`.
///
/// # Safety
/// `src` must be readable and `dst` writable for `n` bytes; the ranges must not overlap. Either may change concurrently.
#[inline(always)]
pub(crate) unsafe fn copy(dst: *mut u8, src: *const u8, n: usize) {
    // SAFETY: forwarded to the caller.
    unsafe {
        if n > INLINE {
            long(dst, src, n);
        } else if n >= 16 {
            medium(dst, src, n);
        } else {
            short(dst, src, n);
        }
    }
}

/// 0 to 15 bytes, as two overlapping words where there are four or more.
#[inline(always)]
unsafe fn short(dst: *mut u8, src: *const u8, n: usize) {
    // SAFETY: each access lies within `n` bytes of both ranges: `n - width` is at least 0 where a width is chosen.
    unsafe {
        if n >= 8 {
            let (first, last) = (load_u64(src), load_u64(src.add(n - 8)));
            store_u64(dst, first);
            store_u64(dst.add(n - 8), last);
        } else if n >= 4 {
            let (first, last) = (load_u32(src), load_u32(src.add(n - 4)));
            store_u32(dst, first);
            store_u32(dst.add(n - 4), last);
        } else {
            for at in 0..n {
                dst.add(at).write_volatile(src.add(at).read_volatile());
            }
        }
    }
}

/// An integer at any address.
#[cfg(not(target_arch = "x86_64"))]
#[repr(C, packed)]
#[derive(Clone, Copy)]
struct Unaligned<T: Copy>(T);

/// 16 to 256 bytes.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn medium(dst: *mut u8, src: *const u8, n: usize) {
    // SAFETY: `at` steps by 32 while 32 bytes remain; the tail reads the last 16 (and, past 16 left, the 16 before) bytes of the range.
    unsafe {
        let mut at = 0;
        while n - at >= 32 {
            core::arch::asm!(
                "movups {a}, [{s}]", "movups {b}, [{s} + 16]", "movups [{d}], {a}", "movups [{d} + 16], {b}",
                s = in(reg) src.add(at), d = in(reg) dst.add(at), a = out(xmm_reg) _, b = out(xmm_reg) _,
                options(nostack, preserves_flags)
            );
            at += 32;
        }
        if at == n {
            return;
        }
        if n - at > 16 {
            sixteen(dst.add(at), src.add(at));
        }
        sixteen(dst.add(n - 16), src.add(n - 16));
    }
}

#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn sixteen(dst: *mut u8, src: *const u8) {
    // SAFETY: the caller has 16 bytes at both ends.
    unsafe {
        core::arch::asm!(
            "movups {a}, [{s}]", "movups [{d}], {a}",
            s = in(reg) src, d = in(reg) dst, a = out(xmm_reg) _, options(nostack, preserves_flags)
        );
    }
}

/// More than [`INLINE`] bytes. Never inlined: at a call no vector register is live, so `vzeroupper` disturbs nobody.
#[cfg(target_arch = "x86_64")]
#[inline(never)]
unsafe fn long(dst: *mut u8, src: *const u8, n: usize) {
    // SAFETY: the AVX loop is entered only where the CPU has AVX and covers whole 64-byte steps; `medium` takes the rest (and
    // overlaps backwards when fewer than 16 bytes are left, which `n > 256` makes room for).
    unsafe {
        if std::arch::is_x86_feature_detected!("avx") {
            let whole = n & !63;
            let end = src.add(whole);
            core::arch::asm!(
                "2:",
                "vmovdqu ymm0, [{s}]", "vmovdqu ymm1, [{s} + 32]", "vmovdqu [{d}], ymm0", "vmovdqu [{d} + 32], ymm1",
                "add {s}, 64", "add {d}, 64", "cmp {s}, {e}", "jb 2b",
                "vzeroupper",
                s = inout(reg) src => _, d = inout(reg) dst => _, e = in(reg) end, out("xmm0") _, out("xmm1") _,
                options(nostack)
            );
            let rest = n - whole;
            if rest >= 16 {
                medium(dst.add(whole), src.add(whole), rest);
            } else if rest > 0 {
                sixteen(dst.add(n - 16), src.add(n - 16));
            }
        } else {
            core::arch::asm!(
                "rep movsb",
                inout("rsi") src => _, inout("rdi") dst => _, inout("rcx") n => _, options(nostack, preserves_flags)
            );
        }
    }
}

#[cfg(not(target_arch = "x86_64"))]
unsafe fn medium(dst: *mut u8, src: *const u8, n: usize) {
    // SAFETY: whole words below `n`, then the last word of the range.
    unsafe {
        let mut at = 0;
        while n - at >= 8 {
            store_u64(dst.add(at), load_u64(src.add(at)));
            at += 8;
        }
        store_u64(dst.add(n - 8), load_u64(src.add(n - 8)));
    }
}

#[cfg(not(target_arch = "x86_64"))]
unsafe fn long(dst: *mut u8, src: *const u8, n: usize) {
    // SAFETY: the same contract.
    unsafe { medium(dst, src, n) }
}

macro_rules! words {
    ($load:ident, $store:ident, $word:ty, $register:literal) => {
        /// The little-endian word at any address, by one load.
        ///
        /// # Safety
        /// The address must be readable for the word's size. The memory may change concurrently.
        #[inline(always)]
        pub(crate) unsafe fn $load(at: *const u8) -> $word {
            #[cfg(target_arch = "x86_64")]
            {
                let word: $word;
                // SAFETY: forwarded to the caller. Assembly, because a volatile load of unaligned data is made byte by byte.
                unsafe {
                    core::arch::asm!(
                        concat!("mov {w", $register, "}, [{p}]"), p = in(reg) at, w = out(reg) word,
                        options(nostack, preserves_flags, readonly)
                    );
                }
                word
            }
            #[cfg(not(target_arch = "x86_64"))]
            // SAFETY: forwarded to the caller; `Unaligned` asks for no alignment.
            <$word>::from_le(unsafe { at.cast::<Unaligned<$word>>().read_volatile() }.0)
        }

        /// Stores a word, little endian, at any address, by one store.
        ///
        /// # Safety
        /// The address must be writable for the word's size.
        #[inline(always)]
        pub(crate) unsafe fn $store(at: *mut u8, word: $word) {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: forwarded to the caller.
            unsafe {
                core::arch::asm!(
                    concat!("mov [{p}], {w", $register, "}"), p = in(reg) at, w = in(reg) word,
                    options(nostack, preserves_flags)
                );
            }
            #[cfg(not(target_arch = "x86_64"))]
            // SAFETY: forwarded to the caller; `Unaligned` asks for no alignment.
            unsafe { at.cast::<Unaligned<$word>>().write_volatile(Unaligned(word.to_le())) };
        }
    };
}

words!(load_u64, store_u64, u64, ":r");
words!(load_u32, store_u32, u32, ":e");

/// Asks for the cache line at `at`, to read it soon. Any address is allowed.
#[inline(always)]
pub(crate) fn prefetch_read(at: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch never faults, whatever the address.
    unsafe {
        core::arch::x86_64::_mm_prefetch::<{ core::arch::x86_64::_MM_HINT_T0 }>(at.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

/// Asks for the cache line at `at`, to write it soon. Any address is allowed.
#[inline(always)]
pub(crate) fn prefetch_write(at: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: PREFETCHW never faults; CPUs without it treat it as a no-op (all x86-64 CPUs decode it).
    unsafe {
        core::arch::asm!("prefetchw [{}]", in(reg) at, options(nostack, preserves_flags, readonly));
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_length_and_alignment_copies_exactly() {
        let src: Vec<u8> = (0..2100u32).map(|i| (i * 7 + 3) as u8).collect();
        for n in (0..600).chain([1023, 1024, 1500, 1514, 2000]) {
            for shift in [0, 1, 7, 15, 33] {
                let mut dst = vec![0xaa; 2200];
                // SAFETY: `shift + n` is within both vectors.
                unsafe { super::copy(dst.as_mut_ptr().add(shift), src.as_ptr().add(shift), n) };
                assert_eq!(dst[shift..shift + n], src[shift..shift + n], "{n} at {shift}");
                assert!(
                    dst[..shift].iter().chain(&dst[shift + n..]).all(|b| *b == 0xaa),
                    "{n} at {shift} wrote outside"
                );
            }
        }
    }
}
