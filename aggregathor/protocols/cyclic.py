r"""DRACO's cyclic codes: worker k sends a combination of the gradients of batches k - 2s, ..., k.

.. math:: z_k = \sum_j W_{jk} g_j, \quad H W^T = 0, \quad W c = 1

W [n, n] has a row a batch and a column a worker; row j is 0 but at j, ..., j + 2s modulo n. H
[2s, n] are the checks: rows of the discrete Fourier transform for 2s frequencies that follow each
other, so any 2s of its columns are independent, and what up to s workers add to their z can be
found from H z. The sum over all batches is z b for every b with W b = 1, one of which needs none of
the columns of the wrong workers.

The wrong workers are found on projections of what came, on directions that the server draws after
it came: who knew them could add what they do not see. See ``Cyclic.decode`` for how likely it is
that an error is missed.

Source: Chen et al., DRACO, ICML 2018 (the code ``PAPER``, its encoder and its guarantee). The code
``REAL``, the decoder and its tolerances are ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from aggregathor.protocols import linear
from aggregathor.protocols.decoded import Decoded

REAL, PAPER = "real", "paper"
# With more workers the paper's normalisation is too badly conditioned for float32: the sum without
# s = 5 of 45 workers that lie side by side is off by 1e-3 of its norm, with 4 of 19 by 7e-7.
MOST_IN_FLOAT32 = 19
# A block is taken for consistent if its checks are at most this many standard deviations of what
# rounding explains. Rounding to nearest errs by at most one such deviation in each value.
_TOLERANCE = 4.0
# A sum that may be less exact than this, relatively to itself, is not verified.
_ACCURACY = 1e-5
_PROJECTIONS = 4  # of each block
_POOLED = 16  # projections of several blocks together, to find wrong rows by
_MOST_POOLED = 64  # blocks: others show what these do not once that is known
# Beside an error this many times as large, others are found only once that one is known.
_CONTRAST = 1e-10
_LARGEST_SQ_NORM = 1e280  # of a block; beyond, it is lost: its square overflows float64
_MOST_FAILURES = 8  # sets of blocks in which wrong rows are looked for in vain
_BEAM = 16  # sets of rows that a search keeps


class Cyclic:
    """A cyclic code of n workers.

    Attributes:
      num_workers: n, and how many batches a step has.
      redundancy: r = 2s + 1, batches that each worker computes.
      most_wrong: s: as many workers may send anything. Where what others sent is lost, the columns
        concerned are decoded as long as 2 wrong + lost <= 2s, and lost < 2s: a check must be left.
      most_lost: how many workers may be lost, if none is wrong.
      width: values on the wire for each coordinate: 1, or 2 for complex numbers.
      encoder_nn: W, [n, n].
      checks_pn: H, complex [2s, n], orthonormal rows.
      plain_n: c, [n]: the weights with which the sum is made if nothing is wrong or lost.
    """

    def __init__(
        self,
        num_workers: int,
        most_wrong: int,
        form: str = REAL,
        *,
        delta: float = 0.0,
        tools: linear.Tools | None = None,
    ) -> None:
        """Makes the code.

        Args:
          num_workers: n >= 2s + 1.
          most_wrong: s >= 1.
          form: ``REAL``: W is real, rows of W add up to 1 and c = 1; z travels as [d] of the
            gradients' dtype. ``PAPER``: the paper's complex W; z travels as [2 d], real and
            imaginary parts in turn.
          delta: how far, relatively, the honest workers' copies of a gradient differ; 0 where they
            are equal to the bit, as on processors of one kind.
          tools: the work on whole gradients; NumPy's by default.
        """
        n, s = num_workers, most_wrong
        if s < 1 or n < 2 * s + 1 or form not in (REAL, PAPER):
            raise ValueError(f"no cyclic code {form!r} has n={n} workers and s={s}")
        self.num_workers = n
        self.redundancy = 2 * s + 1
        self.most_wrong = s
        self.most_lost = 2 * s - 1
        self.width = 1 if form == REAL else 2
        self._delta = delta
        self._tools = tools or linear.Tools()
        # The real code's frequencies are symmetric about n/2, so its polynomial is real.
        first = n / 2 - s + 0.5 if form == REAL else n - 2 * s
        frequencies = first + np.arange(2 * s)
        k = np.arange(n)
        self.checks_pn = np.exp(-2j * np.pi * np.outer(frequencies, k) / n) / np.sqrt(n)
        self._nodes_n = np.exp(-2j * np.pi * k / n)  # H[p + 1, k] = node k * H[p, k]
        # Coefficients, lowest first, of the polynomial that is 0 at all checked frequencies.
        taps = np.poly(np.exp(-2j * np.pi * frequencies / n))[::-1]
        encoder_nn = np.zeros((n, n), complex)
        for j in k:
            at = j + np.arange(2 * s + 1)
            # Frequencies that are no whole numbers gain a factor once around the circle.
            encoder_nn[j, at % n] = taps * np.exp(-2j * np.pi * first) ** -(at // n)
        if form == REAL:
            plain_n = np.ones(n)
            encoder_nn = encoder_nn.real.copy()
        else:  # the last row of the transform without the checked ones: W's last taps become 1
            plain_n = np.exp(-2j * np.pi * (n - 2 * s - 1) * k / n) / np.sqrt(n)
        self.encoder_nn = encoder_nn / (encoder_nn @ plain_n)[:, None]
        self.plain_n = plain_n
        # How exactly float64 has the code: what its checks see of what is encoded without an error.
        seen = np.linalg.norm(self.checks_pn @ self.encoder_nn.T)
        self._inexact = float(seen / np.linalg.norm(self.encoder_nn) * np.sqrt(n))
        # The same checks in other combinations, orthonormal too: real ones where the code is real.
        self._basis_pn = self.checks_pn
        if form == REAL:
            parts = np.concatenate([self.checks_pn.real, self.checks_pn.imag])
            self._basis_pn = np.linalg.svd(parts, full_matrices=False)[2][: 2 * s]
        # The shortest b with W b = 1; all others differ by combinations of the checks.
        self._shortest_n = plain_n - self._basis_pn.T @ (self._basis_pn.conj() @ plain_n)

    def batches_of(self, worker: int) -> list[int]:
        """Returns the numbers of the batches that a worker computes: k - 2s, ..., k modulo n."""
        return [(worker - i) % self.num_workers for i in range(self.redundancy - 1, -1, -1)]

    def encode(self, rows: Sequence[np.ndarray], worker: int) -> np.ndarray:
        """Returns what a worker sends of its batches' gradients.

        Args:
          rows: gradient [d] of each batch, in the order of ``batches_of``.
          worker: 0..n-1.

        Returns:
          [width * d] of their dtype: added in float64 in that order, and rounded once.
        """
        taps = self.encoder_nn[self.batches_of(worker), worker]
        if self.width == 1:
            return self._combined(rows, taps)
        parts = [
            self._combined(rows, np.ascontiguousarray(part)) for part in (taps.real, taps.imag)
        ]
        return np.stack(parts, axis=1).reshape(-1)

    def _combined(self, rows: Sequence[np.ndarray], weights: np.ndarray) -> np.ndarray:
        sum_d = np.empty_like(rows[0])
        self._tools.weighted_sum(rows, weights, linear.all_columns(len(sum_d)), sum_d)
        return sum_d

    def weights(self, lost_n: np.ndarray) -> np.ndarray:
        """Returns the shortest b [n] with W b = 1 that is 0 at the lost ones, bool [n]."""
        geometry = self._geometry(lost_n[None])
        return geometry.weights_gn[0]

    def decode(self, stack_nd: np.ndarray, rng: np.random.Generator, block: int = 352) -> Decoded:
        r"""Returns the mean over all batches.

        A block of a row in which a value is not finite is lost; blocks of which the same rows are
        lost are decoded together. Wrong rows are looked for until rounding explains the checks of
        every block, and are left out of all blocks.

        Each block has m >= 4 Gaussian directions. Let what is wrong in one of its checks, a vector
        in the block's coordinates, be t times as long as the tolerance. It is missed with
        probability

        .. math:: P(\chi^2_m \le m / t^2) \le (e / t^2)^{m/2}

        which for m = 4 is 7e-4 for t = 10, 7e-8 for t = 100 and 7e-16 for t = 10^4. So what is
        missed is a few roundings, but for that probability, and the sum is off by no more than the
        code makes of such.

        Args:
          stack_nd: float32 or float64 [n, width * d], what the workers sent; NaN is lost.
          rng: secret, and drawn from after the stack came.
          block: values on the wire in a block, even for complex codes: those of a datagram, so that
            a lost one is an erasure of its own coordinates only.

        Returns:
          ``unverified`` counts the coordinates of blocks whose checks nothing within the condition
          explains, or of which no check is left: these are 0. And of those whose sum may be off by
          more than 1e-5 of its norm, as so many rows are lost that the others' weights are large.
        Cost: two passes over the stack, and O(n d) for each set of lost rows that there is; beside
          them O(n m d / block) time and memory.
        """
        b = block // self.width
        dtype = stack_nd.dtype
        wide = {np.dtype(np.float32): np.complex64, np.dtype(np.float64): np.complex128}[dtype]
        values_nd = stack_nd if self.width == 1 else np.ascontiguousarray(stack_nd).view(wide)
        dim = values_nd.shape[1]
        blocks = -(-dim // b)
        m = max(_PROJECTIONS, _POOLED // blocks // 4 * 4)
        table_bm = rng.standard_normal((b, m))
        projected_ncm, sq_norm_nc = self._tools.project(values_nd, table_bm)
        seen = _Seen.of(projected_ncm, sq_norm_nc, dtype, b, self._inexact, self._delta)
        sets, is_sound_c = self._explain(seen, rng)
        is_verified_c = is_sound_c & self._is_exact(seen, sets)
        mean_d = np.empty(dim, dtype) if is_sound_c.all() else np.zeros(dim, dtype)
        self._add(values_nd, sets, is_sound_c, b, mean_d)
        size_c = np.full(blocks, b)
        size_c[-1] = dim - b * (blocks - 1)
        return Decoded(
            mean_d,
            size_c @ ~sets.erased_cn / dim,
            float(size_c @ ~is_verified_c / dim),
        )

    def _explain(self, seen: _Seen, rng: np.random.Generator) -> tuple[_Sets, np.ndarray]:
        """Finds the wrong rows.

        Returns:
          Which rows each block is decoded without, and whether its checks hold then, bool [c].
        """
        wrong_n = np.zeros(self.num_workers, bool)
        given_up_c = np.zeros(len(seen.lost_cn), bool)
        failures = 0
        while True:
            sets = _Sets.of(seen.lost_cn | wrong_n)
            is_sound_c = self._holds(seen, sets)
            if is_sound_c.all():
                return sets, is_sound_c
            erased_cn, size_c = sets.erased_cn, sets.erased_cn.sum(axis=1)
            open_c = ~is_sound_c & ~given_up_c & (size_c < 2 * self.most_wrong)
            if not open_c.any():
                return sets, is_sound_c
            lost_n = erased_cn[np.argmin(np.where(open_c, size_c, len(wrong_n) + 1))]
            pool = np.flatnonzero(open_c & (erased_cn == lost_n).all(axis=1))[:_MOST_POOLED]
            found_n = self._find(*seen.pool(pool, rng), lost_n)
            if found_n is not None and found_n.any():
                wrong_n = wrong_n | found_n
                continue
            failures += 1
            given_up_c[open_c if failures >= _MOST_FAILURES else pool] = True

    def _holds(self, seen: _Seen, sets: _Sets) -> np.ndarray:
        """Returns whether the checks of each block hold without these rows, bool [c]."""
        holds_c = np.zeros(len(sets.erased_cn), bool)
        for size, blocks, patterns_gn, which in sets.groups:
            if size >= 2 * self.most_wrong:
                continue
            geometry = self._geometry(patterns_gn)
            projected_nkm = seen.of_blocks(blocks)
            k, m = projected_nkm.shape[1:]
            if len(patterns_gn) == 1:  # of all blocks: a product of matrices
                rest_qkm = (geometry.checks_gqn[0] @ projected_nkm.reshape(-1, k * m)).reshape(
                    -1, k, m
                )
                sq_rest_k = _sq_sum(rest_qkm, axis=(0, 2)) / m
            else:
                rest_kqm = geometry.checks_gqn[which] @ projected_nkm.swapaxes(0, 1)
                sq_rest_k = _sq_sum(rest_kqm, axis=(1, 2)) / m
            # Each of the m projections has that variance.
            explained_k = _dot(seen.noise_cn[blocks], geometry.share_gn, which)
            holds_c[blocks] = sq_rest_k <= _TOLERANCE**2 * explained_k
        return holds_c

    def _is_exact(self, seen: _Seen, sets: _Sets) -> np.ndarray:
        """Returns of which blocks the sum is as exact as ``_ACCURACY`` says, bool [c].

        It is off by the rounding of what came, times its weights; and, where so many rows may still
        be wrong, by the largest error in a row that the checks take for rounding.
        """
        is_exact_c = np.zeros(len(sets.erased_cn), bool)
        # Of those left out, what was found wrong counts twice against what may still be.
        lost_c = np.count_nonzero(seen.lost_cn, axis=1)
        out_c = np.count_nonzero(sets.erased_cn, axis=1)
        more_c = 2 * out_c - lost_c <= 2 * self.most_wrong - 2
        for size, blocks, patterns_gn, which in sets.groups:
            if size >= 2 * self.most_wrong:
                continue
            geometry = self._geometry(patterns_gn)
            weights_gn = geometry.weights_gn if size else self.plain_n[None]
            sq_weights_gn = np.abs(weights_gn) ** 2
            rounding_kn = seen.rounding_cn[blocks]
            with np.errstate(divide="ignore", invalid="ignore"):
                reach_gn = np.where(patterns_gn, 0, sq_weights_gn / geometry.share_gn)
            sq_seen_k = _dot(rounding_kn, geometry.share_gn, which) * reach_gn.max(axis=1)[which]
            missed_k = _TOLERANCE * np.sqrt(sq_seen_k) * more_c[blocks]
            rounded_k = np.sqrt(_dot(rounding_kn, sq_weights_gn, which))
            # As long as the sum is, or would be if the rows were independent.
            projected_nkm = seen.of_blocks(blocks)
            k, m = projected_nkm.shape[1:]
            if len(patterns_gn) == 1:
                sum_km = (weights_gn[0] @ projected_nkm.reshape(-1, k * m)).reshape(k, m)
            else:
                sum_km = np.einsum("kn,nkm->km", weights_gn[which], projected_nkm)
            sq_rows_k = _dot(seen.sq_norm_cn[blocks], ~patterns_gn, which)
            size_k = np.sqrt(np.maximum(_sq_sum(sum_km, axis=1) / m, sq_rows_k))
            # What is too small for the digits of a float is as exact as it can be.
            least_g = np.sqrt(seen.least * (reach_gn.max(axis=1) + sq_weights_gn.sum(axis=1)))
            is_exact_c[blocks] = rounded_k + missed_k <= _ACCURACY * size_k + 20 * least_g[which]
        return is_exact_c

    def _find(
        self, projected_nm: np.ndarray, noise_n: np.ndarray, lost_n: np.ndarray
    ) -> np.ndarray | None:
        """Returns which rows are wrong beside the lost ones, bool [n]; None if nothing explains it.

        By the locator: the checks of e wrong rows are sums of e powers of their nodes, so they obey
        a recurrence whose polynomial has the nodes as zeros. It is the null vector of their Hankel
        matrix. Large errors hide small ones, so what explains all but the last digits of the
        largest is taken, and the rest is looked at without it.
        """
        out_n = lost_n.copy()
        while not self._rest(projected_nm, noise_n, out_n).is_explained:
            left = 2 * self.most_wrong - int(np.count_nonzero(out_n))
            guess_n = self._guess(projected_nm, noise_n, out_n, left)
            if guess_n is None:
                guess_n = self._search(projected_nm, noise_n, out_n, left)
            if guess_n is None:
                return None
            out_n = guess_n
        return out_n & ~lost_n

    def _guess(
        self, projected_nm: np.ndarray, noise_n: np.ndarray, out_n: np.ndarray, left: int
    ) -> np.ndarray | None:
        """Returns ``out_n`` with the rows that the locator points to; None if they explain less."""
        kept_nm = np.where(out_n[:, None], 0, projected_nm)
        syndrome_pm = self.checks_pn @ kept_nm
        for k in np.flatnonzero(out_n):  # what an erased row adds is unknown: it is filtered out
            syndrome_pm = syndrome_pm[1:] - self._nodes_n[k] * syndrome_pm[:-1]
        most = np.abs(syndrome_pm).max(initial=0)
        if not 0 < most < np.inf:
            return None
        sq_size = _sq_sum(kept_nm) / kept_nm.shape[1]
        for e in range(1, left // 2 + 1):
            hankel = np.concatenate(
                [syndrome_pm[i : i + e + 1].T for i in range(left - e)]
            )  # [(left - e) m, e + 1]
            locator = np.linalg.svd(hankel / most)[2][-1].conj()
            value_n = np.abs(np.polyval(locator[::-1], self._nodes_n))
            value_n[out_n] = np.inf
            guess_n = out_n.copy()
            guess_n[np.argsort(value_n, kind="stable")[:e]] = True
            rest = self._rest(projected_nm, noise_n, guess_n)
            if rest.is_explained or rest.sq_norm <= _CONTRAST**2 * sq_size:
                return guess_n
        return None

    def _search(
        self, projected_nm: np.ndarray, noise_n: np.ndarray, out_n: np.ndarray, left: int
    ) -> np.ndarray | None:
        """Adds rows one by one, those that explain most, and keeps the best sets.

        For errors near the tolerance, whose locator is mostly noise.
        """
        beam = [out_n]
        for _ in range(left // 2):
            found: dict[bytes, tuple[float, np.ndarray]] = {}
            for set_n in beam:
                rest_n = self._rest_without_each(projected_nm, set_n)
                for k in np.argsort(rest_n, kind="stable")[:_BEAM]:
                    if np.isfinite(rest_n[k]):
                        more_n = set_n.copy()
                        more_n[k] = True
                        found[more_n.tobytes()] = float(rest_n[k]), more_n
            best = sorted(found.values(), key=lambda each: each[0])[:_BEAM]
            beam = [set_n for _, set_n in best]
            for set_n in beam:
                if self._rest(projected_nm, noise_n, set_n).is_explained:
                    return set_n
        return None

    def _rest(self, projected_nm: np.ndarray, noise_n: np.ndarray, out_n: np.ndarray) -> _Rest:
        """Returns what the checks that do not look at some rows still see."""
        if np.count_nonzero(out_n) >= 2 * self.most_wrong:
            return _Rest(np.inf, False)
        geometry = self._geometry(out_n[None])
        rest_qm = geometry.checks_gqn[0] @ projected_nm
        sq_norm = float(_sq_sum(rest_qm) / rest_qm.shape[1])
        explained = float(geometry.share_gn[0] @ noise_n)
        return _Rest(sq_norm, sq_norm <= _TOLERANCE**2 * explained)

    def _rest_without_each(self, projected_nm: np.ndarray, out_n: np.ndarray) -> np.ndarray:
        """Returns for each further row what is left without it, a check; inf for those out."""
        # How the checks that are left see each row.
        seen_qn = self._geometry(out_n[None]).checks_gqn[0]
        rest_qm = seen_qn @ projected_nm
        sq_seen_n = _sq_sum(seen_qn, axis=0)
        with np.errstate(divide="ignore", invalid="ignore"):
            sq_along_n = _sq_sum(seen_qn.conj().T @ rest_qm, axis=1) / sq_seen_n
        return np.where(out_n, np.inf, np.maximum(_sq_sum(rest_qm) - sq_along_n, 0))

    def _geometry(self, patterns_gn: np.ndarray) -> _Geometry:
        """Returns what decoding without some rows needs, for sets of rows that are equally many."""
        g, n = patterns_gn.shape
        size = int(np.count_nonzero(patterns_gn[0]))
        basis_pn = self._basis_pn
        if size == 0:
            checks_gpn = np.broadcast_to(basis_pn, (g, *basis_pn.shape))
            plain_gn = np.broadcast_to(self._shortest_n, (g, n))
            return _Geometry(checks_gpn, _sq_sum(checks_gpn, axis=1), plain_gn)
        at_ge = np.nonzero(patterns_gn)[1].reshape(g, size)
        columns_gpe = np.moveaxis(basis_pn[:, at_ge], 0, 1)
        u_gpp, sigma_ge, vh_gee = np.linalg.svd(columns_gpe, full_matrices=True)
        checks_gqn = u_gpp[:, :, size:].conj().swapaxes(1, 2) @ basis_pn
        checks_gqn[np.broadcast_to(patterns_gn[:, None], checks_gqn.shape)] = 0  # exactly
        share_gn = _sq_sum(checks_gqn, axis=1)
        # b - H^T w is as good as b; w makes it 0 at the erased rows, and is the shortest that does.
        wanted_ge1 = self._shortest_n[at_ge][:, :, None]
        w_gp1 = u_gpp[:, :, :size].conj() @ ((vh_gee.conj() @ wanted_ge1) / sigma_ge[:, :, None])
        weights_gn = self._shortest_n - (basis_pn.T @ w_gp1)[:, :, 0]
        return _Geometry(checks_gqn, share_gn, np.where(patterns_gn, 0, weights_gn))

    def _add(
        self,
        values_nd: np.ndarray,
        sets: _Sets,
        is_sound_c: np.ndarray,
        b: int,
        mean_d: np.ndarray,
    ) -> None:
        """Writes the mean over the batches into the columns of blocks that are sound."""
        n, dim = values_nd.shape
        for _, blocks, patterns_gn, which in sets.groups:
            sound_k = is_sound_c[blocks]
            blocks, which = blocks[sound_k], which[sound_k]
            if not len(blocks):
                continue
            weights_gn = self._geometry(patterns_gn).weights_gn
            for g in np.unique(which):
                pattern_n = patterns_gn[g]
                rows = np.flatnonzero(~pattern_n)
                is_plain = len(rows) == n
                weights = (self.plain_n if is_plain else weights_gn[g])[rows] / n
                ranges_k2 = _runs(blocks[which == g]) * b
                ranges_k2 = np.minimum(ranges_k2, dim)
                self._tools.weighted_sum([values_nd[i] for i in rows], weights, ranges_k2, mean_d)


class _Geometry(NamedTuple):
    """Of sets of rows to decode without.

    Attributes:
      checks_gqn: [g, 2s - e, n]: orthonormal checks that do not look at them.
      share_gn: [g, n]: how much the checks see of each row: squares, added over the checks.
      weights_gn: [g, n]: the weights of the rows in the sum.
    """

    checks_gqn: np.ndarray
    share_gn: np.ndarray
    weights_gn: np.ndarray


class _Rest(NamedTuple):
    """What is left: its mean squared norm, and whether rounding explains it."""

    sq_norm: float
    is_explained: bool


class _Seen(NamedTuple):
    """What is known of a stack.

    Attributes:
      projected_ncm: [n, c, m], 0 where a block is lost.
      sq_norm_cn: [c, n], of the blocks, 0 where they are lost.
      rounding_cn: [c, n], the variance that rounding gives the projections.
      least: the least that it gives, in a block of subnormal numbers.
      noise_cn: [c, n], with what honest copies may differ by.
      lost_cn: bool [c, n], which blocks are lost.
    """

    projected_ncm: np.ndarray
    sq_norm_cn: np.ndarray
    rounding_cn: np.ndarray
    least: float
    noise_cn: np.ndarray
    lost_cn: np.ndarray

    @classmethod
    def of(
        cls,
        projected_ncm: np.ndarray,
        sq_norm_nc: np.ndarray,
        dtype: np.dtype,
        block: int,
        inexact: float,
        delta: float,
    ) -> _Seen:
        """Sorts what came; ``projected_ncm`` is taken over."""
        lost_nc = ~(sq_norm_nc < _LARGEST_SQ_NORM)  # NaN too
        if lost_nc.any():
            projected_ncm[lost_nc] = 0
            sq_norm_nc = np.where(lost_nc, 0, sq_norm_nc)
        info = np.finfo(dtype)
        relative = float(info.eps) / 2
        if dtype == np.float64:  # the projections are rounded like the values: they add `block`
            relative = relative * np.sqrt(block) + inexact
        least = (float(info.smallest_subnormal) / 2) ** 2 * block
        rounding_nc = relative**2 * sq_norm_nc + least
        # Copies that differ do so relatively to the whole gradient, not block by block.
        noise_nc = rounding_nc
        if delta:
            mean_n1 = sq_norm_nc.mean(axis=1, keepdims=True)
            noise_nc = rounding_nc + delta**2 * (sq_norm_nc + mean_n1)
        return cls(
            projected_ncm,
            *(sq_norm_nc.T, rounding_nc.T, least),
            *(noise_nc.T, lost_nc.T),
        )

    def of_blocks(self, blocks: np.ndarray) -> np.ndarray:
        """Returns the projections of some blocks, in increasing order: [n, k, m]."""
        if len(blocks) == self.projected_ncm.shape[1]:
            return self.projected_ncm
        return self.projected_ncm[:, blocks]

    def pool(self, blocks: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Returns projections of several blocks together, and their variances: [n, m'], [n].

        Of one block they are its own.
        """
        projected_nkm = self.projected_ncm[:, blocks]
        n, k, m = projected_nkm.shape
        noise_n = self.noise_cn[blocks].sum(axis=0)
        if k == 1:
            return projected_nkm[:, 0], noise_n
        mixing = rng.standard_normal((k * m, _POOLED)) / np.sqrt(m)
        return projected_nkm.reshape(n, k * m) @ mixing, noise_n


