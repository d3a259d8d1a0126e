"""TensorRT engines on the device: only the right one runs, what falls back says so. TensorRT and CUDA are stand-ins."""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from pocketlens_edge import engines, runtime
from pocketlens_edge.doctor import examine, replay
from pocketlens_edge.encoder import Encoder
from pocketlens_edge.engines import Gpu, describe, find, read_record, save
from pocketlens_wire.errors import BadBundle
from pocketlens_wire.manifest import read_edge

ORIN = Gpu(name="Orin", compute_capability="8.7")
MOST = 4


@pytest.fixture
def world(nvidia: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Any:
    return nvidia.install(monkeypatch, nvidia.World())


@pytest.fixture
def folder(bundle: Path, nvidia: ModuleType, toy: SimpleNamespace, tmp_path: Path) -> Path:
    """Engines of the toy bundle: one, as the export room leaves it."""
    graph = read_edge(bundle).graphs["fp32"]
    shape = [[rows, toy.side, toy.side, 3] for rows in (1, 1, MOST)]
    data = nvidia.plan(nvidia.World(), (bundle / "edge" / graph.file).read_bytes(), {"pixels": shape})
    record = describe(
        data, form="fp32", graph=graph, gpu=ORIN, tensorrt="10.3.0", most=MOST, tolerance=2e-4, cosine=1.0
    )
    save(data, record, tmp_path / "engines")
    return tmp_path / "engines"


@pytest.fixture
def load(bundle: Path, folder: Path) -> Callable[..., Encoder]:
    def made(provider: str, **options: Any) -> Encoder:
        return Encoder.load(bundle, providers=[provider], engines=folder, **options)

    return made


def the_record(folder: Path) -> Path:
    (path,) = folder.glob("*.json")
    return path


def the_engine(folder: Path) -> Path:
    (path,) = folder.glob("*.engine")
    return path


# --- running


def test_an_engine_gives_the_encoders_tokens_and_keeps_its_id(world, load, folder, bundle, encoder, toy):
    engine = load("engine")
    assert engine.provider == "TensorRT 10.3.0 on Orin (8.7)" and engine.notes == []
    assert engine.encoder_id == encoder.encoder_id and engine.form == "fp32"
    pixels = toy.golden_pixels()  # six: more than it takes at once
    np.testing.assert_allclose(engine.encode_pixels(pixels), encoder.encode_pixels(pixels), atol=toy.tolerance)
    assert engine.encode_pixels(pixels[:0]).shape == (0, toy.count, toy.width)
    replayed = replay(engine, bundle / "edge")
    assert replayed.ok and replayed.tolerance == 2e-4  # the engine's own, not the graph's
    assert all(check.ok for check in examine(bundle, providers=["ENGINE"], engines=folder))


def test_what_it_took_of_the_gpu_it_gives_back(world, load, toy):
    engine = load("engine")
    engine.encode_pixels(toy.golden_pixels())
    assert len(world.memory) == 2
    del engine
    gc.collect()
    assert world.memory == {}


def test_an_engine_that_stops_running_is_named(world, load, toy):
    engine = load("engine")
    world.runs = False
    with pytest.raises(BadBundle, match=r"\.engine: TensorRT could not run it"):
        engine.encode_pixels(toy.golden_pixels())


# --- only the right one


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"gpu": "NVIDIA H100", "capability": (9, 0)}, r"was built for Orin \(8\.7\), here is NVIDIA H100 \(9\.0\)"),
        ({"capability": (8, 9)}, r"was built for Orin \(8\.7\), here is Orin \(8\.9\)"),
        ({"version": "10.16.1.11"}, r"was built with TensorRT 10\.3\.0, here is 10\.16\.1\.11"),
        ({"version": "11.4.0.106"}, r"was built with TensorRT 10\.3\.0, here is 11\.4\.0\.106"),
    ],
)
def test_an_engine_for_another_machine_is_refused(nvidia, monkeypatch, load, folder, change, said):
    nvidia.install(monkeypatch, nvidia.World(**change))
    with pytest.raises(BadBundle, match=said) as refused:
        load("engine")
    assert f"pocketlens-export tensorrt BUNDLE -o {folder} --precision fp32" in str(refused.value)


