//! Checks of networks that reach beyond themselves: behind address translation, with a name server, routed to each other, with the host in them.
//!
//! Invariant: everything stays in this process and on the loopback of the network namespace that it is in.

use std::{
    io::{self, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    time::{Duration, Instant},
};

use super::{
    guests::{Asked, Guest, number},
    net::Net,
    table::Outcome,
};

/// `beyond` is behind address translation and may reach the host, `yard` is routed to it, `porch` has the host in it.
pub(super) const CONFIGURATION: &str = r#"
[networks.beyond]
mode        = "nat"
subnet      = "10.80.0.0/24"
subnet6     = false
host_access = true
route       = ["yard"]

[networks.yard]
mode    = "isolated"
subnet  = "10.81.0.0/24"
dhcp    = true

[networks.porch]
mode   = "host-only"
subnet = "10.82.0.0/24"
tap    = "tl-porch"

[guests.kim]
ports = [{ network = "beyond", mac = "02:00:00:00:00:14", addresses = ["10.80.0.20"] }]
[guests.lea]
ports = [{ network = "yard", mac = "02:00:00:00:00:15", addresses = ["10.81.0.21"] }]
[guests.max]
ports = [{ network = "porch", mac = "02:00:00:00:00:16", addresses = ["10.82.0.22"] }]
"#;

/// The router of `beyond`, which stands for the host.
const ROUTER: &str = "10.80.0.1";
/// The echo service of a guest.
const ECHO: u16 = 7;

/// A guest behind address translation speaks to a service of the host, and is echoed what it sends.
pub(super) fn translated(asked: &Asked, net: &Net) -> Result<String, String> {
    let told = |error: io::Error| format!("the host's service: {error}");
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(told)?;
    let port = listener.local_addr().map_err(told)?.port();
    let service = std::thread::spawn(move || -> io::Result<SocketAddr> {
        let (mut stream, from) = listener.accept()?;
        stream.set_read_timeout(Some(super::PATIENCE))?;
        let mut echo = stream.try_clone()?;
        io::copy(&mut stream, &mut echo)?;
        Ok(from)
    });
    let kim = Guest::boot(asked, net, "kim/0", 0)?;
    let address = kim.tell("dhcp")?;
    let reply = kim.tell(&format!("tcp {ROUTER}:{port} bytes=1000000"))?;
    let us = number(&reply, "us")?.max(1);
    let from = service.join().map_err(|_| "the host's service panicked")?.map_err(told)?;
    if !from.ip().is_loopback() {
        return Err(format!("the host saw {from}, not an address of its own"));
    }
    Ok(format!("{address}, seen by the host as {from}; 1 MB echoed after {:.1} ms", us as f64 / 1e3))
}

/// A port of the host that leads to a guest: published while everything runs.
pub(super) fn published(asked: &Asked, net: &Net) -> Result<String, String> {
    let kim = Guest::boot(asked, net, "kim/0", 0)?;
    kim.tell("dhcp")?;
    // A port that is free: one that was just somebody's.
    let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|listener| listener.local_addr());
    let at = free.map_err(|error| format!("no port is free: {error}"))?;
    net.publish("beyond", &format!("tcp {at} kim:{ECHO}"))?;
    let stream = || -> io::Result<Duration> {
        let begun = Instant::now();
        let mut stream = TcpStream::connect_timeout(&at, super::PATIENCE)?;
        stream.set_read_timeout(Some(super::PATIENCE))?;
        stream.write_all(b"through a published port")?;
        let mut came = [0; 24];
        stream.read_exact(&mut came)?;
        match &came == b"through a published port" {
            true => Ok(begun.elapsed()),
            false => Err(io::Error::other("other bytes came back")),
        }
    };
    let took = stream().map_err(|error| format!("{at}: {error}"))?;
    Ok(format!("{at} leads to the guest; echoed after {:.1} ms", took.as_secs_f64() * 1e3))
}

/// A guest of one network reaches one of another over the router of both.
pub(super) fn routed(asked: &Asked, net: &Net) -> Result<String, String> {
    let (kim, lea) = (Guest::boot(asked, net, "kim/0", 0)?, Guest::boot(asked, net, "lea/0", 0)?);
    for (guest, address, router) in [(&kim, "10.80.0.20", ROUTER), (&lea, "10.81.0.21", "10.81.0.1")] {
        guest.tell(&format!("address {address}/24 via={router}"))?;
    }
    kim.tell("ping 10.81.0.21")
}

/// The host has an address in a network, and a guest of it speaks to the host.
pub(super) fn host_only(asked: &Asked, net: &Net) -> Outcome {
    if let Some(why) = &net.no_tap {
        return Outcome::Skipped(why.clone());
    }
    if let Some(reason) = net.port("porch/host").and_then(|port| port.reason) {
        return Outcome::Skipped(format!("no TAP can be made here: {reason}"));
    }
    let talk = || -> Result<String, String> {
        let max = Guest::boot(asked, net, "max/0", 0)?;
        let address = max.tell("dhcp")?;
        max.tell("ping 10.82.0.1").map(|told| format!("{address}; the host at 10.82.0.1 answers, {told}"))
    };
    talk().into()
}
