"""Checkpoint folders as people have them, read strictly, without torch and without running code
from a file."""

from paddle_recomp.checkpoint.checkpoint import Checkpoint, open_checkpoint
from paddle_recomp.checkpoint.spec import (
    PARTS,
    LanguageModelSpec,
    ModelSpec,
    ProjectorSpec,
    TextTowerSpec,
    VisionTowerSpec,
)
from paddle_recomp.checkpoint.templates import PromptFormat, prompt_format

__all__ = [
    "PARTS",
    "Checkpoint",
    "LanguageModelSpec",
    "ModelSpec",
    "ProjectorSpec",
    "PromptFormat",
    "TextTowerSpec",
    "VisionTowerSpec",
    "open_checkpoint",
    "prompt_format",
]
