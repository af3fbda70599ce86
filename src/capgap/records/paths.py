"""
Paths of all artifacts of a study. The tree follows the path of the data:

results/<study>/
  corpus/{train,validation,test}.parquet          documents, and corpus.json
  texts/<text>/{corpus/,tokens/}                  the same of a further text, all of it test
  tokenizer/                                      Hugging Face tokenizer
  tokens/{train,validation,test}.npy              flat token streams
  tokenizers/<name>/{tokenizer/,tokens/}          the same two of teachers with another tokenizer
  teachers/<teacher>/{model/,train.json,curve.csv,metrics.json,importance/,targets/,harness.json}
                                                  and model/ of a given student, as it came
  inits/<student>/<init>/model/                   pruned-<teacher>, random or given-<student>
  inits/<student>/<init>/round-<round>/           of prune.rounds, all but the last:
                                                  {cut/,model/,train.json,curve.csv,importance/}
  students/<student>/<init>/from-<teacher>/tokens-<tokens>/seed-<seed>/
                                                  {model/,train.json,curve.csv,metrics.json,
                                                   trunk/ if the schedule is wsd}; with a further weight
                                                  of the teacher, from-<teacher>/weight-<weight>/tokens-...
                                                  texts/<text>.json and harness.json where the law uses them
  replica-<n>/{teachers,inits,students}/          the same three, in a study with replicas
  law/{runs.csv,curves.csv,law.json,choice.json}
  final/{model/,final.json,samples.json,harness.json}
  checksums.json                                 SHA-256 of every result, by the job that made it
  metrics.json                                   the few numbers to compare between revisions
  report/                                         report.html and its figures

A folder artifact holds a `manifest.json` with the size and SHA-256 of its other files, written
last; the manifest stands for the folder wherever a rule names it.
"""

from pathlib import PurePosixPath

MANIFEST = "manifest.json"
CHECKSUMS = "checksums.json"  # in the folder of a study's results

ROOT = "results/{study}"
CORPUS = f"{ROOT}/corpus/{MANIFEST}"
TOKENIZER = f"{ROOT}/tokenizer/{MANIFEST}"
TOKENS = f"{ROOT}/tokens/{MANIFEST}"
OWN_TOKENIZER_DIR = f"{ROOT}/tokenizers/{{tokenizer}}"  # of teachers that do not have the students'
OWN_TOKENIZER = f"{OWN_TOKENIZER_DIR}/tokenizer/{MANIFEST}"
OWN_TOKENS = f"{OWN_TOKENIZER_DIR}/tokens/{MANIFEST}"
TEXT_DIR = f"{ROOT}/texts/{{text}}"
TEXT = f"{TEXT_DIR}/corpus/{MANIFEST}"
TEXT_TOKENS = f"{TEXT_DIR}/tokens/{MANIFEST}"
TEXT_SPLIT = "test"  # the only one of a further text
SPLITS = ("train", "validation", "test")
CORPUS_RECORD = "corpus.json"  # beside the splits
TOKENS_RECORD = "meta.json"  # beside the token streams

# {replica} is replica-<n>/ with its slash, and nothing in a study without replicas; {weight} is
# weight-<w>/ of runs at another weight of the teacher than distill.teacher_weight, and nothing at that one
TEACHER_DIR = f"{ROOT}/{{replica}}teachers/{{teacher}}"
INIT_DIR = f"{ROOT}/{{replica}}inits/{{student}}/{{init}}"
RUN_DIR = (
    f"{ROOT}/{{replica}}students/{{student}}/{{init}}/from-{{teacher}}"
    "/{weight}tokens-{tokens}/seed-{seed}"
)

TRUNK = f"trunk/{MANIFEST}"
MODEL = f"model/{MANIFEST}"
TRAIN = "train.json"
CURVE = "curve.csv"
METRICS = "metrics.json"

TEACHER_MODEL = f"{TEACHER_DIR}/{MODEL}"
TEACHER_TRAIN = f"{TEACHER_DIR}/{TRAIN}"
TEACHER_CURVE = f"{TEACHER_DIR}/{CURVE}"
TEACHER_METRICS = f"{TEACHER_DIR}/{METRICS}"
TEACHER_HARNESS = f"{TEACHER_DIR}/harness.json"
TEACHER_ON_TEXT = f"{TEACHER_DIR}/texts/{{text}}.json"
TEACHER_IMPORTANCE = f"{TEACHER_DIR}/importance/{MANIFEST}"
TEACHER_TARGETS = f"{TEACHER_DIR}/targets/{MANIFEST}"

INIT_MODEL = f"{INIT_DIR}/{MODEL}"

# a pruned init between two cuts
ROUND_DIR = f"{INIT_DIR}/round-{{number}}"
ROUND_CUT = f"{ROUND_DIR}/cut/{MANIFEST}"
ROUND_MODEL = f"{ROUND_DIR}/{MODEL}"
ROUND_TRAIN = f"{ROUND_DIR}/{TRAIN}"
ROUND_CURVE = f"{ROUND_DIR}/{CURVE}"
ROUND_IMPORTANCE = f"{ROUND_DIR}/importance/{MANIFEST}"

RUN_MODEL = f"{RUN_DIR}/{MODEL}"
RUN_TRUNK = f"{RUN_DIR}/{TRUNK}"  # state from which larger budgets go on
RUN_TRAIN = f"{RUN_DIR}/{TRAIN}"
RUN_CURVE = f"{RUN_DIR}/{CURVE}"
RUN_METRICS = f"{RUN_DIR}/{METRICS}"
RUN_ON_TEXT = f"{RUN_DIR}/texts/{{text}}.json"
RUN_HARNESS = f"{RUN_DIR}/harness.json"

RUNS_TABLE = f"{ROOT}/law/runs.csv"
CURVES_TABLE = f"{ROOT}/law/curves.csv"
LAW = f"{ROOT}/law/law.json"
CHOICE = f"{ROOT}/law/choice.json"

FINAL_MODEL = f"{ROOT}/final/{MODEL}"
FINAL = f"{ROOT}/final/final.json"
SAMPLES = f"{ROOT}/final/samples.json"
FINAL_HARNESS = f"{ROOT}/final/harness.json"

STUDY_METRICS = f"{ROOT}/metrics.json"
ACCEPTED = f"{ROOT}/accepted.json"  # by hand, `capgap accept`

REPORT = f"{ROOT}/report/{MANIFEST}"


def is_inside(name: str) -> bool:
    """Whether a relative name from a record, a listing or an index stays inside its folder."""
    parts = PurePosixPath(name).parts
    plain = "\0" not in name and "\\" not in name and str(PurePosixPath(name)) == name
    return plain and name not in ("", ".") and not name.startswith("/") and ".." not in parts


def harness(study: str, teacher: str, replica: str = "") -> str:
    """Path of the harness results of a teacher, or, without a name, of the final student."""
    path = TEACHER_HARNESS if teacher else FINAL_HARNESS
    return path.format(study=study, teacher=teacher, replica=replica)


def log(rule: str, identity: str) -> str:
    """Log file of a rule's job; `identity` is the artifact folder the job fills."""
    return f"logs/{rule}/{identity}.log"


def timing(rule: str, identity: str) -> str:
    """Snakemake's own measurements of a job: seconds, CPU seconds and memory."""
    return f"timings/{rule}/{identity}.tsv"


def scratch(identity: str) -> str:
    """Folder for the training state of an unfinished job; never versioned."""
    return f"scratch/{identity}"
