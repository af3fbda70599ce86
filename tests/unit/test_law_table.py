import numpy as np
import pandas as pd
import pytest
from causes_worlds import simulate_causes

from capgap.config import Law
from capgap.config.study_file import check_section
from capgap.errors import CapgapError
from capgap.law.law_record import LawRecord
from capgap.law.table.metric import METRICS
from capgap.law.table.read_runs import read_runs, read_table, teacher_losses
from capgap.records.run_records import RunRow
from capgap.stages.collect import to_csv
from capgap.stages.fit import main, run

FOREIGN = """student,init,teacher,seed,student_params_non_embedding,teacher_params_non_embedding,tokens,val_loss_nats_per_token
s,pruned-a,a,0,100,200,1000,4.5
s,random,a,0,100,200,1000,4.6
s,pruned-a,none,0,100,,1000,4.7
s,pruned-a,b,0,100,300,1000,4.4
"""
LOSS = "val_loss_nats_per_token"
LADDER = tuple(np.geomspace(200e3, 2e6, 5).round())
SHORT = """Student size;Teacher size;Tokens;Val loss (nats)
1B;7B;1,000,000,000;2.51
1B;13B;1,000,000,000;2.49
500M;7B;128116.7k;2,75
"""


def simulate():
    """Runs of three students with five teachers, two seeds each."""
    runs = simulate_causes(
        np.random.default_rng(0), (60e3, 100e3, 160e3), LADDER, budgets=(10**6,), seeds=2
    )
    return runs.drop(columns="teacher_val_loss_nats_per_token")


def test_a_table_from_elsewhere_needs_no_optional_columns(runs_table):
    runs = read_runs(runs_table(FOREIGN))
    arms = dict(zip(runs["init"] + "/" + runs["teacher"], runs["arm"], strict=True))
    assert arms == {
        "pruned-a/a": "main",
        "random/a": "random_init",
        "pruned-a/none": "no_teacher",
        "pruned-a/b": "cross_teacher",
    }
    assert (runs[["teacher_seed", "init_seed"]] == 0).all(axis=None)
    assert teacher_losses(runs) == []


def test_sizes_separators_and_headers_as_people_write_them(runs_table):
    table = read_table(runs_table(SHORT))
    runs = table.runs.set_index(["student", "teacher"])
    assert runs.index.tolist() == [("1B", "13B"), ("1B", "7B"), ("500M", "7B")]
    assert runs["teacher_params_non_embedding"].tolist() == [13 * 10**9, 7 * 10**9, 7 * 10**9]
    assert runs["tokens"].tolist() == [10**9, 10**9, 128_116_700]
    assert runs[LOSS].tolist() == [2.49, 2.51, 2.75]
    assert set(runs["arm"]) == {"main"}
    assert set(runs["init"]) == {"unstated"}
    assert table.metric.name == "loss"


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_every_separator_and_a_byte_order_mark(tmp_path, separator):
    path = tmp_path / "runs.csv"
    path.write_text(FOREIGN.replace(",", separator), encoding="utf-8-sig")
    assert len(read_runs(path)) == 4


def test_names_may_be_the_sizes_and_other_columns_are_ignored(runs_table):
    text = "Student,Teacher,D,loss,comment\n1.5B,7B,1e9,2.5,good\n1.5B,none,1e9,2.6,\n"
    table = read_table(runs_table(text))
    assert table.runs["student_params_non_embedding"].tolist() == [1_500_000_000] * 2
    assert table.runs["teacher_params_non_embedding"].dropna().tolist() == [7e9]
    assert table.runs["arm"].tolist() == ["main", "no_teacher"]
    assert table.ignored == ["comment"]


def test_quoted_thousands_in_a_table_of_commas(runs_table):
    text = 'student,teacher,tokens,loss\n1B,7B,"1,000,000",2.5\n'
    assert read_runs(runs_table(text))["tokens"].tolist() == [10**6]