def test_an_engine_of_another_bundle_is_refused_with_both_graphs_or_ids(world, folder, bundle):
    graph = read_edge(bundle).graphs["fp32"]
    other = replace(graph, sha256="0" * 64)
    with pytest.raises(BadBundle, match=rf"graph {graph.sha256[:12]}, the bundle's is 000000000000"):
        find(folder, "fp32", other, ORIN, "10.3.0")
    with pytest.raises(BadBundle, match=rf"tokens of {graph.encoder}, the bundle's encoder is enc-other"):
        find(folder, "fp32", replace(graph, encoder="enc-other"), ORIN, "10.3.0")
    with pytest.raises(BadBundle, match=r"is of fp32"):
        find(folder, "fp16", graph, ORIN, "10.3.0")
    with pytest.raises(BadBundle, match=r"no engine can be built of int8, only of .*int8\.symmetric"):
        find(folder, "int8", graph, ORIN, "10.3.0")


def test_without_engines_it_says_where_it_looked_and_what_builds_one(world, bundle, tmp_path):
    with pytest.raises(BadBundle, match=rf"{tmp_path}/none holds none.*pocketlens-export tensorrt"):
        Encoder.load(bundle, providers=["engine"], engines=tmp_path / "none")


def test_the_right_one_is_found_among_others(world, load, folder):
    record = json.loads(the_record(folder).read_text())
    for number, gpu in enumerate(["A", "Z"]):
        (folder / f"{number}{gpu}.engine.json").write_text(json.dumps({**record, "gpu": gpu, "file": "none.engine"}))
    assert load("engine").provider.startswith("TensorRT")


# --- engines are run as code


@pytest.mark.parametrize("damage", [lambda d: d[:-1], lambda d: d[:9] + b"!" + d[10:], lambda d: b""])
def test_an_altered_engine_is_not_run(world, load, folder, damage):
    engine = the_engine(folder)
    engine.write_bytes(damage(engine.read_bytes()))
    with pytest.raises(BadBundle, match=r"altered since it was built: sha256 is .* It is not run"):
        load("engine")


@pytest.mark.parametrize("which", ["folder", "file"])
def test_where_others_can_write_no_engine_is_run(world, load, folder, which):
    path = folder if which == "folder" else the_engine(folder)
    path.chmod(path.stat().st_mode | 0o020)
    with pytest.raises(BadBundle, match=r"others can write there.*chmod go-w"):
        load("engine")


def test_engines_are_written_for_their_owner_alone(folder):
    assert folder.stat().st_mode & 0o077 == 0
    assert all(path.stat().st_mode & 0o077 == 0 for path in folder.iterdir())
    assert len(list(folder.iterdir())) == 2


def test_an_engine_that_is_gone_is_named(world, load, folder):
    the_engine(folder).unlink()
    with pytest.raises(BadBundle, match=r"\.engine: cannot be read"):
        load("engine")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": 2}, "key `format` is 2, this Pocketlens reads 1"),
        ({"format": None}, "key `format` is null"),
        ({"more": 1}, "key `more` is unknown"),
        ({"sha256": None}, "key `sha256` must not be null"),
        ({"most": "8"}, 'key `most` must not be "8"'),
        ({"most": True}, "key `most` must not be true"),
        ({"most": 0}, "out of range"),
        ({"tolerance": float("nan")}, "out of range"),
        ({"tolerance": -1.0}, "out of range"),
        ({"file": "../there.engine"}, "out of range"),
        ({"file": "/etc/there.engine"}, "out of range"),
        ({"file": ".."}, "out of range"),
    ],
)
def test_a_record_that_is_none_is_refused(folder, change, said):
    path = the_record(folder)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(BadBundle, match=said) as refused:
        read_record(path)
    assert path.name in str(refused.value) and "Build the engine again" in str(refused.value)


@pytest.mark.parametrize("text", ["", "{", "[1]", "[" * 100_000, '"x"', " " * 70_000])
def test_a_record_that_is_not_json_is_refused(folder, text):
    path = the_record(folder)
    path.write_text(text)
    with pytest.raises(BadBundle, match=path.name):
        read_record(path)


