"""Read and encode files only to look at them: a report and the first rows, nothing written."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from finetune_local.data.conversation import Conversation, Rejected, RowRejected
from finetune_local.data.encode import Encoded, Template, encode
from finetune_local.data.read import DataFile, nothing_usable
from finetune_local.data.report import FileReport, Report, Tally, file_report
from finetune_local.data.tokenizer import Tokenizer


class Inspection:
    """One look; `preview_rows` are the first `preview` conversations as encoded."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: Template,
        max_length: int,
        format: str = "auto",  # noqa: A002 - the user's word
        preview: int = 0,
    ) -> None:
        self._tokenizer, self._template, self._max_length = tokenizer, template, max_length
        self._format, self._preview = format, preview
        self.preview_rows: list[Encoded] = []

    def run(self, files: Sequence[str], validation_files: Sequence[str] = ()) -> Report:
        """The report on `files`; its leaks are those of its rows that occur in the validation files too.

        Raises DataError where a file cannot be used or no row of `files` can.
        """
        tally, reports = self._tally(files)
        if not tally.used:
            raise nothing_usable(files, tally.rejected)
        leaks = 0
        if validation_files:
            shown, self._preview = self._preview, 0
            other, _ = self._tally(validation_files)
            self._preview = shown
            leaks = int(np.isin(tally.keys, other.keys).sum())
        return tally.report(reports, self._max_length, self._template, leaks=leaks)

    def _tally(self, files: Sequence[str]) -> tuple[Tally, list[FileReport]]:
        tally, reports = Tally(), list[FileReport]()
        for name in files:
            file = DataFile(name, self._format)
            reports.append(file_report(file))
            for row in file:
                self._take(row, tally)
        return tally, reports

    def _take(self, row: Conversation | Rejected, tally: Tally) -> None:
        if isinstance(row, Rejected):
            tally.reject(row)
            return
        try:
            encoded = encode(row, self._tokenizer, self._template, self._max_length)
        except RowRejected as error:
            tally.reject(Rejected(row.source, str(error)))
            return
        tally.use(row, encoded)
        if len(self.preview_rows) < self._preview:
            self.preview_rows.append(encoded[0])
