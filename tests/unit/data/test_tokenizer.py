from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from finetune_local.data.conversation import Message, RowRejected
from finetune_local.data.tokenizers.tokenizer import Tokenizer
from finetune_local.system.errors import ModelError

from .conftest import write_tokenizer

Make = Callable[[str], Tokenizer]

ENDS = {
    "chatml": "<|im_end|>",
    "chatml_generation": "<|im_end|>",
    "qwen3": "<|im_end|>",
    "llama2": " </s>",
    "mistral": "</s>",
    "llama3": "<|eot_id|>",
    "gemma": "<end_of_turn>",
    "plain": "<|end_of_text|>",
    "plain-chatml": "<|im_end|>",
    "plain-llama2": "</s>",
}
ALL = sorted(ENDS)


def user(text: str) -> Message:
    return Message("user", text)


def answer(text: str, train: bool = True) -> Message:
    return Message("assistant", text, train)


CHATS = {
    "one turn": [user("What is the capital of France?"), answer("The capital is Paris.")],
    "two turns": [user("hi"), answer("hello"), user("and?"), answer("Paris.")],
    "system": [Message("system", "Be short."), user("hi"), answer("Yes."), user("why?"), answer("Because.")],
    "chinese": [user("法国的首都是哪里？"), answer("法国的首都是巴黎。🙂"), user("谢谢"), answer("不客气！")],
    "same words": [user("Yes."), answer("Yes."), user("Yes."), answer("Yes.")],
    "role words": [user("assistant"), answer("user"), user("model"), answer("assistant")],
    "lines": [user("a\n\nb"), answer("1. one\n2. two\n\n3. three"), user("c\n"), answer("d")],
}


def supervised(tokenizer: Tokenizer, messages: list[Message]) -> list[str]:
    return [tokenizer.text(ids, special=True) for ids, learned in tokenizer.segments(messages) if learned]


@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("name", ALL)
def test_every_answer_is_supervised_with_its_end(tokenizer_for: Make, name: str, chat: str) -> None:
    tokenizer, messages = tokenizer_for(name), CHATS[chat]
    answers = [m.content for m in messages if m.role == "assistant"]
    found = supervised(tokenizer, messages)
    think = "<think>\n\n</think>\n\n" if name == "qwen3" else ""
    expected = [text + ENDS[name] for text in answers]
    expected[-1] = think + expected[-1]
    assert [text.lstrip(" ") for text in found] == expected


@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("name", ALL)
def test_training_sees_the_ids_that_inference_prompts_with(tokenizer_for: Make, name: str, chat: str) -> None:
    tokenizer, messages = tokenizer_for(name), CHATS[chat]
    pieces = tokenizer.segments(messages)
    answered = [i for i, m in enumerate(messages) if m.role == "assistant"]
    at = [i for i, (_, learned) in enumerate(pieces) if learned]
    for index, piece in zip(answered, at, strict=True):
        before = [i for ids, _ in pieces[:piece] for i in ids]
        assert before == tokenizer.prompt_ids(messages[:index])


@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("name", ALL)
def test_the_pieces_make_up_the_rendered_text(tokenizer_for: Make, name: str, chat: str) -> None:
    tokenizer, messages = tokenizer_for(name), CHATS[chat]
    joined = [i for ids, _ in tokenizer.segments(messages) for i in ids]
    # Llama 2's tokenizer puts a space after a special token; leave those aside.
    squeeze = (lambda t: t.replace("s> ", "s>")) if tokenizer.bos_id == 1 else (lambda t: t)
    assert squeeze(tokenizer.text(joined, special=True)) == squeeze(tokenizer.render(messages))
    for content in (m.content.strip() for m in messages):
        assert content in tokenizer.render(messages)


@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("name", ALL)
def test_the_ids_are_those_of_the_whole_text(tokenizer_for: Make, name: str, chat: str) -> None:
    tokenizer, messages = tokenizer_for(name), CHATS[chat]
    joined = [i for ids, _ in tokenizer.segments(messages) for i in ids]
    assert joined == tokenizer.ids(tokenizer.render(messages))


