"""Registries: implementations by name, open to other packages.

A kind of thing that is chosen by name (methods, networks, data sources, whitenings) has one
`Registry`. It holds the package's own entries, finds those that installed packages declare as entry
points, and imports `package.module:Name` where a person gives that as a name:

    [project.entry-points."trajmatch.methods"]
    mean = "my_package.mean:Mean"
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar

from trajmatch.errors import SettingError, suggest

T = TypeVar("T")


class Registry(Mapping[str, T], Generic[T]):
    """A mapping from names to implementations of one kind.

    what: the kind in one word, for messages ("method").
    group: the entry-point group that other packages declare theirs in ("trajmatch.methods").
    accepts: whether an object is of this kind; checked on what comes from outside.

    Iteration gives the names that are registered, then those of entry points that add to them.
    Nothing of another package is imported before its name is looked up.
    """

    def __init__(self, what: str, group: str, accepts: Callable[[Any], bool]) -> None:
        self.what, self.group, self.accepts = what, group, accepts
        self._entries: dict[str, T] = {}

    def register(self, name: str, entry: T) -> T:
        """Add an entry, or replace the one of this name; returns it."""
        self._entries[name] = entry
        return entry

    def find(self, name: str) -> T:
        """The entry a person asked for: a known name, or `package.module:Name`, which is imported
        (from the current folder as well) and registered under that name.

        Raises SettingError for a name that is not known and for what cannot be imported.
        """
        if ":" in name and name not in self._entries:
            return self.register(name, self._imported(name))
        return self.known(name)

    def known(self, name: str) -> T:
        """The entry of a name that was read from a file. Never imports by a path, because a file
        must not be able to run code: only registered names and installed entry points count.

        Raises SettingError for any other name.
        """
        try:
            return self[name]
        except KeyError:
            pass
        mend = suggest(name, self)
        if ":" in name:
            mend = f"it belongs to another package; give --{self.what} {name} to load it"
        raise SettingError(f"unknown {self.what} '{name}'; {mend}")

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
        if not self.accepts(entry):
            raise SettingError(
                f"'{name}' is {entry!r:.80}, not a {self.what}; see docs/extending.md"
            )
        result: T = entry
        return result
