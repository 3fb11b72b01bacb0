"""Reading tables: of strings (the utterances), and of features.

Tables of features are keyed by utterance id, with or without the extension of a media file (``dia0_utt3.wav``):

* CSV: an id column and numeric columns.
* Parquet: an id column and numeric columns, or an id column and one column of lists; of several, ``features_column``
  chooses one.
* NPZ: the arrays ``ids`` (strings) and ``features`` (rows × D), or one vector per utterance under its id.
* safetensors: the tensor ``features`` (rows × D) with the metadata entry ``ids``, a JSON list; or one vector per
  utterance under its id.
"""

import csv
import json
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from merc.data.completeness import EXAMPLES, shortened
from merc.data.sources.progress import progress
from merc.errors import MercError, nearest

UNREADABLE = (
    OSError, ValueError, KeyError, EOFError, csv.Error, pa.ArrowException, SafetensorError,
    zipfile.BadZipFile, zlib.error,
)  # fmt: skip


@dataclass(frozen=True)
class FeatureTable:
    """Features of one file.

    Attributes:
        file: where they come from.
        ids: R utterance ids.
        rows: (R, D) float32.
        columns: names of the D features; empty where the file has none.
    """

    file: Path
    ids: tuple[str, ...]
    rows: NDArray[np.float32]
    columns: tuple[str, ...] = ()

    def prefixed(self, prefix: str) -> "FeatureTable":
        """The same table with ``prefix`` in front of every id."""
        return replace(self, ids=tuple(prefix + name for name in self.ids))


def read_strings(path: Path) -> dict[str, list[str]]:
    """A CSV or Parquet table as column → strings; empty cells are empty strings.

    Raises:
        MercError: the file is missing, damaged, empty or of another kind, or a row has too few or too many cells.
    """
    _check_file(path)
    if path.suffix == ".parquet":
        table = _guarded(path, lambda: pq.read_table(path))
        header, columns = table.column_names, [table[name].to_pylist() for name in table.column_names]
        rows = [["" if cell is None else str(cell) for cell in row] for row in zip(*columns, strict=True)]
    elif path.suffix == ".csv":
        with path.open(encoding="utf-8-sig", newline="") as file:
            header, *rows = _guarded(path, lambda: list(csv.reader(file, strict=True))) or [[]]
    else:
        raise MercError(f"{path} is neither .csv nor .parquet. Export the table of utterances as one of these.")
    for number, row in enumerate(rows, start=1):
        if len(row) != len(header):
            raise MercError(
                f"{path}: row {number} has {len(row)} cells, the header {len(header)}. Quote cells that hold commas."
            )
    if not rows:
        raise MercError(f"{path} has no rows. Give a table with a header and one row per utterance.")
    return {name: [row[index] for row in rows] for index, name in enumerate(header)}


def column_of(modality: str, features_column: str | Mapping[str, str | None] | None) -> str | None:
    """The ``features_column`` of one modality: the one of all, or its own in a mapping; None where it has none."""
    name = features_column.get(modality) if isinstance(features_column, Mapping) else features_column
    return None if name is None else str(name)


def read_features(path: Path, id_column: str | None = None, features_column: str | None = None) -> FeatureTable:
    """A table of features: CSV, Parquet, NPZ or safetensors, see the module.

    Args:
        path: the file; its extension tells the format.
        id_column: column or array with the utterance ids; None: the only column of strings, or ``ids``.
        features_column: column of lists or numbers, or array, with the features; None: the only column of lists, else
            every numeric column, or ``features``.

    Raises:
        MercError: the file is missing, damaged or ragged, its columns do not tell ids from features or leave a choice
            of features, or it has none of the name given.
    """
    _check_file(path)
    readers: dict[str, Callable[[Path, str | None, str | None], FeatureTable]] = {
        ".csv": _read_csv,
        ".parquet": _read_parquet,
        ".npz": _read_npz,
        ".safetensors": _read_safetensors,
    }
    if path.suffix not in readers:
        raise MercError(f"{path} has no known format. A table of features is one of {', '.join(readers)}.")
    table: FeatureTable = _guarded(path, lambda: readers[path.suffix](path, id_column, features_column))
    if table.rows.ndim != 2 or len(table.rows) != len(table.ids) or not table.rows.size:
        raise MercError(
            f"{path} has features of shape {table.rows.shape} for {len(table.ids)} ids; they must be a table with one "
            "row per id."
        )
    return table


def _check_file(path: Path) -> None:
    if not path.is_file():
        siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        raise MercError(f"There is no file {path}.{nearest(path.name, siblings)} Correct the path.")


def _guarded(path: Path, read: Callable[[], Any]) -> Any:
    """What ``read`` returns, its complaints about the file in one message."""
    try:
        return read()
    except UNREADABLE as error:
        problem = str(error).partition("\n")[0] or type(error).__name__
        raise MercError(
            f"Cannot read {path}: {problem}. Is it whole and, where it is text, encoded in UTF-8?"
        ) from error


def _float32(values: Any) -> NDArray[np.float32]:
    """Too large for float32 becomes infinite, which counts as missing."""
    with np.errstate(over="ignore"):
        return np.asarray(values).astype(np.float32)


