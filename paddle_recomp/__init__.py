"""Question-guided, recoverable compression of visual tokens for LLaVA-class models.

vlm = load("demo")
image = vlm.see("paddle_recomp/assets/pictures/scene_5.png")  # the vision tower runs here, once
print(vlm.ask(image, "what shape is purple?").text)  # each question recompresses the image
"""

from paddle_recomp.compression.config import CompressionConfig, preset
from paddle_recomp.config import GenerationConfig, TokenBudget
from paddle_recomp.errors import RecompError
from paddle_recomp.types import Answer, Compressed, Stage, StageInfo, Timing, VisualTokens
from paddle_recomp.vlm.conversation import Conversation
from paddle_recomp.vlm.feature_cache import FeatureCache
from paddle_recomp.vlm.front_end import SeenImage
from paddle_recomp.vlm.loading import load
from paddle_recomp.vlm.vlm import VLM

__version__ = "0.1.0"

__all__ = [
    "VLM",
    "Answer",
    "Compressed",
    "CompressionConfig",
    "Conversation",
    "FeatureCache",
    "GenerationConfig",
    "RecompError",
    "SeenImage",
    "Stage",
    "StageInfo",
    "Timing",
    "TokenBudget",
    "VisualTokens",
    "load",
    "preset",
]
