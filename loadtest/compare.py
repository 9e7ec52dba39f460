#!/usr/bin/env python3
"""Measure this tree's server against that of another commit, side by side, in turns.

    python3 loadtest/compare.py 719f18e [--rows append100,append1,...] [--runs 5] [--seconds 4]

The machine drifts from hour to hour, and a ratio from one run does not: both servers run on core 0, one of them stopped
while the other is measured, with the same client, this tree's loadtest, on core 1. The other commit is built in a worktree
of its own under target/. Rows and raw output go to a run folder as figures.py makes them.
"""
import argparse
import statistics
import subprocess

from figures import HTTP, NATIVE, REPO, Bench, Server, common_flags, host_prepared, percentile, sh, write_down, wrk

OTHER_PORTS = (NATIVE + 20, HTTP + 20)
PRELOAD = ("--workload", "get", "--keys", 10_000)


def built(commit):
    """The other commit's release binary."""
    tree = REPO / "target" / "compare" / commit
    if not tree.exists():
        sh("git", "worktree", "prune", cwd=REPO)
        sh("git", "worktree", "add", "--detach", tree, commit, cwd=REPO)
    sh("cargo", "build", "--release", "-p", "pinion", "--target-dir", tree / "target", cwd=tree)
    return tree / "target" / "release" / "pinion"


class Pair:
    """Both servers, one of them stopped at any time."""

    def __init__(self, bench, other, commit):
        self.bench = bench
        ahead = ("--segments-ahead", bench.args.segments_ahead)
        self.sides = {
            commit: Server(bench, bench.scratch / "other", *ahead, binary=other, ports=OTHER_PORTS),
            "this tree": Server(bench, bench.scratch / "this", *ahead),
        }
        self.only(None)

    def only(self, running):
        for name, server in self.sides.items():
            server.go_on() if name == running else server.pause()

    def prepare(self, seconds):
        """Both make their segments beforehand, alone."""
        for name, server in self.sides.items():
            self.only(name)
            subprocess.run(["sleep", str(seconds)], check=True)

    def in_turns(self, measure):
        """name -> results of `runs` measurements, the order reversed every time."""
        results = {name: [] for name in self.sides}
        for run in range(self.bench.args.runs):
            for name in list(self.sides)[:: 1 if run % 2 else -1]:
                self.only(name)
                results[name].append(measure(self.sides[name]))
        return results


def load_row(bench, pair, what, name, *flags):
    results = pair.in_turns(lambda server: bench.load(name, *flags, port=server.ports[0]))
    for key, unit, scale in (("records_per_second", "k/s", 1e3), ("p50_us", "us", 1), ("p99_us", "us", 1), ("p999_us", "us", 1)):
        other, this = (percentile(side, key) / scale for side in results.values())
        stolen = " against ".join(f"{percentile(side, 'stolen_ms_per_second'):.0f}" for side in results.values())
        bench.compared(f"{what}: {key.rsplit('_', 1)[0]}", other, this, unit, f"{stolen} ms/s of CPU stolen")
    return min(percentile(side, "records_per_second") for side in results.values())


def append100(bench, pair):
    load_row(bench, pair, "append, 100 a frame", "append100", "--batch", 100, "--connections", 16, "--pipeline", 4)


def append1(bench, pair):
    slower = load_row(bench, pair, "append, 50 x 16", "append1-50x16", "--connections", 50, "--pipeline", 16)
    load_row(bench, pair, "append, 50 x 1", "append1-50x1", "--connections", 50, "--pipeline", 1)
    half = int(slower / 2)
    load_row(bench, pair, f"open loop at {half / 1e3:.0f} k/s", "open-loop", "--connections", 50, "--pipeline", 16, "--rate", half)


def get(bench, pair):
    for name, server in pair.sides.items():
        pair.only(name)
        bench.load("preload", *PRELOAD, "--preload", port=server.ports[0])
    load_row(bench, pair, "get of hot keys, 50 x 16", "get", *PRELOAD, "--connections", 50, "--pipeline", 16)


def http_post(bench, pair):
    script = REPO / "loadtest/wrk/post.lua"
    rates = pair.in_turns(lambda server: wrk(bench, "http-post", f"http://127.0.0.1:{server.ports[1]}/", "-s", script))
    other, this = (statistics.median(side) / 1e3 for side in rates.values())
    bench.compared("HTTP POST, wrk -t1 -c64: rate", other, this, "k/s", "")


ROWS = {f.__name__: f for f in (append100, append1, get, http_post)}


class Comparison(Bench):
    def compared(self, what, other, this, unit, note):
        row = (what, f"{other:.1f} {unit}", f"{this:.1f} {unit}", f"{this / other:.2f}", note)
        print("{:<40} {:>14} {:>14} {:>6}  {}".format(*row), flush=True)
        self.rows.append(row)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("commit")
    parser.add_argument("--rows", default=",".join(ROWS), help="comma-separated: " + ", ".join(ROWS))
    common_flags(parser)
    args = parser.parse_args()
    unknown = [r for r in args.rows.split(",") if r not in ROWS]
    if unknown:
        parser.error(f"no such row: {', '.join(unknown)}")
    other = built(args.commit)
    bench = Comparison(args)
    with host_prepared(bench):
        for row in args.rows.split(","):
            pair = Pair(bench, other, args.commit)
            pair.prepare(args.prepare_seconds)
            ROWS[row](bench, pair)
            for name, server in pair.sides.items():
                pair.only(name)
                server.stop()
    write_down(bench, ("what", args.commit, "this tree", "ratio", "notes"))


if __name__ == "__main__":
    main()
