"""The teacher's targets on disk: what is kept, which runs may use it, and what is refused."""

import os
import shutil
from collections import namedtuple
from signal import SIGTERM

import numpy as np
import pytest
import torch

from capgap.config import Distill, TargetsStage
from capgap.data.token_streams import Streams, lattice, training_batch
from capgap.engine import teacher_targets
from capgap.engine.forward import hidden_states, output_head
from capgap.engine.losses import ModelOutput, mixture_loss
from capgap.engine.models import save_model
from capgap.engine.objectives import Distillation
from capgap.engine.resuming import RunPaths
from capgap.engine.teacher_targets import TargetStore, draw
from capgap.errors import CapgapError, Terminated
from capgap.records.artifacts import differences
from capgap.records.run_records import Lineage
from capgap.stages import cache_teacher

LENGTH = 16


def stage(kind="top_k", entries=64, **changes):
    base = {"unique_tokens": 640, "sequence_length": LENGTH, "batch_tokens": 48}
    return TargetsStage(kind=kind, entries=entries, **{**base, **changes})


def place(out, seconds=60.0):
    return RunPaths(out, out.parent / "scratch", seconds)


@pytest.fixture
def teacher(tiny_model, tmp_path):
    """A teacher's model and its folder."""
    from capgap.engine.counting import count_params

    model = tiny_model(seed=9, hidden=32, heads=4).eval()
    with torch.no_grad():
        output_head(model).mul_(20)  # a fresh model is nearly uniform
    folder = tmp_path / "teacher"
    folder.mkdir()
    lineage = Lineage(kind="teacher", name="t", params=count_params(model))
    save_model(model, folder, lineage, tmp_path)
    return model, folder


def test_windows_are_fixed_spread_and_nested():
    few, many = lattice(10_000, 10, 200), lattice(10_000, 10, 4000)
    assert len(few) == 20
    assert len(many) == 400
    assert set(few) <= set(many)
    assert not (many % 10).any()
    assert np.all(np.diff(many) > 0)
    assert many.max() > 9000  # spread over the stream, not its beginning
    with pytest.raises(CapgapError, match="unique_tokens: 20,000 is not between"):
        lattice(10_000, 10, 20_000)


def test_every_seed_sees_the_same_windows_in_another_order():
    stream = np.arange(10_001)

    def epoch(seed, step=0):
        batch = training_batch(
            stream, sequence_length=10, batch_size=20, seed=seed, step=step, unique_tokens=200
        )
        assert torch.equal(batch.inputs[:, 0], batch.starts)
        assert torch.equal(batch.inputs + 1, batch.labels)
        return batch.starts.tolist()

    assert sorted(epoch(0)) == sorted(epoch(1)) == lattice(10_001, 10, 200).tolist()
    assert epoch(0) != epoch(1)
    assert epoch(0, step=1) != epoch(0)


@pytest.mark.parametrize(("kind", "entries"), [("top_k", 64), ("top_k", 5), ("sampled", 40)])
def test_what_is_kept_is_what_the_teacher_says(token_streams, teacher, tmp_path, kind, entries):
    model, folder = teacher
    tokens = token_streams()
    record = cache_teacher.run(stage(kind, entries), folder, tokens, place(tmp_path / "targets"))
    assert record.tokens == 640
    assert record.teacher == "t"
    store, stream = TargetStore(tmp_path / "targets"), Streams(tokens)["train"]
    batch = training_batch(
        stream, sequence_length=LENGTH, batch_size=7, seed=3, step=5, unique_tokens=640
    )
    kept = store.read(batch.starts)
    with torch.no_grad():
        probs = torch.softmax(hidden_states(model, batch.inputs) @ output_head(model).T, 1)
    if kind == "top_k":
        expected, _ = probs.topk(entries)
        torch.testing.assert_close(kept.masses[:, :entries], expected, rtol=2e-3, atol=1e-6)
        torch.testing.assert_close(probs.gather(1, kept.ids[:, :entries]), expected)
        rest = 1 - expected.sum(1, keepdim=True)
        torch.testing.assert_close(
            kept.masses[:, entries:], (rest / entries).expand(-1, entries), rtol=2e-3, atol=3e-4
        )
        for row, total in zip(kept.ids, rest, strict=True):  # the drawn are others than the top
            assert total < 1e-5 or not set(row[:entries].tolist()) & set(row[entries:].tolist())
    else:
        counts = torch.zeros_like(probs).scatter_add_(1, kept.ids, kept.masses * entries)
        assert (counts >= (probs * entries - 1e-4).floor()).all()
        assert (counts <= (probs * entries + 1e-4).ceil()).all()
    torch.testing.assert_close(kept.masses.sum(1), torch.ones(len(kept.masses)))


