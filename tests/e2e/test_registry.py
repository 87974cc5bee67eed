"""PullImage from a real registry to a process in a container; mirrors, logins, and pulls that are cut, given up or killed."""

from __future__ import annotations

import json
import os
import subprocess
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from cri.api import api_pb2 as cri
from tests.e2e.client import Client, refused, until
from tests.e2e.conftest import DAEMON, clean_afterwards, one_pair
from tests.e2e.daemon import PAUSE, Daemon
from tests.e2e.registry import PASSWORD, USER, DockerRegistry, Line, free_port
from tests.e2e.toolbox import Pair
from tests.images import ARCHITECTURE, OCI, Blobs, add_image, busybox_image, layer_tar
from tests.unit.registry import certificates

pytestmark = [pytest.mark.e2e, one_pair]

LAYERS = [{"etc/motd": b"hello"}, {"data": b"x" * 100}]
BIG = [{"one": os.urandom(3 << 20)}, {"two": os.urandom(3 << 20)}]


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerRegistry]:
    with DockerRegistry(tmp_path_factory.mktemp("registry") / "open") as registry:
        yield registry


@pytest.fixture
def certs(tmp_path: Path) -> Path:
    return tmp_path / "certs.d"


@pytest.fixture
def daemon(request: pytest.FixtureRequest, registry: DockerRegistry, certs: Path, tmp_path: Path, pair: Pair) -> Iterator[Daemon]:
    """A daemon without images; after the test there are none again, and nothing else either."""
    daemon = Daemon(tmp_path, pair, handler_settings=f'[registry]\nconfig_path = "{certs}"\nmax_concurrent_downloads = 2')
    request.node.stash[DAEMON] = daemon
    daemon.start()
    with clean_afterwards(daemon.root):
        yield daemon
        if not daemon.runs:
            daemon.start()
        daemon.client.remove_all()
        for image in listed(daemon.client):
            daemon.client.images.RemoveImage(cri.RemoveImageRequest(image=cri.ImageSpec(image=image.id)))
        assert stored(daemon) == []
        daemon.stop()
    daemon.client.close()


def hosts(certs: Path, domain: str, text: str) -> None:
    (certs / domain).mkdir(parents=True, exist_ok=True)
    (certs / domain / "hosts.toml").write_text(text)


def pull(client: Client, name: str, **auth: str) -> str:
    request = cri.PullImageRequest(image=cri.ImageSpec(image=name), auth=cri.AuthConfig(**auth))
    answer: cri.PullImageResponse = client.images.PullImage(request)
    return answer.image_ref


def listed(client: Client) -> list[cri.Image]:
    return list(client.images.ListImages(cri.ListImagesRequest()).images)


def stored(daemon: Daemon) -> list[str]:
    """What images and their pulls have on disk."""
    names = ("content/ingest", "content/blobs/sha256", "snapshots/unpack", "snapshots/layers", "snapshots/l", "snapshots/trash")
    return [str(path) for name in names for path in (daemon.root / name).iterdir()]


def busybox_layout(folder: Path) -> Path:
    archive = busybox_image(folder / "busybox.tar", "busybox")
    with tarfile.open(archive) as tar:
        tar.extractall(folder / "layout", filter="data")
    return folder / "layout"


def test_a_container_of_a_pulled_image(daemon: Daemon, registry: DockerRegistry, tmp_path: Path) -> None:
    client = daemon.client
    top = registry.push_layout("org/busybox", busybox_layout(tmp_path), "v1")
    name, by_digest = f"{registry.address}/org/busybox:v1", f"{registry.address}/org/busybox@{top['digest']}"
    ref = pull(client, name)
    (image,) = listed(client)
    assert image.id == ref
    assert list(image.repo_tags) == [name]
    assert list(image.repo_digests) == [by_digest]
    assert pull(client, by_digest) == pull(client, name) == ref
    for known in (name, by_digest, ref):
        assert client.images.ImageStatus(cri.ImageStatusRequest(image=cri.ImageSpec(image=known))).image.id == ref
    pod = client.run_pod()
    container = client.run_container(pod, ("sh", "-c", "echo it runs; sleep 1000"), image=name)
    assert client.exec_sync(container, "cat", "/etc/passwd").stdout.startswith(b"root:x:0:0")
    status = client.status(container)
    assert (status.image_ref, status.image_id) == (ref, ref)


