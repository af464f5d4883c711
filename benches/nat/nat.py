#!/usr/bin/env python3
"""Address translation side by side: Trunkline's two engines (ours: sockets; packet), pasta, slirp4netns and the kernel's nftables.

    sudo benches/nat/nat.py [--case ours,pasta1500,...] [--rounds 5] [--seconds 5] [--trunkline target/release/trunkline]

Three network namespaces of its own, `guest | host -- far`; the system that is measured joins guest and host, the far end serves. The cases take
turns, round after round, each set up anew, so that drift of the machine meets all of them alike. A cell of the table is `median (least - most)`.
The row of UDP is made with a sender and a receiver of its own (`benches/udp.c`, compiled by `cc`), as iperf3's receiver loses datagrams itself.
A case that cannot start, or a figure that cannot be had, is `-`, and why is said below the table.
Needs root, iproute2, iperf3, nginx, ab, and what is compared. Two CPUs or more, and nothing else running on them.
"""

import argparse, contextlib, os, pathlib, shutil, subprocess, sys, tempfile, time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from lab import ROOT, Unable, inside, iperf, listens, process, resident, rounds, run, udp, wait

FAR = "192.0.2.2"
CASES = ["ours", "ours65520", "pasta1500", "pasta65520", "slirp1500", "slirp65520", "packet", "nft"]
ROWS = {
    "up": "TCP up, Gbit/s",
    "down": "TCP down, Gbit/s",
    "udp": "UDP of 16 B without loss, kpps",
    "conns": "connections per second",
    "memory": "KiB for each of 1,000 connections",
}
CONNECTIONS = 1000


class World:
    """The three namespaces; `host` reaches `far`, and nobody reaches `guest` yet."""

    def __init__(self, directory):
        self.dir = pathlib.Path(directory)
        self.log = self.dir / "log"
        self.guest, self.host, self.far = (f"tlnat{os.getpid()}{name}" for name in ("g", "h", "f"))

    def __enter__(self):
        for ns in (self.guest, self.host, self.far):
            run("ip", "netns", "add", ns)
            run("ip", "-n", ns, "link", "set", "lo", "up")
            run("sysctl", "-qw", "net.ipv4.ip_local_port_range=10000 65000", "net.ipv4.tcp_tw_reuse=1", ns=ns)
        run("ip", "link", "add", "up0", "netns", self.host, "type", "veth", "peer", "name", "eth0", "netns", self.far)
        self.address(self.host, "up0", "192.0.2.1/24")
        self.address(self.far, "eth0", f"{FAR}/24")
        run("ip", "-n", self.host, "route", "add", "default", "via", FAR)
        return self

    def __exit__(self, *_):
        for ns in (self.guest, self.host, self.far):
            subprocess.run(["ip", "netns", "del", ns], capture_output=True)

    def address(self, ns, device, address):
        run("ip", "-n", ns, "addr", "add", address, "dev", device)
        run("ip", "-n", ns, "link", "set", device, "up")

    def lead(self, device, router):
        """Gives the guest an address and a way out."""
        self.address(self.guest, device, "10.0.2.15/24")
        run("ip", "-n", self.guest, "route", "add", "default", "via", router)

    def has(self, device):
        return not subprocess.run(
            ["ip", "-n", self.guest, "link", "show", device], capture_output=True
        ).returncode


SOCKETS = 'engine = "sockets"'
PACKET = f'engine = "packet"\nuplink = "up0"\noutside = ["192.0.2.9"]\nnext_hop = "{FAR}"'


def packet(world, mtu, args):
    return ours(world, mtu, args, PACKET)


@contextlib.contextmanager
def ours(world, mtu, args, engine=SOCKETS):
    binary = pathlib.Path(args.trunkline)
    if not binary.exists():
        raise Unable(f"{binary} is not there: cargo build --release")
    file = world.dir / "trunkline.toml"
    file.write_text(
        f'[host]\nrun_dir = "{world.dir}/run"\nstate_dir = "{world.dir}/state"\n'
        f'[networks.lan]\nmode = "nat"\n{engine}\nsubnet = "10.0.2.0/24"\nmtu = {mtu}\n'
        f'[guests.g]\nports = [{{ network = "lan", attach = "tap", tap = "eth0", netns = "{world.guest}" }}]\n'
    )
    with process(binary, "up", file, ns=world.host, log=world.log) as daemon:
        wait("trunkline", lambda: daemon.poll() is not None or world.has("eth0"))
        if daemon.poll() is not None:
            raise Unable(f"trunkline ended: {world.log.read_text()[-300:]}")
        run("ip", "-n", world.guest, "link", "set", "eth0", "mtu", mtu)
        world.lead("eth0", "10.0.2.1")
        yield daemon.pid


@contextlib.contextmanager
def pasta(world, mtu, _):
    options = "--config-net --no-map-gw -t none -u none -T none -U none --runas 0:0".split()
    command = ["pasta", "-f", "-q", "-m", mtu, *options, "--netns-only", "--netns", f"/run/netns/{world.guest}"]
    with process(*command, ns=world.host, log=world.log) as child:
        yield child.pid


@contextlib.contextmanager
def slirp(world, mtu, _):
    command = ["slirp4netns", "--configure", f"--mtu={mtu}", "--disable-host-loopback", "--netns-type=path"]
    with process(*command, f"/run/netns/{world.guest}", "eth0", ns=world.host, log=world.log) as child:
        yield child.pid


