"""The bad inputs themselves, part by part: settings, words, prompts, personas, claims, judges, conditions, runs."""
# ruff: noqa: E501

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from gating.settings import RANGES, TRAINING
from tests.bad_inputs import Case

SMALL = ("model=tiny-llama", "data.n=2", "controls.random=0", "directions.n=2", "directions.questions=1",
         "max_new_tokens=2")  # fmt: skip
TINY_TRAIN = ("model=tiny-llama", "out=new", "epochs=0.01", "answer_tokens=1", "select_n=1")
TINY_CHOOSE = ("model=tiny-llama", "n=6", "new_tokens=2", "directions.n=2", "directions.questions=1")
DEEP, LONG = "[" * 50_000, "x" * 300_000
BOMB = "\n".join(["a0: &a0 [x]", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12))])
NOT_NUMBERS = ("abc", "[1,2]", "{a: 1}", "''", "nan", "inf", "-inf", "1e400", "-99999999999999999999999",
               "99999999999999999999999", "0x", "1 2", "true", "１e", "-1e9")  # fmt: skip
NOT_NAMES = ("7", "[]", "[[a]]", "{a: 1}", "''", "' '", "nöpe", "true", "null", "${nope}", "x" * 5000)
CHOICES = ("steer.op", "steer.norm", "steer.scope", "steer.read", "directions.method", "directions.position",
           "backend.name", "data.split", "model.kind", "model.dtype", "model.device", "model.architecture",
           "data.harmful", "directions.harmful", "steer.direction", "steer.layers")  # fmt: skip
FINE = {  # of the product above, what may well be
    ("steer.op", "[[a]]"),
    ("data.harmful", "null"),
    ("model.architecture", "''"),
}


def _run(part: str, *argv: str, files: dict[str, bytes] | None = None, named: str = "", before=None) -> Case:
    return Case(part, "run", (*SMALL, *argv), files or {}, before, named)


def numbers() -> Iterator[Case]:
    for key in RANGES:
        for value in NOT_NUMBERS:
            yield _run("numbers", f"{key}={value}")


def train_numbers() -> Iterator[Case]:
    for key in TRAINING:
        if not key.startswith("model."):
            for value in ("abc", "[1]", "-1", "nan", "1e30", "true"):
                yield Case("train", "train", (*TINY_TRAIN, f"{key}={value}"))


def train() -> Iterator[Case]:
    yield from train_numbers()
    for word in ("targets=[nope]", "targets=[]", "targets=3", "targets=[[q_proj]]", "blocks=[99]", "blocks=[]",
                 "blocks=[-1]", "blocks=x", "alpha=0", "rank=0", "select_n=0", "held_out_n=0", "harmful=harmful",
                 "harmful=harmless", "harmless=nowhere.csv", "harmful=''", "harmful=null", "+lrr=1", "lrr=1",
                 "+model.x=3", "+held_out.x=no.csv", "+held_out.x=3", "+held_out=[a]", "out=/proc/x/y", "out=''",
                 "model=tiny", "model.kind=x", "system_share=0.5", "systems={a: 1}", "epochs=0",
                 "out=file.txt", "out=full", "model=gguf", "model=hf", "notes=[a]", "bfloat16=maybe", "+steer.coef=3",
                 "seed=-1", "=3", "lr", "lr=1=2", "batch_rows=0", "terms.keep=-1", "first=2", "opened=nan"):  # fmt: skip
        files = {"file.txt": b"x", "full/mine.txt": b"x"}
        named = word.partition("=")[0].lstrip("+")
        yield Case("train", "train", (*TINY_TRAIN, word), files, named=named if len(named) > 2 else "")
    for name, content in PROMPT_FILES[:12]:
        yield Case("train", "train", (*TINY_TRAIN, f"harmful={name}"), {name: content}, named=name)


def choose() -> Iterator[Case]:
    for key in ("n", "drop", "new_tokens", "seed"):
        for value in ("abc", "[1]", "-1", "nan", "1e30", "true"):
            yield Case("choose", "choose", (*TINY_CHOOSE, f"{key}={value}"), named=key)
    for word in ("n=2", "drop=0", "out=mine.txt", "out=full.yaml", "out=''", "runs_dir=''", "harmful=x.csv", "+nn=1", "steer=compliant", "model=none.yaml", "model=full.yaml",
                 "model=gguf", "model.kind=x", "force=maybe", "backend=cloud", "directions.n=1", "=3", "n"):  # fmt: skip
        yield Case("choose", "choose", (*TINY_CHOOSE, word), {"full.yaml": b"- x"})


