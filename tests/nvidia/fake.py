"""A stand-in for `tensorrt` and `cuda.bindings.runtime`, which need a GPU. It is no TensorRT: it reads graphs by the
parser's published list (operators.json), keeps an engine to the GPU and version it was built for, and computes on the
CPU through ONNX Runtime. It offers only names that the real bindings have (api.json, and a test that compares)."""

from __future__ import annotations

import ctypes
import json
import sys
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

HERE = Path(__file__).parent
API = json.loads((HERE / "api.json").read_text())
LIST = json.loads((HERE / "operators.json").read_text())
TYPES = {
    TensorProto.FLOAT: "FP32", TensorProto.FLOAT16: "FP16", TensorProto.BFLOAT16: "BF16", TensorProto.INT8: "INT8",
    TensorProto.INT32: "INT32", TensorProto.INT64: "INT64", TensorProto.BOOL: "BOOL", TensorProto.UINT8: "UINT8",
}  # fmt: skip


def refusals(model: onnx.ModelProto) -> list[tuple[str, str, str]]:
    """(operator, node, reason) of what the published list says TensorRT's parser does not take."""
    found = []
    constants = {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}
    inferred = onnx.shape_inference.infer_shapes(model).graph
    types = {each.name: each.type.tensor_type.elem_type for each in (*inferred.input, *inferred.value_info)}
    types |= {each.name: each.data_type for each in model.graph.initializer}
    opset = next(each.version for each in model.opset_import if not each.domain)
    if not LIST["opset"][0] <= opset <= LIST["opset"][1]:
        found.append(("", "", f"opset {opset}"))
    for node in model.graph.node:
        if node.domain not in ("", "ai.onnx") or node.op_type not in LIST["operators"]:
            found.append((node.op_type, node.name, f"no importer registered for {node.domain}::{node.op_type}"))
            continue
        known = LIST["operators"][node.op_type].split(",")
        kind = TYPES.get(types.get(node.input[0], TensorProto.FLOAT)) if node.input else "FP32"
        if kind not in known:
            found.append((node.op_type, node.name, f"does not take {kind}, only {', '.join(known)}"))
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") and len(node.input) > 2:
            zero_point = constants[node.input[2]]
            if zero_point.any() or zero_point.dtype != np.int8:
                found.append((node.op_type, node.name, "zero point must be 0, of int8"))
        if node.op_type == "LayerNormalization" and len(node.output) > 1:
            found.append((node.op_type, node.name, "only the first output is supported"))
    return found


@dataclass
class World:
    """The machine that is pretended."""

    version: str = "10.3.0"
    gpu: str = "Orin"
    capability: tuple[int, int] = (8, 7)
    gpus: int = 1
    driver: bool = True
    starts: bool = True  # TensorRT itself; it gives null pointers otherwise
    builds: bool = True
    runs: bool = True
    factor: float = 1.0  # on what engines give
    memory: dict[int, Any] = field(default_factory=dict)
    built: list[SimpleNamespace] = field(default_factory=list)

    @property
    def stamp(self) -> dict[str, Any]:
        return {"version": self.version, "gpu": self.gpu, "capability": list(self.capability)}


def plan(world: World, model: bytes, profile: dict[str, Any]) -> bytes:
    return json.dumps({**world.stamp, "profile": profile}).encode() + b"\n" + model


def install(monkeypatch: Any, world: World) -> World:
    """Put both modules where an import finds them."""
    monkeypatch.setitem(sys.modules, "tensorrt", tensorrt(world))
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", cuda(world))
    return world


class Null:
    """What pybind11 does when a factory gives a null pointer."""

    def __init__(self, world: World, logger: Any, severity: Any) -> None:
        if not world.starts:
            logger.log(severity.ERROR, "CUDA initialization failure with error: 35")
            raise TypeError("pybind11::init(): factory function returned nullptr")


