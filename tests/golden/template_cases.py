"""Which conversations and which chat templates are behind chat_templates.json.

The templates `llava_hf` and `pictures_by_lines` are those of transformers' own tests and of one of
its conversion scripts, `qwen_2` and `mistral` those of Qwen2 and Mistral (all Apache-2.0). The
others were written here, in the way in which such templates are written: the published one of
Llama 3 is under a licence of its own."""

from __future__ import annotations

from typing import Any

Dialogue = list[tuple[str, str | None, int]]
"""Turns: a question, its answer, the number of its pictures."""
Q1, A1 = "What is on the table?", "A cup, and two spoons."
Q2, A2 = "Which colour has the cup?\nAnswer in one word.", "Red"
Q3 = 'Why is it "there"?'
DIALOGUES: dict[str, Dialogue] = {
    "one": [(Q1, None, 0)],
    "one_picture": [(Q1, None, 1)],
    "one_pictures": [(Q1, None, 2)],
    "two": [(Q1, A1, 0), (Q2, None, 0)],
    "two_picture": [(Q1, A1, 1), (Q2, None, 0)],
    "two_pictures": [(Q1, A1, 2), (Q2, None, 0)],
    "three": [(Q1, A1, 0), (Q2, A2, 0), (Q3, None, 0)],
    "three_picture": [(Q1, A1, 1), (Q2, A2, 0), (Q3, None, 0)],
    "three_pictures": [(Q1, A1, 2), (Q2, A2, 0), (Q3, None, 0)],
    "three_later": [(Q1, A1, 1), (Q2, A2, 1), (Q3, None, 0)],
}

_LLAMA_TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
_PARTS_IMAGE = "{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}"
_PARTS_TEXT = "{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}"
_CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
)

