"""`models get ORG/NAME`: download a model from the Hugging Face hub or a mirror, by plain HTTP.

With search.py and starter.py the only code that uses the network, and only on request. Safetensors, config, tokenizer, template
and license are downloaded; pickles and Python files never are.
API: https://huggingface.co/docs/hub/api (models/{id}/revision/{revision}?blobs=true; {id}/resolve/{commit}/{file}).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from finetune_local.models.folder import CONFIG, INDEX, TOKENIZER, ModelFolder, check_config, read_json
from finetune_local.models.hub.access import find_token, refuse_offline
from finetune_local.models.hub.answers import Repository, hash_in, read_answer, repository_in
from finetune_local.models.hub.http_file import ATTEMPTS, Client, RemoteFile, Speed, Transfer, fetch
from finetune_local.models.install import aside, check_name, installed, publish, source_of
from finetune_local.system.errors import DiskFull, DownloadFailed, ModelError, Stopped
from finetune_local.system.files import write_text
from finetune_local.system.locks import acquire
from finetune_local.system.messages import Progress, msg
from finetune_local.system.paths import Home
from finetune_local.system.untrusted import text as foreign_text
from finetune_local.system.untrusted.text import ForeignTextError

if TYPE_CHECKING:
    import httpx

ENDPOINT = "https://huggingface.co"
WANTED = (
    CONFIG,
    "generation_config.json",
    TOKENIZER,
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "*.jinja",
    "chat_template.json",
    INDEX,
    "*.safetensors",
    "LICENSE*",
    "LICENCE*",
    "NOTICE*",
    "USE_POLICY*",
)
_SPARE = 100_000_000  # bytes left free on the disk


def endpoint() -> str:
    """The hub's address: HF_ENDPOINT, else huggingface.co."""
    return (os.environ.get("HF_ENDPOINT") or ENDPOINT).rstrip("/")


def get(
    repository: str,
    home: Home,
    progress: Progress,
    *,
    revision: str = "main",
    name: str | None = None,
    token: str | None = None,
    transfer: Callable[[Transfer], None] | None = None,
    pause: Callable[[float], None] = time.sleep,
) -> ModelFolder:
    """Download a model into home.models, resuming an earlier attempt. `transfer` receives the progress.

    Raises ModelError (no such model, no access, not usable, offline), DownloadFailed, DiskFull, Stopped.
    """
    refuse_offline(f"downloading {repository}")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository, re.ASCII) or ".." in repository:
        raise ModelError(
            msg(
                "'{name}' is not a hub name. A hub name looks like ORG/NAME, for example Qwen/Qwen3-0.6B.",
                name=repository,
            )
        )
    name = check_name(name or repository.split("/")[1])
    place = endpoint()
    client = Client(place, find_token(token, place), pause)
    try:
        with _alone(repository, home):
            return _get(client, repository, revision, name, home, progress, transfer)
    except KeyboardInterrupt:
        raise Stopped(msg("download stopped. Run the same command again to continue where it stopped.")) from None
    finally:
        client.close()


def _get(
    client: Client,
    repository: str,
    revision: str,
    name: str,
    home: Home,
    progress: Progress,
    transfer: Callable[[Transfer], None] | None,
) -> ModelFolder:
    progress(msg("looking up {repository} at {host}", host=client.host, repository=repository), None)
    found = _list(client, repository, revision)
    source = {"from": repository, "revision": found.commit}
    if found.license:
        source["license"] = found.license
    if name in installed(home.models):
        if source_of(home.models / name) == source:
            return ModelFolder.open(home.models / name, name)
        raise ModelError(
            msg("a model '{name}' already exists. Choose another --name, or `models remove {name}` first.", name=name)
        )
    chosen = choose(repository, found.files)
    parts = _download(client, repository, found.commit, chosen, home, progress, transfer)
    with aside(home.models) as folder:
        moved: dict[str, Path] = {}
        for file in chosen:
            target = folder / file.name
            if file.key in moved:  # of the same content as another one, such as "{}"
                shutil.copyfile(moved[file.key], target)
            else:
                moved[file.key] = Path(shutil.move(parts[file.name], target))
        model = publish(folder, home.models, name, source)
    _note(repository, home).unlink(missing_ok=True)
    return model


