"""A reader of bundles, written from docs/bundle.md alone, with nothing of this library.

    python tests/bundle_reader.py BUNDLE    # answers its golden cases

It needs numpy, pillow, tokenizers and onnxruntime. It is short rather than fast: each step
copies the cache."""

from __future__ import annotations

import hashlib
import json
import math
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image, ImageOps
from tokenizers import Tokenizer

KNOWN_INPUTS = {
    *("pixel_values", "question_ids", "features", "keys", "visual_score", "patch_embeds"),
    *("layer_score", "text_embeds", "word_embeds", "word_mask", "token_bounds"),
}
KNOWN_OUTPUTS = {
    *("features", "keys", "visual_score", "patch_embeds", "layer_score", "text_embeds"),
    *("visual_embeds", "token_count", "token_index", "token_stage", "token_owner", "token_centre"),
}
ABILITIES = {"before_words", "question_begin"}
PLACE = "<image>"


class Reader:
    """A bundle, open."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        lines = (folder / "SHA256SUMS").read_text(encoding="utf-8").splitlines()
        self.sums = {line[66:]: line[:64] for line in lines}
        self.recomp: dict[str, Any] = json.loads(self.read("recomp.json"))
        if self.recomp["format"] != 2 or set(self.recomp["requires"]) - ABILITIES:
            raise ValueError("this reader knows format 2, and nothing that is required beyond it")
        self.graphs = {
            **self.recomp["graphs"],
            **{f"compress {name}": g for name, g in self.recomp["compress"]["graphs"].items()},
        }
        default = self.recomp["compress"]["default"]
        optional = {f"compress {name}" for name in self.recomp["compress"]["graphs"]}
        optional -= {f"compress {default}"}
        for name, graph in self.graphs.items():
            unknown = {entry["name"] for entry in graph["inputs"]} - KNOWN_INPUTS
            if unknown and name not in optional:
                raise ValueError(f"{name} reads {unknown}, which this reader does not know")
        question, prompt = self.recomp["question"], self.recomp["prompt"]
        self.clip = Tokenizer.from_str(self.read(question["tokenizer"]).decode())
        self.clip.encode_special_tokens = True
        self.words_tokenizer = Tokenizer.from_str(self.read(prompt["tokenizer"]).decode())
        self.control = self.control_tokens()
        self.sessions: dict[str, Any] = {}

    def read(self, name: str) -> bytes:
        """A file's content, compared with its checksum."""
        if name.startswith("/") or {"..", "\\", ":"} & {*name.split("/"), *name}:
            raise ValueError(f"{name} leads out of the bundle")
        content = (self.folder / name).read_bytes()
        if hashlib.sha256(content).hexdigest() != self.sums[name]:
            raise ValueError(f"{name} was changed")
        return content

    def run(self, name: str, arrays: dict[str, Any]) -> dict[str, Any]:
        """A graph on those of the arrays that it takes."""
        graph = self.graphs[name]
        if name not in self.sessions:
            self.sessions[name] = self.session(graph)
        inputs = {entry["name"]: arrays[entry["name"]] for entry in graph["inputs"]}
        names = [entry["name"] for entry in graph["outputs"] if entry["name"] in KNOWN_OUTPUTS]
        return dict(zip(names, self.sessions[name].run(names, inputs), strict=True))

    def session(self, graph: dict[str, Any]) -> Any:
        """A session of ONNX Runtime over compared files."""
        for name in filter(None, (graph["file"], graph["data"])):
            self.read(name)
        return onnxruntime.InferenceSession(str(self.folder / graph["file"]))

    def pixel_values(self, picture: Path) -> Any:
        """[1, 3, S, S]"""
        image = self.recomp["image"]
        pixels = np.asarray(ImageOps.exif_transpose(Image.open(picture)).convert("RGB"))
        height, width = pixels.shape[:2]
        if image["aspect"] == "pad" and height != width:
            side = max(height, width)
            square = np.full((side, side, 3), image["pad_colour"], dtype=np.uint8)
            top, left = (side - height) // 2, (side - width) // 2
            square[top : top + height, left : left + width] = pixels
            pixels, height, width = square, side, side
        shorter = min(height, width)
        wanted = {"horizontal": image["size"] * width // shorter}
        wanted["vertical"] = image["size"] * height // shorter
        for name in image["passes"]:
            axis = {"vertical": 0, "horizontal": 1}[name]
            pixels = resized(pixels, axis, wanted[name])
        crop = image["crop"]
        cut = np.full((crop, crop, 3), image["fill"], dtype=np.uint8)
        top, left = ((side - crop) // 2 for side in pixels.shape[:2])
        inside = pixels[max(top, 0) : top + crop, max(left, 0) : left + crop]
        y, x = max(-top, 0), max(-left, 0)
        cut[y : y + inside.shape[0], x : x + inside.shape[1]] = inside
        values = (cut.astype(np.float64) * image["rescale"]).astype(np.float32)
        mean, std = (np.array(image[name], np.float32) for name in ("mean", "std"))
        values = (values - mean) / std
        return np.ascontiguousarray(values.transpose(2, 0, 1)[None])

    def question_ids(self, question: str) -> Any:
        """[1, L]"""
        about = self.recomp["question"]
        text = question.strip().replace(PLACE, " ")
        if about["source"] == "prompt_first_line":
            parts = self.prompt([(question, None, 1)])
            text = "".join(text for text, _ in parts).split("\n")[0].replace(PLACE, "")
            text, begin = text.strip(), about.get("begin", "")
            text = text if text.startswith(begin) else begin + text
        words = self.clip.encode(text.strip(), add_special_tokens=False).ids
        length = about["positions"]
        ids = [about["start_id"], *words[: length - 2]]
        return np.array([ids + [about["end_id"]] * (length - len(ids))])

    def prompt(self, turns: list[tuple[str, str | None, int]]) -> list[tuple[str, bool]]:
        """The prompt of a conversation, from each question with its answer and how many pictures
        it has: texts, and whether they were said."""
        pieces = self.recomp["prompt"]["template"]
        parts = [(pieces["begin"], False)]
        for asked, answer, pictures in turns:
            question = asked.strip()
            parts.append((pieces["before_question"], False))
            words = (pieces.get("before_words", ""), False)
            if pictures and question.count(PLACE) == pictures:
                parts.append(words)
                for number, text in enumerate(question.split(PLACE)):
                    parts += [(PLACE, False)] * (number > 0) + [(text, True)]
            else:
                parts += [(pieces["image"] * pictures, False), words, (question, True)]
            parts.append((pieces["after_question"], False))
            if answer is not None:
                parts += [(pieces["before_answer"], False), (answer, True)]
                parts.append((pieces["after_answer"], False))
        return parts

    def prompt_ids(self, parts: list[tuple[str, bool]]) -> list[int]:
        """The ids, −200 for a picture."""
        about, picture = self.recomp["prompt"], -200
        stretches = [list[tuple[str, bool]]()]
        for text, said in parts:
            whole = said or about["image_token_id"] is not None
            first, *others = [text] if whole else text.split(PLACE)
            stretches[-1].append((first, said))
            stretches += [[(other, False)] for other in others]
        ids = self.encoded(stretches[0])
        for stretch in stretches[1:]:
            ids += [picture, *self.encoded(stretch)]
        ids = [picture if number == about["image_token_id"] else number for number in ids]
        bos = about["bos_token_id"]
        return ids if bos is None or ids[:1] == [bos] else [bos, *ids]

    def control_tokens(self) -> dict[int, Any]:
        """Those of the language model's tokenizer, by their ids."""
        about = self.recomp["prompt"]
        pieces = [PLACE, *about["template"].values()]
        return {
            number: token
            for number, token in self.words_tokenizer.get_added_tokens_decoder().items()
            if token.special
            or number in about["silent_ids"]
            or any(token.content in piece for piece in pieces)
        }

    def encoded(self, parts: list[tuple[str, bool]]) -> list[int]:
        """The ids of a text."""
        text = "".join(text for text, _ in parts)
        said = [is_said for text, is_said in parts for _ in text]
        whole = self.words_tokenizer.encode(text, add_special_tokens=False)
        for number, (begin, end) in zip(whole.ids, whole.offsets, strict=True):
            token = self.control.get(number)
            if token and token.content in text[begin:end] and any(said[begin:end]):
                break
        else:
            return list(whole.ids)
        ids, at = list[int](), 0
        names = sorted((token.content for token in self.control.values()), key=len, reverse=True)
        for match in re.finditer("|".join(map(re.escape, names)), text):
            begin, end = match.span()
            if any(said[begin:end]):
                continue
            number = self.words_tokenizer.token_to_id(match.group())
            if self.control[number].lstrip:
                begin = max(at, len(text[:begin].rstrip()))
            if self.control[number].rstrip:
                end = len(text) - len(text[end:].lstrip())
            ids += self.letters(text[at:begin], at > 0)
            ids.append(number)
            at = end
        return ids + self.letters(text[at:], at > 0)

    def letters(self, text: str, behind: bool) -> list[int]:
        """The ids of a text without control tokens, maybe behind one."""
        about = json.loads(self.words_tokenizer.to_str())
        model, gone = about["model"], {token.content for token in self.control.values()}
        added = [token for token in about["added_tokens"] if token["content"] not in gone]
        merges = [pair for pair in model["merges"] if not gone & {*pair, "".join(pair)}]
        unknown = model["unk_token"]
        kept = {t: n for t, n in model["vocab"].items() if t not in gone or t == unknown}
        kept |= {token["content"]: token["id"] for token in added}
        about |= {"added_tokens": added, "model": {**model, "vocab": kept, "merges": merges}}
        as_text = json.dumps(about)
        if behind:
            as_text = as_text.replace('"prepend_scheme": "first"', '"prepend_scheme": "never"')
        tokenizer = Tokenizer.from_str(as_text)
        return list(tokenizer.encode(text, add_special_tokens=False).ids) if text else []

    def text(self, ids: list[int]) -> str:
        """The text of an answer."""
        silent, words = {*self.recomp["prompt"]["silent_ids"]}, self.words_tokenizer
        kept = [
            n for n in ids if n not in silent and self.words_tokenizer.id_to_token(n) is not None
        ]
        return str(words.decode(kept, skip_special_tokens=False)).strip()

    def visual_tokens(self, arrays: dict[str, Any], compressor: str) -> dict[str, Any]:
        """All arrays up to the visual tokens, from pixel_values, question_ids and token_bounds."""
        for graph in ("vision", "text", f"compress {compressor}"):
            arrays = {**arrays, **self.run(graph, arrays)}
        return arrays

    def words(self, question: str) -> dict[str, Any]:
        """The words of a question, for a compressor that reads them."""
        text = question.strip().replace(PLACE, " ").strip()
        ids = self.encoded([(text, True)])
        table = np.load(self.folder / self.recomp["decoder"]["embed_tokens"], mmap_mode="r")
        return {
            "word_embeds": table[ids].astype(np.float32)[None],
            "word_mask": np.ones((1, len(ids)), dtype=bool),
        }

    def answer(self, ids: list[int], tokens: Any, longest: int) -> tuple[list[int], Any]:
        """The greedy answer to a prompt with visual tokens [M, D]: its ids, the first logits."""
        about = self.recomp["decoder"]
        session = self.sessions.setdefault("decoder", self.session(about))
        self.read(about["embed_tokens"])
        table = np.load(self.folder / about["embed_tokens"], mmap_mode="r")
        rows = [tokens if n == -200 else table[n : n + 1].astype(np.float32) for n in ids]
        embeds, past = np.concatenate(rows)[None], 0
        shape = (1, about["num_kv_heads"], len(embeds[0]) + longest, about["cache_width"])
        kinds = [f"{n}.{kind}" for n in range(about["num_layers"]) for kind in ("key", "value")]
        cache = {f"past_key_values.{kind}": np.zeros(shape, np.float32) for kind in kinds}
        names, found, first = ["logits", *(f"present.{kind}" for kind in kinds)], list[int](), None
        while True:
            sizes = {"lengths": len(embeds[0]), "past_lengths": past}
            lengths = {name: np.array([size], np.int32) for name, size in sizes.items()}
            logits, *present = session.run(names, {"inputs_embeds": embeds, **lengths, **cache})
            first = logits if first is None else first
            past += len(embeds[0])
            cache = dict(zip(cache, present, strict=True))
            best = int(logits[0].argmax())
            if best in self.recomp["prompt"]["eos_token_ids"]:
                return found, first
            found.append(best)
            if len(found) == longest:
                return found, first
            embeds = table[None, best : best + 1].astype(np.float32)


def resized(pixels: Any, axis: int, length: int) -> Any:
    """One pass of the resizing, along an axis of [H, W, 3]."""
    old = pixels.shape[axis]
    if old == length:
        return pixels
    scale = old / length
    wide = max(scale, 1.0)
    source = np.moveaxis(pixels, axis, 0).astype(np.int64)
    target = np.empty((length, *source.shape[1:]), dtype=np.uint8)
    for i in range(length):
        centre = (i + 0.5) * scale
        begin = max(math.floor(centre - 2 * wide + 0.5), 0)
        end = min(math.floor(centre + 2 * wide + 0.5), old)
        weights = [cubic((j - centre + 0.5) / wide) for j in range(begin, end)]
        total = sum(weights)
        fixed = [half_away(weight / total * 2**22) for weight in weights]
        value = np.tensordot(np.array(fixed), source[begin:end], axes=1)
        target[i] = ((value + 2**21) >> 22).clip(0, 255)
    return np.moveaxis(target, 0, axis)


def cubic(x: float) -> float:
    """The filter with a = −0.5."""
    x = abs(x)
    if x < 1:
        return 1.5 * x**3 - 2.5 * x**2 + 1
    return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x < 2 else 0.0


def half_away(value: float) -> int:
    """Rounds halves away from zero."""
    return math.floor(value + 0.5) if value >= 0 else math.ceil(value - 0.5)


def compare(name: str, expected: Any, found: Any, limits: dict[str, Any]) -> str | None:
    """What is wrong with an array that is computed in float32, or None."""
    if expected.shape != found.shape:
        return f"{name} is {list(found.shape)}; recorded: {list(expected.shape)}"
    if expected.dtype.kind != "f":
        return None if (expected == found).all() else f"{name} differs"
    difference = np.abs(expected.astype(np.float64) - found).max() / np.abs(expected).max()
    return None if difference <= limits["difference"] else f"{name} differs by {difference:.2g}"


def replay(folder: Path) -> tuple[list[str], int, int]:
    """What is wrong with the golden cases in fp32, how many texts are right, and how many there
    are. Of INT8 towers and decoders only the steps in float32 and the texts are compared."""
    reader = Reader(folder)
    golden = json.loads(reader.read(reader.recomp["golden"]["cases"]))
    limits, wrong, right = golden["limits"], list[str](), 0
    for case in golden["cases"]:
        for name in case["arrays"].values():
            reader.read(name)
        recorded = {name: np.load(folder / file) for name, file in case["arrays"].items()}
        own: dict[str, Any] = {"token_bounds": np.array([case["token_bounds"]])}
        if "word_embeds" in recorded:
            own |= reader.words(case["question"])
        reader.read(case["picture"])
        own["pixel_values"] = reader.pixel_values(folder / case["picture"])
        own["question_ids"] = reader.question_ids(case["question"])
        own["prompt_ids"] = np.array(
            reader.prompt_ids(reader.prompt([(case["question"], None, 1)]))
        )
        names = ["pixel_values", "question_ids", "prompt_ids"]
        wrong += filter(None, (compare(n, recorded[n], own[n], limits) for n in names))
        compressor = f"compress {case['compress']}"
        found = reader.run(compressor, {**own, **recorded})
        wrong += filter(None, (compare(n, recorded[n], found[n], limits) for n in found))
        own = reader.visual_tokens(own, case["compress"])
        if limits["towers_cosine"] is None:
            names = [n for n in recorded if n in own]
            wrong += filter(None, (compare(n, recorded[n], own[n], limits) for n in names))
        tokens = own["visual_embeds"][0, : own["token_count"][0]]
        longest = case["answer"]["max_new_tokens"]
        ids, logits = reader.answer(own["prompt_ids"].tolist(), tokens, longest)
        if limits["towers_cosine"] is None and limits["logits_cosine"] is None:
            wrong += filter(None, [compare("logits", recorded["logits"], logits, limits)])
            if ids != case["answer"]["token_ids"]:
                wrong.append(f"{case['name']}: ids {ids}")
        right += reader.text(ids) == case["answer"]["text"]
    return wrong, right, len(golden["cases"])


if __name__ == "__main__":
    problems, same, total = replay(Path(sys.argv[1]))
    print(*problems, f"{same} of {total} answers are the recorded ones", sep="\n")
    sys.exit(bool(problems) or same < total)
