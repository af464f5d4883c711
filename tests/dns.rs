//! DNS of a network's router, asked by dig in namespaces, with dnsmasq as the host's name server: guests' names, forwarding, TCP, EDNS, the cache,
//! name servers that change or are down, guests that take more than their share.
//!
//! Read first: `gateway::dns`, `src/service/mod.rs`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failing test panics")]

mod lab;

use lab::daemon::Daemon;
use lab::netns::NetNs;
use lab::process::{Job, Place};
use lab::{Lab, Unable, need_program, require, wait_for};
use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(15);
/// The address of `web`, which the configuration declares.
const WEB: &str = "10.9.0.50";

/// The host, whom it asks, and two guests of one network that leads out.
struct Net {
    lab: Lab,
    host: NetNs,
    upstream: NetNs,
    web: NetNs,
    other: NetNs,
}

impl Net {
    fn new() -> Result<Net, Unable> {
        let lab = Lab::new()?;
        need_program("dig", "dnsutils")?;
        need_program("dnsmasq", "dnsmasq-base")?;
        need_program("busybox", "busybox-static")?;
        let [host, upstream, web, other] = ["host", "upstream", "web", "other"].map(|label| NetNs::new(&lab, label));
        let net = Net { host: host?, upstream: upstream?, web: web?, other: other?, lab };
        net.host.veth("up0", &net.upstream, "up0");
        net.host.address("up0", "192.0.2.1/24");
        for address in ["192.0.2.2/24", "192.0.2.3/24"] {
            net.upstream.address("up0", address);
        }
        net.resolv_conf("nameserver 192.0.2.2\n");
        Ok(net)
    }

    fn resolv_conf(&self, text: &str) {
        // As editors and resolvconf do it: nobody sees half a file.
        fs::write(self.lab.path("resolv.conf.new"), text).unwrap();
        fs::rename(self.lab.path("resolv.conf.new"), self.lab.path("resolv.conf")).unwrap();
    }

    fn start(&self, mode: &str) -> Daemon {
        let (web, other) = (self.web.netns_name(), self.other.netns_name());
        let config = format!(
            "[host]\nresolv_conf = \"$DIR/resolv.conf\"\n\
             [networks.lan]\n{mode}\nsubnet = \"10.9.0.0/24\"\nsubnet6 = \"fd09::/64\"\ndhcp = true\ndomain = \"lan.test\"\n\
             [guests.web]\nports = [{{ network = \"lan\", attach = \"tap\", tap = \"eth0\", netns = \"{web}\", \
             mac = \"02:00:00:00:00:50\", addresses = [\"{WEB}\", \"fd09::50\"] }}]\n\
             [guests.other]\nports = [{{ network = \"lan\", attach = \"tap\", tap = \"eth0\", netns = \"{other}\" }}]\n"
        );
        let daemon = Daemon::start_in(&self.lab, &self.host, &config);
        self.web.sh("ip link set eth0 address 02:00:00:00:00:50");
        for address in [&format!("{WEB}/24"), "fd09::50/64"] {
            self.web.address("eth0", address);
        }
        self.other.ip("link set eth0 up");
        daemon
    }

    /// Has `other` ask for an address under this name; the address.
    fn lease(&self, name: &str) -> String {
        let script = self.lab.path("script");
        let text = "#!/bin/sh\n[ \"$1\" = bound ] || exit 0\nip addr flush dev $interface scope global\n\
                    ip addr add $ip/$mask dev $interface\necho \"took $ip dns=$dns domain=$domain.\"\n";
        fs::write(&script, text).unwrap();
        assert!(Command::new("chmod").arg("+x").arg(&script).status().unwrap().success());
        let told = self.other.sh(&format!(
            "timeout 20 busybox udhcpc -i eth0 -n -q -f -t 5 -T 1 -x hostname:{name} -O search -s {} 2>&1",
            script.display()
        ));
        assert!(told.contains("dns=10.9.0.1 domain=lan.test."), "{told}");
        told.split("took ").nth(1).unwrap().split(' ').next().unwrap().to_owned()
    }

