"""The root file system of the nodes in user-mode Linux: Debian with systemd as process 1, slimmed to what boots in two seconds.

It is of the host's own release, so that the Python of `.venv`, which the guest sees through hostfs, finds the libraries that it was
linked with. `guest/` holds what is put on top. Kept under a hash of what it is made from, as the kernel is. Called by `tests.uml.node`.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
import tempfile
from functools import cache
from pathlib import Path

from tests.e2e.toolbox import KEYRING, locked, mirror, release, run, shared

GUEST = Path(__file__).with_name("guest")
PACKAGES = (
    "busybox-static",  # the test images' root file system
    "containernetworking-plugins",
    "dbus",
    "iproute2",
    "iptables",
    "procps",
    "python3",  # and with it every library that another Python wants
    "systemd",
    "systemd-sysv",
)
SIZE = "3G"
NOT_IN_IT = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/i18n/*")
MASKED = (
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "console-getty.service",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "fstrim.timer",
    "getty.target",
    "ldconfig.service",
    "proc-sys-fs-binfmt_misc.automount",
    "serial-getty@.service",
    "systemd-binfmt.service",
    "systemd-firstboot.service",
    "systemd-hwdb-update.service",
    "systemd-journal-catalog-update.service",
    "systemd-journal-flush.service",
    "systemd-logind.service",
    "systemd-modules-load.service",
    "systemd-networkd.service",
    "systemd-pstore.service",
    "systemd-random-seed.service",
    "systemd-timesyncd.service",
    "systemd-tmpfiles-clean.timer",
    "systemd-update-done.service",
    "systemd-update-utmp.service",
    "systemd-update-utmp-runlevel.service",
)
"""Units of a machine that has hardware, users or a future."""
FILES = {
    "init": "usr/local/sbin/orlop-init",
    "commands": "usr/local/sbin/orlop-commands",
    "commands.service": "etc/systemd/system/orlop-commands.service",
}
"""What of `guest/` goes where."""


@cache
def image() -> Path:
    """A file with an ext4, journalled as a node's disk is. Raises ToolError."""
    parts = [Path(__file__), *(GUEST / name for name in FILES)]
    key = hashlib.sha256(b"".join([release().encode(), *(part.read_bytes() for part in parts)])).hexdigest()[:16]
    made = shared() / f"node-{release()}-{key}.ext4"
    with locked(shared() / "uml"):
        if not made.exists():
            build(made)
    return made


def build(made: Path) -> None:
    """`made` appears only when complete."""
    print(f"uml: making a root file system of Debian {release()}", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(dir=made.parent, prefix=".node-") as work:
        root = Path(work, "root")
        run(
            "mmdebstrap", "--mode=root", "--variant=minbase", f"--include={','.join(PACKAGES)}", f"--keyring={KEYRING}",
            *(f"--dpkgopt=path-exclude={pattern}" for pattern in NOT_IN_IT),
            release(), root, mirror(),
        )  # fmt: skip
        slim(root)
        run("mke2fs", "-q", "-F", "-t", "ext4", "-d", root, f"{work}/image", SIZE)
        Path(work, "image").rename(made)


def slim(root: Path) -> None:
    """Takes away what a boot waits for, and puts in what the host talks to."""
    units = root / "etc/systemd/system"
    for name in MASKED:
        (units / name).unlink(missing_ok=True)
        (units / name).symlink_to("/dev/null")
    generators = root / "etc/systemd/system-generators"
    generators.mkdir(exist_ok=True)
    for generator in (root / "lib/systemd/system-generators").iterdir():
        (generators / generator.name).symlink_to("/dev/null")
    for name, place in FILES.items():
        shutil.copy(GUEST / name, root / place)  # with its mode
    wants = units / "multi-user.target.wants"
    wants.mkdir(exist_ok=True)
    (wants / "orlop-commands.service").symlink_to("../orlop-commands.service")
    (root / "etc/machine-id").write_text("0123456789abcdef0123456789abcdef\n")
    (root / "etc/hostname").write_text("uml\n")
    (root / "etc/fstab").write_text("")
    shutil.rmtree(root / "var/lib/apt/lists")
