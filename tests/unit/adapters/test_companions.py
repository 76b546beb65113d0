"""What travels beside an adapter's weights: the folder asks as plain transformers asks with it, and copies change nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from finetune_local.adapters import manage
from finetune_local.adapters.attach import attach, brings
from finetune_local.adapters.companions import companions, prompt_setup, tokenizer_of
from finetune_local.data.conversation import Message, RowRejected
from finetune_local.models.folder import ModelFolder
from finetune_local.system.errors import AdapterError
from finetune_local.system.paths import Home
from made import made_adapter
from tiny import CHATML, tiny_model
from toy_session import ToySession

TEMPLATE = (
    "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)
CHATS: Sequence[Sequence[dict[str, str]]] = (
    [{"role": "user", "content": "What is the capital of France?"}],
    [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "你好 🙂"},
        {"role": "assistant", "content": "Hi."},
        {"role": "user", "content": " 2 + 2?"},
    ],
)
Change = Callable[[Any], None]


def saved(base: Path, folder: Path, change: Change = lambda _: None, template: str | None = None) -> Path:
    """An adapter's folder as trainers leave it: PEFT's files, and the tokenizer by save_pretrained()."""
    from transformers import AutoTokenizer

    made_adapter(base, folder, plain=True)
    tokenizer = AutoTokenizer.from_pretrained(base)
    change(tokenizer)
    if template:
        tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return folder


def outside(folder: Path, chat: Sequence[dict[str, str]]) -> list[int]:
    """Prompt ids by transformers alone."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    return list(tokenizer.apply_chat_template(list(chat), add_generation_prompt=True, tokenize=True)["input_ids"])


def asked(base: Path, adapter: Path | None, chat: Sequence[dict[str, str]]) -> list[int]:
    return prompt_setup(base, adapter).tokenizer.prompt_ids([Message(**m) for m in chat])  # type: ignore[arg-type]


@pytest.mark.engine  # compared with transformers
def test_a_template_of_its_own_is_asked_with(tiny: Path, tmp_path: Path) -> None:
    adapter = saved(tiny, tmp_path / "a", template=TEMPLATE)
    for chat in CHATS:
        assert asked(tiny, adapter, chat) == outside(adapter, chat) != asked(tiny, None, chat)
        assert asked(tiny, None, chat) == outside(tiny, chat), "the base beside it keeps its own"
    assert companions(tiny, adapter).sentences == ("its own chat template",)


@pytest.mark.engine  # compared with transformers
@pytest.mark.parametrize("name", ["chat_template.jinja", "tokenizer_config.json"])
def test_a_template_alone_is_enough(tiny: Path, tmp_path: Path, name: str) -> None:
    adapter = made_adapter(tiny, tmp_path / "a", plain=True)
    text = TEMPLATE if name.endswith("jinja") else json.dumps({"chat_template": TEMPLATE})
    (adapter / name).write_text(text, "utf-8")
    expected = tmp_path / "both"
    shutil.copytree(tiny, expected)
    (expected / "chat_template.jinja").write_text(TEMPLATE, "utf-8")
    config = json.loads((expected / "tokenizer_config.json").read_text("utf-8"))
    if name == "tokenizer_config.json":  # without an eos_token of its own the base's holds, by generation_config.json
        (adapter / name).write_text(json.dumps({**config, "chat_template": TEMPLATE}), "utf-8")
    for chat in CHATS:
        assert asked(tiny, adapter, chat) == outside(expected, chat)


def test_copies_of_the_bases_files_change_nothing(tiny: Path, tmp_path: Path) -> None:
    adapter = made_adapter(tiny, tmp_path / "a", plain=True)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        shutil.copy(tiny / name, adapter / name)
    assert tokenizer_of(tiny, adapter) is tokenizer_of(tiny)
    assert not companions(tiny, adapter).differs and len(companions(tiny, adapter).files) == 4


@pytest.mark.engine  # compared with transformers
def test_files_saved_again_by_another_program_change_nothing(tiny: Path, tmp_path: Path) -> None:
    adapter = saved(tiny, tmp_path / "a")
    (adapter / "chat_template.jinja").write_text(CHATML.replace("{% endfor %}", "{%- endfor %}"), "utf-8")
    assert (adapter / "tokenizer.json").read_bytes() != (tiny / "tokenizer.json").read_bytes()
    assert companions(tiny, adapter).sentences == () and companions(tiny, adapter).files


