"""What a bundle says about itself: two strict, frozen records, read all or nothing.

Owns manifest.json of both halves and the proof that the files beside it are the ones it means. Written by
export, read by edge and cloud. A missing or unknown key, a wrong type or range, a newer format, a missing,
escaping or altered file: each is a BadBundle that names the file and the key.
"""

import hashlib
import json
import math
import os
import string
import types
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final, Literal, NoReturn, TypeVar, cast, get_args, get_origin, get_type_hints

from pocketlens_wire.errors import BadBundle
from pocketlens_wire.limits import MAX_TOKENS, MAX_WIDTH
from pocketlens_wire.pictures import PictureSpec

FORMAT: Final = 2  # raised whenever an older reader would misread a bundle
MANIFEST: Final = "manifest.json"
SEAL: Final = "seal"  # SHA-256 over all other keys: an id says nothing of a prompt or a fit changed by hand
MAX_MANIFEST_BYTES: Final = 1024 * 1024  # real ones have 2 KB

Half = Literal["edge", "cloud"]


@dataclass(frozen=True, kw_only=True)
class File:
    """One file of a bundle half."""

    file: str  # path inside the half, forward slashes, no ".."
    sha256: str  # 64 lower-case hex digits over its bytes
    bytes: int  # its size


@dataclass(frozen=True, kw_only=True)
class EncoderGraph(File):
    """One form of the encoder. Forms differ in precision, so each has an id and a tolerance of its own."""

    encoder: str  # "enc-..." sent with each query whose tokens it made
    tolerance: float  # largest |difference| allowed on the golden `sentence`


@dataclass(frozen=True, kw_only=True)
class TowerGraph(File):
    """One form of a tower."""

    tolerance: float  # largest |difference| allowed on every golden feature that comes through it


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """How sentence and words become the text tower's input; slots stand where {sentence} is."""

    composed: str  # holds {sentence} and {words} once each: "a photo of {sentence}, {words}"
    picture: str  # holds {sentence} once: "a photo of {sentence}"
    words: str  # holds {words} once: "{words}"


# Most exact first. .ort: ONNX Runtime's own format; .symmetric: without zero points, the int8 that TensorRT reads.
FORMS: Final = ("fp32", "fp32.ort", "fp16", "int8", "int8.ort", "int8.symmetric")
TOWER_FORMS: Final = ("fp32", "int8")
PACKS: Final = "pocketlens.packs"  # property of a text tower's graph that reads no padding: "yes"
CLEANING: Final = ("plain", "ftfy", "html", "punctuation", "lower", "spaces")


@dataclass(frozen=True, kw_only=True)
class TextLayout:
    """How a text becomes a row of the text tower: cleaned, cut by tokenizer.json, `begin` before and `end` after it."""

    begin: list[int]  # ids before the text: CLIP's start of text, BERT's [CLS], nothing for SigLIP
    end: list[int]  # ids after it
    pad: int  # id that fills shorter rows
    slot: int  # id where the sentence goes; the graph puts the sentence's tokens over its embedding
    special: list[int]  # ids that no typed text may become
    unknown: int | None  # what stands for pieces that are not in the vocabulary; None: every piece is
    fixed_length: bool  # rows always have `context` ids, because the tower attends to its padding
    clean: list[str]  # steps before tokenizer.json, of CLEANING, in order


@dataclass(frozen=True, kw_only=True)
class EdgeManifest:
    """The device's half: one encoder, from pixels to sentence tokens."""

    format: int = FORMAT
    kind: str = "edge"
    name: str  # for people
    token_space: str  # "ts-..." of the tokens it makes
    token_count: int  # tokens a picture becomes
    token_width: int  # numbers per token
    picture: PictureSpec
    graphs: dict[str, EncoderGraph]  # by form, of FORMS; at least one
    golden: File  # npz: pixels uint8 (n, side, side, 3), sentence float32 (n, token_count, token_width)
    report: File | None  # JSON: what was measured of each form at export
    page: File | None  # HTML: the same for people

    def graph(self, form: str | None = None) -> EncoderGraph:
        """The form asked for; None takes the most exact there is. Raises BadBundle."""
        return self.graphs[self.form(form)]

    def form(self, asked: str | None = None) -> str:
        """The name of that form."""
        if asked is None:
            return next(form for form in FORMS if form in self.graphs)
        if asked not in self.graphs:
            raise BadBundle(f"{self.name}: no {asked} encoder; this bundle has {', '.join(self.graphs)}.")
        return asked


