"""The tables. Ids are content hashes; `key` is a short local number that rows refer to each other by.

Per-tensor digests stay in the delta's own document: a thousand tensors times a hundred thousand deltas do not belong in
a database that a laptop opens.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Double,
    ForeignKey,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Text,
    UniqueConstraint,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

__all__ = [
    "Alias",
    "Base",
    "BaseExpert",
    "Calibration",
    "CalibrationPrompt",
    "Clip",
    "ClipSignature",
    "ClipSketch",
    "Delta",
    "Edge",
    "Event",
    "HubCopy",
    "HubFile",
    "KeptSite",
    "Location",
    "Recipe",
    "RecipeStage",
    "Table",
    "Witness",
]

_Key = BigInteger().with_variant(Integer(), "sqlite")  # SQLite numbers rows by itself only for INTEGER
_Digest = String(64)
_Time = String(32)  # ISO 8601 in UTC with microseconds: sorts as text, on every database


class Table(DeclarativeBase):
    """Every constraint has a name: batch migrations on SQLite find them by it."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


class Base(Table):
    """A floating-point model; `id` is the SHA-256 over its sorted lines `role<TAB>bf16 root`."""

    __tablename__ = "base"
    key: Mapped[int] = mapped_column(_Key, primary_key=True)
    id: Mapped[str] = mapped_column(_Digest, unique=True)
    model_type: Mapped[str] = mapped_column(String(20))
    experts: Mapped[list[BaseExpert]] = relationship(order_by="BaseExpert.role")


class BaseExpert(Table):
    """One transformer of a base."""

    __tablename__ = "base_expert"
    __table_args__ = (UniqueConstraint("base_key", "role"),)
    key: Mapped[int] = mapped_column(_Key, primary_key=True)
    base_key: Mapped[int] = mapped_column(_Key, ForeignKey("base.key", ondelete="CASCADE"))
    role: Mapped[str] = mapped_column(String(20))
    bf16_root: Mapped[str] = mapped_column(_Digest, index=True)
    tensors: Mapped[int] = mapped_column(Integer)
    witnesses: Mapped[list[Witness]] = relationship(order_by="Witness.layout, Witness.exact_root, Witness.name")
    hub_files: Mapped[list[HubFile]] = relationship(order_by="HubFile.key")


class Witness(Table):
    """A checkpoint file that was seen to hold (part of) an expert. `trusted`: its hash was taken on trust."""

    __tablename__ = "witness"
    __table_args__ = (UniqueConstraint("expert_key", "sha256", "name", "layout", "exact_root"),)
    key: Mapped[int] = mapped_column(_Key, primary_key=True)
    expert_key: Mapped[int] = mapped_column(_Key, ForeignKey("base_expert.key", ondelete="CASCADE"))
    layout: Mapped[str] = mapped_column(String(1000))
    exact_root: Mapped[str] = mapped_column(_Digest)
    name: Mapped[str] = mapped_column(String(1000))
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(_Digest, index=True)
    trusted: Mapped[bool]


class Calibration(Table):
    """Statistics that deltas were made from, by identity; the numbers stay in the calibration's folder."""

    __tablename__ = "calibration"
    key: Mapped[int] = mapped_column(_Key, primary_key=True)
    id: Mapped[str] = mapped_column(_Digest, unique=True)
    prompts: Mapped[list[CalibrationPrompt]] = relationship(order_by="CalibrationPrompt.position")


class CalibrationPrompt(Table):
    """The SHA-256 of one prompt of a calibration."""

    __tablename__ = "calibration_prompt"
    __table_args__ = ({"sqlite_with_rowid": False},)
    calibration_key: Mapped[int] = mapped_column(
        _Key, ForeignKey("calibration.key", ondelete="CASCADE"), primary_key=True
    )
    position: Mapped[int] = mapped_column(Integer, primary_key=True)
    sha256: Mapped[str] = mapped_column(_Digest, index=True)


class Recipe(Table):
    """A recipe by the digest of its canonical JSON, which `document` holds."""

    __tablename__ = "recipe"
    key: Mapped[int] = mapped_column(_Key, primary_key=True)
    id: Mapped[str] = mapped_column(_Digest, unique=True)
    name: Mapped[str] = mapped_column(String(80), index=True)
    weight_format: Mapped[str] = mapped_column(String(20))
    activation_format: Mapped[str] = mapped_column(String(20))
    document: Mapped[str] = mapped_column(Text)
    stages: Mapped[list[RecipeStage]] = relationship(order_by="RecipeStage.position")