@contextlib.contextmanager
def nft(world, *_):
    run("ip", "link", "add", "eth0", "netns", world.guest, "type", "veth", "peer", "name", "dn0", "netns", world.host)
    world.address(world.host, "dn0", "10.0.2.2/24")
    world.lead("eth0", "10.0.2.2")
    run("sysctl", "-qw", "net.ipv4.ip_forward=1", ns=world.host)
    rules = "add table ip n; add chain ip n p { type nat hook postrouting priority 100; }; "
    run("nft", rules + 'add rule ip n p oifname "up0" masquerade', ns=world.host)
    yield None


def start(case, world, args):
    name = case.rstrip("0123456789")
    mtu = int(case[len(name) :] or 1500)
    need = {"pasta": "pasta", "slirp": "slirp4netns", "nft": "nft"}.get(name)
    if need and not shutil.which(need):
        raise Unable(f"{need} is not installed")
    return {"ours": ours, "packet": packet, "pasta": pasta, "slirp": slirp, "nft": nft}[name](world, mtu, args)


def tcp(world, args, *options):
    return iperf(world.guest, world.far, FAR, args.seconds, world.log, *options)


@contextlib.contextmanager
def nginx(world):
    file = world.dir / "nginx.conf"
    file.write_text(
        f"daemon off; master_process off; pid {world.dir}/nginx.pid; error_log {world.dir}/nginx.log;\n"
        "events { worker_connections 4096; }\n"
        f"http {{ access_log off; client_body_temp_path {world.dir}/a; proxy_temp_path {world.dir}/b;\n"
        f"fastcgi_temp_path {world.dir}/c; uwsgi_temp_path {world.dir}/d; scgi_temp_path {world.dir}/e;\n"
        'server { listen 8080 backlog=4096; location / { return 200 "x"; } } }\n'
    )
    with process("nginx", "-c", file, ns=world.far, log=world.log):
        wait("nginx", listens(8080, world.far))
        yield


def conns(world, _):
    with nginx(world):
        out = run("ab", "-q", "-n", 5000, "-c", 16, f"http://{FAR}:8080/", ns=world.guest, timeout=90)
    found = {line.split(":")[0]: line.split(":")[1].split()[0] for line in out.splitlines() if ":" in line[:30]}
    if int(found["Failed requests"]):
        raise Unable(f"{found['Failed requests']} requests failed")
    return float(found["Requests per second"])


SERVE = """
import socket, sys
s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1); s.bind(("", 7000)); s.listen(4096)
kept = []
while True: kept.append(s.accept()[0])
"""
OPEN = """
import socket, sys
kept = [socket.create_connection((sys.argv[1], 7000), 10) for _ in range(int(sys.argv[2]))]
for c in kept: c.send(b"x")
print("open", flush=True); sys.stdin.read()
"""


def memory(world, pid):
    if pid is None:
        raise Unable("the kernel's memory is not a process's")
    with process(sys.executable, "-c", SERVE, ns=world.far, log=world.log):
        wait("the server", listens(7000, world.far))
        before = resident(pid)
        command = inside(world.guest, [sys.executable, "-c", OPEN, FAR, CONNECTIONS])
        client = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        try:
            if client.stdout.readline() != "open\n":
                raise Unable(f"{CONNECTIONS} connections were not to be had")
            time.sleep(0.5)
            return (resident(pid) - before) / CONNECTIONS
        finally:
            client.stdin.close()
            try:
                client.wait(10)
            except subprocess.TimeoutExpired:
                client.kill()
                client.wait()


def reachable(world):
    return not subprocess.run(
        inside(world.guest, ["iperf3", "-c", FAR, "-n", "1", "--connect-timeout", "1000"]), capture_output=True
    ).returncode


def measure(case, args):
    """One round of one case: row by row, how it is measured."""
    with tempfile.TemporaryDirectory() as directory, World(directory) as world, start(case, world, args) as pid:
        with process("iperf3", "-s", ns=world.far, log=world.log):
            wait(f"{case}: a way from guest to far end", lambda: reachable(world), 15)
        steps = {
            "memory": lambda: memory(world, pid),
            "up": lambda: tcp(world, args),
            "down": lambda: tcp(world, args, "-R"),
            "udp": lambda: udp(world.guest, world.far, FAR, args.seconds, world.dir),
            "conns": lambda: conns(world, args),
        }
        yield from steps.items()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", default=",".join(CASES), type=lambda text: text.split(","))
    parser.add_argument("--rows", default=",".join(ROWS), type=lambda text: text.split(","))
    parser.add_argument("--rounds", default=5, type=int)
    parser.add_argument("--seconds", default=5, type=int)
    parser.add_argument("--trunkline", default=ROOT / "target/release/trunkline")
    args = parser.parse_args()
    if os.geteuid():
        sys.exit("nat.py makes network namespaces: run it as root")
    missing = [name for name in ("ip", "ss", "iperf3", "nginx", "ab", "cc") if not shutil.which(name)]
    if missing:
        sys.exit(f"not installed: {', '.join(missing)}")
    below = f"{args.rounds} rounds of {args.seconds} s, median (least - most), MTU in the name, else 1500."
    rounds(args, ROWS, measure, below)


if __name__ == "__main__":
    main()
