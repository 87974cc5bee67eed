"""The chart in `helm/orlop`, rendered and linted by Helm's own code and checked against the schemas of Kubernetes."""

from __future__ import annotations

import json
import platform
import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from http.server import BaseHTTPRequestHandler, HTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from agent import metrics, timeouts
from agent.cli.main import Options, main
from agent.config import settings
from deploy import image
from tests import helm
from tests.helm import CHART, REPO

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="for Linux, Helm's package is built for x86_64 only")

DIGEST = f"sha256:{'0f' * 32}"
EVERYTHING = {
    "image": {"repository": "registry.example.com:5000/nodes/orlop-watch", "digest": DIGEST, "pullPolicy": "Always"},
    "imagePullSecrets": [{"name": "mine"}],
    "fullnameOverride": "watcher",
    "watch": {"interval": 30, "grace": 600},
    "metrics": {"port": 19745},
    "extraHostPaths": [{"name": "orlop", "path": "/var/lib/orlop"}, {"name": "k", "path": "/var/snap/microk8s/common/run"}],
    "serviceAccount": {"create": True, "annotations": {"a/b": "c"}},
    "podAnnotations": {"note": "x"},
    "podLabels": {"team": "nodes"},
    "resources": {"requests": {"cpu": 1, "memory": "1Gi"}, "limits": {"cpu": "1.5", "memory": "2Gi"}},
    "nodeSelector": {"pool": "a"},
    "tolerations": [{"key": "x", "operator": "Equal", "value": "y", "effect": "NoExecute", "tolerationSeconds": 7}],
    "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {
        "nodeSelectorTerms": [{"matchExpressions": [{"key": "runtime", "operator": "NotIn", "values": ["orlop"]}]}]}}},
    "priorityClassName": "system-node-critical",
    "seLinuxType": "",
    "podMonitor": {"enabled": True, "interval": "15s", "labels": {"release": "prometheus"}},
    "prometheusRule": {"enabled": True, "serve": True, "labels": {"release": "prometheus"}, "disabled": ["OrlopMissing"]},
    "dashboard": {"enabled": True, "annotations": {"folder": "Nodes"}},
}  # fmt: skip
BARE = {
    "serviceAccount": {"create": False},
    "imagePullSecrets": [],
    "tolerations": [],
    "nodeSelector": {},
    "resources": {},
    "updateStrategy": {"type": "OnDelete", "rollingUpdate": None},
    "global": {"anything": True},
}
CASES: Mapping[str, Mapping[str, Any]] = {"default": {}, "everything": EVERYTHING, "bare": BARE}
NAMES = {"default": "leaks-orlop", "everything": "watcher", "bare": "leaks-orlop"}
OF_THE_OPERATOR = {"PodMonitor", "PrometheusRule"}
"""Kinds of the Prometheus operator: their schemas are in no package."""
REFUSED: Mapping[str, tuple[Mapping[str, Any], str]] = {
    "unknown key": ({"mertics": {"port": 1}}, "additional properties 'mertics' not allowed"),
    "unknown key inside": ({"image": {"tags": "1"}}, "at '/image': additional properties 'tags' not allowed"),
    "too often": ({"watch": {"interval": 1}}, "at '/watch/interval': minimum: got 1, want 10"),
    "too seldom for the alert": ({"watch": {"interval": 120}}, "at '/watch/interval': maximum: got 120, want 90"),
    "no number": ({"watch": {"grace": "5m"}}, "at '/watch/grace': got string, want integer"),
    "no port": ({"metrics": {"port": 70000}}, "at '/metrics/port': maximum: got 70,000, want 65,535"),
    "policy": ({"image": {"pullPolicy": "Sometimes"}}, "at '/image/pullPolicy': value must be one of"),
    "digest": ({"image": {"digest": "latest"}}, "at '/image/digest': 'latest' does not match pattern"),
    "relative": ({"extraHostPaths": [{"name": "x", "path": "var"}]}, "at '/extraHostPaths/0/path': 'var' does not match pattern"),
    "nameless": ({"extraHostPaths": [{"path": "/var"}]}, "at '/extraHostPaths/0': missing property 'name'"),
    "privileges": ({"securityContext": {"privileged": True}}, "additional properties 'securityContext' not allowed"),
    "memory": ({"resources": {"limits": {"memory": "lots"}}}, "at '/resources/limits/memory': 'lots' does not match pattern"),
    "two at a time": ({"updateStrategy": {"rollingUpdate": {"maxSurge": 1}}}, "at '/updateStrategy/rollingUpdate/maxSurge'"),
    "label": ({"podLabels": {"a": 1}}, "at '/podLabels/a': got number, want string"),
    "alert": ({"prometheusRule": {"disabled": ["NodeDown"]}}, "at '/prometheusRule/disabled/0': 'NodeDown' does not match pattern"),
}