    /// A name server at this address of the upstream.
    fn dnsmasq(&self, address: &str, more: &str) -> Job {
        let log = self.lab.path(&format!("queries-{address}"));
        let job = self.upstream.spawn(&format!(
            "exec dnsmasq -k -C /dev/null --no-resolv --no-hosts --bind-interfaces -a {address} --user=root --pid-file= \
             --log-queries --log-facility={} --local=/example.test/ --local-ttl=300 --edns-packet-max=4096 {more}",
            log.display()
        ));
        wait_for("dnsmasq", PATIENCE, || {
            self.host.run(&format!("dig +short +tries=1 +time=1 @{address} version.bind chaos txt"), PATIENCE).ok()
        });
        job
    }

    /// How often the name server at this address was asked for `name`.
    fn asked(&self, address: &str, name: &str) -> usize {
        let log = fs::read_to_string(self.lab.path(&format!("queries-{address}"))).unwrap_or_default();
        log.lines().filter(|line| line.contains("query[") && line.contains(&format!("] {name} from"))).count()
    }
}

/// What dig says to these arguments in a namespace; the router's IPv4 address is asked unless they say whom.
fn dig(ns: &NetNs, arguments: &str) -> String {
    let server = if arguments.contains('@') { "" } else { "@10.9.0.1" };
    ns.run(&format!("dig +tries=2 +time=4 {server} {arguments}"), Duration::from_secs(30)).output
}

fn short(ns: &NetNs, arguments: &str) -> String {
    dig(ns, &format!("+short {arguments}")).trim().replace('\n', " ")
}

#[track_caller]
fn is(said: &str, status: &str, flags: &[&str], daemon: &Daemon) {
    assert!(said.contains(&format!("status: {status}")), "{said}\n{}", daemon.log());
    let line = said.lines().find(|line| line.contains(";; flags:")).unwrap_or_default();
    let all: Vec<&str> = line.split([' ', ';', ':']).collect();
    assert!(flags.iter().all(|flag| all.contains(flag)), "{flags:?}: {said}");
}

const NAT: &str = "mode = \"nat\"\nhost_access = true";

#[test]
fn guests_find_each_other_and_the_host_by_name() {
    let net = require!(Net::new());
    let daemon = net.start(NAT);
    let address = net.lease("Laptop");
    let (web, other) = (&net.web, &net.other);
    for question in ["web.lan.test", "WEB.lan.test +tcp", "web", "web +norecurse", "web.lan.test @fd09::1"] {
        assert_eq!(short(web, question), WEB, "{question}\n{}", daemon.log());
    }
    assert_eq!(short(other, "web.lan.test aaaa"), "fd09::50");
    // By the name it gave, and by the one that the configuration has for it.
    for question in ["laptop.lan.test", "laptop", "other.lan.test"] {
        assert_eq!(short(web, question), address, "{question}\n{}", daemon.log());
    }
    assert_eq!(short(web, &format!("-x {WEB}")), "web.lan.test.");
    assert_eq!(short(web, "-x fd09::50"), "web.lan.test.");
    assert_eq!(short(web, &format!("-x {address} +tcp")), "other.lan.test.");
    assert_eq!(short(other, "host.internal"), "10.9.0.1");
    is(&dig(web, "web.lan.test"), "NOERROR", &["qr", "aa", "rd", "ra"], &daemon);
    is(&dig(web, "nobody.lan.test"), "NXDOMAIN", &["aa"], &daemon);
    let nothing = dig(web, "web.lan.test mx");
    is(&nothing, "NOERROR", &["aa"], &daemon);
    assert!(nothing.contains("ANSWER: 0, AUTHORITY: 1"), "{nothing}");
    // Which address the other has is chance.
    let nobody = if address == "10.9.0.99" { "10.9.0.98" } else { "10.9.0.99" };
    is(&dig(web, &format!("-x {nobody}")), "NXDOMAIN", &["aa"], &daemon);
    is(&dig(web, "-x 192.168.7.7"), "NXDOMAIN", &["aa"], &daemon);
    is(&dig(web, "x.invalid"), "NXDOMAIN", &["aa"], &daemon);
    // Another's name is not to be had.
    net.lease("web");
    assert_eq!(short(other, "web.lan.test"), WEB);
    wait_for("the name to follow", PATIENCE, || short(web, "laptop.lan.test").is_empty());
}

