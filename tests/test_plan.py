"""Plans: what a step looks like without data, what is read from compiled programs, and the numbers made of it."""

import jax
import pytest

from bandtok_jax import tasks
from tests import tiny


@pytest.mark.parametrize("task_name", tiny.TASKS)
def test_the_spec_of_a_batch_is_that_of_a_batch(task_name, tmp_path):
    config = tiny.config(task_name, tmp_path)
    task, batch = tasks.create(config), tiny.batch(config)
    assert task.batch_spec() == {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in batch.items()}
    assert task.frozen_spec() == jax.eval_shape(task.load_frozen)


def test_how_many_embeddings_a_text_has_is_read_from_the_tokens(tmp_path):
    config = tiny.config("language_model", tmp_path, **{"model.text": "embedding"})
    with pytest.raises(ValueError, match="have no embeddings"):
        tasks.create(config).batch_spec()
