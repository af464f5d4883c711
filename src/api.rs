//! The control socket: HTTP/1.1 and JSON over a unix socket.
//!
//! Invariant: a request only asks, but for `/v1/apply`; a client that stalls or sends nonsense
//! holds up nobody else. Every answer is JSON; one that is not a success is [`Failure`]. Read first: RFC 9110
//! (methods and status codes).
//!
//! How it works: a route makes a [`Query`] with the sending half of a oneshot channel and waits for the daemon's side to
//! answer. Whoever owns the switch receives queries between its other duties. When that side is gone, the answer is
//! 503.

use crate::{
    config::Host,
    model::{DropCount, Failure, FdbEntry, LeaseEntry, NatEntry, NetworkStatus, PeerEntry, PortStatus, Status},
    plan::{Asked, Plan},
    socket::{self, Access, BindError},
};
use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde::Serialize;
use std::{future::Future, io};
use tokio::{
    net::UnixListener,
    sync::{mpsc, oneshot},
};

/// Largest configuration that is taken, in bytes.
const FILE_MAX: usize = 16 << 20;

/// Queries that may wait for the switch at a time; more make their clients wait.
pub const QUERIES: usize = 64;

/// A question to the running switch, with the way back.
#[derive(Debug)]
pub enum Query {
    /// Everything at a glance.
    Status(oneshot::Sender<Status>),
    /// All networks.
    Networks(oneshot::Sender<Vec<NetworkStatus>>),
    /// All ports with their counters.
    Ports(oneshot::Sender<Vec<PortStatus>>),
    /// The forwarding table of every network.
    Fdb(oneshot::Sender<Vec<FdbEntry>>),
    /// Every drop counter that is not zero.
    Drops(oneshot::Sender<Vec<DropCount>>),
    /// The addresses that guests have by DHCP.
    Leases(oneshot::Sender<Vec<LeaseEntry>>),
    /// What is translated.
    Nat(oneshot::Sender<Vec<NatEntry>>),
    /// The tunnel endpoints of other hosts.
    Peers(oneshot::Sender<Vec<PeerEntry>>),
    /// What another configuration would change; the words why it is none.
    Plan(Asked, oneshot::Sender<Result<Plan, String>>),
    /// To change it.
    Apply(Asked, oneshot::Sender<Result<Plan, String>>),
}

/// What the routes share.
type Switch = mpsc::Sender<Query>;

/// Makes the control socket of `host`, with the owner and mode that it says.
///
/// # Errors
/// See [`BindError`].
pub fn listen(host: &Host) -> Result<std::os::unix::net::UnixListener, BindError> {
    socket::listen(&host.control_socket, Access::of(host))
}

/// Serves the control socket until `end` is ready.
///
/// Needs a tokio runtime with I/O.
///
/// # Errors
/// The listener cannot be watched.
pub async fn serve(
    listener: std::os::unix::net::UnixListener,
    switch: mpsc::Sender<Query>,
    end: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let listener = UnixListener::from_std(listener)?;
    let server = axum::serve(listener, routes(switch));
    tokio::select! {
        served = server.into_future() => served,
        () = end => Ok(()),
    }
}

fn routes(switch: Switch) -> Router {
    Router::new()
        .route("/v1/status", get(|switch: State<Switch>| answer(switch, Query::Status)))
        .route("/v1/networks", get(|switch: State<Switch>| answer(switch, Query::Networks)))
        .route("/v1/ports", get(|switch: State<Switch>| answer(switch, Query::Ports)))
        .route("/v1/fdb", get(|switch: State<Switch>| answer(switch, Query::Fdb)))
        .route("/v1/drops", get(|switch: State<Switch>| answer(switch, Query::Drops)))
        .route("/v1/leases", get(|switch: State<Switch>| answer(switch, Query::Leases)))
        .route("/v1/nat", get(|switch: State<Switch>| answer(switch, Query::Nat)))
        .route("/v1/peers", get(|switch: State<Switch>| answer(switch, Query::Peers)))
        .route("/v1/plan", post(|switch: State<Switch>, asked: Json<Asked>| carry(switch, asked, Query::Plan)))
        .route("/v1/apply", post(|switch: State<Switch>, asked: Json<Asked>| carry(switch, asked, Query::Apply)))
        .layer(DefaultBodyLimit::max(FILE_MAX))
        .method_not_allowed_fallback(async || failure(StatusCode::METHOD_NOT_ALLOWED, "only GET is allowed here, and POST at /v1/plan and /v1/apply"))
        .fallback(async || {
            let known =
                "there is nothing here; there are /v1/status, /v1/networks, /v1/ports, /v1/fdb, /v1/drops, /v1/leases, /v1/nat, /v1/peers";
            failure(StatusCode::NOT_FOUND, known)
        })
        .with_state(switch)
}

async fn answer<T: Serialize>(State(switch): State<Switch>, query: fn(oneshot::Sender<T>) -> Query) -> Response {
    let (reply, answer) = oneshot::channel();
    if switch.send(query(reply)).await.is_err() {
        return failure(StatusCode::SERVICE_UNAVAILABLE, "the switch is ending");
    }
    match answer.await {
        Ok(answer) => Json(answer).into_response(),
        Err(_) => failure(StatusCode::SERVICE_UNAVAILABLE, "the switch did not answer"),
    }
}

async fn carry(
    State(switch): State<Switch>,
    Json(asked): Json<Asked>,
    query: fn(Asked, oneshot::Sender<Result<Plan, String>>) -> Query,
) -> Response {
    let (reply, answer) = oneshot::channel();
    if switch.send(query(asked, reply)).await.is_err() {
        return failure(StatusCode::SERVICE_UNAVAILABLE, "the switch is ending");
    }
    match answer.await {
        Ok(Ok(plan)) => Json(plan).into_response(),
        Ok(Err(wrong)) => failure(StatusCode::UNPROCESSABLE_ENTITY, &wrong),
        Err(_) => failure(StatusCode::SERVICE_UNAVAILABLE, "the switch did not answer"),
    }
}

fn failure(status: StatusCode, error: &str) -> Response {
    (status, Json(Failure { error: error.to_owned() })).into_response()
}
