"""Defaults, files, drop-ins, handlers, and what is refused with which words."""

from __future__ import annotations

import ast
import dataclasses
import inspect
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.config import handlers as handlers_module
from agent.config import settings as settings_module
from agent.config.handlers import RuntimeHandler, discover, systemd_runs
from agent.config.settings import CNI, Leaks, Log, Registry, Settings, load
from agent.errdefs import InvalidArgument

RUNC, CRUN = RuntimeHandler("runc", engine="/usr/sbin/runc"), RuntimeHandler("crun", engine="/usr/bin/crun")

WITHOUT_SYSTEMD = Settings(shim_cgroup="/orlop-shims", pod_cgroup="/orlop-pods")

Load = Callable[..., Settings]


def by_systemd(handler: RuntimeHandler) -> RuntimeHandler:
    return dataclasses.replace(handler, systemd_cgroup=True)


@pytest.fixture
def load_text(tmp_path: Path) -> Load:
    """Load a configuration file with this text and these drop-ins, on a node that has runc and crun."""

    def load_text(text: str = "", *, found: tuple[RuntimeHandler, ...] = (RUNC, CRUN), systemd: bool = False, **drop_ins: str) -> Settings:
        file = tmp_path / "config.toml"
        file.write_text(text)
        (tmp_path / "conf.d").mkdir(exist_ok=True)
        for name, content in drop_ins.items():
            (tmp_path / "conf.d" / f"{name}.toml").write_text(content)
        return load(file, discovered=lambda: {handler.name: handler for handler in found}, with_systemd=lambda: systemd)

    return load_text


def test_defaults(load_text: Load) -> None:
    loaded = load_text()
    assert loaded == dataclasses.replace(WITHOUT_SYSTEMD, default_runtime="runc", runtimes={"runc": RUNC, "crun": CRUN})
    assert loaded.cni == CNI(Path("/etc/cni/net.d"), "", (Path("/opt/cni/bin"), Path("/usr/lib/cni")))
    assert loaded.log == Log("info", "console", 16384)
    assert loaded.registry == Registry(Path("/etc/orlop/certs.d"), 3, 10)
    assert loaded.metrics_address == "127.0.0.1:9745"
    assert loaded.runtimes == {"runc": RUNC, "crun": CRUN}


def test_default_file_need_not_be_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    missing = tmp_path / "config.toml"
    with pytest.raises(InvalidArgument, match=r"config\.toml: it can't be read: No such file"):
        load(missing, discovered=dict, with_systemd=bool)
    monkeypatch.setattr(settings_module, "DEFAULT_FILE", missing)
    assert load(missing, discovered=dict, with_systemd=bool) == WITHOUT_SYSTEMD


def test_drop_ins_count_without_the_default_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "conf.d" / "a.toml").write_text('netns_dir = "/x"')
    monkeypatch.setattr(settings_module, "DEFAULT_FILE", tmp_path / "config.toml")
    assert load(tmp_path / "config.toml", discovered=dict).netns_dir == Path("/x")


