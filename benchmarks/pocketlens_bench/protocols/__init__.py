"""Benchmarks of composed and sketch-based retrieval: what each asks, and how its numbers are counted.

PROTOCOLS holds all ways of counting; SETS the data sets, each with the protocols that count it."""

from pocketlens_bench.protocols.circo import Circo
from pocketlens_bench.protocols.cirr import Cirr, CirrSoft
from pocketlens_bench.protocols.domains import Freedom, Ltll, MagicLensImageNetR, MiniDomainNet, Nico, Pic2WordImageNetR
from pocketlens_bench.protocols.fashioniq import FashionIq, FashionIqVal
from pocketlens_bench.protocols.genecis import Genecis
from pocketlens_bench.protocols.landmarks import ROxford, RParis
from pocketlens_bench.protocols.own import Own
from pocketlens_bench.protocols.patterncom import PatternCom
from pocketlens_bench.protocols.protocol import Protocol
from pocketlens_bench.protocols.sketches import QuickDraw, Sketchy21, Sketchy25, TuBerlin

PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        FashionIq(), FashionIqVal(), Cirr(), CirrSoft(), Circo(), Genecis(), Pic2WordImageNetR(), MagicLensImageNetR(),
        Freedom(), Nico(), MiniDomainNet(), Ltll(), PatternCom(), Sketchy25(), Sketchy21(), TuBerlin(), QuickDraw(),
        ROxford(), RParis(), Own(),
    )
}  # fmt: skip

SETS: dict[str, tuple[str, ...]] = {
    "fashioniq": ("fashioniq", "fashioniq-val"),
    "cirr": ("cirr", "cirr-soft"),
    "circo": ("circo",),
    "genecis": ("genecis",),
    "imagenet-r": ("imagenet-r", "imagenet-r-magiclens", "imagenet-r-freedom"),
    "nico": ("nico",),
    "minidomainnet": ("minidomainnet",),
    "ltll": ("ltll",),
    "patterncom": ("patterncom",),
    "sketchy": ("sketchy-25", "sketchy-21"),
    "tuberlin": ("tuberlin",),
    "quickdraw": ("quickdraw",),
    "roxford": ("roxford",),
    "rparis": ("rparis",),
    "jsonl": ("jsonl",),
}
