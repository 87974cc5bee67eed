"""An ExecSync whose daemon dies: its process and FIFOs are the ledger's, so the next daemon ends them."""

from __future__ import annotations

import threading

import grpc
import pytest

from tests.e2e.client import until
from tests.e2e.daemon import Daemon
from tests.e2e.node import processes

pytestmark = pytest.mark.e2e


def running(*command: str) -> bool:
    return any(process.argv == command for process in processes())


def test_the_process_of_an_exec_ends_with_the_daemon_that_asked_for_it(daemon: Daemon) -> None:
    container = daemon.client.run_container(daemon.client.run_pod())

    def exec_for_ever() -> None:
        with pytest.raises(grpc.RpcError):
            daemon.client.exec_sync(container, "sleep", "7777")

    asking = threading.Thread(target=exec_for_ever)
    asking.start()
    until(lambda: running("sleep", "7777"), what="the command runs")
    daemon.kill9()
    asking.join()
    assert running("sleep", "7777"), "it is the shim's child: the daemon's death alone doesn't end it"
    daemon.start()
    until(lambda: not running("sleep", "7777"), what="the next daemon has ended it")
    assert daemon.client.exec_sync(container, "echo", "on").stdout == b"on\n"
