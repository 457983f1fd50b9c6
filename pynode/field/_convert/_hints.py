"""What to write in place of operations that have no counterpart in the graph."""

from __future__ import annotations

__all__ = ["hint"]

_HINTS = {
    "linalg_eig": "for a symmetric A: torch.linalg.eigh(A)",
    "lu_unpack": "torch.linalg.solve, torch.linalg.det or torch.linalg.cholesky in place of the factors",
    "nonzero": "torch.where(mask, x, 0.0) in place of x[mask], which has a size that depends on values",
    "masked_select": "torch.where(mask, x, 0.0) in place of x[mask], which has a size that depends on values",
    "bincount": "counts as a sum: torch.nn.functional.one_hot(index, n).sum(-2)",
    "histc": "counts as a sum: torch.nn.functional.one_hot(torch.bucketize(x, edges), n).sum(-2)",
    "unique": "torch.sort(x, -1).values, which has a known size",
    "_unique2": "torch.sort(x, -1).values, which has a known size",
    "_sparse_addmm": "with rows, columns = A.indices() outside of the field: torch.zeros_like(y).index_add(0, rows, "
    "values[:, None] * x[columns])",
    "_sparse_mm": "with rows, columns = A.indices() outside of the field: torch.zeros_like(y).index_add(0, rows, "
    "values[:, None] * x[columns])",
    "_embedding_bag": "torch.nn.functional.embedding(index, weight).sum(-2)",
    "_embedding_bag_forward_only": "torch.nn.functional.embedding(index, weight).sum(-2)",
    "_pdist_forward": "torch.cdist(x, x), of which torch.triu_indices chooses the pairs",
    "grid_sampler_2d": "torch.nn.functional.interpolate, or weights of the four neighbours by gather",
    "_ctc_loss": "the loss outside of the field",
    "cond": "both branches and torch.where(condition, one, other)",
    "while_loop": "a fixed number of rounds in a Python loop, with torch.where for those that are done",
}


def hint(name: str) -> str:
    """Lines that replace an ATen operation, as a sentence; empty where there are none."""
    found = _HINTS.get(name)
    return "" if found is None else f"Write {found}. "