def test_draws_are_unbiased():
    torch.manual_seed(0)
    probs = torch.softmax(3 * torch.randn(1, 50), 1)
    uniform = (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000  # every phase once
    ids = draw(probs.expand(2000, -1), uniform, 12)
    counts = torch.bincount(ids.flatten(), minlength=50).double()
    torch.testing.assert_close(counts / counts.sum(), probs[0].double(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", ["top_k", "sampled"])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_expected_gradient_of_what_is_kept_is_the_gradient(kind, temperature):
    torch.manual_seed(0)
    hidden, head = torch.randn(1, 6, requires_grad=True), torch.randn(30, 6)
    whole = ModelOutput(torch.randn(1, 8), torch.randn(30, 8))
    label, phases, loss = torch.tensor([4]), 2000, {"temperature": temperature}
    (expected,) = torch.autograd.grad(mixture_loss(hidden, head, label, whole, **loss)[0], hidden)
    uniform = (torch.arange(phases, dtype=torch.float64) + 0.5) / phases  # every phase once
    pieces = teacher_targets.reduce_to_targets(
        ModelOutput(whole.hidden.expand(phases, -1), whole.head),
        *(uniform, stage(kind, 4, temperature=temperature)),
    )
    kept = teacher_targets.partial_targets(teacher_targets.join(pieces))
    many = hidden.expand(phases, -1)
    loss, _ = mixture_loss(many, head, label.expand(phases), kept, scale=1 / phases, **loss)
    (mean,) = torch.autograd.grad(loss, hidden)
    torch.testing.assert_close(mean, expected, rtol=1e-3, atol=1e-3)


def test_the_targets_does_not_depend_on_the_batch(token_streams, teacher, tmp_path):
    _, folder = teacher
    tokens = token_streams()
    for name, batch in [("a", 16), ("b", 160)]:
        cache_teacher.run(
            stage("sampled", 20, batch_tokens=batch), folder, tokens, place(tmp_path / name)
        )
    starts = torch.from_numpy(lattice(6000, LENGTH, 640))
    first, second = (TargetStore(tmp_path / name).read(starts).ids for name in "ab")
    assert (first != second).float().mean() < 1e-3  # rounding may move a draw


def test_shards_are_bounded_and_checked(token_streams, teacher, tmp_path, monkeypatch):
    monkeypatch.setattr(teacher_targets, "SHARD_BYTES", 5000)
    _, folder = teacher
    out = tmp_path / "targets"
    record = cache_teacher.run(stage(entries=20), folder, token_streams(), place(out))
    shards = sorted(out.glob("shard-*"))
    assert len(shards) == -(-40 // record.windows_per_shard) > 3
    assert max(shard.stat().st_size for shard in shards) < 6000
    assert sum(shard.stat().st_size for shard in shards) < 640 * record.bytes_per_token * 1.1
    assert differences(out) == []
    starts = torch.from_numpy(lattice(6000, LENGTH, 640))
    assert TargetStore(out).read(starts).ids.shape == (640, 40)
    data = bytearray(shards[1].read_bytes())
    data[-1] ^= 1
    shards[1].write_bytes(data)
    with pytest.raises(CapgapError, match=r"shard-00001\.safetensors has other contents"):
        TargetStore(out)


@pytest.mark.parametrize("kind", ["top_k", "sampled"])
def test_at_most_100_bytes_a_token_at_32000_entries(kind):
    settings = Distill(teacher_targets=kind, unique_tokens=1280).targets_stage()
    assert settings.bytes_per_token(32_000) <= 100


def test_a_full_disk_is_refused_beforehand(token_streams, teacher, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(9e9, 9e9, 100_000))
    _, folder = teacher
    with pytest.raises(
        CapgapError, match=r"640 tokens x 384 bytes = 0\.2 MB, 0\.1 MB free.*online"
    ):
        cache_teacher.run(stage(), folder, token_streams(), place(tmp_path / "targets"))
    assert not (tmp_path / "targets").exists()


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"temperature": 2.0}, "settings"),
        ({"weights_sha256": "0" * 64}, "teacher's weights"),
        ({"stream_sha256": "0" * 64}, "training stream"),
    ],
)
def test_a_targets_of_something_else_is_refused(token_streams, teacher, tmp_path, change, what):
    _, folder = teacher
    record = cache_teacher.run(stage(), folder, token_streams(), place(tmp_path / "targets"))
    store = TargetStore(tmp_path / "targets")
    right = {"weights_sha256": record.weights_sha256, "stream_sha256": record.stream_sha256}
    store.check(stage(), **right)
    wrong = {key: value for key, value in change.items() if key in right}
    other = {key: value for key, value in change.items() if key not in right}
    with pytest.raises(CapgapError, match=f"another {what}.*capgap cache-teacher"):
        store.check(stage(**other), **{**right, **wrong})


