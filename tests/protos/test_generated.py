"""The committed generated code is what protoc makes of the schema, and the schema keeps its habits."""

import ast
import subprocess
import sys
from pathlib import Path

import pocketlens_wire
import pytest
from google.protobuf.internal import api_implementation
from pocketlens_wire.v1 import gallery_pb2 as gallery_pb
from pocketlens_wire.v1 import retrieval_pb2 as pb

V1 = Path(pocketlens_wire.__file__).parent / "v1"
SCHEMAS = ["gallery", "retrieval"]
GENERATED = [f"{schema}_{ending}" for schema in SCHEMAS for ending in ("pb2.py", "pb2.pyi", "pb2_grpc.py")]


@pytest.fixture(scope="module")
def fresh(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("generated")
    root = V1.parent.parent
    outputs = [f"--{kind}_out={out}" for kind in ("python", "pyi", "grpc_python")]
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{root}", *outputs]
    subprocess.run([*command, *(str(V1 / f"{schema}.proto") for schema in SCHEMAS)], check=True)
    return out / "pocketlens_wire" / "v1"


@pytest.mark.parametrize("name", GENERATED)
def test_generated_code_is_fresh(fresh, name):
    assert (fresh / name).read_text() == (V1 / name).read_text(), "stale: run `make proto` and commit"


def test_the_schemas_are_all_here():
    assert sorted(file.stem for file in V1.glob("*.proto")) == SCHEMAS


@pytest.mark.parametrize(("module", "service"), [(pb, "Retrieval"), (gallery_pb, "Gallery")])
def test_the_typed_stub_names_the_services_methods(module, service):
    methods = {method.name for method in module.DESCRIPTOR.services_by_name[service].methods}
    tree = ast.parse((V1 / f"{service.lower()}_pb2_grpc.pyi").read_text())
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    stub = {node.target.id for node in classes[f"{service}Stub"].body if isinstance(node, ast.AnnAssign)}
    servicer = {node.name for node in classes[f"{service}Servicer"].body if isinstance(node, ast.FunctionDef)}
    assert stub == servicer == methods


def test_enums_begin_unspecified_and_carry_their_name():
    for enum, prefix in (("TokenEncoding", "TOKEN_ENCODING_"), ("Mode", "MODE_")):
        values = pb.DESCRIPTOR.enum_types_by_name[enum].values
        assert values[0].number == 0
        assert values[0].name == prefix + "UNSPECIFIED"
        assert all(value.name.startswith(prefix) for value in values)


def test_protobuf_runs_on_its_c_core():
    # The pure Python fallback recurses without limit on nested messages (CVE-2025-4565).
    assert api_implementation.Type() == "upb"
