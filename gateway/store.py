"""The database: one SQLite file, one writer thread, group commit.

`persisted` must mean "on disk" and 500 presses a second must fit on one disk, so all writes that wait share
one transaction and one fsync (WAL, synchronous=FULL). A write that fails takes back itself and nothing else: the
transaction is then taken back and run again, each write in a savepoint of its own. The future of a write is resolved after COMMIT has returned, never before.

What goes wrong with the disk is told apart:

    busy or locked    the batch waits and is tried again until `busy_deadline_s`, then every write in it gets
    Unavailable full, I/O error   Unavailable("cannot process ...") at once; nothing of the batch is kept
    anything else     the exception of the one write that raised it

A write function may therefore run more than once; it must have no effect but on its connection.

Tables are declared by the packages that own them on `metadata`; what is created is decided by
gateway/migrations alone, and a test holds the two together. Writes beside the writer thread don't exist:
readers are opened with `query_only`.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import itertools
import logging
import os
import random
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from sqlalchemy import Connection, Engine, MetaData, Table, create_engine, event, insert
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import QueuePool, StaticPool
from sqlalchemy.sql import Executable

from gateway.errors import Unavailable

__all__ = ["Prepared", "Store", "StoreHealth", "defer", "deferred", "flush", "insert_rows", "metadata"]

logger = logging.getLogger(__name__)

T = TypeVar("T")
I = TypeVar("I")  # noqa: E741 - an item

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

MIGRATIONS = Path(__file__).parent / "migrations"
MAX_BATCH = 512
"""Urgent writes in one transaction. More would delay the first of them for no gain: the fsync is shared long
before.
"""
MAX_ORDINARY = 64
"""Other writes in one transaction, which is cut short once an urgent one waits."""
SLICE_S = 0.004
"""How long a transaction of other writes may go on once an urgent one waits."""
MAX_WAITING = 20_000
"""Writes that may wait. Beyond it a write is refused with Unavailable; a press is then not acknowledged
and comes again.
"""
_BUSY = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
_BROKEN = {
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_NOTADB,
    sqlite3.SQLITE_NOMEM,
}
_DEFERRED = "gateway.deferred"
_ROWS_A_STATEMENT = 32
"""Rows of one multi-row INSERT. Each call into SQLite gives the interpreter lock away and has to win it back."""
_BUSY_TIMEOUT_MS = 100
"""How long SQLite itself spins on a lock before our own bounded retry takes over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreHealth:
    """writable: the last attempt to write went through and none waits on a lock. reason: empty when writable.

    waiting: writes not yet committed. commits and writes: totals since open, whose quotient is the group
    size.
    """

    writable: bool
    reason: str
    waiting: int
    commits: int
    writes: int


Values = dict[str, Any]


class Prepared:
    """A statement compiled once. It runs on the driver's cursor, a tenth of the cost of `Connection.execute`.

    For hot statements only: what it returns is the driver's (tuples, booleans as 0 and 1). Parameters go by
    the names of its bindparams or columns.
    """

    __slots__ = ("_defaults", "_order", "_sql", "_statement")

    def __init__(self, statement: Executable) -> None:
        self._statement = statement
        self._sql = ""
        self._order: list[str] = []
        self._defaults: Values = {}

    def run(self, connection: Connection, values: Mapping[str, Any]) -> sqlite3.Cursor:
        if not self._sql:
            self._compile(connection)
        defaults = self._defaults
        return _driver(connection).execute(
            self._sql, [values[name] if name in values else defaults[name] for name in self._order]
        )

    def run_many(self, connection: Connection, rows: Sequence[Mapping[str, Any]]) -> None:
        """For each row of values, in one call into the driver."""
        if not self._sql:
            self._compile(connection)
        defaults, order = self._defaults, self._order
        _driver(connection).executemany(
            self._sql,
            [[values[name] if name in values else defaults[name] for name in order] for values in rows],
        )

    def first(self, connection: Connection, values: Mapping[str, Any]) -> Any:
        """The first row or None."""
        return self.run(connection, values).fetchone()

    def _compile(self, connection: Connection) -> None:
        compiled = self._statement.compile(dialect=connection.dialect)  # type: ignore[attr-defined]
        self._order = list(compiled.positiontup or ())
        self._defaults = dict(compiled.params)
        self._sql = str(compiled)


