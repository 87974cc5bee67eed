"""Who a container's process is: uid, gid and groups, from the CRI config, the image's USER, /etc/passwd and /etc/group."""

from __future__ import annotations

import re
from dataclasses import dataclass

from agent.errdefs import InvalidArgument, NotFound
from cri.api import api_pb2 as cri

_MAX_ID = 2**32 - 2
_NUMBER = re.compile("-?[0-9]{1,20}")
"""Not str.isdigit, which takes more for a digit than int() does."""


@dataclass(frozen=True)
class User:
    """Numbers only; `groups` are the supplementary ones, with `gid` among them as Linux tools expect."""

    uid: int
    gid: int
    groups: tuple[int, ...]


@dataclass(frozen=True)
class _Account:
    name: str
    uid: int
    gid: int


def resolve(security: cri.LinuxContainerSecurityContext, image_user: str, passwd: bytes, group: bytes) -> User:
    """The user by the rules of the CRI (api.proto, LinuxContainerSecurityContext; KEP-3619 for the groups' policy).

    Raises:
        InvalidArgument: a group without a user, ids out of range, an unknown policy.
        NotFound: a user or group name that the image doesn't have.
    """
    if security.HasField("run_as_group") and not (security.HasField("run_as_user") or security.run_as_username or image_user):
        raise InvalidArgument("run_as_group is set, but no run_as_user or run_as_username")
    wanted, _, wanted_group = image_user.partition(":")
    if security.run_as_username:
        wanted, wanted_group = security.run_as_username, ""
    elif security.HasField("run_as_user"):
        wanted, wanted_group = str(security.run_as_user.value), ""
    if security.HasField("run_as_group"):
        wanted_group = str(security.run_as_group.value)

    accounts = _accounts(passwd)
    account = _account(wanted or "0", accounts)
    gid = _gid(wanted_group, group) if wanted_group else account.gid
    if security.supplemental_groups_policy not in cri.SupplementalGroupsPolicy.values():
        raise InvalidArgument(f"supplemental_groups_policy {security.supplemental_groups_policy} is not one of the CRI")
    groups = [_checked(value, "supplemental_groups") for value in security.supplemental_groups]
    if security.supplemental_groups_policy == cri.Merge and account.name:
        groups += _memberships(account.name, group)
    return User(account.uid, gid, tuple(dict.fromkeys([gid, *groups])))


def _account(wanted: str, accounts: list[_Account]) -> _Account:
    if _NUMBER.fullmatch(wanted):
        uid = _checked(int(wanted), "run_as_user")
        return next((account for account in accounts if account.uid == uid), _Account("", uid, 0))
    for account in accounts:
        if account.name == wanted:
            return account
    raise NotFound(f"user {wanted!r} is not in the image's /etc/passwd")


def _gid(wanted: str, group: bytes) -> int:
    if _NUMBER.fullmatch(wanted):
        return _checked(int(wanted), "run_as_group")
    for fields in _lines(group, 4):
        if fields[0] == wanted and (gid := _id(fields[2])) is not None:
            return gid
    raise NotFound(f"group {wanted!r} is not in the image's /etc/group")


def _memberships(name: str, group: bytes) -> list[int]:
    return [gid for fields in _lines(group, 4) if name in fields[3].split(",") and (gid := _id(fields[2])) is not None]


def _accounts(passwd: bytes) -> list[_Account]:
    return [
        _Account(fields[0], uid, gid)
        for fields in _lines(passwd, 7)
        if (uid := _id(fields[2])) is not None and (gid := _id(fields[3])) is not None
    ]


def _id(text: str) -> int | None:
    return number if _NUMBER.fullmatch(text) and 0 <= (number := int(text)) <= _MAX_ID else None


def _lines(data: bytes, fields: int) -> list[list[str]]:
    """The records of a colon-separated file; lines that aren't records are the image's business, not ours."""
    split = (line.split(":") for line in data.decode("utf-8", "replace").splitlines() if not line.startswith("#"))
    return [parts for parts in split if len(parts) >= fields]


def _checked(value: int, field: str) -> int:
    if not 0 <= value <= _MAX_ID:
        raise InvalidArgument(f"{field} {value} is not a user or group id")
    return value
