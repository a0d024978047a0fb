"""The comment of a Matroska or WebM file: which bytes of the file change when it gets another one.

Positions in Matroska (RFC 9559) count from the start of the segment's data, and sizes of numbers vary. All tags go into
one element before the first cluster, where every reader finds them; the index elements that name positions (SeekHead,
Cues, Position in clusters) are written again until nothing moves any more, and their checksums with them. Everything
else of the file is in the copy byte for byte.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO, Final

from hfq.schema.errors import RemuxError, TooLargeError

from .edits import Edit, free_name, moved

__all__ = ["comment_edits"]

_SEGMENT: Final = 0x18538067
_SEEK_HEAD, _SEEK, _SEEK_POSITION = 0x114D9B74, 0x4DBB, 0x53AC
_CUES, _CUE_POINT, _CUE_TRACK, _CUE_REFERENCE = 0x1C53BB6B, 0xBB, 0xB7, 0xDB
_CLUSTER, _CLUSTER_POSITION = 0x1F43B675, 0xA7
_TAGS, _TAG, _TARGETS, _SIMPLE_TAG, _TAG_NAME, _TAG_TEXT = 0x1254C367, 0x7373, 0x63C0, 0x67C8, 0x45A3, 0x4487
_INFO, _TRACKS, _CHAPTERS, _ATTACHMENTS = 0x1549A966, 0x1654AE6B, 0x1043A770, 0x1941A469
_VOID, _CRC = 0xEC, 0xBF

_TOP: Final = frozenset({_SEEK_HEAD, _CUES, _CLUSTER, _TAGS, _INFO, _TRACKS, _CHAPTERS, _ATTACHMENTS})
_PARENTS: Final = frozenset({_SEEK_HEAD, _SEEK, _CUES, _CUE_POINT, _CUE_TRACK, _CUE_REFERENCE})
_POSITIONS: Final = frozenset({_SEEK_POSITION, 0xF1, 0xEA, 0x97, 0xEB})
"""Of SeekHead and Cues: SeekPosition, CueClusterPosition, CueCodecState, CueRefCluster, CueRefCodecState."""

_OWN_TARGETS: Final = frozenset({0x63C5, 0x63C9, 0x63C4, 0x63C6, 0x63CA})
"""A tag with one of these (and not 0) is of a track, an edition, a chapter or an attachment, or of a level that has a
name (TargetType, which FFmpeg shows as `LEVEL/COMMENT`), and not of the whole file.
"""

_MAX_ELEMENT_BYTES: Final = 256 * 1024 * 1024
_MAX_ELEMENTS: Final = 1_000_000
"""An honest clip has some per second; two bytes are an element, and a file of 4 GiB could hold them for an hour."""

_MAX_ROUNDS: Final = 20


@dataclass(frozen=True, slots=True)
class _Element:
    """Bytes `start` to `end` of what it was found in; its data begin at `body`. `is_open`: of no stated size."""

    id: int
    start: int
    body: int
    end: int
    is_open: bool = False


def comment_edits(file: BinaryIO, size_bytes: int, comment: str, *, where: object) -> list[Edit]:
    """What to change so that `comment` is the file's comment. One that was there is kept under another name.

    Raises:
        RemuxError: no segment or several, elements that make no sense, positions that lead nowhere.
        TooLargeError: an index of more than 256 MiB.
    """
    try:
        segment = _segment(file, size_bytes)
        return _Layout(file, segment, where).edits(comment)
    except (IndexError, ValueError) as error:
        raise RemuxError("the elements of the file make no sense", where=where, found=error) from None


def _segment(file: BinaryIO, size_bytes: int) -> _Element:
    position = 0
    while position < size_bytes:
        element = _element(file, position, size_bytes)
        if element.id == _SEGMENT:
            if element.end < size_bytes and not element.is_open:
                following = _element(file, element.end, size_bytes)
                if following.id == _SEGMENT:
                    raise ValueError("several segments")
            return element
        position = element.end
    raise ValueError("no segment")


def _element(file: BinaryIO, position: int, limit: int) -> _Element:
    file.seek(position)
    return _parse(file.read(12), 0, position, limit)


def _parse(data: bytes, at: int, offset: int, limit: int) -> _Element:
    """The element whose header stands at `at` of `data`; `offset` is what lies before `data`."""
    id_bytes = _length(data[at], 4)
    number = int.from_bytes(data[at : at + id_bytes], "big")
    size_bytes = _length(data[at + id_bytes], 8)
    raw = data[at + id_bytes : at + id_bytes + size_bytes]
    if len(raw) < size_bytes:
        raise ValueError("an element that ends too early")
    size = int.from_bytes(raw, "big") & ((1 << 7 * size_bytes) - 1)
    body = offset + at + id_bytes + size_bytes
    is_open = size == (1 << 7 * size_bytes) - 1
    end = limit if is_open else body + size
    if end > limit:
        raise ValueError("an element that ends behind its parent")
    return _Element(number, offset + at, body, end, is_open)


def _length(first: int, most: int) -> int:
    length = 9 - first.bit_length()
    if not 1 <= length <= most:
        raise ValueError("no element")
    return length


def _children(data: bytes) -> Iterator[_Element]:
    position = 0
    while position < len(data):
        element = _parse(data, position, 0, len(data))
        yield element
        position = element.end


def _encoded(number: int, body: bytes, size_width: int = 0) -> bytes:
    """An element; its size takes at least `size_width` bytes."""
    width = max(size_width, next(count for count in range(1, 9) if len(body) < (1 << 7 * count) - 1))
    size = (len(body) | 1 << 7 * width).to_bytes(width, "big")
    return number.to_bytes((number.bit_length() + 7) // 8, "big") + size + body


def _size_width(element: _Element) -> int:
    return element.body - element.start - (element.id.bit_length() + 7) // 8


def _summed(body: bytes) -> bytes:
    """The body of an element, its checksum (CRC-32, the first child) made right where it has one."""
    if body[:2] != b"\xbf\x84":
        return body
    return body[:2] + zlib.crc32(body[6:]).to_bytes(4, "little") + body[6:]


class _Layout:
    """The elements of a segment, and where they go."""

    def __init__(self, file: BinaryIO, segment: _Element, where: object) -> None:
        self._file, self._segment, self._where = file, segment, where
        self._seen = 0
        self._elements = list(self._top_level())

    def _element(self, position: int, limit: int) -> _Element:
        self._seen += 1
        if self._seen > _MAX_ELEMENTS:
            raise TooLargeError("too many elements", where=self._where, expected=f"at most {_MAX_ELEMENTS}")
        return _element(self._file, position, limit)

    def _top_level(self) -> Iterator[_Element]:
        position = self._segment.body
        while position < self._segment.end:
            element = self._element(position, self._segment.end)
            if element.is_open:
                if element.id != _CLUSTER:
                    raise ValueError(f"element {element.id:x} has no size")
                element = _Element(element.id, element.start, element.body, self._cluster_end(element), is_open=True)
            yield element
            position = element.end

    def _cluster_end(self, cluster: _Element) -> int:
        position = cluster.body
        while position < cluster.end:
            child = self._element(position, cluster.end)
            if child.id in _TOP:
                return position
            position = child.end
        return position

    def _read(self, element: _Element) -> bytes:
        if element.end - element.start > _MAX_ELEMENT_BYTES:
            raise TooLargeError(
                f"element {element.id:x} is too large", where=self._where,
                expected=f"at most {_MAX_ELEMENT_BYTES} bytes", found=element.end - element.start,
            )  # fmt: skip
        self._file.seek(element.body)
        return self._file.read(element.end - element.body)

    def edits(self, comment: str) -> list[Edit]:
        """See `comment_edits`."""
        old_tags = [element for element in self._elements if element.id == _TAGS]
        first = next((element.start for element in self._elements if element.id == _CLUSTER), self._segment.end)
        tags = Edit(first, first, _tags_with(comment, [self._read(element) for element in old_tags]))
        gone = [Edit(element.start, element.end, b"") for element in old_tags]
        index = [element for element in self._elements if element.id in (_SEEK_HEAD, _CUES, _CLUSTER)]
        edits = [tags, *gone]
        for _ in range(_MAX_ROUNDS):
            new_position = self._new_position([*edits], {edit.start for edit in gone}, tags)
            again = [tags, *gone, *(edit for element in index for edit in self._rewritten(element, new_position))]
            if again == edits:
                return [*edits, *self._sized(edits)]
            edits = again
        raise ValueError("the index has no form in which its positions are right")

    def _new_position(self, edits: list[Edit], gone: set[int], tags: Edit) -> Callable[[int], int]:
        """Positions in the segment, old to new."""
        start = self._segment.body
        known = {element.start for element in self._elements} | {self._segment.end}
        before = sorted(edits, key=lambda edit: (edit.start, edit.end))

        def new_position(position: int) -> int:
            at = start + position
            if at in gone:  # all tags stand where the first cluster began
                return moved([edit for edit in before if edit is not tags], tags.start) - start
            if at not in known:
                raise ValueError(f"a position that leads to no element ({position})")
            return moved(before, at) - start

        return new_position

    def _rewritten(self, element: _Element, new_position: Callable[[int], int]) -> Iterator[Edit]:
        if element.id != _CLUSTER:
            body = _repositioned(self._read(element), new_position)
            yield Edit(element.start, element.end, _encoded(element.id, body, _size_width(element)))
            return
        position, has_sum = element.body, False
        while position < element.end:
            child = _element(self._file, position, element.end)
            if child.id == _CLUSTER_POSITION:
                yield from self._cluster_position(element, child, has_sum, new_position)
                return
            if child.id not in (_CRC, _VOID, 0xE7):
                return
            has_sum = has_sum or child.id == _CRC
            position = child.end

    def _cluster_position(
        self, cluster: _Element, child: _Element, has_sum: bool, new_position: Callable[[int], int]
    ) -> Iterator[Edit]:
        """The same size, because other positions count from the cluster's start; Position only helps to repair."""
        self._file.seek(child.body)
        old = int.from_bytes(self._file.read(child.end - child.body), "big")
        if self._segment.body + old != cluster.start:
            return  # as in a live stream, which writes 0
        new, width = new_position(old), child.end - child.body
        if new.bit_length() <= 8 * width:
            data = _encoded(_CLUSTER_POSITION, new.to_bytes(width, "big"), _size_width(child))
        else:
            data = _encoded(_VOID, bytes(width), _size_width(child))
        if not has_sum:
            yield Edit(child.start, child.end, data)
            return
        body = self._read(cluster)
        begin = cluster.body
        changed = _summed(body[: child.start - begin] + data + body[child.end - begin :])
        yield Edit(cluster.body, cluster.end, changed)

    def _sized(self, edits: list[Edit]) -> Iterator[Edit]:
        """The segment's own size; what is before its data moves nothing that anybody counts."""
        if self._segment.is_open:
            return
        grown = sum(len(edit.data) - (edit.end - edit.start) for edit in edits)
        size = self._segment.end - self._segment.body + grown
        width = next(n for n in range(_size_width(self._segment), 9) if size < (1 << 7 * n) - 1)
        at = self._segment.body - _size_width(self._segment)
        yield Edit(at, self._segment.body, (size | 1 << 7 * width).to_bytes(width, "big"))


