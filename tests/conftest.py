"""Laws and surroundings that every test has: few threads, no home of the user's, no settings of the user's."""

import atexit
import gc
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ["DAGSTER_DISABLE_TELEMETRY"] = "yes"

# Dagster gives SIGTERM the disposition of SIGINT. In a job that a shell started in the background that is "ignored", which
# every process that a test starts would inherit.
if signal.getsignal(signal.SIGINT) in (signal.SIG_IGN, None):
    signal.signal(signal.SIGINT, signal.default_int_handler)

import pytest
from dagster._core.storage.defs_state.base import DefsStateStorage
from hypothesis import HealthCheck, settings

from med_assets.intake import reader
from med_assets.launch.jobs import PRELOADED
from med_assets.reporting import style
from med_assets.settings import Workspace
from med_assets.storage import preloaded, query
from resources import sqlite
from tests import code, fresh, worker
from tests.shared_phantoms import SHARED

# How long a test takes says nothing about what it tests, on a machine that others use too.
settings.register_profile("busy machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy machine")

TEST_KEY = "a-key-that-only-the-tests-know"
REPOSITORY = Path(__file__).resolve().parent.parent

# Processes that tests start find modules of the tests, wherever they start.
_paths = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path not in ("", str(REPOSITORY))]
os.environ["PYTHONPATH"] = os.pathsep.join([str(REPOSITORY), *_paths])

for setting in [name for name in os.environ if name.startswith(("MED_ASSETS_", "DAGSTER_HOME"))]:
    if setting not in ("MED_ASSETS_REAL_DATA", preloaded.VARIABLE):
        del os.environ[setting]  # make exports a home, which tests must neither read nor fill

KEPT = ("MED_ASSETS_REAL_DATA", "MED_ASSETS_CACHE", preloaded.VARIABLE)
"""Settings that a test's workspace leaves as they are."""

COMMANDS = {
    "med_assets.cli": (
        "med_assets.cli.command_line",
        "med_assets.dataset.stage",
        "med_assets.intake.stage",
        "med_assets.launch.training",
        "med_assets.reporting.dataset_card",
        "med_assets.deidentification.scan",
        "med_assets.cli.sharing",
        "med_assets.network.receiver",
        "med_assets.programs.rt_dose.phantom",
        "pydicom.sr",
        "great_expectations",
    )
}
"""What commands import, of stages as jobs and of pages of the documentation. No torch: few need it. No duckdb: it reports each of its own
types as leaked when a process ends that shares it with its parent."""

READERS = {
    name: (*imports, "torch", "monai.data.meta_tensor", "monai.transforms", "med_assets.programs.breast_us.datasets")
    for name, imports in reader.PRELOADED.items()
}
"""What readers import, also those that prepare and score a case or two and end."""

if preloaded.VARIABLE not in os.environ:  # those of pytest-xdist share the parents of the process that started them
    _parents = ExitStack()
    os.environ[SHARED] = _parents.enter_context(TemporaryDirectory(prefix="shared-by-tests-"))
    _imports = {
        **PRELOADED,
        **READERS,
        **COMMANDS,
        "tests.fresh": fresh.LIBRARIES,
        "tests.code": code.LIBRARIES,
    }
    _quiet = os.environ | {"GX_ANALYTICS_ENABLED": "false"}  # as whatever imports Great Expectations sets it before
    os.environ.update(_parents.enter_context(preloaded.parents(_imports, _quiet)))
    _parents.enter_context(preloaded.parents(query.PRELOADED, query.process_environment(), beside=os.environ))
    atexit.register(_parents.close)

sqlite.keep_engines()  # as definitions.py, which few tests load, and for their own instances too

GIVEN = frozenset(json.loads(os.environ.get(worker.GIVEN_VARIABLE, "null")) or os.environ)
"""Names of the variables that the tests were started with, without those that imports set later."""

# The user's cache is neither read nor filled; that of the tests outlives them, since each file of it is named by what made it.
os.environ["MED_ASSETS_CACHE"] = str(REPOSITORY / ".pytest_cache" / "med_assets")

RESOLUTIONS = {name: getattr(style, name) for name in ("DPI", "PUBLICATION_DPI", "PDF_RASTER_DPI")}
for _name in RESOLUTIONS:  # half of what a stage costs over a small phantom is the pixels of its pictures
    setattr(style, _name, 60)

