//! TCP ports of the host that lead to guests through the socket engine. See `scripted/mod.rs` for who is what.

#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

mod scripted;

use std::{
    io::{ErrorKind, Read, Write},
    net::{TcpListener, TcpStream},
    time::Duration,
};

use nat::{Protocol, Publication};
use scripted::{
    tcp::{ACK, End, RST, SYN, Segment, lives, segment},
    *,
};
use wire::NicId;

/// Ports that lead to 10.0.0.2:80 and those after it.
fn publication(lab: &mut Lab, count: u16, nic: Option<NicId>) -> Publication {
    for _ in 0..50 {
        let listen = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let of = Publication { protocol: Protocol::Tcp, listen, to: at("10.0.0.2:80"), count, nic };
        if lab.publish(&of).is_ok() {
            return of;
        }
    }
    panic!("no ports")
}

/// What a guest is asked by a client.
fn asked(lab: &mut Lab, me: &str) -> End {
    let syn = segment(&lab.receive()[0]).unwrap();
    assert_eq!((syn.flags, syn.from.ip(), syn.to), (SYN, router().into(), at(me)));
    let mut guest = End::new(0, syn.to, syn.from);
    guest.ack = syn.seq.wrapping_add(1);
    guest
}

/// The guest's answer to a client; what comes of it.
fn open(lab: &mut Lab, guest: &mut End) -> Vec<Segment> {
    let answer = guest.frame(SYN | ACK, b"");
    guest.seq = guest.seq.wrapping_add(1);
    guest.say(lab, &answer)
}

/// A client of a port.
fn client(of: &Publication) -> TcpStream {
    let client = TcpStream::connect(of.listen).unwrap();
    client.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    client
}

#[test]
fn a_published_port_leads_to_its_guest() {
    let mut lab = Lab::new(config());
    let of = publication(&mut lab, 2, Some(NicId(0)));
    for (more, inside) in [(0, "10.0.0.2:80"), (1, "10.0.0.2:81")] {
        let mut client = TcpStream::connect((of.listen.ip(), of.listen.port() + more)).unwrap();
        client.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        client.write_all(b"GET").unwrap();
        let mut guest = asked(&mut lab, inside);
        open(&mut lab, &mut guest);
        guest.until(&mut lab, |guest| guest.received == b"GET");
        guest.send(&mut lab, b"200");
        let mut bytes = [0; 3];
        client.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"200");
        guest.end(&mut lab);
        assert_eq!(client.read(&mut bytes).unwrap(), 0);
        drop(client);
        guest.until(&mut lab, |guest| guest.fin);
    }
    assert!(lab.publish(&of).unwrap_err().contains("published already"));
    let mut client = client(&of);
    let _ = asked(&mut lab, "10.0.0.2:80");
    assert!(lab.withdraw(&of) && !lab.withdraw(&of));
    assert_eq!(client.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset, "its connections end with it");
    assert_eq!(TcpStream::connect(of.listen).unwrap_err().kind(), ErrorKind::ConnectionRefused);
}

#[test]
fn a_client_of_a_guest_that_refuses_is_reset() {
    let mut lab = Lab::new(config());
    let of = publication(&mut lab, 1, Some(NicId(0)));
    let mut client = client(&of);
    let mut guest = asked(&mut lab, "10.0.0.2:80");
    guest.seq = 0;
    let refusal = guest.frame(RST | ACK, b"");
    assert!(guest.say(&mut lab, &refusal).is_empty());
    assert_eq!(client.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
}

#[test]
fn a_guest_is_acknowledged_whose_client_says_nothing() {
    let mut lab = Lab::new(config());
    let of = publication(&mut lab, 1, Some(NicId(0)));
    let mut client = client(&of);
    let mut guest = asked(&mut lab, "10.0.0.2:80");
    // All that the host has to say of the socket has been said when the guest answers.
    lab.nothing();
    let said = open(&mut lab, &mut guest);
    assert_eq!(said.iter().map(|said| (said.flags, said.ack)).collect::<Vec<_>>(), [(ACK, guest.seq)]);
    lab.nothing();
    lives(&mut lab, &mut guest, &mut client);
}

#[test]
fn who_has_not_read_what_a_guest_was_asked_is_not_taken_for_it() {
    let mut lab = Lab::new(config());
    let of = publication(&mut lab, 1, None);
    let mut client = client(&of);
    let mut guest = asked(&mut lab, "10.0.0.2:80");
    // Somebody else, by the same address.
    let mut other = End::new(5, guest.me, guest.peer);
    for (flags, ack) in [(SYN | ACK, guest.ack.wrapping_add(9)), (ACK, guest.ack.wrapping_sub(1)), (RST, guest.ack)] {
        other.ack = ack;
        let frame = other.frame(flags, b"");
        let said = other.say(&mut lab, &frame);
        assert!(said.iter().all(|said| said.flags == RST), "{said:?}");
    }
    open(&mut lab, &mut guest);
    lives(&mut lab, &mut guest, &mut client);
    let lines = lab.show();
    let line = lines.iter().find(|line| line.remote == client.local_addr().ok()).unwrap();
    assert_eq!((line.nic, line.outside), (NicId(0), client.peer_addr().ok()));
}

#[test]
fn the_end_of_a_publication_ends_only_what_came_by_it() {
    let mut lab = Lab::new(config());
    let (one, two) = (publication(&mut lab, 1, Some(NicId(0))), publication(&mut lab, 1, Some(NicId(0))));
    let mut clients = [&one, &two].map(|of| {
        let client = client(of);
        let mut guest = asked(&mut lab, "10.0.0.2:80");
        open(&mut lab, &mut guest);
        (guest, client)
    });
    // And one of the guest's own, from the port that is published.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut own = End::new(0, at("10.0.0.2:80"), (router(), listener.local_addr().unwrap().port()).into());
    own.open(&mut lab);
    let (mut server, _) = listener.accept().unwrap();
    assert!(lab.withdraw(&one));
    let [(_, ended), (guest, client)] = &mut clients;
    assert_eq!(ended.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    lives(&mut lab, guest, client);
    lives(&mut lab, &mut own, &mut server);
}
