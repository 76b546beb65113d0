"""A folder for Ollama: its template is Go's and says what the model's own says, or is left out with a word why."""

from __future__ import annotations

import errno
import json
import re
from pathlib import Path

import pytest

from finetune_local import files
from finetune_local.data.conversation import Message
from finetune_local.data.tokenizer import Tokenizer
from finetune_local.errors import DiskFull
from finetune_local.export import Source
from finetune_local.export.job import export
from finetune_local.export.ollama import asking_of, constant_system, model_name, modelfile
from finetune_local.export.ollama_template import NotRecognised, turns_of
from finetune_local.models.folder import ModelFolder
from made import made_adapter
from tiny import tiny_model

TEMPLATES = Path(__file__).parents[1] / "data" / "templates"
DEFAULT = "You are a helpful AI assistant."


def model_with(folder: Path, template: str | None) -> ModelFolder:
    base = tiny_model(folder)
    if template is None:
        (base / "chat_template.jinja").unlink()
    else:
        (base / "chat_template.jinja").write_text(template, "utf-8")
    return ModelFolder.open(base)


def go(template: str, messages: list[Message], default: str | None) -> str:
    """What Ollama makes of it: only the actions that are written here, by Go's rules; checked once with Go itself."""
    if default is not None and messages[0].role != "system":
        messages = [Message("system", default), *messages]
    found = re.fullmatch(
        r"(?P<start>.*?)\{\{ range \$i, \$message := \.Messages \}\}"
        r'\{\{ if eq \.Role "system" \}\}(?P<system>.*?)'
        r'\{\{ else if eq \.Role "user" \}\}'
        r"(?:\{\{ if not \(and \$\.System \(eq \$i 1\)\) \}\}(?P<opening>.*?)\{\{ end \}\})?(?P<user>.*?)"
        r'\{\{ else if eq \.Role "assistant" \}\}(?P<assistant>.*?)\{\{ end \}\}\{\{ end \}\}(?P<answer>.*)',
        template,
        re.DOTALL,
    )
    assert found, template
    text = found["start"]
    for i, message in enumerate(messages):
        if message.role == "user" and found["opening"] and not (messages[0].role == "system" and i == 1):
            text += found["opening"]
        text += found[message.role].replace("{{ .Content }}", message.content)
    return text + found["answer"]


CONVERSATIONS = [
    [Message("user", "Hi\n\nthere {{ x }}")],
    [Message("user", "一"), Message("assistant", "二"), Message("user", "三")],
    [Message("system", "Be brief."), Message("user", "1"), Message("assistant", "2"), Message("user", "3")],
]


@pytest.mark.parametrize("name", ["chatml", "llama2", "llama3", "gemma", "mistral", "qwen3", "open", None])
def test_usual_templates_are_said_in_gos_language(name: str | None, tmp_path: Path) -> None:
    model = model_with(tmp_path / "m", (TEMPLATES / f"{name}.jinja").read_text("utf-8") if name else None)
    tokenizer = Tokenizer.load(model.path)
    if name is None:  # the stand-in belongs to an adapter that was trained with it
        asking = asking_of(Source(model, made_adapter(model.path, tmp_path / "a")))
    else:
        asking = asking_of(Source(model, None))
    assert asking.template is not None and asking.system is None and asking.notes == ()
    assert asking.stops == ("<|im_end|>",)
    for messages in CONVERSATIONS:
        assert go(asking.template, messages, None) == tokenizer.render(messages, True)


def test_a_template_with_a_system_text_of_its_own_gives_it_to_ollama(tmp_path: Path) -> None:
    given = "{% if messages[0].role != 'system' %}<|im_start|>system\n" + DEFAULT + "<|im_end|>\n{% endif %}"
    model = model_with(tmp_path / "m", given + (TEMPLATES / "chatml.jinja").read_text("utf-8"))
    tokenizer, asking = Tokenizer.load(model.path), asking_of(Source(model, None))
    assert asking.system == DEFAULT and asking.template is not None
    for messages in CONVERSATIONS:
        assert go(asking.template, messages, DEFAULT) == tokenizer.render(messages, True)