ROW = "0,100,200,1000,4.6"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (ROW, "0,100,200,1000,nan", r"line 3: val_loss.* is nan, not a finite"),
        (ROW, "0,100,200,1000,inf", r"line 3: val_loss.* is inf, not a finite"),
        (ROW, "0,100,200,1000,-4.6", r"line 3: val_loss.* is -4.6, but a loss must be greater"),
        (ROW, "0,100,200,1000,", r"line 3: val_loss_nats_per_token is empty"),
        (ROW, "0,-100,200,1000,4.6", r"line 3: student_params.* is -100, but must be at least 1"),
        (ROW, "0,100,-200,1000,4.6", r"line 3: teacher_params.* is -200, but must be at least 1"),
        (ROW, "0,100,200,0,4.6", r"line 3: tokens is 0, but must be at least 1"),
        (ROW, "0.5,100,200,1000,4.6", r"line 3: seed is '0.5', not a whole number"),
        (ROW, "-1,100,200,1000,4.6", r"line 3: seed is -1, but must be at least 0"),
        (ROW, "9007199254740993,100,200,1000,4.6", r"line 3: seed is 9007199254740993, but must"),
        (ROW, "0,many,200,1000,4.6", r"'many', not a whole number like 60k, 7B"),
        (ROW, "0,100,200,1e999999999,4.6", r"'1e999999999', not a whole number"),
        (ROW, "0,100,,1000,4.6", r"line 3: teacher_params.*must be given"),
        (ROW, "0,100,200,1000,4.6,", r"line 3: 9 fields, but the header has 8: a separator at the"),
        (ROW, "0,100,200,1,000,4.6", r"line 3: 9 fields, .*numbers without commas"),
        (ROW, "0,100,200,1000", r"line 3: 7 fields, but the header has 8; fill in"),
        ("0,100,,1000,4.7", "0,100,200,1000,4.7", r"line 4: teacher_params.*empty if"),
        ("s,random,a", "s,pruned-a,a", r"line 3: the run \(student s, init pruned-a, teacher a, "),
        ("a,0,100,200,1000,4.6", "a,0,100,250,1000,4.6", r"line 3: teacher 'a' has two sizes, 200"),
        ("a,0,100,200,1000,4.6", "a,0,160,200,1000,4.6", r"line 3: student 's' has two sizes, 100"),
        (
            "none,0,100,",
            "none,0,110,",
            r"line 4: student 's' with init 'pruned-a' has two sizes, 100",
        ),
        (
            "tokens,val_loss",
            "trunk_token,val_loss",
            r"column 'trunk_token' \(did you mean 'trunk_t",
        ),
        ("tokens,val_loss", "steps,val_loss", r"no column 'tokens' with the distillation tokens"),
        ("student,init", "init,init", r"the columns 'init' and 'init' mean the same"),
        (FOREIGN[FOREIGN.index("\n") + 1 :], "", r"no runs, only a header"),
        (FOREIGN, "", r"runs\.csv: empty"),
    ],
)
def test_a_bad_table_is_refused_by_name(runs_table, old, new, message):
    assert old in FOREIGN
    with pytest.raises(CapgapError, match=message) as caught:
        read_runs(runs_table(FOREIGN.replace(old, new, 1)))
    assert "runs.csv" in str(caught.value)


def test_one_message_lists_all_that_is_wrong_with_the_separator_seen(runs_table):
    text = SHORT.replace("Tokens", "Steps").replace("Val loss (nats)", "Quality")
    with pytest.raises(CapgapError) as caught:
        read_runs(runs_table(text))
    message = str(caught.value)
    assert "read as separated by semicolons into the columns " in message
    assert "Steps, Quality, has 2 problems" in message
    assert "no column 'tokens'" in str(caught.value)
    assert "no column 'val_loss_nats_per_token'" in str(caught.value)
    text = SHORT.replace("2.51", "NaN").replace("13B", "big")
    with pytest.raises(CapgapError, match=r"(?s)line 2: .*is NaN.*line 3: Teacher size is 'big'"):
        read_runs(runs_table(text))


def test_lines_with_the_same_problem_are_listed_once(runs_table):
    rows = "".join(f"1,000,000;2M;1B;{seed};3.{seed}\n" for seed in range(5)).replace(";", ",")
    with pytest.raises(CapgapError, match=r"lines 2, 3, 4 and 2 more: 7 fields, .*in quotes$"):
        read_runs(runs_table("student_size,teacher_size,tokens,seed,loss\n" + rows))


