"""The loss of every causal-language-model class of transformers is the one of its own logits."""

import pytest
import small_models
import torch
import transformers

from capgap.engine.evaluation import mean_loss
from capgap.engine.forward import model_output, output_form
from capgap.engine.losses import data_ce_sum, data_loss, mixture_loss
from capgap.errors import CapgapError

QUICK = (  # a plain head, a scale, a soft cap, biases, a transform before the head, dense logits
    "LlamaForCausalLM CohereForCausalLM Gemma2ForCausalLM GraniteForCausalLM PhiForCausalLM "
    "BertLMHeadModel GPTJForCausalLM MambaForCausalLM OPTForCausalLM ProphetNetForCausalLM"
).split()
REST = [name for name in small_models.classes() if name not in QUICK]


def shown() -> dict[str, str]:
    """The table in docs, by class."""
    text = small_models.DOCS.read_text(encoding="utf-8")
    rows = text.partition(small_models.START)[2].partition(small_models.END)[0].splitlines()
    cells = [row.strip("| ").split(" | ", 1) for row in rows if row.startswith("| `")]
    return {name.strip("`"): how for name, how in cells}


@pytest.mark.parametrize(
    "name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in REST)]
)
def test_the_loss_is_that_of_the_models_own_logits_or_refused_as_the_docs_have_it(name):
    how = shown()[name]
    if how.startswith("not tested"):
        assert small_models.verdict(name) == how
        return
    model = small_models.build_small(name)
    if how.startswith("refused"):
        with pytest.raises(CapgapError, match=name):
            output_form(model)
        return
    ids = torch.randint(3, 500, (2, 17), generator=torch.Generator().manual_seed(1))
    labels = torch.randint(500, (34,), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        logits = model(input_ids=ids, use_cache=False).logits.flatten(0, 1)[:, :500]
        output = model_output(model, ids, vocab=500)
        loss = data_ce_sum(output.hidden, output.head, labels, cap=output.cap) / len(labels)
    torch.testing.assert_close(output.logits(slice(None)), logits, rtol=1e-4, atol=1e-4)
    assert loss == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item(), abs=1e-4)
    assert small_models.verdict(name) == how


def test_the_docs_have_every_class_that_transformers_has():
    assert list(shown()) == list(small_models.classes())


@pytest.mark.parametrize(
    "name", ["CohereForCausalLM", "Gemma2ForCausalLM", "PhiForCausalLM", "ProphetNetForCausalLM"]
)
def test_gradients_of_every_weight_are_those_of_the_models_own_logits(name):
    model = small_models.build_small(name)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(20)  # far enough for a soft cap to matter
    teacher = small_models.build_small(name, seed=1)
    ids = torch.randint(3, 500, (2, 9), generator=torch.Generator().manual_seed(1))
    labels = torch.randint(500, (18,), generator=torch.Generator().manual_seed(2))
    weights = [p for p in model.parameters() if p.requires_grad]

    def gradients(loss):
        return torch.autograd.grad(loss, weights, allow_unused=True)

    output, targets = model_output(model, ids), model_output(teacher, ids)
    targets = targets._replace(hidden=targets.hidden.detach())
    loss, _ = mixture_loss(
        output.hidden, output.head, labels, targets, cap=output.cap, scale=1 / 18
    )
    logits, told = (
        m(input_ids=ids, use_cache=False).logits.flatten(0, 1) for m in (model, teacher)
    )
    expected = 0.5 * torch.nn.functional.cross_entropy(logits, labels)
    expected += 0.5 * torch.nn.functional.cross_entropy(logits, told.softmax(1).detach())
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    for mine, whole in zip(gradients(loss), gradients(expected), strict=True):
        assert (mine is None) == (whole is None)
        if mine is not None:
            torch.testing.assert_close(mine, whole, rtol=1e-3, atol=1e-5)
    data, _ = data_loss(*model_output(model, ids)[:2], labels, cap=output.cap, scale=1 / 18)
    assert data.item() == pytest.approx(
        torch.nn.functional.cross_entropy(logits, labels).item(), rel=1e-4
    )


def test_a_cap_changes_the_held_out_loss():
    """Of Gemma 2 with a cap of one: what the logits were before it is another number."""
    torch.manual_seed(0)
    config = transformers.Gemma2Config(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, head_dim=8,
        num_attention_heads=4, num_key_value_heads=2, final_logit_softcapping=1.0,
        bos_token_id=0, eos_token_id=0, pad_token_id=None,
    )  # fmt: skip
    model = transformers.Gemma2ForCausalLM(config).eval()
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(50)
    stream = torch.randint(64, (66,), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():  # two windows, of 64 tokens and of one
        logits = torch.cat(
            [model(input_ids=part[None]).logits[0] for part in (stream[:64], stream[64:65])]
        )
    expected = torch.nn.functional.cross_entropy(logits, stream[1:]).item()
    options = {"sequence_length": 64, "batch_tokens": 64, "split": "test"}
    assert mean_loss(model, stream.numpy(), **options) == pytest.approx(expected, abs=1e-5)
    assert logits.abs().max() <= 1


def test_a_bidirectional_model_is_refused_by_name():
    model = small_models.build_small("BertLMHeadModel")
    config = type(model.config).from_dict(model.config.to_dict() | {"is_decoder": False})
    with pytest.raises(CapgapError, match="BertLMHeadModel: its logits depend on later tokens"):
        output_form(transformers.BertLMHeadModel(config).eval())
