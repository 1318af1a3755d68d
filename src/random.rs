//! Random bytes from the system.

/// Returns `N` random bytes, good enough for secrets.
///
/// # Panics
///
/// When the system has none. No system that can start a program gets into that state.
pub(crate) fn bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("the system gives no random bytes");
    bytes
}

/// Returns `N` random bytes in hexadecimal: the text of a secret of `8 * N` bits.
pub(crate) fn hex<const N: usize>() -> String {
    use std::fmt::Write as _;
    let mut text = String::with_capacity(2 * N);
    for byte in bytes::<N>() {
        write!(text, "{byte:02x}").expect("BUG: a String takes all text");
    }
    text
}

/// Returns a random number from 0 to 1.
pub(crate) fn fraction() -> f64 {
    f64::from(u32::from_le_bytes(bytes())) / f64::from(u32::MAX)
}