def test_the_sandbox_image_is_pulled_when_it_is_needed(daemon: Daemon, registry: DockerRegistry, certs: Path, tmp_path: Path) -> None:
    """Once, by the first of several pods; and not for pods whose sandbox is no task."""
    domain, _, path = PAUSE.partition(":")[0].partition("/")
    archive = busybox_image(tmp_path / "pause.tar", PAUSE, {"Entrypoint": ["/bin/sleep", "1000000"], "Cmd": []})
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path / "pause", filter="data")
    registry.push_layout(path, tmp_path / "pause", "latest")
    hosts(certs, domain, f'server = "http://{registry.address}"')
    daemon.client.run_pod()
    assert listed(daemon.client) == []
    shared = cri.NamespaceOption(pid=cri.POD)
    with ThreadPoolExecutor() as pool:
        pods = list(pool.map(lambda _: daemon.client.run_pod(namespaces=shared), range(3)))
    assert {daemon.client.pod_status(pod).state for pod in pods} == {cri.SANDBOX_READY}
    (image,) = listed(daemon.client)
    assert (list(image.repo_tags), image.pinned) == ([PAUSE], True)
    assert daemon.log.read_text().count("image pulled") == 1


def test_an_index_by_platform(daemon: Daemon, registry: DockerRegistry) -> None:
    blobs = Blobs()
    ours: dict[str, Any] = {**add_image(blobs, [*map(layer_tar, LAYERS)]), "platform": {"os": "linux", "architecture": ARCHITECTURE}}
    theirs = {**add_image(blobs, [layer_tar({"x": b""})]), "platform": {"os": "linux", "architecture": "vax"}}
    index = {"schemaVersion": 2, "mediaType": f"{OCI}.index.v1+json", "manifests": [theirs, ours]}
    top = blobs.add_json(index, f"{OCI}.index.v1+json")
    registry.push("multi", blobs, top, "v1")
    ref = pull(daemon.client, f"{registry.address}/multi:v1")
    manifest = json.loads(blobs.files["blobs/" + ours["digest"].replace(":", "/")])
    assert ref == manifest["config"]["digest"]
    (image,) = listed(daemon.client)
    assert list(image.repo_digests) == [f"{registry.address}/multi@{top['digest']}"]
    registry.push("multi", blobs, blobs.add_json({**index, "manifests": [theirs]}, f"{OCI}.index.v1+json"), "v2")
    with refused(grpc.StatusCode.NOT_FOUND, f"image {registry.address}/multi:v2 is not built for linux/{ARCHITECTURE}, but for linux/vax"):
        pull(daemon.client, f"{registry.address}/multi:v2")


def test_a_mirror(daemon: Daemon, registry: DockerRegistry, certs: Path) -> None:
    registry.push_image("library/mirrored", LAYERS, "v1")
    hosts(certs, "_default", f'server = "http://127.0.0.1:1"\n[host."http://{registry.address}"]\ncapabilities = ["pull", "resolve"]')
    pull(daemon.client, "mirrored:v1")
    (image,) = listed(daemon.client)
    assert list(image.repo_tags) == ["docker.io/library/mirrored:v1"]
    hosts(certs, "docker.io", "mirror = true")  # read at each pull
    with refused(grpc.StatusCode.INVALID_ARGUMENT, f"{certs}/docker.io/hosts.toml: mirror = True: there is no such key"):
        pull(daemon.client, "mirrored:v1")


def test_a_login(daemon: Daemon, tmp_path: Path) -> None:
    with DockerRegistry(tmp_path / "closed", login=True) as registry:
        registry.push_image("private", LAYERS, "v1")
        name = f"{registry.address}/private:v1"
        for wrong in ({}, {"username": USER, "password": "other"}, {"username": USER, "password": PASSWORD, "server_address": "quay.io"}):
            with refused(grpc.StatusCode.PERMISSION_DENIED, registry.address):
                pull(daemon.client, name, **wrong)
            assert stored(daemon) == []
        ref = pull(daemon.client, name, username=USER, password=PASSWORD)
        with refused(grpc.StatusCode.PERMISSION_DENIED):  # that it is here gives nobody a right to it
            pull(daemon.client, name)
        shown = daemon.orlop("image", "pull", name, "--creds", f"{USER}:{PASSWORD}", "-o", "json").stdout
        assert json.loads(shown) == [{"image": name, "id": ref}]
        auth = "cHVsbGVyOnMzY3JldA=="  # USER:PASSWORD
        assert pull(daemon.client, name, auth=auth, server_address=f"http://{registry.address}") == ref
    for secret in (PASSWORD, auth):
        assert secret not in daemon.log.read_text()