#[test]
fn queries_are_forwarded_by_udp_and_tcp_and_answers_are_kept() {
    let net = require!(Net::new());
    let texts: String = (0..20).map(|n| format!(" --txt-record=long.example.test,{n:02}{}", "x".repeat(120))).collect();
    let mut server = net.dnsmasq(
        "192.0.2.2",
        &format!(
            "--host-record=www.example.test,198.51.100.7,2001:db8::7 --cname=alias.example.test,www.example.test{texts}"
        ),
    );
    let daemon = net.start(NAT);
    let address = net.lease("laptop");
    let (web, other) = (&net.web, &net.other);
    assert_eq!(short(web, "www.example.test"), "198.51.100.7", "{}", daemon.log());
    assert_eq!(short(other, "www.example.test aaaa"), "2001:db8::7");
    assert_eq!(short(other, "alias.example.test +tcp"), "www.example.test. 198.51.100.7");
    is(&dig(web, "none.example.test"), "NXDOMAIN", &["qr", "rd", "ra"], &daemon);

    // Asked once for all who ask the same; the time to live counts down.
    for _ in 0..5 {
        short(web, "www.example.test +noedns");
        short(other, "www.example.test +noedns +tcp");
    }
    short(web, "kept.example.test");
    // A and AAAA with EDNS, A without; who is slow to answer is asked again.
    let asked = net.asked("192.0.2.2", "www.example.test");
    assert!((3..=5).contains(&asked), "{asked}");
    wait_for("a second to be taken off", PATIENCE, || {
        let said = dig(web, "www.example.test +noedns");
        let ttl = said
            .lines()
            .find(|line| line.starts_with("www.example.test."))
            .and_then(|line| line.split_whitespace().nth(1));
        ttl.is_some_and(|ttl| (280..300).contains(&ttl.parse::<u32>().unwrap()))
    });

    // An answer of some 2,600 bytes: by UDP it is cut, by TCP it comes whole, and dig goes from one to the other by itself.
    for ask in ["+noedns +ignore", "+bufsize=512 +ignore", "+bufsize=1232 +ignore", "+bufsize=4096 +ignore"] {
        let cut = dig(web, &format!("long.example.test txt {ask}"));
        is(&cut, "NOERROR", &["tc"], &daemon);
    }
    for ask in ["+tcp", "+tcp +noedns", "+bufsize=512", "@fd09::1 +tcp"] {
        let whole = dig(web, &format!("long.example.test txt {ask}"));
        assert!(whole.contains("ANSWER: 20"), "{ask}: {whole}\n{}", daemon.log());
    }
    // Several questions on one connection.
    let many = dig(web, "+tcp +keepopen +short www.example.test web.lan.test www.example.test aaaa");
    assert_eq!(many.split_whitespace().collect::<Vec<_>>(), ["198.51.100.7", WEB, "2001:db8::7"]);
    assert!(!address.is_empty());
    server.kill();
}