class _Deferred:
    """Rows of one transaction that are inserted together right before its COMMIT, by table, in their order."""

    __slots__ = ("_marks", "_put_aside", "inserted", "rows")

    def __init__(self) -> None:
        self.rows: dict[Table, list[Values]] = {}
        self.inserted: dict[Table, list[Values]] = {}
        self._marks: dict[Table, int] = {}
        self._put_aside: tuple[dict[Table, list[Values]], dict[Table, int]] | None = None

    def clear(self) -> None:
        self.rows, self.inserted, self._put_aside = {}, {}, None

    def savepoint(self) -> None:
        self._marks = {table: len(rows) for table, rows in self.rows.items()}
        self._put_aside = None

    def roll_back(self) -> None:
        """Forgets the rows since `savepoint`, and has those before it again if they were flushed meanwhile."""
        if self._put_aside is not None:
            self.rows, inserted = self._put_aside
            self.inserted = {table: self.inserted[table][:count] for table, count in inserted.items()}
        self.rows = {table: rows[: self._marks.get(table, 0)] for table, rows in self.rows.items()}

    def flush(self, connection: Connection) -> None:
        rows, self.rows = self.rows, {}
        if self._put_aside is None:
            self._put_aside = rows, {table: len(done) for table, done in self.inserted.items()}
        for table, some in rows.items():
            if some:
                insert_rows(connection, table, some)
                self.inserted.setdefault(table, []).extend(some)


def defer(connection: Connection, table: Table, row: Values) -> None:
    """Within a write: inserts `row` together with all other rows of the transaction, right before its COMMIT.

    All deferred rows of a table name the same columns. Who reads the table in a write calls `flush` first.
    """
    waiting: _Deferred | None = connection.info.get(_DEFERRED)
    if waiting is None:
        insert_rows(connection, table, [row])
    else:
        rows = waiting.rows.get(table)
        if rows is None:
            waiting.rows[table] = [row]
        else:
            rows.append(row)


def deferred(connection: Connection, table: Table) -> Sequence[Values]:
    """The rows of this table that are not inserted yet."""
    waiting: _Deferred | None = connection.info.get(_DEFERRED)
    return () if waiting is None else waiting.rows.get(table, ())


def flush(connection: Connection) -> None:
    """Within a write: inserts what is deferred, so that it can be read."""
    waiting: _Deferred | None = connection.info.get(_DEFERRED)
    if waiting is not None:
        waiting.flush(connection)


_INSERTS: dict[tuple[Table, tuple[str, ...]], tuple[str, str]] = {}


def insert_rows(connection: Connection, table: Table, rows: list[Values]) -> None:
    """Multi-row INSERTs of rows that name the same columns. A row without a value for an integer primary key gets it as `id`."""
    names = tuple(rows[0])
    parts = _INSERTS.get((table, names))
    if parts is None:
        statement = insert(table).compile(dialect=connection.dialect, column_keys=names)
        head, _, _ = str(statement).partition(" (")
        columns = ", ".join(connection.dialect.identifier_preparer.quote(name) for name in names)
        parts = f"{head} ({columns}) VALUES ", f"({', '.join('?' * len(names))})"
        _INSERTS[table, names] = parts
    raw, numbered = _driver(connection), "id" in table.c and "id" not in names
    for start in range(0, len(rows), _ROWS_A_STATEMENT):
        some = rows[start : start + _ROWS_A_STATEMENT]
        cursor = raw.execute(
            parts[0] + ", ".join([parts[1]] * len(some)), [row[name] for row in some for name in names]
        )
        if numbered:  # one writer: the numbers of one statement follow one another
            first = (cursor.lastrowid or 0) - len(some) + 1
            for offset, row in enumerate(some):
                row["id"] = first + offset


def _driver(connection: Connection) -> sqlite3.Connection:
    raw = connection.connection.dbapi_connection
    assert isinstance(raw, sqlite3.Connection)  # noqa: S101 - ours to know, narrows the type
    return raw


class _Write(Generic[T]):
    """One write on its way: what to run and whom to tell. many: takes the items of all such writes in a row at once."""

    __slots__ = ("error", "future", "item", "many", "ordinary", "result", "run")

    def __init__(
        self,
        future: asyncio.Future[T],
        run: Callable[[Connection], T],
        *,
        ordinary: bool,
        many: Callable[[Connection, list[Any]], list[T]] | None = None,
        item: Any = None,
    ) -> None:
        self.run = run
        self.ordinary = ordinary
        self.many = many
        self.item = item
        self.future = future
        self.result: T | None = None
        self.error: BaseException | None = None

    def resolve(self) -> None:
        """On the loop. A caller that went away (cancelled) is no reason to undo what is committed."""
        if self.future.done():
            return
        if self.error is not None:
            self.future.set_exception(self.error)
        else:
            self.future.set_result(self.result)  # type: ignore[arg-type]


