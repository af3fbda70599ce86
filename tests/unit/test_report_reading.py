"""What helps a reader of the report: the first screen, the glossary, print and citation."""

import re
from pathlib import Path

import pytest
import yaml
from report_records import TOKENS, make_final, make_law, make_runs, with_recommendation

from capgap.reporting import glossary
from capgap.reporting.answer_text import teacher_costs
from capgap.reporting.citation import PAPER_AUTHORS, PAPER_PAGES, PAPER_TITLE, TITLE, citation
from capgap.reporting.headline_chart import headline

REPOSITORY = Path(__file__).parents[2]
BUDGETS = (500_000, TOKENS)


@pytest.fixture(scope="module")
def law():
    return make_law(make_runs(tokens=BUDGETS))


def test_headline_holds_every_cost_and_a_row_of_optima_below_zero(law):
    data = headline(law).data
    cells = data[data.kind == "teacher"]
    assert len(cells) == sum(len(found.teachers) for found in law.optima)
    assert cells.regret_nats.min() == 0
    assert list(dict.fromkeys(cells.panel)) == ["500k tokens", "1.5M tokens"]
    stars = data[data.kind == "optimum"]
    assert (stars.row < 0).all()
    assert stars.groupby("student").row.nunique().eq(1).all()  # one row for each student
    assert stars.row.nunique() == stars.student.nunique()
    assert (stars.params_low <= stars.teacher_params).all()
    assert (stars.teacher_params <= stars.params_high).all()


def test_prices_are_predicted_for_the_student_asked_and_measured_for_the_nearest(law):
    final = with_recommendation(make_final())  # 131k at 3M tokens: 160k at 1.5M is nearer than 100k
    found = teacher_costs(law, final)
    assert (found.student, found.tokens) == ("160k", "1.5M tokens")
    assert found.asked == "131k at 3M tokens"
    near = next(o for o in law.optima if (o.student, o.tokens) == ("160k", TOKENS))
    ranked = {row.teacher: row.predicted_regret for row in final.choice.recommendation.ranked}
    measured = {cell.teacher: cell.regret_nats for cell in near.teachers}
    assert {row.teacher for row in found.rows} == ranked.keys() | {
        cell.teacher for cell in near.teachers if cell.teacher_params_non_embedding > 131_072
    }
    for row in found.rows:
        regret = ranked.get(row.teacher)
        if regret is None:
            assert (row.cost, row.interval, row.perplexity) == ("–", "", "")
        elif regret.value == 0:
            assert (row.cost, row.interval, row.share) == ("best", "", 0)
        else:
            assert row.cost == f"{regret.value:.3f}"
            assert row.interval == f"[{regret.low:.3f}, {regret.high:.3f}]"
        expected = f"{measured[row.teacher]:.3f}" if row.teacher in measured else ""
        assert row.measured == expected
    assert max(row.share for row in found.rows) == 1


def test_prices_are_measured_if_no_law_predicts(law):
    found = teacher_costs(law, None)
    near = next(o for o in law.optima if (o.student, o.tokens) == (found.student, TOKENS))
    assert [row.teacher for row in found.rows] == [
        cell.teacher
        for cell in sorted(near.teachers, key=lambda cell: cell.teacher_params_non_embedding)
    ]
    (best,) = [row for row in found.rows if row.cost == "best"]
    assert (best.teacher, best.perplexity, best.share) == (near.best_teacher, "", 0)
    assert {row.measured for row in found.rows} == {""}
    assert found.asked == ""


def test_the_change_of_perplexity_is_the_exponential_of_the_loss(law):
    near = law.optima[0]
    cells = [
        cell.model_copy(update={"regret_nats": 0.0 if i == 0 else 0.1, "teacher": f"t{i}"})
        for i, cell in enumerate(near.teachers)
    ]
    one = law.model_copy(
        update={"optima": [near.model_copy(update={"teachers": cells, "best_teacher": "t0"})]}
    )
    assert {row.perplexity for row in teacher_costs(one, None).rows} == {"", "+10.5 %"}  # e^0.1
    logits = one.model_copy(update={"metric": "accuracy"})
    assert {row.perplexity for row in teacher_costs(logits, None).rows} == {""}


def terms(html):
    """Terms that are marked, by the text that is marked."""
    return re.findall(r'<span class="term"[^>]*>([^<]*)</span>', glossary.marked(html))


def test_a_term_is_marked_once_in_a_section_and_again_in_the_next():
    html = "<section><p>T* in nats. T* again.</p></section><section><p>T* and nats</p></section>"
    assert terms(html) == ["T*", "nats", "T*", "nats"]


def test_only_prose_is_marked():
    assert terms('<h2>T*</h2><p><a href="#T*">nats</a></p><div>budget</div>') == []
    assert terms("<table><tr><td><p>T*</p></td></tr></table>") == []
    assert terms("<p><noscript><svg><text>T*</text></svg></noscript>T*</p>") == ["T*"]


def test_the_longer_term_wins_and_words_are_whole():
    assert terms("<p>T*/S falls and T* grows</p>") == ["T*/S", "T*"]
    assert terms("<p>10 tokens per parameter, 0.1 nats per token</p>") == [
        "tokens per parameter",
        "nats per token",
    ]
    assert terms("<p>initial signatures</p>") == []


def test_marking_changes_no_text_and_points_to_an_entry():
    html = "<p>the pruned init, its budget &amp; T*/S in bits per byte by the power law</p>"
    found = glossary.marked(html)
    assert re.sub(r"<[^>]*>", "", found) == re.sub(r"<[^>]*>", "", html)
    known = {identity for identity, _, _ in glossary.entries()}
    assert len(known) == len(glossary.TERMS)
    assert set(re.findall(r'aria-describedby="([^"]*)"', found)) <= known
    assert found.count('tabindex="0"') == found.count("data-meaning=") == len(terms(html)) == 5


def test_the_report_cites_what_the_repository_cites():
    stated = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())
    (paper,) = stated["references"]
    assert stated["title"] == TITLE
    assert paper["title"] == PAPER_TITLE
    assert [(a["family-names"], a["given-names"]) for a in paper["authors"]] == list(PAPER_AUTHORS)
    assert (paper["start"], paper["end"]) == PAPER_PAGES
    found = citation(stated["version"])
    assert str(paper["year"]) in found.paper
    assert paper["collection-title"] in found.paper
    assert paper["identifiers"][0]["value"].removeprefix("arXiv:") in found.bibtex
    assert stated["version"] in found.software