@pytest.mark.parametrize(
    ("template", "why"),
    [
        (
            "{% for m in messages %}{{ loop.index }}:{{ m.content }}\n{% endfor %}",
            "some turns|first turn|first or the last",
        ),
        ("{% for m in messages %}{{ m.content }}{{ m.content }}{% endfor %}", "leaves out or repeats"),
        ("{{ raise_exception('no') }}", "refuses an ordinary conversation"),
        ("{% for m in messages %}{{ '{{' + m.role + '}}' + m.content + '\n' }}{% endfor %}", "braces"),
    ],
)
def test_what_cannot_be_said_with_certainty_is_left_out_with_a_word_why(
    template: str, why: str, tmp_path: Path
) -> None:
    tokenizer = Tokenizer.load(model_with(tmp_path / "m", template).path)
    with pytest.raises(NotRecognised, match=why):
        turns_of(tokenizer.render, "", False)


def test_bos_stands_once(tmp_path: Path) -> None:
    """Where the GGUF says that Ollama puts it, the template must not; where not, the template does."""
    tokenizer = Tokenizer.load(model_with(tmp_path / "m", (TEMPLATES / "llama3.jinja").read_text("utf-8")).path)
    bos = "<|im_start|>"
    with_it, without = (turns_of(tokenizer.render, bos, added).go() for added in (False, True))
    assert with_it == bos + without and bos not in without


def test_the_folder_has_what_ollama_needs(tmp_path: Path) -> None:
    base = tiny_model(tmp_path / "base")
    adapter = made_adapter(base, tmp_path / "咖啡 run.v2" / "adapter")
    data = {"files": ["gone.jsonl"], "format": "auto"}
    (adapter.parent / "run.json").write_text(json.dumps({"data": data}), "utf-8")
    rows = [
        {
            "messages": [
                {"role": "system", "content": '请简短。\n"引号"'},
                {"role": "user", "content": str(i)},
                {"role": "assistant", "content": "ok"},
            ],
            "source": {"file": "f", "line": i},
            "text": None,
            "ends": True,
        }
        for i in range(3)
    ]
    (adapter.parent / "data").mkdir()
    kept = adapter.parent / "data" / "validation.jsonl"
    kept.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    out = tmp_path / "我的 ollama"
    done = export("ollama", ModelFolder.open(base, "org/Base-1.5"), adapter, out, "q8_0", gate=False)
    assert [file.name for file in done.files] == ["Modelfile", "README.md", "org-base-1.5-run.v2-Q8_0.gguf"]
    text = (out / "Modelfile").read_text("utf-8")
    assert text.startswith('FROM ./org-base-1.5-run.v2-Q8_0.gguf\nTEMPLATE """{{ range')
    assert 'SYSTEM """请简短。\n"引号""""\n' in text and 'PARAMETER stop "<|im_end|>"' in text
    assert "ollama create org-base-1.5-run.v2 -f Modelfile" in (out / "README.md").read_text("utf-8")
    assert done.files[2].read_bytes()[:4] == b"GGUF"
    export("ollama", ModelFolder.open(base), adapter, out, "q8_0", gate=False, overwrite=True)
    rows[0]["messages"][0]["content"] = "another"  # type: ignore[index]
    kept.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    assert constant_system(adapter) is None


def test_what_a_modelfile_cannot_hold_is_not_written(tmp_path: Path) -> None:
    given = '{% if messages[0].role != \'system\' %}<|im_start|>system\n"""\u3000<|im_end|>\n{% endif %}'
    model = model_with(tmp_path / "m", given + (TEMPLATES / "chatml.jinja").read_text("utf-8"))
    asking = asking_of(Source(model, None))
    assert asking.system is None and "No SYSTEM" in asking.notes[0]
    assert modelfile("x.gguf", asking).startswith("# No SYSTEM")


def test_a_full_disk_leaves_nothing(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files, "_sync", full)
    for key, quant in (("ollama", "q8_0"), ("adapter", "folder"), ("adapter", "zip")):
        adapter = made_adapter(tiny, tmp_path / "a")
        with pytest.raises(DiskFull, match="Nothing half-written was left"):
            export(key, ModelFolder.open(tiny), adapter, tmp_path / "exports" / "out", quant, gate=False)
        assert list((tmp_path / "exports").iterdir()) == []


@pytest.mark.parametrize(
    ("text", "name"),
    [("SmolLM2-135M", "smollm2-135m"), ("我的 model..x", "model.x"), ("咖啡", "my-model"), ("-a/b:c", "a-b-c")],
)
def test_names_that_ollama_takes(text: str, name: str) -> None:
    assert model_name(text) == name
