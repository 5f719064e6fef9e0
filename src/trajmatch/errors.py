"""The errors a person can mend: one line that says what is wrong, the values, and what to do."""

from __future__ import annotations

import difflib
import importlib.util
import sys
from collections.abc import Iterable


class TrajmatchError(Exception):
    """A mistake the user can mend. The command line prints it as one line and exits with 2."""


class SettingError(TrajmatchError, ValueError):
    """A setting is out of range, or two settings contradict each other."""


class DataError(TrajmatchError, ValueError):
    """A data set is absent, unreadable, or not in the shape asked for."""


class FileFormatError(TrajmatchError, ValueError):
    """A file of ours is truncated, altered, foreign, or of a newer version."""


class MismatchError(TrajmatchError, ValueError):
    """Two artefacts do not belong together: other data, whitening or network."""


class MissingExtraError(TrajmatchError, ImportError):
    """An optional dependency is needed and not installed."""

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f"{what} needs an optional dependency: pip install 'trajmatch[{extra}]'")


def require_extra(what: str, extra: str, *modules: str) -> None:
    """Raises MissingExtraError, without importing anything, unless all `modules` are installed.

    Examples:
        >>> require_extra("the page", "report", "json")
    """
    for module in modules:
        if sys.modules.get(module) is None and importlib.util.find_spec(module) is None:
            raise MissingExtraError(what, extra)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that memory could not be allocated, by Python, NumPy or torch.

    Examples:
        >>> is_out_of_memory(MemoryError())
        True
    """
    words = ("not enough memory", "DefaultCPUAllocator", "can't allocate memory", "out of memory")
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in words)
    )


def suggest(word: str, choices: Iterable[str]) -> str:
    """`did you mean 'x'? ` when `word` is close to one of `choices`, then the choices themselves.

    The text is made to end an error message: `unknown network 'convent'; did you mean 'convnet'?
    (known: convnet, mlp)`.
    """
    names = sorted(choices)
    close = difflib.get_close_matches(word.lower(), names, n=1, cutoff=0.6)
    hint = f"did you mean '{close[0]}'? " if close else ""
    return f"{hint}(known: {', '.join(names)})"
