import json
import re

import numpy as np
import pandas as pd
import pytest
from law_worlds import QUICK, simulate

from capgap.errors import CapgapError
from capgap.law.law_record import LawRecord
from capgap.stages.fit import main, run


def test_row_order_does_not_matter_and_the_same_input_gives_the_same_bytes(runs_table):
    runs = simulate()
    text = run(runs_table(runs), QUICK).to_json()
    assert run(runs_table(runs), QUICK).to_json() == text
    assert run(runs_table(runs.sample(frac=1, random_state=3)), QUICK).to_json() == text


def test_control_arms_do_not_enter(runs_table):
    runs = simulate()
    alone = run(runs_table(runs), QUICK)
    control = runs.assign(teacher="none", arm="no_teacher", teacher_params_non_embedding=None)
    control["val_loss_nats_per_token"] += np.linspace(0, 2, len(control))
    both = run(runs_table(pd.concat([runs, control])), QUICK)
    assert both.optima == alone.optima
    assert both.exponents == alone.exponents
    assert both.noise == alone.noise


def test_command_line_writes_the_record_and_prints_the_verdict(runs_table, tmp_path, capsys):
    out = tmp_path / "law.json"
    main(["--runs", str(runs_table(simulate())), "--out", str(out), "--ratio-margin", "0.3"])
    record = json.loads(out.read_text())
    assert record["schema_version"] == 3
    assert record["ratio_margin"] == 0.3
    assert record == LawRecord.read(out).model_dump(mode="json")
    printed = capsys.readouterr().out
    assert record["overall"]["reason"] in printed
    growth = record["exponents"]["by_size"]
    text = f"{growth['value']:.2f} [{growth['low']:.2f}, {growth['high']:.2f}]"
    assert re.search(rf"a: growth with S at equal tokens +{re.escape(text)}\n", printed)
    assert "b: growth with D for one student" in printed
    for block in ("Claims", "Noise", "T* of every student", "Lines T*", "fixed_ratio"):
        assert block in printed
    with pytest.raises(CapgapError, match="noise_sd"):
        main(["--runs", "x", "--out", str(out), "--noise-sd", "-1"])


def test_a_record_of_an_earlier_version_is_refused(tmp_path):
    path = tmp_path / "law.json"
    path.write_text('{"n_runs": 3, "resamples": 2000, "lines": []}')
    with pytest.raises(CapgapError, match="version 1.*version 3.*fit the law again"):
        LawRecord.read(path)
    path.write_text("[]")
    with pytest.raises(CapgapError, match="not a LawRecord file"):
        LawRecord.read(path)
    with pytest.raises(CapgapError, match="no such file"):
        LawRecord.read(tmp_path / "none.json")
