"""`orlop serve` as a test sees it: a process with a socket, a log, and directories of its own.

/run/orlop-e2e/<name>/    state and socket (short: a socket's path has 108 bytes); checked for leftovers, then removed
<tmp_path>/root/<name>/   the persistent root, on the machine's own disk
<tmp_path>/<name>.toml, .log, .cni/
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import grpc

from agent.aio import loopguard
from cri.api import admin_pb2 as admin
from cri.api import api_pb2 as cri
from tests.e2e.client import Client
from tests.e2e.node import CGROUP_PARENT, WITH_SYSTEMD
from tests.e2e.toolbox import REPO, Pair

STATES = Path("/run/orlop-e2e")
PAUSE = "orlop.test/pause:latest"
CNI_PLUGINS = Path("/usr/lib/cni")
START_BUDGET = 30.0
STOP_BUDGET = 30.0


class Daemon:
    """One `orlop serve`. Its first start makes the directories; the later ones find what the earlier left."""

    def __init__(
        self,
        tmp_path: Path,
        pair: Pair,
        *,
        name: str = "a",
        settings: str = 'metrics_address = ""',
        log_settings: str = 'level = "debug"',
        handler_settings: str = "",
        timeouts: str = "",
        guard: bool = not WITH_SYSTEMD,  # in user-mode Linux the CPU time of a thread means nothing
    ) -> None:
        """`settings` are further TOML lines at the top, the others those of their sections; the only handler is named like the engine.

        `timeouts` are shorter budgets, in the language of agent.timeouts. `guard`: calls that can block its event loop fail `stop`.
        """
        self.name = name
        STATES.mkdir(exist_ok=True)
        self.state = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=STATES))
        self.root = tmp_path / "root" / name
        self.socket = self.state / "orlop.sock"
        self.log = tmp_path / f"{name}.log"
        self.cni = tmp_path / f"{name}.cni"
        self.config = tmp_path / f"{name}.toml"
        self.pair = pair
        self._timeouts = timeouts
        self._guard = "1" if guard else ""
        self.client = Client(self.socket)
        self._process: subprocess.Popen[bytes] | None = None
        self.cni.mkdir()
        (self.cni / "10-e2e.conflist").write_text(json.dumps(bridge_network(name)))
        self.config.write_text(
            f"""\
socket = "{self.socket}"
state_dir = "{self.state}"
root_dir = "{self.root}"
{cgroups(name)}
sandbox_image = "{PAUSE}"
default_runtime = "{pair.engine}"
{settings}

[log]
{log_settings}

[cni]
conf_dir = "{self.cni}"
bin_dirs = ["{CNI_PLUGINS}"]

