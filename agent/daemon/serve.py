"""The composition root of `orlop serve`: every part is made here, in one function, and ends in the reverse order.

Order: the store (and with it the lock that makes this daemon the only one); the children of an earlier daemon die before
anything is replayed; then the parts; the socket, which answers List and Status from memory; then recovery; then READY.
"""

from __future__ import annotations

import asyncio
import os
import posixpath
import resource
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, suppress
from itertools import chain, repeat
from pathlib import Path

from agent import leaks, log, timeouts
from agent.aio import Supervisor, in_thread, loopguard
from agent.config.settings import Settings
from agent.content.store import ContentStore
from agent.daemon import health, layout, reaping, releasers
from agent.daemon.ending import Ending
from agent.daemon.incarnation import Incarnation
from agent.daemon.notify import notify
from agent.errdefs import OrlopError
from agent.events import Exchange
from agent.images.service import ImageService
from agent.leaks.reap import Reaper
from agent.linux.cgroups import Cgroups
from agent.linux.mounts import Mounts
from agent.linux.namespaces import Namespaces
from agent.linux.processes import Processes
from agent.linux.systemd import Systemd
from agent.logs.client import LogCopier
from agent.network import Inventory
from agent.network.leases import drop_unwritten
from agent.network.network import Network
from agent.pods import container_events, exits, facts, pod_cgroup, recovery
from agent.pods.context import Pods
from agent.pods.registry import Registry
from agent.registry import RegistryClient
from agent.runtime.v2 import features
from agent.runtime.v2.manager import TaskManager
from agent.snapshots.snapshotter import Snapshotter
from agent.stats import Sampler
from agent.store.kinds import Kind
from agent.store.ledger import Ledger
from agent.store.release import Releases
from agent.store.store import Store
from agent.web import MetricsServer
from cri.server import services
from cri.server.edge import Edge

_log = log.get("daemon")

_THREADS = 64
"""For blocking calls. Many more than cores: some wait for a file system that hangs, and the others must not wait for them."""


async def serve(settings: Settings) -> None:
    """Run until SIGTERM or SIGINT. Pods live on; their shims are not this process's children.

    Raises:
        FailedPrecondition: another daemon uses the state directory; or pods run in cgroups of the other cgroup driver.
        Unavailable: a socket or address can't be had.
    """
    if os.environ.get("ORLOP_LOOP_GUARD"):
        loopguard.install()
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    async with AsyncExitStack() as stack:
        background = Supervisor("daemon")
        ending = Ending()
        known, recovered = asyncio.Event(), asyncio.Event()
        pods = await _compose(settings, stack, background, ending, recovered)
        edge = Edge(settings.socket, services.verbs(pods, known))
        await edge.start()
        stack.push_async_callback(ending.give, edge.stop, timeouts.EDGE_STOP)
        stack.callback(pods.events.close)  # who listens would do so until the end of the budget
        stack.push_async_callback(pods.images.stop_pulls)  # they may take minutes, and can be done again
        stack.callback(ending.begin)
        _log.info("serving", socket=str(settings.socket))
        await _first(pods.supervisor.start_awaited(_recover(pods, known, recovered, background), name="recovery"), stopping)
        await stopping.wait()
        notify("STOPPING=1")
        _log.info("stopping: pods run on")


async def _first(recovering: asyncio.Task[None], stopping: asyncio.Event) -> None:
    """Wait for the end of recovery, or for the signal. A failed recovery ends the daemon: without knowing its tasks it must
    not change anything."""
    stop = asyncio.ensure_future(stopping.wait())
    await asyncio.wait((recovering, stop), return_when=asyncio.FIRST_COMPLETED)
    stop.cancel()
    if recovering.done():
        recovering.result()


async def _recover(pods: Pods, known: asyncio.Event, recovered: asyncio.Event, background: Supervisor) -> None:
    started = time.monotonic()
    await recovery.recover(pods, known)
    recovered.set()
    # Not before: until the tasks are loaded nobody can tell what is gone from what isn't known yet.
    background.start(pods.releases.run_pending(asyncio.Event()), name="pending releases")
    notify("READY=1")
    _log.info("recovered", sandboxes=len(pods.registry.sandboxes), seconds=round(time.monotonic() - started, 3))


