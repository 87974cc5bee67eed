"""A Kubernetes Pod manifest as CRI configs, for `orlop run`: what the kubelet would make of it, as far as one node can.

Fields that need a cluster (service accounts, volumes other than hostPath, probes) are refused or named as ignored; nothing is
dropped in silence.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

import yaml

from agent.errdefs import InvalidArgument
from cri.api import api_pb2 as cri

LOG_ROOT = "/var/log/pods"
_POD_FIELDS = frozenset({
    "containers", "initContainers", "hostname", "hostNetwork", "hostPID", "hostIPC", "shareProcessNamespace", "dnsConfig",
    "volumes", "runtimeClassName", "securityContext", "terminationGracePeriodSeconds", "restartPolicy",
})  # fmt: skip
_CONTAINER_FIELDS = frozenset({
    "name", "image", "command", "args", "workingDir", "env", "ports", "resources", "securityContext", "volumeMounts", "tty",
    "imagePullPolicy",
})  # fmt: skip
_UNITS: dict[str, int | Decimal] = {
    "": 1,
    "m": Decimal("0.001"),
    "k": 10**3,
    "M": 10**6,
    "G": 10**9,
    "T": 10**12,
    "Ki": 2**10,
    "Mi": 2**20,
    "Gi": 2**30,
    "Ti": 2**40,
}
_CPU_PERIOD = 100_000
_MASKED = ["/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list", "/sys/firmware"]
_READ_ONLY = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]


@dataclass(frozen=True)
class Pod:
    """A manifest, converted. `ignored` are the fields that were left out, for people."""

    sandbox: cri.PodSandboxConfig
    init_containers: list[cri.ContainerConfig]
    containers: list[cri.ContainerConfig]
    handler: str
    grace: int
    ignored: list[str] = field(default_factory=list)


def load(path: Path, *, log_root: str = LOG_ROOT, cgroup_parent: str = "") -> Pod:
    """Read one Pod manifest.

    Raises:
        InvalidArgument: not a Pod, or a field that can't be; the message names it.
    """
    try:
        document = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InvalidArgument(f"{path}: not a readable manifest: {error}") from error
    if not isinstance(document, dict) or document.get("kind") != "Pod":
        raise InvalidArgument(f"{path}: kind must be Pod")
    try:
        return _pod(document, log_root, cgroup_parent)
    except (AttributeError, TypeError, ValueError, KeyError) as error:
        raise InvalidArgument(f"{path}: not a valid Pod manifest: {error!r}") from error


def _pod(document: dict[str, Any], log_root: str, cgroup_parent: str) -> Pod:
    meta, spec = document.get("metadata") or {}, document.get("spec") or {}
    name, namespace = str(meta.get("name") or ""), str(meta.get("namespace") or "default")
    if not name:
        raise InvalidArgument("metadata.name must not be empty")
    if not spec.get("containers"):
        raise InvalidArgument("spec.containers must not be empty")
    uid = str(meta.get("uid") or uuid.uuid4())
    ignored = [f"spec.{key}" for key in spec if key not in _POD_FIELDS]
    everyone = [*(spec.get("initContainers") or []), *spec["containers"]]
    sandbox = cri.PodSandboxConfig(
        metadata=cri.PodSandboxMetadata(name=name, namespace=namespace, uid=uid),
        hostname=str(spec.get("hostname") or ("" if spec.get("hostNetwork") else name)),
        log_directory=f"{log_root}/{namespace}_{name}_{uid}",
        labels={str(key): str(value) for key, value in (meta.get("labels") or {}).items()},
        annotations={str(key): str(value) for key, value in (meta.get("annotations") or {}).items()},
        port_mappings=[_port(port) for container in everyone for port in container.get("ports") or [] if port.get("hostPort")],
    )
    if cgroup_parent:
        sandbox.linux.cgroup_parent = cgroup_parent
    if dns := spec.get("dnsConfig"):
        sandbox.dns_config.CopyFrom(_dns(dns))
    sandbox.linux.security_context.namespace_options.CopyFrom(_namespaces(spec))
    for sysctl in (spec.get("securityContext") or {}).get("sysctls") or []:
        sandbox.linux.sysctls[sysctl["name"]] = str(sysctl["value"])
    volumes = {volume["name"]: volume for volume in spec.get("volumes") or []}
    return Pod(
        sandbox=sandbox,
        init_containers=[_container(container, spec, volumes, ignored) for container in spec.get("initContainers") or []],
        containers=[_container(container, spec, volumes, ignored) for container in spec["containers"]],
        handler=str(spec.get("runtimeClassName") or ""),
        grace=int(spec.get("terminationGracePeriodSeconds", 30)),
        ignored=ignored,
    )


def _namespaces(spec: Mapping[str, Any]) -> cri.NamespaceOption:
    pid = cri.NODE if spec.get("hostPID") else cri.POD if spec.get("shareProcessNamespace") else cri.CONTAINER
    return cri.NamespaceOption(
        network=cri.NODE if spec.get("hostNetwork") else cri.POD, pid=pid, ipc=cri.NODE if spec.get("hostIPC") else cri.POD
    )


def _dns(dns: Mapping[str, Any]) -> cri.DNSConfig:
    options = [f"{option['name']}:{option['value']}" if option.get("value") else option["name"] for option in dns.get("options") or []]
    return cri.DNSConfig(servers=dns.get("nameservers") or [], searches=dns.get("searches") or [], options=options)


def _port(port: Mapping[str, Any]) -> cri.PortMapping:
    return cri.PortMapping(
        protocol=str(port.get("protocol", "TCP")),
        container_port=int(port["containerPort"]),
        host_port=int(port["hostPort"]),
        host_ip=str(port.get("hostIP") or ""),
    )


def _container(
    container: Mapping[str, Any], spec: Mapping[str, Any], volumes: Mapping[str, Any], ignored: list[str]
) -> cri.ContainerConfig:
    name = str(container.get("name") or "")
    if not name or not container.get("image"):
        raise InvalidArgument(f"container {name!r}: name and image must not be empty")
    ignored.extend(f"container {name}: {key}" for key in container if key not in _CONTAINER_FIELDS)
    config = cri.ContainerConfig(
        metadata=cri.ContainerMetadata(name=name),
        image=cri.ImageSpec(image=str(container["image"])),
        command=[str(word) for word in container.get("command") or []],
        args=[str(word) for word in container.get("args") or []],
        working_dir=str(container.get("workingDir") or ""),
        envs=[_env(name, variable) for variable in container.get("env") or []],
        mounts=[_mount(name, mount, volumes) for mount in container.get("volumeMounts") or []],
        labels={"io.kubernetes.container.name": name},
        log_path=f"{name}/0.log",
        tty=bool(container.get("tty")),
    )
    config.linux.resources.CopyFrom(_resources(container.get("resources") or {}))
    config.linux.security_context.CopyFrom(_security({**(spec.get("securityContext") or {}), **(container.get("securityContext") or {})}))
    config.linux.security_context.namespace_options.CopyFrom(_namespaces(spec))
    return config


def _env(container: str, variable: Mapping[str, Any]) -> cri.KeyValue:
    if "valueFrom" in variable:
        raise InvalidArgument(f"container {container}: env {variable.get('name')!r}: valueFrom needs a cluster")
    return cri.KeyValue(key=variable["name"], value=str(variable.get("value", "")).encode())


def _mount(container: str, mount: Mapping[str, Any], volumes: Mapping[str, Any]) -> cri.Mount:
    volume = volumes.get(mount["name"])
    if volume is None or "hostPath" not in volume:
        raise InvalidArgument(
            f"container {container}: volume {mount['name']!r} is not a hostPath volume, the only kind `orlop run` can mount"
        )
    path = str(volume["hostPath"]["path"])
    if mount.get("subPath"):
        path = f"{path}/{mount['subPath']}"
    propagation = {
        "HostToContainer": cri.PROPAGATION_HOST_TO_CONTAINER, "Bidirectional": cri.PROPAGATION_BIDIRECTIONAL
    }.get(str(mount.get("mountPropagation")), cri.PROPAGATION_PRIVATE)  # fmt: skip
    return cri.Mount(container_path=mount["mountPath"], host_path=path, readonly=bool(mount.get("readOnly")), propagation=propagation)


def quantity(value: object) -> Decimal:
    """A Kubernetes quantity ("100m", "64Mi") as a number."""
    match = re.fullmatch(r"([0-9.]+)([A-Za-z]*)", str(value))
    try:
        if match is None or match[2] not in _UNITS:
            raise InvalidOperation
        return Decimal(match[1]) * _UNITS[match[2]]
    except InvalidOperation as error:
        raise InvalidArgument(f"{value!r} is not a quantity") from error


def _resources(resources: Mapping[str, Any]) -> cri.LinuxContainerResources:
    """CPU shares and quota as the kubelet computes them (pkg/kubelet/cm/helpers_linux.go)."""
    limits, requests = resources.get("limits") or {}, resources.get("requests") or {}
    made = cri.LinuxContainerResources(cpu_period=_CPU_PERIOD)
    request = requests.get("cpu", limits.get("cpu"))
    made.cpu_shares = max(2, int(quantity(request) * 1024)) if request is not None else 2
    if "cpu" in limits:
        made.cpu_quota = max(1000, int(quantity(limits["cpu"]) * _CPU_PERIOD))
    if "memory" in limits:
        made.memory_limit_in_bytes = int(quantity(limits["memory"]))
    return made


def _security(context: Mapping[str, Any]) -> cri.LinuxContainerSecurityContext:
    capabilities = context.get("capabilities") or {}
    made = cri.LinuxContainerSecurityContext(
        privileged=bool(context.get("privileged")),
        readonly_rootfs=bool(context.get("readOnlyRootFilesystem")),
        no_new_privs=context.get("allowPrivilegeEscalation") is False,
        supplemental_groups=context.get("supplementalGroups") or [],
        capabilities=cri.Capability(add_capabilities=capabilities.get("add") or [], drop_capabilities=capabilities.get("drop") or []),
        masked_paths=_MASKED,
        readonly_paths=_READ_ONLY,
    )  # fmt: skip
    if "runAsUser" in context:
        made.run_as_user.value = int(context["runAsUser"])
    if "runAsGroup" in context:
        made.run_as_group.value = int(context["runAsGroup"])
    if profile := context.get("seccompProfile"):
        made.seccomp.CopyFrom(cri.SecurityProfile(profile_type=str(profile["type"])))
        made.seccomp.localhost_ref = str(profile.get("localhostProfile") or "")
    return made
