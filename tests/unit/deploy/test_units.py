"""The units in `deploy/`: systemd understands them, the commands in them exist, and none makes a mount namespace."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest

from agent import timeouts
from agent.cli.main import Options, main

DEPLOY = Path(__file__).resolve().parents[3] / "deploy"
UNITS = sorted(DEPLOY.glob("*.service"))
PROGRAM = "/usr/local/bin/orlop"
SANDBOX = {
    "BindPaths", "BindReadOnlyPaths", "DynamicUser", "ExecPaths", "InaccessiblePaths", "MountAPIVFS", "MountFlags", "NoExecPaths",
    "PrivateDevices", "PrivateIPC", "PrivateMounts", "PrivateTmp", "ProcSubset", "ProtectControlGroups", "ProtectHome",
    "ProtectHostname", "ProtectKernelLogs", "ProtectKernelModules", "ProtectKernelTunables", "ProtectProc", "ProtectSystem",
    "ReadOnlyPaths", "ReadWritePaths", "RootDirectory", "RootImage", "TemporaryFileSystem", "ExtensionImages", "LogNamespace",
    "CacheDirectory", "ConfigurationDirectory", "LogsDirectory", "RuntimeDirectory", "StateDirectory", "LoadCredential", "SetCredential",
}  # fmt: skip
"""Directives that make a mount namespace, or can (systemd.exec(5)), and those that make directories."""
INHERITED = {
    "AmbientCapabilities", "CapabilityBoundingSet", "LockPersonality", "MemoryDenyWriteExecute", "NoNewPrivileges",
    "RestrictAddressFamilies", "RestrictNamespaces", "RestrictRealtime", "RestrictSUIDSGID", "SecureBits",
    "SystemCallArchitectures", "SystemCallFilter",
}  # fmt: skip
"""Directives that a process hands down to all that it starts."""

each = pytest.mark.parametrize("unit", UNITS, ids=lambda unit: str(unit.name))


def directives(unit: Path) -> dict[str, list[str]]:
    """All values of each directive, sections aside."""
    found: dict[str, list[str]] = {}
    for line in unit.read_text().splitlines():
        name, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            found.setdefault(name, []).append(value)
    return found


def test_there_is_one_for_each_service() -> None:
    assert [unit.name for unit in UNITS] == ["orlop-watch.service", "orlop.service"]


@each
def test_the_command_in_it_is_one(unit: Path) -> None:
    [line] = directives(unit)["ExecStart"]
    program, name, *arguments = line.split()
    assert program == PROGRAM
    command = main.commands[name]
    command.make_context(name, arguments, obj=Options("", "table", Path()))  # raises for what there is not


def test_that_check_sees_an_option_that_there_is_not() -> None:
    with pytest.raises(click.NoSuchOption):
        main.commands["watch"].make_context("watch", ["--adress", "x"], obj=Options("", "table", Path()))


@each
@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="there is no systemd on this machine")
def test_systemd_understands_it(unit: Path, tmp_path: Path) -> None:
    """Unknown directives and values are warnings only."""
    program = Path(sys.executable).parent / "orlop"
    copy = tmp_path / unit.name
    copy.write_text(unit.read_text().replace(PROGRAM, str(program)))
    environment = {**os.environ, "SYSTEMD_LOG_LEVEL": "warning", "SYSTEMD_LOG_TARGET": "console"}
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", copy],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "")


@each
def test_it_stays_in_the_mount_namespace_of_the_node(unit: Path) -> None:
    assert not SANDBOX & directives(unit).keys()


def test_the_daemon_hands_nothing_down_to_containers() -> None:
    assert not INHERITED & directives(DEPLOY / "orlop.service").keys()


def test_the_watch_has_no_power_to_change_anything_of_others() -> None:
    given = directives(DEPLOY / "orlop-watch.service")
    [capabilities] = given["CapabilityBoundingSet"]
    assert set(capabilities.split()) == {"CAP_DAC_READ_SEARCH", "CAP_SYS_PTRACE", "CAP_NET_ADMIN", "CAP_NET_RAW"}
    assert given["NoNewPrivileges"] == ["yes"]


@each
def test_an_end_that_takes_its_time_is_not_cut_short(unit: Path) -> None:
    [budget] = directives(unit)["TimeoutStopSec"]
    assert int(budget) > timeouts.DAEMON_KILL
