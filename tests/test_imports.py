"""What commands import: seconds of each start."""

import os
import subprocess
import sys

import pytest


def told(code: str) -> str:
    """What a fresh process prints."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PROTOCOL_BUFFERS")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    return done.stdout.strip()


@pytest.mark.parametrize("recipe", ["prepare_task", "prepare_corpus"])
def test_text_becomes_records_without_the_slow_libraries(recipe):
    slow = ("mindspore", "sklearn", "scipy", "tensorboardX", "torch", "matplotlib")
    code = f"import sys, minddistill.recipes.{recipe}; print([name for name in {slow} if name in sys.modules])"
    assert told(code) == "[]"


def test_text_is_labelled_by_an_onnx_model_without_mindspore():
    assert told("import sys, minddistill.recipes.label; print('mindspore' in sys.modules)") == "False"


def test_mindspore_leaves_protocol_buffers_compiled():
    kind = "from google.protobuf.internal import api_implementation; print(api_implementation.Type())"
    assert told(f"import minddistill, mindspore; {kind}") == told(kind)
