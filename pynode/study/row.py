"""The columns of a row: what is known of one cell."""

from __future__ import annotations

from typing import Any

__all__ = ["COLUMNS", "STATUSES", "TRAINING_COLUMNS", "Row"]

Row = dict[str, Any]

STATUSES = ("ok", "failed", "timeout", "memory", "crashed", "not_finite", "not_comparable")

# Each with its type in the store; "JSON" is a list or a dictionary.
COLUMNS = {
    "key": "TEXT",
    "study": "TEXT",
    "kind": "TEXT",  # "solve" or "training"
    "problem": "TEXT",
    "contender": "TEXT",
    "package": "TEXT",
    "options": "JSON",
    "rtol": "REAL",
    "atol": "REAL",
    "dt": "REAL",
    "pass": "INTEGER",
    "status": "TEXT",  # one of STATUSES
    "reason": "TEXT",
    "gradient_status": "TEXT",  # None where gradients are not measured
    "gradient_reason": "TEXT",
    "memory_reason": "TEXT",  # why there is no peak
    "error_end": "REAL",
    "error_trajectory": "REAL",
    "gradient_error": "REAL",
    "drift": "REAL",
    "loss": "REAL",
    "nfe": "INTEGER",
    "nfe_backward": "INTEGER",
    "n_accepted": "INTEGER",
    "n_rejected": "INTEGER",
    "jacobians": "INTEGER",
    "prepare_seconds": "REAL",
    "seconds_first": "REAL",
    "seconds": "REAL",
    "seconds_q1": "REAL",
    "seconds_q3": "REAL",
    "seconds_all": "JSON",
    "cpu_seconds": "REAL",
    "gradient_seconds_first": "REAL",
    "gradient_seconds": "REAL",
    "gradient_seconds_q1": "REAL",
    "gradient_seconds_q3": "REAL",
    "gradient_seconds_all": "JSON",
    "gradient_cpu_seconds": "REAL",
    "peak_mb": "REAL",
    "gradient_peak_mb": "REAL",
    "beside": "INTEGER",
    "calibration": "REAL",
    "threads": "INTEGER",
    "dtype": "TEXT",
    "environment": "TEXT",
    "started": "REAL",
    "ended": "REAL",
}
TRAINING_COLUMNS = {"seed": "INTEGER", "curves": "JSON", "test_error": "REAL", "test_metric": "TEXT"}
