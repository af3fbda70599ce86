"""oneDNN instead of MKL: where, with which precision, and attention by whole products."""

import pytest
import torch
from pruning_models import MODELS, VOCAB, build

from capgap.engine import attention, models, products
from capgap.engine.products import fast_products

ZEN5 = {"avx512_f": True, "avx512_bf16": True, "amx_tile": False, "amx_bf16": False}


@pytest.fixture(autouse=True)
def asked_again():
    """Whether oneDNN is better is asked once a process; ask in every test."""
    products.onednn_is_better.cache_clear()
    yield
    products.onednn_is_better.cache_clear()


@pytest.mark.parametrize("shape", [(64, 64, 64), (512, 384, 896), (3, 1000, 5), (256, 24, 1024)])
@pytest.mark.parametrize("turned", [False, True])
def test_products_keep_float32(shape, turned):
    """No factor is rounded: errors stay below the bound of sums in float32, inner x 2^-24."""
    rows, inner, columns = shape
    a, b = torch.randn(rows, inner), torch.randn(columns, inner).T
    exact = a.double() @ b.double()
    with fast_products():
        found = (b.T.contiguous() @ a.T).T if turned else a @ b
        added = torch.zeros(rows, columns).addmm_(a, b)
    scale = a.abs().double() @ b.abs().double()
    for result in (found, added):
        assert ((result - exact).abs() <= inner * 2**-24 * scale).all()


def test_the_setting_holds_inside_alone():
    before = torch.get_float32_matmul_precision()
    with fast_products():
        inside = torch.get_float32_matmul_precision()
        assert products.products_are_fast() == products.onednn_is_better()
        with fast_products():
            assert torch.get_float32_matmul_precision() == inside
        assert torch.get_float32_matmul_precision() == inside
    assert torch.get_float32_matmul_precision() == before
    with pytest.raises(ZeroDivisionError), fast_products():
        raise ZeroDivisionError
    assert torch.get_float32_matmul_precision() == before
    assert not products.products_are_fast()


def test_the_dot_product_is_mkls_inside_as_well():
    a, b = torch.randn(7, 900), torch.randn(7, 900)
    expected = torch.dot(a.reshape(-1), b.reshape(-1))
    with fast_products():
        before = torch.get_float32_matmul_precision()
        assert torch.equal(products.dot(a, b), expected)
        assert torch.get_float32_matmul_precision() == before


@pytest.mark.parametrize(
    ("processor", "better"),
    [
        (ZEN5, True),
        ({**ZEN5, "amx_tile": True, "amx_bf16": True}, False),  # would round factors
        ({**ZEN5, "avx10_2": True}, False),
        ({"avx2": True}, False),
        ({"architecture": "aarch64"}, False),
    ],
)
def test_only_processors_that_do_not_round_are_asked(processor, better, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: processor)
    monkeypatch.setattr(products, "_keeps_float32", lambda: True)
    assert products.onednn_is_better() == (better and torch.backends.mkldnn.is_available())


def test_a_gpu_is_left_alone(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert not products.onednn_is_better()


def test_a_processor_that_rounds_all_the_same_is_found_out(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: ZEN5)
    monkeypatch.setattr(
        torch.Tensor, "__matmul__", lambda a, b: (a.bfloat16().float()).mm(b.bfloat16().float())
    )
    assert not products.onednn_is_better()


# --- attention --------------------------------------------------------------------------------


def passes(model, ids):
    """Hidden states and the gradient of a function of them."""
    model.zero_grad()
    hidden = models.hidden_states(model, ids)
    (hidden.sin().sum()).backward()
    return hidden.detach(), torch.cat(
        [p.grad.reshape(-1) for p in model.parameters() if p.grad is not None]
    )


def counted(monkeypatch, fast=True):
    """Calls of attention by whole products, from now on as if products were fast."""
    calls, apply = [], attention._Attention.apply
    monkeypatch.setattr(attention, "products_are_fast", lambda: fast)
    monkeypatch.setattr(
        attention._Attention, "apply", lambda *a: calls.append(a[0].shape) or apply(*a)
    )
    return calls


@pytest.mark.parametrize("name", list(MODELS))
def test_attention_is_that_of_pytorch(name, monkeypatch):
    """Hidden states and gradients, with heads that share keys and without."""
    model, ids = build(name), torch.randint(VOCAB, (3, 40))
    model.set_attn_implementation("sdpa")
    expected = passes(model, ids)
    calls = counted(monkeypatch)
    model.set_attn_implementation(attention.NAME)
    found = passes(model, ids)
    assert len(calls) == model.config.num_hidden_layers
    for mine, theirs in zip(found, expected, strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-4, atol=1e-5 * theirs.abs().max())


def test_attention_against_the_formula():
    """One query of two tokens by hand: the second weighs both by softmax(q k / sqrt 4)."""
    query = torch.tensor([[1.0, 0, 0, 0], [2.0, 0, 0, 0]]).view(1, 1, 2, 4)
    key = torch.tensor([[3.0, 0, 0, 0], [1.0, 0, 0, 0]]).view(1, 1, 2, 4)
    value = torch.tensor([[1.0, 0, 0, 0], [0.0, 1, 0, 0]]).view(1, 1, 2, 4)
    out = attention._Attention.apply(query, key, value, 0.5)[0, 0]
    first = torch.tensor([3.0, 1.0]).softmax(0)  # 2 x 3 / 2 and 2 x 1 / 2
    assert torch.allclose(out[0], torch.tensor([1.0, 0, 0, 0]))
    assert torch.allclose(out[1, :2], first)


@pytest.mark.parametrize(
    "case", ["outside", "long", "dropout", "padding", "autocast", "sliding window"]
)
def test_what_is_not_plain_goes_to_pytorch(case, monkeypatch):
    model = build(
        "gpt2" if case == "dropout" else "mistral" if "window" in case else "llama-mha-tied"
    )
    model.set_attn_implementation(attention.NAME)
    calls = counted(monkeypatch, fast=case != "outside")
    ids, options = torch.randint(VOCAB, (2, 16)), {}
    if case == "long":
        monkeypatch.setattr(attention, "WHOLE_ATTENTION", 8)
    if case == "dropout":
        model.train()
    if case == "padding":
        options["attention_mask"] = torch.ones(2, 16, dtype=torch.int64).index_fill(
            1, torch.tensor([0]), 0
        )
    if case == "sliding window":
        model.config.sliding_window = 4
    with torch.autocast("cpu", torch.bfloat16, enabled=case == "autocast"):
        model.base_model(input_ids=ids, use_cache=False, **options)
    assert not calls
