"""Imports of scores, costs and reviews, which can be withdrawn; seeds of scored clips.

Rows that came together become one import. Scores of measured clips are joined with those of the base that were measured
beside them.

Revision ID: 0009
Revises: 0008
"""

from __future__ import annotations

import hashlib
import heapq
import json
from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
KIND = "variant_kind IN ('delta', 'base')"
MEASURED = "hfq"
"""The suite of clips that hfq measured itself: the variant's and the base's scores were written one after the other."""


def upgrade() -> None:
    """Create the tables, sort the rows into imports, and say of each score whether it counts."""
    op.create_table(
        "score_import",
        sa.Column("key", KEY, nullable=False),
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("kind", sa.String(10), nullable=False),
        sa.Column("variant_kind", sa.String(10), nullable=False),
        sa.Column("variant_id", sa.String(64), nullable=False),
        sa.Column("imported_at", sa.String(32), nullable=False),
        sa.Column("withdrawn_at", sa.String(32), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.CheckConstraint("kind IN ('scores', 'cost', 'review')", name=op.f("ck_score_import_kind")),
        sa.CheckConstraint(KIND, name=op.f("ck_score_import_variant_kind")),
        sa.CheckConstraint("(withdrawn_at IS NULL) = (reason IS NULL)", name=op.f("ck_score_import_withdrawn")),
        sa.PrimaryKeyConstraint("key", name="pk_score_import"),
        sa.UniqueConstraint("id", name="uq_score_import_id"),
    )
    op.create_index("ix_score_import_variant_id", "score_import", ["variant_id"])
    op.create_table(
        "score_import_item",
        sa.Column("import_key", KEY, nullable=False),
        sa.Column("score_key", KEY, nullable=False),
        sa.ForeignKeyConstraint(
            ["import_key"], ["score_import.key"], name="fk_score_import_item_import_key_score_import",
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["score_key"], ["score.key"], name="fk_score_import_item_score_key_score", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("import_key", "score_key", name="pk_score_import_item"),
        sqlite_with_rowid=False,
    )  # fmt: skip
    op.create_index("ix_score_import_item_score_key", "score_import_item", ["score_key"])
    op.add_column("score_video", sa.Column("seed", sa.BigInteger(), nullable=True))
    op.add_column("score", sa.Column("counts", sa.Boolean(), nullable=True))
    op.add_column("measurement", sa.Column("import_key", KEY, nullable=True))
    op.add_column("review", sa.Column("import_key", KEY, nullable=True))
    _fill(op.get_bind())
    _constrain()


def _constrain() -> None:
    op.drop_index("ix_score_of_base", "score")
    with op.batch_alter_table("score") as batch:
        batch.drop_constraint("fk_score_superseded_by_score", type_="foreignkey")
        batch.drop_column("superseded_by")
        batch.alter_column("counts", existing_type=sa.Boolean(), nullable=False)
    op.create_index(
        "ix_score_of_base",
        "score",
        ["metric", "base_key", "counts", "metric_suite", "prompt_set", "direction", "settings_key", "mean"],
    )
    with op.batch_alter_table("measurement") as batch:
        batch.alter_column("import_key", existing_type=KEY, nullable=False)
        batch.create_foreign_key("fk_measurement_import_key_score_import", "score_import", ["import_key"], ["key"])
    op.create_index("ix_measurement_import_key", "measurement", ["import_key"])
    with op.batch_alter_table("review") as batch:
        batch.drop_constraint("uq_review_variant_id_source_sha256_position", type_="unique")
        batch.alter_column("import_key", existing_type=KEY, nullable=False)
        batch.create_foreign_key("fk_review_import_key_score_import", "score_import", ["import_key"], ["key"])
        batch.create_unique_constraint("uq_review_import_key_position", ["import_key", "position"])


class _Import:
    """Rows that came together. `content` is what the id is made of, `keys` are the rows."""

    def __init__(self, kind: str, variant: tuple[str, str], at: str) -> None:
        self.kind, self.variant, self.at = kind, variant, at
        self.content: list[Any] = []
        self.keys: list[int] = []

    @property
    def id(self) -> str:
        content = sorted(self.content) if self.kind == "scores" else self.content
        text = json.dumps([self.kind, *self.variant, self.at, content])
        return hashlib.sha256(text.encode()).hexdigest()


def _fill(connection: sa.Connection) -> None:
    connection.execute(sa.text("UPDATE score SET counts = (superseded_by IS NULL)"))
    kinds = [_in_time(part) for part in (_scores(connection), _costs(connection), _reviews(connection))]
    insert = sa.text(
        "INSERT INTO score_import (key, id, kind, variant_kind, variant_id, imported_at) "
        "VALUES (:key, :id, :kind, :variant_kind, :variant_id, :at)"
    )
    item = sa.text("INSERT INTO score_import_item (import_key, score_key) VALUES (:import_key, :key)")
    cost = sa.text("UPDATE measurement SET import_key = :import_key WHERE key = :key")
    review = sa.text("UPDATE review SET import_key = :import_key WHERE key = :key")
    links = {"scores": item, "cost": cost, "review": review}
    number = 0
    for number, (_, _, _, one) in enumerate(heapq.merge(*kinds), 1):
        kind, variant_id = one.variant
        connection.execute(
            insert,
            {"key": number, "id": one.id, "kind": one.kind, "variant_kind": kind, "variant_id": variant_id,
             "at": one.at},
        )  # fmt: skip
        rows = [{"import_key": number, "key": key} for key in one.keys]
        connection.execute(links[one.kind], rows)
    if number and connection.dialect.name == "postgresql":  # keys were given: the sequence does not know of them
        connection.execute(
            sa.text("SELECT setval(pg_get_serial_sequence('score_import', 'key'), :last)"), {"last": number}
        )


def _in_time(found: Iterator[_Import]) -> Iterator[tuple[str, str, int, _Import]]:
    """Imports of one kind keep their order, whatever the clock did."""
    last = ""
    for place, one in enumerate(found):
        last = max(last, one.at)
        yield last, one.kind, place, one


def _scores(connection: sa.Connection) -> Iterator[_Import]:
    """Consecutive scores of one variant, source and settings; a metric that comes again begins another import."""
    rows = connection.execute(
        sa.text(
            "SELECT key, id, variant_kind, variant_id, metric_suite, metric, prompt_set, source_sha256, settings_key, "
            "base_key, imported_at FROM score ORDER BY key"
        )
    )
    current: _Import | None = None
    before: tuple[Any, ...] = ()
    seen: set[tuple[Any, ...]] = set()
    of_base: dict[Any, dict[tuple[Any, ...], tuple[int, str]]] = {}
    """The scores of a base that counted when the row was written, by base and metric."""
    joined = None
    for row in rows:
        measure = (row.metric_suite, row.metric, row.prompt_set)
        kind = (row.variant_kind, row.variant_id, row.source_sha256, row.settings_key, row.metric_suite == MEASURED)
        if current is None or kind != before or measure in seen:
            beside = (
                current is not None
                and row.variant_kind == "base"
                and row.metric_suite == MEASURED
                and before[0] == "delta"
                and before[4]
                and row.base_key is not None
                and joined == row.base_key
            )
            if not beside:
                if current is not None:
                    yield _with_base(current, joined, before, seen, of_base)
                current = _Import("scores", (row.variant_kind, row.variant_id), row.imported_at)
                joined = row.base_key
            before, seen = kind, set()
        assert current is not None
        seen.add(measure)
        current.content.append(row.id)
        current.keys.append(row.key)
        if row.variant_kind == "base":
            of_base.setdefault(row.base_key, {})[measure] = (row.key, row.id)
    if current is not None:
        yield _with_base(current, joined, before, seen, of_base)


def _with_base(
    one: _Import,
    base_key: int | None,
    last: tuple[Any, ...],
    seen: set[tuple[Any, ...]],
    of_base: dict[Any, dict[tuple[Any, ...], tuple[int, str]]],
) -> _Import:
    """Measured clips whose base's scores were known already: those that counted then."""
    if one.variant[0] == "delta" and last[0] == "delta" and last[4] and base_key is not None:
        for measure, (key, score_id) in of_base.get(base_key, {}).items():
            if measure in seen:
                one.keys.append(key)
                one.content.append(score_id)
    return one


def _costs(connection: sa.Connection) -> Iterator[_Import]:
    query = "SELECT key, variant_kind, variant_id, quantity, value, device, kernels, settings, recorded_at"
    for row in connection.execute(sa.text(f"{query} FROM measurement ORDER BY key")).all():
        one = _Import("cost", (row.variant_kind, row.variant_id), row.recorded_at)
        one.content.append([row.quantity, row.value, row.device, row.kernels, row.settings])
        one.keys.append(row.key)
        yield one


def _reviews(connection: sa.Connection) -> Iterator[_Import]:
    query = "SELECT key, variant_kind, variant_id, source_sha256, stem, accepted, category, recorded_at"
    found: dict[tuple[str, str], _Import] = {}
    for row in connection.execute(sa.text(f"{query} FROM review ORDER BY key")).all():
        one = found.setdefault(
            (row.variant_id, row.source_sha256), _Import("review", (row.variant_kind, row.variant_id), row.recorded_at)
        )
        one.content.append([row.stem, bool(row.accepted), row.category])
        one.keys.append(row.key)
    yield from found.values()
