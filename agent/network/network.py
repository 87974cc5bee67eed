"""The pod network: whether it is ready, and CNI operations on sandboxes. `agent.pods` plans and adds, the ledger's release of
kind CNI deletes, `cri.server` asks for the status.

The order of a sandbox's life: `plan` -> the attachment goes into the ledger -> `add` -> `delete` until it worked. `add` leaves
the taking back of a half-done ADD to that `delete`, so there is one way to take it back.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from agent import failpoints, log, metrics, timeouts
from agent.aio import KeyedLock, Supervisor, in_thread
from agent.errdefs import DataLoss, DeadlineExceeded, FailedPrecondition, Internal, OrlopError, Unavailable, Unimplemented
from agent.identifiers import validate
from agent.network import cache, podargs
from agent.network.attachment import Attachment
from agent.network.chains import remove_chains_of
from agent.network.conf import VERSIONS, NetworkConfig, PluginConfig, at_least, parse_list, request
from agent.network.confdir import Look, generate, look
from agent.network.plugin import BIN_DIRS, Call, Plugins, Runner, Verb
from agent.network.result import Result, parse_result
from agent.network.strictjson import excerpt
from cri.api import api_pb2

CONF_DIR = Path("/etc/cni/net.d")
NOT_READY = "NetworkPluginNotReady"
"""The reason of a NetworkReady condition that is false; node tools know it from the kubelet's dockershim."""

_LOOK_EVERY = 1.0
_ASK_EVERY = 10.0

_log = log.get("network")


class Pins(Protocol):
    """The part of `agent.linux.namespaces.Namespaces` that is needed here."""

    async def inode(self, pin: Path) -> int | None: ...


@dataclass(frozen=True)
class NetworkStatus:
    """The CRI's NetworkReady condition. A ready network can have a message: files that were ignored, and why."""

    ready: bool
    reason: str = ""
    message: str = ""