def test_a_key_that_is_missing_is_named(folder):
    path = the_record(folder)
    held = json.loads(path.read_text())
    for key in held:
        path.write_text(json.dumps({name: value for name, value in held.items() if name != key}))
        with pytest.raises(BadBundle, match=f"key `{key}` is"):
            read_record(path)


def test_a_record_reads_back_as_it_was(folder):
    record = read_record(the_record(folder))
    assert asdict(record) == json.loads(the_record(folder).read_text()) and record.most == MOST


def test_bytes_that_tensorrt_does_not_take_are_named(world, load, folder):
    """Recorded, whole, and still no engine: TensorRT's own reason is passed on."""
    record = read_record(the_record(folder))
    graph = SimpleNamespace(sha256=record.graph, encoder=record.encoder)
    of = {"form": "fp32", "graph": graph, "gpu": ORIN, "tensorrt": "10.3.0", "most": MOST}
    save(b"no plan", describe(b"no plan", **of, tolerance=1.0, cosine=1.0), folder)  # type: ignore[arg-type]
    with pytest.raises(BadBundle, match=r"TensorRT 10\.3\.0 cannot load it: The engine plan file is not compatible"):
        load("engine")


# --- what is missing


def test_without_tensorrt_it_says_how_to_install_it(load, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(BadBundle, match=r"not installed here.*JetPack's.*pypi\.nvidia\.com tensorrt"):
        load("engine")


@pytest.mark.parametrize("version", ["8.6.1", "9.3.0", "12.0.0", "none"])
def test_a_version_this_is_not_written_for_is_refused(nvidia, monkeypatch, load, version):
    world = nvidia.World()
    nvidia.install(monkeypatch, world)
    monkeypatch.setattr(sys.modules["tensorrt"], "__version__", version)
    with pytest.raises(BadBundle, match=f"TensorRT {version} is installed here; Pocketlens needs version 10 or 11"):
        load("engine")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"driver": False}, "No GPU can be used here: CUDA says cudaErrorInsufficientDriver"),
        ({"gpus": 0}, "CUDA counts none"),
        ({"starts": False}, "TensorRT cannot start here: CUDA initialization failure"),
    ],
)
def test_without_a_gpu_it_says_so(nvidia, monkeypatch, load, change, said):
    nvidia.install(monkeypatch, nvidia.World(**change))
    with pytest.raises(BadBundle, match=said):
        load("engine")


def test_without_cuda_python_it_says_how_to_install_it(world, monkeypatch, load):
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    with pytest.raises(BadBundle, match=r"cuda-python is not installed here.*pip install 'cuda-python"):
        load("engine")


# --- the rule


TRUE_SESSION = runtime._ort.InferenceSession


