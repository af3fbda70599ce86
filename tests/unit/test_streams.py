"""Batches: a function of seed and step; held-out windows: every token once."""

import numpy as np
import pytest
import torch

from capgap.data.token_streams import Streams, check_long_enough, evaluation_windows, training_batch
from capgap.errors import CapgapError

STREAM = np.arange(1003)


def batch(step, seed=0, size=4, stream=STREAM):
    return training_batch(stream, sequence_length=10, batch_size=size, seed=seed, step=step)


def test_labels_are_the_next_tokens():
    inputs, labels, starts = batch(3)
    assert inputs.shape == labels.shape == (4, 10)
    assert torch.equal(inputs + 1, labels)
    assert torch.equal(inputs[:, 0], starts)
    assert torch.equal(inputs[:, 1:], labels[:, :-1])


def test_a_batch_depends_on_seed_and_step_alone():
    later = batch(7)
    for step in range(7):
        batch(step)
    assert torch.equal(batch(7)[0], later[0])
    assert not torch.equal(batch(7, seed=1)[0], later[0])


def test_an_epoch_visits_every_window_once_and_the_next_differs():
    windows = (1003 - 1) // 10 - 1
    starts = torch.cat([batch(step, size=1)[0][:, 0] for step in range(2 * windows)])
    first, second = starts[:windows], starts[windows:]
    assert len(set(first.tolist())) == windows
    assert len({s % 10 for s in first.tolist()}) == 1  # one offset an epoch
    assert first.tolist() != second.tolist()


def test_batches_cross_the_end_of_an_epoch():
    windows = (1003 - 1) // 10 - 1
    inputs = batch(0, size=windows + 5).inputs
    assert inputs.shape == (windows + 5, 10)


@pytest.mark.parametrize("length", [12, 40, 41, 42, 57])
def test_held_out_windows_predict_every_token_but_the_first_once(length):
    stream = np.arange(length)
    labels = torch.cat([b.flatten() for _, b in evaluation_windows(stream, 10, 3)])
    assert labels.tolist() == list(range(1, length))


def test_short_streams_are_refused_with_the_fix():
    with pytest.raises(CapgapError, match="validation split has 11 tokens"):
        check_long_enough(np.arange(11), 10, "validation")


def test_streams_are_memory_mapped(token_streams):
    stream = Streams(token_streams())["train"]
    assert isinstance(stream, np.memmap)
    assert stream.dtype == np.uint16
