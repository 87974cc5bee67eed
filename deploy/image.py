"""`make image`: the container image of `orlop watch` as `build/orlop-watch-VERSION.tar`, for the chart in `helm/orlop`.

It needs apt, dpkg-deb, git and the registries of both languages, but no root and no container engine. The same sources and packages
give the same digest. `deploy/Containerfile` gives the same content to those who have an engine.
"""

from __future__ import annotations

import sys
import tempfile
import time
import tomllib
from pathlib import Path

from deploy import oci, rootfs
from tests.e2e.toolbox import REPO, ToolError

NAME = "localhost/orlop-watch"
"""As engines call what was pulled from nowhere."""
CONFIG = {
    # Not a user without rights, though it would look better: the CRI sockets of runtimes, and what they keep in /run, are root's
    # alone, and to connect to a socket one has to be its owner or have CAP_DAC_OVERRIDE, which can do more than to own nothing else.
    # What root may do here is what the pod's `capabilities` leave it.
    "User": "0:0",
    "Env": ["PATH=/usr/local/bin:/usr/sbin:/usr/bin", "LANG=C.UTF-8"],
    "Entrypoint": ["/usr/local/bin/orlop"],
    "Cmd": ["watch"],
    "WorkingDir": "/",
    "StopSignal": "SIGTERM",
}


def version() -> str:
    """The project's, which is the chart's and the image's too."""
    return str(tomllib.loads((REPO / "pyproject.toml").read_text())["project"]["version"])


def built() -> Path:
    """Where `make image` puts it."""
    return REPO / "build" / f"orlop-watch-{version()}.tar"


def build(archive: Path) -> str:
    """Make the image; returns its digest. `archive` appears when it is complete.

    Raises:
        ToolError: something can't be fetched or run.
    """
    mtime = rootfs.last_change()
    archive.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=archive.parent, prefix=".image-") as work:
        trees = [Path(work, name) for name in ("debian", "dependencies", "project")]
        for tree in trees:
            tree.mkdir()
        packages = rootfs.debian(trees[0])
        rootfs.dependencies(trees[1])
        rootfs.project(trees[2], mtime)
        rootfs.compile_all(trees[0], *trees)
        labels = _labels(mtime, packages)
        # What changes least is the lowest layer: a new version of the project is one small layer to pull.
        layers = [oci.write_layer(tree, Path(work), mtime) for tree in trees]
        for tree, layer in zip(trees, layers, strict=True):
            print(f"{tree.name:14}{layer.blob.size / 1e6:8.1f} MB")
        draft = Path(work, archive.name)
        digest = oci.write_archive(layers, {**CONFIG, "Labels": labels}, labels, f"{NAME}:{version()}", draft)
        draft.rename(archive)
    return digest


def _labels(mtime: int, packages: list[str]) -> dict[str, str]:
    """The specification's annotations (image-spec, annotations.md)."""
    values = {
        "title": "orlop-watch",
        "description": "Finds what container runtimes leak on a node, and tells it by metrics and log",
        "version": version(),
        "revision": rootfs.revision(),
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(mtime)),
        "licenses": "Apache-2.0",
    }
    labels = {f"org.opencontainers.image.{name}": value for name, value in values.items() if value}
    return {**labels, "orlop.debian.packages": " ".join(packages)}


def make() -> None:
    """Make it where it belongs, and print what it is.

    Raises:
        ToolError: as `build`.
    """
    digest = build(built())
    print(f"{NAME}:{version()}  {digest}  {built().stat().st_size / 1e6:.1f} MB  {built().relative_to(REPO)}")


def main() -> int:
    try:
        make()
    except ToolError as error:
        print(f"image: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
