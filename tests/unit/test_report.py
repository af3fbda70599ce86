import json
import random
import re
import struct
from html.parser import HTMLParser

import pandas as pd
import pytest
from report_records import (
    SETTINGS,
    TEACHERS,
    TOKENS,
    make_final,
    make_law,
    make_runs,
    make_teachers,
    write_study,
)

from capgap.config import Law
from capgap.errors import CapgapError
from capgap.law.answers.power_law_answer import recommend
from capgap.law.fit_law import fit_law
from capgap.law.law_record import Interval
from capgap.records.artifacts import differences
from capgap.records.run_records import HarnessRecord
from capgap.reporting import report_text
from capgap.reporting.answer_text import answer_of, caution
from capgap.stages.report import main, run

FIGURES = ["headline", "curves", "law", "pareto", "final", "teachers", "regret"]
ALL_ARMS = ("no_teacher", "random_init", "cross_teacher")


def two_teachers_only(runs, student):
    """Leave one student with too few teachers for an optimum."""
    return [r for r in runs if r.student != student or r.teacher in ("t600k", "t1m")]


def make_case(name):
    """(runs, final, teachers) of a study that lacks something."""
    runs, final, teachers = make_runs(), make_final(), make_teachers()
    match name:
        case "three budgets, all arms":
            runs = make_runs(tokens=(500_000, TOKENS, 5_000_000), arms=ALL_ARMS)
        case "no interior optimum":
            runs = make_runs(ratio=0.3, arms=())
        case "largest teacher best":
            runs = make_runs(ratio=40)
        case "one seed":
            runs, final = make_runs(seeds=(0,), arms=()), make_final(seeds=(3,))
        case "too few teachers":
            runs = two_teachers_only(make_runs(arms=()), "100k")
        case "bare table":
            keep = {"train_flops": None, "start_val_loss_nats_per_token": None}
            runs = [r.model_copy(update=keep) for r in make_runs(arms=())]
            final, teachers = None, []
        case "no line":
            runs = make_runs(ratio=0.3)
            final = make_final(basis="nearest_student")
    return runs, final, teachers


CASES = [
    "three budgets, all arms",
    "no interior optimum",
    "largest teacher best",
    "one seed",
    "too few teachers",
    "bare table",
    "no line",
]


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The folder of a plain report."""
    runs = make_runs()
    out = tmp_path_factory.mktemp("report") / "out"
    run(runs, make_law(runs), make_final(), make_teachers(), "pocket", SETTINGS, out)
    return out


class Page(HTMLParser):
    """Tags with their attributes, and the text outside scripts and styles."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self.skipping = [], [], None
        self.feed(text)
        self.text = " ".join("".join(self.text).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.separate(tag)
        if tag in ("script", "style", "noscript"):
            self.skipping = tag

    def handle_endtag(self, tag):
        self.separate(tag)
        if tag == self.skipping:
            self.skipping = None

    def separate(self, tag):
        """Tags part words, but a marked term of the glossary is part of its sentence."""
        if tag != "span":
            self.text.append(" ")

    def handle_data(self, data):
        if self.skipping is None:
            self.text.append(data)


# --- wording ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limits", "text"),
    [
        ((3.1234, 2.2, 4.4), "3.1 [2.2, 4.4]"),
        ((2.4981, 2.48, 2.52), "2.498 [2.480, 2.520]"),
        ((3.1, -12.04, 18.4), "3 [−12, 18]"),
        ((3.14159, 2.2, None), "3.1 [2.2, no limit]"),
        ((3.14159, None, None), "3.1 [no interval]"),
        ((0.0, -0.01, 0.01), "0.000 [−0.010, 0.010]"),
    ],
)
def test_intervals_get_the_decimals_their_width_deserves(limits, text):
    assert (
        report_text.interval(Interval(**dict(zip(("value", "low", "high"), limits, strict=True))))
        == text
    )


def test_numbers_as_text():
    assert report_text.interval(
        Interval(value=312_345, low=201_000, high=455_400), as_size=True
    ) == ("312k [201k, 455k]")
    assert [report_text.size(n) for n in (999, 999_960, 442_880, 2_500_000, -11_498_000)] == [
        "999",
        "1M",
        "443k",
        "2.5M",
        "−11.5M",
    ]
    assert report_text.flops(2.13e12) == "2.1 × 10¹²"
    assert report_text.number(-0.0004, 3) == "0.000"


