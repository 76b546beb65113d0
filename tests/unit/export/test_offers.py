"""What can be exported as what: sizes, and reasons where it cannot."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from finetune_local.adapter_format import write_adapter
from finetune_local.adapters.identity import write_identity
from finetune_local.export.pipeline import Offers, offers
from finetune_local.gui.lookups.worker import offers as answer
from finetune_local.models.folder import ModelFolder
from finetune_local.runtime.rpc import RpcRequest
from finetune_local.spec.tuners import tuners
from finetune_local.system.errors import AdapterError
from finetune_local.system.paths import Home
from made import made_adapter
from tiny import tiny_model


@pytest.fixture
def stocked(home: Home) -> Home:
    tiny_model(home.models / "base")
    run = home.runs / "我的 run"
    made_adapter(home.models / "base", run / "adapter", run="我的 run")
    (run / "run.json").write_text(json.dumps({"model": {"id": "base"}}), "utf-8")
    return home


def test_every_target_with_what_it_takes(stocked: Home) -> None:
    found = offers(stocked, "我的 run")
    assert (found.name, found.base) == ("base-我的 run", "base")
    assert list(found.targets) == ["gguf", "ollama", "merged", "adapter"]
    for offer in found.targets.values():
        assert offer.reason == "" and all(quant.bytes for quant in offer.quants)
    sizes = {quant.key: quant.bytes or 0 for quant in found.targets["gguf"].quants}
    assert sizes["q4_k_m"] < sizes["q8_0"] < sizes["f16"]
    told = answer(RpcRequest({"id": 1, "procedure": "offers", "adapter": "我的 run"}, lambda _: None), stocked)
    assert Offers.from_json(json.loads(json.dumps(told))) == found


def test_a_bare_base(stocked: Home) -> None:
    found = offers(stocked, "base", "base")
    assert found.name == "base" and "the base model alone has no adapter" in found.targets["adapter"].reason
    assert not found.targets["gguf"].reason


def test_without_its_base_an_adapter_goes_alone(stocked: Home) -> None:
    shutil.rmtree(stocked.models / "base")
    found = offers(stocked, "我的 run")
    assert found.base is None and not found.targets["adapter"].reason
    assert "this model is not installed" in found.targets["merged"].reason


def test_what_cannot_be_merged_says_why(stocked: Home) -> None:
    model, family = ModelFolder.open(stocked.models / "base"), tuners()["prefix"]
    plan = family.plan("prefix", family.settings(prefix_length=4), model.info())
    tensors = {n: np.ones(shape, np.float32) for n, shape in family.shapes(plan).items()}
    folded_plan, folded = family.fold(plan, tensors)
    write_adapter(stocked.adapters / "p", folded_plan, folded, model.name)
    write_identity(stocked.adapters / "p", model.identity(), None, {"method": "prefix"})
    found = offers(stocked, "p", "base")
    assert "cannot be merged into the base's weights" in found.targets["merged"].reason
    assert "cannot be merged into the base's weights" in found.targets["gguf"].reason
    assert not found.targets["adapter"].reason


def test_families_that_llama_cpp_does_not_get(stocked: Home) -> None:
    tiny_model(stocked.models / "gem", "gemma")
    found = offers(stocked, "base", "gem")
    assert "cannot be exported to GGUF yet" in found.targets["ollama"].reason
    assert not found.targets["merged"].reason


def test_an_adapter_that_is_not_there(stocked: Home) -> None:
    with pytest.raises(AdapterError, match="no adapter 'x'"):
        offers(stocked, "x")


def test_what_a_folder_cannot_do_elsewhere_is_told_beforehand(home: Home) -> None:
    tiny_model(home.models / "untied", "gemma2", tied=False)
    found = offers(home, "base", "untied").targets
    assert found["merged"].reason == ""
    (note,) = found["merged"].notes
    assert note.startswith("not for mlx-lm: mlx-lm's class for gemma2 has no separate head")
