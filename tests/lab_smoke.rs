//! Proves the laboratory itself, against back ends that others wrote: DPDK's testpmd and the kernel's bridge.

mod lab;

use lab::dpdk::{DpdkFrames, Testpmd, sockets};
use lab::frames::{Flow, Proto, Traffic, Vlan, exchange};
use lab::iperf::{Iperf, iperf};
use lab::netns::{KernelBridge, NetNs};
use lab::process::{Place, TIMED_OUT};
use lab::qemu::{ChardevRole, GuestSpec, NicSpec, Qemu};
use lab::uml::Uml;
use lab::{Lab, require, skip, wait_for};
use std::path::Path;
use std::time::Duration;

/// The command lines of all processes that mention a path.
fn processes_about(path: &Path) -> Vec<String> {
    let path = path.display().to_string();
    std::fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(|entry| std::fs::read(entry.ok()?.path().join("cmdline")).ok())
        .map(|line| String::from_utf8_lossy(&line).replace('\0', " "))
        .filter(|line| line.contains(&path))
        .collect()
}

/// Exit status, output, both streams, a signal, a time limit, a background job, and much output at once.
fn commands_work(place: &dyn Place) {
    let limit = Duration::from_secs(20);
    assert_eq!(place.sh("echo one; echo two >&2"), "one\ntwo\n");
    assert_eq!(place.run("exit 7", limit).status, 7);
    assert_eq!(place.run("kill -9 $$; sleep 1", limit).status, 128 + 9);
    assert_eq!(place.run("no-such-program", limit).status, 127);
    assert_eq!(place.run("echo before; sleep 60", Duration::from_millis(500)).status, TIMED_OUT);
    let long = place.sh("seq 1 20000");
    assert_eq!(long.lines().count(), 20000);
    assert_eq!(long.lines().last(), Some("20000"));
    let mut job = place.spawn("echo started; exec sleep 1000");
    job.wait_for_output("started", limit);
    assert!(job.running());
    job.kill();
    assert_eq!(job.wait(limit).status, 128 + 9);
}

#[test]
fn a_namespace_runs_commands_and_leaves_nothing() {
    let lab = require!(Lab::new());
    let ns = require!(NetNs::new(&lab, "one"));
    commands_work(&ns);
    let name = ns.netns_name().to_owned();
    let _left_running = ns.spawn(&format!("cd {} && sleep 1000 & sleep 1001", lab.dir().display()));
    assert!(Path::new("/run/netns").join(&name).exists());
    drop(ns);
    assert!(!Path::new("/run/netns").join(&name).exists());
}

#[test]
fn what_a_panicking_test_started_is_gone() {
    let (tell, told) = std::sync::mpsc::channel();
    let failing = std::thread::spawn(move || {
        let lab = match Lab::new() {
            Ok(lab) => lab,
            Err(unable) => return tell.send(Err(unable)).unwrap(),
        };
        let ns = match NetNs::new(&lab, "panic") {
            Ok(ns) => ns,
            Err(unable) => return tell.send(Err(unable)).unwrap(),
        };
        let mut job = ns.spawn(&format!("echo up; sh -c 'sleep 1000; : {}'", lab.dir().display()));
        job.wait_for_output("up", Duration::from_secs(10));
        assert!(!processes_about(lab.dir()).is_empty());
        tell.send(Ok((lab.dir().to_owned(), ns.netns_name().to_owned()))).unwrap();
        std::panic::resume_unwind(Box::new("as a failing test would"));
    });
    let (dir, netns) = require!(told.recv().unwrap());
    assert!(failing.join().is_err());
    wait_for("the processes to be gone", Duration::from_secs(10), || processes_about(&dir).is_empty());
    assert!(!dir.exists());
    assert!(!Path::new("/run/netns").join(netns).exists());
}

