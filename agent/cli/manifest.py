"""A Kubernetes Pod manifest as CRI configs, for `orlop run`: what the kubelet would make of it, as far as one node can.

Fields that need a cluster (service accounts, volumes other than hostPath and image, probes) are refused or named as ignored; nothing is
dropped in silence.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
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
    "imagePullPolicy", "restartPolicy",
})  # fmt: skip
_MOUNT_FIELDS = frozenset({"name", "mountPath", "readOnly", "subPath", "mountPropagation"})
_POD_SECURITY = frozenset({"runAsUser", "runAsGroup", "supplementalGroups", "supplementalGroupsPolicy", "seccompProfile", "sysctls"})
_CONTAINER_SECURITY = frozenset({
    "runAsUser", "runAsGroup", "seccompProfile", "privileged", "readOnlyRootFilesystem", "allowPrivilegeEscalation", "capabilities",
})  # fmt: skip
_RESOURCES = frozenset({"cpu", "memory"})
_NAME = re.compile("[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
_UID = re.compile("[A-Za-z0-9]([-A-Za-z0-9]{0,62}[A-Za-z0-9])?")
_HOST_NAME = 63
"""Characters: what the kubelet cuts a pod's name to."""
_QUANTITY = re.compile("([0-9]+[.]?[0-9]*|[.][0-9]+)(?:([eE][+-]?[0-9]{1,2})|([A-Za-z]*))")
_UNITS: dict[str, int | Decimal] = {
    "": 1, "n": Decimal("1e-9"), "u": Decimal("1e-6"), "m": Decimal("1e-3"),
    "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15, "E": 10**18,
    "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "Pi": 2**50, "Ei": 2**60,
}  # fmt: skip
_PROPAGATION = {
    "None": cri.PROPAGATION_PRIVATE,
    "HostToContainer": cri.PROPAGATION_HOST_TO_CONTAINER,
    "Bidirectional": cri.PROPAGATION_BIDIRECTIONAL,
}
_REFERENCE = re.compile(r"\$(\$|\(([-._A-Za-z0-9]+)\))")
_CPU_PERIOD = 100_000
_MASKED = ["/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list", "/sys/firmware"]
_READ_ONLY = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]


@dataclass(frozen=True)
class Pod:
    """A manifest, converted. `ignored` are the fields that were left out, for people; `sidecars` the names of the init containers
    that run on beside the others.
    """

    sandbox: cri.PodSandboxConfig
    init_containers: list[cri.ContainerConfig]
    containers: list[cri.ContainerConfig]
    handler: str
    grace: int
    ignored: list[str] = field(default_factory=list)
    sidecars: frozenset[str] = frozenset()


def load(path: Path, *, log_root: str = LOG_ROOT, cgroup_parent: str = "") -> Pod:
    """Read one Pod manifest.

    Raises:
        InvalidArgument: not a Pod, or a field that can't be; the message names it.
    """
    try:
        document = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InvalidArgument(f"{path}: not a readable manifest: {' '.join(str(error).split())}") from error
    if not isinstance(document, dict) or document.get("kind") != "Pod":
        raise InvalidArgument(f"{path}: kind must be Pod")
    try:
        return _pod(document, log_root, cgroup_parent)
    except (AttributeError, TypeError, ValueError, KeyError) as error:
        raise InvalidArgument(f"{path}: not a valid Pod manifest: {error!r}") from error


