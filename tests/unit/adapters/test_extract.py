"""The change of a full fine-tune as a LoRA adapter: as near as a rank allows, what is lost told, senseless input refused."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from finetune_local.adapter_format import read_adapter, write_adapter
from finetune_local.adapters import library
from finetune_local.adapters.companions import companions
from finetune_local.adapters.extraction.extract import Extraction, extract, rank_for, spectrum
from finetune_local.adapters.extraction.tuned import from_adapter, from_folder
from finetune_local.adapters.identity import read_identity, write_identity
from finetune_local.cli.main import main
from finetune_local.models.folder import ModelFolder
from finetune_local.spec.low_rank.init import decompose
from finetune_local.spec.tuners import tuner_of, tuners
from finetune_local.spec.tuners.full import FullSettings
from finetune_local.system import paths
from finetune_local.system.errors import AdapterError, FinetuneError, ModelError, SpecError
from made import made_adapter
from tiny import tiny_model

Weights = dict[str, np.ndarray]
Q, DOWN = "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"
NORM = "model.norm.weight"


@pytest.fixture
def base(tiny: Path) -> ModelFolder:
    return ModelFolder.open(tiny)


def is_linear(name: str) -> bool:
    return ".layers." in name and name.endswith("_proj.weight")


def changed(
    base: ModelFolder, which: Callable[[str], bool] = is_linear, spread: float = 0.02, seed: int = 0
) -> Weights:
    """The base's weights, those that `which` picks moved by random numbers."""
    rng = np.random.default_rng(seed)
    return {
        name: base.read(name) + (rng.normal(0, spread, info.shape).astype(np.float32) if which(name) else 0)
        for name, info in base.weights().items()
    }


def folder_of(base: ModelFolder, weights: Mapping[str, np.ndarray], folder: Path) -> Path:
    """A model folder as a full fine-tune by another program leaves it."""
    shutil.copytree(base.path, folder)
    save_file({name: np.ascontiguousarray(w) for name, w in weights.items()}, folder / "model.safetensors")
    return folder


def full_adapter(base: ModelFolder, weights: Mapping[str, np.ndarray], folder: Path, run: str = "全部 run") -> Path:
    """The same as our own training writes it."""
    plan = tuners()["full"].plan("full", FullSettings(), base.info())
    write_adapter(folder, plan, {f"base_model.model.{n}": w for n, w in weights.items()}, base.name)
    write_identity(folder, base.identity(), run, {"method": "full"})
    return folder


def merged(base: ModelFolder, folder: Path, name: str) -> np.ndarray:
    plan, tensors = read_adapter(folder)
    return tuner_of(plan).merge(name, base.read(name), plan, tensors)


@pytest.mark.parametrize("shape", [(32, 64), (64, 32), (48, 48)])
@pytest.mark.parametrize("rank", [1, 5, 32])
def test_the_product_is_the_nearest_of_its_rank(shape: tuple[int, int], rank: int) -> None:
    delta = np.random.default_rng(1).normal(0, 0.1, shape)
    b, a = decompose(delta, rank)
    assert b.shape == (shape[0], rank) and a.shape == (rank, shape[1]) and b.dtype == a.dtype == np.float32
    u, s, vt = np.linalg.svd(delta, full_matrices=False)
    np.testing.assert_allclose(b @ a, (u[:, :rank] * s[:rank]) @ vt[:rank], atol=1e-6)
    for values in (np.linalg.norm(b, axis=0), np.linalg.norm(a, axis=1)):  # split evenly
        np.testing.assert_allclose(values, np.sqrt(s[:rank]), rtol=1e-4)


def test_a_change_of_lower_rank_leaves_the_rest_zero() -> None:
    rng = np.random.default_rng(2)
    delta = np.zeros((40, 24))
    delta[3, 5] = 2.0
    b, a = decompose(delta, 4)
    assert np.isfinite(b).all() and np.isfinite(a).all()
    np.testing.assert_allclose(b @ a, delta, atol=1e-7)
    low = rng.normal(0, 1, (40, 3)) @ rng.normal(0, 1, (3, 24))
    assert rank_for(spectrum(low), 1.0) == 3


