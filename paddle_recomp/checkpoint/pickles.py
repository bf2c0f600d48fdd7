"""The pickle in which torch.save describes tensors, read by a machine of our own.

Python's own reader of pickles would run what the file says, and a few bytes can make it fill the
memory or compute for ever. This one knows only the steps that torch.save writes, builds nothing but
plain values and what `call` gives, and counts its steps."""

from __future__ import annotations

import pickle
import struct
from collections.abc import Callable, Container
from typing import Any, NamedTuple

from paddle_recomp.errors import CheckpointError
from paddle_recomp.json_files import one_line
from paddle_recomp.limits import limits, the_limit


class Name(NamedTuple):
    """A module and a name in it, as the file has them; never looked up."""

    module: str
    name: str


Call = Callable[[Name, tuple[Any, ...]], Any]
"""What a name gives for arguments."""

_MARK = object()


def read_pickle(data: bytes, known: Container[Name], call: Call, load: Callable[[Any], Any]) -> Any:
    """The value that a pickle describes. `known` are the names that it may have, `call` gives what
    one of them gives when it is called, `load` what a persistent id stands for.

    Raises: CheckpointError for another name, for a step that torch.save does not write, for a file
    that is cut off, and for more steps or values than the bounds allow."""
    return _Machine(data, known, call, load).run()