def test_tls(daemon: Daemon, certs: Path, tmp_path: Path) -> None:
    """By an authority of the operator's; and as in the example of containerd's docs/hosts.md, with http:// and skip_verify."""
    for name, issuer in (("ca", ""), ("server", "ca"), ("other", "")):
        certificates.make(tmp_path, name, issuer=issuer)
    with DockerRegistry(tmp_path / "tls", certificate=tmp_path / "server.pem") as registry:
        registry.push_image("app", LAYERS, "v1")
        https, http = f'server = "https://{registry.address}"\n', f'server = "http://{registry.address}"\n'
        for wrong in (https, https + f'ca = "{tmp_path}/other.pem"', http + f'ca = "{tmp_path}/other.pem"'):
            hosts(certs, "reg.test", wrong)
            with refused(grpc.StatusCode.FAILED_PRECONDITION, f"https://{registry.address}: its certificate is not trusted"):
                pull(daemon.client, "reg.test/app:v1")
        hosts(certs, "reg.test", https + 'ca = "missing.pem"')
        with refused(grpc.StatusCode.INVALID_ARGUMENT, f"{certs}/reg.test/hosts.toml: ca: {certs}/reg.test/missing.pem: it can't be read"):
            pull(daemon.client, "reg.test/app:v1")
        for right in (https + f'ca = "{tmp_path}/ca.pem"', http + "skip_verify = true"):
            hosts(certs, "reg.test", right)
            pull(daemon.client, "reg.test/app:v1")


