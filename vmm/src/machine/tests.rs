//! Machines with the built-in guest, and with programs that are out to hurt.

use super::*;
