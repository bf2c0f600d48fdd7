"""What holds for all tests, and what many of them use."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from paddle_recomp.vlm.loading import load
from paddle_recomp.vlm.vlm import VLM


@pytest.fixture(scope="session", autouse=True)
def user_folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Latency profiles and histories are kept in folders of this process, not in the user's."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("XDG_CACHE_HOME", "XDG_STATE_HOME"):
            patch.setenv(name, str(tmp_path_factory.mktemp("user")))
        yield


@pytest.fixture(scope="session")
def vlm() -> VLM:
    """The embedded checkpoint in eager Paddle."""
    return load("demo-checkpoint")