@pytest.mark.engine  # compared with transformers
def test_added_tokens_are_one_token_each(tmp_path: Path) -> None:
    base = tiny_model(tmp_path / "base", "qwen2", vocab=390)  # of its 390 rows the tokenizer uses 380
    names = ["<|user|>", "<|bot|>"]
    template = (
        "{% for m in messages %}<|user|>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<|bot|>{% endif %}"
    )
    adapter = saved(base, tmp_path / "a", lambda t: t.add_tokens(names, special_tokens=True), template)
    ids = asked(base, adapter, CHATS[0])
    assert ids == outside(adapter, CHATS[0]) and ids[0] == 380 and ids[-1] == 381
    assert companions(base, adapter).sentences == ("its own chat template", "2 added tokens (<|user|>, <|bot|>)")


def test_added_tokens_without_a_tokenizer_json_go_beside_the_bases(tmp_path: Path) -> None:
    base = tiny_model(tmp_path / "base", "qwen2", vocab=390)
    adapter = made_adapter(base, tmp_path / "a", plain=True)
    config = json.loads((base / "tokenizer_config.json").read_text("utf-8"))
    added = {str(380): {"content": "<|tool|>", "special": True, "lstrip": False, "rstrip": False, "normalized": False}}
    (adapter / "tokenizer_config.json").write_text(json.dumps({**config, "added_tokens_decoder": added}), "utf-8")
    assert tokenizer_of(base, adapter).ids("a<|tool|>")[-1] == 380
    assert companions(base, adapter).added == ("<|tool|>",)


def renamed(base: Path, adapter: Path, names: dict[str, str]) -> None:
    """As Axolotl's added_tokens_overrides writes it: the same ids under other names, in every file."""
    for file in ("tokenizer.json", "tokenizer_config.json"):
        text = (base / file).read_text("utf-8")
        for old, new in names.items():
            text = text.replace(json.dumps(old), json.dumps(new))
        (adapter / file).write_text(text, "utf-8")


@pytest.mark.engine  # compared with transformers
def test_renamed_tokens_and_another_end(tiny: Path, tmp_path: Path) -> None:
    adapter = made_adapter(tiny, tmp_path / "a", plain=True)
    renamed(tiny, adapter, {"<|im_start|>": "<|turn|>", "<|im_end|>": "<|over|>"})
    (adapter / "chat_template.jinja").write_text(
        CHATML.replace("<|im_start|>", "<|turn|>").replace("<|im_end|>", "<|over|>")
    )
    for chat in CHATS:
        assert asked(tiny, adapter, chat) == outside(adapter, chat)
    found = companions(tiny, adapter)
    assert found.renamed == (("<|im_start|>", "<|turn|>"), ("<|im_end|>", "<|over|>")) and not found.added
    assert "2 renamed tokens (<|im_start|> is <|turn|>, <|im_end|> is <|over|>)" in found.sentences
    assert prompt_setup(tiny, adapter).stop_ids == {2}, "the same id under its new name"


def test_the_end_is_the_adapters(tmp_path: Path) -> None:
    base = tiny_model(tmp_path / "base")
    config = json.loads((base / "tokenizer_config.json").read_text("utf-8"))
    (base / "tokenizer_config.json").write_text(json.dumps({**config, "eos_token": "<|endoftext|>"}), "utf-8")
    (base / "generation_config.json").write_text(json.dumps({"eos_token_id": 0}), "utf-8")
    (base / "config.json").write_text(
        (base / "config.json").read_text().replace('"eos_token_id": 2', '"eos_token_id": 0')
    )
    (base / "chat_template.jinja").write_text(TEMPLATE, "utf-8")
    assert prompt_setup(base).stop_ids == {0}
    adapter = made_adapter(base, tmp_path / "a", plain=True)
    (adapter / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, 2]}), "utf-8")
    assert prompt_setup(base, adapter).stop_ids == {0, 2}
    assert companions(base, adapter).sentences == ("ends answers with <|endoftext|>, <|im_end|>",)


