"""The MLX backend as a session: decoding, folders it takes and refuses, processes it starts, memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finetune_local.system.errors import AdapterError, ModelError, Unsupported
from mlx_tools import IDS, MLX, RATE, SFT, ready, train
from tasks import batch_of, plan_of
from tiny import tiny_model


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_rows_decoded_together_equal_each_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str) -> None:
    """Prompts of very different lengths, read in chunks, some longer than the sliding window (64 in gemma3_text)."""
    session = ready(tiny_model(tmp_path, family))
    train(session, 3)
    rng = np.random.default_rng(1)
    prompts = [rng.integers(3, 380, n).tolist() for n in (5, 90, 33, 1)]
    whole = [session.logits(p)[-1] for p in prompts]
    monkeypatch.setattr("finetune_local_backends.mlx.decoder._CHUNK", 16)

    def greedy(rows: Sequence[Sequence[int]]) -> tuple[list[np.ndarray], list[list[int]]]:
        decoder = session.decoder()
        seen = [decoder.feed(rows)]
        texts: list[list[int]] = [[] for _ in rows]
        for _ in range(12):
            for text, logits in zip(texts, seen[-1], strict=True):
                text.append(int(logits.argmax()))
            seen.append(decoder.feed([text[-1:] for text in texts]))
        return seen, texts

    together, texts = greedy(prompts)
    assert together[0].dtype == np.float32
    np.testing.assert_allclose(together[0], whole, atol=2e-5)
    for number, prompt in enumerate(prompts):
        alone, text = greedy([prompt])
        assert text[0] == texts[number]
        np.testing.assert_allclose([x[0] for x in alone], [x[number] for x in together], atol=5e-5)
        np.testing.assert_allclose(alone[-1][0], session.logits(prompt + text[0])[-1], atol=5e-5)


def test_a_text_goes_on_under_the_adapter_it_began_with(tiny: Path) -> None:
    session = ready(tiny)
    train(session, 3)
    steady, switched = session.decoder(), session.decoder()
    steady.feed([IDS])
    switched.feed([IDS])
    session.activate(None)
    np.testing.assert_array_equal(switched.feed([[9, 10]]), steady.feed([[9, 10]]))
    assert session.adapters() == ["a"]
    with pytest.raises(ValueError, match="equally many"):
        steady.feed([[1], [2]])


def edit(folder: Path, **fields: Any) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **fields}), "utf-8")
    return folder


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_file": "code.py"}, "its own code"),
        ({"quantization_config": {"quant_method": "gptq"}}, "already quantised"),
        ({"num_hidden_layers": 3}, "declares 3 blocks"),
    ],
)
def test_folders_that_cannot_be_used_are_refused(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        MLX.load(edit(tiny_model(tmp_path), **fields), "fp32", "cpu")


def test_code_beside_a_family_that_is_built_in_is_left_alone(tmp_path: Path) -> None:
    folder = edit(tiny_model(tmp_path), auto_map={"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"})
    (folder / "code.py").write_text("raise SystemExit('run')", "utf-8")
    assert np.isfinite(MLX.load(folder, "fp32", "cpu").logits(IDS)).all()


@pytest.mark.parametrize("family", ["no_such_family", "../llama", "olmo3"])
def test_families_that_were_not_checked_are_refused(tmp_path: Path, family: str) -> None:
    with pytest.raises(Unsupported, match=r"have not been verified.*llama, mistral"):
        MLX.load(edit(tiny_model(tmp_path), model_type=family), "fp32", "cpu")


def test_an_activation_that_mlx_lm_does_not_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="this one needs relu"):
        MLX.load(edit(tiny_model(tmp_path), hidden_act="relu"), "fp32", "cpu")


def test_broken_and_missing_files_are_told(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "模型 [1]")
    (folder / "model.safetensors").write_bytes(b"rubbish")
    with pytest.raises(ModelError, match=r"model\.safetensors: cannot be read"):
        MLX.load(folder, "fp32", "cpu")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"no \*\.safetensors here"):
        MLX.load(folder, "fp32", "cpu")
    (folder / "config.json").unlink()
    with pytest.raises(ModelError, match=r"no config\.json here"):
        MLX.load(folder, "fp32", "cpu")


def test_shards_in_a_folder_of_any_name_are_read_and_left_as_they_were(tmp_path: Path, tiny: Path) -> None:
    folder = tiny_model(tmp_path / "模型 [1] *", shards=3)
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    sharded = MLX.load(folder, "fp32", "cpu").logits(IDS)
    np.testing.assert_array_equal(sharded, MLX.load(tiny, "fp32", "cpu").logits(IDS))
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


def test_texts_beyond_a_window_that_mlx_lm_ignores_are_refused(tmp_path: Path) -> None:
    session = ready(tiny_model(tmp_path, "gemma2"))  # its window is 64 tokens
    assert session.logits([5] * 64).shape[0] == 64
    for long in (
        lambda: session.logits([5] * 65),
        lambda: session.decoder().feed([[5] * 65]),
        lambda: session.step([batch_of(2, 70)], SFT, RATE),
    ):
        with pytest.raises(Unsupported, match="sliding window of 64"):
            long()


def test_adapters_that_do_not_fit_are_refused(tmp_path: Path, tiny: Path) -> None:
    session = MLX.load(tiny, "fp32", "cpu")
    plan = plan_of(tiny)
    session.attach("a", plan, 0)
    good = session.tensors("a")
    name = next(iter(good))
    for tensors in (
        {k: v for k, v in good.items() if k != name},
        {**good, "more": good[name]},
        {**good, name: good[name][:, :-1]},
    ):
        with pytest.raises(AdapterError, match="does not fit"):
            session.attach("b", plan, 0, tensors)
    with pytest.raises(AdapterError, match="already in memory"):
        session.attach("a", plan, 0)
    other = tiny_model(tmp_path, layers=3)
    with pytest.raises(ModelError, match=r"no linear layer called model\.layers\.2"):
        session.attach("b", plan_of(other), 0)
    assert session.adapters() == ["a"]


@pytest.mark.parametrize(("value", "instead"), [("paged-adamw", "adamw"), ("paged-adamw-8bit", "adamw-8bit")])
def test_gaps_are_refused_with_their_reason(tiny: Path, value: str, instead: str) -> None:
    gap = next(g for g in MLX.gaps() if g.value == value)
    with pytest.raises(Unsupported, match="MLX has no") as raised:
        ready(tiny, training={"optimizer": value})
    assert gap.reason in str(raised.value)
    assert gap.instead == instead
    assert str(raised.value).endswith(f". Use --optimizer {instead}.")


def in_a_process(code: str, **environment: str) -> str:
    paths = os.pathsep.join(p for p in sys.path if p)
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": paths, **environment},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_looking_at_the_backend_imports_nothing_heavy() -> None:
    code = (
        "import sys; from finetune_local.backend import backends; b = backends()['mlx']\n"
        "b.missing(), b.versions(), b.devices(), b.gaps(), b.notes(), b.tuners()\n"
        "print([m for m in ('mlx', 'mlx_lm', 'transformers', 'torch') if m in sys.modules])"
    )
    assert in_a_process(code) == "[]"


def test_importing_mlx_lm_does_not_lower_the_limit_of_open_files() -> None:
    code = (
        "import resource; before = resource.getrlimit(resource.RLIMIT_NOFILE)\n"
        "from finetune_local_backends.mlx.device import start; start('cpu')\n"
        "print(before == resource.getrlimit(resource.RLIMIT_NOFILE))"
    )
    assert in_a_process(code) == "True"


MULTIPLY = (
    "from finetune_local_backends.mlx import BACKEND, blas; blas.prepare()\n"
    "import mlx.core as mx, numpy as np\n"
    "a = np.random.default_rng(0).normal(size=(2, 40, 30)).astype(np.float32)\n"
    "c = (a[0] + 1j * a[1]).astype(np.complex64)\n"
    "for x in (a[0], c):\n"
    "    assert np.allclose(np.array(mx.array(x) @ mx.array(x.T.copy())), x @ x.T, atol=1e-3)\n"
    "print(blas.calls() > 0, any('slower' in n for n in BACKEND.notes()))"
)


@pytest.mark.skipif(sys.platform != "linux", reason="only MLX's Linux build has the slow BLAS")
def test_products_go_through_the_fast_blas(tmp_path: Path) -> None:
    from finetune_local_backends.mlx import blas

    if blas.obstacle():
        pytest.skip(str(blas.obstacle()))
    home = {"FINETUNE_LOCAL_HOME": str(tmp_path / "家 home")}
    assert in_a_process(MULTIPLY, **home) == "True False"
    assert len(list((tmp_path / "家 home" / "cache").iterdir())) == 1
    assert in_a_process(MULTIPLY, **home, PATH="", CC="") == "True False"  # made already: no compiler is needed


@pytest.mark.skipif(sys.platform != "linux", reason="only MLX's Linux build has the slow BLAS")
def test_without_a_compiler_it_goes_on_and_says_so(tmp_path: Path) -> None:
    assert in_a_process(MULTIPLY, FINETUNE_LOCAL_HOME=str(tmp_path), PATH="", CC="") == "False True"
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    assert in_a_process(MULTIPLY, FINETUNE_LOCAL_HOME=str(tmp_path), CC=str(broken)).startswith("False")


OUT_OF_MEMORY = """
import resource, sys
from pathlib import Path
import numpy as np
from finetune_local.spec.batch import Batch
from finetune_local.system.errors import OutOfMemory
from test_mlx_reference import SFT, batch_of, ready, train
session = ready(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(FOLDER))
train(session, 2)
before = session.tensors("a"), session.optimizer_state()
held = int(Path("/proc/self/statm").read_text().split()[0]) * 4096
resource.setrlimit(resource.RLIMIT_AS, (held + (256 << 20), -1))
big = batch_of(64, 2048)
try:
    session.step([batch_of(), big], SFT, 1e-2)
except OutOfMemory as error:
    print("told", "not enough memory" in str(error))
after = session.tensors("a"), session.optimizer_state()
print(all(np.array_equal(b[k], a[k]) for b, a in zip(before, after) for k in b))
resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
print(session.step([batch_of()], SFT, 1e-2).loss < 8)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the limit of memory is set Linux's way")
def test_a_batch_that_does_not_fit_leaves_everything_as_it_was(tiny: Path) -> None:
    code = OUT_OF_MEMORY.replace("FOLDER", repr(str(tiny)))
    paths = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": paths},
    )
    assert done.stdout.split("\n")[:3] == ["told True", "True", "True"], done.stderr


def test_memory_in_use_is_told(tiny: Path) -> None:
    use = ready(tiny).memory()
    assert 10 << 20 < use.current_bytes <= use.peak_bytes
