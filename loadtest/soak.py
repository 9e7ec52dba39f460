#!/usr/bin/env python3
"""Keep a server under mixed load, kill it and start it again, and watch what must stay flat.

    python3 loadtest/soak.py [--minutes 60] [--shards 2] [--keys 100000] [--kills 0.5]

Round after round: `loadtest --verify` over native and over HTTP (every acknowledged write is read back) into a stream whose
policy keeps few versions, so that space comes back; then the server is stopped for a moment (SIGSTOP), ended, with
SIGKILL or with SIGTERM by chance, started again on the same directory, and a sample of keys must read as before. Once a round
resident memory, open descriptors, threads, segment files and bytes on disk are written down. Ends with 1 at the first lost or
wrong record or failed start, and when descriptors, threads, memory, segments or disk are not flat. The table goes to
loadtest/runs/<date>-soak-<kernel>/.
"""
import argparse
import csv
import datetime
import json
import os
import platform
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
STREAM = "loadtest"
# May not grow. The second quarter of the run is held against the last: the first fills the store.
FLAT = ("resident_mb", "descriptors", "threads", "segments", "disk_mb")
GROWTH_MAX = 1.25
COLUMNS = ["minute", "round", "end", "records", "verified", "resident_mb", "descriptors", "threads", "segments", "disk_mb", "recovery_s"]


class Server:
    latest = native = http = None

    def __init__(self, args, binaries, data, log):
        # Free ports: another load generator that takes a port for its own server's must not write into this one.
        command = [binaries / "pinion", "serve", "--data", data, "--port", 0, "--http-port", 0, "--shards", args.shards,
                   "--segment-bytes", "8MiB", "--memory", "2GiB", "--checkpoint-log-bytes", "64MiB", *args.serve]
        self.started = time.monotonic()
        self.process = subprocess.Popen([str(c) for c in command], stdout=subprocess.PIPE, stderr=log, text=True)
        Server.latest = self
        for line in self.process.stdout:
            if serving := re.search(r"is serving native (\S+) and http (\S+) on", line):
                Server.native, Server.http = serving.groups()
                break
        else:
            raise SystemExit(f"the server did not start: exit {self.process.wait()}, see {log.name}")
        self.ready_seconds = time.monotonic() - self.started

    def end(self, how):
        self.process.send_signal(how)
        code = self.process.wait()
        if how == signal.SIGTERM and code != 0:
            raise SystemExit(f"a drain ended with exit {code}")

    def figures(self, data):
        proc = Path(f"/proc/{self.process.pid}")
        status = (proc / "status").read_text().splitlines()
        field = lambda name: int(next(line for line in status if line.startswith(name)).split()[1])
        files = [f for f in data.rglob("*") if f.is_file()]
        return {
            "resident_mb": field("VmRSS") // 1024,
            "descriptors": len(list((proc / "fd").iterdir())),
            "threads": field("Threads"),
            "segments": sum(f.suffix == ".seg" for f in files),
            "disk_mb": sum(f.stat().st_size for f in files) >> 20,
        }


def get(path):
    with urllib.request.urlopen(f"http://{Server.http}{path}") as answer:
        return answer.headers.get("ETag"), answer.read()


def keep_few_versions():
    """The policy that lets space come back. NDJSON acks say no versions, so the write that was acked last may be some versions
    behind the newest of its key: with a depth of 1 it is rightly gone, and --verify would call it lost."""
    request = urllib.request.Request(f"http://{Server.http}/v1/streams/{STREAM}", data=b'{"history_depth": 8}', method="PUT",
                                     headers={"Content-Type": "application/json"})
    urllib.request.urlopen(request).read()


def sampled_keys():
    lines = get(f"/v1/streams/{STREAM}/scan?limit=200")[1].splitlines()
    return [urllib.parse.quote(json.loads(line)["key"], safe="") for line in lines]


def newest(keys):
    """Version and newest payload of each."""
    return {key: get(f"/v1/streams/{STREAM}/records/{key}") for key in keys}


def grown(rows):
    """What of FLAT is not, with both medians."""
    quarter = len(rows) // 4
    if quarter < 3:
        return []
    early, late = rows[quarter : 2 * quarter], rows[-quarter:]
    medians = {flat: [statistics.median(row[flat] for row in part) for part in (early, late)] for flat in FLAT}
    return [f"{flat} from {early} to {late}" for flat, (early, late) in medians.items() if late > GROWTH_MAX * early]


def until_ready():
    while True:
        try:
            return urllib.request.urlopen(f"http://{Server.http}/readyz").read()
        except urllib.error.HTTPError:
            time.sleep(0.05)


