"""The orders that llama.cpp wants output rows in. No torch.

An order is a tuple of indices: row i of the file is row order[i] of the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from llmopt.errors import RequestError
from llmopt.formats.gguf.families import Order

RowOrder = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Rearrangement:
    """How a tensor in a file differs from the model's.

    Row i of the file is row order[i] of the model, and `offset` was added to every weight;
    `transposed`: the model has [in, out] where the file has [out, in].
    """

    order: RowOrder | None = None
    offset: float = 0.0
    transposed: bool = False


def row_order(kind: Order, config: Mapping[str, Any], rows: int, *, key: bool = False) -> RowOrder:
    """The order of a weight with this many rows, or of its bias, in a text model.

    `interleaved`: rope pairs neighbours, and not the halves of a head. `by part`: all queries, all
    keys, all values, and not those of each head together. `by group`: the same for queries that
    share a key and value. key: the heads are those of keys. RequestError where heads do not fill
    the rows.
    """
    heads = _count(config, "num_attention_heads", "n_head")
    groups = _groups(config, heads)
    if kind == "interleaved":
        return _interleaved(rows, groups if key else heads)
    if kind == "by part":
        return _by_group(rows, heads, 1)
    return _by_group(rows, groups, heads // groups)


def inverse(order: RowOrder) -> RowOrder:
    """The order that undoes an order."""
    result = [0] * len(order)
    for stored, row in enumerate(order):
        result[row] = stored
    return tuple(result)


def _count(config: Mapping[str, Any], *keys: str) -> int:
    for key in keys:
        if type(config.get(key)) is int and config[key] > 0:
            return int(config[key])
    raise RequestError(f"config.json does not say {keys[0]}")


def _groups(config: Mapping[str, Any], heads: int) -> int:
    """Heads of keys, which several queries may share."""
    if config.get("model_type") == "falcon" and not config.get("new_decoder_architecture"):
        return 1 if config.get("multi_query", True) else heads
    found = config.get("num_key_value_heads") or config.get("num_kv_heads") or heads
    if type(found) is not int or found < 1 or heads % found:
        raise RequestError(f"config.json says {heads} heads share {found!r} keys and values")
    return found


@lru_cache(maxsize=64)
def _interleaved(rows: int, heads: int) -> RowOrder:
    if rows % (2 * heads):
        raise RequestError(f"{heads} heads do not fill {rows} rows of an attention weight")
    size = rows // heads
    half = size // 2
    return tuple(
        head * size + half * which + pair
        for head in range(heads)
        for pair in range(half)
        for which in (0, 1)
    )


@lru_cache(maxsize=64)
def _by_group(rows: int, groups: int, queries: int) -> RowOrder:
    """Each group has `queries` heads of queries, one of keys and one of values."""
    size, rest = divmod(rows, groups * (queries + 2))
    if rest:
        raise RequestError(f"the heads of queries, keys and values do not fill {rows} rows")
    parts = (range(queries), [queries], [queries + 1])
    return tuple(
        (group * (queries + 2) + head) * size + row
        for part in parts
        for group in range(groups)
        for head in part
        for row in range(size)
    )
