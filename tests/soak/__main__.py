"""`make soak PODS=1000`: runs the churn soak on a node of its own and prints its table; exit code 1 if anything stayed or went wrong."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

from tests.e2e import toolbox
from tests.e2e.client import BUSYBOX
from tests.e2e.node import CGROUP_PARENT
from tests.images import busybox_image
from tests.soak.soak import Soak


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--pods", type=int, default=1000)
    parser.add_argument("--parallel", type=int, default=8)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--shim", choices=toolbox.SHIMS, default="2.1")
    parser.add_argument("--engine", choices=("runc", "crun"), default="runc")
    parser.add_argument("--log", type=Path, help="keeps the daemon's log here")
    options = parser.parse_args()
    if not CGROUP_PARENT:
        toolbox.prepare()
        enter = str(toolbox.REPO / "tests/e2e/enter")
        os.execv(enter, [enter, sys.executable, "-m", "tests.soak", *sys.argv[1:]])
    with tempfile.TemporaryDirectory(prefix="orlop-soak-") as folder:
        home = Path(folder)
        image = busybox_image(home / "busybox.tar", BUSYBOX)
        pair = toolbox.Pair(options.shim, options.engine)
        soak = Soak(home, pair, image, pods=options.pods, parallel=options.parallel, seed=options.seed)
        try:
            soak.run(lambda text: print(text, flush=True))
            print(soak.report())
        finally:
            if options.log:
                options.log.write_bytes(soak.daemon.log.read_bytes())
        problems = soak.problems()
    print(*problems, sep="\n")
    print("the soak failed" if problems else "nothing stayed")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