TEMPLATES: dict[str, dict[str, Any]] = {
    "llava_hf": {
        "parts": True,
        "tokens": _LLAMA_TOKENS,
        "template": "{% for message in messages %}{% if message['role'] != 'system' %}"
        "{{ message['role'].upper() + ': '}}{% endif %}{# Render all images first #}"
        "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}"
        "{{ '<image>\n' }}{% endfor %}{# Render all text next #}"
        "{% if message['role'] != 'assistant' %}"
        "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
        "{{ content['text'] + ' '}}{% endfor %}{% else %}"
        "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
        "{% generation %}{{ content['text'] + ' '}}{% endgeneration %}{% endfor %}{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}",
    },
    "vicuna": {
        "parts": True,
        "tokens": _LLAMA_TOKENS,
        "template": "{% if messages[0]['role'] != 'system' %}A chat between a curious user and an "
        "artificial intelligence assistant. The assistant gives helpful, detailed, and polite "
        "answers to the user's questions. {% endif %}{% for message in messages %}"
        "{% if message['role'] == 'user' %}USER: " + _PARTS_IMAGE + "{{ '<image>\n' }}{% endfor %}"
        "{% else %}ASSISTANT: {% endif %}" + _PARTS_TEXT + "{{ part['text'] }}{% endfor %}"
        "{% if message['role'] == 'user' %}{{ ' ' }}{% else %}{{ eos_token }}{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}",
    },
    "llama_3": {
        "parts": False,
        "tokens": {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"},
        "template": "{{ bos_token }}{% for message in messages %}"
        "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}"
        "{{ message['content'] | trim }}<|eot_id|>{% endfor %}"
        "{% if add_generation_prompt %}"
        "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}",
    },
    "llama_3_parts": {
        "parts": True,
        "tokens": {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"},
        "template": "{%- for message in messages %}\n"
        "    {%- if loop.first %}{{- bos_token }}{%- endif %}\n"
        "    {{- '<|start_header_id|>' ~ message.role ~ '<|end_header_id|>\n\n' }}\n"
        "    {%- if message.content is string %}{{- message.content | trim }}\n"
        "    {%- else %}{%- for part in message.content %}\n"
        "        {%- if part.type == 'image' %}{{- '<image>\n' }}\n"
        "        {%- else %}{{- part.text | trim }}{%- endif %}\n"
        "    {%- endfor %}{%- endif %}\n"
        "    {{- '<|eot_id|>' }}\n"
        "{%- endfor %}\n"
        "{%- if add_generation_prompt %}\n"
        "    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}\n"
        "{%- endif %}",
    },
    "qwen_2": {
        "parts": False,
        "tokens": {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
        "template": _CHATML + "{{'<|im_start|>' + message['role'] + '\n' + message['content'] "
        "+ '<|im_end|>' + '\n'}}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    },
    "pictures_by_lines": {
        "parts": True,
        "tokens": {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
        "template": _CHATML + "{{'<|im_start|>' + message['role'] + '\n'}}"
        "{# Render all images first #}"
        "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}"
        "{{ '<image>' }}{% endfor %}{# Render all text next #}"
        "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
        "{{ '\n' + content['text'] }}{% endfor %}{{'<|im_end|>' + '\n'}}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    },
    "mistral": {
        "parts": False,
        "tokens": _LLAMA_TOKENS,
        "template": "{{ bos_token }}{% for message in messages %}"
        "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('Conversation roles must alternate "
        "user/assistant/user/assistant/...') }}{% endif %}"
        "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
        "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token + ' ' }}"
        "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}"
        "{% endif %}{% endfor %}",
    },
    "mistral_parts": {
        "parts": True,
        "tokens": _LLAMA_TOKENS,
        "template": "{% for message in messages %}{% if message['role'] == 'user' %}[INST] "
        + _PARTS_IMAGE
        + "{{ '<image>\n' }}{% endfor %}"
        + _PARTS_TEXT
        + "{{ part['text'] }}{% endfor %} [/INST]{% else %}"
        + _PARTS_TEXT
        + "{{ ' ' + part['text'] + '</s> ' }}{% endfor %}{% endif %}{% endfor %}",
    },
    "llama_2": {
        "parts": False,
        "tokens": _LLAMA_TOKENS,
        "template": "{% for message in messages %}{% if message['role'] == 'user' %}"
        "{{ bos_token + '[INST] ' }}{% if loop.first %}<<SYS>>\nBe brief.\n<</SYS>>\n\n{% endif %}"
        "{{ message['content'] | trim + ' [/INST]' }}{% else %}"
        "{{ ' ' + message['content'] | trim + ' ' + eos_token }}{% endif %}{% endfor %}",
    },
    "own_words": {
        "parts": True,
        "tokens": {"bos_token": "<s>", "eos_token": "<end>"},
        "template": "{% macro words(parts) %}{% for part in parts %}"
        "{% if part.type == 'text' %}{{ part.text }}{% else %}[picture: <image>]{% endif %}"
        "{% endfor %}{% endmacro %}"
        "{% for message in messages %}{% if message.role == 'user' %}## Q\n"
        "{% else %}## A\n{% endif %}{{ words(message.content) }}{{ eos_token }}\n\n"
        "{% endfor %}{% if add_generation_prompt %}## A\n{% endif %}",
    },
}
"""Each with the tokens of its tokenizer, and whether messages are lists of parts."""

PUBLISHED_BUT_NO_PIECES = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + ' '}}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ '\n' + content['text'] }}{% endfor %}{{'<|im_end|>'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""In the way of the templates of LLaVA-OneVision in transformers' tests (Apache-2.0): a given
answer stands behind another text than the one that is awaited."""

CONVERSATIONS = ("vicuna_v1", "llava_llama_2", "mistral_instruct", "chatml_direct")
"""Of the original code, by its names."""

FILES = (
    "processor_config.json",
    "chat_template.json",
    "chat_template.jinja",
    "additional_chat_templates/default.jinja",
    "additional_chat_templates/other.jinja",
    "tokenizer_config.json",
)
"""The files that can hold a template. What wins was recorded for each set of them, where each has
a template that writes its own name."""


def messages(dialogue: Dialogue, as_parts: bool) -> list[dict[str, Any]]:
    """As transformers wants them."""
    said: list[dict[str, Any]] = []
    for question, answer, images in dialogue:
        parts = [{"type": "image"}] * images + [{"type": "text", "text": question}]
        text = "<image>\n" * images + question
        said.append({"role": "user", "content": parts if as_parts else text})
        if answer is not None:
            parts = [{"type": "text", "text": answer}]
            said.append({"role": "assistant", "content": parts if as_parts else answer})
    return said
