"""Who draws what: ranks draw alike what they decide, and each its own what feeds its gradients.

Alone a script has one stream of random numbers. Here some of them must be the same on all ranks:
rows that are put aside for a test, the head that a step trains, the learning rate that a search
tries. Others must differ, or all workers would send the same gradient: batches, noise, dropout.
Nothing says what a number is for, so it is judged by where and how it is drawn:

| generator | until the first step | afterwards |
| --- | --- | --- |
| ``random``, ``numpy.random``: one number (``randrange()``, ``rand()``) | alike | alike |
| the same: several at once (``shuffle``, ``sample``, ``size=``), outside of ``fit`` | alike | in a loop of one's own: own; between calls of ``fit``: alike |
| the same: in an input pipeline (``py_function``, ``from_generator``, ``PyDataset``), or in another thread | alike | own |
| ``numpy.random.default_rng(...)`` | alike, without a seed too | as the three lines above |
| TensorFlow, eagerly | alike | in a loop of one's own: own; with ``fit`` alone: alike |
| TensorFlow in functions: steps, ``Dataset.map`` | own | own |
| ``Dataset.shuffle``, ``Dataset.random`` | own | own |
| ``Dataset.shuffle(reshuffle_each_iteration=False)``, made eagerly, for ``take`` and ``skip`` | alike | as TensorFlow eagerly |
| Keras's layers: dropout, augmentation | own | own |
| ``keras.random`` without a seed | alike | own |
| ``random.Random(...)``, ``numpy.random.RandomState(...)``, ``Generator(...)``, stateless ops | the script's business | the same |

One number in an array is one number. The server's own stream begins as a copy of the one that is
alike, so that it draws what the script would alone. A worker's is seeded by the script's seed plus
7919 times its rank. Where a script sets no seed the server draws one for all, which
steers only what is alike. ``fit`` and a loop can be told apart by the rounds: those that were made
outside of ``fit`` are a loop's.

What a loop draws several of may be rows or noise, and may decide what is learned, as the classes of
a task do in meta-learning: then workers whose draws differ learn different things, and a robust
aggregate of that is of none. Both look the same, so it is the user who says ``draws="alike"``, by
which "in a loop of one's own: own" becomes alike. The log names the first such draw of a loop.
"""  # noqa: E501 - the table

from __future__ import annotations

import contextlib
import copy
import functools
import hashlib
import logging
import os
import random
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, Protocol

import numpy as np
import tensorflow as tf

from aggregathor import notes
from aggregathor.internals import keras as keras_internals
from aggregathor.internals import tensorflow as tensorflow_internals
from aggregathor.internals.keras import Trainer
from lossympi.collectives import Collectives

_logger = logging.getLogger(__name__)
APART = 7919  # a prime: a script's seeds 0, 1, 2, ... do not coincide with other ranks'

# Functions of `random` that draw one number, or a few that make one.
_PYTHON_ONE = (
    *("random", "uniform", "triangular", "randint", "randrange", "choice", "getrandbits"),
    *("betavariate", "expovariate", "gammavariate", "gauss", "lognormvariate", "normalvariate"),
    *("paretovariate", "vonmisesvariate", "weibullvariate", "randbytes", "binomialvariate"),
)
_SEVERAL = ("shuffle", "sample", "choices")
# Methods of NumPy's generators by where `size` is among their arguments.
_SIZE_AT = {
    0: "random random_sample standard_normal standard_cauchy standard_exponential tomaxint",
    1: "chisquare choice exponential geometric logseries pareto poisson power rayleigh "
    "standard_gamma standard_t weibull zipf",
    2: "beta binomial f gamma gumbel integers laplace logistic lognormal negative_binomial "
    "noncentral_chisquare normal randint random_integers uniform vonmises wald",
    3: "hypergeometric noncentral_f triangular",
}
_SIZES = {name: at for at, names in _SIZE_AT.items() for name in names.split()}
_NUMPY_SEVERAL = (
    *("shuffle", "permutation", "permuted", "bytes", "dirichlet", "multinomial"),
    *("multivariate_normal", "multivariate_hypergeometric"),
)
_MT_BYTES = 624 * 4
_NOT_THE_SCRIPTS = ("aggregathor", "numpy", "random", "tensorflow", "keras")


