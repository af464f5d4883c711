//! What a NAT knows of a TCP connection: which side has opened and closed it, and whether it was reset.
//!
//! Invariant: the state of a session follows from its marks alone.
//! Read first: RFC 6146 section 3.5.2 (the state machine that RFC 7857 section 2 asks for), RFC 5382 section 4.

use crate::record::{Side, State};

pub(crate) const FIN: u8 = 0x01;
pub(crate) const SYN: u8 = 0x02;
pub(crate) const RST: u8 = 0x04;
pub(crate) const ACK: u8 = 0x10;

/// Opened from inside.
pub(crate) const OPEN_OUT: u8 = 1;
/// Opened from outside.
pub(crate) const OPEN_IN: u8 = 2;
const CLOSED_OUT: u8 = 4;
const CLOSED_IN: u8 = 8;
const RESET: u8 = 16;
/// The session counts in the permit of its remote address.
pub(crate) const PERMITTED: u8 = 32;
const BOTH_OPEN: u8 = OPEN_OUT | OPEN_IN;
const BOTH_CLOSED: u8 = CLOSED_OUT | CLOSED_IN;

/// Whether a segment asks for a new connection.
#[inline]
pub(crate) fn opens(flags: u8) -> bool {
    flags & (SYN | ACK | RST | FIN) == SYN
}

/// The state of these marks.
#[inline]
pub(crate) fn state(marks: u8) -> State {
    if marks & RESET != 0 || marks & BOTH_CLOSED == BOTH_CLOSED {
        State::Closing
    } else if marks & BOTH_OPEN == BOTH_OPEN {
        State::Established
    } else {
        State::Opening
    }
}

/// Whether a segment is the inside's refusal of what it has not opened. It puts off no end (RFC 7857 section 7.1): else whoever knocks would keep a
/// mapping alive.
#[inline]
pub(crate) fn refuses(marks: u8, from: Side, flags: u8) -> bool {
    flags & RST != 0 && from == Side::Inside && marks & OPEN_OUT == 0
}

/// The marks after a segment from one side.
#[inline]
pub(crate) fn after(marks: u8, from: Side, flags: u8) -> u8 {
    let (open, close) = match from {
        Side::Inside => (OPEN_OUT, CLOSED_OUT),
        Side::Outside => (OPEN_IN, CLOSED_IN),
    };
    if refuses(marks, from, flags) {
        return marks;
    }
    if flags & RST != 0 {
        return marks | RESET;
    }
    // The next connection between the same endpoints (RFC 9293 section 3.6.1).
    if opens(flags) && state(marks) == State::Closing {
        return marks & PERMITTED | open;
    }
    // Who goes on after a reset has not been reset: it was old, or forged (RFC 6146 section 3.5.2.2).
    let mut marks =
        if state(marks) == State::Closing && marks & BOTH_CLOSED != BOTH_CLOSED { marks & !RESET } else { marks };
    if flags & SYN != 0 {
        marks |= open;
    }
    if flags & FIN != 0 && marks & BOTH_OPEN == BOTH_OPEN {
        marks |= close;
    }
    marks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_opens_and_closes() {
        let mut marks = OPEN_OUT;
        assert_eq!(state(marks), State::Opening);
        marks = after(marks, Side::Inside, SYN);
        assert_eq!(state(marks), State::Opening, "again the same SYN");
        marks = after(marks, Side::Outside, SYN | ACK);
        assert_eq!(state(marks), State::Established);
        marks = after(marks, Side::Outside, FIN | ACK);
        assert_eq!(state(marks), State::Established, "half closed");
        marks = after(marks, Side::Inside, FIN | ACK);
        assert_eq!(state(marks), State::Closing);
        assert_eq!(state(after(marks, Side::Outside, ACK)), State::Closing);
        assert_eq!(after(marks, Side::Inside, SYN), OPEN_OUT, "the next connection");
    }

    #[test]
    fn a_refusal_changes_nothing() {
        assert_eq!(after(OPEN_IN, Side::Inside, RST | ACK), OPEN_IN);
        assert!(!refuses(OPEN_IN | OPEN_OUT, Side::Inside, RST) && !refuses(OPEN_IN, Side::Outside, RST));
    }

    #[test]
    fn a_reset_that_was_none_is_forgotten() {
        let open = OPEN_OUT | OPEN_IN;
        let reset = after(open, Side::Outside, RST);
        assert_eq!(state(reset), State::Closing);
        assert_eq!(after(reset, Side::Outside, RST), reset);
        assert_eq!(after(reset, Side::Inside, ACK), open);
    }
}
