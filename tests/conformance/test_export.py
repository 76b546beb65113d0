"""Exports run by other programs (PEFT, transformers, mlx-lm, llama.cpp) answer as base + adapter do, and verification sees when not."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finetune_local.adapter_format import write_adapter
from finetune_local.adapters.attach import attach
from finetune_local.backend import Backend
from finetune_local.data.tokenizers.tokenizer import Tokenizer
from finetune_local.export.engines import llama
from finetune_local.export.gguf import tensors as gguf_tensors
from finetune_local.export.gguf import tensors as metadata
from finetune_local.export.pipeline import export
from finetune_local.export.targets import gguf
from finetune_local.export.targets.merged import write_merged
from finetune_local.export.verification import candidates, compare, receivers
from finetune_local.export.verification import verify as verification
from finetune_local.export.verification.compare import F32
from finetune_local.export.verification.expected import probes
from finetune_local.export.verification.receivers import FOLDER_RECEIVERS
from finetune_local.export.verification.verify import verify
from finetune_local.models.folder import ModelFolder
from finetune_local.spec.low_rank.settings import LowRankSettings
from finetune_local.spec.tuners import tuners
from finetune_local.system.errors import VerificationFailed
from made import made_adapter
from receiving import answered_here
from sentencepiece_like import make_sentencepiece_like
from tiny import tiny_model

needs_llama = pytest.mark.skipif(not llama.available(), reason="xllamacpp is not installed")
needs_peft = pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="PEFT is not installed")
needs_mlx_lm = pytest.mark.skipif(importlib.util.find_spec("mlx_lm") is None, reason="mlx-lm is not installed")
FAMILIES = ("llama", "qwen2", "qwen3", "mistral")


@pytest.fixture(autouse=True)
def quick_receivers(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers and mlx-lm answer in this process; see tests/receiving.py."""
    monkeypatch.setattr(receivers, "run_receiver", answered_here)


@pytest.fixture
def adapter(tiny: Path, tmp_path: Path) -> Path:
    return made_adapter(tiny, tmp_path / "an adapter 适配器")


@needs_peft
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # PEFT's own use of transformers
@pytest.mark.parametrize(
    "settings",
    [
        LowRankSettings(rank=4),
        LowRankSettings(rank=4, alpha=3.0, scaling="rslora"),
        LowRankSettings(rank=4, use_dora=True, targets=("attention",)),
    ],
    ids=["lora", "rslora", "dora"],
)
def test_merging_in_numpy_is_merging_in_peft(tiny: Path, tmp_path: Path, settings: LowRankSettings) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base, family = ModelFolder.open(tiny), tuners()["low_rank"]
    plan = family.plan("lora", settings, base.info())
    rng = np.random.default_rng(1)
    tensors = {
        name: (rng.normal(1 if len(shape) == 1 else 0, 0.3, shape)).astype(np.float32)
        for name, shape in family.shapes(plan).items()
    }
    write_adapter(tmp_path / "a", plan, tensors, base.name)
    write_merged(base, tmp_path / "a", tmp_path / "out")
    loaded = AutoModelForCausalLM.from_pretrained(str(tiny))
    theirs = PeftModel.from_pretrained(loaded, str(tmp_path / "a")).merge_and_unload().state_dict()
    ours = ModelFolder.open(tmp_path / "out")
    for name in ours.weights():
        np.testing.assert_allclose(ours.read(name), theirs[name].numpy(), rtol=0, atol=1e-5, err_msg=name)


def reference_logits(backend: Backend, base: Path, adapter: Path, ids: list[int]) -> np.ndarray:
    session = backend.load(base, "fp32")
    attach(session, ModelFolder.open(base), Tokenizer.load(base), adapter, "a")
    return session.logits(ids)


IDS = list(range(3, 43))


@needs_peft
@pytest.mark.parametrize("family", [*FAMILIES, "gemma", "gemma3_text"])
def test_plain_transformers_loads_the_folder(family: str, tmp_path: Path, backend: Backend) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    base = tiny_model(tmp_path / "base", family)
    adapter = made_adapter(base, tmp_path / "a", strength=0.1)
    write_merged(ModelFolder.open(base), adapter, tmp_path / "out 合")
    model = AutoModelForCausalLM.from_pretrained(str(tmp_path / "out 合"))
    with torch.no_grad():
        theirs = model(torch.tensor([IDS])).logits[0].numpy()
    assert np.abs(theirs - reference_logits(backend, base, adapter, IDS)).max() < 1e-3


