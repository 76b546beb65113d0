from __future__ import annotations

import json
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from finetune_local.cli.main import main
from finetune_local.models.hub.search import Hit, search
from finetune_local.system import preferences
from finetune_local.system.errors import DownloadFailed, ModelError
from hubserver import Hub


def listed(name: str, **more: Any) -> dict[str, Any]:
    """As the hub lists a model."""
    return {
        "id": name,
        "downloads": 10,
        "gated": False,
        "lastModified": "2025-07-21T10:20:30.000Z",
        "library_name": "transformers",
        "safetensors": {"parameters": {"BF16": 596_049_920}, "total": 596_049_920},
        "config": {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"},
        "tags": ["transformers", "safetensors", "qwen3", "text-generation", "license:apache-2.0"],
        **more,
    }


def test_what_can_be_trained_is_found_most_downloaded_first(hub: Hub) -> None:
    hub.models = [
        listed("a/few"),
        listed("b/many", downloads=99, gated="manual", safetensors=None, tags=["license:llama3.2"]),
        listed("c/untold", config=None, tags=None, lastModified=None, downloads=None),
    ]
    found = search("  qwen   0.6b ")
    assert found == [
        Hit("b/many", "qwen3", "llama3.2", True, None, "2025-07-21", 99),
        Hit("a/few", "qwen3", "apache-2.0", False, 596_049_920, "2025-07-21", 10),
        Hit("c/untold", "", "", False, 596_049_920, "", 0),
    ]
    assert [hit.name for hit in search("x", limit=1)] == ["b/many"]
    asked = parse_qs(urlsplit(hub.log[0][1]).query)
    assert asked["search"] == ["qwen 0.6b"]
    assert asked["filter"] == ["text-generation", "safetensors"]
    assert asked["sort"] == ["downloads"]
    assert {"safetensors", "gated", "config"} <= set(asked["expand"])


@pytest.mark.parametrize(
    "more",
    [
        {"config": {"model_type": "qwen3", "quantization_config": {"quant_method": "gptq"}}},
        {"config": {"model_type": "brand_new", "auto_map": {"AutoModel": "modeling_x.X"}}},
        {"config": {"model_type": "no-such-family"}},
        {"config": {"architectures": ["X"]}},
        {"tags": ["4-bit"]},
        {"tags": ["gguf"]},
        {"tags": ["base_model:adapter:Qwen/Qwen3-0.6B"]},
        {"library_name": "peft"},
        {"id": "no-organisation"},
        {"id": None},
    ],
)
def test_what_cannot_be_trained_is_left_out(hub: Hub, more: dict[str, Any]) -> None:
    hub.models = [listed("a/good"), listed("b/bad") | more, "nonsense"]  # type: ignore[list-item]
    assert [hit.name for hit in search("x")] == ["a/good"]


def test_nothing_to_look_for_and_a_server_that_answers_otherwise_are_sentences(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ModelError, match="enter words to search for"):
        search("  ")
    hub.statuses = [404]
    with pytest.raises(DownloadFailed, match="answers 404 to a search"):
        search("x")
    hub.models = {"error": "x"}  # type: ignore[assignment]
    with pytest.raises(DownloadFailed, match="unexpected response"):
        search("x")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(DownloadFailed, match="cannot be reached"):
        search("x", pause=lambda _: None)


def test_offline_nothing_is_asked(hub: Hub, own_config: None) -> None:
    preferences.save(offline=True)
    with pytest.raises(ModelError, match=r"searching the hub needs the network.*Settings"):
        search("qwen")
    assert not hub.log


def test_the_verb_prints_them(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    hub.models = [listed("a/few", gated="auto")]
    with pytest.raises(SystemExit) as ended:
        main(["models", "search", "qwen", "0.6b", "--json"])
    assert not ended.value.code
    assert json.loads(capsys.readouterr().out)["found"][0]["name"] == "a/few"
    with pytest.raises(SystemExit):
        main(["models", "search", "qwen"])
    shown = capsys.readouterr().out
    assert "a/few" in shown
    assert "accept it first" in shown
