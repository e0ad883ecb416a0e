"""Model sources: what a newcomer adds, and what none of them needs until it is used."""

import subprocess
import sys

import pytest

from gating import models
from gating.errors import GatingError
from gating.models import ModelConfig
from gating.models.sources import SOURCES
from gating.models.tiny import Tiny


def tiny(**settings):
    return ModelConfig(**{"kind": "tiny", "architecture": "llama", **settings})


def test_a_models_configuration_is_imported_without_torch():
    code = "import sys; from gating.models import ModelConfig; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_peft_and_gguf_are_needed_only_where_an_adapter_or_a_gguf_file_is_read(monkeypatch, tmp_path):
    (tmp_path / "x.gguf").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "peft", None)
    monkeypatch.setitem(sys.modules, "gguf", None)
    assert models.load(tiny()) and models.identity(tiny(adapter="refusal-smollm2"))
    with pytest.raises(GatingError, match=r"model\.adapter=.* needs the package peft.*pip install 'gating\[run\]'"):
        models.load(tiny(adapter="refusal-smollm2"))
    with pytest.raises(GatingError, match=r"model\.gguf_file needs the package gguf.*pip install 'gating\[run\]'"):
        models.architecture(ModelConfig(kind="gguf", gguf_file=str(tmp_path / "x.gguf")))
    models.forget()


def test_a_new_source_is_a_class_and_a_line_of_the_registry(monkeypatch):
    class Copy(Tiny):
        def identity(self, fetch):
            return {"id": "copy"}

    monkeypatch.setitem(SOURCES, "copy", Copy)
    cfg = tiny(kind="copy")
    assert models.identity(cfg) == {**models.identity(tiny()), "kind": "copy", "id": "copy"}
    assert models.architecture(cfg) == models.architecture(tiny())
    assert models.load(cfg).fingerprint == models.load(tiny()).fingerprint