def _repositioned(body: bytes, new_position: Callable[[int], int]) -> bytes:
    """The body of SeekHead or Cues, or of what is inside, with new positions; no number gets shorter."""
    parts = []
    for child in _children(body):
        raw, inside = body[child.start : child.end], body[child.body : child.end]
        if child.id in _PARENTS:
            raw = _encoded(child.id, _repositioned(inside, new_position), _size_width(child))
        elif child.id in _POSITIONS and (old := int.from_bytes(inside, "big")):
            new = new_position(old)
            width = max(len(inside), (new.bit_length() + 7) // 8)
            raw = _encoded(child.id, new.to_bytes(width, "big"), _size_width(child))
        parts.append(raw)
    return _summed(b"".join(parts))


def _tags_with(comment: str, old: list[bytes]) -> bytes:
    """One Tags element of all that there were, and the comment."""
    names = [name for body in old for name in _tag_names(body)]
    has_sum = any(body[:2] == b"\xbf\x84" for body in old)
    parts = []
    for body in old:
        for child in _children(body):
            if child.id == _TAG:
                tag = _renamed(body[child.body : child.end], comment, names)
                parts.append(_encoded(_TAG, tag))
            elif child.id != _CRC:
                parts.append(body[child.start : child.end])
    simple = _encoded(_TAG_NAME, b"COMMENT") + _encoded(_TAG_TEXT, comment.encode())
    parts.append(_encoded(_TAG, _encoded(_TARGETS, b"") + _encoded(_SIMPLE_TAG, simple)))
    joined = b"".join(parts)
    return _encoded(_TAGS, _summed(b"\xbf\x84" + bytes(4) + joined) if has_sum else joined)


def _simple_tags(tag: bytes) -> Iterator[tuple[_Element, dict[int, bytes]]]:
    for child in _children(tag):
        if child.id == _SIMPLE_TAG:
            inside = tag[child.body : child.end]
            yield child, {part.id: inside[part.body : part.end] for part in _children(inside)}


def _name(parts: dict[int, bytes]) -> str:
    return parts.get(_TAG_NAME, b"").rstrip(b"\0").decode("utf-8", "replace")


def _tag_names(tags: bytes) -> Iterator[str]:
    for child in _children(tags):
        if child.id == _TAG:
            yield from (_name(parts) for _, parts in _simple_tags(tags[child.body : child.end]))


def _renamed(tag: bytes, comment: str, names: list[str]) -> bytes:
    """A tag whose comments of the whole file have another name; one that says the same already is left out."""
    for child in _children(tag):
        if child.id == _TARGETS:
            inside = tag[child.body : child.end]
            if any(part.id in _OWN_TARGETS and any(inside[part.body : part.end]) for part in _children(inside)):
                return tag
    data, position = b"", 0
    for child, parts in _simple_tags(tag):
        data += tag[position : child.start]
        position = child.end
        if _name(parts).lower() != "comment":
            data += tag[child.start : child.end]
        elif parts.get(_TAG_TEXT, b"") != comment.encode():
            names.append(free_name(names))
            inside = tag[child.body : child.end]
            again = b"".join(
                _encoded(_TAG_NAME, names[-1].upper().encode())
                if part.id == _TAG_NAME
                else inside[part.start : part.end]
                for part in _children(inside)
            )
            data += _encoded(_SIMPLE_TAG, again)
    return _summed(data + tag[position:])