def load(binaries, args, seed, protocol, *flags):
    to = Server.native if protocol == "native" else Server.http
    command = [binaries / "loadtest", "--to", to, "--protocol", protocol, "--json", "--verify", "--keys", args.keys,
               "--seed", seed, "--seconds", args.round_seconds, "--warmup-seconds", 0, *flags]
    run = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    if run.returncode != 0 or not run.stdout.startswith("{"):
        raise SystemExit(f"{' '.join(map(str, command))}: exit {run.returncode}\n{run.stdout}\n{run.stderr}")
    return json.loads(run.stdout)


def soak(args, binaries, data, log, table):
    rng = random.Random(args.seed)
    begin, rows = time.monotonic(), []
    server = Server(args, binaries, data, log)
    until_ready()
    keep_few_versions()
    for number in range(1, 1_000_000):
        records = 0
        shape = rng.choice([("append", 50, 16, 1), ("append", 16, 4, 50), ("mixed", 50, 8, 1)])
        workload, connections, pipeline, batch = shape
        for protocol in ("native", "http"):
            flags = ["--workload", workload, "--connections", connections, "--pipeline", pipeline if protocol == "native" else 4]
            if batch > 1:
                flags += ["--batch", batch]
            records += load(binaries, args, rng.randrange(1 << 31), protocol, *flags)["records"]
        row = {"minute": round((time.monotonic() - begin) / 60, 1), "round": number, "records": records, **server.figures(data)}
        before = newest(sampled_keys())
        server.process.send_signal(signal.SIGSTOP)
        time.sleep(rng.random())
        server.process.send_signal(signal.SIGCONT)
        how = signal.SIGKILL if rng.random() < args.kills else signal.SIGTERM
        server.end(how)
        server = Server(args, binaries, data, log)
        until_ready()
        after = newest(before)
        if before != after:
            wrong = [key for key in before if before[key] != after.get(key)]
            raise SystemExit(f"{len(wrong)} of {len(before)} keys read otherwise after {how.name}: {wrong[:3]}")
        row |= {"end": how.name, "verified": len(before), "recovery_s": round(server.ready_seconds, 2)}
        table.writerow(row)
        print(", ".join(f"{k} {row[k]}" for k in COLUMNS), flush=True)
        rows.append(row)
        if time.monotonic() - begin > 60 * args.minutes:
            server.end(signal.SIGTERM)
            subprocess.run([binaries / "pinion", "verify", data], check=True, stdout=log)
            if grown(rows):
                raise SystemExit("not flat: " + ", ".join(grown(rows)))
            return number


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--shards", type=int, default=2)
    parser.add_argument("--keys", type=int, default=100_000)
    parser.add_argument("--kills", type=float, default=0.5, help="share of the restarts that are SIGKILLs")
    parser.add_argument("--round-seconds", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--scratch", help="directory for data")
    parser.add_argument("--no-build", action="store_true")
    parser.add_argument("serve", nargs="*", help="more flags of serve, behind --")
    args = parser.parse_args()
    if not args.no_build:
        subprocess.run(["cargo", "build", "--release", "-p", "pinion", "-p", "loadtest"], cwd=REPO, check=True)
    binaries = Path(os.environ.get("CARGO_TARGET_DIR", REPO / "target")) / "release"
    folder = REPO / "loadtest" / "runs" / f"{datetime.date.today().isoformat()}-soak-{platform.release()}"
    folder.mkdir(parents=True, exist_ok=True)
    data = Path(args.scratch or REPO / "target" / "soak") / "data"
    shutil.rmtree(data, ignore_errors=True)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=REPO, capture_output=True, text=True).stdout.strip()
    rounds = None
    with open(folder / "server.log", "a") as log, open(folder / "rounds.csv", "w", newline="") as out:
        table = csv.DictWriter(out, COLUMNS)
        table.writeheader()
        try:
            rounds = soak(args, binaries, data, log, table)
        finally:
            Server.latest.process.kill()
    with open(folder / "README.md", "a") as out:
        out.write(f"# {datetime.datetime.now().isoformat(timespec='minutes')}, commit {commit}\n\n`python3 loadtest/soak.py {' '.join(sys.argv[1:])}`\n\n"
                  f"kernel {platform.release()}, {os.cpu_count()} cores: {rounds} rounds in {args.minutes} minutes, every acknowledged write read back, "
                  "`pinion verify` clean at the end.\n")
    shutil.rmtree(data)


if __name__ == "__main__":
    main()
