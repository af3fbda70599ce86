"""The roofline that plans count with, against the operations of the real step and by hand."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from capgap.config.devices import DEVICES
from capgap.config.shapes import LlamaShape
from capgap.cost.roofline import (
    ASSUMED,
    ENDS_FORWARD,
    FORWARD,
    Pass,
    Rates,
    Shape,
    layers,
    loss,
    micro_batch,
)

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from gpu_roofline import CASES, PILOT, as_model, traced, useful_flops

H100 = DEVICES["h100-80gb"]
SMALL = LlamaShape(3, 1024, 16, 16, 64, 2816, 32000, False)
LARGER = replace(SMALL, layers=4, hidden=2048, heads=32, kv_heads=32)


def test_an_operation_takes_the_longest_of_launch_bytes_and_flops_by_hand():
    rates = Rates.of(H100, "bfloat16")
    assert rates.seconds(100) == 5e-6
    assert rates.seconds(3.35e12 * 0.8) == pytest.approx(1)
    assert rates.seconds(1, 989e12 * 0.69) == pytest.approx(1)
    assert Rates.of(H100, "float32").product == pytest.approx(67e12 * 0.69)
    v100 = DEVICES["v100-32gb"]  # has no units for bfloat16
    assert Rates.of(v100, "bfloat16") == Rates.of(v100, "float32")


def test_forward_pass_of_one_layer_by_hand():
    shape = Shape(4096, 4096)
    model = as_model(replace(SMALL, layers=1))
    d, f, tokens = 1024, 2816, 4096
    rates, counts = Rates.of(H100, "bfloat16"), FORWARD["bfloat16"]
    products = 2 * tokens * (4 * d * d + 3 * d * f) / rates.product  # large enough for the peak
    attention = 4 * tokens * 4096 * d / 2 / rates.attention
    others = tokens * (counts.stream * d + 2 * counts.heads * d + counts.neurons * f) / rates.memory
    others += 8 * 5e-6
    ends = max(ENDS_FORWARD * tokens * d / rates.memory, 20 * 5e-6)
    assert layers(H100, model, shape, "bfloat16") == pytest.approx(
        products + attention + others + ends, rel=0.05
    )


@pytest.mark.parametrize("precision", ["bfloat16", "float32"])
@pytest.mark.parametrize("objective", ["soft_ce", "forward_kl", "reverse_kl", "jensen_shannon"])
def test_formula_is_within_a_tenth_of_the_operations_of_the_real_step(precision, objective):
    shape = Shape(4096, 1024, chunk=2048, objective=objective)
    counted = traced(
        SMALL, LARGER, 1024, 4096, device="h100-80gb", precision=precision,
        objective=objective, chunk=2048,
    )  # fmt: skip
    formula = micro_batch(
        H100, as_model(SMALL), as_model(LARGER), shape, precision=precision, kernel=False
    )
    assert formula.keys() == counted.keys()
    for part, seconds in formula.items():
        assert seconds == pytest.approx(counted[part].seconds, rel=0.1), part


@pytest.mark.parametrize("teacher", [None, LARGER], ids=["cached", "data"])
def test_losses_without_a_teacher_online(teacher):
    cached = teacher is None
    counted = traced(SMALL, None, 1024, 4096, device="h100-80gb", cached=cached)
    found = loss(
        H100, as_model(SMALL), None, Shape(4096, 1024, cached=cached), "bfloat16", kernel=False
    )
    assert found == pytest.approx(counted["loss"].seconds, rel=0.1)


def share(name, **options):
    student, teacher, length, tokens = CASES[name]
    models = as_model(student), teacher and as_model(teacher)
    parts = micro_batch(H100, *models, Shape(tokens, length), **options)
    return useful_flops(*models, length, tokens) / sum(parts.values()) / 989e12, parts


def test_bars_of_the_engine_by_the_roofline():
    """Shares of an H100's peak that the real step is built for; none was measured."""
    assert share("minima: 3B from 7B", compiled=True)[0] > 0.5
    assert share("pilot: 64M from 410M", compiled=True)[0] > 0.35
    for vocab in (32_000, 50_304, 152_064):
        student, teacher = (as_model(replace(s, vocab=vocab)) for s in (SMALL, LARGER))
        student = replace(student, hidden=2048)
        flops = 2 * 8192 * vocab * (3 * student.hidden + teacher.hidden)
        assert flops / loss(H100, student, teacher, Shape(8192, 4096), "bfloat16") / 989e12 > 0.45


def test_smaller_chunks_models_and_slower_memory_reach_less():
    student, teacher = as_model(PILOT), as_model(LARGER)
    whole, small = Shape(8192, 512), Shape(8192, 512, chunk=176)
    assert loss(H100, student, teacher, whole, "bfloat16") < 0.7 * loss(
        H100, student, teacher, small, "bfloat16"
    )
    assert share("pilot: 64M from 410M")[0] < share("minima: 3B from 7B")[0]
    one = Pass("train", as_model(SMALL), Shape(4096, 1024), "bfloat16", batch_tokens=8192)
    slower = ASSUMED.model_copy(update={"bandwidth": 0.4})
    assert one.seconds_per_token("h100-80gb", slower) > one.seconds_per_token("h100-80gb")


def test_a_pass_costs_what_its_parts_do():
    model = as_model(SMALL)
    shape = Shape(4096, 1024)
    alone = Pass("train", model, shape, "bfloat16", batch_tokens=4096)
    parts = micro_batch(H100, model, None, shape)
    update_s = 4096 * alone.seconds_per_token("h100-80gb") - sum(parts.values())
    assert update_s == pytest.approx(46 * model.params / (3.35e12 * 0.8))  # 28 + 12 + 6 bytes each
    again = replace(alone, checkpointed=True)
    more = 4096 * (again.seconds_per_token("h100-80gb") - alone.seconds_per_token("h100-80gb"))
    assert more == pytest.approx(layers(H100, model, shape, "bfloat16"))
    scored = Pass("score", model, shape, "bfloat16")
    measured = Pass("evaluate", model, shape, "bfloat16")
    ratio = scored.seconds_per_token("h100-80gb") / measured.seconds_per_token("h100-80gb")
    assert 2.5 < ratio < 6
