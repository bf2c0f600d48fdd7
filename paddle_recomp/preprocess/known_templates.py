"""Chat templates by name: those of published models, for checkpoints that do not say theirs."""

from __future__ import annotations

from collections.abc import Mapping

from paddle_recomp.preprocess.chat_template import ChatTemplate

VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
LLAMA_2_SYSTEM = (
    "You are a helpful language and vision assistant. You are able to understand the visual "
    "content that the user provides, and assist the user with a variety of tasks using natural "
    "language."
)


TEMPLATES: Mapping[str, ChatTemplate] = {
    # LLaVA 1.5 as its authors published it: a system prompt, each answer closed by `</s>`.
    "vicuna_v1": ChatTemplate(
        begin=f"{VICUNA_SYSTEM} ",
        before_question="USER: ",
        after_question=" ASSISTANT:",
        before_answer=" ",
        after_answer="</s>",
    ),
    # The template of the llava-1.5 checkpoints in the transformers layout: no system prompt.
    "llava_hf": ChatTemplate(
        begin="",
        before_question="USER: ",
        after_question=" ASSISTANT:",
        before_answer=" ",
        after_answer=" ",
    ),
    # The next three as the original code has them, by the same names.
    "llava_llama_2": ChatTemplate(
        begin=f"[INST] <<SYS>>\n{LLAMA_2_SYSTEM}\n<</SYS>>\n\n",
        before_question="",  # Only the first question stands behind the system prompt.
        after_question=" [/INST]",
        before_answer=" ",
        after_answer=" </s><s>[INST] ",
    ),
    "mistral_instruct": ChatTemplate(
        begin="",
        before_question="[INST] ",
        after_question=" [/INST]",
        before_answer=" ",
        after_answer=" </s>",
    ),
    "chatml_direct": ChatTemplate(
        begin="<|im_start|>system\nAnswer the questions.<|im_end|>",
        before_question="<|im_start|>user\n",
        after_question="<|im_end|><|im_start|>assistant\n",
        before_answer="",
        after_answer="<|im_end|>",
    ),
    # ChatML with the line breaks and the system prompt of Qwen2's own template.
    "qwen_2": ChatTemplate(
        begin="<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n",
        before_question="<|im_start|>user\n",
        after_question="<|im_end|>\n<|im_start|>assistant\n",
        before_answer="",
        after_answer="<|im_end|>\n",
    ),
    # Llama 3's own, without a system prompt.
    "llama_3": ChatTemplate(
        begin="",
        before_question="<|start_header_id|>user<|end_header_id|>\n\n",
        after_question="<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        before_answer="",
        after_answer="<|eot_id|>",
    ),
}