#[test]
fn frames_and_throughput_through_a_kernel_bridge() {
    let lab = require!(Lab::new());
    let net = require!(KernelBridge::new(&lab));
    assert!(net.a.reaches("10.0.0.2", Duration::from_secs(5)).is_some());
    let dst = net.b.mac("eth0");
    let plain = exchange(&net.a, &net.b, &Flow::to_mac(&dst), &Traffic::plain(&[60, 61, 512, 1514], 50));
    assert!(plain.clean && plain.frames == 200, "{plain:?}");
    let tagged = Flow { send_vlan: Vlan::Id(100), receive_vlan: Vlan::Id(100), ..Flow::to_mac(&dst) };
    let report = exchange(&net.a, &net.b, &tagged, &Traffic::plain(&[60, 1514], 20));
    assert!(report.clean && report.tagged == 40, "{report:?}");
    for proto in [Proto::Tcp4, Proto::Tcp6] {
        let traffic = Traffic { proto, sizes: vec![100, 1514, 9000, 65535], count: 10, seed: 7 };
        let report = exchange(&net.a, &net.b, &Flow::to_mac(&dst), &traffic);
        assert!(report.clean && report.largest == 65535, "{report:?}");
    }
    let silence = Flow { timeout: Duration::from_millis(300), ..Flow::to_mac(&dst) };
    net.middle.ip("link set p1 down");
    let nothing = exchange(&net.a, &net.b, &silence, &Traffic::plain(&[60], 5));
    assert!(!nothing.clean && nothing.frames == 0, "{nothing:?}");
    net.middle.ip("link set p1 up");
    let tcp = iperf(&net.b, &net.a, "10.0.0.2", &Iperf { seconds: 1, ..Iperf::default() }).unwrap();
    assert!(tcp.bits_per_second > 1e8, "{tcp:?}");
    let udp = Iperf { seconds: 1, udp_bits_per_second: Some(10_000_000), ..Iperf::default() };
    let udp = iperf(&net.b, &net.a, "10.0.0.2", &udp).unwrap();
    assert!(udp.bits_per_second > 5e6, "{udp:?}");
    assert!(iperf(&net.b, &net.a, "10.0.0.77", &Iperf::default()).is_err());
}

#[test]
fn a_software_segmenter_is_verified_by_stream_offsets() {
    let lab = require!(Lab::new());
    let net = require!(KernelBridge::new(&lab));
    // Without the receiving side's offload the kernel segments on the way, and the receiver sees many small frames.
    net.a.sh("frames set eth0 tso off && frames set eth0 gso off");
    net.b.sh("frames set eth0 gro off");
    let dst = net.b.mac("eth0");
    let traffic = Traffic { proto: Proto::Tcp4, sizes: vec![1514, 30000], count: 5, seed: 3 };
    let report = exchange(&net.a, &net.b, &Flow::to_mac(&dst), &traffic);
    assert!(report.clean && report.largest == 14 + 40 + 1448, "{report:?}");
    assert!(report.frames > 100, "{report:?}");
}

#[test]
fn a_user_mode_guest_boots_and_runs_commands() {
    let lab = require!(Lab::new());
    let mut guest = require!(Uml::boot(&lab, "uml", &[]));
    assert!(guest.sh("uname -r").starts_with("6."));
    commands_work(&guest);
    assert!(guest.sh("cat /proc/modules").contains("virtio_net"));
    guest.sh("ip link add d0 type dummy && ip link add link d0 name vlan5 type vlan id 5 && ip link show vlan5");
    guest.kill();
    wait_for("the guest's processes to be gone", Duration::from_secs(10), || processes_about(lab.dir()).is_empty());
}

#[test]
fn a_qemu_guest_boots_runs_commands_and_reboots() {
    let lab = require!(Lab::new());
    let mut guest = require!(Qemu::boot(&lab, GuestSpec::new("one", Vec::new())));
    assert!(guest.sh("uname -r").contains("cloud"));
    commands_work(&guest);
    guest.sh("touch /tmp/before && ip link add d0 type dummy && ip link add link d0 name vlan5 type vlan id 5");
    guest.reboot();
    guest.sh("test ! -e /tmp/before && touch /tmp/before");
    guest.reset();
    guest.sh("test ! -e /tmp/before");
    let pid = guest.pid();
    guest.quit();
    assert!(!Path::new(&format!("/proc/{pid}")).exists());
    assert_eq!(processes_about(lab.dir()), Vec::<String>::new());
}

#[test]
fn two_qemu_guests_talk_through_testpmd() {
    let lab = require!(Lab::new());
    let ends = sockets::<2>(&lab, "vh");
    // Where checksums and segmentation are negotiated, testpmd completes the one and cannot carry the other.
    let _backend = require!(Testpmd::start(&lab, &ends, ""));
    let macs = ["52:54:00:00:00:01", "52:54:00:00:00:02"];
    let boot = |i: usize| Qemu::boot(&lab, GuestSpec::new(&format!("g{i}"), vec![NicSpec::new(&ends[i], macs[i])]));
    let (a, b) = (require!(boot(0)), require!(boot(1)));
    for (guest, mac, address) in [(&a, macs[0], "10.0.0.1/24"), (&b, macs[1], "10.0.0.2/24")] {
        assert_eq!(guest.sh("cat /sys/class/net/eth0/address").trim(), mac);
        guest.sh(&format!("ip addr add {address} dev eth0 && ip link set eth0 up"));
        guest.sh("ip link add link eth0 name eth0.7 type vlan id 7 && ip link set eth0.7 up");
    }
    assert!(a.reaches("10.0.0.2", Duration::from_secs(10)).is_some());
    assert!(b.reaches("10.0.0.77", Duration::from_secs(1)).is_none());
    let report = exchange(&a, &b, &Flow::to_mac(macs[1]), &Traffic::plain(&[60, 700, 1514], 20));
    assert!(report.clean, "{report:?}");
    let tagged = Flow { send_vlan: Vlan::Id(7), receive_vlan: Vlan::Id(7), ..Flow::to_mac(macs[0]) };
    let report = exchange(&b, &a, &tagged, &Traffic::plain(&[60, 1514], 20));
    assert!(report.clean, "{report:?}");
    let tcp = iperf(&b, &a, "10.0.0.2", &Iperf { seconds: 2, ..Iperf::default() }).unwrap();
    assert!(tcp.bits_per_second > 1e6, "{tcp:?}");
}

