"""What a shape tells of a model."""

import pytest

from minddistill import params
from minddistill.models import store
from minddistill.models.presets import preset


@pytest.mark.parametrize(
    "changes",
    [
        {"labels": ("a", "b", "c")},
        {"pooler": False},
        {"family": "electra", "embedding_size": 16, "labels": ("a", "b")},
        {"family": "roberta", "type_vocab_size": 1, "pad_token_id": 1, "labels": ("score",), "problem": "regression"},
        {"family": "distilbert", "type_vocab_size": 0},
        {"use_relative_positions": True, "max_relative_position": 3, "attention_head_size": 5},
        {"num_attention_heads_per_layer": (4, 1, 2, 1), "intermediate_size_per_layer": (3, 64, 20, 7)},
    ],
)
def test_a_shape_tells_its_number_of_parameters(changes):
    config = preset("test-4l-32").with_(vocab_size=20, max_position_embeddings=16).with_(**changes)
    assert config.parameters == params.count(store.new(config, seed=0))
