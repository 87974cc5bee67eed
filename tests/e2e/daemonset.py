"""What a DaemonSet controller and a kubelet make of the chart's DaemonSet on one node: a Pod manifest that `orlop run` takes.

The downward API is filled in; a ConfigMap and an emptyDir become directories. All else stays as the chart has it.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

Objects = Mapping[str, Mapping[str, Any]]
"""`tests.helm.documents`."""


def pod_of(objects: Objects, daemonset: str, folder: Path, address: str) -> dict[str, Any]:
    """The pod on the node with this address; `folder` is for what its volumes are made of."""
    template = deepcopy(dict(objects[f"DaemonSet/{daemonset}"]["spec"]["template"]))
    spec: dict[str, Any] = template["spec"]
    for container in spec["containers"]:
        for variable in container.get("env", ()):
            if (source := variable.pop("valueFrom", None)) is not None:
                variable["value"] = {"status.podIP": address}[source["fieldRef"]["fieldPath"]]
    for volume in spec["volumes"]:
        place = folder / volume["name"]
        if (source := volume.pop("configMap", None)) is not None:
            place.mkdir()
            for name, text in objects[f"ConfigMap/{source['name']}"]["data"].items():
                (place / name).write_text(text)
            volume["hostPath"] = {"path": str(place)}
        elif volume.pop("emptyDir", None) is not None:
            place.mkdir(mode=0o777)
            volume["hostPath"] = {"path": str(place)}
        elif volume["hostPath"]["type"] == "DirectoryOrCreate":
            Path(volume["hostPath"]["path"]).mkdir(exist_ok=True)
    metadata = {
        **template["metadata"],
        "name": f"{daemonset}-x7k2p",
        "namespace": objects[f"DaemonSet/{daemonset}"]["metadata"]["namespace"],
    }
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}
