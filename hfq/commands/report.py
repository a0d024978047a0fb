"""`hfq report`: a delta's errors as a page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from hfq.console import emit, json_option
from hfq.paths import open_delta
from hfq.schema.atomic import write_file
from hfq.schema.documents import read_document
from hfq.schema.errors import MalformedFileError, OutputExistsError, UsageError

__all__ = ["report_command"]


@click.command("report")
@click.argument("delta")
@click.option("-o", "--out", type=click.Path(), required=True, help="HTML file to make.")
@click.option("--onnx", type=click.Path(), help="Report of verified graphs, from hfq verify --onnx -o; gets a section.")
@json_option
def report_command(delta: str, out: str, onnx: str | None, as_json: bool) -> None:
    """Render the errors that were measured while DELTA was made: one HTML file with static plots, no script."""
    from hfq.convert.report_html import render_report

    path = Path(out)
    if path.exists():
        raise OutputExistsError("the output is already there", where=path, todo="choose another name, or remove it")
    if not path.parent.is_dir():
        raise UsageError("the folder for the output does not exist", where=path.parent)
    with open_delta(delta) as opened:
        graphs = None if onnx is None else _graph_report(onnx)
        page = render_report(opened, graphs).encode()
        delta_id = opened.id
    write_file(path, page)
    emit({"report": str(path), "delta": delta_id, "size_bytes": len(page)}, f"report      {path}", as_json)


def _graph_report(path: str) -> dict[str, Any]:
    """A report of verified graphs.

    Raises:
        MalformedFileError: another file, such as the graph itself, which `hfq verify --onnx` takes.
    """
    try:
        return read_document(path, "onnx-report")
    except MalformedFileError as error:
        if Path(path).suffix != ".onnx":
            raise
        raise MalformedFileError(
            "not a report of verified graphs",
            where=path,
            expected="JSON from `hfq verify DELTA --base MODEL --onnx GRAPH -o REPORT`",
            found=error.what,
        ) from None
