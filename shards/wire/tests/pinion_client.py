"""A client of pinion's native protocol, written from PROTOCOL.md; standard library only.

    c = Client("127.0.0.1", 7600)
    c.append("s", [record(b"k", b"payload")])
    print(c.get("s", b"k").payload)

As a program, `python3 pinion_client.py HOST PORT [TOKEN]` appends, reads back, and fails on any mismatch.
"""
import collections, os, socket, struct, sys

HELLO, APPEND, GET, HISTORY, SCAN, TAIL, PING, TOPOLOGY, STREAMS = range(1, 10)
CONTENT_TYPES = ["application/octet-stream", "application/json", "text/plain", "application/x-ndjson"]
Record = collections.namedtuple("Record", "log version lsn timestamp_us tombstone content_type key payload")
Appended = collections.namedtuple("Appended", "durable parts versions")  # parts: (log, records, first_lsn, durable_lsn)


class Refused(Exception):
    def __init__(self, code, retry_after_ms, message):
        super().__init__(f"{message} (code {code})")
        self.code, self.retry_after_ms = code, retry_after_ms


def frame(op, request_id, body=b""):
    return struct.pack("<IBBHQ", 16 + len(body), op, 0, 0, request_id) + body


def record(key, payload=b"", content_type=CONTENT_TYPES[0], tombstone=False, if_version=None, if_new=False):
    """The bytes of one record of an append."""
    flags = (1 if tombstone else 0) | (2 if if_version is not None else 0) | (4 if if_new else 0)
    known = content_type in CONTENT_TYPES
    out = struct.pack("<HBBI", len(key), CONTENT_TYPES.index(content_type) if known else 255, flags, len(payload))
    if if_version is not None:
        out += struct.pack("<I", if_version)
    if not known:
        out += bytes([len(content_type)]) + content_type.encode()
    return out + key + payload


def append_body(stream, records, durable=True, versions=True, producer=None):
    """`records` from record(); `producer` is (16 bytes, sequence) or None."""
    stream = stream.encode()
    flags = (1 if versions else 0) | (2 if producer else 0)
    out = struct.pack("<BBHI", 0 if durable else 1, flags, len(stream), len(records))
    if producer:
        out += producer[0] + struct.pack("<Q", producer[1])
    return out + stream + b"".join(records)


def named_body(stream, name, *numbers):
    """Get, history, scan, tail: two lengths, the numbers, the stream, the key or cursor."""
    stream = stream.encode()
    return struct.pack(f"<HH{len(numbers)}I", len(stream), len(name), *numbers) + stream + name


def read_record(body, at):
    log, version, lsn, timestamp, payload_len, key_len, ct, flags = struct.unpack_from("<IIQQIHBB", body, at)
    at += 32
    text_len = body[at] if ct == 255 else 0
    content_type = body[at + 1:at + 1 + text_len].decode() if ct == 255 else CONTENT_TYPES[ct]
    at += 1 + text_len if ct == 255 else 0
    key, payload = body[at:at + key_len], body[at + key_len:at + key_len + payload_len]
    return Record(log, version, lsn, timestamp, bool(flags & 1), content_type, key, payload), at + key_len + payload_len


class Client:
    def __init__(self, host, port, token=b"", timeout=30):
        self.socket = socket.create_connection((host, port), timeout)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.stream, self.last_id, self.mark = self.socket.makefile("rb"), 0, None
        self.topology = self.call(HELLO, struct.pack("<HH", 1, len(token)) + token)

    def read_exactly(self, count):
        out = self.stream.read(count)
        if len(out) < count:
            raise ConnectionError("the server closed the connection")
        return out

    def call(self, op, body=b""):
        """Sends a request and returns the reply's body behind the mark, which stays in self.mark."""
        self.last_id += 1
        self.socket.sendall(frame(op, self.last_id, body))
        size, reply_op, _, code, request_id = struct.unpack("<IBBHQ", self.read_exactly(16))
        body = self.read_exactly(size - 16)
        self.mark, body = struct.unpack_from("<QII", body), body[16:]
        if code:
            retry, length = struct.unpack_from("<IH", body)
            raise Refused(code, None if retry == 0xFFFFFFFF else retry, body[6:6 + length].decode())
        assert (reply_op, request_id) == (op | 128, self.last_id), "reply to something else"
        return body

    def append(self, stream, records, **options):
        body = self.call(APPEND, append_body(stream, records, **options))
        durability, _, part_count, version_count = struct.unpack_from("<BBHI", body)
        parts = [struct.unpack_from("<IIQQ", body, 8 + 24 * i) for i in range(part_count)]
        return Appended(durability == 0, parts, list(struct.unpack_from(f"<{version_count}I", body, 8 + 24 * part_count)))

    def get(self, stream, key):
        return read_record(self.call(GET, named_body(stream, key)), 0)[0]

    def page(self, op, stream, name, *numbers):
        """Records and the cursor behind them."""
        body = self.call(op, named_body(stream, name, *numbers))
        (count,), at, records = struct.unpack_from("<I", body), 4, []
        for _ in range(count):
            one, at = read_record(body, at)
            records.append(one)
        return records, body[at + 2:at + 2 + struct.unpack_from("<H", body, at)[0]]

    def history(self, stream, key, before=0, limit=100):
        return self.page(HISTORY, stream, key, before, limit)[0]

    def scan(self, stream, cursor=b"", limit=100):
        return self.page(SCAN, stream, cursor, limit)

    def ping(self):
        return self.call(PING)


def main(host, port, token=""):
    c = Client(host, int(port), token.encode())
    assert c.ping() == b"", "ping carries nothing"
    stream, keys = f"python.{os.urandom(6).hex()}", [b"key-%d" % i for i in range(50)]
    for version in (1, 2, 3):
        done = c.append(stream, [record(k, b"%s at %d" % (k, version), "text/plain") for k in keys])
        assert done.durable and done.versions == [version] * 50 and sum(p[1] for p in done.parts) == 50, done
    for key in keys:
        newest, older = c.get(stream, key), c.history(stream, key)
        assert (newest.version, newest.payload, newest.content_type) == (3, key + b" at 3", "text/plain"), newest
        assert [(r.version, r.payload) for r in older] == [(v, b"%s at %d" % (key, v)) for v in (3, 2, 1)], older
    seen, (page, cursor) = [], c.scan(stream, b"", 7)
    while page:
        seen += page
        page, cursor = c.scan(stream, cursor, 7)
    assert sorted((r.key, r.version) for r in seen) == sorted((k, v) for k in keys for v in (1, 2, 3)), len(seen)
    try:
        c.append(stream, [record(keys[0], b"no", if_new=True)])
        raise AssertionError("a key that is there was appended as new")
    except Refused as refused:
        assert refused.code == 5, refused
    producer = (os.urandom(16), 1)
    answers = [c.append(stream, [record(b"once", b"x")], producer=producer).versions for _ in range(2)]
    assert answers == [[1], [1]] and len(c.history(stream, b"once")) == 1, answers
    print(f"ok: {len(seen)} records of {stream} appended, read back, in history and in scan; mark {c.mark}")


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit("usage: python3 pinion_client.py HOST PORT [TOKEN]")
    main(*sys.argv[1:])
