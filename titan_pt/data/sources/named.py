"""Sources that a name alone stands for: built-in and registered ones, whose items are checked as they are read."""

from titan_pt.config.schema.job_config import Source
from titan_pt.data.sources.documents import Documents, contents_of
from titan_pt.data.sources.formatters import Formatter, find_formatter
from titan_pt.data.sources.local import checked_text, format_row
from titan_pt.data.sources.registry import ListingJson, SourceContext, SourceItems, naming, source_factory, title


def open_documents(source: Source, context: SourceContext, _listing: ListingJson | None) -> Documents:
    """The documents of a registered name."""
    with naming(source):
        formatter = find_formatter(source) if source.formatter else None
    return CheckedDocuments(source_factory(source.name)(source, context.settings.seed), title(source), formatter)


class CheckedDocuments:
    """Texts of a registered source, which may give anything; with a formatter they are made of its records."""

    def __init__(self, items: SourceItems, where: str, formatter: Formatter | None) -> None:
        self._items, self._where, self._formatter = items, where, formatter
        self.fingerprint = items.fingerprint + (f"-{formatter.fingerprint}" if formatter else "")
        self.contents = contents_of(items)
        self.generated = getattr(items, "generated", False)
        """Whether a rule makes the texts: to read them many times is what they are for."""

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> str:
        where = f"{self._where}: document {index}"
        if self._formatter is None:
            return checked_text(self._items[index], where)
        return format_row(self._formatter, self._items[index], where)
