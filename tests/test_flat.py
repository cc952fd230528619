import keras
import numpy as np
import pytest
import tensorflow as tf

from aggregathor.errors import UserError
from aggregathor.flat import FlatLayout, places_of_trained

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
    assert flat.dtype == tf.float64
    assert [tensor.dtype for tensor in layout.unflatten(flat)] == dtypes


# What a narrower type holds not at all, or only in part.
HARD = {
    tf.float32: [1 + 2**-23, 1e-40, 3e38, -0.0],
    tf.float16: [6e-8, 65504.0, -1.5],
    tf.bfloat16: [9.2e-41, 3e38, -1.5],
    tf.float64: [1 + 1e-12, 1e300, 5e-324, -0.0],
    tf.complex64: [1 + 2j, -1.5j, 1e-40],
    tf.complex128: [1 + 1e-12j, 1e300 - 5e-324j],
}
WIDE = (tf.float64, tf.complex128)


@pytest.mark.parametrize("dtypes", [*([each] for each in HARD), list(HARD)], ids=str)
@pytest.mark.parametrize("compile", [False, True])
def test_no_bit_of_a_value_is_lost(dtypes, compile):
    variables = [tf.Variable(np.array(HARD[each]).astype(each.as_numpy_dtype)) for each in dtypes]
    if len(dtypes) > 1:  # TensorFlow's cast of float32 to float64 takes subnormal numbers for 0
        for variable in variables:
            variable.assign(tf.where(tf.abs(variable) < 1e-37, tf.ones_like(variable), variable))
    layout = FlatLayout(variables)

    def there_and_back():
        flat = layout.flatten(variables)
        return flat, layout.unflatten(flat)

    flat, back = tf.function(there_and_back)() if compile else there_and_back()
    assert flat.dtype == (tf.float64 if any(each in WIDE for each in dtypes) else tf.float32)
    assert flat.shape == [layout.dim]
    for variable, tensor in zip(variables, back, strict=True):
        assert (tensor.dtype, tensor.shape) == (variable.dtype, variable.shape)
        assert tensor.numpy().tobytes() == variable.numpy().tobytes()
    values_d = layout.flatten_arrays([variable.numpy() for variable in variables])
    assert values_d.dtype == flat.dtype.as_numpy_dtype
    assert values_d.tobytes() == flat.numpy().tobytes()


def test_a_complex_number_is_two_coordinates():
    layout = FlatLayout([tf.Variable([[1 + 2j, 3 + 4j]]), tf.Variable(5.0)])
    assert (layout.dim, layout.sizes) == (5, [4, 1])
    np.testing.assert_array_equal(layout.flatten([None, None]), np.zeros(5))
    real = tf.constant([[7.0, 8.0]], tf.float64)  # of a real loss that has no imaginary part
    flat = layout.flatten([real, tf.constant(9.0)])
    np.testing.assert_array_equal(flat, [7, 0, 8, 0, 9])


def test_what_cannot_be_trained_is_named():
    steps = tf.Variable(3, name="steps")
    with pytest.raises(UserError, match=r"^steps:0 is int32, and optimizers train real and compl"):
        FlatLayout([tf.Variable(1.0), steps])
    weight = tf.Variable(1.0, name="w")
    with pytest.raises(UserError, match="the gradient of w:0 is complex64, and the variable float"):
        FlatLayout([weight]).flatten([tf.constant(1 + 2j, tf.complex64)])


def test_what_has_no_gradient_and_cannot_have_one_stays_out():
    weight, idle = tf.Variable(1.0), tf.Variable(2.0)
    steps, text = tf.Variable(3, name="steps"), tf.Variable("text")
    assert places_of_trained([7.0, None, None, None], [weight, text, idle, steps]) == [0, 2]
    with pytest.raises(UserError, match=r"^steps:0 is int32, and optimizers"):
        places_of_trained([tf.constant(1)], [steps])


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
