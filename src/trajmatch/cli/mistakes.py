"""One line for whatever is wrong with a command line."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Sequence
from typing import Any

from trajmatch.errors import TrajmatchError


class UsageError(TrajmatchError):
    """The command line itself is wrong. Not a ValueError, which tyro would catch and reword."""

    def __str__(self) -> str:
        return self.text  # it quotes the line


class Refusal:
    """Called by tyro with what it is about to reject; raises UsageError with one line for it."""

    def __init__(
        self,
        arguments: Sequence[str],
        names: Sequence[str],
        program: str,
        example: str,
        elsewhere: Callable[[str], str | None] = lambda option: None,
    ) -> None:
        """names: the command's options. elsewhere: a message for an option of another method."""
        self.options = [
            word.partition("=")[0].replace("_", "-")
            for word in arguments
            if word.startswith("--") and word != "--"
        ]
        self.names = names
        self.elsewhere = elsewhere
        self.help = f"see '{program} --help'"
        self.example = f"for example: {example}" if example else self.help

    def __call__(self, event: Any) -> None:
        # tyro may refuse the value of an unknown option before the option itself.
        message = self._unknown_option() or self._message(event)
        if message:
            raise UsageError(message)

    def condensed(self, printed: str) -> str:
        """One line from what tyro printed, without its box, title and pointer to --help."""
        plain = re.sub(r"\x1b\[[0-9;]*m", "", printed)
        # The title stands in the frame, or on a line of its own where the terminal has no frames.
        rows = [row.strip("│ ") for row in plain.splitlines() if not row.startswith(("╭", "╰"))]
        rows = [row for row in rows if row.strip("─-")][0 if "│" in plain else 1 :]
        text = " ".join(" ".join(rows).split())
        text = re.split(r" ?(?:Argument helptext:|For full helptext)", text)[0]
        text = re.sub(r"^Error parsing (\S+): (?=needs |is )", r"\1 ", text)
        text = re.sub(r"^Error parsing [^:]*: ", "", text)
        return self._unknown_option() or text or f"the options cannot be read; {self.help}"

    def _message(self, event: Any) -> str | None:
        """None for a kind of event that is not known here."""
        argument: Any = getattr(event, "argument", None)
        option = "" if argument is None else _shown(argument)
        match type(event).__name__:
            case "InstantiationFailure":
                return f"{option} {event.message}" if option else self._with_option(event.message)
            case "BadValue" if option.startswith("--"):
                return f"{option} needs a value ({argument.lowered.metavar})"
            case "BadValue":
                return f"{option} is missing; {self.example}"
            case "MissingArgs":
                missing = ", ".join(_shown(each.arg) for each in event.missing_arguments)
                return f"{missing} is missing; {self.example}"
            case "UnrecognizedArgs":
                return f"'{event.tokens[0]}' is one value too many; {self.help}"
            case _:
                return None

    def _unknown_option(self) -> str | None:
        for option in self.options:
            if option in self.names or option == "--help":
                continue
            if "--method" in self.names and (message := self.elsewhere(option)):
                return message
            # `--workers` where only `--evaluate.workers` exists
            tails = [name for name in self.names if _tail(name) == _tail(option)]
            close = tails or difflib.get_close_matches(option, self.names, n=1, cutoff=0.6)
            hint = f"did you mean {close[0]}?" if close else self.help
            return f"unknown option {option}; {hint}"
        return None

    def _with_option(self, message: str) -> str:
        """Name the flag where a config, which knows only its field, refused the value."""
        field, _, rest = message.partition(" ")
        given = {each for each in self.options if _tail(each) == field.replace("_", "-")}
        return f"{given.pop()} {rest}" if len(given) == 1 else message


def _tail(option: str) -> str:
    """`epochs` of `--evaluate.epochs`."""
    return option.removeprefix("--").rpartition(".")[2]


def _shown(argument: Any) -> str:
    """An option as it is typed, or the placeholder of a positional one."""
    flags = argument.lowered.name_or_flags
    option: str = flags[0] if flags and flags[0].startswith("-") else argument.lowered.metavar
    return option
