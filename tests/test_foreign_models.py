"""A model's folder and an adapter come from outside: what is not understood is said, with the file; none of it runs."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest
import safetensors.torch
import torch
from peft import LoraConfig
from transformers import AutoConfig, AutoModelForSeq2SeqLM

from gating import models
from gating.errors import GatingError
from gating.models import adapters
from tests.test_models import adapter, config, folder, logits  # noqa: F401 - fixtures

GARBAGE = (
    "",
    "[",
    "[]",
    "null",
    '"x"',
    "NaN",
    '{"a": 1, "a": 2}',
    "[" * 5000,
    '{"weight_map": 3}',
    '{"weight_map": {}}',
)


@pytest.mark.parametrize("text", GARBAGE)
def test_garbage_in_an_index_of_weights_is_said_with_the_file(folder, text):  # noqa: F811
    (folder / "model.safetensors.index.json").write_text(text)
    with pytest.raises(GatingError, match=r"model\.safetensors\.index\.json") as e:
        models.load(config("hf", id=str(folder)))
    assert "\n" not in str(e.value) and len(str(e.value)) < 700


@pytest.mark.parametrize("text", GARBAGE)
def test_garbage_in_an_adapter_s_configuration_is_said_with_the_file(adapter, text):  # noqa: F811
    (adapter / adapters.CONFIG).write_text(text)
    with pytest.raises(GatingError, match=r"model\.adapter: .*adapter_config\.json") as e:
        models.check(config(adapter=str(adapter)))
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("text", [*GARBAGE[:-2], '{"prompts": ["harmful"]}'])
def test_garbage_in_an_adapter_s_recipe_is_said_with_the_file(adapter, text):  # noqa: F811
    (adapter / adapters.RECIPE).write_text(text)
    with pytest.raises(GatingError, match=r"model\.adapter: .*recipe\.json"):
        models.training_prompts(config(adapter=str(adapter)))


@pytest.mark.parametrize("text", GARBAGE)
def test_garbage_in_a_model_s_configuration_is_said_with_the_file(folder, text):  # noqa: F811
    (folder / "config.json").write_text(text)
    for ask in (models.architecture, models.load):
        with pytest.raises(GatingError, match=r"model\.id: .*config\.json") as e:
            ask(config("hf", id=str(folder)))
        assert "\n" not in str(e.value)


def test_modules_that_were_trained_in_full_are_merged_too(tmp_path):
    models.forget()
    plain = logits(models.load(config())).clone()
    lora = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"], init_lora_weights=False)
    torch.manual_seed(0)
    adapted = adapters.attach(models.load(config()).model, lora)
    with torch.no_grad():
        adapted.get_output_embeddings().weight.mul_(0)
    adapted.save_pretrained(tmp_path / "adapter")
    models.forget()
    merged = models.load(config(adapter=str(tmp_path / "adapter")))
    assert logits(merged).abs().max() == 0 < plain.abs().max()
    weights = safetensors.torch.load_file(tmp_path / "adapter" / adapters.WEIGHTS)
    kept = {k: v for k, v in weights.items() if "layers.2" not in k}
    assert len(kept) < len(weights)
    safetensors.torch.save_file(kept, tmp_path / "adapter" / adapters.WEIGHTS)
    with pytest.raises(GatingError, match=r"could not be read as a LoRA adapter.*missing adapter keys"):
        models.load(config(adapter=str(tmp_path / "adapter")))


def test_an_adapter_that_is_no_lora_and_an_adapter_as_a_model_are_said(adapter):  # noqa: F811
    with pytest.raises(GatingError, match=r"holds a peft adapter.*model\.adapter="):
        models.architecture(config("hf", id=str(adapter)))
    described = json.loads((adapter / adapters.CONFIG).read_text()) | {"peft_type": "IA3"}
    (adapter / adapters.CONFIG).write_text(json.dumps(described))
    with pytest.raises(GatingError, match="peft_type='IA3'; only LORA"):
        models.check(config(adapter=str(adapter)))


@pytest.mark.parametrize(
    ("kind", "says"),
    [("t5", "t5 is an encoder with a decoder"), ("vit", "no model of the kind vit"), ("nonsense", "nonsense")],
)
def test_what_cannot_be_steered_is_refused_with_the_true_reason(folder, kind, says):  # noqa: F811
    (folder / "config.json").write_text(json.dumps({"model_type": kind}))
    for ask in (models.architecture, models.load):
        with pytest.raises(GatingError, match=rf"(?s)config\.json.*{says}"):
            ask(config("hf", id=str(folder)))
    assert AutoModelForSeq2SeqLM._model_mapping[type(AutoConfig.for_model("t5"))]  # there is such a family


OWN = """
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM
Path(__file__).with_name("ran").touch()
class Own(LlamaConfig):
    model_type = "own"
