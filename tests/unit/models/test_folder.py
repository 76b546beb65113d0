from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from finetune_local.adapter_format import read_tensors
from finetune_local.models.fingerprint import config_sha256
from finetune_local.models.folder import ModelFolder, name_of
from finetune_local.system.errors import ModelError
from tiny import tiny_model

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_model(tmp_path / "my model 模型")


def change(folder: Path, **values: Any) -> None:
    """Set keys of config.json; None deletes one."""
    path = folder / "config.json"
    config = {**json.loads(path.read_text("utf-8")), **values}
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not None}), "utf-8")


def test_it_tells_what_the_model_is(folder: Path) -> None:
    model = ModelFolder.open(folder)
    tensors = load_file(folder / WEIGHTS)
    assert (model.name, model.family, model.hidden_size, model.blocks) == ("my model 模型", "llama", 64, 2)
    assert (model.context_length, model.vocabulary, model.tied) == (512, 384, True)
    assert model.parameters == sum(t.size for t in tensors.values())
    assert {n: w.shape for n, w in model.weights().items()} == {n: t.shape for n, t in tensors.items()}
    assert model.bytes_on_disk == sum(f.stat().st_size for f in folder.iterdir())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("shards", [1, 3])
def test_one_tensor_is_read_as_it_was_written(tmp_path: Path, dtype: str, shards: int) -> None:
    folder = tiny_model(tmp_path, "qwen2", dtype=dtype, shards=shards)
    model = ModelFolder.open(folder)
    files = sorted(folder.glob("*.safetensors"))
    assert len(files) == shards
    expected = {name: tensor for file in files for name, tensor in read_tensors(file).items()}
    assert set(model.weights()) == set(expected)
    for name, tensor in expected.items():
        got = model.read(name)
        assert got.dtype == np.float32
        assert np.array_equal(got, tensor)
        got += 1  # it is the caller's own


def test_a_tied_head_that_was_saved_counts_once_and_one_of_its_own_is_not_tied(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path, tied=False)
    untied = ModelFolder.open(folder).parameters
    change(folder, tie_word_embeddings=True)
    claimed = ModelFolder.open(folder)
    assert (claimed.tied, claimed.parameters) == (False, untied), "the head that is stored counts, not the flag"
    tensors = load_file(folder / WEIGHTS)
    save_file({**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"]}, folder / WEIGHTS)
    saved = ModelFolder.open(folder)
    assert (saved.tied, untied - saved.parameters) == (True, 384 * 64)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
    tensors["lm_head.weight"][200, 3] += 1e-3
    save_file(tensors, folder / WEIGHTS)
    assert not ModelFolder.open(folder).tied, "one number differs"


def test_no_tensor_of_that_name(folder: Path) -> None:
    with pytest.raises(ModelError, match=r"no tensor lm_head\.weight"):
        ModelFolder.open(folder).read("lm_head.weight")


@pytest.mark.parametrize(
    ("name", "says"),
    [("config.json", r"no config\.json"), ("tokenizer.json", r"no tokenizer\.json"), (WEIGHTS, r"no \*\.safetensors")],
)
def test_missing_files_are_named(folder: Path, name: str, says: str) -> None:
    (folder / name).unlink()
    with pytest.raises(ModelError, match=says):
        ModelFolder.open(folder)


def test_a_missing_folder_and_an_adapter_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="folder not found"):
        ModelFolder.open(tmp_path / "nowhere")
    (tmp_path / "adapter_config.json").write_text("{}", "utf-8")
    with pytest.raises(ModelError, match="--adapter"):
        ModelFolder.open(tmp_path)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path, shards=3)
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(ModelError, match=r"1 of its 3 .* model-00002-of-00003\.safetensors"):
        ModelFolder.open(folder)
    (folder / INDEX).unlink()
    with pytest.raises(ModelError, match=r"1 of its 3 .* model-00002-of-00003\.safetensors"):
        ModelFolder.open(folder)


@pytest.mark.parametrize("place", ["../other.safetensors", "/etc/passwd", "a/b.safetensors"])
def test_an_index_cannot_point_out_of_the_folder(folder: Path, place: str) -> None:
    (folder / INDEX).write_text(json.dumps({"weight_map": {"x": place}}), "utf-8")
    with pytest.raises(ModelError, match="not the name of a file in this folder"):
        ModelFolder.open(folder)


def test_an_index_that_lies_is_told(folder: Path) -> None:
    (folder / INDEX).write_text(json.dumps({"weight_map": {"no.such": WEIGHTS}}), "utf-8")
    with pytest.raises(ModelError, match=r"no\.such is not in it"):
        ModelFolder.open(folder)


def test_pickles_are_refused(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="pickle, which can run code"):
        ModelFolder.open(folder)


def test_a_model_with_its_own_code_is_refused_unless_its_family_is_built_in(folder: Path) -> None:
    change(folder, auto_map={"AutoModelForCausalLM": "modeling_x.X"})
    assert ModelFolder.open(folder).family == "llama"
    change(folder, model_type="brand_new_thing")
    with pytest.raises(ModelError, match="own Python code"):
        ModelFolder.open(folder)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "already quantised .gptq."),
        ({"quantization": {"group_size": 64, "bits": 4}}, "already quantised .4-bit."),
        ({"is_encoder_decoder": True}, "encoder-decoder"),
        ({"model_type": None}, "'model_type' is missing"),
    ],
)
def test_models_of_another_kind_are_refused(folder: Path, values: dict[str, Any], says: str) -> None:
    change(folder, **values)
    with pytest.raises(ModelError, match=says):
        ModelFolder.open(folder)


