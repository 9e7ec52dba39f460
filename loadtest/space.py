#!/usr/bin/env python3
"""What compaction costs: p99 with and without it, disk use against what is alive, and write amplification.

    python3 loadtest/space.py [--minutes 30] [--slice-seconds 60] [--rate 50000] [--keys 3200000] [--payload-bytes 256]

Two servers on core 0, one of them stopped while the other is measured, with the same client on core 1: the stream of one keeps
one version a key (compaction runs), that of the other keeps all (it never does). Both get the same open-loop load that writes
a working set over and over, by default four times the pool of prepared segments; slices alternate. The server without
compaction is begun anew on an empty directory every few slices, which bounds its disk. Every two seconds the other's disk
use (what the files take) and its live bytes (its metrics) are written down. Rows and raw output go to a run folder as
figures.py makes them.
"""
import argparse
import csv
import shutil
import statistics
import threading
import time
import urllib.request

from figures import HTTP, NATIVE, Bench, Server, common_flags, host_prepared, write_down

OTHER_PORTS = (NATIVE + 30, HTTP + 30)
POLL_SECONDS = 2


def put_policy(server, stream, policy):
    request = urllib.request.Request(f"http://127.0.0.1:{server.ports[1]}/v1/streams/{stream}", data=policy.encode(), method="PUT")
    urllib.request.urlopen(request).read()


def segment_disk_bytes(data):
    """What the log's segment files take of the disk."""
    return sum(file.stat().st_blocks * 512 for file in data.glob("log-*/*.seg"))


def started(bench, name, *flags, **where):
    server = Server(bench, bench.scratch / name, *flags, **where)
    if server.process.poll() is not None:
        raise SystemExit(f"the server did not start: see {bench.folder / 'server.log'}")
    return server


class Sides:
    def __init__(self, bench):
        self.bench = bench
        self.flags = ("--segment-bytes", bench.args.segment_bytes, "--segments-ahead", bench.args.segments_ahead)
        self.compacting = started(bench, "compacting", *self.flags)
        put_policy(self.compacting, bench.args.stream, '{"history_depth": 1}')
        self.begun = 0
        self.plain = None
        self.begin_plain()

    def begin_plain(self):
        """The server without compaction, on an empty directory, with the working set in it."""
        if self.plain is not None:
            self.plain.go_on()
            self.plain.stop()
        self.compacting.pause()
        self.begun += 1
        self.plain = started(self.bench, f"plain-{self.begun}", *self.flags, ports=OTHER_PORTS)
        put_policy(self.plain, self.bench.args.stream, "{}")  # every version is kept
        time.sleep(self.bench.args.prepare_seconds)
        self.preload("plain", self.plain)
        self.plain.pause()

    def preload(self, name, server):
        args = self.bench.args
        self.bench.load(f"preload-{name}", "--workload", "get", "--keys", args.keys, "--payload-bytes", args.payload_bytes, "--preload",
                        port=server.ports[0])

    def measure(self, name, server):
        server.go_on()
        args = self.bench.args
        result = self.bench.load(name, "--keys", args.keys, "--payload-bytes", args.payload_bytes, "--connections", 50, "--pipeline", 16,
                                 "--rate", args.rate, port=server.ports[0])
        server.pause()
        return result


class Watch(threading.Thread):
    """Disk use against live data of the server that compacts, for as long as one slice of it takes."""

    def __init__(self, server, rows):
        super().__init__(daemon=True)
        self.server, self.rows, self.done = server, rows, threading.Event()

    def sample(self):
        record, dead = self.server.metric("pinion_log_record_bytes"), self.server.metric("pinion_log_dead_bytes")
        disk = segment_disk_bytes(self.server.data)
        self.rows.append((round(time.monotonic() - self.server.started, 1), disk, int(record - dead),
                          int(self.server.metric("pinion_segments_released_total"))))

    def run(self):
        while not self.done.wait(POLL_SECONDS):
            self.sample()

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.done.set()
        self.join()


def written(server):
    return {name: server.metric(f"pinion_{name}_total") for name in ("log_bytes", "relocated_bytes")}


