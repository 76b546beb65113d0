"""For tests of the window's parts."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True, scope="module")
def _loops_are_closed() -> Iterator[None]:
    """Gradio makes an event loop for every Blocks and drops it; a later test in the same process would be told of it."""
    made, new = list[asyncio.AbstractEventLoop](), asyncio.new_event_loop

    def recorded() -> asyncio.AbstractEventLoop:
        made.append(new())
        return made[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(asyncio, "new_event_loop", recorded)
        yield
    for loop in made:
        if not loop.is_running():
            loop.close()
