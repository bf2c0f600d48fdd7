"""The session of a chat: it obeys lines, which come from a terminal, a file or a test."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing
from itertools import chain
from pathlib import Path

from paddle_recomp.commands.chat.commands import (
    COMMANDS,
    Command,
    describe_budget,
    parse_budget,
    parse_line,
)
from paddle_recomp.commands.console import progress_bar
from paddle_recomp.commands.printing import PlainConsole, write_text
from paddle_recomp.commands.reports import cost_lines, working
from paddle_recomp.config import GenerationConfig, TokenBudget
from paddle_recomp.errors import ConfigError, RecompError
from paddle_recomp.explain import check_output, save_answer
from paddle_recomp.types import Answer, AnswerStream
from paddle_recomp.vlm.conversation import DEFAULT_MODE, check_mode
from paddle_recomp.vlm.front_end import Images
from paddle_recomp.vlm.vlm import VLM

OVERLAY = "explain.png"


class ChatSession:
    """A conversation with its settings. Everything is printed to a console; an error is one line
    there and changes nothing."""

    def __init__(
        self,
        vlm: VLM,
        console: PlainConsole,
        images: Images = (),
        mode: str = DEFAULT_MODE,
        budget: TokenBudget | None = None,
        generation: GenerationConfig | None = None,
    ) -> None:
        """Raises: ImageError, FeatureError, ConfigError (mode)."""
        self._vlm, self._console = vlm, console
        self._generation = generation
        self._stream: AnswerStream | None = None
        self._begin(images, mode)
        self._set_budget(budget or TokenBudget())

    def take(self, line: str) -> bool:
        """Obeys a line; False when it ends the session."""
        try:
            meant = parse_line(line)
            if isinstance(meant, Command):
                return self._do(meant)
            if meant:
                self._ask(meant)
        except RecompError as error:
            self._say(" ".join(str(error).split()), "red")
        return True

    def cancel(self) -> bool:
        """Cuts the answer that is being generated; False when there is none, or when it was cut
        before. May be called in the handler of a signal."""
        stream = self._stream
        if stream is None or stream.cancelled:
            return False
        stream.cancel()
        return True

    def _do(self, command: Command) -> bool:
        words = command.words
        if command.name == "/image":
            if not words:
                raise ConfigError(f"/image needs a picture: /image {COMMANDS['/image'][0]}")
            with working(self._console, "seeing"):
                self._begin([Path(word).expanduser() for word in words], self._chat.mode)
            for word, image in zip(words, self._chat.images, strict=True):
                width, height = image.picture.size
                self._say(
                    f"{word}: {width}×{height} pixels, {image.num_patches} patches, seen in "
                    f"{image.seconds * 1e3:.1f} ms"
                )
        elif command.name == "/tokens":
            if words:
                self._set_budget(parse_budget(words))
            self._say(f"tokens: {describe_budget(self._budget)}")
        elif command.name == "/mode":
            if words:
                self._begin(self._chat.images, " ".join(words))
            self._say(f"mode: {self._chat.mode}")
        elif command.name == "/new":
            self._begin(self._chat.images, self._chat.mode)
        elif command.name == "/explain":
            self._explain(words)
        elif command.name == "/history":
            for question, answer in self._answers:
                self._say(f"> {question}", "bold")
                self._write(answer.text)
                self._say_costs(answer)
        elif command.name == "/help":
            for name, (usage, what) in COMMANDS.items():
                self._say(f"{name} {usage}".ljust(56) + what)
            self._say("Anything else is a question. Ctrl-C cuts an answer.")
        return command.name != "/quit"

    def _set_budget(self, budget: TokenBudget) -> None:
        """A budget that is a time needs a measurement of the machine, for which no question should
        wait."""
        if budget.ttft_ms is not None:
            with progress_bar(self._console, "measuring") as on_step:
                self._vlm.latency(on_step)
        self._budget = budget

    def _begin(self, images: Images, mode: str) -> None:
        self._chat = self._vlm.chat(images, check_mode(mode))
        self._answers: list[tuple[str, Answer]] = []

    def _ask(self, question: str) -> None:
        self._stream = stream = self._chat.stream(question, self._budget, self._generation)
        try:
            with closing(self._pieces(stream)) as pieces:
                for piece in pieces:
                    self._write(piece, end="")
        finally:
            self._stream = None
            if stream.answer is not None:
                self._write("")
        if stream.answer is None or stream.answer.finish_reason == "cancelled":
            self._say("interrupted: this question was never asked")
            return
        self._answers.append((question, stream.answer))
        self._say_costs(stream.answer)

    def _pieces(self, stream: AnswerStream) -> Generator[str, None, None]:
        """The pieces of an answer, without the space around it."""
        with closing(iter(stream)) as pieces:
            with working(self._console, "reading"):
                first = next((piece for piece in pieces if piece.strip()), "")
            space = ""
            for piece in chain([first.lstrip()], pieces):
                text = space + piece
                shown = text.rstrip()
                space = text[len(shown) :]
                if shown:
                    yield shown

    def _explain(self, words: Sequence[str]) -> None:
        if len(words) > 1:
            raise ConfigError(f"/explain takes one file; found {len(words)}")
        if not self._answers:
            raise ConfigError("there is no answer to explain yet")
        question, answer = self._answers[-1]
        if not answer.compressed:
            raise ConfigError("the conversation has no picture to explain")
        path = Path(words[0] if words else OVERLAY).expanduser()
        check_output(path)
        pictures = [image.picture for image in self._chat.images]
        processor = self._vlm.front_end.image_processor
        save_answer(
            path, pictures, answer.compressed, answer.stages, processor, question, answer.text
        )
        self._say(str(path), "")

    def _say_costs(self, answer: Answer) -> None:
        *others, times = cost_lines(answer)
        for line in (*others, f"{times}, {answer.prefilled} positions prefilled"):
            self._say(line)

    def _say(self, line: str, style: str = "dim") -> None:
        self._console.say(line, style)

    def _write(self, text: str, end: str = "\n") -> None:
        """Writes text of the model."""
        write_text(text, end, self._console.file)