class RecipeStage(Table):
    """One stage of a recipe, with the parameters that people search by."""

    __tablename__ = "recipe_stage"
    recipe_key: Mapped[int] = mapped_column(_Key, ForeignKey("recipe.key", ondelete="CASCADE"), primary_key=True)
    position: Mapped[int] = mapped_column(Integer, primary_key=True)
    kind: Mapped[str] = mapped_column(String(30))
    expert: Mapped[str | None] = mapped_column(String(20))
    statistic: Mapped[str | None] = mapped_column(String(20))
    percentile: Mapped[float | None] = mapped_column(Double(), index=True)
    alpha: Mapped[float | None] = mapped_column(Double())


class Delta(Table):
    """A registered delta. `created` is what its maker's clock said, `registered_at` is ours."""

    __tablename__ = "delta"
    __table_args__ = (CheckConstraint("kept >= 0 AND quantized >= 0", name="counts"),)
    key: Mapped[int] = mapped_column(_Key, primary_key=True)
    id: Mapped[str] = mapped_column(_Digest, unique=True)
    base_key: Mapped[int] = mapped_column(_Key, ForeignKey("base.key"), index=True)
    recipe_key: Mapped[int] = mapped_column(_Key, ForeignKey("recipe.key"), index=True)
    calibration_key: Mapped[int | None] = mapped_column(_Key, ForeignKey("calibration.key"), index=True)
    state_sha256: Mapped[str] = mapped_column(_Digest)
    state_size_bytes: Mapped[int] = mapped_column(BigInteger)
    state_tensors: Mapped[int] = mapped_column(Integer)
    quantized: Mapped[int] = mapped_column(Integer)
    kept: Mapped[int] = mapped_column(Integer, index=True)
    created: Mapped[str] = mapped_column(String(40))
    registered_at: Mapped[str] = mapped_column(_Time)
    base: Mapped[Base] = relationship()
    recipe: Mapped[Recipe] = relationship()
    calibration: Mapped[Calibration | None] = relationship()
    kept_sites: Mapped[list[KeptSite]] = relationship(order_by="KeptSite.expert, KeptSite.site")
    locations: Mapped[list[Location]] = relationship(order_by="Location.key.desc()")
    aliases: Mapped[list[Alias]] = relationship(order_by="Alias.name", back_populates="delta")
    hub_copies: Mapped[list[HubCopy]] = relationship(order_by="HubCopy.key.desc()")


class KeptSite(Table):
    """A linear that the delta leaves as it is in the base, and why."""

    __tablename__ = "kept_site"
    __table_args__ = ({"sqlite_with_rowid": False},)
    delta_key: Mapped[int] = mapped_column(_Key, ForeignKey("delta.key", ondelete="CASCADE"), primary_key=True)
    expert: Mapped[str] = mapped_column(String(20), primary_key=True)
    site: Mapped[str] = mapped_column(String(200), primary_key=True, index=True)
    reason: Mapped[str] = mapped_column(String(800))


class Edge(Table):
    """Child was made from parent. Content ids on both ends, so that any two kinds of thing can be joined."""

    __tablename__ = "edge"
    __table_args__ = ({"sqlite_with_rowid": False},)
    child_id: Mapped[str] = mapped_column(_Digest, primary_key=True)
    relation: Mapped[str] = mapped_column(String(30), primary_key=True)
    parent_id: Mapped[str] = mapped_column(_Digest, primary_key=True, index=True)
    child_kind: Mapped[str] = mapped_column(String(20))
    parent_kind: Mapped[str] = mapped_column(String(20))


class Location(Table):
    """A folder of this machine where a copy of a delta was seen. A folder holds one delta."""

    __tablename__ = "location"
    key: Mapped[int] = mapped_column(_Key, primary_key=True)
    delta_key: Mapped[int] = mapped_column(_Key, ForeignKey("delta.key", ondelete="CASCADE"), index=True)
    folder: Mapped[str] = mapped_column(Text, unique=True)
    created: Mapped[str] = mapped_column(String(40))
    registered_at: Mapped[str] = mapped_column(_Time)


class HubCopy(Table):
    """A commit on the Hub that holds a delta: it was pushed or pulled from here, or compared by digests (registered).

    `tag` is the delta's own tag where that names this commit.
    """

    __tablename__ = "hub_copy"
    __table_args__ = (
        UniqueConstraint("delta_key", "endpoint", "repo", "commit"),
        CheckConstraint("how IN ('pushed', 'pulled', 'registered')", name="how"),
    )
    key: Mapped[int] = mapped_column(_Key, primary_key=True)
    delta_key: Mapped[int] = mapped_column(_Key, ForeignKey("delta.key", ondelete="CASCADE"))
    endpoint: Mapped[str] = mapped_column(Text)
    repo: Mapped[str] = mapped_column(String(200))
    commit: Mapped[str] = mapped_column(String(40))
    tag: Mapped[str | None] = mapped_column(String(200))
    how: Mapped[str] = mapped_column(String(20))
    recorded_at: Mapped[str] = mapped_column(_Time)


