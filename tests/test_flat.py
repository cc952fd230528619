import keras
import numpy as np
import pytest
import tensorflow as tf

from aggregathor.flat import FlatLayout

SHAPES = [(2, 3), (), (4,), (0, 5), (1, 1, 2)]
FLOATS = [tf.float32] * 5


def arange_variables(dtypes=FLOATS):
    """Variables that hold 0, 1, 2, ... one after the other."""
    ends = np.cumsum([np.prod(shape, dtype=int) for shape in SHAPES])
    parts = np.split(np.arange(ends[-1]), ends[:-1])
    return [
        tf.Variable(tf.cast(part.reshape(shape), dtype))
        for part, shape, dtype in zip(parts, SHAPES, dtypes, strict=True)
    ]


def test_coordinates_follow_the_order_of_the_variables():
    layout = FlatLayout(arange_variables())
    assert layout.dim == 13
    assert layout.sizes == [6, 1, 4, 0, 2]
    np.testing.assert_array_equal(layout.flatten(arange_variables()), np.arange(13, dtype="f4"))


@pytest.mark.parametrize("compile", [False, True])
def test_unflatten_undoes_flatten(compile):
    variables = arange_variables()
    layout = FlatLayout(variables)

    def there_and_back():
        return layout.unflatten(layout.flatten(variables))

    back = tf.function(there_and_back)() if compile else there_and_back()
    for variable, tensor in zip(variables, back, strict=True):
        assert tensor.shape == variable.shape
        np.testing.assert_array_equal(tensor, variable)


def test_each_variable_gets_its_own_dtype_back():
    dtypes = [tf.float32, tf.float64, tf.float16, tf.bfloat16, tf.float32]
    variables = arange_variables(dtypes=dtypes)
    layout = FlatLayout(variables)
    flat = layout.flatten(variables)
    assert flat.dtype == tf.float32
    assert [tensor.dtype for tensor in layout.unflatten(flat)] == dtypes


def test_no_gradient_is_zero():
    layout = FlatLayout(arange_variables())
    gradients = [None, tf.constant(7.0), None, None, tf.ones([1, 1, 2])]
    expected = [0] * 6 + [7] + [0] * 4 + [1] * 2
    np.testing.assert_array_equal(layout.flatten(gradients), expected)


def test_a_sparse_gradient_is_made_dense_and_repeated_rows_are_added():
    table = tf.Variable(tf.zeros([4, 2]))
    sparse = tf.IndexedSlices(
        values=tf.constant([[1.0, 2.0], [10.0, 20.0], [5.0, 5.0]]),
        indices=tf.constant([3, 3, 1]),
        dense_shape=tf.constant([4, 2]),
    )
    flat = FlatLayout([table]).flatten([sparse])
    np.testing.assert_array_equal(flat, [0, 0, 5, 5, 0, 0, 11, 22])


def test_an_embedding_has_the_gradient_of_its_one_hot_matrix():
    table = tf.Variable(tf.random.stateless_normal([5, 3], seed=[1, 2]))
    words = tf.constant([4, 0, 4])
    with tf.GradientTape(persistent=True) as tape:
        looked_up = tf.reduce_sum(tf.gather(table, words) ** 2)
        multiplied = tf.reduce_sum((tf.one_hot(words, 5) @ table) ** 2)
    layout = FlatLayout([table])
    sparse, dense = tape.gradient(looked_up, table), tape.gradient(multiplied, table)
    assert isinstance(sparse, tf.IndexedSlices)
    np.testing.assert_allclose(layout.flatten([sparse]), layout.flatten([dense]), rtol=1e-6)


def test_keras_variables_will_do():
    model = keras.Sequential([keras.Input([3]), keras.layers.Dense(2)])
    layout = FlatLayout(model.trainable_variables)
    assert layout.dim == model.count_params() == 8
    kernel, bias = layout.unflatten(tf.range(8.0))
    np.testing.assert_array_equal(kernel, np.arange(6.0).reshape(3, 2))
    np.testing.assert_array_equal(bias, [6, 7])


def test_a_missing_gradient_is_an_error():
    with pytest.raises(ValueError, match="zip"):
        FlatLayout(arange_variables()).flatten([None])