def discard(repository: str, home: Home) -> None:
    """Delete the partial files of a download."""
    note = _note(repository, home)
    try:
        keys = foreign_text.read_json(note)
    except (OSError, ValueError):
        keys = []
    for key in keys if isinstance(keys, list) else []:
        if hash_in(key, 64) or hash_in(key, 40):
            (note.parent / f"{key}.part").unlink(missing_ok=True)
    note.unlink(missing_ok=True)


def _note(repository: str, home: Home) -> Path:
    """The file that records a download's partial files by hash."""
    return home.cache / "downloads" / f"{repository.replace('/', '--')}.json"


@contextmanager
def _alone(repository: str, home: Home) -> Iterator[None]:
    """Hold the lock of a download. Raises DownloadFailed if another process has it."""
    place = home.cache / "locks"
    place.mkdir(exist_ok=True)
    with (place / f"{repository.replace('/', '--')}.lock").open("ab") as file:
        if acquire(file.fileno()) is False:
            raise DownloadFailed(
                msg(
                    "{repository} is already being downloaded by another process. Wait for it to finish.",
                    repository=repository,
                )
            )
        yield


def choose(repository: str, files: Sequence[RemoteFile]) -> list[RemoteFile]:
    """The files to download, small ones first. Raises ModelError if the repository holds no usable base model."""
    chosen = [f for f in files if any(fnmatchcase(f.name, pattern) for pattern in WANTED)]
    names = {f.name for f in chosen}
    if INDEX in names or any(n.startswith("model") and n.endswith(".safetensors") for n in names):
        # Other *.safetensors beside model*.safetensors are second copies (consolidated.safetensors) or adapters.
        chosen = [f for f in chosen if not f.name.endswith(".safetensors") or f.name.startswith("model")]
    everything = {f.name for f in files}
    if CONFIG not in names:
        if "adapter_config.json" in everything:
            raise ModelError(
                msg(
                    "{repository} is an adapter, not a base model. Download the base model it belongs to.",
                    repository=repository,
                )
            )
        if any(n.endswith(".gguf") for n in everything):
            raise ModelError(
                msg(
                    "{repository} contains GGUF files. Use the original model it was converted from, or download one "
                    "GGUF file yourself and add it by its path: models get FILE.gguf",
                    repository=repository,
                )
            )
        raise ModelError(
            msg(
                "{repository} has no {file}, so it is not a language model that can be trained here.",
                repository=repository,
                file=CONFIG,
            )
        )
    if not any(n.endswith(".safetensors") for n in names):
        raise ModelError(
            msg(
                "{repository} has no safetensors, and pickled weights can run code. Choose another model.",
                repository=repository,
            )
        )
    if TOKENIZER not in names:
        raise ModelError(
            msg("{repository} has no {file}. Choose a newer model of this kind.", repository=repository, file=TOKENIZER)
        )
    if len({n.casefold() for n in names}) < len(names):
        raise ModelError(
            msg(
                "{repository} has files whose names differ only in capitalisation, which many disks treat as one file.",
                repository=repository,
            )
        )
    if unsure := [f.name for f in chosen if not f.key]:
        raise DownloadFailed(
            msg(
                "{repository}: the server has no checksum for {file}, so the file cannot be verified.",
                repository=repository,
                file=unsure[0],
            )
        )
    return sorted(chosen, key=lambda f: (f.name != CONFIG, f.size))


def _list(client: Client, repository: str, revision: str) -> Repository:
    url = f"{client.endpoint}/api/models/{repository}/revision/{quote(revision, safe='')}?blobs=true"
    found = request(client, url, refusal(client, repository, revision))
    try:
        return repository_in(found)
    except ForeignTextError as error:
        raise DownloadFailed(
            msg("{host} sent an unexpected response ({what}).", host=client.host, what=error)
        ) from None


