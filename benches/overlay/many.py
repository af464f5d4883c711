#!/usr/bin/env python3
"""How long the daemon takes to start with very many overlay networks, and how much memory it has then.

    sudo benches/overlay/many.py [--networks 10000] [--peers 1000] [--rounds 5] [--trunkline target/release/trunkline]

Every network stretches to all peers over one tunnel endpoint, in a network namespace of its own. Time is from the start of the process to the line
`ready`; memory is VmRSS then. Needs root and iproute2.
"""

import argparse, os, pathlib, subprocess, sys, tempfile, time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from lab import ROOT, Unable, inside, resident, rounds, run

ROWS = {"start": "seconds until it is ready", "memory": "MiB resident"}


def measure(_, args):
    ns = f"tlmany{os.getpid()}"
    with tempfile.TemporaryDirectory() as directory:
        directory = pathlib.Path(directory)
        peers = ", ".join(f'"10.9.{n // 250}.{n % 250 + 1}"' for n in range(args.peers))
        networks = "".join(f'[networks.n{n}]\noverlay = {{ vtep = "main", vni = {n + 1} }}\n' for n in range(args.networks))
        file = directory / "trunkline.toml"
        file.write_text(
            f'[host]\nrun_dir = "{directory}/run"\nstate_dir = "{directory}/state"\n'
            f'[vteps.main]\nlocal = "192.0.2.1"\npeers = [{peers}]\n{networks}'
        )
        run("ip", "netns", "add", ns)
        try:
            run("ip", "-n", ns, "link", "set", "lo", "up")
            run("ip", "-n", ns, "addr", "add", "192.0.2.1/32", "dev", "lo")
            run("ip", "-n", ns, "route", "add", "10.9.0.0/16", "dev", "lo")
            began = time.monotonic()
            with open(directory / "log", "w") as log:
                command = inside(ns, [args.trunkline, "up", file])
                child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
            try:
                if not any(line.strip() == "ready" for line in child.stdout):
                    raise Unable(f"trunkline ended: {(directory / 'log').read_text()[-300:]}")
                took, memory = time.monotonic() - began, resident(child.pid) / 1024
            finally:
                child.terminate()
                child.wait()
        finally:
            run("ip", "netns", "del", ns)
    yield "start", lambda: took
    yield "memory", lambda: memory


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", default=10_000, type=int)
    parser.add_argument("--peers", default=1_000, type=int)
    parser.add_argument("--rounds", default=5, type=int)
    parser.add_argument("--trunkline", default=ROOT / "target/release/trunkline", type=pathlib.Path)
    args = parser.parse_args()
    args.trunkline, args.case, args.rows = args.trunkline.resolve(), [f"{args.networks} networks, {args.peers} peers"], list(ROWS)
    if os.geteuid():
        sys.exit("many.py makes a network namespace: run it as root")
    rounds(args, ROWS, measure, f"{args.rounds} rounds, median (least - most).")


main()
