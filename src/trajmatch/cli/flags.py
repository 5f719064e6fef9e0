"""The flags of a command, as dataclasses; their base values come from a file.

A command's flags are a frozen dataclass on top of `Common`. A config of `trajmatch.config` in it is
spread flat with `Flat[...]` (`--lr-img 10`); without `Flat` its flags carry the field's name, as in
a TOML file (`--evaluate.epochs 300`), which is for the second of two configs that share names:

    @dataclass(frozen=True, kw_only=True)
    class Flags(Common):
        out: Path = Path("runs/distilled")
        '''Folder to write to.'''
        distill: Flat[DistillConfig] = DistillConfig()
        evaluate: EvaluateConfig = EvaluateConfig()

A command that learns images has `method: str` and `settings: Flat[MethodSettings]`: `parse` puts
the settings class of the method that the line or the file names in the place of `MethodSettings`,
so that `--help` shows that method's flags and no other's.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_args, get_type_hints

import tyro

from trajmatch.cli.mistakes import Refusal, UsageError
from trajmatch.cli.values import REGISTRY
from trajmatch.config import DataConfig, NamedValue, NetworkConfig, check_ranges
from trajmatch.errors import SettingError, suggest

if TYPE_CHECKING:
    from trajmatch.pipeline.recipe import Recipe

T = TypeVar("T")
F = TypeVar("F", bound="Common")

_FLAT: Any = tyro.conf.OmitArgPrefixes
_POSITIONAL: Any = tyro.conf.Positional
_HIDDEN: Any = tyro.conf.Suppress

Flat = Annotated[T, _FLAT]
"""`Flat[SomeConfig]`: the config's fields become flags without a prefix."""

Positional = Annotated[T, _POSITIONAL]
"""`Positional[Path]`: given by place, not by name."""


