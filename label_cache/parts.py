"""One part of a cache as Parquet bytes, and back. Nothing is believed that a checksum has not confirmed.

Columns of a part, none of them nullable:

    image_id      string, ascending
    split         dictionary(int8, string), one value per part
    labels        fixed_size_list(int16 | int32)[k], byte-stream-split
    scores        fixed_size_list(float32)[k], byte-stream-split; float16 precision, descending, ties by label id
    source        dictionary(int8, string)
    truth         list(int16 | int32), byte-stream-split; labels present, ascending; empty where unknown
    truth_pixels  list(int32), byte-stream-split; pixels of each of them; empty where unknown

Scores are float32 although float16 would do, because byte-stream-split float16 cannot be read by every Parquet reader.
Equal rows and keys give equal bytes (with one version of pyarrow): nothing of time, place or process goes in.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from label_cache.errors import CacheError, reason
from label_cache.rows import SOURCES, Columns, label_type, source_codes, source_names
from label_cache.schema import SCHEMA_VERSION, CacheKey, PartEntry, short

_ROW_GROUP = 16_384  # rows; large enough for zstd, small enough to decode in a few MiB at k = 256
_METADATA = b"kappaseg"
_NUMPY = {
    getattr(pa, name)(): np.dtype(name) for name in ("int8", "int16", "int32", "int64", "uint16", "uint32", "float32")
}


@dataclass(frozen=True)
class PartHeader:
    """What a part says about itself in its file metadata."""

    fingerprint: str
    split: str
    index: int
    rows: int
    num_classes: int
    k: int


def part_name(split: str, index: int) -> str:
    """File name of part number `index` of a split; characters that file systems dislike are percent-encoded."""
    return f"{quote(split, safe='')}-{index:05d}.parquet"


def encode_part(columns: Columns, index: int, *, key: CacheKey) -> bytes:
    """The Parquet file that holds some rows of one split."""
    header = {
        "schema_version": SCHEMA_VERSION,
        "fingerprint": key.fingerprint(),
        "split": columns.split,
        "part": index,
        "rows": len(columns),
        "key": key.to_plain(),
    }
    text = json.dumps(header, sort_keys=True, ensure_ascii=False)
    schema = _schema(key.num_classes, key.k).with_metadata({_METADATA: text.encode()})
    sink = pa.BufferOutputStream()
    pq.write_table(
        _table(columns, schema),
        sink,
        row_group_size=_ROW_GROUP,
        compression="zstd",
        compression_level=3,
        use_dictionary=["split", "source"],
        use_byte_stream_split=[f"{name}.list.element" for name in ("labels", "scores", "truth", "truth_pixels")],
        write_page_index=True,
        write_page_checksum=True,
        sorting_columns=[pq.SortingColumn(0)],
    )
    return sink.getvalue().to_pybytes()


def decode_part(data: bytes) -> tuple[PartHeader, Columns]:
    """The rows in the bytes of a part; page checksums are verified. Raises CacheError (without a path) on damage."""
    try:
        file = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True, pre_buffer=False)
        header = _header(file.schema_arrow.metadata)
        if not file.schema_arrow.equals(_schema(header.num_classes, header.k)):
            raise ValueError("its columns are not those of a label cache")
        table = file.read().combine_chunks()
        columns = _columns(table, header)
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise CacheError(reason(error)) from error
    if len(columns) != header.rows or table.column("split").unique().to_pylist() != [header.split]:
        raise CacheError("its rows are not those that its metadata promises")
    return header, columns


def read_part(directory: Path, entry: PartEntry, *, key: CacheKey) -> Columns:
    """The rows of a part that a manifest names: size, sha256, page checksums and key are compared with it.

    The bytes that are checked are the bytes that are decoded. Raises CacheError naming the part and the repair.
    """
    data = read_bytes(directory, entry)
    try:
        header, columns = decode_part(data)
    except CacheError as error:
        raise _damaged(directory, entry, str(error)) from error
    promised = (key.fingerprint(), entry.split, entry.rows, entry.first_id, entry.last_id)
    if (header.fingerprint, header.split, header.rows, columns.image_ids[0], columns.image_ids[-1]) != promised:
        raise _damaged(directory, entry, "it belongs to another cache")
    return columns


def read_bytes(directory: Path, entry: PartEntry) -> bytes:
    """The bytes of a part, after comparing their number and sha256 with the manifest (1 to 2 GB/s)."""
    try:
        data = (directory / entry.name).read_bytes()
    except FileNotFoundError:
        raise missing(directory, entry.name) from None
    except OSError as error:
        raise CacheError(f"part {directory / entry.name} cannot be read: {reason(error)}") from error
    if len(data) != entry.bytes:
        raise _damaged(directory, entry, f"{len(data)} bytes, its manifest says {entry.bytes}")
    digest = hashlib.sha256(data).hexdigest()
    if digest != entry.sha256:
        raise _damaged(directory, entry, f"sha256 {short(digest)}, its manifest says {short(entry.sha256)}")
    return data


def check_size(directory: Path, entry: PartEntry) -> int:
    """When a part was last touched (nanoseconds since 1970), after comparing its size with the manifest.

    The later of modification and inode change: a file moved into place keeps its old modification time.
    """
    try:
        status = (directory / entry.name).stat()
    except FileNotFoundError:
        raise missing(directory, entry.name) from None
    if status.st_size != entry.bytes:
        raise _damaged(directory, entry, f"{status.st_size} bytes, its manifest says {entry.bytes}")
    return max(status.st_mtime_ns, status.st_ctime_ns)


def is_part(path: Path) -> bool:
    """Whether a file is a part of some label cache, by its own metadata."""
    try:
        return _METADATA in (pq.read_schema(path).metadata or {})
    except (pa.ArrowException, OSError, ValueError):
        return False


def missing(directory: Path, name: str) -> CacheError:
    """The error for a part that should be there."""
    return CacheError(f"part {name} of cache {directory} is missing; run `kappaseg rank` again to write it")


def _damaged(directory: Path, entry: PartEntry, why: str) -> CacheError:
    return CacheError(
        f"part {entry.name} of cache {directory} is damaged ({why}); delete that part and run `kappaseg rank` again"
    )


def _header(metadata: dict[bytes, bytes] | None) -> PartHeader:
    values: dict[str, Any] = json.loads((metadata or {})[_METADATA])
    if values["schema_version"] != SCHEMA_VERSION:
        raise ValueError(f"layout version {values['schema_version']}, wanted {SCHEMA_VERSION}")
    key = values["key"]
    return PartHeader(
        values["fingerprint"], values["split"], values["part"], values["rows"], key["num_classes"], key["k"]
    )


def _schema(num_classes: int, k: int) -> pa.Schema:
    label = pa.field("element", pa.from_numpy_dtype(label_type(num_classes)), nullable=False)
    score = pa.field("element", pa.float32(), nullable=False)
    pixels = pa.field("element", pa.int32(), nullable=False)
    text = pa.dictionary(pa.int8(), pa.string())
    kinds = {
        "image_id": pa.string(),
        "split": text,
        "labels": pa.list_(label, k),
        "scores": pa.list_(score, k),
        "source": text,
        "truth": pa.list_(label),
        "truth_pixels": pa.list_(pixels),
    }
    return pa.schema([pa.field(name, kind, nullable=False) for name, kind in kinds.items()])


def _table(columns: Columns, schema: pa.Schema) -> pa.Table:
    count = len(columns)
    split = pa.DictionaryArray.from_arrays(pa.array(np.zeros(count, np.int8)), pa.array([columns.split]))
    source = pa.DictionaryArray.from_arrays(pa.array(source_codes(columns.source)), pa.array(SOURCES))
    pixels = columns.truth_pixels
    arrays = [
        pa.array(columns.image_ids, pa.string()),
        split,
        _fixed_lists(columns.labels, schema.field("labels").type),
        _fixed_lists(columns.scores, schema.field("scores").type),
        source,
        _lists(columns.truth, columns.truth_offsets, schema.field("truth").type),
        _lists(
            np.zeros(0, np.int32) if pixels is None else pixels,
            np.zeros(count + 1, np.int64) if pixels is None else columns.truth_offsets,
            schema.field("truth_pixels").type,
        ),
    ]
    return pa.table(arrays, schema=schema)


def _fixed_lists(values: NDArray[Any], kind: pa.DataType) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), type=kind)


def _lists(values: NDArray[Any], offsets: NDArray[np.int64], kind: pa.DataType) -> pa.Array:
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), pa.array(values), type=kind)


def _columns(table: pa.Table, header: PartHeader) -> Columns:
    truth, offsets = _ragged(_array(table, "truth"))
    pixels, pixel_offsets = _ragged(_array(table, "truth_pixels"))
    return Columns(
        split=header.split,
        image_ids=tuple(table.column("image_id").to_pylist()),
        labels=_flat(_array(table, "labels")).reshape(-1, header.k),
        scores=_flat(_array(table, "scores")).reshape(-1, header.k),
        source=_source(_array(table, "source")),
        truth=truth,
        truth_offsets=offsets,
        truth_pixels=pixels if np.array_equal(offsets, pixel_offsets) else None,
        num_classes=header.num_classes,
    )


def _array(table: pa.Table, name: str) -> pa.Array:
    return table.column(name).combine_chunks()


def _numbers(array: pa.Array) -> NDArray[Any]:
    """An array without nulls as NumPy, not copied. pyarrow's own to_numpy loads pandas first where that is installed,
    which takes longer than a look-up. Raises ValueError where there are nulls."""
    kind = _NUMPY[array.type]
    if array.null_count:
        raise ValueError(f"{array.null_count} values are null")
    if not len(array):
        return np.empty(0, kind)
    return np.frombuffer(array.buffers()[1], kind, count=len(array), offset=array.offset * kind.itemsize)


def _flat(lists: pa.Array) -> NDArray[Any]:
    return _numbers(lists.flatten())


def _ragged(lists: pa.Array) -> tuple[NDArray[Any], NDArray[np.int64]]:
    offsets = _numbers(lists.offsets).astype(np.int64)
    return _flat(lists), offsets - offsets[0]


def _source(dictionary: pa.DictionaryArray) -> NDArray[np.str_]:
    names = dictionary.dictionary.to_pylist()
    if not set(names) <= set(SOURCES):
        raise ValueError(f"source {names}, wanted some of {SOURCES}")
    codes = np.array([SOURCES.index(name) for name in names], np.int8)
    return source_names(codes[_numbers(dictionary.indices)])
