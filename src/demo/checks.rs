//! The checks of the demo, in the order in which they run: one function each.
//!
//! Invariant: a check that says it held has seen frames arrive, or counters that say why they did not.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddrV4, TcpStream, UdpSocket},
    time::{Duration, Instant},
};

use crate::view::Sums;

use super::{
    DemoError, beyond,
    guests::{Asked, Guest, number},
    net::Net,
    table::{Outcome, Table},
};

/// Three networks: `lan` with a guard, isolation and a TAP, `office` with VLANs, `home` with a router that gives out addresses.
pub(super) const CONFIGURATION: &str = r#"
[networks.lan]
mode = "isolated"

[networks.office]
mode = "isolated"

[guests.ann]
ports = [{ network = "lan", mac = "02:00:00:00:00:0a" }]
[guests.bob]
ports = [{ network = "lan", mac = "02:00:00:00:00:0b" }]
[guests.carl]
ports = [{ network = "lan", mac = "02:00:00:00:00:0c", isolated = true }]
[guests.dora]
ports = [{ network = "lan", mac = "02:00:00:00:00:0d", isolated = true }]
[guests.host]
ports = [{ network = "lan", attach = "tap", tap = "tl-demo" }]

[guests.eve]
ports = [{ network = "office", vlan = 100, mac = "02:00:00:00:00:0e" }]
[guests.fay]
ports = [{ network = "office", vlan = 100, mac = "02:00:00:00:00:0f" }]
[guests.gus]
ports = [{ network = "office", vlan = 200, mac = "02:00:00:00:00:10" }]
[guests.hal]
ports = [{ network = "office", trunk = [100, 200], mac = "02:00:00:00:00:11" }]

[networks.home]
subnet = "10.79.0.0/24"
dhcp   = true

[guests.ida]
ports = [{ network = "home", mac = "02:00:00:00:00:12" }]
[guests.joe]
ports = [{ network = "home", mac = "02:00:00:00:00:13" }]
"#;

const ANN: &str = "10.77.0.10";
const BOB: &str = "10.77.0.11";
/// The kernel's own address on the TAP.
const HOST: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
/// The echo service of a guest.
const ECHO: u16 = 7;
/// Frames of the storm.
const STORM: u64 = 60_000;

/// Everybody on the two networks.
struct Guests {
    ann: Guest,
    bob: Guest,
    carl: Guest,
    dora: Guest,
    eve: Guest,
    fay: Guest,
    gus: Guest,
    hal: Guest,
}

/// Runs all of them.
pub(super) fn run(table: &mut Table, asked: &Asked, net: &mut Net) -> Result<(), DemoError> {
    let mut started = None;
    table.check("eight guests boot", || {
        let (told, guests) = boot(asked, net)?;
        started = Some(guests);
        Ok::<_, String>(told)
    })?;
    let Some(mut guests) = started else { return Ok(()) };

    table.check("a guest reaches another one of its network", || guests.ann.tell(&format!("ping {BOB}")))?;
    table.check("a stream of 4 MB is echoed as it was sent", || {
        let reply = guests.ann.tell(&format!("tcp {BOB}:{ECHO} bytes=4000000"))?;
        let us = number(&reply, "us")?.max(1);
        Ok::<_, String>(format!("{} Mbit/s each way", 4_000_000 * 8 / us))
    })?;
    table.check("VLANs: 100 reaches 100", || guests.eve.tell("ping 10.78.0.15"))?;
    table.check("VLANs: 100 does not reach 200", || unreachable(&guests.eve, "10.78.0.16"))?;
    table.check("VLANs: a trunk reaches both, with tags", || trunk(&guests.hal))?;
    table.check("isolated ports do not reach each other", || unreachable(&guests.carl, "10.77.0.13"))?;
    table.check("isolated ports reach the others", || {
        guests.carl.tell(&format!("ping {ANN}"))?;
        guests.dora.tell(&format!("ping {ANN}"))
    })?;
    table.check("guests get addresses by DHCP, and reach each other and the router", || leases(asked, net))?;
    table.check("a forged source address ends at the guard", || spoof(&guests, net))?;
    table.check("a super-frame of 64 KB arrives in one piece", || super_frame(&guests))?;
    table.check("a broadcast storm is held, and others are served meanwhile", || storm(&guests, net))?;
    table.check("a guest is killed, nobody else notices, and it comes back", || kill(&mut guests, asked, net))?;
    table.check("the kernel talks to a guest by a TAP", || tap(net))?;
    table.check("host-only: a guest reaches the host, which has an address there", || beyond::host_only(asked, net))?;
    table.check("NAT: a guest reaches a service of the host, by sockets", || beyond::translated(asked, net))?;
    table.check("NAT: a port of the host leads to a guest", || beyond::published(asked, net))?;
    table.check("networks that are routed to each other", || beyond::routed(asked, net))?;
    table.check("every frame is accounted for", || account(net))
}