def test_generation_settings_of_its_own_are_told(tiny: Path, tmp_path: Path) -> None:
    adapter = made_adapter(tiny, tmp_path / "a", plain=True)
    same = json.loads((tiny / "generation_config.json").read_text("utf-8"))
    (adapter / "generation_config.json").write_text(json.dumps({**same, "transformers_version": "5.0"}), "utf-8")
    assert not companions(tiny, adapter).differs
    (adapter / "generation_config.json").write_text(json.dumps({**same, "temperature": 0.3}), "utf-8")
    assert companions(tiny, adapter).sentences == ("its own generation settings, which exports include",)


def test_a_token_marked_as_text_shows_in_answers(tiny: Path, tmp_path: Path) -> None:
    adapter = made_adapter(tiny, tmp_path / "a", plain=True)
    values = json.loads((tiny / "tokenizer.json").read_text("utf-8"))
    values["added_tokens"][1]["special"] = False
    (adapter / "tokenizer.json").write_text(json.dumps(values), "utf-8")
    config = json.loads((tiny / "tokenizer_config.json").read_text("utf-8"))
    (adapter / "tokenizer_config.json").write_text(json.dumps({**config, "bos_token": None}), "utf-8")
    assert companions(tiny, adapter).remarked == ("<|im_start|>",)
    assert tokenizer_of(tiny, adapter).text([1]) == "<|im_start|>" and tokenizer_of(tiny).text([1]) == ""


@pytest.mark.engine  # compared with transformers
def test_a_token_without_a_row_is_told_and_never_read(tmp_path: Path) -> None:
    """Trainers add a token for padding and leave the model as it is: transformers ends with an IndexError where a text has it."""
    base = ModelFolder.open(tiny_model(tmp_path / "base", vocab=380))
    adapter = saved(base.path, tmp_path / "a", lambda t: t.add_special_tokens({"pad_token": "[PAD]"}))
    notes: list[str] = []
    tokenizer = tokenizer_of(base.path, adapter)
    attach(ToySession(380), base, tokenizer, adapter, "a", notes.append)
    assert any("no text may contain them: [PAD]" in note for note in notes)
    assert tokenizer.prompt_ids([Message("user", "a b")])
    for ask in (
        lambda: tokenizer.prompt_ids([Message("user", "a [PAD]")]),
        lambda: tokenizer.raw_segments([("[PAD]", True)]),
    ):
        with pytest.raises(RowRejected, match=r"\[PAD\].* no embedding row"):
            ask()
    (adapter / "chat_template.jinja").write_text("{% for m in messages %}[PAD]{{ m.content }}{% endfor %}", "utf-8")
    with pytest.raises(
        AdapterError,
        match=r"its chat template uses the added token \[PAD\].* 380 rows, and the adapter's tokenizer has 381",
    ):
        attach(ToySession(380), base, tokenizer_of(base.path, adapter), adapter, "a")


@pytest.mark.engine  # compared with transformers
def test_the_library_says_what_an_adapter_brings(tiny: Path, tmp_path: Path, home: Home) -> None:
    entry = manage.bring_in(saved(tiny, tmp_path / "mine", template=TEMPLATE), home)
    assert set(entry.describe().beside) >= {"tokenizer.json", "chat_template.jinja"}
    assert brings(entry.folder, home, ModelFolder.open(tiny)) == ["its own chat template"]
    assert "not installed" in brings(entry.folder, home)[0], "the folder's name alone does not lead to the base"
    renamed_entry = manage.rename("mine", "ours", home)
    assert brings(renamed_entry.folder, home, ModelFolder.open(tiny)) == ["its own chat template"]
    manage.remove("ours", home)
    assert brings(manage.restore("ours", home).folder, home, ModelFolder.open(tiny)) == ["its own chat template"]
    assert brings(made_adapter(tiny, tmp_path / "plain"), home) == []


@pytest.mark.engine  # compared with transformers
def test_files_written_anew_are_read_anew(tiny: Path, tmp_path: Path) -> None:
    adapter = saved(tiny, tmp_path / "a", template=TEMPLATE)
    before = tokenizer_of(tiny, adapter)
    assert tokenizer_of(tiny, adapter) is before
    (adapter / "chat_template.jinja").write_text(TEMPLATE + " ", "utf-8")
    assert tokenizer_of(tiny, adapter) is not before
