"""Properties: a resolved TOML repeats its config, flags say what files say, and no input ends in a traceback."""

import math
import operator
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from config_helpers import SOURCE, config_of, resolve_text, write
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st
from pydantic import AfterValidator
from pydantic.fields import FieldInfo

from titan_pt.config import ConfigError, JobConfig
from titan_pt.config.manager import config_class, dump_toml, resolve
from titan_pt.config.resolve.fields import keys, rows_of
from titan_pt.config.resolve.toml_files import tomllib
from titan_pt.config.schema.job_config import Source

CONFIG_TYPE, _ = config_class("pretrain", "transformer")
KEYS = keys(CONFIG_TYPE)

# Which specs there are and where the data is: a random text is never one of them. Their own tests choose them.
CHOSEN = ("job.config_file", "job.trainer", "model.name", "model.flavor", "model.from_hf", "experimental.custom_import")

TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=20)

quick = settings(
    max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def values_of(annotation: Any, metadata: tuple[Any, ...] = ()) -> st.SearchStrategy[Any]:
    """Valid values of a field, from its type and its bounds."""
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return values_of(args[0], (*args[1:], *metadata))
    if rows_of(annotation):
        return st.lists(rows(), min_size=1, max_size=3, unique_by=lambda row: row["name"])
    if origin is typing.Literal:
        return st.sampled_from(args)
    if origin is list:
        return st.lists(values_of(args[0]), max_size=3)
    if args:
        return values_of(next(arg for arg in args if arg is not type(None)), metadata)
    if annotation is bool:
        return st.booleans()
    if annotation is str:
        return TEXTS
    if any(isinstance(entry, AfterValidator) for entry in metadata):  # an answer's length: a range of its own
        return st.integers(1, 2**24)
    bounds = [part for entry in metadata for part in (entry.metadata if isinstance(entry, FieldInfo) else [entry])]
    low = max((bound for part in bounds if (bound := getattr(part, "ge", None)) is not None), default=None)
    above = max((bound for part in bounds if (bound := getattr(part, "gt", None)) is not None), default=None)
    high = min((bound for part in bounds if (bound := getattr(part, "le", None)) is not None), default=None)
    below = min((bound for part in bounds if (bound := getattr(part, "lt", None)) is not None), default=None)
    if annotation is int:
        low = above + 1 if above is not None else low
        high = below - 1 if below is not None else high
        return st.integers(-(2**63) if low is None else low, 2**63 - 1 if high is None else high)
    low = math.nextafter(above, math.inf) if above is not None else low
    high = math.nextafter(below, -math.inf) if below is not None else high
    return st.floats(low, high, allow_nan=False, allow_infinity=False)


def rows() -> st.SearchStrategy[dict[str, Any]]:
    """Valid rows of sources; `dataset` and what belongs to it only together."""
    optional = {
        name: values_of(info.annotation, tuple(info.metadata))
        for name, info in Source.model_fields.items()
        if name not in ("name", "dataset", "subset", "split", "revision")
    }
    return st.fixed_dictionaries({"name": TEXTS}, optional=optional)


def tables() -> st.SearchStrategy[dict[str, dict[str, Any]]]:
    """A few random keys with valid values, as TOML tables."""

    def pick(names: list[str]) -> st.SearchStrategy[dict[str, Any]]:
        return st.fixed_dictionaries(
            {name: values_of(KEYS[name].annotation, tuple(KEYS[name].metadata)) for name in names}
        )

    names = st.lists(st.sampled_from([name for name in KEYS if name not in CHOSEN]), unique=True, max_size=5)
    return names.flatmap(pick).map(nested)


def nested(flat: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """{"a.b": 1} as {"a": {"b": 1}}."""
    tree: dict[str, dict[str, Any]] = {}
    for name, value in flat.items():
        *path, key = name.split(".")
        table = tree
        for part in path:
            table = table.setdefault(part, {})
        table[key] = value
    return tree


def leaves(tree: dict[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """The values of a tree by their dotted names."""
    for key, value in tree.items():
        if f"{path}{key}" not in KEYS:
            yield from leaves(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value


def valid(folder: Path, tree: dict[str, dict[str, Any]]) -> JobConfig:
    """The tree's config; trees that break a rule between fields are thrown away."""
    try:
        return config_of(folder, tomli_w.dumps(tree))
    except ConfigError as error:
        assert not any("): must be" in problem for problem in error.problems), error.problems
        reject()


@quick
@given(tree=tables())
def test_a_resolved_config_relaunches_to_an_equal_one(tmp_path: Path, tree: dict[str, dict[str, Any]]) -> None:
    """pytorch/torchtitan#2386."""
    config = valid(tmp_path, tree)
    again = config_of(tmp_path, dump_toml(config))
    assert again == config
    assert dump_toml(again) == dump_toml(config)
    for name, value in leaves(tree):
        if not isinstance(value, list):
            assert operator.attrgetter(name)(again) == value


@quick
@given(tree=tables())
def test_a_flag_means_what_the_same_key_means_in_a_file(tmp_path: Path, tree: dict[str, dict[str, Any]]) -> None:
    config = valid(tmp_path, tree)
    flags = [f"--{name}={as_flag(value)}" for name, value in leaves(tree)]
    assert config_of(tmp_path, "", *flags) == config


def as_flag(value: Any) -> str:
    """The value as a user types it: text as it stands, the rest as TOML."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return f"[{', '.join(inline(item) for item in value)}]"
    return inline(value)


def inline(value: Any) -> str:
    """A value as TOML on one line."""
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key} = {inline(item)}' for key, item in value.items())}}}"
    return tomli_w.dumps({"value": value}).removeprefix("value = ").strip()


def test_every_key_can_be_set_by_file_and_flag(tmp_path: Path) -> None:
    """No field has a type that a file or a flag cannot express."""
    for name, info in KEYS.items():
        if name in CHOSEN or info.default is None or rows_of(info.annotation):
            continue
        is_table = name.startswith("quantize.")
        switch = {"model.converters": []} if is_table else {}  # which such a table needs
        by_file = config_of(tmp_path, tomli_w.dumps(nested({name: info.default} | switch)))
        assert config_of(tmp_path, tomli_w.dumps(nested(switch)), f"--{name}={as_flag(info.default)}") == by_file
        assert by_file == config_of(tmp_path, "") or is_table, "a table that is given is kept"


def test_the_dump_of_an_extended_config_with_flags_needs_neither(tmp_path: Path) -> None:
    write(tmp_path, f'{SOURCE}[training]\ntokens = "1M"\n[comm]\ngrace_seconds = "1m"', "base.toml")
    text = 'extends = "base.toml"\n[training]\nglobal_batch_tokens = 32768'
    config = resolve_text(tmp_path, text, "--model.num_layers", "2", "--training.seq_len", "1024").config
    (tmp_path / "base.toml").unlink()
    text = dump_toml(config)
    again = config_of(tmp_path, text)
    assert again == config
    raw = tomllib.loads(text)
    assert "extends" not in raw
    assert "config_file" not in raw["job"]
    assert raw["training"]["tokens"] == 1_000_000
    assert not {"steps", "global_batch_size"} & raw["training"].keys(), "of a pair only the one that holds"
    assert raw["model"]["num_layers"] == 2
    assert "hidden_size" not in raw["model"], "what the flavor says stays with the flavor"


JUNK = st.recursive(
    st.none().map(lambda _: "null")
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | TEXTS
    | st.dates()
    | st.times(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["name", "path", "a.b", ""]), inner),
    max_leaves=4,
)
SECTIONS = (
    st.sampled_from([*CONFIG_TYPE.model_fields, "extends", "float8", "quantize", "fault_tolerance", "int"]) | TEXTS
)
NAMES = st.sampled_from([name.split(".")[1] for name in KEYS if name not in CHOSEN] + ["dataloader", "str", "list"])
TREES = st.dictionaries(SECTIONS, JUNK | st.dictionaries(NAMES | TEXTS, JUNK, max_size=4), max_size=4)


@quick
@given(tree=TREES)
def test_whatever_a_file_holds_it_is_a_config_or_a_config_error(tmp_path: Path, tree: dict[str, Any]) -> None:
    try:
        config = config_of(tmp_path, tomli_w.dumps(tree))
    except ConfigError as error:
        assert all(problem and "pydantic" not in problem for problem in error.problems)
    else:
        assert config_of(tmp_path, dump_toml(config)) == config


@quick
@given(
    argv=st.lists(
        st.builds(
            "--{}{}{}".format,
            st.sampled_from([name for name in KEYS if name not in CHOSEN]) | TEXTS,
            st.sampled_from(["", "="]),
            TEXTS,
        )
        | TEXTS,
        max_size=4,
    )
)
def test_whatever_is_typed_it_is_a_config_or_a_config_error(argv: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:  # no file, so at least the data is missing
        resolve([argument for argument in argv if argument != "-h"])
    assert all(caught.value.problems)
