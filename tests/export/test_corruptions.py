"""One thing wrong in a bundle, anywhere, and its comparison with the checkpoint fails: in fp32 and
in INT8, for every corruption of the list."""

from __future__ import annotations

import shutil
from collections.abc import Callable

import pytest

from export.calibration import Quantisation
from export.verify import Reference, compare_bundle, compare_computed, reference_of
from paddle_recomp.bundle import Bundle, open_bundle
from paddle_recomp.vlm.loading import find_checkpoint

from .corruptions import CORRUPTIONS, Corruption
from .exports import Exports, graphs_of

SEEN_IN_STORE_ONLY = {
    "vision: the bias of keys, which no score shows",
    "vision: the last bit of a bias",
    "text: a row of words that no question has",
    "text: the epsilon of a norm",
    "encoder: a row of words",
    "decoder: one late rotary position",
    "decoder: the epsilon of a norm",
    "decoder: the number in the activation",
}
"""Nothing that is computed for pictures and questions shows them in fp32."""


@pytest.fixture(scope="module")
def bundles(demo_bundle: Bundle, exports: Exports) -> dict[str, Bundle]:
    made = {"fp32": demo_bundle}
    with graphs_of(demo_bundle):
        for kind in ("dynamic", "static"):
            made[kind] = exports.bundle(
                f"corruptible-{kind}",
                precision="int8",
                quantisation=Quantisation(kind=kind),
                fused=True,
                decoder="int8",
            )
    return made


@pytest.fixture(scope="module")
def reference(demo_bundle: Bundle) -> Reference:
    """What the checkpoint computes, once for all."""
    return reference_of(demo_bundle, find_checkpoint("demo"))


@pytest.fixture(scope="module")
def corrupted(
    bundles: dict[str, Bundle], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, Corruption], Bundle]:
    """The only copy of a bundle, with one thing wrong: what was wrong before is right again."""
    folder, wrong = tmp_path_factory.mktemp("corrupted"), dict[str, Corruption]()

    def corrupt(precision: str, corruption: Corruption) -> Bundle:
        source, copy = bundles[precision].folder, folder / precision
        if precision not in wrong:
            shutil.copytree(source, copy)
        else:
            for name in wrong[precision].files:
                if (source / name).is_file():
                    shutil.copyfile(source / name, copy / name)
        wrong[precision] = corruption
        corruption.apply(copy)
        return open_bundle(copy)

    return corrupt


def test_the_list_is_long_and_names_each_once() -> None:
    assert len(CORRUPTIONS) >= 40
    assert len({one.name for one in CORRUPTIONS}) == len(CORRUPTIONS)
    assert {one.name for one in CORRUPTIONS} > SEEN_IN_STORE_ONLY


@pytest.mark.parametrize("precision", ["fp32", "dynamic", "static"])
def test_nothing_fails_where_nothing_is_wrong(
    precision: str, bundles: dict[str, Bundle], reference: Reference
) -> None:
    rows = list(compare_bundle(bundles[precision], reference))
    assert [row for row in rows if not row.passed] == []


@pytest.mark.parametrize("corruption", CORRUPTIONS, ids=lambda one: one.name)
@pytest.mark.parametrize("precision", ["fp32", "dynamic"])
def test_a_corruption_is_seen(
    precision: str,
    corruption: Corruption,
    corrupted: Callable[[str, Corruption], Bundle],
    reference: Reference,
) -> None:
    """In INT8 also those that change neither tokens nor answers."""
    found = compare_bundle(corrupted(precision, corruption), reference)
    assert any(not row.passed for row in found)


STATIC = ("vision: a scale", "text: a negated matrix", "encoder: the number in the activation")


@pytest.mark.parametrize(
    "corruption", [one for one in CORRUPTIONS if one.name in STATIC], ids=lambda one: one.name
)
def test_a_corruption_is_seen_in_static_int8(
    corruption: Corruption,
    corrupted: Callable[[str, Corruption], Bundle],
    reference: Reference,
) -> None:
    found = compare_bundle(corrupted("static", corruption), reference)
    assert any(not row.passed for row in found)


@pytest.mark.parametrize("corruption", CORRUPTIONS, ids=lambda one: one.name)
def test_what_is_computed_in_fp32_shows_it_too(
    corruption: Corruption,
    corrupted: Callable[[str, Corruption], Bundle],
    reference: Reference,
) -> None:
    """Without a look at the weights, all but what no picture and no question reaches."""
    found = compare_computed(corrupted("fp32", corruption), reference)
    seen = any(not row.passed for row in found)
    assert seen == (corruption.name not in SEEN_IN_STORE_ONLY)
