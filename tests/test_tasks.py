"""Independent tasks give the same bits wherever they run, survive killed workers, and are not run twice."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import psutil
import pytest
import task_functions
from graphs import image
from oracle import PLAIN, analysed, feeds_for
from task_functions import numbered
from threadpoolctl import threadpool_info

from oamip_onnx import __version__
from oamip_onnx.calibration import Samples
from oamip_onnx.errors import MissingExtraError, SolverError, UsageError
from oamip_onnx.importance import ImportanceContext, OamipSettings, find_logits, score
from oamip_onnx.progress import Step
from oamip_onnx.tasks import TaskData, TaskOptions, WorkerError, cluster, default_cache, pool, run_tasks
from oamip_onnx.tasks.cache import Cache, task_key
from oamip_onnx.tasks.call import call_by_name
from oamip_onnx.tasks.threads import one_thread

HERE = TaskOptions(workers=1)
POOL = TaskOptions(workers=2)


@pytest.fixture(scope="module")
def dask_cluster() -> Iterator[Any]:
    """Return a cluster of two worker processes."""
    import dask
    from distributed import LocalCluster

    settings = {
        # Where a worker is killed whose last result is just being fetched, Dask would wait half a minute for it.
        "distributed.comm.timeouts.connect": "5s",
        # A local cluster gives up a worker that is down this long after it was killed before; these tests kill often.
        "distributed.deploy.lost-worker-timeout": "1 hour",
    }
    with (
        dask.config.set(settings),
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as local,
    ):
        yield local


@pytest.fixture(params=["pool", "dask"])
def elsewhere(request: pytest.FixtureRequest) -> TaskOptions:
    """Return each of the places that are not this process."""
    if request.param == "pool":
        return POOL
    return TaskOptions(scheduler=request.getfixturevalue("dask_cluster").scheduler_address)


def matrices(count: int, **settings: object) -> list[TaskData]:
    random = np.random.default_rng(3)
    return [
        TaskData({"matrix": random.normal(size=(200, 150)).T}, {"number": number, **settings})
        for number in range(count)
    ]


def digests(results: list[TaskData]) -> list[str]:
    return [result.digest() for result in results]


def runs(folder: Path) -> list[int]:
    """Return the numbers of the tasks that ran, in the order in which they began."""
    file = folder / "runs"
    return [int(line.split()[0]) for line in file.read_text().splitlines()] if file.exists() else []


def process_ids(folder: Path) -> set[int]:
    return {int(line.split()[1]) for line in (folder / "runs").read_text().splitlines()}


def wait_until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def are_running(process_ids: set[int]) -> bool:
    processes = [psutil.Process(number) for number in process_ids if psutil.pid_exists(number)]
    return any(process.status() != psutil.STATUS_ZOMBIE for process in processes)


def started_script(folder: Path, text: str) -> subprocess.Popen[str]:
    """Start a user's script that has no `if __name__ == "__main__"`."""
    script = folder / "script.py"
    script.write_text(text)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    return subprocess.Popen(
        [sys.executable, script], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.fixture
def long_run(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Start a script that would take two minutes, and wait until it has results in the cache."""
    cache = tmp_path / "cache"
    process = started_script(
        tmp_path,
        "from pathlib import Path\n"
        "import task_functions\n"
        "from oamip_onnx.tasks import TaskOptions, run_tasks\n"
        f"inputs = task_functions.numbered(Path({str(tmp_path)!r}), 4)\n"
        f"inputs += task_functions.numbered(Path({str(tmp_path)!r}), 4, seconds=60.0)\n"
        f"run_tasks(task_functions.counted, inputs, TaskOptions(workers=2, cache=Path({str(cache)!r})))\n",
    )
    with process:
        try:
            wait_until(lambda: len(runs(tmp_path)) == 6 and len(list(cache.rglob("*.npz"))) == 4)
            yield process
        finally:
            process.kill()


def test_data_come_back_from_a_file_as_they_were(tmp_path: Path) -> None:
    data = TaskData(
        {
            "file": np.array([np.nan, np.inf, -0.0, 1 / 3]),
            "header": np.float32(0.1) + np.zeros((), np.float32),
            "arr_0": np.zeros((0, 3), np.int8),
            "turned": np.arange(6.0).reshape(2, 3).T,
            "other order of bytes": np.arange(3, dtype=">f4"),
            "text": np.array(["a", "", "čß"]),
        },
        {"gap": float("nan"), "bound": float("-inf"), "third": 1 / 3, "shape": (1, [2, None]), "ü": {"b": True}},
    )
    data.save(tmp_path / "data.npz")
    back = TaskData.load(tmp_path / "data.npz")
    assert back.digest() == data.digest()
    assert back.settings["bound"] == float("-inf")
    assert np.isnan(back.settings["gap"])
    assert back.settings["shape"] == data.settings["shape"] == [1, [2, None]]
    for name, array in data.arrays.items():
        np.testing.assert_array_equal(back.arrays[name], array, strict=True)


@pytest.mark.parametrize("value", [np.array([{}]), np.zeros(2, ml_dtypes.bfloat16), np.zeros(2, ml_dtypes.float8_e5m2)])
def test_arrays_that_a_file_cannot_hold_are_refused(value: np.ndarray[Any, Any]) -> None:
    with pytest.raises(TypeError, match="The array 'x' of a task has dtype"):
        TaskData({"x": value})


@pytest.mark.parametrize(
    "other",
    [
        TaskData({"x": np.array([1.0, 2.0])}, {"n": 2}),
        TaskData({"x": np.array([1.0, 3.0])}, {"n": 1}),
        TaskData({"x": np.array([[1.0, 2.0]])}, {"n": 1}),
        TaskData({"x": np.array([1.0, 2.0]).view(np.int64)}, {"n": 1}),
        TaskData({"y": np.array([1.0, 2.0])}, {"n": 1}),
        TaskData({"x": np.array([1.0]), "y": np.array([2.0])}, {"n": 1}),
    ],
)
def test_another_input_has_another_key(other: TaskData) -> None:
    data = TaskData({"x": np.array([1.0, 2.0])}, {"n": 1})
    assert task_key("m:f", data) != task_key("m:f", other)
    assert task_key("m:f", data) != task_key("m:g", data)
    assert task_key("m:f", data) == task_key("m:f", TaskData({"x": [1.0, 2.0]}, {"n": 1}))  # type: ignore[dict-item]


def test_results_stand_in_the_order_of_the_inputs(tmp_path: Path) -> None:
    inputs = [TaskData({"x": np.full(1, n)}, {"folder": str(tmp_path), "seconds": 0.3 - n / 10}) for n in range(4)]
    steps: list[Step] = []
    results = run_tasks(task_functions.counted, inputs, POOL, steps.append, "programs")
    assert [int(result.arrays["x"][0]) for result in results] == [0, 2, 4, 6]
    assert steps == [Step("programs", done, 4) for done in (1, 2, 3, 4)]


def test_no_task_has_no_result() -> None:
    assert run_tasks(task_functions.counted, [], TaskOptions(scheduler="tcp://127.0.0.1:1")) == []


def test_bits_do_not_depend_on_where_a_task_runs(elsewhere: TaskOptions) -> None:
    inputs = matrices(5)
    assert digests(run_tasks(task_functions.factorised, inputs, elsewhere)) == digests(
        run_tasks(task_functions.factorised, inputs, HERE)
    )


def test_large_inputs_pass(elsewhere: TaskOptions, tmp_path: Path) -> None:
    inputs = [TaskData({"x": np.full(2_000_000, float(n))}, {"folder": str(tmp_path)}) for n in range(3)]
    results = run_tasks(task_functions.counted, inputs, elsewhere)
    assert [result.arrays["x"].sum() for result in results] == [0.0, 4e6, 8e6]


def test_linear_algebra_has_one_thread(elsewhere: TaskOptions) -> None:
    variables = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    before, environment = threadpool_info(), [os.environ.get(name) for name in variables]
    for options in (elsewhere, HERE):
        for result in run_tasks(task_functions.thread_counts, [TaskData()] * 2, options):
            assert set(result.settings["counts"]) == {1}
    known = {library["filepath"] for library in before}
    assert [library for library in threadpool_info() if library["filepath"] in known] == before
    assert [os.environ.get(name) for name in variables] == environment


def test_one_thread_holds_until_the_last_task_of_a_process_has_ended() -> None:
    def blas() -> set[int]:
        return {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}

    before = blas()
    first, second = one_thread(), one_thread()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert blas() == {1}
    second.__exit__(None, None, None)
    assert blas() == before


def test_one_task_runs_in_this_process(tmp_path: Path) -> None:
    run_tasks(task_functions.counted, numbered(tmp_path, 1), TaskOptions(workers=8))
    assert process_ids(tmp_path) == {os.getpid()}


def test_inputs_cannot_be_changed(elsewhere: TaskOptions) -> None:
    for options in (HERE, elsewhere):
        with pytest.raises(ValueError, match="read-only"):
            run_tasks(task_functions.writing, [TaskData({"x": np.zeros(2)})] * 2, options)


def test_a_killed_worker_costs_a_retry(
    elsewhere: TaskOptions, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    inputs = [
        TaskData(data.arrays, {**data.settings, "dies": number == 2, "folder": str(tmp_path)})
        for number, data in enumerate(matrices(6))
    ]
    results = run_tasks(task_functions.killed_once, inputs, elsewhere)
    assert (tmp_path / "killed").exists()
    assert digests(results) == digests(run_tasks(task_functions.killed_once, inputs, HERE))
    if elsewhere is POOL:
        assert "A worker process was killed; the" in caplog.text


def test_workers_that_are_killed_again_and_again_end_the_run(dask_cluster: Any) -> None:
    with pytest.raises(
        WorkerError, match=r"^A worker process was killed 2 times, with 3 of 3 tasks unfinished.*memory"
    ):
        run_tasks(task_functions.killed, [TaskData()] * 3, TaskOptions(workers=2, retries=1))
    with pytest.raises(WorkerError, match=r"^A task ended several workers of the Dask cluster at tcp://.*memory"):
        run_tasks(task_functions.killed, [TaskData()], TaskOptions(scheduler=dask_cluster.scheduler_address))


@pytest.mark.parametrize(("name", "error"), [("solver", SolverError), ("other", ValueError)])
def test_the_first_error_in_order_ends_the_run(
    elsewhere: TaskOptions, tmp_path: Path, name: str, error: type[Exception]
) -> None:
    inputs = [
        TaskData(settings={"folder": str(tmp_path), "number": 0}),
        # The later one is raised first.
        TaskData(settings={"folder": str(tmp_path), "number": 1, "error": name, "seconds": 0.5}),
        TaskData(settings={"folder": str(tmp_path), "number": 2, "error": name}),
    ]
    with pytest.raises(error, match=r"(?i)task 1") as raised:
        run_tasks(task_functions.failing, inputs, elsewhere)
    assert type(raised.value) is error
    assert len(set(runs(tmp_path))) == len(runs(tmp_path))  # none was tried again
    with pytest.raises(error) as here:
        run_tasks(task_functions.failing, inputs, HERE)
    assert str(here.value) == str(raised.value)


def test_an_error_that_cannot_travel_is_told(elsewhere: TaskOptions, tmp_path: Path) -> None:
    inputs = [TaskData(settings={"folder": str(tmp_path), "error": "two parts"})] * 2
    with pytest.raises(RuntimeError, match=r"^TwoPartError: wrong at here") as raised:
        run_tasks(task_functions.failing, inputs, elsewhere)
    assert "task_functions.py" in raised.value.__notes__[0]


def test_a_task_must_be_importable() -> None:
    with pytest.raises(TypeError, match="top level of a module"):
        run_tasks(lambda data: data, [TaskData()], HERE)


def test_a_worker_with_other_software_is_told() -> None:
    other = call_by_name("task_functions:counted", "0.0.0", TaskData()).error
    assert isinstance(other, WorkerError)
    assert "install one version on both" in str(other)
    missing = call_by_name("no_such_module:f", __version__, TaskData()).error
    assert isinstance(missing, WorkerError)
    assert "A worker cannot import the task no_such_module:f" in str(missing)


def test_what_is_in_the_cache_is_not_run_again(tmp_path: Path) -> None:
    inputs, options = numbered(tmp_path, 3), TaskOptions(workers=1, cache=tmp_path / "cache")
    first = run_tasks(task_functions.counted, inputs, options)
    shares: list[float] = []
    again = run_tasks(task_functions.counted, inputs, options, lambda step: shares.append(step.share))
    assert digests(again) == digests(first)
    assert runs(tmp_path) == [0, 1, 2]
    assert shares == [1.0]
    more = numbered(tmp_path, 4)
    run_tasks(task_functions.counted, more, options, lambda step: shares.append(step.share))
    assert runs(tmp_path) == [0, 1, 2, 3]
    assert shares == [1.0, 0.75, 1.0]


def test_an_interrupted_run_stops_at_once_and_goes_on_later(long_run: subprocess.Popen[str], tmp_path: Path) -> None:
    start = time.monotonic()
    long_run.send_signal(signal.SIGINT)
    errors = long_run.communicate(timeout=20)[1]
    assert time.monotonic() - start < 5
    assert long_run.returncode != 0
    assert errors.count("Traceback") == 1
    assert "KeyboardInterrupt" in errors
    assert not are_running(process_ids(tmp_path))
    run_tasks(task_functions.counted, numbered(tmp_path, 5), TaskOptions(workers=1, cache=tmp_path / "cache"))
    assert len(runs(tmp_path)) == 7  # the four that had finished were not run again


def test_what_nobody_waits_for_is_not_run(elsewhere: TaskOptions, tmp_path: Path) -> None:
    def interrupt(_step: Step) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_tasks(task_functions.counted, numbered(tmp_path, 20, seconds=0.2), elsewhere, interrupt)
    time.sleep(1.0)
    assert len(runs(tmp_path)) < 8


def test_workers_end_with_the_run_that_started_them(long_run: subprocess.Popen[str], tmp_path: Path) -> None:
    assert are_running(process_ids(tmp_path))
    long_run.kill()
    long_run.communicate()
    wait_until(lambda: not are_running(process_ids(tmp_path)))


def test_a_script_without_a_guard_runs_once(tmp_path: Path) -> None:
    process = started_script(
        tmp_path,
        "from pathlib import Path\n"
        "import task_functions\n"
        "from oamip_onnx.tasks import TaskOptions, run_tasks\n"
        "print('started')\n"
        f"inputs = task_functions.numbered(Path({str(tmp_path)!r}), 4)\n"
        "print(len(run_tasks(task_functions.counted, inputs, TaskOptions(workers=2))))\n",
    )
    out, errors = process.communicate(timeout=60)
    assert (out, errors, process.returncode) == ("started\n4\n", "", 0)
    assert process.pid not in process_ids(tmp_path)


def damage_half(path: Path, _other: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def damage_all(path: Path, _other: Path) -> None:
    path.write_bytes(b"")


def damage_bit(path: Path, _other: Path) -> None:
    content = bytearray(path.read_bytes())
    content[content.index(b"\x93NUMPY") + 130] ^= 1
    path.write_bytes(content)


def damage_value(path: Path, _other: Path) -> None:
    """Change a value and leave the archive in order."""
    entry = TaskData.load(path)
    TaskData({"x": entry.arrays["x"] + 1}, entry.settings).save(path)


def damage_name(path: Path, other: Path) -> None:
    shutil.copy(other, path)


@pytest.mark.parametrize("damage", [damage_half, damage_all, damage_bit, damage_value, damage_name])
def test_a_damaged_entry_is_computed_again(
    damage: Callable[[Path, Path], None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    inputs, options = numbered(tmp_path, 2), TaskOptions(workers=1, cache=tmp_path / "cache")
    first = run_tasks(task_functions.counted, inputs, options)
    damage(*(tmp_path / "cache").rglob("*.npz"))
    assert digests(run_tasks(task_functions.counted, inputs, options)) == digests(first)
    assert len(runs(tmp_path)) == 3
    assert caplog.text.count("is damaged; its task is run again") == 1
    run_tasks(task_functions.counted, inputs, options)
    assert len(runs(tmp_path)) == 3


def test_a_cache_that_cannot_be_written_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "cache").write_text("a file, no folder")
    results = run_tasks(task_functions.counted, numbered(tmp_path, 3), TaskOptions(workers=1, cache=tmp_path / "cache"))
    assert len(results) == 3
    assert caplog.text.count("cannot be written to") == 1


def test_entries_used_longest_ago_make_room(tmp_path: Path) -> None:
    data = [TaskData({"x": np.full(1000, float(number))}) for number in range(6)]
    keys = [task_key("m:f", value) for value in data]
    cache = Cache(tmp_path, largest_bytes=35_000)  # about four entries
    for number in range(4):
        cache.put(keys[number], data[number])
        (path,) = tmp_path.rglob(f"{keys[number][2:]}.npz")
        os.utime(path, (number, number))
    (tmp_path / keys[0][:2] / "letter.txt").write_text("not an entry")
    assert cache.get(keys[0]) is not None  # used: the second is the oldest now
    cache.put(keys[4], data[4])
    assert [number for number, key in enumerate(keys) if cache.get(key) is not None] == [0, 3, 4]
    assert sum(path.stat().st_size for path in tmp_path.rglob("*.npz")) <= 35_000
    assert (tmp_path / keys[0][:2] / "letter.txt").exists()
    cache.put(keys[5], TaskData({"x": np.zeros(10_000)}))  # would push all others out
    assert [number for number, key in enumerate(keys) if cache.get(key) is not None] == [0, 3, 4]


def test_the_cache_stands_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("OAMIP_CACHE_DIR", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert default_cache() == tmp_path / ".cache" / "oamip_onnx"
    monkeypatch.setenv("XDG_CACHE_HOME", "/shared")
    assert default_cache() == Path("/shared/oamip_onnx")
    monkeypatch.setenv("OAMIP_CACHE_DIR", "own")
    assert default_cache() == Path("own")


def test_where_no_process_can_start_tasks_run_here(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("no semaphores")

    monkeypatch.setattr(pool, "ProcessPoolExecutor", refuse)
    assert len(run_tasks(task_functions.counted, numbered(tmp_path, 3), POOL)) == 3
    assert process_ids(tmp_path) == {os.getpid()}
    assert "Worker processes cannot be started (no semaphores); the tasks run in this process." in caplog.text


@pytest.mark.parametrize("is_silent", [True, False])
def test_a_scheduler_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch, *, is_silent: bool) -> None:
    monkeypatch.setattr(cluster, "_CONNECT_SECONDS", 1)
    with socket.create_server(("127.0.0.1", 0)) as peer:
        address = f"tcp://127.0.0.1:{peer.getsockname()[1]}"
        if not is_silent:
            peer.close()
        with pytest.raises(
            WorkerError, match=f"^No Dask scheduler answers at '{address}'.*check the address"
        ) as raised:
            run_tasks(task_functions.counted, [TaskData()], TaskOptions(scheduler=address))
    assert raised.value.exit_code == 3


def test_dask_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'oamip-onnx\[dask\]'"):
        run_tasks(task_functions.counted, [TaskData()], TaskOptions(scheduler="tcp://127.0.0.1:1"))


def test_the_users_client_stays_open_and_ours_does_not(dask_cluster: Any, tmp_path: Path) -> None:
    from distributed import Client

    with Client(dask_cluster, set_as_default=False) as client:
        for _ in range(2):
            results = run_tasks(task_functions.counted, numbered(tmp_path, 3), TaskOptions(scheduler=client))
            assert [result.arrays["x"][0] for result in results] == [0.0, 2.0, 4.0]
        assert client.status == "running"
        run_tasks(task_functions.counted, numbered(tmp_path, 3), TaskOptions(scheduler=dask_cluster.scheduler_address))
        open_clients = client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.clients))
    assert open_clients == len({client.id, "fire-and-forget"})
    with pytest.raises(UsageError, match="is closed"):
        run_tasks(task_functions.counted, numbered(tmp_path, 3), TaskOptions(scheduler=client))


@pytest.mark.parametrize("options", [{"workers": -1}, {"retries": -1}, {"scheduler": ""}])
def test_options_without_sense_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="give"):
        TaskOptions(**options)


def test_import_starts_nothing() -> None:
    code = "import json, sys, oamip_onnx.tasks; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"distributed", "joblib", "sklearn", "scipy", "onnx", "onnxruntime"} & set(json.loads(done.stdout))


def test_scores_are_the_same_on_a_cluster_that_loses_a_worker(dask_cluster: Any) -> None:
    """One program a layer and class; a worker process is killed as soon as the first program is solved."""
    b = image(seed=1)
    x = b.add("Relu", b.conv("x", 3, 8))
    x = b.add("Relu", b.conv(x, 8, 6))
    subject = analysed(b.finish(b.gemm(b.add("Flatten", x), 384, 4)))
    settings = OamipSettings(form="layerwise", by_class="mean", tasks=TaskOptions(workers=1))
    context = ImportanceContext(
        subject.model,
        subject.analysis,
        Samples(feeds_for(subject.model, seed=3, batch=40)),
        PLAIN,
        (4, 3),
        0,
        find_logits(subject.model, subject.analysis.types),
        oamip=settings,
    )
    expected = score("oamip", context).values
    killed = []

    def kill_once(step: Step) -> None:
        if step.task == "programs" and not killed and step.share < 1:
            killed.append(next(iter(dask_cluster.workers.values())).pid)
            os.kill(killed[0], signal.SIGKILL)

    elsewhere = replace(settings, tasks=TaskOptions(scheduler=dask_cluster.scheduler_address))
    found = score("oamip", replace(context, oamip=elsewhere, progress=kill_once)).values
    assert killed
    np.testing.assert_array_equal(found, expected)
