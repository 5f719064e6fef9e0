"""Independent tasks in this process or in several on this machine.

Workers are spawned, not forked: torch's threads and CUDA do not survive a fork. Each takes about
three seconds to start, so they suit tasks of minutes. Spawning imports the caller's main module
again: a script that asks for more than one worker needs `if __name__ == "__main__":` around its
work. `workers=1` never starts a process and is safe anywhere, notebooks included.
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
from functools import partial
from multiprocessing import connection
from multiprocessing.context import SpawnProcess
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch

from trajmatch.errors import TrajmatchError
from trajmatch.runtime.threads import limited_threads

T = TypeVar("T")
R = TypeVar("R")
if TYPE_CHECKING:
    Pipe = connection.Connection[Any, Any]
else:
    Pipe = connection.Connection

_listener: ContextVar[Callable[[Any], None] | None] = ContextVar("_listener", default=None)


def run_tasks(
    function: Callable[[T], R],
    tasks: Sequence[T],
    *,
    workers: int,
    threads: int = 1,
    on_result: Callable[[int, R], None] | None = None,
    on_event: Callable[[Any], None] | None = None,
) -> list[R]:
    """`[function(task) for task in tasks]`, spread over `workers` processes of `threads` threads.

    One worker or one task runs in this process, with the same number of threads, so that results
    do not depend on `workers`. `on_result(number of the task, result)` is called here as results
    arrive; `on_event(event)` with what tasks `emit`. With several workers `function` (sent once to
    each), tasks, results and events must pickle; tensors among them are copied.

    The first exception of a task stops the others and is raised here, with its type. TrajmatchError
    when a worker is killed. Workers never outlive this call or this process, however it ends.
    """
    # A worker's own children would not be ended with it, so inside a worker work stays there.
    if min(workers, len(tasks)) <= 1 or multiprocessing.current_process().daemon:
        results = []
        with limited_threads(threads), _listening(on_event):
            for number, task in enumerate(tasks):
                results.append(function(task))
                if on_result:
                    on_result(number, results[-1])
        return results
    with _crew(min(workers, len(tasks)), threads) as crew:
        # Pickled here, by the plain pickler: multiprocessing's would move tensors to /dev/shm,
        # which is 64 MB in most containers.
        program = pickle.dumps(function)
        waiting = iter(range(len(tasks)))
        for pipe, process in crew.items():
            _send(pipe, process, program)
            number = next(waiting)
            _send(pipe, process, pickle.dumps((number, tasks[number])))
        busy, done = set(crew), dict[int, R]()
        while busy:
            for pipe in cast(list[Pipe], connection.wait(list(busy))):
                kind, number, value = _receive(pipe, crew[pipe])
                if kind == "event":
                    if on_event:
                        on_event(value)
                    continue
                if kind == "error":
                    raise value if isinstance(value, BaseException) else _rebuilt(*value)
                done[number] = value
                if on_result:
                    on_result(number, value)
                following = next(waiting, None)
                if following is None:
                    busy.remove(pipe)
                else:
                    message = pickle.dumps((following, tasks[following]))
                    _send(pipe, crew[pipe], message)
    return [done[number] for number in range(len(tasks))]


def emit(event: Any) -> None:
    """Tell the caller of `run_tasks` something from inside a task; nothing when nobody listens."""
    listener = _listener.get()
    if listener:
        listener(event)


@contextlib.contextmanager
def _crew(workers: int, threads: int) -> Iterator[dict[Pipe, SpawnProcess]]:
    """Start workers; end them when the block ends, at once when it fails."""
    context = multiprocessing.get_context("spawn")
    crew: dict[Pipe, SpawnProcess] = {}
    try:
        for _ in range(workers):
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(theirs, threads), daemon=True)
            crew[ours] = process
            process.start()
            theirs.close()  # now the worker's death is the pipe's end
        yield crew
        for pipe in crew:
            pipe.close()  # a worker that finds its pipe closed returns
        for process in crew.values():
            process.join(timeout=10)
    finally:
        for pipe, process in crew.items():
            pipe.close()
            if process.pid is not None:
                process.kill()
                process.join()
            process.close()


def _send(pipe: Pipe, process: SpawnProcess, message: bytes) -> None:
    try:
        pipe.send_bytes(message)
    except OSError as error:
        raise _death(process) from error


def _receive(pipe: Pipe, process: SpawnProcess) -> tuple[str, int, Any]:
    try:
        kind, number, value = pickle.loads(pipe.recv_bytes())
    except (EOFError, OSError) as error:
        raise _death(process) from error
    return kind, number, value


def _death(process: SpawnProcess) -> TrajmatchError:
    process.join(timeout=10)
    code = process.exitcode
    if code == -signal.SIGKILL:
        return TrajmatchError(
            "a worker process was killed (out of memory?); use fewer workers, or free memory"
        )
    how = f"by {signal.Signals(-code).name}" if code and code < 0 else f"with exit code {code}"
    return TrajmatchError(
        f"a worker process ended {how} before its task was done (its message is above); use "
        "workers=1, or in a script put the call under `if __name__ == '__main__':`"
    )


def _work(pipe: Pipe, threads: int) -> None:
    """A worker's life: receive the function once, then tasks until the pipe is closed."""
    # Ctrl-C reaches the whole group; the parent answers it and ends the workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    torch.set_num_threads(threads)

    def tell(kind: str, number: int, value: Any) -> None:
        pipe.send_bytes(pickle.dumps((kind, number, value)))

    function, number = None, -1
    # The pipe's end, or nobody to write to: the parent has no more work, or is gone.
    with contextlib.suppress(EOFError, OSError), _listening(partial(tell, "event", -1)):
        program = pipe.recv_bytes()
        while True:
            message = pipe.recv_bytes()
            try:
                function = function or pickle.loads(program)
                number, task = pickle.loads(message)
                tell("result", number, function(task))
            except BaseException as error:
                tell("error", number, _portable(error))


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)


def _portable(error: BaseException) -> BaseException | tuple[type[TrajmatchError], str]:
    """`error`, or the nearest thing that survives pickling, with the worker's traceback as note."""
    if isinstance(error, TrajmatchError):
        return type(error), str(error)
    note = "".join(traceback.format_exception(error))
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        error = RuntimeError(f"{type(error).__name__}: {error}")
    error.add_note(f"in a worker process:\n{note}")
    return error


def _rebuilt(kind: type[TrajmatchError], message: str) -> TrajmatchError:
    # Without __init__, whose arguments need not be the message; pickle would call it with that.
    return kind.__new__(kind, message)


@contextlib.contextmanager
def _listening(listener: Callable[[Any], None] | None) -> Iterator[None]:
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)