@dataclasses.dataclass(frozen=True)
class MethodSettings:
    """Stands for the settings of the method that a command line names; see `parse`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Common:
    """The flags every command has."""

    out: Path = Path("runs/out")
    """Folder to write to."""
    seed: int = 0
    """Every random number follows from it; the same seed gives the same numbers."""
    device: str = "auto"
    """auto (a GPU where there is one), cpu, cuda, or cuda:1 for the second GPU."""
    config: Path | None = None
    """Settings: a recipe by name (`trajmatch recipes`) or a TOML file; flags given here win over
    them."""

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.out.exists() and not self.out.is_dir():
            raise SettingError(f"--out is '{self.out}', which is a file; give a folder")
        if self.device != "auto":
            pick_device(self.device)

    @classmethod
    def base(cls, arguments: Sequence[str]) -> dict[str, Any]:
        """Defaults that the line itself changes: the settings of the file in --config."""
        path = value_of("--config", arguments)
        if path is None:
            return {}
        from trajmatch.pipeline.recipe import load_recipe

        return settings_of(cls, load_recipe(path), arguments)


def pick_device(name: str) -> str:
    """`cpu` or `cuda:i` for `auto`, `cpu`, `cuda` or `cuda:i`.

    Raises SettingError for another word and for a GPU this machine (or this torch) has not.
    """
    if name == "cpu":
        return name
    match = re.fullmatch(r"auto|cuda(?::(\d+))?", name)
    if match is None:
        known = suggest(name, ("auto", "cpu", "cuda", "cuda:0"))
        raise SettingError(f"--device is '{name}'; {known}")
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return "cuda:0" if count else "cpu"
    if not count:
        raise SettingError(
            f"--device is '{name}', but torch {torch.__version__} sees no GPU here; use cpu or auto"
        )
    index = int(match[1] or 0)
    if index >= count:
        raise SettingError(f"--device is '{name}', but the last of {count} is cuda:{count - 1}")
    return f"cuda:{index}"


def parse(
    kind: type[F], arguments: Sequence[str], *, program: str, description: str, example: str = ""
) -> F | None:
    """An instance of `kind` from `arguments`; None where they include --help, which is printed.

    Raises UsageError for what is wrong with the line, SettingError for what is wrong in the file
    given by --config.
    """
    if not {"-h", "--help"}.isdisjoint(arguments):
        print(f"{description}\n")  # by us, because tyro does not wrap it
    values = kind.base(arguments)
    kind = _with_method_settings(kind, values, arguments)
    refusal = Refusal(arguments, list(option_names(kind)), program, example, _belongs_elsewhere)
    printed = io.StringIO()
    with contextlib.ExitStack() as stack:
        # tyro's hook hands over what went wrong as values; it is private to tyro, so where a
        # version lacks it, or has new kinds of errors, what tyro prints is condensed instead.
        hook = getattr(getattr(tyro, "_errors", None), "on_parse_error", None)
        if hook is not None:
            stack.enter_context(hook(refusal))
        stack.enter_context(contextlib.redirect_stderr(printed))
        stack.enter_context(REGISTRY)
        try:
            flags = tyro.cli(
                kind,
                prog=program,
                description="",
                args=list(arguments),
                default=_base(kind, values),
            )
        except SystemExit as stop:
            if not stop.code:
                return None
            raise UsageError(refusal.condensed(printed.getvalue())) from None
    sys.stderr.write(printed.getvalue())  # warnings, when all went well
    flags = _spelled_none(flags)
    _load_named(flags)
    return flags


def _load_named(flags: Any) -> None:
    """Refuse unknown networks and whitenings, and import those given as `package.module:NAME`
    before any file that names them is read. Raises SettingError."""
    for part in vars(flags).values():
        if isinstance(part, DataConfig) and part.whitening is not None:
            from trajmatch.data.whiten import WHITENINGS

            WHITENINGS.find(part.whitening)
        if isinstance(part, NetworkConfig) and part.network is not None:
            from trajmatch.networks import NETWORKS

            NETWORKS.find(part.network)


def option_names(kind: type[Any]) -> list[str]:
    """Every long option a dataclass of flags gives, in order.

    Raises TypeError where two configs give the same one: leave `Flat` off one of them.
    """
    names = [name for name, _ in _options(kind, "")]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise TypeError(
            f"{kind.__module__}.{kind.__name__} has two options {', '.join(twice)}; "
            "leave Flat off one of the configs they come from"
        )
    return names


def first_word(kind: type[Any], arguments: Sequence[str]) -> str | None:
    """The first of `arguments` that is neither an option of `kind` nor an option's value."""
    from trajmatch.methods.registry import METHODS

    kinds = (kind, *METHODS.values())  # the method's settings follow from the recipe's name
    with_value = {name for one in kinds for name, takes_value in _options(one, "") if takes_value}
    words = iter(arguments)
    for word in words:
        if not word.startswith("-"):
            return word
        if word.replace("_", "-") in with_value:
            next(words, None)
    return None


def _options(kind: type[Any], prefix: str) -> Iterator[tuple[str, bool]]:
    """Every option, and whether a value follows it."""
    hints = get_type_hints(kind, include_extras=True)
    for field in dataclasses.fields(kind):
        hint, markers = _bare(hints[field.name])
        if _HIDDEN in markers:
            continue
        named = (getattr(marker, "name", None) for marker in markers)  # tyro.conf.arg(name=...)
        name = next(filter(None, named), field.name.replace("_", "-"))
        if _is_table(hint):
            yield from _options(hint, prefix if _FLAT in markers else f"{prefix}{name}.")
        elif _POSITIONAL not in markers:
            yield f"--{prefix}{name}", hint is not bool
            if hint is bool:
                yield f"--{prefix}no-{name}", False


def _is_table(hint: Any) -> bool:
    """Whether a field's type is a dataclass of further options, not a value of one word."""
    if not (isinstance(hint, type) and dataclasses.is_dataclass(hint)):
        return False
    return not issubclass(hint, NamedValue)


