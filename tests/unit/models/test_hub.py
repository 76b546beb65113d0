from __future__ import annotations

import shutil
from collections import namedtuple
from pathlib import Path

import pytest

import hubserver
from finetune_local.models.folder import ModelFolder
from finetune_local.models.hub import repository as hub_module
from finetune_local.models.hub.access import forget_token, store_token
from finetune_local.models.hub.http_file import Transfer
from finetune_local.models.hub.repository import Speed, get
from finetune_local.models.install import installed, source_of
from finetune_local.models.resolve import find
from finetune_local.system.errors import DiskFull, DownloadFailed, ModelError, Stopped
from finetune_local.system.paths import Home
from hubserver import COMMIT, Hub

pauses: list[float] = []


def download(home: Home, name: str = "some/tiny", **options: object) -> ModelFolder:
    return get(name, home, lambda *_: None, pause=pauses.append, **options)  # type: ignore[arg-type]


def same_weights(got: ModelFolder, served: Path) -> bool:
    original = ModelFolder.open(served)
    return got.weights() == original.weights() and all(
        (got.read(name) == original.read(name)).all() for name in original.weights()
    )


def left_over(home: Home) -> list[str]:
    return [f.name for f in home.models.iterdir() if f.name.startswith(".")]


def test_a_model_arrives_whole_under_its_name_with_its_source(hub: Hub, home: Home) -> None:
    seen: list[tuple[str, float | None]] = []
    model = get("some/tiny", home, lambda text, done: seen.append((text, done)))
    assert model.path == home.models / "tiny"
    assert same_weights(model, hub.folder)
    assert source_of(model.path) == {"from": "some/tiny", "revision": COMMIT, "license": "apache-2.0"}
    assert seen[-1][1] == 1.0
    assert not left_over(home)
    assert not list((home.cache / "downloads").iterdir())
    assert find("some/tiny", home).path == model.path
    assert all(f"/resolve/{COMMIT}/" in path for _, path, _ in hub.log if "/resolve/" in path)


def test_it_is_not_downloaded_twice(hub: Hub, home: Home) -> None:
    download(home)
    hub.log.clear()
    download(home)
    assert not hub.asked("/resolve/")


def test_a_name_that_is_taken_by_another_model_is_refused(hub: Hub, home: Home) -> None:
    download(home)
    hub.extra["LICENSE"] = b"other"
    (home.models / "tiny" / "finetune_local_source.json").write_text('{"from": "other/tiny"}', "utf-8")
    with pytest.raises(ModelError, match=r"already.*--name"):
        download(home)
    assert get("some/tiny", home, lambda *_: None, name="again").name == "again"


def test_pickles_and_code_are_never_asked_for(hub: Hub, home: Home) -> None:
    hub.extra = {
        "pytorch_model.bin": b"pickle",
        "modeling_tiny.py": b"print()",
        "original.pt": b"x",
        "consolidated.safetensors": b"second copy",
        "LICENSE": b"Apache",
        "onnx/model.onnx": b"x",
    }
    model = download(home)
    names = {file.name for file in model.path.iterdir()}
    assert "LICENSE" in names
    assert not {"pytorch_model.bin", "modeling_tiny.py", "original.pt", "consolidated.safetensors"} & names
    assert not any(hub.asked(name) for name in (".bin", ".py", ".pt", "consolidated", "onnx"))


def test_files_of_the_same_content_and_empty_ones_all_arrive(hub: Hub, home: Home) -> None:
    hub.extra = {"special_tokens_map.json": b"{}", "added_tokens.json": b"{}", "NOTICE": b""}
    model = download(home)
    assert {name: (model.path / name).read_bytes() for name in hub.extra} == hub.extra


@pytest.mark.parametrize(
    "name", ["model\\..\\..\\evil.safetensors", "model:evil.safetensors", "model/evil.safetensors"]
)
def test_names_that_lead_elsewhere_are_not_asked_for(hub: Hub, home: Home, name: str) -> None:
    hub.extra = {name: b"x"}
    assert same_weights(download(home), hub.folder)
    assert not hub.asked("evil")