class Seeds:
    """Patches the generators of this rank."""

    def __init__(
        self,
        rank: int,
        *,
        is_server: bool,
        entropy: int = 0,
        rounds: Callable[[], int] = lambda: 0,
        together: Collectives | None = None,
        loop_is_alike: Callable[[], bool] = lambda: False,
    ) -> None:
        """Patches Python's, NumPy's, TensorFlow's and Keras's; seeds them alike.

        Args:
          rank: of this process.
          is_server: whether it is the server.
          entropy: stands for the seed that the script does not set; the same on all ranks.
          rounds: returns how many rounds were made.
          together: what all ranks come together by when the training begins; None for one alone.
          loop_is_alike: returns whether all ranks draw alike in a loop of the script's.
        """
        self._rank = rank
        self._is_server = is_server
        self._entropy = entropy
        self._rounds = rounds
        self._together = together
        self._loop_is_alike = loop_is_alike
        self._named = False  # the first draw of a loop
        self._has_begun = False
        self._said = False
        self._main = threading.main_thread().ident
        self._is_child = False  # a process that a pipeline has forked
        self._called = threading.local()  # by a graph
        self._fits = 0  # that run now
        self._rounds_of_fits = 0
        self._generators = 0  # that `default_rng` has made without a seed
        self._tensorflow_seed: int | None = None
        self._is_tensorflow_own = False
        os.register_at_fork(after_in_child=self._fork)

        self._python = _Python(self)
        self._numpy = _NumPy(self)
        for mine in (self._python, self._numpy):
            mine.patch()
            mine.seed(entropy)
        self._patch_default_rng()
        self._patch_tensorflow()
        self._patch_keras()
        self._patch_fit()

    def begin(self) -> None:
        """Lets the ranks draw differently what feeds gradients: the training begins; collective."""
        if self._has_begun:
            return
        self._align()
        for mine in (self._python, self._numpy):
            mine.begin()
        self._has_begun = True
        if not self._is_server and tf.executing_eagerly():
            keras_internals.reseed_global_generator(self._own)
        if not self._fits and not self._loop_is_alike():
            self._make_tensorflow_own()
        if self._tensorflow_seed is None:
            notes.add(notes.SEEDED, "by the server for all, as the script sets no seed")
        if self._is_server and self._together is not None:
            if self._loop_is_alike():
                what = "(in input pipelines, functions and layers), and all draw alike in loops"
            else:
                what = (
                    "(several numbers at once, in input pipelines, by TensorFlow and Keras), and "
                    "all ranks draw alike single numbers of random and numpy.random"
                )
            _logger.info(
                "seeds: from the first step on each rank draws its own batches and noise %s", what
            )

    def is_own(self, several: bool, name: str = "") -> bool:
        """Whether a draw of now is this rank's own.

        Args:
          several: whether it is of several numbers.
          name: of the function, for the log.
        """
        if not self._has_begun:
            return False
        if self._is_child or threading.get_ident() != self._main or self._is_called:
            return True
        if not several or self._fits:
            return several
        is_in_loop = self._rounds() > self._rounds_of_fits
        if is_in_loop and name and not self._named:
            self._named = True
            self._name_draw(name)
        return is_in_loop and not self._loop_is_alike()

    def _name_draw(self, name: str) -> None:
        """Says, on the server, what a loop of the script's draws several numbers by."""
        place = _place_in_script()
        if self._loop_is_alike():
            notes.add(notes.SEEDED, f"{name} at {place}: alike on all ranks")
            return
        notes.add(notes.SEEDED, f"{name} at {place}: each rank's own; see --draws")
        if self._is_server:
            _logger.info(
                "seeds: %s at %s draws other numbers on each rank, as batches and noise must; if "
                "all ranks shall draw the same there, such as a task: --draws=alike",
                name,
                place,
            )

    def own(self, seed: int) -> int:
        """Returns the seed of this rank's own generator for one that the script sets."""
        return self._own(seed)

    @property
    def leads(self) -> bool:
        """Whether this rank's own generators draw what the script would alone."""
        return self._is_server

    def say(self, seed: int) -> None:
        """Says once, on the server, what becomes of the script's seeds."""
        notes.add(
            notes.SEEDED,
            f"the script sets {seed}; what feeds gradients is drawn by {seed} + {APART} rank",
        )
        if self._is_server and not self._said:
            self._said = True
            _logger.info(
                "seeds: rank r uses %d + %d r for what feeds its gradients, so that each worker "
                "draws its own batches",
                seed,
                APART,
            )

    def _own(self, seed: int) -> int:
        return (seed + APART * self._rank) % 2**32

    @property
    def _is_called(self) -> bool:
        return getattr(self._called, "depth", 0) > 0

    def _fork(self) -> None:
        self._is_child = True

    def _align(self) -> None:
        """Gives every rank the server's states of Python's and NumPy's generators; collective."""
        if self._together is None:
            return
        mine = (self._python, self._numpy)
        states = [each.state() for each in mine]
        theirs = self._together.bcast(states if self._is_server else [], list[bytes])
        for each, own, state in zip(mine, states, theirs, strict=True):
            if state != own:
                _logger.warning(
                    "rank %d has drawn other numbers from %s than the server before the first "
                    "step; it goes on with the server's, but what it drew before may differ",
                    self._rank,
                    each.name,
                )
                each.set_state(state)

    # NumPy's generators that a script makes.

    def _patch_default_rng(self) -> None:
        default_rng = np.random.default_rng

        @tensorflow_internals.not_converted
        @functools.wraps(default_rng)
        def ours(seed: Any = None) -> np.random.Generator:
            if isinstance(seed, (np.random.Generator, np.random.BitGenerator)):
                return default_rng(seed)
            if seed is None and not self.is_own(several=False):
                self._generators += 1
                seed = [self._entropy, self._generators]
            return _Generator(np.random.PCG64(seed), self, self._rank)

        np.random.default_rng = ours  # type: ignore[assignment]

    # TensorFlow.

    def _patch_tensorflow(self) -> None:
        self._set_seed = tf.random.set_seed
        self._set_seed_v1 = tf.compat.v1.set_random_seed
        tf.random.set_seed = self._seeds_tensorflow(self._set_seed)
        tf.compat.v1.set_random_seed = self._seeds_tensorflow(self._set_seed_v1)
        self._set_seed(self._entropy)
        tensorflow_internals.change_function_seeds(self._function_seed)
        tensorflow_internals.change_dataset_seeds(self._dataset_seed)
        tensorflow_internals.watch_python_calls(self._within_graph)
        shuffle = tf.data.Dataset.shuffle

        @tf.autograph.experimental.do_not_convert
        @functools.wraps(shuffle)
        def shuffled(
            dataset: Any,
            buffer_size: Any,
            seed: Any = None,
            reshuffle_each_iteration: Any = None,
            name: Any = None,
        ) -> Any:
            self._called.keeps_order = reshuffle_each_iteration is False
            try:
                return shuffle(dataset, buffer_size, seed, reshuffle_each_iteration, name)
            finally:
                self._called.keeps_order = False

        tf.data.Dataset.shuffle = shuffled

    def _seeds_tensorflow(self, set_seed: Callable[[int], None]) -> Callable[[Any], None]:
        @functools.wraps(set_seed)
        def seeded(seed: Any) -> None:
            if not isinstance(seed, (int, np.integer)) or isinstance(seed, bool):
                set_seed(seed)
                return
            self.say(int(seed))
            self._tensorflow_seed = int(seed)
            # A graph of v1 has one generator, which mostly feeds gradients.
            is_own = self._is_tensorflow_own or not tf.executing_eagerly()
            set_seed(self._own(int(seed)) if is_own else int(seed))

        return seeded

    def _make_tensorflow_own(self) -> None:
        self._is_tensorflow_own = True
        if not self._is_server and tf.executing_eagerly():
            seed = self._entropy if self._tensorflow_seed is None else self._tensorflow_seed
            self._set_seed(self._own(seed))

    def _function_seed(self, seed: int | None) -> int | None:
        """Returns the seed of a function that is traced; None for one that nobody knows."""
        if self._tensorflow_seed is None:
            return None
        return seed if self._is_tensorflow_own or seed is None else self._own(seed)

    def _dataset_seed(self, seed: Any) -> Any:
        """Returns the first of the two seeds of a dataset that draws."""
        if getattr(self._called, "keeps_order", False):
            return seed
        return seed + APART * self._rank

    @contextlib.contextmanager
    def _within_graph(self) -> Iterator[None]:
        """While a graph calls Python."""
        self._called.depth = getattr(self._called, "depth", 0) + 1
        try:
            yield
        finally:
            self._called.depth -= 1

    # Keras.

    def _patch_keras(self) -> None:
        keras_internals.change_default_seeds(
            self._own, for_all=lambda seed: self._own(seed) if self._has_begun else seed
        )

    def _patch_fit(self) -> None:
        fit = Trainer.fit  # that of ours, which makes the rounds

        @functools.wraps(fit)
        def counted(*args: Any, **kwargs: Any) -> Any:
            self._fits += 1
            try:
                return fit(*args, **kwargs)
            finally:
                self._fits -= 1
                self._rounds_of_fits = self._rounds()

        Trainer.fit = counted


