"""What the room promises its neighbours: light, one file per heavy library."""

import ast
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pocketlens_cloud

HOME = Path(next(iter(pocketlens_cloud.__path__)))
HEAVY = {
    "onnxruntime": "runtime.py",
    "tokenizers": "tokenizer.py",
    "qdrant_edge": "embedded.py",
    "prometheus_client": "metrics.py",
    "grpc_health": "health.py",
    "grpc_reflection": "operations.py",
    "pythonjsonlogger": "logs.py",
    "opentelemetry": "traces.py",
    "qdrant_client": "qdrant.py",
    "fsspec": "stores.py",
    "ray": "ray_engine.py",
}


def test_each_heavy_library_is_imported_in_exactly_one_file():
    users = defaultdict(set)
    for file in HOME.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                users[name.split(".")[0]].add(file.name)
    assert {library: users[library] for library in HEAVY} == {lib: {file} for lib, file in HEAVY.items()}


def test_the_service_stays_light():
    files = (file.relative_to(HOME.parent).with_suffix("") for file in HOME.rglob("*.py") if file.stem != "__main__")
    modules = ", ".join(".".join(file.parts).removesuffix(".__init__") for file in files)
    code = f"import sys, {modules}; print(*sys.modules)"
    loaded = set(subprocess.check_output([sys.executable, "-c", code], text=True).split())
    assert loaded.isdisjoint({"torch", "onnx", "transformers", "pocketlens_edge", "pocketlens_samples"})


def test_help_does_not_wait_for_models_and_engines():
    code = "import sys, pocketlens_cloud.cli; print(*sys.modules)"
    loaded = set(subprocess.check_output([sys.executable, "-c", code], text=True).split())
    shells = {"grpc_health", "grpc_reflection"}  # gRPC itself loads these, empty
    assert loaded.isdisjoint({*HEAVY, "numpy", "grpc_health.v1", "grpc_reflection.v1alpha"} - shells)


def test_a_start_without_tls_keys_and_audit_log_does_not_wait_for_them():
    """Up to where gallery and models are loaded side by side, whatever was not asked for is not imported."""
    code = """if True:
        import sys
        from pocketlens_cloud.cli import serve
        serve._serve = lambda *_: print(*sys.modules)
        serve.serve(gallery='nowhere', metrics='127.0.0.1:0')
    """
    loaded = set(subprocess.check_output([sys.executable, "-c", code], text=True).split())
    serving = {f"pocketlens_cloud.serving.{name}" for name in ("tls", "keys", "audit", "server", "door")}
    assert "pocketlens_cloud.serving.hosts" in loaded
    assert loaded.isdisjoint({"numpy", *serving})