def test_what_is_no_text_with_columns_is_named(tmp_path):
    path = tmp_path / "runs.csv"
    path.write_bytes(b"PK\x03\x04 of a spreadsheet")
    with pytest.raises(CapgapError, match=f"{path}: a spreadsheet .*save the table as CSV"):
        read_runs(path)
    path.write_text('[{"student": "s"}]')
    with pytest.raises(CapgapError, match=f"{path}: JSON, not a table"):
        read_runs(path)


def test_a_misspelt_seed_is_named_where_runs_repeat(runs_table):
    text = FOREIGN.replace("seed", "sede", 1) + FOREIGN.splitlines()[1] + "\n"
    with pytest.raises(CapgapError, match=r"occurs twice.*columns that are not used: sede"):
        read_runs(runs_table(text))


def test_a_given_arm_is_kept_and_checked(runs_table):
    runs = simulate()
    runs["init"] = "random"
    assert set(read_runs(runs_table(runs))["arm"]) == {"main"}
    runs["arm"] = "principal"
    with pytest.raises(
        CapgapError, match="lines 2, 3, 4 and 27 more: arm is 'principal', not one of"
    ):
        read_runs(runs_table(runs))


def test_a_table_without_main_arm_is_refused(runs_table):
    with pytest.raises(
        CapgapError, match=r"no run of the main arm in the table \(30 cross_teacher\)"
    ):
        run(runs_table(simulate().assign(arm="cross_teacher")), Law())


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CapgapError, match=r"absent\.csv: no such file"):
        read_runs(tmp_path / "absent.csv")


def test_what_collect_writes_is_read_back(runs_table):
    row = RunRow(
        student="s",
        init="pruned-a",
        teacher="a",
        seed=3,
        student_params_non_embedding=100,
        teacher_params_non_embedding=200,
        tokens=1000,
        val_loss_nats_per_token=4.0625000000000001,
        teacher_seed=2,
        train_flops=7.5e18,
    )
    alone = RunRow(**row.model_dump() | {"teacher": "none", "teacher_params_non_embedding": None})
    text = to_csv([row, alone.model_copy(update={"arm": "no_teacher"})])
    assert "init_seed" not in text  # nothing but its default
    runs = read_runs(runs_table(text))
    back = RunRow(**{k: v for k, v in runs.iloc[0].items() if not pd.isna(v)})
    assert back == row


def test_losses_of_teachers_are_means_over_their_draws_smallest_first():
    size, loss = "teacher_params_non_embedding", "teacher_val_loss_nats_per_token"
    rows = [("t9k", 9000, 3.0), ("t10k", 10_000, 2.8), ("t9k", 9000, 3.2), ("none", None, None)]
    runs = pd.DataFrame(rows, columns=["teacher", size, loss])
    assert teacher_losses(runs) == [("t9k", pytest.approx(3.1)), ("t10k", pytest.approx(2.8))]
    runs.loc[1, loss] = None
    assert teacher_losses(runs) == []


# --- replicas -------------------------------------------------------------------------------------

REPLICAS = """student,init,teacher,seed,teacher_seed,init_seed,student_size,teacher_size,tokens,loss,teacher_loss
s,pruned-a,a,0,0,0,100,200,1000,4.5,3.0
s,pruned-a,a,0,1,0,100,200,1000,4.6,3.1
s,pruned-a,a,0,1,1,100,200,1000,4.7,
"""


def test_draws_of_a_teacher_are_runs_of_one_teacher(runs_table):
    runs = read_runs(runs_table(REPLICAS))
    assert runs["teacher_val_loss_nats_per_token"].tolist() == [3.0, 3.1, 3.1]
    wrong = REPLICAS.replace("4.7,", "4.7,3.2")
    with pytest.raises(CapgapError, match="'a of teacher_seed 1' has two losses, 3.1 in line 3"):
        read_runs(runs_table(wrong))
    with pytest.raises(CapgapError, match="occurs twice"):
        read_runs(runs_table(REPLICAS.replace("0,1,1,100", "0,1,0,100")))


# --- metrics --------------------------------------------------------------------------------------


