"""The cache of features: what it keeps and forgets, and that no file on disk can harm."""

from __future__ import annotations

import os
import threading
import warnings
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from paddle_recomp.bundle import open_bundle
from paddle_recomp.bundle.contract import INPUTS, OUTPUTS, Graph
from paddle_recomp.compression.config import preset
from paddle_recomp.config import TokenBudget
from paddle_recomp.errors import ConfigError, RecompWarning
from paddle_recomp.preprocess import load_image
from paddle_recomp.vlm.cached_backend import CachedBackend
from paddle_recomp.vlm.demo import demo_bundle_folder, demo_pictures
from paddle_recomp.vlm.feature_cache import HALVED, SUFFIX, Arrays, FeatureCache
from paddle_recomp.vlm.loading import find_checkpoint, load, load_front_end


def entry(number: float, size: int = 25) -> dict[str, np.ndarray]:
    """`size` numbers in one array of three axes: 4 bytes each in memory."""
    return {"features": np.full((1, size, 1), number, dtype=np.float32)}


def find(cache: FeatureCache, key: str, size: int = 25) -> Arrays | None:
    """The entry of a key, if one of this size is kept."""
    return cache.get(key, {"features": (1, size, 1)})


def test_the_least_recently_used_goes_first() -> None:
    cache = FeatureCache(max_bytes=300)
    for number, key in enumerate("abc"):
        cache.put(key, entry(number))
    assert cache.num_bytes == 300
    assert find(cache, "a") is not None
    cache.put("d", entry(3))
    assert [key for key in "abcd" if find(cache, key) is not None] == ["a", "c", "d"]
    cache.put("large", entry(4, size=100))
    assert cache.num_bytes == 0
    cache.put("a", entry(5))
    cache.put("a", entry(6))
    found = find(cache, "a")
    assert found is not None
    assert cache.num_bytes == 100
    np.testing.assert_array_equal(found["features"], entry(6)["features"])