def tensorrt(world: World) -> ModuleType:
    from pocketlens_edge.runtime import CPU, onnxruntime  # that one is told to report to nobody

    session = onnxruntime.InferenceSession  # before a test puts another there
    trt: Any = ModuleType("tensorrt")
    trt.__version__ = world.version
    new = int(world.version.partition(".")[0]) >= 11
    flags = ["STRONGLY_TYPED"] if new else ["EXPLICIT_BATCH", "STRONGLY_TYPED"]
    trt.NetworkDefinitionCreationFlag = IntEnum("NetworkDefinitionCreationFlag", flags, start=0)
    trt.BuilderFlag = Enum("BuilderFlag", ["TF32"])
    trt.MemoryPoolType = Enum("MemoryPoolType", ["WORKSPACE"])
    trt.TensorIOMode = Enum("TensorIOMode", ["NONE", "INPUT", "OUTPUT"])
    trt.DataType = Enum("DataType", ["FLOAT", "UINT8"])
    trt.nptype = {trt.DataType.FLOAT: np.float32, trt.DataType.UINT8: np.uint8}.__getitem__

    class ILogger:
        Severity = Enum("Severity", ["INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE"])

        def __init__(self) -> None:
            self.ready = True

    class Builder(Null):
        def __init__(self, logger: Any) -> None:
            assert logger.ready, "the base of a logger must be initialised"
            super().__init__(world, logger, ILogger.Severity)
            self.logger = logger

        def create_network(self, flags: int = 0) -> Any:
            return INetworkDefinition(flags)

        def create_builder_config(self) -> Any:
            return IBuilderConfig()

        def create_optimization_profile(self) -> Any:
            return IOptimizationProfile()

        def build_serialized_network(self, network: Any, config: Any) -> bytes | None:
            if not world.builds:
                self.logger.log(ILogger.Severity.ERROR, "Could not find any implementation for node Conv_0")
                return None
            (profile,) = config._profiles
            config._cache.learned += b"times"
            world.built.append(SimpleNamespace(
                strongly_typed=bool(network._flags & 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)),
                cleared=config._cleared, pools=config._pools, profile=profile._shapes, began_with=config._cache.began,
            ))  # fmt: skip
            return plan(world, network._model, profile._shapes)

    class INetworkDefinition:
        def __init__(self, flags: int) -> None:
            self._flags = flags

        @property
        def num_inputs(self) -> int:
            return len(onnx.load_from_string(self._model).graph.input)

        def get_input(self, index: int) -> Any:
            given = onnx.load_from_string(self._model).graph.input[index]
            shape = tuple(each.dim_value or -1 for each in given.type.tensor_type.shape.dim)
            return SimpleNamespace(name=given.name, shape=shape)

    class ParserError:
        def __init__(self, refused: tuple[str, str, str]) -> None:
            self._refused = refused

        def node_operator(self) -> str:
            return self._refused[0]

        def node_name(self) -> str:
            return self._refused[1]

        def desc(self) -> str:
            return self._refused[2]

    class OnnxParser:
        def __init__(self, network: Any, logger: Any) -> None:
            self._network, self._refused = network, []

        def parse(self, model: bytes, path: str | None = None) -> bool:
            self._network._model = model
            self._refused = refusals(onnx.load_from_string(model))
            return not self._refused

        @property
        def num_errors(self) -> int:
            return len(self._refused)

        def get_error(self, index: int) -> Any:
            return ParserError(self._refused[index])

    class ITimingCache:
        def __init__(self, began: bytes) -> None:
            self.began, self.learned = began, began

        def serialize(self) -> bytes:
            return json.dumps(world.stamp).encode() + b"\n"

    class IBuilderConfig:
        def __init__(self) -> None:
            self._pools, self._cleared, self._profiles, self._cache = {}, [], [], None

        def set_memory_pool_limit(self, pool: Any, pool_size: int) -> None:
            self._pools[pool.name] = pool_size

        def clear_flag(self, flag: Any) -> None:
            self._cleared.append(flag.name)

        def add_optimization_profile(self, profile: Any) -> int:
            self._profiles.append(profile)
            return len(self._profiles) - 1

        def create_timing_cache(self, serialized_timing_cache: bytes) -> Any:
            whole = not serialized_timing_cache or serialized_timing_cache.startswith(b"{")
            return ITimingCache(serialized_timing_cache) if whole else None

        def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
            if cache.began and json.loads(cache.began) != world.stamp and not ignore_mismatch:
                return False
            self._cache = cache
            return True

        def get_timing_cache(self) -> Any:
            return self._cache

    class IOptimizationProfile:
        def __init__(self) -> None:
            self._shapes: dict[str, Any] = {}

        def set_shape(self, input: str, min: tuple, opt: tuple, max: tuple) -> None:  # noqa: A002
            self._shapes[input] = [list(min), list(opt), list(max)]

    class Runtime(Null):
        def __init__(self, logger: Any) -> None:
            super().__init__(world, logger, ILogger.Severity)
            self._logger = logger

        def deserialize_cuda_engine(self, serialized_engine: bytes) -> Any:
            stamp, _, model = serialized_engine.partition(b"\n")
            try:
                said = json.loads(stamp)
                profile = said.pop("profile")
            except (ValueError, KeyError):
                said = profile = None
            if said != world.stamp:
                self._logger.log(ILogger.Severity.ERROR, "The engine plan file is not compatible, please rebuild.")
                return None
            return ICudaEngine(model, profile)

    class ICudaEngine:
        def __init__(self, model: bytes, profile: dict[str, Any]) -> None:
            self._profile, self._session = profile, session(model, providers=[CPU])
            graph = onnx.load_from_string(model).graph
            self._tensors = {each.name: each for each in (*graph.input, *graph.output)}
            self._inputs = {each.name for each in graph.input}

        @property
        def num_io_tensors(self) -> int:
            return len(self._tensors)

        def get_tensor_name(self, index: int) -> str:
            return list(self._tensors)[index]

        def get_tensor_mode(self, name: str) -> Any:
            return trt.TensorIOMode.INPUT if name in self._inputs else trt.TensorIOMode.OUTPUT

        def get_tensor_dtype(self, name: str) -> Any:
            kinds = {TensorProto.UINT8: trt.DataType.UINT8, TensorProto.FLOAT: trt.DataType.FLOAT}
            return kinds[self._tensors[name].type.tensor_type.elem_type]

        def get_tensor_shape(self, name: str) -> tuple[int, ...]:
            return tuple(each.dim_value or -1 for each in self._tensors[name].type.tensor_type.shape.dim)

        def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[Any]:
            assert profile_index == 0 and name in self._inputs
            return self._profile[name]

        def create_execution_context(self) -> Any:
            return IExecutionContext(self)

    class IExecutionContext:
        def __init__(self, engine: Any) -> None:
            self._engine, self._addresses, self._shapes = engine, {}, {}

        def set_input_shape(self, name: str, shape: tuple) -> bool:
            least, _, most = self._engine._profile[name]
            self._shapes[name] = tuple(shape)
            return all(a <= b <= c for a, b, c in zip(least, shape, most, strict=True))

        def get_tensor_shape(self, name: str) -> tuple[int, ...]:
            rows = next(iter(self._shapes.values()))[0]
            return (rows, *self._engine.get_tensor_shape(name)[1:])

        def set_tensor_address(self, name: str, memory: int) -> bool:
            self._addresses[name] = memory
            return memory in world.memory

        def execute_async_v3(self, stream_handle: int) -> bool:
            assert stream_handle == STREAM
            if not world.runs:
                return False
            feeds = {name: self._array(name) for name in self._engine._inputs}
            session = self._engine._session
            for given, made in zip(session.get_outputs(), session.run(None, feeds), strict=True):
                self._array(given.name)[:] = made * world.factor
            return True

        def _array(self, name: str) -> np.ndarray:
            kind = np.dtype(trt.nptype(self._engine.get_tensor_dtype(name)))
            shape = self._shapes.get(name) or self.get_tensor_shape(name)
            held = np.frombuffer(world.memory[self._addresses[name]], kind)
            return held[: int(np.prod(shape))].reshape(shape)

    for made in (ILogger, Builder, INetworkDefinition, ParserError, OnnxParser, ITimingCache, IBuilderConfig):
        setattr(trt, made.__name__, made)
    for made in (IOptimizationProfile, Runtime, ICudaEngine, IExecutionContext):
        setattr(trt, made.__name__, made)
    return trt


