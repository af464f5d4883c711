//! The program `trunkline`: a userspace virtual network for KVM guests.
//!
//! Invariant: exit code 0 when all went well, 1 when something failed while running, 2 on wrong usage or a wrong file; what
//! was asked for is on stdout, messages and log are on stderr.

mod announce;
mod api;
mod args;
mod bench;
mod bridged;
mod client;
mod config;
mod demo;
mod doctor;
mod engines;
mod explain;
mod gateways;
mod guests;
mod hash;
mod host;
mod machine;
mod model;
mod mtu;
mod nat;
mod own_mac;
mod paths;
mod place;
mod plan;
mod probe;
mod routers;
mod run;
mod run_dir;
mod seed;
mod service;
mod show;
mod socket;
mod speaking;
mod state;
mod subnets;
mod switch;
mod table;
mod taps;
mod tunnels;
mod underlay;
mod uplinks;
mod view;
mod wiring;

use args::{Args, FileArgument, Global, GuestVerb, MachineArguments, Verb};
use clap::{CommandFactory, Parser};
use config::{Config, ConfigError, Surroundings};
use std::{
    io::{self, ErrorKind, IsTerminal, Write},
    path::PathBuf,
    process::ExitCode,
};
use tracing_subscriber::{EnvFilter, filter::LevelFilter};

