"""What handlers can do, by what their engines print."""

from __future__ import annotations

import json

import pytest

from agent.config.handlers import RuntimeHandler
from agent.errdefs import DeadlineExceeded
from agent.linux.processes import Command, Completed
from agent.runtime.v2 import features

ALL = json.dumps({"ociVersionMax": "1.2.1", "mountOptions": ["ro", "rro"]}).encode()
RUNC = RuntimeHandler("runc", engine="/usr/bin/runc")


class Engines:
    """Engines that answer, by their names."""

    def __init__(self, **answers: Completed | Exception) -> None:
        self.answers = answers

    async def run(self, command: Command) -> Completed:
        engine, verb = command.argv
        assert verb == "features"
        answer = self.answers[engine.rpartition("/")[2]]
        if isinstance(answer, Exception):
            raise answer
        return answer


async def test_each_handler_has_those_of_its_engine() -> None:
    handlers = [RUNC, RuntimeHandler("default"), RuntimeHandler("crun", engine="crun"), RuntimeHandler("kata", "io.containerd.kata.v2")]
    engines = Engines(runc=Completed(0, ALL, b""), crun=Completed(1, b"", b"unknown command features"))
    found = await features.detect(handlers, engines, "6.1.0-18-amd64")
    assert {name: has.recursive_read_only for name, has in found.items()} == {"runc": True, "default": True, "crun": False, "kata": False}
    assert "unknown command features" in found["crun"].no_recursive_read_only
    assert "'kata' has no engine" in found["kata"].no_recursive_read_only


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (Completed(0, b'{"mountOptions": ["ro"]}', b""), "no mount option rro"),
        (Completed(0, b"{}", b""), "no mount option rro"),
        (Completed(0, b'{"mountOptions": null}', b""), "no mount option rro"),
        (Completed(0, b'{"mountOptions": 7}', b""), "no JSON object of features"),
        (Completed(0, b"[]", b""), "no JSON object of features"),
        (Completed(0, b"\xff", b""), "no JSON object of features"),
        (Completed(0, b"", b""), "no JSON object of features"),
        (Completed(-9, b"killed", b""), "ended with -9: killed"),
        (FileNotFoundError(2, "No such file or directory", "/usr/bin/runc"), "No such file"),
        (DeadlineExceeded("runc features took longer than 5 s"), "took longer"),
    ],
)
async def test_an_engine_that_does_not_say_is_used_without(answer: Completed | Exception, words: str) -> None:
    found = await features.detect([RUNC], Engines(runc=answer), "6.1.0")
    assert words in found["runc"].no_recursive_read_only


@pytest.mark.parametrize(
    ("release", "able"), [("5.11.22-generic", False), ("5.12.0", True), ("5.15", True), ("4.18.0-553.el8", False), ("6.1", True)]
)
async def test_the_kernel_must_have_it_as_well(release: str, able: bool) -> None:
    found = await features.detect([RUNC], Engines(runc=Completed(0, ALL, b"")), release)
    assert found["runc"].recursive_read_only is able