class Store:
    """Use `await Store.open(path)`; close with `await store.close()`, which commits what waits."""

    def __init__(self, path: Path, *, readers: int, busy_deadline_s: float) -> None:
        self.path = path
        self._loop = asyncio.get_running_loop()
        self._busy_deadline_s = busy_deadline_s
        self._waiting: deque[_Write[Any]] = deque()
        self._urgent: deque[_Write[Any]] = deque()
        self._wake = threading.Condition()
        self._closing = False
        self._others_turn = False
        self._trouble = ""
        self._commits = 0
        self._writes = 0
        self._commit_listeners: list[Callable[[], object]] = []
        self._listeners: list[tuple[Table, Callable[[list[Values]], None]]] = []
        self._lock_file = _hold(path)
        self._writer_engine = _engine(path, writer=True)
        self._reader_engine = _engine(path, writer=False, readers=readers)
        self._readers = ThreadPoolExecutor(readers, thread_name_prefix="store-reader")
        self._thread = threading.Thread(target=self._run, name="store-writer", daemon=True)

    @classmethod
    async def open(cls, path: Path | str, *, readers: int = 2, busy_deadline_s: float = 30.0) -> Store:
        """Takes the lock on the file, migrates it to the newest schema and starts the writer.

        Raises Unavailable if another process holds the file (says which) or it can't be opened.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        store = cls(path, readers=readers, busy_deadline_s=busy_deadline_s)
        try:
            await asyncio.to_thread(store._migrate)
        except BaseException as exc:
            store._dispose()
            if isinstance(exc, DBAPIError):
                raise Unavailable(f"database {path} can't be opened: {exc.orig}") from exc
            raise
        store._thread.start()
        return store

    async def write(self, fn: Callable[[Connection], T], *, urgent: bool = False) -> T:
        """Runs `fn(connection)` on the writer thread and returns its result once it is on disk.

        `fn` may run more than once and must touch nothing but the connection. What it raises is raised here
        and its changes alone are undone. Raises Unavailable when the database is locked for too long, full,
        broken or overloaded. `urgent` (a press) goes before what waits; those that are not stay in order.
        """
        future: asyncio.Future[T] = self._loop.create_future()
        self._queue(_Write(future, fn, ordinary=not urgent))
        return await future

    async def write_together(
        self, many: Callable[[Connection, list[I]], list[T]], item: I, *, urgent: bool = False
    ) -> T:
        """As write(), of `many(connection, [item])[0]`; but what waits with the same `many` is handed to it at once, which
        costs a few statements for all instead of some for each. If it raises, it is asked for each item by itself."""
        future: asyncio.Future[T] = self._loop.create_future()
        alone: Callable[[Connection], T] = lambda connection: many(connection, [item])[0]  # noqa: E731
        self._queue(_Write(future, alone, ordinary=not urgent, many=many, item=item))
        return await future

    def _queue(self, write: _Write[Any]) -> None:
        with self._wake:
            if self._closing:
                raise Unavailable("the database is closed")
            queue = self._waiting if write.ordinary else self._urgent
            if len(queue) >= MAX_WAITING:
                raise Unavailable("cannot process: too many writes are waiting", retry_after_s=2.0)
            queue.append(write)
            self._wake.notify()

    async def read(self, fn: Callable[[Connection], T]) -> T:
        """Runs `fn(connection)` on a reader thread in one snapshot of what is committed."""
        try:
            return await self._loop.run_in_executor(self._readers, self._read, fn)
        except (DBAPIError, sqlite3.Error) as exc:
            code = _code(exc)
            if code in _BUSY or code in _BROKEN:
                raise Unavailable(f"cannot read the database: {_reason(exc)}") from exc
            raise

    def on_inserted(self, table: Table, listener: Callable[[list[Values]], None]) -> None:
        """`listener(rows)` is called on the loop with the deferred rows of this table that a commit has written.

        In the order of commits. It must not block.
        """
        self._listeners.append((table, listener))

    def on_commit(self, listener: Callable[[], object]) -> None:
        """`listener()` is called on the loop after each commit. It must not block."""
        self._commit_listeners.append(listener)

    def health(self) -> StoreHealth:
        return StoreHealth(
            writable=not self._trouble,
            reason=self._trouble,
            waiting=len(self._waiting) + len(self._urgent),
            commits=self._commits,
            writes=self._writes,
        )

    async def close(self) -> None:
        """Commits what waits, then closes. Idempotent."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        if self._thread.is_alive():
            await asyncio.to_thread(self._thread.join)
        self._readers.shutdown(wait=True)
        self._dispose()

    # ---- threads
    # ------------------------------------------------------------------------------------------------

    def _read(self, fn: Callable[[Connection], T]) -> T:
        with self._reader_engine.begin() as connection:
            return fn(connection)

    def _run(self) -> None:
        connection = self._writer_engine.connect()
        waiting = connection.info[_DEFERRED] = _Deferred()
        try:
            while True:
                with self._wake:
                    while not (self._waiting or self._urgent or self._closing):
                        self._wake.wait()
                    batch = self._next()
                    if not batch:
                        return
                batch = self._commit(connection, batch)
                with contextlib.suppress(RuntimeError):  # the loop is gone: nobody is left to be told
                    self._loop.call_soon_threadsafe(self._resolve, batch, waiting.inserted)
        finally:
            connection.close()

    def _next(self) -> list[_Write[Any]]:
        """What goes into the next transaction. Urgent writes have one to themselves; then it is the others' turn."""
        if self._urgent and not (self._others_turn and self._waiting):
            self._others_turn = True
            return [self._urgent.popleft() for _ in range(min(len(self._urgent), MAX_BATCH))]
        self._others_turn = False
        return [self._waiting.popleft() for _ in range(min(len(self._waiting), MAX_ORDINARY))]

    def _resolve(self, batch: list[_Write[Any]], inserted: dict[Table, list[Values]]) -> None:
        # Who wrote alone keeps in memory what is on disk (calls): the news of it must not come before that is taken over.
        # Of those that wrote together there are hundreds in a storm: what listeners start (the courier) goes before them.
        for write in batch:
            if write.many is None:
                write.resolve()
        for table, listener in self._listeners:
            if table in inserted:
                listener(inserted[table])
        for write in batch:
            if write.many is not None:
                write.resolve()
        for notice in self._commit_listeners:
            notice()

    def _commit(self, connection: Connection, batch: list[_Write[Any]]) -> list[_Write[Any]]:
        """Commits the batch, or gives every write of it an error. Never raises. Returns what was done; the rest of a batch
        that was cut short waits again."""
        deadline = time.monotonic() + self._busy_deadline_s
        attempt, careful = 0, False
        while True:
            try:
                done = self._attempt(connection, batch, careful=careful)
            except Exception as exc:
                _rollback(connection)
                connection.info[_DEFERRED].clear()
                code = _code(exc)
                waited_out = time.monotonic() >= deadline or self._closing
                if code in _BUSY and not waited_out:
                    if not self._trouble:
                        logger.warning("database is locked by someone else, waiting")
                    self._trouble = "locked"
                    time.sleep(random.uniform(0.005, min(0.25, 0.01 * 2**attempt)))
                    attempt = min(attempt + 1, 10)
                    continue
                known = code in _BUSY or code in _BROKEN
                if not known and not careful:
                    careful = True  # one of them is at fault: again, so that the others don't suffer
                    continue
                self._trouble = _reason(exc)
                logger.error("a transaction of %d writes failed: %s", len(batch), exc)
                for write in batch:
                    write.error = Unavailable(f"cannot process: {self._trouble}") if known else exc
                return batch
            if self._trouble:
                logger.info("database is writable again")
            self._trouble = ""
            self._commits += 1
            self._writes += done
            if done < len(batch):
                with self._wake:
                    self._waiting.extendleft(reversed(batch[done:]))
            return batch[:done]

    def _attempt(self, connection: Connection, batch: list[_Write[Any]], *, careful: bool) -> int:
        """One BEGIN IMMEDIATE ... COMMIT over the batch, or as much of it as fits in a slice while an urgent write waits; how
        much that was. `careful`: each write has a savepoint; then only what concerns all of it is raised.
        """
        waiting: _Deferred = connection.info[_DEFERRED]
        waiting.clear()
        until, done = time.monotonic() + SLICE_S, 0
        with connection.begin():
            raw = _driver(connection)
            while done < len(batch):
                write = batch[done]
                if careful:
                    self._run_one(connection, raw, waiting, write)
                    done += 1
                elif write.many is None:
                    write.result, write.error = write.run(connection), None
                    done += 1
                else:
                    group = [write]
                    for other in itertools.islice(batch, done + 1, None):
                        if other.many is not write.many:
                            break
                        group.append(other)
                    answers = write.many(connection, [one.item for one in group])
                    for one, answer in zip(group, answers, strict=True):
                        one.result, one.error = answer, None
                    done += len(group)
                if self._urgent and time.monotonic() > until and batch[0].ordinary:
                    break
            waiting.flush(connection)
        return done

    def _run_one(
        self, connection: Connection, raw: sqlite3.Connection, waiting: _Deferred, write: _Write[Any]
    ) -> None:
        write.result = write.error = None
        waiting.savepoint()
        raw.execute("SAVEPOINT one_write")
        try:
            write.result = write.run(connection)
        except Exception as exc:
            code = _code(exc)
            if code in _BUSY or code in _BROKEN or not raw.in_transaction:
                raise  # SQLite may have rolled back the whole transaction (lang_transaction 3.1)
            raw.execute("ROLLBACK TO one_write")
            waiting.roll_back()
            write.error = exc
        raw.execute("RELEASE one_write")

    def _migrate(self) -> None:
        # Imported here: alembic pulls in mako and more, which only an opening store needs.
        from alembic import command
        from alembic.config import Config

        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
        config.set_main_option("path_separator", "os")
        with self._writer_engine.connect() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, "heads")

    def _dispose(self) -> None:
        self._writer_engine.dispose()
        self._reader_engine.dispose()
        self._lock_file.close()


