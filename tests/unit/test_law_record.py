import json

import numpy as np
import pandas as pd
import pytest
from law_worlds import LADDER, QUICK, simulate

from capgap.config import Law
from capgap.errors import CapgapError
from capgap.law.regression import law_record
from capgap.stages.fit import main, run


def test_row_order_does_not_matter_and_the_same_input_gives_the_same_bytes(runs_table):
    runs = simulate()
    text = run(runs_table(runs), QUICK).to_json()
    assert run(runs_table(runs), QUICK).to_json() == text
    assert run(runs_table(runs.sample(frac=1, random_state=3)), QUICK).to_json() == text
    assert run(runs_table(runs), Law(resamples=200, seed=1)).to_json() != text


def test_control_arms_do_not_enter(runs_table):
    runs = simulate()
    alone = run(runs_table(runs), QUICK)
    control = runs.assign(teacher="none", arm="no_teacher", teacher_params_non_embedding=None)
    control["val_loss_nats_per_token"] += np.linspace(0, 2, len(control))
    both = run(runs_table(pd.concat([runs, control])), QUICK)
    assert both.optima == alone.optima
    assert both.lines == alone.lines
    assert both.seed_sd_nats == alone.seed_sd_nats


def test_verdict_says_what_was_found():
    verdict = law_record(simulate(), QUICK).verdict
    assert verdict.startswith("At 1M tokens T* = 2.")
    assert "the published 2.5 is inside" in verdict
    verdict = law_record(simulate(slope=6, ladder=[s * 3 for s in LADDER]), QUICK).verdict
    assert "the published 2.5 is outside" in verdict
    verdict = law_record(simulate(slope=0, intercept=250e3), QUICK).verdict
    assert "0 is not excluded, so no growth" in verdict
    verdict = law_record(simulate(3, unevenness_sd=0.03), QUICK).verdict
    assert "more than seeds explain" in verdict


def test_command_line_writes_the_record_and_prints_the_verdict(runs_table, tmp_path, capsys):
    out = tmp_path / "law.json"
    main(["--runs", str(runs_table(simulate())), "--out", str(out), "--resamples", "150"])
    record = json.loads(out.read_text())
    assert record["resamples"] == 150
    printed = capsys.readouterr().out.split("\n\n")
    assert printed[0].startswith("The runs are inconclusive") or "The law is" in printed[0]
    assert printed[1] == record["verdict"]
    assert printed[2].count("interior") == 3
    assert printed[3].startswith("Lines T*")
    assert printed[3].count("without each student") == 1
    assert "fixed_ratio" in printed[4]
    with pytest.raises(CapgapError, match="resamples"):
        main(["--runs", "x", "--out", str(out), "--resamples", "5"])
