"""The benchmarks by name: what each asks, and what it writes for its scorer."""

from internvlu_jax.evaluation.benchmarks.dpg import DPG
from internvlu_jax.evaluation.benchmarks.gedit import GEDIT
from internvlu_jax.evaluation.benchmarks.geneval import GENEVAL
from internvlu_jax.evaluation.benchmarks.imgedit import IMGEDIT
from internvlu_jax.evaluation.benchmarks.mme import MME
from internvlu_jax.evaluation.benchmarks.mmmu import MMMU
from internvlu_jax.evaluation.benchmarks.ocrbench import OCRBENCH
from internvlu_jax.evaluation.benchmarks.risebench import RISEBENCH
from internvlu_jax.evaluation.benchmarks.textedit import TEXTEDIT
from internvlu_jax.evaluation.benchmarks.wise import WISE

BENCHMARKS = {
    benchmark.name: benchmark
    for benchmark in (GENEVAL, DPG, WISE, GEDIT, IMGEDIT, RISEBENCH, TEXTEDIT, OCRBENCH, MME, MMMU)
}
