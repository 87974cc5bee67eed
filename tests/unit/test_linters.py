"""The linters, type checker, import contracts and the code generator, each as a test: `pytest tests/unit` is the whole gate.

Settings of all tools are in pyproject.toml.
"""

import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]


@pytest.mark.timeout(600)  # mypy without its cache, on a busy machine
@pytest.mark.parametrize("command", ["ruff check", "ruff format --check", "mypy", "lint-imports", "vulture"])
def test_code_is_accepted_by(command: str) -> None:
    accept(*command.split())


def test_generated_modules_are_those_of_the_proto_files(tmp_path: Path) -> None:
    """A .proto file and its modules change together: `make api`."""
    protos = [str(path.relative_to(REPO)) for package in ("agent/api", "cri/api") for path in (REPO / package).rglob("*.proto")]
    includes = ["-I.", f"-I{sysconfig.get_path('purelib')}"]
    accept("python-grpc-tools-protoc", *includes, f"--python_out={tmp_path}", f"--pyi_out={tmp_path}", *protos)
    assert generated(REPO / "agent/api", REPO / "cri/api", below=REPO) == generated(tmp_path, below=tmp_path)


def accept(tool: str, *arguments: str) -> None:
    """Runs a tool of this environment on the tree; fails with what it said unless it exits with 0."""
    program = Path(sys.executable).parent / tool
    done = subprocess.run([program, *arguments], cwd=REPO, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert done.returncode == 0, f"{tool} {' '.join(arguments)}\n{done.stdout}"


def generated(*folders: Path, below: Path) -> dict[Path, str]:
    return {path.relative_to(below): path.read_text() for folder in folders for path in folder.rglob("*_pb2.py*") if path.suffix != ".pyc"}
