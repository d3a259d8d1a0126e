"""Coverage-guided fuzzing of the same borders: `python tests/fuzz/atheris_run.py BORDER --seconds 120`.

Needs atheris, which has wheels for Linux and Python 3.11 to 3.13 on x86-64: pip install 'pocketlens[fuzz]'. An input
that raises is written to tests/fuzz/found/BORDER/, where test_fuzz.py tries it ever after."""

from __future__ import annotations

import argparse
import io
import logging
import sys
from collections.abc import Callable
from pathlib import Path

try:
    import atheris
except ImportError:
    sys.exit(
        "fuzzing needs atheris, which pip installs on Linux x86-64 with Python 3.11 to 3.13: "
        "pip install 'pocketlens[fuzz]'. The properties in tests/fuzz/test_fuzz.py run everywhere "
        "(POCKETLENS_FUZZ=20000 for more of them)"
    )

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

with atheris.instrument_imports(include=["pocketlens_wire", "pocketlens_cloud", "starlette", "PIL"]):
    from fuzz import border
    from PIL import Image
    from pocketlens_cloud.serving import front
    from pocketlens_wire.v1 import gallery_pb2
    from pocketlens_wire.v1 import retrieval_pb2 as pb


def messages(data: bytes) -> None:
    """The whole request."""
    border.call(data)


def filters(data: bytes) -> None:
    """A filter in a good question; structure from protobuf's own parser, which takes most bytes as something."""
    try:
        tree = pb.Filter.FromString(data)
    except Exception:  # noqa: BLE001 - no filter; `messages` tries those
        return
    border.call(border.question(where=tree).SerializeToString())


def tokens(data: bytes) -> None:
    """A sentence whose numbers add up more often than by chance."""
    given = atheris.FuzzedDataProvider(data)
    encoding, count, width = (given.ConsumeIntInRange(0, most) for most in (5, 17, 9))
    scales = given.ConsumeBytes(4 * count if given.ConsumeBool() else given.ConsumeIntInRange(0, 20))
    held = given.ConsumeBytes(500)
    if given.ConsumeBool():
        size = {1: 4, 2: 2, 3: 1}.get(encoding, 0) * count * width or (count * width + 1) // 2
        held = held[:size].ljust(size, b"\x3f")
    scales = scales if encoding > 2 else scales[: count % 3]
    sentence = pb.Sentence(encoding=encoding, count=count, width=width, data=held, scales=scales)  # type: ignore[arg-type]
    border.tokens(sentence.SerializeToString())


def http(data: bytes) -> None:
    border.http(data, pieces=1 + len(data) % 4)


SMALL = {"messages": 2000, "filters": 1000, "http": 2000, "tokens": 500, "pictures": 3000, "gallery": 500}
BORDERS: dict[str, Callable[[bytes], None]] = {
    "messages": messages, "filters": filters, "http": http, "tokens": tokens, "pictures": border.picture,
    "gallery": border.gallery_message,
}  # fmt: skip


def seeds(name: str) -> list[bytes]:
    """Good inputs to begin with."""
    if name == "pictures":
        made = []
        for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM"):
            file = io.BytesIO()
            Image.linear_gradient("L").resize((16, 12)).convert("RGB").save(file, kind)
            made.append(file.getvalue())
        return made
    tree = pb.Filter(
        any_of=[pb.Clause(condition=pb.Condition(key="price", between=pb.Between(least=0)))],
        none_of=[pb.Clause(condition=pb.Condition(key="colour", any_of=pb.Values(values=[pb.Value(text="red")])))],
    )
    if name == "filters":
        return [tree.SerializeToString()]
    if name == "tokens":
        return [border.question().sentence.SerializeToString()]
    if name == "gallery":
        payload = {"colour": pb.Value(text="red"), "count": pb.Value(integer=1)}
        vectors = [gallery_pb2.Vector(name="original", data=bytes(8))]
        begun = (gallery_pb2.Begin(payload=payload, vectors=vectors), gallery_pb2.Begin(picture_bytes=3))
        return [gallery_pb2.AddRequest(begin=each).SerializeToString() for each in begun]
    plain = border.question(sentence=None, encoder=None)
    return [each.SerializeToString() for each in (plain, border.question(), border.question(where=tree, sentence=None))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("border", choices=BORDERS)
    parser.add_argument("--seconds", type=int, default=120)
    parser.add_argument("--corpus", type=Path, help="keep inputs here that reached something new (default: build/fuzz)")
    asked = parser.parse_args()
    corpus = asked.corpus or HERE.parents[1] / "build" / "fuzz" / asked.border
    found = HERE / "found" / asked.border
    for folder in (corpus, found):
        folder.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(seeds(asked.border)):
        (corpus / f"seed-{number}").write_bytes(seed)
    logging.disable(logging.CRITICAL)  # refusals by the thousand
    front.PATIENCE_S = float("inf")
    border.house()
    options = [
        f"-max_total_time={asked.seconds}",
        f"-max_len={SMALL[asked.border]}",
        "-timeout=20",
        "-rss_limit_mb=3000",
    ]
    atheris.Setup([sys.argv[0], *options, f"-artifact_prefix={found}/", str(corpus)], BORDERS[asked.border])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
