"""What one run of a folder has extracted, the next takes: to the last bit, and only where all of it is the same."""

import pytest

from gating import store
from gating.pipeline import execute, extract, extracted, study
from tests.conftest import compose

SETTINGS = (
    "data.n=2", "directions.questions=2", "directions.n=4", "directions.response_tokens=4", "max_new_tokens=4",
    "controls.random=1", "controls.draw=covariance", "directions.extra=[compliant@response_mean]",
    "directions.permutations=2",
)  # fmt: skip


def planned(folder, *more):
    return study.prepare(*compose("model=tiny-llama", f"runs_dir={folder}", *SETTINGS, *more))


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    made = planned(tmp_path_factory.mktemp("runs"), "steer.coef=2")
    assert execute.execute(made) == "new"
    return made


def counted(monkeypatch):
    real, calls = extract.extract, []
    monkeypatch.setattr(extract, "extract", lambda *args: calls.append(1) or real(*args))
    return calls


def contents(of):
    """Every group but the root, with the note of where its directions came from left out."""
    groups = {name: group.to_dataset().load() for name, group in store.open_run(of.folder).subtree_with_keys}
    groups["directions"].attrs.pop("taken_from", None)
    return {name: ds for name, ds in groups.items() if name != "."}


def test_a_run_takes_the_directions_of_another_of_its_folder_and_is_the_same_to_the_last_bit(
    first, tmp_path, monkeypatch
):
    calls = counted(monkeypatch)
    takes, alone = (planned(f, "steer.coef=3") for f in (first.run.runs_dir, tmp_path))
    execute.execute(takes)
    assert not calls
    assert store.read_group(takes.store, "directions").attrs["taken_from"] == first.folder.name
    execute.execute(alone)
    assert calls == [1] and "taken_from" not in store.read_group(alone.store, "directions").attrs
    a, b = contents(takes), contents(alone)
    assert a.keys() == b.keys() >= {"directions", "responses", "geometry"}
    assert all(a[name].identical(b[name]) for name in a)
    assert not store.problems(takes.store)


@pytest.mark.parametrize("more", [
    "seed=1", "directions.n=3", "directions.position=-2", "backend.batch_rows=4", "controls.random=2",
    "model.system=Hi", "steer.direction=evil", "directions.method=pca",
])  # fmt: skip
def test_what_would_change_a_bit_of_the_directions_is_not_taken(first, more):
    signature = store.read_group(first.store, "model")
    machine = {"threads": 1}
    other = planned(first.run.runs_dir, more)
    assert extracted.digest(first, signature, "f", machine) != extracted.digest(other, signature, "f", machine)


def test_the_weights_and_the_machine_are_part_of_it_and_what_is_done_with_the_directions_is_not(first):
    signature = store.read_group(first.store, "model")
    of = extracted.digest(first, signature, "f", {"threads": 1})
    same = planned(first.run.runs_dir, "steer.coef=9", "data.n=3", "max_new_tokens=5", "readouts.lens=true")
    assert extracted.digest(same, signature, "f", {"threads": 1}) == of
    others = [(signature + 1e-6, "f", 1), (signature, "g", 1), (signature, "f", 2)]
    assert of not in [extracted.digest(first, s, f, {"threads": n}) for s, f, n in others]


def test_a_damaged_run_gives_nothing_and_the_one_that_extracted_anew_is_named_from_then_on(
    first, tmp_path, monkeypatch
):
    import shutil

    shutil.copytree(first.run.runs_dir, tmp_path / "runs")
    (tmp_path / "runs" / first.folder.name / store.STORE / "directions" / "vector" / "c" / "0" / "0" / "0").write_bytes(
        b"x"
    )
    calls = counted(monkeypatch)
    new, next_ = (planned(tmp_path / "runs", f"steer.coef={c}") for c in (4, 5))
    for each in (new, next_):
        execute.execute(each)
    assert calls == [1]
    assert store.read_group(next_.store, "directions").attrs["taken_from"] == new.folder.name


def test_nothing_is_taken_under_reuse_false_nor_when_a_run_is_forced(first, monkeypatch):
    calls = counted(monkeypatch)
    execute.execute(planned(first.run.runs_dir, "steer.coef=6", "reuse=false"))
    execute.execute(planned(first.run.runs_dir, "steer.coef=6", "force=true"))
    assert calls == [1, 1]
