#!/usr/bin/env python3
"""Measure the table of figures in the README, one folder of raw output per call.

    python3 loadtest/figures.py [--rows append100,get,...] [--runs 3] [--seconds 5]

Builds the release binaries, pins the server to core 0 and the client to core 1, sets cubic for the whole host while it
runs (wrk and redis-benchmark take the system's default) and puts it back. Needs root for that, and Debian's wrk, fio,
redis-server and redis-tools for the rows that compare with them; a row whose tool is missing is skipped by name.
"""
import argparse
import contextlib
import ctypes
import datetime
import json
import os
import platform
import re
import shutil
import signal
import statistics
import struct
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
CONTROL = Path("/proc/sys/net/ipv4/tcp_congestion_control")
NATIVE, HTTP, REDIS, CONSTANT = 7700, 7701, 7702, 7703


def sh(*command, **kwargs):
    return subprocess.run([str(c) for c in command], check=True, text=True, stdout=subprocess.PIPE, **kwargs).stdout


def give_way():
    """The longest scheduler slice for the process to come: see shards/uring/src/scheduling.rs. All servers and clients that are
    compared get it, as pinion and loadtest ask for it themselves."""
    number = {"x86_64": 314, "aarch64": 274}.get(platform.machine())
    if number is not None:
        attr = struct.pack("=IIQiIQQQ", 48, 0, 0, 0, 0, 100_000_000, 0, 0)
        ctypes.CDLL(None).syscall(number, 0, attr, 0)


def stolen_seconds():
    """Time that the hypervisor kept the machine's CPUs from running, of all CPUs together."""
    return int(open("/proc/stat").readline().split()[8]) / os.sysconf("SC_CLK_TCK")


class Server:
    """One `pinion serve`, pinned."""

    running = []

    def __init__(self, bench, data, *flags, cores="0", shards=1, binary=None, ports=(NATIVE, HTTP)):
        self.bench, self.data, self.ports = bench, Path(data), ports
        command = [binary or bench.bin / "pinion", "serve", "--data", data, "--shards", shards, "--cores", cores,
                   "--congestion", "cubic", "--port", ports[0], "--http-port", ports[1], *flags]
        Server.running.append(self)
        self.log = open(bench.folder / "server.log", "a")
        self.log.write("$ " + " ".join(map(str, command)) + "\n")
        self.log.flush()
        self.started = time.monotonic()
        self.process = subprocess.Popen([str(c) for c in command], stdout=subprocess.PIPE, stderr=self.log, text=True)
        for line in self.process.stdout:
            self.log.write(line)
            if "is serving" in line:
                break
        self.log.flush()
        self.ready_seconds = time.monotonic() - self.started

    def metric(self, name):
        text = urllib.request.urlopen(f"http://127.0.0.1:{self.ports[1]}/metrics").read().decode()
        found = re.findall(rf"^{name}(?:{{[^}}]*}})? ([0-9.e+-]+)$", text, re.M)
        return sum(map(float, found))

    def cpu_seconds(self):
        """User and system time of the shard threads."""
        total = 0
        for task in Path(f"/proc/{self.process.pid}/task").iterdir():
            if (task / "comm").read_text().startswith("shard-"):
                fields = (task / "stat").read_text().rsplit(")", 1)[1].split()
                total += int(fields[11]) + int(fields[12])
        return total / os.sysconf("SC_CLK_TCK")

    def resident_bytes(self):
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS"):
                return int(line.split()[1]) * 1024
        return 0

    def pause(self):
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self):
        self.process.send_signal(signal.SIGCONT)

    def kill(self):
        self.process.kill()
        self.process.wait()

    def stop(self, keep=False):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait()
        if not keep:
            shutil.rmtree(self.data)


