"""What hostile pictures cost: each is met in a fresh interpreter, and its peak memory is looked at."""

import subprocess
import sys

import pytest
from PIL import Image

PEAK = """
import resource
def peak_mib():
    try:  # Linux; ru_maxrss would do there too, but it is inherited from whoever started us
        line = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    except FileNotFoundError:  # macOS, where it is in bytes
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
"""


def peak_growth_mib(code: str) -> float:
    """Peak memory that `code` adds to a fresh interpreter that has loaded us and Pillow."""
    script = f"""
{PEAK}
from PIL import Image
from pocketlens_wire.errors import BadPicture
from pocketlens_wire.pictures import PictureSpec, fit, open_picture
fit(Image.new("RGB", (64, 64)), PictureSpec(224, "crop"))
before = peak_mib()
{code}
print(peak_mib() - before)
"""
    return float(subprocess.check_output([sys.executable, "-c", script], text=True))


@pytest.mark.parametrize("size", [(1, 10_000), (10_000, 1), (2, 1_000_000)])
def test_extreme_proportions_cost_no_memory(size):
    # Resizing the whole short side to 224 first would take 224 x 2,240,000 pixels, 1.5 GB.
    code = f'assert fit(Image.new("RGB", {size}), PictureSpec(224, "crop")).shape == (224, 224, 3)'
    assert peak_growth_mib(code) < 40


def test_a_bomb_is_not_decoded(tmp_path):
    bomb = tmp_path / "bomb.png"
    Image.new("1", (8192, 8192)).save(bomb)
    assert bomb.stat().st_size < 20_000  # and 67 MB once decoded
    code = f"""
try:
    open_picture({str(bomb)!r})
except BadPicture as error:
    assert "67.1 megapixels" in str(error), error
else:
    raise AssertionError("was decoded")
"""
    assert peak_growth_mib(code) < 20


def test_the_measure_sees_a_decoded_picture():
    assert 20 < peak_growth_mib('Image.new("RGB", (4000, 2000), "red")') < 60
