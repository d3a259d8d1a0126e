"""TensorRT on the device: engines built for it, and the rule of what runs an encoder when `auto` is asked for.

An engine is machine code for one model of GPU, one TensorRT and one graph. So engines lie outside the bundle, in a
folder of the user's, each beside a record that says what it was built from and how near its tokens are; one that was
altered, or is for another machine or bundle, is refused. Built by the export room's engines.py. The one place of this
room that loads tensorrt and cuda-python; both only when asked for. What could not be run here: docs/tensorrt.md."""

from __future__ import annotations

import hashlib
import json
import math
import os
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from importlib import import_module
from pathlib import Path
from threading import Lock
from typing import Any, Final, Protocol, cast

import numpy as np
from pocketlens_wire.errors import BadBundle
from pocketlens_wire.manifest import EncoderGraph

from pocketlens_edge.runtime import (
    CPU,
    CUDA,
    TENSORRT,
    Graph,
    Runnable,
    Tensor,
    full_provider_name,
    offered_providers,
    runtime_version,
)

ENGINE, AUTO = "engine", "auto"
"""What `--provider` takes besides ONNX Runtime's own names."""
FOLDER: Final = "POCKETLENS_ENGINES"  # environment variable: where engines lie
MAJORS: Final = (10, 11)  # versions of TensorRT that this is written for: Jetson (JetPack 6) has 10, newer GPUs 11
FORMS: Final = ("fp32", "fp16", "int8.symmetric")  # of an encoder, that TensorRT reads
WORKSPACE_BYTES: Final = 1 << 30
_RECORD_FORMAT: Final = 1
_MAX_RECORD_BYTES: Final = 64 * 1024
_INSTALL: Final = (
    "On a Jetson it is JetPack's, for JetPack's own Python (apt install python3-libnvinfer, and an environment made "
    "with --system-site-packages); elsewhere: pip install --extra-index-url https://pypi.nvidia.com tensorrt"
)


# --- what is used of tensorrt and cuda-python, neither of which is typed


class _Context(Protocol):
    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool: ...
    def get_tensor_shape(self, name: str) -> Sequence[int]: ...
    def set_tensor_address(self, name: str, memory: int) -> bool: ...
    def execute_async_v3(self, stream_handle: int) -> bool: ...


class _Engine(Protocol):
    num_io_tensors: int

    def get_tensor_name(self, index: int) -> str: ...
    def get_tensor_mode(self, name: str) -> object: ...
    def get_tensor_dtype(self, name: str) -> object: ...
    def get_tensor_shape(self, name: str) -> Sequence[int]: ...
    def get_tensor_profile_shape(self, name: str, profile_index: int) -> Sequence[Sequence[int]]: ...
    def create_execution_context(self) -> _Context | None: ...


class _Cuda(Protocol):
    """cuda.bindings.runtime: every call gives (error, value ...)."""

    cudaMemcpyKind: Any  # noqa: N815

    def cudaGetDeviceCount(self) -> tuple[Any, ...]: ...  # noqa: N802
    def cudaGetDevice(self) -> tuple[Any, ...]: ...  # noqa: N802
    def cudaGetDeviceProperties(self, device: int) -> tuple[Any, ...]: ...  # noqa: N802
    def cudaGetErrorName(self, error: Any) -> tuple[Any, ...]: ...  # noqa: N802
    def cudaGetErrorString(self, error: Any) -> tuple[Any, ...]: ...  # noqa: N802
    def cudaMalloc(self, size: int) -> tuple[Any, ...]: ...  # noqa: N802
    def cudaFree(self, pointer: int) -> tuple[Any, ...]: ...  # noqa: N802
    def cudaMemcpyAsync(self, to: int, of: int, count: int, kind: Any, stream: Any) -> tuple[Any, ...]: ...  # noqa: N802
    def cudaStreamCreate(self) -> tuple[Any, ...]: ...  # noqa: N802
    def cudaStreamSynchronize(self, stream: Any) -> tuple[Any, ...]: ...  # noqa: N802
    def cudaStreamDestroy(self, stream: Any) -> tuple[Any, ...]: ...  # noqa: N802


