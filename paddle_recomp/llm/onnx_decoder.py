"""The decoder of a bundle in ONNX Runtime: no paddle here."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from paddle_recomp.backends.sessions import (
    check_names,
    check_options,
    open_session,
    over_array,
    run_error,
)
from paddle_recomp.bundle import Bundle, DecoderInfo
from paddle_recomp.bundle.contract import CACHE_KINDS, PAST, PRESENT
from paddle_recomp.errors import BundleError
from paddle_recomp.json_files import one_line, shown
from paddle_recomp.llm.base import State, check_lengths, check_numbers, check_rewind

_PIECE = 256
"""So many positions of a prompt go through the graph at once. The memory for intermediate results
grows with this number; the cache does not."""


@dataclass
class Cache:
    """Keys and values in buffers that the graph reads and writes in place, so that a step copies
    nothing of the past."""

    buffers: dict[str, np.ndarray]
    """[B, heads, capacity, width] float32, by the name of the graph's input."""

    @classmethod
    def empty(cls, info: DecoderInfo, batch: int, capacity: int) -> Cache:
        """A cache with room for `capacity` positions of each prompt. The system provides the memory
        as it is filled."""
        names = [name for name, _ in cache_names(info)]
        shape = (batch, info.num_kv_heads, capacity, info.cache_width)
        return cls(_buffers(names, shape))

    @property
    def capacity(self) -> int:
        """The number of positions that fit."""
        return int(next(iter(self.buffers.values())).shape[2])

    def with_room(self, capacity: int, filled: int) -> Cache:
        """The same cache with more room. Nothing else ever copies a cache."""
        batch, heads, _, width = next(iter(self.buffers.values())).shape
        grown = _buffers(list(self.buffers), (batch, heads, capacity, width))
        for name, old in self.buffers.items():
            grown[name][:, :, :filled] = old[:, :, :filled]
        return Cache(grown)

    def row(self, prompt: int) -> Cache:
        """The part of one prompt, in the same memory."""
        return Cache({name: value[prompt : prompt + 1] for name, value in self.buffers.items()})


class OnnxDecoder:
    """A `LanguageModel` from the files of a bundle, on an execution provider of ONNX Runtime."""

    def __init__(
        self,
        folder: Path,
        info: DecoderInfo,
        providers: Sequence[str] = ("cpu",),
        threads: int | None = None,
    ) -> None:
        """`providers` and `threads` as for `OnnxBackend`.

        Raises: BundleError for a file that cannot be read; DeviceError, ConfigError as
        `OnnxBackend`."""
        check_options(providers, threads)
        self.info = info
        self.path = folder / info.file
        self.session = open_session(self.path, providers, threads, any_length=True)
        _check_graph(self.session, self.path, info)
        self._embed_tokens = _open_embedding(folder / info.embed_tokens, info)

    @classmethod
    def from_bundle(
        cls,
        bundle: Bundle,
        providers: Sequence[str] = ("cpu",),
        threads: int | None = None,
        on_file: Callable[[int], None] = lambda num_bytes: None,
    ) -> OnnxDecoder:
        """The decoder of a bundle. After each file's checksum was compared, `on_file` is given its
        bytes.

        Raises: BundleError, also for a bundle without a decoder, a changed file, or the decoder of
        another model; DeviceError, ConfigError."""
        if bundle.decoder is None:
            raise BundleError(f"{bundle.folder} has no language model in it")
        for name in decoder_files(bundle):
            bundle.verified(name)
            on_file(bundle.sizes[name])
        bundle.verify_model(bundle.decoder.file, bundle.decoder.data)
        decoder = cls(bundle.folder, bundle.decoder, providers, threads)
        metadata = decoder.session.get_modelmeta().custom_metadata_map
        origin = metadata.get("recomp.language_model", "null")
        if json.loads(origin) != asdict(bundle.language_model):
            raise BundleError(
                f"{bundle.folder / bundle.decoder.file} is the decoder of another model than the "
                f"one that the bundle was exported from, {shown(bundle.language_model.name)}"
            )
        return decoder

    @property
    def context(self) -> int:
        """See `LanguageModel.context`."""
        return self.info.context

    def embed(self, ids: np.ndarray) -> np.ndarray:
        """See `LanguageModel.embed`. Raises: BundleError for an id that the vocabulary lacks."""
        if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < self.info.vocab_size:
            raise BundleError(
                f"{self.path}: the id {int(ids.max())} is to be embedded; expected ids from 0 to "
                f"{self.info.vocab_size - 1}"
            )
        return np.asarray(self._embed_tokens[ids], dtype=np.float32)

    def prefill(
        self, embeds: np.ndarray, lengths: np.ndarray, capacity: int | None = None
    ) -> tuple[np.ndarray, State]:
        """See `LanguageModel.prefill`."""
        room = min(max(capacity or 0, int(lengths.max())), self.context)
        cache = Cache.empty(self.info, len(embeds), room)
        return self.extend(embeds, lengths, State(np.zeros_like(lengths), self, cache))

    def extend(
        self, embeds: np.ndarray, lengths: np.ndarray, state: State
    ) -> tuple[np.ndarray, State]:
        """See `LanguageModel.extend`."""
        check_lengths(embeds, lengths, state.lengths, self.context)
        past, cache = state.lengths, state.spend(self)
        after = past + lengths
        if after.max() > cache.capacity:
            room = max(int(after.max()), 2 * cache.capacity)
            cache = cache.with_room(min(room, self.context), int(past.max()))
        if len(embeds) == 1:
            logits = self._run_in_pieces(embeds, int(lengths[0]), past, cache)
        elif embeds.shape[1] == 1 or not past.any():
            logits = self._run(embeds, lengths, past, cache)
        else:
            # The runtime continues several prompts by one position, or one prompt by several.
            parts = [
                self._run_in_pieces(embeds[i : i + 1], int(length), past[i : i + 1], cache.row(i))
                for i, length in enumerate(lengths)
            ]
            logits = np.concatenate(parts)
        return logits, State(after, self, cache)

    def decode(self, ids: np.ndarray, state: State) -> tuple[np.ndarray, State]:
        """See `LanguageModel.decode`."""
        return self.extend(self.embed(ids)[:, None], np.ones(len(ids), dtype=np.int64), state)

    def rewind(self, state: State, lengths: np.ndarray) -> State:
        """See `LanguageModel.rewind`; later calls overwrite the positions behind the lengths."""
        check_rewind(lengths, state.lengths)
        return State(lengths, self, state.spend(self))

    def _run_in_pieces(
        self, embeds: np.ndarray, length: int, past: np.ndarray, cache: Cache
    ) -> np.ndarray:
        """The first `length` positions of one prompt [1, T, D], piece by piece: the logits of the
        last."""
        for begin in range(0, length, _PIECE):
            piece = embeds[:, begin : min(begin + _PIECE, length)]
            logits = self._run(piece, np.array([piece.shape[1]]), past + begin, cache)
        return logits

    def _run(
        self, embeds: np.ndarray, lengths: np.ndarray, past: np.ndarray, cache: Cache
    ) -> np.ndarray:
        """One call of the graph: the cache's buffers are its past and its present."""
        # The graph would write the padding behind the longest prompt beyond the end of the buffers.
        embeds = np.ascontiguousarray(embeds[:, : int(lengths.max())], dtype=np.float32)
        logits = np.empty((len(embeds), self.info.vocab_size), dtype=np.float32)
        binding = self.session.io_binding()
        binding.bind_cpu_input("inputs_embeds", embeds)
        binding.bind_cpu_input("lengths", lengths.astype(np.int32))
        binding.bind_cpu_input("past_lengths", past.astype(np.int32))
        for before, after in cache_names(self.info):
            buffer = over_array(cache.buffers[before])
            binding.bind_ortvalue_input(before, buffer)
            binding.bind_ortvalue_output(after, buffer)
        binding.bind_ortvalue_output("logits", over_array(logits))
        try:
            self.session.run_with_iobinding(binding)
        except Exception as error:  # The runtime has an exception class for each status.
            raise run_error(self.path, error) from error
        check_numbers(logits=logits)
        return logits