def _bare(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    """A type without its Annotated wrapping, and what was in the wrapping."""
    markers = getattr(hint, "__metadata__", ())
    return (get_args(hint)[0], markers) if markers else (hint, ())


def settings_of(kind: type[Common], recipe: Recipe, arguments: Sequence[str]) -> dict[str, Any]:
    """The values that a recipe gives a dataclass of flags: its configs, method and seed.

    Where `arguments` name another network, the options of the recipe's are left out; where they
    name another method, its settings are those of `Recipe.by`. A command without settings of
    methods (`select`, whose --method is a coreset) takes nothing of the recipe's method but `ipc`.
    """
    hints = get_type_hints(kind, include_extras=True)
    wanted = {name: _bare(hint)[0] for name, hint in hints.items()}
    distills = MethodSettings in wanted.values()
    method = value_of("--method", arguments) if distills else None
    if method not in (None, recipe.method.name):
        assert method is not None
        ipc = value_of("--ipc", arguments) or ""
        recipe = recipe.by(method, ipc=int(ipc) if ipc.isdecimal() else None)
    network = value_of("--network", arguments)
    if network not in (None, recipe.network.network or "convnet"):
        recipe = dataclasses.replace(recipe, network=NetworkConfig(network=network))
    parts: dict[Any, Any] = {
        type(part): part for part in vars(recipe).values() if dataclasses.is_dataclass(part)
    }
    given = {name: parts[part] for name, part in wanted.items() if part in parts}
    if distills:
        given["settings"] = recipe.method
        if "method" in wanted:
            given["method"] = method or recipe.method.name
    elif wanted.get("ipc") == int | None and value_of("--fraction", arguments) is None:
        given["ipc"] = recipe.distill.ipc
    return {**given, "seed": recipe.seed}


def _with_method_settings(
    kind: type[F], values: dict[str, Any], arguments: Sequence[str]
) -> type[F]:
    """`kind` with the settings class of the chosen method in the place of `MethodSettings`.

    values: what the file in --config or a recipe gives; its method stands unless the line names
    another.
    """
    hints = get_type_hints(kind, include_extras=True)
    if "settings" not in hints or _bare(hints["settings"])[0] is not MethodSettings:
        return kind
    from trajmatch.methods.registry import method_class

    own = values.get("settings")
    if own is None:
        name = value_of("--method", arguments) or kind.__dataclass_fields__["method"].default
        own = method_class(str(name))()
    values["settings"] = own
    flat = _FLAT in _bare(hints["settings"])[1]
    hint: Any = Annotated[type(own), _FLAT] if flat else type(own)
    completed = dataclasses.make_dataclass(
        kind.__name__,
        [("settings", hint, dataclasses.field(default=own))],
        bases=(kind,),
        frozen=True,
        kw_only=True,
    )
    completed.__doc__, completed.__module__ = kind.__doc__, kind.__module__
    return completed


def _belongs_elsewhere(option: str) -> str | None:
    """What to say of an option that is another method's setting; None for any other."""
    from trajmatch.methods.registry import owners, renamed

    prefix, dot, word = option.removeprefix("--").rpartition(".")
    if now := renamed(word.replace("-", "_")):
        flag = f"--{prefix}{dot}{now.replace('_', '-')}"
        return f"{option} is called {flag} now, a setting of {', '.join(owners(now))}"
    names = owners(option.removeprefix("--").replace("-", "_"))
    if not names:
        return None
    return f"{option} is a setting of {', '.join(names)}; leave it out, or use --method {names[0]}"


def _base(kind: type[F], values: dict[str, Any]) -> F:
    """The defaults that flags override: the dataclass's own, or those in `values`."""
    missing: dict[str, Any] = {
        field.name: tyro.MISSING
        for field in dataclasses.fields(kind)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    }
    return kind(**{**missing, **values})


def value_of(option: str, arguments: Sequence[str]) -> str | None:
    """The last value given to `option`; None when it is absent or has none."""
    value = None
    for place, word in enumerate(arguments):
        name, equals, attached = word.partition("=")
        following = arguments[place + 1 : place + 2]
        if name == option and equals:
            value = attached
        elif name == option and following and not following[0].startswith("--"):
            value = following[0]
    return value


def _spelled_none(flags: T) -> T:
    """`none` as None, where a text has another default: neither a command line nor TOML has a None.

    Where the default itself is None (`--norm`), `none` is a value of its own and stays.
    """
    changes: dict[str, Any] = {}
    hints = get_type_hints(type(flags), include_extras=True)
    for field in dataclasses.fields(flags):  # type: ignore[arg-type]
        value = getattr(flags, field.name)
        if dataclasses.is_dataclass(value) and not isinstance(value, NamedValue):
            changes[field.name] = _spelled_none(value)
        elif value in ("none", "None") and isinstance(field.default, str):
            optional = NoneType in get_args(_bare(hints[field.name])[0])
            changes[field.name] = None if optional else value
    return dataclasses.replace(flags, **changes)  # type: ignore[type-var]
