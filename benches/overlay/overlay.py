#!/usr/bin/env python3
"""One segment over two hosts, side by side: Trunkline (ours; sealed), the kernel's VXLAN, the same through wireguard-go, and Open vSwitch in userspace.

    sudo benches/overlay/overlay.py [--case ours,kernel,...] [--rounds 5] [--seconds 3] [--trunkline target/release/trunkline]

Four network namespaces of its own, `guest | host == host | guest`; the hosts have a veth of MTU 1500 between them, guests the MTU that the tunnel
leaves. The cases take turns, round after round, each set up anew, so that drift of the machine meets all of them alike. A cell of the table is
`median (least - most)`. The row of UDP is made with a sender and a receiver of its own (`benches/udp.c`, compiled by `cc`).
A case that cannot start, or a figure that cannot be had, is `-`, and why is said below the table.
Needs root, iproute2, ethtool, iperf3, cc, and what is compared. Two CPUs or more, and nothing else running on them: our workers are pinned to the first two.
"""

import argparse, contextlib, os, pathlib, shutil, subprocess, sys, tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from lab import ROOT, Unable, iperf, process, rounds, run, udp, wait

CASES = ["ours", "kernel", "ovs", "sealed", "wireguard"]
ROWS = {
    "tcp": "TCP, one stream, Gbit/s",
    "back": "TCP, the other way, Gbit/s",
    "udp": "UDP of 16 B without loss, kpps",
}
FAR = "10.77.0.2"
# What is left of 1500 bytes.
MTU = {"sealed": 1390, "wireguard": 1370}


class World:
    """Two hosts that reach each other, and two guests that reach nobody."""

    def __init__(self, directory):
        self.dir = pathlib.Path(directory)
        self.log = self.dir / "log"
        self.hosts = [f"tlovl{os.getpid()}h{n}" for n in (1, 2)]
        self.guests = [f"tlovl{os.getpid()}g{n}" for n in (1, 2)]

    def __enter__(self):
        for ns in self.hosts + self.guests:
            run("ip", "netns", "add", ns)
            run("ip", "-n", ns, "link", "set", "lo", "up")
        one, two = self.hosts
        run("ip", "link", "add", "u0", "netns", one, "type", "veth", "peer", "name", "u0", "netns", two)
        for n, host in enumerate(self.hosts, 1):
            run("ip", "-n", host, "addr", "add", f"192.0.2.{n}/24", "dev", "u0")
            run("ip", "-n", host, "link", "set", "u0", "up")
        return self

    def __exit__(self, *_):
        for ns in self.hosts + self.guests:
            subprocess.run(["ip", "netns", "del", ns], capture_output=True)

    def plug(self, n):
        """A veth between a host (g0) and its guest."""
        host, guest = self.hosts[n], self.guests[n]
        run("ip", "link", "add", "eth0", "netns", guest, "type", "veth", "peer", "name", "g0", "netns", host)
        run("ip", "-n", host, "link", "set", "g0", "up")

    def bridge(self, n):
        """The kernel's bridge over a tunnel and the guest's veth."""
        self.plug(n)
        host = self.hosts[n]
        run("ip", "-n", host, "link", "add", "br0", "type", "bridge")
        for device in ("vx0", "g0"):
            run("ip", "-n", host, "link", "set", device, "master", "br0", "up")
        run("ip", "-n", host, "link", "set", "br0", "up")


@contextlib.contextmanager
def ours(world, args, keys=None):
    with contextlib.ExitStack() as stack:
        for n, (host, guest) in enumerate(zip(world.hosts, world.guests)):
            peer = f'"192.0.2.{2 - n}"'
            key = ""
            if keys:
                key = f'key = "{keys[n][0]}"\n'
                peer = f'{{ host = {peer}, key = "{keys[1 - n][1]}" }}'
            file = world.dir / f"{n}.toml"
            file.write_text(
                f'[host]\nname = "hv{n}"\nrun_dir = "{world.dir}/run{n}"\nstate_dir = "{world.dir}/state{n}"\nworker_cpus = [{n}]\n'
                f'[vteps.main]\nlocal = "192.0.2.{n + 1}"\n{key}peers = [{peer}]\n'
                f'[networks.t]\noverlay = {{ vtep = "main", vni = 100 }}\n'
                f'[guests.g]\nports = [{{ network = "t", attach = "tap", tap = "eth0", netns = "{guest}" }}]\n'
            )
            stack.enter_context(process(args.trunkline, "up", file, ns=host, log=world.log))
            wait("trunkline", lambda: "eth0" in run("ip", "-o", "-n", guest, "link"))
        yield


@contextlib.contextmanager
def sealed(world, args):
    def pair():
        made = run(args.trunkline, "keys").split()
        return made[2], made[5]

    with ours(world, args, [pair(), pair()]):
        yield


@contextlib.contextmanager
def kernel(world, _):
    for n, host in enumerate(world.hosts):
        tunnel = f"local 192.0.2.{n + 1} remote 192.0.2.{2 - n} dstport 4789".split()
        run("ip", "-n", host, "link", "add", "vx0", "type", "vxlan", "id", 100, *tunnel, "dev", "u0")
        world.bridge(n)
    yield


