//! `up`: carries out a configuration in the foreground.
//!
//! Invariant: nothing is made before the run directory is locked, and `ready` is printed once everything is.

use crate::{
    api::{self, Query},
    config::{Config, Network, Port},
    model::{NetworkStatus, PortState, PortStatus, Status, WorkerStatus},
    run_dir::{RunDir, RunDirError},
    socket::BindError,
};
use std::{
    collections::BTreeMap,
    fs,
    io::{self, Write},
    time::Instant,
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
};
use tracing::{info, warn};

/// Why the networks do not run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The run directory is another daemon's, or cannot be made.
    #[error(transparent)]
    RunDir(#[from] RunDirError),
    /// The control socket cannot be made.
    #[error("control socket {0}")]
    Control(#[from] BindError),
    /// The runtime of the control socket failed.
    #[error("cannot serve the control socket: {0}")]
    Runtime(#[from] io::Error),
}

/// Runs the networks until SIGTERM or SIGINT.
///
/// # Errors
/// See [`RunError`]; nothing then runs.
pub fn up(config: Config) -> Result<(), RunError> {
    let _run_dir = RunDir::claim(&config.host)?;
    let control = api::listen(&config.host)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let ended = runtime.block_on(serve(&config, control));
    if let Err(error) = fs::remove_file(&config.host.control_socket) {
        warn!(%error, "the control socket stays behind");
    }
    ended
}

async fn serve(config: &Config, control: std::os::unix::net::UnixListener) -> Result<(), RunError> {
    let start = Instant::now();
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let (switch, mut queries) = mpsc::channel(api::QUERIES);
    let serving = api::serve(control, switch, std::future::pending());
    let mut serving = std::pin::pin!(serving);
    info!(host = config.host.name, ports = config.ports.len(), "running");
    let mut out = io::stdout().lock();
    writeln!(out, "ready").and_then(|()| out.flush())?;
    loop {
        tokio::select! {
            served = &mut serving => return Ok(served?),
            Some(query) = queries.recv() => answer(query, config, start),
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
        }
    }
    info!("ending");
    Ok(())
}

fn answer(query: Query, config: &Config, start: Instant) {
    let networks = || config.networks.iter().map(|network| network_status(network, config)).collect();
    let ports = || config.ports.iter().map(port_status).collect();
    // A client that has gone away is no failure of ours.
    match query {
        Query::Status(reply) => drop(reply.send(Status {
            host: config.host.name.clone(),
            uptime_s: start.elapsed().as_secs(),
            workers: config.host.worker_cpus.iter().map(|&cpu| worker_status(cpu)).collect(),
            ports: ports(),
            networks: networks(),
        })),
        Query::Networks(reply) => drop(reply.send(networks())),
        Query::Ports(reply) => drop(reply.send(ports())),
        Query::Fdb(reply) => drop(reply.send(Vec::new())),
        Query::Drops(reply) => drop(reply.send(Vec::new())),
    }
}

fn worker_status(cpu: Option<u32>) -> WorkerStatus {
    WorkerStatus { cpu, frames: 0, busy_cycles: 0, idle_cycles: 0 }
}

fn network_status(network: &Network, config: &Config) -> NetworkStatus {
    NetworkStatus {
        name: network.name.to_string(),
        mode: network.mode.to_string(),
        subnet: network.subnet.map(|subnet| subnet.to_string()),
        subnet6: network.subnet6.map(|subnet| subnet.to_string()),
        mtu: network.mtu,
        ports: config.ports_of(&network.name).map(|port| port.name.to_string()).collect(),
    }
}

fn port_status(port: &Port) -> PortStatus {
    PortStatus {
        name: port.name.to_string(),
        network: port.network.to_string(),
        guest: port.guest.to_string(),
        attach: port.attach.word().to_owned(),
        state: PortState::Waiting,
        reason: None,
        rx_frames: 0,
        rx_bytes: 0,
        tx_frames: 0,
        tx_bytes: 0,
        drops: BTreeMap::new(),
    }
}