@needs_mlx_lm
@pytest.mark.parametrize("family", [*FAMILIES, "gemma", "gemma3_text"])
def test_plain_mlx_lm_loads_the_folder(family: str, tmp_path: Path, backend: Backend) -> None:
    """mlx-lm reads `rope_theta` alone: without it these logits are far off, as the tiny models' theta is not the default."""
    import mlx.core as mx
    from mlx_lm.utils import load_model

    base = tiny_model(tmp_path / "base", family)
    adapter = made_adapter(base, tmp_path / "a", strength=0.1)
    write_merged(ModelFolder.open(base), adapter, tmp_path / "out 合")
    theirs = np.array(load_model(tmp_path / "out 合")[0](mx.array([IDS]))[0])
    assert np.abs(theirs - reference_logits(backend, base, adapter, IDS)).max() < 1e-3


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_merged_folders_pass_verification(
    tiny: Path, adapter: Path, tmp_path: Path, backend: Backend, dtype: str
) -> None:
    done = export("merged", ModelFolder.open(tiny), adapter, tmp_path / "out", dtype, backend=backend.name)
    assert done.verification.passed and done.verification.backend == backend.name
    assert done.verification.equal_texts + len(done.verification.near_ties) == done.verification.prompts == 4
    assert done.verification.kl_mean is not None and done.verification.kl_mean < (1e-5 if dtype == "float32" else 1e-3)


@needs_llama
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("quant", ["f32", "f16", "q8_0"])
def test_gguf_files_pass_verification(family: str, quant: str, tmp_path: Path) -> None:
    base = tiny_model(tmp_path / "base", family)
    adapter = made_adapter(base, tmp_path / "a", strength=0.1)
    done = export("gguf", ModelFolder.open(base), adapter, tmp_path / "模型 m.gguf", quant)
    assert done.verification.passed and done.files == [tmp_path / "模型 m.gguf"]
    assert (
        done.verification.kl_mean is not None
        and done.verification.kl_mean < {"f32": 1e-5, "f16": 1e-4, "q8_0": 2e-2}[quant]
    )
    if quant != "q8_0":
        assert done.verification.equal_texts + len(done.verification.near_ties) == done.verification.prompts


@needs_llama
@pytest.mark.parametrize("quant", ["q6_k", "q5_k_m", "q4_k_m", "q5_1", "q4_0"])
def test_small_formats_stay_within_their_limits(quant: str, tiny: Path, adapter: Path, tmp_path: Path) -> None:
    verification_of = export(
        "gguf", ModelFolder.open(tiny), adapter, tmp_path / "m.gguf", quant, backend="torch"
    ).verification
    assert verification_of.passed and verification_of.kl_mean is not None and verification_of.kl_limit is not None
    assert 0 < verification_of.kl_mean < verification_of.kl_limit and verification_of.tie_tolerance is None


@needs_llama
def test_a_folder_for_ollama_passes_the_verification_of_its_gguf(tiny: Path, adapter: Path, tmp_path: Path) -> None:
    done = export("ollama", ModelFolder.open(tiny), adapter, tmp_path / "我的 ollama", "q8_0", backend="torch")
    assert done.verification.passed and {file.suffix for file in done.files} == {"", ".md", ".gguf"}


@needs_llama
@pytest.mark.parametrize(
    "scaling",
    [
        {"rope_type": "linear", "factor": 4.0},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    ],
    ids=lambda scaling: scaling["rope_type"],
)
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_scaled_positions_are_the_same_in_llama_cpp(scaling: dict[str, Any], family: str, tmp_path: Path) -> None:
    if family == "qwen3" and scaling["rope_type"] == "llama3":
        return  # llama.cpp has no place for it: refused, see tests/unit/export
    base = tiny_model(tmp_path / "base", family)
    config = json.loads((base / "config.json").read_text("utf-8"))
    config["rope_parameters"] = {"rope_theta": 10000.0, **scaling}
    (base / "config.json").write_text(json.dumps(config), "utf-8")
    done = export("gguf", ModelFolder.open(base), None, tmp_path / "m.gguf", "f32", backend="torch")
    assert done.verification.kl_mean is not None and done.verification.kl_mean < 1e-5


@needs_llama
def test_a_sentencepiece_like_tokenizer_reads_the_same_in_llama_cpp(tmp_path: Path) -> None:
    base = ModelFolder.open(make_sentencepiece_like(tmp_path / "base"))
    done = export("gguf", base, None, tmp_path / "m.gguf", "f32")
    assert (
        done.verification.passed
        and done.verification.equal_texts + len(done.verification.near_ties) == done.verification.prompts
    )


