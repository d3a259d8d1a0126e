"""The kinds the page knows, in its order. A new kind of measurement is one file beside this one and one line here."""

from pocketlens_bench.report.sections.ablation import Ablation
from pocketlens_bench.report.sections.accuracy import Accuracy, Score
from pocketlens_bench.report.sections.chaos import Chaos
from pocketlens_bench.report.sections.distil import Distil
from pocketlens_bench.report.sections.indexing import Indexing
from pocketlens_bench.report.sections.latency import Latency
from pocketlens_bench.report.sections.load import Load
from pocketlens_bench.report.sections.network import Network
from pocketlens_bench.report.sections.plan import Plan
from pocketlens_bench.report.sections.refine import Refine
from pocketlens_bench.report.sections.robustness import Robustness
from pocketlens_bench.report.sections.scale import Scale, Tradeoff
from pocketlens_bench.report.sections.section import Section
from pocketlens_bench.report.sections.serving import Serving
from pocketlens_bench.report.sections.start import Start
from pocketlens_bench.report.sections.tokens import Tokens
from pocketlens_bench.report.sections.zoo import Zoo

SECTIONS: tuple[Section, ...] = (
    Accuracy(),
    Score(),
    Refine(),
    Ablation(),
    Distil(),
    Zoo(),
    Latency(),
    Start(),
    Load(),
    Serving(),
    Indexing(),
    Chaos(),
    Plan(),
    Network(),
    Scale(),
    Tradeoff(),
    Robustness(),
    Tokens(),
)
