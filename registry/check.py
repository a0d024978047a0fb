"""`hfq db check`: is the file sound, do the rows agree with each other, do the folders still hold what they held?"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.orm import Session

from hfq.schema.canonical import canonical_json, sha256_hex
from hfq.schema.errors import HfqError, UnreadableFileError

from .check_clips import check_clips
from .check_scores import check_scores, unknown_variants
from .database import Database
from .finding import Finding
from .folder import base_id, read_delta_folder
from .models import Base, Delta, Edge, KeptSite, Location, Recipe
from .text import display_id

__all__ = ["Finding", "check_database"]


def check_database(database: Database) -> list[Finding]:
    """Everything that can be checked without writing; an empty list is a sound registry.

    Raises:
        RegistryVersionError
        NotARegistryError, RegistryDamagedError: the file cannot even be opened.
    """
    with database.reading() as session:
        findings = list(_damage(session))
        if findings:  # the rows of a damaged file would only repeat the same news
            return findings
        for part in (_contradictions, check_clips, check_scores, unknown_variants):
            findings += part(session)
        places = session.execute(sa.select(Location.folder, Delta.id).join(Delta).order_by(Location.key)).all()
    # Folders are read after the session: reading gigabytes must not keep a snapshot open.
    return findings + [finding for folder, delta_id in places for finding in _folder(Path(folder), delta_id)]


def _damage(session: Session) -> Iterator[Finding]:
    connection = session.connection()
    try:
        for line in connection.exec_driver_sql("PRAGMA integrity_check").scalars():
            if line != "ok":
                yield Finding("damaged", "integrity_check", str(line), 1)
        for table, rowid, parent, _ in connection.exec_driver_sql("PRAGMA foreign_key_check"):
            yield Finding("damaged", f"{table} row {rowid}", f"its row in {parent} is missing", 1)
    except sa.exc.DatabaseError as error:  # some damage ends the check itself
        yield Finding("damaged", "integrity_check", str(error.orig), 1)


def _contradictions(session: Session) -> Iterator[Finding]:
    for recipe in session.scalars(sa.select(Recipe)):
        try:
            matches = sha256_hex(canonical_json(json.loads(recipe.document))) == recipe.id
        except ValueError:
            matches = False
        if not matches:
            yield Finding("recipe-changed", display_id(recipe.id, "recipe"), "the stored recipe has another id", 3)
    for base in session.scalars(sa.select(Base)):
        if base_id({expert.role: expert.bf16_root for expert in base.experts}) != base.id:
            yield Finding("base-changed", display_id(base.id, "base"), "the stored roots have another id", 3)
    counts = sa.select(KeptSite.delta_key, sa.func.count().label("count")).group_by(KeptSite.delta_key).subquery()
    wrong = (
        sa.select(Delta.id)
        .outerjoin(counts, counts.c.delta_key == Delta.key)
        .where(Delta.kept != sa.func.coalesce(counts.c.count, 0))
    )
    for delta_id in session.scalars(wrong):
        yield Finding("kept-sites", display_id(delta_id), "the number of kept sites is not the recorded one", 1)
    for relation, parent in (("bound-to", Base), ("made-by", Recipe)):
        key = Delta.base_key if parent is Base else Delta.recipe_key
        edge = sa.select(Edge.child_id).where(
            Edge.child_id == Delta.id, Edge.relation == relation, Edge.parent_id == parent.id
        )
        missing = sa.select(Delta.id).join(parent, parent.key == key).where(~edge.exists())
        for delta_id in session.scalars(missing):
            yield Finding("edges", display_id(delta_id), f"its edge {relation} is missing", 1)
    orphans = sa.select(Edge.child_id, Edge.relation).where(
        ~sa.select(Delta.key).where(Delta.id == Edge.child_id).exists()
    )
    for child_id, relation in session.execute(orphans):
        yield Finding("edges", display_id(child_id), f"an edge {relation} of a delta that is not registered", 1)


def _folder(folder: Path, delta_id: str) -> Iterator[Finding]:
    where = f"{display_id(delta_id)} in {folder}"
    if not folder.is_dir():
        yield Finding("folder-gone", where, "the folder has gone", 0)
        return
    try:
        found = read_delta_folder(folder).id
    except UnreadableFileError as error:
        yield Finding("folder-unreadable", where, str(error), 0)
        return
    except HfqError as error:
        yield Finding("folder-changed", where, str(error), 3)
        return
    if found != delta_id:
        yield Finding("folder-changed", where, f"the folder holds {display_id(found)} now", 3)