LAYOUTS = {name: getattr(style, name) for name in ("LAYOUT", "PDF_FONTS")}
for _name, _quick in {
    "LAYOUT": None,
    "PDF_FONTS": 3,
}.items():  # more than half of the rest is making space for texts, and fonts
    setattr(style, _name, _quick)

WITHOUT_OUTPUT = {
    "compute_logs": {"module": "dagster._core.storage.noop_compute_log_manager", "class": "NoOpComputeLogManager"}
}
"""Settings of a Dagster instance that keeps no output of steps, for which Dagster starts four processes a run."""

DRILL_FIXTURES = {"slurm_cluster"}

LONGEST = (
    "tests/med_assets/site/",
    "tests/resources/test_slurm_nodes.py",
    "tests/sensors/test_one_run.py",
)
"""Files whose tests take half a minute to minutes each."""

DRILLS = (
    "tests/med_assets/site/test_random_work.py",
    "tests/med_assets/site/test_random_runs.py",
    "tests/resources/test_slurm.py",
    "tests/med_assets/training/test_resume.py",
    "tests/med_assets/s3/test_seaweedfs.py",
    "tests/med_assets/programs/breast_us/",
    "tests/med_assets/network/test_send.py",
    "tests/med_assets/training/test_preloaded.py",
    "tests/med_assets/s3/test_shared_predictions.py",
    "tests/med_assets/site/test_little_random_work.py",
    "tests/fuzz/",
)
"""Drills that come first: the longest file of each of the five processes of `make drills`, then short ones, since a process is given its second
file with its first, which no other takes over."""


gc.disable()  # nothing that collection imports is garbage, and looking for some takes a sixth of its time


@pytest.hookimpl(tryfirst=True)
def pytest_collection(session: pytest.Session) -> None:
    """Each of several processes imports another part of all tests first: in a fresh clone, where asserts are rewritten as they are imported
    and kept on disk, each file is so once.
    """
    worker_id, given = os.environ.get("PYTEST_XDIST_WORKER", ""), [Path(name).resolve() for name in session.config.args]
    if not worker_id or given != [REPOSITORY / "tests"]:
        return
    files = sorted((REPOSITORY / "tests").rglob("test_*.py"))
    first = int(worker_id.removeprefix("gw")) * len(files) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    for path in files[first:] + files[:first]:
        if not pytest_ignore_collect(path, session.config):
            with suppress(Exception, pytest.skip.Exception):  # it says so again when it is collected
                import_module(".".join(path.relative_to(REPOSITORY).with_suffix("").parts))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes(specs: list[Any]) -> None:
    """Fork the processes of pytest-xdist from a parent that has imported what they need. While it does, on one core, parents that tests need later do so on another."""
    for spec in specs:
        if spec.popen and not spec.python:
            spec.python = worker.COMMAND
    if len(specs) > 1 and preloaded.available():
        Thread(target=_load_parents, args=(dict(os.environ),), daemon=True).start()


def _load_parents(environment: dict[str, str]) -> None:
    with Path(os.devnull).open("wb") as nowhere:
        for module in ("med_assets.training", "med_assets.cli"):
            command = [sys.executable, "-m", module, "--help"]
            preloaded.start(command, environment, nowhere.fileno(), nowhere.fileno()).wait()


def pytest_collection_finish() -> None:
    """Collect garbage from here on, seldom, since a test makes little of it, and never look through the million objects of what was imported."""
    if absl := sys.modules.get("absl.logging"):
        # mlcroissant brings it: the first logging.config in a test with capsys would close what pytest captures to, which it took for stderr.
        absl.get_absl_handler().python_handler.setStream(sys.__stderr__)
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
    gc.enable()


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish() -> None:
    """Garbage that a test left is found here, by one look through all objects, where pytest looks five times."""
    gc.collect()
    gc.freeze()


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Files without drills are not imported for drills alone, by each process of tests."""
    if config.option.markexpr != "drill" or not collection_path.match("test_*.py"):
        return None
    text = collection_path.read_text()
    return None if any(word in text for word in ("mark.drill", *DRILL_FIXTURES)) else True


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What needs a cluster is a drill. Slow tests come first, the longest before them, so that none is left when all others are done."""
    for item in items:
        if isinstance(item, pytest.Function) and DRILL_FIXTURES & set(item.fixturenames):
            item.add_marker("drill")
    items.sort(key=lambda item: not (item.get_closest_marker("slow") or item.get_closest_marker("drill")))
    items.sort(key=lambda item: not item.nodeid.startswith(LONGEST))
    items.sort(key=lambda item: _number_of_file(item) if item.get_closest_marker("drill") else 0)


