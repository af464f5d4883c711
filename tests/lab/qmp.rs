//! A client for QEMU's monitor protocol, one command at a time.

use super::holds_within;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// A connection to the monitor, after capabilities negotiation.
#[derive(Debug)]
pub struct Qmp {
    reader: BufReader<UnixStream>,
}

impl Qmp {
    /// Connects to the monitor's socket, which a QEMU that was just started makes in a moment; an error if QEMU is not there or does not
    /// greet.
    pub fn connect(socket: &Path) -> Result<Self, String> {
        let mut connected = Err("not tried".to_owned());
        holds_within(Duration::from_secs(10), || {
            connected = UnixStream::connect(socket).map_err(|e| e.to_string());
            connected.is_ok()
        });
        let stream = connected?;
        stream.set_read_timeout(Some(Duration::from_secs(20))).map_err(|e| e.to_string())?;
        let mut qmp = Self { reader: BufReader::new(stream) };
        qmp.next()?;
        qmp.execute("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// Runs a command and returns what it returns, or QEMU's description of what went wrong. Events are passed over.
    pub fn execute(&mut self, command: &str, arguments: Value) -> Result<Value, String> {
        let request = format!("{}\n", json!({ "execute": command, "arguments": arguments }));
        self.reader.get_mut().write_all(request.as_bytes()).map_err(|e| e.to_string())?;
        loop {
            let message = self.next()?;
            if let Some(value) = message.get("return") {
                return Ok(value.clone());
            }
            if let Some(error) = message.get("error") {
                return Err(format!("{command}: {}", error["desc"].as_str().unwrap_or("an error without words")));
            }
        }
    }

    fn next(&mut self) -> Result<Value, String> {
        let mut line = String::new();
        match self.reader.read_line(&mut line) {
            Ok(0) => Err("QEMU closed the monitor".into()),
            Ok(_) => serde_json::from_str(&line).map_err(|e| e.to_string()),
            Err(e) => Err(e.to_string()),
        }
    }
}
