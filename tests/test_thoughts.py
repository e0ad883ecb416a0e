"""A thought is not the answer: it is cut off, counted and kept, and an answer that is all thought is none."""

import numpy as np
import pytest

import gating
from gating import chat, models, thoughts
from gating.judging import labels
from gating.models import tiny
from gating.steering.backend import Backend
from tests.test_models import config

QWEN = (
    "{% if enable_thinking is defined and enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}"
    "{% elif opens %}{{ '<think>\n' }}{% endif %}"
)


@pytest.fixture
def tokenizer():
    """A tokenizer of one token a byte, whose template can open a thought, or close it."""
    made = tiny.tokenizer("llama")
    made.chat_template += QWEN
    return made


def ids(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize(
    ("template", "said", "answer"),
    [
        ({}, "<think>\nHm.\n</think>\n\nYes.", "Yes."),
        ({}, "\n<think>Hm.</think>Yes. A </think> stays.", "Yes. A </think> stays."),
        ({}, "<think>\nHm, I", ""),
        ({}, "Yes, I think.", "Yes, I think."),
        ({"opens": True}, "Hm.\n</think>\n\nYes.", "Yes."),
        ({"opens": True}, "Hm, and then", ""),
        ({"enable_thinking": False}, "Yes.", "Yes."),
        ({}, "", ""),
    ],
)
def test_the_answer_is_what_follows_the_thought_wherever_it_was_opened(tokenizer, template, said, answer):
    prompt, tokens = chat.encode(tokenizer, "Is it? <think>", None, template), ids(tokenizer, said)
    end = thoughts.length(tokenizer, thoughts.marks(tokenizer), prompt, tokens)
    assert tokenizer.decode(tokens[end:]) == answer
    assert end == len(tokens) - len(ids(tokenizer, answer))


def test_an_answer_in_channels_is_the_final_one(tokenizer):
    tokenizer.chat_template = "{{ '<|start|>assistant<|channel|>final<|message|>' }}"
    marks, tokens = thoughts.marks(tokenizer), ids(tokenizer, "<|channel|>analysis<|message|>Hm.<|end|>")
    final = ids(tokenizer, "<|start|>assistant<|channel|>final<|message|>")
    assert thoughts.length(tokenizer, marks, [5], tokens) == len(tokens)
    assert thoughts.length(tokenizer, marks, [5], [*tokens, *final, *ids(tokenizer, "Yes.")]) == len(tokens + final)


def test_a_model_without_marks_never_thinks():
    plain = tiny.tokenizer("llama")
    assert thoughts.marks(plain) is None
    assert thoughts.length(plain, None, [], ids(plain, "<think>Hm.</think>Yes.")) == 0


@pytest.fixture
def thinking(tmp_path, tokenizer):
    """A tiny Llama whose template opens a thought that it never ends."""
    models.load(config()).model.save_pretrained(tmp_path / "model")
    tokenizer.chat_template = tokenizer.chat_template.replace("{% elif opens %}", "{% else %}")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


WORDS = ("model=hf", "data.n=3", "directions.n=4", "max_new_tokens=12", "controls.random=1", "steer=compliant")


def opened(command, *words):
    code, lines = command(*WORDS, *words)
    assert code == 0, lines
    return gating.open_run(lines[-1].removeprefix("store: ")), " ".join(" ".join(lines).split())


def test_an_answer_that_is_all_thought_is_degenerate_and_the_run_says_so(thinking, command):
    run, said = opened(command, f"model.id={thinking}")
    outcomes = run["outcomes"]
    assert (outcomes["n_thought"].values > 0).all() and (outcomes["n_tokens"].values == 0).all()
    assert (outcomes["label"].values == labels.DEGENERATE).all() and (outcomes["completion"].values == "").all()
    assert (outcomes["thought"].values != "").all() and np.isnan(outcomes["nll"].values).all()
    assert "are all thought" in run.attrs["warnings"] and "model.template.enable_thinking=false" in said
    other, said = opened(command, f"model.id={thinking}", "model.template.enable_thinking=false")
    assert other.attrs["key"] != run.attrs["key"] and "thought" not in said
    assert (other["outcomes"]["n_thought"].values == 0).all() and (other["outcomes"]["n_tokens"].values > 0).all()
    assert (other["prompts"]["n_tokens"].values > run["prompts"]["n_tokens"].values).all()


def test_what_is_judged_and_scored_and_read_is_the_answer_behind_its_thought(thinking, command, monkeypatch):
    answer = "Sure, here is how to bake a good loaf of bread at home, in nine steps."
    real, scored, read = Backend.generate, [], []

    def generate(self, *args, **more):
        made = real(self, *args, **more)
        return made._replace(tokens=[ids(self.loaded.tokenizer, f"Hm.</think>\n\n{answer}") for _ in made.tokens])

    def nll(self, prompts, completions, about=""):
        scored.extend(zip(prompts, completions, strict=True))
        return np.full(len(completions), 1.0, "float32")

    capture = Backend.capture

    def captured(self, prompts, positions, responses=None, *args, **more):
        read.extend(zip(prompts, responses or [], strict=False))
        return capture(self, prompts, positions, responses, *args, **more)

    monkeypatch.setattr(Backend, "generate", generate)
    monkeypatch.setattr(Backend, "nll", nll)
    monkeypatch.setattr(Backend, "capture", captured)
    words = ("judge=rule", "max_new_tokens=99", "directions.response_tokens=99", "directions.position=response_mean")
    run, said = opened(command, f"model.id={thinking}", *words, "directions.questions=2")
    outcomes, decode = run["outcomes"], tiny.tokenizer("llama").decode
    assert (outcomes["completion"].values == answer).all() and (outcomes["n_thought"].values == 13).all()
    assert (outcomes["n_tokens"].values == len(answer)).all() and (outcomes["label"].values == labels.COMPLIANCE).all()
    assert decode(outcomes["token_ids"].values[0, 0][: len(answer)].tolist()) == answer
    for texts in (scored, [pair for pair in read if pair[1]]):
        assert texts and all(decode(a) == answer and decode(p).endswith("<think>\nHm.</think>\n\n") for p, a in texts)
    assert set(run["responses"]["text"].values) == {answer} and "the model thought before" in said