def load_tensorrt() -> Any:
    """The tensorrt module. Raises BadBundle, saying how to install it, or that its version is another."""
    try:
        module = import_module("tensorrt")
    except ImportError as missing:
        raise BadBundle(f"TensorRT is not installed here ({missing}). {_INSTALL}.") from missing
    version = str(module.__version__)
    major = version.partition(".")[0]
    if not major.isdigit() or int(major) not in MAJORS:
        wanted = " or ".join(map(str, MAJORS))
        raise BadBundle(f"TensorRT {version} is installed here; Pocketlens needs version {wanted}. {_INSTALL}.")
    return module


def _load_cuda() -> _Cuda:
    try:
        return cast("_Cuda", import_module("cuda.bindings.runtime"))
    except ImportError as missing:
        raise BadBundle(
            f"cuda-python is not installed here ({missing}), with which pictures reach the GPU. Install the one of "
            "your CUDA: pip install 'cuda-python==12.*', or 13."
        ) from missing


def _done(cuda: _Cuda, came: tuple[Any, ...], what: str) -> Any:
    """The value of a CUDA call. Raises BadBundle with CUDA's own words."""
    error = came[0]
    if int(error):
        name, said = (part.decode() for part in (cuda.cudaGetErrorName(error)[1], cuda.cudaGetErrorString(error)[1]))
        raise BadBundle(f"{what}: CUDA says {name}, {said}. Look with nvidia-smi (on a Jetson: tegrastats).")
    return came[1] if len(came) > 1 else None


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """A model of GPU, as CUDA names it; compute_capability such as 8.7."""

    name: str
    compute_capability: str

    def __str__(self) -> str:
        return f"{self.name} ({self.compute_capability})"


def this_gpu() -> Gpu:
    """The GPU that CUDA would use. Raises BadBundle where there is none."""
    cuda = _load_cuda()
    if not _done(cuda, cuda.cudaGetDeviceCount(), "No GPU can be used here"):
        raise BadBundle("No GPU can be used here: CUDA counts none. Look with nvidia-smi (on a Jetson: tegrastats).")
    device = _done(cuda, cuda.cudaGetDevice(), "No GPU can be used here")
    found = _done(cuda, cuda.cudaGetDeviceProperties(device), "The GPU does not say what it is")
    return Gpu(name=found.name.decode().strip("\0 "), compute_capability=f"{found.major}.{found.minor}")


