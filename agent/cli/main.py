"""The command tree of `orlop`. Commands import what they need when they run: `orlop ps` has no use for a daemon's modules."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, NoReturn, ParamSpec

import click

from agent.errdefs import OrlopError

# grpc's fork handlers would stop the world around every child that the agent starts; none of them runs Python code.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

DEFAULT_CONFIG = Path("/etc/orlop/config.toml")
DEFAULT_SOCKET = "/run/orlop/orlop.sock"
FORMS = ("table", "json")


@dataclass(frozen=True)
class Options:
    """What every command takes."""

    socket: str
    output: str
    config: Path


P = ParamSpec("P")


def options(command: Callable[Concatenate[Options, P], None]) -> Callable[..., None]:
    """What every command takes can also be said after its name, where people say it."""

    @click.option("--socket", help="As before the command.")
    @click.option("-o", "--output", type=click.Choice(FORMS), help="As before the command.")
    @click.pass_obj
    @wraps(command)
    def with_options(given: Options, /, socket: str | None, output: str | None, *args: P.args, **kwargs: P.kwargs) -> None:
        command(replace(given, socket=socket or given.socket, output=output or given.output), *args, **kwargs)

    return with_options


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--socket", envvar="ORLOP_SOCKET", default=DEFAULT_SOCKET, show_default=True, help="CRI socket to talk to.")
@click.option("-o", "--output", type=click.Choice(FORMS), default="table", show_default=True, help="Tables for people, JSON for programs.")
@click.option("--config", envvar="ORLOP_CONFIG", type=click.Path(path_type=Path), default=DEFAULT_CONFIG, show_default=True)
@click.version_option(package_name="orlop")
@click.pass_context
def main(context: click.Context, socket: str, output: str, config: Path) -> None:
    """A Kubernetes CRI runtime and node agent whose teardown leaks nothing."""
    context.obj = Options(socket, output, config)


@main.command()
@click.option("--config", type=click.Path(path_type=Path), help="Overrides the option of the same name before the command.")
@options
def serve(given: Options, config: Path | None) -> None:
    """Run the daemon until SIGTERM. Pods live on."""
    from agent import log
    from agent.config import settings
    from agent.daemon.serve import serve as run_daemon

    def run() -> None:
        loaded = settings.load(config or given.config)
        log.configure(level=loaded.log.level, style=loaded.log.format)
        asyncio.run(run_daemon(loaded))

    _reporting(run)


@main.command()
@click.argument("manifest", type=click.Path(path_type=Path))
@click.option("--rm", "remove", is_flag=True, help="Take the pod down when its containers have ended.")
@click.option("--wait", is_flag=True, help="Wait until the containers have ended; exit with the first code that isn't 0.")
@click.option("--log-root", default="/var/log/pods", show_default=True, help="Where the pod's log directory is made.")
@options
def run(given: Options, manifest: Path, remove: bool, wait: bool, log_root: str) -> None:
    """Run a Kubernetes Pod manifest."""
    from agent.cli.run import run as run_pod

    _calling(given, lambda client: run_pod(client, manifest, remove=remove, wait=wait, log_root=log_root, output=given.output))


@main.command()
@options
def ps(given: Options) -> None:
    """List pods and their containers."""
    from agent.cli.pods import ps as list_pods

    _calling(given, lambda client: list_pods(client, given.output))


@main.command()
@click.argument("container")
@click.option("-f", "--follow", is_flag=True, help="Go on until the container ends.")
@click.option("-t", "--timestamps", is_flag=True, help="Print when each line was written.")
@options
def logs(given: Options, container: str, follow: bool, timestamps: bool) -> None:
    """Print a container's log. CONTAINER is an id, the beginning of one, a name, or POD/NAME."""
    from agent.cli.logs import logs as print_logs

    _calling(given, lambda client: print_logs(client, container, given.output, follow=follow, timestamps=timestamps))