def test_every_key(load_text: Load) -> None:
    loaded = load_text(
        """
        socket = "/s/a.sock"
        state_dir = "/s"
        root_dir = "/r"
        netns_dir = "/n"
        metrics_address = "[::1]:1"
        cgroup_driver = "systemd"
        shim_cgroup = "/a/b"
        pod_cgroup = "/c.slice"
        default_runtime = "kata"
        sandbox_image = "pause"
        [cni]
        conf_dir = "/c"
        conf_template = "/t"
        bin_dirs = ["/b1", "/b2"]
        [log]
        level = "debug"
        format = "json"
        max_container_log_line_size = 1024
        [registry]
        config_path = "/etc/containerd/certs.d"
        max_concurrent_downloads = 1
        max_concurrent_pulls = 2
        [leaks]
        reap = false
        [runtimes.kata]
        runtime_type = "io.containerd.kata.v2"
        path = "/opt/kata/shim"
        engine = "e"
        sandbox = "task"
        config_path = "/opt/kata/c.toml"
        """,
        systemd=True,
    )
    kata = RuntimeHandler("kata", "io.containerd.kata.v2", "/opt/kata/shim", "e", "task", True, "/opt/kata/c.toml")
    assert loaded == Settings(
        socket=Path("/s/a.sock"), state_dir=Path("/s"), root_dir=Path("/r"), netns_dir=Path("/n"), metrics_address="[::1]:1",
        cgroup_driver="systemd", shim_cgroup="/a/b", pod_cgroup="/c.slice", default_runtime="kata", sandbox_image="pause",
        cni=CNI(Path("/c"), "/t", (Path("/b1"), Path("/b2"))),
        log=Log("debug", "json", 1024), registry=Registry(Path("/etc/containerd/certs.d"), 1, 2), leaks=Leaks(reap=False),
        runtimes={"runc": by_systemd(RUNC), "crun": by_systemd(CRUN), "kata": kata},
    )  # fmt: skip
    unset = [field.name for field in dataclasses.fields(Settings) if getattr(loaded, field.name) == getattr(Settings(), field.name)]
    assert unset == [], "a new setting belongs into this test"


def test_drop_ins_in_order_of_their_names(load_text: Load) -> None:
    loaded = load_text(
        '[cni]\nconf_dir = "/main"\nbin_dirs = ["/main"]\n[log]\nlevel = "error"',
        b='[cni]\nconf_dir = "/b"',
        a='[cni]\nconf_dir = "/a"\nbin_dirs = ["/a"]',
    )
    assert loaded.cni == CNI(Path("/b"), bin_dirs=(Path("/a"),))
    assert loaded.log.level == "error"


def test_other_files_in_the_drop_in_directory_are_ignored(load_text: Load, tmp_path: Path) -> None:
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "conf.d" / "a.toml.bak").write_text("garbage")
    load_text()


# ---- handlers


def test_discovery() -> None:
    engines = {"runc": "/usr/sbin/runc", "crun": "/usr/bin/crun"}
    assert discover(engines.get) == {"runc": RUNC, "crun": CRUN}
    assert discover({"crun": "/usr/bin/crun"}.get) == {"crun": CRUN}
    assert discover({"runsc": "/usr/bin/runsc"}.get) == {}


@pytest.mark.parametrize(
    ("found", "default"),
    [
        pytest.param((RUNC, CRUN), "runc", id="runc is runc, though crun is faster"),
        pytest.param((CRUN, RUNC), "runc", id="whatever the order"),
        pytest.param((CRUN,), "crun", id="crun alone"),
        pytest.param((), "", id="none: the daemon starts all the same and Status tells"),
    ],
)
def test_default_runtime(load_text: Load, found: tuple[RuntimeHandler, ...], default: str) -> None:
    assert load_text(found=found).default_runtime == default


def test_configured_default_runtime(load_text: Load) -> None:
    assert load_text('default_runtime = "crun"').default_runtime == "crun"


def test_handler_is_added_by_a_drop_in_and_changed_by_another(load_text: Load) -> None:
    loaded = load_text(
        a='[runtimes.runsc]\nruntime_type = "io.containerd.runsc.v1"\nsandbox = "task"',
        b='[runtimes.runsc]\nconfig_path = "/etc/runsc.toml"\n[runtimes.crun]\nsandbox = "task"',
    )
    assert loaded.runtimes["runsc"] == RuntimeHandler("runsc", "io.containerd.runsc.v1", sandbox="task", config_path="/etc/runsc.toml")
    assert loaded.runtimes["crun"] == dataclasses.replace(CRUN, sandbox="task"), "still with the engine that was found"
    assert loaded.runtimes["runc"] == RUNC


# ---- cgroups