@cache
def rendered() -> dict[str, dict[str, str]]:
    """By case, then by template."""
    return dict(zip(CASES, helm.render(*CASES.values()), strict=True))


def objects(case: str) -> dict[str, dict[str, Any]]:
    return helm.documents(rendered()[case])


def daemonset(case: str) -> dict[str, Any]:
    """Its spec."""
    spec: dict[str, Any] = objects(case)[f"DaemonSet/{NAMES[case]}"]["spec"]
    return spec


def pod(case: str) -> dict[str, Any]:
    spec: dict[str, Any] = daemonset(case)["template"]["spec"]
    return spec


def container(case: str) -> dict[str, Any]:
    [only] = pod(case)["containers"]
    return dict(only)


each = pytest.mark.parametrize("case", CASES)


def test_helm_finds_nothing_to_complain_about() -> None:
    assert helm.lint(*CASES.values()) == [[] for _ in CASES]


@each
def test_kubernetes_takes_what_comes_out(case: str) -> None:
    for document in objects(case).values():
        if document["kind"] not in OF_THE_OPERATOR:
            for version in ("1.30", kubernetes_validate.latest_version()):
                kubernetes_validate.validate(document, version, strict=True)


def test_that_check_sees_a_field_that_there_is_not() -> None:
    wrong = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": {"containers": [{"name": "x", "imagee": "y"}]}}
    with pytest.raises(kubernetes_validate.ValidationError, match="imagee"):
        kubernetes_validate.validate(wrong, "1.30", strict=True)


def test_what_is_not_asked_for_is_not_made() -> None:
    common = {"ConfigMap", "DaemonSet", "Pod", "Service", "ServiceAccount"}
    assert {document["kind"] for document in objects("default").values()} == common
    assert {document["kind"] for document in objects("everything").values()} == common | OF_THE_OPERATOR
    assert {document["kind"] for document in objects("bare").values()} == common - {"ServiceAccount"}
    assert "ConfigMap/watcher-dashboard" in objects("everything")


def test_bad_values_are_refused_with_their_names() -> None:
    said = helm.refusals(*(values for values, _ in REFUSED.values()))
    missing = {name: answer for (name, (_, expected)), answer in zip(REFUSED.items(), said, strict=True) if expected not in answer}
    assert missing == {}


@each
def test_it_may_do_what_it_needs_and_no_more(case: str) -> None:
    unit = (REPO / "deploy/orlop-watch.service").read_text()
    [needed] = re.findall(r"^CapabilityBoundingSet=(.*)$", unit, re.MULTILINE)
    security = container(case)["securityContext"]
    assert security["capabilities"] == {"drop": ["ALL"], "add": [name.removeprefix("CAP_") for name in needed.split()]}
    assert (security["privileged"], security["allowPrivilegeEscalation"], security["readOnlyRootFilesystem"]) == (False, False, True)
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod(case)["automountServiceAccountToken"] is False
    assert not [kind for kind in objects(case) if re.match("(Cluster)?Role", kind)]


@each
def test_the_node_is_mounted_for_reading_only_and_nothing_of_it_is_held(case: str) -> None:
    of_node = {volume["name"] for volume in pod(case)["volumes"] if "hostPath" in volume}
    mounts = {mount["name"]: mount for mount in container(case)["volumeMounts"]}
    assert len(of_node) >= 3
    for name in of_node:
        assert (mounts[name]["readOnly"], mounts[name]["mountPropagation"]) == (True, "HostToContainer"), name
    writable = {name for name, mount in mounts.items() if not mount.get("readOnly")}
    assert writable == {"tmp"}


def test_every_right_is_explained() -> None:
    """Each capability, mount and namespace of the node has a comment before it."""
    lines = (CHART / "templates/daemonset.yaml").read_text().splitlines()
    explained = {line.strip() for before, line in pairwise(lines) if before.strip().startswith("#")}
    capabilities = {f"- {name}" for name in container("default")["securityContext"]["capabilities"]["add"]}
    mounts = {f"- name: {mount['name']}" for mount in container("default")["volumeMounts"] if mount["name"] != "config"}
    assert explained >= capabilities | mounts | {"hostPID: true", "hostNetwork: true", "runAsUser: 0", "appArmorProfile:"}


