"""From records of runs to the table, and from final runs to the verdict on the choice."""

import csv
import io

import pytest

from capgap.law.answers.answer_records import Choice
from capgap.records.artifacts import publish_folder, write_text
from capgap.records.run_records import Lineage, Metrics, ParamGroups, SplitLoss, TrainRecord
from capgap.stages import compare
from capgap.stages.collect import read_run, to_csv


def params(non_embedding):
    return ParamGroups(
        embedding=10,
        attention=non_embedding,
        mlp=0,
        norm=0,
        non_embedding=non_embedding,
        total=non_embedding + 10,
    )


def split(loss):
    return SplitLoss(
        loss_nats_per_token=loss, perplexity=2.0, bits_per_byte=loss / 2, tokens=9, bytes=30
    )


def metrics(lineage, loss):
    return Metrics(
        lineage=lineage,
        validation=split(loss),
        test=split(loss + 0.1),
        forward_flops_per_token=1,
    )


def write_run(root, teacher, seed, loss):
    lineage = Lineage(
        kind="student",
        name="50",
        init=f"pruned-{teacher}",
        teacher=teacher,
        tokens=1000,
        seed=seed,
        params=params(50),
    )
    folder = root / f"{teacher}-{seed}"
    train = TrainRecord(
        lineage=lineage,
        steps=1,
        batch_tokens=1,
        tokens=1000,
        tokens_per_param_non_embedding=20,
        trunk_tokens=800,
        train_flops=5.0,
        start_val_loss_nats_per_token=9.0,
        best_val_loss_nats_per_token=loss,
        best_step=1,
        last_val_loss_nats_per_token=loss,
    )
    write_text(folder / "train.json", train.to_json())
    write_text(folder / "metrics.json", metrics(lineage, loss).to_json())
    with publish_folder(folder / "model") as model:
        (model / "weights").write_text(f"{teacher}-{seed}")
    return folder


@pytest.fixture
def final(tmp_path):
    """Function that compares final runs given as {teacher: [loss by seed]}; first is chosen."""

    def compared(losses, **noise):
        teachers, folders = [], []
        for size, (teacher, by_seed) in enumerate(losses.items(), start=1):
            lineage = Lineage(kind="teacher", name=teacher, params=params(100 * size))
            path = tmp_path / f"{teacher}.json"
            write_text(path, metrics(lineage, 2.0).to_json())
            teachers.append(path)
            folders += [write_run(tmp_path, teacher, s, x) for s, x in enumerate(by_seed)]
        names = list(losses)
        choice = Choice(
            student_params_non_embedding=50,
            tokens=1000,
            law_tokens=1000,
            basis="line",
            basis_note="",
            teacher_params_star=None,
            chosen=names[0],
            neighbour=names[1] if len(names) > 1 else None,
            largest=names[-1],
            **noise,
        )
        write_text(tmp_path / "choice.json", choice.to_json())
        return compare.run(tmp_path / "choice.json", folders, teachers, tmp_path / "out")

    return compared


def test_a_row_holds_what_the_records_say(tmp_path):
    teacher = metrics(Lineage(kind="teacher", name="t", params=params(100)), 2.0)
    row = read_run(write_run(tmp_path, "t", 3, 2.5), {("t", None): teacher})
    assert (row.student, row.init, row.teacher, row.seed, row.arm) == (
        "50",
        "pruned-t",
        "t",
        3,
        "main",
    )
    assert row.teacher_params_non_embedding == 100
    assert row.val_loss_nats_per_token == 2.5
    assert row.test_loss_nats_per_token == 2.6
    assert row.teacher_val_loss_nats_per_token == 2.0
    assert row.trunk_tokens == 800
    back = next(csv.DictReader(io.StringIO(to_csv([row]))))
    assert float(back["val_loss_nats_per_token"]) == row.val_loss_nats_per_token


def test_the_best_choice_and_what_it_publishes(final, tmp_path):
    record = final({"a": [2.0, 2.02], "b": [2.1, 2.121], "c": [2.3, 2.3]})
    assert [row.teacher for row in record.rows] == ["a", "b", "c"]
    assert record.chosen_is_best
    assert record.regret_nats == 0
    assert record.resolved
    assert record.published_seed == 0
    assert (tmp_path / "out" / "weights").read_text() == "a-0"
    assert "0.1005 nats better than from b" in record.sentence


def test_a_worse_choice_is_said_to_be_worse(final):
    record = final({"a": [2.2, 2.21], "b": [2.1, 2.12]})
    assert not record.chosen_is_best
    assert record.regret_nats == pytest.approx(0.095)
    assert "worse than from b" in record.sentence
    roles = {row.teacher: row.role for row in record.rows}
    assert roles == {"a": "chosen", "b": "neighbour and largest"}


def test_differences_within_the_seeds_noise_are_not_told_apart(final):
    record = final({"a": [2.0, 2.10], "b": [2.05, 2.06]})
    assert record.resolved is False
    assert "neither is shown to be better" in record.sentence


def test_two_seeds_need_twelve_standard_errors(final):
    # differences 0.10 and 0.11: mean 0.105, standard error 0.005, t limit 12.7
    assert final({"a": [2.0, 2.02], "b": [2.1, 2.13]}).resolved is True
    # differences 0.10 and 0.12: mean 0.11, standard error 0.01, 11 standard errors
    assert final({"a": [2.0, 2.02], "b": [2.1, 2.14]}).resolved is False


def test_the_noise_of_the_law_counts_draws_of_teacher_and_init_that_seeds_share(final):
    # sqrt(2 (0.01^2 / 2 + 0.02^2)) = 0.03; t limit with 10 degrees of freedom 2.228: 0.0668
    noise = {"order_sd": 0.01, "redraw_sd": 0.02, "noise_df": 10.0}
    assert final({"a": [2.0, 2.0], "b": [2.07, 2.07]}, **noise).resolved is True
    assert final({"a": [2.0, 2.0], "b": [2.06, 2.06]}, **noise).resolved is False
    assert final({"a": [2.0], "b": [2.5]}, **noise).resolved is True  # one seed, known noise


def test_one_seed_knows_no_noise_and_one_teacher_has_no_rival(final):
    assert final({"a": [2.0], "b": [2.1]}).resolved is None
    alone = final({"a": [2.0]})
    assert alone.chosen_is_best
    assert "no other teacher" in alone.sentence