@pytest.mark.parametrize(
    ("driver", "shims", "pods"),
    [
        ("auto", "/system.slice/orlop-shims.service", "/orlop.slice"),
        ("systemd", "/system.slice/orlop-shims.service", "/orlop.slice"),
        ("cgroupfs", "/system.slice/orlop-shims.service", "/orlop-pods"),
    ],
)
def test_where_systemd_is_process_1(load_text: Load, driver: str, shims: str, pods: str) -> None:
    loaded = load_text(f"cgroup_driver = '{driver}'\n[runtimes.runsc]\nsandbox = 'task'", systemd=True)
    assert (loaded.shim_cgroup, loaded.pod_cgroup) == (shims, pods)
    assert {handler.systemd_cgroup for handler in loaded.runtimes.values()} == {driver != "cgroupfs"}, "one driver for all handlers"


@pytest.mark.parametrize("path", ["/pods", "/a-b.slice", "/a.slice/b.slice", "/a.slice/pods", "/a.slice/a-.slice"])
def test_a_pod_cgroup_that_is_no_slice(load_text: Load, path: str) -> None:
    assert load_text(f"pod_cgroup = '{path}'").pod_cgroup == path
    with pytest.raises(InvalidArgument, match=f"pod_cgroup = '{path}': with the systemd driver"):
        load_text(f"pod_cgroup = '{path}'", systemd=True)


@pytest.mark.parametrize("path", ["/pods.slice", "/a.slice/a-b.slice", "/a.slice/a-b.slice/a-b-c.slice"])
def test_a_pod_cgroup_that_is_a_slice(load_text: Load, path: str) -> None:
    assert load_text(f"pod_cgroup = '{path}'", systemd=True).pod_cgroup == path


def test_systemd_is_known_by_its_directory(tmp_path: Path) -> None:
    assert not systemd_runs(tmp_path / "system")
    (tmp_path / "system").mkdir()
    assert systemd_runs(tmp_path / "system")


# ---- what is refused

REFUSED = [
    pytest.param("[registry]\nmax_concurrent_pulls = 0", "registry.max_concurrent_pulls = 0: it is not a positive number", id="no pulls"),
    pytest.param("sokket = '/x'", "sokket = '/x': there is no such key; there are socket, state_dir,", id="unknown key"),
    pytest.param("[cni]\ndir = '/x'", "cni.dir = '/x': there is no such key; there are conf_dir,", id="unknown key in a table"),
    pytest.param("[crio]\nx = 1", "crio = {'x': 1}: there is no such key", id="unknown table"),
    pytest.param("state_dir = 1", "state_dir = 1: it is not a string", id="number for a path"),
    pytest.param("state_dir = 'run/orlop'", "state_dir = 'run/orlop': it is not an absolute path", id="relative path"),
    pytest.param("sandbox_image = ['a']", "sandbox_image = ['a']: it is not a string", id="array for a string"),
    pytest.param("cni = '/etc/cni'", "cni = '/etc/cni': it is not a table", id="string for a table"),
    pytest.param("[cni]\nbin_dirs = '/x'", "cni.bin_dirs = '/x': it is not an array", id="string for an array"),
    pytest.param("[cni]\nbin_dirs = ['/x', 2]", "cni.bin_dirs = 2: it is not a string", id="wrong type in an array"),
    pytest.param("[cni]\nconf_template = 'cni.template'", "neither an absolute path nor empty", id="relative template"),
    pytest.param("[cni]\nbin_dirs = []", "cni.bin_dirs = []: it names no directory", id="empty array"),
    pytest.param("[log]\nlevel = 'verbose'", "log.level = 'verbose': it is not one of 'debug', 'info',", id="not one of"),
    pytest.param("[log]\nmax_container_log_line_size = true", "line_size = True: it is not an integer", id="bool for int"),
    pytest.param("[log]\nmax_container_log_line_size = 16.5", "= 16.5: it is not an integer", id="float for int"),
    pytest.param("[log]\nmax_container_log_line_size = 1023", "= 1023: it is not between 1024 and 1048576 bytes", id="too small"),
    pytest.param("[log]\nmax_container_log_line_size = 1048577", "it is not between", id="too large"),
    pytest.param("metrics_address = '9745'", "metrics_address = '9745': it is neither HOST:PORT nor empty", id="address without host"),
    pytest.param("metrics_address = 'localhost:0'", "neither HOST:PORT", id="port 0"),
    pytest.param("metrics_address = 'localhost:65536'", "neither HOST:PORT", id="port too large"),
    pytest.param("metrics_address = 'localhost:http'", "neither HOST:PORT", id="port is a name"),
    pytest.param("shim_cgroup = '/'", "shim_cgroup = '/': it is not an absolute cgroup path below the root", id="root cgroup"),
    pytest.param("shim_cgroup = '/a/../b'", "not an absolute cgroup path", id="cgroup with dots"),
    pytest.param("runtimes = 'runc'", "runtimes = 'runc': it is not a table of tables", id="string for handlers"),
    pytest.param("[runtimes]\nrunc = 1", "runtimes.runc = 1: it is not a table", id="number for a handler"),
    pytest.param("[runtimes.x]\nname = 'y'", "runtimes.x.name = 'y': there is no such key", id="a handler's name is its table's"),
    pytest.param("[runtimes.x]\nsandbox = 'pod'", "runtimes.x.sandbox = 'pod': it is not one of 'pinned', 'task'", id="sandbox kind"),
    pytest.param("[runtimes.x]\nsystemd_cgroup = true", "runtimes.x.systemd_cgroup = True: there is no such key", id="of all handlers"),
    pytest.param("cgroup_driver = 'cgroup2'", "cgroup_driver = 'cgroup2': it is not one of 'auto', 'systemd', 'cgroupfs'", id="driver"),
    pytest.param("cgroup_driver = 'systemd'", "systemd is not process 1 here", id="the systemd driver without systemd"),
    pytest.param("[runtimes.'a b']\npath = '/x'", "'a b' is not a DNS label", id="handler that no RuntimeClass can name"),
    pytest.param("default_runtime = 'kata'", "default_runtime = 'kata': it is none of the handlers ['crun', 'runc']", id="no handler"),
    pytest.param("socket = ", "it is not TOML: Invalid value (at end of document)", id="no TOML"),
]


