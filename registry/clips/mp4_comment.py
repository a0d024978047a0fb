"""The comment of an MP4 or MOV: which bytes of the file change when it gets another one.

Where a comment stands (ISO 14496-12 8.10; QuickTime File Format, "User Data" and "Metadata"): in `moov/udta/meta` or
`moov/meta`, by number under a name of the list `keys` (handler `mdta`, as FFmpeg writes it with use_metadata_tags) or
as `©cmt` (handler `mdir`, as iTunes does); or in `moov/udta` itself as `©cmt` with a 16-bit length (QuickTime).

Media stay where they are, so that everything else of the file is in the copy byte for byte. What lies behind `moov`
moves by what `moov` grows: the lists that count from the file's start are corrected, and where one is found that this
module does not know to correct, the file is refused.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from typing import BinaryIO, Final

from hfq.schema.errors import RemuxError, TooLargeError

from .boxes import TopBox, identity, top_level
from .edits import Edit, free_name, moved

__all__ = ["comment_edits"]

_NewPosition = Callable[[int], int]
_Boxes = list[tuple[bytes, bytes]]
"""Kind and bytes (with header) of boxes in order; kind b"" is what follows the last one, such as QuickTime's end."""

_COMMENT: Final = b"\xa9cmt"
_MAX_INDEX_BYTES: Final = 512 * 1024 * 1024
_PARENTS: Final = frozenset({b"moov", b"trak", b"mdia", b"minf", b"stbl", b"moof", b"traf", b"mfra", b"udta"})
_UNKNOWN_POSITIONS: Final = frozenset({b"saio", b"iloc"})
_MEAN: Final = b"com.apple.iTunes"


def comment_edits(
    file: BinaryIO, size_bytes: int, comment: str, *, is_quicktime: bool, drop: Sequence[bytes] = (), where: object
) -> list[Edit]:
    """What to change so that `comment` is the file's comment. One that was there is kept under another name.

    Args:
        drop: identities (16 bytes) of `uuid` boxes at the top level that the copy shall not have.
        where: the file, for errors.

    Raises:
        RemuxError: an index that is compressed, missing, twice there or malformed, or one with positions that this
            module cannot correct.
        TooLargeError: an index of more than 512 MiB.
    """
    try:
        places = list(top_level(file, size_bytes))
        index = [place for place in places if place.kind == b"moov"]
        if len(index) != 1:
            raise RemuxError("not one index (box moov)", where=where, expected=1, found=len(index))
        old = _read(file, index[0], where)
        new = _index_with(old, comment, is_quicktime)
        edits = [Edit(index[0].start, index[0].end, new)]
        edits += [
            Edit(place.start, place.end, b"")
            for place in places
            if place.kind == b"uuid" and identity(file, place) in drop
        ]
        return _corrected(file, places, edits, where)
    except (struct.error, IndexError, ValueError) as error:
        raise RemuxError("the index (box moov) is malformed", where=where, found=error) from None


def _read(file: BinaryIO, place: TopBox, where: object) -> bytes:
    if place.end - place.start > _MAX_INDEX_BYTES:
        raise TooLargeError(
            f"box {place.kind.decode('latin-1')} is too large", where=where, expected=f"at most {_MAX_INDEX_BYTES}",
            found=place.end - place.start,
        )  # fmt: skip
    file.seek(place.start)
    return file.read(place.end - place.start)


def _header_bytes(box: bytes) -> int:
    return 16 if box[:4] == b"\0\0\0\1" else 8


def _body(box: bytes) -> bytes:
    return box[_header_bytes(box) :]


def _box(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body) + 8) + kind + body


def _split(data: bytes) -> _Boxes:
    boxes, position = [], 0
    while position + 8 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, position)
        if size == 1:
            (size,) = struct.unpack_from(">Q", data, position + 8)
        if size == 0 and kind != bytes(4):
            size = len(data) - position
        if size < 8 or position + size > len(data):
            break
        boxes.append((kind, data[position : position + size]))
        position += size
    return [*boxes, (b"", data[position:])] if position < len(data) else boxes