def logger(trt: Any) -> Any:
    """A TensorRT logger that keeps what went wrong, in `said`, instead of printing it."""

    class Kept(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.said: list[str] = []

        def log(self, severity: Any, msg: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.said.append(" ".join(msg.split())[:300])

    return Kept()


# --- records: what an engine is


@dataclass(frozen=True, kw_only=True)
class Record:
    """What lies beside an engine, as JSON: which one it is, what it runs on, what it was built from."""

    format: int = _RECORD_FORMAT
    file: str  # the engine, in the same folder
    sha256: str  # over its bytes
    bytes: int
    form: str  # of the encoder, of FORMS
    graph: str  # sha256 of that form's graph in the bundle
    encoder: str  # "enc-..." of that form: an engine's tokens are that encoder's
    gpu: str
    compute_capability: str
    tensorrt: str  # its version; an engine runs with no other
    most: int  # pictures at once
    tolerance: float  # largest |difference| allowed on the golden `sentence`
    cosine: float  # least one of a token with what the same form gives on the CPU, over the golden pictures


def describe(
    data: bytes, *, form: str, graph: EncoderGraph, gpu: Gpu, tensorrt: str, most: int, tolerance: float, cosine: float
) -> Record:
    """The record of an engine just built."""
    sha256 = hashlib.sha256(data).hexdigest()
    model = "".join(char if char.isalnum() else "-" for char in gpu.name)
    return Record(
        file=f"{form}.{model}-{gpu.compute_capability}.trt-{tensorrt}.{graph.sha256[:12]}.engine", sha256=sha256,
        bytes=len(data), form=form, graph=graph.sha256, encoder=graph.encoder, gpu=gpu.name,
        compute_capability=gpu.compute_capability, tensorrt=tensorrt, most=most, tolerance=tolerance, cosine=cosine,
    )  # fmt: skip


def save(data: bytes, record: Record, folder: Path) -> Path:
    """Write the engine and then its record, each whole or not at all; the folder is made, for its owner alone."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = folder / record.file
    for target, content in ((path, data), (_record_of(path), json.dumps(asdict(record), indent=2).encode() + b"\n")):
        unfinished = target.with_name(f".{target.name}.{os.getpid()}")
        unfinished.write_bytes(content)
        unfinished.chmod(0o600)
        os.replace(unfinished, target)
    return path


def _record_of(engine: Path) -> Path:
    return engine.with_name(engine.name + ".json")


def read_record(path: Path) -> Record:
    """A record, read all or nothing. Raises BadBundle naming the file and the key."""
    again = "Build the engine again with `pocketlens-export tensorrt`."
    try:
        if path.stat().st_size > _MAX_RECORD_BYTES:
            raise BadBundle(f"{path}: larger than {_MAX_RECORD_BYTES} bytes, so no record of an engine. {again}")
        raw: Any = json.loads(path.read_bytes())
    except OSError as error:
        raise BadBundle(f"{path}: cannot be read ({error.strerror}). Check its permissions.") from error
    except (ValueError, RecursionError) as error:
        raise BadBundle(f"{path}: not valid JSON ({error}). {again}") from error
    if not isinstance(raw, dict):
        raise BadBundle(f"{path}: must hold a JSON object. {again}")
    held = cast("dict[str, Any]", raw)
    if held.get("format") != _RECORD_FORMAT:
        came = json.dumps(held.get("format"))[:40]
        raise BadBundle(f"{path}: key `format` is {came}, this Pocketlens reads {_RECORD_FORMAT}. {again}")
    kinds: dict[str, tuple[type, ...]] = {"int": (int,), "str": (str,), "float": (int, float)}
    wanted = {field.name: kinds[str(field.type)] for field in fields(Record)}
    for key in sorted(wanted.keys() ^ held.keys()):
        raise BadBundle(f"{path}: key `{key}` is {'missing' if key in wanted else 'unknown'}. {again}")
    for key, kind in wanted.items():
        if not isinstance(held[key], kind) or isinstance(held[key], bool):
            raise BadBundle(f"{path}: key `{key}` must not be {json.dumps(held[key])[:60]}. {again}")
    record = Record(**held)
    plain = record.file == Path(record.file).name and record.file not in ("", ".", "..")
    if not plain or record.most < 1 or not (math.isfinite(record.tolerance) and record.tolerance > 0):
        raise BadBundle(f"{path}: `file`, `most` or `tolerance` is out of range. {again}")
    return record


def default_folder() -> Path:
    """Where engines lie unless one says: $POCKETLENS_ENGINES, else in the user's cache."""
    if named := os.environ.get(FOLDER):
        return Path(named)
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "pocketlens" / "engines"


def find(folder: Path, form: str, graph: EncoderGraph, gpu: Gpu, tensorrt: str) -> tuple[Record, bytes]:
    """The engine of `graph` for this GPU and this TensorRT, and its record; its bytes are the ones recorded.

    Raises BadBundle: none is there, those there are for something else (both named), or it was altered."""
    precision = form.removesuffix(".symmetric")
    build = f"Build one here: `pocketlens-export tensorrt BUNDLE -o {folder} --precision {precision}`."
    if form not in FORMS:
        raise BadBundle(f"no engine can be built of {form}, only of {', '.join(FORMS)}. Ask for one of those.")
    reasons: list[str] = []
    for path in sorted(folder.glob("*.engine.json")) if folder.is_dir() else []:
        try:
            record = read_record(path)
        except BadBundle as broken:  # of a newer version, for one; the others may do
            reasons.append(str(broken))
            continue
        other = _other(record, form, graph, gpu, tensorrt)
        if other is None:
            return record, _read(folder / record.file, record)
        reasons.append(f"{record.file} {other}")
    why = "; ".join(reasons) or f"{folder} holds none"
    raise BadBundle(f"no TensorRT engine of {form} for this machine and bundle: {why}. {build}")


def _other(record: Record, form: str, graph: EncoderGraph, gpu: Gpu, tensorrt: str) -> str | None:
    """What makes an engine another than the one looked for; None: it is the one."""
    built_for = Gpu(name=record.gpu, compute_capability=record.compute_capability)
    if record.form != form:
        return f"is of {record.form}"
    if record.graph != graph.sha256:
        return f"was built from graph {record.graph[:12]}, the bundle's is {graph.sha256[:12]}"
    if record.encoder != graph.encoder:
        return f"makes tokens of {record.encoder}, the bundle's encoder is {graph.encoder}"
    if built_for != gpu:
        return f"was built for {built_for}, here is {gpu}"
    if record.tensorrt != tensorrt:
        return f"was built with TensorRT {record.tensorrt}, here is {tensorrt}"
    return None


def _read(path: Path, record: Record) -> bytes:
    """An engine's bytes. It is run as code, so nobody else may have been able to write it."""
    _refuse_if_others_write(path.parent)
    try:
        _refuse_if_others_write(path)
        data = path.read_bytes()
    except OSError as error:
        raise BadBundle(f"{path}: cannot be read ({error.strerror}), though its record names it.") from error
    came = hashlib.sha256(data).hexdigest()
    if came != record.sha256 or len(data) != record.bytes:
        raise BadBundle(
            f"{path}: altered since it was built: sha256 is {came}, its record says {record.sha256}. It is not run. "
            "Build it again with `pocketlens-export tensorrt`."
        )
    return data


def _refuse_if_others_write(path: Path) -> None:
    state = path.stat()
    mine = not hasattr(os, "getuid") or state.st_uid in (0, os.getuid())
    if not mine or state.st_mode & 0o022:
        raise BadBundle(
            f"{path}: others can write there, and an engine is run as code. Make it yours alone: "
            f"chown $USER, chmod go-w {path}"
        )


# --- running one


class Engine:
    """One TensorRT engine, with the same face as runtime.Graph.

    Attributes:
        path: the engine file.
        threads: always 1; the work is the GPU's.
        provider: TensorRT's version and the GPU.
        inputs, outputs: (ONNX type, shape) by tensor name.
        most: pictures it takes at once; more are run one batch after the other.
    """

    def __init__(self, path: Path, data: bytes, gpu: Gpu) -> None:
        """data: its bytes, checked. Raises BadBundle with TensorRT's or CUDA's reason if it cannot be started."""
        trt, self._cuda = load_tensorrt(), _load_cuda()
        self.path, self.threads = path, 1
        self.provider = f"TensorRT {trt.__version__} on {gpu}"
        log = logger(trt)
        try:
            self._runtime = trt.Runtime(log)
            engine = cast("_Engine | None", self._runtime.deserialize_cuda_engine(data))
        except TypeError as error:  # what pybind11 makes of a null pointer
            raise BadBundle(f"{path}: TensorRT cannot start here: {_first(log) or error}.") from error
        context = engine.create_execution_context() if engine is not None else None
        if engine is None or context is None:
            raise BadBundle(f"{path}: TensorRT {trt.__version__} cannot load it: {_first(log) or 'no reason given'}.")
        self._engine, self._context, self._lock = engine, context, Lock()
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        self._types = {name: np.dtype(trt.nptype(engine.get_tensor_dtype(name))) for name in names}
        shapes = {name: tuple(engine.get_tensor_shape(name)) for name in names}
        inputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        self.inputs = {name: (_onnx_type(self._types[name]), _free(shapes[name])) for name in inputs}
        self.outputs = {n: (_onnx_type(self._types[n]), _free(shapes[n])) for n in names if n not in inputs}
        self.most = min(engine.get_tensor_profile_shape(name, 0)[2][0] for name in inputs)
        self._stream = _done(self._cuda, self._cuda.cudaStreamCreate(), str(path))
        self._memory: dict[str, int] = {}
        self._end = weakref.finalize(self, _free_all, self._cuda, self._memory, self._stream)
        for name in names:
            count = self.most * math.prod(shapes[name][1:]) * self._types[name].itemsize
            self._memory[name] = int(_done(self._cuda, self._cuda.cudaMalloc(count), f"{path}: memory for {name}"))
            if not context.set_tensor_address(name, self._memory[name]):
                raise BadBundle(f"{path}: TensorRT does not take memory for {name}: {_first(log)}.")
        self._log = log

    def run(self, outputs: Sequence[str], feeds: Mapping[str, Tensor]) -> list[Tensor]:
        """The named outputs, in that order. Raises BadBundle with TensorRT's or CUDA's reason if it fails."""
        rows = len(next(iter(feeds.values())))
        if rows == 0:
            shapes = [self.outputs[name][1] for name in outputs]
            return [
                np.empty((0, *cast("list[int]", shape[1:])), self._types[n])
                for n, shape in zip(outputs, shapes, strict=True)
            ]
        with self._lock:  # one context, one set of buffers
            parts = [
                self._batch(outputs, {name: tensor[at : at + self.most] for name, tensor in feeds.items()})
                for at in range(0, rows, self.most)
            ]
        return [np.concatenate(part) for part in zip(*parts, strict=True)]

    def _batch(self, outputs: Sequence[str], feeds: Mapping[str, Tensor]) -> list[Tensor]:
        cuda, kinds, where = self._cuda, self._cuda.cudaMemcpyKind, str(self.path)
        given = {name: np.ascontiguousarray(tensor, self._types[name]) for name, tensor in feeds.items()}
        for name, tensor in given.items():
            if not self._context.set_input_shape(name, tensor.shape):
                raise BadBundle(f"{where}: does not take {name} of shape {tensor.shape}: {_first(self._log)}.")
            copied = cuda.cudaMemcpyAsync(
                self._memory[name], tensor.ctypes.data, tensor.nbytes, kinds.cudaMemcpyHostToDevice, self._stream
            )
            _done(cuda, copied, where)
        if not self._context.execute_async_v3(int(self._stream)):
            raise BadBundle(f"{where}: TensorRT could not run it: {_first(self._log) or 'no reason given'}.")
        made = [np.empty(tuple(self._context.get_tensor_shape(name)), self._types[name]) for name in outputs]
        for name, tensor in zip(outputs, made, strict=True):
            copied = cuda.cudaMemcpyAsync(
                tensor.ctypes.data, self._memory[name], tensor.nbytes, kinds.cudaMemcpyDeviceToHost, self._stream
            )
            _done(cuda, copied, where)
        _done(cuda, cuda.cudaStreamSynchronize(self._stream), where)
        return made


def _free_all(cuda: _Cuda, memory: dict[str, int], stream: Any) -> None:
    for pointer in memory.values():
        cuda.cudaFree(pointer)
    cuda.cudaStreamDestroy(stream)


def _first(log: Any) -> str:
    return str(log.said[0]) if log.said else ""


def _free(shape: tuple[int, ...]) -> list[int | str | None]:
    return ["batch" if size < 0 else size for size in shape]


def _onnx_type(kind: np.dtype[Any]) -> str:
    """As ONNX Runtime calls it."""
    return {"uint8": "tensor(uint8)", "float32": "tensor(float)"}.get(kind.name, f"tensor({kind.name})")


# --- which one runs


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """What runs an encoder. tolerance: on its golden vectors; notes: what a user should know about the choice."""

    graph: Runnable
    tolerance: float
    notes: list[str]


def choose(
    path: Path, form: str, graph: EncoderGraph, *, providers: Sequence[str] | None, threads: int, folder: Path
) -> Chosen:
    """What shall run the form `form` of an encoder, whose graph lies at `path`.

    providers: ONNX Runtime's names, or one of `engine` and `auto`; None = the CPU. What is named must run, or BadBundle
    is raised; `auto` takes the first that runs of engine, ONNX Runtime's TensorRT, its CUDA, the CPU, and the notes say
    why the earlier ones did not. folder: where engines lie."""
    asked = [name.lower() for name in providers or ()]
    if ENGINE in asked or AUTO in asked:
        if len(asked) > 1:
            raise BadBundle(f"provider `{ENGINE}` or `{AUTO}` stands alone; asked for {', '.join(asked)}.")
        if asked == [ENGINE]:
            return _engine(form, graph, folder)
        return _first_that_runs(path, form, graph, threads, folder)
    ran = _onnx_runtime(path, form, providers, threads, folder)
    return Chosen(graph=ran, tolerance=graph.tolerance, notes=_zero_points(form, ran.provider))


def _engine(form: str, graph: EncoderGraph, folder: Path) -> Chosen:
    version, gpu = str(load_tensorrt().__version__), this_gpu()
    record, data = find(folder, form, graph, gpu, version)
    engine = Engine(folder / record.file, data, gpu)
    return Chosen(graph=engine, tolerance=record.tolerance, notes=[])


def _first_that_runs(path: Path, form: str, graph: EncoderGraph, threads: int, folder: Path) -> Chosen:
    notes: list[str] = []
    try:
        return _engine(form, graph, folder)
    except BadBundle as why:
        notes.append(f"not with an engine: {why}")
    for provider in (TENSORRT, CUDA):
        if provider not in offered_providers():
            notes.append(f"not with {provider}: ONNX Runtime {runtime_version()} here does not have it")
            continue
        try:
            ran = _onnx_runtime(path, form, [provider], threads, folder)
        except BadBundle as why:
            notes.append(f"not with {provider}: {why}")
            continue
        return Chosen(graph=ran, tolerance=graph.tolerance, notes=notes + _zero_points(form, provider))
    ran = Graph(path, threads=threads)
    return Chosen(graph=ran, tolerance=graph.tolerance, notes=[*notes, f"runs on {CPU}"])


def _onnx_runtime(path: Path, form: str, providers: Sequence[str] | None, threads: int, folder: Path) -> Graph:
    if not providers:
        return Graph(path, threads=threads)
    options = provider_options(form, folder)
    if full_provider_name(providers[0]) == TENSORRT:  # it keeps engines of its own, and runs what it finds there
        kept = Path(str(options[TENSORRT]["trt_engine_cache_path"]))
        kept.mkdir(parents=True, exist_ok=True, mode=0o700)
        _refuse_if_others_write(kept)
    return Graph(path, threads=threads, providers=providers, options=options)


def _zero_points(form: str, provider: str) -> list[str]:
    if provider != TENSORRT or form not in ("int8", "int8.ort"):
        return []
    return [f"TensorRT does not read the zero points of {form}, so its layers run elsewhere: ask for int8.symmetric"]


def provider_options(form: str, folder: Path) -> dict[str, dict[str, object]]:
    """Options of ONNX Runtime's GPU providers for one form of an encoder, by provider.

    TensorRT's engines are kept below `folder`. With TensorRT 10 a graph's types are hints that its flags must allow;
    with 11 they are the law, and the flags say nothing new. CUDA computes float32 as float32, not as TF32."""
    kept = str(folder / "onnxruntime")
    return {
        TENSORRT: {
            "trt_engine_cache_enable": True,
            "trt_engine_cache_path": kept,
            "trt_timing_cache_enable": True,
            "trt_timing_cache_path": kept,
            "trt_max_workspace_size": WORKSPACE_BYTES,
            "trt_fp16_enable": form == "fp16",
            "trt_int8_enable": form.startswith("int8"),
        },
        CUDA: {"use_tf32": False},
    }