@each
def test_the_command_is_one_and_it_ends_in_time(case: str) -> None:
    name, *arguments = container(case)["args"]
    main.commands[name].make_context(name, list(arguments), obj=Options("", "table", Path()))  # raises for what there is not
    assert image.CONFIG["Entrypoint"] == ["/usr/local/bin/orlop"]
    assert pod(case)["terminationGracePeriodSeconds"] > timeouts.DAEMON_KILL


def test_values_are_where_they_belong() -> None:
    assert container("default")["image"] == f"{image.NAME}:{image.version()}"
    assert container("everything")["image"] == f"registry.example.com:5000/nodes/orlop-watch@{DIGEST}"
    assert container("everything")["args"] == ["watch", "--address", "$(POD_IP):19745", "--interval", "30", "--grace", "600"]
    assert pod("everything")["priorityClassName"] == "system-node-critical"
    assert "seLinuxOptions" in container("default")["securityContext"]
    assert "seLinuxOptions" not in container("everything")["securityContext"]
    assert daemonset("default")["template"]["metadata"]["annotations"].keys() == {"checksum/config"}
    [port] = {port["containerPort"] for port in container("everything")["ports"]}
    assert port == objects("everything")["Service/watcher"]["spec"]["ports"][0]["port"] == 19745
    rules = objects("everything")["PrometheusRule/watcher"]["spec"]["groups"]
    alerts = {rule["alert"] for group in rules for rule in group["rules"]}
    assert {"OrlopLeaks", "OrlopQuarantined"} <= alerts
    assert "OrlopMissing" not in alerts


@each
def test_everybody_finds_the_pods(case: str) -> None:
    labels = daemonset(case)["template"]["metadata"]["labels"].items()
    selectors = [daemonset(case)["selector"]["matchLabels"], objects(case)[f"Service/{NAMES[case]}"]["spec"]["selector"]]
    if case == "everything":
        selectors.append(objects(case)["PodMonitor/watcher"]["spec"]["selector"]["matchLabels"])
    assert all(selector.items() <= labels for selector in selectors)
    test = objects(case)[f"Pod/{NAMES[case]}-test"]
    assert not selectors[0].items() <= test["metadata"]["labels"].items()


def test_the_configuration_in_it_is_understood(tmp_path: Path) -> None:
    for name, text in objects("default")["ConfigMap/leaks-orlop"]["data"].items():
        (tmp_path / name).write_text(text)
    assert settings.load(tmp_path / "config.toml").log.format == "json"


def test_one_version_for_the_project_the_image_and_the_chart() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["version"] == chart["appVersion"] == image.version()


def test_the_notes_say_how_to_go_on() -> None:
    notes = rendered()["default"]["templates/NOTES.txt"]
    assert "kubectl --namespace monitoring exec daemonset/leaks-orlop -- orlop audit" in notes
    assert "podMonitor.enabled=true" in notes
    assert "podMonitor.enabled=true" not in rendered()["everything"]["templates/NOTES.txt"]


# ---- metrics


def rules(name: str) -> dict[str, dict[str, Any]]:
    groups = yaml.safe_load((CHART / "rules" / name).read_text())["groups"]
    return {rule["alert"]: rule for group in groups for rule in group["rules"]}


def dashboard() -> dict[str, Any]:
    text = objects("everything")["ConfigMap/watcher-dashboard"]["data"]["orlop.json"]
    document: dict[str, Any] = json.loads(text)
    return document


def known(registry: Any = metrics.registry) -> dict[str, set[str]]:
    """Each name that is scraped, with its labels."""
    found: dict[str, set[str]] = {}
    for collector in registry._collector_to_names:
        labels = set(collector._labelnames)
        ends = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}.get(collector._type, ("",))
        found.update({f"{collector._name}{end}": labels | ({"le"} if end == "_bucket" else set()) for end in ends})
    return found


