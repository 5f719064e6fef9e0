"""The errors a person can mend: one line that says what is wrong, the values, and what to do.

Where a message names a setting to give, it is written as the flag of the command line, with `=`
before a value that is no number: `use --max-start-epoch 3`, `give another --out`,
`begin with --init=noise`. `spelled` turns that into what the caller types.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib.util
import re
import sys
from collections.abc import Iterable, Iterator

_FLAG = re.compile(
    r"(?<![\w-])--(no-)?([a-z][\w-]*(?:\.[a-z][\w-]*)*)"
    r"(?:=([^\s,;()]*[^\s,;().])|(?: (-?\d+(?:\.\d+)?(?:e[+-]?\d+)?)(?![\w.]*\w))?)"
)
_flags_named = False


@contextlib.contextmanager
def naming_flags() -> Iterator[None]:
    """Within it, as on the command line, messages name settings by their flags."""
    global _flags_named
    before, _flags_named = _flags_named, True
    try:
        yield
    finally:
        _flags_named = before


def spelled(text: str) -> str:
    """`text` with its flags as the caller gives settings: arguments in Python, flags on the command
    line. What stands in backquotes, such as a command, stays.

    Examples:
        >>> spelled("give the same --data and --val-fraction, or --init=noise; see `run --help`")
        "give the same data= and val_fraction=, or init='noise'; see `run --help`"
        >>> spelled("add --soft-labels=true, or use --evaluate.n 3")
        'add soft_labels=True, or use n=3'
        >>> with naming_flags():
        ...     spelled("use --max-start-epoch 3, --init=noise or --soft-labels=true")
        'use --max-start-epoch 3, --init noise or --soft-labels'
    """
    name = _flag if _flags_named else _argument
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(part if part[:1] == "`" else _FLAG.sub(name, part) for part in parts)


def _flag(found: re.Match[str]) -> str:
    no, name, word, number = found.groups(default="")
    value = "" if word == "true" else word or number
    return f"--{no}{name} {value}".rstrip()


def _argument(found: re.Match[str]) -> str:
    no, name, word, number = found.groups(default="")
    value = number or ("False" if no else _literal(word))
    return f"{name.rpartition('.')[2].replace('-', '_')}={value}"


def _literal(word: str) -> str:
    """A value as Python writes it: a word in quotes, a number and the true of a switch without."""
    if word == "true":
        return "True"
    return word if not word or re.fullmatch(r"-?\d+(\.\d+)?(e[+-]?\d+)?", word) else repr(word)


class TrajmatchError(Exception):
    """A mistake the user can mend. The command line prints it as one line and exits with 2.

    `str` gives the message as the caller gives settings (see `spelled`).
    """

    @property
    def text(self) -> str:
        """The message as it was written, with flags."""
        return super().__str__()

    def __str__(self) -> str:
        return spelled(self.text)


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


def require_utf8(name: str) -> None:
    """Refuse a name that is not UTF-8: results and logs, which name it, are."""
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        shown = name.encode("utf-8", "backslashreplace").decode()
        raise SettingError(
            f"the name {shown} is not UTF-8, and files that record it are; rename it"
        ) from None


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