class Bench:
    def __init__(self, args):
        self.args = args
        target = Path(os.environ.get("CARGO_TARGET_DIR", REPO / "target"))
        self.bin = target / "release"
        if not args.no_build:
            sh("cargo", "build", "--release", "-p", "pinion", "-p", "loadtest", "-p", "benches", cwd=REPO)
        stamp = datetime.date.today().isoformat()
        self.folder = REPO / "loadtest" / "runs" / f"{stamp}-{platform.release()}{args.suffix}"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.scratch = Path(args.scratch or REPO / "target" / "figures")
        shutil.rmtree(self.scratch, ignore_errors=True)
        self.scratch.mkdir(parents=True)
        self.rows = []

    def load(self, name, *flags, port=NATIVE):
        command = [self.bin / "loadtest", "--to", f"127.0.0.1:{port}", "--cores", "1", "--json",
                   "--seconds", self.args.seconds, "--warmup-seconds", 2, *flags]
        started, stolen = time.monotonic(), stolen_seconds()
        run = subprocess.run([str(c) for c in command], text=True, capture_output=True)
        stolen = (stolen_seconds() - stolen) / (time.monotonic() - started)
        if not run.stdout.startswith("{"):
            raise SystemExit(f"{' '.join(map(str, command))}: exit {run.returncode}: {run.stderr}")
        result = json.loads(run.stdout)
        result["stolen_ms_per_second"] = round(1000 * stolen, 1)
        if result["errors"]:
            raise SystemExit(f"{name}: {result['errors']} errors: {result['errors_by_code']}")
        with open(self.folder / f"{name}.jsonl", "a") as out:
            out.write(json.dumps(result) + "\n")
        return result

    def repeat(self, measure):
        return [measure(i) for i in range(self.args.runs)]

    def row(self, name, value, target, note=""):
        print(f"{name:<58} {value:<34} target {target}  {note}", flush=True)
        self.rows.append((name, value, target, note))

    def tool(self, name):
        if shutil.which(name) is None:
            print(f"skipped: {name} is not installed", file=sys.stderr)
            return False
        return True


def rate(results):
    return statistics.median(r["records_per_second"] for r in results)


def percentile(results, key):
    return statistics.median(r[key] for r in results)


def stolen(results):
    return f"; {percentile(results, 'stolen_ms_per_second'):.0f} ms/s of CPU stolen"


def fio(bench, name, bs, depth, seconds=4, sync="dsync", rw="write", size="1g"):
    """Durable writes into written extents on the same disk; bandwidth in bytes/s and completion p99 in us."""
    file = bench.scratch / "fio.dat"
    if not file.exists():
        sh("fio", "--name=fill", f"--filename={file}", "--rw=write", "--bs=1m", f"--size={size}", "--direct=1", "--output-format=json")
    out = json.loads(sh("fio", f"--name={name}", f"--filename={file}", f"--rw={rw}", f"--bs={bs}", f"--iodepth={depth}", f"--size={size}",
                        "--ioengine=io_uring", "--direct=1", f"--sync={sync}", "--time_based", f"--runtime={seconds}", "--overwrite=1",
                        "--cpus_allowed=0", "--output-format=json"))
    with open(bench.folder / "fio.jsonl", "a") as raw:
        raw.write(json.dumps(out) + "\n")
    side = out["jobs"][0]["write"]
    return side["bw_bytes"], side["clat_ns"]["percentile"]["99.000000"] / 1000, side["clat_ns"]["percentile"]["50.000000"] / 1000


def wrk(bench, name, url, *flags):
    text = sh("taskset", "-c", "1", "wrk", "-t1", "-c64", f"-d{bench.args.seconds}s", *flags, url, preexec_fn=give_way)
    with open(bench.folder / f"{name}.txt", "a") as out:
        out.write(text)
    bad = re.search(r"Non-2xx or 3xx responses: (\d+)", text)
    if bad:
        raise SystemExit(f"{name}: {bad.group(0)}")
    return float(re.search(r"Requests/sec:\s+([0-9.]+)", text).group(1))