def test_white_space_behind_a_special_token_that_takes_it_is_gone(tmp_path: Path) -> None:
    folder = tmp_path / "takes"
    _copy(folder, "{% for m in messages %}{{ m.content }}<|im_end|>\n{% endfor %}")
    core = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    for token in core["added_tokens"]:
        token["rstrip"] = token["content"] == "<|im_end|>"
    (folder / "tokenizer.json").write_text(json.dumps(core), "utf-8")
    tokenizer = Tokenizer.load(folder)
    joined = [i for ids, _ in tokenizer.segments(CHATS["two turns"]) for i in ids]
    assert joined == tokenizer.ids(tokenizer.render(CHATS["two turns"]))
    assert "\n" not in tokenizer.text(joined, special=True)


@pytest.mark.parametrize("name", ALL)
def test_bos_comes_as_often_as_the_template_says(tokenizer_for: Make, name: str) -> None:
    tokenizer = tokenizer_for(name)
    ids = tokenizer.prompt_ids(CHATS["two turns"][:3])
    expected = {"llama2": 2, "mistral": 1, "llama3": 1, "gemma": 1, "plain": 1, "plain-llama2": 1}.get(name, 0)
    assert ids.count(-1 if tokenizer.bos_id is None else tokenizer.bos_id) == expected


def test_a_turn_after_another_is_not_given_a_second_space(tokenizer_for: Make) -> None:
    tokenizer = tokenizer_for("llama2")
    ids = tokenizer.segments(CHATS["one turn"])[1][0]
    assert tokenizer.token(ids[0]).startswith("▁")
    assert not tokenizer.token(ids[0]).startswith("▁▁")
    assert not tokenizer.token(ids[1]).startswith("▁") or tokenizer.token(ids[0]) != "▁"


def test_an_answer_with_a_weight_of_zero_is_context(tokenizer: Tokenizer) -> None:
    messages = [user("a"), answer("first", train=False), user("b"), answer("second")]
    assert supervised(tokenizer, messages) == ["second<|im_end|>"]


def test_a_template_that_does_not_end_its_answers_gets_an_end(tokenizer_for: Make) -> None:
    tokenizer = tokenizer_for("open")
    assert supervised(tokenizer, CHATS["two turns"]) == ["hello", "Paris.<|endoftext|>"]


def test_a_system_text_the_template_refuses_or_loses_goes_into_the_question(tokenizer_for: Make) -> None:
    for name in ("gemma", "mistral"):
        tokenizer = tokenizer_for(name)
        assert "Be short.\n\nhi" in tokenizer.render(CHATS["system"])
        assert "Be short.\n\nhi" in tokenizer.text(tokenizer.prompt_ids(CHATS["system"][:2]))
    assert "<<SYS>>\nBe short." in tokenizer_for("llama2").render(CHATS["system"])


@pytest.mark.parametrize("name", ALL)
def test_a_tools_result_is_shown_to_every_template(tokenizer_for: Make, name: str) -> None:
    messages = [user("weather?"), answer('{"name": "w"}'), Message("tool", "sunny 晴"), answer("It is sunny.")]
    tokenizer = tokenizer_for(name)
    assert "sunny 晴" in tokenizer.render(messages)
    assert len(supervised(tokenizer, messages)) == 2


@pytest.mark.parametrize("name", ["gemma", "llama2", "mistral"])
def test_wrong_alternation_is_refused_in_the_templates_words(tokenizer_for: Make, name: str) -> None:
    with pytest.raises(RowRejected, match="alternate"):
        tokenizer_for(name).segments([user("a"), user("b"), answer("c")])


def test_qwen_thinking_that_is_dropped_later_does_not_shift_the_answers(tokenizer_for: Make) -> None:
    tokenizer = tokenizer_for("qwen3")
    thinking = "<think>\nFrance, so Paris.\n</think>\n\nParis."
    messages = [user("capital?"), answer(thinking), user("sure?"), answer("<think>\nI am.\n</think>\n\nYes.")]
    assert supervised(tokenizer, messages) == ["Paris.<|im_end|>", "<think>\nI am.\n</think>\n\nYes.<|im_end|>"]