def test_optima_beyond_the_ladder_are_named_by_its_end():
    law = make_law(make_runs(ratio=0.3))
    assert [report_text.optimum(found) for found in law.optima] == [
        "below 83k",
        "below 179k",
        "below 179k",
    ]
    law = make_law(make_runs(ratio=40))
    assert [report_text.optimum(found) for found in law.optima] == ["above 1.01M"] * 3


def test_family_says_where_teacher_loss_rises():
    law = make_law(make_runs())
    falls = [("t170k", 3.8), ("t340k", 3.6), ("t600k", 3.5)]
    rises = [*falls[:2], ("t600k", 3.9)]
    assert report_text.family(law.model_copy(update={"teacher_losses": falls})).startswith(
        "Teacher loss falls"
    )
    worse = law.model_copy(update={"teacher_losses": rises})
    assert "t600k (loss 3.900) is no better model than t340k (3.600)" in report_text.family(worse)
    both = [*rises, ("t1m", 3.7)]
    text = report_text.family(law.model_copy(update={"teacher_losses": both}))
    assert "t600k (loss 3.900) and t1m (loss 3.700) are no better models than t340k" in text
    assert "how well the teachers are trained" in caution(worse)
    assert report_text.family(law.model_copy(update={"teacher_losses": []})).startswith("Too few")


def test_recommendation_tells_a_win_from_a_tie():
    final = make_final()
    assert final.chosen_is_best
    say = {
        (best, resolved): report_text.recommendation(
            final.model_copy(update={"chosen_is_best": best, "resolved": resolved})
        )[0]
        for best in (True, False)
        for resolved in (True, False, None)
    }
    assert say[True, True] == say[True, None] == "Yes"
    assert say[False, True] == say[False, None] == "No"
    assert say[True, False] == say[False, False] == "No clear difference"
    gap = final.rows[1].test_loss_nats_per_token - final.rows[0].test_loss_nats_per_token
    assert report_text.recommendation(final)[1].startswith(f"{gap:.3f} nats ahead of t600k")
    alone = final.model_copy(update={"rows": final.rows[:1]})
    assert report_text.recommendation(alone)[0] == "Untested"


def test_settings_become_rows():
    assert report_text.settings_rows({"a": {"b": [1, 2], "c": None, "d": {"e": 0}}, "f": "x"}) == [
        ("a.b", "1, 2"),
        ("a.d.e", "0"),
        ("f", "x"),
    ]


# --- the page -----------------------------------------------------------------------------------


def test_folder_holds_page_and_every_figure_in_three_forms(report):
    names = {p.name for p in report.iterdir()}
    assert names == {"report.html", "manifest.json"} | {
        f"{figure}.{suffix}" for figure in FIGURES for suffix in ("svg", "png", "csv")
    }
    assert differences(report) == []
    for figure in FIGURES:
        png = (report / f"{figure}.png").read_bytes()
        svg = (report / f"{figure}.svg").read_text()
        width, height = struct.unpack(">II", png[16:24])
        size = re.search(r'width="([\d.]+)" height="([\d.]+)"', svg)
        assert (width, height) == pytest.approx((2 * float(size[1]), 2 * float(size[2])), abs=2)


def test_page_refers_to_nothing_outside_its_folder(report):
    page = Page((report / "report.html").read_text())
    links = {attrs["href"] for tag, attrs in page.tags if tag == "a"}
    outside = {link for link in links if not link.startswith("#")}
    assert outside - {"https://arxiv.org/abs/2311.07052"} == {
        f"{figure}.{suffix}" for figure in FIGURES for suffix in ("svg", "png", "csv")
    }
    assert {link[1:] for link in links if link.startswith("#")} <= {
        a.get("id") for _, a in page.tags
    }
    assert not [tag for tag, attrs in page.tags if "src" in attrs or tag in ("link", "iframe")]
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))


def test_page_gives_the_answer_first_then_what_is_not_known(report):
    text = Page((report / "report.html").read_text()).text
    law, final = make_law(make_runs()), make_final()
    answer = answer_of(law, final)
    at = [
        text.index(part)
        for part in (
            answer.headline,
            answer.advice.full,
            "What another teacher costs",
            "The lowest point of a line is that student’s best teacher",
            answer.growth,
            report_text.verdict(law).full,
            "Does the law hold?",
        )
    ]
    assert at == sorted(at)
    assert final.sentence in text
    for part in law.noise:
        assert f"{report_text.NOISE[part.name]}" in text
    assert "distill.teacher_weight 0.5" in text


