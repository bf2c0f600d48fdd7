"""Renders a chat template of a checkpoint: a script that `jinja_template` runs in a process of its
own, because a template is a program of a stranger, and only a process can be stopped, whatever it
computes. It takes a request from standard input and writes the answer to standard output, both as
JSON; `jinja_template` describes them."""

from __future__ import annotations

import json
import sys
from datetime import datetime
from typing import Any


def limit(seconds: int, memory: int) -> None:
    """Ends this process after so many seconds of computing; refuses it more bytes of memory."""
    try:
        import resource
    except ImportError:  # Windows: only the parent's clock ends it.
        return
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    try:
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    except (ValueError, OSError):  # macOS refuses it.
        return


def environment(calls: list[str]) -> Any:
    """Jinja as transformers sets it up for chat templates. `calls` notes each use of the clock."""
    import jinja2
    from jinja2 import ext, nodes
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(ext.Extension):
        """`{% generation %}` marks for training where answers stand; it changes no text."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            """The statements between the two marks."""
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body, lineno=line)

    def raise_exception(message: object) -> None:
        raise jinja2.TemplateError(str(message))

    def strftime_now(form: str) -> str:
        calls.append(form)
        return datetime.now().strftime(form)

    def tojson(value: object, ensure_ascii: bool = False, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, **options)

    made = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    made.filters["tojson"] = tojson
    made.globals.update(raise_exception=raise_exception, strftime_now=strftime_now)
    return made


def rendered(template: Any, variables: dict[str, Any], longest: int) -> dict[str, str]:
    """One prompt, or why there is none."""
    pieces, length = [], 0
    try:
        for piece in template.generate(tools=None, documents=None, **variables):
            length += len(piece)
            if length > longest:
                return {"error": f"it writes more than {longest} characters"}
            pieces.append(piece)
    except MemoryError:
        return {"error": "it takes too much memory"}
    except Exception as error:
        return {"error": f"{error}" or type(error).__name__}
    return {"text": "".join(pieces)}


def answer(asked: dict[str, Any]) -> dict[str, Any]:
    """What standard output gets."""
    sys.path[:] = asked["path"]
    limit(asked["seconds"], asked["memory"])
    calls: list[str] = []
    try:
        jinja = environment(calls)
    except ImportError as error:
        return {"missing": error.name}
    try:
        template = jinja.from_string(asked["template"])
    except MemoryError:
        return {"broken": "it takes too much memory"}
    except Exception as error:
        line = getattr(error, "lineno", None)
        return {"broken": f"{error}" if line is None else f"line {line}: {error}"}
    texts = [rendered(template, variables, asked["longest"]) for variables in asked["prompts"]]
    return {"prompts": texts, "dated": bool(calls)}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(answer(json.load(sys.stdin))))
