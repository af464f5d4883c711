//! A number made of a name, the same on every run and host: FNV-1a. Not for tables that somebody may want to fill unevenly.

/// The number of `name`.
pub fn of(name: &str) -> u32 {
    name.bytes().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

#[cfg(test)]
mod tests {
    #[test]
    fn known_values() {
        assert_eq!((super::of(""), super::of("a"), super::of("foobar")), (0x811c_9dc5, 0xe40c_292c, 0xbf9c_f968));
    }
}
