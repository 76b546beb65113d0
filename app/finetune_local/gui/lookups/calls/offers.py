"""What an adapter can be exported as, and what each quantization type will take: see export/offers.py. Values: adapter, model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from finetune_local.export.offers import offers
from finetune_local.runtime.rpc import RpcRequest
from finetune_local.system.paths import Home


def answer(request: RpcRequest, home: Home) -> Mapping[str, Any]:
    """The offers. Raises AdapterError."""
    return offers(home, str(request.values["adapter"]), request.values.get("model")).as_json()
