"""oneDNN instead of MKL: when it is used, its precision, and attention by whole matmuls."""

import pytest
import torch
from pruning_models import MODELS, VOCAB, build
from transformers import StaticCache

from capgap.engine import attention, forward, onednn_matmul
from capgap.engine.onednn_matmul import use_onednn

ZEN5 = {"cpu_name": "AMD EPYC", "avx512_f": True, "avx512_bf16": True, "amx_tile": False}


@pytest.fixture(autouse=True)
def asked_again():
    """Whether oneDNN is better is asked once a process; ask in every test."""
    onednn_matmul.onednn_is_better.cache_clear()
    yield
    onednn_matmul.onednn_is_better.cache_clear()


@pytest.mark.parametrize("shape", [(64, 64, 64), (512, 384, 896), (3, 1000, 5), (256, 24, 1024)])
@pytest.mark.parametrize("turned", [False, True])
def test_products_keep_float32(shape, turned):
    """No factor is rounded: errors stay below the bound of sums in float32, inner x 2^-24."""
    rows, inner, columns = shape
    a, b = torch.randn(rows, inner), torch.randn(columns, inner).T
    exact = a.double() @ b.double()
    with use_onednn():
        found = (b.T.contiguous() @ a.T).T if turned else a @ b
        added = torch.zeros(rows, columns).addmm_(a, b)
    scale = a.abs().double() @ b.abs().double()
    for result in (found, added):
        assert ((result - exact).abs() <= inner * 2**-24 * scale).all()


def permissions():
    """PyTorch's settings of what it may round in float32 matmuls."""
    backends = torch.backends.mkldnn, torch.backends.mkldnn.matmul, torch.backends.cuda.matmul
    return [torch.backends.fp32_precision, *(backend.fp32_precision for backend in backends)]


def test_the_setting_holds_inside_alone(monkeypatch):
    monkeypatch.setattr(onednn_matmul, "onednn_is_better", lambda: True)
    before, general = permissions(), torch.get_float32_matmul_precision()
    with use_onednn():
        inside = permissions()
        assert onednn_matmul.SETTING.fp32_precision == "bf16"
        assert onednn_matmul.onednn_in_use()
        with use_onednn():
            onednn_matmul.dot(torch.ones(2), torch.ones(2))
            assert permissions() == inside
        assert permissions() == inside
    with pytest.raises(ZeroDivisionError), use_onednn():
        raise ZeroDivisionError
    onednn_matmul.dot(torch.ones(2), torch.ones(2))
    assert permissions() == before
    assert torch.get_float32_matmul_precision() == general
    assert not onednn_matmul.onednn_in_use()


def test_the_dot_product_is_mkls_inside_as_well():
    a, b = torch.randn(7, 900), torch.randn(7, 900)
    expected = torch.dot(a.reshape(-1), b.reshape(-1))
    with use_onednn():
        assert torch.equal(onednn_matmul.dot(a, b), expected)


@pytest.mark.parametrize(
    ("processor", "better"),
    [
        (ZEN5, True),
        ({**ZEN5, "cpu_name": "Intel Xeon"}, False),  # MKL does as well
        *(({**ZEN5, unit: True}, False) for unit in onednn_matmul.ROUNDING_UNITS),
        ({**ZEN5, "amx_bf16": True}, False),
        ({"avx2": True}, False),
        ({"architecture": "aarch64"}, False),
    ],
)
def test_only_processors_that_do_not_round_are_asked(processor, better, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: processor)
    monkeypatch.setattr(onednn_matmul, "keeps_float32", lambda: True)
    assert onednn_matmul.onednn_is_better() == (better and torch.backends.mkldnn.is_available())