@dataclass(frozen=True, kw_only=True)
class CloudManifest:
    """The service's half: text tower, image tower, heads, tokenizer."""

    format: int = FORMAT
    kind: str = "cloud"
    name: str
    token_space: str  # "ts-..." its text tower understands
    gallery_space: str  # "gs-..." its gallery vectors lie in
    encoders: list[str]  # "enc-..." it accepts
    token_width: int
    max_tokens: int  # sentence tokens accepted in one query
    context: int  # most token ids of one text tower sequence
    dim: int  # numbers per gallery vector
    picture: PictureSpec
    prompts: Prompts
    text: TextLayout
    targets: list[str]  # gallery vectors it can make: ["original"] or ["original", "union"]
    text_tower: dict[str, TowerGraph]  # by precision: "fp32", always there, or "int8"
    image_tower: dict[str, TowerGraph]  # likewise
    query_head: File | None
    target_head: File | None
    tokenizer: File
    golden: File


Manifest = EdgeManifest | CloudManifest
_Record = TypeVar("_Record", bound=EdgeManifest | CloudManifest)


def resolve_half(path: Path, half: Half) -> Path:
    """The folder of one half: `path` itself if it holds a manifest, else its `edge` or `cloud` subfolder.

    Raises BadBundle if neither holds one.
    """
    for folder in (path, path / half):
        if (folder / MANIFEST).is_file():
            return folder
    other = "cloud" if half == "edge" else "edge"
    if (path / other / MANIFEST).is_file():
        raise BadBundle(f"{path}: holds the {other} half of a bundle alone; the {half} half is needed here.")
    what = "no such folder" if not path.exists() else f"neither {MANIFEST} nor {half}/{MANIFEST} in it"
    raise BadBundle(f"{path}: not a bundle ({what}). Name the bundle folder or its `{half}` half with --bundle.")


def read_edge(folder: Path) -> EdgeManifest:
    """Read and verify the device's half in `folder` (or in its `edge` subfolder). Raises BadBundle."""
    return _read(EdgeManifest, resolve_half(folder, "edge"))


def read_cloud(folder: Path) -> CloudManifest:
    """Read and verify the service's half in `folder` (or in its `cloud` subfolder). Raises BadBundle."""
    return _read(CloudManifest, resolve_half(folder, "cloud"))


