"""The commands that make a small world of artifacts, each from what those before it made."""

from capgap.stages import corpus, distill, evaluate, pack, pretrain, prune, score, tokenizer

WORDS = "the state of the union is strong and the people are free and the law is just ".split()
SHORT = ["--sequence-length", "16", "--batch-tokens", "64", "--validations", "1"]
PLAN = [
    (corpus, "--source files --pattern texts/*.txt --out corpus"),
    (tokenizer, "--source train --vocab-size 270 --source-folder corpus --out tok"),
    (pack, "--corpus corpus --tokenizer tok --out tokens"),
    (pretrain, "--name t --token-streams tokens --tokenizer tok --layers 2 --hidden 16 --heads 2 "
     f"--intermediate 24 --tokens 640 {' '.join(SHORT)} --out t"),
    (score, "--model t/model --tokens tokens --out scores"),
    (prune, "t/model --importance scores --params 3k --out init"),
    (evaluate, "--model init --token-streams tokens --sequence-length 16 --out metrics.json"),
    (distill, "--init init --teacher t/model --token-streams tokens --tokens 320 "
     f"{' '.join(SHORT)} --out student"),
]  # fmt: skip
COMMANDS = {module.__name__.rpartition(".")[2]: line.split() for module, line in PLAN}
MAINS = {module.__name__.rpartition(".")[2]: module.main for module, _ in PLAN}