def test_energy_is_the_smallest_rank_that_keeps_the_share() -> None:
    squares = np.array([50.0, 30.0, 15.0, 5.0])
    assert [rank_for(squares, share) for share in (0.5, 0.51, 0.8, 0.9, 0.95, 0.96, 1.0)] == [1, 2, 2, 3, 3, 4, 4]


@pytest.mark.slow
def test_the_error_is_eckart_and_youngs_and_falls_with_the_rank(base: ModelFolder, tmp_path: Path) -> None:
    weights = changed(base)
    tuned = from_folder(folder_of(base, weights, tmp_path / "tuned 调好"), base)
    errors = []
    for rank in (1, 4, 16, 32):
        done = extract(base, tuned, tmp_path / str(rank), rank=rank)
        assert len(done.layers) == 14 and not done.unchanged and not done.left
        squares, lost = 0.0, 0.0
        for layer in done.layers:
            delta = weights[layer.module + ".weight"].astype(np.float64) - base.read(layer.module + ".weight")
            s = np.linalg.svd(delta, compute_uv=False)
            assert layer.error == pytest.approx(np.sqrt((s[rank:] ** 2).sum() / (s**2).sum()), abs=2e-6)
            assert layer.kept == pytest.approx((s[:rank] ** 2).sum() / (s**2).sum(), abs=1e-5)
            assert layer.change == pytest.approx(np.linalg.norm(delta))
            written = merged(base, tmp_path / str(rank), layer.module + ".weight") - base.read(layer.module + ".weight")
            assert np.linalg.norm(delta - written) / np.linalg.norm(delta) == pytest.approx(layer.error, abs=1e-4)
            squares, lost = squares + (s**2).sum(), lost + (s[rank:] ** 2).sum()
        assert done.error == pytest.approx(np.sqrt(lost / squares), abs=2e-6)
        errors.append(done.error)
    assert errors == sorted(errors, reverse=True) and errors[0] > 0.8 and errors[3] < 0.5


def test_a_merged_lora_comes_back_at_its_own_rank(base: ModelFolder, tmp_path: Path) -> None:
    made = made_adapter(base.path, tmp_path / "lora", strength=0.05)
    weights = {name: merged(base, made, name) for name in base.weights()}
    done = extract(
        base, from_folder(folder_of(base, weights, tmp_path / "t"), base), tmp_path / "back", energy=0.999999
    )
    assert done.rank == 2 and done.error < 1e-4
    for name in weights:
        np.testing.assert_allclose(merged(base, tmp_path / "back", name), weights[name], atol=1e-6)


def test_an_adapter_of_all_weights_and_a_folder_give_the_same(base: ModelFolder, tmp_path: Path) -> None:
    weights = changed(base)
    one = extract(base, from_folder(folder_of(base, weights, tmp_path / "f"), base), tmp_path / "one", rank=3)
    two = extract(base, from_adapter(full_adapter(base, weights, tmp_path / "a"), base), tmp_path / "two", rank=3)
    assert [vars(layer) for layer in one.layers] == [vars(layer) for layer in two.layers]
    first, second = read_adapter(tmp_path / "one"), read_adapter(tmp_path / "two")
    assert first[0] == second[0]
    for name in first[1]:
        np.testing.assert_array_equal(first[1][name], second[1][name])
    settings = first[0].settings.model_dump()
    assert settings["rank"] == settings["alpha"] == 3


def test_energy_holds_in_every_layer(base: ModelFolder, tmp_path: Path) -> None:
    tuned = from_folder(folder_of(base, changed(base), tmp_path / "t"), base)
    done = extract(base, tuned, tmp_path / "o", energy=0.5)
    assert min(layer.kept for layer in done.layers) >= 0.5
    less = extract(base, tuned, tmp_path / "p", rank=done.rank - 1)
    assert min(layer.kept for layer in less.layers) < 0.5


