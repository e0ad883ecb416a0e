"""What comes back from a server is what was asked for, or is refused: tried on what the traces really give here."""

import io
import zipfile
from typing import Any

import pytest
import torch
import zstandard

from gating.remote import expected, results
from gating.remote.connection import sizes
from gating.remote.expected import NotFinite, Sizes
from gating.remote.wire import Lost
from gating.steering.calls import Call

KINDS = {"_read": ("read", 3), "_generate": ("generate", 4), "_score": ("score", 4)}  # and what of a call travels
N = 30_000_000


def packed(value: object) -> bytes:
    out = io.BytesIO()
    torch.save(value, out)
    return zstandard.ZstdCompressor().compress(out.getvalue())


@pytest.fixture
def traces(monkeypatch, tmp_path):
    """Run something here; every trace of it as a call, and what it saved."""
    from gating.pipeline import execute, study
    from gating.steering.backend import Backend
    from tests.conftest import compose

    def go(*overrides: str) -> list[tuple[Call, Sizes, dict[str, Any]]]:
        seen = []
        monkeypatch.setattr(execute, "Backend", lambda loaded, rows: Backend(loaded, rows, lambda call: None))
        for name, (kind, travel) in KINDS.items():
            real = getattr(Backend, name)

            def record(self, *content, real=real, kind=kind, travel=travel):
                given = real(self, *content)
                out, read = given if kind == "generate" else (given, None)
                values = {"out": out} if read is None else {"out": out, "read": read}
                seen.append((Call(kind, content[:travel], "rows"), sizes(self.loaded), values))
                return given

            monkeypatch.setattr(Backend, name, record)
        small = ("directions.questions=2", "directions.n=4", "directions.response_tokens=4", "max_new_tokens=4")
        execute.execute(
            study.prepare(*compose(*small, "controls.random=1", "data.n=2", f"runs_dir={tmp_path}", *overrides))
        )
        return seen

    return go


@pytest.mark.parametrize("asked", [
    ["model=tiny-llama", "readouts.tokens=true", "readouts.lens=true", "readouts.extra=[cosine]"],
    ["model=tiny-gemma", "steer.direction=compliant:i_thou@response_mean", "activations=true"],
    ["model=tiny-qwen", "directions.method=probe"],
])  # fmt: skip
def test_what_every_trace_saves_is_what_is_expected_of_it(asked, traces):
    seen = traces(*asked)
    assert {call.kind for call, _, _ in seen} == {kind for kind, _ in KINDS.values()}
    for call, model, values in seen:
        expected.check(call, model, values)
        assert len(packed(values)) <= expected.size(call, model) + results.OVERHEAD
        assert set(results.unpack(packed(values), expected.size(call, model))) == set(values)


def changed(values: dict[str, Any], **change: Any) -> dict[str, Any]:
    return {**values, **change}


def test_another_shape_precision_batch_token_or_block_is_refused_and_so_is_a_number_that_is_none(traces):
    seen = traces("model=tiny-llama", "readouts.tokens=true")
    by_kind = {call.kind: (call, model, values) for call, model, values in seen}
    call, model, values = by_kind["generate"]
    out, read = values["out"], values["read"]
    entry = read["step_projection"]
    bad = [
        {}, {"out": out}, changed(values, out=out[:-1]), changed(values, out=out.long()),
        changed(values, out=torch.cat([out, out], 1)), changed(values, out=torch.full_like(out, model.vocabulary)),
        changed(values, out=out[:, :0]), changed(values, out=out.tolist()), changed(values, out=out.to_sparse()),
        changed(values, out=out.to("meta")),
        changed(values, read={**read, "extra": entry}),
        changed(values, read={**read, "step_projection": {**entry, "block": entry["block"] + 1}}),
        changed(values, read={**read, "step_projection": {k: v[:2] for k, v in entry.items()}}),
        changed(values, read={**read, "kl": {**read["kl"], "value": read["kl"]["value"].double()}}),
    ]  # fmt: skip
    for given in bad:
        with pytest.raises(Lost):
            expected.check(call, model, given)
    assert set(expected.check(call, model, changed(values, self=out, lm=out))) == {"out", "read"}
    kl = read["kl"]["value"] * torch.nan
    with pytest.raises(NotFinite, match="value"):
        expected.check(call, model, changed(values, read={**read, "kl": {**read["kl"], "value": kl}}))
    call, model, values = by_kind["read"]
    for change in ({"dtype": "\x1b[31m"}, {"dtype": 3}, {"norm": values["out"]["norm"][:, :1]}, {"state": None}):
        with pytest.raises(Lost):
            expected.check(call, model, {"out": {**values["out"], **change}})
    with pytest.raises(NotFinite):
        expected.check(call, model, {"out": {**values["out"], "state": values["out"]["state"] / 0}})


