"""Takes each step out of `agent/runtime/v2/cleanup.py`, swaps each two that follow each other, and tells which test noticed.

    python -m tests.mutations [--list]

Works on a copy of the tree; the tests run there are `tests/unit/runtime`, which record every step against fakes. Exits with 1
if a mutation survives. Not part of `make test`: it takes some minutes.
"""

from __future__ import annotations

import ast
import copy
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
CLEANUP = Path("agent/runtime/v2/cleanup.py")


@dataclass(frozen=True)
class Mutation:
    """A change to one function: `what` is the phrase for people."""

    function: str
    what: str
    source: str


def step_names(tree: ast.Module) -> set[str]:
    """The functions that are steps, by their decorator."""
    return {
        node.name
        for node in tree.body
        if isinstance(node, ast.AsyncFunctionDef)
        and any(isinstance(mark, ast.Call) and isinstance(mark.func, ast.Name) and mark.func.id == "step" for mark in node.decorator_list)
    }


def steps_in(node: ast.AST, names: set[str]) -> list[str]:
    """The steps that are called anywhere in a statement, in order."""
    return [
        part.func.id for part in ast.walk(node) if isinstance(part, ast.Call) and isinstance(part.func, ast.Name) and part.func.id in names
    ]


def blocks(function: ast.AsyncFunctionDef) -> Iterator[list[ast.stmt]]:
    for node in ast.walk(function):
        for field in ("body", "orelse", "finalbody"):
            block = getattr(node, field, None)
            if isinstance(block, list) and block and isinstance(block[0], ast.stmt):
                yield block


def without(statement: ast.stmt) -> ast.stmt | None:
    """The statement with its step taken out, or None if it isn't a step by itself."""
    if isinstance(statement, ast.Expr):
        return ast.Pass()
    if isinstance(statement, ast.Assign):
        return ast.Assign(targets=statement.targets, value=ast.Constant(None), lineno=0)
    return None


def mutations(source: str) -> Iterator[Mutation]:
    """Of every function that isn't a step itself; what is made of several steps counts as one where it is called."""
    steps = step_names(ast.parse(source))
    functions = [node.name for node in ast.parse(source).body if isinstance(node, ast.AsyncFunctionDef) and node.name not in steps]
    names = steps | {name for name in functions if name.startswith("_")}
    for name in functions:
        yield from _of_function(source, name, names)


def _of_function(source: str, name: str, names: set[str]) -> Iterator[Mutation]:
    def fresh() -> tuple[ast.Module, list[list[ast.stmt]]]:
        tree = ast.parse(source)
        function = next(node for node in tree.body if isinstance(node, ast.AsyncFunctionDef) and node.name == name)
        return tree, list(blocks(function))

    _, originals = fresh()
    for number, block in enumerate(originals):
        for index, statement in enumerate(block):
            steps = steps_in(statement, names)
            if len(steps) == 1 and (replacement := without(copy.deepcopy(statement))) is not None:
                tree, changed = fresh()
                changed[number][index] = replacement
                yield Mutation(name, f"without {steps[0].lstrip('_')}", ast.unparse(ast.fix_missing_locations(tree)))
            following = block[index + 1] if index + 1 < len(block) else None
            if steps and following is not None and (others := steps_in(following, names)):
                tree, changed = fresh()
                changed[number][index : index + 2] = reversed(changed[number][index : index + 2])
                yield Mutation(name, f"{'+'.join(others)} before {'+'.join(steps)}".replace("_", " ").strip(), ast.unparse(tree))


def caught_by(tree: Path, mutation: Mutation, original: str) -> str:
    """The first test that fails with the mutation; empty if none does."""
    (tree / CLEANUP).write_text(mutation.source)
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--timeout=20", "tests/unit/runtime"]
    command += ["-k", "not the_table_names_every_step"]  # it reads the source, whose quotes `ast.unparse` changes
    done = subprocess.run(command, cwd=tree, capture_output=True, text=True, check=False)
    (tree / CLEANUP).write_text(original)
    if done.returncode == 0:
        return ""
    found = re.search(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)
    return found[1].removeprefix("tests/unit/runtime/") if found else f"pytest ended with {done.returncode}"


def main() -> int:
    original = (REPO / CLEANUP).read_text()
    found = list(mutations(original))
    if "--list" in sys.argv:
        print("\n".join(f"{mutation.function}: {mutation.what}" for mutation in found))
        return 0
    survivors = 0
    with tempfile.TemporaryDirectory(prefix="orlop-mutations-") as name:
        tree = Path(name)
        for part in ("agent", "cri", "tests", "pyproject.toml"):
            source = REPO / part
            (shutil.copytree if source.is_dir() else shutil.copy)(source, tree / part)
        for mutation in found:
            test = caught_by(tree, mutation, original)
            survivors += not test
            print(f"{mutation.function:<24} {mutation.what:<40} {test or 'SURVIVED'}", flush=True)
    print(f"{len(found)} mutations, {survivors} survived")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