def worst() -> Iterator[Case]:
    for key in ("trials", "rounds", "degenerate", "kl", "n", "best", "test_n", "random", "seed"):
        for value in ("abc", "[1]", "-1", "nan", "1e30", "true"):
            yield Case("worst", "worst", ("model=tiny-llama", f"{key}={value}"), named=key)
    for word in ("doses=[1]", "doses=[2,1]", "widths=[]", "widths=[99]", "personas=[]", "personas=[nobody]", "rounds=99",
                 "best=99", "runs_dir=''", "+nn=1", "steer=compliant", "model=none.yaml", "n"):  # fmt: skip
        yield Case("worst", "worst", ("model=tiny-llama", word))


def choices() -> Iterator[Case]:
    for key in CHOICES:
        for value in NOT_NAMES:
            if (key, value) not in FINE:
                yield _run("choices", f"{key}={value}")


BOOLEANS = ("controls.reverse", "data.allow_overlap", "readouts.last", "readouts.tokens", "readouts.lens", "force",
            "dry_run", "full_text", "activations", "backend.deploy")  # fmt: skip
UNKNOWN = ("+steer.coeff=8", "+max_tokens=3", "+data.m=2", "+model.sites.perona=2", "+model.arch.layer=2",
           "+model.steer.coeff=1", "+label_rule.max_nl=1", "+readouts.token=true", "+backend.hots=http://x",
           "+directions.questons=2", "+controls.randm=2", "+claims.famly=x", "+claims.family=x", "+x=1",
           "+x.y.z=1", "+steer=1", "+data.harmful.x=1", "++steer.coeff=8", "++nope=1", "nope=1", "steer.coeff=8",
           "~nope", "~steer.nope", "+parts.x=3", "+parts.x={dircetion: a}", "+parts.x=[a]", "-m +steer.coeff=1,2",
           "-m +max_tokens=1,2", "-m seed=1,x", "hydra.nope=1", "+hydra.nope=1", "judges=endpoint", "experiment=nope",
           "experiment=[paper]", "model=", "steer=", "data=", "=", "==", "steer.coef", "--nope", "label_rule=",
           "model=../x", "data=shipped,file", "seed=1,2", "steer.coef=1 2", "steer.coef=(1)", "steer.coef={", "a b=c",
           "é=3", "steer[0]=3", "steer..coef=3", ".steer=3", "steer.=3", "claims=nope", "claims=3", "claims=[paper]",
           "claims=''", "backend=http://[::1", "backend=http://h:99999", "backend=ftp://x", "backend=http://",
           "runs_dir=''", "runs_dir=null", "runs_dir=[a]", "model.system=[a]", "model.first_token_openings=3",
           "model.first_token_openings=[[a]]", "readouts.extra=cosine", "readouts.extra=[nope]", "readouts.extra=[1]",
           "directions.extra=[nope]", "directions.extra=nope", "directions.filter=nope", "directions.filter=[a]",
           "directions.source=nowhere", "directions.source=[a]", "directions.source=''")  # fmt: skip


def words() -> Iterator[Case]:
    for key in BOOLEANS:
        for value in ("maybe", "[true]", "{a: 1}", "2.5", "7", "''"):
            yield _run("words", f"{key}={value}", named=key)
    for word in UNKNOWN:
        yield _run("words", *(word.split(" ", 1) if word.startswith("-m ") else [word]))
    for word in ("steer.direction=\udcff", "data.harmful=\x1b[31m", "model.system='a\x00b'", "steer=a\x07.yaml"):
        yield _run("words", word)


LAYERS = ("null", "0-99999999999", "99999999999999999999999", "-1", "1-", "-", "+", "1++2", "3-1", "0.5.5", "1.5",
          "1e3", "[]", "[null]", "[1,1]", "[[1]]", "{a: 1}", "a", "''", "' '", "²", "0x1", "1,2", "[0-99999999999]",
          "0." + "9" * 5000, "9" * 5000, "nan", "inf", "true", "all+1", "0.99999999999999999999999")  # fmt: skip