def unknown(expression: str, names: Mapping[str, set[str]]) -> list[str]:
    """What an expression uses and nobody serves: metrics, and labels in matchers and in `by`."""
    used = re.findall(r"\b(orlop_\w+)(?:\{([^}]*)\})?", expression)
    wrong = [name for name, _ in used if name not in names]
    labels = set().union(*(names.get(name, set()) for name, _ in used)) | {"node", "instance"}
    mentioned = [label for _, matchers in used for label in re.findall(r"(\w+)[=!]", matchers)]
    mentioned += [label.strip() for group in re.findall(r"by \(([^)]*)\)", expression) for label in group.split(",")]
    return wrong + [label for label in mentioned if label not in labels]


def test_every_metric_of_the_alerts_is_served() -> None:
    assert [found for rule in rules("audits.yaml").values() for found in unknown(rule["expr"], known(metrics.of_audits))] == []
    assert [found for rule in rules("serve.yaml").values() for found in unknown(rule["expr"], known())] == []


def test_every_metric_of_the_dashboard_is_served() -> None:
    expressions = [target["expr"] for panel in dashboard()["panels"] for target in panel.get("targets", ())]
    expressions += [variable["definition"].replace("label_values(", "").split(",")[0] for variable in dashboard()["templating"]["list"][1:]]
    assert len(expressions) > 20
    assert [found for expression in expressions for found in unknown(expression, known())] == []


def test_that_check_sees_what_nobody_serves() -> None:
    wrong = unknown('sum by (node, colour) (orlop_leaks{kid="shim"}) + orlop_leeks + orlop_leaks_found', known())
    assert wrong == ["orlop_leeks", "orlop_leaks_found", "kid", "colour"]


def test_panels_have_their_own_numbers_and_places() -> None:
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in panels)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24


def test_alerts_say_what_to_do_and_the_readme_names_them() -> None:
    readme = (CHART / "README.md").read_text()
    alerts = rules("audits.yaml") | rules("serve.yaml")
    for name, rule in alerts.items():
        assert rule["annotations"].keys() == {"summary", "description", "runbook"}, name
        assert rule["labels"]["severity"] in ("warning", "critical"), name
        assert f"| `{name}` |" in readme, name
    assert set(re.findall(r"\| `(Orlop\w+)` \|", readme)) == alerts.keys()


def test_the_readme_names_every_value() -> None:
    def keys(values: Mapping[str, Any], below: str = "") -> Iterator[str]:
        for key, value in values.items():
            whole = isinstance(value, dict) and value and key not in ("resources", "nodeSelector", "updateStrategy", "labels")
            yield from keys(value, f"{below}{key}.") if whole else [f"{below}{key}"]

    table = (CHART / "README.md").read_text().partition("## Values")[2]
    named = re.findall(r"^\| `([a-z]\w*(?:\.\w+)*)` \|", table, re.MULTILINE)
    assert sorted(named) == sorted(keys(yaml.safe_load((CHART / "values.yaml").read_text())))


# ---- helm test


@contextmanager
def answering(body: str) -> Iterator[int]:
    """Somebody at a port of the loopback interface who answers so."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/metrics" else 404)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def helm_test(port: int, patience: str = "150.0") -> subprocess.CompletedProcess[str]:
    """What the test pod runs, with less patience."""
    [test] = objects("default")["Pod/leaks-orlop-test"]["spec"]["containers"]
    script = test["command"][2].replace("PATIENCE = 150.0", f"PATIENCE = {patience}")
    return subprocess.run([sys.executable, "-c", script, "127.0.0.1", str(port)], capture_output=True, text=True, check=False, timeout=30)


def test_helm_test_is_content_with_nodes_that_are_audited() -> None:
    with answering("orlop_last_audit_timestamp_seconds 1.79e+09\n") as port:
        done = helm_test(port)
    assert (done.returncode, done.stdout) == (0, "1 nodes are audited: 127.0.0.1\n")


@pytest.mark.parametrize(
    ("body", "problem"), [("orlop_last_audit_timestamp_seconds 0.0\n", "not ended an audit"), ("", "not ended an audit")]
)
def test_helm_test_fails_for_a_node_that_is_not_audited(body: str, problem: str) -> None:
    with answering(body) as port:
        done = helm_test(port, patience="-1")
    assert (done.returncode, problem in done.stdout) == (1, True)


def test_helm_test_fails_for_a_pod_that_does_not_answer() -> None:
    with answering("") as port:
        pass
    done = helm_test(port, patience="-1")
    assert (done.returncode, "127.0.0.1 doesn't answer" in done.stdout) == (1, True)
