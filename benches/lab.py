"""What the benchmarks beside peers have in common: commands in network namespaces, loads, rounds, and the table.

A row that cannot be measured raises `Unable`; its cell is then `-`, and why is said below the table.
"""

import contextlib, json, pathlib, statistics, subprocess, sys, time

ROOT = pathlib.Path(__file__).resolve().parents[1]
# Loss below this share counts as none.
LOSS = 0.001


class Unable(Exception):
    """A case cannot be measured here."""


def run(*command, ns=None, timeout=60):
    """The output of a command that has to succeed."""
    done = subprocess.run(inside(ns, command), capture_output=True, text=True, timeout=timeout)
    if done.returncode:
        raise Unable(f"{' '.join(map(str, command))}: {(done.stderr or done.stdout).strip()[-300:]}")
    return done.stdout


def inside(ns, command):
    return [*(["ip", "netns", "exec", ns] if ns else []), *map(str, command)]


@contextlib.contextmanager
def process(*command, ns, log):
    """A command that runs in a namespace until the block ends."""
    with open(log, "ab") as out:
        child = subprocess.Popen(inside(ns, command), stdin=subprocess.DEVNULL, stdout=out, stderr=out)
    try:
        yield child
    finally:
        child.terminate()
        try:
            child.wait(5)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def wait(what, condition, seconds=10):
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise Unable(f"{what}: not within {seconds} s")
        time.sleep(0.05)


def listens(port, ns):
    return lambda: f":{port} " in run("ss", "-Hltn", ns=ns)


def iperf(client, server, address, seconds, log, *options):
    """Gbit/s of one run of iperf3 between two namespaces."""
    with process("iperf3", "-s", "-1", ns=server, log=log):
        wait("iperf3", listens(5201, server))
        out = run("iperf3", "-c", address, "-J", "-t", seconds, *options, ns=client, timeout=seconds + 20)
    return json.loads(out)["end"]["sum_received"]["bits_per_second"] / 1e9


def udp(client, server, address, seconds, directory):
    """The highest rate, by halving, at which nothing is lost; thousands that arrived then in a second."""
    program = directory / "udp"
    run("cc", "-O2", "-o", program, ROOT / "benches/udp.c")
    low, high, best = 0, 800_000, None
    for _ in range(7):
        rate = (low + high) // 2
        sent, took, came = datagrams(client, server, address, min(seconds, 2), program, rate)
        if sent - came <= LOSS * sent and sent >= 0.9 * rate * took:
            low, best = rate, came / took / 1e3
        else:
            high = rate
    if best is None:
        raise Unable("datagrams are lost at every rate that was tried")
    return best


def datagrams(client, server, address, seconds, program, rate):
    """Datagrams of 16 bytes at a rate: how many were sent, in how many seconds, and how many came."""
    receive = subprocess.Popen(inside(server, [program, "receive", 7001]), stdout=subprocess.PIPE, text=True)
    try:
        wait("the receiver", lambda: ":7001 " in run("ss", "-Hlun", ns=server))
        out = run(program, "send", address, 7001, rate, seconds, 16, ns=client, timeout=seconds + 20)
        came = int(receive.communicate(timeout=20)[0])
    finally:
        receive.kill()
        receive.wait()
    sent, took = out.split()
    return int(sent), float(took), came


def resident(pid):
    for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise Unable("the process has no memory")


def cell(values):
    if not values:
        return "-"
    digits = 0 if statistics.median(values) >= 100 else 2
    low, middle, high = (f"{v:,.{digits}f}" for v in (min(values), statistics.median(values), max(values)))
    return f"{middle} ({low} - {high})"


def rounds(args, rows, measure, below):
    """Measures `args.case` in turn, `args.rounds` times, by what `measure(case, args)` yields: row and how. Prints the table of `args.rows`."""
    results, why = {}, set()
    failures = (Unable, subprocess.TimeoutExpired, KeyError, ValueError)
    for number in range(args.rounds):
        for case in args.case:
            print(f"round {number + 1} of {args.rounds}: {case}", file=sys.stderr)
            try:
                for row, step in measure(case, args):
                    if row in args.rows:
                        try:
                            results.setdefault((row, case), []).append(step())
                        except failures as error:
                            why.add(f"{case}, {rows[row]}: {error}")
            except failures as error:
                why.add(f"{case}: {error}")
    print(f"| {' | '.join(['', *args.case])} |")
    print(f"|{' --- |' * (len(args.case) + 1)}")
    for row in args.rows:
        print(f"| {' | '.join([rows[row], *(cell(results.get((row, case))) for case in args.case)])} |")
    print(f"\n{below}")
    for line in sorted(why):
        print(f"- {line}")