@pytest.mark.parametrize(("text", "sentence"), REFUSED)
def test_refused(load_text: Load, tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        load_text(text)
    assert str(caught.value).startswith(f"{tmp_path / 'config.toml'}: ")
    assert sentence in str(caught.value)


def test_error_names_the_drop_in(load_text: Load, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument) as caught:
        load_text("state_dir = '/x'", good="state_dir = '/y'", wrong="state_dir = 7")
    assert str(caught.value) == f"{tmp_path / 'conf.d' / 'wrong.toml'}: state_dir = 7: it is not a string"


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_bytes(b"socket = '\xff'")
    with pytest.raises(InvalidArgument, match="it is not TOML: 'utf-8' codec can't decode"):
        load(file, discovered=dict)


def test_no_default_among_foreign_handlers(load_text: Load) -> None:
    with pytest.raises(InvalidArgument, match=r"default_runtime = '': it is none of the handlers \['kata'\]"):
        load_text("[runtimes.kata]\nruntime_type = 'io.containerd.kata.v2'", found=())


# ---- documentation


@pytest.mark.parametrize("module", [settings_module, handlers_module])
def test_every_setting_is_documented(module: object) -> None:
    """A docstring under each field: meaning, unit, default and why. Tables of their own carry it at their class."""
    tree = ast.parse(inspect.getsource(module))  # type: ignore[arg-type]  # a module
    for cls in (node for node in tree.body if isinstance(node, ast.ClassDef)):
        assert ast.get_docstring(cls)
        for node, following in zip(cls.body, [*cls.body[1:], None], strict=True):
            if (
                isinstance(node, ast.AnnAssign)
                and isinstance(node.target, ast.Name)
                and node.target.id not in ("cni", "log", "registry", "leaks")
            ):
                documented = isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
                assert documented, f"{cls.name}.{node.target.id} has no docstring"


def test_example_in_the_docstring(load_text: Load) -> None:
    example = (settings_module.__doc__ or "").partition("    metrics_address")
    loaded = load_text(inspect.cleandoc(example[1] + example[2]))
    assert loaded.runtimes["runsc"].sandbox == "task"
