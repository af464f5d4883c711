//! `demo`: the main job with no configuration: a switch, built-in guests, and one check after the other while a person watches.
//!
//! Invariant: no root and nothing installed is needed, nothing of the host is changed, nothing is left behind; it ends well only if
//! every check held, and one that cannot run here says why. Read in this order: this file, `demo/guests.rs`, `demo/checks.rs`.

mod beyond;
mod checks;
mod crowd;
mod guests;
mod net;
mod table;
mod thread;

use std::{
    io,
    time::{Duration, Instant},
};

pub use guests::Engine;

use guests::Asked;
use net::Net;
use table::Table;

/// What `demo` was asked for.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Tell programs, not people.
    pub json: bool,
    /// Instead of the checks: boot so many guests that ping each other.
    pub guests: Option<u16>,
    /// Where the guests run; nothing: where they can.
    pub engine: Option<Engine>,
}

/// Why the demo could not be run at all.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// Something the switch needs.
    #[error("the switch could not be started: {0}")]
    Switch(#[from] io::Error),
    /// The guests asked for cannot be had.
    #[error("{0}")]
    Guests(String),
    /// Standard output is gone.
    #[error("cannot write to standard output: {0}")]
    Output(io::Error),
}

/// Runs the demo; true when all of it held.
///
/// # Errors
/// See [`DemoError`].
pub fn run(options: Options) -> Result<bool, DemoError> {
    // A network of our own for what needs privilege. Before there is a second thread.
    let own_network = sys::netns::leave().map_err(|error| {
        format!("this host gives no network namespace of its own ({error}); as root, or with user namespaces allowed, it does")
    });
    sys::sigbus::install()?;
    let begun = Instant::now();
    let asked = Asked::of(options.engine).map_err(DemoError::Guests)?;
    let mut table = Table::new(options.json);
    table.say("Trunkline: a switch in this process, and guests on it that were built with it\n")?;
    table.say(&format!("  guests run as {}\n", asked.told()))?;
    match options.guests {
        Some(count) => crowd::run(&mut table, &asked, count)?,
        None => {
            let mut net = Net::start(&format!("{}{}", checks::CONFIGURATION, beyond::CONFIGURATION), own_network)?;
            checks::run(&mut table, &asked, &mut net)?;
        }
    }
    table.end(begun.elapsed())
}

/// How long one command of a guest may take.
const PATIENCE: Duration = Duration::from_secs(20);
