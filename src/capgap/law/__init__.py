"""
The statistics: from a table of runs to the law T* ~ S^a D^b, its verdicts and a choice of teacher.

Packages import only from those above them in this list, and from law_record and number_text:

table/      read_runs reads and checks a table; delimited_text is its file format, column_names the
            synonyms of its columns, metric the scale of the fit, init_kinds the part of it with one
            kind of init. run_means has means over seeds, grouped_runs the runs as arrays
power_law/  the law itself. power_law alternates curve_fit (all runs at once) and noise (variance
            components); loss_curve is the curve over teacher sizes. teacher_jackknife leaves
            teachers out, diagnostics finds outliers, misfit and teachers off the law
optima/     single_optima: T* of one student and budget by itself, and the shape of its curve;
            optimum_line: T* = a + b S through these; censored_line: with some of them only bounded
fit_law     the power law, every optimum and every line of a table of runs
causes/     two_causes: the law of two causes; causes_form is its formula, causes_fit its fit,
            teacher_family the curve of the teachers' own losses
rivals/     busbridge and p2: published laws of the loss; loss_laws is what they share, robust_fit
            how they are fitted
scores/     left_out: how well a law chooses for what it has not seen; contenders: the laws and rules
            that are scored, and which one leads
verdicts/   claims: the verdict on the published law; flatness: whether teacher size matters at all;
            control_arms and init_or_teacher: the effect of the init against that of the teacher;
            inits_and_texts: laws of two kinds of init or held-out texts; study_difference: laws of two
            studies
answers/    ask: queries of a law; power_law_answer and leading_law_answer: a recommendation by the
            power law and by the law that leads; extrapolation: how far one may reach; equal_compute;
            answer_records: what choice.json and final.json hold

law_record  what law.json holds; make_record fills it for a table of runs, with all of the above
number_text sizes, budgets and intervals as text
simulate    runs with a known law
"""
