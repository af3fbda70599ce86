"""Sharded models: each process reads and holds its own rows, and the numbers are those of the file."""

import json

import process_group
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from capgap.engine import shared_loading
from capgap.engine.forward import output_form
from capgap.engine.models import load_model
from capgap.engine.shared_loading import load_to_share
from capgap.engine.streaming import CannotStream

# Loads a model by the processes of a group, with a count of bytes that are read, and compares it.
LOADING = """
import json, os, sys
from functools import partial
from pathlib import Path
import torch
from capgap.engine import models, shared_loading
from capgap.engine.forward import hold_frozen, model_output, output_form
from capgap.engine.parallel import join, whole_tensor
from capgap.engine.shared_loading import load_to_share

folder, precision = Path(sys.argv[1]), sys.argv[2]
read, preadv = [0], os.preadv
whole, shared_loading.load_model = shared_loading.load_model, None  # which would read all of it

def counted(file, buffers, start):
    count = preadv(file, buffers, start)
    read[0] += count
    return count

os.preadv = counted
with join(shard=True) as dist:
    model = load_to_share(folder)
    probed, read[0] = read[0], 0
    wrapper = dist.distribute(model, partial(hold_frozen, precision=precision))
    own = sum(p.to_local().untyped_storage().nbytes() for p in model.parameters())
    found = {name: whole_tensor(p.detach()) for name, p in model.named_parameters()}
    ids = torch.arange(32).view(2, 16)
    hidden = wrapper(lambda model, ids: model_output(model, ids, precision=precision).hidden, ids)
    os.preadv = preadv
    plain = whole(folder)
    output_form(plain)
    hold_frozen(plain, precision)
    for name, parameter in plain.named_parameters():
        assert parameter.dtype == found[name].dtype, name
        assert torch.equal(parameter, found[name]), name
    same = model_output(plain, ids, precision=precision).hidden
    print("READ", json.dumps([probed, read[0], own, (hidden - same).abs().max().item()]))
"""


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_each_process_reads_and_holds_its_own_rows(tiny_model, tmp_path, stored):
    model = tiny_model(hidden=32, heads=4, layers=12, tied=stored == torch.float32)
    folder, script = tmp_path / "model", tmp_path / "loading.py"
    model.to(stored).save_pretrained(folder)
    script.write_text(LOADING)
    precision = "float32" if stored == torch.float32 else "bfloat16"
    total = sum(parameter.nbytes for parameter in model.parameters())
    layer = sum(parameter.nbytes for parameter in model.model.layers[0].parameters())
    for status, out, errors in process_group.ends(process_group.start(script, folder, precision)):
        assert status == 0, errors
        line = next(line for line in out.splitlines() if line.startswith("READ "))
        probed, read, own, difference = json.loads(line[5:])
        assert read == total / 2
        assert probed == total - 11 * layer  # tables and one of the layers
        # norms and tables of a teacher in bfloat16 are held in float32
        assert own / (total / 2) == pytest.approx(1, abs=0.2 if precision == "bfloat16" else 1e-9)
        assert difference < 1e-5


class Largest(TorchDispatchMode):
    """Notes the largest tensor that is made in main memory."""

    nbytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor) and made.device.type == "cpu":
            self.nbytes = max(self.nbytes, made.untyped_storage().nbytes())
        return made


def test_a_model_to_be_shared_takes_no_memory_and_has_the_same_form(tiny_model, tmp_path):
    tiny_model(vocab=512, hidden=64, heads=4, layers=3).save_pretrained(tmp_path)
    with Largest() as largest:
        model = load_to_share(tmp_path)
    assert all(parameter.is_meta and parameter.requires_grad for parameter in model.parameters())
    assert not any(buffer.is_meta for buffer in model.buffers())
    assert largest.nbytes == 512 * 64 * 4  # the table
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert output_form(model) == output_form(load_model(tmp_path))


def test_a_model_that_cannot_be_probed_by_layers_is_loaded_whole(tiny_model, tmp_path, monkeypatch):
    def refused(self):
        raise CannotStream("it cannot be run layer by layer")

    expected = tiny_model()
    expected.to(torch.bfloat16).save_pretrained(tmp_path)
    monkeypatch.setattr(shared_loading.LayerByLayer, "probe", refused)
    for dtype in (torch.float32, None):
        model = load_to_share(tmp_path, dtype=dtype)
        for name, parameter in model.named_parameters():
            assert parameter.dtype == (dtype or torch.bfloat16)
            assert torch.equal(parameter.bfloat16(), expected.get_parameter(name))
