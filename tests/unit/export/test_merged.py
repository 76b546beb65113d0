"""Merged folders: what is in them, how they are written, and what is refused. No framework."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from finetune_local.adapter_format import read_adapter, write_adapter
from finetune_local.export import targets
from finetune_local.export.targets import merged
from finetune_local.export.targets.merged import license_of, write_merged
from finetune_local.models.folder import ModelFolder
from finetune_local.spec.numerics.rope import rope, with_both_spellings
from finetune_local.spec.tuners import tuners
from finetune_local.spec.tuners.full import FullSettings
from finetune_local.system.errors import AdapterError, DiskFull, ModelError
from made import made_adapter
from tiny import THETA, tiny_model


@pytest.fixture
def adapter(tiny: Path, tmp_path: Path) -> Path:
    return made_adapter(tiny, tmp_path / "run 一" / "adapter", run="run 一")


def test_the_folder_is_complete_and_opens_as_a_model(tiny: Path, adapter: Path, tmp_path: Path) -> None:
    out = tmp_path / "merged 合并 model"
    told: list[float] = []
    paths = write_merged(ModelFolder.open(tiny), adapter, out, progress=lambda _, done: told.append(done or 0.0))
    assert sorted(out.iterdir()) == paths
    assert {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja", "generation_config.json"} <= {
        path.name for path in paths
    }
    assert told == sorted(told) and told[-1] == 1.0
    made, base = ModelFolder.open(out), ModelFolder.open(tiny)
    assert {name: w.shape for name, w in made.weights().items()} == {n: w.shape for n, w in base.weights().items()}
    assert (out / "tokenizer.json").read_bytes() == (tiny / "tokenizer.json").read_bytes()
    assert made.identity().config_sha256 == base.identity().config_sha256
    assert made.identity().tokenizer_sha256 == base.identity().tokenizer_sha256
    plan, tensors = read_adapter(adapter)
    module = plan.targets[0].module
    a, b = (tensors[f"base_model.model.{module}.lora_{x}.weight"] for x in "AB")
    expected = base.read(module + ".weight") + 2.0 * (b @ a)
    np.testing.assert_allclose(made.read(module + ".weight"), expected, rtol=0, atol=1e-6)
    untouched = "model.norm.weight"
    assert np.array_equal(made.read(untouched), base.read(untouched))


def test_auto_is_float32_for_a_small_model_and_the_bases_own_for_a_big_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = ModelFolder.open(tiny_model(tmp_path / "base", dtype="bfloat16"))
    write_merged(base, None, tmp_path / "small")
    assert _dtypes(tmp_path / "small") == ({"F32"}, "float32")
    monkeypatch.setattr(merged, "LOSSLESS_BELOW", 1000)
    write_merged(base, None, tmp_path / "big")
    assert _dtypes(tmp_path / "big") == ({"BF16"}, "bfloat16")
    write_merged(base, None, tmp_path / "chosen", "float16")
    assert _dtypes(tmp_path / "chosen") == ({"F16"}, "float16")


def _dtypes(folder: Path) -> tuple[set[str], str]:
    model = ModelFolder.open(folder)
    return {weight.dtype for weight in model.weights().values()}, model.config["dtype"]


def test_shards_have_an_index_that_names_every_tensor_once(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merged, "SHARD_BYTES", 100_000)
    base = ModelFolder.open(tiny)
    paths = write_merged(base, None, tmp_path / "out")
    shards = [path for path in paths if path.suffix == ".safetensors"]
    assert len(shards) > 2 and shards[0].name == f"model-00001-of-{len(shards):05d}.safetensors"
    assert all(path.stat().st_size < 110_000 for path in shards)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text("utf-8"))
    assert set(index["weight_map"]) == set(base.weights())
    assert index["metadata"]["total_size"] == 4 * sum(math.prod(w.shape) for w in base.weights().values())
    again = ModelFolder.open(tmp_path / "out")
    assert all(np.array_equal(again.read(name), base.read(name)) for name in base.weights())


def test_float16_refuses_what_it_cannot_hold(tiny: Path, tmp_path: Path) -> None:
    adapter = made_adapter(tiny, tmp_path / "a", strength=200.0)
    with pytest.raises(
        ModelError, match=r"model\.layers\.\d.*proj\.weight has a value of .* float16 only reaches 65504"
    ):
        write_merged(ModelFolder.open(tiny), adapter, tmp_path / "out", "float16")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_an_adapter_with_no_numbers_is_refused_by_tensor(tiny: Path, tmp_path: Path) -> None:
    plan, tensors = read_adapter(made_adapter(tiny, tmp_path / "a"))
    name = next(name for name in tensors if "lora_B" in name)
    tensors[name][0, 0] = np.nan
    write_adapter(tmp_path / "a", plan, tensors, "x")
    with pytest.raises(AdapterError, match="NaN or infinite values"):
        write_merged(ModelFolder.open(tiny), tmp_path / "a", tmp_path / "out")


def test_an_adapter_of_another_base_is_refused(tiny: Path, adapter: Path, tmp_path: Path) -> None:
    other = ModelFolder.open(tiny_model(tmp_path / "other", layers=3))
    with pytest.raises(AdapterError, match="trained on"):
        write_merged(other, adapter, tmp_path / "out")


def test_a_quantised_base_is_refused(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "q")
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config["quantization_config"] = {"quant_method": "bitsandbytes"}
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    with pytest.raises(ModelError, match="already quantised"):
        write_merged(ModelFolder.open(folder), None, tmp_path / "out")


def test_too_little_room_is_noticed_before_anything_is_written(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(targets, "free_bytes", lambda _: 1_000_000)
    with pytest.raises(DiskFull, match=r"needs .* MB but .* has 1\.0 MB free"):
        write_merged(ModelFolder.open(tiny), None, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_disk_that_fills_up_leaves_nothing_half_written(tiny: Path, tmp_path: Path) -> None:
    resource = pytest.importorskip("resource", reason="no file size limits on this system")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(DiskFull):
            write_merged(ModelFolder.open(tiny), None, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())


def test_both_spellings_of_rope_say_the_same(tiny: Path) -> None:
    config = with_both_spellings(ModelFolder.open(tiny).config)
    assert config["rope_theta"] == THETA and config["rope_scaling"] is None
    assert config["rope_parameters"] == {"rope_theta": THETA, "rope_type": "default"}
    old = {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}}
    both = with_both_spellings(old)
    assert both["rope_scaling"] == {"rope_type": "linear", "factor": 2.0}
    assert both["rope_parameters"] == {"rope_theta": 5e5, "rope_type": "linear", "factor": 2.0}
    assert rope(both) == rope(old)
    per_layer = {
        "model_type": "gemma3_text",
        "rope_parameters": {
            "full_attention": {"rope_theta": 1e6, "rope_type": "linear", "factor": 8.0},
            "sliding_attention": {"rope_theta": 1e4, "rope_type": "default"},
        },
    }
    both = with_both_spellings(per_layer)
    assert both["rope_parameters"] == per_layer["rope_parameters"]
    assert (both["rope_theta"], both["rope_local_base_freq"]) == (1e6, 1e4)
    assert both["rope_scaling"] == {"rope_type": "linear", "factor": 8.0}
    assert with_both_spellings({"model_type": "gpt2"}) == {"model_type": "gpt2"}


def test_the_license_is_carried_over_and_the_bases_card_is_not(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "base")
    (folder / "README.md").write_text("---\nlicense: apache-2.0\ntags: [a]\n---\n# The base\n", "utf-8")
    (folder / "LICENSE").write_text("terms", "utf-8")
    (folder / "modeling_evil.py").write_text("boom", "utf-8")
    assert license_of(folder) == "apache-2.0"
    write_merged(ModelFolder.open(folder), None, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text("utf-8")
    assert "license: apache-2.0" in card and "The base" not in card
    assert (tmp_path / "out" / "LICENSE").exists() and not (tmp_path / "out" / "modeling_evil.py").exists()


def test_an_adapter_on_the_head_unties_it(tmp_path: Path) -> None:
    """A tied model that stores its head too: the embedding must stay, the head must not."""
    base = tiny_model(tmp_path / "base", tied=True)
    tensors = load_file(base / "model.safetensors")
    save_file({**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"]}, base / "model.safetensors")
    model = ModelFolder.open(base)
    write_merged(model, None, tmp_path / "tied")
    assert "lm_head.weight" not in ModelFolder.open(tmp_path / "tied").weights()
    plan, _ = read_adapter(made_adapter(base, tmp_path / "a", plain=True))
    target = type(plan.targets[0])("lm_head", 64, 384)
    head = type(plan)(plan.method, plan.tuner, plan.settings, (target,))
    tensors = {"lora_A": np.ones((2, 64), np.float32), "lora_B": np.ones((384, 2), np.float32)}
    named = {f"base_model.model.lm_head.{name}.weight": tensor for name, tensor in tensors.items()}
    write_adapter(tmp_path / "head", head, named, "x")
    write_merged(model, tmp_path / "head", tmp_path / "untied")
    untied = ModelFolder.open(tmp_path / "untied")
    assert not untied.tied and np.abs(untied.read("lm_head.weight") - model.read("lm_head.weight")).max() > 1
    assert np.array_equal(untied.read("model.embed_tokens.weight"), model.read("model.embed_tokens.weight"))


def test_a_full_fine_tune_stands_in_for_the_base(tiny: Path, tmp_path: Path) -> None:
    model, family = ModelFolder.open(tiny), tuners()["full"]
    plan = family.plan("full", FullSettings(), model.info())
    rng = np.random.default_rng(0)
    tensors = {name: rng.normal(0, 1, shape).astype(np.float32) for name, shape in family.shapes(plan).items()}
    write_adapter(tmp_path / "a", plan, tensors, "x")
    write_merged(model, tmp_path / "a", tmp_path / "out")
    made = ModelFolder.open(tmp_path / "out")
    assert made.tied and set(made.weights()) == set(model.weights())
    assert all(np.array_equal(made.read(name), tensors["base_model.model." + name]) for name in made.weights())
