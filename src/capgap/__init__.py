"""capgap: measure the law of capacity gap in distillation, test it, and use it.

From Python:

    import capgap as cg

    student = cg.prune("teacher", "texts/*.txt", out="init", params="54M")
    student = cg.distill(student, "teacher", "texts/*.txt", out="student", tokens="20M")
    law = cg.fit_law(runs)  # a DataFrame
    print(cg.recommend(law, "1B", teachers=["3B", "7B"]))

docs/python.md describes every function. A name is loaded when it is first used: importing capgap
imports neither torch nor transformers and changes nothing in the process.
"""

from pkgutil import resolve_name

__version__ = "0.1.0"

# Where a name of the Python interface is defined; __init__.pyi has their types.
PLACES = {
    "load": "pipeline",
    "pack": "pipeline",
    "score": "pipeline",
    "prune": "pipeline",
    "cache_teacher": "pipeline",
    "distill": "pipeline",
    "evaluate": "pipeline",
    "distillation_loss": "own_loop",
    "DistillationMixin": "hf_trainer",
    "DistillationTrainer": "hf_trainer",
    "fit_law": "laws",
    "recommend": "laws",
    "plot": "laws",
}
# pyright: reportUnsupportedDunderAll=false
# (__getattr__ gives the names)
__all__ = ["CapgapError", "__version__", *PLACES]


def __getattr__(name: str) -> object:
    if name == "CapgapError":
        place = "capgap.errors"
    elif name in PLACES:
        place = f"capgap.api.{PLACES[name]}"
    else:
        raise AttributeError(f"module 'capgap' has no attribute {name!r}")
    globals()[name] = resolve_name(f"{place}:{name}")
    return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