@main.command("exec", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.argument("container")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option("--timeout", default=0, help="Seconds; 0 for none.")
@options
def execute(given: Options, container: str, command: tuple[str, ...], timeout: int) -> None:
    """Run a command in a container and print what it printed: orlop exec web/app -- ls /."""
    from agent.cli.pods import execute as run_command

    words = list(command[1:] if command[0] == "--" else command)
    _calling(given, lambda client: run_command(client, container, words, timeout, given.output))


@main.command()
@click.argument("pods", nargs=-1, required=True)
@click.option("--grace", default=30, show_default=True, help="Seconds between the stop signal and SIGKILL.")
@options
def rm(given: Options, pods: tuple[str, ...], grace: int) -> None:
    """Stop and remove pods, by id, beginning of one, or name."""
    from agent.cli.pods import remove

    _calling(given, lambda client: remove(client, list(pods), grace, given.output))


@main.command()
@click.option("--config", type=click.Path(path_type=Path), help="Overrides the option of the same name before the command.")
@click.option("--npd", is_flag=True, help="One line and the exit code for node-problem-detector's custom plugin monitor.")
@click.option("--grace", default=300.0, show_default=True, help="Seconds; what may be another runtime's and is younger isn't judged.")
@options
def audit(given: Options, config: Path | None, npd: bool, grace: float) -> None:
    """Compare the node with the ledger, and with what other runtimes on it have.

    Shows what is leaked, missing, or could not be released yet, whose it was, what it pins and what would release it. The daemon
    may be down, or never have been there. Exit code: 0 for clean, 1 if there is any, 2 if the node could not be looked at.
    """
    from agent.cli.audit import run as run_audit

    _reporting(lambda: run_audit(config or given.config, given.socket, "npd" if npd else given.output, grace))


@main.command()
@click.option("--config", type=click.Path(path_type=Path), help="Overrides the option of the same name before the command.")
@click.option("--kind", "kinds", multiple=True, help="Only of this kind, as `orlop audit` shows it. Can be given several times.")
@click.option("--owner", "owners", multiple=True, help="Only what was this runtime's. Can be given several times.")
@click.option("--dry-run", is_flag=True, help="Show what would be released, in its order.")
@click.option("--yes", is_flag=True, help="Don't ask before things of other runtimes are released.")
@click.option("--grace", default=300.0, show_default=True, help="Seconds; what may be another runtime's and is younger stays.")
@options
def reap(
    given: Options, config: Path | None, kinds: tuple[str, ...], owners: tuple[str, ...], dry_run: bool, yes: bool, grace: float
) -> None:  # fmt: skip
    """Release what an audit finds leaked, dependents first.

    Each thing is compared again with what was found right before it is released. What is missing, pending or unknown is left alone.
    Exit code: 0 if all of it is gone, 1 if something is left, 2 if the node could not be looked at.
    """
    from agent.cli.reap import Wish
    from agent.cli.reap import run as run_reap

    wish = Wish(kinds, owners, dry_run=dry_run, yes=yes, grace=grace, form=given.output)
    _reporting(lambda: run_reap(config or given.config, given.socket, wish))


@main.command()
@click.argument("subject", metavar="POD|CONTAINER|PATH|PID")
@click.option("--config", type=click.Path(path_type=Path), help="Overrides the option of the same name before the command.")
@options
def explain(given: Options, subject: str, config: Path | None) -> None:
    """Tell what a pod, container, path or process holds, what holds it, and which release is pending.

    With how often that was tried, with what error, when it is tried next, what you can do, and what happened so far. The daemon
    may be down.
    """
    from agent.cli.explain import explain_command

    _reporting(lambda: explain_command(config or given.config, given.socket, subject, given.output))


@main.command()
@click.option("--config", type=click.Path(path_type=Path), help="Overrides the option of the same name before the command.")
@click.option("--address", metavar="HOST:PORT", help="Of /metrics and /healthz; '' for none.  [default: metrics_address]")
@click.option("--interval", default=60.0, show_default=True, type=click.FloatRange(1, 86400), help="Seconds between audits, more or less.")
@click.option("--grace", default=300.0, show_default=True, help="Seconds; what may be another runtime's and is younger isn't judged.")
@options
def watch(given: Options, config: Path | None, address: str | None, interval: float, grace: float) -> None:
    """Audit this node until SIGTERM, beside whatever runtime it has: metrics, and a log line for what is leaked and what is gone.

    Only reads. `orlop serve` does the same by itself; this is for nodes that have it not.
    """
    from agent.cli.watch import run as run_watch

    _reporting(lambda: run_watch(config or given.config, given.socket, address, interval, grace))


@main.group()
def image() -> None:
    """Images on this node."""


@image.command("import")
@click.argument("archive", type=click.Path(path_type=Path))
@options
def import_image(given: Options, archive: Path) -> None:
    """Import an OCI layout (directory or tar) or a `docker save` archive."""
    from agent.cli.images import import_archive

    _calling(given, lambda client: import_archive(client, archive, given.output))


@image.command("pull")
@click.argument("reference")
@click.option("--creds", envvar="ORLOP_CREDS", default="", metavar="USER[:PASSWORD]", help="The password is asked for if left out.")
@options
def pull_image(given: Options, reference: str, creds: str) -> None:
    """Pull an image from its registry, or from the mirrors that are set for it."""
    from agent.cli.pull import ask_password, pull

    complete = ask_password(creds)
    _calling(given, lambda client: pull(client, reference, complete, given.output))


@image.command("ls")
@options
def list_images(given: Options) -> None:
    """List images."""
    from agent.cli.images import list_images as print_images

    _calling(given, lambda client: print_images(client, given.output))


@image.command("rm")
@click.argument("references", nargs=-1, required=True)
@options
def remove_images(given: Options, references: tuple[str, ...]) -> None:
    """Remove images by tag, digest or id."""
    from agent.cli.images import remove

    _calling(given, lambda client: remove(client, list(references), given.output))


@main.command()
@options
def doctor(given: Options) -> None:
    """Tell whether this node can run pods, and what it doesn't allow. Exit code 1 when something is bad."""
    from agent.cli.doctor import doctor as examine
    from agent.config import settings

    _calling(given, lambda client: examine(settings.load(given.config), client, given.output))


@main.command()
@click.argument("sockets", nargs=-1, metavar="SOCKET [SOCKET ...]")
@click.option("--image", required=True, help="With sh, cat, sleep and true, as busybox has them. Pulled if it isn't there.")
@click.option("--large-image", default="", help="Removed and pulled, to measure that.")
@click.option("--only", multiple=True, metavar="FAMILY", help="pods, parallel, exec, logs, images, lists, restart. Default: all.")
@click.option("--pods", default=30, show_default=True, help="Pods one after the other on each socket.", type=click.IntRange(1))
@click.option("--parallel", default=8, show_default=True, help="Pods at a time.", type=click.IntRange(1))
@click.option("--containers", default=100, show_default=True, help="For lists and restarts.", type=click.IntRange(1))
@click.option("--repeats", default=30, show_default=True, help="Of lists and execs.", type=click.IntRange(1))
@click.option("--turns", default=3, show_default=True, help="Of what takes seconds.", type=click.IntRange(1))
@click.option("--log-bytes", default=64 << 20, show_default=True, help="Printed to be logged in a turn.", type=click.IntRange(4096))
@click.option("--host-network", is_flag=True, help="Pods in the host's network, without CNI.")
@click.option("--handler", default="", help="Runtime handler of the pods.")
@click.option("--cgroup-parent", default="", metavar="PATH|SLICE", help="Where the pods' cgroups go.")
@click.option("--cgroup", multiple=True, metavar="SOCKET=PATH", help="A cgroup that daemon, helpers or shims are in, if not the daemon's.")
@click.option("--restart", multiple=True, metavar="SOCKET=COMMAND", help="Restarts the daemon.")
@click.option("--critest", multiple=True, metavar="SOCKET=DIR", help="What `critest -benchmark` wrote, to be shown, too.")
@click.option("--log-root", default="/var/log/pods", show_default=True, help="Where pods' log directories are made.", type=click.Path())
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write everything there, with each sample.")
@click.option("--svg", "svg_file", type=click.Path(path_type=Path), help="Draw the comparison there.")
@options
def bench(
    given: Options, /, sockets: tuple[str, ...], only: tuple[str, ...], cgroup: tuple[str, ...], restart: tuple[str, ...],
    critest: tuple[str, ...], log_root: str, json_file: Path | None, svg_file: Path | None, **sizes: Any,
) -> None:  # fmt: skip
    """Measure CRI runtimes side by side, by turns; the first SOCKET is what the others are compared with.

    Any CRI socket will do: Orlop's, containerd's, CRI-O's. What can't be measured is shown as n/a, with the reason. Pods are named
    bench-..., in namespace orlop-bench, and removed again, also after Ctrl-C.
    """
    from agent.bench.plan import Plan
    from agent.cli.bench import bench as measure
    from agent.cli.bench import by_socket

    def run() -> None:
        names = sockets or (given.socket,)
        plan = Plan(
            **sizes,
            families=frozenset(only),
            log_root=Path(log_root),
            cgroups={socket: tuple(paths) for socket, paths in by_socket("--cgroup", cgroup, names).items()},
            restarts={socket: commands[-1] for socket, commands in by_socket("--restart", restart, names).items()},
            critest={socket: Path(directories[-1]) for socket, directories in by_socket("--critest", critest, names).items()},
        )
        asyncio.run(measure(plan, names, given.output, json_file, svg_file))

    _reporting(run)


def _calling(given: Options, work: Callable[[Any], Coroutine[Any, Any, int | None]]) -> NoReturn:
    """Run `work` with a client of the socket; its result is the exit code."""
    from cri.client import Client

    async def call() -> int | None:
        async with Client(given.socket) as client:
            return await work(client)

    _reporting(lambda: asyncio.run(call()))


def _reporting(work: Callable[[], int | None]) -> NoReturn:
    """Errors are sentences on stderr and exit code 1, never a traceback; 130 after Ctrl-C."""
    try:
        sys.exit(work() or 0)
    except OrlopError as error:
        click.echo("; ".join([f"orlop: {error}", *getattr(error, "__notes__", [])]), err=True)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main(prog_name="orlop")
