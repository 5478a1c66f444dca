"""What is said of sources that do not suffice for a run, or repeat too often; imported where there are such."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from titan_pt.data.truth_table import SourceShare


def warnings_of(shares: Sequence["SourceShare"], tokens: int, enough: float, many_epochs: float) -> list[str]:
    """A line for each source that ends early or repeats too often, and for all where they do not suffice.

    Args:
        enough: share of the tokens that counts as all.
        many_epochs: passes that are too many.
    """
    found = []
    given = sum(source.tokens for source in shares)
    for source in shares:
        share = source.wished_tokens / tokens
        if source.max_epochs is not None and source.wished_epochs > source.max_epochs:
            found.append(
                f"data source {source.name!r}: its weight asks for {share:.1%} of the tokens = "
                f"{source.wished_epochs:,.4g} epochs, above max_epochs = {source.max_epochs:g}: it is spent after the "
                f"first {source.tokens / share:,.0f} tokens of the run and gives {source.tokens / tokens:.2%} of all"
                + "; the other sources give the rest. To spread it over the run, set its weight to that share"
                * (given >= enough * tokens)
            )
        elif source.max_epochs is None and source.epochs > many_epochs and not source.generated:
            found.append(
                f"data source {source.name!r}: {source.epochs:,.4g} epochs of the same documents and no max_epochs; "
                f"lower its weight, add documents, or set max_epochs (4 is a usual cap)"
            )
    if given < enough * tokens:
        found.append(
            f"data: every source is spent after {given:,.0f} of the {tokens:,} tokens: the run will end there; "
            "add documents or raise max_epochs"
        )
    return found
