"""SQL of anybody over the tables of the lake, in a process of its own that may be ended.

`python -m med_assets.storage.query` is the process: it gets the query and the paths of the tables on stdin and answers with an Arrow
stream on stdout, or with exit status REFUSED and a message on stderr. DuckDB bounds what its operators hold, not what its
functions make (`repeat('x', 1e9)`), and can't be interrupted within one of them; the process can.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from med_assets.errors import ConfigurationError
from med_assets.storage import preloaded

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

QUERY_ROWS, QUERY_MB = 1_000_000, 256
"""Most rows of a result, and its most megabytes."""

QUERY_MEMORY_GB, PROCESS_MEMORY_GB = 2, 4
"""Memory that DuckDB may use for a query, and that the whole process may."""

QUERY_SPILL_GB = 10
"""Disk that a query may use for what does not fit into its memory; it is removed with the process."""

QUERY_S = 300.0
"""Seconds after which a query is ended."""

QUERY_THREADS = 2
"""Cores that a query may use."""

QUERY_CHARS, QUERY_DEPTH = 100_000, 300
"""Longest query, and its deepest nesting."""

DEPTH_EXCEEDED = "Max expression depth"
"""Words of DuckDB's message about a deeper one."""

REFUSED = 3
"""Exit status of a query that is not allowed or fails; the message is on stderr."""

TABLE_FUNCTIONS = ("generate_series", "json_each", "range", "unnest")
"""Functions that a query may read rows from: these make them of their arguments alone."""

NODES = ("SELECT_NODE", "SET_OPERATION_NODE", "RECURSIVE_CTE_NODE", "CTE_NODE")
"""Kinds of query nodes that read; the others write."""

POWERFUL = ("current_setting", "getenv", "getvariable", "pg_sleep", "setseed", "sleep_ms", "write_log")
"""Functions that reach the settings or the environment, or have an effect."""

SCHEMA_VIEWS = ("columns", "tables")
"""Views of information_schema that a query may read: which tables and columns there are."""

ENVIRONMENT = ("LANG", "LC_ALL", "LD_LIBRARY_PATH", "MLFLOW_DISABLE_TELEMETRY", "PATH", "TZ")
"""Variables that the process is started with, that of MLflow since this package sets it in whatever imports it; no other one of ours is in it."""

NO_ALGEBRA = {"OPENBLAS_NUM_THREADS": "1"}
"""Another variable of it: numpy, which Arrow imports, would else start a thread for each core, and a query has no use for them."""

IMPORTS = ("med_assets.storage.without_pandas", "duckdb", "pyarrow.dataset")
"""What the process imports, in this order."""

PRELOADED = {"med_assets.storage.query": ("med_assets.storage.preloaded", *IMPORTS)}
"""What `storage.preloaded.parents` imports, in `process_environment`, for the processes of many queries."""


def query(
    sql: str, files: Mapping[str, Sequence[str]], schemas: Mapping[str, "pa.Schema"], spill: Path | None
) -> "pd.DataFrame":
    """Result of one SELECT over tables, each the Parquet files of its name.

    The query sees these tables alone: no other file, no environment, no extension, no other database, and it writes nothing
    but what does not fit into memory, to a folder in `spill`, which is removed; without it nothing. Raises ConfigurationError
    for another statement, one that fails, and one that needs more than QUERY_ROWS, QUERY_MB, PROCESS_MEMORY_GB or QUERY_S.
    """
    import pyarrow as pa

    tables = {
        name: {"files": list(files.get(name, ())), "columns": {field.name: str(field.type) for field in schema}}
        for name, schema in schemas.items()
    }
    with nullcontext(None) if spill is None else tempfile.TemporaryDirectory(dir=spill) as folder:
        request = json.dumps({"sql": sql, "tables": tables, "spill": folder})
        given = request.encode(errors="surrogateescape")
        try:
            # -P: a module in the present folder is never imported
            done = preloaded.run([sys.executable, "-P", "-m", __name__], process_environment(), given, QUERY_S)
        except subprocess.TimeoutExpired:
            raise ConfigurationError(
                f"expected a query that ends within {QUERY_S:.0f} s, this one does not; read less with WHERE or LIMIT"
            ) from None
    if done.returncode == REFUSED:
        raise ConfigurationError(done.stderr.decode(errors="replace"))
    if done.returncode:
        raise ConfigurationError(
            f"expected a query that takes less than {PROCESS_MEMORY_GB} GB of memory, the process of this one ended (exit status "
            f"{done.returncode}); read less with WHERE or LIMIT, or make smaller values"
        )
    result = pa.ipc.open_stream(done.stdout).read_all()
    result = result.rename_columns(_unique(result.column_names))
    for index, column in enumerate(result.schema):
        if pa.types.is_decimal(column.type):  # sums of integers are
            result = result.set_column(index, column.name, result.column(index).cast(pa.float64()))
    return result.to_pandas()


