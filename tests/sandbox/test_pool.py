"""The warm pool: order, limits, deaths, forks, threads, and nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from transformer2.sandbox.pool import Lost, PoolError, WorkerPool, cores

WORKER = [sys.executable, str(Path(__file__).parents[1] / "helpers" / "pool_worker.py")]
SRC = str(Path(__file__).parents[2] / "src")
ENV = {**os.environ, "PYTHONPATH": SRC}


@pytest.fixture
def pool():
    pool = WorkerPool(WORKER, 2, env=ENV)
    yield pool
    pool.close()


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def until(holds, seconds: float = 60.0) -> bool:
    end = time.monotonic() + seconds
    while not holds() and time.monotonic() < end:
        time.sleep(0.02)
    return holds()


def test_answers_come_in_the_order_of_the_requests(pool):
    requests = [f"{'sleep' if i % 3 == 0 else 'echo'} 0.0{i % 10}".encode() for i in range(40)]
    assert pool.map(requests, 5.0) == [r.partition(b" ")[2] for r in requests]
    assert pool.map([], 5.0) == []


def test_large_frames_pass_both_ways(pool):
    big = os.urandom(3_000_000)
    assert pool.map([b"echo " + big, b"echo ", b"echo " + big], 20.0) == [big, b"", big]


def test_stray_prints_and_reads_do_not_touch_the_pipe(pool):
    assert pool.map([b"print x", b"read", b"print y"], 5.0) == [b"x", b"nothing", b"y"]


@pytest.mark.parametrize("hang", [b"sleep 60", b"stuck"])
def test_what_takes_too_long_is_killed_and_the_rest_answered(pool, hang):
    answers = pool.map([b"echo a", hang, b"echo b", b"echo c"], 0.5)
    assert answers == [b"a", Lost.TIMEOUT, b"b", b"c"]
    assert pool.map([b"echo d"], 5.0) == [b"d"]


def test_a_worker_that_dies_on_a_request_loses_that_one_only(pool):
    for death in (b"exit", b"raise x"):
        assert pool.map([b"echo a", death, b"echo b"], 5.0) == [b"a", Lost.DIED, b"b"]


def test_every_request_may_die_without_ending_the_pool(pool):
    assert pool.map([b"exit"] * 6, 5.0) == [Lost.DIED] * 6


def test_the_deadline_gives_up_what_is_not_answered(pool):
    pool.map([b"echo warm"] * 2, 5.0)
    answers = pool.map([b"echo a", b"sleep 60", b"sleep 60", b"sleep 60"], 30.0, deadline=1.0)
    assert answers == [b"a", Lost.DEADLINE, Lost.DEADLINE, Lost.DEADLINE]
    assert pool.map([b"echo b"], 5.0) == [b"b"]  # and not a late answer of the batch before


def test_a_worker_killed_between_batches_is_replaced(pool):
    before = pool.map([b"pid"], 5.0)
    os.kill(int(before[0]), signal.SIGKILL)
    assert until(lambda: not is_running(int(before[0])))
    after = pool.map([b"pid"], 5.0)
    assert isinstance(after[0], bytes) and after != before


def test_a_pool_that_dies_is_restarted_three_times_and_then_stops(tmp_path):
    pool = WorkerPool(WORKER, 1, env={**ENV, "WORKER_FAILS": "1"})
    with pytest.raises(PoolError, match=r"died 4 times in a row \(last exit status 7\)"):
        pool.map([b"echo a"], 5.0)
    with pytest.raises(PoolError, match="cannot be started"):
        WorkerPool([str(tmp_path / "nothing")], 1).map([b"echo a"], 5.0)
    with pytest.raises(PoolError, match="died 4 times"):
        WorkerPool([sys.executable, "-c", "import time; time.sleep(60)"], 1, start_seconds=0.2).map([b"echo a"], 5.0)


def test_answers_reset_the_count(pool):
    pool.size = 1
    for _ in range(6):
        (pid,) = pool.map([b"pid"], 5.0)
        os.kill(int(pid), signal.SIGKILL)
        assert until(lambda pid=int(pid): not is_running(pid))


def test_start_warms_up_without_waiting():
    asleep = WorkerPool([sys.executable, "-c", "import time; time.sleep(60)"], 1, start_seconds=90.0)
    asleep.start()
    assert asleep._workers[0].is_starting
    asleep.close()
    pool = WorkerPool(WORKER, 2, env=ENV)
    pool.start()
    assert pool.map([b"echo a"], 5.0) == [b"a"]
    pool.close()
    assert pool.map([b"echo again"], 5.0) == [b"again"]
    pool.close()


def test_threads_share_it(pool):
    found = {}

    def ask(name: str) -> None:
        found[name] = pool.map([f"echo {name}{i}".encode() for i in range(20)], 5.0)

    threads = [threading.Thread(target=ask, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {name: [f"{name}{i}".encode() for i in range(20)] for name in "abc"}
    time.sleep(0.1)  # the threads that started the workers are gone; the workers stay
    assert pool.map([b"pid"] * 2, 5.0) and all(worker.is_ready() for worker in pool._workers)


def test_a_fork_has_workers_of_its_own_and_leaves_the_parents(pool):
    (parents,) = pool.map([b"pid"], 5.0)
    child = os.fork()
    if child == 0:
        try:
            (own,) = pool.map([b"pid"], 5.0)
            pool.close()
            os._exit(0 if isinstance(own, bytes) and own != parents else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert pool.map([b"pid"], 5.0) == [parents]


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_no_process_outlives_the_owner(tmp_path, end):
    """Not even a worker that is stuck, nor what it started."""
    note = tmp_path / "pids"
    code = (
        "import sys; from transformer2.sandbox.pool import WorkerPool\n"
        f"WorkerPool({WORKER!r}, 1).map([b'child {note}'], 600.0)"
    )
    owner = subprocess.Popen([sys.executable, "-c", code], env=ENV)
    assert until(lambda: note.exists() and len(note.read_text().split()) == 2)
    worker, grandchild = map(int, note.read_text().split())
    assert is_running(worker) and is_running(grandchild)
    owner.send_signal(end)
    owner.wait()
    assert until(lambda: not is_running(worker) and not is_running(grandchild))


def test_a_timeout_takes_the_whole_group(pool, tmp_path):
    note = tmp_path / "pids"
    assert pool.map([f"child {note}".encode()], 1.0) == [Lost.TIMEOUT]
    assert until(lambda: not any(is_running(int(pid)) for pid in note.read_text().split()))


@pytest.mark.parametrize("hang", [b"sleep 60", b"stuck"])
def test_an_interrupt_ends_the_wait_and_the_workers(pool, hang):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    (pid,) = pool.map([b"pid"], 5.0)
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        pool.map([hang] * 4, 60.0)
    assert until(lambda: not is_running(int(pid)))
    timer.join()
    signal.signal(signal.SIGINT, before)
    assert pool.map([b"echo a"] * 2, 5.0) == [b"a", b"a"]


def test_a_worker_that_starts_does_not_hold_up_the_batch(pool):
    """What is left is answered by the worker that is ready, and nobody waits for one that nothing is left for."""
    pool.map([b"echo warm"] * 2, 5.0)
    slow = WorkerPool([sys.executable, "-c", "import time; time.sleep(30)"], 1, start_seconds=60.0)
    slow.start()
    pool._workers[0].kill()
    pool._workers[0] = slow._workers.pop()
    assert pool.map([b"echo a"] * 4, 5.0) == [b"a"] * 4
    assert any(worker.is_starting for worker in pool._workers)


def test_other_threads_run_while_it_waits(pool):
    pool.map([b"echo warm"] * 2, 5.0)
    beats = []
    stop = threading.Event()

    def beat() -> None:
        while not stop.wait(0.01):
            beats.append(time.monotonic())

    thread = threading.Thread(target=beat)
    thread.start()
    pool.map([b"stuck"] * 2, 0.5)
    stop.set()
    thread.join()
    assert len(beats) > 5


def test_the_size_is_the_cores_this_process_may_use():
    assert WorkerPool(WORKER).size == cores() >= 1
