"""A folder for Ollama: its template is Go's and says what the model's own says, or is left out with a word why."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from finetune_local.data.conversation import Message
from finetune_local.data.tokenizers.tokenizer import Tokenizer
from finetune_local.export.ollama.render import UnknownGo, render
from finetune_local.export.ollama.template import PROBES, NotRecognised, turns_of
from finetune_local.export.pipeline import export
from finetune_local.export.targets import Source
from finetune_local.export.targets.ollama import constant_system, model_name, modelfile, modelfile_setup
from finetune_local.models.folder import ModelFolder
from finetune_local.system import files
from finetune_local.system.errors import DiskFull
from made import made_adapter
from tiny import tiny_model

TEMPLATES = Path(__file__).parents[1] / "data" / "templates"
DEFAULT = "You are a helpful AI assistant."
GO = r"""
package main

import (
    "encoding/json"
    "fmt"
    "os"
    "strings"
    "text/template"
)

type message struct{ Role, Content string }
type asked struct {
    Template string
    System   *string
    Chat     []message
}

func main() {
    var all []asked
    if err := json.NewDecoder(os.Stdin).Decode(&all); err != nil { panic(err) }
    out := []string{}
    for _, a := range all {
        chat := a.Chat
        if a.System != nil && chat[0].Role != "system" { chat = append([]message{{"system", *a.System}}, chat...) }
        var system []string
        var joined []*message
        for i := range chat {
            if chat[i].Role == "system" { system = append(system, chat[i].Content) }
            if n := len(joined); n > 0 && joined[n-1].Role == chat[i].Role && chat[i].Role != "tool" {
                joined[n-1].Content += "\n\n" + chat[i].Content
            } else { c := chat[i]; joined = append(joined, &c) }
        }
        t, err := template.New("").Option("missingkey=zero").Parse(a.Template)
        if err != nil { panic(err) }
        var b strings.Builder
        if err := t.Execute(&b, map[string]any{"System": strings.Join(system, "\n\n"), "Messages": joined}); err != nil { panic(err) }
        out = append(out, b.String())
    }
    text, _ := json.Marshal(out)
    fmt.Println(string(text))
}
"""
"""Ollama's way from a conversation to a prompt, in Go: what collate() and Execute() of its template package do."""


def model_with(folder: Path, template: str | None) -> ModelFolder:
    base = tiny_model(folder)
    if template is None:
        (base / "chat_template.jinja").unlink()
    else:
        (base / "chat_template.jinja").write_text(template, "utf-8")
    return ModelFolder.open(base)


def said(messages: list[Message]) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in messages]


CONVERSATIONS = [
    [Message("user", "Hi\n\nthere {{ x }}")],
    [Message("user", "一"), Message("assistant", "二"), Message("user", "三")],
    [Message("system", "Be brief."), Message("user", "1"), Message("assistant", "2"), Message("user", "3")],
]


@pytest.mark.parametrize("name", ["chatml", None])
def test_usual_templates_are_said_in_gos_language(name: str | None, tmp_path: Path) -> None:
    model = model_with(tmp_path / "m", (TEMPLATES / f"{name}.jinja").read_text("utf-8") if name else None)
    tokenizer = Tokenizer.load(model.path)
    if name is None:  # the stand-in belongs to an adapter that was trained with it
        setup = modelfile_setup(Source(model, made_adapter(model.path, tmp_path / "a")))
    else:
        setup = modelfile_setup(Source(model, None))
    assert setup.template is not None and setup.system is None and setup.notes == ()
    assert setup.stops == ("<|im_end|>",)
    for messages in CONVERSATIONS:
        assert render(setup.template, said(messages)) == tokenizer.render(messages, True)


def test_a_template_with_a_system_text_of_its_own_gives_it_to_ollama(tmp_path: Path) -> None:
    given = "{% if messages[0].role != 'system' %}<|im_start|>system\n" + DEFAULT + "<|im_end|>\n{% endif %}"
    model = model_with(tmp_path / "m", given + (TEMPLATES / "chatml.jinja").read_text("utf-8"))
    tokenizer, setup = Tokenizer.load(model.path), modelfile_setup(Source(model, None))
    assert setup.system == DEFAULT and setup.template is not None
    for messages in CONVERSATIONS:
        assert render(setup.template, said(messages), DEFAULT) == tokenizer.render(messages, True)