[runtimes.{pair.engine}]
path = "{pair.shim_path}"
engine = "{pair.engine_path}"
{handler_settings}
"""
        )

    @property
    def pid(self) -> int:
        assert self._process, "the daemon isn't running"
        return self._process.pid

    @property
    def runs(self) -> bool:
        """Whether it was started, and its end was not waited for yet."""
        return self._process is not None

    def ended(self) -> bool:
        """Whether its process has ended by now; `wait_gone` has still to be called."""
        assert self._process, "the daemon isn't running"
        return self._process.poll() is not None

    def start(self, *, failpoints: str = "", wait: bool = True) -> None:
        """Starts it and waits until it answers Version; `failpoints` in the language of agent.failpoints."""
        assert self._process is None, "the daemon runs already"
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "agent.cli.main", "serve", "--config", self.config],
                cwd=REPO,
                env={**os.environ, "ORLOP_FAILPOINTS": failpoints, "ORLOP_TIMEOUTS": self._timeouts, "ORLOP_LOOP_GUARD": self._guard},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        if wait:
            self.wait_serving()

    def wait_serving(self) -> None:
        """Waits until it answers Version; fails at once if it ends instead."""
        deadline = time.monotonic() + START_BUDGET
        while not self._answers():
            assert self._process, "the daemon isn't running"
            assert self._process.poll() is None, f"the daemon ended with {self._process.returncode} while starting:\n{self.log_tail()}"
            assert time.monotonic() < deadline, f"the daemon doesn't answer Version within {START_BUDGET} s:\n{self.log_tail()}"
            time.sleep(0.02)

    def _answers(self) -> bool:
        try:
            self.client.runtime.Version(cri.VersionRequest(), timeout=1)
        except grpc.RpcError:
            return False
        return True

    def kill9(self) -> None:
        """SIGKILL, as the OOM killer would; returns when the process is gone."""
        assert self._process, "the daemon isn't running"
        self._process.kill()
        self.wait_gone()

    def wait_gone(self, within: float = STOP_BUDGET) -> int:
        """Waits for an end that something else brings about (a failpoint's `crash`, a signal); returns the exit code."""
        assert self._process, "the daemon isn't running"
        code = self._process.wait(within)
        self._process = None
        return code

    def stop(self) -> None:
        """SIGTERM, upon which it has to end in order within STOP_BUDGET; pods live on. Does nothing if it doesn't run.

        Fails as well if the loop guard has caught a call in it, or in an earlier daemon with this log, that can block the event loop.
        """
        if self._process is None:
            return
        self._process.send_signal(signal.SIGTERM)
        try:
            code = self.wait_gone()
        except subprocess.TimeoutExpired:
            self.kill9()
            raise AssertionError(f"the daemon didn't end within {STOP_BUDGET} s of SIGTERM:\n{self.log_tail()}") from None
        assert code == 0, f"the daemon ended with {code} on SIGTERM:\n{self.log_tail()}"
        blocked = [line for line in self.log.read_text(errors="replace").splitlines() if loopguard.EVENT in line]
        assert not blocked, "\n".join(blocked)

    def failpoints(self, text: str | None = None) -> list[str]:
        """Switches on other failpoints, in the language of agent.failpoints. Returns those passed since it was last done."""
        answer: admin.FailpointsResponse = self.client.admin.Failpoints(admin.FailpointsRequest(configure=text))
        return list(answer.passed)

    def wait_recovered(self) -> None:
        """Waits until what it found at its start is sorted out: only then does it change anything for a kubelet."""
        self.client.stop("no such container")

    def restart(self, *, failpoints: str = "") -> None:
        self.stop()
        self.start(failpoints=failpoints)

    def orlop(self, *arguments: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Runs the `orlop` command against this daemon."""
        done = subprocess.run(
            [sys.executable, "-m", "agent.cli.main", *arguments],
            cwd=REPO,
            env={**os.environ, "ORLOP_SOCKET": str(self.socket), "ORLOP_CONFIG": str(self.config)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert not check or done.returncode == 0, f"orlop {arguments} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
        return done

    def log_tail(self, lines: int = 200) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


def cgroups(name: str) -> str:
    """Settings that keep this daemon's cgroups apart from others', as the node's driver wants them."""
    if CGROUP_PARENT.endswith(".slice"):
        pods = f"{CGROUP_PARENT}{CGROUP_PARENT.removesuffix('.slice')}-daemon_{name}.slice"
    else:
        pods = f"{CGROUP_PARENT}/pods-{name}"
    shims = f"/system.slice/orlop-e2e-{name}.service" if WITH_SYSTEMD else f"{CGROUP_PARENT}/orlop-{name}"
    driver = "systemd" if CGROUP_PARENT.endswith(".slice") else "cgroupfs"
    return f'cgroup_driver = "{driver}"\nshim_cgroup = "{shims}"\npod_cgroup = "{pods}"'


def bridge_network(name: str) -> dict[str, object]:
    """A conflist of the distribution's plugins with both families, as most nodes have; each daemon has a bridge of its own."""
    number = sum(name.encode()) % 200
    subnets = [f"10.199.{number}.0/24", f"fd00:199:{number:x}::/64"]
    bridge = {
        "type": "bridge",
        "bridge": f"orlop-{name}",
        "isGateway": True,
        "ipMasq": True,
        "ipam": {
            "type": "host-local",
            "ranges": [[{"subnet": subnet}] for subnet in subnets],
            "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
        },
    }
    portmap = {"type": "portmap", "capabilities": {"portMappings": True}}
    return {"cniVersion": "1.0.0", "name": f"e2e-{name}", "plugins": [bridge, portmap]}