def test_what_cannot_be_carried_is_named_with_its_size(base: ModelFolder, tmp_path: Path) -> None:
    weights = changed(base, lambda name: name == Q + ".weight")
    weights[NORM] = weights[NORM] * np.float32(1.01)
    weights["model.embed_tokens.weight"][7] += 0.5
    weights[DOWN + ".weight"] += np.float32(0.001)
    tuned = from_folder(folder_of(base, weights, tmp_path / "t"), base)
    done = extract(base, tuned, tmp_path / "o", rank=2, targets=["attention"])
    assert [layer.module for layer in done.layers] == [Q]
    assert len(done.unchanged) == 7 and Q not in done.unchanged
    left = {x.name: x for x in done.left}
    assert {x.name: x.kind for x in done.left} == {
        NORM: "norm", "model.embed_tokens.weight": "embedding", DOWN + ".weight": "linear",
    }  # fmt: skip
    assert left[NORM].relative == pytest.approx(0.01, rel=1e-3)
    assert left["model.embed_tokens.weight"].change == pytest.approx(0.5 * 8)
    assert [x.relative for x in done.left] == sorted((x.relative for x in done.left), reverse=True)


def test_biases_are_named(tmp_path: Path) -> None:
    base = ModelFolder.open(tiny_model(tmp_path / "qwen", "qwen2"))
    tuned = from_folder(
        folder_of(base, changed(base, lambda n: n.endswith(("bias", "q_proj.weight"))), tmp_path / "t"), base
    )
    done = extract(base, tuned, tmp_path / "o", rank=2)
    assert {left.kind for left in done.left} == {"bias"} and len(done.left) == 6


def refuse(
    base: ModelFolder, tmp_path: Path, weights: Weights, kind: type[FinetuneError], said: str, **how: object
) -> None:
    folder = folder_of(base, weights, tmp_path / "t")
    with pytest.raises(kind, match=said):
        extract(base, from_folder(folder, base), tmp_path / "o", **how)  # type: ignore[arg-type]
    assert not (tmp_path / "o").exists() and not list(tmp_path.glob(".writing*"))


def test_no_change_at_all_is_refused(base: ModelFolder, tmp_path: Path) -> None:
    refuse(base, tmp_path, changed(base, lambda _: False), AdapterError, "every weight of .* equals")


def test_a_change_that_no_linear_layer_has_is_refused(base: ModelFolder, tmp_path: Path) -> None:
    refuse(base, tmp_path, changed(base, lambda n: "norm" in n), AdapterError, "Changed were: norm .5 weights")


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"rank": 33}, "k_proj is 32 × 64: a rank above 32"),
        ({"rank": 0}, "greater than or equal to 1"),
        ({"rank": 4, "energy": 0.9}, "both set, but"),
        ({"energy": 1.5}, "--energy is 1.5"),
        ({"energy": 0.999}, r"needs rank \d+ in .* Rank 32 keeps 0\.\d+ in every layer"),
        ({"rank": 4, "targets": ["q_porj"]}, "Did you mean 'q_proj'"),
        ({"rank": 4, "layers": "7"}, "blocks 0 to 1"),
    ],
)
def test_ranks_and_targets_that_cannot_be(base: ModelFolder, tmp_path: Path, how: dict[str, object], said: str) -> None:
    refuse(base, tmp_path, changed(base), SpecError, said, **how)


def test_numbers_that_are_none_are_refused(base: ModelFolder, tmp_path: Path) -> None:
    weights = changed(base)
    weights[Q + ".weight"][0, 0] = np.nan
    refuse(base, tmp_path, weights, ModelError, "q_proj.weight contains NaN or infinite values", rank=2)


def test_other_models_are_refused(base: ModelFolder, tmp_path: Path) -> None:
    def said(folder: Path, words: str) -> None:
        with pytest.raises(ModelError, match=words):
            from_folder(folder, base)

    said(tiny_model(tmp_path / "qwen", "qwen2"), "a 'qwen2' model")
    said(tiny_model(tmp_path / "vocabulary", vocab=400), "embed_tokens.weight is 400 × 64, but .* 384 × 64")
    said(tiny_model(tmp_path / "deep", layers=3), "it has model.layers.2")
    said(tiny_model(tmp_path / "flat", layers=1), "it has no model.layers.1")
    said(tiny_model(tmp_path / "untied", tied=False), "lm_head.weight, which .* does not have")
    rope = tiny_model(tmp_path / "rope")
    config = json.loads((rope / "config.json").read_text("utf-8"))
    config["rope_parameters"]["rope_theta"] = 5e5
    (rope / "config.json").write_text(json.dumps(config), "utf-8")
    said(rope, "differs from")
    quantised = tiny_model(tmp_path / "quantised")
    config = json.loads((quantised / "config.json").read_text("utf-8"))
    (quantised / "config.json").write_text(json.dumps({**config, "quantization_config": {"bits": 4}}), "utf-8")
    said(quantised, "already quantised")


