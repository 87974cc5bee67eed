"""Layers that only an image volume needs, over a restart of the daemon; apart from test_image_volumes.py, whose tests share one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.client import BUSYBOX, until
from tests.e2e.conftest import one_pair
from tests.e2e.daemon import Daemon
from tests.e2e.test_image_volumes import DATA, FLAT, image_archive, image_status, remove_image, volume

pytestmark = [pytest.mark.e2e, one_pair]


def test_an_image_in_use_stays_until_its_container_goes(daemon: Daemon, tmp_path: Path) -> None:
    """Removed between create and start, with the container's own image; the next daemon knows as well what is in use."""
    kubelet = daemon.client
    layers = daemon.root / "snapshots/layers"
    daemon.orlop("image", "import", image_archive(tmp_path))
    pod = kubelet.run_pod()
    container = kubelet.create_container(pod, mounts=[volume(DATA)])
    for name in (DATA, FLAT, BUSYBOX):
        remove_image(kubelet, name)
    assert not image_status(kubelet, DATA).id
    daemon.restart()
    daemon.wait_recovered()
    assert len(list(layers.iterdir())) == 1 + 3
    kubelet.start(container)
    assert kubelet.exec_sync(container, "cat", "/vol/etc/both").stdout == b"new"
    kubelet.stop(container)
    kubelet.remove(container)
    until(lambda: not list(layers.iterdir()), what="the layers have gone with the container")
