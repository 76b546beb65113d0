"""`models` and `doctor` as a user calls them."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from finetune_local.cli.main import main
from finetune_local.system.machine import Card
from finetune_local.system.paths import Home
from finetune_local.workspace import doctor
from hubserver import Hub
from tiny import tiny_model


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], home: Home) -> Any:
    def call(*words: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(words)
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return call


def result(out: str) -> Any:
    return json.loads(out.splitlines()[-1])


def test_get_list_info_remove(run: Any, hub: Hub, home: Home) -> None:
    code, out, err = run("models", "get", "some/tiny", "--name", "小模型", "--json")
    assert code == 0, err
    got = result(out)
    assert (got["name"], got["family"], got["from"]) == ("小模型", "llama", "some/tiny")
    assert Path(got["path"]) == home.models / "小模型"
    assert "100%" in err

    code, out, _ = run("models", "--json")
    listed = result(out)
    assert [m["use"] for m in listed["installed"]] == ["小模型"]
    assert listed["catalog"][0]["name"] == "smollm2-135m"
    code, out, _ = run("models", "list")
    assert "小模型" in out
    assert "qwen3-0.6b" in out

    code, out, _ = run("models", "info", "小模型", "--json")
    facts = result(out)
    assert facts["parameters"] > 0
    assert facts["training_memory_bytes"]["qlora, 4-bit"] < facts["training_memory_bytes"]["full, bf16"]
    code, out, _ = run("models", "info", "小模型")
    assert "some/tiny" in out

    code, out, _ = run("models", "remove", "小模型", "--yes", "--json")
    assert code == 0
    assert result(out) == {"removed": "小模型"}
    assert not (home.models / "小模型").exists()
    code, _, err = run("models", "remove", "小模型", "--yes")
    assert code == 2
    assert "is not installed" in err


def test_remove_touches_nothing_outside_the_home(run: Any, tmp_path: Path) -> None:
    outside = tiny_model(tmp_path / "outside")
    for name in (str(outside), "../../outside", ".."):
        code, _, _ = run("models", "remove", name, "--yes")
        assert code == 2
    assert (outside / "config.json").exists()


def test_no_name_is_not_the_default(run: Any, hub: Hub) -> None:
    code, _, err = run("models", "get", "")
    assert code == 2
    assert "is not in the list" in err


def test_a_wrong_name_is_the_users_error_also_in_json(run: Any) -> None:
    code, out, err = run("models", "get", "qwen3-0.6", "--json")
    assert code == 2
    assert "Did you mean 'qwen3-0.6b'?" in err
    assert result(out)["error"] == "ModelError"


def test_login_and_logout(run: Any, hub: Hub) -> None:
    import keyring

    code, _, _ = run("models", "login", "--token", "hf_secret")
    assert code == 0
    host = hub.address.removeprefix("http://")
    assert keyring.get_password("finetune-local", host) == "hf_secret"
    code, out, err = run("models", "logout")
    assert keyring.get_password("finetune-local", host) is None
    assert "hf_secret" not in out + err


def test_doctor_tells_everything_in_json(run: Any, home: Home) -> None:
    code, out, _ = run("doctor", "--json")
    assert code == 0
    facts = result(out)
    assert facts["backend"] in facts["backends"]
    assert facts["backend"] in facts["why"]
    assert facts["devices"]
    assert {"id", "kind", "name", "memory_bytes", "backend"} <= set(facts["devices"][0])
    assert facts["memory_bytes"] > 0
    assert facts["disk_free_bytes"] > 0
    assert facts["versions"]["python"]
    assert facts["home"] == str(home.root)


def test_doctor_in_words(run: Any) -> None:
    code, out, _ = run("doctor")
    assert code == 0
    assert out.startswith("Backend: ")
    assert "processors" in out


def test_doctor_works_with_no_backend_and_says_what_to_install(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    gone = ("torch", "mlx", "mlx_lm", "peft")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name in gone else real(name, *rest))
    code, out, _ = run("doctor", "--json")
    assert code == 0
    facts = result(out)
    assert facts["backend"] is None
    assert facts["devices"] == []
    assert "pip install" in facts["why"]
    assert "pip install" in facts["backends"]["torch"]["missing"]
    code, out, _ = run("doctor")
    assert code == 0
    assert out.startswith("No backend can be used.")


def test_doctor_tells_of_a_backend_that_was_asked_for_and_cannot_be_used(run: Any) -> None:
    code, out, _ = run("doctor", "--backend", "nonsense", "--json")
    assert code == 0
    assert result(out)["backend"] is None
    assert "nonsense" in result(out)["why"]


def test_doctor_survives_a_backend_that_does_not_load(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from finetune_local.backend import backends

    def broken(*_: object) -> None:
        raise OSError("libcudart.so.12: cannot open shared object file")

    for backend in backends().values():
        monkeypatch.setattr(type(backend), "devices", broken)
    code, out, _ = run("doctor", "--json")
    assert code == 0
    facts = result(out)
    assert facts["backend"] is None
    assert all("libcudart" in (b["missing"] or "libcudart") for b in facts["backends"].values())


def test_doctor_keeps_the_devices_of_a_backend_whose_notes_fail(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import asdict

    from finetune_local.backend import backends

    def broken(*_: object) -> None:
        raise RuntimeError("no driver")

    usable = {name: backend for name, backend in backends().items() if backend.missing() is None}
    for backend in usable.values():
        monkeypatch.setattr(type(backend), "notes", broken)
    code, out, _ = run("doctor", "--json")
    assert code == 0
    facts = result(out)
    expected = {
        name: [{"backend": name, **asdict(one)} for one in backend.devices()] for name, backend in usable.items()
    }
    assert usable and all(expected.values())
    assert {name: facts["backends"][name]["devices"] for name in usable} == expected
    assert facts["devices"] == [device for name in facts["backends"] for device in expected.get(name, [])]
    assert all("no driver" in facts["backends"][name]["missing"] for name in usable)
    assert all(list(one) == ["missing", "versions", "devices", "notes"] for one in facts["backends"].values())


def test_doctor_says_what_lies_idle(monkeypatch: pytest.MonkeyPatch, home: Home) -> None:
    import dataclasses

    from finetune_local.system import files, machine

    here = machine.machine()
    card = Card("RTX 4090", 24 << 30, "570.1")
    poor = dataclasses.replace(here, cards=(card,), memory_bytes=2 << 30)
    monkeypatch.setattr(machine, "machine", lambda: poor)
    monkeypatch.setattr(files, "free_bytes", lambda _: 1_000_000_000)
    said = " ".join(doctor.examine("auto", home).notes)
    assert "Only 1.0 GB are free" in said
    assert "very small models" in said
    assert "NVIDIA card (RTX 4090), but no backend uses it" in said
    mac = dataclasses.replace(here, system="macOS 15.1", architecture="arm64")
    monkeypatch.setattr(machine, "machine", lambda: mac)
    assert "finetune-local[mlx]" in " ".join(doctor.examine("auto", home).notes)
