"""
The statistics: from a table of runs to the law T* ~ S^a D^b, its verdicts and a choice of teacher.

From the bottom to the top; no module imports from one below it in this list:

law_record   what law.json holds
number_text  sizes, budgets and intervals as text
table/       read_runs reads and checks a table of runs; delimited_text is its file format,
             column_names the synonyms of its columns, metric the scale of the fit, init_kinds the
             runs of one kind of init or weight, run_means means over seeds, grouped_runs the runs as
             arrays; task_scores scores of lm-eval as outcomes of runs; token_flops the cost of a token
loss_plane   means of groups of runs, and a plane in log size and log tokens through them
power_law/   power_law alternates curve_fit (all runs at once) and noise (variance components);
             loss_curve is the curve over teacher sizes. teacher_jackknife leaves teachers out;
             diagnostics finds outliers, misfit, teachers off the law
optima/      single_optima: T* of one student and budget by itself, and the shape of its curve;
             optimum_line: T* = a + b S through these; censored_line: if some of them are bounds
fit_law      the power law, every optimum and every line of a table of runs
optimum_records  what law.json holds of every optimum
causes/      the law of two causes: two_causes is the fitted law, causes_form its formula, causes_fit
             its fit, teacher_family the curve of the teachers' own losses
rivals/      busbridge and p2: published laws of the loss, with their record (loss_laws) and fit
             (robust_fit)
scores/      left_out: how well a law chooses for what it has not seen; contenders: the laws and rules
             that are scored, and which one leads
verdicts/    claims: the verdict on the published law; flatness: whether teacher size matters at all;
             control_arms, init_or_teacher: the effect of the init against that of the teacher;
             teacher_worth: a teacher against none, at equal tokens and at equal compute;
             law_comparison: two kinds of init, weights of the teacher or metrics; study_difference: two studies
answers/     ask: which teacher to take; by the power law (power_law_answer), by the law that leads
             (leading_law_answer), within what was measured (extrapolation), at equal compute
             (equal_compute); answer_records: what choice.json and final.json hold
make_record  all of the above for a table of runs, as law.json holds it
simulate     runs of a whole study, simulated for calibration and tests
"""