def _pod(document: dict[str, Any], log_root: str, cgroup_parent: str) -> Pod:
    meta, spec = document.get("metadata") or {}, document.get("spec") or {}
    name = _named(meta.get("name") or "", "metadata.name")
    namespace = _named(meta.get("namespace") or "default", "metadata.namespace")
    uid = str(meta.get("uid") or uuid.uuid4())
    if not _UID.fullmatch(uid):
        raise InvalidArgument(f"metadata.uid {uid!r} is not a uid")
    if not spec.get("containers"):
        raise InvalidArgument("spec.containers must not be empty")
    ignored = _others("spec", spec, _POD_FIELDS) + _others("spec.securityContext", spec.get("securityContext") or {}, _POD_SECURITY)
    if spec.get("restartPolicy", "Never") != "Never":
        ignored.append(f"spec.restartPolicy {spec['restartPolicy']}: nothing is started again")
    init_containers = spec.get("initContainers") or []
    everyone = [*init_containers, *spec["containers"]]
    names = [container.get("name") for container in everyone]
    if len(set(names)) < len(names):
        raise InvalidArgument(f"container names must differ: {names}")
    # As the kubelet labels everything of a pod; crictl and others look for these.
    identity = {"io.kubernetes.pod.name": name, "io.kubernetes.pod.namespace": namespace, "io.kubernetes.pod.uid": uid}
    host_network = bool(spec.get("hostNetwork"))
    sandbox = cri.PodSandboxConfig(
        metadata=cri.PodSandboxMetadata(name=name, namespace=namespace, uid=uid),
        hostname="" if host_network else str(spec.get("hostname") or name)[:_HOST_NAME].rstrip("-."),
        log_directory=f"{log_root}/{namespace}_{name}_{uid}",
        labels={**{str(key): str(value) for key, value in (meta.get("labels") or {}).items()}, **identity},
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
        init_containers=[_container(container, spec, volumes, identity, ignored) for container in init_containers],
        containers=[_container(container, spec, volumes, identity, ignored) for container in spec["containers"]],
        sidecars=frozenset(container["name"] for container in init_containers if container.get("restartPolicy") == "Always"),
        handler=str(spec.get("runtimeClassName") or ""),
        grace=int(spec.get("terminationGracePeriodSeconds", 30)),
        ignored=ignored,
    )


def _named(value: object, field: str) -> str:
    """A name as Kubernetes lets it in; it becomes a part of paths here."""
    if not isinstance(value, str) or not _NAME.fullmatch(value) or ".." in value:
        raise InvalidArgument(f"{field} {str(value)[:80]!r} must be lower-case letters and digits, '-' and '.', and not empty")
    return value


def _others(where: str, given: Mapping[str, Any], known: frozenset[str]) -> list[str]:
    return [f"{where}.{key}" for key in given if key not in known]


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
    container: Mapping[str, Any], spec: Mapping[str, Any], volumes: Mapping[str, Any], identity: Mapping[str, str], ignored: list[str]
) -> cri.ContainerConfig:
    name = _named(container.get("name") or "", "container name")
    where = f"container {name}"
    if not container.get("image"):
        raise InvalidArgument(f"{where}: image must not be empty")
    security = container.get("securityContext") or {}
    ignored += _others(where, container, _CONTAINER_FIELDS) + _others(f"{where}: securityContext", security, _CONTAINER_SECURITY)
    for mount in container.get("volumeMounts") or []:
        ignored += _others(f"{where}: volumeMounts", mount, _MOUNT_FIELDS)
    for kind, amounts in (container.get("resources") or {}).items():
        ignored += _others(f"{where}: resources.{kind}", amounts or {}, _RESOURCES)
    variables: dict[str, str] = {}
    for variable in container.get("env") or []:
        variables[variable["name"]] = expand(_value(where, variable), variables)
    config = cri.ContainerConfig(
        metadata=cri.ContainerMetadata(name=name),
        image=cri.ImageSpec(image=str(container["image"])),
        command=[expand(word, variables) for word in _words(where, container, "command")],
        args=[expand(word, variables) for word in _words(where, container, "args")],
        working_dir=str(container.get("workingDir") or ""),
        envs=[cri.KeyValue(key=key, value=value.encode()) for key, value in variables.items()],
        mounts=[_mount(where, mount, volumes, ignored) for mount in container.get("volumeMounts") or []],
        labels={**identity, "io.kubernetes.container.name": name},
        log_path=f"{name}/0.log",
        tty=bool(container.get("tty")),
    )
    config.linux.resources.CopyFrom(_resources(container.get("resources") or {}))
    config.linux.security_context.CopyFrom(_security({**(spec.get("securityContext") or {}), **security}))
    config.linux.security_context.namespace_options.CopyFrom(_namespaces(spec))
    return config


