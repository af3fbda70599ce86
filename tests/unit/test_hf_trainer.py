"""The distillation loss inside the Trainer of transformers, held against the dense formula."""

import pytest
import torch
from test_losses import OBJECTIVES, dense
from transformers import Trainer, TrainingArguments

import capgap as cg
from capgap.data.token_streams import IGNORED

VOCAB = 64


class Rows(torch.utils.data.Dataset):
    """Sequences of a small repeating language, of different lengths, padded on the right."""

    def __init__(self, count, seed=0):
        random = torch.Generator().manual_seed(seed)
        steps = torch.randint(1, 4, (count, 12), generator=random)
        lengths = torch.randint(4, 13, (count,), generator=random)
        self.ids = steps.cumsum(1) % VOCAB
        self.seen = torch.arange(12) < lengths[:, None]

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, i):
        return {
            "input_ids": self.ids[i],
            "attention_mask": self.seen[i].long(),
            "labels": self.ids[i].where(self.seen[i], IGNORED),
        }

    def batch(self):
        return {key: torch.stack([self[i][key] for i in range(len(self))]) for key in self[0]}


@pytest.fixture
def make_trainer(tiny_model, tmp_path):
    def make(
        base=cg.DistillationTrainer, rows=16, model=None, teacher=None, logits=None, **changes
    ):
        own = (
            "objective",
            "beta",
            "temperature",
            "teacher_weight",
            "chunk_tokens",
            "compute_metrics",
        )
        chosen = {key: changes.pop(key) for key in own if key in changes}
        arguments = {
            "output_dir": str(tmp_path / "out"),
            "per_device_train_batch_size": 4,
            "learning_rate": 0.01,
            "lr_scheduler_type": "constant",
            "max_grad_norm": 0.0,
            "optim": "sgd",
            "report_to": [],
            "use_cpu": True,
            "disable_tqdm": True,
            "save_strategy": "no",
            "logging_steps": 1,
            "seed": 0,
        }
        return base(
            model=tiny_model(0) if model is None else model,
            args=TrainingArguments(**{**arguments, **changes}),
            train_dataset=Rows(rows),
            eval_dataset=Rows(6, seed=1),
            teacher=tiny_model(1, hidden=36) if teacher is None else teacher,
            **chosen,
        )

    return make


def expected(student, teacher, batch, objective="soft_ce", beta=None, weight=0.5, temperature=1.0):
    """The mixture of a batch, summed over its tokens, from whole logits; and these tokens."""
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
    labels_N = batch["labels"][:, 1:].reshape(-1)
    with torch.no_grad():
        told = teacher(**inputs).logits[:, :-1].flatten(0, 1)
    logits = student(**inputs).logits[:, :-1].flatten(0, 1)
    head = torch.eye(VOCAB)
    loss = dense(logits, head, labels_N, told, objective, beta, weight, temperature)
    return loss, int((labels_N != IGNORED).sum())


@pytest.mark.parametrize(("objective", "beta"), OBJECTIVES)
def test_a_batch_has_the_loss_and_the_gradients_of_the_dense_formula(
    make_trainer, tiny_model, objective, beta
):
    trainer = make_trainer(
        objective=objective, beta=beta, temperature=2.0, teacher_weight=0.7, chunk_tokens=5
    )
    other, batch = tiny_model(0), Rows(4).batch()
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    summed, tokens = expected(other, trainer.teacher, batch, objective, beta, 0.7, 2.0)
    (summed / tokens).backward()
    torch.testing.assert_close(loss.item(), (summed / tokens).item(), rtol=1e-5, atol=1e-6)
    for mine, theirs in zip(trainer.model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-6)
    with torch.no_grad():
        whole, outputs = trainer.compute_loss(trainer.model, batch, return_outputs=True)
    torch.testing.assert_close(whole, loss.detach(), rtol=1e-5, atol=1e-6)
    assert outputs.logits.shape == (4, 12, VOCAB)
    assert set(batch) == {"input_ids", "attention_mask", "labels"}  # as it was given