def test_a_proxy(daemon: Daemon, registry: DockerRegistry, certs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The daemon's environment has it. A registry takes requests in a proxy's form as well, so that it can stand in for one."""
    registry.push_image("app", LAYERS, "v1")
    hosts(certs, "reg.test", 'server = "http://10.9.9.9:5000"\ndial_timeout = "100ms"')
    with Line(registry.address) as line:
        for exceptions, refusal in (("192.168.0.0/16", ""), ("10.0.0.0/8", "http://10.9.9.9:5000 can't be reached")):
            with monkeypatch.context() as environment:
                environment.setenv("HTTP_PROXY", f"http://{line.address}")
                environment.setenv("NO_PROXY", exceptions)
                daemon.restart()
            line.connections = 0
            if not refusal:
                pull(daemon.client, "reg.test/app:v1")
                assert line.connections
            else:
                with refused(grpc.StatusCode.UNKNOWN, "RegistryUnavailable", refusal):
                    pull(daemon.client, "reg.test/app:v1")
                assert not line.connections
    (image,) = listed(daemon.client)
    assert list(image.repo_tags) == ["reg.test/app:v1"]


def test_a_registry_that_is_down(daemon: Daemon, certs: Path) -> None:
    """The kubelet knows it by how the message begins, which of all codes it sees as it is with UNKNOWN alone."""
    hosts(certs, "reg.test", f'server = "http://127.0.0.1:{free_port()}"')
    with pytest.raises(grpc.RpcError) as failure:
        pull(daemon.client, "reg.test/app:v1")
    assert failure.value.code() is grpc.StatusCode.UNKNOWN
    assert (failure.value.details() or "").startswith("RegistryUnavailable: http://127.0.0.1:")
    assert stored(daemon) == []


def test_what_is_not_there(daemon: Daemon, registry: DockerRegistry) -> None:
    with refused(grpc.StatusCode.NOT_FOUND, "has no manifest", "manifest unknown"):
        pull(daemon.client, f"{registry.address}/nothing@sha256:{'0' * 64}")
    with refused(grpc.StatusCode.NOT_FOUND, f"has no image {registry.address}/nothing:v1"):
        pull(daemon.client, f"{registry.address}/nothing:v1")
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "lower case"):
        pull(daemon.client, "Nothing")
    assert stored(daemon) == []


def test_a_download_that_is_cut_goes_on(daemon: Daemon, registry: DockerRegistry, certs: Path) -> None:
    registry.push_image("big", BIG, "v1")
    with Line(registry.address) as line:
        line.cut_after = 2 << 20
        hosts(certs, "reg.test", f'server = "http://{line.address}"')
        pull(daemon.client, "reg.test/big:v1")
        assert line.connections >= 3  # two were cut
    assert "a download goes on" in daemon.log.read_text()


def held_pull(daemon: Daemon, line: Line, name: str) -> Any:
    """A PullImage under way, whose layers don't come any more."""
    line.block_after = 1 << 20
    call = daemon.client.channel.unary_unary(
        "/runtime.v1.ImageService/PullImage",
        request_serializer=cri.PullImageRequest.SerializeToString,
        response_deserializer=cri.PullImageResponse.FromString,
    )
    future = call.future(cri.PullImageRequest(image=cri.ImageSpec(image=name)))
    until(lambda: list((daemon.root / "content/ingest").iterdir()), what="layers are being downloaded")
    return future


def test_a_pull_that_is_given_up_leaves_nothing(daemon: Daemon, registry: DockerRegistry, certs: Path) -> None:
    registry.push_image("big", BIG, "v1")
    with Line(registry.address) as line:
        hosts(certs, "reg.test", f'server = "http://{line.address}"')
        first = held_pull(daemon, line, "reg.test/big:v1")
        second = held_pull(daemon, line, "reg.test/big:v1")
        first.cancel()
        with pytest.raises(grpc.FutureTimeoutError):
            second.result(0.5)
        assert stored(daemon)
        second.cancel()
        until(lambda: not stored(daemon) and not daemon.client.ledger(), what="nothing of the pull is left")
        line.block_after = None
        pull(daemon.client, "reg.test/big:v1")


def test_a_daemon_that_stops_or_dies_leaves_nothing_of_a_pull(daemon: Daemon, registry: DockerRegistry, certs: Path) -> None:
    registry.push_image("big", BIG, "v1")
    with Line(registry.address) as line:
        hosts(certs, "reg.test", f'server = "http://{line.address}"')
        stopped = held_pull(daemon, line, "reg.test/big:v1")
        daemon.stop()
        with refused(grpc.StatusCode.UNAVAILABLE, "the agent stops"):
            stopped.result()
        assert stored(daemon) == []
        daemon.start()
        held_pull(daemon, line, "reg.test/big:v1")
        daemon.kill9()
        assert stored(daemon)
        daemon.start()
        daemon.wait_recovered()
        until(lambda: not stored(daemon) and not daemon.client.ledger(), what="nothing of the pull is left")
        line.block_after = None
        pull(daemon.client, "reg.test/big:v1")


def test_a_full_disk_in_the_middle_of_a_layer(daemon: Daemon, registry: DockerRegistry) -> None:
    """Nothing is left of the pull, what was there stays, and with room for it the same pull works."""
    registry.push_image("small", LAYERS, "v1")
    registry.push_image("big", BIG, "v1")
    registry.push_image("unpacked", [{"zeros": bytes(10 << 20)}], "v1")  # arrives, and only then is too large
    client = daemon.client
    daemon.stop()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=5m", "full", daemon.root], check=True)
    try:
        daemon.start()
        ref = pull(client, f"{registry.address}/small:v1")
        before = stored(daemon)
        for name in ("big", "unpacked"):
            with refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "disk", "full"):
                pull(client, f"{registry.address}/{name}:v1")
            assert stored(daemon) == before
        assert client.ledger() == []
        assert [image.id for image in listed(client)] == [ref]
        subprocess.run(["mount", "-o", "remount,size=50m", daemon.root], check=True)
        pull(client, f"{registry.address}/big:v1")
        daemon.stop()
    finally:
        subprocess.run(["umount", "--lazy", daemon.root], check=True)


def test_a_pull_that_the_disk_had_not_seen_when_the_machine_stopped(daemon: Daemon, registry: DockerRegistry, tmp_path: Path) -> None:
    """It is pulled again; what was imported is there, since nobody else may have it. And a daemon that dies alone loses nothing."""
    registry.push_image("app", LAYERS, "v1")
    daemon.orlop("image", "import", busybox_image(tmp_path / "busybox.tar", "orlop.test/busybox:1"))
    name = f"{registry.address}/app:v1"
    ref = pull(daemon.client, name)
    daemon.kill9()
    daemon.start()
    assert len(listed(daemon.client)) == 2
    daemon.kill9()
    (tmp_path / "boot_id").write_text("another\n")
    subprocess.run(["mount", "--bind", tmp_path / "boot_id", "/proc/sys/kernel/random/boot_id"], check=True)
    try:
        daemon.start()
        (image,) = listed(daemon.client)
        assert list(image.repo_tags) == ["orlop.test/busybox:1"]
        assert "the machine stopped before it was on disk" in daemon.log.read_text()
        assert pull(daemon.client, name) == ref
        daemon.stop()
    finally:
        subprocess.run(["umount", "/proc/sys/kernel/random/boot_id"], check=True)