COEFS = ("1e39", "-1e39", "nan", "inf", "-inf", "[1,nan]", "[]", "[1,1]", "[[1]]", "{a: 1}", "a", "'1'", "true",
         "''", "[null]", "1e400", "99999999999999999999999999999999999999999")  # fmt: skip


def steering() -> Iterator[Case]:
    for value in LAYERS[:-1]:
        yield _run("steering", f"steer.layers={value}", named="steer.layers" if value != "1,2" else "")
    for value in COEFS:
        yield _run("steering", f"steer.coef={value}", named="steer.coef")
    for key, value in (("gate", "nope"), ("gate", "[a]"), ("threshold", "nan"), ("threshold", "1e39"),
                       ("threshold", "a"), ("iso_kl", "0"), ("iso_kl", "nan"), ("iso_kl", "21"), ("op", "rotat"),
                       ("norm", "none"), ("read", "99"), ("read", "-1"), ("read", "1-2"), ("direction", "null"),
                       ("direction", "[]"), ("direction", "compliant+"), ("direction", "+"), ("direction", "compliant@"),
                       ("direction", "compliant@99"), ("direction", "compliant:"), ("direction", "compliant:me"),
                       ("direction", "refusal:user"), ("direction", "compliant+evil"), ("direction", "a/b"),
                       ("direction", "compliant@-99999999999999999999")):  # fmt: skip
        yield _run("steering", f"steer.{key}={value}")
    for spec in ("{of: x}", "{of: compliant}", "3", "[a]", "{of: self, along: refusal}", "{of: refusal, along: self}",
                 "{of: [a], along: refusal}", "{of: null, along: refusal}", "{of: random, along: refusal}",
                 "{of: none, along: refusal}", "{of: compliant, along: nope}", "{of: compliant+evil, along: refusal}",
                 "{of: compliant, along: refusal, orthogonal_to: refusal}", "{OF: compliant, along: refusal}",
                 "{of: '', along: refusal}", "{of: 3, along: refusal}"):  # fmt: skip
        yield _run("steering", f"+directions.derived.self={spec}", named="directions.derived.self" if "nope" not in spec
                   and "x}" not in spec else "")  # fmt: skip
    cycle = "+directions.derived={a: {of: b, along: refusal}, b: {of: a, along: refusal}}"
    yield _run("steering", cycle, named="directions.derived")
    for name in ("refusal", "none", "random", "compliant", "'a b'", "'[/red]'", "'a+b'", "x" * 500):
        yield _run("steering", f"+directions.derived={{{name}: {{of: compliant, along: refusal}}}}")


CONDITIONS = ("3", "[]", "[3]", "[[a]]", "{}", "{do: 3}", "{do: []}", "{system: 3}", "{system: '', do: []}", "[nope]",
              "[{part: nope}]", "[{part: [a]}]", "[{}]", "[{direction: compliant}]", "[{layers: 1}]",
              "[{direction: compliant, layers: null}]", "[{direction: null, layers: 1}]", "null", "''", "true",
              "[{direction: compliant, layers: 1, coef: x}]", "[{direction: compliant, layers: 1, coef: 1e39}]",
              "[{direction: compliant, layers: 1, coef: [1,1]}]", "[{direction: compliant, layers: []}]",
              "[{direction: compliant, layers: 1, op: nope}]", "[{direction: compliant, layers: 1, op: [[a]]}]",
              "[{direction: compliant, layers: 1, op: remove}]", "[{direction: compliant, layers: 1, random: -1}]",
              "[{direction: compliant, layers: 1, random: 1e3}]", "[{direction: compliant, layers: 1, random: true}]",
              "[{direction: compliant, layers: 1, random: 99999}]", "[{direction: compliant, layers: 1, gate: nope}]",
              "[{direction: compliant, layers: 1, threshold: x}]", "[{direction: compliant, layers: 1, nope: 1}]",
              "[{direction: compliant, layers: 1, norm_read: 99}]", "[{direction: compliant, layers: 0, read: previous}]",
              "[{direction: random, layers: 1}]", "[{direction: a/b.yaml, layers: 1}]", "{do: [], nope: 1}",
              "{do: [], system: no/such.yaml}", "{do: [], system: [a]}", "{do: [{direction: compliant, layers: 1}], paper: [a]}",
              "[{direction: {a: 1}, layers: 1}]", "[{direction: compliant, layers: {a: 1}}]",
              "[{direction: compliant, layers: 1, scope: nope}]", "[{direction: compliant, layers: 1, norm: nope}]",
              "[{direction: compliant, layers: 1, op: rotate, coef: nan}]", "[{3: 4}]", "{3: 4}")  # fmt: skip