def _place_in_script() -> str:
    """Returns the file and line of the script's that called, "" where there is none."""
    frame: FrameType | None = sys._getframe(1)  # noqa: SLF001 - as cheap as it must be, documented
    while frame is not None and _package(frame) in _NOT_THE_SCRIPTS:
        frame = frame.f_back
    return "" if frame is None else f"{frame.f_code.co_filename}:{frame.f_lineno}"


def _package(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0]


class _Generates(Protocol):
    """What ``random.Random`` and ``numpy.random.RandomState`` have."""

    def seed(self, seed: Any = None) -> None: ...


class _Global:
    """The generator of a module: the stream that is alike, and this rank's own.

    Attributes:
      name: of the module.
    """

    name = ""

    def __init__(self, seeds: Seeds, module: Any, alike: _Generates, own: _Generates) -> None:
        self._seeds = seeds
        self._module = module
        self._alike = alike
        self._mine = own
        self._seed: int | None = None  # that the script has set last

    def patch(self) -> None:
        """Replaces the module's functions."""
        for name in self._names():
            if hasattr(self._module, name) and hasattr(self._mine, name):
                draw = self._draws(name, getattr(self._module, name))
                setattr(self._module, name, tensorflow_internals.not_converted(draw))
        seed = self._module.seed
        self._module.seed = tensorflow_internals.not_converted(self._seeding(seed))
        self._seed_alike = seed

    def seed(self, seed: int) -> None:
        """Seeds the stream that is alike, as if the script had not."""
        self._seed_alike(seed)

    def begin(self) -> None:
        """Seeds this rank's own: the server's is a copy of the one that is alike."""
        if self._seeds.leads:
            self._set(self._mine, self.state())
        elif self._seed is not None:
            self._mine.seed(self._seeds.own(self._seed))
        else:
            words = hashlib.sha256(self.state()).digest()
            self._mine.seed(self._seeds.own(int.from_bytes(words[:4], "little")))

    def state(self) -> bytes:
        """Returns the state of the stream that is alike."""
        raise NotImplementedError

    def set_state(self, state: bytes) -> None:
        """Sets it."""
        self._set(self._alike, state)

    def _set(self, generator: Any, state: bytes) -> None:
        raise NotImplementedError

    def _names(self) -> list[str]:
        raise NotImplementedError

    def _is_several(self, name: str, args: Any, kwargs: Any) -> bool:
        raise NotImplementedError

    def _draws(self, name: str, alike: Callable[..., Any]) -> Callable[..., Any]:
        seeds, mine, is_several = self._seeds, getattr(self._mine, name), self._is_several

        @functools.wraps(alike)
        def draw(*args: Any, **kwargs: Any) -> Any:
            if seeds.is_own(is_several(name, args, kwargs), f"{self.name}.{name}"):
                return mine(*args, **kwargs)
            return alike(*args, **kwargs)

        return draw

    def _seeding(self, seed_alike: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(seed_alike)
        def seeded(seed: Any = None, *args: Any, **kwargs: Any) -> None:
            is_number = isinstance(seed, (int, np.integer)) and not isinstance(seed, bool)
            if self._seeds.is_own(several=False):  # such as in each process of a pipeline
                self._mine.seed(self._seeds.own(int(seed)) if is_number else seed)
                return
            seed_alike(seed, *args, **kwargs)
            self._seed = int(seed) if is_number else None
            if is_number:
                self._seeds.say(int(seed))
            if self._seeds.is_own(several=True):
                self.begin()

        return seeded


class _Python(_Global):
    name = "random"

    def __init__(self, seeds: Seeds) -> None:
        alike = random.getstate.__self__  # type: ignore[attr-defined]
        super().__init__(seeds, random, alike, random.Random(0))

    def state(self) -> bytes:
        _, words, gauss = random.getstate()
        rest = np.array([gauss is not None, gauss or 0.0])
        return np.array(words, np.uint32).tobytes() + rest.tobytes()

    def _set(self, generator: Any, state: bytes) -> None:
        words = np.frombuffer(state[: _MT_BYTES + 4], np.uint32)
        has, gauss = np.frombuffer(state[_MT_BYTES + 4 :], np.float64)
        generator.setstate((3, tuple(map(int, words)), float(gauss) if has else None))

    def _names(self) -> list[str]:
        return [*_PYTHON_ONE, *_SEVERAL]

    def _is_several(self, name: str, args: Any, kwargs: Any) -> bool:
        if name == "shuffle":
            return True
        if name == "choices":
            return kwargs.get("k", 1) != 1
        return name == "sample" and (args[1] if len(args) > 1 else kwargs.get("k")) != 1


class _NumPy(_Global):
    name = "numpy.random"

    def __init__(self, seeds: Seeds) -> None:
        alike = np.random.get_state.__self__  # type: ignore[attr-defined]
        super().__init__(seeds, np.random, alike, np.random.RandomState(0))

    def patch(self) -> None:
        super().patch()
        for name in ("ranf", "sample"):  # other names of `random_sample`
            setattr(np.random, name, np.random.random_sample)

    def state(self) -> bytes:
        _, words, position, has, gauss = np.random.get_state(legacy=True)  # noqa: NPY002 - theirs
        rest = np.array([position, has, gauss], np.float64)
        return np.array(words, np.uint32).tobytes() + rest.tobytes()

    def _set(self, generator: Any, state: bytes) -> None:
        words = np.frombuffer(state[:_MT_BYTES], np.uint32)
        position, has, gauss = np.frombuffer(state[_MT_BYTES:], np.float64)
        generator.set_state(("MT19937", words, int(position), int(has), float(gauss)))

    def _names(self) -> list[str]:
        return [*_SIZES, *_NUMPY_SEVERAL, "rand", "randn"]

    def _is_several(self, name: str, args: Any, kwargs: Any) -> bool:
        return _is_several(name, args, kwargs)


def _is_several(name: str, args: Any, kwargs: Any) -> bool:
    """Whether a call of a generator of NumPy draws several numbers."""
    if name in ("rand", "randn"):
        return bool(args) and _count(args) != 1
    at = _SIZES.get(name)
    if at is None:
        return True
    size = args[at] if len(args) > at else kwargs.get("size")
    if size is not None:
        return _count(size) != 1
    return name != "choice" and any(np.ndim(each) for each in args)


def _count(size: Any) -> int:
    """Returns how many numbers an array of a size, or a shape, has."""
    return int(np.prod(size))


class _Generator(np.random.Generator):
    """What ``default_rng`` gives: its own stream, where draws are this rank's, is seeded apart."""

    def __init__(self, bits: np.random.BitGenerator, seeds: Seeds, rank: int) -> None:
        super().__init__(bits)
        self._seeds = seeds
        self._rank = rank
        # Its methods call each other, which are not those below.
        self._alike = np.random.Generator(bits)
        self._mine: np.random.Generator | None = None

    def _of_this_rank(self) -> np.random.Generator:
        if self._mine is None:
            state = repr(self.bit_generator.state).encode()
            words = int.from_bytes(hashlib.sha256(state).digest(), "little")
            bits: np.random.BitGenerator = np.random.PCG64([words, self._rank])
            if self._seeds.leads:
                bits = copy.deepcopy(self.bit_generator)
            self._mine = np.random.Generator(bits)
        return self._mine


def _method(name: str) -> Callable[..., Any]:
    @functools.wraps(getattr(np.random.Generator, name))
    def draw(self: _Generator, *args: Any, **kwargs: Any) -> Any:
        is_own = self._seeds.is_own(_is_several(name, args, kwargs), f"default_rng().{name}")
        generator = self._of_this_rank() if is_own else self._alike
        return getattr(generator, name)(*args, **kwargs)

    return draw


for _name in (*_SIZES, *_NUMPY_SEVERAL):
    if hasattr(np.random.Generator, _name):
        setattr(_Generator, _name, tensorflow_internals.not_converted(_method(_name)))
