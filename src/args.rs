//! The command line.
//!
//! Invariant: the verbs here are those that work; verbs and flags that scripts rely on keep their names. Wrong usage ends
//! with exit code 2 before anything is read or changed.

use clap::{Args as Arguments, Parser, Subcommand, ValueEnum, ValueHint};
use clap_complete::Shell;
use std::path::PathBuf;

/// A userspace virtual network for KVM guests.
#[derive(Debug, Parser)]
#[command(name = "trunkline", version, about, max_term_width = 100)]
#[command(after_help = "Exit codes: 0 all went well, 1 it failed while running, 2 wrong usage or a wrong file.")]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
    /// What every verb takes.
    #[command(flatten)]
    pub global: Global,
}

/// Flags that every verb takes.
#[derive(Debug, Arguments)]
pub struct Global {
    /// Control socket of the daemon [default: <run_dir>/control.sock]
    #[arg(long, global = true, value_name = "PATH", value_hint = ValueHint::FilePath)]
    pub socket: Option<PathBuf>,
    /// Configuration file [default: ./trunkline.toml, then /etc/trunkline/trunkline.toml]
    #[arg(long, global = true, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub config: Option<PathBuf>,
    /// Print JSON for programs in place of tables for people
    #[arg(long, global = true)]
    pub json: bool,
    /// Log more (-v: debug, -vv: trace); RUST_LOG, if set, decides alone
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Show the main job with no configuration: a switch, built-in guests, and a table of what was checked
    ///
    /// Needs no root and nothing installed. Exit code 0 only if all of it held.
    Demo(DemoArguments),
    /// Run the networks of a configuration file in the foreground
    ///
    /// Prints the line `ready` when every port can be attached; what cannot be is logged, and told by `show ports`. SIGTERM or Ctrl-C
    /// ends it.
    Up(FileArgument),
    /// Start, stop and list the guests of a configuration file that are ours to run (engine = "machine")
    Guest {
        /// What to do with them.
        #[command(subcommand)]
        what: GuestVerb,
    },
    /// Run one built-in guest in this process, attached to a daemon's vhost-user socket
    ///
    /// What `up` and `guest start` run. The console is on standard output; the guest outlives the daemon.
    Machine(MachineArguments),
    /// Read and explain a configuration file; changes nothing
    ///
    /// Exit code 2 and a message that points at the line when the file is wrong.
    Check(FileArgument),
    /// Tell what a configuration file would change in the running daemon; changes nothing
    Plan(FileArgument),
    /// Change the running daemon to what a configuration file says
    ///
    /// Published ports change while frames flow. If anything else differs, nothing is changed, and the exit code is 1.
    Apply(FileArgument),
    /// Ask the daemon how it is
    Status,
    /// Ask the daemon for one kind of thing
    Show {
        /// Which kind.
        #[arg(value_enum)]
        kind: Kind,
    },
    /// Measure packet rate, throughput and latency of the switch on this machine
    ///
    /// Takes two CPUs for themselves for as long as it runs, one that loads and one that switches; installs and changes nothing. Without
    /// WHAT, a look at everything within about a minute.
    Bench(BenchArguments),
    /// Check this host and the networks of a file: what is wrong, and how to mend it
    ///
    /// Changes nothing without --repair. Exit code 0 when there is no problem; a warning is none.
    Doctor {
        /// Put back what a killed daemon left of a bridged network
        #[arg(long)]
        repair: bool,
    },
    /// Make a pair of keys for a tunnel endpoint that seals what it sends
    ///
    /// The private one belongs into the file that `key_file` names, the public one into `peers` of the other hosts.
    Keys,
    /// Hold a NIC that is joined to a bridge; started by `up`
    #[command(hide = true)]
    Keeper {
        /// What the NIC had
        file: PathBuf,
    },
    /// Print the completion script of a shell
    Completions {
        /// Which shell.
        #[arg(value_enum)]
        shell: Shell,
    },
    /// Print the manual page, in roff
    Man,
}

/// What `demo` takes.
#[derive(Debug, Arguments)]
pub struct DemoArguments {
    /// Boot N guests that ping each other instead, and tell how long that took and what each takes up
    #[arg(long, value_name = "N")]
    pub guests: Option<u16>,
    /// Where guests run [default: machines where KVM runs them, else threads]
    #[arg(long, value_enum, value_name = "ENGINE")]
    pub engine: Option<crate::demo::Engine>,
}