def conditions() -> Iterator[Case]:
    for spec in CONDITIONS:
        yield _run("conditions", f"+conditions.mine={spec}", named="" if "nope" in spec or "yaml" in spec else "mine")
    good = "[{direction: compliant, layers: 1}]"
    for name in ("baseline", "compliant", "''", "' a'", "'a\nb'", "x" * 500, "'a\tb'"):
        yield _run("conditions", f"+conditions={{{name}: {good}}}")
    yield _run("conditions", "steer.coef=[" + ",".join(map(str, range(1, 400))) + "]",
               "steer.layers=[0,1,2,3,4]", "steer.scope=[all,prompt,generated,last,response]",
               "steer.norm=[natural,unit,residual]", named="steer")  # fmt: skip


PROMPT_FILES: list[tuple[str, bytes]] = [
    ("a.csv", b""), ("a.csv", b"prompt\n"), ("a.csv", b'prompt\na\n"b\nc\n'), ("a.csv", b"prompt\nList apples, pears\n"),
    ("a.csv", b"prompt,category\nx\n"), ("a.csv", b'prompt\n"a" b\n'), ("a.csv", b"wrong\nx\n"),
    ("a.csv", b"prompt\n" + b"x" * 140_000), ("a.csv", "prompt\nx\n".encode("utf-16")), ("a.csv", b"prompt\ncaf\xe9\n"),
    ("a.csv", "prompt\nx\n".encode("utf-16-le")), ("a.csv", b"prompt\n\x00\n"), ("a.csv", b"prompt,prompt\na,b\n"),
    ("a.csv", b"prompt;category\nx;y\n"), ("a.csv", b"prompt\tcategory\nx\ty\n"), ("a.csv", b"prompt\n \n\t\n"),
    ("a.csv", b"prompt,harmful\nx,maybe\n"), ("a.csv", b"prompt,harmful\nx,false\n"), ("a.csv", b"prompt,split\nx,dev\n"),
    ("a.csv", b"prompt,harmful\nx,\n"), ("a.csv", b'"prompt\nx\n'), ("a.csv", b"\n\n\n"), ("a.csv", b",\n,\n"),
    ("a.csv", b"prompt,catgory\nx,y\n"), ("a.csv", b'prompt\n""\n'), ("a.csv", b"prompt\n" + b"word " * 20_000),
    ("a.json", b""), ("a.json", b"{}"), ("a.json", b"[]"), ("a.json", b"3"), ("a.json", b"null"), ("a.json", b'"x"'),
    ("a.json", b"[3]"), ("a.json", b"[null]"), ("a.json", b"[[]]"), ("a.json", b"[{}]"), ("a.json", b'[{"prompt": 3}]'),
    ("a.json", b'[{"prompt": ["x"]}]'), ("a.json", b'[{"prompt": null}]'), ("a.json", b'[{"prompt": " "}]'),
    ("a.json", b'[{"prompt": "x", "prompt": "y"}]'), ("a.json", b'[{"prompt": "\\ud800"}]'), ("a.json", b'["\\udfff x"]'),
    ("a.json", DEEP.encode()), ("a.json", b"[" * 200 + b"]" * 200), ("a.json", b"[NaN]"), ("a.json", b'[{"prompt": Infinity}]'),
    ("a.json", b'["x",]'), ("a.json", b"['x']"), ("a.json", b'["x"] y'), ("a.json", b"\xff\xfe["), ("a.json", b'["x\ny"]'),
    ("a.json", b'[{"prompt": "x", "harmful": "no"}]'), ("a.json", b'[{"prompt": "x", "harmful": 2}]'),
    ("a.json", b'[{"prompt": "x", "harmful": []}]'), ("a.json", b'[{"prompt": "x", "split": 3}]'),
    ("a.json", b'[{"prompt": "x", "split": []}]'), ("a.json", b'[{"prompt": "x", "category": {"a": 1}}]'),
    ("a.json", b'[{"prompt": "x", "category": true}]'), ("a.json", b'[{"prompt": "x", "Prompt": "y"}]'),
    ("a.json", b"[" + b"1" * 10_000 + b"]"), ("a.json", b'["' + b"x" * 1_500_000 + b'"]'), ("a.jsonl", b""),
    ("a.jsonl", b'{"prompt": "x"}\n{oops\n'), ("a.jsonl", b"x\n"), ("a.jsonl", b"[1]\n"), ("a.jsonl", b"[]\n"),
    ("a.jsonl", b'[{"prompt": "x"}]\n'), ("a.jsonl", b'{"prompt": "x"} {"prompt": "y"}\n'), ("a.jsonl", b"null\n"),
    ("a.jsonl", b'{"prompt": "x"\n}\n'), ("a.jsonl", DEEP.encode()), ("a.jsonl", b'{"text": ""}\n'), ("a.txt", b"x"),
    ("a", b"x"), ("a.csv.gz", b"x"), ("a.yaml", b"- x"), ("a.tsv", b"prompt\nx\n"), ("a.jsonl", b'{"promt": "x"}\n'),
    ("a.jsonl", b'{"prompt": "x", "harmfull": true}\n'), ("a.jsonl", b'{"prompt": {"text": "x"}}\n'),
    ("a.parquet", b"PAR1"), ("a.json", b'{"prompts": ["x"]}'), ("a.json", b'[["x"]]'),
]  # fmt: skip


