"""The messages of `tf.train.Example`, as the package `tfrecord` defines them.

Their module is loaded without the package around it, which imports PyTorch where that is installed: three seconds of
every command and every process that writes records.
"""

from __future__ import annotations

from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType


def _definitions() -> ModuleType:
    package = Path(find_spec("tfrecord").submodule_search_locations[0])
    spec = spec_from_file_location(f"{__name__}.example_pb2", package / "example_pb2.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_found = _definitions()
Example, Features, Feature = _found.Example, _found.Features, _found.Feature
Int64List, FloatList = _found.Int64List, _found.FloatList
