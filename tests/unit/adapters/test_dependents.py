from __future__ import annotations

from pathlib import Path

from finetune_local.adapters.library import made_on
from finetune_local.system.paths import Home
from tiny import tiny_model


def adapter(folder: Path, base: str) -> None:
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(
        f'{{"peft_type": "LORA", "base_model_name_or_path": "{base}"}}', "utf-8"
    )
    (folder / "adapter_model.safetensors").write_bytes(b"")


def test_the_adapters_of_a_model_are_known_by_any_of_its_names(home: Home) -> None:
    place = tiny_model(home.models / "tiny")
    (place / "finetune_local_source.json").write_text('{"from": "some/tiny"}', "utf-8")
    adapter(home.adapters / "a", "tiny")
    adapter(home.adapters / "b 二", "some/tiny")
    adapter(home.adapters / "c", str(place))
    adapter(home.adapters / "d", "other")
    adapter(home.adapters / "broken", "tiny")
    (home.adapters / "broken" / "adapter_config.json").write_text("{", "utf-8")
    assert made_on("tiny", home) == ["a", "b 二", "c"]
    assert made_on("nothing", home) == []
