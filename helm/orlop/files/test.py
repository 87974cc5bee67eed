"""What `helm test` runs: every pod behind a name answers, and has ended an audit of its node."""

import socket
import sys
import time
import urllib.error
import urllib.request

PATIENCE = 150.0
"""Seconds: a first audit begins at once, and takes a few."""
SAMPLE = "orlop_last_audit_timestamp_seconds "


def problem(address: str, port: str) -> str:
    """Why the pod at an address isn't as it should be; empty: it is."""
    host = f"[{address}]" if ":" in address else address
    try:
        with urllib.request.urlopen(f"http://{host}:{port}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
    except (urllib.error.URLError, OSError) as error:
        return f"{address} doesn't answer: {error}"
    times = [float(line.removeprefix(SAMPLE)) for line in lines if line.startswith(SAMPLE)]
    return "" if times and times[0] > 0 else f"{address} has not ended an audit yet"


def main(name: str, port: str, patience: float = PATIENCE) -> int:
    end = time.monotonic() + patience
    while True:
        try:
            addresses = sorted({str(entry[4][0]) for entry in socket.getaddrinfo(name, port, proto=socket.IPPROTO_TCP)})
            problems = [found for address in addresses if (found := problem(address, port))]
        except OSError as error:
            addresses, problems = [], [f"{name} has no addresses: {error}"]
        if not problems:
            print(f"{len(addresses)} nodes are audited: {', '.join(addresses)}")
            return 0
        if time.monotonic() > end:
            print("\n".join(problems))
            return 1
        time.sleep(2)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:3]))
