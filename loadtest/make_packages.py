#!/usr/bin/env python3
"""Debian's package list as NDJSON: real input for `pinion load` and the end-to-end tests.

    loadtest/make_packages.py packages.ndjson                 everything that apt knows (some 60,000 packages)
    loadtest/make_packages.py packages.ndjson --packages 200  the first 200 packages, sorted by name
    loadtest/make_packages.py packages.ndjson --from FILE     from a saved `apt-cache dumpavail` instead of this machine's

One line per (package, field), key = package:

    {"key": "0ad", "field": "Version", "value": "0.0.26-3"}

Lines keep apt's order: packages in the order of the list, fields in the order of the package. With --packages, packages are
sorted by name (and by version where there are several), so that the same list gives the same file.

    pinion load packages.ndjson --stream packages --key key
"""

import argparse
import io
import json
import subprocess
import sys


def paragraphs(lines):
    """Yields each package as a list of (field, value); a value's continuation lines are kept, without their first space."""
    fields = []
    for line in lines:
        line = line.rstrip("\n")
        if not line:
            if fields:
                yield fields
            fields = []
        elif line[0] in " \t":
            if fields:
                name, value = fields[-1]
                fields[-1] = (name, value + "\n" + line[1:])
        else:
            name, separator, value = line.partition(":")
            if separator:
                fields.append((name, value.strip()))
    if fields:
        yield fields


def dumpavail(path):
    if path:
        return open(path, encoding="utf-8", errors="replace")
    process = subprocess.Popen(["apt-cache", "dumpavail"], stdout=subprocess.PIPE)
    return io.TextIOWrapper(process.stdout, encoding="utf-8", errors="replace")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", help="file to write")
    parser.add_argument("--packages", type=int, metavar="N", help="only the first N packages by name")
    parser.add_argument("--from", dest="source", metavar="FILE", help="a saved `apt-cache dumpavail`")
    arguments = parser.parse_args()

    with dumpavail(arguments.source) as lines:
        packages = (fields for fields in paragraphs(lines) if dict(fields).get("Package"))
        if arguments.packages:
            packages = sorted(packages, key=lambda fields: (dict(fields)["Package"], dict(fields).get("Version", "")))
            packages = packages[: arguments.packages]
        written = count = 0
        with open(arguments.output, "w", encoding="utf-8") as output:
            for fields in packages:
                count += 1
                key = dict(fields)["Package"]
                for field, value in fields:
                    output.write(json.dumps({"key": key, "field": field, "value": value}, ensure_ascii=False) + "\n")
                    written += 1
    if not count:
        sys.exit("no packages: run `apt-get update` first, or give a saved list with --from")
    print(f"{count} packages, {written} records in {arguments.output}", file=sys.stderr)


if __name__ == "__main__":
    main()