/// Why the program ends with a code other than 0.
#[derive(Debug, thiserror::Error)]
enum Failed {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("{0}")]
    Usage(String),
    #[error(transparent)]
    Run(#[from] run::RunError),
    #[error(transparent)]
    Client(#[from] client::ClientError),
    #[error(transparent)]
    Bench(#[from] bench::BenchError),
    #[error(transparent)]
    Guest(#[from] guests::GuestError),
    #[error(transparent)]
    Machine(#[from] machine::Error),
    /// A NIC is not as it was.
    #[error("keeper: {0}")]
    Keeper(#[from] io::Error),
    #[error("this host has no random numbers: {0}")]
    Random(io::Error),
    #[error("cannot write to standard output: {0}")]
    Output(io::Error),
    #[error(transparent)]
    Demo(#[from] demo::DemoError),
    /// Told already, by the table.
    #[error("not everything held")]
    NotHeld,
    /// Told already, check by check.
    #[error("problems: {0}; what to do about each is said above")]
    Problems(usize),
    /// Told already, line by line.
    #[error("not applied")]
    NotApplied,
}

impl Failed {
    fn code(&self) -> ExitCode {
        match self {
            Failed::Config(_) | Failed::Usage(_) => ExitCode::from(2),
            Failed::Demo(demo::DemoError::Guests(_)) => ExitCode::from(2),
            Failed::Run(_)
            | Failed::Client(_)
            | Failed::Output(_)
            | Failed::Random(_)
            | Failed::Demo(_)
            | Failed::NotHeld
            | Failed::Problems(_)
            | Failed::NotApplied => ExitCode::from(1),
            Failed::Guest(guests::GuestError::Unknown(..) | guests::GuestError::External(_)) => ExitCode::from(2),
            Failed::Guest(_) | Failed::Machine(_) | Failed::Bench(_) | Failed::Keeper(_) => ExitCode::from(1),
        }
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    log_to_stderr(&args);
    match carry_out(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failed) => {
            // Nothing is left to tell a closed stderr.
            let _ = writeln!(io::stderr(), "error: {failed}");
            failed.code()
        }
    }
}

fn carry_out(args: &Args) -> Result<(), Failed> {
    let global = &args.global;
    match &args.verb {
        Verb::Up(file) => Ok(run::up(load(file, global)?)?),
        Verb::Check(file) => check(file, global),
        Verb::Plan(file) => plan(file, global, "/v1/plan"),
        Verb::Apply(file) => plan(file, global, "/v1/apply"),
        Verb::Status => print(show::status(&control_socket(global)?, global.json)?.as_bytes()),
        Verb::Show { kind } => match show::show(*kind, &control_socket(global)?, global.json) {
            Ok(text) => print(text.as_bytes()),
            Err(show::ShowError::Client(error)) => Err(error.into()),
            Err(error @ show::ShowError::Unavailable(_)) => Err(Failed::Usage(error.to_string())),
        },
        Verb::Bench(arguments) => print(bench::run(arguments, Surroundings::here().hostname, global.json)?.as_bytes()),
        Verb::Demo(asked) => {
            let options = demo::Options { json: global.json, guests: asked.guests, engine: asked.engine };
            if demo::run(options)? { Ok(()) } else { Err(Failed::NotHeld) }
        }
        Verb::Guest { what } => guest(what, global),
        Verb::Keeper { file } => Ok(bridged::keeper::run(file)?),
        Verb::Keys => keys(global.json),
        Verb::Doctor { repair } => doctor(*repair, global),
        Verb::Machine(asked) => {
            let MachineArguments { port, mac, name, memory, image, run, lock } = asked;
            let options = machine::Options {
                name: name.clone(),
                socket: port.clone(),
                mac: *mac,
                memory: memory << 20,
                image: image.clone(),
                commands: run.clone(),
                lock: lock.clone(),
            };
            Ok(machine::run(options)?)
        }
        Verb::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut Args::command(), "trunkline", &mut script);
            print(&script)
        }
        Verb::Man => {
            let mut page = Vec::new();
            clap_mangen::Man::new(Args::command()).render(&mut page).map_err(Failed::Output)?;
            print(&page)
        }
    }
}

/// Reads the file of `up` and `check`, and lets `--socket` override its control socket.
fn load(file: &FileArgument, global: &Global) -> Result<Config, Failed> {
    let named = file.file.as_deref().or(global.config.as_deref());
    let mut config = config::load(&config::find(named)?, &Surroundings::here())?;
    if let Some(path) = &global.socket {
        config.set_control_socket(path).map_err(Failed::Usage)?;
    }
    Ok(config)
}

fn guest(what: &GuestVerb, global: &Global) -> Result<(), Failed> {
    let config = config::load(&config::find(global.config.as_deref())?, &Surroundings::here())?;
    let (name, done, word) = match what {
        GuestVerb::List => return print(guests::list(&config, global.json)?.as_bytes()),
        GuestVerb::Start { name } => (name, guests::start(&config, guests::named(&config, name)?)?, "started"),
        GuestVerb::Stop { name } => (name, guests::stop(&config, guests::named(&config, name)?)?, "stopped"),
    };
    let told = if done { format!("{name} {word}\n") } else { format!("{name} is {word} already\n") };
    print(told.as_bytes())
}

/// Makes a pair of keys, which nobody keeps.
fn keys(json: bool) -> Result<(), Failed> {
    let key = overlay::keys::PrivateKey::new(seed::bytes().map_err(Failed::Random)?);
    let (private, public) = (key.reveal(), key.public().to_string());
    let text = match json {
        true => format!("{}\n", serde_json::json!({ "private_key": private, "public_key": public })),
        false => format!("private key  {private}\npublic key   {public}\n"),
    };
    print(text.as_bytes())
}

/// Without a file that is right, `doctor` looks at the host alone.
fn doctor(repair: bool, global: &Global) -> Result<(), Failed> {
    let around = Surroundings::here();
    let config = match config::find(global.config.as_deref()).and_then(|file| config::load(&file, &around)) {
        Ok(config) => Ok(config),
        Err(error) if global.config.is_some() => return Err(error.into()),
        Err(error) => Err(error),
    };
    let report = doctor::examine(config, &around, repair);
    print(report.text(global.json).as_bytes())?;
    if report.ok { Ok(()) } else { Err(Failed::Problems(report.problems())) }
}

fn check(file: &FileArgument, global: &Global) -> Result<(), Failed> {
    match load(file, global) {
        Ok(config) if global.json => print(explain::program(&config).as_bytes()),
        Ok(config) => print(explain::people(&config).as_bytes()),
        Err(failed) => {
            if let (true, Failed::Config(error)) = (global.json, &failed) {
                print(explain::wrong(error).as_bytes())?;
            }
            Err(failed)
        }
    }
}

/// Has the daemon compare a file with what it runs, and by `/v1/apply` take it over.
fn plan(file: &FileArgument, global: &Global, path: &str) -> Result<(), Failed> {
    let config = load(file, global)?;
    let text = std::fs::read_to_string(&config.file)
        .map_err(|error| Failed::Usage(format!("{}: {error}", config.file.display())))?;
    let asked = plan::Asked { file: config.file.display().to_string(), text };
    let (json, plan) = client::tell::<plan::Plan>(&config.host.control_socket, path, &asked)?;
    let text = if global.json { json + "\n" } else { plan.text() };
    print(text.as_bytes())?;
    let refused = path == "/v1/apply" && !(plan.applied && plan.failures.is_empty());
    if refused { Err(Failed::NotApplied) } else { Ok(()) }
}

/// Where the daemon to be asked listens: `--socket`, else what the file says, else the default of this user.
///
/// A file that was named must be right; one that happens to lie at a default place need not be.
fn control_socket(global: &Global) -> Result<PathBuf, Failed> {
    if let Some(socket) = &global.socket {
        return Ok(socket.clone());
    }
    let around = Surroundings::here();
    if let Some(file) = &global.config {
        return Ok(config::load(file, &around)?.host.control_socket);
    }
    let found = config::find(None).and_then(|file| config::load(&file, &around));
    match found {
        Ok(config) => return Ok(config.host.control_socket),
        Err(ConfigError::Nowhere(_)) => {}
        Err(error) => tracing::warn!("passed over a wrong file: {error}"),
    }
    let run_dir = around.run_dir().ok_or_else(|| {
        Failed::Usage(
            "XDG_RUNTIME_DIR is not set, so there is no default control socket; give --socket PATH".to_owned(),
        )
    })?;
    Ok(run_dir.join("control.sock"))
}

/// Writes to stdout; a reader that has seen enough is no failure.
fn print(bytes: &[u8]) -> Result<(), Failed> {
    let mut out = io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(Failed::Output(error)),
        _ => Ok(()),
    }
}

/// Logs to stderr: `up` tells what it does, other verbs only what goes wrong; `-v` and `-vv` more.
fn log_to_stderr(args: &Args) {
    let level = match (&args.verb, args.global.verbose) {
        (Verb::Up(_) | Verb::Keeper { .. }, 0) => LevelFilter::INFO,
        (_, 0) => LevelFilter::WARN,
        (_, 1) => LevelFilter::DEBUG,
        (_, _) => LevelFilter::TRACE,
    };
    let chosen = std::env::var("RUST_LOG").ok().filter(|filter| !filter.is_empty());
    let parsed = chosen.as_deref().map(EnvFilter::try_new);
    let wrong = matches!(parsed, Some(Err(_)));
    let usual = || {
        let filter = EnvFilter::default().add_directive(level.into());
        // Who does not answer a handshake is told by `show peers` and `doctor`, not every five seconds.
        let quiet = "boringtun=off".parse().ok().filter(|_| args.global.verbose == 0);
        quiet.into_iter().fold(filter, EnvFilter::add_directive)
    };
    let filter = parsed.and_then(Result::ok).unwrap_or_else(usual);
    let colours = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).with_ansi(colours).init();
    if wrong {
        tracing::warn!("RUST_LOG is not a filter and is passed over");
    }
}
