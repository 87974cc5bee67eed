"""The settings of `orlop serve`: read once at its start, handed down as values by `agent.daemon`.

They come from one TOML file and from the drop-ins beside it, in the order of their names; of a value that is set twice the
later one counts, tables are merged key by key:

    /etc/orlop/config.toml
    /etc/orlop/conf.d/*.toml

The classes below are the reference: a field's name is its key, a class is a table. A key that isn't here, or a value of
another type, stops the daemon with the file, the key and the value, rather than being ignored.

    metrics_address = "127.0.0.1:9745"

    [cni]
    bin_dirs = ["/opt/cni/bin"]

    [runtimes.runsc]
    runtime_type = "io.containerd.runsc.v1"
    sandbox = "task"
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from agent.config import toml
from agent.config.handlers import ENGINES, RuntimeHandler, discover, systemd_runs
from agent.config.toml import checked
from agent.errdefs import InvalidArgument

DEFAULT_FILE = Path("/etc/orlop/config.toml")
DROP_INS = "conf.d"
_DNS_LABEL = re.compile("[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")


def _address(value: str) -> str:
    host, _, port = value.rpartition(":")
    if not value or (host and port.isdecimal() and 0 < int(port) < 65536):
        return ""
    return "it is neither HOST:PORT nor empty"


def _file(value: str) -> str:
    return "" if not value or value.startswith("/") else "it is neither an absolute path nor empty"


def _cgroup(value: str) -> str:
    absolute = value.startswith("/") and value != "/" and ".." not in value.split("/")
    return "" if absolute else "it is not an absolute cgroup path below the root"


def _is_slice(path: str) -> bool:
    """A slice's name has its parents' in it: a-b.slice is in a.slice (systemd.slice(5))."""
    names = [part.removesuffix(".slice") for part in path.strip("/").split("/")]
    parts = names[-1].split("-")
    return path.endswith(".slice") and all(parts) and names == ["-".join(parts[:end]) for end in range(1, len(parts) + 1)]


def _line_size(value: int) -> str:
    return "" if 1024 <= value <= 1 << 20 else "it is not between 1024 and 1048576 bytes"


def _at_least_one(value: int) -> str:
    return "" if value > 0 else "it is not a positive number"


def _handler_names(value: dict[str, Any]) -> str:
    """Kubernetes takes DNS labels only for a RuntimeClass's handler."""
    bad = [name for name in value if not _DNS_LABEL.fullmatch(name)]
    return f"{bad[0]!r} is not a DNS label, so that no RuntimeClass can name it" if bad else ""


def _not_empty(value: tuple[Path, ...]) -> str:
    return "" if value else "it names no directory"


@dataclass(frozen=True)
class CNI:
    """Table `[cni]`: where the pod network's configuration and plugins are. Defaults: where every CNI daemon installs to."""

    conf_dir: Path = Path("/etc/cni/net.d")
    """Directory of network configurations; the first by name counts. Watched, so a network add-on needs no restart."""
    conf_template: str = checked(_file, "")
    """Template of a network configuration, for nodes on which nothing else installs one: when the kubelet tells the pods' networks
    (the node's podCIDRs) and `conf_dir` has no usable configuration, 10-orlop-net.conflist is made of it there. In the language of
    containerd's `conf_template`: {{.PodCIDR}}, and {{range}} over .PodCIDRRanges and .Routes. Empty: none is made."""
    bin_dirs: tuple[Path, ...] = checked(_not_empty, (Path("/opt/cni/bin"), Path("/usr/lib/cni")))
    """Directories searched for plugins, in this order. /usr/lib/cni is where Debian's package puts them."""


@dataclass(frozen=True)
class Log:
    """Table `[log]`: the daemon's own log, and the size of lines in containers' logs."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """The least severe messages that are written. info: one line per change of a pod, nothing per List or Status."""
    format: Literal["console", "json"] = "console"
    """console for people and journald, json for log collectors."""
    max_container_log_line_size: int = checked(_line_size, 16384)
    """Bytes of one line in a container's log file; longer ones are split into partial lines. 16 KiB, as in containerd: log
    collectors expect it."""


@dataclass(frozen=True)
class Registry:
    """Table `[registry]`: where and how images are pulled. Proxies are taken from HTTP_PROXY, HTTPS_PROXY and NO_PROXY."""

    config_path: Path = Path("/etc/orlop/certs.d")
    """Directory with a `<host>/hosts.toml` for each registry that has mirrors, certificates or headers of its own; the format is
    containerd's, so on a node that had it this may be /etc/containerd/certs.d. Read at each pull."""
    max_concurrent_downloads: int = checked(_at_least_one, 3)
    """Layers of one image that are downloaded at a time; 3, as in containerd and Docker."""
    max_concurrent_pulls: int = checked(_at_least_one, 10)
    """Images that are pulled at a time; further ones wait. The kubelet has a limit of its own, which by default is 1."""


@dataclass(frozen=True)
class Leaks:
    """Table `[leaks]`: what the daemon does about what its audits find."""

    reap: bool = True
    """Whether it releases by itself what is leaked and certainly its own, once two audits in a row have found it. false: it only tells,
    in metrics and log, and `orlop reap` releases. What is another runtime's, or can't be told whose, it never touches."""