async def _compose(settings: Settings, stack: AsyncExitStack, background: Supervisor, ending: Ending, recovered: asyncio.Event) -> Pods:
    """Make all parts; what needs an end is put on `stack` right after its making. Audits begin when it is `recovered`."""
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(_THREADS, "orlop"))
    descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[1]  # two per container, and a shim's connection and pidfd per pod
    resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, descriptors))
    store = await Store.open(settings.state_dir, settings.root_dir)
    stack.push_async_callback(store.close)
    processes, mounts, cgroups, namespaces = Processes(), Mounts(), Cgroups(), Namespaces()
    systemd = Systemd(processes)
    stack.push_async_callback(processes.stop)
    incarnation = Incarnation(processes, settings.state_dir)
    await incarnation.begin()
    await reaping.look_for_loss(store, processes, layout.runtime_config(settings).address)
    stack.push_async_callback(incarnation.end)
    stack.push_async_callback(_remove_cgroups, store.ledger, cgroups, systemd, settings)
    if (unit := posixpath.basename(settings.shim_cgroup)).endswith(".service"):
        await systemd.delegate(unit)
    await cgroups.create(settings.shim_cgroup)

    exchange = Exchange()
    subscription = exchange.subscribe()
    releases = Releases(store.ledger, time.time)

    content = ContentStore(settings.root_dir / "content")
    snapshots = Snapshotter(settings.root_dir / "snapshots", processes)
    pinned = [settings.sandbox_image] if settings.sandbox_image else []
    images = ImageService(
        content,
        snapshots,
        store.disk_records("images"),
        store.ledger,
        releases,
        RegistryClient(settings.registry.config_path, os.environ),
        pinned=pinned,
        parallel_layers=settings.registry.max_concurrent_downloads,
        parallel_pulls=settings.registry.max_concurrent_pulls,
    )
    await images.open()
    stack.push_async_callback(ending.give, images.close)

    await cgroups.create(f"{settings.shim_cgroup}/log-copier")
    logs = LogCopier(
        settings.state_dir, processes, max_line=settings.log.max_container_log_line_size, cgroup=f"{settings.shim_cgroup}/log-copier"
    )
    await logs.start()
    stack.push_async_callback(logs.stop)

    template = Path(settings.cni.conf_template) if settings.cni.conf_template else None
    network = Network(processes, namespaces, conf_dir=settings.cni.conf_dir, conf_template=template, bin_dirs=settings.cni.bin_dirs)
    await network.start()
    await _free_addresses()
    stack.push_async_callback(ending.give, network.stop)

    runtime = layout.runtime_config(settings)
    tasks = TaskManager(runtime, ledger=store.ledger, exchange=exchange, processes=processes, mounts=mounts, cgroups=cgroups)
    await tasks.start()
    stack.push_async_callback(ending.give, tasks.stop)

    registry = Registry(store.boot_records("sandboxes"), store.boot_records("containers"))
    await registry.load()
    if settings.runtimes:
        driven = any(handler.systemd_cgroup for handler in settings.runtimes.values())
        pod_cgroup.refuse_another_driver((sandbox.record for sandbox in registry.sandboxes), systemd=driven)
    node = await in_thread(facts.read, cgroup_v2=cgroups.mode == "v2", nofile_limit=descriptors)
    for restriction in node.restrictions:
        _log.warning("this node restricts pods", restriction=restriction)
    stats = Sampler(await cgroups.controllers())
    stack.push_async_callback(ending.give, stats.stop, timeouts.STATS)
    supervisor = Supervisor("pods")
    pods = Pods(
        state_dir=settings.state_dir,
        netns_dir=settings.netns_dir,
        pod_cgroup=settings.pod_cgroup,
        handlers=settings.runtimes,
        features=await features.detect(settings.runtimes.values(), processes),
        default_handler=settings.default_runtime,
        sandbox_image=settings.sandbox_image,
        facts=node,
        registry=registry,
        ledger=store.ledger,
        releases=releases,
        tasks=tasks,
        images=images,
        network=network,
        logs=logs,
        namespaces=namespaces,
        mounts=mounts,
        cgroups=cgroups,
        systemd=systemd,
        exchange=exchange,
        supervisor=supervisor,
        stats=stats,
    )
    releasers.register(pods)
    container_events.attach(pods)
    stack.push_async_callback(background.stop, 0)  # after those below, which need the exits that it passes on
    stack.push_async_callback(ending.give, releases.stop)
    stack.push_async_callback(ending.give, supervisor.stop)

    background.start(exits.watch(pods, subscription), name="exits")
    background.start(health.watch_lag(), name="loop lag")
    background.start(health.watch_pins(pods), name="pins")
    background.start(health.watch_shims(pods), name="memory of shims")
    reaper = Reaper(processes, cgroups, mounts, namespaces, reaping.Plugins(network))
    background.start(_audit(settings, store, reaper, recovered), name="audit")

    metrics_server = MetricsServer(settings.metrics_address)
    await metrics_server.start()
    stack.push_async_callback(metrics_server.stop)
    return pods


async def _free_addresses() -> None:
    """Those that a power cut left to nobody. Pods can be run without: it is no reason not to start."""
    try:
        for lease in await in_thread(drop_unwritten):
            _log.warning("an address that was leased to nobody is free again", network=lease.network, address=lease.ip)
    except OSError as error:
        _log.warning("leases of addresses can't be looked at", error=str(error))


async def _audit(settings: Settings, store: Store, reaper: Reaper, recovered: asyncio.Event) -> None:
    """Until it is cancelled; what is found that is ours is released, unless the settings say otherwise."""
    await recovered.wait()
    await leaks.watch(
        _ledger_reader(store),
        layout.places(settings),
        Inventory(),
        pauses=chain([min(timeouts.AUDIT_FIRST, timeouts.AUDIT_INTERVAL)], repeat(timeouts.AUDIT_INTERVAL)),
        remembered=reaping.remembered(store.ledger),
        release=reaping.own_leaks(store, reaper) if settings.leaks.reap else None,
    )


def _ledger_reader(store: Store) -> leaks.ReadLedger:
    async def read() -> leaks.LedgerRead:
        return leaks.LedgerRead(store.ledger.all(), served=True)

    return read


async def _remove_cgroups(ledger: Ledger, cgroups: Cgroups, systemd: Systemd, settings: Settings) -> None:
    """Leave nothing on a node without pods: these are empty then. With pods they hold the shims, and stay."""
    if any(resource.kind is Kind.SHIM for resource in ledger.all()):
        return
    for path in (settings.shim_cgroup, settings.pod_cgroup):
        with suppress(OrlopError):
            await cgroups.wait_empty(path, timeouts.LOG_COPIER_END)
            if (unit := posixpath.basename(path)).endswith((".service", ".slice")):
                await systemd.stop(unit)
            await cgroups.remove(path)
