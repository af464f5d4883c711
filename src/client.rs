//! Asks a running daemon over its control socket.
//!
//! Invariant: a question ends within [`PATIENCE`], with the daemon's answer or a message that says which socket was
//! tried and what to do. Read first: RFC 9112 (HTTP/1.1 messages).

use crate::model::Failure;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    Request, StatusCode,
    body::Bytes,
    client::conn::http1,
    header::{CONTENT_TYPE, HOST},
};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use std::{
    io::{self, ErrorKind},
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::{net::UnixStream, time::timeout};

/// How long a daemon may take to answer.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// Largest answer that is read, in bytes.
const ANSWER_MAX: usize = 256 << 20;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error(
        "no daemon answers on {}: {source}; start one with `trunkline up FILE`, or name its control socket with \
         `--socket PATH`, or its file with `--config FILE`", socket.display()
    )]
    Absent {
        /// The socket that was tried.
        socket: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The socket is there and may not be used.
    #[error("may not connect to {}: join the group that owns it, or run as root", .0.display())]
    Forbidden(PathBuf),
    /// The daemon did not answer in time.
    #[error("the daemon on {} did not answer within {} s; its log may say why", .0.display(), PATIENCE.as_secs())]
    Silent(PathBuf),
    /// The daemon answered with an error.
    #[error("the daemon on {} refused: {message}", socket.display())]
    Refused {
        /// The socket.
        socket: PathBuf,
        /// What it said.
        message: String,
    },
    /// What answers is not a daemon of this kind.
    #[error("what answers on {} is not understood: {message}; is it a trunkline of another version?", socket.display())]
    Nonsense {
        /// The socket.
        socket: PathBuf,
        /// What is wrong with the answer.
        message: String,
    },
}

/// The answer to `GET path`: as it came, and read.
///
/// # Errors
/// See [`ClientError`].
pub fn ask<T: DeserializeOwned>(socket: &Path, path: &str) -> Result<(String, T), ClientError> {
    let request = Request::get(path).header(HOST, "localhost").body(Full::default());
    answer(socket, request)
}

/// The answer to `POST path` with `body`: as it came, and read.
///
/// # Errors
/// See [`ClientError`].
pub fn tell<T: DeserializeOwned>(socket: &Path, path: &str, body: &impl Serialize) -> Result<(String, T), ClientError> {
    let body = serde_json::to_vec(body).unwrap_or_default();
    let request = Request::post(path).header(HOST, "localhost").header(CONTENT_TYPE, "application/json");
    answer(socket, request.body(Full::new(body.into())))
}

type Asked = Result<Request<Full<Bytes>>, hyper::http::Error>;

fn answer<T: DeserializeOwned>(socket: &Path, request: Asked) -> Result<(String, T), ClientError> {
    let nonsense = |message: String| ClientError::Nonsense { socket: socket.to_owned(), message };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|source| ClientError::Absent { socket: socket.to_owned(), source })?;
    let (status, body) = runtime.block_on(async {
        let answer = timeout(PATIENCE, fetch(socket, request)).await;
        answer.unwrap_or_else(|_| Err(ClientError::Silent(socket.to_owned())))
    })?;
    let text = String::from_utf8(body.into()).map_err(|error| nonsense(error.to_string()))?;
    if status != StatusCode::OK {
        let message = serde_json::from_str::<Failure>(&text).map_or_else(|_| status.to_string(), |body| body.error);
        return Err(ClientError::Refused { socket: socket.to_owned(), message });
    }
    let value = serde_json::from_str(&text).map_err(|error| nonsense(error.to_string()))?;
    Ok((text, value))
}

async fn fetch(socket: &Path, request: Asked) -> Result<(StatusCode, Bytes), ClientError> {
    let nonsense = |message: String| ClientError::Nonsense { socket: socket.to_owned(), message };
    let stream = UnixStream::connect(socket).await.map_err(|source| match source.kind() {
        ErrorKind::PermissionDenied => ClientError::Forbidden(socket.to_owned()),
        _ => ClientError::Absent { socket: socket.to_owned(), source },
    })?;
    let handshake = http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(|error| nonsense(error.to_string()))?;
    let request = request.map_err(|error| nonsense(error.to_string()))?;
    let exchange = async {
        let answer = sender.send_request(request).await.map_err(|error| nonsense(error.to_string()))?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), ANSWER_MAX).collect().await;
        Ok((status, body.map_err(|error| nonsense(error.to_string()))?.to_bytes()))
    };
    let mut exchange = std::pin::pin!(exchange);
    tokio::select! {
        biased;
        answer = &mut exchange => answer,
        ended = connection => match ended {
            Ok(()) => exchange.await,
            Err(error) => Err(nonsense(error.to_string())),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        io::{Read, Write},
        os::unix::net::UnixListener,
        thread,
    };

    /// Answers one connection with `bytes`.
    fn answering(bytes: &'static [u8]) -> (tempfile::TempDir, PathBuf, thread::JoinHandle<()>) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        let peer = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let _ = stream.read(&mut [0; 1024]);
            stream.write_all(bytes).unwrap();
        });
        (dir, path, peer)
    }

    #[test]
    fn an_answer_is_given_as_it_came_and_read() {
        let (_dir, path, peer) = answering(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n[1,2]");
        let (text, numbers) = ask::<Vec<u8>>(&path, "/v1/x").unwrap();
        assert_eq!((text.as_str(), numbers), ("[1,2]", vec![1, 2]));
        peer.join().unwrap();
    }

    #[test]
    fn a_peer_that_is_no_daemon_is_told() {
        for bytes in [b"SSH-2.0-x\r\n".as_slice(), b"", b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n{"] {
            let (_dir, path, peer) = answering(bytes);
            assert!(matches!(ask::<u8>(&path, "/"), Err(ClientError::Nonsense { .. })));
            peer.join().unwrap();
        }
        let (_dir, path, peer) = answering(b"HTTP/1.1 503 X\r\ncontent-length: 13\r\n\r\n{\"error\":\"x\"}");
        assert_eq!(
            ask::<u8>(&path, "/").unwrap_err().to_string(),
            format!("the daemon on {} refused: x", path.display())
        );
        peer.join().unwrap();
    }

    #[test]
    fn nobody_there_says_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let text = ask::<u8>(&path, "/").unwrap_err().to_string();
        assert!(text.contains(&path.display().to_string()) && text.contains("trunkline up"), "{text}");
    }
}
