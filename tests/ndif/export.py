"""The project's own models as an NDIF server loads them: folders of the Hugging Face cache, and beside them the
client's part (configuration and tokenizer, no weights)."""

from __future__ import annotations

import shutil
from pathlib import Path

from gating import models
from gating.models import ModelConfig

MODELS = {
    "gating/tiny-llama": ModelConfig("tiny-llama", "tiny", architecture="llama"),
    "gating/smollm2-refusal": ModelConfig("smollm", "embedded", adapter="refusal-smollm2", dtype="float32"),
    "gating/smollm2-gated": ModelConfig("smollm-gated", "embedded", adapter="gated-smollm2", dtype="float32"),
}
COMMIT = "0" * 40


def export(name: str, served: Path, client: Path) -> None:
    """Write `name` into the cache folder `served`, and what needs no weights into `client`, unless they are there."""
    folder, light = (_folder(hub, name) for hub in (served, client))
    if (light / "config.json").is_file():
        return
    loaded = models.load(MODELS[name])
    for place in (folder, light):
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        refs = place.parents[1] / "refs"
        refs.mkdir(exist_ok=True)
        (refs / "main").write_text(COMMIT, encoding="utf-8")
    loaded.model.save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)
    models.forget()
    for path in folder.iterdir():
        if path.suffix != ".safetensors":
            shutil.copy(path, light)


def _folder(hub: Path, name: str) -> Path:
    return hub / f"models--{name.replace('/', '--')}" / "snapshots" / COMMIT