/// Boots everybody, and times one of them alone.
fn boot(asked: &Asked, net: &Net) -> Result<(String, Guests), String> {
    let begin = |name: &str, number| Guest::start(asked, net, &format!("{name}/0"), number);
    let bob = begin("bob", 0)?;
    addressed(&bob, BOB, "")?;
    // Alone, so that its time is its own.
    let ann = begin("ann", 0)?;
    addressed(&ann, ANN, "")?;
    ann.tell(&format!("ping {BOB} count=1 ms=5000"))?;
    let first = ann.begun.elapsed();
    let all = Instant::now();
    let [carl, dora, eve, fay, gus, hal] = ["carl", "dora", "eve", "fay", "gus", "hal"].map(|name| begin(name, 0));
    let guests = Guests { ann, bob, carl: carl?, dora: dora?, eve: eve?, fay: fay?, gus: gus?, hal: hal? };
    let rest = [
        (&guests.carl, "10.77.0.12"),
        (&guests.dora, "10.77.0.13"),
        (&guests.eve, "10.78.0.14"),
        (&guests.fay, "10.78.0.15"),
        (&guests.gus, "10.78.0.16"),
    ];
    for (guest, address) in rest {
        addressed(guest, address, "")?;
    }
    guests.hal.ready()?;
    let told = format!(
        "one in {:.0} ms from its start to its first answered ping, six more in {:.0} ms",
        first.as_secs_f64() * 1e3,
        all.elapsed().as_secs_f64() * 1e3
    );
    Ok((told, guests))
}

/// Waits for a guest and gives it an address.
fn addressed(guest: &Guest, address: &str, more: &str) -> Result<(), String> {
    guest.ready()?;
    guest.tell(&format!("address {address}/24{more}")).map(drop)
}

/// Held when nobody answers.
fn unreachable(guest: &Guest, address: &str) -> Result<String, String> {
    match guest.tell(&format!("ping {address} count=2 ms=150")) {
        Ok(told) => Err(format!("{address} answered: {told}")),
        Err(why) if why.contains("answered none") => Ok(String::new()),
        Err(why) => Err(why),
    }
}

fn trunk(hal: &Guest) -> Result<String, String> {
    let mut told = Vec::new();
    for (vlan, other) in [(100, "10.78.0.14"), (200, "10.78.0.16")] {
        hal.tell(&format!("address 10.78.0.17/24 vlan={vlan}"))?;
        let reply = hal.tell(&format!("ping {other}"))?;
        told.push(format!("{vlan}: {} us", number(&reply, "min_us")?));
    }
    Ok(told.join(", "))
}

fn leases(asked: &Asked, net: &Net) -> Result<String, String> {
    let (ida, joe) = (Guest::boot(asked, net, "ida/0", 0)?, Guest::boot(asked, net, "joe/0", 0)?);
    let (hers, his) = (ida.tell("dhcp")?, joe.tell("dhcp")?);
    let address = his.split('/').next().unwrap_or_default();
    ida.tell(&format!("ping {address}"))?;
    joe.tell("ping 10.79.0.1")?;
    Ok(format!("{hers} and {his}"))
}

/// What the port dropped for `reason` so far.
fn drops(net: &Net, port: &str, reason: &str) -> u64 {
    net.port(port).and_then(|port| port.drops.get(reason).copied()).unwrap_or(0)
}

fn spoof(guests: &Guests, net: &Net) -> Result<String, String> {
    let before = drops(net, "ann/0", "spoofed_source");
    guests.bob.tell("sink clear")?;
    let to = guests.bob.mac;
    guests.ann.tell(&format!("source to={to} from=02:00:00:00:00:99 count=50"))?;
    guests.ann.tell(&format!("source to={to} count=50"))?;
    let sink = settled(&guests.bob, 50)?;
    let dropped = drops(net, "ann/0", "spoofed_source") - before;
    match (number(&sink, "frames")?, dropped) {
        (50, 50) => Ok("50 forged frames dropped, 50 others arrived".to_owned()),
        (arrived, dropped) => Err(format!("{arrived} of 50 and 50 forged frames arrived, {dropped} were dropped")),
    }
}

/// The sink of a guest, when so many frames have come or nothing changes any more.
fn settled(guest: &Guest, frames: u64) -> Result<String, String> {
    let until = Instant::now() + Duration::from_secs(2);
    loop {
        let sink = guest.tell("sink")?;
        if number(&sink, "frames")? >= frames || Instant::now() >= until {
            return Ok(sink);
        }
    }
}

fn super_frame(guests: &Guests) -> Result<String, String> {
    guests.bob.tell("sink clear")?;
    // As many as fit into a receive ring: a guest that is not on a processor just then loses none.
    const COUNT: u64 = 6;
    guests.ann.tell(&format!("source super to={} size=65535 count={COUNT}", guests.bob.mac))?;
    let sink = settled(&guests.bob, COUNT)?;
    let wanted = [("frames", COUNT), ("supers", COUNT), ("longest", 65_535), ("bad", 0)];
    for (key, value) in wanted {
        if number(&sink, key)? != value {
            return Err(format!("{key} is not {value}: {sink}"));
        }
    }
    Ok(format!("{COUNT} of {COUNT}, compared byte for byte"))
}