def _pipe(folder: Path) -> None:
    os.mkfifo(folder / "pipe.csv")


def _loop(folder: Path) -> None:
    (folder / "loop.csv").symlink_to("loop.csv")
    (folder / "folder.csv").mkdir()
    (folder / "gone.csv").symlink_to("nowhere.csv")
    (folder / "zero.csv").symlink_to("/dev/zero")
    (folder / "large.csv").touch()
    os.truncate(folder / "large.csv", 10**10)


def prompt_files() -> Iterator[Case]:
    for name, content in PROMPT_FILES:
        path = f"./{name}"
        yield _run("prompts", "data=file", f"data.harmful={path}", files={name: content}, named=name)
    for name in ("loop.csv", "folder.csv", "gone.csv", "zero.csv", "large.csv", "no.csv", "~nobody/x.csv",
                 "'a,b.csv'", "'a b (1).csv'", "x" * 5000 + ".csv", "/dev/null", "/dev/stdin", "/proc/self/mem"):  # fmt: skip
        yield _run("prompts", "data=file", f"data.harmful={name}", before=_loop)
    yield _run("prompts", "data=file", "data.harmful=pipe.csv", before=_pipe, named="pipe.csv")
    for key in ("data.harmless", "data.borderline", "directions.harmful", "directions.harmless"):
        for name, content in PROMPT_FILES[2:6]:
            yield _run("prompts", f"{key}={name}", files={name: content}, named=name)
    for name in ("a,b.csv", "a b.csv", "d{1}/x.csv", "é.csv", "it's.csv", "a=b.csv", "[1].csv"):
        yield _run("prompts", "data=file", f"data.harmful={name}")


PERSONA = {
    "name": "mine", "description": "Likes tests.", "positive": ["You like tests."], "negative": ["You hate tests."],
    "questions": ["What is a test?"],
}  # fmt: skip
TEXTS: tuple[object, ...] = (None, 3, True, [], {}, "", " ", 1.5, [None], [3], [[]], ["a", "a"], {"a": 1}, [""], "a")
RAW = (b"", b"\xff", b"[", b"a: b: c", b"- a", b"x", b"null", b"&a [*a]", BOMB.encode(), DEEP.encode(), b"a: 1\na: 2",
       b"!!python/object/apply:os.system [id]", b"\x00", b"a: !!binary x", b"? [a]\n: b", b"a: .nan", b"2020-01-01: x",
       b"\t a: b", "name: mine".encode("utf-16"), b"%YAML 9.9\n---\na", b"--- a\n--- b", b"a: *nope", b"<<: 3",
       b"a: \"\\ud800\"", b"a: !!set {x}", b"a: 0o9\nb: 1:20", b"yes: no")  # fmt: skip


