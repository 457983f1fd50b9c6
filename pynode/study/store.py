"""Where the rows of studies are kept: an SQLite file, to which each row is written once, and whole."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, TypeVar

from pynode.errors import StudyError
from pynode.study.environment import identity
from pynode.study.reference import Reference
from pynode.study.row import COLUMNS, TRAINING_COLUMNS, Row

__all__ = ["Store"]

P = ParamSpec("P")
T = TypeVar("T")

_SCHEMA = 2  # 1 had no keys of a study's definition
_PATIENCE = 60  # seconds to wait for others that use the file
_MARK = 0x704E5354  # "pNST": says that an SQLite file is a store of ours
_ALL = {**COLUMNS, **TRAINING_COLUMNS}


@contextlib.contextmanager
def _reported(path: str) -> Iterator[None]:
    """What SQLite refuses, as an error that names the store."""
    try:
        yield
    except sqlite3.OperationalError as error:  # of the disk, of rights, of others that use the file
        raise StudyError(
            f"the store {path} cannot be opened, read or written: {error}. See that it is a file, that it may be "
            "written, and that its disk has room. The rows that are in it stay"
        ) from error
    except sqlite3.DatabaseError as error:
        raise StudyError(f"{path} is no store of studies: {error}. Name another file") from error


def _reports(method: Callable[Concatenate[Store, P], T]) -> Callable[Concatenate[Store, P], T]:
    """A method of the store within `_reported`."""

    @functools.wraps(method)
    def outer(store: Store, *args: P.args, **keywords: P.kwargs) -> T:
        with _reported(store.path):
            return method(store, *args, **keywords)

    return outer


def _place(path: str) -> tuple[str, bool]:
    """What SQLite opens, and whether that is a URI: it makes files beside a store, unless it knows that none writes."""
    file = Path(path).absolute()
    fixed = file.is_file() and not os.access(file, os.W_OK) and not os.access(file.parent, os.W_OK)
    if fixed and not Path(f"{file}-wal").exists():
        return f"{file.as_uri()}?immutable=1", True
    return path, False


class Store:
    """The rows of any number of studies, their definitions, references and environments.

    What is written is there whenever the process is killed. Several processes may write to one store.

    Args:
        path: the file, made where it is not there; `":memory:"` for none. One that may not be written can be read.

    Raises:
        StudyError: the file is no store, or one of another version of pynode; here and at any use, it cannot be opened,
            read or written.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        if self.path != ":memory:":
            Path(self.path).parent.mkdir(parents=True, exist_ok=True)
        with _reported(self.path):
            place, is_uri = _place(self.path)
            self._db = sqlite3.connect(place, timeout=_PATIENCE, isolation_level=None, uri=is_uri)
        try:
            with _reported(self.path):
                self._open()
        except StudyError:
            self._db.close()
            raise

    def _open(self) -> None:
        # In this order: another process may be making the store, tables and marks at once.
        empty = not self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        mark = self._db.execute("PRAGMA application_id").fetchone()[0]
        schema = self._db.execute("PRAGMA user_version").fetchone()[0]
        if not empty and mark != _MARK:
            raise StudyError(f"{self.path} is an SQLite file, and no store of studies. Name another file")
        if not empty and not 1 <= schema <= _SCHEMA:
            raise StudyError(
                f"{self.path} is a store of schema {schema}, this pynode has {_SCHEMA}. Name another file, or read it "
                "with the pynode that made it"
            )
        try:
            self._make()
        except sqlite3.OperationalError as error:
            if empty or schema != _SCHEMA or "readonly" not in str(error):
                raise  # else what is there can be read all the same

    def _make(self) -> None:
        """Make what is not there yet."""
        self._write_ahead()
        columns = ", ".join(f'"{name}" {"TEXT" if kind == "JSON" else kind}' for name, kind in _ALL.items())
        with self._db:
            self._db.execute("BEGIN IMMEDIATE")
            for statement in (
                f"CREATE TABLE IF NOT EXISTS rows ({columns}, PRIMARY KEY (study, key))",
                "CREATE TABLE IF NOT EXISTS studies (name TEXT PRIMARY KEY, definition TEXT, problems TEXT, keys TEXT)",
                "CREATE TABLE IF NOT EXISTS environments (id TEXT PRIMARY KEY, facts TEXT)",
                "CREATE TABLE IF NOT EXISTS problem_references (content TEXT PRIMARY KEY, data BLOB)",
                f"PRAGMA application_id = {_MARK}",
                f"PRAGMA user_version = {_SCHEMA}",
            ):
                self._db.execute(statement)
            if "keys" not in {column[1] for column in self._db.execute("PRAGMA table_info(studies)")}:
                self._db.execute("ALTER TABLE studies ADD COLUMN keys TEXT")

    def _write_ahead(self) -> None:
        """Let others read while one writes. SQLite does not wait by itself where another one is just doing the same."""
        until = time.monotonic() + _PATIENCE
        while True:
            try:
                self._db.execute("PRAGMA journal_mode = WAL")
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > until:
                    raise
                time.sleep(0.01)
            else:
                return

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    @_reports
    def add(self, row: Row, environment: dict[str, Any]) -> None:
        """Write a row with its environment; one that is there already stays."""
        values = [json.dumps(row.get(n)) if kind == "JSON" else row.get(n) for n, kind in _ALL.items()]
        names = ", ".join(f'"{name}"' for name in _ALL)
        with self._db:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.execute(
                "INSERT OR IGNORE INTO environments VALUES (?, ?)", (identity(environment), json.dumps(environment))
            )
            self._db.execute(f"INSERT OR IGNORE INTO rows ({names}) VALUES ({', '.join('?' * len(values))})", values)

    @_reports
    def keys(self, study: str) -> set[str]:
        """The keys of a study's rows."""
        return {key for (key,) in self._db.execute("SELECT key FROM rows WHERE study = ?", (study,))}

    @_reports
    def rows(self, study: str, keys: Sequence[str] | None = None) -> list[Row]:
        """A study's rows, in the order in which they ended; of some keys alone, in the order of these."""
        names = list(_ALL)
        columns = ", ".join(f'"{name}"' for name in names)
        found = self._db.execute(f"SELECT {columns} FROM rows WHERE study = ? ORDER BY ended, key", (study,)).fetchall()
        rows = [_row(dict(zip(names, values, strict=True))) for values in found]
        if keys is None:
            return rows
        by_key = {row["key"]: row for row in rows}
        return [by_key[key] for key in keys if key in by_key]

    @_reports
    def forget(self, study: str, keys: Iterable[str]) -> None:
        """Drop rows of a study, which are then measured again."""
        with self._db:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.executemany("DELETE FROM rows WHERE study = ? AND key = ?", [(study, key) for key in keys])

    @_reports
    def environments(self) -> dict[str, dict[str, Any]]:
        """What rows were measured in, by the ids in their column `environment`."""
        return {name: json.loads(facts) for name, facts in self._db.execute("SELECT id, facts FROM environments")}

    @_reports
    def define(
        self, study: str, definition: dict[str, Any], problems: dict[str, dict[str, Any]], keys: Sequence[str]
    ) -> None:
        """Keep how a study is defined, what is known of its problems, by name, and the keys of its cells.

        Rows of an earlier definition stay, for when the study is defined so again.
        """
        texts = (json.dumps(part) for part in (definition, problems, list(keys)))
        self._db.execute(
            "INSERT OR REPLACE INTO studies (name, definition, problems, keys) VALUES (?, ?, ?, ?)", (study, *texts)
        )

    @_reports
    def defined(self, study: str) -> list[str] | None:
        """The keys of a study's cells, as it is defined; `None` in a store of an earlier pynode, which kept none."""
        (keys,) = self._db.execute("SELECT keys FROM studies WHERE name = ?", (study,)).fetchone() or (None,)
        return None if keys is None else list(json.loads(keys))

    @_reports
    def studies(self) -> dict[str, dict[str, Any]]:
        """The definitions of all studies, by name."""
        return {name: json.loads(text) for name, text in self._db.execute("SELECT name, definition FROM studies")}

    @_reports
    def problems(self, study: str) -> dict[str, dict[str, Any]]:
        """What is known of a study's problems, by name."""
        found = self._db.execute("SELECT problems FROM studies WHERE name = ?", (study,)).fetchone()
        return {} if found is None else dict(json.loads(found[0]))

    @_reports
    def keep_reference(self, content: str, reference: Reference) -> None:
        """Keep the reference of the problem with this digest."""
        self._db.execute("INSERT OR REPLACE INTO problem_references VALUES (?, ?)", (content, reference.to_bytes()))

    @_reports
    def reference(self, content: str) -> Reference | None:
        """The reference of the problem with this digest, if there is one."""
        found = self._db.execute("SELECT data FROM problem_references WHERE content = ?", (content,)).fetchone()
        return None if found is None else Reference.from_bytes(found[0])


def _row(values: Row) -> Row:
    row = {n: json.loads(v) if _ALL[n] == "JSON" and v is not None else v for n, v in values.items()}
    return row if row["kind"] == "training" else {n: v for n, v in row.items() if n in COLUMNS}
