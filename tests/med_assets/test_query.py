"""Law 9: SQL of anybody sees the tables of the lake alone, and takes no more than its share of the machine."""

import os
import resource
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import duckdb
import psutil
import pytest

from med_assets.cli.main import main
from med_assets.errors import ConfigurationError
from med_assets.settings import Workspace
from med_assets.storage import preloaded, query

ROW = {"program": "rt_dose", "case_id": "c", "reason": "moved away"}

BEYOND_THE_TABLES = """
select content from read_text('{file}')
select * from read_blob('/proc/self/environ')
select * from read_csv('{file}')
select * from read_csv_auto('{file}')
select * from read_json('{file}')
select * from read_ndjson_objects('{file}')
select * from read_parquet('{file}')
select * from parquet_scan('{file}')
select * from parquet_metadata('{file}')
select * from parquet_schema('{file}')
select * from read_duckdb('{file}')
select * from sniff_csv('{file}')
select * from glob('/*')
select * from '{file}'
select * from "{file}"
select * from 'https://example.org/x.parquet'
select * from 's3://bucket/x.parquet'
from '{file}'
describe select * from '{file}'
summarize '{file}'
select (select content from read_text('{file}')) from withdrawals
select * from withdrawals where reason in (select content from read_text('{file}'))
with w as (select * from read_text('{file}')) select * from w
select * from withdrawals, lateral (select * from read_text('{file}'))
select * from (values (1)) v union all select length(content) from read_text('{file}')
select [x for x in (select list(content) from read_text('{file}'))]
select * from query('select * from read_text(''{file}'')')
select * from query_table('{file}')
select * from json_execute_serialized_sql(json_serialize_sql('select * from ''{file}'''))
select * from arrow_scan(1, 2, 3)
select * from pandas_scan(1)
select * from seq_scan('withdrawals')
select * from secret_frame
select getenv('MED_ASSETS_PSEUDONYM_KEY')
select current_setting('home_directory')
select getvariable('x')
select write_log('x')
select pg_sleep(100)
select * from duckdb_settings()
select * from duckdb_secrets()
select * from duckdb_extensions()
select * from duckdb_databases()
select * from duckdb_views()
select * from duckdb_logs
select * from pragma_database_size()
select * from pragma_storage_info('withdrawals')
select * from sqlite_master
select * from pg_catalog.pg_class
select * from information_schema.schemata
select * from other.main.withdrawals
select * from other.withdrawals
show databases
show all tables
show variables
copy (select 1) to '{out}'
copy withdrawals to '{out}' (format parquet)
copy withdrawals from '{file}'
export database '{out}'
import database '{out}'
attach '{out}' as other
detach memory
use memory
install httpfs
load httpfs
load '{file}'
force install httpfs from 'https://example.org'
create table written as select 1
create or replace temp view withdrawals as select 1
create macro m(x) as x
create secret s (type s3, key_id 'x')
create function f(x) as (select content from read_text(x))
insert into withdrawals values ('a', 'b', 'c')
with x as (insert into withdrawals values ('a', 'b', 'c') returning *) select * from x
with x as (delete from withdrawals returning *) select * from x
with x as (update withdrawals set reason = 'x' returning *) select * from x
update withdrawals set reason = 'x'
delete from withdrawals
truncate withdrawals
drop table withdrawals
alter table withdrawals add column x int
comment on table withdrawals is 'x'
set enable_external_access = true
set variable x = 1
set temp_directory = '{out}'
reset lock_configuration
pragma database_list
pragma enable_logging
call pragma_version()
checkpoint
vacuum
begin transaction
prepare p as select 1
execute p
explain analyze select 1
select 1; select 2
select 1; copy (select 1) to '{out}'
select 1 /* ; */; drop table withdrawals
""".strip().splitlines()


def _refuse(sql: str) -> str:
    with duckdb.connect() as connection:

        def parse(text: str) -> str:
            ((found,),) = connection.execute(
                "select json_serialize_sql(?::varchar, skip_null := true, skip_empty := true, skip_default := true)",
                [text],
            ).fetchall()
            return str(found)

        with pytest.raises(ConfigurationError) as refused:
            query.check(sql, ["withdrawals", "raw_cases"], parse)
    return str(refused.value)