def personas() -> Iterator[Case]:
    for key in PERSONA:
        for value in TEXTS:
            if value == "a" and key == "description":
                continue
            content = yaml.safe_dump({**PERSONA, key: value}).encode()
            yield _run("personas", "steer=./mine.yaml", files={"mine.yaml": content}, named=key[:8])
    for content in RAW:
        yield _run("personas", "steer=./mine.yaml", files={"mine.yaml": content}, named="mine.yaml")
    changes: tuple[dict[Any, Any], ...] = (
        {"name": "no"}, {"reverse_of": "mine"}, {"reverse_of": 3}, {"nope": 1}, {3: 4}, {"date": "x"}
    )  # fmt: skip
    for change in changes:
        content = yaml.safe_dump({**PERSONA, **change}).encode()
        yield _run("personas", "steer=./mine.yaml", files={"mine.yaml": content}, named="mine.yaml")
    back = {"name": "mine", "description": "x"}
    for other in ("mine", "./mine.yaml", "nope", "", "../../../etc/passwd", "/dev/zero", "x" * 5000, "a\0b"):
        content = yaml.safe_dump({**back, "reverse_of": other}).encode()
        yield _run("personas", "steer=./mine.yaml", files={"mine.yaml": content})
    dated = b"name: mine\ndescription: 2020-01-01\npositive: [2020-01-01, yes]\nnegative: [no, 3]\nquestions: [x]\n"
    yield _run("personas", "steer=./mine.yaml", files={"mine.yaml": dated}, named="mine.yaml")
    for name in ("Mine", "a b", "none", "refusal", "compliant+x", "é", "-x"):
        content = yaml.safe_dump({**PERSONA, "name": name}).encode()
        yield _run("personas", f"steer=./{name}.yaml", files={f"{name}.yaml": content})
    large = yaml.safe_dump({**PERSONA, "description": LONG * 8}).encode()
    yield _run("personas", "steer=./mine.yaml", files={"mine.yaml": large}, named="mine.yaml")


CLAIM = {
    "says": "x",
    "test": "difference",
    "plus": ["compliant"],
    "minus": ["baseline"],
    "expect": "below",
    "margin": 0.1,
}
FAMILY = {"family": "mine", "alpha": 0.05, "claims": {"one": CLAIM}}


def claims() -> Iterator[Case]:
    for key in CLAIM:
        for value in (None, 3, True, [], {}, "", "nope", [3], [None], {"a": 1}, 9.5):
            if (key, value) in (("says", "nope"), ("margin", None)):
                continue
            content = yaml.safe_dump({**FAMILY, "claims": {"one": {**CLAIM, key: value}}}).encode()
            yield _run("claims", "claims=./c.yaml", files={"c.yaml": content}, named="c.yaml")
    for key in FAMILY:
        for value in (None, 3, True, [], {}, "", " ", [3], 0, 1.5, "\x1b"):
            content = json.dumps({**FAMILY, key: value}).encode()
            yield _run("claims", "claims=./c.yaml", files={"c.yaml": content}, named="c.yaml")
    for content in RAW:
        yield _run("claims", "claims=./c.yaml", files={"c.yaml": content}, named="c.yaml")
    dated = b"family: 2020-01-01\nclaims: {one: {says: 2020-01-01, test: 2020-01-01}}\n"
    yield _run("claims", "claims=./c.yaml", files={"c.yaml": dated}, named="test")
    for change in ({"prompts": ["harmful"]}, {"prompts": "harm"}, {"label": "no"}, {"label": []}, {"measure": []},
                   {"measure": "no"}, {"paper": []}, {"needs": 3}, {"null": []}, {"null": "x"}, {"margn": 1},
                   {"margin": float("inf")}, {"test": "permutation"}, {"test": "equivalence"}):  # fmt: skip
        content = yaml.safe_dump({**FAMILY, "claims": {"one": {**CLAIM, **change}}}).encode()
        yield _run("claims", "claims=./c.yaml", files={"c.yaml": content}, named="c.yaml")


def _a_run(folder: Path) -> None:
    from tests.judged_runs import a_run

    a_run(folder / "r")


JUDGE = {"kind": "rule", "says": "x"}
ENDPOINT = {"kind": "endpoint", "says": "x", "id": "m", "base_url": "http://127.0.0.1:1/v1",
            "template": "{prompt} {response}", "answers": {"a": "refusal", "b": "compliance"}}  # fmt: skip