def test_a_gpu_does_the_work_itself(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: ZEN5)
    monkeypatch.setattr(onednn_matmul, "keeps_float32", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert not onednn_matmul.onednn_is_better()


@pytest.mark.parametrize(("side", "keeps"), [(None, True), (0, False), (1, False)])
def test_a_processor_that_rounds_all_the_same_is_found_out(side, keeps, monkeypatch):
    def product(*factors):
        factors = [f.bfloat16() if i == side else f for i, f in enumerate(factors)]
        return torch.mm(*(factor.double() for factor in factors)).float()

    monkeypatch.setattr(torch.Tensor, "__matmul__", product)
    assert onednn_matmul.keeps_float32() == keeps


def test_the_question_may_be_asked_anywhere():
    """Within autocast and for models without weights, whose products are none in float32."""
    expected = onednn_matmul.keeps_float32()
    with torch.autocast("cpu", torch.bfloat16), torch.device("meta"):
        assert onednn_matmul.keeps_float32() == expected


# --- attention --------------------------------------------------------------------------------


def passes(model, ids):
    """Hidden states and the gradient of a function of them."""
    model.zero_grad()
    hidden = forward.hidden_states(model, ids)
    (hidden.sin().sum()).backward()
    return hidden.detach(), torch.cat(
        [p.grad.reshape(-1) for p in model.parameters() if p.grad is not None]
    )


def counted(monkeypatch, fast=True):
    """Calls of attention by whole products, from now on as if products were fast."""
    calls, apply = [], attention.WholeAttention.apply
    monkeypatch.setattr(attention, "onednn_in_use", lambda: fast)
    monkeypatch.setattr(
        attention.WholeAttention, "apply", lambda *a: calls.append(a[0].shape) or apply(*a)
    )
    return calls


# Layers that attend in another way: a soft cap on the scores, a sliding window, code of their own.
NOT_OURS = {"gemma2": 2, "gemma3": 1, "falcon-new": 2, "falcon-biased": 2}


@pytest.mark.parametrize("name", list(MODELS))
def test_attention_is_that_of_pytorch(name, monkeypatch):
    """Hidden states and gradients, with heads that share keys and without."""
    model, ids = build(name), torch.randint(VOCAB, (3, 40))
    calls = counted(monkeypatch, fast=False)
    expected = passes(model, ids)
    assert not calls
    calls = counted(monkeypatch)
    found = passes(model, ids)
    assert len(calls) == model.config.num_hidden_layers - NOT_OURS.get(name, 0)
    for mine, theirs in zip(found, expected, strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-4, atol=1e-5 * theirs.abs().max())


def test_attention_against_the_formula():
    """One query of two tokens by hand: the second weighs both by softmax(q k / sqrt 4)."""
    query = torch.tensor([[1.0, 0, 0, 0], [2.0, 0, 0, 0]]).view(1, 1, 2, 4)
    key = torch.tensor([[3.0, 0, 0, 0], [1.0, 0, 0, 0]]).view(1, 1, 2, 4)
    value = torch.tensor([[1.0, 0, 0, 0], [0.0, 1, 0, 0]]).view(1, 1, 2, 4)
    out = attention.WholeAttention.apply(query, key, value, 0.5)[0, 0]
    first = torch.tensor([3.0, 1.0]).softmax(0)  # 2 x 3 / 2 and 2 x 1 / 2
    assert torch.allclose(out[0], torch.tensor([1.0, 0, 0, 0]))
    assert torch.allclose(out[1, :2], first)


def step_with_cache(model, ids, **options):
    """One more token after a few, whose keys are longer than its queries."""
    cache = StaticCache(model.config, max_cache_len=24)
    model.base_model(input_ids=ids, past_key_values=cache, use_cache=True, **options)


def not_causal(model, ids):
    for layer in model.base_model.layers:
        layer.self_attn.is_causal = False
    model.config.is_causal = False
    model.base_model(input_ids=ids, use_cache=False)


def plain(model, ids, **options):
    model.base_model(input_ids=ids, use_cache=False, **options)


CASES = {
    "outside": plain,
    "long": plain,
    "one token": lambda model, ids: plain(model, ids[:, :1]),
    "dropout": lambda model, ids: plain(model.train(), ids),
    "padding": lambda model, ids: plain(model, ids, attention_mask=(ids != ids[0, 0]).long()),
    "autocast": plain,
    "double": lambda model, ids: plain(model.double(), ids),
    "sliding window": plain,
    "cache": step_with_cache,
    "not causal": not_causal,
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_not_plain_goes_to_pytorch(case, monkeypatch):
    name = {"dropout": "gpt2", "sliding window": "mistral"}.get(case, "llama-mha-tied")
    model, ids = build(name).eval(), torch.randint(VOCAB, (2, 16))
    if case == "sliding window":
        model.config.sliding_window = 4
    calls = counted(monkeypatch, fast=case != "outside")
    if case == "long":
        monkeypatch.setattr(attention, "WHOLE_ATTENTION", 8)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=case == "autocast"):
        CASES[case](model, ids)
    assert not calls


@pytest.mark.parametrize("option", ["softcap", "position_bias", "cache"])
def test_options_that_change_scores_go_to_pytorch(option, monkeypatch):
    seen = []
    monkeypatch.setattr(attention, "onednn_in_use", lambda: True)
    monkeypatch.setattr(
        attention, "sdpa_attention_forward", lambda *a, **options: seen.append(options)
    )
    heads = torch.randn(1, 2, 4, 8)
    attention.attend(torch.nn.Module(), heads, heads, heads, None, **{option: 30.0})
    assert seen[0][option] == 30.0


def test_the_scale_is_that_of_the_width_where_none_is_said(monkeypatch):
    monkeypatch.setattr(attention, "onednn_in_use", lambda: True)
    heads = torch.randn(1, 2, 4, 16)
    module = torch.nn.Module()
    unsaid, _ = attention.attend(module, heads, heads, heads, None)
    said, _ = attention.attend(module, heads, heads, heads, None, scaling=0.25)
    assert torch.equal(unsaid, said)
