"""The keys of cached features and of latency profiles: each thing that they depend on makes another
key, and nothing else does."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from paddle_recomp.bundle import Bundle
from paddle_recomp.bundle.contract import VISION_OUTPUTS
from paddle_recomp.checkpoint import PARTS, Checkpoint, ModelSpec, open_checkpoint
from paddle_recomp.compression.config import DEFAULT_METHOD, PRESETS, CompressionConfig
from paddle_recomp.compression.registry import METHODS
from paddle_recomp.config import TowerOptions
from paddle_recomp.vlm import fingerprints
from paddle_recomp.vlm.demo import demo_folder
from paddle_recomp.vlm.fingerprints import feature_shapes, latency_file, tower_key
from paddle_recomp.vlm.loading import find, find_checkpoint, load
from paddle_recomp.vlm.machine import Machine, this_machine
from paddle_recomp.vlm.runtimes import Runtime, runtimes

OUTPUTS = VISION_OUTPUTS[:4]


@dataclass(frozen=True)
class Given:
    """Everything that the two keys are made from."""

    model: Checkpoint | Bundle
    config: CompressionConfig | None
    device: str = "cpu"
    backend: str | None = None
    precision: str | None = None
    language: ModelSpec | None = None
    outputs: tuple[str, ...] = OUTPUTS

    @property
    def runtimes(self) -> tuple[Runtime, Runtime]:
        return runtimes(
            self.model, self.device, self.backend, self.precision, self.language is None
        )

    def tower(self) -> str:
        return tower_key(self.model, self.config, self.runtimes[0], self.outputs)

    def latency(self) -> Path:
        return latency_file(self.model, self.config, self.runtimes, self.language)


@pytest.fixture(scope="module")
def checkpoint() -> Given:
    return Given(find_checkpoint("demo"), CompressionConfig())


@pytest.fixture(scope="module")
def bundle() -> Given:
    return Given(find("demo"), CompressionConfig())


def another(value: Any) -> Any:
    """A value of the same kind."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, float):
        return value * 1.0000001
    if isinstance(value, str):
        return value + "x"
    if isinstance(value, tuple):
        return (*value, value[-1])
    return {"factor": 2.0} if value is None else {**value, "factor": 3.0}


