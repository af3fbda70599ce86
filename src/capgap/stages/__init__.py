"""
What a rule of the workflow runs, one module a stage, in the order of the data:

corpus, tokenizer, pack          text to token streams
pretrain, fetch                  teachers, trained here or brought in
cache_teacher                    a teacher's probabilities on the training text, kept on disk
score, prune, random_init        the inits of students
distill, evaluate, harness       students, and what models are measured by
collect, fit, choose             the table of runs, the law, the teacher that it chooses
compare, metrics, report         the final student, the numbers that revisions are compared by, the report

base.py holds what their command lines share.
"""
