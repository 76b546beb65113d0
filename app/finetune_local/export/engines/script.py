"""A script that is run by its path in a separate process and answers on its standard output, until it is closed."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self


class Script:
    """The process. Use as a context manager; a subclass says how requests are written and replies are read."""

    def __init__(self, path: Path, encoding: str | None = None) -> None:
        """`encoding`: of standard input and output; None for bytes."""
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        # -P: the script's own folder holds modules named like packages (gguf.py), which must not stand in for them.
        command = [sys.executable, "-P", "-X", "utf8", str(path)]
        pipe = subprocess.PIPE
        self._process: subprocess.Popen[Any] = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=self._errors, encoding=encoding
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            if stream is not None:
                with suppress(BrokenPipeError):  # input the dead process had not read
                    stream.close()

    def last_words(self, most: int) -> list[str]:
        """The last lines, at most `most`, of what the process printed on standard error."""
        self._errors.seek(0)
        return self._errors.read().decode("utf-8", "replace").strip().splitlines()[-most:]
