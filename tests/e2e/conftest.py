"""Puts the end-to-end tests on a node of their own, and checks after each that uses the daemon that nothing is left there.

However pytest is started, it is carried on inside `tests/e2e/enter`; the shims and engines are fetched before, since nothing can be from
there.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest

from cri.api import admin_pb2 as admin
from deploy import image
from tests.e2e import faults, toolbox
from tests.e2e.client import BUSYBOX, Client
from tests.e2e.daemon import PAUSE, Daemon
from tests.e2e.faults import Rig
from tests.e2e.node import CGROUP_PARENT, NodeSnapshot
from tests.e2e.toolbox import Pair
from tests.images import busybox_image
from tests.uml import node as uml

HERE = Path(__file__).parent
DAEMON = pytest.StashKey[Daemon]()
TASK_HANDLER = """
[runtimes.task]
path = "{pair.shim_path}"
engine = "{pair.engine_path}"
sandbox = "task"
"""
TEST_BUDGET = 180  # seconds; a whole pod's life several times over, on a machine with two busy cores


def pytest_configure(config: pytest.Config) -> None:
    if CGROUP_PARENT:
        return
    if os.geteuid() != 0:
        raise pytest.UsageError("The end-to-end tests mount, unshare and start containers: they need root.")
    toolbox.prepare()
    for files, what, make in (("daemonset", "image of the watch", image.make), ("test_uml", "nodes in user-mode Linux", uml.prepare)):
        if wants(config.invocation_params.args, files):
            try:
                make()
            except toolbox.ToolError as error:  # their tests fail, and no other
                print(f"no {what}: {error}", file=sys.stderr, flush=True)
    if capture := config.pluginmanager.getplugin("capturemanager"):
        capture.stop_global_capturing()
    enter = str(HERE / "enter")
    os.execv(enter, [enter, sys.executable, "-m", "pytest", *config.invocation_params.args])


def wants(arguments: Sequence[str | os.PathLike[str]], name: str) -> bool:
    """Whether what tests in files of this name need has to be made: unless only others are named, since it takes its time."""
    files = [str(argument) for argument in arguments if ".py" in str(argument)]
    return not files or any(name in file for file in files)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(TEST_BUDGET))


@pytest.fixture(scope="module", params=toolbox.PAIRS, ids=str)
def pair(request: pytest.FixtureRequest) -> Pair:
    """Each of the six pairs of shim and engine."""
    chosen: Pair = request.param
    return chosen


one_pair = pytest.mark.parametrize("pair", [Pair("2.1", "crun")], indirect=True, ids=str)
"""Marks tests of what doesn't depend on shim and engine: the newest of each will do."""


@contextmanager
def clean_afterwards(*trees: Path) -> Iterator[None]:
    """Fails if anything is on the node then that isn't now: processes, mounts, namespaces, cgroups, sockets, FIFOs, leases, state."""
    before = NodeSnapshot.take(*trees)
    yield
    left = before.left()
    assert not left, f"{len(left)} left on the node:\n  " + "\n  ".join(left[:50])


@pytest.fixture
def node_is_clean() -> Iterator[None]:
    with clean_afterwards():
        yield


@pytest.fixture(scope="session")
def busybox(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive of the image that `create_container` uses by default."""
    return busybox_image(tmp_path_factory.mktemp("images") / "busybox.tar", BUSYBOX)


@pytest.fixture(scope="session")
def pause(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive of the sandbox image, for pods whose sandbox is a task; to be imported by the test."""
    archive = tmp_path_factory.mktemp("images") / "pause.tar"
    return busybox_image(archive, PAUSE, {"Entrypoint": ["/bin/sleep", "1000000"], "Cmd": []})


@pytest.fixture
def daemon(request: pytest.FixtureRequest, tmp_path: Path, pair: Pair, busybox: Path) -> Iterator[Daemon]:
    """A daemon that serves, with the busybox image; afterwards all its pods are removed, it is stopped, and the node has to be clean.

    A parameter, by `indirect=True`, is shorter budgets.
    """
    daemon = Daemon(tmp_path, pair, timeouts=getattr(request, "param", ""))
    request.node.stash[DAEMON] = daemon
    daemon.start()
    daemon.orlop("image", "import", busybox)
    with clean_afterwards(daemon.root):
        yield daemon
        daemon.client.remove_all()
        daemon.stop()
    daemon.client.close()


@pytest.fixture(scope="module")
def shared_daemon(tmp_path_factory: pytest.TempPathFactory, pair: Pair, busybox: Path, pause: Path) -> Iterator[Daemon]:
    """One daemon for a module's tests with a pair, to be had through `kubelet`. It has a second handler, `task`, and the sandbox image."""
    daemon = Daemon(tmp_path_factory.mktemp("shared"), pair, handler_settings=TASK_HANDLER.format(pair=pair))
    daemon.start()
    daemon.orlop("image", "import", busybox)
    daemon.orlop("image", "import", pause)
    with clean_afterwards(daemon.root):
        yield daemon
        daemon.stop()
    daemon.client.close()


@pytest.fixture
def kubelet(request: pytest.FixtureRequest, shared_daemon: Daemon) -> Iterator[Client]:
    """A client of the module's daemon; after the test all pods are removed, and the node has to be as it was."""
    request.node.stash[DAEMON] = shared_daemon
    with clean_afterwards(shared_daemon.root):
        yield shared_daemon.client
        shared_daemon.client.remove_all()


@pytest.fixture(scope="module")
def faulty_daemon(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, pair: Pair, busybox: Path, pause: Path
) -> Iterator[Rig]:
    """A daemon and a bystander pod for a module's tests with a pair, to be had through `rig`.

    The module may shorten TIMEOUTS, and have directories `prepared`, by a context manager that is called with the daemon.
    """
    home = tmp_path_factory.mktemp("faulty")
    daemon, gates = faults.faulty_daemon(home, pair, getattr(request.module, "TIMEOUTS", ""))
    with getattr(request.module, "prepared", nullcontext)(daemon):
        daemon.start()
        for archive in (busybox, pause):
            daemon.client.admin.ImportImage(admin.ImportImageRequest(path=str(archive)))
        rig = Rig(daemon, gates, home)
        yield rig
        rig.end()
        daemon.stop()
    daemon.client.close()


@pytest.fixture
def rig(request: pytest.FixtureRequest, faulty_daemon: Rig) -> Iterator[Rig]:
    """The module's daemon, serving; after the test all but the bystander is removed, and nothing may be left."""
    request.node.stash[DAEMON] = faulty_daemon.daemon
    yield faulty_daemon
    faulty_daemon.serve()
    faulty_daemon.tidy()
    faulty_daemon.assert_clean()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failed test shows the log of its daemon."""
    report = yield
    if report.failed and (daemon := item.stash.get(DAEMON, None)):
        report.sections.append((f"{daemon.log}", daemon.log_tail()))
    return report
