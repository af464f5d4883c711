//! [`Speaker`]: what is asked of the program that speaks BGP, whichever generation of its API it has; [`probe`] finds out which.
//!
//! Invariant: every call ends within its deadline; what comes is parsed before it is believed. Read first: [`crate::route`], the files in `proto/`.

use std::{
    error::Error,
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
    time::Duration,
};

use tonic::{
    Code, Status, Streaming,
    transport::{Channel, Endpoint},
};

use crate::route::{INGRESS_REPLICATION, Prefix, Raw, Route, RouteError, VXLAN};

pub(crate) mod v3;
pub(crate) mod v4;

/// How long a call may take.
pub const DEADLINE: Duration = Duration::from_secs(5);
/// How long one may that carries many routes.
pub const LONG_DEADLINE: Duration = Duration::from_secs(60);
/// Routes in one message.
pub(crate) const BATCH: usize = 256;

/// Who the speaker says it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct About {
    /// Which API it has.
    pub generation: Generation,
    /// The number of its autonomous system.
    pub asn: u32,
    /// Its router identifier.
    pub router: Ipv4Addr,
}

/// A generation of the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Generation {
    /// GoBGP 3, package `apipb`.
    V3,
    /// GoBGP 4, package `api`.
    V4,
}

impl std::fmt::Display for Generation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Generation::V3 => "GoBGP 3",
            Generation::V4 => "GoBGP 4",
        })
    }
}

/// Why the speaker is of no use at the moment.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpeakerError {
    /// Nothing listens there.
    #[error("nobody answers at {0}: {1}; start gobgpd with --api-hosts unix://{0}")]
    NotThere(PathBuf, String),
    /// It does not know our calls.
    #[error("what answers at {0} has neither the API of GoBGP 3 nor that of GoBGP 4: {1}")]
    Version(PathBuf, String),
    /// It took too long.
    #[error("the speaker does not answer: {0} took longer than {1:?}")]
    Hangs(&'static str, Duration),
    /// It has no configuration yet.
    #[error("the speaker does not speak BGP yet; give it [global.config] with as and router-id")]
    NotConfigured,
    /// Another autonomous system.
    #[error("the speaker is of autonomous system {0}, the file says {1}; make them the same")]
    As(u32, u32),
    /// It refused, or went away.
    #[error("{0} failed: {1}")]
    Failed(&'static str, String),
}

/// A route as the speaker tells of it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Told {
    /// Of another host.
    Route(Route),
    /// Of another host, and no more.
    Withdrawn(Prefix),
    /// Of another host, and not to be believed; what it was known by, as far as it says so.
    Refused(Option<Prefix>, RouteError),
    /// One that was put in on this host, with its next hop.
    Own(Prefix, Option<IpAddr>),
}

/// What is asked of a speaker.
pub(crate) trait Speaker: Sized {
    /// The message of a watch.
    type Event: Send + 'static;

    async fn about(&mut self) -> Result<About, Status>;
    /// Puts routes in; one with a prefix that is there takes its place.
    async fn announce(&mut self, routes: Vec<Route>) -> Result<(), Status>;
    async fn withdraw(&mut self, prefix: &Prefix) -> Result<(), Status>;
    /// All routes there are: of those that several neighbours tell, what the best of them says.
    async fn snapshot(&mut self, each: impl FnMut(Told)) -> Result<(), Status>;
    /// Begins to tell what changes. Comes back when it has begun, which takes a route that is there.
    async fn watch(&mut self) -> Result<Streaming<Self::Event>, Status>;
    /// What an event says.
    fn read(&self, event: Self::Event) -> Vec<Told>;
}

/// A speaker of one or the other generation.
pub(crate) enum Either {
    V3(v3::Client),
    V4(v4::Client),
}

/// Bounds a call.
pub(crate) async fn within<T>(
    what: &'static str,
    limit: Duration,
    call: impl Future<Output = Result<T, Status>>,
) -> Result<T, SpeakerError> {
    match tokio::time::timeout(limit, call).await {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(status)) => Err(SpeakerError::Failed(what, words(&status))),
        Err(_) => Err(SpeakerError::Hangs(what, limit)),
    }
}

fn words(status: &Status) -> String {
    // What a peer says is in the message, what befell the connection in the error deepest down.
    match (status.source(), status.message()) {
        (Some(source), _) => deepest(source),
        (None, "") => status.code().to_string(),
        (None, said) => format!("{}: {said}", status.code()),
    }
}

fn deepest(error: &dyn Error) -> String {
    let mut deepest = error;
    while let Some(source) = deepest.source() {
        deepest = source;
    }
    deepest.to_string()
}