@contextlib.contextmanager
def wireguard(world, _):
    with contextlib.ExitStack() as stack:
        keys = []
        for n in range(2):
            private = run("wg", "genkey").strip()
            public = subprocess.run(["wg", "pubkey"], input=private, capture_output=True, text=True).stdout.strip()
            (world.dir / f"key{n}").write_text(private)
            keys.append(public)
        for n, host in enumerate(world.hosts):
            name = f"tw{os.getpid()}{n}"
            stack.enter_context(process("wireguard-go", "-f", name, ns=host, log=world.log))
            wait("wireguard-go", lambda: pathlib.Path(f"/run/wireguard/{name}.sock").exists())
            far = f"10.99.0.{2 - n}"
            peer = ["peer", keys[1 - n], "endpoint", f"192.0.2.{2 - n}:51820", "allowed-ips", f"{far}/32"]
            run("wg", "set", name, "listen-port", 51820, "private-key", world.dir / f"key{n}", *peer, ns=host)
            run("ip", "-n", host, "addr", "add", f"10.99.0.{n + 1}/24", "dev", name)
            run("ip", "-n", host, "link", "set", name, "up")
            tunnel = f"local 10.99.0.{n + 1} remote {far} dstport 4789".split()
            run("ip", "-n", host, "link", "add", "vx0", "type", "vxlan", "id", 100, *tunnel, "dev", name)
            world.bridge(n)
        yield


@contextlib.contextmanager
def ovs(world, _):
    with contextlib.ExitStack() as stack:
        for n, host in enumerate(world.hosts):
            world.plug(n)
            directory = world.dir / f"ovs{n}"
            directory.mkdir()
            places = [f"OVS_{name}={directory}" for name in ("RUNDIR", "LOGDIR", "DBDIR", "SYSCONFDIR")]
            at = ["env", *places]
            schema = "/usr/share/openvswitch/vswitch.ovsschema"
            run(*at, "ovsdb-tool", "create", directory / "conf.db", schema)
            socket = directory / "db.sock"
            stack.enter_context(
                process(*at, "ovsdb-server", directory / "conf.db", f"--remote=punix:{socket}", ns=host, log=world.log)
            )
            wait("ovsdb-server", socket.exists)
            control = [*at, "ovs-vsctl", "--timeout=20", f"--db=unix:{socket}"]
            run(*control, "--no-wait", "init")
            control_socket = directory / "switch.ctl"
            switch = [*at, "ovs-vswitchd", f"unix:{socket}", f"--unixctl={control_socket}"]
            stack.enter_context(process(*switch, ns=host, log=world.log))
            wait("ovs-vswitchd", control_socket.exists)
            macs = [f"52:54:00:00:01:0{m}" for m in (1, 2)]
            run(*control, "add-br", "brphy", "--", "set", "bridge", "brphy", "datapath_type=netdev",
                f"other-config:hwaddr={macs[n]}", "--", "add-port", "brphy", "u0")
            run("ip", "-n", host, "addr", "flush", "dev", "u0")
            run("ip", "-n", host, "addr", "add", f"192.0.2.{n + 1}/24", "dev", "brphy")
            run("ip", "-n", host, "link", "set", "brphy", "up")
            run("ethtool", "-K", "u0", "tx", "off", "tso", "off", "gso", "off", "gro", "off", ns=host)
            run(*control, "add-br", "br0", "--", "set", "bridge", "br0", "datapath_type=netdev", "--", "add-port", "br0", "g0",
                "--", "add-port", "br0", "vx", "--", "set", "Interface", "vx", "type=vxlan",
                f"options:remote_ip=192.0.2.{2 - n}", "options:key=100")
            run("ovs-appctl", "-t", control_socket, "tnl/neigh/set", "brphy", f"192.0.2.{2 - n}", macs[1 - n])
            run("ethtool", "-K", "eth0", "tx", "off", "tso", "off", "gso", "off", "gro", "off", ns=world.guests[n])
        yield


NEEDS = {"ovs": ["ovs-vswitchd", "ovsdb-tool"], "wireguard": ["wireguard-go", "wg"]}
STARTS = {"ours": ours, "sealed": sealed, "kernel": kernel, "wireguard": wireguard, "ovs": ovs}


def measure(case, args):
    """One round of one case: row by row, how it is measured."""
    for name in NEEDS.get(case, []):
        if not shutil.which(name):
            raise Unable(f"{name} is not installed")
    with tempfile.TemporaryDirectory() as directory, World(directory) as world, STARTS[case](world, args):
        for n, guest in enumerate(world.guests, 1):
            run("ip", "-n", guest, "link", "set", "eth0", "mtu", MTU.get(case, 1450), "up")
            run("ip", "-n", guest, "addr", "add", f"10.77.0.{n}/24", "dev", "eth0")
        client, server = world.guests
        ping = ["ip", "netns", "exec", client, "ping", "-q", "-c", "1", "-W", "1", FAR]
        wait(f"{case}: a way from guest to guest", lambda: not subprocess.run(ping, capture_output=True).returncode, 15)
        yield "tcp", lambda: iperf(client, server, FAR, args.seconds, world.log)
        yield "back", lambda: iperf(client, server, FAR, args.seconds, world.log, "-R")
        yield "udp", lambda: udp(client, server, FAR, args.seconds, world.dir)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", default=",".join(CASES), type=lambda text: text.split(","))
    parser.add_argument("--rows", default=",".join(ROWS), type=lambda text: text.split(","))
    parser.add_argument("--rounds", default=5, type=int)
    parser.add_argument("--seconds", default=3, type=int)
    parser.add_argument("--trunkline", default=ROOT / "target/release/trunkline", type=pathlib.Path)
    args = parser.parse_args()
    args.trunkline = args.trunkline.resolve()
    if os.geteuid():
        sys.exit("overlay.py makes network namespaces: run it as root")
    missing = [name for name in ("ip", "ss", "iperf3", "ethtool", "cc") if not shutil.which(name)]
    if missing or not args.trunkline.exists():
        sys.exit(f"not there: {', '.join(missing) or f'{args.trunkline} (cargo build --release)'}")
    rounds(args, ROWS, measure, f"{args.rounds} rounds of {args.seconds} s, median (least - most).")


main()