def _unique(names: Sequence[str]) -> list[str]:
    """Names of which the second, third, ... of the same have a number, since a table for people and JSON need different ones."""
    unique: list[str] = []
    for name in names:
        number, free = 0, name
        while free in unique:
            number += 1
            free = f"{name}_{number}"
        unique.append(free)
    return unique


def process_environment() -> dict[str, str]:
    """The environment of the process, and of a parent that it is forked from: `ENVIRONMENT`, and where this package is."""
    searched = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    path = os.pathsep.join(dict.fromkeys(filter(None, (str(preloaded.ROOT), *searched))))
    return {name: os.environ[name] for name in ENVIRONMENT if name in os.environ} | NO_ALGEBRA | {"PYTHONPATH": path}


def check(sql: str, tables: Sequence[str], parse: Callable[[str], str]) -> None:
    """Raise ConfigurationError unless a query is one SELECT that reads these tables alone; `parse` gives DuckDB's syntax tree as JSON."""
    expected = "expected one SELECT over the tables of the lake"
    if len(sql) > QUERY_CHARS:
        raise ConfigurationError(f"expected a query of at most {QUERY_CHARS} characters, got {len(sql)}")
    try:
        tree = json.loads(parse(sql))
    except RecursionError:
        tree = {"error": True, "error_message": DEPTH_EXCEEDED}
    if DEPTH_EXCEEDED in str(tree.get("error_message")):
        raise ConfigurationError(f"expected a query nested at most {QUERY_DEPTH} deep, got a deeper one")
    if tree.get("error"):
        raise ConfigurationError(f"{expected}, got something else: {tree.get('error_message', 'no statement')}")
    if len(tree["statements"]) != 1:
        raise ConfigurationError(f"{expected}, got {len(tree['statements'])} statements")
    nodes = list(_nodes(tree))
    own = {str(entry["key"]).lower() for node in nodes for entry in node.get("map", ()) if isinstance(entry, dict)}
    known = {name.lower() for name in tables} | own
    for node in nodes:
        kind = node.get("type")
        if isinstance(kind, str) and kind.endswith("_NODE") and kind not in NODES:
            raise ConfigurationError(f"{expected}, got one that writes")
        if kind == "TABLE_FUNCTION":
            name = _name(node.get("function", {}), "function_name")
            if name not in TABLE_FUNCTIONS:
                raise ConfigurationError(
                    f"{expected}, got the function {name}; of those only {', '.join(TABLE_FUNCTIONS)} are allowed"
                )
        elif kind == "FUNCTION":
            name = _name(node, "function_name")
            if name in POWERFUL or name.startswith(("__internal", "duckdb_", "read_")):
                raise ConfigurationError(f"{expected}, got the function {name}, which reaches beyond them")
        elif kind == "SHOW_REF" and "query" not in node and node.get("table_name") != '"tables"':
            raise ConfigurationError(f"{expected}, or SHOW TABLES, got another SHOW")
        elif kind == "BASE_TABLE":
            name, schema = _name(node, "table_name"), str(node.get("schema_name", "")).lower()
            catalogue = bool(node.get("catalog_name"))
            if schema == "information_schema" and name in SCHEMA_VIEWS and not catalogue:
                continue
            if name not in known or schema not in ("", "main") or catalogue:
                raise ConfigurationError(f"{expected}, got another table; SHOW TABLES lists them")