def expand(text: str, variables: Mapping[str, str]) -> str:
    """$(NAME) becomes the variable's value and $$ a dollar; a name that isn't known stays as it is. As the kubelet does it."""
    return _REFERENCE.sub(lambda found: "$" if found[1] == "$" else variables.get(found[2], found[0]), text)


def _words(where: str, container: Mapping[str, Any], field: str) -> list[str]:
    words = container.get(field) or []
    if not isinstance(words, list) or not all(isinstance(word, str | int | float) for word in words):
        raise InvalidArgument(f"{where}: {field} must be a list of strings, not {words!r}")
    return [str(word) for word in words]


def _value(where: str, variable: Mapping[str, Any]) -> str:
    value = variable.get("value", "")
    if "valueFrom" in variable:
        raise InvalidArgument(f"{where}: env {variable.get('name')!r}: valueFrom needs a cluster")
    if value is None or isinstance(value, bool | list | dict):
        raise InvalidArgument(f"{where}: env {variable.get('name')!r}: the value {value!r} is not a string; put it in quotes")
    return str(value)


def _mount(where: str, mount: Mapping[str, Any], volumes: Mapping[str, Any], ignored: list[str]) -> cri.Mount:
    name = mount["name"]
    volume = volumes.get(name) or {}
    if "hostPath" not in volume and "image" not in volume:
        raise InvalidArgument(f"{where}: volume {name!r} is not a hostPath or image volume, the only kinds that `orlop run` can mount")
    below = str(mount.get("subPath") or "")
    if below.startswith("/") or ".." in below.split("/"):
        raise InvalidArgument(f"{where}: volume {name!r}: subPath {below!r} leads out of the volume")
    propagation = str(mount.get("mountPropagation") or "None")
    if propagation not in _PROPAGATION:
        raise InvalidArgument(f"{where}: volume {name!r}: mountPropagation {propagation!r} is not one of {sorted(_PROPAGATION)}")
    made = cri.Mount(container_path=mount["mountPath"], propagation=_PROPAGATION[propagation])
    if "image" in volume:
        made.MergeFrom(cri.Mount(image=cri.ImageSpec(image=str(volume["image"]["reference"])), image_sub_path=below, readonly=True))
        return made
    path = str(volume["hostPath"]["path"])
    if str(volume["hostPath"].get("type") or "").endswith("OrCreate"):
        ignored.append(f"{where}: volume {name}: hostPath.type: nothing is created")
    made.MergeFrom(cri.Mount(host_path=f"{path}/{below}" if below else path, readonly=bool(mount.get("readOnly"))))
    return made


def quantity(value: object) -> Decimal:
    """A Kubernetes quantity ("100m", "64Mi", "1e3") as a number. None is negative here.

    Raises:
        InvalidArgument: not a quantity.
    """
    match = _QUANTITY.fullmatch(str(value))
    if match is None or (match[3] or "") not in _UNITS:
        raise InvalidArgument(f"{value!r} is not a quantity")
    return Decimal(match[1] + (match[2] or "")) * _UNITS[match[3] or ""]


def _resources(resources: Mapping[str, Any]) -> cri.LinuxContainerResources:
    """CPU shares and quota as the kubelet computes them (pkg/kubelet/cm/helpers_linux.go)."""
    limits, requests = resources.get("limits") or {}, resources.get("requests") or {}
    made = cri.LinuxContainerResources(cpu_period=_CPU_PERIOD)
    request = requests.get("cpu", limits.get("cpu"))
    made.cpu_shares = min(max(2, int(quantity(request) * 1024)), 262144) if request is not None else 2
    if cpu := quantity(limits.get("cpu", 0)):
        made.cpu_quota = max(1000, int(cpu * _CPU_PERIOD))
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
    if policy := context.get("supplementalGroupsPolicy"):
        made.MergeFrom(cri.LinuxContainerSecurityContext(supplemental_groups_policy=policy))
    if profile := context.get("seccompProfile"):
        made.seccomp.CopyFrom(cri.SecurityProfile(profile_type=str(profile["type"])))
        made.seccomp.localhost_ref = str(profile.get("localhostProfile") or "")
    return made