def write(manifest: Manifest, folder: Path) -> None:
    """Write manifest.json into `folder`, whole or not at all; the same manifest gives the same bytes.

    Checks it as a reader would, keys and files, and raises BadBundle rather than write what cannot be read.
    """
    where = folder / MANIFEST
    raw = asdict(manifest)
    raw[SEAL] = _seal(raw)
    cls = EdgeManifest if isinstance(manifest, EdgeManifest) else CloudManifest
    _verify_files(_record(cls, raw, where), folder, where)
    unfinished = folder / f".{MANIFEST}.{os.getpid()}"
    unfinished.write_text(json.dumps(raw, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(unfinished, where)


def describe_file(path: Path) -> File:
    """File record of an existing file, named without its folder."""
    return File(file=path.name, sha256=_sha256(path), bytes=path.stat().st_size)


def describe_encoder(path: Path, *, encoder: str, tolerance: float) -> EncoderGraph:
    """Record of an existing encoder graph."""
    return EncoderGraph(**asdict(describe_file(path)), encoder=encoder, tolerance=tolerance)


def describe_tower(path: Path, *, tolerance: float) -> TowerGraph:
    """Record of an existing graph of a tower."""
    return TowerGraph(**asdict(describe_file(path)), tolerance=tolerance)


# --- reading


def _read(cls: type[_Record], folder: Path) -> _Record:
    where = folder / MANIFEST
    manifest = _record(cls, _load(where), where)
    _verify_files(manifest, folder, where)
    return manifest


def _load(where: Path) -> Any:
    try:
        if where.stat().st_size > MAX_MANIFEST_BYTES:
            raise BadBundle(
                f"{where}: larger than {MAX_MANIFEST_BYTES} bytes, so not a manifest. Get the bundle again."
            )
        text = where.read_bytes().decode("utf-8")
    except OSError as error:
        raise BadBundle(f"{where}: cannot be read ({error.strerror}). Check its permissions.") from error
    except UnicodeDecodeError as error:
        raise BadBundle(f"{where}: not UTF-8 at byte {error.start}. Get the bundle again.") from error
    try:
        return json.loads(text, object_pairs_hook=_without_duplicates, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise BadBundle(f"{where}: not valid JSON ({error}). Get the bundle again.") from error


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"key {next(name for name in names if names.count(name) > 1)!r} stands twice")
    return result


def _no_constant(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a number JSON knows")


def _record(cls: type[_Record], raw: Any, where: Path) -> _Record:
    """A checked record from parsed JSON; format and kind come first, as they explain everything else."""
    half = "edge" if cls is EdgeManifest else "cloud"
    if not isinstance(raw, dict):
        raise BadBundle(f"{where}: must hold a JSON object. Get the bundle again.")
    came: Any = raw.get("format")  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    if isinstance(came, int) and not isinstance(came, bool) and came > FORMAT:
        raise BadBundle(
            f"{where}: key `format` is {came}, this Pocketlens reads {FORMAT}. "
            f"The bundle is newer: upgrade with `pip install -U pocketlens`."
        )
    if isinstance(came, int) and not isinstance(came, bool) and came < FORMAT:
        raise BadBundle(
            f"{where}: key `format` is {came}, this Pocketlens reads {FORMAT}. The bundle is older: export its "
            "training again with `pocketlens-export bundle`."
        )
    kind: Any = raw.get("kind")  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    if kind in ("edge", "cloud") and kind != half:
        raise BadBundle(f"{where}: is the {kind} half of a bundle; the {half} half is needed here.")
    try:
        record = _convert(cls, _without_seal(raw), "")
        _check(record)
        _check_seal(raw)
    except _Wrong as wrong:
        raise BadBundle(f"{where}: {wrong}. Get the bundle again, or one for this version of Pocketlens.") from wrong
    return record


def _check_seal(raw: Any) -> None:
    _demand(SEAL in raw, SEAL, "is missing")
    _demand(raw[SEAL] == _seal(raw), SEAL, "does not hold: another key was changed after export")


def _seal(raw: Any) -> str:
    return hashlib.sha256(json.dumps(_without_seal(raw), sort_keys=True).encode()).hexdigest()


def _without_seal(raw: Any) -> dict[str, Any]:
    return {key: value for key, value in raw.items() if key != SEAL}


class _Wrong(Exception):
    """What is wrong with which key; becomes a BadBundle once the file is known."""

    def __init__(self, key: str, problem: str) -> None:
        super().__init__(f"key `{key}` {problem}" if key else problem)


def _convert(wanted: Any, raw: Any, key: str) -> Any:
    """`raw` as the annotated type `wanted`, or _Wrong. Understands just the types the records use."""
    if is_dataclass(wanted):
        return _convert_record(wanted, raw, key)
    if isinstance(wanted, types.UnionType):  # X | None
        inner = next(arm for arm in get_args(wanted) if arm is not types.NoneType)
        return None if raw is None else _convert(inner, raw, key)
    if get_origin(wanted) is list:
        _check_type(raw, list, "a list", key)
        (inner,) = get_args(wanted)
        return [_convert(inner, item, f"{key}[{i}]") for i, item in enumerate(raw)]
    if get_origin(wanted) is dict:
        _check_type(raw, dict, "an object", key)
        inner = get_args(wanted)[1]
        return {name: _convert(inner, item, f"{key}.{name}") for name, item in sorted(raw.items())}
    if wanted is bool:
        if not isinstance(raw, bool):
            raise _Wrong(key, f"must be true or false, came {json.dumps(raw)[:60]}")
        return raw
    if wanted is str:
        _check_type(raw, str, "a string", key)
        return raw
    if wanted is int:
        _check_type(raw, int, "a whole number", key)
        return raw
    if wanted is float:
        _check_type(raw, (int, float), "a number", key)
        return float(raw)
    raise AssertionError(f"no rule for {wanted!r}, the type of manifest key {key!r}")


def _check_type(raw: Any, wanted: type | tuple[type, ...], said: str, key: str) -> None:
    if not isinstance(raw, wanted) or isinstance(raw, bool):
        raise _Wrong(key, f"must be {said}, came {json.dumps(raw)[:60]}")


def _convert_record(cls: Any, raw: Any, key: str) -> Any:
    _check_type(raw, dict, "an object", key)
    hints = get_type_hints(cls)
    known = {field.name for field in fields(cls)}
    prefix = f"{key}." if key else ""
    for name in sorted(known - raw.keys()):
        raise _Wrong(prefix + name, "is missing")
    for name in sorted(raw.keys() - known):
        raise _Wrong(prefix + name, "is unknown")
    values = {name: _convert(hints[name], raw[name], prefix + name) for name in hints}
    try:
        return cls(**values)
    except ValueError as error:  # PictureSpec checks itself
        raise _Wrong(key, f"is wrong: {error}") from error


# --- ranges


def _check(manifest: Manifest) -> None:
    """Everything types cannot say. Raises _Wrong naming the key."""
    _demand(manifest.format == FORMAT, "format", f"must be {FORMAT}, came {manifest.format}")
    if isinstance(manifest, EdgeManifest):
        _check_edge(manifest)
    else:
        _check_cloud(manifest)
    for key in ("name", "token_space"):
        _demand(getattr(manifest, key) != "", key, "is empty")
    _demand(1 <= manifest.token_width <= MAX_WIDTH, "token_width", f"must be 1 to {MAX_WIDTH}")
    for key, file in _files(manifest):
        _check_file(key, file)
        if isinstance(file, EncoderGraph | TowerGraph):
            good = math.isfinite(file.tolerance) and file.tolerance > 0
            _demand(good, f"{key}.tolerance", "must be positive and finite")


def _check_edge(manifest: EdgeManifest) -> None:
    _demand(manifest.kind == "edge", "kind", f'must be "edge", came {manifest.kind!r}')
    _demand(1 <= manifest.token_count <= MAX_TOKENS, "token_count", f"must be 1 to {MAX_TOKENS}")
    _demand(bool(manifest.graphs), "graphs", "is empty")
    for form, graph in manifest.graphs.items():
        _demand(form in FORMS, f"graphs.{form}", f"must be one of {', '.join(FORMS)}")
        _demand(graph.encoder != "", f"graphs.{form}.encoder", "is empty")
    _check_apart({form: graph.encoder for form, graph in manifest.graphs.items()}, "encoder")
    _check_apart({form: graph.sha256 for form, graph in manifest.graphs.items()}, "sha256")


def _check_apart(held: dict[str, str], key: str) -> None:
    """Another precision is another encoder in another file; only ONNX Runtime's format keeps its original's id."""
    owner: dict[str, str] = {}
    for form, value in held.items():
        precision = form if key == "sha256" else form.removesuffix(".ort")
        other = owner.setdefault(value, precision)
        _demand(other == precision, f"graphs.{form}.{key}", f"is that of {other}")


def _check_cloud(manifest: CloudManifest) -> None:
    _demand(manifest.kind == "cloud", "kind", f'must be "cloud", came {manifest.kind!r}')
    _demand(manifest.gallery_space != "", "gallery_space", "is empty")
    _demand(bool(manifest.encoders) and "" not in manifest.encoders, "encoders", "must list encoder ids")
    _demand(1 <= manifest.max_tokens <= MAX_TOKENS, "max_tokens", f"must be 1 to {MAX_TOKENS}")
    _demand(manifest.dim >= 1, "dim", "must be at least 1")
    for key, towers in (("text_tower", manifest.text_tower), ("image_tower", manifest.image_tower)):
        _demand("fp32" in towers, f"{key}.fp32", "is missing")
        unknown = sorted(towers.keys() - set(TOWER_FORMS))
        _demand(not unknown, f"{key}.{unknown[:1]}", f"must be one of {', '.join(TOWER_FORMS)}")
    enough = manifest.max_tokens + len(manifest.text.begin) + len(manifest.text.end)
    _demand(manifest.context >= enough, "context", f"must be at least {enough}")
    _demand(
        manifest.targets in (["original"], ["original", "union"]),
        "targets",
        f'must be ["original"] or ["original", "union"], came {manifest.targets}',
    )
    union = "union" in manifest.targets
    _demand(
        union == (manifest.target_head is not None),
        "target_head",
        'must be there exactly with target "union"',
    )
    _demand(not union or manifest.query_head is not None, "query_head", 'is needed for target "union"')
    _check_text(manifest.text)
    slots = {"composed": ["sentence", "words"], "picture": ["sentence"], "words": ["words"]}
    for key, wanted in slots.items():
        _check_prompt(f"prompts.{key}", getattr(manifest.prompts, key), wanted)


def _check_text(text: TextLayout) -> None:
    for key in ("begin", "end", "special"):
        _demand(all(token >= 0 for token in getattr(text, key)), f"text.{key}", "must hold token ids, 0 or more")
    for key in ("pad", "slot"):
        _demand(getattr(text, key) >= 0, f"text.{key}", "must be a token id, 0 or more")
    _demand(text.unknown is None or text.unknown >= 0, "text.unknown", "must be a token id, 0 or more, or null")
    unknown = [step for step in text.clean if step not in CLEANING]
    _demand(not unknown, "text.clean", f"must be of {', '.join(CLEANING)}, came {', '.join(unknown)}")


def _check_prompt(key: str, prompt: str, wanted: list[str]) -> None:
    said = " and ".join(f"{{{name}}}" for name in wanted)
    try:
        parts = list(string.Formatter().parse(prompt))
    except ValueError:
        parts = []
    names = sorted(str(name) for _, name, _, _ in parts if name is not None)
    plain = all(not spec and not conversion for _, _, spec, conversion in parts)
    _demand(
        names == wanted and plain,
        key,
        f"must hold {said} exactly once each and no other brace, came {prompt!r}",
    )


def _demand(holds: bool, key: str, problem: str) -> None:  # noqa: FBT001  reads as an assertion
    if not holds:
        raise _Wrong(key, problem)


# --- files


def _files(manifest: Manifest) -> list[tuple[str, File]]:
    """(key, record) of every file a manifest names."""
    found: list[tuple[str, File]] = []
    for field in fields(manifest):
        value: Any = getattr(manifest, field.name)
        if isinstance(value, File):
            found.append((field.name, value))
        elif isinstance(value, dict):
            found.extend((f"{field.name}.{name}", file) for name, file in cast("dict[str, File]", value).items())
    return found


def _check_file(key: str, file: File) -> None:
    path = PurePosixPath(file.file)
    inside = file.file != "" and not path.is_absolute() and ".." not in path.parts and str(path) == file.file
    plain = not set(file.file) & set("\\:\0") and path.name != MANIFEST and str(path) != "."
    _demand(inside and plain, f"{key}.file", f"must be a plain path inside the bundle half, came {file.file!r}")
    is_hex = len(file.sha256) == 64 and set(file.sha256) <= set("0123456789abcdef")
    _demand(is_hex, f"{key}.sha256", "must be 64 lower-case hex digits")
    _demand(file.bytes >= 0, f"{key}.bytes", "must not be negative")


def _verify_files(manifest: Manifest, folder: Path, where: Path) -> None:
    """Every file lies inside the half and is, byte for byte, the one that was exported. Raises BadBundle."""
    home = folder.resolve()
    for key, file in _files(manifest):
        path = folder / file.file
        if not path.resolve().is_relative_to(home):
            raise BadBundle(f"{where}: key `{key}.file` leads out of the bundle ({file.file} -> {path.resolve()}).")
        if not path.is_file():
            raise BadBundle(f"{path}: no such file, though key `{key}` of {MANIFEST} names it. Get the bundle again.")
        size = path.stat().st_size
        if size != file.bytes:
            raise BadBundle(
                f"{path}: has {size} bytes, key `{key}.bytes` of {MANIFEST} says {file.bytes}. Get the bundle again."
            )
        came = _sha256(path)
        if came != file.sha256:
            raise BadBundle(
                f"{path}: altered since export. sha256 is {came}, key `{key}.sha256` of {MANIFEST} says "
                f"{file.sha256}. Get the bundle again."
            )


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise BadBundle(f"{path}: cannot be read ({error.strerror}). Check its permissions.") from error