def test_adapters_of_other_kinds_and_bases_are_refused(base: ModelFolder, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="has no full weights"):
        from_adapter(made_adapter(base.path, tmp_path / "lora"), base)
    deep = ModelFolder.open(tiny_model(tmp_path / "deep", layers=3))
    with pytest.raises(AdapterError, match="its config"):
        from_adapter(full_adapter(deep, changed(deep), tmp_path / "a"), base)


def test_coarser_numbers_and_another_tokenizer_are_told(base: ModelFolder, tmp_path: Path) -> None:
    coarse = tiny_model(tmp_path / "coarse", dtype="bfloat16")
    (coarse / "chat_template.jinja").write_text("{{ messages }}", "utf-8")
    first, second = from_folder(coarse, base).notes
    assert "chat template differs from the base's" in first and "BF16, coarser" in second


def test_the_tuned_model_s_own_template_goes_with_the_adapter(base: ModelFolder, tmp_path: Path) -> None:
    tuned = folder_of(base, changed(base), tmp_path / "tuned")
    (tuned / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}", "utf-8")
    made = extract(base, from_folder(tuned, base), tmp_path / "out", rank=4).folder
    assert companions(base.path, made).sentences == ("its own chat template",)


@pytest.fixture
def stocked(home: paths.Home, tiny: Path, base: ModelFolder) -> paths.Home:
    """A home with a finished full run."""
    run = home.runs / "全部 run"
    full_adapter(base, changed(base), run / "adapter")
    (run / "run.json").write_text(json.dumps({"model": {"id": str(tiny)}}), "utf-8")
    return home


def call(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["adapters", "extract", *arguments])
    return int(ended.value.code or 0)


def test_a_run_is_extracted_into_the_library(stocked: paths.Home, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("全部 run", "--rank", "4", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["name"] == "全部 run-lora" and told["rank"] == 4 and len(told["layers"]) == 14
    assert told["kept"] == pytest.approx(1 - told["error"] ** 2)
    entry = library.entry("全部 run-lora", stocked)
    assert entry.describe().method == "lora" and entry.describe().rank == 4
    identity = read_identity(entry.folder)
    assert identity is not None and identity.run == "全部 run"
    assert identity.extra["extracted_from"]["method"] == "full" and identity.extra["extracted_from"]["rank"] == 4
    assert call("全部 run") == 2  # the name is taken
    assert "--name" in capsys.readouterr().err


def test_a_folder_is_extracted_for_people(
    stocked: paths.Home, base: ModelFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = changed(base, lambda name: is_linear(name) or name == NORM)
    tuned = folder_of(base, weights, tmp_path / "tuned")
    where = ("--tuned", str(tuned), "--model", str(base.path))
    assert call(*where, "--energy", "0.5", "--target", "q_proj", "--out", str(tmp_path / "成果")) == 0
    told = capsys.readouterr()
    assert "of the squared change kept" in told.out and "q_proj" in told.out
    assert "of type 'norm'" in told.err and "of type 'linear'" in told.err
    assert library.is_adapter(tmp_path / "成果")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ((), "either"),
        (("全部 run", "--tuned", "x"), "either"),
        (("--tuned", "x"), "--model"),
        (("全部 run", "--out", "x", "--name", "y"), "one of them"),
        (("全部 run", "--rank", "2000"), "a rank above 32"),
    ],
)
def test_mistakes_of_the_command_line(
    stocked: paths.Home, capsys: pytest.CaptureFixture[str], given: tuple[str, ...], said: str
) -> None:
    assert call(*given) == 2
    assert said in capsys.readouterr().err


def test_the_report_is_plain_json(base: ModelFolder, tmp_path: Path) -> None:
    done = extract(base, from_folder(folder_of(base, changed(base), tmp_path / "t"), base), tmp_path / "o", rank=1)
    assert isinstance(done, Extraction)
    told = json.loads(json.dumps(done.as_json()))
    assert told["parameters"] == sum(t.size for t in read_adapter(tmp_path / "o")[1].values())
