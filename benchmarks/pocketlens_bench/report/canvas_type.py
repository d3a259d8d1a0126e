"""The canvas as sections name it: without loading matplotlib."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pocketlens_bench.report.canvas import Canvas
else:
    Canvas = Any
