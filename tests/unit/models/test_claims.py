"""config.json claims, the stored tensors are: what does not agree is refused by name before anything is loaded."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from finetune_local.data.conversation import Message, RowRejected
from finetune_local.data.tokenizers.tokenizer import Tokenizer
from finetune_local.models.folder import ModelFolder
from finetune_local.models.install import installed
from finetune_local.models.resolve import resolve
from finetune_local.system.errors import ModelError
from finetune_local.system.paths import Home
from tiny import tiny_model

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
Tensors = dict[str, np.ndarray]
UP = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_model(tmp_path / "model")


def change(folder: Path, name: str = "config.json", **values: Any) -> None:
    path = folder / name
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **values}), "utf-8")


def rewrite(folder: Path, made: Callable[[Tensors], Tensors]) -> None:
    save_file({n: np.ascontiguousarray(t) for n, t in made(load_file(folder / WEIGHTS)).items()}, folder / WEIGHTS)


def renamed(before: str, after: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {name.replace(before, after, 1): tensor for name, tensor in tensors.items()}


def packed(name: str, kind: Any = np.uint8, shape: tuple[int, ...] = (4,)) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {**tensors, name: np.zeros(shape, kind)}


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"num_hidden_layers": 1}, r"1 blocks .num_hidden_layers., but the weights have 2: the rest would be ignored"),
        ({"num_hidden_layers": 3}, r"have 2: the rest would be filled with random numbers"),
        ({"num_hidden_layers": 0}, r"'num_hidden_layers' is 0, but it must be a whole number from 1 to 10000"),
        ({"num_hidden_layers": -1}, r"'num_hidden_layers' is -1"),
        ({"num_hidden_layers": 10**6}, r"'num_hidden_layers' is 1000000"),
        ({"num_hidden_layers": 9999}, r"declares 9999 blocks"),
        ({"num_hidden_layers": True}, r"'num_hidden_layers' is True"),
        ({"num_hidden_layers": "2"}, r"'num_hidden_layers' is '2'"),
        ({"hidden_size": 63}, r"63 .hidden_size., but model\.embed_tokens\.weight has the shape"),
        ({"hidden_size": 10**18}, r"'hidden_size' is 1000000000000000000"),
        ({"num_attention_heads": 0}, r"'num_attention_heads' is 0"),
        ({"num_attention_heads": 8}, r"q_proj\.weight has the shape \[64, 64\], but config\.json .8 heads of 16"),
        ({"num_attention_heads": 7, "head_dim": None, "num_key_value_heads": 7}, "not divisible by"),
        ({"num_key_value_heads": 3}, r"4 attention heads .* cannot share 3 heads"),
        ({"num_key_value_heads": 4}, r"k_proj\.weight has the shape \[32, 64\]"),
        ({"head_dim": 10**9}, r"'head_dim' is 1000000000"),
        ({"intermediate_size": 127}, r"config\.json .an inner width of 127"),
        ({"vocab_size": 385}, r"385 tokens .vocab_size., but the embedding has 384 rows"),
        ({"tie_word_embeddings": False}, r"the weights have no head"),
        ({"tie_word_embeddings": "no"}, r"'tie_word_embeddings' is 'no', but it must be true or false"),
        ({"rms_norm_eps": float("nan")}, r"'rms_norm_eps' is nan, but it must be a number from 0 to 1"),
        ({"rms_norm_eps": -1}, r"'rms_norm_eps' is -1"),
        ({"rms_norm_eps": "x"}, r"'rms_norm_eps' is 'x'"),
        (
            {"rope_parameters": {"rope_theta": 0}},
            r"'rope_parameters\.rope_theta' is 0, but it must be a number above 0",
        ),
        ({"rope_parameters": {"rope_theta": float("nan")}}, r"'rope_parameters\.rope_theta' is nan"),
        ({"rope_theta": -10000.0}, r"'rope_theta' is -10000"),
        ({"rope_parameters": [1]}, r"'rope_parameters' is a list, but it must be an object"),
        ({"rope_parameters": {"full_attention": {"rope_theta": -1}}}, r"'rope_parameters\.full_attention\.rope_theta'"),
        ({"rope_scaling": {"type": "yarn", "factor": 0}}, r"'rope_scaling\.factor' is 0"),
        ({"attention_dropout": 5.0}, r"'attention_dropout' is 5\.0"),
        ({"attention_dropout": float("nan")}, r"'attention_dropout' is nan"),
        ({"pad_token_id": -5}, r"'pad_token_id' is -5, but it must be the number of a token"),
        ({"pad_token_id": 384}, r"names token 384 for padding .* the embedding has 384 rows"),
        ({"eos_token_id": ["a"]}, r"'eos_token_id' is a list"),
        ({"some_other": {"key": [1, float("nan")]}}, r"'some_other\.key' is nan"),
        ({"max_position_embeddings": 0}, r"'max_position_embeddings' is 0"),
        ({"sliding_window": -1}, r"'sliding_window' is -1"),
        ({"quantization_config": "x"}, r"'quantization_config' is 'x'"),
        ({"model_type": "../../x"}, r"'model_type' is missing"),
        ({"model_type": "x" * 5000}, r"'model_type' is missing"),
        ({"num_experts": 4, "num_experts_per_tok": 5}, "5 experts for each token .* cannot be chosen from 4"),
        ({"hidden_act": ["silu"]}, r"'hidden_act' is a list"),
    ],
)
def test_what_a_config_cannot_say_is_refused_at_once(folder: Path, values: dict[str, Any], says: str) -> None:
    change(folder, **values)
    begun = time.process_time()
    with pytest.raises(ModelError, match=says):
        ModelFolder.open(folder)
    assert time.process_time() - begun < 2, "nothing is looped over before it is checked"


@pytest.mark.parametrize("values", [{"pad_token_id": -1}, {"pad_token_id": None}, {"eos_token_id": [2, 0]}, {"rope_scaling": None},
                                    {"time_step_limit": [0.0, float("inf")]}, {"num_local_experts": 0}])  # fmt: skip
def test_what_good_models_have_is_let_through(folder: Path, values: dict[str, Any]) -> None:
    change(folder, **values)
    assert ModelFolder.open(folder).blocks == 2


def test_generation_settings_are_looked_at_too(folder: Path) -> None:
    change(folder, "generation_config.json", eos_token_id={"a": 1})
    with pytest.raises(ModelError, match=r"generation_config\.json: 'eos_token_id' is an object"):
        ModelFolder.open(folder)
    (folder / "generation_config.json").write_text("[" * 100_000, "utf-8")
    with pytest.raises(ModelError, match=r"generation_config\.json: it is nested"):
        ModelFolder.open(folder)


@pytest.mark.parametrize(
    ("made", "says"),
    [
        (renamed("model.", "_orig_mod.model."), r"names of a wrapper \(_orig_mod\.model\..*: torch\.compile\)"),
        (renamed("model.", "module.model."), "DistributedDataParallel"),
        (renamed("model.", "base_model.model.model."), r"PEFT\).*merge_and_unload"),
        (renamed("q_proj.weight", "q_proj.base_layer.weight"), "saved with an adapter still in it"),
        (packed("model.layers.0.self_attn.q_proj.lora_A.default.weight"), "saved with an adapter still in it"),
        (packed(UP.replace("weight", "weight.absmax"), np.float32), "quantised .bitsandbytes 4-bit"),
        (packed(UP.replace("weight", "SCB"), np.float32), "quantised .bitsandbytes 8-bit"),
        (packed(UP.replace("weight", "qweight"), np.int32), "quantised .AWQ"),
        (packed(UP.replace("weight", "g_idx"), np.int32), "quantised .GPTQ"),
        (packed(UP.replace("weight", "weight_packed"), np.int32), "quantised .compressed-tensors"),
        (packed("model.layers.0.mlp.experts.gate_up_proj_blocks"), "quantised .MXFP4"),
        (lambda t: packed(UP.replace("weight", "biases"))(packed(UP.replace("weight", "scales"))(t)), "quantised .MLX"),
        (lambda t: {**t, UP: t[UP].astype(np.uint8)}, rf"quantised .U8: {UP} is of type U8.*does not say so"),
        (lambda t: {**t, UP: t[UP].astype(np.int8)}, "quantised .I8"),
        (packed("model.layers.0.self_attn.q_proj.bias", np.int8), "quantised .I8"),
        (lambda t: {n: x for n, x in t.items() if ".layers.1." not in n}, "2 blocks .* but the weights have 1"),
        (renamed("model.embed_tokens", "lm_head"), "have no embedding"),
    ],
)  # fmt: skip
def test_weights_of_another_kind_are_called_what_they_are(
    folder: Path, made: Callable[[Tensors], Tensors], says: str
) -> None:
    rewrite(folder, made)
    with pytest.raises(ModelError, match=says):
        ModelFolder.open(folder)


def test_blocks_that_only_guess_ahead_may_be_beyond_the_last(folder: Path) -> None:
    rewrite(folder, lambda t: {**t, "model.layers.2.eh_proj.weight": np.zeros((4, 4), np.float32)})
    with pytest.raises(ModelError, match="have 3"):
        ModelFolder.open(folder)
    change(folder, num_nextn_predict_layers=1)
    assert ModelFolder.open(folder).blocks == 2


def test_a_number_in_a_name_may_have_any_length(folder: Path) -> None:
    rewrite(folder, lambda t: {**t, f"model.layers.{'9' * 5000}.x.weight": np.zeros((4, 4), np.float32)})
    ModelFolder.open(folder).info()


def test_shards_are_what_they_say_at_once(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "model-00001-of-999999999999.safetensors")
    begun = time.process_time()
    with pytest.raises(ModelError, match="by its name it is one of 999999999999 files"):
        ModelFolder.open(folder)
    assert time.process_time() - begun < 1
    (folder / "model-00001-of-999999999999.safetensors").rename(folder / "weights.safetensors")
    with pytest.raises(ModelError, match=r"neither model\.safetensors nor"):
        ModelFolder.open(folder)


def test_one_tensor_in_two_files_and_two_models_in_one_folder(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path, shards=2)
    names = sorted(file.name for file in folder.glob("*.safetensors"))
    first, second = (load_file(folder / name) for name in names)
    save_file({**second, "model.embed_tokens.weight": np.ones((384, 64), np.float32)}, folder / names[1])
    with pytest.raises(
        ModelError, match=r"tensor model\.embed_tokens\.weight is in .* and in .*unclear which one is valid"
    ):
        ModelFolder.open(folder)
    save_file(second, folder / names[1])
    save_file(first, folder / WEIGHTS)
    with pytest.raises(ModelError, match=r"both model\.safetensors and an index of other files"):
        ModelFolder.open(folder)


def test_a_tensor_that_the_index_forgot_is_the_model_s_all_the_same(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path, shards=2)
    index = json.loads((folder / INDEX).read_text("utf-8"))
    del index["weight_map"][UP]
    (folder / INDEX).write_text(json.dumps(index), "utf-8")
    assert UP in ModelFolder.open(folder).weights()


def test_links_are_followed_and_those_to_nothing_named(folder: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for file in folder.iterdir():
        (snapshot / file.name).symlink_to(file)
    assert ModelFolder.open(snapshot).blocks == 2
    for name in ("config.json", WEIGHTS):
        link = snapshot / name
        for target in (tmp_path / "nowhere", link):  # to nothing, and to itself
            link.unlink()
            link.symlink_to(target)
            with pytest.raises(ModelError, match=rf"{name}: a broken link"):
                ModelFolder.open(snapshot)
        link.unlink()
        link.symlink_to(folder / name)


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", WEIGHTS, "tokenizer.json", INDEX])
def test_a_pipe_does_not_keep_anybody_waiting(folder: Path, name: str) -> None:
    import os

    if not hasattr(os, "mkfifo"):
        pytest.skip("there are no named pipes here")
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    if name in ("generation_config.json", INDEX):
        ModelFolder.open(folder)  # as if it were not there
    else:
        with pytest.raises(ModelError):
            ModelFolder.open(folder)


def add_token(folder: Path, number: int, text: str = "<x1>", *, special: bool = False) -> None:
    path = folder / "tokenizer.json"
    values = json.loads(path.read_text("utf-8"))
    token = {**values["added_tokens"][0], "id": number, "content": text, "special": special}
    values["added_tokens"].append(token)
    path.write_text(json.dumps(values), "utf-8")


def test_tokens_without_a_row_are_named_before_anything_is_loaded(tmp_path: Path, home: Home) -> None:
    folder = tiny_model(tmp_path / "model", vocab=381)
    add_token(folder, 380)
    assert resolve(str(folder), home, lambda *_: None).vocabulary == 381
    add_token(folder, 381, "<x2>")
    assert ModelFolder.open(folder).blocks == 2, "a list of models does not read tokenizers"
    with pytest.raises(ModelError, match=r"1 tokens of its tokenizer have no row .* has 381: '<x2>' \(381\)"):
        resolve(str(folder), home, lambda *_: None)


def test_a_special_token_that_nothing_asks_for_needs_no_row(tmp_path: Path, home: Home) -> None:
    """As the text models of Gemma 3 have one, for images: 262,145 tokens and 262,144 rows."""
    folder = tiny_model(tmp_path / "model", vocab=380)
    add_token(folder, 380, "<image>", special=True)
    (folder / "added_tokens.json").write_text(json.dumps({"<audio>": 381}), "utf-8")
    assert resolve(str(folder), home, lambda *_: None).vocabulary == 380
    tokenizer = Tokenizer.load(folder)
    assert tokenizer.prompt_ids([Message("user", "Hi")])
    with pytest.raises(RowRejected, match="<image>, a token for which the model has no embedding row"):
        tokenizer.prompt_ids([Message("user", "See <image>")])
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}<image>", "utf-8")
    with pytest.raises(ModelError, match=r"1 tokens of its tokenizer have no row .*'<image>' \(380\)"):
        resolve(str(folder), home, lambda *_: None)


def test_a_config_may_leave_the_number_of_tokens_to_its_family(folder: Path, home: Home) -> None:
    """As the larger models of Gemma 3 do; the embedding tells."""
    config = json.loads((folder / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k != "vocab_size"}), "utf-8")
    assert resolve(str(folder), home, lambda *_: None).vocabulary == 384


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("tokenizer_config.json", {"added_tokens_decoder": {"900": {"content": "<far>", "special": False}}}),
        (
            "tokenizer_config.json",
            {"pad_token": "<far>", "additional_special_tokens": ["<near>", {"content": "<more>"}]},
        ),
    ],
)
def test_tokens_that_other_files_add_count_too(tmp_path: Path, home: Home, name: str, values: dict[str, Any]) -> None:
    folder = tiny_model(tmp_path / "model", vocab=380)
    (folder / name).write_text(json.dumps(values), "utf-8")
    with pytest.raises(ModelError, match="<far>"):
        resolve(str(folder), home, lambda *_: None)


def test_a_folder_that_cannot_be_read_hides_no_other(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("closed", "good"):
        tiny_model(home.models / name)
    usual = Path.exists

    def exists(self: Path) -> bool:
        if "closed" in self.parts:
            raise PermissionError(13, "Permission denied", str(self))
        return usual(self)

    monkeypatch.setattr(Path, "exists", exists)
    assert installed(home.models) == ["good"]
    with pytest.raises(ModelError, match=r"closed: Permission denied\."):
        ModelFolder.open(home.models / "closed")