def _number_of_file(item: pytest.Item) -> int:
    """Which of the files that come first a drill is of; the number of these for any other."""
    return next((number for number, name in enumerate(DRILLS) if item.nodeid.startswith(name)), len(DRILLS))


@pytest.fixture(autouse=True)
def one_torch_thread() -> None:
    """Two cores are shared by all that runs; more threads make small networks slower, not faster."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


@pytest.fixture(autouse=True)
def no_state_of_a_closed_instance(monkeypatch: pytest.MonkeyPatch) -> None:
    """Definitions here keep no state.

    Each context of a sensor or schedule opens an instance and puts that instance's storage into a context variable. It is
    closed when the garbage collector comes by, so what the variable then goes back to may belong to an instance that is gone.
    """
    monkeypatch.setattr(DefsStateStorage, "get", classmethod(lambda cls: None))


@pytest.fixture(autouse=True)
def no_connections_to_earlier_buckets() -> Iterator[None]:
    """A process knows its bucket for good; each test here has another, and a thousand open files are too many for `select`."""
    yield
    for name in ("med_assets.storage.s3.table_log", "med_assets.landing.manifests"):
        if name in sys.modules:
            sys.modules[name]._logs.clear()


@pytest.fixture
def full_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are laid out and have fonts as users get them: in the tests of each program that plot all that it has."""
    for name, value in LAYOUTS.items():
        monkeypatch.setattr(style, name, value)


@pytest.fixture
def full_resolution(full_layout: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures as users get them; those of other tests are small."""
    for name, dpi in RESOLUTIONS.items():
        monkeypatch.setattr(style, name, dpi)


def settings_of(home: Path) -> dict[str, str]:
    """What the environment says of a home of the tests."""
    return {
        "MED_ASSETS_HOME": str(home),
        "MED_ASSETS_PSEUDONYM_KEY": TEST_KEY,
        "MED_ASSETS_PURPOSE": "demo",
        "MED_ASSETS_PROFILE": "demo",
        "MED_ASSETS_SETTLE_S": "0",
        "MED_ASSETS_WORKERS": "1",  # batches are small here, and each process costs its imports; tests of several say so
    }


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A workspace in a temporary home, which the environment names too, so that commands and processes find it."""
    for name in [name for name in os.environ if name.startswith("MED_ASSETS_") and name not in KEPT]:
        monkeypatch.delenv(name)
    for name, value in settings_of(tmp_path / "home").items():
        monkeypatch.setenv(name, value)
    return Workspace.from_env()


MadeOnce = Callable[[Callable[[Workspace], object]], Workspace]
"""What fills a workspace as a function does."""

_made: dict[Callable[[Workspace], object], Path] = {}
"""Homes that were made once in this process, by the function that made them."""


@pytest.fixture
def made_once(workspace: Workspace, tmp_path_factory: pytest.TempPathFactory) -> MadeOnce:
    """Fill the workspace as a function does, which runs once in a process of tests: each test has its own copy of the home."""

    def fill(make: Callable[[Workspace], object]) -> Workspace:
        if make not in _made:
            home = tmp_path_factory.mktemp("made-once") / "home"
            with pytest.MonkeyPatch.context() as there:
                for name, value in settings_of(home).items():
                    there.setenv(name, value)
                make(Workspace.from_env())
            _made[make] = home
        shutil.copytree(_made[make], workspace.home, dirs_exist_ok=True)
        return workspace

    return fill


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder with real cases; the test skips when it is absent."""
    folder = Path(os.environ.get("MED_ASSETS_REAL_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip("no real cases here; set MED_ASSETS_REAL_DATA to the folder that holds them")
    return folder
