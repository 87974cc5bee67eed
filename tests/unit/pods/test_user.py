"""Who a process is: the CRI's rules and KEP-3619's policies."""

from __future__ import annotations

from typing import Any

import pytest

from agent.errdefs import InvalidArgument, NotFound, OrlopError
from agent.pods.spec.user import User, resolve
from cri.api import api_pb2 as cri

PASSWD = (
    "root:x:0:0:root:/root:/bin/sh\nalice:x:1000:1001:A:/home/alice:/bin/sh\nbroken line\nbob:x:nan:1:::\n"
    f"carol:x:\u00b2:1:::\ndave:x:{'9' * 5000}:1:::\n"
).encode()
GROUP = f"root:x:0:\nusers:x:50:alice,bob\nops:x:60:alice\nbad\nhuge:x:{2**32}:alice\nodd:x:\u00b2:alice\n".encode()


def security(**fields: Any) -> cri.LinuxContainerSecurityContext:
    for name in ("run_as_user", "run_as_group"):
        if name in fields:
            fields[name] = cri.Int64Value(value=fields[name])
    return cri.LinuxContainerSecurityContext(**fields)


@pytest.mark.parametrize(
    ("context", "image_user", "expected"),
    [
        pytest.param({}, "", User(0, 0, (0,)), id="root when nobody says anything"),
        pytest.param({}, "alice", User(1000, 1001, (1001, 50, 60)), id="image user with the groups of the image"),
        pytest.param({}, "alice:users", User(1000, 50, (50, 60)), id="image user and group"),
        pytest.param({}, "1000", User(1000, 1001, (1001, 50, 60)), id="a number that the image knows"),
        pytest.param({}, "4242", User(4242, 0, (0,)), id="a number that the image doesn't know"),
        pytest.param({"run_as_user": 1000}, "root:root", User(1000, 1001, (1001, 50, 60)), id="the request wins over the image"),
        pytest.param({"run_as_username": "alice"}, "", User(1000, 1001, (1001, 50, 60)), id="by name"),
        pytest.param({"run_as_user": 1000, "run_as_group": 7}, "", User(1000, 7, (7, 50, 60)), id="group given"),
        pytest.param({"run_as_user": 1000, "supplemental_groups": [9, 50]}, "", User(1000, 1001, (1001, 9, 50, 60)), id="merged"),
        pytest.param(
            {"run_as_user": 1000, "supplemental_groups": [9], "supplemental_groups_policy": cri.Strict},
            "", User(1000, 1001, (1001, 9)), id="strict",
        ),
    ],
)  # fmt: skip
def test_resolution(context: dict[str, Any], image_user: str, expected: User) -> None:
    assert resolve(security(**context), image_user, PASSWD, GROUP) == expected


@pytest.mark.parametrize(
    ("context", "image_user", "error"),
    [
        ({"run_as_group": 5}, "", InvalidArgument),
        ({"run_as_user": -1}, "", InvalidArgument),
        ({"run_as_user": 2**33}, "", InvalidArgument),
        ({"supplemental_groups": [-5]}, "", InvalidArgument),
        ({"run_as_username": "mallory"}, "", NotFound),
        ({}, "bob", NotFound),
        ({}, "root:nobodys", NotFound),
        ({}, "-5", InvalidArgument),
        ({}, "4294967295", InvalidArgument),
        ({}, "root:4294967295", InvalidArgument),
        ({}, "--5", NotFound),
        ({}, "²", NotFound),
        ({}, "9" * 5000, NotFound),
        ({}, "root:²", NotFound),
        ({}, "carol", NotFound),
        ({}, "dave", NotFound),
        ({}, "root:huge", NotFound),
        ({"supplemental_groups_policy": 7}, "", InvalidArgument),
    ],
)
def test_who_can_not_be(context: dict[str, Any], image_user: str, error: type[OrlopError]) -> None:
    with pytest.raises(error):
        resolve(security(**context), image_user, PASSWD, GROUP)