def test_scales_by_hand():
    assert METRICS["perplexity"].to_scale(np.e**2) == pytest.approx(2)
    assert METRICS["error"].to_scale(0.2) == pytest.approx(np.log(0.25))
    assert METRICS["accuracy"].to_scale(0.8) == pytest.approx(np.log(0.25))
    assert METRICS["accuracy"].to_scale(0.9) < METRICS["accuracy"].to_scale(0.8)
    for metric in METRICS.values():
        step = 1e-6  # the error of a small difference, to first order
        moved = abs(metric.to_scale(0.3 + step) - metric.to_scale(0.3))
        assert metric.sd_to_scale(step, 0.3) == pytest.approx(moved, rel=1e-4)


ACCURACIES = """student,teacher,tokens,accuracy,teacher_accuracy
1B,7B,1e9,40%,0.5
1B,13B,1e9,0.42,55%
"""


def test_accuracies_are_read_as_such_and_lower_is_better(runs_table):
    table = read_table(runs_table(ACCURACIES))
    assert table.metric.name == "accuracy"
    by_teacher = table.runs.set_index("teacher")
    assert by_teacher.at["7B", LOSS] == pytest.approx(np.log(0.6 / 0.4))
    assert by_teacher[LOSS].idxmin() == "13B"
    assert by_teacher.at["13B", "teacher_val_loss_nats_per_token"] == pytest.approx(
        np.log(0.45 / 0.55)
    )
    settings = table.settings(Law(tie_logits=0.07))
    assert (settings.metric, settings.tie_nats) == ("accuracy", 0.07)
    errors = ACCURACIES.replace("accuracy", "error")
    errors = errors.replace("40%,0.5", "60%,0.5").replace("0.42,55%", "0.58,45%")
    assert read_runs(runs_table(errors))[LOSS].tolist() == pytest.approx(table.runs[LOSS].tolist())


@pytest.mark.parametrize(
    ("text", "metric", "message"),
    [
        (ACCURACIES.replace("accuracy", "loss"), None, "between 0 and 1.*use --metric accuracy"),
        (ACCURACIES.replace("accuracy", "score"), None, "what is in 'score'. Choose --metric loss"),
        (ACCURACIES, "loss", "column 'accuracy' holds values of accuracy"),
        (ACCURACIES.replace("40%", "40"), None, "accuracy is 40, but an accuracy lies between 0"),
        (ACCURACIES.replace("40%", "0"), None, r"exactly 0 or 1.*\(right \+ 0.5\)"),
        (ACCURACIES.replace("40%", "0.9"), "perplexity", "holds values of accuracy"),
        ("student,teacher,tokens,loss\n1B,7B,1e9,57.2\n", None, "above 20, .*--metric perplexity"),
        ("student,teacher,tokens,ppl\n1B,7B,1e9,0.5\n", None, "perplexity must be greater than 1"),
        ("student,teacher,tokens,ppl,acc\n1B,7B,1e9,9,0.5\n", None, "choose one with --metric"),
    ],
)
def test_values_that_are_not_of_the_metric_are_refused(runs_table, text, metric, message):
    with pytest.raises(CapgapError, match=message):
        read_runs(runs_table(text), metric)


def test_a_metric_that_is_asked_for_is_believed(runs_table):
    path = runs_table(ACCURACIES.replace("accuracy", "loss"))
    assert read_runs(path, "loss")[LOSS].tolist() == [0.42, 0.40]  # 13B before 7B
    assert read_runs(path, "accuracy")[LOSS].max() == pytest.approx(np.log(1.5))
    path = runs_table(ACCURACIES.replace("accuracy", "score"))
    assert read_runs(path, "accuracy")[LOSS].max() == pytest.approx(np.log(1.5))


def test_the_record_names_the_metric_and_perplexities_give_the_law_of_losses(runs_table, tmp_path):
    runs = simulate()
    by_loss = run(runs_table(runs), Law())
    runs[LOSS] = np.exp(runs[LOSS])
    by_perplexity = run(runs_table(runs.rename(columns={LOSS: "Perplexity"})), Law())
    assert (by_loss.metric, by_perplexity.metric) == ("loss", "perplexity")
    for one, other in zip(by_loss.optima, by_perplexity.optima, strict=True):
        assert one.best_teacher == other.best_teacher
        assert other.status == one.status
    path = tmp_path / "law.json"
    path.write_text(by_perplexity.to_json())
    assert LawRecord.read(path) == by_perplexity


