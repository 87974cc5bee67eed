"""What gVisor's runsc keeps of a container: files and a socket in its root, where runc and crun have one directory per container.

    <root>/<id>_sandbox:<sandbox>.state, .lock    <sandbox> is the id, where the container is a sandbox of its own
    <root>/runsc-<id>.sock                        of the sandbox; in /run where that path would be too long for a socket

`runsc delete` removes them all, the state last. Used by `agent.runtime.v2.engine`, which looks whether that was done, and by
`agent.leaks.directories`, which tells by the name whose a file is. Blocks.
"""

from __future__ import annotations

import re
from pathlib import Path

_ELSEWHERE = Path("/run")
_NAME = re.compile(r"(?P<id>[^:/]+)_sandbox:[^:/]+\.(?:state|lock)|runsc-(?P<sandbox>[^:/]+)\.sock")


def of(root: Path, container: str, elsewhere: Path = _ELSEWHERE) -> list[Path]:
    """Those of one container that are there. `elsewhere` is another place in tests only. Raises OSError."""
    socket = f"runsc-{container}.sock"
    found = [path for path in (elsewhere / socket,) if path.is_socket()]
    if root.is_dir():
        found += [path for path in root.iterdir() if owner(path.name) == container]
    return sorted(found)


def owner(name: str) -> str:
    """The container that an entry of an engine's root is of: its own name, unless it is one of runsc's files."""
    found = _NAME.fullmatch(name)
    return (found["id"] or found["sandbox"]) if found else name
