"""Templates in Jinja become pieces: those of the record of transformers, any that pieces can say,
and those of strangers who mean no good."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paddle_recomp.errors import CheckpointError, MissingDependencyError
from paddle_recomp.preprocess import TEMPLATES, ChatTemplate, Turn, jinja_child, jinja_template
from paddle_recomp.preprocess import render as render_prompt
from paddle_recomp.preprocess.jinja_template import JinjaTemplate, read_jinja
from tests.golden import template_cases as cases

RECORD = json.loads((Path(cases.__file__).parent / "chat_templates.json").read_text("utf-8"))
SAME_NAMES = {"llava_hf": "llava_hf", "vicuna": "vicuna_v1", "llama_3": "llama_3"}
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}


def turns_of(dialogue: cases.Dialogue) -> list[Turn]:
    return [Turn(*turn) for turn in dialogue]


def render(template: ChatTemplate, turns: list[Turn]) -> str:
    return render_prompt(template, turns).text


def read(source: str, tokens: dict[str, str] = TOKENS) -> JinjaTemplate:
    return read_jinja(source, "FILE", tuple(sorted(tokens.items())))


@pytest.mark.parametrize("name", cases.TEMPLATES)
def test_prompts_are_those_of_transformers(name: str) -> None:
    """One, two and three turns, with no picture, one and two, with answers in between."""
    case = cases.TEMPLATES[name]
    found = read(case["template"], case["tokens"])
    begin = case["tokens"]["bos_token"] if found.begins else ""
    for key, dialogue in cases.DIALOGUES.items():
        prompt = begin + render(found.pieces, turns_of(dialogue))
        assert prompt == RECORD["transformers"][name][key]
    assert found.begins == RECORD["transformers"][name]["one"].startswith(("<s>", "<|begin"))


@pytest.mark.parametrize("name", cases.CONVERSATIONS)
def test_prompts_are_those_of_the_original_code(name: str) -> None:
    for key, dialogue in cases.DIALOGUES.items():
        assert render(TEMPLATES[name], turns_of(dialogue)) == RECORD["original"][name][key]


@pytest.mark.parametrize("name", ["llava_hf", "vicuna", "llama_3", "llama_3_parts", "qwen_2"])
def test_known_templates_are_found_piece_by_piece(name: str) -> None:
    case = cases.TEMPLATES[name]
    known = {"vicuna": "vicuna_v1", "llama_3_parts": "llama_3"}.get(name, name)
    assert read(case["template"], case["tokens"]).pieces == TEMPLATES[known]


def test_pieces_of_other_templates() -> None:
    def pieces(name: str) -> ChatTemplate:
        case = cases.TEMPLATES[name]
        return read(case["template"], case["tokens"]).pieces

    system = TEMPLATES["qwen_2"].begin
    assert pieces("pictures_by_lines") == ChatTemplate(
        begin=system,
        before_question="<|im_start|>user\n",
        after_question="<|im_end|>\n<|im_start|>assistant\n",
        before_answer="\n",
        after_answer="<|im_end|>\n",
        image="<image>",
        before_words="\n",
    )
    placed = render(pieces("pictures_by_lines"), [Turn("Is <image> it?", "No.", 1), Turn("Why?")])
    assert placed == (
        f"{system}<|im_start|>user\n\nIs <image> it?<|im_end|>\n<|im_start|>assistant\n\nNo."
        "<|im_end|>\n<|im_start|>user\n\nWhy?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert pieces("llama_2") == ChatTemplate(
        begin="[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\n",
        before_question="",
        after_question=" [/INST]",
        before_answer=" ",
        after_answer=" </s><s>[INST] ",
    )
    assert pieces("own_words").image == "[picture: <image>]"


def written(pieces: ChatTemplate, as_parts: bool) -> str:
    """A template in Jinja that writes what the pieces give."""

    def say(text: str) -> str:
        return f"{{{{ {json.dumps(text)} }}}}" if text else ""

    texts = "message.content | selectattr('type', 'eq', 'text')"
    words, pictures = "{{ message.content }}", ""
    if as_parts:
        words = f"{{% for part in {texts} %}}{{{{ part.text }}}}{{% endfor %}}"
        places = texts.replace("text'", "image'")
        pictures = f"{{% for part in {places} %}}{say(pieces.image)}{{% endfor %}}"
    answered = say(pieces.before_answer) + words + say(pieces.after_answer)
    asked = say(pieces.before_question) + pictures + say(pieces.before_words) + words
    return (
        f"{say(pieces.begin)}{{% for message in messages %}}{{% if message.role == 'user' %}}"
        f"{asked}{say(pieces.after_question)}{{% else %}}{answered}{{% endif %}}{{% endfor %}}"
    )


text_pieces = st.text(st.sampled_from("ab<|>[/]: \n\"'{}%#\\é猫"), max_size=8)
some_pieces = st.builds(
    ChatTemplate,
    begin=text_pieces,
    before_question=text_pieces,
    after_question=text_pieces,
    before_answer=text_pieces,
    after_answer=text_pieces,
    image=st.builds("{}<image>{}".format, text_pieces, text_pieces),
    before_words=text_pieces,
)


@settings(max_examples=25, deadline=None)
@given(some_pieces)
def test_any_pieces_come_back(pieces: ChatTemplate) -> None:
    """Perhaps cut elsewhere, as one text between two words can be, but with the same prompts."""
    found = read(written(pieces, as_parts=True), {}).pieces
    for dialogue in cases.DIALOGUES.values():
        assert render(found, turns_of(dialogue)) == render(pieces, turns_of(dialogue))


@settings(max_examples=10, deadline=None)
@given(some_pieces)
def test_any_pieces_come_back_from_messages_of_text(pieces: ChatTemplate) -> None:
    """Such a template writes no pictures: they stand in the question."""
    found = read(written(pieces, as_parts=False), {}).pieces
    assert found.image == "<image>\n"
    for dialogue in cases.DIALOGUES.values():
        asked = [(("<image>\n" * n) + q, a, 0) for q, a, n in dialogue]
        assert render(found, turns_of(dialogue)) == written_plainly(pieces, asked)


def written_plainly(pieces: ChatTemplate, dialogue: cases.Dialogue) -> str:
    prompt = pieces.begin
    for question, answer, _ in dialogue:
        prompt += pieces.before_question + pieces.before_words + question + pieces.after_question
        prompt += "" if answer is None else pieces.before_answer + answer + pieces.after_answer
    return prompt


def loop(body: str, after: str = "") -> str:
    return f"{{% for message in messages %}}{body}{{% endfor %}}{after}"


PARTS = "{% for part in message.content %}{% if part.type == 'text' %}{{ part.text }}{% else %}"
REFUSED = {
    "a syntax error": ("{% for", "it is not Jinja: line 1: unexpected 'end of template'"),
    "an unknown tag": ("{% quux %}", "it is not Jinja: line 1: Encountered unknown tag 'quux'"),
    "an unknown filter": ("{{ 1 | quux }}", "it is not Jinja: line 1: No filter named 'quux'"),
    "nested too deeply": ("{{" + "(" * 3000 + ")" * 3000 + "}}", "it is not Jinja: "),
    "empty": ("", "it does not write the question"),
    "no question": ("Hello!", "it does not write the question"),
    "another form of it": (loop("{{ message.content | upper }}"), "does not write the question"),
    "twice": (loop("{{ message.content * 2 }}"), "the question 2 times; expected once"),
    "the last one only": (
        "{{ messages[-1].content }}",
        "for two questions it writes the question 0 times; expected once",
    ),
    "no answers": (
        loop("{% if message.role == 'user' %}{{ message.content }}{% endif %}"),
        "for two questions it writes the answer 0 times",
    ),
    "an error of its own": (
        loop(
            "{{ message.content }}{% if loop.index > 2 %}{{ raise_exception('no\nno') }}{% endif %}"
        ),
        "for two questions it says: no no",
    ),
    "no pictures": (
        loop(PARTS + "{% endif %}{% endfor %}"),
        "it writes nothing for a picture",
    ),
    "another picture": (
        loop(PARTS + "<|image|>{% endif %}{% endfor %}"),
        'with a picture "<|image|>", with two "<|image|><|image|>"; expected one <image> more',
    ),
    "numbered pictures": (
        loop(PARTS + "Picture {{ loop.index }}: <image>{% endif %}{% endfor %}"),
        "expected one <image> more for each",
    ),
    "pictures behind the words": (
        loop(
            "{% for part in message.content | sort(attribute='type', reverse=true) %}"
            "{{ part.text if part.type == 'text' else '<image>' }}{% endfor %}"
        ),
        "expected one <image> more for each",
    ),
    "a place without a picture": (
        loop("<image>{{ message.content }}"),
        "where there is no picture",
    ),
    "numbered turns": (
        loop("{{ loop.index }}: {{ message.content }}\n"),
        "for three questions it writes ",
    ),
    "cut texts": (loop("{{ message.content[:1000] }}\n"), "for long texts it writes "),
    "escaped texts": (loop("{{ message.content | e }}\n"), 'it writes "&lt;image&gt;'),
    "one line": (
        loop("{{ message.content | replace('\n', ' ') }}|"),
        'it writes "<image> questionAlpha|"',
    ),
    "today": (
        "{{ strftime_now('%d %b %Y') }}" + loop("{{ message.content }}"),
        "it writes the date of today, which is no fixed text",
    ),
    "an attribute": (
        "{{ messages.__class__.__mro__ }}" + loop("{{ message.content }}"),
        "access to attribute '__class__' of 'list' object is unsafe",
    ),
    "a change": (
        "{{ messages.append(1) }}",
        "access to attribute 'append' of 'list' object is unsafe",
    ),
    "much text": ("{% for i in range(90000) %}abcd{% endfor %}", "more than 100000 characters"),
    "a long range": ("{% for i in range(10**9) %}x{% endfor %}", "Range too big"),
    "a long message": ("{{ raise_exception('no ' * 90000) }}", "no no no no"),
    "escape sequences": ("{{ raise_exception('\\x1b[2J\\r\\nx') }}", r"\\x1b\[2J x"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_pieces_cannot_say_is_refused(case: str) -> None:
    source, reason = REFUSED[case]
    with pytest.raises(
        CheckpointError, match=reason.replace("|", r"\|").replace("(", r"\(")
    ) as caught:
        read(source)
    message = str(caught.value)
    assert message.startswith("FILE cannot be used as a chat template: ")
    assert message.isprintable()
    assert len(message) < 500


def test_a_given_answer_behind_another_text_than_an_awaited_one() -> None:
    with pytest.raises(CheckpointError, match="an answer that was given stands behind") as caught:
        read(cases.PUBLISHED_BUT_NO_PIECES, {})
    assert r'"<|im_end|><|im_start|>assistant \n"' in str(caught.value)
    assert r'"<|im_end|><|im_start|>assistant\n"; expected' in str(caught.value)


def test_a_long_template_is_not_run() -> None:
    with pytest.raises(CheckpointError, match="FILE has 10000000 characters; expected at most 2"):
        read("x" * 10_000_000)


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% macro again() %}{% for i in range(99999) %}{% set x = i %}{% endfor %}{{ again() }}"
        "{% endmacro %}" + "{{ again() }}" * 99,
        "{% set x = namespace(t='x') %}{% for i in range(99999) %}{% set x.t = x.t + x.t %}"
        "{% endfor %}",
        "{{ 'x' * 10**11 }}",
        "{{ '%99999999999d' % 1 }}",
    ],
    ids=["time", "recursion", "doubling", "memory", "width"],
)
def test_a_template_that_never_ends_is_ended(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jinja_template, "_CPU_SECONDS", 2)
    with pytest.raises(CheckpointError, match=r"takes more than 2 sec|too much memory|recursion"):
        read(source + loop("{{ message.content }}"))


def test_a_template_that_waits_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jinja_template, "_WALL_SECONDS", 0.01)
    with pytest.raises(CheckpointError, match="did not end within"):
        read(loop("{{ message.content }} waits"))


def test_a_process_that_fails_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = tmp_path / "child.py"
    script.write_text("raise OSError('no\\ndisk')")
    monkeypatch.setattr(jinja_child, "__file__", str(script))
    with pytest.raises(CheckpointError, match="process that renders it failed: disk"):
        read(loop("{{ message.content }} fails"))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no python"))
    with pytest.raises(CheckpointError, match="no process can be started for it: No such file"):
        read(loop("{{ message.content }} is not there"))


def test_marks_for_training_and_jumps_change_no_text() -> None:
    source = loop(
        "{% generation %}{{ message.content }};{% endgeneration %}"
        "{% if loop.index > 90 %}{% break %}{% endif %}{% if loop.first %}{% continue %}{% endif %}"
    )
    found = read(source).pieces
    assert render(found, [Turn("a", "b"), Turn("c")]) == "a;b;c;"


def test_lines_are_trimmed_as_transformers_trims_them() -> None:
    found = read(
        "\n{% for message in messages %}\n  {% if true %}\n{{ message.content }}\n"
        "  {% endif %}\n{% endfor %}\n"
    ).pieces
    assert render(found, [Turn("a", "b"), Turn("c")]) == "\na\nb\nc\n"


def test_without_jinja(monkeypatch: pytest.MonkeyPatch) -> None:
    bare = [path for path in sys.path if "site-packages" not in path and "wt" not in path]
    monkeypatch.setattr(sys, "path", bare)
    with pytest.raises(MissingDependencyError, match=r"needs jinja2.*pip install .*\[paddle\]"):
        read(loop("{{ message.content }} without"))