def _started(monkeypatch: pytest.MonkeyPatch, of: str) -> list[preloaded.Process]:
    """The processes of queries that are started from here on, which are forked or this one's own; they grow in number."""
    found: list[preloaded.Process] = []
    start = preloaded.start

    def noted(*given: Any, **more: Any) -> preloaded.Process:
        found.append(start(*given, **more))
        assert isinstance(found[-1], preloaded.Forked if of == "a parent" else subprocess.Popen)
        return found[-1]

    monkeypatch.setattr(preloaded, "start", noted)
    if of != "a parent":
        monkeypatch.setenv(preloaded.VARIABLE, "")
    return found


@pytest.fixture
def filled(workspace: Workspace) -> Workspace:
    workspace.lake.write("withdrawals", "rt_dose", [ROW])
    return workspace


@pytest.mark.parametrize("sql", BEYOND_THE_TABLES)
def test_what_reaches_beyond_the_tables_is_refused_before_it_runs(sql: str) -> None:
    assert "expected one SELECT over the tables of the lake" in _refuse(sql.format(file="/etc/passwd", out="/tmp/out"))


@pytest.mark.parametrize(
    "sql",
    [
        "select content from read_text('{file}')",
        "select * from '{file}'",
        "copy (select 1) to '{out}'",
        "attach '{out}' as other",
        "with x as (insert into withdrawals values ('a', 'b', 'c') returning *) select * from x",
        "select 1; copy (select 1) to '{out}'",
        "select * from secret_frame",
        "",
        "-- nothing",
        "select ?",
        "select \x00",
    ],
)
def test_a_command_with_such_a_query_fails_in_one_message_and_writes_nothing(
    filled: Workspace, tmp_path: Path, sql: str, capsys: pytest.CaptureFixture[str]
) -> None:
    secret_frame = [1]  # noqa: F841 - what DuckDB would find by its name in Python
    file, out = tmp_path / "secret.csv", tmp_path / "out"
    file.write_text("secret-of-the-file")
    assert main(["query", sql.format(file=file, out=out)]) == 1
    shown = "".join(capsys.readouterr())
    assert shown.startswith("med-assets query: ")
    assert "Traceback" not in shown
    assert "secret-of-the-file" not in shown
    assert not out.exists()


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ("select case_id, reason from withdrawals where program = 'rt_dose'", {"case_id": "c", "reason": "moved away"}),
        ("from withdrawals select case_id", {"case_id": "c"}),
        ("with w as (select * from WITHDRAWALS) select count(*) n from w join withdrawals using (case_id)", {"n": 1}),
        ("select count(*) as n from drift", {"n": 0}),
        ("select sum(i) as s, max(i::varchar) as m from range(10) t(i)", {"s": 45.0, "m": "9"}),
        ("select 1 as a, 2 as a", {"a": 1, "a_1": 2}),
        (
            "with recursive t(i) as (select 1 union all select i + 1 from t where i < 5) select max(i) m from t",
            {"m": 5},
        ),
        ("select column_name from (describe withdrawals) limit 1", {"column_name": "program"}),
        ("select table_name from information_schema.tables where table_name = 'splits'", {"table_name": "splits"}),
        ("select * from (show tables) where name = 'splits'", {"name": "splits"}),
        ("select x from withdrawals, unnest([reason]) u(x)", {"x": "moved away"}),
        ("select list_transform([1, 2], lambda v: v + 1)[2] as x, 'é☃' as y", {"x": 3, "y": "é☃"}),
    ],
)
def test_a_query_reads_the_tables_of_the_lake(filled: Workspace, sql: str, expected: dict[str, object]) -> None:
    assert filled.lake.query(sql).to_dict("records") == [expected]