class Offered:
    """An ONNX Runtime that has GPU providers, of which those in `start` start. Sessions run on the CPU all the same."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, offers: list[str], start: list[str]) -> None:
        self.asked: list[list[tuple[str, dict[str, object]]]] = []
        self.fallbacks: list[object] = []

        def session(path: str, *, sess_options: Any, providers: Any, enable_fallback: object) -> Any:
            self.asked.append(providers)
            self.fallbacks.append(enable_fallback)
            wanted = providers[0][0]
            if wanted == runtime.TENSORRT and wanted not in start:  # its way: it raises
                raise RuntimeError("/onnxruntime_src/x.cc:729 void f(A&, const B&) Please install TensorRT libraries")
            made = TRUE_SESSION(path, sess_options=sess_options, providers=[runtime.CPU])
            ran = [name for name, _ in providers if name in start] + [runtime.CPU]  # CUDA's way: it is left out
            monkeypatch.setattr(made, "get_providers", lambda: ran)
            return made

        monkeypatch.setattr(runtime._ort, "InferenceSession", session)
        monkeypatch.setattr(runtime._ort, "get_available_providers", lambda: [*offers, runtime.CPU])


GPU_PROVIDERS = [runtime.TENSORRT, runtime.CUDA]


def test_auto_takes_an_engine_first(world, load, monkeypatch):
    offered = Offered(monkeypatch, offers=GPU_PROVIDERS, start=GPU_PROVIDERS)
    assert load("auto").provider == "TensorRT 10.3.0 on Orin (8.7)"
    assert offered.asked == []


def test_then_onnx_runtimes_tensorrt_and_says_why_not_an_engine(nvidia, load, monkeypatch, folder):
    nvidia.install(monkeypatch, nvidia.World(version="11.4.0.106"))
    offered = Offered(monkeypatch, offers=GPU_PROVIDERS, start=GPU_PROVIDERS)
    encoder = load("auto")
    assert encoder.provider == runtime.TENSORRT
    (note,) = encoder.notes
    assert "not with an engine" in note and "built with TensorRT 10.3.0, here is 11.4.0.106" in note
    ((first, options), (second, cuda)) = offered.asked[0]
    assert (first, second) == (runtime.TENSORRT, runtime.CUDA)
    assert options["trt_engine_cache_path"] == str(folder / "onnxruntime") and cuda == {"use_tf32": False}
    assert (folder / "onnxruntime").stat().st_mode & 0o077 == 0


def test_then_its_cuda_then_the_cpu_each_with_its_reason(load, monkeypatch, toy):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    Offered(monkeypatch, offers=GPU_PROVIDERS, start=[runtime.CUDA])
    encoder = load("auto")
    assert encoder.provider == runtime.CUDA
    assert [note.split(":")[0] for note in encoder.notes] == ["not with an engine", f"not with {runtime.TENSORRT}"]
    assert "Please install TensorRT libraries" in encoder.notes[1] and "onnxruntime_src" not in encoder.notes[1]
    offered = Offered(monkeypatch, offers=GPU_PROVIDERS, start=[])
    encoder = load("auto")
    assert encoder.provider == runtime.CPU and len(encoder.notes) == 4
    assert encoder.notes[-1] == "runs on CPUExecutionProvider"
    assert set(offered.fallbacks) == {0}  # or it would print to stdout and choose for us
    assert encoder.encode_pixels(toy.golden_pixels()).shape == (6, toy.count, toy.width)
    Offered(monkeypatch, offers=[], start=[])
    assert all("does not have it" in note for note in load("auto").notes[1:3])


def test_auto_does_not_run_an_altered_engine_and_says_so(world, load, folder):
    engine = the_engine(folder)
    engine.write_bytes(engine.read_bytes() + b"!")
    encoder = load("auto")
    assert encoder.provider == runtime.CPU and "altered since it was built" in encoder.notes[0]


@pytest.mark.parametrize("provider", ["engine", "tensorrt", "cuda"])
def test_what_is_named_runs_or_is_an_error(load, monkeypatch, provider):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    Offered(monkeypatch, offers=GPU_PROVIDERS, start=[])
    with pytest.raises(BadBundle):
        load(provider)


def test_engine_and_auto_stand_alone(bundle):
    with pytest.raises(BadBundle, match="stands alone; asked for auto, cpu"):
        Encoder.load(bundle, providers=["auto", "cpu"])


def test_the_cpu_is_what_runs_unless_asked(world, bundle, folder):
    assert Encoder.load(bundle, engines=folder).provider == runtime.CPU


@pytest.mark.parametrize(
    ("form", "fp16", "int8"), [("fp32", False, False), ("fp16", True, False), ("int8.symmetric", False, True)]
)
def test_options_follow_from_the_form(tmp_path, form, fp16, int8):
    options = engines.provider_options(form, tmp_path)
    tensorrt = options[runtime.TENSORRT]
    assert tensorrt["trt_fp16_enable"] is fp16 and tensorrt["trt_int8_enable"] is int8
    assert tensorrt["trt_engine_cache_enable"] is True and tensorrt["trt_max_workspace_size"] == 1 << 30
    # Every name is one that the provider's library of onnxruntime-gpu 1.31.1 holds.
    known = {
        "trt_engine_cache_enable", "trt_engine_cache_path", "trt_fp16_enable", "trt_int8_enable",
        "trt_max_workspace_size", "trt_timing_cache_enable", "trt_timing_cache_path",
    }  # fmt: skip
    assert set(tensorrt) <= known and set(options[runtime.CUDA]) <= {"use_tf32"}


def test_zero_points_are_warned_of_where_tensorrt_is_asked(load, monkeypatch):
    assert "ask for int8.symmetric" in engines._zero_points("int8", runtime.TENSORRT)[0]
    assert engines._zero_points("int8.symmetric", runtime.TENSORRT) == []
    assert engines._zero_points("int8", runtime.CUDA) == []


def test_a_cache_that_others_can_write_is_not_used(load, monkeypatch, folder):
    Offered(monkeypatch, offers=GPU_PROVIDERS, start=GPU_PROVIDERS)
    (folder / "onnxruntime").mkdir()
    (folder / "onnxruntime").chmod(0o777)
    with pytest.raises(BadBundle, match="others can write there"):
        load("tensorrt")


# --- as a user meets it


def test_commands_say_what_runs_and_why(run, photo, folder, world):
    ran = run("encode", photo, "--provider", "engine", "--engines", folder, "--json")
    assert ran.code == 0 and ran.json["provider"] == "TensorRT 10.3.0 on Orin (8.7)" and ran.json["notes"] == []
    world.version = "10.9.0"
    sys.modules["tensorrt"].__version__ = "10.9.0"
    ran = run("encode", photo, "--provider", "auto", "--engines", folder, "--json")
    assert ran.code == 0 and ran.json["provider"] == runtime.CPU
    assert "built with TensorRT 10.3.0, here is 10.9.0" in ran.json["notes"][0]
    assert ran.err.startswith("note: not with an engine") and ran.err.count("note: ") == 4
    ran = run("encode", photo, "--provider", "engine", "--engines", folder)
    assert ran.code == 1 and len(ran.err.splitlines()) == 1 and "pocketlens-export tensorrt" in ran.err


def test_the_doctor_names_the_engine_or_why_there_is_none(run, folder, world):
    ran = run("doctor", "--provider", "engine", "--engines", folder, "--json")
    assert ran.code == 0 and ran.json["checks"]["encoder"]["provider"] == "TensorRT 10.3.0 on Orin (8.7)"
    assert ran.json["checks"]["golden"]["tolerance"] == 2e-4
    world.factor = 1.01
    ran = run("doctor", "--provider", "engine", "--engines", folder, "--json")
    assert ran.code == 1 and ran.json["checks"]["golden"]["ok"] is False
    the_engine(folder).unlink()
    ran = run("doctor", "--provider", "auto", "--engines", folder)
    assert ran.code == 0 and "not with an engine" in " ".join(ran.out.split())


def test_search_asks_with_an_engines_tokens(run, photo, folder, world, server, service):
    ran = run("search", photo, "--server", server, "--provider", "engine", "--engines", folder)
    assert ran.code == 0, ran.err
    assert service.requests[0].encoder == read_record(the_record(folder)).encoder


def test_engines_lie_in_the_users_cache_unless_said(monkeypatch, tmp_path):
    for name in (engines.FOLDER, "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert engines.default_folder() == tmp_path / ".cache" / "pocketlens" / "engines"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "c"))
    assert engines.default_folder() == tmp_path / "c" / "pocketlens" / "engines"
    monkeypatch.setenv(engines.FOLDER, str(tmp_path / "e"))
    assert engines.default_folder() == tmp_path / "e"


# --- the stand-in


@pytest.mark.parametrize("version", ["10.3.0", "11.4.0.106"])
def test_the_stand_in_has_only_what_the_real_bindings_have(nvidia, version):
    fake = nvidia.tensorrt(nvidia.World(version=version))
    shared, gone = nvidia.API["shared"], nvidia.API["gone"]
    looked = 0
    for name, made in vars(fake).items():
        if name.startswith("__"):
            continue
        assert name in shared["module"], name
        if not isinstance(made, type):
            continue
        for member in (each for each in vars(made) if not each.startswith("_")):
            looked += 1
            old = version.startswith("10") and member in gone.get(name, [])
            assert member in shared[name] or old or member == "Severity", f"{name}.{member}"
    assert looked > 30
    assert set(fake.ILogger.Severity.__members__) == set(shared["ILogger.Severity"])
