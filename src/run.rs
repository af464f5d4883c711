//! `up`: carries out a configuration in the foreground.
//!
//! Invariant: nothing is made before the run directory is locked, and `ready` is printed once every port is made or has been
//! reported down.

use crate::{
    announce,
    api::{self, Query},
    bridged::{self, mac_nat},
    config::{Attach, Config, Name, Port, Role},
    guests, host,
    model::{Descriptors, PortState},
    mtu, paths,
    run_dir::{RunDir, RunDirError},
    socket::{self, Access, BindError},
    subnets,
    switch::{States, Switch},
    taps, tunnels,
    view::View,
    wiring::SwitchWiring,
};
use std::{
    collections::HashMap,
    fs,
    io::{self, Write},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc,
    task::JoinHandle,
};
use tracing::{error, info, warn};
use vmm::vhost_user::{self, Device, NicKey, PortOptions, SessionThread};

/// How often leases that have changed are written down.
const SAVING: Duration = Duration::from_secs(1);

/// Why the networks do not run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The run directory is another daemon's, or cannot be made.
    #[error(transparent)]
    RunDir(#[from] RunDirError),
    /// The control socket cannot be made.
    #[error("control socket {0}")]
    Control(#[from] BindError),
    /// The system would not give a thread, memory or a descriptor.
    #[error("the system refused what the switch needs: {0}")]
    System(#[from] io::Error),
}

/// Runs the networks until SIGTERM or SIGINT.
///
/// # Errors
/// See [`RunError`]; nothing then runs.
pub fn up(config: Config) -> Result<(), RunError> {
    let _run_dir = RunDir::claim(&config.host)?;
    let control = api::listen(&config.host)?;
    let control_socket = config.host.control_socket.clone();
    let ended = run(config, control);
    if let Err(error) = fs::remove_file(&control_socket) {
        warn!(%error, "the control socket stays behind");
    }
    ended
}

fn run(mut config: Config, control: std::os::unix::net::UnixListener) -> Result<(), RunError> {
    sys::sigbus::install()?;
    let file = config.clone();
    bridged::prepare(&mut config);
    mtu::work_out(&mut config);
    subnets::choose(&mut config)?;
    subnets::warn(&config);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let signals = {
        let _inside = runtime.enter();
        [signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?]
    };
    let mut switch = Switch::start(config, file)?;
    let (places, states) = (switch.places(), switch.states());
    let taps = taps::attach(switch.config(), &places, &states);
    tunnels::start(switch.config(), &places, &states, switch.view().tunnels());
    paths::watch(&switch.config().vteps, switch.view().tunnels())?;
    // Who comes up is announced to all, so the ways to other hosts are there before.
    announce::taps(switch.config(), &places, &states);
    let wiring = SwitchWiring::new(&switch.config().ports, places.clone(), states.clone());
    let sessions = SessionThread::spawn(vhost_user_ports(switch.config(), &states), Box::new(wiring))?;
    let mac_nats = mac_nat::start(switch.config(), &places, &states);
    start_guests(switch.config());
    switch.view().settle_nats();
    let ended = runtime.block_on(serve(&switch, control, signals));
    switch.view().leases().save();
    info!("ending");
    // Sessions first: they take their lanes home while the workers still turn.
    sessions.stop();
    drop(mac_nats);
    // What was told to other hosts is taken back while it is still true.
    switch.view().tunnels().stop();
    // What was joined comes apart while its TAP is there.
    drop(taps);
    switch.stop();
    ended
}

/// Starts the guests that are ours to run and do not run yet. They outlive us.
fn start_guests(config: &Config) {
    for guest in guests::machines(config) {
        match guests::start(config, guest) {
            Ok(true) => info!(guest = %guest.name, "started a machine"),
            Ok(false) => info!(guest = %guest.name, "its machine runs already"),
            Err(error) => error!(%error, "the guest does not run"),
        }
    }
}

/// The vhost-user ports, with sockets made for those that listen. One whose socket cannot be made is down; the others run.
pub(crate) fn vhost_user_ports(config: &Config, states: &States) -> Vec<PortOptions> {
    let journals = config.host.run_dir.join("journal");
    if let Err(error) = fs::create_dir_all(&journals) {
        warn!(%error, dir = %journals.display(), "packed rings will not survive a crash of this daemon");
    }
    let mtus: HashMap<&Name, u16> =
        config.networks.iter().filter_map(|network| Some((&network.name, network.mtu?))).collect();
    let options = |(index, port): (usize, &Port)| {
        let Attach::VhostUser { socket, role } = &port.attach else { return None };
        let role = match role {
            Role::Client => vhost_user::Role::Client { path: socket.clone() },
            Role::Server => match socket::listen(socket, Access::of(&config.host)) {
                Ok(listener) => vhost_user::Role::Server { listener, path: socket.clone() },
                Err(error) => {
                    error!(port = %port.name, %error, "the port is down");
                    states.set(index, PortState::Down, Some(error.to_string()));
                    return None;
                }
            },
        };
        Some(PortOptions {
            nic: NicKey(index as u32),
            name: port.name.to_string(),
            role,
            device: device(port, mtus.get(&port.network).copied(), &journals),
        })
    };
    config.ports.iter().enumerate().filter_map(options).collect()
}

fn device(port: &Port, mtu: Option<u16>, journals: &std::path::Path) -> Device {
    // A port's name may hold slashes; a percent sign it may not.
    let journal: PathBuf = journals.join(port.name.as_str().replace('/', "%"));
    Device { queues: port.queues, mtu, mac: port.mac, journal: Some(journal) }
}

async fn serve(
    switch: &Switch,
    control: std::os::unix::net::UnixListener,
    signals: [Signal; 2],
) -> Result<(), RunError> {
    let (asked, mut queries) = mpsc::channel(api::QUERIES);
    let mut serving = std::pin::pin!(api::serve(control, asked, std::future::pending()));
    let config = switch.config();
    info!(host = config.host.name, ports = config.ports.len(), descriptors = host::descriptors(), "running");
    let view = switch.view();
    let [mut terminate, mut interrupt] = signals;
    let mut saving = tokio::time::interval(SAVING);
    let mut kept = None;
    let is_scarce = Arc::new(AtomicBool::new(false));
    {
        let mut out = io::stdout().lock();
        writeln!(out, "ready").and_then(|()| out.flush())?;
    }
    loop {
        tokio::select! {
            served = &mut serving => return Ok(served?),
            Some(query) = queries.recv() => {
                let view = view.clone();
                // Waiting for the workers is done beside the runtime.
                tokio::task::spawn_blocking(move || answer(query, &view));
            }
            _ = saving.tick() => {
                let view = view.clone();
                let is_scarce = is_scarce.clone();
                one_at_a_time(&mut kept, move || housekeeping(&view, &is_scarce));
            }
            _ = terminate.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
        }
    }
}

/// Starts `work` beside the runtime, unless what was started before is not done: an engine that is slow to answer costs one thread, not one a second.
fn one_at_a_time(running: &mut Option<JoinHandle<()>>, work: impl FnOnce() + Send + 'static) {
    if running.as_ref().is_none_or(JoinHandle::is_finished) {
        *running = Some(tokio::task::spawn_blocking(work));
    }
}

/// Says in the log once that nearly all descriptors are open, and once that there are some again; whether they are scarce now.
fn scarce(before: bool, descriptors: Option<Descriptors>) -> bool {
    let Some(Descriptors { open, limit }) = descriptors else { return before };
    let share = open.saturating_mul(100) / limit.max(1);
    match before {
        false if share >= 90 => {
            warn!(
                open,
                limit,
                "nearly all descriptors are open: guests behind NAT by sockets are refused more connections, or soon will be"
            );
            true
        }
        true if share < 80 => {
            info!(open, limit, "there are descriptors again");
            false
        }
        _ => before,
    }
}

/// What is done once a second.
fn housekeeping(view: &View, is_scarce: &AtomicBool) {
    is_scarce.store(scarce(is_scarce.load(Ordering::Relaxed), host::open_descriptors()), Ordering::Relaxed);
    view.leases().save();
    view.look_for_the_missing();
    view.settle_nats();
}

fn answer(query: Query, view: &View) {
    // A client that has gone away is no failure of ours.
    match query {
        Query::Status(reply) => drop(reply.send(view.status())),
        Query::Networks(reply) => drop(reply.send(view.networks())),
        Query::Ports(reply) => drop(reply.send(view.ports())),
        Query::Fdb(reply) => drop(reply.send(view.fdb())),
        Query::Drops(reply) => drop(reply.send(view.drops())),
        Query::Leases(reply) => drop(reply.send(view.leases().list())),
        Query::Plan(asked, reply) => drop(reply.send(view.plan(&asked))),
        Query::Apply(asked, reply) => drop(reply.send(view.apply(&asked))),
        Query::Peers(reply) => drop(reply.send(view.tunnels().peers())),
        Query::Nat(reply) => drop(reply.send(view.nats().list())),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{atomic::AtomicUsize, mpsc};

    use super::*;

    #[test]
    fn descriptors_are_scarce_from_nine_tenths_until_there_is_a_fifth() {
        let (mut now, mut seen) = (false, Vec::new());
        for open in [89, 90, 80, 79, 89] {
            now = scarce(now, Some(Descriptors { open, limit: 100 }));
            seen.push(now);
        }
        assert_eq!(seen, [false, true, true, false, false]);
        assert!(scarce(true, None) && !scarce(false, None));
    }

    #[test]
    fn housekeeping_that_takes_long_is_not_begun_again_meanwhile() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let (begun, mut running) = (Arc::new(AtomicUsize::new(0)), None);
            let (go_on, wait) = mpsc::channel::<()>();
            let mut first = Some(wait);
            for _ in 0..5 {
                let (begun, wait) = (Arc::clone(&begun), first.take());
                one_at_a_time(&mut running, move || {
                    begun.fetch_add(1, Ordering::Relaxed);
                    wait.map(|wait| wait.recv());
                });
            }
            drop(go_on);
            running.take().unwrap().await.unwrap();
            assert_eq!(begun.load(Ordering::Relaxed), 1);
            let again = Arc::clone(&begun);
            one_at_a_time(&mut running, move || {
                again.fetch_add(1, Ordering::Relaxed);
            });
            running.take().unwrap().await.unwrap();
            assert_eq!(begun.load(Ordering::Relaxed), 2);
        });
    }
}