@pytest.mark.parametrize(
    ("sql", "bound"),
    [
        ("select * from range(5000000)", "1,000,000 rows"),
        ("select repeat('x', 1000) from range(500000)", "256 MB"),
        ("select list_resize([1], 2000000000)", "Out of Memory"),
        ("select list(i) from range(1000000000) t(i)", "Out of Memory"),
        ("select " + "(" * 5000 + "1" + ")" * 5000, "nested at most 300"),
        ("select " + "+".join("1" * 5000), "nested at most 300"),
        ("select '" + "x" * 200000 + "'", "at most 100000 characters"),
    ],
)
def test_a_query_that_takes_too_much_is_refused(
    filled: Workspace, monkeypatch: pytest.MonkeyPatch, sql: str, bound: str
) -> None:
    with pytest.raises(ConfigurationError, match=bound):
        filled.lake.query(sql)
    if bound == "Out of Memory":
        monkeypatch.setenv(preloaded.VARIABLE, "")  # only of processes of this one it is known how much they took
        with pytest.raises(ConfigurationError, match=bound):
            filled.lake.query(sql)
        assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss < query.PROCESS_MEMORY_GB * 1e6


@pytest.mark.parametrize("of", ["a parent", "this process"])
def test_a_query_that_does_not_end_is_ended(filled: Workspace, monkeypatch: pytest.MonkeyPatch, of: str) -> None:
    started = _started(monkeypatch, of)
    monkeypatch.setattr(query, "QUERY_S", 2.0)
    with pytest.raises(ConfigurationError, match="within 2 s"):
        filled.lake.query(
            "select count(*) from range(1000000000) a, range(1000000000) b where hash(a.range + b.range) = 1"
        )
    assert [psutil.pid_exists(process.pid) for process in started] == [False]


@pytest.mark.parametrize("of", ["a parent", "this process"])
def test_its_process_has_nothing_but_what_it_needs(
    filled: Workspace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, of: str
) -> None:
    """Also where it is forked: its limits, its environment, its open files, its modules."""
    started = _started(monkeypatch, of)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    with (tmp_path / "open").open("wb") as left, ThreadPoolExecutor(1) as thread:
        os.set_inheritable(left.fileno(), True)
        long = "select count(*) from range(1000000000) a, range(1000000000) b where hash(a.range + b.range) = 1"
        answer = thread.submit(filled.lake.query, long)
        while not answer.done() and (
            not started or len(os.listdir(f"/proc/{started[0].pid}/task")) < query.QUERY_THREADS
        ):
            time.sleep(0.01)  # DuckDB starts its threads once all bounds are set
        process = psutil.Process(started[0].pid)
        limits, environment = (
            [process.rlimit(kind) for kind in (psutil.RLIMIT_DATA, psutil.RLIMIT_CORE)],
            process.environ(),
        )
        files = [os.readlink(file.path) for file in os.scandir(f"/proc/{process.pid}/fd")]
        mapped = {Path(region.path).name.partition(".")[0] for region in process.memory_maps()}
        process.kill()
        with pytest.raises(ConfigurationError, match="exit status -9"):
            answer.result()
    assert (limits[0][0], limits[1]) == (query.PROCESS_MEMORY_GB * 1e9, (0, 0))
    assert set(environment) <= {*query.ENVIRONMENT, *query.NO_ALGEBRA, "PYTHONPATH", "LC_CTYPE"}
    assert [name for name in files if not name.startswith(("pipe:", "anon_inode:"))] == []
    assert {"_duckdb", "pandas_parser"} & mapped == {"_duckdb"}


def test_a_query_sees_nothing_of_the_environment(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    assert {name for name in query.process_environment() if "MED" in name or "AWS" in name or "KEY" in name} == set()


def test_what_does_not_fit_into_memory_lies_below_the_home_and_is_gone_afterwards(filled: Workspace) -> None:
    filled.lake.query("select i from range(1000) t(i) order by hash(i)")
    left = [path for path in (filled.home / "tmp").rglob("*") if not path.name.startswith("scratch-")]
    assert left == []


def test_a_home_that_can_not_be_written_is_queried(filled: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Path) -> Path:
        raise PermissionError(13, os.strerror(13))

    monkeypatch.setattr("med_assets.storage.lake.scratch", refuse)
    assert len(filled.lake.query("select * from withdrawals")) == 1