TURN = "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
LOOP = "{% for m in messages %}" + TURN + "{% endfor %}"
MISTRAL_V3 = (
    "{% set s = namespace(t='') %}{% if messages[0].role == 'system' %}{% set s.t = messages[0].content + '\n\n' %}"
    "{% set messages = messages[1:] %}{% endif %}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + "
    "(s.t if loop.last else '') + m.content + '[/INST]' }}{% else %}{{ ' ' + m.content + eos_token }}{% endif %}"
    "{% endfor %}"
)
OPEN = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"


@pytest.mark.parametrize(
    ("template", "why"),
    [
        (
            "{% for m in messages %}{{ loop.index }}:{{ m.content }}\n{% endfor %}",
            "some turns|first turn|first or the last",
        ),
        ("{% for m in messages %}{{ m.content }}{{ m.content }}{% endfor %}", "omits or repeats"),
        ("{{ raise_exception('no') }}", "rejects an ordinary conversation"),
        ("{% for m in messages %}{{ '{{' + m.role + '}}' + m.content + '\n' }}{% endfor %}", "braces"),
        (
            "{% if messages[0].role != 'system' %}<|im_start|>system\nToday is {{ strftime_now('%d %b %Y') }}.<|im_end|>\n"
            "{% endif %}" + LOOP + OPEN,
            "the day's date",
        ),
        (LOOP.replace("m.content", "m.content | trim") + OPEN, "white space"),
        (LOOP.replace("m.content", "(m.content if m.role == 'user' else m.content.strip())") + OPEN, "white space"),
        (LOOP.replace("m.content", "m.content.split('</think>')[-1]") + OPEN, "omits the reasoning of earlier answers"),
        (
            LOOP.replace(
                "m.content",
                "('<think>' + m.reasoning_content + '</think>' if m.reasoning_content else '') + m.content",
            )
            + OPEN,
            "includes the reasoning",
        ),
        (
            MISTRAL_V3,
            "the system text",
        ),
        ("{% if tools %}{{ tools | tojson }}{% endif %}" + LOOP + OPEN, "a list of tools"),
        (
            LOOP.replace("{% endfor %}", "{% for c in m.tool_calls or [] %}{{ c.function | tojson }}{% endfor %}{% endfor %}")
            + OPEN,
            "tool calls",
        ),
        (LOOP.replace("m.role +", "('user' if m.role == 'tool' else m.role) +") + OPEN, None),
        ("{{ '<|im_start|>system\n' + (messages[0].content if messages[0].role == 'system' else '') + '<|im_end|>\n' }}"
         "{% for m in messages if m.role != 'system' %}" + TURN + "{% endfor %}" + OPEN, "first turn|later system"),
    ],
)  # fmt: skip
def test_what_cannot_be_said_with_certainty_is_left_out_with_a_word_why(
    template: str, why: str | None, tmp_path: Path
) -> None:
    tokenizer = Tokenizer.load(model_with(tmp_path / "m", template).path)
    if why is None:
        assert (
            'eq .Role "tool" }}<|im_start|>user' in turns_of(tokenizer.render, tokenizer.render_turns, "", False).go()
        )
        return
    with pytest.raises(NotRecognised, match=why):
        turns_of(tokenizer.render, tokenizer.render_turns, "", False)


@pytest.mark.parametrize("name", ["llama2", "llama3", "gemma", "mistral", "qwen3"])
def test_templates_that_trim_or_move_texts_have_none_in_gos_language(name: str, tmp_path: Path) -> None:
    model = model_with(tmp_path / "m", (TEMPLATES / f"{name}.jinja").read_text("utf-8"))
    setup = modelfile_setup(Source(model, None))
    assert setup.template is None and setup.system is None
    assert "No TEMPLATE" in setup.notes[0]


