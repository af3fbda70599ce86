"""
The law of capacity gap as statistics: from the table of runs to T*(S, D), its noise and a choice.

table            the runs, as they are read and refused; its text (separated), column names (headers),
                 metric and scale (metric)
grouped_runs     their arrays: groups, sizes, and which runs share a draw of what
curve, joint_fit the loss of a student over teacher size, fitted with T* ~ S^a D^b as its parameter
noise            variance components of the runs and their priors
joint_law        fit and noise in turn; intervals of exponents, T* and excess losses
single_optima    T* of every student and budget by itself, and the shape of its curve
line, censored   the line T* = a + b S through these
checks           outliers, misfit, teachers off their family, counts of size
claims           verdicts with a margin on both sides; flatness: whether teacher size matters at all
regression       all of it: `fit_law` for predictions, `law_record` for law.json
predict          T*, regrets and recommendations from a fit
law_record       what law.json, choice.json and final.json contain
arms             control arms: the init against the teacher
two_causes       the law of two causes; its formula (causes_form), fit (causes_fit) and a family of
                 teachers (teacher_family)
rivals           published laws of the loss; start_test: what the init explains
scoring, scores  how each law chooses for what it has not seen, and which one leads; refits of the power
                 law in core_contenders, means over seeds in means
answer_limits    what was measured beside the prediction, and how far an answer may reach
leading_answer   the recommendation by the law that leads
simulate         runs with a known law; simulate_causes: of two causes
"""