def request(client: Client, url: str, refuse: Callable[[httpx.Response, str], None]) -> Any:
    """JSON from an API address, with retries. `refuse` turns a 4xx into an error.

    Raises what `refuse` returns, DownloadFailed.
    """
    import httpx

    problem: Exception | str = ""
    for attempt in range(ATTEMPTS):
        retry_after: str | None = None
        try:
            with client.get(url) as response:
                if response.status_code == 200:
                    return read_answer(response.iter_bytes())
                if response.status_code != 429 and response.status_code < 500:
                    refuse(response, "")
                retry_after, problem = (
                    response.headers.get("retry-after"),
                    msg("it answers {status}", status=response.status_code),
                )
        except (httpx.HTTPError, ForeignTextError) as error:
            problem = error
        if isinstance(problem, httpx.ConnectError) and attempt == 2:
            break  # no network at all: the user need not wait for a minute to hear it
        if attempt < ATTEMPTS - 1:
            client.pause(attempt, retry_after)
    raise client.unreachable(Exception(str(problem)))


def refusal(client: Client, repository: str, revision: str) -> Callable[[httpx.Response, str], None]:
    """Maps the hub's 4xx responses to a ModelError that says what to do."""

    def refuse(response: httpx.Response, file: str) -> None:
        code, page = response.headers.get("x-error-code", ""), f"{client.endpoint}/{repository}"
        gated = code == "GatedRepo" or (response.status_code == 403 and code != "RepoNotFound")
        if gated and client.token:
            raise ModelError(
                msg(
                    "{repository} is gated, and your token has no access to it. Accept its licence at {page} with the "
                    "account the token belongs to (some licences are granted by hand, later) and try again.",
                    repository=repository,
                    page=page,
                )
            )
        if gated:
            raise ModelError(
                msg(
                    "{repository} is gated: accept its licence at {page}, create a token at {endpoint}/settings/tokens, "
                    "and run `finetune-local models login` once (or use --token, or set HF_TOKEN).",
                    repository=repository,
                    page=page,
                    endpoint=client.endpoint,
                )
            )
        if code == "RevisionNotFound":
            raise ModelError(
                msg(
                    "{repository} has no revision '{revision}'. Remove --revision to use the newest.",
                    repository=repository,
                    revision=revision,
                )
            )
        if response.status_code == 401 and client.token and code != "RepoNotFound":
            raise ModelError(
                msg("{host} does not accept the token: it is wrong or expired. Create a new one.", host=client.host)
            )
        if response.status_code in (401, 404) and not file:
            private = "" if client.token else msg(" If it is private, a token is needed: finetune-local models login")
            raise ModelError(
                msg(
                    "there is no model {repository} at {host}. Check the spelling.{private}",
                    repository=repository,
                    host=client.host,
                    private=private,
                )
            )
        raise DownloadFailed(
            msg(
                "{host} answers {status} for {repository} {file}. Try again later.",
                host=client.host,
                status=response.status_code,
                repository=repository,
                file=file,
            )
        )

    return refuse


def _download(
    client: Client,
    repository: str,
    commit: str,
    files: Sequence[RemoteFile],
    home: Home,
    progress: Progress,
    transfer: Callable[[Transfer], None] | None,
) -> dict[str, Path]:
    """Download files into home.cache; file name -> path of the checked file."""
    cache = home.cache / "downloads"
    cache.mkdir(exist_ok=True)
    write_text(_note(repository, home), json.dumps([f.key for f in files]))
    parts = {f.name: cache / f"{f.key}.part" for f in files}
    here = {f.name: parts[f.name].stat().st_size if parts[f.name].exists() else 0 for f in files}
    total = sum(f.size for f in files)
    missing = total - sum(here.values())
    if (free := shutil.disk_usage(cache).free) < missing + _SPARE:
        raise DiskFull(
            msg(
                "{root}: {free} GB are free but {name} needs {needed} GB more. Free some space, or choose another "
                "--home.",
                root=home.root,
                free=f"{free / 1e9:.1f}",
                name=repository,
                needed=f"{missing / 1e9:.1f}",
            )
        )
    speed = Speed(sum(here.values()), total)
    refuse = refusal(client, repository, commit)
    for file in files:

        def came(count: int, name: str = file.name) -> None:
            here[name] = count
            now = speed.at(sum(here.values()))
            if transfer is not None:
                transfer(now)
            progress(f"{name}: {now.text}", now.here / max(1, total))

        url = f"{client.endpoint}/{repository}/resolve/{commit}/{quote(file.name)}"
        fetch(client, url, file, parts[file.name], came, refuse)
        if file.name == CONFIG:  # refuse an unusable model before its weights are downloaded
            check_config(repository, read_json(parts[CONFIG]))
    return parts