def test_windows_that_are_not_covered_are_refused(token_streams, teacher, tmp_path):
    _, folder = teacher
    cache_teacher.run(stage(), folder, token_streams(), place(tmp_path / "targets"))
    with pytest.raises(CapgapError, match="do not cover"):
        TargetStore(tmp_path / "targets").read(torch.tensor([1]))


def test_a_step_from_disk_equals_a_step_online_where_all_is_kept(
    token_streams, teacher, tiny_model, tmp_path
):
    model, folder = teacher
    tokens = token_streams()
    cache_teacher.run(stage(entries=64), folder, tokens, place(tmp_path / "targets"))
    student = tiny_model(seed=1)
    common = {"sequence_length": LENGTH, "unique_tokens": 640, "batch_tokens": 64}
    batch = training_batch(
        *[Streams(tokens)["train"]],
        sequence_length=LENGTH,
        batch_size=4,
        seed=0,
        step=0,
        unique_tokens=640,
    )

    def gradient(source, **settings):
        student.zero_grad()
        objective = Distillation(source, Distill(**common, **settings))
        loss, _ = objective(student, batch.inputs, batch.labels.reshape(-1), batch.starts, 1 / 64)
        loss.backward()
        return torch.cat([p.grad.flatten() for p in student.parameters()])

    online = gradient(model)
    kept = gradient(TargetStore(tmp_path / "targets"), teacher_targets="top_k", target_entries=64)
    assert (kept - online).norm() < 1e-3 * online.norm()  # half precision


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"teacher_targets": "top_k"}, "needs unique_tokens"),
        ({"target_entries": 5}, "teacher_targets is online"),
        (
            {"teacher_targets": "sampled", "unique_tokens": 1280, "objective": "reverse_kl"},
            "soft_ce alone",
        ),
        ({"objective": "jensen_shannon"}, "beta belongs to"),
        ({"beta": 0.5}, "beta belongs to"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Distill(**settings)


@pytest.fixture
def interrupted(monkeypatch):
    """Function that has forward pass number `at` of the next targets do something else first."""
    real = teacher_targets.model_output

    def arrange(at, act):
        passes = []

        def forward(*arguments, **options):
            passes.append(1)
            if len(passes) == at:
                act()
            return real(*arguments, **options)

        monkeypatch.setattr(teacher_targets, "model_output", forward)
        return passes

    return arrange


def fail(error):
    raise error


@pytest.mark.parametrize("kind", ["top_k", "sampled"])
def test_a_targets_killed_again_and_again_ends_in_the_same_bits(
    token_streams, teacher, tmp_path, monkeypatch, interrupted, kind
):
    """After every pass, with 5 windows a shard and 3 a pass, so in the middle of shards as well."""
    _, folder = teacher
    chosen = stage(kind, 20)
    each = chosen.bytes_per_token(64) * LENGTH
    monkeypatch.setattr(teacher_targets, "SHARD_BYTES", 5 * each)
    tokens = token_streams()
    cache_teacher.run(chosen, folder, tokens, place(tmp_path / "whole" / "targets"))
    out, needed = place(tmp_path / "cut" / "targets", seconds=0), 2 * 8  # passes of 8 shards
    for _ in range(needed - 1):
        interrupted(2, lambda: fail(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            cache_teacher.run(chosen, folder, tokens, out)
        assert not out.out.exists()
    passes = interrupted(0, None)
    cache_teacher.run(chosen, folder, tokens, out)
    assert len(passes) == 1  # nothing was computed twice
    assert differences(out.out) == []
    assert not any((tmp_path / "cut" / "scratch").glob("*"))
    whole = (tmp_path / "whole" / "targets" / "manifest.json").read_bytes()
    assert (out.out / "manifest.json").read_bytes() == whole


def test_a_damaged_part_of_a_targets_is_computed_again(
    token_streams, teacher, tmp_path, monkeypatch, interrupted
):
    monkeypatch.setattr(teacher_targets, "SHARD_BYTES", 5 * stage().bytes_per_token(64) * LENGTH)
    _, folder = teacher
    tokens = token_streams()
    cache_teacher.run(stage(), folder, tokens, place(tmp_path / "whole" / "targets"))
    out = place(tmp_path / "cut" / "targets", seconds=0)
    interrupted(10, lambda: fail(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        cache_teacher.run(stage(), folder, tokens, out)
    second = next((tmp_path / "cut" / "scratch").glob("*/windows-*10/windows.safetensors"))
    second.write_bytes(second.read_bytes()[:-1])
    passes = interrupted(0, None)
    cache_teacher.run(stage(), folder, tokens, out)
    assert len(passes) == 16 - 9 + 2  # what was missing, and the damaged shard
    whole = (tmp_path / "whole" / "targets" / "manifest.json").read_bytes()
    assert (out.out / "manifest.json").read_bytes() == whole


def test_an_unfinished_cache_is_saved_on_sigterm(token_streams, teacher, tmp_path, interrupted):
    _, folder = teacher
    tokens, out = token_streams(), place(tmp_path / "targets")
    interrupted(3, lambda: os.kill(os.getpid(), SIGTERM))
    with pytest.raises(Terminated, match=r"after 144 tokens; the state is saved in .*run again"):
        cache_teacher.run(stage(), folder, tokens, out)
    passes = interrupted(0, None)
    assert cache_teacher.run(stage(), folder, tokens, out).tokens == 640
    assert len(passes) == 14 - 3


def test_too_little_memory_for_a_targets_says_what_to_change(
    token_streams, teacher, tmp_path, interrupted
):
    _, folder = teacher
    interrupted(2, lambda: fail(torch.OutOfMemoryError("CUDA out of memory")))
    with pytest.raises(CapgapError, match=r"out of memory.*batch_tokens .*from 48 .*bfloat16"):
        cache_teacher.run(stage(), folder, token_streams(), place(tmp_path / "targets"))
