#!/usr/bin/env python3
"""Very many connections at once, through address translation: are the last as quick as the first, what does each cost, and what is at the limit?

    sudo benches/nat/many.py [--case ours,pasta1500,...] [--rounds 5] [--connections 50000] [--trunkline target/release/trunkline]

In the namespaces of `nat.py`, with as many addresses at the far end as keep each below 20,000 connections. They are kept open, up to as many as asked for, or
until one is refused; the client takes a descriptor for each, so no more than this process's hard limit of descriptors lets it have. Ours is a process of that
limit as well, and each connection takes one of its descriptors, too: where the limit is 50,512 or less, connections are refused in the end. A cell is
`median (least - most)`. Below the table is what was seen at the limit. Needs root and iproute2, iperf3. Two CPUs or more, and nothing else running on them.
"""

import argparse, contextlib, json, os, pathlib, resource, subprocess, sys, tempfile, time

from nat import ROOT, World, start
from lab import Unable, inside, process, resident, rounds, run, wait

CROWD = pathlib.Path(__file__).with_name("crowd.py")
PORT = 7000
# Connections to one address: a port for each, and a descriptor of its server.
PER_ADDRESS = 18_000
# Of these the rates are taken.
SPAN = 5
ROWS = {
    "first": "connections per second, the 1,001st to 6,000th",
    "last": "connections per second, the last five thousands",
    "ratio": "last to first",
    "open": "open at once",
    "kib1000": "KiB for each of 1,000",
    "kib10000": "KiB for each of 10,000",
    "kib": "KiB for each of all",
    "refused": "ms until the first that is too many has failed",
    "again": "of 100 that were closed, opened again",
}


class Client:
    """The client in the guest; it opens what it is told to."""

    def __init__(self, world, addresses):
        command = [sys.executable, CROWD, "open", PORT, *addresses]
        self.child = subprocess.Popen(inside(world.guest, command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, *words):
        print(*words, file=self.child.stdin, flush=True)
        line = self.child.stdout.readline()
        if not line:
            raise Unable("the client ended")
        return json.loads(line)

    def end(self):
        self.child.stdin.close()
        try:
            self.child.wait(20)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait()


def rate(moments):
    return 1000 * (len(moments) - 1) / (moments[-1] - moments[0])


def settled(pid):
    """Resident memory, once what is on its way has come."""
    if pid is None:
        return None
    time.sleep(0.5)
    return resident(pid)


def fill(world, pid, args, client):
    """Opens all; what was measured on the way, by row."""
    found, before = {}, settled(pid)

    def cost(row, count):
        if pid is not None:
            found[row] = (settled(pid) - before) / count

    for row, count in [("kib1000", 1000), ("kib10000", 10_000), ("kib", args.connections)]:
        told = client.ask(count)
        moments = told["moments"]
        if row == "kib10000" and len(moments) > SPAN:
            found["first"] = rate(moments[: SPAN + 1])
        if row == "kib" and len(moments) > SPAN and "first" in found:
            found["last"] = rate(moments[-SPAN - 1 :])
            found["ratio"] = found["last"] / found["first"]
        if row == "kib" or told["open"] >= count:
            cost(row, told["open"])
    found["open"] = told["open"]
    if told["refused"]:
        found["refused"] = told["refused"]["ms"]
        args.seen.append(f"at {told['open']:,} connections the guest's next one failed: {told['refused']['error']}")
    return found


def at_the_limit(world, pid, args):
    """What the daemon's limit is, and what it says of itself."""
    limit = next(line for line in pathlib.Path(f"/proc/{pid}/limits").read_text().splitlines() if "open files" in line)
    args.seen.append(f"limit of the daemon (soft, hard): {' '.join(limit.split()[3:5])}")
    name = [args.trunkline, "--config", world.dir / "trunkline.toml"]
    status = json.loads(run(*name, "status", "--json", ns=world.host))
    args.seen.append(f"status: descriptors {status.get('descriptors')}")
    args.seen.append(f"show nat: {len(json.loads(run(*name, 'show', 'nat', '--json', ns=world.host))):,} lines")
    args.seen.append(f"show drops: {run(*name, 'show', 'drops', '--json', ns=world.host).strip()}")
    # It ends with 1 where it has a problem to tell of.
    doctor = subprocess.run(inside(world.host, [*name, "doctor", "--json"]), capture_output=True, text=True, timeout=60)
    for check in json.loads(doctor.stdout)["checks"]:
        if check["name"] in ("descriptors", "connections"):
            args.seen.append(f"doctor: {check['name']}: {check['state']}: {check['detail']}")
    time.sleep(1.5)
    args.seen += [f"log: {line}" for line in world.log.read_text().splitlines() if "descriptors" in line]


def measure(case, args):
    """One round of one case."""
    args.seen = []
    addresses = [f"192.0.2.{10 + n}" for n in range(max(2, -(-args.connections // PER_ADDRESS)))]
    with tempfile.TemporaryDirectory() as directory, World(directory) as world, contextlib.ExitStack() as stack:
        for ns in (world.guest, world.host, world.far):
            run("sysctl", "-qw", "net.core.somaxconn=4096", "net.ipv4.tcp_max_syn_backlog=8192", ns=ns)
        for number, address in enumerate(addresses):
            # Each has a server, so that each has descriptors of its own.
            world.address(world.far, "eth0", f"{address}/24")
            command = [sys.executable, CROWD, "serve", PORT, address]
            stack.enter_context(process(*command, ns=world.far, log=world.log))
            wait("the servers", lambda: run("ss", "-Hltn", ns=world.far).count(f":{PORT} ") > number)
        pid = stack.enter_context(start(case, world, args))
        client = Client(world, addresses)
        stack.callback(client.end)
        wait(f"{case}: a way from guest to far end", lambda: reaches(world, addresses[0]), 15)
        found = fill(world, pid, args, client)
        if case == "ours" and "refused" in found:
            at_the_limit(world, pid, args)
            left = client.ask("close", 100)["open"]
            time.sleep(1)
            found["again"] = client.ask(left + 100)["open"] - left
        args.told[case] = args.seen
    for row in ROWS:
        if row in found:
            yield row, lambda row=row: found[row]


def reaches(world, address):
    command = ["timeout", "1", "bash", "-c", f"exec 3<>/dev/tcp/{address}/{PORT}"]
    return not subprocess.run(inside(world.guest, command), capture_output=True).returncode


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", default=["ours"], type=lambda text: text.split(","))
    parser.add_argument("--rounds", default=5, type=int)
    parser.add_argument("--connections", default=50_000, type=int)
    parser.add_argument("--trunkline", default=ROOT / "target/release/trunkline")
    args = parser.parse_args()
    if os.geteuid():
        sys.exit("many.py makes network namespaces: run it as root")
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    args.connections, asked = min(args.connections, hard - 100), args.connections
    args.rows, args.told = ROWS, {}
    less = "" if args.connections == asked else f" of {asked:,} that were asked for: the hard limit of descriptors is {hard:,}"
    rounds(args, ROWS, measure, f"{args.rounds} rounds, median (least - most), up to {args.connections:,} connections{less}.")
    for case, lines in args.told.items():
        for line in lines:
            print(f"- {case}: {line}")


main()
