# What `capgap/__init__.py` loads when it is used, for type checkers and editors.
from capgap.api.hf_trainer import DistillationMixin as DistillationMixin
from capgap.api.hf_trainer import DistillationTrainer as DistillationTrainer
from capgap.api.laws import fit_law as fit_law
from capgap.api.laws import plot as plot
from capgap.api.laws import recommend as recommend
from capgap.api.own_loop import distillation_loss as distillation_loss
from capgap.api.pipeline import cache_teacher as cache_teacher
from capgap.api.pipeline import distill as distill
from capgap.api.pipeline import evaluate as evaluate
from capgap.api.pipeline import load as load
from capgap.api.pipeline import pack as pack
from capgap.api.pipeline import prune as prune
from capgap.api.pipeline import score as score
from capgap.errors import CapgapError as CapgapError

__version__: str