def append100(bench):
    server = Server(bench, bench.scratch / "append100", "--segments-ahead", bench.args.segments_ahead)
    time.sleep(bench.args.prepare_seconds)
    before = (server.metric("pinion_log_bytes_total"), server.metric("pinion_batches_total"))
    results = bench.repeat(lambda _: bench.load("append100", "--batch", 100, "--connections", 16, "--pipeline", 4))
    after = (server.metric("pinion_log_bytes_total"), server.metric("pinion_batches_total"))
    server.stop()
    value = rate(results)
    size = int((after[0] - before[0]) / max(after[1] - before[1], 1)) // 4096 * 4096
    note = f"batches of {size // 1024} KiB, p99 {percentile(results, 'p99_us'):.0f} us" + stolen(results)
    target = "3.5 M/s or 70 % of fio"
    if bench.tool("fio"):
        bandwidth = statistics.median(fio(bench, "append100", size, depth=8)[0] for _ in range(bench.args.runs))
        per_record = (after[0] - before[0]) / max(server_records(results, bench), 1)
        note += f"; fio at that size, depth 8: {bandwidth / 1e6:.0f} MB/s"
        target = f"min(3.5 M/s, 70 % of fio = {0.7 * bandwidth / 336 / 1e6:.2f} M/s at 336 B a record)"
    bench.row("native append, 100 records a frame, durable", f"{value / 1e6:.2f} M records/s", target, note)


def server_records(results, bench):
    return sum(r["records"] for r in results)


def append1(bench):
    server = Server(bench, bench.scratch / "append1", "--segments-ahead", bench.args.segments_ahead)
    time.sleep(bench.args.prepare_seconds)
    deep = bench.repeat(lambda _: bench.load("append1-50x16", "--connections", 50, "--pipeline", 16))
    bench.row("native append, 1 a frame, 50 x 16, durable", f"{rate(deep) / 1e3:.0f} k acks/s", "800 k/s", f"p99 {percentile(deep, 'p99_us'):.0f} us" + stolen(deep))
    shallow = bench.repeat(lambda _: bench.load("append1-50x1", "--connections", 50, "--pipeline", 1))
    note = f"p50 {percentile(shallow, 'p50_us'):.0f} us, p99 {percentile(shallow, 'p99_us'):.0f} us, p99.9 {percentile(shallow, 'p999_us'):.0f} us" + stolen(shallow)
    if bench.tool("fio"):
        p99 = statistics.median(fio(bench, "sync4k", 4096, depth=1)[1] for _ in range(bench.args.runs))
        note += f"; device p99 for one durable 4 KiB write {p99:.0f} us"
    bench.row("native append, 50 x 1, durable", f"{rate(shallow) / 1e3:.1f} k acks/s", "85 k/s, p99 < 5 x device p99", note)
    half = int(rate(deep) / 2)
    # A window that fills up would close the loop.
    half_loop = bench.repeat(lambda _: bench.load("open-loop", "--connections", 50, "--pipeline", 256, "--rate", half))
    note = f"at {half / 1e3:.0f} k/s; p50 {percentile(half_loop, 'p50_us'):.0f} us, p99.9 {percentile(half_loop, 'p999_us'):.0f} us, max {percentile(half_loop, 'max_us'):.0f} us" + stolen(half_loop)
    bench.row("open loop at half the closed-loop rate, durable: p99", f"{percentile(half_loop, 'p99_us'):.0f} us", "p99 < 2 ms, p99.9 < 10 ms", note)
    server.stop()


def get(bench):
    server = Server(bench, bench.scratch / "get")
    bench.load("preload", "--workload", "get", "--keys", 10_000, "--preload")
    results = bench.repeat(lambda _: bench.load("get", "--workload", "get", "--keys", 10_000, "--connections", 50, "--pipeline", 16))
    bench.row("native get of hot keys, 50 x 16", f"{rate(results) / 1e6:.2f} M/s", "1.5 M/s", f"p99 {percentile(results, 'p99_us'):.0f} us")
    server.stop()