def _hold(path: Path) -> Any:
    """Takes the advisory lock beside the database for the life of the process. Two writers would break the
    audit chain.
    """
    lock_path = path.with_name(path.name + ".lock")
    try:
        lock = open(lock_path, "a+", encoding="ascii")  # noqa: SIM115 - held open as long as the store
    except OSError as exc:
        raise Unavailable(f"cannot open {lock_path}: {exc.strerror}") from exc
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        holder = lock.read(64).strip() or "unknown"
        lock.close()
        raise Unavailable(
            f"{path} is in use by another gateway (pid {holder}); stop it or name another --data"
        ) from None
    lock.seek(0)
    lock.truncate()
    lock.write(str(os.getpid()))
    lock.flush()
    return lock


def _engine(path: Path, *, writer: bool, readers: int = 1) -> Engine:
    def connect() -> sqlite3.Connection:
        # isolation_level=None: the driver starts no transactions of its own, we do (savepoints need it).
        raw = sqlite3.connect(
            path,
            isolation_level=None,
            check_same_thread=False,
            timeout=_BUSY_TIMEOUT_MS / 1000,
            cached_statements=512,
        )
        try:
            if writer:
                raw.execute("PRAGMA journal_mode=WAL")
                raw.execute("PRAGMA synchronous=FULL")
                raw.execute("PRAGMA journal_size_limit=67108864")
            else:
                raw.execute("PRAGMA query_only=ON")
            raw.execute("PRAGMA foreign_keys=ON")
        except BaseException:
            raw.close()
            raise
        return raw

    if writer:
        engine = create_engine("sqlite://", creator=connect, poolclass=StaticPool)
    else:
        engine = create_engine(
            "sqlite://", creator=connect, poolclass=QueuePool, pool_size=readers, max_overflow=0
        )
    begin = "BEGIN IMMEDIATE" if writer else "BEGIN"

    @event.listens_for(engine, "begin")
    def on_begin(connection: Connection) -> None:
        connection.exec_driver_sql(begin)

    return engine


def _rollback(connection: Connection) -> None:
    """Leaves no transaction open, whatever state the failure left behind."""
    with contextlib.suppress(Exception):
        if connection.in_transaction():
            connection.rollback()
    raw = connection.connection.dbapi_connection
    if isinstance(raw, sqlite3.Connection) and raw.in_transaction:
        raw.rollback()


def _code(exc: BaseException) -> int | None:
    """The primary result code of SQLite behind an exception, or None."""
    origin = exc.orig if isinstance(exc, DBAPIError) else exc
    code = getattr(origin, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF


def _reason(exc: BaseException) -> str:
    origin = exc.orig if isinstance(exc, DBAPIError) else exc
    return str(origin) or type(origin).__name__