def test_page_says_that_the_init_makes_the_optimum(tmp_path):
    runs = make_runs()
    law = make_law(runs)
    assert "the pruned init makes it" not in report_text.verdict(law).full
    overall = law.overall.model_copy(update={"cause": "init", "cause_reason": "0 of 3 curves"})
    law = law.model_copy(update={"overall": overall})
    run(runs, law, make_final(), make_teachers(), "pocket", {}, tmp_path / "out")
    text = Page((tmp_path / "out/report.html").read_text()).text
    first, section = text.split("Does the law hold?", 1)
    assert "the pruned init makes it, not the teacher" in first
    assert "What makes the optimum: the pruned init, not the teacher" in section
    assert "(0 of 3 curves)" in section


def test_page_shows_the_whole_recommendation(tmp_path):
    runs, final = make_runs(), make_final()
    law = make_law(runs)
    fit = fit_law(pd.DataFrame([row.model_dump() for row in runs]), Law())
    answer = recommend(fit, law, TEACHERS, final.choice.student_params_non_embedding, 3 * TOKENS, 1)
    choice = final.choice.model_copy(update={"recommendation": answer})
    final = final.model_copy(update={"choice": choice})
    run(runs, law, final, make_teachers(), "pocket", {}, tmp_path / "out")
    text = Page((tmp_path / "out/report.html").read_text()).text
    shown = text[text.index("What the law predicted for each teacher") :]
    assert "the token budget lies 3 times beyond the runs" in shown
    for row in answer.ranked:
        found = f"{row.teacher} {row.ratio:.2f} {report_text.nats_interval(row.predicted_loss)} "
        assert found + report_text.nats_interval(row.predicted_regret) in shown
    for rule in answer.rules:
        regret = rule.expected_regret_nats
        cost = "unknown" if regret is None else f"{regret:.4f}"
        assert f"{rule.rule} {rule.teacher or '–'} {cost}" in shown
    assert f"saves {report_text.flops(answer.saved_flops)} of" in shown


def test_page_shows_what_there_is_about_the_line(report):
    text = Page((report / "report.html").read_text()).text
    line = make_law(make_runs()).lines[0]
    cells = [
        report_text.interval(line.slope),
        report_text.interval(line.intercept, as_size=True),
        report_text.interval(line.ratio_through_origin),
        str(line.n_students),
        str(line.n_bounds),
    ]
    assert f"1.5M tokens {' '.join(cells)}" in text


def test_rivals_and_the_start_test_stand_in_the_report(report):
    law, text = make_law(make_runs()), Page((report / "report.html").read_text()).text
    for rival in law.rivals:
        assert rival.reason[1:] in text
        for name in rival.free:
            assert f"{name} = {report_text.number_or_power(rival.constants[name])}" in text
    assert report_text.init_explains(law) in text
    assert f"explains {law.init_explains.r_squared_init:.0%}" in text
    for score in law.scores:
        if score.n_intervals:
            assert f"{report_text.held(score)} {score.n_cases}" in text
    assert any(score.n_intervals for score in law.scores)


def test_numbers_of_rivals_in_words():
    law = make_law(make_runs())
    assert report_text.number_or_power(24181.0) == "2.42 × 10⁴"
    assert report_text.number_or_power(-0.4519) == "−0.452"
    assert report_text.number_or_power(0.0) == "0"
    score = law.scores[0]
    seen = score.model_copy(update={"interval_coverage": 2 / 3, "n_intervals": 3})
    assert report_text.held(seen) == "2 of 3"
    assert report_text.held(score.model_copy(update={"interval_coverage": None})) == "–"
    assert report_text.init_explains(law.model_copy(update={"init_explains": None})) == ""


def test_table_holds_every_run(report):
    page = (report / "report.html").read_text()
    body = re.search(r'<table id="runs">.*?<tbody>(.*?)</tbody>', page, re.DOTALL)[1]
    runs = make_runs()
    assert body.count("<tr ") == len(runs)
    values = set(re.findall(r'data-value="([^"]*)"', body))
    assert {str(r.val_loss_nats_per_token) for r in runs} <= values


