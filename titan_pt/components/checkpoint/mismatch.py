"""Differences between a checkpoint and a run in a user's words: keys of the TOML, both values."""

import math
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from titan_pt.config.errors import shown
from titan_pt.config.resolve.toml_files import parse_toml
from titan_pt.config.run_size import divisors
from titan_pt.config.schema.job_config import JobConfig

# Parts of an identity that are made of content, which no key changes.
_KINDS = {"tasks": "problems of task", "solutions": "worked answers of task", "sources": "documents of data source"}
_CONTENT = re.compile(rf"data\.({'|'.join(_KINDS)})\.(.*)")

# The keys, or whole tables, that decide a part of an identity, by the beginning of its name.
_KEYS: Mapping[str, Collection[str]] = {
    "trainer": ["job.trainer"],
    "optimizer": ["optimizer.name"],
    "tokenizer": ["tokenizer"],
    "model": ["model.name", "model.flavor", "model.from_hf"],
    "model.vocab_size": ["tokenizer"],
    "model.num_tokens": ["tokenizer"],
}


def describe(
    differences: Mapping[str, tuple[Any, Any]],
    config_toml: str,
    config: JobConfig,
    keys: Mapping[str, Collection[str]] | None,
) -> list[str]:
    """Texts of differences, by the keys that made them where there are such.

    Args:
        differences: values (there, here) by their dotted names in the identity.
        config_toml: the saved config; empty in steps of versions that did not save it.
        keys: further keys that decide a part of the identity.
    """
    known, told = {**_KEYS, **(keys or {})}, []
    for name, values in differences.items():
        names = next((known[part] for part in _upwards(name) if part in known), ())
        found = changed_keys(config_toml, config, names)
        is_key = name.startswith("model.") and name not in ("model.num_tokens", "model.name")
        told += [*([_plainly(name, *values, config)] if is_key or not found else []), *found]
    return list(dict.fromkeys(told))


def changed_keys(config_toml: str, config: JobConfig, names: Collection[str]) -> list[str]:
    """A text with both values for each of these keys, or keys of tables, that changed since a config was saved."""
    if not config_toml:
        return []
    there, here = parse_toml(config_toml), config.dump()
    changes: dict[str, str] = {}
    for name in names:
        table, _, key = name.partition(".")
        before, now = there.get(table, {}), here.get(table, {})
        for each in [key] if key else sorted({*before, *now}):
            if before.get(each) != now.get(each) and not (each not in before and _is_default(config, table, each)):
                changes |= _changes(f"{table}.{each}", before.get(each), now.get(each))
    return [f"{name} is {values}" for name, values in changes.items()]


def _is_default(config: JobConfig, table: str, key: str) -> bool:
    """Whether a key has its default, which an older config.toml does not tell."""
    section: Any = getattr(config, table, None)
    info = type(section).model_fields.get(key) if section is not None else None
    return info is not None and getattr(section, key) == info.get_default(call_default_factory=True)


def _plainly(name: str, there: Any, here: Any, config: JobConfig) -> str:
    content = _CONTENT.fullmatch(name)
    if content and type(there) is type(here) and there is not None:
        kind = _KINDS[content[1]]
        return f"the {kind} {content[2]!r}, or what makes texts of them, are others now ({there} there and {here} here)"
    if name == "data.num_streams":
        return f"{name} is {there} there and {here} here: {_streams_way_out(there, here, config)}"
    if name == "tokenizer.fingerprint":
        return f"the tokenizer's files are others now (hash {there} there and {here} here)"
    return f"{name} is {there!r} there and {here!r} here"


def _streams_way_out(there: int, here: int, config: JobConfig) -> str:
    """How to go on with the streams of a checkpoint, and how a new run would fit both numbers of ranks."""
    local, both = config.training.local_batch_size, math.lcm(there, here)
    ranks = divisors(there)
    listed = f"{', '.join(map(str, ranks[:-1]))} or {there} ranks" if len(ranks) > 1 else "1 rank"
    return (
        f"to go on, set data.num_streams = {there} and training.global_batch_size = {local * there} on {listed}, or "
        f'give up the place in the data by checkpoint.exclude_from_loading = ["data"]; a new run '
        f"with data.num_streams = {both} and training.global_batch_size = {local * both} fits both numbers of ranks"
    )


def _changes(name: str, before: Any, now: Any) -> dict[str, str]:
    """Texts with both values by the keys that differ; rows of an array of tables are met by their names."""
    if not (_is_rows(before) and _is_rows(now)):
        return {name: f"{_told(before)} there and {_told(now)} here"}
    changes: dict[str, str] = {}
    rows = {row["name"]: row for row in before}
    for i, row in enumerate(now):
        old = rows.pop(row["name"], None)
        where = f"{name}[{i}]"
        if old is None:
            changes[f"{where}.name"] = f"{row['name']!r} here alone"
            continue
        for key in sorted({*old, *row}):
            if old.get(key) != row.get(key):
                changes[f"{where}.{key} ({row['name']!r})"] = (
                    f"{_told(old.get(key))} there and {_told(row.get(key))} here"
                )
    changes |= {f"{name} {alone!r}": "there alone" for alone in rows}
    return changes or {name: "in another order"}


def _is_rows(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(row, dict) and "name" in row for row in value)


def _told(value: Any) -> str:
    return "unset" if value is None else shown(value)


def _upwards(name: str) -> Iterator[str]:
    """The dotted name, and those of what it is in."""
    while name:
        yield name
        name = name.rpartition(".")[0]
