"""What is often saved under a data file's name in its place: the page that leads to it, a pointer to it."""

from pathlib import Path

import pytest

from finetune_local.data.readers.read import read
from finetune_local.system.errors import DataError

PAGE = b"\n<!DOCTYPE html>\n<html><body><p>404, a, b</p></body></html>\n"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv"])
@pytest.mark.parametrize(("content", "expected"), [(PAGE, "a web page"), (POINTER, "git lfs pull")])
def test_it_is_called_what_it_is(tmp_path: Path, name: str, content: bytes, expected: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=expected):
        list(read([tmp_path / name]))


def test_a_text_may_be_a_page(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(PAGE)
    assert list(read([tmp_path / "a.txt"]))