def test_same_records_in_any_order_give_the_same_bytes(report, tmp_path):
    runs, teachers = make_runs(), make_teachers()
    law = make_law(runs)
    random.Random(1).shuffle(runs)
    run(runs, law, make_final(), teachers[::-1], "pocket", SETTINGS, tmp_path / "again")
    assert (tmp_path / "again/manifest.json").read_text() == (report / "manifest.json").read_text()


@pytest.mark.parametrize("case", CASES)
def test_page_is_whole_whatever_is_missing(case, tmp_path):
    runs, final, teachers = make_case(case)
    law = make_law(runs)
    run(runs, law, final, teachers, "pocket", {}, tmp_path / "out")
    page = Page((tmp_path / "out/report.html").read_text())
    assert law.verdict in page.text
    for word in ("None", "nan", "Undefined", "inf]", "[]"):
        assert not re.search(rf"(?<![\w’]){re.escape(word)}(?!\s+of)\b", page.text), word
    drawn = {attrs["data-chart"] for _, attrs in page.tags if "data-chart" in attrs}
    assert drawn == {p.stem for p in (tmp_path / "out").glob("*.svg")}
    assert ("final" in drawn) == (final is not None)
    assert ("teachers" in drawn) == bool(teachers)
    assert ("controls" in drawn) == (case == "three budgets, all arms")


def test_names_are_text_not_markup(tmp_path):
    runs = make_runs(arms=())
    run(runs, make_law(runs), None, [], "<b>&'</b>", {"k": "</script><i>"}, tmp_path / "out")
    html = (tmp_path / "out/report.html").read_text()
    assert "<b>&'" not in html
    assert "</script><i>" not in html
    assert "<b>&'</b>" in Page(html).text


# --- the stage ----------------------------------------------------------------------------------


def test_stage_reads_the_records_and_writes_the_same_report(report, tmp_path):
    main([*write_study(tmp_path), "--out", str(tmp_path / "out")])
    assert (tmp_path / "out/manifest.json").read_text() == (report / "manifest.json").read_text()


def test_page_shows_what_was_measured_on_tasks(report, tmp_path):
    paths = []
    for metrics, value in zip(make_teachers()[:2], (0.25, 0.5), strict=True):
        score = {"task": "mmlu", "shots": 5, "task_version": "1", "documents": 100, "metric": "acc"}
        score |= {"filter": "none", "value": value, "standard_error": 0.01}
        record = HarnessRecord(
            lineage=metrics.lineage, lm_eval_version="0.4.13", tasks={"mmlu": 5}, limit=100,
            scores=[score | {"higher_is_better": True}],
        )  # fmt: skip
        paths.append(tmp_path / f"{value}.json")
        paths[-1].write_text(record.to_json())
    names = [metrics.lineage.name for metrics in make_teachers()[:2]]
    main([*write_study(tmp_path), "--harness", *map(str, paths), "--out", str(tmp_path / "out")])
    text = Page((tmp_path / "out/report.html").read_text()).text
    assert "lm-evaluation-harness 0.4.13 on at most 100 documents a task" in text
    assert f"Task Metric {names[0]} {names[1]} mmlu, 5-shot acc ↑ 0.2500 ± 0.0100 0.5000" in text
    assert "lm-evaluation-harness" not in (report / "report.html").read_text()


def test_stage_refuses_records_that_do_not_belong_together(tmp_path):
    runs = make_runs()
    law = make_law(runs)
    short = [r for r in runs if r.seed == 0]
    with pytest.raises(
        CapgapError, match="fitted on 26 runs of the main arm, but the table of runs has 13"
    ):
        run(short, law, None, [], "pocket", {}, tmp_path / "out")
    final = make_final()
    other = final.model_copy(
        update={"choice": final.choice.model_copy(update={"law_tokens": 7_000_000})}
    )
    with pytest.raises(CapgapError, match="law at 7000000 tokens, but this law has 1500000"):
        run(runs, law, other, [], "pocket", {}, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_stage_refuses_settings_that_are_not_an_object(tmp_path):
    arguments = write_study(tmp_path)
    for text, message in (("{", "not JSON"), (json.dumps([1]), "must be a JSON object, got list")):
        arguments[-1] = text
        with pytest.raises(CapgapError, match=message):
            main([*arguments, "--out", str(tmp_path / "out")])
