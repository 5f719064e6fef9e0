"""Small values that one word of a command line or of a TOML file can give: `sgd(momentum=0.9)`."""

from __future__ import annotations

import ast
import dataclasses
from typing import Any, ClassVar, TypeVar, get_args, get_origin, get_type_hints

from trajmatch.config.ranges import check_ranges, shown
from trajmatch.errors import SettingError, suggest

N = TypeVar("N", bound="NamedValue")
BEYOND = 2**1023
"""Whole numbers are cut off here: larger ones have no float."""


@dataclasses.dataclass(frozen=True)
class NamedValue:
    """Base of a family of frozen dataclasses with a written form.

    A family is a direct subclass; its members name themselves:

        class Schedule(NamedValue): ...
        @dataclasses.dataclass(frozen=True)
        class Cosine(Schedule, name="cosine"):
            end: float = 0.0

    `str(Cosine(end=0.1))` is `cosine(end=0.1)`, and `Schedule.parse` reads it back.
    """

    members: ClassVar[dict[str, type[Any]]]
    name: ClassVar[str] = ""

    def __init_subclass__(cls, *, name: str = "", **options: Any) -> None:
        super().__init_subclass__(**options)
        if NamedValue in cls.__bases__:
            cls.members = {}
        elif name:
            cls.name = name
            cls.members[name] = cls

    @classmethod
    def parse(cls: type[N], text: str) -> N:
        """The member that `text` describes: a name, or a name with keywords in parentheses.

        Raises SettingError for an unknown name, another form, or a value out of range.
        """
        try:
            node: ast.expr = ast.parse(text.strip(), mode="eval").body
            options = {}
            if isinstance(node, ast.Call):
                if node.args or any(keyword.arg is None for keyword in node.keywords):
                    raise ValueError
                options = {str(k.arg): ast.literal_eval(k.value) for k in node.keywords}
                node = node.func
            if not isinstance(node, ast.Name):
                raise ValueError
        except (SyntaxError, TypeError, ValueError, MemoryError, RecursionError) as error:
            raise SettingError(
                f"'{text:.80}' cannot be read; write a name, or a name with values such as "
                f"{next(iter(cls.members), 'name')}(key=1.0)"
            ) from error
        return cls.of(node.id, options)

    @classmethod
    def of(cls: type[N], name: str, options: dict[str, Any]) -> N:
        """The member called `name` with these fields.

        Raises SettingError for an unknown name or field, and for a value of a wrong type or out of
        range.
        """
        if name not in cls.members:
            raise SettingError(f"'{name}' is unknown; {suggest(name, cls.members)}")
        kind = cls.members[name]
        known = [field.name for field in dataclasses.fields(kind)]
        for option in options:
            if option not in known:
                mend = suggest(option, known) if known else "it has no options"
                raise SettingError(f"{name} has no option '{option}'; {mend}")
        hints = get_type_hints(kind)
        result: N = kind(
            **{key: _typed(value, hints[key], f"{name}({key})") for key, value in options.items()}
        )
        return result

    def __post_init__(self) -> None:
        check_ranges(self)

    def __str__(self) -> str:
        values = [
            f"{field.name}={getattr(self, field.name)!r}"
            for field in dataclasses.fields(self)
            if getattr(self, field.name) != field.default
        ]
        return f"{self.name}({', '.join(values)})" if values else self.name


def _typed(value: Any, hint: Any, name: str) -> Any:
    """A literal as a field's type has it: whole numbers pass for floats, lists for tuples."""
    if hint is float and type(value) is int:
        return float(max(-BEYOND, min(value, BEYOND)))
    if get_origin(hint) is tuple and isinstance(value, (list, tuple)):
        inner = get_args(hint)
        if len(inner) == len(value):
            return tuple(_typed(v, h, name) for v, h in zip(value, inner, strict=True))
    elif isinstance(hint, type) and type(value) is hint:
        return value
    wanted = hint.__name__ if isinstance(hint, type) else str(hint)
    raise SettingError(f"{name} is {shown(value)}; it must be {wanted}")
