"""Independent tasks, in this process or in several on this machine.

Workers are spawned, not forked: torch's threads and CUDA do not survive a fork. Each takes about
three seconds to start, so they suit tasks of minutes. Spawning imports the caller's main module
again: a script that uses more than one worker needs `if __name__ == "__main__":` around its work.
`Serial` never starts a process and is safe anywhere, notebooks included.

Why not `concurrent.futures.ProcessPoolExecutor` or loky: with both, a worker outlives a parent that
was killed by SIGKILL (it was still in its task 12 s later), and neither passes on events while a
task runs. ProcessPoolExecutor also waits for the running tasks before it raises the first error,
and pickles tensors into /dev/shm, which is 64 MB in most containers.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from multiprocessing import connection, resource_tracker
from multiprocessing.context import SpawnProcess
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast, runtime_checkable

import torch

from trajmatch.config import check_ranges
from trajmatch.errors import TrajmatchError
from trajmatch.runtime.interruption import NAMES, raise_lost
from trajmatch.runtime.threads import limited_threads

T = TypeVar("T")
R = TypeVar("R")
if TYPE_CHECKING:
    Pipe = connection.Connection[Any, Any]
else:
    Pipe = connection.Connection

_INTERRUPTIONS = [getattr(signal, name) for name in NAMES if hasattr(signal, name)]

_HANDLED = b"handled"
"""What a worker waits for after an event."""

_listener: ContextVar[Callable[[Any], None] | None] = ContextVar("_listener", default=None)


@runtime_checkable
class Executor(Protocol):
    """Applies a function to tasks that do not depend on each other."""

    def map_tasks(
        self,
        function: Callable[[T], R],
        tasks: Sequence[T],
        on_result: Callable[[int, R], None] | None = None,
        on_event: Callable[[Any], None] | None = None,
    ) -> list[R]:
        """`[function(task) for task in tasks]`.

        `on_result(number of the task, result)` and `on_event(event)`, with what tasks `emit`, are
        called in this process while the tasks run. The first exception of a task stops the others
        and is raised with its type.
        """


@dataclass(frozen=True)
class Serial:
    """One task after another in this process, with `threads` threads of torch.

    Examples:
        >>> Serial().map_tasks(abs, [-1, 2], on_result=lambda number, result: print(result))
        1
        2
        [1, 2]
    """

    threads: int = 1

    def map_tasks(
        self,
        function: Callable[[T], R],
        tasks: Sequence[T],
        on_result: Callable[[int, R], None] | None = None,
        on_event: Callable[[Any], None] | None = None,
    ) -> list[R]:
        """See `Executor`."""
        results = []
        with limited_threads(self.threads), _listening(on_event):
            for number, task in enumerate(tasks):
                results.append(function(task))
                if on_result:
                    on_result(number, results[-1])
        return results


@dataclass(frozen=True)
class Processes:
    """Tasks spread over `workers` processes of `threads` threads each.

    The function (sent once to each worker), tasks, results and events must pickle; tensors among
    them are copied. TrajmatchError when a worker is killed. Workers never outlive the call or this
    process, however it ends.
    """

    workers: int
    threads: int = 1

    def __post_init__(self) -> None:
        check_ranges(self)

    def map_tasks(
        self,
        function: Callable[[T], R],
        tasks: Sequence[T],
        on_result: Callable[[int, R], None] | None = None,
        on_event: Callable[[Any], None] | None = None,
    ) -> list[R]:
        """See `Executor`."""
        with _started(min(self.workers, len(tasks)), self.threads) as workers:
            # Pickled here, by the plain pickler: multiprocessing's moves tensors to /dev/shm.
            program = pickle.dumps(function)
            waiting = iter(range(len(tasks)))
            for pipe, process in workers.items():
                _send(pipe, process, program)
                number = next(waiting)
                _send(pipe, process, pickle.dumps((number, tasks[number])))
            busy, results = set(workers), dict[int, R]()
            while busy:
                raise_lost()
                for pipe in cast(list[Pipe], connection.wait(list(busy))):
                    kind, number, value = _receive(pipe, workers[pipe])
                    if kind == "event":
                        if on_event:
                            on_event(value)
                        _send(pipe, workers[pipe], _HANDLED)
                        continue
                    if kind == "error":
                        raise value if isinstance(value, BaseException) else _rebuilt(*value)
                    results[number] = value
                    if on_result:
                        on_result(number, value)
                    following = next(waiting, None)
                    if following is None:
                        busy.remove(pipe)
                    else:
                        message = pickle.dumps((following, tasks[following]))
                        _send(pipe, workers[pipe], message)
        return [results[number] for number in range(len(tasks))]


def executor_for(workers: int, tasks: int, threads: int = 1) -> Executor:
    """`Processes` where more than one worker has something to do, else `Serial`.

    Within a worker it is always `Serial`: a worker's own children would not end with it.

    Examples:
        >>> executor_for(4, tasks=1)
        Serial(threads=1)
        >>> executor_for(4, tasks=3)
        Processes(workers=3, threads=1)
    """
    count = min(workers, tasks)
    if count <= 1 or multiprocessing.current_process().daemon:
        return Serial(threads)
    return Processes(count, threads)


def run_tasks(
    function: Callable[[T], R],
    tasks: Sequence[T],
    *,
    workers: int,
    threads: int = 1,
    on_result: Callable[[int, R], None] | None = None,
    on_event: Callable[[Any], None] | None = None,
) -> list[R]:
    """`[function(task) for task in tasks]` by the executor that `executor_for` chooses.

    Results do not depend on `workers`, since the number of threads is the same in all of them.
    """
    executor = executor_for(workers, len(tasks), threads)
    return executor.map_tasks(function, tasks, on_result, on_event)


def emit(event: Any) -> None:
    """Pass `event` from inside a task to the caller's `on_event`, if there is one.

    Returns when that has returned, in processes too: what a task does after it, such as saving what
    the event was about, is not done where the caller was killed before.
    """
    listener = _listener.get()
    if listener:
        listener(event)


@contextlib.contextmanager
def _started(count: int, threads: int) -> Iterator[dict[Pipe, SpawnProcess]]:
    """Start workers; end them when the block ends, at once when it fails."""
    context = multiprocessing.get_context("spawn")
    workers: dict[Pipe, SpawnProcess] = {}
    try:
        for _ in range(count):
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(theirs, threads), daemon=True)
            workers[ours] = process
            with _signals_blocked():
                process.start()
            theirs.close()  # the worker has the only other end: its death closes the pipe
        yield workers
        for pipe in workers:
            pipe.close()  # which ends the worker
        for process in workers.values():
            process.join(timeout=10)
    finally:
        for pipe, process in workers.items():
            pipe.close()
            if process.pid is not None:
                process.kill()
                process.join()
            process.close()


@contextlib.contextmanager
def _signals_blocked() -> Iterator[None]:
    """A process that is started in the block receives no interruption, of which a whole process
    group may get one at once: this process handles it and ends the workers."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    resource_tracker.ensure_running()  # started with a worker, it would unblock them
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _INTERRUPTIONS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _send(pipe: Pipe, process: SpawnProcess, message: bytes) -> None:
    try:
        pipe.send_bytes(message)
    except OSError as error:
        raise _death_error(process) from error