class Network:
    """The node's pod network. Errors of its operations are told with the plugin, the verb, the sandbox and the plugin's words.

    `runner` is the node's `Processes`, `pins` its `Namespaces`; `cgroup` is where plugins run (see `Command.cgroup`).
    `conf_template` is what `configure` makes a network from; without one, it makes none. `remove_chains` is `chains.remove_chains_of`.
    An operation that has begun runs to its end, whatever becomes of its caller, and one at a time per sandbox
    (specification, section 3, "Lifecycle & Ordering").
    """

    def __init__(
        self,
        runner: Runner,
        pins: Pins,
        *,
        conf_dir: Path = CONF_DIR,
        conf_template: Path | None = None,
        bin_dirs: Iterable[Path] = BIN_DIRS,
        cache_dir: Path = cache.DIRECTORY,
        cgroup: str = "",
        environ: Mapping[str, str] = os.environ,
        budget: float = timeouts.CNI,
        remove_chains: Callable[[str, str], Sequence[str]] = remove_chains_of,
    ) -> None:
        self._plugins = Plugins(runner, bin_dirs, environ, cgroup)
        self._pins = pins
        self._cache = cache.ResultCache(cache_dir)
        self._conf_dir = conf_dir
        self._conf_template = conf_template
        self._configuring = asyncio.Lock()
        self._budget = budget
        self._remove_chains = remove_chains
        self._untouched: set[str] = set()
        """Sandboxes that we have begun to attach, and not yet to detach."""
        self._locks = KeyedLock()
        self._supervisor = Supervisor("network")
        self._seen = Look()
        self._missing: tuple[str, ...] = ()
        self._unable = ""  # why the plugins can't serve, by their own STATUS
        self._asked_at = -_ASK_EVERY
        self._watching: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Read the configuration, and watch it from now on. Plugins are not asked yet: one that hangs must not delay the daemon."""
        await self._read()
        self._watching = self._supervisor.start(self._watch(), name="conf watch")

    async def stop(self, budget: float) -> None:
        """Stop watching; operations in flight get `budget` seconds to end, then their plugins are killed."""
        if self._watching is not None:
            self._watching.cancel()
        await self._supervisor.stop(budget)

    def status(self) -> NetworkStatus:
        """Whether pods can be attached now. From memory, at the most a second old."""
        problems = "; ".join(filter(None, [self._seen.problem, *self._seen.selection.rejected]))
        if (network := self._seen.network) is None:
            text = (
                f"no usable network config in {self._conf_dir}: {problems}" if problems else f"no network config found in {self._conf_dir}"
            )
            return NetworkStatus(False, NOT_READY, text)
        missing = f"no plugin {', '.join(self._missing)} in {self._plugins.search_path}" if self._missing else ""
        if reason := missing or self._unable:
            return NetworkStatus(False, NOT_READY, f"network {network.name} ({network.source}): {reason}")
        return NetworkStatus(True, message=problems)

    def plan(
        self, sandbox: str, config: api_pb2.PodSandboxConfig, netns: Path, *, capabilities: Mapping[str, Any] | None = None
    ) -> Attachment:
        """What attaching this sandbox to the network takes. Touches nothing.

        `capabilities` are capability arguments that the pod's configuration doesn't have, in the form of the conventions:
        "ipRanges" (a list of lists of {"subnet": CIDR}), "mac", "ips", "aliases".

        Raises:
            InvalidArgument: the sandbox's id, names, ports or bandwidth annotations can't be right.
            FailedPrecondition: there is no network.
        """
        arguments = podargs.capabilities(config) | dict(capabilities or {})
        args = podargs.cni_args(validate(sandbox, "sandbox id"), config.metadata)
        if (network := self._seen.network) is None:
            raise FailedPrecondition(f"sandbox {sandbox} can't be attached: {self.status().message}")
        return Attachment(sandbox, netns, network.name, network.version, network.data, args, arguments)

    async def add(self, attachment: Attachment) -> Result:
        """Attach the sandbox: ADD of the whole chain. The attachment is in the ledger by now, and stays whatever happens.

        Raises:
            FailedPrecondition: a plugin is missing (then none was run) or can't be executed.
            Unknown, Unavailable: a plugin failed.
            DeadlineExceeded: a plugin hung and was killed, and maybe has done its work.
            Internal: a plugin printed something that is no result, or the chain gave the pod no address.
        """
        return await self._supervisor.detached(self._add(attachment), name=f"ADD {attachment.sandbox}")

    async def check(self, attachment: Attachment) -> None:
        """CHECK that the attachment is as ADD left it. Nothing is asked if the configuration has `disableCheck`.

        Raises:
            Unimplemented: its version, 0.3.1, has no CHECK.
            FailedPrecondition: it was never added.
            As `add`: a plugin says that it isn't, or can't tell.
        """
        await self._supervisor.detached(self._check(attachment), name=f"CHECK {attachment.sandbox}")

    async def delete(self, attachment: Attachment) -> None:
        """Detach the sandbox: DEL of the whole chain. Idempotent, and right after a half-done ADD or one that never began.

        Raises:
            As `add`, after every plugin was asked; call it again until it works.
        """
        await self._supervisor.detached(self._delete(attachment), name=f"DEL {attachment.sandbox}")

    async def collect_garbage(self, valid: Iterable[Attachment]) -> None:
        """GC: tell the plugins which attachments there are, so that they free what belongs to no other. Never instead of `delete`,
        and only at start-up: what is added meanwhile would be freed, too.

        Nothing is asked if the network in force is older than 1.1.0 or has `disableGC`.

        Raises:
            As `add`, after every plugin was asked.
        """
        network = self._seen.network
        if network is not None and at_least(network.version, "1.1.0") and not network.disable_gc:
            known = [{"containerID": one.sandbox, "ifname": one.ifname} for one in valid if one.network == network.name]
            await self._supervisor.detached(self._collect(network, known), name="GC")

    async def configure(self, pod_cidrs: Sequence[str], routes: Sequence[str]) -> bool:
        """Make a network configuration for these networks of pods, from the template, unless the directory has a usable one; whether
        it was made. Then it is in force.

        Raises:
            FailedPrecondition: the template is not usable.
            Unavailable: the file can't be written.
        """
        return await self._supervisor.detached(self._configure(pod_cidrs, routes), name="network configuration")

    async def refresh(self) -> None:
        """Look at the configuration directory now, instead of within the second, and ask the plugins, if it is time."""
        await self._read()
        await self._ask()

    async def _read(self) -> None:
        last = self._seen
        self._seen, self._missing = await in_thread(self._look, last)
        for sentence in self._seen.selection.rejected:
            if sentence not in last.selection.rejected:
                _log.warning("network config ignored", error=sentence)
        if self._seen.network != last.network:
            self._unable, self._asked_at = "", -_ASK_EVERY
            network = self._seen.network
            _log.info("network in force", network=network and network.name, file=network and network.source)

    async def _configure(self, pod_cidrs: Sequence[str], routes: Sequence[str]) -> bool:
        if self._conf_template is None:
            return False
        async with self._configuring:
            await self._read()
            if self._seen.network is not None:
                return False
            fields = {"PodCIDR": pod_cidrs[0], "PodCIDRRanges": pod_cidrs, "Routes": routes}
            await in_thread(generate, self._conf_dir, self._conf_template, fields)
            await self._read()
            return True

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_EVERY)
            await self.refresh()

    def _look(self, last: Look) -> tuple[Look, tuple[str, ...]]:
        seen = look(self._conf_dir, last)
        types = seen.network.types if seen.network else ()
        found = self._plugins.look_up(types)
        return seen, tuple(name for name in types if name not in found)

    async def _ask(self) -> None:
        """STATUS of the network's plugins (since 1.1.0), now and then."""
        network, now = self._seen.network, asyncio.get_running_loop().time()
        if network is None or not at_least(network.version, "1.1.0") or self._missing or now - self._asked_at < _ASK_EVERY:
            return
        self._asked_at = now
        found, call, unable = await self._plugins.find(network.types), Call("STATUS"), ""
        try:
            with _counted("STATUS"):
                for plugin in network.plugins:
                    body = request(network, plugin, {}, {})
                    await self._plugins.run(self._path(found, plugin, call), call, body, timeouts.CNI_STATUS)
        except OrlopError as error:
            unable = str(error)
        if unable != self._unable:
            _log.warning("network plugins' status changed", error=unable or "none, they can serve again")
        self._unable = unable

    async def _add(self, attachment: Attachment) -> Result:
        async with self._operation("ADD", attachment):
            self._untouched.add(attachment.sandbox)
            network, call = _network(attachment), _call("ADD", attachment, str(attachment.netns))
            found = await self._plugins.find(network.types)
            paths = [self._path(found, plugin, call) for plugin in network.plugins]  # one that is missing is noticed before any has acted
            deadline = self._deadline()
            result: Result | None = None
            for plugin, path in zip(network.plugins, paths, strict=True):
                body = request(network, plugin, {"prevResult": result.raw} if result else {}, attachment.capabilities)
                await failpoints.hit("network.add.exec")
                printed = await self._plugins.run(path, call, body, _left(deadline))
                try:
                    result = parse_result(printed, network.version, attachment.ifname)
                except ValueError as error:
                    text = f"CNI plugin {plugin.type}: {call} printed no result ({error}): {excerpt(printed) or 'nothing'}"
                    raise Internal(text) from error
            if result is None or not result.ips:
                raise Internal(f"network {network.name} gave sandbox {attachment.sandbox} no address on {attachment.ifname}")
            await failpoints.hit("network.add.cache")
            try:
                await in_thread(self._cache.write, attachment, result.raw)
            except OSError as error:  # CHECK can't work without it and DEL would know less: as in libcni, ADD has failed
                raise Unavailable(f"CNI result of sandbox {attachment.sandbox} can't be stored: {error}") from error
            return result

    async def _check(self, attachment: Attachment) -> None:
        network, call = _network(attachment), _call("CHECK", attachment, str(attachment.netns))
        if network.disable_check:
            return
        if not at_least(network.version, "0.4.0"):
            raise Unimplemented(f"network {network.name} has cniVersion {network.version}, which has no CHECK")
        async with self._operation("CHECK", attachment):
            try:
                previous = await in_thread(self._cache.read, attachment)
            except (OSError, ValueError) as error:
                raise DataLoss(f"CNI result of sandbox {attachment.sandbox} can't be read: {error}") from error
            if previous is None:
                raise FailedPrecondition(f"sandbox {attachment.sandbox} is not attached to network {network.name}: no result of an ADD")
            found, deadline = await self._plugins.find(network.types), self._deadline()
            for plugin in network.plugins:
                body = request(network, plugin, {"prevResult": previous}, attachment.capabilities)
                await failpoints.hit("network.check.exec")
                await self._plugins.run(self._path(found, plugin, call), call, body, _left(deadline))

    async def _delete(self, attachment: Attachment) -> None:
        async with self._operation("DEL", attachment):
            network = _network(attachment)
            call = _call("DEL", attachment, await self._netns(attachment))
            first = attachment.sandbox in self._untouched
            self._untouched.discard(attachment.sandbox)
            previous = await self._previous(attachment)
            inject = {"prevResult": previous} if previous is not None and at_least(network.version, "0.4.0") else {}
            # libcni ends the chain at the first failure; we don't. The first plugin of the chain, which DEL asks last, frees the
            # address, and one chained plugin that fails for good (uninstalled, its daemon gone) would pin an address per pod
            # until the pool is empty, as reported in the field (C#12130). Nothing is forgotten by going on: the netns, the
            # cached result and the ledger entry stay, and the next attempt gives the failed one the same input; it must cope
            # with the rest being gone. The price: until then its rules may name an address that is free again.
            await self._each("delete", network, tuple(reversed(network.plugins)), call, inject, attachment.capabilities)
            if not first or not call.netns:  # what the plugins go by may be gone by now, and with it their knowledge of chains
                await failpoints.hit("network.delete.chains")
                try:
                    if left := await in_thread(self._remove_chains, network.name, attachment.sandbox):
                        _log.warning("chains that network plugins had left are removed", sandbox=attachment.sandbox, chains=left)
                except Unavailable as error:  # a kernel without ip6tables, say: the address is free and must not wait for that
                    _log.warning("chains can't be looked for", sandbox=attachment.sandbox, error=str(error))
            await failpoints.hit("network.delete.cache")
            try:
                await in_thread(self._cache.remove, attachment)
            except OSError as error:
                raise Unavailable(f"CNI result of sandbox {attachment.sandbox} can't be removed: {error}") from error

    async def _collect(self, network: NetworkConfig, known: list[dict[str, str]]) -> None:
        # Twice: the specification had another name at first, libcni still sends both, and plugins may read either.
        inject = {"cni.dev/valid-attachments": known, "cni.dev/attachments": known}
        with _counted("GC"):
            await self._each("gc", network, network.plugins, Call("GC"), inject, {})

    async def _each(
        self,
        step: str,
        network: NetworkConfig,
        plugins: Sequence[PluginConfig],
        call: Call,
        inject: Mapping[str, Any],
        capabilities: Mapping[str, Any],
    ) -> None:
        """Run every plugin even if some fail, then raise what happened, as one error."""
        found, deadline = await self._plugins.find(network.types), self._deadline()
        errors: list[OrlopError] = []
        for done, plugin in enumerate(plugins):
            try:
                await failpoints.hit(f"network.{step}.exec")
                # An equal share of the time that is left: one that hangs leaves the others theirs.
                budget = _left(deadline, len(plugins) - done)
                path = self._path(found, plugin, call)
                await self._plugins.run(path, call, request(network, plugin, inject, capabilities), budget)
            except OrlopError as error:
                errors.append(error)
        if len(errors) == 1:
            raise errors[0]
        if errors:
            text = f"{len(errors)} of {len(plugins)} plugins of network {network.name} failed: {'; '.join(map(str, errors))}"
            raise type(errors[0])(text) from ExceptionGroup(str(call), errors)

    async def _netns(self, attachment: Attachment) -> str:
        """The namespace for DEL. Gone after a reboot, or unmounted by somebody: none, and plugins free what they have outside of
        it. A path that is no namespace they would refuse."""
        try:
            return str(attachment.netns) if await self._pins.inode(attachment.netns) is not None else ""
        except OSError as error:  # neither there nor gone: a DEL without it would leave what is in it
            raise Unavailable(f"netns {attachment.netns} of sandbox {attachment.sandbox} can't be looked at: {error}") from error

    async def _previous(self, attachment: Attachment) -> dict[str, Any] | None:
        try:
            return await in_thread(self._cache.read, attachment)
        except (OSError, ValueError) as error:  # DEL must work without it
            _log.warning("cached CNI result can't be used", sandbox=attachment.sandbox, error=str(error))
            return None

    @asynccontextmanager
    async def _operation(self, verb: Verb, attachment: Attachment) -> AsyncIterator[None]:
        async with self._locks.hold(attachment.sandbox):
            with _counted(verb):
                yield

    def _path(self, found: Mapping[str, Path], plugin: PluginConfig, call: Call) -> Path:
        if (path := found.get(plugin.type)) is None:
            # Not `NotFound`: the kubelet would read that as "no such sandbox".
            raise FailedPrecondition(f"CNI plugin {plugin.type}: {call} failed: it is not in {self._plugins.search_path}")
        return path

    def _deadline(self) -> float:
        return asyncio.get_running_loop().time() + self._budget


def _network(attachment: Attachment) -> NetworkConfig:
    network = parse_list(attachment.config, f"of sandbox {attachment.sandbox}")
    if attachment.version not in VERSIONS:
        raise DataLoss(f"sandbox {attachment.sandbox} was attached with cniVersion {attachment.version!r}, which this agent doesn't speak")
    return replace(network, version=attachment.version)


def _call(verb: Verb, attachment: Attachment, netns: str) -> Call:
    return Call(verb, attachment.sandbox, netns, attachment.ifname, attachment.args)


def _left(deadline: float, shares: int = 1) -> float:
    return max(0.1, (deadline - asyncio.get_running_loop().time()) / shares)


@contextmanager
def _counted(verb: Verb) -> Iterator[None]:
    outcome = "error"
    try:
        yield
        outcome = "ok"
    except DeadlineExceeded:
        outcome = "timeout"
        raise
    finally:
        metrics.cni_operations.labels(verb.lower(), outcome).inc()
