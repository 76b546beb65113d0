from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_gradio_is_imported_without_making_stubs(tmp_path: Path) -> None:
    """With a package in Gradio's place: the module that makes stubs is loaded whole, but for the function that does."""
    package = tmp_path / "gradio"
    package.mkdir()
    (package / "__init__.py").write_text("from gradio import component_meta\ncomponent_meta.make()\n", "utf-8")
    (package / "component_meta.py").write_text(
        "def create_or_modify_pyi(*_):\n    raise SystemExit('a stub')\n\ndef make():\n    create_or_modify_pyi(1, 2, 3)\n",
        "utf-8",
    )
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from finetune_local.gui.http.gradio_patches import skip_stubs\n"
        "before = list(sys.meta_path); skip_stubs(); skip_stubs()\n"
        "import gradio; assert sys.meta_path == before; print(gradio.component_meta.__spec__.name)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.stdout == "gradio.component_meta\n", done.stderr