def _joined(boxes: _Boxes) -> bytes:
    return b"".join(raw for _, raw in boxes)


def _add(boxes: _Boxes, kind: bytes, body: bytes) -> None:
    boxes.insert(len(boxes) - (bool(boxes) and boxes[-1][0] == b""), (kind, _box(kind, body)))


def _index_with(old: bytes, comment: str, is_quicktime: bool) -> bytes:
    """The index with another comment."""
    boxes = _split(_body(old))
    if any(kind == b"cmov" for kind, _ in boxes):
        raise ValueError("it is compressed (box cmov)")
    lists = _Lists(comment, list(_names(boxes)))
    boxes = [(kind, lists.without_texts(raw) if kind == b"udta" else raw) for kind, raw in boxes]
    boxes = [(kind, lists.written(kind, raw)) for kind, raw in boxes]
    if not lists.is_written:
        if all(kind != b"udta" for kind, _ in boxes):
            _add(boxes, b"udta", b"")
        position = next(position for position, (kind, _) in enumerate(boxes) if kind == b"udta")
        inside = _split(_body(boxes[position][1]))
        # A second `meta` is not allowed beside one of another kind.
        if is_quicktime or any(kind == b"meta" for kind, _ in inside):
            text = comment.encode()
            _add(inside, _COMMENT, struct.pack(">HH", len(text), 0x55C4) + text)
        else:
            _add(inside, b"meta", bytes(4) + _handler(b"mdir", b"appl") + _box(b"ilst", _item(_COMMENT, comment)))
        boxes[position] = (b"udta", _box(b"udta", _joined(inside)))
    if lists.texts:  # last: what FFmpeg reads behind a list of names, it takes for its items
        _add(boxes, b"meta", _named([(lists.new_name(), text) for text in lists.texts]))
    return _box(b"moov", _joined(boxes))


def _names(boxes: _Boxes) -> Iterator[str]:
    """All names of tags that files may choose freely."""
    for kind, raw in boxes:
        if kind == b"udta":
            yield from _names(_split(_body(raw)))
        elif kind == b"meta":
            for inner, data in _inside_meta(raw)[1]:
                if inner == b"keys":
                    yield from (name.decode("utf-8", "replace") for _, name in _keys(_body(data)))
                elif inner == b"ilst":
                    for item, entry in _split(_body(data)):
                        if item == b"----":
                            yield from (
                                _body(part)[4:].decode("utf-8", "replace")
                                for name, part in _split(_body(entry))
                                if name == b"name"
                            )