class HubFile(Table):
    """A checkpoint file that lies on the Hub at one commit, found there by its SHA-256."""

    __tablename__ = "hub_file"
    __table_args__ = (UniqueConstraint("expert_key", "sha256", "endpoint", "repo", "commit"),)
    key: Mapped[int] = mapped_column(_Key, primary_key=True)
    expert_key: Mapped[int] = mapped_column(_Key, ForeignKey("base_expert.key", ondelete="CASCADE"))
    sha256: Mapped[str] = mapped_column(_Digest, index=True)
    endpoint: Mapped[str] = mapped_column(Text)
    repo: Mapped[str] = mapped_column(String(200))
    commit: Mapped[str] = mapped_column(String(40))
    path: Mapped[str] = mapped_column(Text)
    tied_at: Mapped[str] = mapped_column(_Time)


class Alias(Table):
    """A movable label, such as `wan22@prod`."""

    __tablename__ = "alias"
    name: Mapped[str] = mapped_column(String(100), primary_key=True)
    delta_key: Mapped[int] = mapped_column(_Key, ForeignKey("delta.key"), index=True)
    set_at: Mapped[str] = mapped_column(_Time)
    delta: Mapped[Delta] = relationship(back_populates="aliases")


class Event(Table):
    """What happened when. Rows are only ever added; `detail` is a JSON object."""

    __tablename__ = "event"
    __table_args__ = ({"sqlite_autoincrement": True},)
    seq: Mapped[int] = mapped_column(_Key, primary_key=True)
    at: Mapped[str] = mapped_column(_Time)
    kind: Mapped[str] = mapped_column(String(30))
    delta_id: Mapped[str | None] = mapped_column(_Digest, index=True)
    detail: Mapped[str] = mapped_column(Text)


class Clip(Table):
    """A clip file and what made it. The same file under two variants is two rows, and an audit says so.

    `variant_id` is a delta's content id or a base's id; no foreign key, because a base may be known by its clips alone.
    `scene` joins prompt hash and seed; `settings_sha256` is of the settings that decide the frames, None where they are
    not all known. `blank` is None where nobody looked. `document` is the canonical JSON of `hfq.clip/1`, `manifest`
    the signed bytes.
    """

    __tablename__ = "clip"
    __table_args__ = (
        UniqueConstraint("file_sha256", "variant_id"),
        CheckConstraint("variant_kind IN ('delta', 'base')", name="variant_kind"),
    )
    key: Mapped[int] = mapped_column(_Key, primary_key=True)
    file_sha256: Mapped[str] = mapped_column(_Digest)
    stream_sha256: Mapped[str] = mapped_column(_Digest, index=True)
    variant_kind: Mapped[str] = mapped_column(String(10))
    variant_id: Mapped[str] = mapped_column(_Digest, index=True)
    scene: Mapped[str | None] = mapped_column(String(100), index=True)
    settings_sha256: Mapped[str | None] = mapped_column(_Digest)
    name: Mapped[str] = mapped_column(String(1000))
    container: Mapped[str] = mapped_column(String(20))
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    frames: Mapped[int] = mapped_column(Integer)
    width: Mapped[int] = mapped_column(Integer)
    height: Mapped[int] = mapped_column(Integer)
    blank: Mapped[bool | None]
    document: Mapped[str] = mapped_column(Text)
    manifest: Mapped[bytes | None] = mapped_column(LargeBinary)
    signed: Mapped[bool]
    recorded_at: Mapped[str] = mapped_column(_Time)


class ClipSignature(Table):
    """The perceptual signature of a clip, apart from its row: an audit reads a few of them, and by key."""

    __tablename__ = "clip_signature"
    clip_key: Mapped[int] = mapped_column(_Key, ForeignKey("clip.key", ondelete="CASCADE"), primary_key=True)
    data: Mapped[bytes] = mapped_column(LargeBinary)


class ClipSketch(Table):
    """The sketch of a clip's signature, 130 bytes: an audit reads those of all clips. Every signature has one."""

    __tablename__ = "clip_sketch"
    clip_key: Mapped[int] = mapped_column(_Key, ForeignKey("clip.key", ondelete="CASCADE"), primary_key=True)
    data: Mapped[bytes] = mapped_column(LargeBinary)
