"""Offline mode, and the hub's access token: from the command line, HF_TOKEN, or the system's keyring; never written to a file."""

from __future__ import annotations

import os
from urllib.parse import urlsplit

from finetune_local.system import preferences
from finetune_local.system.errors import ModelError
from finetune_local.system.messages import Message, msg

SERVICE = "finetune-local"


def find_token(explicit: str | None, endpoint: str) -> str | None:
    """The token for an endpoint, or None. A machine without a keyring has none stored."""
    from keyring.errors import KeyringError

    if token := explicit or os.environ.get("HF_TOKEN"):
        return token.strip()
    import keyring

    try:
        return keyring.get_password(SERVICE, _account(endpoint))
    except (KeyringError, RuntimeError):
        return None


def token_place(endpoint: str) -> str:
    """Where an endpoint's token comes from: "environment", "keyring" or "none"."""
    if os.environ.get("HF_TOKEN"):
        return "environment"
    return "keyring" if find_token(None, endpoint) else "none"


def store_token(token: str, endpoint: str) -> None:
    """Store a token in the system's keyring. Raises ModelError if there is no keyring."""
    import keyring
    from keyring.errors import KeyringError

    try:
        keyring.set_password(SERVICE, _account(endpoint), token.strip())
    except (KeyringError, RuntimeError) as error:
        raise ModelError(_no_keyring(error)) from None


def forget_token(endpoint: str) -> bool:
    """Delete the stored token; returns whether there was one. Raises ModelError if there is no keyring."""
    import keyring
    from keyring.errors import KeyringError, PasswordDeleteError

    try:
        keyring.delete_password(SERVICE, _account(endpoint))
    except PasswordDeleteError:
        return False
    except (KeyringError, RuntimeError) as error:
        raise ModelError(_no_keyring(error)) from None
    return True


def _account(endpoint: str) -> str:
    return urlsplit(endpoint).netloc


def _no_keyring(error: Exception) -> Message:
    first = str(error).splitlines()[0] if str(error) else type(error).__name__
    return msg(
        "this machine has no keyring in which the token could be stored safely ({error}). Set the "
        "environment variable HF_TOKEN, or use --token with each download.",
        error=first,
    )


def refuse_offline(what: str) -> None:
    """Raise ModelError if the user prefers to be offline; `what` begins the sentence: "downloading Qwen/Qwen3-0.6B"."""
    if preferences.load().offline:
        raise ModelError(
            msg(
                "{what} needs the network, and this app is set to stay offline. Turn “offline” off in Settings, or "
                "add a model copied from another machine: finetune-local models get FOLDER",
                what=what,
            )
        )
