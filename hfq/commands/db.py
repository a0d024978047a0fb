"""`hfq db`: the registry's file itself."""

from __future__ import annotations

import click

from hfq.console import emit, format_bytes, json_option, note
from hfq.registry import Registry, open_registry
from hfq.registry.status import NO_REGISTRY
from hfq.registry.text import printable
from hfq.schema.errors import MissingPathError

__all__ = ["db_command"]

_ADVICE = {
    "absent": "nothing is registered yet; `hfq register` creates it",
    "empty": "nothing is registered yet",
    "older": "of an older revision; `hfq db upgrade` backs it up and upgrades it",
    "current": "ready",
    "newer": "written by a newer hfq; upgrade hfq to use it",
}


@click.group("db")
def db_command() -> None:
    """Look after the registry's database file."""


@db_command.command("path")
@json_option
def db_path(as_json: bool) -> None:
    """Print where the registry is: HFQ_REGISTRY, or the user's data folder."""
    path = str(open_registry().path)
    emit({"path": path}, path, as_json)


@db_command.command("status")
@json_option
def db_status(as_json: bool) -> None:
    """Print the revision of the registry and how much it holds."""
    status = open_registry().status()
    lines = [
        f"path          {status.path}",
        f"state         {status.state}: {_ADVICE[status.state]}",
        f"revision      {printable(status.revision or 'none')}, this hfq uses {status.head}",
        f"size          {format_bytes(status.size_bytes)}",
    ]
    lines += [f"{name:<13} {count}" for name, count in status.counts.items()]
    document = {
        "path": str(status.path),
        "state": status.state,
        "revision": status.revision,
        "head": status.head,
        "size_bytes": status.size_bytes,
        "counts": status.counts,
    }
    emit(document, "\n".join(lines), as_json)


@db_command.command("upgrade")
@json_option
def db_upgrade(as_json: bool) -> None:
    """Bring the registry to this release; an older one is copied first."""
    from hfq.registry.upgrade import upgrade  # Alembic takes a third of a second to load

    done = upgrade(open_registry().database)
    if done.backup is not None:
        note(f"the old registry is kept as {done.backup}")
    if done.before == done.after:
        text = f"already at revision {done.after}"
    elif done.before is None:
        text = f"created at revision {done.after}"
    else:
        text = f"upgraded from revision {done.before} to {done.after}"
    document = {
        "path": str(done.path),
        "before": done.before,
        "after": done.after,
        "backup": None if done.backup is None else str(done.backup),
    }
    emit(document, text, as_json)


@db_command.command("check")
@json_option
def db_check(as_json: bool) -> int:
    """Check the file, the rows and every registered folder; write nothing.

    Exit code 1: the database is damaged. 2: there is no registry. 3: something no longer has the digest that was
    registered. 0: sound; a folder that has gone or cannot be read is only reported.
    """
    registry = open_registry()
    state = _state(registry)
    if state != "present":
        missing = MissingPathError("no registry to check", where=registry.path, todo=NO_REGISTRY)
        found = {"ok": False, "state": state, "findings": [], "error": missing.to_json()}
        note(f"hfq: {missing} [{missing.code}]")
        if as_json:
            emit(found, "", as_json)
        return missing.exit_code
    findings = registry.check()
    codes = {finding.exit_code for finding in findings}
    exit_code = 1 if 1 in codes else max(codes, default=0)
    document = {
        "ok": exit_code == 0,
        "state": state,
        "findings": [{"code": found.code, "where": found.where, "what": found.what} for found in findings],
    }
    lines = [f"{found.code}: {printable(found.where, 1000)}: {printable(found.what, 1000)}" for found in findings]
    lines.append("the registry is sound" if exit_code == 0 else "the registry is not sound")
    emit(document, "\n".join(lines), as_json)
    return exit_code


def _state(registry: Registry) -> str:
    """Without opening the database: a damaged one is for the check to describe."""
    if not registry.database.exists():
        return "absent"
    return "present" if registry.path.stat().st_size else "empty"