#[test]
fn name_servers_that_change_are_followed_and_those_that_are_down_are_told_of() {
    let net = require!(Net::new());
    let mut first = net.dnsmasq("192.0.2.2", "--host-record=www.example.test,198.51.100.1");
    let mut second = net.dnsmasq("192.0.2.3", "--host-record=www.example.test,198.51.100.2");
    // The router itself is skipped; one that is not there costs a moment.
    net.resolv_conf("nameserver 10.9.0.1\nnameserver 192.0.2.77\nnameserver 192.0.2.2\n");
    let daemon = net.start(NAT);
    assert_eq!(short(&net.web, "www.example.test"), "198.51.100.1", "{}", daemon.log());
    net.resolv_conf("search example\nnameserver 192.0.2.3\noptions ndots:3\n");
    wait_for("the other name server", PATIENCE, || short(&net.web, "www.example.test") == "198.51.100.2");
    assert!(daemon.log().contains("192.0.2.3:53"), "{}", daemon.log());
    second.kill();
    first.kill();
    let start = Instant::now();
    is(&dig(&net.web, "gone.example.test"), "SERVFAIL", &["ra"], &daemon);
    assert!(start.elapsed() < Duration::from_secs(10));
    is(&dig(&net.web, "gone2.example.test +tcp"), "SERVFAIL", &["ra"], &daemon);
    let lines = |daemon: &Daemon| daemon.log().lines().filter(|line| line.contains("no name server answers")).count();
    assert_eq!(lines(&daemon), 1, "{}", daemon.log());
    assert_eq!(short(&net.web, "web.lan.test"), WEB, "what is known here is told all the same");
    // There again.
    let mut second = net.dnsmasq("192.0.2.3", "--host-record=gone.example.test,198.51.100.3");
    wait_for("the name server to be asked again", PATIENCE, || short(&net.web, "gone.example.test") == "198.51.100.3");
    net.resolv_conf("");
    wait_for("no name server at all", PATIENCE, || daemon.log().contains("[]"));
    is(&dig(&net.web, "none.example.test"), "SERVFAIL", &["ra"], &daemon);
    second.kill();
}

#[test]
fn where_nothing_leads_out_queries_do_not_either() {
    let net = require!(Net::new());
    let mut server = net.dnsmasq("192.0.2.2", "--host-record=www.example.test,198.51.100.7");
    let daemon = net.start("mode = \"isolated\"");
    assert_eq!(short(&net.web, "web.lan.test"), WEB, "{}", daemon.log());
    is(&dig(&net.web, "www.example.test"), "REFUSED", &["ra"], &daemon);
    is(&dig(&net.web, "host.internal"), "NXDOMAIN", &["aa"], &daemon);
    assert_eq!(net.asked("192.0.2.2", "www.example.test"), 0);
    server.kill();
}

#[test]
fn a_guest_that_takes_all_it_can_leaves_others_theirs() {
    let net = require!(Net::new());
    require!(need_program("python3", "python3"));
    let mut server = net.dnsmasq("192.0.2.2", "--host-record=www.example.test,198.51.100.7");
    // Nobody answers for the first: what is asked of it waits.
    net.resolv_conf("nameserver 192.0.2.2\n");
    let daemon = net.start(NAT);
    let address = net.lease("laptop");
    let flood = net.lab.path("flood.py");
    fs::write(
        &flood,
        "import socket, sys, os, time\n\
         held = []\n\
         for n in range(200):\n\
         \x20   s = socket.socket()\n\
         \x20   s.setblocking(False)\n\
         \x20   s.connect_ex(('10.9.0.1', 53))\n\
         \x20   held.append(s)\n\
         u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n\
         u.setblocking(False)\n\
         print('flooding', flush=True)\n\
         end = time.time() + 20\n\
         while time.time() < end:\n\
         \x20   q = os.urandom(2) + b'\\1\\0\\0\\1\\0\\0\\0\\0\\0\\0\\x0c' + os.urandom(6).hex().encode() + b'\\4test\\0\\0\\1\\0\\1'\n\
         \x20   for m in (q, os.urandom(60), q[:20], q + b'x'):\n\
         \x20       try: u.sendto(m, ('10.9.0.1', 53))\n\
         \x20       except OSError: pass\n",
    )
    .unwrap();
    let mut job = net.other.spawn(&format!("exec python3 {}", flood.display()));
    job.wait_for_output("flooding", PATIENCE);
    for n in 0..10 {
        let by = if n % 2 == 0 { "+tcp" } else { "+notcp" };
        assert_eq!(short(&net.web, &format!("web.lan.test {by}")), WEB, "{n}\n{}", daemon.log());
        assert_eq!(short(&net.web, &format!("www.example.test {by}")), "198.51.100.7", "{n}\n{}", daemon.log());
    }
    // Whoever floods is answered, too, when it asks for little again.
    job.kill();
    wait_for("an answer to the one who flooded", PATIENCE, || short(&net.other, "laptop.lan.test") == address);
    server.kill();
}