def http_get(bench):
    if not bench.tool("wrk"):
        return
    server = Server(bench, bench.scratch / "httpget")
    url = f"http://127.0.0.1:{HTTP}/v1/streams/hot/records/key"
    request = urllib.request.Request(url, data=b"x" * 256, headers={"Content-Type": "application/octet-stream"}, method="POST")
    urllib.request.urlopen(request).read()
    constant = subprocess.Popen([bench.bin / "benches", "constant-200", "--port", str(CONSTANT), "--core", "0"],
                                stdout=subprocess.DEVNULL, preexec_fn=give_way)
    time.sleep(0.5)
    ours, ceiling = [], []
    for _ in range(bench.args.runs):  # side by side, in turns
        os.kill(constant.pid, signal.SIGSTOP)
        ours.append(wrk(bench, "http-get", url))
        os.kill(constant.pid, signal.SIGCONT)
        server.pause()
        ceiling.append(wrk(bench, "constant-200", f"http://127.0.0.1:{CONSTANT}/"))
        server.go_on()
    constant.kill()
    server.stop()
    ours, ceiling = statistics.median(ours), statistics.median(ceiling)
    bench.row("HTTP GET of a hot key, wrk -t1 -c64", f"{ours / 1e3:.1f} k/s", "75 % of constant 200", f"{100 * ours / ceiling:.0f} % of {ceiling / 1e3:.1f} k/s")


def http_post(bench):
    if not (bench.tool("wrk") and bench.tool("redis-server") and bench.tool("redis-benchmark")):
        return
    server = Server(bench, bench.scratch / "httppost")
    redis_dir = bench.scratch / "redis"
    redis_dir.mkdir()
    redis = subprocess.Popen(["taskset", "-c", "0", "redis-server", "--port", str(REDIS), "--bind", "127.0.0.1", "--dir", str(redis_dir),
                              "--appendonly", "yes", "--appendfsync", "always", "--save", ""], stdout=subprocess.DEVNULL, preexec_fn=give_way)
    time.sleep(1)
    ours, theirs = [], []
    for _ in range(bench.args.runs):
        redis.send_signal(signal.SIGSTOP)
        ours.append(wrk(bench, "http-post", f"http://127.0.0.1:{HTTP}/", "-s", REPO / "loadtest/wrk/post.lua"))
        redis.send_signal(signal.SIGCONT)
        server.pause()
        text = sh("taskset", "-c", "1", "redis-benchmark", "-p", REDIS, "-t", "set", "-d", 256, "-c", 64, "-n", 40_000 * bench.args.seconds,
                  "-r", 1_000_000, "--csv", preexec_fn=give_way)
        with open(bench.folder / "redis.txt", "a") as out:
            out.write(text)
        theirs.append(float(re.search(r'"SET","([0-9.]+)"', text).group(1)))
        server.go_on()
    redis.terminate()
    redis.wait()
    server.stop()
    ours, theirs = statistics.median(ours), statistics.median(theirs)
    bench.row("HTTP POST of 256 bytes, wrk -t1 -c64, durable", f"{ours / 1e3:.1f} k/s", "1.2 x Redis always", f"{ours / theirs:.2f} x {theirs / 1e3:.1f} k/s (Redis SET, 64 connections)")


def restart(bench):
    data = bench.scratch / "restart"
    keys = bench.args.restart_keys
    server = Server(bench, data, "--segments-ahead", bench.args.segments_ahead)
    bench.load("fill", "--workload", "get", "--keys", keys, "--preload")
    rss, index = server.resident_bytes(), server.metric("pinion_index_bytes")
    bench.row(f"resident memory with {keys / 1e6:.0f} M keys of 16 bytes", f"index {index / keys:.1f} B a key", "40 B a key", f"resident {rss / 1e6:.0f} MB in all")
    server.kill()  # no last checkpoint
    for checkpoint in data.glob("log-*/checkpoint-*"):
        checkpoint.write_bytes(b"")
    server = Server(bench, data)
    seconds, size = server.metric("pinion_recovery_seconds"), server.metric("pinion_recovery_bytes")
    bench.row("restart without a checkpoint", f"{size / seconds / 1e6:.0f} MB/s", "500 MB/s", f"{size / 1e6:.0f} MB in {seconds:.2f} s")
    server.stop(keep=True)

    def once(_):
        server = Server(bench, data)
        seconds = server.metric("pinion_recovery_seconds")
        server.stop(keep=True)
        return seconds
    seconds = statistics.median(bench.repeat(once))
    bench.row(f"restart with {keys / 1e6:.0f} M keys behind a checkpoint", f"{seconds:.2f} s", "3 s")


