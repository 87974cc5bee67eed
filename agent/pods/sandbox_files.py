"""The files of a pod that its containers see: /etc/hostname, /etc/hosts, /etc/resolv.conf.

Layout of `<state>/sandboxes/<id>/`: `hostname`, `hosts`, `resolv.conf`, and `shm/`, the mount point of /dev/shm.
The kubelet usually mounts an /etc/hosts of its own over ours.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from cri.api import api_pb2 as cri

_HOSTS = """127.0.0.1\tlocalhost
::1\tlocalhost ip6-localhost ip6-loopback
fe00::0\tip6-localnet
ff00::0\tip6-mcastprefix
ff02::1\tip6-allnodes
ff02::2\tip6-allrouters
"""


def write(directory: Path, config: cri.PodSandboxConfig) -> None:
    """Make the directory and its files; blocking. Raises OSError."""
    host_network = config.linux.security_context.namespace_options.network == cri.NODE
    directory.mkdir(mode=0o711, parents=True)
    (directory / "shm").mkdir()
    hostname = config.hostname or Path("/proc/sys/kernel/hostname").read_text().strip()
    _put(directory / "hostname", hostname + "\n")
    host_files = Path("/etc/hosts")
    _put(directory / "hosts", host_files.read_text() if host_network and host_files.exists() else _HOSTS)
    _put(directory / "resolv.conf", resolv_conf(config))


def resolv_conf(config: cri.PodSandboxConfig) -> str:
    """The pod's resolver configuration; without a dns_config it is the node's own."""
    if not config.HasField("dns_config"):
        node = Path("/etc/resolv.conf")
        return node.read_text() if node.exists() else ""
    dns = config.dns_config
    lines = []
    if dns.searches:
        lines.append(f"search {' '.join(dns.searches)}")
    lines += [f"nameserver {server}" for server in dns.servers]
    if dns.options:
        lines.append(f"options {' '.join(dns.options)}")
    return "\n".join(lines) + "\n" if lines else ""


def remove(directory: Path) -> None:
    """Remove the directory; blocking, idempotent. Its shm mount is gone by then. Raises OSError."""
    if directory.exists():
        shutil.rmtree(directory)


def _put(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o644)
