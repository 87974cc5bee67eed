"""Whatever a request says, the checks refuse it with a sentence or let it pass; they don't trip over it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.errdefs import InvalidArgument
from agent.pods import checks
from cri.api import api_pb2 as cri

# Protobuf's strings are UTF-8: no surrogates.
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=300)


def sandbox(**fields: object) -> cri.PodSandboxConfig:
    config = cri.PodSandboxConfig(metadata=cri.PodSandboxMetadata(name="name", uid="uid", namespace="space"))
    config.MergeFrom(cri.PodSandboxConfig(**fields))  # type: ignore[arg-type]  # fields of any type, by name
    return config


@pytest.mark.parametrize(
    "config",
    [
        sandbox(),
        sandbox(hostname="web-0.example", log_directory="/var/log/pods/a_b_c"),
        sandbox(linux=cri.LinuxPodSandboxConfig(cgroup_parent="/kubepods/burstable/pod1")),
        sandbox(linux=cri.LinuxPodSandboxConfig(cgroup_parent="kubepods-burstable-pod1_2.slice")),
        sandbox(linux=cri.LinuxPodSandboxConfig(cgroup_parent="/kubepods.slice/kubepods-burstable.slice")),
        sandbox(dns_config=cri.DNSConfig(servers=["192.0.2.1"], searches=["a.svc", "."], options=["ndots:5"])),
        sandbox(metadata=cri.PodSandboxMetadata(name="static-Node_1")),
    ],
    ids=lambda config: str(config)[-30:],
)
def test_what_clients_send_passes(config: cri.PodSandboxConfig) -> None:
    checks.sandbox(config)


@given(name=texts, hostname=texts, directory=texts, parent=texts, word=texts, mode=st.integers(-(2**31), 2**31 - 1))
def test_any_sandbox_is_told_why_or_passes(name: str, hostname: str, directory: str, parent: str, word: str, mode: int) -> None:
    for fields in (
        {"metadata": cri.PodSandboxMetadata(name=name)},
        {"hostname": hostname},
        {"log_directory": f"/{directory}"},
        {"linux": cri.LinuxPodSandboxConfig(cgroup_parent=parent)},
        {"dns_config": cri.DNSConfig(searches=[word])},
        {"linux": namespaces(mode)},
    ):
        try:
            checks.sandbox(sandbox(**fields))
        except InvalidArgument as error:
            assert str(error).startswith("config.")  # noqa: PT017 - either way is right


def namespaces(mode: int) -> cri.LinuxPodSandboxConfig:
    options = cri.NamespaceOption(network=mode)  # type: ignore[arg-type]  # proto3's enums are open
    return cri.LinuxPodSandboxConfig(security_context=cri.LinuxSandboxSecurityContext(namespace_options=options))


@given(path=texts)
def test_a_log_never_leaves_its_directory(path: str) -> None:
    config = cri.ContainerConfig(metadata=cri.ContainerMetadata(name="name"), image=cri.ImageSpec(image="image"), log_path=path)
    try:
        checks.container(config)
    except InvalidArgument:
        return
    assert not path.startswith("/")
    assert ".." not in path.split("/")
    assert "\0" not in path