class _Lists:
    """Walks the lists of tags: renames comments that are there, and writes the new one into the first list that can.

    Attributes:
        texts: comments without a name that could be changed, to be kept under one.
        is_written: whether some list has the new comment.
    """

    def __init__(self, comment: str, names: list[str]) -> None:
        self._comment = comment
        self._names = names
        self.texts: list[str] = []
        self.is_written = False

    def new_name(self) -> str:
        """A name for a comment that was there."""
        self._names.append(free_name(self._names))
        return self._names[-1]

    def without_texts(self, user_data: bytes) -> bytes:
        """The box `udta` without QuickTime comments, which go to `texts`."""
        kept: _Boxes = []
        for kind, raw in _split(_body(user_data)):
            if kind == _COMMENT:
                self.texts += [text for text in _quicktime_texts(_body(raw)) if text != self._comment]
            else:
                kept.append((kind, raw))
        return _box(b"udta", _joined(kept))

    def written(self, kind: bytes, raw: bytes) -> bytes:
        """A box of the index with the new comment, if it is one that can have it."""
        if kind == b"udta":
            return _box(kind, _joined([(inner, self.written(inner, data)) for inner, data in _split(_body(raw))]))
        if kind != b"meta":
            return raw
        prefix, boxes = _inside_meta(raw)
        handler = next((_body(data)[8:12] for inner, data in boxes if inner == b"hdlr"), b"")
        lists = {inner: _body(data) for inner, data in boxes if inner in (b"keys", b"ilst")}
        items = _split(lists.get(b"ilst", b""))
        if handler == b"mdta" and b"keys" in lists:
            changed = dict(zip((b"keys", b"ilst"), self._by_number(list(_keys(lists[b"keys"])), items), strict=True))
        elif handler == b"mdir":
            changed = {b"ilst": self._by_kind(items)}
        else:
            return raw
        if b"ilst" not in lists:
            _add(boxes, b"ilst", b"")
        again = [(inner, _box(inner, changed[inner]) if inner in changed else data) for inner, data in boxes]
        return _box(b"meta", prefix + _joined(again))

    def _by_number(self, keys: list[tuple[bytes, bytes]], items: _Boxes) -> tuple[bytes, bytes]:
        ours = _data(self._comment)
        for number, (namespace, name) in enumerate(keys, start=1):
            if name.lower() == b"comment":
                # A name without an item stands for nothing.
                keys[number - 1] = (namespace, self.new_name().encode())
                items = [item for item in items if item[0] != struct.pack(">I", number) or _body(item[1]) != ours]
        new = [("comment", self._comment)] if not self.is_written else []
        new += [(self.new_name(), text) for text in self.texts]
        self.texts, self.is_written = [], True
        for new_name, text in new:
            keys.append((b"mdta", new_name.encode()))
            _add(items, struct.pack(">I", len(keys)), _data(text))
        return _keys_body(keys), _joined(items)

    def _by_kind(self, items: _Boxes) -> bytes:
        items = [self._renamed(item) for item in items if item != (_COMMENT, _item(_COMMENT, self._comment))]
        for text in self.texts:
            _add(items, b"----", self._free_form(_data(text)))
        if not self.is_written:
            _add(items, _COMMENT, _data(self._comment))
        self.texts, self.is_written = [], True
        return _joined(items)

    def _renamed(self, item: tuple[bytes, bytes]) -> tuple[bytes, bytes]:
        return (b"----", _box(b"----", self._free_form(_body(item[1])))) if item[0] == _COMMENT else item

    def _free_form(self, data: bytes) -> bytes:
        """The body of an item of iTunes that has a name of its own."""
        return _box(b"mean", bytes(4) + _MEAN) + _box(b"name", bytes(4) + self.new_name().encode()) + data


def _inside_meta(raw: bytes) -> tuple[bytes, _Boxes]:
    """What stands before the boxes in `meta` (version and flags in MP4, nothing in QuickTime), and the boxes."""
    body = _body(raw)
    prefix = body[:4] if body[4:8] != b"hdlr" else b""
    return prefix, _split(body[len(prefix) :])


def _handler(kind: bytes, maker: bytes) -> bytes:
    return _box(b"hdlr", bytes(8) + kind + maker + bytes(9))


def _data(text: str) -> bytes:
    return _box(b"data", struct.pack(">II", 1, 0) + text.encode())


def _item(kind: bytes, text: str) -> bytes:
    return _box(kind, _data(text))


def _named(entries: list[tuple[str, str]]) -> bytes:
    """The body of a `meta` of names that files may choose."""
    keys = [(b"mdta", name.encode()) for name, _ in entries]
    items = b"".join(_item(struct.pack(">I", number), text) for number, (_, text) in enumerate(entries, start=1))
    return bytes(4) + _handler(b"mdta", bytes(4)) + _box(b"keys", _keys_body(keys)) + _box(b"ilst", items)


def _keys(body: bytes) -> Iterator[tuple[bytes, bytes]]:
    (count,) = struct.unpack_from(">I", body, 4)
    position = 8
    for _ in range(count):
        size, namespace = struct.unpack_from(">I4s", body, position)
        if size < 8 or position + size > len(body):
            raise ValueError("a list of names that ends too early")
        yield namespace, body[position + 8 : position + size]
        position += size


def _keys_body(keys: list[tuple[bytes, bytes]]) -> bytes:
    return struct.pack(">II", 0, len(keys)) + b"".join(_box(namespace, name) for namespace, name in keys)


def _quicktime_texts(body: bytes) -> Iterator[str]:
    position = 0
    while position + 4 <= len(body):
        length, language = struct.unpack_from(">HH", body, position)
        text = body[position + 4 : position + 4 + length]
        # Languages below 0x400 are Macintosh codes, and their texts in its alphabet.
        yield text.decode("mac_roman" if 0 < language < 0x400 else "utf-8", "replace").rstrip("\0")
        position += 4 + length