class Reduced:
    def __init__(self, *how: Any) -> None:
        self.how = how

    def __reduce__(self):
        return self.how


def archive(change, value: object = None, method: int = zipfile.ZIP_STORED) -> bytes:
    """torch.save's archive with its records changed, as a result."""
    plain, out = io.BytesIO(), io.BytesIO()
    torch.save({"out": torch.arange(4.0)} if value is None else value, plain)
    with zipfile.ZipFile(plain) as given, zipfile.ZipFile(out, "w", method) as made:
        for record in given.infolist():
            made.writestr(record.filename, change(record.filename, given.read(record)))
    return zstandard.ZstdCompressor().compress(out.getvalue())


def bombs() -> dict[str, bytes]:
    """Results that a server might send instead of tensors."""
    plain = io.BytesIO()
    torch.save({"out": torch.arange(4.0)}, plain)
    legacy = io.BytesIO()
    torch.save({"out": torch.arange(4.0)}, legacy, _use_new_zipfile_serialization=False)
    zstd = zstandard.ZstdCompressor().compress
    larger = (b"K\x04tq\x07Q", b"J\x00\xca\x9a\x3btq\x07Q")
    return {
        "code": packed({"out": Reduced(print, ("run",))}),
        "bytearray": packed({"out": Reduced(bytearray, (N,))}),
        "a tensor class": packed({"out": Reduced(torch.FloatTensor, (N,))}),
        "a zstd bomb": zstd(bytes(N)),
        "a zstd frame that says it has gigabytes": zstd(b"x")[:4]
        + b"\xe0"
        + (10**12).to_bytes(8, "little")
        + b"\x00" * 9,
        "a zip bomb": archive(lambda name, c: bytes(N) if "data/0" in name else c, method=zipfile.ZIP_DEFLATED),
        "torch's old format": zstd(legacy.getvalue()),
        "a storage larger than its record": archive(lambda name, c: c.replace(*larger)),
        "half an archive": zstd(plain.getvalue()[: len(plain.getvalue()) // 2]),
        "half a frame": packed({"out": torch.arange(4.0)})[:40],
        "not compressed": plain.getvalue(),
        "a list": packed([torch.arange(4.0)]),
        "too many values": packed({"out": [[]] * 600_000}),
        "a memo of billions": archive(lambda name, c: b"\x80\x02}r\xff\xff\xff\x7f." if name.endswith(".pkl") else c),
        "nothing": b"",
        "junk": b"\xff" * 1000,
    }


def test_a_result_that_is_no_archive_of_tensors_is_refused_in_one_line_before_it_takes_memory(capsys):
    import tracemalloc

    call = Call("score", (None, 1, None, torch.ones(4, 1, dtype=torch.bool)), "")
    for name, content in bombs().items():
        tracemalloc.start()
        with pytest.raises(Lost) as e:
            expected.check(call, Sizes(1, 1, 1), results.unpack(content, 1_000_000))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 20_000_000 and len(str(e.value)) < 400 and "\n" not in str(e.value), name
    assert capsys.readouterr().out == ""