class OwnModel(LlamaForCausalLM):
    config_class = Own
"""


@pytest.fixture
def own(folder, monkeypatch):  # noqa: F811
    """The tiny Llama as a family of its own, with the Python that it takes."""
    described = json.loads((folder / "config.json").read_text())
    described |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.OwnModel"}}
    (folder / "config.json").write_text(json.dumps(described))
    (folder / "own.py").write_text(OWN)
    return folder


@pytest.mark.parametrize("trusted", [False, True])
def test_a_model_s_own_python_runs_only_where_it_is_trusted_and_a_dry_run_asks_nobody(own, trusted):
    """transformers asks on standard input, which here says yes to everything."""
    words = ["model=hf", f"model.id={own}", "steer=compliant", "data.n=1", "dry_run=true"]
    words += ["model.trust_remote_code=true"] * trusted
    env = {**os.environ, "HF_MODULES_CACHE": str(own.parent / "modules")}
    said = subprocess.run(
        [sys.executable, "-m", "gating.run", *words],
        input="y\n" * 9, capture_output=True, text=True, env=env, cwd=own.parent,
    )  # fmt: skip
    ran = bool(list(own.parent.rglob("ran")))
    assert ran is trusted and (said.returncode == 0) is trusted, said.stdout + said.stderr
    words_said = " ".join((said.stdout + said.stderr).split())
    assert ("Python files that came with the model run with your rights" in words_said) is trusted
    assert ("If you have read them and trust who wrote them" in words_said) is not trusted


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"device_map": "all"}, "model.device_map='all'.*auto, balanced"),
        ({"quantization": "2bit"}, "model.quantization='2bit'.*8bit or 4bit"),
        ({"device_map": "auto", "device": "cpu"}, "model.device=cpu with model.device_map=auto"),
        ({"quantization": "8bit", "adapter": "refusal-smollm2"}, "merged into whole weights"),
        ({"template": {"tokenize": True}}, "model.template.tokenize is set by this package"),
    ],
)
def test_a_placement_that_cannot_be_is_refused(more, says):
    with pytest.raises(GatingError, match=says):
        models.check(config("hf", id="org/name", **more))


def test_what_only_a_model_of_the_hub_can_be_told_is_refused_for_others(folder):  # noqa: F811
    for key, value in (("device_map", "auto"), ("quantization", "8bit"), ("trust_remote_code", True)):
        with pytest.raises(GatingError, match=rf"model\.{key}=.* with model\.kind=tiny"):
            models.check(config(**{key: value}))
    if importlib.util.find_spec("bitsandbytes") is None:
        with pytest.raises(GatingError, match=r"needs the package bitsandbytes.*gating\[quantized\]"):
            models.load(config("hf", id=str(folder), quantization="8bit"))


def test_a_model_spread_by_a_device_map_says_the_same(folder):  # noqa: F811
    plain = logits(models.load(config("hf", id=str(folder)))).clone()
    assert torch.equal(logits(models.load(config("hf", id=str(folder), device_map="auto"))), plain)
