import sys

import pytest

from capgap.commands import tensorboard
from capgap.errors import CapgapError

CURVE = """step,tokens,learning_rate,train_data_ce_nats_per_token,val_loss_nats_per_token
0,0,0,,7.5
4,1024,0.001,6.25,6.5
"""


def test_curves_become_events_by_the_tokens_trained_on(tmp_path):
    pytest.importorskip("tensorboard", reason="TensorBoard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = tmp_path / "runs" / "a" / "seed-1"
    run.mkdir(parents=True)
    (run / "curve.csv").write_text(CURVE)
    for _ in range(2):  # the second time in place of the first
        assert tensorboard.run(tmp_path / "runs", tmp_path / "events") == 1
    events = EventAccumulator(str(tmp_path / "events" / "a" / "seed-1"))
    events.Reload()
    seen = {
        tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]
    }
    assert seen["val_loss_nats_per_token"] == [(0, 7.5), (1024, 6.5)]
    assert seen["train_data_ce_nats_per_token"] == [(1024, 6.25)]  # the start has none


def test_what_lacks_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(CapgapError, match="pip install tensorboard"):
        tensorboard.run(tmp_path, tmp_path / "events")