#[test]
fn guests_that_listen_one_with_a_packed_ring_talk_through_testpmd() {
    let lab = require!(Lab::new());
    let ends = sockets::<2>(&lab, "vh");
    let _backend = require!(Testpmd::start(&lab, &ends, "client=1"));
    let nic = |i: usize, mac: &str| NicSpec { role: ChardevRole::Server, ..NicSpec::new(&ends[i], mac) };
    let packed = NicSpec { packed: true, mrg_rxbuf: false, ..nic(1, "52:54:00:00:00:02") };
    let a = require!(Qemu::boot(&lab, GuestSpec::new("a", vec![nic(0, "52:54:00:00:00:01")])));
    let b = require!(Qemu::boot(&lab, GuestSpec::new("b", vec![packed])));
    a.sh("ip addr add 10.0.0.1/24 dev eth0 && ip link set eth0 up");
    b.sh("ip addr add 10.0.0.2/24 dev eth0 && ip link set eth0 up");
    assert!(a.reaches("10.0.0.2", Duration::from_secs(10)).is_some());
}

#[test]
fn a_guest_migrates_and_takes_commands_where_it_arrives() {
    let lab = require!(Lab::new());
    let uri = format!("unix:{}", lab.path("migration").display());
    let source = require!(Qemu::boot(&lab, GuestSpec::new("source", Vec::new())));
    source.sh("echo carried >/tmp/note");
    let target = GuestSpec { incoming: Some(uri.clone()), ..GuestSpec::new("target", Vec::new()) };
    let target = require!(Qemu::boot(&lab, target));
    if !source.migrate(&uri, &target) {
        skip!("emulation lost the guest's kernel on its way");
    }
    assert_eq!(target.sh("cat /tmp/note"), "carried\n");
}

#[test]
fn dpdk_frames_pass_testpmd_intact() {
    let lab = require!(Lab::new());
    let ends = sockets::<2>(&lab, "vh");
    let _backend = require!(Testpmd::start(&lab, &ends, "tso=1"));
    let sizes = [60, 64, 1514, 4000, 9000];
    let with = |devargs: &str, traffic: Traffic| DpdkFrames {
        devargs: format!("queues=1,queue_size=256,{devargs}"),
        ..DpdkFrames::new(ends.clone(), traffic)
    };
    let plain = |devargs| with(devargs, Traffic::plain(&sizes, 40));
    let small = |devargs| with(devargs, Traffic::plain(&[60, 64, 1514], 40));
    let tcp = |proto| Traffic { proto, sizes: vec![80, 1514, 3000, 20000, 65535], count: 10, seed: 5 };
    let runs = [
        plain("mrg_rxbuf=1,in_order=1"),
        plain("mrg_rxbuf=1,packed_vq=1,in_order=1"),
        DpdkFrames { mbuf: 9300, ..plain("mrg_rxbuf=0,in_order=0") },
        small("mrg_rxbuf=0,in_order=0,vectorized=1"),
        small("mrg_rxbuf=0,in_order=1,packed_vq=1,vectorized=1"),
        DpdkFrames { vlans: [Vlan::Id(7); 2], ..plain("mrg_rxbuf=1,in_order=0") },
        DpdkFrames { lro: true, ..with("mrg_rxbuf=1,in_order=0", tcp(Proto::Tcp4)) },
        DpdkFrames { lro: true, ..with("mrg_rxbuf=1,packed_vq=1,in_order=1", tcp(Proto::Tcp6)) },
    ];
    for run in runs {
        let report = require!(run.run(&lab));
        assert!(report.clean, "{}: {report:?}", run.devargs);
        assert!(report.directions.iter().all(|d| d.largest == *run.traffic.sizes.last().unwrap()), "{report:?}");
    }
    let wrong = DpdkFrames { vlans: [Vlan::Id(7), Vlan::Id(8)], ..plain("mrg_rxbuf=1,in_order=0") };
    let report = require!(wrong.run(&lab));
    assert!(!report.clean && report.directions[0].wrong_tag == 200, "{report:?}");
}
