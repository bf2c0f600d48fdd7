"""The meaning of a line of a chat: pure functions of text."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from paddle_recomp.config import TokenBudget
from paddle_recomp.errors import ConfigError

COMMANDS = {
    "/image": ("PATH [PATH…]", "a new conversation about these pictures"),
    "/tokens": (
        "N | 12.5% | max N | N ms [max N] | full | auto",
        "the visual tokens of further questions",
    ),
    "/mode": ("append | recompress | keep", "a new conversation in this mode"),
    "/explain": ("[FILE]", "draw what the last answer was drawn from; default: explain.png"),
    "/history": ("", "the conversation so far, with tokens and times"),
    "/new": ("", "a new conversation about the same pictures"),
    "/help": ("", "this list"),
    "/quit": ("", "end; Ctrl-D does, too"),
}
"""Every command, with its words and its effect."""


@dataclass(frozen=True)
class Command:
    """A name in COMMANDS, and its words."""

    name: str
    words: tuple[str, ...] = ()


def parse_line(line: str) -> Command | str:
    """A line without the space around it: a command, whose words are quoted as in a shell, or
    else a question.

    Raises: ConfigError for an unknown command, or a quotation that does not end."""
    line = line.strip()
    if not line.startswith("/"):
        return line
    name, _, rest = line.partition(" ")
    if name not in COMMANDS:
        raise ConfigError(f"unknown command {name}; known: {', '.join(COMMANDS)}")
    try:
        words = tuple(shlex.split(rest))
    except ValueError as error:
        raise ConfigError(f"{line}: {str(error).lower()}") from error
    if words and not COMMANDS[name][0]:
        raise ConfigError(f"{name} takes no words; found {rest.strip()}")
    return Command(name, words)


def parse_budget(words: tuple[str, ...]) -> TokenBudget:
    """The budget that `/tokens` names.

    Raises: ConfigError, also for a text that is no number, or a number that no budget allows."""
    match words:
        case ["auto"]:
            return TokenBudget()
        case ["full"]:
            return TokenBudget(full=True)
        case ["max", number]:
            return TokenBudget(max_tokens=_count(number, words))
        case [number, "ms"]:
            return TokenBudget(ttft_ms=_number(number, words))
        case [number, "ms", "max", most]:
            return TokenBudget(ttft_ms=_number(number, words), max_tokens=_count(most, words))
        case [share] if share.endswith("%"):
            return TokenBudget(ratio=_number(share[:-1], words) / 100)
        case [number]:
            return TokenBudget(tokens=_count(number, words))
    raise _unknown(words)


def describe_budget(budget: TokenBudget) -> str:
    """A budget in the words of `/tokens`."""
    if budget.full:
        return "full"
    if budget.tokens is not None:
        return f"{budget.tokens}"
    most = "" if budget.max_tokens is None else f"max {budget.max_tokens}"
    if budget.ttft_ms is not None:
        return f"{budget.ttft_ms:g} ms {most}".rstrip()
    if most:
        return most
    return "auto" if budget.ratio is None else f"{100 * budget.ratio:g}%"


def _count(text: str, words: tuple[str, ...]) -> int:
    if not text.isascii() or not text.isdigit():
        raise _unknown(words)
    return int(text)


def _number(text: str, words: tuple[str, ...]) -> float:
    try:
        return float(text)
    except ValueError:
        raise _unknown(words) from None


def _unknown(words: tuple[str, ...]) -> ConfigError:
    return ConfigError(f"/tokens {' '.join(words)}: expected {COMMANDS['/tokens'][0]}")
