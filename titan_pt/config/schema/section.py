"""The base of every TOML table, and the types of its numbers and names."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, field_validator

from titan_pt.config.schema.values import Seconds, check_storable
from titan_pt.run.paths import escape_path, expand_path

Count = Annotated[int, Field(ge=0)]
PositiveInt = Annotated[int, Field(gt=0)]
AllOrCount = Annotated[int, Field(ge=-1)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
NonNegative = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
Name = Annotated[str, Field(min_length=1)]
# Of every key that names a file or folder: ~, $NAME and ${NAME} are replaced, and the resolved TOML holds the result.
AnyPath = Annotated[str, AfterValidator(expand_path), PlainSerializer(escape_path)]
PathName = Annotated[Name, AfterValidator(expand_path), PlainSerializer(escape_path)]
Timeout = Annotated[Seconds, Field(gt=0, le=365 * 86400)]


def _switch(value: Any) -> Any:
    if value != "auto" and not isinstance(value, bool):
        raise ValueError('must be true, false or "auto"')
    return value


Switch = Annotated[Literal["auto"] | bool, BeforeValidator(_switch)]


class Section(BaseModel):
    """One TOML table: typed, immutable, and closed to unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)

    @field_validator("*", mode="after")
    @classmethod
    def _storable(cls, value: Any) -> Any:
        for item in value if isinstance(value, list) else [value]:
            check_storable(item)
        return value


def switched_on(switch: Switch, device_type: str) -> bool:
    """What a switch means on a kind of device: "auto" is on with CUDA."""
    return device_type == "cuda" if switch == "auto" else switch
