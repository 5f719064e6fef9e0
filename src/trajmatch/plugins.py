"""Registries: implementations by name, open to other packages.

Each kind that is chosen by name (methods, networks, data sources, whitenings) has one `Registry`.
It holds the package's own entries, finds those that installed packages declare as entry points, and
imports `package.module:Name` where a person gives that as a name:

    [project.entry-points."trajmatch.methods"]
    mean = "my_package.mean:Mean"

docs/extending.md shows one of each kind.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar

from trajmatch.errors import SettingError, suggest

T = TypeVar("T")


def _place(entry: Any) -> tuple[Any, Any]:
    """The module of a class, and what it is called there."""
    return getattr(entry, "__module__", None), getattr(entry, "__qualname__", entry)


class Registry(Mapping[str, T], Generic[T]):
    """A mapping from names to implementations of one kind.

    what: the kind, for messages ("network").
    group: the entry-point group of other packages' entries ("trajmatch.networks").
    accepts: whether an object is of this kind; checked on every entry of another package.
    entries: the package's own.
    option: the command line's option that names one (--network); None: `what`.

    Iteration gives the registered names, then those of entry points. Looking up a name is what
    imports another package; listing names imports nothing. An entry point never replaces a
    registered entry of the same name.

    Examples:
        >>> from trajmatch.plugins import Registry
        >>> shapes = Registry("shape", "my_package.shapes", callable, {"square": lambda x: x * x})
        >>> list(shapes)
        ['square']
        >>> shapes.known("sqare")
        Traceback (most recent call last):
        trajmatch.errors.SettingError: unknown shape 'sqare'; did you mean 'square'? (known: square)
    """

    def __init__(
        self,
        what: str,
        group: str,
        accepts: Callable[[Any], bool],
        entries: Mapping[str, T] | None = None,
        option: str | None = None,
    ) -> None:
        self.what, self.group, self.accepts = what, group, accepts
        self.option = option or what
        self._entries: dict[str, T] = dict(entries or {})

    def register(self, name: str, entry: T) -> T:
        """Add an entry, or replace the one of this name; returns it."""
        self._entries[name] = entry
        return entry

    def find(self, name: str) -> T:
        """The entry for a name that a person gave: a known name, or `package.module:Name`, which is
        imported (from the current folder as well) and registered under that name.

        Raises SettingError for an unknown name, and for an object that cannot be imported or is not
        of this kind.
        """
        if ":" in name and name not in self._entries:
            return self.register(name, self._imported(name))
        return self.known(name)

    def known(self, name: str) -> T:
        """The entry for a name that was read from a file. Never imports by a path, because a file
        must not be able to run code: only registered names and installed entry points count.

        Raises SettingError for any other name.
        """
        try:
            return self[name]
        except KeyError:
            pass
        mend = suggest(name, self)
        if ":" in name:
            mend = f"it belongs to another package; give --{self.option}={name} to load it"
        raise SettingError(f"unknown {self.what} '{name}'; {mend}")

    def name_of(self, entry: T) -> str:
        """The name of an entry given as an object: the one it is registered or installed under,
        else `module:Name`, under which it is registered here.

        Raises SettingError for an object that is not of this kind.
        """
        for name, registered in self._entries.items():
            if registered is entry:
                return name
        self._require_kind(entry, f"{entry!r:.80}")
        module = getattr(entry, "__module__", "?")
        path = f"{module}:{getattr(entry, '__qualname__', type(entry).__qualname__)}"
        for name, point in self._declared().items():
            if point.value == path and name not in self._entries:
                path = name
        self.register(path, entry)
        return path

    def require_own_name(self, name: str, entry: T, words: str) -> None:
        """Refuse an entry that names itself like another one, as whose its results would count.

        words: what the entry is called in the message. Raises SettingError.
        """
        if name in self and _place(self[name]) != _place(entry):  # not a module read again
            raise SettingError(
                f"{words} has the name '{name}', which is another {self.what}'s; give the class a "
                "name of its own"
            )

    def __getitem__(self, name: str) -> T:
        if name not in self._entries:
            self._entries[name] = self._checked(name, self._declared()[name].load)
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        yield from dict.fromkeys([*self._entries, *self._declared()])

    def __len__(self) -> int:
        return len(set(self))

    def __contains__(self, name: object) -> bool:
        return name in self._entries or name in self._declared()

    def _declared(self) -> dict[str, EntryPoint]:
        return {point.name: point for point in entry_points(group=self.group)}

    def _imported(self, path: str) -> T:
        module, _, attribute = path.partition(":")

        def load() -> Any:
            if "" not in sys.path:
                sys.path.append("")  # last: a file here must not hide an installed package
            found: Any = import_module(module)
            for part in attribute.split("."):
                found = getattr(found, part)
            return found

        return self._checked(path, load)

    def _checked(self, name: str, load: Callable[[], Any]) -> T:
        try:
            entry = load()
        except Exception as error:  # whatever the other package's import raises
            reason = " ".join(str(error).split()) or type(error).__name__
            raise SettingError(f"cannot load {self.what} '{name}': {reason}") from error
        self._require_kind(entry, f"'{name}' is {entry!r:.80}, which")
        result: T = entry
        return result

    def _require_kind(self, entry: Any, subject: str) -> None:
        if not self.accepts(entry):
            raise SettingError(f"{subject} is not a {self.what}; see docs/extending.md")
