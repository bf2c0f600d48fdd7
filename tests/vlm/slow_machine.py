"""A machine whose every step takes a known time, on a clock that only these steps move."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest

from paddle_recomp.backends.base import Backend
from paddle_recomp.bundle.contract import Graph
from paddle_recomp.llm.base import LanguageModel, State
from paddle_recomp.vlm.vlm import VLM


class SlowMachine:
    """The times in seconds; the models that it slows down share its clock."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.speed = 1.0
        self.ran: list[str] = []
        patch.setattr(time, "perf_counter", lambda: self.now)

    def take(self, step: str, seconds: float) -> None:
        self.ran.append(step)
        self.now += seconds / self.speed

    def vision(self, images: int) -> float:
        return 20.0 * images

    def text(self) -> float:
        return 3.0

    def compress(self, tokens: float, images: int = 1) -> float:
        """Several pictures at once take less than one after the other."""
        return (2.0 + 0.01 * tokens) * (1 + images) / 2

    def reading(self, positions: int, past: int = 0) -> float:
        """A position sees everything in front of it."""
        return 0.5 + 0.1 * positions + 0.0001 * positions * past + 0.002 * past

    def slow(self, vlm: VLM) -> VLM:
        """The model on this machine."""
        front_end = replace(vlm.front_end, backend=SlowBackend(vlm.front_end.backend, self))
        model = SlowModel(vlm.answerer.model, self)
        return VLM(front_end, replace(vlm.answerer, model=model))


class SlowBackend:
    def __init__(self, backend: Backend, machine: SlowMachine) -> None:
        self.backend, self.machine = backend, machine

    def inputs(self, graph: Graph) -> tuple[str, ...]:
        return self.backend.inputs(graph)

    def run(self, graph: Graph, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        outputs = self.backend.run(graph, inputs)
        if graph == "vision":
            seconds = self.machine.vision(len(inputs["pixel_values"]))
        elif graph == "text":
            seconds = self.machine.text()
        else:
            counts = outputs["token_count"]
            seconds = self.machine.compress(float(counts.mean()), len(counts))
        self.machine.take(graph, seconds)
        return outputs


class SlowModel:
    def __init__(self, model: LanguageModel, machine: SlowMachine) -> None:
        self.model, self.machine = model, machine
        self.context = model.context

    def embed(self, ids: np.ndarray) -> np.ndarray:
        return self.model.embed(ids)

    def prefill(
        self, embeds: np.ndarray, lengths: np.ndarray, capacity: int | None = None
    ) -> tuple[np.ndarray, State]:
        self.machine.take("prefill", self.machine.reading(int(lengths.max())))
        return self.model.prefill(embeds, lengths, capacity)

    def extend(
        self, embeds: np.ndarray, lengths: np.ndarray, state: State
    ) -> tuple[np.ndarray, State]:
        past = int(state.lengths.max())
        self.machine.take("extend", self.machine.reading(int(lengths.max()), past))
        return self.model.extend(embeds, lengths, state)

    def decode(self, ids: np.ndarray, state: State) -> tuple[np.ndarray, State]:
        self.machine.take("decode", 1.0)
        return self.model.decode(ids, state)

    def rewind(self, state: State, lengths: np.ndarray) -> State:
        return self.model.rewind(state, lengths)
