"""Debian's docker-registry on the loopback interface, a pusher of a few lines, and a line that breaks.

The registry is a stranger to the agent: distribution 2.8, with its own ideas of HEAD, Range, redirects and authentication.
"""

from __future__ import annotations

import json
import socket
import ssl
import subprocess
import threading
import time
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.images import Blobs, Entries, add_image, layer_tar

BINARY = Path("/usr/bin/docker-registry")
USER, PASSWORD = "puller", "s3cret"
# bcrypt, which is all that the registry takes, with the least cost: crypt.crypt(PASSWORD, "$2b$04$...")
HTPASSWD = f"{USER}:$2y$04$abcdefghijklmnopqrstuuLZYjhNQAOdpbzt4WxWlUHjv1wsyH5DG\n"
START_BUDGET = 15.0


class DockerRegistry:
    """`with DockerRegistry(folder) as registry`; images are those of `registry.address`, "127.0.0.1:<port>"."""

    def __init__(self, folder: Path, *, login: bool = False, certificate: Path | None = None) -> None:
        """`certificate`: it speaks TLS with this; the key is beside it, as `tests.unit.registry.certificates` makes it."""
        self.folder = folder
        self.address = f"127.0.0.1:{free_port()}"
        self._scheme = "https" if certificate else "http"
        self._headers = {"Authorization": f"Basic {b64encode(f'{USER}:{PASSWORD}'.encode()).decode()}"} if login else {}
        settings: dict[str, Any] = {
            "version": 0.1,
            "log": {"level": "debug"},
            "storage": {"filesystem": {"rootdirectory": str(folder / "storage")}},
            "http": {"addr": self.address},
        }
        folder.mkdir()
        if certificate:
            settings["http"]["tls"] = {"certificate": str(certificate), "key": str(certificate.with_suffix(".key"))}
        if login:
            (folder / "htpasswd").write_text(HTPASSWD)
            settings["auth"] = {"htpasswd": {"realm": "test", "path": str(folder / "htpasswd")}}
        (folder / "config.yml").write_text(json.dumps(settings))  # JSON is YAML

    def __enter__(self) -> DockerRegistry:
        with (self.folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [BINARY, "serve", self.folder / "config.yml"], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        deadline = time.monotonic() + START_BUDGET
        while not self._serves():
            assert self._process.poll() is None, (self.folder / "log").read_text()
            assert time.monotonic() < deadline, f"the registry doesn't serve within {START_BUDGET} s"
            time.sleep(0.02)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(START_BUDGET)

    def _serves(self) -> bool:
        try:
            self._send("GET", "")
        except (urllib.error.URLError, ConnectionError):
            return False
        return True

    def push_image(self, repository: str, layers: Sequence[Entries], *tags: str, config: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Build an image and push it; returns its manifest's descriptor."""
        blobs = Blobs()
        top = add_image(blobs, [*map(layer_tar, layers)], config)
        self.push(repository, blobs, top, *tags)
        return top

    def push_layout(self, repository: str, layout: Path, *tags: str) -> dict[str, Any]:
        """Push the only image of an OCI layout in a directory."""
        files = {str(path.relative_to(layout)): path.read_bytes() for path in layout.rglob("*") if path.is_file()}
        (top,) = json.loads(files["index.json"])["manifests"]
        self.push(repository, Blobs(files), top, *tags)
        return dict(top)

    def push(self, repository: str, blobs: Blobs, top: Mapping[str, Any], *tags: str) -> None:
        """Push a manifest or an index and all that it refers to."""
        data = blobs.files["blobs/" + top["digest"].replace(":", "/")]
        document = json.loads(data)
        for inner in document.get("manifests", []):
            self.push(repository, blobs, inner)
        for blob in [document["config"], *document["layers"]] if "config" in document else []:
            place = self._send("POST", f"{repository}/blobs/uploads/", b"")["Location"]
            content = blobs.files["blobs/" + blob["digest"].replace(":", "/")]
            self._send("PUT", f"{place}&digest={blob['digest']}", content, "application/octet-stream")
        for reference in tags or [top["digest"]]:
            self._send("PUT", f"{repository}/manifests/{reference}", data, top["mediaType"])

    def _send(self, method: str, path: str, body: bytes | None = None, media_type: str = "") -> Mapping[str, str]:
        url = path if "://" in path else f"{self._scheme}://{self.address}/v2/{path}"
        headers = {**self._headers, **({"Content-Type": media_type} if media_type else {})}
        anybody = ssl.create_default_context()
        anybody.check_hostname, anybody.verify_mode = False, ssl.CERT_NONE
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=anybody))
        with opener.open(urllib.request.Request(url, body, headers, method=method), timeout=30) as answer:
            return dict(answer.headers)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
    return port


class Line:
    """A way to a server that can be cut or blocked. `with Line(target) as line`; its near end is `line.address`."""

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.cut_after: int | None = None
        """Bytes from the server after which a connection is closed."""
        self.block_after: int | None = None
        """Bytes from the server after which a connection passes nothing on."""
        self.connections = 0
        self._ends: list[socket.socket] = []
        self._copying: list[threading.Thread] = []

    def __enter__(self) -> Line:
        self._accepting = threading.Thread(target=self._accept)
        self._accepting.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        for end in self._ends:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        self._accepting.join()
        for thread in self._copying:
            thread.join()
        for end in (self._listener, *self._ends):
            end.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(self._target)
                self.connections += 1
                self._ends += [near, far]
                for arguments in ((near, far, False), (far, near, True)):
                    self._copying.append(threading.Thread(target=self._copy, args=arguments))
                    self._copying[-1].start()

    def _copy(self, source: socket.socket, target: socket.socket, from_server: bool) -> None:
        passed = 0
        with suppress(OSError):
            while data := source.recv(1 << 16):
                passed += len(data)
                if from_server and self.block_after is not None and passed > self.block_after:
                    continue
                target.sendall(data)
                if from_server and self.cut_after is not None and passed > self.cut_after:
                    break
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
