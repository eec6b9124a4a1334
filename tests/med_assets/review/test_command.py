"""The commands of the review: a server that answers until it is ended, decisions, and logins."""

import http.client
import os
import re
import signal
import subprocess
import sys
from contextlib import closing

import pytest

from med_assets.catalog import Catalog
from med_assets.cli.main import main
from med_assets.records import ReaderDecision
from med_assets.settings import Workspace
from tests.med_assets.review.builders import CaseRow, add_cases

P = "rt_dose"


def test_the_page_is_served_with_its_address_until_a_signal_ends_it(workspace: Workspace) -> None:
    add_cases(workspace, P, [CaseRow("a1", warnings="few slices")])
    command = [sys.executable, "-m", "med_assets.cli", "review", "--port", "0", "--reader", "reader one"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ))
    try:
        assert server.stdout is not None
        line = server.stdout.readline()
        assert line.startswith("review on http://127.0.0.1:")
        assert line.endswith("(this machine alone, as reader one)\n")
        connection = http.client.HTTPConnection(line.split()[2].removeprefix("http://"), timeout=60)
        with closing(connection):
            connection.request("GET", f"/{P}/")
            answer = connection.getresponse()
            page = answer.read().decode()
        assert (answer.status, answer.getheader("server")) == (200, None)
        assert "few slices" in page
        server.send_signal(signal.SIGTERM)
        assert server.wait(60) in (0, 143)
    finally:
        server.kill()
        output, errors = server.communicate()
    assert "Traceback" not in errors
    assert output == "", "no request is logged"


def test_the_page_is_not_bound_to_other_addresses_without_logins(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["review", "--host", "0.0.0.0", "--port", "0"]) == 1
    assert "med-assets review-login NAME" in capsys.readouterr().err
    assert main(["review", "--port", "70000"]) == 1
    assert "expected --port from 0 to 65535" in capsys.readouterr().err


def test_a_decision_of_the_command_line_is_that_of_its_reader_and_writes_the_dataset(
    workspace: Workspace, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MED_ASSETS_PERSON", "reader one")
    add_cases(workspace, P, [CaseRow("a1"), CaseRow("a2")])
    assert main(["decide", P, "a1", "exclude", "--note", "motion", "--reader", "reader two"]) == 0
    assert "a1: exclude, by reader two" in capsys.readouterr().out
    assert [case.case_id for case in Catalog(workspace, P).dataset().cases] == ["a2"]
    assert main(["cases", P]) == 0
    assert re.search(r"a1 +excluded", capsys.readouterr().out)
    assert main(["decide", P, "a1", "accept"]) == 0
    assert [case.case_id for case in Catalog(workspace, P).dataset().cases] == ["a1", "a2"]
    assert [row.reader for row in Catalog(workspace, P).rows(ReaderDecision)] == ["reader two", "reader one"]
    assert main(["decide", P, "a1", "exclude"]) == 1
    assert main(["decide", P, "a1", "comment", "--note", "x", "--reader", "a:b"]) == 1
    assert "expected a name of 1 to 64 characters" in capsys.readouterr().err
    assert main(["cases", P]) == 0
    assert "accept" in capsys.readouterr().out