def two_shards(bench):
    """CPU per record of the shard threads, the same clients on the shared port, one shard and two in turns. All share two
    cores, so rates mean little."""
    costs = {1: [], 2: []}
    for _ in range(2 * bench.args.runs + 1):
        for shards, cores in ((1, "0"), (2, "0,1")):
            server = Server(bench, bench.scratch / f"shards{shards}", "--spin-us", 0, cores=cores, shards=shards)
            before = server.cpu_seconds()
            result = bench.load(f"shards-{shards}", "--connections", 50, "--pipeline", 16, "--rate", 100_000)
            records = result["records_per_second"] * (bench.args.seconds + 2)
            costs[shards].append((server.cpu_seconds() - before) / records * 1e9)
            server.stop()
    one, two = statistics.median(costs[1]), statistics.median(costs[2])
    spread = ", ".join(f"{shards}: {min(c):.0f} to {max(c):.0f}" for shards, c in costs.items())
    bench.row("2 shards against 1: CPU per record", f"{100 * (two / one - 1):+.0f} %", "at most +15 %",
              f"{one:.0f} -> {two:.0f} ns at 100 k/s, medians of {len(costs[1])} in turns ({spread})")


ROWS = {f.__name__: f for f in (append100, append1, get, http_get, http_post, restart, two_shards)}


def common_flags(parser):
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=5)
    parser.add_argument("--segments-ahead", type=int, default=64, help="segments prepared before appends are measured")
    parser.add_argument("--prepare-seconds", type=int, default=8, help="time for that")
    parser.add_argument("--scratch", help="directory for data, on the disk to be measured")
    parser.add_argument("--suffix", default="", help="appended to the name of the run folder")
    parser.add_argument("--no-build", action="store_true")


@contextlib.contextmanager
def host_prepared(bench):
    """Cubic for the whole host; whatever is still running afterwards is ended, and the data removed."""
    before = CONTROL.read_text().strip()
    CONTROL.write_text("cubic")
    try:
        yield
    finally:
        for server in Server.running:
            if server.process.poll() is None:
                server.kill()
        CONTROL.write_text(before)
        shutil.rmtree(bench.scratch, ignore_errors=True)


def write_down(bench, columns):
    """Append the rows to the README of the run folder, with what is needed to repeat them."""
    args = bench.args
    commit = sh("git", "rev-parse", "--short", "HEAD", cwd=REPO).strip()
    cpu = next((l.split(":")[1].strip() for l in open("/proc/cpuinfo") if l.startswith("model name")), "unknown")
    with open(bench.folder / "README.md", "a") as out:
        out.write(f"# {datetime.datetime.now().isoformat(timespec='minutes')}, commit {commit}\n\n")
        out.write(f"`python3 loadtest/{Path(sys.argv[0]).name} {' '.join(sys.argv[1:])}`\n\n{cpu}, {os.cpu_count()} cores, kernel "
                  f"{platform.release()}, server on core 0, client on core 1, cubic, medians of {args.runs} runs of {args.seconds} s.\n\n")
        out.write("| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|\n")
        for row in bench.rows:
            out.write("| " + " | ".join(row) + " |\n")
        out.write("\n")
    # Commands are kept as they are typed in a clone, wherever this one lies.
    for file in bench.folder.iterdir():
        file.write_text(file.read_text().replace(f"{REPO}/", ""))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", default=",".join(ROWS), help="comma-separated: " + ", ".join(ROWS))
    parser.add_argument("--restart-keys", type=int, default=10_000_000)
    common_flags(parser)
    args = parser.parse_args()
    unknown = [r for r in args.rows.split(",") if r not in ROWS]
    if unknown:
        parser.error(f"no such row: {', '.join(unknown)}")
    bench = Bench(args)
    with host_prepared(bench):
        for row in args.rows.split(","):
            ROWS[row](bench)
    write_down(bench, ("what", "measured", "target", "notes"))


if __name__ == "__main__":
    main()