async fn connect(path: &Path) -> Result<Channel, SpeakerError> {
    let not_there = |error: &dyn Error| SpeakerError::NotThere(path.to_owned(), deepest(error));
    let endpoint = Endpoint::from_shared(format!("unix://{}", path.display())).map_err(|error| not_there(&error))?;
    let connected = tokio::time::timeout(DEADLINE, endpoint.connect()).await;
    connected.map_err(|_| SpeakerError::Hangs("connecting", DEADLINE))?.map_err(|error| not_there(&error))
}

/// Finds out who answers at a unix socket: of the two generations the one that knows our first call.
pub(crate) async fn open(path: &Path, local: IpAddr) -> Result<(Either, About), SpeakerError> {
    match greet(path, local).await {
        // A speaker that just ends is not there the next time; who is there and cuts us off again does not speak our protocol.
        Err(SpeakerError::Version(..)) => greet(path, local).await,
        done => done,
    }
}

async fn greet(path: &Path, local: IpAddr) -> Result<(Either, About), SpeakerError> {
    const WHAT: &str = "asking who it is";
    let channel = connect(path).await?;
    let mut third = v3::Client::new(channel.clone(), local);
    let unknown = match within_status(third.about()).await? {
        Ok(about) => return configured(Either::V3(third), about),
        Err(status) if status.code() == Code::Unimplemented => status,
        // What befell the connection, which what is no speaker of our protocol ends in one way or another.
        Err(status) if status.source().is_some() => {
            return Err(SpeakerError::Version(path.to_owned(), words(&status)));
        }
        Err(status) => return Err(SpeakerError::Failed(WHAT, words(&status))),
    };
    let mut fourth = v4::Client::new(channel, local);
    match within_status(fourth.about()).await? {
        Ok(about) => configured(Either::V4(fourth), about),
        Err(status) if status.code() == Code::Unimplemented => {
            Err(SpeakerError::Version(path.to_owned(), words(&unknown)))
        }
        Err(status) => Err(SpeakerError::Failed(WHAT, words(&status))),
    }
}

async fn within_status<T>(call: impl Future<Output = Result<T, Status>>) -> Result<Result<T, Status>, SpeakerError> {
    tokio::time::timeout(DEADLINE, call).await.map_err(|_| SpeakerError::Hangs("asking who it is", DEADLINE))
}

fn configured(speaker: Either, about: About) -> Result<(Either, About), SpeakerError> {
    if about.asn == 0 || about.router.is_unspecified() {
        Err(SpeakerError::NotConfigured)
    } else {
        Ok((speaker, about))
    }
}

/// Asks a speaker who it is.
///
/// # Errors
/// See [`SpeakerError`].
pub async fn probe(path: &Path, local: IpAddr) -> Result<About, SpeakerError> {
    open(path, local).await.map(|(_, about)| about)
}

/// What a path says, out of what both generations have in common.
fn told(raw: &Raw, is_withdraw: bool, is_own: bool, local: IpAddr) -> Told {
    let prefix = match raw.prefix() {
        Ok(prefix) => prefix,
        Err(error) => return Told::Refused(None, error),
    };
    if is_own {
        return Told::Own(prefix, raw.next_hops.first().and_then(|hop| hop.parse().ok()));
    }
    if is_withdraw {
        return Told::Withdrawn(prefix);
    }
    match raw.route(local) {
        Ok(route) => Told::Route(route),
        // As if it were withdrawn (RFC 7606 section 2).
        Err(error) => Told::Refused(Some(prefix), error),
    }
}

/// Whether a path was put in by a program on this host: no neighbour told of it.
fn is_own(neighbour: &str) -> bool {
    neighbour.is_empty() || neighbour == "<nil>" || neighbour.starts_with("invalid")
}

/// A stream of messages that are there already.
struct Iter<T>(std::vec::IntoIter<T>);

impl<T: Unpin> tonic::codegen::tokio_stream::Stream for Iter<T> {
    type Item = T;

    fn poll_next(mut self: std::pin::Pin<&mut Self>, _: &mut std::task::Context<'_>) -> std::task::Poll<Option<T>> {
        std::task::Poll::Ready(self.0.next())
    }
}

/// The address of an endpoint as a PMSI attribute has it.
fn bytes_of(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// L2VPN and EVPN (RFC 7432 section 6.1).
const AFI: i32 = 25;
const SAFI: i32 = 70;
/// A route target (RFC 4360 section 4).
const ROUTE_TARGET: u32 = 2;
