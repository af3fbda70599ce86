"""
The statistics of the law of capacity gap: from the table of runs to T*(S, D), its noise and a choice.

table            reads and checks the runs; file format (separated), column names (headers), metric
                 and the scale of the fit (metric)
grouped_runs     the runs as arrays: groups, sizes, and which runs share a draw of a noise component
curve, joint_fit the loss of a student over teacher size, fitted with T* ~ S^a D^b as its parameter
noise            variance components of the runs and their priors
joint_law        alternates fit and noise; intervals of exponents, T* and excess losses
single_optima    T* of every student and budget by itself, and the shape of its curve
line, censored   the line T* = a + b S through these
checks           outliers, misfit, teachers off their family, counts of size
claims           verdicts with a margin on both sides; flatness: whether teacher size matters at all
regression       all of it: `fit_law` for predictions, `law_record` for law.json
predict          T*, regrets and recommendations from a fit
law_record       the contents of law.json, choice.json and final.json
arms             control arms: the effect of the init against that of the teacher
two_causes       the law of two causes; its formula (causes_form), fit (causes_fit) and the curve of
                 the teachers' own losses (teacher_family)
rivals           published laws of the loss; start_test: how much the init explains
scoring, scores  how each law chooses for what it has not seen, and which one leads; refits of the power
                 law in core_contenders, means over seeds in means
answer_limits    measured losses beside the predictions, and how far an answer may extrapolate
leading_answer   the recommendation by the law that leads
simulate         runs with a known law
"""
