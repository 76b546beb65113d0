"""llama.cpp in a separate process, driven by JSON lines, so that a crash does not take the app down.

A script run by its path (see llama.py); imports the standard library and xllamacpp, nothing of the app. A request is
{"chat": [...]}, {"prompt": text or ids, ...} or, for other endpoints of llama.cpp's server, {"path": ..., "body": ...}; the reply is
llama.cpp's object, or {"error": ...}.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import sys
from pathlib import Path
from typing import Any

from finetune_local.system.messages import message_of
from finetune_local.system.untrusted.text import parse_json, parse_json_object

KEY = os.urandom(16).hex()
_LONGEST_SOCKET_PATH = 100  # bytes; the systems' limits are 104 and 108


def load(settings: dict[str, Any]) -> Any:
    """The model in llama.cpp, on the CPU, with exact (fp32) caches.

    The server always listens, though only this process calls it: on a socket file in our folder if possible, else on a port.
    """
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = settings["model"]
    params.n_ctx, params.n_parallel, params.n_gpu_layers = settings["context"], 1, 0
    params.n_batch = params.n_ubatch = min(512, settings["context"])
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = settings["threads"]
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.warmup = params.fit_params = params.ctx_shift = False
    params.ui = params.endpoint_slots = False
    params.cache_ram_mib, params.verbosity = 0, 1
    params.api_keys = [KEY]
    place = str(Path(settings["folder"]) / "l.sock")  # the ending makes it a socket file
    if os.name != "nt" and len(os.fsencode(place)) < _LONGEST_SOCKET_PATH:
        params.hostnames = [place]
    return xllamacpp.Server(params)


def answer(server: Any, request: dict[str, Any]) -> Any:
    """Answer one request; `chat` is rendered by the file's own template."""
    if "path" in request:
        return send(server, request["path"], request["body"])
    if "chat" in request:
        return server.handle_chat_completions({**request, "messages": request["chat"]})
    return server.handle_completions(request)


def send(server: Any, path: str, body: dict[str, Any]) -> Any:
    """POST a request to the address the server listens on: the socket file in our folder, or a local port."""
    address = str(server.listening_address)
    if address.startswith("unix://"):
        connection = http.client.HTTPConnection("localhost")
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.connect(address.removeprefix("unix://"))
    else:
        connection = http.client.HTTPConnection(address.rpartition("/")[2])
    try:
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
        connection.request("POST", path, json.dumps(body), headers)
        return parse_json(connection.getresponse().read())
    finally:
        connection.close()


def main() -> None:
    """Serve until the input ends. llama.cpp's output goes to stderr."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def reply(value: Any) -> None:
        out.write(json.dumps(value) + "\n")
        out.flush()

    try:
        server = load(parse_json_object(sys.stdin.readline()))
    except ImportError as error:
        reply({"missing": message_of(error)})
        return
    except Exception as error:  # noqa: BLE001 - every failure is reported to the parent
        reply({"error": message_of(error)})
        return
    reply({"ready": True})
    for line in sys.stdin:
        try:
            reply(answer(server, parse_json_object(line)))
        except Exception as error:  # noqa: BLE001 - the parent decides what it means
            reply({"error": message_of(error)})
    os._exit(0)  # the server's threads need not be joined


if __name__ == "__main__":
    main()
