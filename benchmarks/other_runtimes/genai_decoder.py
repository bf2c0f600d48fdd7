"""The decoder of a bundle in onnxruntime-genai: the same weights, with the inputs that it knows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from export.convert import OPSET
from export.decoder.write import EMBEDDING, GRAPH
from paddle_recomp.bundle import DecoderInfo
from paddle_recomp.bundle.contract import CACHE_KINDS, PAST, PRESENT

CONFIG = "genai_config.json"
DECODER, WORDS, PICTURE = "genai_decoder.onnx", "genai_embedding.onnx", "genai_vision.onnx"


class GenaiDecoder:
    """One prompt, greedy. genai itself takes words. So embeddings come in as a picture, whose
    vision tower returns its input."""

    def __init__(self, folder: Path, info: DecoderInfo, capacity: int) -> None:
        import onnxruntime_genai

        self.genai, self.picture = onnxruntime_genai, stand_in(info)
        self.model = onnxruntime_genai.Model(str(folder))
        self.options = onnxruntime_genai.GeneratorParams(self.model)
        self.options.set_search_options(max_length=capacity, do_sample=False)
        self.generator: Any = None

    def prefill(self, embeds: np.ndarray) -> np.ndarray:
        """Embeddings [T, D] -> logits behind the last [V]."""
        self.generator = self.genai.Generator(self.model, self.options)
        inputs = self.genai.NamedTensors()
        inputs["input_ids"] = np.full((1, len(embeds)), self.picture, np.int32)
        inputs["pixel_values"] = np.ascontiguousarray(embeds)
        inputs["num_image_tokens"] = np.array([len(embeds)], np.int64)
        self.generator.set_inputs(inputs)
        return self.logits()

    def decode(self, token: int) -> np.ndarray:
        """One token more -> logits [V]."""
        self.generator.append_tokens(np.array([token], np.int32))
        return self.logits()

    def logits(self) -> np.ndarray:
        """Behind the last position [V]."""
        return np.asarray(self.generator.get_logits()).reshape(-1)


def stand_in(info: DecoderInfo) -> int:
    """The token that stands in place of an embedding, and so cannot be generated."""
    return info.vocab_size - 1


def write_genai(folder: Path, info: DecoderInfo, threads: int) -> None:
    """Writes three graphs and a configuration beside a decoder, whose weights they use."""
    picture = stand_in(info)
    onnx.save(with_mask(onnx.load(folder / GRAPH, load_external_data=False)), folder / DECODER)
    onnx.save(_words(folder / EMBEDDING, picture), folder / WORDS)
    onnx.save(_picture(info.hidden_size), folder / PICTURE)
    session = {"intra_op_num_threads": threads, "provider_options": []}
    config = {
        "model": {
            # gemma3 is the type whose pictures are tokens [N, D] and whose positions are plain.
            "type": "gemma3",
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 0,
            "image_token_id": picture,
            "context_length": info.context,
            "vocab_size": info.vocab_size,
            "decoder": {
                "filename": DECODER,
                "session_options": session,
                "head_size": info.cache_width,
                "hidden_size": info.hidden_size,
                "num_key_value_heads": info.num_kv_heads,
                "num_hidden_layers": info.num_layers,
                "inputs": {
                    "inputs_embeds": "inputs_embeds",
                    "attention_mask": "attention_mask",
                    **{f"past_{k}_names": PAST.format(layer="%d", kind=k) for k in CACHE_KINDS},
                },
                "outputs": {
                    "logits": "logits",
                    **{
                        f"present_{k}_names": PRESENT.format(layer="%d", kind=k)
                        for k in CACHE_KINDS
                    },
                },
            },
            "embedding": {
                "filename": WORDS,
                "session_options": session,
                "inputs": {"input_ids": "input_ids", "image_features": "image_features"},
                "outputs": {"inputs_embeds": "inputs_embeds"},
            },
            "vision": {
                "filename": PICTURE,
                "session_options": session,
                "inputs": {"pixel_values": "pixel_values"},
                "outputs": {"image_features": "image_features"},
            },
        },
        # The cache in one place for all steps, as in `OnnxDecoder`.
        "search": {"past_present_share_buffer": True, "max_length": info.context},
    }
    (folder / CONFIG).write_text(json.dumps(config, indent=1))


def with_mask(model: ModelProto) -> ModelProto:
    """A decoder of a bundle that takes the lengths as an attention mask [B, total] int64 and gives
    logits [B, 1, V]; for prompts without padding."""
    graph = model.graph
    first = [
        _node("Shape", ["inputs_embeds"], "mask.positions", start=1, end=2),
        _node("Cast", ["mask.positions"], "lengths", to=TensorProto.INT32),
        _node("Shape", ["attention_mask"], "mask.total", start=1, end=2),
        _node("Cast", ["mask.total"], "mask.end", to=TensorProto.INT32),
        _node("Sub", ["mask.end", "lengths"], "past_lengths"),
    ]
    (last,) = (node for node in graph.node if "logits" in node.output)
    rest = [node for node in graph.node if node is not last]
    inputs = [one for one in graph.input if one.name not in ("lengths", "past_lengths")]
    (logits,) = (one for one in graph.output if one.name == "logits")
    words = logits.type.tensor_type.shape.dim[-1].dim_value
    outputs = [one for one in graph.output if one.name != "logits"]
    made = helper.make_graph(
        [*first, *rest, _node("Identity", last.input[:1], "logits")],
        graph.name,
        [*inputs, _value("attention_mask", TensorProto.INT64, ["batch", "total"])],
        [_value("logits", TensorProto.FLOAT, ["batch", 1, words]), *outputs],
        graph.initializer,
    )
    return helper.make_model(made, opset_imports=model.opset_import, ir_version=8)


def _words(table: Path, picture: int) -> ModelProto:
    """input_ids [B, T] and image_features [N, D] -> inputs_embeds [B, T, D]: the rows of the table,
    and the features one by one where the token is that of a picture."""
    array = np.load(table, mmap_mode="r", allow_pickle=False)
    kind = helper.np_dtype_to_tensor_dtype(array.dtype)
    rows = TensorProto(name="table", dims=array.shape, data_type=kind)
    rows.data_location = TensorProto.EXTERNAL
    place = {"location": table.name, "offset": array.offset, "length": array.nbytes}
    for key, value in place.items():
        rows.external_data.add(key=key, value=str(value))
    width = array.shape[1]
    constants = {
        "picture": np.array(picture),
        "zero": np.array(0),
        "one": np.array(1),
        "end": np.array([-1]),
        # Adds a row, so that a gather works without a picture.
        "none": np.zeros((1, width), np.float32),
    }
    nodes = [
        _node("Gather", ["table", "input_ids"], "stored"),
        _node("Cast", ["stored"], "words", to=TensorProto.FLOAT),
        _node("Equal", ["input_ids", "picture"], "seen"),
        _node("Cast", ["seen"], "seen.int64", to=TensorProto.INT64),
        _node("CumSum", ["seen.int64", "one"], "count"),
        _node("Sub", ["count", "one"], "before"),
        _node("Max", ["before", "zero"], "row"),
        _node("Concat", ["image_features", "none"], "features", axis=0),
        _node("Gather", ["features", "row"], "pictures"),
        _node("Unsqueeze", ["seen", "end"], "where"),
        _node("Where", ["where", "pictures", "words"], "inputs_embeds"),
    ]
    return _model(
        nodes,
        [
            _value("input_ids", TensorProto.INT64, ["batch", "positions"]),
            _value("image_features", TensorProto.FLOAT, ["tokens", width]),
        ],
        _value("inputs_embeds", TensorProto.FLOAT, ["batch", "positions", width]),
        [rows, *(numpy_helper.from_array(array, name) for name, array in constants.items())],
    )


def _picture(width: int) -> ModelProto:
    """Tokens [N, D] as they are."""
    return _model(
        [_node("Identity", ["pixel_values"], "image_features")],
        [_value("pixel_values", TensorProto.FLOAT, ["tokens", width])],
        _value("image_features", TensorProto.FLOAT, ["tokens", width]),
        [],
    )


def _node(kind: str, inputs: list[str], output: str, **options: object) -> NodeProto:
    return helper.make_node(kind, inputs, [output], f"{output}.{kind}", **options)


def _value(name: str, kind: int, shape: list[int | str]) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def _model(
    nodes: list[NodeProto],
    inputs: list[ValueInfoProto],
    output: ValueInfoProto,
    constants: list[TensorProto],
) -> ModelProto:
    graph = helper.make_graph(nodes, "genai", inputs, [output], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