@needs_llama
def test_verification_opens_no_connection(tiny: Path, adapter: Path, tmp_path: Path, no_network: None) -> None:
    assert export("gguf", ModelFolder.open(tiny), adapter, tmp_path / "m.gguf").verification.passed


def swapped(weights: Any, name: str) -> Any:
    return weights.read(name.replace("up_proj", "gate_proj") if "1.mlp.up_proj" in name else name)


def unpermuted(weights: Any, name: str) -> Any:
    return weights.read(name)


@needs_llama
@pytest.mark.parametrize("wrong", [swapped, unpermuted])
def test_wrong_tensors_fail_verification(
    wrong: Callable[..., Any], tiny: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gguf_tensors, "_made", wrong)
    with pytest.raises(
        VerificationFailed, match=r"greedy text: llama.cpp: prompt 1 \(“.*”\), token \d+: .* kept in .*m\.gguf\.failed"
    ):
        export("gguf", ModelFolder.open(tiny), adapter, tmp_path / "m.gguf", "f16")
    with pytest.raises(VerificationFailed, match=r"probabilities: llama.cpp: the mean KL divergence .* prompt \d"):
        export("gguf", ModelFolder.open(tiny), adapter, tmp_path / "m.gguf", "q8_0")
    with pytest.raises(VerificationFailed, match=r"probabilities: .* So few bits are too few for this model"):
        export("gguf", ModelFolder.open(tiny), adapter, tmp_path / "m.gguf", "q4_0")
    assert not (tmp_path / "m.gguf").exists()