STREAM = 77


class Stream:
    def __int__(self) -> int:
        return STREAM


class Error(IntEnum):
    cudaSuccess = 0  # noqa: N815
    cudaErrorMemoryAllocation = 2  # noqa: N815
    cudaErrorInsufficientDriver = 35  # noqa: N815


def cuda(world: World) -> ModuleType:
    """Every call gives (error, value), and None for a value where it failed, as the real ones do."""
    made: Any = ModuleType("cuda.bindings.runtime")
    good = Error.cudaSuccess

    def ask(value: Any) -> tuple[Any, Any]:
        return (good, value) if world.driver else (Error.cudaErrorInsufficientDriver, None)

    def allocate(size: int) -> tuple[Any, Any]:
        if not world.driver:
            return Error.cudaErrorInsufficientDriver, None
        if size > 1 << 30:
            return Error.cudaErrorMemoryAllocation, None
        held = ctypes.create_string_buffer(size)
        world.memory[ctypes.addressof(held)] = held
        return good, ctypes.addressof(held)

    def copy(to: int, of: int, count: int, kind: str, stream: Any) -> tuple[Any]:
        held = world.memory[to if kind == "to device" else of]
        assert count <= len(held) and isinstance(stream, Stream)
        ctypes.memmove(to, of, count)
        return (good,)

    def free(pointer: int) -> tuple[Any]:
        del world.memory[pointer]
        return (good,)

    made.cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice="to device", cudaMemcpyDeviceToHost="to host")
    made.cudaGetDeviceCount = lambda: ask(world.gpus)
    made.cudaGetDevice = lambda: ask(0)
    made.cudaGetDeviceProperties = lambda device: ask(SimpleNamespace(
        name=world.gpu.encode(), major=world.capability[0], minor=world.capability[1]
    ))  # fmt: skip
    made.cudaGetErrorName = lambda error: (good, error.name.encode())
    made.cudaGetErrorString = lambda error: (good, b"driver version is insufficient")
    made.cudaMalloc, made.cudaFree, made.cudaMemcpyAsync = allocate, free, copy
    made.cudaStreamCreate = lambda: ask(Stream())
    made.cudaStreamSynchronize = made.cudaStreamDestroy = lambda stream: (good,)
    return made
