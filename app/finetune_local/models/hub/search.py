"""Search the hub, or a mirror, for base models that can be trained here, most downloaded first.

API: https://huggingface.co/docs/hub/api (GET /api/models), one request for the list with each model's details.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from finetune_local.models.folder import check_config, is_plain
from finetune_local.models.gguf.header import HUB_TAG
from finetune_local.models.hub.access import find_token, refuse_offline
from finetune_local.models.hub.answers import Listed, models_in
from finetune_local.models.hub.http_file import Client
from finetune_local.models.hub.repository import endpoint, request
from finetune_local.system.errors import DownloadFailed, ModelError
from finetune_local.system.messages import msg
from finetune_local.system.untrusted.text import ForeignTextError

if TYPE_CHECKING:
    import httpx

MOST = 20
_REQUESTED = 60  # many are quantised copies, which are left out
_FIELDS = ("config", "downloads", "gated", "lastModified", "library_name", "safetensors", "tags")
_QUANTISED = {"4-bit", "8-bit", "awq", "gptq", "fp8", "bitsandbytes", "compressed-tensors", HUB_TAG, "exl2"}


@dataclass(frozen=True)
class Hit:
    """A model on the hub: ORG/NAME, architecture (model_type), license, whether it must be accepted first, number of parameters
    (None if unknown), date of the last change (ISO 8601), downloads in the last month.
    """

    name: str
    family: str
    license: str
    gated: bool
    parameters: int | None
    updated: str
    downloads: int


def search(
    words: str, *, limit: int = MOST, token: str | None = None, pause: Callable[[float], None] = time.sleep
) -> list[Hit]:
    """Models whose name contains these words: safetensors, not quantized, of an architecture that transformers implements.

    Raises ModelError (no words, offline), DownloadFailed.
    """
    refuse_offline(msg("searching the hub"))
    if not (words := " ".join(words.split())):
        raise ModelError(msg("enter words to search for, for example: qwen 0.6b"))
    place = endpoint()
    client = Client(place, find_token(token, place), pause)
    query = [("search", words), ("filter", "text-generation"), ("filter", "safetensors"), ("sort", "downloads")]
    query += [("limit", str(_REQUESTED)), *(("expand", field) for field in _FIELDS)]
    try:
        found = request(client, f"{client.endpoint}/api/models?{urlencode(query)}", _refuse(client))
    finally:
        client.close()
    try:
        hits = sorted(_hits(models_in(found)), key=lambda hit: -hit.downloads)
    except ForeignTextError as error:
        raise DownloadFailed(
            msg("{host} sent an unexpected response ({what}).", host=client.host, what=error)
        ) from None
    return hits[:limit]


def _hits(found: Iterable[Listed]) -> Iterator[Hit]:
    for model in found:
        if _can_be_trained(model.name, model.config, model.tags, model.library):
            licenses = (tag.removeprefix("license:") for tag in sorted(model.tags) if tag.startswith("license:"))
            family = model.config.get("model_type")
            yield Hit(
                model.name,
                family if isinstance(family, str) else "",
                next(licenses, ""),
                model.gated,
                model.parameters,
                model.updated,
                model.downloads,
            )


def _can_be_trained(name: str, config: Mapping[str, Any], tags: Set[str], library: str) -> bool:
    """Whether `models get` would accept it, as far as the list says; a missing config is checked later."""
    if tags & _QUANTISED or library in ("peft", "adapter-transformers") or _is_adapter(tags):
        return False
    if not config:
        return True
    try:
        check_config(name, config)
    except ModelError:
        return False
    return is_plain(str(config["model_type"]))


def _is_adapter(tags: Set[str]) -> bool:
    return any(tag.startswith(("base_model:adapter:", "base_model:quantized:")) for tag in tags)


def _refuse(client: Client) -> Callable[[httpx.Response, str], None]:
    def refuse(response: httpx.Response, _file: str) -> None:
        if response.status_code == 401 and client.token:
            raise ModelError(
                msg("{host} does not accept the token: it is wrong or expired. Create a new one.", host=client.host)
            )
        raise DownloadFailed(
            msg("{host} answers {status} to a search. Try again later.", host=client.host, status=response.status_code)
        )

    return refuse