def test_padding_on_the_left_is_no_context(make_trainer):
    trainer = make_trainer()
    right = Rows(1).batch()
    seen = int(right["attention_mask"].sum())
    left = {key: value.roll(12 - seen, 1) for key, value in right.items()}
    left["labels"][0, 12 - seen] = IGNORED  # nothing comes before the first token
    left["position_ids"] = (left["attention_mask"].cumsum(1) - 1).clamp(min=0)
    losses = [trainer.compute_loss(trainer.model, batch).item() for batch in (right, left)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_accumulated_steps_equal_one_step_on_all_their_tokens(
    make_trainer, tiny_model, checkpointing
):
    trainer = make_trainer(
        per_device_train_batch_size=2,
        gradient_accumulation_steps=4,
        activation_checkpointing=checkpointing,
        max_steps=1,
        rows=8,
    )
    trainer.train()
    other = tiny_model(0)
    summed, tokens = expected(other, trainer.teacher, Rows(8).batch())
    (summed / tokens).backward()
    [first, *_] = trainer.state.log_history
    assert first["loss"] == pytest.approx((summed / tokens).item(), rel=1e-4)
    both = 0.5 * first["data_ce"] + 0.5 * first["teacher_term"]
    assert both == pytest.approx(first["loss"], rel=1e-4)
    with torch.no_grad():
        for mine, theirs in zip(trainer.model.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(mine, theirs - 0.01 * theirs.grad, rtol=1e-4, atol=1e-7)


def test_training_lowers_the_loss_of_the_student_and_leaves_the_teacher(make_trainer):
    trainer = make_trainer(
        max_steps=30,
        per_device_train_batch_size=8,
        rows=64,
        optim="adamw_torch",
        eval_strategy="no",
    )
    teacher = [p.clone() for p in trainer.teacher.parameters()]
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    assert after["eval_loss"] < 0.98 * before["eval_loss"]
    logged = trainer.state.log_history[-1]
    assert logged["eval_data_ce"] < before["eval_loss"] * 2
    assert not trainer.teacher.training
    for was, now in zip(teacher, trainer.teacher.parameters(), strict=True):
        assert torch.equal(was, now)
        assert not now.requires_grad
        assert now.grad is None


def test_evaluation_has_the_dense_loss_and_the_logits_for_metrics(make_trainer):
    trainer = make_trainer(
        compute_metrics=lambda found: {"seen": found.predictions.shape[-1]},
        per_device_eval_batch_size=6,
    )
    found = trainer.evaluate()
    summed, tokens = expected(trainer.model, trainer.teacher, Rows(6, seed=1).batch())
    assert found["eval_loss"] == pytest.approx(summed.item() / tokens, rel=1e-5)
    assert found["eval_seen"] == VOCAB


def test_bfloat16_is_close_to_float32(make_trainer):
    batch = Rows(4).batch()
    losses = []
    for bf16 in (False, True):  # one after the other: accelerate has one precision in a process
        trainer = make_trainer(bf16=bf16)
        with trainer.compute_loss_context_manager():
            losses.append(trainer.compute_loss(trainer.model, batch).item())
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.01)


def test_the_mixin_works_on_other_trainers_and_on_a_teacher_in_a_folder(
    make_trainer, tiny_model, tmp_path
):
    class Other(Trainer):
        def compute_loss(self, *_, **__):
            raise AssertionError("the loss of the other Trainer")

    class Distilling(cg.DistillationMixin, Other):
        pass

    tiny_model(1, hidden=36).save_pretrained(tmp_path / "teacher")
    found = make_trainer(Distilling, teacher=tmp_path / "teacher").evaluate()
    assert found["eval_loss"] == pytest.approx(make_trainer().evaluate()["eval_loss"], rel=1e-6)


def test_what_cannot_be_distilled_is_refused(make_trainer):
    with pytest.raises(cg.CapgapError, match="beta belongs to the objective jensen_shannon"):
        make_trainer(beta=0.5)
    with pytest.raises(cg.CapgapError, match="label_smoothing_factor is 0.1"):
        make_trainer(label_smoothing_factor=0.1)
    trainer = make_trainer()
    with pytest.raises(cg.CapgapError, match="no labels, only attention_mask; use a collator"):
        batch = Rows(2).batch()
        del batch["labels"]
        trainer.compute_loss(trainer.model, batch)
