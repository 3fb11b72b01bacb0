"""``python -m merc.prepare``: turn a source into a feature store, or look into one."""

import sys
from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console

from merc.cli import run
from merc.config import instantiate, plain
from merc.data.corpora import CORPORA
from merc.data.sources.extract import POLICIES, Source, check_speakers, count_gaps, fill_gaps
from merc.data.store import check_target, describe, describe_classes, write_store
from merc.errors import MercError, check_choice


def prepare(cfg: DictConfig) -> Path:
    """Read the source, count and fill what is missing, and write the feature store.

    Args:
        cfg: configuration ``prepare``.

    Returns:
        the folder of the store.

    Raises:
        MercError: the source is wrong, something is missing and ``missing=error``, or the store cannot be written.
            No folder appears then.
    """
    settings = plain(cfg)
    out, corpus, policy = Path(settings["out"]), settings["corpus"]["name"], settings["missing"]
    check_choice("missing", policy, POLICIES)
    if "source" not in settings:
        raise MercError("Say where the conversations come from: source=pickle, source=meld_csv or source=tables.")
    check_target(out, settings["overwrite"])
    source: Source = instantiate(settings["source"])
    extract = source.read()
    if corpus is not None:
        check_speakers(extract, CORPORA[corpus].speaker_slots, corpus)
    completeness = count_gaps(extract, policy)
    console = _console()
    if not completeness.complete or completeness.surplus:
        console.print(completeness.render(), soft_wrap=True)
    conversations = fill_gaps(extract, completeness)
    write_store(
        out,
        conversations,
        corpus=corpus,
        sources=extract.files,
        texts=extract.texts,
        speaker_names=extract.speaker_names,
        completeness=completeness,
        overwrite=settings["overwrite"],
    )
    console.print(describe_classes(conversations), soft_wrap=True)
    console.print(
        f"Feature store {out} is ready; python -m merc.prepare inspect {out} shows what is inside.", soft_wrap=True
    )
    return out


def inspect(path: Path) -> None:
    """Print what is inside a feature store."""
    _console().print(describe(path), soft_wrap=True)


def _console() -> Console:
    return Console(markup=False, highlight=False)  # ids and paths may hold brackets


def main() -> None:
    """The command."""
    if sys.argv[1:2] == ["inspect"]:
        _inspect_command(sys.argv[2:])
    else:
        run(prepare, config_name="prepare")


def _inspect_command(arguments: list[str]) -> None:
    try:
        if len(arguments) != 1:
            raise MercError("inspect takes one feature store: python -m merc.prepare inspect stores/meld")
        inspect(Path(arguments[0]))
    except MercError as error:
        sys.exit(f"Error: {error}")


if __name__ == "__main__":
    main()