fn storm(guests: &Guests, net: &Net) -> Result<String, String> {
    let before = drops(net, "dora/0", "broadcast_budget");
    guests.ann.tell("sink clear")?;
    guests.dora.send(&format!("source to=ff:ff:ff:ff:ff:ff count={STORM}"))?;
    // While it blows.
    let meanwhile = guests.ann.tell(&format!("ping {BOB} count=20 ms=200"));
    guests.dora.reply()?;
    let told = meanwhile?;
    let arrived = number(&guests.ann.tell("sink")?, "frames")?;
    let dropped = drops(net, "dora/0", "broadcast_budget") - before;
    let answered = number(&told, "received")?;
    // What is let through may fill a guest's ring for a moment.
    if dropped == 0 || arrived >= STORM || answered < 15 {
        return Err(format!("{arrived} of {STORM} broadcasts arrived, {dropped} were dropped; {told}"));
    }
    Ok(format!("{arrived} of {STORM} broadcasts let through, {answered} of 20 pings of others answered"))
}

fn kill(guests: &mut Guests, asked: &Asked, net: &Net) -> Result<String, String> {
    // Somebody else's pings go on all the time.
    guests.carl.send(&format!("ping {ANN} count=2000 ms=5000"))?;
    // And somebody sends to it.
    guests.ann.send(&format!("source to={} count=20000", guests.bob.mac))?;
    guests.bob.kill();
    let begun = Instant::now();
    guests.bob = Guest::boot(asked, net, "bob/0", 0)?;
    guests.bob.tell(&format!("address {BOB}/24"))?;
    let took = begun.elapsed();
    guests.ann.reply()?;
    // The new guest has yet to learn whom it answers: its first answer may be lost.
    guests.ann.tell(&format!("ping {BOB} count=3 ms=500"))?;
    let others = guests.carl.reply()?;
    match (number(&others, "sent")?, number(&others, "received")?) {
        (sent, received) if sent == received => {
            Ok(format!("back after {:.0} ms; {received} of {sent} pings of others answered", took.as_secs_f64() * 1e3))
        }
        (sent, received) => Err(format!("{received} of {sent} pings of others answered")),
    }
}

fn tap(net: &Net) -> Outcome {
    if let Some(why) = &net.no_tap {
        return Outcome::Skipped(why.clone());
    }
    let Some(tap) = net.tap() else {
        let why = net.port("host/0").and_then(|port| port.reason).unwrap_or_default();
        return Outcome::Skipped(format!("no TAP can be made here: {why}"));
    };
    let talk = || -> Result<String, String> {
        tap.set_address(HOST, 24).map_err(|error| error.to_string())?;
        let ann: Ipv4Addr = ANN.parse().map_err(|_| "no address")?;
        let to = SocketAddrV4::new(ann, ECHO);
        let told = |what: &'static str| move |error: std::io::Error| format!("{what}: {error}");
        let udp = UdpSocket::bind(SocketAddrV4::new(HOST, 0)).map_err(told("UDP"))?;
        udp.set_read_timeout(Some(Duration::from_secs(5))).map_err(told("UDP"))?;
        udp.send_to(b"by a TAP", to).map_err(told("UDP"))?;
        let mut bytes = [0; 64];
        let (n, from) = udp.recv_from(&mut bytes).map_err(told("UDP"))?;
        if bytes.get(..n) != Some(b"by a TAP".as_slice()) || from != to.into() {
            return Err(format!("UDP: {n} other bytes came back from {from}"));
        }
        stream(to).map_err(told("TCP"))
    };
    talk().into()
}

/// Half a megabyte by the kernel's TCP to a guest and back.
fn stream(to: SocketAddrV4) -> std::io::Result<String> {
    const BYTES: usize = 500_000;
    let begun = Instant::now();
    let mut stream = TcpStream::connect_timeout(&to.into(), Duration::from_secs(5))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.set_write_timeout(Some(Duration::from_secs(5)))?;
    let sent: Vec<u8> = (0..BYTES).map(|n| (n % 251) as u8).collect();
    let mut writing = stream.try_clone()?;
    let bytes = sent.clone();
    let writer = std::thread::spawn(move || writing.write_all(&bytes));
    let mut came = vec![0; BYTES];
    stream.read_exact(&mut came)?;
    writer.join().map_err(|_| std::io::Error::other("the writer panicked"))??;
    if came != sent {
        return Err(std::io::Error::other("other bytes came back"));
    }
    let megabits = BYTES as f64 * 8.0 / 1e6 / begun.elapsed().as_secs_f64();
    Ok(format!("a datagram and a stream of 500 kB echoed, {megabits:.0} Mbit/s each way"))
}

fn account(net: &Net) -> Result<String, String> {
    let Sums { ledger, rx, tx, dropped } = net.sums().ok_or("a worker does not answer")?;
    if !ledger.balances() || ledger.received != rx || ledger.transmitted != tx || ledger.dropped != dropped {
        return Err(format!("ports: {rx} in, {tx} out, {dropped} dropped; workers: {ledger:?}"));
    }
    let copied = ledger.copied + ledger.originated;
    Ok(format!("{rx} in + {copied} copied = {tx} out + {dropped} dropped with a reason"))
}