def test_words_of_the_command_name_the_metric_and_what_was_not_used(runs_table, capsys):
    runs = simulate().assign(comment="x")
    runs["Accuracy"] = 1 / (1 + np.exp(runs.pop(LOSS) - 4))
    main([str(runs_table(runs)), "--exclude", "[{seed: 1}]"])
    printed = capsys.readouterr().out
    assert "measured by accuracy. The law is fitted to the logit of 1 - accuracy" in printed
    assert "Left out: student s100000, init pruned-t1124683, teacher t1124683" in printed
    assert "Columns that are not used: comment" in printed


# --- tables of means ------------------------------------------------------------------------------

MEANS = """student,teacher,tokens,mean loss,sd,n
1B,7B,1e9,2.5,0.02,3
1B,13B,1e9,2.4,0.01,2
1B,30B,1e9,2.45,,1
"""


def test_means_keep_their_deviation_and_number(runs_table):
    runs = read_runs(runs_table(MEANS)).set_index("teacher")
    assert runs.loc["7B", [LOSS, "sd", "n"]].tolist() == [2.5, 0.02, 3]
    assert runs.loc["13B", [LOSS, "sd", "n"]].tolist() == [2.4, 0.01, 2]
    assert runs.at["30B", "n"] == 1
    se = MEANS.replace("sd,n", "se,n").replace("0.02,3", f"{0.02 / 3**0.5},3")
    assert read_runs(runs_table(se)).set_index("teacher").at["7B", "sd"] == pytest.approx(0.02)
    perplexity = read_runs(runs_table(MEANS.replace("loss", "perplexity")), "perplexity")
    assert perplexity.set_index("teacher").at["7B", "sd"] == pytest.approx(0.02 / 2.5)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (",,1", ",,2", "line 4: the mean of 2 runs needs their sd or se"),
        ("0.01,2", "-0.01,2", "line 3: the mean of 2 runs needs their sd or se, 0 or more"),
        ("0.01,2", "0.01,2.5", "line 3: n is 2.5, but must be a whole number from 1"),
        ("sd,n", "sd,m", "'sd' of means need a column 'n'"),
    ],
)
def test_means_that_say_too_little_are_refused(runs_table, old, new, message):
    with pytest.raises(CapgapError, match=message):
        read_runs(runs_table(MEANS.replace(old, new)))


# --- runs left out --------------------------------------------------------------------------------


def test_runs_are_left_out_on_record(runs_table):
    path = runs_table(FOREIGN.replace("4.6", "nan"))  # a run that failed
    table = read_table(path, exclude=[{"init": "random", "teacher": "a", "seed": 0}])
    assert len(table.runs) == 3
    key = {"student": "s", "init": "random", "teacher": "a", "tokens": 1000}
    seeds = {"seed": 0, "teacher_seed": 0, "init_seed": 0}
    assert table.excluded == [key | seeds]
    assert len(read_runs(path, exclude=table.excluded)) == 3
    assert len(read_runs(runs_table(FOREIGN), exclude=[{"tokens": "1k", "teacher": "b"}])) == 3
    record = run(runs_table(simulate()), Law(exclude=[{"seed": 1}]))
    assert record.n_runs == len(record.excluded) == 15
    assert {run["seed"] for run in record.excluded} == {1}


@pytest.mark.parametrize(
    ("exclude", "message"),
    [
        ({"teacher": "c"}, r"law.exclude\[0\]: no run has teacher c; teacher is one of a, b, none"),
        ({"teacher": "b", "init": "random"}, "no run has teacher b, init random; correct or"),
        ({"techer": "b"}, "'techer' is not one of student, init"),
        ({"student": "s"}, "law.exclude leaves no run"),
    ],
)
def test_an_exclusion_that_matches_nothing_is_an_error(runs_table, exclude, message):
    with pytest.raises(CapgapError, match=message):
        read_runs(runs_table(FOREIGN), exclude=[exclude])


def test_exclusions_are_settings_and_words_of_the_command_line():
    wanted = [{"student": "s60", "teacher": "t78", "seed": 1}]
    assert check_section(Law, {"exclude": wanted}, "law").exclude == wanted
    text = "[{student: s60, teacher: t78, seed: 1}]"
    assert check_section(Law, {"exclude": text}, "law").exclude == wanted
    with pytest.raises(CapgapError, match="exclude"):
        check_section(Law, {"exclude": "[{"}, "law")
