"""Linear algebra: systems, factorisations, determinants, exponentials, eigenvalues, singular values.

A matrix that is singular, or has no Cholesky factor, gives NaN or infinity, which no solver goes on with.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pynode.field._convert._call import Call, Unsupported, handles
from pynode.field._graph import Dim, Number
from pynode.field._shapes import product


def _transposed(c: Call, i: int) -> int:
    rank = len(c.b.shape(i))
    return c.b.permute(i, [*range(rank - 2), rank - 1, rank - 2])


def _rows(c: Call, i: int, start: int, stop: int) -> int:
    """Some rows of each matrix."""
    shape = c.b.shape(i)
    return c.b.slice(i, len(shape) - 2, start, stop, 1, [*shape[:-2], stop - start, shape[-1]])


def _size(c: Call, i: int) -> int:
    n = c.b.shape(i)[-1]
    if not isinstance(n, int):
        raise Unsupported("a matrix as large as the batch: fields act on the features of each sample")
    return n


def _expanded(c: Call, i: int, batch: Sequence[Dim]) -> int:
    return c.b.expand(i, [*batch, *c.b.shape(i)[-2:]])


# ---- LU ---------------------------------------------------------------------------------------------


def _lu(c: Call, i: int) -> tuple[int, int]:
    """The factors in one matrix, and the row that each row is exchanged with, counted from 1."""
    shape, n = c.b.shape(i), _size(c, i)
    if shape[-2] != n:
        raise Unsupported("factors of a matrix that is not square")
    # One node has both: the pivots are its last row.
    both = c.b.add("lu", [i], [*shape[:-2], n + 1, n])
    return _rows(c, both, 0, n), c.b.reshape(_rows(c, both, n, n + 1), shape[:-1])


def _lu_solve(c: Call, lu: int, pivots: int, right: int, left: bool, adjoint: bool, shape: Sequence[Dim]) -> int:
    """The solution X of A X = B, or of X A = B; of the transposed matrix if `adjoint`."""
    if not left:  # Aᵀ Xᵀ = Bᵀ
        turned = [*shape[:-2], shape[-1], shape[-2]]
        return _transposed(c, _lu_solve(c, lu, pivots, _transposed(c, right), True, not adjoint, turned))
    lu, right = _expanded(c, lu, shape[:-2]), _expanded(c, right, shape[:-2])
    pivots = c.b.expand(pivots, c.b.shape(lu)[:-1])
    return c.b.add("lu_solve", [lu, pivots, right], shape, adjoint=adjoint)


@handles("_linalg_solve_ex")
def _solve(c: Call) -> list[int | None]:
    a, b = c.b.cast(c.args[0]), c.b.cast(c.args[1])
    left = bool(c.keyword("left", True))
    lu, pivots = _lu(c, a)
    vector = len(c.b.shape(b)) == 1 or c.b.shape(b) == c.b.shape(a)[:-1]
    if vector and len(c.b.shape(b)) < len(c.b.shape(a)):
        column = c.b.reshape(b, [*c.b.shape(b), 1])
        solution = _lu_solve(c, lu, pivots, column, True, not left, [*c.shape, 1])
        return [c.b.reshape(solution, c.shape), lu, pivots, None]
    return [_lu_solve(c, lu, pivots, b, left, False, c.shape), lu, pivots, None]


@handles("linalg_lu_factor_ex", "linalg_lu_factor")
def _lu_factor(c: Call) -> list[int | None]:
    return [*_lu(c, c.b.cast(c.args[0])), None]


@handles("linalg_lu_solve")
def _solve_by_factors(c: Call) -> int:
    lu, pivots, right = map(c.b.cast, c.args[:3])
    left, adjoint = bool(c.keyword("left", True)), bool(c.keyword("adjoint", False))
    return _lu_solve(c, lu, pivots, right, left, adjoint, c.shape)


@handles("linalg_inv_ex")
def _inverse(c: Call) -> list[int | None]:
    a = c.b.cast(c.args[0])
    lu, pivots = _lu(c, a)
    return [_lu_solve(c, lu, pivots, _identity(c, _size(c, a)), True, False, c.shape), None]


def _identity(c: Call, n: int) -> int:
    return c.b.const([float(i == j) for i in range(n) for j in range(n)], (n, n), "float")


def _factors(c: Call) -> tuple[int, int, int, int]:
    """The factors, the pivots, the diagonal of U, and whether the number of exchanges is even, as 1 or -1."""
    a = c.b.cast(c.args[0])
    lu, pivots = _lu(c, _transposed(c, a) if c.keyword("transposed") else a)
    shape, n = c.b.shape(pivots), _size(c, lu)
    flat = c.b.reshape(lu, [*shape[:-1], n * n])
    places = tuple(range(0, n * n, n + 1))
    diagonal = c.b.add("index_select", [flat], shape, dim=len(shape) - 1, index=places)
    stays = c.b.const([float(k + 1) for k in range(n)], [*(1,) * (len(shape) - 1), n], "float")
    moved = c.b.pointwise("ne", [pivots, stays], shape, "bool")
    sign = c.b.pointwise("where", [moved, Number(-1.0), Number(1.0)], shape)
    parity = c.b.add("prod", [sign], shape[:-1], dim=len(shape) - 1, keepdim=False)
    return lu, pivots, diagonal, parity


@handles("_linalg_det")
def _det(c: Call) -> list[int]:
    lu, pivots, diagonal, parity = _factors(c)
    product = c.b.add("prod", [diagonal], c.shape, dim=len(c.shape), keepdim=False)
    return [c.b.pointwise("mul", [product, parity], c.shape), lu, pivots]


@handles("_linalg_slogdet")
def _slogdet(c: Call) -> list[int]:
    lu, pivots, diagonal, parity = _factors(c)
    shape, d = c.b.shape(diagonal), len(c.shape)
    signs = c.b.add("prod", [c.b.pointwise("sign", [diagonal], shape)], c.shape, dim=d, keepdim=False)
    logs = c.b.pointwise("log", [c.b.pointwise("abs", [diagonal], shape)], shape)
    return [c.b.pointwise("mul", [signs, parity], c.shape), c.b.reduce("sum", logs, [d], False, c.shape), lu, pivots]


# ---- triangles, Cholesky ----------------------------------------------------------------------------


def _trisolve(c: Call, a: int, b: int, upper: bool, left: bool, unit: bool, shape: Sequence[Dim]) -> int:
    """The solution X of A X = B, or of X A = B, for a triangle A."""
    if not left:
        turned = [*shape[:-2], shape[-1], shape[-2]]
        return _transposed(c, _trisolve(c, _transposed(c, a), _transposed(c, b), not upper, True, unit, turned))
    _size(c, a)
    both = [_expanded(c, x, shape[:-2]) for x in (a, b)]
    return c.b.add("solve_triangular", both, shape, upper=upper, unit=unit)


@handles("linalg_solve_triangular")
def _solve_triangular(c: Call) -> int:
    a, b = c.b.cast(c.args[0]), c.b.cast(c.args[1])
    left, unit = bool(c.keyword("left", True)), bool(c.keyword("unitriangular", False))
    return _trisolve(c, a, b, bool(c.keyword("upper")), left, unit, c.shape)


@handles("triangular_solve")
def _old_triangular_solve(c: Call) -> list[int | None]:
    b, a = c.b.cast(c.args[0]), c.b.cast(c.args[1])
    upper, unit = bool(c.arg(2, "upper", True)), bool(c.arg(4, "unitriangular", False))
    if c.arg(3, "transpose", False):
        a, upper = _transposed(c, a), not upper
    return [_trisolve(c, a, b, upper, True, unit, c.shape), None]


@handles("linalg_cholesky_ex", "cholesky")
def _cholesky(c: Call) -> Any:
    a = c.b.cast(c.args[0])
    _size(c, a)
    upper = bool(c.arg(1, "upper", False))
    factor = c.b.add("cholesky", [_transposed(c, a) if upper else a], c.b.shape(a))
    factor = _transposed(c, factor) if upper else factor
    return factor if c.op == "cholesky" else [factor, None]


@handles("cholesky_solve")
def _cholesky_solve(c: Call) -> int:
    b, a = c.b.cast(c.args[0]), c.b.cast(c.args[1])
    upper = bool(c.arg(2, "upper", False))
    first, second = (_transposed(c, a), a) if upper else (a, _transposed(c, a))
    return _trisolve(c, second, _trisolve(c, first, b, False, True, False, c.shape), True, True, False, c.shape)


# ---- exponentials, eigenvalues, triangles of matrices -----------------------------------------------


@handles("linalg_matrix_exp", "matrix_exp")
def _matrix_exp(c: Call) -> int:
    a = c.b.cast(c.args[0])
    _size(c, a)
    return c.b.add("matrix_exp", [a], c.shape)


@handles("_linalg_eigh")
def _eigh(c: Call) -> list[int]:
    a = c.b.cast(c.args[0])
    shape, n = c.b.shape(a), _size(c, a)
    if str(c.arg(1, "UPLO", "L")).upper() == "U":
        a = _transposed(c, a)
    # One node has both: the eigenvalues are its first row.
    both = c.b.add("eigh", [a], [*shape[:-2], n + 1, n])
    return [c.b.reshape(_rows(c, both, 0, 1), shape[:-1]), _rows(c, both, 1, n + 1)]


# ---- QR, singular values ----------------------------------------------------------------------------


@handles("linalg_qr")
def _qr(c: Call) -> list[int]:
    """Q and R; of a wide matrix, those of its first columns, and the others turned by Q."""
    a, mode = c.b.cast(c.args[0]), str(c.arg(1, "mode", "reduced"))
    *batch, m, n = c.b.shape(a)
    if not isinstance(m, int) or not isinstance(n, int):
        raise Unsupported("a matrix as large as the batch: fields act on the features of each sample")
    if mode == "complete" and m > n:
        raise Unsupported('linalg.qr with mode="complete": use mode="reduced"')
    k = min(m, n)
    d = len(batch) + 1
    first = c.b.slice(a, d, 0, k, 1, [*batch, m, k])
    # One node has both: R is its last rows.
    both = c.b.add("qr", [first], [*batch, m + k, k])
    q, r = _rows(c, both, 0, m), _rows(c, both, m, m + k)
    if n > k:
        rest = c.b.slice(a, d, k, n, 1, [*batch, m, n - k])
        r = c.b.add("cat", [r, _product(c, _transposed(c, q), rest)], [*batch, k, n], dim=d)
    return [c.b.full(0.0, [0]) if mode == "r" else q, r]


def _product(c: Call, a: int, b: int) -> int:
    """The product of matrices, as many of each."""
    *batch, m, k = c.b.shape(a)
    n = c.b.shape(b)[-1]
    if not batch:
        return c.b.add("mm", [a, b], [m, n])
    count = product(batch)
    flat = c.b.add("bmm", [c.b.reshape(a, [count, m, k]), c.b.reshape(b, [count, k, n])], [count, m, n])
    return c.b.reshape(flat, [*batch, m, n])


@handles("_linalg_svd")
def _svd(c: Call) -> list[int]:
    a, full = c.b.cast(c.args[0]), bool(c.arg(1, "full_matrices", False))
    *batch, m, n = c.b.shape(a)
    if not isinstance(m, int) or not isinstance(n, int):
        raise Unsupported("a matrix as large as the batch: fields act on the features of each sample")
    if full and m != n:
        raise Unsupported("linalg.svd with full_matrices=True: use full_matrices=False")
    k = min(m, n)
    # One node has all three: U, a row of the singular values, and V.
    parts = c.b.add("svd", [a], [*batch, m + 1 + n, k])
    values = c.b.reshape(_rows(c, parts, m, m + 1), [*batch, k])
    return [_rows(c, parts, 0, m), values, _transposed(c, _rows(c, parts, m + 1, m + 1 + n))]