def test_a_broken_config_is_told_with_its_place(folder: Path) -> None:
    (folder / "config.json").write_text('{\n "model_type": "llama",\n oops}', "utf-8")
    with pytest.raises(ModelError, match=r"config\.json: it is not JSON .line 3, column 2"):
        ModelFolder.open(folder)
    (folder / "config.json").write_bytes(b'{"model_type": "\xff"}')
    with pytest.raises(ModelError, match="not UTF-8"):
        ModelFolder.open(folder)
    (folder / "config.json").write_text("[]", "utf-8")
    with pytest.raises(ModelError, match="a JSON object"):
        ModelFolder.open(folder)


def test_every_cut_of_the_weights_is_noticed(folder: Path) -> None:
    whole = (folder / WEIGHTS).read_bytes()
    for length in (0, 5, 8, 100, len(whole) // 2, len(whole) - 1):
        (folder / WEIGHTS).write_bytes(whole[:length])
        with pytest.raises(ModelError, match=r"model\.safetensors: .*(cut short|no safetensors|bytes long)"):
            ModelFolder.open(folder)


@pytest.mark.parametrize(
    "header",
    [
        {"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}},
        {"x": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}},
        {"x": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}},
        {"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 400]}},
        {"x": {"dtype": "F32", "shape": [1]}},
        {"x": "nonsense"},
        ["nonsense"],
    ],
)
def test_a_damaged_header_is_told(folder: Path, header: object) -> None:
    text = json.dumps(header).encode()
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(text)) + text + bytes(8))
    with pytest.raises(ModelError, match=r"model\.safetensors: "):
        ModelFolder.open(folder)


def test_a_header_length_beyond_the_file_is_not_believed(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", 1 << 60) + b"{}")
    with pytest.raises(ModelError, match="the header says 1152921504606846976 bytes"):
        ModelFolder.open(folder)


def test_a_git_lfs_pointer_is_recognised(folder: Path) -> None:
    (folder / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:abc\n", "utf-8")
    with pytest.raises(ModelError, match="git lfs pull"):
        ModelFolder.open(folder)


def test_the_identity_stays_when_the_config_is_saved_again(folder: Path) -> None:
    before = ModelFolder.open(folder).identity()
    change(
        folder,
        rope_parameters=None,
        rope_theta=100_000,
        rope_scaling={"type": "default"},
        rms_norm_eps=float(np.float32(1e-6)),
        head_dim=None,
        mlp_bias=None,
        transformers_version="4.1",
        torch_dtype="float16",
        _name_or_path="elsewhere",
        bos_token_id=[1],
        pretraining_tp=1,
    )
    assert ModelFolder.open(folder).identity() == before


@pytest.mark.parametrize(
    "values",
    [
        {"rope_parameters": {"rope_theta": 10_000.0, "rope_type": "default"}},
        {"rope_parameters": {"rope_theta": 100_000.0, "rope_type": "linear", "factor": 2.0}},
        {"rms_norm_eps": 1e-5},
        {"num_key_value_heads": 4},
        {"num_hidden_layers": 1},
        {"hidden_act": "gelu"},
        {"tie_word_embeddings": False},
        {"sliding_window": 16},
        {"model_type": "mistral"},
    ],
)
def test_the_identity_changes_with_what_is_computed(folder: Path, values: dict[str, Any]) -> None:
    config = json.loads((folder / "config.json").read_text("utf-8"))
    assert (
        ModelFolder.open(folder).identity().config_sha256
        == config_sha256(config)
        != config_sha256({**config, **values})
    )


def test_the_identity_changes_with_vocabulary_merges_added_tokens_and_template(folder: Path) -> None:
    before = ModelFolder.open(folder).identity()
    path = folder / "tokenizer.json"
    text = path.read_text("utf-8")

    def differs(tokenizer: dict[str, Any]) -> bool:
        path.write_text(json.dumps(tokenizer), "utf-8")
        return ModelFolder.open(folder).identity().tokenizer_sha256 != before.tokenizer_sha256

    plain = json.loads(text)
    assert not differs({**plain, "truncation": {"max_length": 5}})
    assert not differs(
        {**plain, "model": {**plain["model"], "merges": [" ".join(m) for m in plain["model"]["merges"]]}}
    )
    assert differs({**plain, "model": {**plain["model"], "merges": plain["model"]["merges"][1:]}})
    assert differs({**plain, "model": {**plain["model"], "vocab": {**plain["model"]["vocab"], "新": 999}}})
    assert differs({**plain, "added_tokens": plain["added_tokens"][1:]})
    path.write_text(text, "utf-8")
    (folder / "chat_template.jinja").write_text("{{ messages }}", "utf-8")
    assert differs(plain)


def test_the_template_may_stand_in_the_tokenizers_config(folder: Path) -> None:
    template = (folder / "chat_template.jinja").read_text("utf-8")
    before = ModelFolder.open(folder).identity()
    (folder / "chat_template.jinja").unlink()
    assert ModelFolder.open(folder).chat_template() is None
    for value in (template, [{"name": "tool_use", "template": "x"}, {"name": "default", "template": template}]):
        (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": value}), "utf-8")
        assert ModelFolder.open(folder).chat_template() == template
        assert ModelFolder.open(folder).identity() == before


def test_a_snapshot_of_the_hub_cache_is_called_by_its_repository() -> None:
    place = Path("/x/hub/models--org--some--name/snapshots/0123")
    assert name_of(place) == "org/some--name"
    assert name_of(Path("/x/models/name")) == "name"