def _read_csv(path: Path, id_column: str | None, features_column: str | None) -> FeatureTable:
    types = {} if id_column is None else {id_column: pa.string()}
    options = pa.csv.ConvertOptions(column_types=types)
    parse = pa.csv.ParseOptions(newlines_in_values=True)
    table = pa.csv.read_csv(path, parse_options=parse, convert_options=options)
    return _from_arrow(path, table, id_column, features_column)


def _read_parquet(path: Path, id_column: str | None, features_column: str | None) -> FeatureTable:
    return _from_arrow(path, pq.read_table(path), id_column, features_column)


def _from_arrow(path: Path, table: pa.Table, id_column: str | None, features_column: str | None) -> FeatureTable:
    strings = [
        field.name for field in table.schema if pa.types.is_string(field.type) or pa.types.is_large_string(field.type)
    ]
    if id_column is None and len(strings) != 1:
        raise MercError(
            f"{path} has {len(strings)} columns of strings ({', '.join(strings) or 'none'}), so it is not clear which "
            "holds the utterance ids. Name it with id_column=...; all others must be numbers."
        )
    key = strings[0] if id_column is None else id_column
    _require(path, key, table.column_names, "id_column")
    ids = tuple(str(value) for value in table[key].to_pylist())
    columns = _feature_columns(path, table.schema.remove(table.schema.get_field_index(key)), features_column)
    if len(columns) == 1 and _is_list(table.schema.field(columns[0]).type):
        return FeatureTable(path, ids, _stack(path, ids, table[columns[0]].to_pylist()))
    rows = np.stack([_float32(table[name].cast(pa.float64()).to_numpy()) for name in columns], axis=1)
    return FeatureTable(path, ids, rows, tuple(columns))


def _feature_columns(path: Path, fields: pa.Schema, features_column: str | None) -> list[str]:
    """One column of lists, or numeric ones."""
    if features_column is not None:
        _require(path, features_column, fields.names, "features_column")
        fields = pa.schema([fields.field(features_column)])
    lists = [field.name for field in fields if _is_list(field.type)]
    numbers = [field.name for field in fields if _is_number(field.type)]
    if lists and len(lists + numbers) > 1:
        raise MercError(
            f"{path} has several columns that may be the features: {_some(lists + numbers)}. Name one with "
            "features_column=..., or one for each modality with features_column.text=..., features_column.audio=..."
        )
    if lists:
        return lists
    for name in fields.names:
        if name not in numbers:
            raise MercError(
                f"{path}: the column '{name}' is not numeric. Remove it from the table of features, or name the column "
                "of features with features_column=..."
            )
    return numbers


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_null(kind))


def _require(path: Path, name: str, present: Sequence[str], key: str) -> None:
    if name not in present:
        raise MercError(f"{path} has no '{name}', only {_some(present)}.{nearest(name, present)} Correct {key}=...")


def _some(names: Sequence[str]) -> str:
    return shortened(names[:EXAMPLES], len(names))


def _read_npz(path: Path, id_column: str | None, features_column: str | None) -> FeatureTable:
    with np.load(path, allow_pickle=False) as arrays:
        if not isinstance(arrays, np.lib.npyio.NpzFile):
            raise MercError(f"{path} is a single array without ids. Save ids and features with numpy.savez.")
        key, features = id_column or "ids", features_column or "features"
        if id_column is None and key not in arrays.files:
            return _by_id(path, arrays.files, (arrays[name] for name in arrays.files), features_column)
        _require(path, key, arrays.files, "id_column")
        _require(path, features, arrays.files, "features_column")
        return FeatureTable(path, tuple(str(name) for name in arrays[key]), _float32(arrays[features]))


def _read_safetensors(path: Path, id_column: str | None, features_column: str | None) -> FeatureTable:
    with safe_open(path, framework="pt") as tensors:
        names, metadata = tensors.keys(), tensors.metadata() or {}
        key, features = id_column or "ids", features_column or "features"
        if key not in metadata and features not in names:
            return _by_id(path, names, (tensors.get_tensor(name).float().numpy() for name in names), features_column)
        _require(path, key, list(metadata), "id_column")
        _require(path, features, names, "features_column")
        ids = tuple(str(name) for name in json.loads(metadata[key]))
        return FeatureTable(path, ids, tensors.get_tensor(features).float().numpy())


def _by_id(path: Path, ids: Sequence[str], vectors: Iterable[Any], features_column: str | None) -> FeatureTable:
    """One vector per utterance, under its id."""
    if features_column is not None:
        raise MercError(
            f"{path} has no array of ids, so each of its arrays is one utterance's vector and features_column="
            f"{features_column} chooses none. Leave it out, give it to the other modalities alone "
            "(features_column.audio=...), or name the ids with id_column=..."
        )
    return FeatureTable(path, tuple(ids), _stack(path, ids, vectors))


def _stack(path: Path, ids: Sequence[str], vectors: Iterable[Any]) -> NDArray[np.float32]:
    """(R, D) from R vectors."""
    rows: list[NDArray[np.float32]] = []
    for name, vector in zip(ids, progress(vectors, f"Reading {path.name}", len(ids)), strict=True):
        row = _float32(vector)
        if row.ndim != 1 or len(row) != len(rows[0] if rows else row):
            first = rows[0].shape if rows else row.shape
            raise MercError(
                f"{path}: '{name}' has features of shape {row.shape}, '{ids[0]}' of shape {first}. Every utterance "
                "needs one vector, all of the same length."
            )
        rows.append(row)
    return np.stack(rows)
