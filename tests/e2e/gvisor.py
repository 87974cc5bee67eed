"""gVisor without its own shim, which Debian doesn't have: runsc as an engine of containerd's shim, as Docker uses it.

Each container is a sandbox of its own, a `runsc-sandbox` and a `runsc-gofer` process, in the pod's network namespace. So runsc must not
see that the container belongs to a pod, or it would look for the pod's sandbox; and it is told to use the network as it is.
"""

from __future__ import annotations

from pathlib import Path

from tests.e2e.node import Process, processes
from tests.e2e.toolbox import Pair, runsc

_ENGINE = """\
#!/bin/sh
# Stands for runsc.
[ ! -e {home}/broken ] || {{ echo "runsc is broken" >&2; exit 1; }}
case " $* " in *" create "*)
    bundle=${{*#*--bundle }}
    sed -i s/io.kubernetes.cri.container-type/orlop.test.container-type/ "${{bundle%% *}}/config.json"
esac
exec {runsc} --network=host "$@"
"""
_HANDLER = """
[runtimes.gvisor]
path = "{shim}"
engine = "{engine}"
"""


class GVisor:
    """The engine, in the directory `home`, under the shim of `pair`."""

    def __init__(self, home: Path, pair: Pair) -> None:
        self._broken = home / "broken"
        self._engine = home / "runsc"
        self._engine.write_text(_ENGINE.format(home=home, runsc=runsc()))
        self._engine.chmod(0o755)
        self.handler = _HANDLER.format(shim=pair.shim_path, engine=self._engine)

    def breaks(self) -> None:
        """From now on the engine fails, whatever it is asked."""
        self._broken.touch()

    def mend(self) -> None:
        self._broken.unlink()


def sandboxes() -> list[Process]:
    """The processes of all sandboxes, with what they have started."""
    return [process for process in processes() if process.argv and process.argv[0].startswith(("runsc-", "/proc/self/exe", "[exe]"))]


def process_of(container: str, kind: str) -> Process:
    """The `sandbox` or `gofer` of one."""
    [found] = [process for process in sandboxes() if process.argv[0] == f"runsc-{kind}" and any(container in word for word in process.argv)]
    return found