def measure(bench):
    args = bench.args
    sides = Sides(bench)
    sides.compacting.go_on()
    sides.preload("compacting", sides.compacting)
    before = written(sides.compacting)
    results, watched = {"with": [], "without": []}, []
    deadline = time.monotonic() + args.minutes * 60
    slices = 0
    while time.monotonic() < deadline or not results["without"]:
        if slices and slices % args.plain_slices == 0:
            sides.begin_plain()
        order = ("with", "without") if slices % 2 else ("without", "with")
        for name in order:
            if name == "with":
                sides.plain.pause()
                sides.compacting.go_on()
                with Watch(sides.compacting, watched) as watch:
                    results[name].append(sides.measure(name, sides.compacting))
                    sides.compacting.go_on()
                    watch.sample()
                sides.compacting.pause()
            else:
                results[name].append(sides.measure(name, sides.plain))
        slices += 1
    sides.compacting.go_on()
    after = written(sides.compacting)
    released = sides.compacting.metric("pinion_segments_released_total")
    recycled = sides.compacting.metric("pinion_segments_recycled_total")
    for server in (sides.plain, sides.compacting):
        server.go_on()
        server.stop()
    with open(bench.folder / "space.csv", "w", newline="") as out:
        table = csv.writer(out)
        table.writerow(("second", "disk_bytes", "live_bytes", "segments_released"))
        table.writerows(watched)
    report(bench, results, watched, before, after, released, recycled)


def report(bench, results, watched, before, after, released, recycled):
    p99 = {name: statistics.median(r["p99_us"] for r in side) for name, side in results.items()}
    note = ", ".join(f"{name}: {len(side)} slices, {min(r['p99_us'] for r in side):.0f} to {max(r['p99_us'] for r in side):.0f} us, "
                     f"{statistics.median(r['stolen_ms_per_second'] for r in side):.0f} ms/s stolen" for name, side in results.items())
    bench.row("p99 with compaction running", f"{p99['with']:.0f} us", "", note)
    bench.row("p99 without", f"{p99['without']:.0f} us", "")
    bench.row("p99 with over p99 without", f"{p99['with'] / p99['without']:.2f}", "1.5")
    # The spare and prepared segments are there whatever is alive; the ratio takes everything.
    ratios = [disk / live for _, disk, live, _ in watched if live]
    disk, live = max((row[1] for row in watched), default=0), watched[-1][2] if watched else 0
    bench.row("disk use over live data, at most", f"{max(ratios):.2f}", "2", f"at most {disk / 1e6:.0f} MB on disk; {live / 1e6:.0f} MB alive at the end; "
              f"{released:.0f} segments released, {recycled:.0f} used again")
    log, copies = (after[name] - before[name] for name in ("log_bytes", "relocated_bytes"))
    bench.row("write amplification: log bytes over bytes that clients appended", f"{log / max(log - copies, 1):.2f}", "", f"{log / 1e6:.0f} MB of log, {copies / 1e6:.0f} MB of them copies")
    if released == 0:
        bench.row("compaction", "did not run", "", "longer, a higher rate or fewer keys are needed")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--slice-seconds", type=int, default=60)
    parser.add_argument("--rate", type=int, default=50_000, help="records a second")
    parser.add_argument("--keys", type=int, default=3_200_000, help="about four times the prepared segments at the default sizes")
    parser.add_argument("--payload-bytes", type=int, default=256)
    parser.add_argument("--segment-bytes", default="64MiB")
    parser.add_argument("--plain-slices", type=int, default=4, help="slices after which the server without compaction begins anew")
    parser.add_argument("--stream", default="loadtest")
    common_flags(parser)
    parser.set_defaults(segments_ahead=4, suffix="-space")
    args = parser.parse_args()
    args.seconds, args.runs = args.slice_seconds, max(int(args.minutes * 60 / 2 / args.slice_seconds), 1)
    bench = Bench(args)
    with host_prepared(bench):
        measure(bench)
    shutil.rmtree(bench.scratch, ignore_errors=True)
    write_down(bench, ("what", "measured", "target", "notes"))


if __name__ == "__main__":
    main()