def _buffers(names: Sequence[str], shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Arrays of zeros in one block, which returns to the system as a whole when it is no longer
    used; a process keeps memory that it frees in small pieces.

    Raises: BundleError for more memory than there is."""
    try:
        block = np.zeros((len(names), *shape), dtype=np.float32)
    except (MemoryError, ValueError):
        gigabytes = 4e-9 * len(names) * math.prod(shape)
        raise BundleError(
            f"the language model's cache for {shape[2]} positions takes {gigabytes:.3g} GB, which "
            "this machine does not give"
        ) from None
    return dict(zip(names, block, strict=True))


def _open_embedding(path: Path, info: DecoderInfo) -> np.ndarray:
    """The embedding [V, D], mapped into memory: only the rows that are used are read."""
    try:
        array: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # A broken header can fail in many ways.
        raise BundleError(
            f"{path} is not an array in numpy's format: {one_line(error, 200)}"
        ) from error
    if not isinstance(array, np.ndarray):
        raise BundleError(f"{path} holds several arrays; expected one in numpy's format")
    expected = (info.vocab_size, info.hidden_size)
    if array.shape != expected or array.dtype not in (np.float16, np.float32):
        raise BundleError(
            f"{path} is {array.dtype} {list(array.shape)}; expected float16 or float32 "
            f"{list(expected)}"
        )
    return array


def _check_graph(session: Any, path: Path, info: DecoderInfo) -> None:
    """Compares the decoder's graph with its sizes in recomp.json.

    Raises: BundleError naming the input or output that is not as it should be."""
    names = list(cache_names(info))
    inputs = {"inputs_embeds": "float32", "lengths": "int32", "past_lengths": "int32"}
    inputs |= {before: "float32" for before, _ in names}
    outputs = {"logits": "float32", **{after: "float32" for _, after in names}}
    place = f"{path}, with {info.num_layers} layers in recomp.json,"
    check_names(session, place, inputs, outputs)
    cache: dict[int, int] = {1: info.num_kv_heads, 3: info.cache_width}
    sizes = {"inputs_embeds": {2: info.hidden_size}, "logits": {1: info.vocab_size}}
    sizes |= {name: cache for pair in names for name in pair}
    before = {name for name, _ in names}
    for node in (*session.get_inputs(), *session.get_outputs()):
        for axis, expected in sizes.get(node.name, {}).items():
            # A size that may vary is a text, and so is one that the runtime does not know.
            found = node.shape[axis] if axis < len(node.shape) else 0
            # An input of any size would be given a cache of any size.
            free = node.name in before and not isinstance(found, int)
            if free or (isinstance(found, int) and found != expected):
                raise BundleError(
                    f"{path}: {node.name} is {one_line(node.shape)}; recomp.json says {expected} "
                    f"in place of {found}"
                )


def cache_names(info: DecoderInfo) -> Iterator[tuple[str, str]]:
    """The names of each buffer of the cache as the graph's input and output."""
    for layer in range(info.num_layers):
        for kind in CACHE_KINDS:
            yield PAST.format(layer=layer, kind=kind), PRESENT.format(layer=layer, kind=kind)


def decoder_files(bundle: Bundle) -> list[str]:
    """The files of a bundle's decoder; none if the bundle has no decoder."""
    if bundle.decoder is None:
        return []
    return list(bundle.decoder.files)
