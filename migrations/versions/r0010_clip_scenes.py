"""What else decides a clip's scene, its settings, and whether it is blank.

The settings of the clips that are there are read from their documents; nobody looked whether they are blank, and an
audit looks at the clip in hand. The digest is that of `hfq.registry.clips.clip_document`, written out: a revision does
for ever what it did when it was released.

Revision ID: 0010
Revises: 0008
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

BATCH = 1024
DECISIVE = ("width", "height", "frames", "steps", "shift", "guidance", "negative_prompt", "scheduler")
INDIFFERENT = ("device", "offload")


def upgrade() -> None:
    """Add the columns, and fill one."""
    op.add_column("clip", sa.Column("settings_sha256", sa.String(64), nullable=True))
    op.add_column("clip", sa.Column("blank", sa.Boolean(), nullable=True))
    connection = op.get_bind()
    read = sa.text("SELECT key, document FROM clip WHERE key > :after ORDER BY key LIMIT :count")
    write = sa.text("UPDATE clip SET settings_sha256 = :digest WHERE key = :key")
    after = -(2**63)
    while rows := connection.execute(read, {"after": after, "count": BATCH}).all():
        found = [{"key": row.key, "digest": _digest(row.document)} for row in rows]
        if known := [one for one in found if one["digest"] is not None]:
            connection.execute(write, known)
        after = rows[-1].key


def _digest(document: str) -> str | None:
    try:
        found: Any = json.loads(document)
        settings, steps = found["settings"], found["expert_steps"]
    except (ValueError, TypeError, KeyError):  # `hfq db check` names it
        return None
    if not isinstance(settings, dict) or not isinstance(steps, dict) or any(name not in settings for name in DECISIVE):
        return None
    lines = [
        f"{name}\t{json.dumps(int(value) if isinstance(value, float) and value.is_integer() else value)}"
        for name, value in settings.items()
        if name not in INDIFFERENT
    ]
    lines += [f"steps of {role}\t{int(count)}" for role, count in steps.items()]
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()