def _receive(pipe: Pipe, process: SpawnProcess) -> tuple[str, int, Any]:
    try:
        kind, number, value = pickle.loads(pipe.recv_bytes())
    except (EOFError, OSError) as error:
        raise _death_error(process) from error
    return kind, number, value


def _death_error(process: SpawnProcess) -> TrajmatchError:
    process.join(timeout=10)
    code = process.exitcode
    if code == -9:  # SIGKILL, which Windows has no name for
        return TrajmatchError(
            "a worker process was killed (out of memory?); use fewer workers, or free memory"
        )
    how = f"by {signal.Signals(-code).name}" if code and code < 0 else f"with exit code {code}"
    return TrajmatchError(
        f"a worker process ended {how} before its task was done (its message is above); use "
        "workers=1, or in a script put the call under `if __name__ == '__main__':`"
    )


def _work(pipe: Pipe, threads: int) -> None:
    """What a worker runs: it receives the function once, then tasks until the pipe is closed."""
    for number in _INTERRUPTIONS:  # handled by the parent
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    torch.set_num_threads(threads)

    def send(kind: str, number: int, value: Any) -> None:
        pipe.send_bytes(pickle.dumps((kind, number, value)))

    def pass_on(event: Any) -> None:
        send("event", -1, event)
        pipe.recv_bytes()  # _HANDLED

    function, number = None, -1
    # A closed pipe, for reading or writing: the parent has no more tasks, or has ended.
    with contextlib.suppress(EOFError, OSError), _listening(pass_on):
        program = pipe.recv_bytes()
        while True:
            message = pipe.recv_bytes()
            try:
                function = function or pickle.loads(program)
                number, task = pickle.loads(message)
                send("result", number, function(task))
            except BaseException as error:
                send("error", number, _portable(error))


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)


def _portable(error: BaseException) -> BaseException | tuple[type[TrajmatchError], str]:
    """`error` with the worker's traceback as a note, or a RuntimeError of its text if it does not
    pickle; of a TrajmatchError type and message."""
    if isinstance(error, TrajmatchError):
        return type(error), error.text
    note = "".join(traceback.format_exception(error))
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        error = RuntimeError(f"{type(error).__name__}: {error}")
    error.add_note(f"in a worker process:\n{note}")
    return error


def _rebuilt(kind: type[TrajmatchError], message: str) -> TrajmatchError:
    # Without __init__, whose arguments need not be the message, as pickle takes them to be.
    return kind.__new__(kind, message)


@contextlib.contextmanager
def _listening(listener: Callable[[Any], None] | None) -> Iterator[None]:
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)
