"""Every failpoint has a name of its own that says where it is, and whatever changes the world has one.

The list of them is in the agent's source and nowhere else (`tests.unit.simulation.failures.names`); the simulation and the crash matrix
go by it.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

import agent
from agent.runtime.v2.steps import BUDGETS
from tests.unit.simulation.failures import names, simulated_names

ROOT = Path(agent.__path__[0])
_HIT = re.compile(r'failpoints\.hit\(f?"([^"]+)"\)')

ACTS = {
    "images.prepare_rootfs", "ledger.intend", "mounts.mount", "namespaces.create", "network.add", "tasks.create", "tasks.start_shim",
    "task.start", "task.exec", "logs.open", "cgroups.create", "sandbox_files.write", "cgroups.kill", "task.kill", "registry.sandboxes.add",
    "registry.containers.add",
}  # fmt: skip
"""What a verb calls to change something outside of the process."""
PASSED_WITHIN = {
    "ledger.intend": "store.intend.commit",
    "registry.sandboxes.add": "store.put.commit",
    "registry.containers.add": "store.put.commit",
    "images.prepare_rootfs": "snapshots.prepare.mkdir",
    "network.add": "network.add.exec",
    "logs.open": "logs.open.fifos",
    "tasks.create": "runtime.bundle.create",
    "tasks.start_shim": "runtime.bundle.create",
    "task.start": "runtime.task.start",
    "task.exec": "runtime.task.exec",
}
"""Calls that pass one right before they act, wherever they are made from."""


def test_each_name_is_passed_at_one_place() -> None:
    found = Counter(name for path in ROOT.rglob("*.py") for name in _HIT.findall(path.read_text()))
    assert [name for name, times in found.items() if times > 1] == []


def test_names_begin_with_their_package() -> None:
    for path in ROOT.rglob("*.py"):
        for name in _HIT.findall(path.read_text()):
            package = name.partition(".")[0]
            assert package in {*path.relative_to(ROOT).parts, "cleanup"}, f"{name} in {path}"


def test_every_step_of_teardown_has_one() -> None:
    source = (ROOT / "runtime/v2/cleanup.py").read_text()
    steps = {
        mark.args[0].value
        for node in ast.parse(source).body
        if isinstance(node, ast.AsyncFunctionDef)
        for mark in node.decorator_list
        if isinstance(mark, ast.Call) and isinstance(mark.args[0], ast.Constant)
    }
    assert steps == set(BUDGETS)
    assert {f"cleanup.{step}" for step in BUDGETS} <= set(names())


def test_what_the_simulation_can_pass_is_most_of_them() -> None:
    assert set(simulated_names()) < set(names())
    assert len(simulated_names()) > 60


VERBS = [
    ROOT / "pods" / f"{name}.py"
    for name in ("sandbox_run", "sandbox_task", "sandbox_stop", "sandbox_remove", "container_create", "container_start", "container_stop")
]


@pytest.mark.parametrize("path", VERBS, ids=[path.stem for path in VERBS])
def test_every_act_of_a_verb_has_one(path: Path) -> None:
    """In the function that acts, before it does; or right where the callee acts."""
    missing = [
        f"{function.name}, line {call.lineno}: {act}"
        for function in ast.walk(ast.parse(path.read_text()))
        if isinstance(function, ast.AsyncFunctionDef)
        for call, act in _acts(function)
        if act not in PASSED_WITHIN and not _passes_before(function, call.lineno)
    ]
    assert missing == []
    assert set(PASSED_WITHIN.values()) <= set(names())


def _acts(function: ast.AsyncFunctionDef) -> Iterator[tuple[ast.Call, str]]:
    for node in ast.walk(function):
        if isinstance(node, ast.Call):
            text = ast.unparse(node.func)
            arguments = [ast.unparse(argument) for argument in node.args]
            for act in ACTS:
                if text.endswith(f".{act}") or text == act or act in arguments:
                    yield node, act


def _passes_before(function: ast.AsyncFunctionDef, line: int) -> bool:
    return any(
        isinstance(node, ast.Call) and ast.unparse(node.func) == "failpoints.hit" and node.lineno <= line for node in ast.walk(function)
    )
