"""
The stages that the workflow's rules run, one module per stage, in the order of the data:

corpus, tokenizer, pack          text to token streams
pretrain, fetch                  teachers, trained here or fetched
cache_teacher                    a teacher's probabilities on the training text, kept on disk
score, prune, random_init, given the inits of students
distill, evaluate, harness       students, and measurements of models
collect, fit, choose             the table of runs, the law, the chosen teacher
compare, sample                  the final student against its alternatives, what they write
metrics, report                  numbers to compare revisions by, the report

base.py holds the common part of their command lines.
"""
