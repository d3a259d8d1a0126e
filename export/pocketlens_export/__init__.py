"""The customs: checkpoint in, verified and hashed bundle out, or a refusal."""

import os

# ONNX Runtime reports its use to its maker unless it is told not to before it is loaded; files of this room load it.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