def test_what_ollama_makes_of_a_chat_is_what_gos_templates_make_of_it(tmp_path: Path) -> None:
    """The evaluator beside Go itself, where Go is installed."""
    if (go := shutil.which("go")) is None:
        pytest.skip("Go is not installed")
    (tmp_path / "main.go").write_text(GO, "utf-8")
    tokenizer = Tokenizer.load(model_with(tmp_path / "m", LOOP + OPEN).path)
    own = turns_of(tokenizer.render, tokenizer.render_turns, "", False).go()
    more = '{{ range $i, $m := .Messages }}{{ if not (and $.System (eq $i 1)) }}<{{ end }}{{- if or (eq .Role "user" "tool") '
    more += '(eq .Content "") -}}\n {{ .Content }}{{ else }}\n({{ $m.Role }}{{ end -}} \n{{ end }}'
    asked = [(t, probe.chat, system) for t in (own, more) for probe in PROBES for system in (None, "S {{ x }}")]
    told = [
        {"Template": t, "System": s, "Chat": [{"Role": m["role"], "Content": m["content"]} for m in chat]}
        for t, chat, s in asked
    ]
    environment = {**os.environ, "GOCACHE": str(tmp_path / "cache"), "GO111MODULE": "off", "GOFLAGS": ""}
    said_by_go = subprocess.run(
        [go, "run", "main.go"],
        cwd=tmp_path,
        input=json.dumps(told),
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    assert json.loads(said_by_go.stdout) == [render(t, chat, s) for t, chat, s in asked]


@pytest.mark.parametrize(
    "template", ["{{ .Prompt.x | y }}", "{{ range .Messages }}{{ end }}", "{{ if a }}", "{{ end }}", "{{ .Messages }}"]
)
def test_what_is_not_evaluated_is_no_proof(template: str) -> None:
    with pytest.raises(UnknownGo):
        render(template, [{"role": "user", "content": "a"}])


def test_bos_stands_once(tmp_path: Path) -> None:
    """Where the GGUF says that Ollama puts it, the template must not; where not, the template does."""
    untrimmed = (TEMPLATES / "llama3.jinja").read_text("utf-8").replace("| trim", "").replace("|trim", "")
    tokenizer = Tokenizer.load(model_with(tmp_path / "m", untrimmed).path)
    bos = "<|im_start|>"
    with_it, without = (turns_of(tokenizer.render, tokenizer.render_turns, bos, added).go() for added in (False, True))
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
    done = export("ollama", ModelFolder.open(base, "org/Base-1.5"), adapter, out, "q8_0", verification=False)
    assert [file.name for file in done.files] == ["Modelfile", "README.md", "org-base-1.5-run.v2-Q8_0.gguf"]
    text = (out / "Modelfile").read_text("utf-8")
    assert text.startswith('FROM ./org-base-1.5-run.v2-Q8_0.gguf\nTEMPLATE """{{ range')
    assert 'SYSTEM """请简短。\n"引号""""\n' in text and 'PARAMETER stop "<|im_end|>"' in text
    assert "ollama create org-base-1.5-run.v2 -f Modelfile" in (out / "README.md").read_text("utf-8")
    assert done.files[2].read_bytes()[:4] == b"GGUF"
    export("ollama", ModelFolder.open(base), adapter, out, "q8_0", verification=False, overwrite=True)
    rows[0]["messages"][0]["content"] = "another"  # type: ignore[index]
    kept.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    assert constant_system(adapter) is None


def test_what_a_modelfile_cannot_hold_is_not_written(tmp_path: Path) -> None:
    given = '{% if messages[0].role != \'system\' %}<|im_start|>system\n"""\u3000<|im_end|>\n{% endif %}'
    model = model_with(tmp_path / "m", given + (TEMPLATES / "chatml.jinja").read_text("utf-8"))
    setup = modelfile_setup(Source(model, None))
    assert setup.system is None and "No SYSTEM" in setup.notes[0]
    assert modelfile("x.gguf", setup).startswith("# No SYSTEM")


def test_a_full_disk_leaves_nothing(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files, "sync", full)
    for key, quant in (("ollama", "q8_0"), ("adapter", "folder"), ("adapter", "zip")):
        adapter = made_adapter(tiny, tmp_path / "a")
        with pytest.raises(DiskFull, match="No partial files were left"):
            export(key, ModelFolder.open(tiny), adapter, tmp_path / "exports" / "out", quant, verification=False)
        assert list((tmp_path / "exports").iterdir()) == []


@pytest.mark.parametrize(
    ("text", "name"),
    [("SmolLM2-135M", "smollm2-135m"), ("我的 model..x", "model.x"), ("咖啡", "my-model"), ("-a/b:c", "a-b-c")],
)
def test_names_that_ollama_takes(text: str, name: str) -> None:
    assert model_name(text) == name