@given(
    st.lists(st.tuples(st.sampled_from("abcde"), st.integers(1, 12), st.booleans()), max_size=40)
)
@settings(max_examples=40, deadline=None)
def test_it_is_a_list_of_the_last_used(steps: list[tuple[str, int, bool]]) -> None:
    """Against the plainest model of one."""
    cache, model = FeatureCache(max_bytes=80), OrderedDict[str, int]()
    for key, size, puts in steps:
        if puts:
            cache.put(key, entry(0, size))
            model.pop(key, None)
            model[key] = 4 * size
            while sum(model.values()) > 80:
                model.popitem(last=False)
        else:
            assert (find(cache, key, model.get(key, 4) // 4) is None) == (key not in model)
            if key in model:
                model.move_to_end(key)
        assert cache.num_bytes == sum(model.values())


def test_what_is_kept_is_nobodys_to_change() -> None:
    cache, arrays = FeatureCache(), entry(1)
    cache.put("a", arrays)
    arrays["features"][:] = 2
    found = find(cache, "a")
    assert found is not None
    assert found["features"].max() == 1
    with pytest.raises(ValueError, match="read-only"):
        found["features"][:] = 3


def test_a_file_holds_the_large_arrays_in_float16(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    large = {name: rng.normal(size=(1, 500, 16)).astype(np.float32) for name in HALVED}
    exact = {"visual_score": (1e-7 * rng.random((1, 500))).astype(np.float32)}
    FeatureCache(folder=tmp_path).put("a", {**large, **exact})
    (path,) = tmp_path.iterdir()
    halves = sum(one.nbytes // 2 for one in large.values())
    assert path.stat().st_size < halves + exact["visual_score"].nbytes + 2000
    shapes = {name: value.shape for name, value in {**large, **exact}.items()}
    found = FeatureCache(folder=tmp_path).get("a", shapes)
    assert found is not None
    assert {value.dtype for value in found.values()} == {np.dtype(np.float32)}
    np.testing.assert_array_equal(found["visual_score"], exact["visual_score"])
    for name, value in large.items():
        np.testing.assert_allclose(found[name], value, rtol=2**-11, atol=1e-7)


def test_numbers_that_float16_does_not_have_stay_in_memory(tmp_path: Path) -> None:
    cache = FeatureCache(folder=tmp_path)
    cache.put("a", entry(1e6))
    assert find(cache, "a") is not None
    assert not list(tmp_path.iterdir())


def test_the_folder_is_bounded_and_the_last_used_stay(tmp_path: Path) -> None:
    FeatureCache(folder=tmp_path / "probe").put("a", entry(0, 1000))
    size = next((tmp_path / "probe").iterdir()).stat().st_size
    folder = tmp_path / "cache"
    cache = FeatureCache(max_bytes=0, folder=folder, max_disk_bytes=3 * size)
    for number, key in enumerate("abc"):
        cache.put(key, entry(number, 1000))
    # Each was written or read after the one before; clocks of file systems can be coarse.
    stamps = {"b": 1, "c": 2, "a": 3}
    for key, seconds in stamps.items():
        os.utime(folder / f"{key}{SUFFIX}", (seconds, seconds))
    assert find(cache, "b", 1000) is not None
    cache.put("d", entry(3, 1000))
    assert sorted(path.stem for path in folder.iterdir()) == ["a", "b", "d"]
    cache.put("e", entry(4, 10_000))
    assert sorted(path.stem for path in folder.iterdir()) == ["a", "b", "d"]


def test_half_a_file_of_a_killed_process_is_counted(tmp_path: Path) -> None:
    cache = FeatureCache(folder=tmp_path, max_disk_bytes=3000)
    left = tmp_path / f".half.{16 * 'f'}{SUFFIX}"
    left.write_bytes(bytes(2990))
    os.utime(left, (1, 1))
    cache.put("a", entry(1))
    assert {path.name for path in tmp_path.iterdir()} == {f"a{SUFFIX}"}


def damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    other = path.with_name(f"other{SUFFIX}")
    if how == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif how == "flipped":
        path.write_bytes(content[:-20] + bytes([content[-20] ^ 1]) + content[-19:])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "foreign":
        path.write_bytes((b"not ours" * 100)[: len(content)])
    elif how == "renamed":
        FeatureCache(folder=path.parent).put("other", entry(9))
        other.replace(path)
    else:
        path.write_bytes(content * 5000)


@pytest.mark.parametrize("how", ["cut", "flipped", "empty", "foreign", "renamed", "huge"])
def test_a_damaged_file_is_written_again(how: str, tmp_path: Path) -> None:
    FeatureCache(folder=tmp_path).put("a", entry(1))
    damage(tmp_path / f"a{SUFFIX}", how)
    cache = FeatureCache(folder=tmp_path, max_disk_bytes=2**20)
    with pytest.warns(RecompWarning, match=rf"a{SUFFIX} is not used") as caught:
        assert find(cache, "a") is None
    assert len(caught) == 1
    cache.put("a", entry(2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = find(FeatureCache(folder=tmp_path), "a")
    assert found is not None
    assert found["features"].max() == 2
    assert {path.name for path in tmp_path.iterdir()} == {f"a{SUFFIX}"}


def test_a_cache_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be a cache"):
        FeatureCache(folder=tmp_path / "file")
    with pytest.raises(ConfigError, match="max_bytes is -1"):
        FeatureCache(max_bytes=-1)
    (tmp_path / "gone").mkdir()
    cache = FeatureCache(folder=tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.warns(RecompWarning, match="cannot be written"):
        cache.put("a", entry(1))


def test_several_threads_share_one(tmp_path: Path) -> None:
    cache = FeatureCache(max_bytes=1000, folder=tmp_path, max_disk_bytes=5000)
    wrong: list[object] = []

    def use(seed: int) -> None:
        try:
            for number in np.random.default_rng(seed).integers(0, 20, size=60):
                found = find(cache, f"k{number}")
                if found is None:
                    cache.put(f"k{number}", entry(number))
                elif (found["features"] != number).any():
                    wrong.append(number)
        except Exception as error:
            wrong.append(error)

    threads = [threading.Thread(target=use, args=(seed,)) for seed in range(6)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong
    assert cache.num_bytes <= 1000
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 5000


SHAPES = dict.fromkeys(OUTPUTS["vision"], (5,))


class Tower:
    """A vision tower that counts pictures; its features name the picture that they are of."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def inputs(self, graph: Graph) -> tuple[str, ...]:
        return INPUTS[graph]

    def run(self, graph: Graph, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        pixels = inputs["pixel_values"]
        self.batches.append(len(pixels))
        return {name: pixels[:, 0, 0] + number for number, name in enumerate(OUTPUTS["vision"])}


def test_only_new_pictures_go_through_the_tower() -> None:
    tower, cache = Tower(), FeatureCache()
    backend = CachedBackend(tower, cache, "one", SHAPES)
    pictures = np.random.default_rng(0).normal(size=(4, 3, 5, 5)).astype(np.float32)
    for chosen, ran in ([0, 1], [2]), ([1, 2, 2, 0], [2, 1]), ([3, 0, 3], [2, 1, 1]), ([3], None):
        before = len(tower.batches)
        inputs = {"pixel_values": pictures[chosen]}
        found = backend.run("vision", inputs)
        if ran is None:
            assert len(tower.batches) == before
        else:
            assert tower.batches == ran
        for name, value in Tower().run("vision", inputs).items():
            np.testing.assert_array_equal(found[name], value)
    assert backend.num_missing(pictures) == 0
    another = CachedBackend(tower, cache, "another", SHAPES)
    assert another.num_missing(pictures[[0, 1, 1]]) == 2
    another.run("vision", {"pixel_values": pictures[:1]})
    assert tower.batches == [2, 1, 1, 1]


def test_the_file_of_a_picture_outlives_the_process(tmp_path: Path) -> None:
    """The same picture under another name, in another process's model, is not seen again."""
    picture = next(iter(demo_pictures()))
    copy = tmp_path / "copy.png"
    Image.open(picture).save(copy)
    folder = tmp_path / "cache"
    first = load_front_end(find_checkpoint("demo"), cache=FeatureCache(folder=folder)).see(
        [picture]
    )
    vlm = load("demo-checkpoint", cache=FeatureCache(folder=folder))
    assert isinstance(vlm.front_end.backend, CachedBackend)
    vlm.front_end.backend.backend = None  # type: ignore[assignment]
    (again,) = vlm.front_end.see([load_image(copy)])
    for name, value in first[0].features.items():
        np.testing.assert_allclose(again.features[name], value, rtol=2**-10, atol=1e-6)


@pytest.mark.parametrize("budget", [TokenBudget(), TokenBudget(tokens=32)])
def test_float16_chooses_the_same_tokens(budget: TokenBudget, tmp_path: Path) -> None:
    """Of every shipped picture and question."""
    asked = [one for questions in demo_pictures().values() for one in questions]
    checkpoint = find_checkpoint("demo")
    writing, reading = (
        load_front_end(checkpoint, cache=FeatureCache(folder=tmp_path)) for _ in range(2)
    )
    exact = {path: writing.see([path])[0] for path in demo_pictures()}
    halved = {path: reading.see([path])[0] for path in demo_pictures()}
    same = 0
    for one in asked:
        (expected,) = writing.compress([exact[one.picture]], [one.question], budget)
        (found,) = reading.compress([halved[one.picture]], [one.question], budget)
        same += np.array_equal(expected.compressed[0].index, found.compressed[0].index)
    assert (exact[one.picture].features["keys"] != halved[one.picture].features["keys"]).any()
    assert same == len(asked)


def test_switches_of_the_towers_have_features_of_their_own() -> None:
    picture, cache = next(iter(demo_pictures())), FeatureCache()
    load_front_end(find_checkpoint("demo"), cache=cache).see([picture])
    (shared,) = load_front_end(find_checkpoint("demo"), preset("faithful"), cache=cache).see(
        [picture]
    )
    (alone,) = load_front_end(find_checkpoint("demo"), preset("faithful")).see([picture])
    for name, value in alone.features.items():
        np.testing.assert_array_equal(shared.features[name], value, err_msg=name)


def test_a_batch_leaves_what_a_picture_has_alone() -> None:
    """The packaged model's ranges of activations span a batch."""
    pictures = list(demo_pictures())
    cached = load_front_end(open_bundle(demo_bundle_folder()), cache=FeatureCache())
    cached.see(pictures)
    for picture in pictures[:2]:
        (expected,) = load_front_end(open_bundle(demo_bundle_folder())).see([picture])
        (found,) = cached.see([picture])
        for name, value in expected.features.items():
            np.testing.assert_array_equal(found.features[name], value, err_msg=name)
