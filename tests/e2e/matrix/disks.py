"""Disks that are small, and fill up or fail when a test wants it: for `test_disk.py`."""

from __future__ import annotations

import errno
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from io import RawIOBase
from pathlib import Path

SIZE = 48 << 20  # bytes; the images that tests use, and a store
STATE_SIZE = "16m"
BLOCK = 4096  # bytes

# No device mapper and no fault injection in every kernel that tests run on: the device is a file that becomes immutable. Without a
# journal ext4 goes on when it can be written again; with one it would have to be mounted anew.


@contextmanager
def small_disk(image: Path, at: Path) -> Iterator[None]:
    """An ext4 on a loop device of `image`, mounted there."""
    with image.open("wb") as file:
        file.truncate(SIZE)
    run("mkfs.ext4", "-q", "-O", "^has_journal", "-m", "0", str(image))
    at.mkdir(parents=True)
    run("mount", "-o", "loop,errors=continue", str(image), str(at))
    try:
        yield
    finally:
        run("umount", str(at))


@contextmanager
def small_tmpfs(at: Path) -> Iterator[None]:
    run("mount", "-t", "tmpfs", "-o", f"size={STATE_SIZE},mode=711", "tmpfs", str(at))
    try:
        yield
    finally:
        run("umount", str(at))


@contextmanager
def full(at: Path) -> Iterator[None]:
    """Inside, no block of that file system is free."""
    filler = at / "filler"
    try:
        with filler.open("wb", buffering=0) as file:
            fill(file)
        yield
    finally:
        filler.unlink()


def fill(file: RawIOBase) -> None:
    while True:
        try:
            file.write(bytes(BLOCK))
        except OSError as error:
            if error.errno == errno.ENOSPC:
                return
            raise


@contextmanager
def failing(image: Path, at: Path) -> Iterator[None]:
    """Inside, nothing can be written to the disk that is on `image`, and mounted there: EIO."""
    run("chattr", "+i", str(image))
    try:
        yield
    finally:
        run("chattr", "-i", str(image))
        # overlayfs mounts nothing `volatile` on a file system with a write error that nobody was told of; so an operator, too, has to
        # do this once the disk is well again. It tells of that error.
        subprocess.run(["sync", "--file-system", at], check=False, capture_output=True)


def run(*command: str) -> None:
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