class _Sets(NamedTuple):
    """Which rows each block is decoded without.

    Attributes:
      erased_cn: bool [c, n].
      groups: of the blocks whose sets have equally many rows: that number; the blocks [k]; their
        distinct sets, bool [g, n]; and which of those each block has, int [k].
    """

    erased_cn: np.ndarray
    groups: list[tuple[int, np.ndarray, np.ndarray, np.ndarray]]

    @classmethod
    def of(cls, erased_cn: np.ndarray) -> _Sets:
        """Groups the blocks."""
        if (erased_cn == erased_cn[0]).all():
            blocks = np.arange(len(erased_cn))
            size = int(np.count_nonzero(erased_cn[0]))
            return cls(erased_cn, [(size, blocks, erased_cn[:1], np.zeros_like(blocks))])
        groups = []
        size_c = np.count_nonzero(erased_cn, axis=1)
        for size in np.unique(size_c):
            blocks = np.flatnonzero(size_c == size)
            packed = np.packbits(erased_cn[blocks], axis=1)
            _, first, which = np.unique(packed, axis=0, return_index=True, return_inverse=True)
            groups.append((int(size), blocks, erased_cn[blocks[first]], which.reshape(-1)))
        return cls(erased_cn, groups)


def _dot(rows_kn: np.ndarray, weights_gn: np.ndarray, which_k: np.ndarray) -> np.ndarray:
    """Returns the inner product of each row with the weights that it has: [k]."""
    if len(weights_gn) == 1:
        return rows_kn @ weights_gn[0]
    return np.einsum("kn,kn->k", rows_kn, weights_gn[which_k])


def _runs(numbers: np.ndarray) -> np.ndarray:
    """Returns ranges [begin, end), int64 [k, 2], of increasing numbers that follow each other."""
    breaks = np.flatnonzero(np.diff(numbers) != 1)
    first = numbers[np.append(0, breaks + 1)]
    last = numbers[np.append(breaks, len(numbers) - 1)]
    return np.stack([first, last + 1], axis=1).astype(np.int64)


def _sq_sum(values: np.ndarray, axis: int | tuple[int, ...] | None = None) -> np.ndarray:
    if np.iscomplexobj(values):
        return np.square(values.real).sum(axis=axis) + np.square(values.imag).sum(axis=axis)
    return np.square(values).sum(axis=axis)
