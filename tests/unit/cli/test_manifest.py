"""Pod manifests as CRI configs: what the kubelet would make of them, and nothing dropped in silence."""

from __future__ import annotations

import contextlib
import copy
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from agent.cli import manifest
from agent.errdefs import InvalidArgument
from cri.api import api_pb2 as cri

MINIMAL: dict[str, Any] = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "web", "uid": "1234"},
    "spec": {"containers": [{"name": "app", "image": "busybox"}]},
}


class Loader:
    """Loads documents, the minimal one with changes by dotted path: `spec.containers.0.image`."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "pod.yaml"

    def __call__(self, **changes: Any) -> manifest.Pod:
        """Double underscores stand for dots."""
        document = copy.deepcopy(MINIMAL)
        for path, value in changes.items():
            *parents, name = path.split("__")
            place: Any = document
            for parent in parents:
                place = place[int(parent)] if parent.isdigit() else place.setdefault(parent, {})
            place[int(name) if name.isdigit() else name] = value
        return self.text(yaml.safe_dump(document))

    def container(self, **fields: Any) -> cri.ContainerConfig:
        (made,) = self(**{f"spec__containers__0__{name}": value for name, value in fields.items()}).containers
        return made

    def text(self, text: str) -> manifest.Pod:
        self._path.write_text(text)
        return manifest.load(self._path)


@pytest.fixture
def load(tmp_path: Path) -> Loader:
    return Loader(tmp_path)


class TestPod:
    def test_the_least_there_is(self, load: Loader) -> None:
        pod = load()
        assert pod.sandbox.metadata == cri.PodSandboxMetadata(name="web", namespace="default", uid="1234")
        assert (pod.sandbox.hostname, pod.sandbox.log_directory) == ("web", "/var/log/pods/default_web_1234")
        assert pod.sandbox.linux.security_context.namespace_options == cri.NamespaceOption(network=cri.POD, pid=cri.CONTAINER, ipc=cri.POD)
        assert not pod.sandbox.HasField("dns_config")
        assert (pod.handler, pod.grace, pod.ignored, pod.init_containers) == ("", 30, [], [])
        (app,) = pod.containers
        assert (app.metadata.name, app.image.image, app.log_path) == ("app", "busybox", "app/0.log")
        assert not app.linux.security_context.HasField("seccomp")

    def test_what_is_said_of_the_pod(self, load: Loader) -> None:
        dns = {"nameservers": ["10.0.0.10"], "searches": ["svc"], "options": [{"name": "ndots", "value": "5"}, {"name": "edns0"}]}
        init_ports = [{"containerPort": 1, "hostPort": 2, "protocol": "UDP", "hostIP": "::1"}]
        pod = load(
            metadata__namespace="prod",
            metadata__labels={"a": "b", "n": 1},
            metadata__annotations={"c": "d"},
            spec__hostname="other",
            spec__runtimeClassName="crun",
            spec__terminationGracePeriodSeconds=5,
            spec__dnsConfig=dns,
            spec__securityContext={"sysctls": [{"name": "net.core.somaxconn", "value": "1024"}]},
            spec__containers__0__ports=[{"containerPort": 80, "hostPort": 8080}, {"containerPort": 81}],
            spec__initContainers=[{"name": "init", "image": "x", "ports": init_ports}],
        )
        sandbox = pod.sandbox
        assert (sandbox.metadata.namespace, sandbox.hostname, pod.handler, pod.grace) == ("prod", "other", "crun", 5)
        identity = {"io.kubernetes.pod.name": "web", "io.kubernetes.pod.namespace": "prod", "io.kubernetes.pod.uid": "1234"}
        assert (dict(sandbox.labels), dict(sandbox.annotations)) == ({"a": "b", "n": "1", **identity}, {"c": "d"})
        assert dict(pod.containers[0].labels) == {"io.kubernetes.container.name": "app", **identity}
        assert sandbox.dns_config == cri.DNSConfig(servers=["10.0.0.10"], searches=["svc"], options=["ndots:5", "edns0"])
        assert dict(sandbox.linux.sysctls) == {"net.core.somaxconn": "1024"}
        assert list(sandbox.port_mappings) == [
            cri.PortMapping(protocol=cri.UDP, container_port=1, host_port=2, host_ip="::1"),
            cri.PortMapping(protocol=cri.TCP, container_port=80, host_port=8080),
        ]
        assert [config.metadata.name for config in pod.init_containers] == ["init"]
        assert pod.ignored == []

    @pytest.mark.parametrize(
        ("field", "expected"),
        [
            ("hostNetwork", cri.NamespaceOption(network=cri.NODE, pid=cri.CONTAINER, ipc=cri.POD)),
            ("hostPID", cri.NamespaceOption(network=cri.POD, pid=cri.NODE, ipc=cri.POD)),
            ("hostIPC", cri.NamespaceOption(network=cri.POD, pid=cri.CONTAINER, ipc=cri.NODE)),
            ("shareProcessNamespace", cri.NamespaceOption(network=cri.POD, pid=cri.POD, ipc=cri.POD)),
        ],
    )
    def test_namespaces_are_the_same_for_pod_and_containers(self, load: Loader, field: str, expected: cri.NamespaceOption) -> None:
        pod = load(**{f"spec__{field}": True})
        assert pod.sandbox.linux.security_context.namespace_options == expected
        assert pod.containers[0].linux.security_context.namespace_options == expected

    def test_in_the_nodes_network_a_pod_has_no_name_of_its_own(self, load: Loader) -> None:
        assert load(spec__hostNetwork=True).sandbox.hostname == ""

    def test_a_long_name_makes_a_host_name_that_linux_takes(self, load: Loader) -> None:
        assert load(metadata__name="a" * 62 + "-" + "b" * 60).sandbox.hostname == "a" * 62

    def test_a_uid_is_made_up_where_there_is_none(self, tmp_path: Path) -> None:
        path = tmp_path / "pod.yaml"
        path.write_text("kind: Pod\nmetadata: {name: web}\nspec: {containers: [{name: app, image: x}]}")
        first, second = (manifest.load(path, log_root="/logs", cgroup_parent="/pods") for _ in range(2))
        assert first.sandbox.metadata.uid != second.sandbox.metadata.uid
        assert first.sandbox.log_directory == f"/logs/default_web_{first.sandbox.metadata.uid}"
        assert first.sandbox.linux.cgroup_parent == "/pods"


class TestContainer:
    def test_what_runs(self, load: Loader) -> None:
        env = [{"name": "A", "value": "b"}, {"name": "PORT", "value": 80}]
        made = load.container(command=["/bin/app", 7], args=["-v"], workingDir="/srv", tty=True, env=env)
        assert list(made.command) == ["/bin/app", "7"]
        assert list(made.args) == ["-v"]
        assert (made.working_dir, made.tty) == ("/srv", True)
        assert [(entry.key, entry.value) for entry in made.envs] == [("A", b"b"), ("PORT", b"80")]

    def test_sidecars_are_init_containers_that_run_on(self, load: Loader) -> None:
        inits = [{"name": "one", "image": "x"}, {"name": "two", "image": "x", "restartPolicy": "Always"}]
        assert load(spec__initContainers=inits).sidecars == {"two"}

    def test_variables_are_put_in(self, load: Loader) -> None:
        made = load.container(
            command=["echo", "$(A)", "$$(A)", "$(NO)", "$A"],
            args=["$(B)"],
            env=[{"name": "A", "value": "a"}, {"name": "B", "value": "$(A)/$(C)"}, {"name": "C", "value": "c"}],
        )
        assert made.command == ["echo", "a", "$(A)", "$(NO)", "$A"]
        assert made.args == ["a/$(C)"]

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("", ""), ("$", "$"), ("$$", "$"), ("$$$$", "$$"), ("$(", "$("), ("$()", "$()"), ("$(a b)", "$(a b)"), ("x$(A)y$(A)", "x1y1"),
            ("$$$(A)", "$1"),
        ],
    )  # fmt: skip
    def test_expansion(self, text: str, expected: str) -> None:
        assert manifest.expand(text, {"A": "1"}) == expected

    @pytest.mark.parametrize(
        ("resources", "expected"),
        [
            (None, {"cpu_shares": 2}),
            ({"requests": {"cpu": "250m"}}, {"cpu_shares": 256}),
            ({"limits": {"cpu": "500m", "memory": "64Mi"}}, {"cpu_shares": 512, "cpu_quota": 50_000, "memory_limit_in_bytes": 64 << 20}),
            ({"limits": {"cpu": 2}, "requests": {"cpu": 1}}, {"cpu_shares": 1024, "cpu_quota": 200_000}),
            ({"limits": {"cpu": "1m"}}, {"cpu_shares": 2, "cpu_quota": 1000}),
            ({"limits": {"cpu": 0, "memory": 0}}, {"cpu_shares": 2}),
            ({"requests": {"cpu": 1000}}, {"cpu_shares": 262144}),
            ({"limits": {"memory": "1e9"}, "requests": {"memory": "1"}}, {"cpu_shares": 2, "memory_limit_in_bytes": 10**9}),
        ],
    )
    def test_resources_as_the_kubelet_computes_them(self, load: Loader, resources: Any, expected: dict[str, int]) -> None:
        made = load.container(resources=resources).linux.resources
        assert {field.name: value for field, value in made.ListFields()} == {"cpu_period": 100_000, **expected}

    def test_security_of_the_container_wins_over_the_pods(self, load: Loader) -> None:
        pod = load(
            spec__securityContext={"runAsUser": 1, "runAsGroup": 2, "supplementalGroups": [3], "supplementalGroupsPolicy": "Strict"},
            spec__containers__0__securityContext={
                "runAsUser": 7, "readOnlyRootFilesystem": True, "allowPrivilegeEscalation": False,
                "capabilities": {"add": ["NET_ADMIN"], "drop": ["ALL"]}, "seccompProfile": {"type": "RuntimeDefault"},
            },
        )  # fmt: skip
        made = pod.containers[0].linux.security_context
        assert (made.run_as_user.value, made.run_as_group.value, list(made.supplemental_groups)) == (7, 2, [3])
        assert made.supplemental_groups_policy == cri.Strict
        assert (made.readonly_rootfs, made.no_new_privs, made.privileged) == (True, True, False)
        assert made.capabilities == cri.Capability(add_capabilities=["NET_ADMIN"], drop_capabilities=["ALL"])
        assert made.seccomp.profile_type == cri.SecurityProfile.RuntimeDefault
        assert "/proc/kcore" in made.masked_paths
        assert pod.ignored == []

    def test_a_profile_of_the_node(self, load: Loader) -> None:
        profile = {"seccompProfile": {"type": "Localhost", "localhostProfile": "/profiles/x.json"}}
        made = load.container(securityContext=profile).linux.security_context.seccomp
        assert made == cri.SecurityProfile(profile_type=cri.SecurityProfile.Localhost, localhost_ref="/profiles/x.json")

    def test_volumes(self, load: Loader) -> None:
        pod = load(
            spec__volumes=[{"name": "data", "hostPath": {"path": "/data"}}, {"name": "unused", "emptyDir": {}}],
            spec__containers__0__volumeMounts=[
                {"name": "data", "mountPath": "/a", "readOnly": True},
                {"name": "data", "mountPath": "/b", "subPath": "x/y", "mountPropagation": "HostToContainer"},
                {"name": "data", "mountPath": "/c", "mountPropagation": "None"},
            ],
        )
        assert list(pod.containers[0].mounts) == [
            cri.Mount(container_path="/a", host_path="/data", readonly=True),
            cri.Mount(container_path="/b", host_path="/data/x/y", propagation=cri.PROPAGATION_HOST_TO_CONTAINER),
            cri.Mount(container_path="/c", host_path="/data"),
        ]

    def test_images_as_volumes(self, load: Loader) -> None:
        """Read-only, whatever the mount says, as the kubelet sends them."""
        pod = load(
            spec__volumes=[{"name": "data", "image": {"reference": "quay.io/data:1", "pullPolicy": "IfNotPresent"}}],
            spec__containers__0__volumeMounts=[
                {"name": "data", "mountPath": "/a"},
                {"name": "data", "mountPath": "/b", "subPath": "x/y", "readOnly": False},
            ],
        )
        image = cri.ImageSpec(image="quay.io/data:1")
        assert list(pod.containers[0].mounts) == [
            cri.Mount(container_path="/a", image=image, readonly=True),
            cri.Mount(container_path="/b", image=image, image_sub_path="x/y", readonly=True),
        ]


def test_what_is_left_out_is_said(load: Loader) -> None:
    pod = load(
        spec__restartPolicy="Always",
        spec__serviceAccountName="x",
        spec__securityContext={"fsGroup": 1, "runAsUser": 1},
        spec__volumes=[{"name": "data", "hostPath": {"path": "/data", "type": "DirectoryOrCreate"}}],
        spec__containers__0__livenessProbe={},
        spec__containers__0__securityContext={"procMount": "Default"},
        spec__containers__0__resources={"limits": {"nvidia.com/gpu": 1, "cpu": 1}},
        spec__containers__0__volumeMounts=[{"name": "data", "mountPath": "/a", "subPathExpr": "$(A)"}],
    )
    assert sorted(pod.ignored) == [
        "container app.livenessProbe",
        "container app: resources.limits.nvidia.com/gpu",
        "container app: securityContext.procMount",
        "container app: volume data: hostPath.type: nothing is created",
        "container app: volumeMounts.subPathExpr",
        "spec.restartPolicy Always: nothing is started again",
        "spec.securityContext.fsGroup",
        "spec.serviceAccountName",
    ]


class TestQuantities:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            (1, 1), ("0", 0), (0.5, "0.5"), ("100m", "0.1"), ("64Mi", 64 << 20), ("1.5Gi", 3 << 29), ("1k", 1000), ("1E", 10**18),
            ("1Ei", 1 << 60), ("1e3", 1000), ("1E3", 1000), ("1e-3", "0.001"), ("12e+2", 1200), ("5.", 5), (".5", "0.5"),
            ("3u", "0.000003"), ("3n", "0.000000003"),
        ],
    )  # fmt: skip
    def test_of_kubernetes(self, text: object, expected: int | str) -> None:
        assert manifest.quantity(text) == Decimal(expected)

    @pytest.mark.parametrize(
        "text",
        ["", "-1", "+1", "x", "1KiB", "1 Mi", "1.2.3", ".", "1e", "1ex", "1e999999999", "٣", "1mm", None, True, [], "NaN", "Infinity"],
    )
    def test_no_quantity(self, text: object) -> None:
        with pytest.raises(InvalidArgument, match="is not a quantity"):
            manifest.quantity(text)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kind": "Deployment"}, "kind must be Pod"),
        ({"metadata": None}, r"metadata\.name"),
        ({"metadata": []}, r"metadata\.name"),
        ({"metadata__name": ""}, r"metadata\.name"),
        ({"metadata__name": "../../etc"}, r"metadata\.name '\.\./\.\./etc'"),
        ({"metadata__name": "a/b"}, r"metadata\.name"),
        ({"metadata__name": "a..b"}, r"metadata\.name"),
        ({"metadata__name": "UPPER"}, r"metadata\.name"),
        ({"metadata__name": "x" * 10_000}, r"metadata\.name"),
        ({"metadata__name": 7}, r"metadata\.name"),
        ({"metadata__namespace": "a/../.."}, r"metadata\.namespace"),
        ({"metadata__uid": "../x"}, r"metadata\.uid"),
        ({"spec": None}, r"spec\.containers"),
        ({"spec__containers": []}, r"spec\.containers"),
        ({"spec": "x"}, "not a valid Pod manifest"),
        ({"spec__containers": "x"}, "not a valid Pod manifest"),
        ({"spec__containers__0": "x"}, "not a valid Pod manifest"),
        ({"spec__containers__0__name": ""}, "container name"),
        ({"spec__containers__0__name": "../x"}, "container name"),
        ({"spec__containers__0__image": ""}, "image must not be empty"),
        ({"spec__initContainers": [{"name": "app", "image": "x"}]}, "container names must differ"),
        ({"spec__containers__0__command": "sleep 1"}, "command must be a list"),
        ({"spec__containers__0__args": [["a"]]}, "args must be a list"),
        ({"spec__containers__0__args": {"a": 1}}, "args must be a list"),
        ({"spec__containers__0__env": [{"name": "A", "valueFrom": {}}]}, "env 'A': valueFrom"),
        ({"spec__containers__0__env": [{"name": "A", "value": True}]}, "env 'A'.*quotes"),
        ({"spec__containers__0__env": [{"value": "x"}]}, "name"),
        ({"spec__containers__0__env": "A=b"}, "not a valid Pod manifest"),
        ({"spec__containers__0__resources": {"limits": {"cpu": "lots"}}}, "'lots' is not a quantity"),
        ({"spec__containers__0__resources": {"limits": {"memory": "-1"}}}, "'-1' is not a quantity"),
        ({"spec__containers__0__resources": {"limits": {"memory": "1e99"}}}, "not a valid Pod manifest"),
        ({"spec__containers__0__resources": "x"}, "not a valid Pod manifest"),
        ({"spec__containers__0__ports": [{"hostPort": 80}]}, "containerPort"),
        ({"spec__containers__0__ports": [{"hostPort": 80, "containerPort": "x"}]}, "not a valid Pod manifest"),
        ({"spec__containers__0__ports": [{"hostPort": 80, "containerPort": 80, "protocol": "ICMP"}]}, "ICMP"),
        ({"spec__containers__0__volumeMounts": [{"name": "x", "mountPath": "/x"}]}, "volume 'x' is not a hostPath or image volume"),
        (
            {"spec__volumes": [{"name": "x", "emptyDir": {}}], "spec__containers__0__volumeMounts": [{"name": "x", "mountPath": "/x"}]},
            "volume 'x'",
        ),
        ({"spec__containers__0__securityContext": {"seccompProfile": {"type": "Strange"}}}, "Strange"),
        ({"spec__containers__0__securityContext": {"runAsUser": "root"}}, "root"),
        ({"spec__securityContext": {"supplementalGroupsPolicy": "Loose"}}, "Loose"),
        ({"spec__securityContext": {"sysctls": [{"name": "x"}]}}, "value"),
        ({"spec__terminationGracePeriodSeconds": "long"}, "long"),
    ],
)
def test_what_is_no_pod(load: Loader, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidArgument, match=words):
        load(**changes)


@pytest.mark.parametrize(
    ("mount", "words"),
    [
        ({"subPath": "../../etc"}, "subPath '../../etc' leads out"),
        ({"subPath": "/etc"}, "subPath '/etc' leads out"),
        ({"mountPropagation": "Sometimes"}, "mountPropagation 'Sometimes'"),
    ],
)
def test_what_is_no_mount(load: Loader, mount: dict[str, Any], words: str) -> None:
    mounts = [{"name": "data", "mountPath": "/data", **mount}]
    with pytest.raises(InvalidArgument, match=f"container app: volume 'data': {words}"):
        load(spec__volumes=[{"name": "data", "hostPath": {"path": "/data"}}], spec__containers__0__volumeMounts=mounts)


@pytest.mark.parametrize(
    "text", ["", "[]", "kind: Pod\n---\nkind: Pod", "kind: [", "\x00", "!!python/object/apply:os.system ['true']", "- kind: Pod"]
)
def test_what_is_no_manifest(load: Loader, text: str) -> None:
    with pytest.raises(InvalidArgument, match=r"pod\.yaml"):
        load.text(text)


def test_a_file_that_is_not_there_or_not_text(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    for name in ("nothing", "binary", "."):
        with pytest.raises(InvalidArgument, match="not a readable manifest"):
            manifest.load(tmp_path / name)


TEXT = st.text(max_size=5)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
)
FIELDS = ["metadata", "spec", "spec__containers", "spec__securityContext", "spec__volumes", "spec__dnsConfig", "metadata__labels"] + [
    f"spec__containers__0__{name}" for name in ("name", "image", "command", "env", "ports", "resources", "securityContext", "volumeMounts")
]


@given(st.sampled_from(FIELDS), JSON)
def test_whatever_stands_in_a_field_is_taken_or_refused(tmp_path_factory: pytest.TempPathFactory, field: str, value: object) -> None:
    with contextlib.suppress(InvalidArgument):
        Loader(tmp_path_factory.getbasetemp())(**{field: value})
