"""config.json and the end tokens of merged folders, as other programs look for them. No framework."""

import json
from pathlib import Path
from typing import Any

import pytest

from finetune_local.export.merged_config import merged_config
from finetune_local.export.targets.merged import write_merged
from finetune_local.models.folder import ModelFolder
from finetune_local.spec.numerics.rope import rope, with_both_spellings
from finetune_local.system.errors import ModelError
from made import made_adapter
from tiny import CHATML, tiny_model

END_OF_TEXT, TURN_END = 0, 2


def ended_elsewhere(folder: Path, family: str = "qwen2", template: bool = True) -> Path:
    """A base whose end-of-text token is not what its chat template puts after an answer."""
    base = tiny_model(folder, family)
    change(base / "tokenizer_config.json", eos_token="<|endoftext|>", bos_token=None)
    change(base / "generation_config.json", eos_token_id=END_OF_TEXT, temperature=0.7)
    change(base / "config.json", eos_token_id=END_OF_TEXT)
    if not template:
        (base / "chat_template.jinja").unlink()
    return base


def change(path: Path, **values: Any) -> None:
    found = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps({**found, **values}), "utf-8")


def read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return found


@pytest.mark.parametrize("template", [True, False])
def test_the_turns_end_stands_first_in_every_file_that_names_an_end(tmp_path: Path, template: bool) -> None:
    base = ended_elsewhere(tmp_path / "base", template=template)
    (base / "special_tokens_map.json").write_text(json.dumps({"eos_token": "<|endoftext|>"}), "utf-8")
    out = tmp_path / "out"
    write_merged(ModelFolder.open(base), made_adapter(base, tmp_path / "a"), out)
    generation = read(out / "generation_config.json")
    assert generation["eos_token_id"] == [TURN_END, END_OF_TEXT] and generation["temperature"] == 0.7
    assert read(out / "config.json")["eos_token_id"] == [TURN_END, END_OF_TEXT]
    assert read(out / "tokenizer_config.json")["eos_token"] == "<|im_end|>"
    assert read(out / "special_tokens_map.json")["eos_token"] == "<|im_end|>"
    assert "<|im_end|>" in (out / "chat_template.jinja").read_text("utf-8")


def test_a_base_without_generation_settings_gets_the_end_tokens(tmp_path: Path) -> None:
    base = ended_elsewhere(tmp_path / "base")
    (base / "generation_config.json").unlink()
    write_merged(ModelFolder.open(base), None, tmp_path / "out")
    found = read(tmp_path / "out" / "generation_config.json")
    assert found == {"bos_token_id": 1, "pad_token_id": 0, "eos_token_id": [TURN_END, END_OF_TEXT]}


def test_a_template_that_writes_the_end_token_keeps_it(tmp_path: Path) -> None:
    base = ended_elsewhere(tmp_path / "base")
    (base / "chat_template.jinja").write_text(CHATML + "{# eos_token #}", "utf-8")
    write_merged(ModelFolder.open(base), None, tmp_path / "out")
    assert read(tmp_path / "out" / "tokenizer_config.json")["eos_token"] == "<|endoftext|>"
    assert read(tmp_path / "out" / "generation_config.json")["eos_token_id"] == [TURN_END, END_OF_TEXT]


def test_a_bare_base_without_a_template_ends_at_its_end_of_text(tmp_path: Path) -> None:
    base = ended_elsewhere(tmp_path / "base", template=False)
    write_merged(ModelFolder.open(base), None, tmp_path / "out")
    assert read(tmp_path / "out" / "generation_config.json")["eos_token_id"] == [END_OF_TEXT, TURN_END]
    assert read(tmp_path / "out" / "tokenizer_config.json")["eos_token"] == "<|endoftext|>"


def test_damaged_generation_settings_are_told_and_leave_nothing(tiny: Path, tmp_path: Path) -> None:
    base = tiny_model(tmp_path / "base")
    (base / "generation_config.json").write_text('{"eos_token_id": 2', "utf-8")
    with pytest.raises(ModelError, match=r"generation_config\.json"):
        write_merged(ModelFolder.open(base), None, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_partial_rotation_stands_where_each_program_reads_it() -> None:
    new = {"model_type": "phi", "rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.4}}
    old = {"model_type": "phi", "rope_theta": 1e4, "partial_rotary_factor": 0.4}
    for config in (new, old):
        both = with_both_spellings(config)
        assert both["partial_rotary_factor"] == both["rope_parameters"]["partial_rotary_factor"] == 0.4
        assert rope(both) == rope(config) and both["rope_scaling"] is None
    silent = merged_config({"model_type": "phi", "rope_theta": 1e4}, "float32", True, (2,))
    assert silent["partial_rotary_factor"] == 0.5 and silent["tie_word_embeddings"] is False


def test_tables_by_kind_of_layer_are_left_alone_where_the_old_spelling_would_be_read_instead() -> None:
    tables = {
        "full_attention": {"rope_type": "proportional", "rope_theta": 1e6, "partial_rotary_factor": 0.25},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    gemma4 = {"model_type": "gemma4_text", "rope_parameters": tables, "head_dim": 16, "per_layer_config": {}}
    made = merged_config(gemma4, "float32", False, (2, 0))
    assert made["rope_parameters"] == tables and "rope_scaling" not in made and "rope_theta" not in made
    assert made["global_head_dim"] == 16 and made["eos_token_id"] == [2, 0]


def test_a_scalar_stays_a_scalar(tmp_path: Path) -> None:
    """Apertus keeps its activation's values as scalars."""
    import numpy as np
    from safetensors.numpy import load_file, save_file

    base = tiny_model(tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    tensors["model.layers.0.mlp.act_fn.beta"] = np.array(0.5, np.float32)
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    write_merged(ModelFolder.open(base), None, tmp_path / "out")
    assert load_file(tmp_path / "out" / "model.safetensors")["model.layers.0.mlp.act_fn.beta"].shape == ()
