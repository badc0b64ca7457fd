import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.extras  # it wraps a timm model

README = Path(__file__).parent.parent / "README.md"


def test_the_readmes_code_runs_as_it_stands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    assert len(blocks) >= 8
    exec(compile("\n".join(blocks), str(README), "exec"), {"__name__": "readme"})