class _Machine:
    """A stack and a memory, as every reader of pickles has them."""

    def __init__(
        self, data: bytes, known: Container[Name], call: Call, load: Callable[[Any], Any]
    ) -> None:
        self._data, self._place = data, 0
        self._known, self._call, self._load = known, call, load
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        self._steps = self._all_steps()

    def run(self) -> Any:
        bounds, data, stack = limits(), self._data, self._stack
        for _ in range(bounds.pickle_steps):
            if self._place >= len(data):
                raise CheckpointError("its pickle is cut off")
            code = data[self._place]
            self._place += 1
            if code == pickle.STOP[0]:
                return self._pop()
            if code not in self._steps:
                raise CheckpointError(
                    f"its pickle has the step {_step_name(code)}, which torch.save does not write"
                )
            self._steps[code]()
            if len(stack) > bounds.pickle_stack:
                raise CheckpointError(
                    f"its pickle has more values on its stack; {the_limit('pickle_stack')}"
                )
        raise CheckpointError(f"its pickle has more steps; {the_limit('pickle_steps')}")

    def _all_steps(self) -> dict[int, Callable[[], None]]:
        """Every step that torch.save writes, in any protocol that it can write."""
        push, number, take = self._stack.append, self._number, self._take
        top, pop, some, marked = self._top, self._pop, self._pop_many, self._pop_to_mark
        steps: dict[bytes, Callable[[], None]] = {
            pickle.PROTO: lambda: _void(take(1)),
            pickle.FRAME: lambda: _void(take(8)),
            pickle.NONE: lambda: push(None),
            pickle.NEWTRUE: lambda: push(True),
            pickle.NEWFALSE: lambda: push(False),
            pickle.BININT: lambda: push(struct.unpack("<i", take(4))[0]),
            pickle.BININT1: lambda: push(number(1)),
            pickle.BININT2: lambda: push(number(2)),
            pickle.LONG1: lambda: push(self._long()),
            pickle.BINFLOAT: lambda: push(struct.unpack(">d", take(8))[0]),
            pickle.SHORT_BINUNICODE: lambda: push(_text(take(number(1)))),
            pickle.BINUNICODE: lambda: push(_text(take(number(4)))),
            pickle.BINUNICODE8: lambda: push(_text(take(number(8)))),
            pickle.MARK: lambda: push(_MARK),
            pickle.EMPTY_TUPLE: lambda: push(()),
            pickle.TUPLE1: lambda: push(tuple(some(1))),
            pickle.TUPLE2: lambda: push(tuple(some(2))),
            pickle.TUPLE3: lambda: push(tuple(some(3))),
            pickle.TUPLE: lambda: push(tuple(marked())),
            pickle.EMPTY_LIST: lambda: push([]),
            pickle.APPEND: lambda: self._append(some(1)),
            pickle.APPENDS: lambda: self._append(marked()),
            pickle.EMPTY_DICT: lambda: push({}),
            pickle.SETITEM: lambda: self._set(some(2)),
            pickle.SETITEMS: lambda: self._set(marked()),
            pickle.BINPUT: lambda: self._put(number(1)),
            pickle.LONG_BINPUT: lambda: self._put(number(4)),
            pickle.MEMOIZE: lambda: self._put(len(self._memo)),
            pickle.BINGET: lambda: push(self._remembered(number(1))),
            pickle.LONG_BINGET: lambda: push(self._remembered(number(4))),
            pickle.GLOBAL: lambda: push(self._name(self._line(), self._line())),
            pickle.STACK_GLOBAL: lambda: push(self._name(*some(2))),
            pickle.REDUCE: lambda: push(self._reduce(*some(2))),
            pickle.BINPERSID: lambda: push(self._load(pop())),
            # Attributes of an object, such as torch gives to a state dict; nothing needs them.
            pickle.BUILD: lambda: _void(pop(), top()),
        }
        return {code[0]: step for code, step in steps.items()}

    def _take(self, count: int) -> bytes:
        end = self._place + count
        if end > len(self._data):
            raise CheckpointError("its pickle is cut off")
        taken, self._place = self._data[self._place : end], end
        return taken

    def _number(self, size: int) -> int:
        return int.from_bytes(self._take(size), "little")

    def _long(self) -> int:
        size = self._number(1)
        if size > 8:
            raise CheckpointError(f"its pickle has an integer of {size} bytes; expected 8")
        return int.from_bytes(self._take(size), "little", signed=True)

    def _line(self) -> str:
        end = self._data.find(b"\n", self._place)
        if end < 0:
            raise CheckpointError("its pickle is cut off")
        taken, self._place = self._data[self._place : end], end + 1
        return _text(taken)

    def _put(self, place: int) -> None:
        # Python's own reader keeps a list, which a high place makes long.
        self._memo[place] = self._top()

    def _remembered(self, place: int) -> Any:
        if place not in self._memo:
            raise CheckpointError(f"its pickle remembers nothing at {place}")
        return self._memo[place]

    def _name(self, module: Any, name: Any) -> Name:
        if not isinstance(module, str) or not isinstance(name, str):
            raise CheckpointError("its pickle has a name that is no text")
        if (found := Name(module, name)) not in self._known:
            raise CheckpointError(
                f"its pickle names {one_line(f'{module}.{name}')}, which no tensor needs; refused"
            )
        return found

    def _reduce(self, named: Any, arguments: Any) -> Any:
        if not isinstance(named, Name) or type(arguments) is not tuple:
            raise CheckpointError("its pickle calls what is no function")
        return self._call(named, arguments)

    def _top(self) -> Any:
        if not self._stack or self._stack[-1] is _MARK:
            raise CheckpointError("its pickle takes more values than it has")
        return self._stack[-1]

    def _pop(self) -> Any:
        self._top()
        return self._stack.pop()

    def _pop_many(self, count: int) -> list[Any]:
        return [self._pop() for _ in range(count)][::-1]

    def _pop_to_mark(self) -> list[Any]:
        found: list[Any] = []
        while self._stack and self._stack[-1] is not _MARK:
            found.append(self._stack.pop())
        if not self._stack:
            raise CheckpointError("its pickle takes more values than it has")
        self._stack.pop()
        return found[::-1]

    def _set(self, items: list[Any]) -> None:
        target = self._top()
        if not isinstance(target, dict) or len(items) % 2:
            raise CheckpointError("its pickle sets an entry of what is no dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            # The hash of a tuple in tuples can take for ever.
            if not isinstance(key, str):
                raise CheckpointError(
                    f"its pickle has a {type(key).__name__} as a key; expected a text"
                )
            target[key] = value

    def _append(self, items: list[Any]) -> None:
        target = self._top()
        if not isinstance(target, list):
            raise CheckpointError("its pickle appends to what is no list")
        target += items


def _void(*_: object) -> None:
    """For a step that leaves nothing."""


def _text(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"its pickle has a text that is no UTF-8: {error}") from None


def _step_name(code: int) -> str:
    names = (
        name
        for name, value in vars(pickle).items()
        if name.isupper() and isinstance(value, bytes) and value == bytes([code])
    )
    return next(names, f"0x{code:02x}")