/// What `guest` can do.
#[derive(Debug, Subcommand)]
pub enum GuestVerb {
    /// All guests of the file, who runs them, and whether they run
    List,
    /// Start a guest; it is attached as soon as there is a daemon
    Start {
        /// Its name in the file
        name: String,
    },
    /// End a guest, as a power cut does
    Stop {
        /// Its name in the file
        name: String,
    },
}

/// What `machine` takes.
#[derive(Debug, Arguments)]
pub struct MachineArguments {
    /// The vhost-user socket of a port
    #[arg(long, value_name = "PATH", value_hint = ValueHint::FilePath)]
    pub port: PathBuf,
    /// Address of its network card
    #[arg(long, value_name = "MAC", default_value = "02:74:6c:00:00:01")]
    pub mac: wire::Mac,
    /// For log lines
    #[arg(long, default_value = "guest")]
    pub name: String,
    /// MiB of memory, 4 to 2048
    #[arg(long, value_name = "MIB", default_value_t = 8, value_parser = clap::value_parser!(u64).range(4..=2048))]
    pub memory: u64,
    /// Another program than the built-in guest: a static 64-bit ELF file for this machine
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub image: Option<PathBuf>,
    /// A command for the guest to begin with, for example "address 10.0.0.1/24"; may be given several times
    #[arg(long, value_name = "COMMAND")]
    pub run: Vec<String>,
    /// A file to lock while the guest runs; if it is locked already, nothing is done
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub lock: Option<PathBuf>,
}

/// The file of `up`, `check`, `plan` and `apply`.
#[derive(Debug, Arguments)]
pub struct FileArgument {
    /// The configuration file [default: ./trunkline.toml, then /etc/trunkline/trunkline.toml]
    #[arg(value_hint = ValueHint::FilePath, conflicts_with = "config")]
    pub file: Option<PathBuf>,
}

/// What `bench` takes.
#[derive(Debug, Arguments)]
pub struct BenchArguments {
    /// What to measure [default: all, shortly]
    #[arg(value_enum)]
    pub what: Option<Measurement>,
    /// Seconds that each repeat is measured for [default: 1; without WHAT 0.25]
    #[arg(long, value_parser = seconds)]
    pub seconds: Option<f64>,
    /// Repeats of each measurement [default: 5; without WHAT 3]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub repeats: Option<u32>,
    /// The CPUs of the generator and of the switch [default: the first two that may be used]
    #[arg(long, value_name = "GEN,WORKER", value_parser = two_cpus)]
    pub cpus: Option<(usize, usize)>,
    /// Write a page with plots as well
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub html: Option<PathBuf>,
}

/// What `bench` can be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Measurement {
    /// Frames a second, by frame size
    Rate,
    /// Bits a second, in super-frames of 64 KiB
    Throughput,
    /// Time from one port to the other, with one frame on its way and at half load
    Latency,
    /// The highest rate at which nothing is lost
    Loss,
    /// Frames a second by number of flows, addresses and ports
    Scaling,
    /// All of these
    All,
}

fn seconds(text: &str) -> Result<f64, String> {
    let seconds: f64 = text.parse().map_err(|_| format!("`{text}` is not a number of seconds"))?;
    if (0.001..=3600.0).contains(&seconds) { Ok(seconds) } else { Err("0.001 to 3600 are allowed".to_owned()) }
}

fn two_cpus(text: &str) -> Result<(usize, usize), String> {
    let two = text.split_once(',').and_then(|(a, b)| Some((a.trim().parse().ok()?, b.trim().parse().ok()?)));
    two.ok_or_else(|| format!("`{text}` is not two CPU numbers, as in 0,1"))
}

/// What `show` can be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// Networks with their modes and ports
    Networks,
    /// Ports with their states and counters
    Ports,
    /// Which MAC address is reached through which port
    Fdb,
    /// Why frames ended, by port and reason
    Drops,
    /// What is translated: mappings and connections of networks in mode nat
    Nat,
    /// Addresses that guests have by DHCP
    Leases,
    /// Tunnel endpoints of other hosts, network by network
    Peers,
    /// Known by name; not available in this version
    #[value(hide = true)]
    Guests,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn global_flags_stand_anywhere() {
        let args = Args::try_parse_from(["trunkline", "show", "ports", "--json", "--socket", "/x"]).unwrap();
        assert!(args.global.json && args.global.socket.is_some());
        assert!(Args::try_parse_from(["trunkline", "--json", "status"]).unwrap().global.json);
        assert!(Args::try_parse_from(["trunkline", "up", "a.toml", "--config", "b.toml"]).is_err());
        assert!(Args::try_parse_from(["trunkline", "demo", "--guests", "many"]).is_err());
    }
}
