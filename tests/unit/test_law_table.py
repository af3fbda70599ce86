import pytest
from law_worlds import LADDER, QUICK, simulate

from capgap.errors import CapgapError
from capgap.law.study import law_record
from capgap.law.table import family_monotone, read_runs
from capgap.stages.fit import run

FOREIGN = """student,init,teacher,seed,student_params_non_embedding,teacher_params_non_embedding,tokens,val_loss_nats_per_token
s,pruned-a,a,0,100,200,1000,4.5
s,random,a,0,100,200,1000,4.6
s,pruned-a,none,0,100,,1000,4.7
s,pruned-a,b,0,100,300,1000,4.4
"""


def test_a_table_from_elsewhere_needs_no_optional_columns(runs_table):
    runs = read_runs(runs_table(FOREIGN))
    arms = dict(zip(runs["init"] + "/" + runs["teacher"], runs["arm"], strict=True))
    assert arms == {
        "pruned-a/a": "main",
        "random/a": "random_init",
        "pruned-a/none": "no_teacher",
        "pruned-a/b": "cross_teacher",
    }
    assert family_monotone(runs) is None


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("0,100,200,1000,4.6", "0,100,200,1000,nan", r"line 3: val_loss.* 'nan', not a finite"),
        ("0,100,200,1000,4.6", "0,100,200,1000,inf", r"line 3: val_loss.* 'inf', not a finite"),
        ("0,100,200,1000,4.6", "0,100,200,1000,", r"line 3: val_loss_nats_per_token is empty"),
        ("0,100,200,1000,4.6", "0,-100,200,1000,4.6", r"line 3: student_params.* -100"),
        ("0,100,200,1000,4.6", "0,100,-200,1000,4.6", r"line 3: teacher_params.* -200"),
        ("0,100,200,1000,4.6", "0,100,200,0,4.6", r"line 3: tokens is 0"),
        ("0,100,200,1000,4.6", "0.5,100,200,1000,4.6", r"line 3: seed is 0.5, not a whole"),
        ("0,100,200,1000,4.6", "0,many,200,1000,4.6", r"'many', not a finite number"),
        ("0,100,200,1000,4.6", "0,100,,1000,4.6", r"line 3: teacher_params.*must be given"),
        ("0,100,,1000,4.7", "0,100,200,1000,4.7", r"line 4: teacher_params.*empty where"),
        ("s,random,a", "s,pruned-a,a", r"line 3: the run \(student s, init pruned-a, teacher a, "),
        ("a,0,100,200,1000,4.6", "a,0,100,250,1000,4.6", r"teacher 'a' has 2 values of teacher_p"),
        ("tokens,val_loss", "token,val_loss", r"'tokens' is missing; unknown column 'token' \(did"),
        ("student,init", "arm,init", r"column 'student' is missing"),
        (FOREIGN[FOREIGN.index("\n") + 1 :], "", r"no runs, only a header"),
        (FOREIGN, "", r"not a table"),
    ],
)
def test_a_bad_table_is_refused_by_name(runs_table, old, new, message):
    assert old in FOREIGN
    with pytest.raises(CapgapError, match=message) as caught:
        read_runs(runs_table(FOREIGN.replace(old, new, 1)))
    assert "runs.csv" in str(caught.value)


def test_a_given_arm_is_kept_and_checked(runs_table):
    runs = simulate()
    runs["init"] = "random"
    assert set(read_runs(runs_table(runs))["arm"]) == {"main"}
    runs["arm"] = "principal"
    with pytest.raises(CapgapError, match="line 2: arm is 'principal', not one of"):
        read_runs(runs_table(runs))


def test_a_table_without_main_arm_is_refused(runs_table):
    with pytest.raises(
        CapgapError, match=r"no run of the main arm in the table \(30 random_init\)"
    ):
        run(runs_table(simulate().assign(arm="random_init")), QUICK)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CapgapError, match=r"absent\.csv: no such file"):
        read_runs(tmp_path / "absent.csv")


@pytest.mark.parametrize(
    ("losses", "falls"), [([4, 3.5, 3.2, 3.1, 3], True), ([4, 3.5, 3.2, 3.3, 3], False)]
)
def test_family_monotone(runs_table, losses, falls):
    runs = simulate()
    by_teacher = dict(zip([f"t{size:.0f}" for size in LADDER], losses, strict=True))
    runs["teacher_val_loss_nats_per_token"] = runs["teacher"].map(by_teacher)
    assert run(runs_table(runs), QUICK).family_monotone is falls
    assert law_record(simulate(), QUICK).family_monotone is None
