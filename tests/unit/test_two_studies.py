"""Two laws side by side: differences by hand, verdicts, what tables share, and the page."""

import math
import re

import pandas as pd
import pytest
from report_records import make_law, make_runs, write_runs

from capgap.commands.two_studies import Side, main, page, read_side
from capgap.errors import CapgapError
from capgap.law.law_record import Interval
from capgap.law.verdicts.study_difference import compare, difference_of, quantity, ratio_of
from capgap.reporting.two_studies_text import headline, noise


def between(low, value, high):
    return Interval(value=value, low=low, high=high)


def table(runs):
    return pd.DataFrame([run.model_dump() for run in runs])


@pytest.fixture(scope="module")
def laws():
    """Two laws of the same surface with other seeds, and one whose optimum lies elsewhere."""
    cases = {
        "one": make_runs(seeds=(0, 1)),
        "two": make_runs(seeds=(2, 3)),
        "far": make_runs(seeds=(4, 5), ratio=6.5),
    }
    return {name: (make_law(runs), table(runs), runs) for name, runs in cases.items()}


def test_the_interval_of_a_difference_joins_both_by_their_distances():
    found = difference_of(between(0.7, 1.0, 1.4), between(0.1, 0.5, 0.9))
    assert found.value == pytest.approx(0.5)
    assert found.low == pytest.approx(0.5 - math.hypot(0.3, 0.4))
    assert found.high == pytest.approx(0.5 + math.hypot(0.4, 0.4))


def test_a_side_without_a_limit_in_either_has_none():
    found = difference_of(between(None, 1.0, 1.4), between(0.1, 0.5, 0.9))
    assert found.low is None
    assert found.high is not None
    assert difference_of(between(0.7, 1.0, 1.4), between(None, 0.5, 0.9)).high is None


def test_ratios_are_compared_in_logarithms():
    found = ratio_of(between(1.0, 2.0, 4.0), between(1.0, 2.0, 4.0))
    factor = math.exp(math.hypot(math.log(2), math.log(2)))
    assert (found.low, found.value, found.high) == pytest.approx((1 / factor, 1.0, factor))


@pytest.mark.parametrize(
    ("ours", "verdict"),
    [
        (between(0.49, 0.5, 0.51), "equal"),
        (between(0.9, 1.0, 1.1), "different"),
        (between(0.55, 0.65, 0.75), "different_within_margin"),
        (between(0.3, 0.5, 0.7), "not_told_apart"),
        (between(None, 0.5, None), "not_told_apart"),
        (None, "not_known"),
    ],
)
def test_a_verdict_follows_from_the_whole_interval(ours, verdict):
    theirs = between(0.495, 0.5, 0.505)
    assert quantity("a", ours, theirs, 0.15).verdict == verdict


def test_laws_of_one_surface_are_not_told_apart_and_of_another_they_differ(laws):
    one, two, far = laws["one"], laws["two"], laws["far"]
    alike = compare(one[0], one[1], two[0], two[1])
    assert "different" not in {q.verdict for q in alike.quantities}
    apart = compare(one[0], one[1], far[0], far[1])
    sizes = [q for q in apart.quantities if q.name.startswith("T* of") and q.difference]
    assert "different" in {q.verdict for q in sizes}
    assert all(q.difference.value < 1 for q in sizes)  # T*/S is 2.9 and 6.5
    assert re.match(r"The laws of a and b differ in \d of \d quantities", headline(apart, "a", "b"))


def test_the_same_runs_have_no_noise_between_them(laws):
    law, runs, _ = laws["one"]
    found = compare(law, runs, law, runs)
    assert found.same_runs
    assert {q.verdict for q in found.quantities} <= {"equal", "not_known"}
    assert "same runs" in noise(found)


def test_common_runs_and_teachers_are_counted_and_named(laws):
    one = laws["one"]
    more = make_runs(seeds=(0, 9))
    found = compare(one[0], one[1], make_law(more), table(more))
    assert found.shared.runs == sum(run.arm == "main" for run in make_runs(seeds=(0,)))
    assert found.shared.teachers == 5
    assert "too wide" in noise(found)
    assert found.losses[0].regrets[0] >= 0


def test_laws_on_other_scales_are_refused(laws):
    law, runs, _ = laws["one"]
    other = law.model_copy(update={"size": "total"})
    with pytest.raises(CapgapError, match="measure sizes differently, non_embedding and total"):
        compare(law, runs, other, runs)


def test_the_page_needs_no_other_file_and_repeats_bit_for_bit(laws):
    one, two = (Side(name, *laws[name][:2]) for name in ("one", "two"))
    text = page(one, two)
    assert page(one, two) == text
    assert not re.search(r'(?:src|href)="(?!#)', text.replace("http://www.w3.org", ""))
    assert "<script" not in text
    assert text.count("<svg") == 2
    assert "The exponent a of S at equal tokens" in text


@pytest.fixture
def saved(laws, tmp_path):
    """Folders of two studies as results have them."""
    for name in ("one", "two"):
        law, _, runs = laws[name]
        folder = tmp_path / f"{name}/results/{name}/law"
        folder.mkdir(parents=True)
        (folder / "law.json").write_text(law.to_json())
        write_runs(folder / "runs.csv", runs)
    return tmp_path


@pytest.mark.parametrize(
    "place", ["", "results/two", "results/two/law", "results/two/law/law.json", "results/two/law/runs.csv"]
)  # fmt: skip
def test_a_study_is_found_by_its_folder_or_either_file(saved, place):
    side = read_side(saved / "two" / place)
    assert side.law.n_runs == 26
    assert side.name in ("two", "law")


def test_a_table_without_a_law_is_fitted(saved, laws):
    (saved / "two/results/two/law/law.json").unlink()
    side = read_side(saved / "two/results/two/law/runs.csv")
    assert side.law.exponents == laws["two"][0].exponents


def test_what_is_missing_or_mixed_up_is_named(saved):
    with pytest.raises(CapgapError, match="nowhere does not exist"):
        read_side(saved / "nowhere")
    with pytest.raises(CapgapError, match=r"no runs\.csv, no law/ and no finished study"):
        read_side(saved)
    table = saved / "two/results/two/law/runs.csv"
    table.write_text("\n".join(table.read_text().splitlines()[:-2]) + "\n")
    with pytest.raises(CapgapError, match=r"was fitted on 26 runs"):
        read_side(saved / "two")


def test_the_command_writes_one_page(saved, capsys):
    law = saved / "one/results/one/law"
    words = ["--law", str(law / "law.json"), "--runs", str(law / "runs.csv")]
    main([*words, "--against", str(saved / "two"), "--out", str(saved / "page.html")])
    assert "wrote" in capsys.readouterr().out
    text = (saved / "page.html").read_text()
    assert "<h1>Nothing shows that the laws of one and two differ</h1>" in text