def altered(whole: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The same dataclass with each of its values changed, one after the other, by name."""
    for field in fields(whole):
        value, name = getattr(whole, field.name), f"{path}{field.name}"
        parts = altered(value, f"{name}.") if is_dataclass(value) else [(name, another(value))]
        for where, other in parts:
            copy = object.__new__(type(whole))  # Its checks would refuse many a change.
            copy.__dict__.update({**vars(whole), field.name: other})
            yield where, copy


def with_specs(given: Given) -> dict[str, Given]:
    assert isinstance(given.model, Checkpoint)
    return {
        where: replace(given, model=replace(given.model, spec=spec))
        for where, spec in altered(given.model.spec)
    }


def with_options(given: Given) -> dict[str, Given]:
    """Each switch of the towers and of each method, the other methods, and the presets."""
    found = {f"preset {name}": replace(given, config=config) for name, config in PRESETS.items()}
    for name in METHODS:
        config = CompressionConfig(name)
        found[f"method {name}"] = replace(given, config=config)
        for part in ("towers", "options"):
            for where, options in altered(getattr(config, part)):
                copy = object.__new__(CompressionConfig)
                copy.__dict__.update({**vars(config), part: options})
                found[f"{name} {where}"] = replace(given, config=copy)
    return found


def check(
    base: Given, others: Mapping[str, Given], key: Callable[[Given], object], same: set[str]
) -> None:
    """All differ from each other, but those named, which equal the base."""
    keys = {where: key(other) for where, other in others.items()}
    for where, found in keys.items():
        assert (found == key(base)) == (where in same), where
    different = [found for where, found in keys.items() if where not in same]
    assert len(set(different)) == len(different)
    assert same <= set(keys)


TOWER_SPEC = {*(f"vision.{one}" for one in (
    "image_size", "patch_size", "hidden_size", "intermediate_size", "num_layers", "num_heads",
    "hidden_act", "layer_norm_eps", "projection_dim",
)), "vision_feature_layer"}  # fmt: skip


def test_each_field_of_the_tower_has_features_of_its_own(
    checkpoint: Given, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No field of the other parts has."""
    assert isinstance(checkpoint.model, Checkpoint)
    names = {part: checkpoint.model.expected(part) for part in PARTS}
    # The weights keep the names of the true sizes.
    monkeypatch.setattr(Checkpoint, "expected", lambda self, part: names[part])
    others = with_specs(checkpoint)
    assert set(others) >= TOWER_SPEC
    for where, other in others.items():
        assert (other.tower() != checkpoint.tower()) == (where in TOWER_SPEC), where


def test_each_switch_of_the_towers_has_features_of_its_own(checkpoint: Given) -> None:
    for where, towers in altered(TowerOptions()):
        config = object.__new__(CompressionConfig)
        config.__dict__.update({**vars(CompressionConfig()), "towers": towers})
        assert replace(checkpoint, config=config).tower() != checkpoint.tower(), where
    for name in METHODS:
        same = replace(checkpoint, config=CompressionConfig(name))
        assert same.tower() == checkpoint.tower(), f"{name} compresses behind the tower"


@pytest.mark.parametrize("name", ["post_layernorm.bias", "visual_projection.weight"])
def test_another_weight_has_features_of_its_own(
    name: str, checkpoint: Given, tmp_path: Path
) -> None:
    assert isinstance(checkpoint.model, Checkpoint)
    tensor = checkpoint.model._parts["vision_tower"][name]
    keys = []
    for change in (0, 1):
        folder = tmp_path / str(change)
        shutil.copytree(demo_folder(), folder)
        file = folder / tensor.file.relative_to(demo_folder())
        content = bytearray(file.read_bytes())
        content[tensor.offset] ^= change
        file.write_bytes(content)
        model = open_checkpoint(folder / "llava", folder / "clip")
        keys.append(replace(checkpoint, model=model).tower())
    assert keys[0] == checkpoint.tower(), "wherever it is"
    assert keys[1] != keys[0]


def ways_to_run(bundle: Given) -> dict[str, Given]:
    def run_by(**choices: Any) -> Given:
        return replace(bundle, **choices)

    return {
        "paddle": run_by(backend="paddle"),
        "paddle bf16": run_by(backend="paddle", precision="bf16"),
        "paddle int8": run_by(backend="paddle", precision="int8"),
        "paddle gpu": run_by(backend="paddle", device="gpu"),
        "paddle second gpu": run_by(backend="paddle", device="gpu:1"),
        "cuda": run_by(device="cuda"),
        "tensorrt": run_by(device="tensorrt"),
        "openvino": run_by(device="openvino"),
        "openvino bf16": run_by(device="openvino", precision="bf16"),
    }


SAME = {
    "onnx": {"backend": "onnx"},
    "paddle fp32": {"backend": "paddle", "precision": "fp32"},
    "paddle first gpu": {"backend": "paddle", "device": "gpu:0"},
    "openvino fp32": {"device": "openvino", "precision": "fp32"},
}
SHORT = {
    "onnx": {},
    "paddle fp32": {"backend": "paddle"},
    "paddle first gpu": {"backend": "paddle", "device": "gpu"},
    "openvino fp32": {"device": "openvino"},
}


def test_each_way_to_run_a_bundle_has_its_own(bundle: Given) -> None:
    others = ways_to_run(bundle)
    check(bundle, others, Given.tower, set())
    check(bundle, others, Given.latency, set())
    for name, choices in SAME.items():
        long, short = replace(bundle, **choices), replace(bundle, **SHORT[name])  # type: ignore[arg-type]
        assert long.tower() == short.tower(), name
        assert long.latency() == short.latency(), name


def test_the_files_and_the_outputs_of_a_bundle_count(bundle: Given) -> None:
    assert isinstance(bundle.model, Bundle)
    model = bundle.model
    for file in model.checksums:
        sums = {**model.sums.expected, file: "0" * 64}
        other = replace(bundle, model=replace(model, sums=replace(model.sums, expected=sums)))
        assert (other.tower() != bundle.tower()) == (file in model.graphs["vision"].files), file
        assert other.latency() != bundle.latency(), file
    for outputs in (OUTPUTS[:3], VISION_OUTPUTS):
        assert replace(bundle, outputs=outputs).tower() != bundle.tower()


def test_each_thing_that_decides_the_time_has_a_file_of_its_own(checkpoint: Given) -> None:
    same = {f"preset {name}" for name, one in PRESETS.items() if one == checkpoint.config}
    same |= {f"method {DEFAULT_METHOD}"}
    options = with_options(checkpoint)
    for base in (checkpoint,):
        check(base, with_specs(base), Given.latency, set())
    keys = {where: other.latency() for where, other in options.items()}
    for where, key in keys.items():
        assert (key == checkpoint.latency()) == (where in same), where
    own = [key for where, key in keys.items() if not where.startswith("preset")]
    assert len(set(own)) == len(own)


def test_the_language_model_decides_the_time_of_a_bundle(bundle: Given, checkpoint: Given) -> None:
    assert isinstance(checkpoint.model, Checkpoint)
    spec = checkpoint.model.spec
    with_paddle = replace(bundle, language=spec)
    assert with_paddle.latency() != bundle.latency()
    assert with_paddle.tower() == bundle.tower(), "the tower is the same"
    for where, other in with_specs(checkpoint).items():
        assert isinstance(other.model, Checkpoint)
        changed = replace(with_paddle, language=other.model.spec).latency()
        assert (changed != with_paddle.latency()) == where.startswith("language."), where
    again = replace(with_paddle, language=find_checkpoint("demo").spec)
    assert again.latency() == with_paddle.latency()


def test_each_machine_measures_for_itself(bundle: Given, monkeypatch: pytest.MonkeyPatch) -> None:
    here, keys = this_machine(), {bundle.latency()}
    for _, machine in altered(replace(here, versions={})):
        if isinstance(machine, Machine) and machine.versions == {}:
            monkeypatch.setattr(fingerprints, "this_machine", lambda found=machine: found)
            keys.add(bundle.latency())
    assert len(keys) == 4, "its processor, cores and system"
    monkeypatch.setattr(fingerprints, "this_machine", lambda: here)
    assert bundle.latency() in keys
    monkeypatch.setenv("OMP_NUM_THREADS", "77")
    assert bundle.latency() not in keys


def test_only_the_runtimes_that_run_count(
    bundle: Given, checkpoint: Given, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not those that the process has loaded for something else."""
    import onnxruntime
    import paddle

    before = bundle.tower(), bundle.latency(), checkpoint.tower(), checkpoint.latency()
    monkeypatch.setattr(paddle, "__version__", "99")
    after = bundle.tower(), bundle.latency(), checkpoint.tower(), checkpoint.latency()
    assert [a == b for a, b in zip(before, after, strict=True)] == [True, True, False, False]
    monkeypatch.undo()
    monkeypatch.setattr(onnxruntime, "__version__", "99")
    after = bundle.tower(), bundle.latency(), checkpoint.tower(), checkpoint.latency()
    assert [a == b for a, b in zip(before, after, strict=True)] == [False, False, True, True]
    monkeypatch.undo()
    monkeypatch.setattr(platform, "python_version", lambda: "4.0")
    assert bundle.latency() != before[1]


@pytest.mark.parametrize("constant", ["FEATURES_FORMAT", "LATENCY_FORMAT"])
def test_a_format_has_keys_of_its_own(
    constant: str, bundle: Given, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = bundle.tower(), bundle.latency()
    monkeypatch.setattr(fingerprints, constant, 99)
    changed = [a != b for a, b in zip(before, (bundle.tower(), bundle.latency()), strict=True)]
    assert changed == [constant == "FEATURES_FORMAT", constant == "LATENCY_FORMAT"]


def test_equal_numbers_are_one_setting(checkpoint: Given) -> None:
    """A command line gives 50.0 where a program gives 50."""
    config = CompressionConfig().with_options(text_weight=7)
    floats = CompressionConfig().with_text_options(text_weight="7")
    assert repr(config) != repr(floats)
    one, other = (replace(checkpoint, config=each) for each in (config, floats))
    assert one.latency() == other.latency()
    assert one.tower() == other.tower()
    default = replace(checkpoint, config=None)
    assert (default.latency(), default.tower()) == (checkpoint.latency(), checkpoint.tower())


def test_shapes_are_those_that_the_towers_give(checkpoint: Given, bundle: Given) -> None:
    for name, given in (("demo-checkpoint", checkpoint), ("demo", bundle)):
        (seen,) = load(name).front_end.see([demo_folder().parent / "pictures" / "scene_0.png"])
        found = {output: value.shape[1:] for output, value in seen.features.items()}
        assert feature_shapes(given.model, tuple(found)) == found


def test_a_loaded_model_has_the_file_of_its_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    plain = load("demo").latency_file
    assert plain is not None
    assert tmp_path in plain.parents
    assert load("demo", backend="onnx").latency_file == plain
    checkpoint = load("demo-checkpoint").latency_file
    visual = load("demo-checkpoint", config=CompressionConfig("visual")).latency_file
    with_paddle = load("demo", llm="demo").latency_file
    assert len({plain, checkpoint, visual, with_paddle}) == 4
    assert load("demo-checkpoint", config=CompressionConfig()).latency_file == checkpoint