@dataclass(frozen=True)
class Settings:
    """The top level. Paths are absolute."""

    socket: Path = Path("/run/orlop/orlop.sock")
    """Unix socket of the CRI, for the kubelet's `--container-runtime-endpoint`. Shims derive their own socket's name from it,
    so it must not change while pods run."""
    state_dir: Path = Path("/run/orlop")
    """What a reboot ends: bundles, sockets, the boot part of the ledger. Should be in a tmpfs: it is written at every step
    of a pod, and survives nothing but the daemon on purpose."""
    root_dir: Path = Path("/var/lib/orlop")
    """What outlives a reboot: images, writable layers, network attachments. Its file system has to be fit to be an overlay's
    upper layer (ext4, xfs with ftype=1)."""
    netns_dir: Path = Path("/run/netns")
    """Where pods' network namespaces are pinned, as `cni-<uuid>`. /run/netns, because network add-ons mount that very
    directory and `ip netns` looks there."""
    metrics_address: str = checked(_address, "127.0.0.1:9745")
    """HOST:PORT of `/metrics` and `/healthz`; empty: none. Loopback, because it is not authenticated; 9745 is nobody else's
    on a Kubernetes node (containerd's is 1338, CRI-O's 9090)."""
    cgroup_driver: Literal["auto", "systemd", "cgroupfs"] = "auto"
    """Who makes the containers' cgroups: systemd, as scopes in slices, or the engine itself. Has to be the kubelet's `cgroupDriver`; a
    kubelet of 1.31 or newer asks for it (RuntimeConfig, KEP-4033). auto: systemd where it is process 1, as kubeadm has it."""
    shim_cgroup: str = checked(_cgroup, "")
    """Cgroup below which each shim and the log copier get a leaf. Outside of the daemon's unit, whose stop would kill them, and
    of the pods' cgroups, in which the kubelet kills every process (decisions.md 12). Empty: /system.slice/orlop-shims.service where
    systemd is process 1, else /orlop-shims. A name that ends like a service is one, made by the agent with Delegate=yes: systemd
    removes cgroups that it knows nothing of."""
    pod_cgroup: str = checked(_cgroup, "")
    """Cgroup below which pods go whose client is no kubelet and names no cgroup_parent: crictl's, `orlop run`'s. With the systemd
    driver a slice. Empty: /orlop.slice with the systemd driver, else /orlop-pods."""
    default_runtime: str = ""
    """Handler of pods without a RuntimeClass. Empty: runc where it is installed, else crun."""
    sandbox_image: str = "registry.k8s.io/pause:3.10"
    """Image of the sandbox task, for handlers with `sandbox = "task"` and for pods that share a PID namespace; other pods need
    none. Pulled when first needed. The kubelet's own choice, so that its image garbage collection spares it."""
    cni: CNI = field(default_factory=CNI)
    log: Log = field(default_factory=Log)
    registry: Registry = field(default_factory=Registry)
    leaks: Leaks = field(default_factory=Leaks)
    runtimes: dict[str, RuntimeHandler] = field(default_factory=dict, metadata={"check": _handler_names})
    """Tables `[runtimes.NAME]`: runtime handlers, by the name that a RuntimeClass gives as its `handler`; the keys are those of
    `agent.config.handlers.RuntimeHandler`. `load` puts them over the handlers for the engines in PATH, and leaves all here."""


def load(
    file: Path = DEFAULT_FILE,
    *,
    discovered: Callable[[], dict[str, RuntimeHandler]] = discover,
    with_systemd: Callable[[], bool] = systemd_runs,
) -> Settings:
    """Read the settings from `file` and the drop-ins beside it. Blocks; called before the event loop runs.

    The default file need not be there, another one must.

    Raises:
        InvalidArgument: a file can't be read, has an unknown key or a value that can't be; names file, key and value.
    """
    files = [file] if file != DEFAULT_FILE or file.exists() else []
    files += sorted((file.parent / DROP_INS).glob("*.toml"))
    values: dict[str, Any] = {}
    for source in files:
        toml.merge(values, toml.read(source, Settings))
    handlers = discovered()
    for name, given in values.pop("runtimes", {}).items():
        handlers[name] = replace(handlers.get(name, RuntimeHandler(name)), **given)
    settings: Settings = toml.build(Settings, {**values, "runtimes": handlers})
    default = settings.default_runtime or next((name for name in ENGINES if name in handlers), "")
    if default not in handlers and (handlers or settings.default_runtime):
        raise InvalidArgument(f"{file}: default_runtime = {settings.default_runtime!r}: it is none of the handlers {sorted(handlers)}")
    return _with_cgroups(replace(settings, default_runtime=default), file, systemd=with_systemd())


def _with_cgroups(settings: Settings, file: Path, *, systemd: bool) -> Settings:
    """What follows from the cgroup driver, and from who is process 1."""
    if settings.cgroup_driver == "systemd" and not systemd:
        raise InvalidArgument(f"{file}: cgroup_driver = 'systemd': systemd is not process 1 here (there is no /run/systemd/system)")
    driven = systemd and settings.cgroup_driver != "cgroupfs"
    pod_cgroup = settings.pod_cgroup or ("/orlop.slice" if driven else "/orlop-pods")
    if driven and not _is_slice(pod_cgroup):
        raise InvalidArgument(f"{file}: pod_cgroup = {pod_cgroup!r}: with the systemd driver it is a slice's path, as /a.slice/a-b.slice")
    return replace(
        settings,
        shim_cgroup=settings.shim_cgroup or ("/system.slice/orlop-shims.service" if systemd else "/orlop-shims"),
        pod_cgroup=pod_cgroup,
        runtimes={name: replace(handler, systemd_cgroup=driven) for name, handler in settings.runtimes.items()},
    )