def test_a_hash_that_is_a_path_is_no_hash(
    hub: Hub, home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = hubserver.siblings

    def bad(files: dict[str, bytes]) -> list[dict[str, object]]:
        return [
            {**entry, **({"lfs": {"sha256": "../../out", "size": 9}} if "lfs" in entry else {})}
            for entry in listed(files)
        ]

    monkeypatch.setattr(hubserver, "siblings", bad)
    with pytest.raises(DownloadFailed, match="no checksum"):
        download(home)
    assert not hub.asked("/resolve/")
    assert not list(tmp_path.rglob("out.part"))


def test_a_cut_connection_is_resumed_where_it_broke_off(hub: Hub, home: Home) -> None:
    hub.cut_after = [1000, 5000]
    assert same_weights(download(home), hub.folder)
    ranges = [h["range"] for h in hub.asked("/blob/", "cdn") if "range" in h]
    assert ranges == ["bytes=1000-", "bytes=6000-"]


def test_ctrl_c_keeps_the_part_and_the_next_try_goes_on(hub: Hub, home: Home) -> None:
    hub.cut_after = [5000]

    def press(seconds: float) -> None:  # Ctrl-C while it waits before the next try
        raise KeyboardInterrupt

    with pytest.raises(Stopped, match="again"):
        get("some/tiny", home, lambda *_: None, pause=press)
    assert not installed(home.models)
    assert not left_over(home)
    assert [f.stat().st_size for f in (home.cache / "downloads").iterdir()].count(5000) == 1
    hub.log.clear()
    assert same_weights(download(home), hub.folder)
    assert hub.asked("/blob/", "cdn")[0].get("range") == "bytes=5000-"


def test_a_server_without_ranges_starts_over(hub: Hub, home: Home) -> None:
    hub.cut_after, hub.ignore_ranges = [3000], True
    assert same_weights(download(home), hub.folder)


def test_wrong_bytes_are_thrown_away_and_fetched_again(hub: Hub, home: Home) -> None:
    hub.wrong_bytes = 1
    assert same_weights(download(home), hub.folder)


def test_bytes_that_stay_wrong_fail_and_leave_no_model(hub: Hub, home: Home) -> None:
    hub.wrong_bytes = 100
    with pytest.raises(DownloadFailed, match="checksum"):
        download(home)
    assert not installed(home.models)
    assert not left_over(home)


def test_a_busy_server_is_asked_again_after_longer_and_longer_pauses(hub: Hub, home: Home) -> None:
    pauses.clear()
    hub.statuses = [429, 503, 500]
    assert same_weights(download(home), hub.folder)
    assert len(pauses) == 3
    assert pauses[0] < pauses[1] < pauses[2]


def test_a_server_that_stays_broken_fails_with_a_sentence(hub: Hub, home: Home) -> None:
    hub.statuses = [503] * 50
    with pytest.raises(DownloadFailed, match=r"503.*continues where it stopped"):
        download(home)


def test_no_network_is_told_quickly(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    pauses.clear()
    with pytest.raises(DownloadFailed, match=r"cannot be reached.*HF_ENDPOINT"):
        download(home)
    assert sum(pauses) < 5


def test_the_token_goes_to_the_hub_and_not_to_the_host_it_redirects_to(hub: Hub, home: Home) -> None:
    hub.token, hub.gated = "hf_secret", True
    assert same_weights(download(home, token="hf_secret"), hub.folder)
    assert all(h.get("authorization") == "Bearer hf_secret" for h in hub.asked("", "hub"))
    assert hub.asked("/blob/", "cdn")
    assert not any("authorization" in h for h in hub.asked("", "cdn"))


@pytest.mark.parametrize("way", ["environment", "keyring"])
def test_the_token_is_found(hub: Hub, home: Home, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    hub.token, hub.gated = "hf_secret", True
    if way == "environment":
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
    else:
        store_token("hf_secret\n", hub.address)
    assert download(home).name == "tiny"


def test_gated_models_say_how_to_get_access(hub: Hub, home: Home) -> None:
    hub.gated = True
    with pytest.raises(ModelError, match=r"some/tiny is gated: accept its licence at .*/some/tiny.* models login"):
        download(home)
    hub.token, hub.token_has_access = "hf_secret", False
    with pytest.raises(ModelError, match="your token has no access"):
        download(home, token="hf_secret")
    with pytest.raises(ModelError, match="does not accept the token"):
        download(home, token="hf_wrong")


def test_unknown_models_and_revisions_are_told_apart(hub: Hub, home: Home) -> None:
    with pytest.raises(ModelError, match=r"there is no model some/other .* token"):
        download(home, "some/other")
    with pytest.raises(ModelError, match="no revision 'v9'"):
        download(home, revision="v9")
    with pytest.raises(ModelError, match="ORG/NAME"):
        download(home, "../../etc/passwd")
    with pytest.raises(ModelError, match="--name"):
        get("some/tiny", home, lambda *_: None, name="a/b")


@pytest.mark.parametrize(
    ("without", "extra", "says"),
    [
        ({"config.json"}, {"adapter_config.json": b"{}"}, "is an adapter"),
        ({"config.json"}, {"x.gguf": b"GGUF"}, "GGUF"),
        ({"config.json"}, {}, "no config.json"),
        ({"tokenizer.json"}, {}, "no tokenizer.json"),
        (
            {"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"},
            {"pytorch_model.bin": b"x"},
            "no safetensors, and pickled",
        ),
    ],
)
def test_repositories_that_cannot_be_used_are_refused_before_anything_is_fetched(
    hub: Hub, home: Home, without: set[str], extra: dict[str, bytes], says: str
) -> None:
    hub.without, hub.extra = without, extra
    with pytest.raises(ModelError, match=says):
        download(home)
    assert not hub.asked("/resolve/")


def test_a_model_with_its_own_code_is_refused_before_its_weights_are_fetched(hub: Hub, home: Home) -> None:
    hub.extra["config.json"] = b'{"model_type": "brand_new", "auto_map": {"AutoModel": "modeling_x.X"}}'
    with pytest.raises(ModelError, match="own Python code"):
        download(home)
    assert not hub.asked("safetensors")


def test_too_little_disk_is_told_before(hub: Hub, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10, 5, 5_000))
    with pytest.raises(DiskFull, match=r"needs .* more.*--home"):
        download(home)
    assert not hub.asked("/resolve/")


def test_a_token_is_not_sent_unencrypted_to_another_machine(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://mirror.example")
    with pytest.raises(ModelError, match="not encrypted"):
        download(home, token="hf_secret")


def test_a_token_can_be_forgotten(hub: Hub) -> None:
    store_token("hf_secret", hub.address)
    assert forget_token(hub.address)
    assert not forget_token(hub.address)


def test_a_machine_without_a_keyring_says_what_else_works(hub: Hub, home: Home) -> None:
    import keyring
    from keyring.backends.fail import Keyring

    keyring.set_keyring(Keyring())
    with pytest.raises(ModelError, match=r"no keyring.*HF_TOKEN"):
        store_token("hf_secret", hub.address)
    assert download(home).name == "tiny"


def test_speed_and_time_left() -> None:
    now = [0.0]
    speed = Speed(0, 4_000_000_000, lambda: now[0])
    assert speed.at(1).text == "0.0 of 4.0 GB"
    now[0] = 10.0
    assert speed.at(1_000_000_000) == Transfer(1_000_000_000, 4_000_000_000, 1e8, 30.0)
    assert speed.at(1_000_000_000).text == "1.0 of 4.0 GB, 100.0 MB/s, 30 s left"


def test_nothing_is_wanted_that_can_run_code() -> None:
    assert not [
        p
        for p in hub_module.WANTED
        if p.endswith((".py", ".bin", ".pt", ".pth", ".ckpt", ".pkl", "*"))
        and not p.startswith(("LICEN", "NOTICE", "USE_POLICY"))
    ]
