"""What is compiled of a teacher and a student: only what the objective looks at."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn

from minddistill.distill.distiller import Distiller
from minddistill.distill.layer_map import layer_map
from minddistill.distill.objectives import FitDense, Intermediate, Prediction
from minddistill.models import store
from minddistill.models.presets import preset

CONFIG = preset("test-4l-32").with_(vocab_size=20, max_position_embeddings=16, labels=("a", "b"))
# Products of a layer: query, key, value, output and two of the feed-forward; and of scores and context.
DENSE, BATCHED = 6, 2


def products(tmp_path, cell):
    """How many MatMul and BatchMatMul the compiled graph of a cell has."""
    batch = {
        "input_ids": np.ones((2, 8), np.int32),
        "input_mask": np.ones((2, 8), np.int32),
        "segment_ids": np.zeros((2, 8), np.int32),
        "row": np.arange(2, dtype=np.int32),
        "weight": np.ones(2, np.float32),
        "rows": np.float32(2),
        "tokens": np.float32(16),
        "pairs": np.float32(128),
    }

    class Outer(nn.Cell):
        def __init__(self):
            super().__init__()
            self.cell = cell

        def construct(self, batch):
            return self.cell(batch, Tensor(0, ms.int32))[0]

    ms.set_context(save_graphs=1, save_graphs_path=str(tmp_path))
    try:
        Outer()(ms.mutable({name: Tensor(value) for name, value in batch.items()})).asnumpy()
    finally:
        ms.set_context(save_graphs=0)
    (graph,) = tmp_path.rglob("*_validate_*.ir")  # after all passes that remove what is not used
    text = graph.read_text()
    return text.count(" = PrimFunc_MatMul("), text.count(" = PrimFunc_BatchMatMul(")


CASES = {
    # A map that ends at the teacher's second layer: its last two layers, and both heads, are not computed.
    "intermediate": (
        lambda: Intermediate(layer_map("first", 2, 4), FitDense(32, 32, 1)),
        ((2 + 2) * DENSE + 3, (2 + 2) * BATCHED),
    ),
    # Both encoders, poolers and classifiers whole.
    "prediction": (Prediction, ((2 + 4) * DENSE + 4, (2 + 4) * BATCHED)),
}


@pytest.mark.parametrize("name", CASES)
def test_only_what_the_objective_needs_is_computed(name, tmp_path):
    objective, expected = CASES[name]
    student, teacher = store.new(CONFIG.with_(num_hidden_layers=2), seed=0), store.new(CONFIG, seed=1)
    assert products(tmp_path, Distiller(student, teacher, objective())) == expected