def _corrected(file: BinaryIO, places: list[TopBox], edits: list[Edit], where: object) -> list[Edit]:
    """The edits, and those that correct positions counted from the file's start."""
    shift = [(edit.end, len(edit.data) - (edit.end - edit.start)) for edit in edits]
    if not any(size and any(place.start >= end for place in places) for end, size in shift):
        return edits

    def new_position(position: int) -> int:
        return moved(edits, position)

    made = []
    for edit in edits:
        made.append(Edit(edit.start, edit.end, _positions(edit.data, new_position, where) if edit.data else b""))
    for place in places:
        if place.kind in (b"moof", b"mfra"):
            made.append(Edit(place.start, place.end, _positions(_read(file, place, where), new_position, where)))
        elif place.kind == b"meta" and b"iloc" in dict(_inside_meta(_read(file, place, where))[1]):
            raise _uncorrectable(b"iloc", where)
    return made


def _positions(box: bytes, new_position: _NewPosition, where: object) -> bytes:
    """A box of the index with every position counted from the file's start corrected; its size stays."""
    data = bytearray(box)
    _correct(data, 0, len(data), new_position, where)
    return bytes(data)


def _correct(data: bytearray, start: int, end: int, new_position: _NewPosition, where: object) -> None:
    while start + 8 <= end:
        size, kind = struct.unpack_from(">I4s", data, start)
        header = 8
        if size == 1:
            (size,), header = struct.unpack_from(">Q", data, start + 8), 16
        if size == 0 and kind != bytes(4):
            size = end - start
        if size < header or start + size > end:
            return
        body = start + header
        if kind in _PARENTS:
            _correct(data, body, start + size, new_position, where)
        elif kind == b"meta":
            if b"iloc" in dict(_inside_meta(bytes(data[start : start + size]))[1]):
                raise _uncorrectable(b"iloc", where)
        elif kind in _UNKNOWN_POSITIONS:
            raise _uncorrectable(kind, where)
        elif kind in (b"stco", b"co64"):
            (count,) = struct.unpack_from(">I", data, body + 4)
            form = ">I" if kind == b"stco" else ">Q"
            if body + 8 + count * struct.calcsize(form) > start + size:
                raise ValueError(f"a list (box {kind.decode()}) that ends too early")
            _correct_list(data, body + 8, count, form, new_position, where)
        elif kind == b"tfhd" and data[body + 3] & 1:
            _correct_list(data, body + 8, 1, ">Q", new_position, where)
        elif kind == b"tfra":
            version = data[body]
            (lengths, count) = struct.unpack_from(">II", data, body + 8)
            numbers = sum(((lengths >> bits) & 3) + 1 for bits in (0, 2, 4))
            wide = ">Q" if version else ">I"
            width = struct.calcsize(wide)
            if body + 16 + count * (2 * width + numbers) > start + size:
                raise ValueError("a list (box tfra) that ends too early")
            for entry in range(count):
                at = body + 16 + entry * (2 * width + numbers) + width
                _correct_list(data, at, 1, wide, new_position, where)
        start += size


def _correct_list(
    data: bytearray, start: int, count: int, form: str, new_position: _NewPosition, where: object
) -> None:
    width = struct.calcsize(form)
    for number in range(count):
        at = start + number * width
        (position,) = struct.unpack_from(form, data, at)
        new = new_position(position)
        if form == ">I" and new >= 2**32:
            raise RemuxError("a position behind 4 GiB does not fit into the index (box stco)", where=where, found=new)
        struct.pack_into(form, data, at, new)


def _uncorrectable(kind: bytes, where: object) -> RemuxError:
    return RemuxError(
        "the file holds positions that a copy with a comment would make wrong",
        where=where,
        found=f"box {kind.decode('latin-1')}",
        todo="put the index (box moov) at the file's end first (ffmpeg -i CLIP -map 0 -c copy OUT.mp4)",
    )