@pytest.fixture
def unrehearsed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tokenizer is not tried before the file is written."""
    monkeypatch.setattr(gguf, "rehearse", lambda *_: None)


@needs_llama
@pytest.mark.usefixtures("unrehearsed")
@pytest.mark.parametrize(
    ("missing", "message"),
    [("add_chat_template", "chat template"), ("add_eos_token_id", "stop tokens: .* does not stop at “<|im_end|>”")],
)
def test_a_forgotten_key_fails_verification(
    missing: str, message: str, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gguf import GGUFWriter

    tokenizer = (tiny / "tokenizer.json").read_text("utf-8")
    # llama.cpp knows the usual end tokens by their names too, so this one has a name of its own
    base = tiny_model(tmp_path / "base")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        text = (base / name).read_text("utf-8").replace("<|im_end|>", "<|fin|>")
        (base / name).write_text(text, "utf-8")
    assert "<|im_end|>" in tokenizer
    monkeypatch.setattr(GGUFWriter, missing, lambda *_: None)
    with pytest.raises(VerificationFailed, match=message.replace("<|im_end|>", r"<\|fin\|>")):
        export("gguf", ModelFolder.open(base), None, tmp_path / "m.gguf")


@needs_llama
@pytest.mark.usefixtures("unrehearsed")
def test_another_cut_of_the_text_fails_verification(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_merges(self: Any, merges: list[str]) -> None:
        self.add_array("tokenizer.ggml.merges", merges[: len(merges) // 2])

    from gguf import GGUFWriter

    monkeypatch.setattr(GGUFWriter, "add_token_merges", without_merges)
    with pytest.raises(VerificationFailed, match=r"token ids: llama.cpp: .* they differ from token \d+"):
        export("gguf", ModelFolder.open(tiny), None, tmp_path / "m.gguf")


@needs_llama
def test_a_file_that_llama_cpp_refuses_fails_verification_and_not_the_app(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metadata, "head_dim", lambda _: 7)
    with pytest.raises(VerificationFailed, match=r"llama\.cpp cannot run the export"):
        export("gguf", ModelFolder.open(tiny), None, tmp_path / "m.gguf")


def test_a_merged_folder_that_was_tampered_with_fails_verification(tiny: Path, adapter: Path, tmp_path: Path) -> None:
    base, out = ModelFolder.open(tiny), tmp_path / "out"
    write_merged(base, None, out)  # the adapter was forgotten
    with pytest.raises(VerificationFailed, match=r"greedy text: transformers: prompt \d"):
        verify(FOLDER_RECEIVERS, out, F32, base, adapter)
    write_merged(base, adapter, out)
    (out / "chat_template.jinja").write_text("{{ messages[0].content }}", "utf-8")
    with pytest.raises(VerificationFailed, match="chat template"):
        verify(FOLDER_RECEIVERS, out, F32, base, adapter)


def test_a_near_tie_is_reported_and_a_clear_difference_is_not(tiny: Path) -> None:
    probe = verification.Probe((), "text", (3, 4))
    logprobs = np.log(np.array([[0.5, 0.49, 0.01], [0.1, 0.2, 0.7]], np.float32))
    reference = candidates.Reference(probe, (0, 2), logprobs)
    check, expected = compare.ReceiverCheck("x"), verification.expected(ModelFolder.open(tiny), None)
    compare.compare_text(check, expected, reference, [1, 0], "prompt 1", 0.05)
    assert len(check.near_ties) == 1 and check.equal_texts == 0
    with pytest.raises(VerificationFailed, match=r"token 1: .*0\.0202 apart, and 0\.01 would pass"):
        compare.compare_text(check, expected, reference, [1, 0], "prompt 1", 0.01)
    compare.compare_text(check, expected, reference, [0, 2], "prompt 1", 0.05)
    assert check.equal_texts == 1


def test_kl_over_the_likeliest_tokens_is_a_lower_bound_and_exact_over_all() -> None:
    rng = np.random.default_rng(0)
    p, q = (np.log(rng.dirichlet(np.ones(50))).astype(np.float32) for _ in range(2))
    exact = float((np.exp(p) * (p - q)).sum())
    order = np.argsort(-q)
    everything = candidates.grouped_kl(p, {int(i): float(q[i]) for i in order})
    some = candidates.grouped_kl(p, {int(i): float(q[i]) for i in order[:20]})
    assert everything == pytest.approx(exact, rel=1e-4)
    assert 0 < some < exact


def test_without_llama_cpp_the_export_is_written_and_said_not_to_be_checked(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(receivers, "available", lambda: False)
    done = export("gguf", ModelFolder.open(tiny), None, tmp_path / "m.gguf")
    assert done.verification.passed is None and "pip install xllamacpp" in done.verification.reason
    assert (tmp_path / "m.gguf").exists()


@needs_llama
def test_probes_come_from_the_run_that_made_the_adapter(tiny: Path, tmp_path: Path) -> None:
    from finetune_local.data.dataset.prepare import prepare
    from finetune_local.spec.run import DataSettings

    run = tmp_path / "run"
    rows = [
        {"messages": [{"role": "user", "content": f"问题 {i}"}, {"role": "assistant", "content": "ok"}]}
        for i in range(40)
    ]
    data = tmp_path / "d.jsonl"
    data.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), "utf-8")
    tokenizer = Tokenizer.load(tiny)
    settings = DataSettings(files=(str(data),), validation=0.2)
    prepare(settings, tokenizer, 1, run / "data", 128, lambda *_: None)
    adapter = made_adapter(tiny, run / "adapter")
    found = probes(tokenizer, adapter, 512, raw=False)
    assert len(found) == 4 and all(probe.title.startswith("问题") for probe in found)
    (run / "run.json").write_text(json.dumps({"data": {"template": "raw"}}), "utf-8")
    done = export("gguf", ModelFolder.open(tiny), adapter, tmp_path / "m.gguf", "f32")
    assert done.verification.passed and done.verification.prompts == 4


def test_the_command_prints_files_and_verdict(tiny: Path, adapter: Path, tmp_path: Path) -> None:
    from click.testing import CliRunner

    from finetune_local.cli.export import command
    from finetune_local.cli.merge import command as merge

    options = ["--model", str(tiny), "--home", str(tmp_path / "home"), "--json"]
    done = CliRunner().invoke(merge, [str(adapter), "--out", str(tmp_path / "合 并"), *options], catch_exceptions=False)
    result = json.loads(done.stdout.splitlines()[-1])
    assert str(tmp_path / "合 并" / "model.safetensors") in result["files"] and result["gate"]["passed"] is True
    out = str(tmp_path / "m.gguf")
    done = CliRunner().invoke(
        command, ["base", "--to", "gguf", "--no-gate", "--out", out, *options], catch_exceptions=False
    )
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["files"] == [out] and result["gate"]["passed"] is None


@needs_llama
@pytest.mark.slow
def test_the_real_small_model_answers_the_same_in_llama_cpp(small_model: Path, tmp_path: Path) -> None:
    adapter = made_adapter(small_model, tmp_path / "a", strength=0.05)
    done = export("gguf", ModelFolder.open(small_model), adapter, tmp_path / "m.gguf", "f16")
    assert done.verification.passed and done.verification.equal_texts + len(done.verification.near_ties) == 4
    assert done.verification.kl_mean is not None and done.verification.kl_mean < 1e-3
