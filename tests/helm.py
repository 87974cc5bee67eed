"""Helm's own code on the chart in `helm/orlop`, in a process of its own: a Go runtime with its threads and signal handlers is no guest
for the interpreter that runs the tests. Called by the tests of the chart.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

REPO = Path(__file__).resolve().parents[1]
CHART = REPO / "helm/orlop"
RELEASE, NAMESPACE = "leaks", "monitoring"
Values = Mapping[str, Any]


class Refused(Exception):
    """Helm doesn't take these values; its own words."""


def render(*cases: Values) -> list[dict[str, str]]:
    """Each template of the chart with each of these values: its path below the chart -> what comes out.

    Raises:
        Refused: values that the schema doesn't allow, or a template that fails.
    """
    texts: list[dict[str, str]] = []
    for answer in _ask(*({"render": values} for values in cases)):
        if "error" in answer:
            raise Refused(answer["error"])
        texts.append({path.removeprefix("orlop/"): text for path, text in answer["result"].items()})
    return texts


def refusals(*cases: Values) -> list[str]:
    """What Helm says to each of these values; empty: it takes them."""
    return [str(answer.get("error", "")) for answer in _ask(*({"render": values} for values in cases))]


def lint(*cases: Values) -> list[list[str]]:
    """What `helm lint --strict` has to say, hints aside."""
    answers = _ask(*({"lint": values} for values in cases))
    return [[message["error"] for message in answer["result"]["messages"] if message["severity"] > 1] for answer in answers]


def documents(texts: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """The objects that come out, by kind and name."""
    found = [yaml.safe_load(text) for path, text in texts.items() if not path.endswith(".txt")]
    return {f"{one['kind']}/{one['metadata']['name']}": one for one in found if one}


def _ask(*questions: Mapping[str, Any]) -> list[dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.helm"], cwd=REPO, input=json.dumps(questions), capture_output=True, text=True, check=True
    )
    answers: list[dict[str, Any]] = json.loads(done.stdout)
    return answers


def _answer(question: Mapping[str, Any]) -> dict[str, Any]:
    import helm_python
    from helm_python import chart

    if "lint" in question:
        return {"result": chart.lint(CHART, dict(question["lint"]), strict=True, namespace=NAMESPACE)}
    try:
        with helm_python.Chart.load(CHART) as loaded:
            return {"result": loaded.render(dict(question["render"]), name=RELEASE, namespace=NAMESPACE)}
    except helm_python.HelmError as error:
        return {"error": str(error)}


if __name__ == "__main__":
    json.dump([_answer(question) for question in json.load(sys.stdin)], sys.stdout)
