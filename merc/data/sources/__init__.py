"""Where conversations come from; ``python -m merc.prepare source=...`` turns them into a feature store."""

from merc.data.sources.extract import Extract, Source
from merc.data.sources.meld import MeldCsv
from merc.data.sources.published_pickle import PublishedPickle
from merc.data.sources.tables import UtteranceTables

__all__ = ["Extract", "MeldCsv", "PublishedPickle", "Source", "UtteranceTables"]