def _name(node: Mapping[str, Any], field: str) -> str:
    path = node.get("qualified_name", {}).get("path")  # from DuckDB 2 on
    return str(path[-1] if path else node.get(field, "")).lower()


def _nodes(tree: Any) -> Iterator[dict[str, Any]]:
    waiting = [tree]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            yield one
            waiting += one.values()
        elif isinstance(one, list):
            waiting += one


def _answer(request: Mapping[str, Any]) -> None:
    """Run a query and write its result to stdout. Raises ConfigurationError, duckdb.Error."""
    import duckdb
    import pyarrow as pa
    import pyarrow.dataset as ds

    spill = request["spill"] or ""
    config = {"python_enable_replacements": "false", "temp_directory": spill}
    with duckdb.connect(config=config) as connection:
        for name, table in request["tables"].items():
            schema = pa.schema([(column, pa.type_for_alias(kind)) for column, kind in table["columns"].items()])
            files = table["files"]
            connection.register(
                name, ds.dataset(files, schema=schema, format="parquet") if files else schema.empty_table()
            )
        for setting in (
            "autoinstall_known_extensions = false",
            "autoload_known_extensions = false",
            "enable_external_access = false",
            f"max_expression_depth = {QUERY_DEPTH}",
            f"max_temp_directory_size = '{QUERY_SPILL_GB}GB'",
            f"memory_limit = '{QUERY_MEMORY_GB}GB'",
            f"threads = {QUERY_THREADS}",
            "lock_configuration = true",
        ):
            connection.execute(f"SET {setting}")

        def parse(sql: str) -> str:
            text = "select json_serialize_sql(?::varchar, skip_null := true, skip_empty := true, skip_default := true)"
            ((found,),) = connection.execute(text, [sql]).fetchall()
            return str(found)

        check(request["sql"], list(request["tables"]), parse)
        (statement,) = connection.extract_statements(request["sql"])
        if statement.type != duckdb.StatementType.SELECT:
            raise ConfigurationError("expected one SELECT over the tables of the lake, got something else")
        relation = connection.sql(statement)
        if relation is None:
            raise ConfigurationError("expected a query that gives rows, got one that gives none")
        stream = (
            relation.to_arrow_reader(2048)
            if hasattr(relation, "to_arrow_reader")
            else relation.fetch_arrow_reader(2048)
        )
        n_rows = n_bytes = 0
        with (
            os.fdopen(sys.stdout.fileno(), "wb", closefd=False) as out,
            pa.ipc.new_stream(out, stream.schema) as writer,
        ):
            for batch in stream:
                n_rows, n_bytes = n_rows + batch.num_rows, n_bytes + batch.nbytes
                if n_rows > QUERY_ROWS or n_bytes > QUERY_MB * 1e6:
                    raise ConfigurationError(
                        f"expected a result of at most {QUERY_ROWS:,} rows and {QUERY_MB} MB, got a larger one; read less with "
                        "WHERE or LIMIT, or aggregate"
                    )
                writer.write_batch(batch)


def main() -> int:
    """The process: one request as JSON on stdin."""
    preloaded.end_with(os.getppid())  # had it ended before, nobody reads the answer
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    wanted = int(PROCESS_MEMORY_GB * 1e9)
    resource.setrlimit(resource.RLIMIT_DATA, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core file would hold rows
    request = json.loads(sys.stdin.buffer.read().decode(errors="surrogateescape"))
    for name in IMPORTS:
        import_module(name)
    import duckdb
    import pyarrow as pa

    try:
        _answer(request)
    except ConfigurationError as error:
        message = str(error)
    except (duckdb.Error, pa.ArrowException, MemoryError, OSError) as error:
        # DuckDB's advice is about settings, which are locked here
        message = f"the query failed: {str(error).partition('Possible solutions')[0].strip() or type(error).__name__}"
    else:
        return 0
    sys.stderr.buffer.write(message.encode(errors="backslashreplace"))
    return REFUSED


if __name__ == "__main__":
    sys.exit(main())
