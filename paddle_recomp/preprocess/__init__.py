"""The inputs of a model: pixel values from pictures, ids from text. No paddle here."""

from paddle_recomp.preprocess.chat_template import (
    IMAGE_PLACEHOLDER,
    ChatTemplate,
    Part,
    Prompt,
    QuestionSource,
    Turn,
    check_question,
    check_text,
    clip_text,
    first_line,
    render,
    spoken,
    without_images,
)
from paddle_recomp.preprocess.image_processor import Box, ImageProcessor, crop_box
from paddle_recomp.preprocess.images import ImageSource, load_image, load_images
from paddle_recomp.preprocess.known_templates import TEMPLATES
from paddle_recomp.preprocess.prompt_ids import IMAGE_TOKEN
from paddle_recomp.preprocess.tokenizers import (
    ClipTokenizer,
    LanguageTokenizer,
    StreamDecoder,
    ids_of,
    load_tokenizer,
)

__all__ = [
    "IMAGE_PLACEHOLDER",
    "IMAGE_TOKEN",
    "TEMPLATES",
    "Box",
    "ChatTemplate",
    "ClipTokenizer",
    "ImageProcessor",
    "ImageSource",
    "LanguageTokenizer",
    "Part",
    "Prompt",
    "QuestionSource",
    "StreamDecoder",
    "Turn",
    "check_question",
    "check_text",
    "clip_text",
    "crop_box",
    "first_line",
    "ids_of",
    "load_image",
    "load_images",
    "load_tokenizer",
    "render",
    "spoken",
    "without_images",
]