def judges() -> Iterator[Case]:
    def ask(*argv: str, files: dict[str, bytes] | None = None, named: str = "") -> Case:
        return Case("judges", "rejudge", argv, files or {}, _a_run, named)

    for content in RAW:
        yield ask("r", "judge=./j.yaml", files={"j.yaml": content}, named="j.yaml")
    for key in ENDPOINT:
        for value in (None, [], {}, 3, True, "", [3], {"a": []}):
            if (key, value) in (("says", None), ("says", ""), ("id", 3), ("says", 3), ("id", True), ("says", True)):
                continue
            content = yaml.safe_dump({**ENDPOINT, key: value}).encode()
            yield ask("r", "judge=./j.yaml", files={"j.yaml": content}, named=key)
    changes: tuple[dict[Any, Any], ...] = ({"attempts": 0}, {"attempts": -1}, {"attempts": 10**9}, {"deadline": 0}, {"deadline": -1},
                   {"deadline": 1e30}, {"wait": -1}, {"wait": 1e30}, {"concurrency": 0}, {"concurrency": 10**9},
                   {"max_tokens": 0}, {"max_tokens": 10**12}, {"base_url": "ftp://x"}, {"base_url": "http://[::1"},
                   {"base_url": "http://h:99999/v1"}, {"base_url": "http://h:x/v1"}, {"base_url": "http://u:p@h"},
                   {"base_url": "http:///v1"}, {"prompts": "nope"}, {"nope": 1}, {3: 4}, {"name": "a/b"},
                   {"name": "own"}, {"answers": {"a": "nope"}}, {"answers": {"": "refusal"}}, {"template": "x"},
                   {"template_file": "no.txt"}, {"template_file": "/dev/zero"}, {"request": [1]}, {"system": [1]})  # fmt: skip
    for change in changes:
        content = yaml.safe_dump({**ENDPOINT, **change}).encode()
        yield ask("r", "judge=./j.yaml", files={"j.yaml": content}, named="j")
    for argv in (("r",), ("judge=rule-now",), ("r", "judge=nope"), ("r", "judge="), ("nope", "judge=rule-now"),
                 ("r", "judge=no.yaml"), ("r", "judge=rule-now", "nope=1"), ("r", "judge=rule-now", "kind=x"),
                 ("r", "judge=rule-now", "kind=[a]"), ("r", "judge=endpoint"), ("r", "judge=endpoint", "attempts=0"),
                 ("r", "judge=rule-now", "prompts=[a]"), ("r", "judge=rule-now", "=3"), ("--nope",), (),
                 ("r", "judge=rule-now", "a.b.c=3"), ("r", "judge=rule-now", "says={"), ("r/store.zarr/nope", "judge=rule-now"),
                 ("r", "nope=3", "--agreement"), ("r", "--agreement")):  # fmt: skip
        yield ask(*argv)
    yield ask("r", "judge=./j.yaml", files={"j.yaml": yaml.safe_dump({**JUDGE, "kind": "nope"}).encode()}, named="kind")


def readers() -> Iterator[Case]:
    for command in ("report", "results", "selection", "meta"):
        for path in (
            "nope",
            "",
            "r/store.zarr/prompts",
            "/dev/null",
            "/etc/passwd",
            "x" * 5000,
            "a\udcff",
            "r\x1b[31m",
            ".",
        ):
            yield Case("readers", command, (path,), {}, _a_run)
        yield Case("readers", command, (), {}, _a_run)
        yield Case("readers", command, ("--nope",), {}, _a_run)
    for content in RAW:
        yield Case("readers", "report", ("r", "--claims", "c.yaml"), {"c.yaml": content}, _a_run, "c.yaml")
    of_claims = (("--claims", "nope"), ("--claims", ""), ("--claims", "no.yaml"), ("nope",))
    of_selection = (("--max-kl", "nan"), ("--max-kl", "-1"), ("--latest", "2"), ("--latest", "x"), ("--max-kl", "inf"),
                    (), ("s",))  # fmt: skip
    for command, each in (("report", of_claims), ("selection", of_selection)):
        for more in each:
            yield Case("readers", command, ("r", *more), {}, _a_run)
    for words_given in (("nope",), ("--nope",), ("run", "nope")):
        yield Case("readers", "__main__", words_given)


PARTS = (
    numbers,
    train,
    choose,
    worst,
    choices,
    words,
    steering,
    conditions,
    prompt_files,
    personas,
    claims,
    judges,
    readers,
)


def cases() -> list[Case]:
    """Every case, in order."""
    return [case for part in PARTS for case in part()]
