"""`iptables-save` and `ip6tables-save` in the image: of nftables and of the legacy tables, since either may be what the node's plugins use.

Installed under both names by `deploy.rootfs`. The legacy tables are read only where there are any: to ask for one makes it.
"""

import subprocess
import sys
from contextlib import suppress
from pathlib import Path

NAMES = {"iptables": "/proc/net/ip_tables_names", "ip6tables": "/proc/net/ip6_tables_names"}
"""Which legacy tables this network namespace has."""


def main(program: str, arguments: list[str]) -> int:
    family = Path(program).name.removesuffix("-save")
    kinds = ["nft"]
    with suppress(FileNotFoundError):  # the kernel has none of these
        kinds += ["legacy"] if "nat" in Path(NAMES[family]).read_text().split() else []
    return max(subprocess.run([f"/usr/sbin/{family}-{kind}-save", *arguments], check=False).returncode for kind in kinds)


if __name__ == "__main__":
    sys.exit(main(sys.argv[0], sys.argv[1:]))