def test_qwen_thinking_before_a_tool_call_is_dropped_when_a_question_follows(tokenizer_for: Make) -> None:
    tokenizer = tokenizer_for("qwen3")
    messages = [
        user("weather?"),
        answer("<think>\nI must call.\n</think>\n\ncall()"),
        Message("tool", "call() gave: sunny"),
        answer("<think>\nGood.\n</think>\n\nsunny"),
        user("thanks, call() again"),
        answer("no"),
    ]
    # The prompts of the first answers hold <think> blocks that the whole text lacks: they are found by search.
    assert supervised(tokenizer, messages) == [
        "call()<|im_end|>",
        "sunny<|im_end|>",
        "<think>\n\n</think>\n\nno<|im_end|>",
    ]


def test_an_answer_the_template_leaves_out_is_refused(tmp_path: Path, tokenizer_for: Make) -> None:
    folder = tmp_path / "lossy"
    _copy(
        folder,
        "{% for m in messages %}{% if m.role != 'assistant' %}{{ m.content }}\n{% endif %}{% endfor %}",
    )
    with pytest.raises(RowRejected, match="answer 1"):
        Tokenizer.load(folder).segments(CHATS["one turn"])


def test_stop_ids_come_from_tokenizer_config_and_template(tmp_path: Path, tokenizer_for: Make) -> None:
    llama3, gemma, chatml = tokenizer_for("llama3"), tokenizer_for("gemma"), tokenizer_for("chatml")
    assert {llama3.token(i) for i in llama3.stop_ids} == {"<|end_of_text|>", "<|eot_id|>"}
    assert {gemma.token(i) for i in gemma.stop_ids} == {"<eos>", "<end_of_turn>"}
    assert {chatml.token(i) for i in chatml.stop_ids} == {"<|endoftext|>", "<|im_end|>"}
    folder = tmp_path / "configured"
    _copy(folder, "{{ messages[0].content }}")
    assert Tokenizer.load(folder).stop_ids == {0}
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "eos_token_id": [2, 999_999]}), "utf-8")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 1}), "utf-8")
    assert Tokenizer.load(folder).stop_ids == {0, 1, 2}


def test_the_template_in_use_is_told_from_the_models_own(tokenizer_for: Make) -> None:
    assert tokenizer_for("chatml").template == tokenizer_for("chatml").chat_template
    assert tokenizer_for("plain").template is None
    assert "### Assistant:" in tokenizer_for("plain").chat_template
    assert "<|im_start|>" in tokenizer_for("plain-chatml").chat_template


def test_special_ids_are_added_only_when_asked(tokenizer_for: Make) -> None:
    tokenizer = tokenizer_for("llama3")
    assert tokenizer.ids("hi", special=True) == [tokenizer.bos_id, *tokenizer.ids("hi")]
    assert tokenizer.beginning == (tokenizer.bos_id,)
    assert tokenizer_for("chatml").beginning == ()
    assert tokenizer.text([tokenizer.eos_id]) == ""
    assert tokenizer.text([tokenizer.eos_id], special=True) == "<|end_of_text|>"


def test_long_texts_are_neither_cut_nor_warned_about(tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture) -> None:
    assert len(tokenizer.ids("word " * 5000)) >= 5000
    assert not caplog.records


def test_load_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="folder not found"):
        Tokenizer.load(tmp_path / "nowhere")
    with pytest.raises(ModelError, match=r"tokenizer\.json"):
        Tokenizer.load(tmp_path)


@pytest.mark.engine
def test_code_in_the_folder_is_not_run(tmp_path: Path, tokenizer_for: Make) -> None:
    folder = tmp_path / "evil"
    _copy(folder, "x")
    (folder / "evil.py").write_text("raise SystemExit('ran')", "utf-8")
    config = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
    config |= {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": [None, "evil.Evil"]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
    with contextlib.suppress(ModelError):
        Tokenizer.load(folder)


def _copy(folder: Path, template: str) -> None:
    """A chatml tokenizer's folder with this template."""
    write_tokenizer(folder, "chatml", None)
    (folder / "chat_template.jinja").write_text(template, "utf-8")
